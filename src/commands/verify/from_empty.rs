//! Refolds raw from empty, as the expected side of a comparison.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::prelude::SessionContext;

use super::{OpenPipeline, Side, TruncateDifference, Verified, day_differences, side};
use crate::commands::open_pipeline::date;
use crate::commands::run::inputs::describe_missing;
use crate::config::Pipeline;
use crate::curate::Curated;
use crate::curate::stage::Onto;
use crate::error::{Error, Kind, Result};
use crate::raw::discover::{self, Input, Recorded, Rediscovered};
use crate::raw::loads::is_reload;
use crate::report::Report;
use crate::state::State;
use crate::state::balance::{BALANCE, Balance};
use crate::state::floors::{Floor, FloorId};
use crate::store::Folder;
use crate::table::files::{FileTable, PartitionFile};
use crate::types::day_counts::DayCounts;

/// The tables refolded from raw.
pub(super) struct Refolded {
    pub(super) curated: Curated,
    pub(super) staging: Folder,
    pub(super) versions: Folder,
}

/// Folds all inputs that were folded so far from empty, and compares the state's rows per day.
pub(super) async fn refold(
    open: &OpenPipeline<'_>,
    state: &State,
    verified: &mut Verified,
) -> Result<Refolded> {
    let inputs = inputs(open, state).await?;
    let onto = Onto::Empty { accept_missing: false };
    let mut report = Report::default();
    let folded = open.dry_fold(state, &inputs, onto, &mut report).await?;
    verified.files = report.files;
    verified.rows_read = report.rows_read;
    let Some(curated) = folded.staged.curated else {
        return Err(Error::internal("the refold gave no table"));
    };
    let mut expected = DayCounts::default();
    for file in &curated.versions {
        expected.add_all(&file.days);
    }
    let mut found = DayCounts::default();
    for days in state.ledger.versions.values() {
        found.add_all(days);
    }
    let counts = |days: &DayCounts| days.iter().collect();
    if state.ledger.replacing_loads().is_empty() {
        verified.state_days_different = day_differences(&counts(&expected), &counts(&found));
        verified.truncates_different = truncate_differences(open, state, &curated.floors)?;
    }
    Ok(Refolded { curated, staging: folded.staging, versions: folded.versions })
}

/// The truncates that are not the same in the state and in raw, sorted.
fn truncate_differences(
    open: &OpenPipeline<'_>,
    state: &State,
    refolded: &[Floor],
) -> Result<Vec<TruncateDifference>> {
    fn by_id(floors: &[Floor]) -> BTreeMap<FloorId<'_>, &Floor> {
        floors.iter().map(|floor| (floor.id(), floor)).collect()
    }
    let (found, folders) = (state.ledger.all_floors(), open.run_context.raw()?);
    let (expected, found) = (by_id(refolded), by_id(&found));
    let has_images = open.run_context.pipeline.raw.before_image_prefix.is_some();
    let ordinals_per_row = 1 + u64::from(has_images);
    let ids: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let differences = ids.into_iter().filter_map(|id| {
        let (expected, found) = (expected.get(id), found.get(id));
        let why = match (expected, found) {
            (Some(expected), Some(found)) if expected.is_load || expected == found => return None,
            (Some(_), Some(_)) => "has another day or place in the state",
            (Some(_), None) => "is missing in the state",
            (None, _) => "is not in raw",
        };
        let floor = expected.or(found)?;
        Some(TruncateDifference {
            file: match floor.by_hand {
                Some(at) => format!("a truncate by hand at {at}"),
                None => folders[floor.location].describe(&floor.path),
            },
            row: floor.by_hand.map_or(floor.row / ordinals_per_row + 1, |_| 0),
            why: why.into(),
        })
    });
    Ok(differences.collect())
}

impl OpenPipeline<'_> {
    /// Compares the committed balance, if there is one, with the refolded one.
    pub(super) async fn verify_balance(
        &self,
        state: &State,
        folded: &Refolded,
        verified: &mut Verified,
    ) -> Result<()> {
        if !state.ledger.replacing_loads().is_empty() {
            return Ok(());
        }
        let committed = state.data_files(BALANCE);
        let Some(expected) = folded.curated.balance.file.clone().filter(|_| !committed.is_empty())
        else {
            return Ok(());
        };
        let new = || Balance::new(&folded.curated.layout, &self.runtime.memory_pool);
        let (mut found, mut refolded) = (new()?, new()?);
        for file in committed {
            match found.read(state.folder(), std::slice::from_ref(&file)).await {
                Err(error) if error.kind == Kind::Data => {
                    verified.state_files_damaged.push(file.0);
                }
                read => read?,
            }
        }
        if !verified.state_files_damaged.is_empty() {
            return Ok(());
        }
        refolded.read(&folded.versions, &[expected]).await?;
        found.add_all(&refolded, -1);
        if let Some(why) = found.fault(false) {
            verified.notes.push(format!("the balance was not compared: {why}"));
        }
        let days = found.days().into_iter();
        verified.balance_days_different = days.filter_map(date).collect();
        Ok(())
    }
}

/// The refolded curated table as a side of the comparison.
pub(super) fn refolded_side(
    open: &OpenPipeline<'_>,
    context: &SessionContext,
    columns: &[(String, DataType)],
    grown: &[String],
    folded: &Refolded,
    verified: &mut Verified,
) -> Result<Side> {
    let refolded = folded.columns();
    let is_new = |(name, _): &&(String, DataType)| {
        !columns.iter().any(|(known, _)| known == name) && !grown.contains(name)
    };
    let new = refolded.iter().filter(is_new).map(|(name, _)| name.clone());
    verified.columns_missing.extend(new);
    let table = Arc::new(folded.table(open.run_context.pipeline)?);
    let mut side = side(context, &folded.staging, table, columns)?;
    // A column that no raw file has any more is null on this side, not missing.
    side.missing.clear();
    Ok(side)
}

impl Refolded {
    /// The columns of the refolded curated table.
    fn columns(&self) -> Vec<(String, DataType)> {
        let columns = self.curated.columns.iter();
        columns.map(|field| (field.name().clone(), field.data_type().clone())).collect()
    }

    /// The refolded curated table.
    pub(super) fn table(&self, pipeline: &Pipeline) -> Result<FileTable> {
        let files = self.curated.staged.iter().map(|file| PartitionFile {
            path: &file.staged,
            partition: &file.partition,
            bytes: file.bytes,
            deleted: None,
        });
        let partition_by = &pipeline.curated.partition_by;
        FileTable::of_partitions(&self.staging, files, &self.columns(), partition_by)
    }
}

/// The inputs that were folded, unchanged since.
async fn inputs(open: &OpenPipeline<'_>, state: &State) -> Result<Vec<Input>> {
    let ledger = &state.ledger;
    let folders = open.run_context.raw()?;
    let rediscovered =
        discover::rediscover(&folders, &open.run_context.pipeline.raw, ledger, true).await?;
    let Rediscovered { inputs, missing: all_missing, .. } = rediscovered;
    let was_folded = |location: usize, path: &str| ledger.folded(location, path).is_some();
    let missing: Vec<_> =
        all_missing.into_iter().filter(|file| was_folded(file.location, &file.path)).collect();
    if let Some(error) = describe_missing(&missing) {
        return Err(Error::data(error)
            .hint("restore them: without them the table cannot be refolded to compare with"));
    }
    for Input { file, full_load, .. } in &inputs {
        let folder = &folders[file.location];
        let is_local = folder.location.file_path().is_some();
        let folded = ledger.folded(file.location, &file.path);
        let raw = &open.run_context.pipeline.raw;
        if folded.is_some_and(|folded| is_reload(raw, folder, folded, file)) {
            let name = folder.describe(&file.path);
            return Err(Error::data(format!(
                "{name} is a new full load, which no run has folded yet"
            ))
            .hint("run the pipeline, which folds it, and verify then"));
        }
        if folded.is_some_and(|folded| !folded.is_same(file, is_local)) {
            return Err(discover::changed(folder, &file.path, *full_load));
        }
    }
    let folded =
        inputs.into_iter().filter(|input| was_folded(input.file.location, &input.file.path));
    Ok(folded.collect())
}
