//! What raw gives, folded again from nothing.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::prelude::SessionContext;

use super::{OpenPipeline, Side, Verified, day_differences, side};
use crate::commands::run::inputs::told;
use crate::config::Pipeline;
use crate::curate::Curated;
use crate::curate::stage::Onto;
use crate::error::{Error, Result};
use crate::raw::discover::{self, Input, Recorded};
use crate::report::Report;
use crate::state::State;
use crate::store::Folder;
use crate::table::files::{FileTable, PartitionFile};
use crate::types::day_counts::DayCounts;

/// What raw gives, folded again.
pub(super) struct Again {
    pub(super) curated: Curated,
    pub(super) staging: Folder,
    pub(super) versions: Folder,
}

pub(super) async fn folded_again(
    open: &OpenPipeline<'_>,
    state: &State,
    verified: &mut Verified,
) -> Result<Again> {
    let inputs = inputs(open, state).await?;
    let onto = Onto::Empty {
        accept_missing: false,
    };
    let mut report = Report::default();
    let folded = open.dry_fold(state, &inputs, onto, &mut report).await?;
    verified.files = report.files;
    verified.rows_read = report.rows_read;
    let Some(curated) = folded.staged.curated else {
        return Err(Error::internal("nothing was folded again"));
    };
    let mut remembered = DayCounts::default();
    let files = curated.versions.iter();
    files.for_each(|file| remembered.add_all(&file.days));
    let mut known = DayCounts::default();
    let files = state.ledger.versions.values();
    files.for_each(|days| known.add_all(days));
    let counts = |days: &DayCounts| days.iter().collect();
    verified.state_days_different = day_differences(&counts(&remembered), &counts(&known));
    Ok(Again {
        curated,
        staging: folded.staging,
        versions: folded.versions,
    })
}

/// The table as raw gives it.
pub(super) fn again(
    open: &OpenPipeline<'_>,
    context: &SessionContext,
    columns: &[(String, DataType)],
    grown: &[String],
    folded: &Again,
    verified: &mut Verified,
) -> Result<Side> {
    let made = folded.columns();
    let is_new = |(name, _): &&(String, DataType)| {
        !columns.iter().any(|(known, _)| known == name) && !grown.contains(name)
    };
    let new = made.iter().filter(is_new).map(|(name, _)| name.clone());
    verified.columns_missing.extend(new);
    let table = Arc::new(folded.table(open.run_context.pipeline)?);
    let mut side = side(context, &folded.staging, table, columns)?;
    // What no raw file has any more is null there.
    side.missing.clear();
    Ok(side)
}

impl Again {
    /// The columns of the curated table.
    fn columns(&self) -> Vec<(String, DataType)> {
        let columns = self.curated.columns.iter();
        columns
            .map(|field| (field.name().clone(), field.data_type().clone()))
            .collect()
    }

    /// The curated table.
    pub(super) fn table(&self, pipeline: &Pipeline) -> Result<FileTable> {
        let files = self.curated.staged.iter().map(|file| PartitionFile {
            path: &file.staged,
            partition: &file.partition,
            bytes: file.bytes,
        });
        let partition_by = &pipeline.curated.partition_by;
        FileTable::of_partitions(&self.staging, files, &self.columns(), partition_by)
    }
}

/// The inputs that were folded, as they were.
async fn inputs(open: &OpenPipeline<'_>, state: &State) -> Result<Vec<Input>> {
    let ledger = &state.ledger;
    let folders = open.run_context.raw()?;
    let (inputs, gone) =
        discover::rediscover(&folders, &open.run_context.pipeline.raw, ledger, true).await?;
    let was_folded = |location: usize, path: &str| ledger.folded(location, path).is_some();
    let gone = gone.into_iter();
    let gone: Vec<_> = gone
        .filter(|file| was_folded(file.location, &file.path))
        .collect();
    if let Some(told) = told(&gone) {
        return Err(Error::data(told)
            .hint("put them back: without them the table cannot be made again to compare with"));
    }
    for Input { file, .. } in &inputs {
        let folder = &folders[file.location];
        let is_here = folder.location.file_path().is_some();
        let folded = ledger.folded(file.location, &file.path);
        if folded.is_some_and(|folded| !folded.is_same(file, is_here)) {
            return Err(discover::changed(folder, &file.path));
        }
    }
    let folded = inputs.into_iter();
    let folded = folded.filter(|input| was_folded(input.file.location, &input.file.path));
    Ok(folded.collect())
}
