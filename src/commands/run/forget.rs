//! Keys that are forgotten for good, such as those of people who ask for it ([`crate::state::forgotten`]).

use std::sync::Arc;

use arrow::array::ArrayRef;
use tracing::warn;

use crate::changes::forgotten::{KeyColumns, KeyInText};
use crate::commands::open_pipeline::nothing_folded;
use crate::commands::run::Run;
use crate::commands::run::attempt::Attempt;
use crate::commands::task::Task;
use crate::config::Pipeline;
use crate::curate::Curated;
use crate::error::{Error, Result};
use crate::report::{Report, one_note};
use crate::state::inputs::NeededInputs;
use crate::state::ledger::{Ledger, Quarantined, Record};
use crate::state::{State, quarantine};
use crate::types::key_hash::{ForgottenKeys, KeyHash, key_hashes};

/// What a step does with keys that were forgotten, or are to be.
#[derive(Debug, Default)]
pub(super) struct Forgets {
    /// All keys that are forgotten after the step.
    pub(super) keys: Arc<ForgottenKeys>,
    /// The columns of those that the step forgets, in canonical types; empty, if it forgets none.
    pub(super) columns: Vec<ArrayRef>,
    /// The number of keys that the step forgets or recalls.
    count: usize,
    /// The ledger's record of them.
    pub(super) record: Option<Record>,
}

impl Run<'_> {
    /// What the step does with forgotten keys; `None` if there is nothing to do.
    pub(super) fn forgets(
        &self,
        ledger: &Ledger,
        commit: u64,
        report: &mut Report,
    ) -> Result<Option<Forgets>> {
        let (Task::Forget(given) | Task::Recall(given)) = &self.task else {
            let keys = Arc::new(ledger.forgotten.keys());
            return Ok(Some(Forgets { keys, ..Forgets::default() }));
        };
        let run_context = self.open.run_context;
        let key_columns = key_columns(run_context.pipeline, ledger)?;
        let keys = given.iter().map(Vec::as_slice);
        let columns = key_columns.of_texts(keys).map_err(|(at, number)| {
            let (name, data_type) = key_columns.column(number);
            Error::usage(format!("key {}: its value of the column `{name}` is none", at + 1))
                .hint(format!("nothing was changed: the type of the column is {data_type}"))
        })?;
        let forgotten = &ledger.forgotten;
        let salt = forgotten.salt_or(&run_context.run_id);
        let mut hashes = key_hashes(salt, &columns)?;
        let is_known = |hash: &KeyHash| forgotten.commit_of(hash).is_some();
        if let Task::Recall(_) = self.task {
            if let Some(at) = hashes.iter().position(|hash| !is_known(hash)) {
                return Err(Error::usage(format!("key {} was not forgotten", at + 1))
                    .hint("nothing was changed: see whether its values are written as before"));
            }
            let count = hashes.len();
            let mut left = forgotten.clone();
            left.remove(&hashes);
            let record = Some(Record::Recalled { keys: hashes });
            let keys = Arc::new(left.keys());
            return Ok(Some(Forgets { keys, columns: Vec::new(), count, record }));
        }
        hashes.retain(|hash| !is_known(hash));
        hashes.sort_unstable();
        hashes.dedup();
        if hashes.is_empty() {
            report.note = Some("all of these keys were forgotten before: nothing to do".into());
            return Ok(None);
        }
        let (count, salt) = (hashes.len(), salt.to_string());
        let mut all = forgotten.clone();
        all.add(salt.clone(), hashes.clone(), commit);
        let record = Some(Record::Forgotten { salt, keys: hashes, commit });
        Ok(Some(Forgets { keys: Arc::new(all.keys()), columns, count, record }))
    }

    /// Notes what the step has removed; `left` is the number of quarantined rows whose keys cannot be read.
    pub(super) fn note_forgotten(
        &self,
        report: &mut Report,
        forgets: &Forgets,
        curated: Option<&Curated>,
        left: usize,
    ) {
        let mut notes = Vec::new();
        match self.task {
            Task::Forget(_) => {
                let rows = curated.map_or(0, |curated| curated.rows_forgotten);
                notes.push(format!(
                    "{} keys are forgotten, and {rows} rows of them were removed; their changes stay in the raw \
                     files, which are not ours to change",
                    forgets.count
                ));
            }
            Task::Recall(_) => notes.push(format!("{} keys are folded again", forgets.count)),
            _ => return,
        }
        if left > 0 {
            let location = &self.open.quarantine.location;
            let note = format!(
                "the keys of {left} rows in quarantine cannot be read: see whether any is of a forgotten key: {location}"
            );
            warn!("{note}");
            notes.push(note);
        }
        report.note = one_note(notes.into_iter().chain(report.note.take()));
    }

    /// Writes quarantine files again in which rows of forgotten keys are described, without these rows. Returns the
    /// ledger's records of them, and the number of rows whose keys cannot be read.
    pub(super) async fn forget_in_quarantine(
        &self,
        attempt: &Attempt,
        keys: &ForgottenKeys,
    ) -> Result<(Vec<Record>, usize)> {
        let (mut records, mut left) = (Vec::new(), 0);
        let Task::Forget(_) = self.task else { return Ok((records, left)) };
        let ledger = &attempt.state.ledger;
        let key_columns = key_columns(self.open.run_context.pipeline, ledger)?;
        for (number, quarantined) in ledger.quarantined.values().enumerate() {
            let file = format!("{}-{:05}.parquet", attempt.name, number + 1);
            let mut unreadable = 0;
            let is_forgotten = |change: &str| {
                let known = key_columns.in_text(keys, change);
                unreadable += usize::from(known == KeyInText::Unreadable);
                known == KeyInText::Forgotten
            };
            let folder = &self.open.quarantine;
            if quarantine::forget(folder, &quarantined.file, &file, is_forgotten).await? {
                let quarantined = Quarantined { file, ..quarantined.clone() };
                records.push(Record::Quarantined(quarantined));
            }
            left += unreadable;
        }
        Ok((records, left))
    }

    /// Removes the files of the state that still have what was forgotten, once nothing lists them any more.
    pub(super) async fn remove_forgotten(&self) -> Result<()> {
        let run_context = self.open.run_context;
        let (stores, pipeline) = (run_context.stores, run_context.pipeline);
        State::open(stores, pipeline, NeededInputs::Recent).await?.remove_replaced().await
    }
}

/// The key columns of a pipeline, as raw has had them so far.
///
/// # Errors
/// Usage, if there is no key, or no run has folded anything.
pub(crate) fn key_columns(pipeline: &Pipeline, ledger: &Ledger) -> Result<KeyColumns> {
    if pipeline.key.is_empty() {
        return Err(Error::usage("the pipeline has no key: its rows are only appended"));
    }
    let contract = ledger.contract.as_ref().ok_or_else(|| nothing_folded("forget"))?;
    let known = contract.known_columns()?.all;
    let raw = known.iter().map(|(name, data_type)| (name.as_str(), data_type));
    Ok(KeyColumns::new(pipeline, raw))
}
