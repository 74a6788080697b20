//! A fold that is not committed: what a run would write goes to the disk to spill to, and is gone
//! with the command.

use crate::commands::open_pipeline::OpenPipeline;
use crate::config::OnBad;
use crate::curate::stage::{BadInputs, Onto, Stage, Staged};
use crate::error::Result;
use crate::layout::attempt_name;
use crate::raw::discover::Input;
use crate::report::Report;
use crate::state::State;
use crate::state::ledger::CURATED;
use crate::store::{Folder, Location};

/// What a dry fold made, and where it is.
pub(super) struct DryFold {
    pub(super) staged: Staged,
    /// The staged files.
    pub(super) staging: Folder,
    /// The new versions.
    pub(super) versions: Folder,
}

impl OpenPipeline<'_> {
    /// A folder that is gone with the command.
    fn dry_folder(&self, name: &str) -> Result<Folder> {
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
        let puts_aside = pipeline.raw.on_bad_file == OnBad::Quarantine;
        let mut bad = BadInputs::new();
        let mut tries = 0;
        loop {
            let staging = self.dry_folder(&format!("staging-{tries}"))?;
            let versions = self.dry_folder(&format!("versions-{tries}"))?;
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
                versions: &versions,
                attempt: &attempt_name(state.next_commit(), &self.run_context.run_id),
                is_dry: true,
            };
            let failed = match stage.run(inputs, &mut bad, report).await {
                Ok(staged) => {
                    return Ok(DryFold {
                        staged,
                        staging,
                        versions,
                    });
                }
                Err(failed) => failed,
            };
            let known = bad.len();
            if let Some(input) = failed.input.clone().filter(|_| puts_aside) {
                bad.insert(*input, failed.to_string());
            }
            if bad.len() == known {
                return Err(failed);
            }
            for name in [format!("staging-{tries}"), format!("versions-{tries}")] {
                let _ = std::fs::remove_dir_all(self.spill.path().join(name));
            }
            tries += 1;
        }
    }
}
