//! A fold that is not committed: its files are written to the spill folder, and removed when the
//! command ends.

use std::sync::Arc;

use crate::commands::open_pipeline::OpenPipeline;
use crate::curate::merge::forget::Forgetting;
use crate::curate::stage::{BadInputs, Onto, Stage, Staged};
use crate::error::Result;
use crate::layout::attempt_name;
use crate::raw::discover::Input;
use crate::report::Report;
use crate::state::State;
use crate::state::ledger::CURATED;
use crate::store::{Folder, Location};

/// The result of a dry fold, and its folders.
pub(super) struct DryFold {
    pub(super) staged: Staged,
    /// The staged files.
    pub(super) staging: Folder,
    /// The new versions.
    pub(super) versions: Folder,
}

impl OpenPipeline<'_> {
    /// A folder that is removed when the command ends.
    pub(super) fn dry_folder(&self, name: &str) -> Result<Folder> {
        let path = self.spill.path().join(name);
        let location = Location::parse(&path.to_string_lossy(), self.spill.path())?;
        self.run_context.stores.open(&location)
    }

    /// Folds inputs without a commit.
    pub(super) async fn dry_fold(
        &self,
        state: &State,
        inputs: &[Input],
        onto: Onto,
        report: &mut Report,
    ) -> Result<DryFold> {
        let pipeline = self.run_context.pipeline;
        let raw = self.run_context.raw()?;
        let mut bad = BadInputs::default();
        let truncates: Vec<_> = match onto {
            Onto::Empty { .. } => state.ledger.truncates_by_hand().collect(),
            Onto::Table => Vec::new(),
        };
        let keys = Arc::new(state.ledger.forgotten.keys());
        let forgetting = Forgetting { keys, ..Forgetting::default() };
        let mut attempt = 0;
        loop {
            let staging = self.dry_folder(&format!("staging-{attempt}"))?;
            let versions = self.dry_folder(&format!("versions-{attempt}"))?;
            let stage = Stage {
                pipeline,
                resources: self.run_context.resources,
                runtime: &self.runtime,
                raw: &raw,
                ledger: &state.ledger,
                onto,
                table: &self.output(CURATED)?.folder,
                staging: &staging,
                state: state.folder(),
                committed_versions: state.data_files("version"),
                committed_balance: state.data_files("balance"),
                versions: &versions,
                attempt: &attempt_name(state.next_commit(), &self.run_context.run_id),
                truncates: &truncates,
                forgetting: &forgetting,
                is_dry: true,
            };
            let failed = match stage.run(inputs, &mut bad, report).await {
                Ok(staged) => {
                    return Ok(DryFold { staged, staging, versions });
                }
                Err(failed) => failed,
            };
            if !bad.add(&failed, &pipeline.raw) {
                return Err(failed);
            }
            for name in [format!("staging-{attempt}"), format!("versions-{attempt}")] {
                let _ = std::fs::remove_dir_all(self.spill.path().join(name));
            }
            attempt += 1;
        }
    }
}
