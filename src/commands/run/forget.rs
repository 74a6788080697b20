//! Keys that are forgotten for good, such as those of people who ask for it ([`crate::state::forgotten`]).

use std::sync::Arc;

use tracing::warn;

use crate::changes::forgotten::KeyColumns;
use crate::commands::open_pipeline::nothing_folded;
use crate::commands::run::Run;
use crate::commands::run::attempt::Attempt;
use crate::commands::task::Task;
use crate::config::{Format, Pipeline};
use crate::curate::Curated;
use crate::curate::merge::forget::Forgetting;
use crate::error::{Error, Result};
use crate::report::{Report, one_note};
use crate::state::forgotten::NewlyForgotten;
use crate::state::inputs::NeededInputs;
use crate::state::ledger::{Ledger, Quarantined, Record};
use crate::state::{State, quarantine};
use crate::types::key_hash::{ForgottenKeys, KeyHash, key_hashes};

/// What a step does with keys that were forgotten, or are to be.
#[derive(Debug, Default)]
pub(super) struct Forgets {
    /// What it does with their changes, rows and versions.
    pub(super) forgetting: Forgetting,
    /// The number of keys that the step forgets or recalls.
    count: usize,
    /// The number of given keys that were not forgotten before, and cannot be recalled.
    unknown: usize,
    /// The ledger's records of them.
    records: Vec<Record>,
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
            let forgetting = Forgetting { keys, ..Forgetting::default() };
            return Ok(Some(Forgets { forgetting, ..Forgets::default() }));
        };
        let run_context = self.open.run_context;
        let key_columns = key_columns(run_context.pipeline, ledger)?;
        run_context.pipeline.raw.masks.check_unlocked()?;
        let keys = given.iter().map(Vec::as_slice);
        let columns = key_columns.of_texts(keys).map_err(|(at, number)| {
            let (name, data_type) = key_columns.column(number);
            let hint = format!("nothing was changed: its type is {data_type}");
            Error::usage(format!(
                "key {}: the text for `{name}` is no value of this key column",
                at + 1
            ))
            .hint(if data_type.is_binary() {
                format!("{hint}, and its values are given in hexadecimal digits")
            } else {
                hint
            })
        })?;
        let forgotten = &ledger.forgotten;
        let salt = forgotten.salt_or(&run_context.run_id);
        let mut hashes = key_hashes(salt, &columns)?;
        let is_known = |hash: &KeyHash| forgotten.commit_of(hash).is_some();
        hashes.sort_unstable();
        hashes.dedup();
        if let Task::Recall(_) = self.task {
            let given = hashes.len();
            hashes.retain(is_known);
            let unknown = given - hashes.len();
            if hashes.is_empty() {
                report.note = Some("none of these keys is forgotten: nothing to do".into());
                return Ok(None);
            }
            let mut left = forgotten.clone();
            left.remove(&hashes);
            let (keys, count) = (Arc::new(left.keys()), hashes.len());
            let forgetting = Forgetting { keys, columns: Vec::new(), recalls: true };
            let records = vec![Record::Recalled { keys: hashes }];
            return Ok(Some(Forgets { forgetting, count, unknown, records }));
        }
        key_columns.check(&forgotten.keys())?;
        hashes.retain(|hash| !is_known(hash));
        if hashes.is_empty() {
            report.note = Some("all of these keys were forgotten before: nothing to do".into());
            return Ok(None);
        }
        let (count, salt) = (hashes.len(), salt.to_string());
        let columns_of_key = key_columns.kinds();
        let added = NewlyForgotten { salt, columns: columns_of_key, keys: hashes, commit };
        let mut all = forgotten.clone();
        all.add(added.clone());
        let records = added.parts().into_iter().map(Record::Forgotten).collect();
        let forgetting = Forgetting { keys: Arc::new(all.keys()), columns, recalls: false };
        Ok(Some(Forgets { forgetting, count, unknown: 0, records }))
    }

    /// Forgets keys in quarantine too, and notes what the step has removed. Returns the ledger's records.
    pub(super) async fn finish_forgetting(
        &self,
        attempt: &mut Attempt,
        forgets: Forgets,
        curated: Option<&Curated>,
    ) -> Result<impl Iterator<Item = Record>> {
        let (records, left) = self.forget_in_quarantine(attempt, &forgets.forgetting.keys).await?;
        self.note_forgotten(&mut attempt.report, &forgets, curated, left);
        Ok(records.into_iter().chain(forgets.records))
    }

    /// Notes what the step has removed; `left` is the number of quarantined rows whose keys cannot be read.
    fn note_forgotten(
        &self,
        report: &mut Report,
        forgets: &Forgets,
        curated: Option<&Curated>,
        left: usize,
    ) {
        let mut notes = Vec::new();
        match self.task {
            Task::Forget(_) => {
                let (seen, rows) = curated.map_or((0, 0), |curated| curated.forgotten);
                let unseen = match (forgets.count as u64).saturating_sub(seen) {
                    0 => String::new(),
                    unseen => format!(", {unseen} of which were never folded"),
                };
                notes.push(format!(
                    "{} keys are forgotten{unseen}; {rows} rows of them were removed; their changes stay in the raw \
                     files, which are not ours to change",
                    forgets.count
                ));
                let curated = &self.open.run_context.pipeline.curated;
                let until = self.open.run_context.now.checked_add_signed(curated.retention);
                if let (Format::Delta, Some(until)) = (curated.format, until) {
                    notes.push(format!(
                        "runs from {until} on remove the files of the Delta table that these rows were in \
                         (curated.retention)"
                    ));
                }
            }
            Task::Recall(_) => {
                let unknown = match forgets.unknown {
                    0 => String::new(),
                    unknown => format!("; {unknown} of the given keys were not forgotten"),
                };
                notes.push(format!("{} keys are folded again{unknown}", forgets.count));
            }
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
    async fn forget_in_quarantine(
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
            let is_forgotten = |change: &str, is_of_column: bool| {
                let found = key_columns.in_bad_row(keys, change, is_of_column);
                unreadable += usize::from(found.is_unreadable());
                found.has_forgotten
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
