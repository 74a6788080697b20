//! The table contract after a run: columns and types.

use arrow::datatypes::Field;

use crate::changes::Changes;
use crate::config::{Format, Pipeline};
use crate::curate::Curated;
use crate::state::contract::{TableContract, column_types, write_types};
use crate::state::identity::Identity;

/// The contract after a run; `earlier` is the contract before it.
pub(super) fn contract(
    pipeline: &Pipeline,
    curated: &Curated,
    changes: &Changes,
    earlier: Option<&TableContract>,
) -> TableContract {
    let mut orders = earlier.map_or_else(Vec::new, |contract| contract.orders.clone());
    for (name, kind) in changes.order_kinds() {
        if !orders.iter().any(|(known, _)| *known == name) {
            orders.push((name, kind));
        }
    }
    let types = |columns: &[(String, arrow::datatypes::DataType)]| {
        write_types(columns.iter().map(|(name, kind)| (name.as_str(), kind)))
    };
    let raw_columns = changes.known_columns();
    TableContract {
        identity: Identity::of(pipeline).of_table(earlier.map(|earlier| &earlier.identity)),
        columns: column_types(&curated.columns),
        keys: types(&curated.layout.keys),
        partitions: types(&curated.layout.partitions),
        packed: curated.layout.packed,
        unrecorded: curated.layout.unrecorded.clone(),
        orders,
        raw: types(&raw_columns.all),
        untyped: curated.untyped.clone(),
        day: TableContract::stored_day(&curated.columns, curated.day.as_deref()),
        grown: grown(pipeline, &curated.columns, earlier),
        newest: (raw_columns.newest.file.clone(), types(&raw_columns.newest.columns)),
    }
}

/// The columns added to a Delta table that already had rows, which have null in them.
fn grown(pipeline: &Pipeline, columns: &[Field], earlier: Option<&TableContract>) -> Vec<String> {
    let Some(earlier) = earlier else { return Vec::new() };
    let is_delta = pipeline.curated.format == Format::Delta;
    let is_new =
        |name: &&String| is_delta && !earlier.columns.iter().any(|(known, _)| known == *name);
    let new = columns.iter().map(|field| field.name()).filter(is_new);
    earlier.grown.iter().chain(new).cloned().collect()
}
