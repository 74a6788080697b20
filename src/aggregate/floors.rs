//! The relation `versions` where there are floors.
//!
//! What floors add to the stored versions are entries on the floors' own days. So a scan goes by the
//! filters that it is given: if the day of no floor passes them, it reads the stored versions alone;
//! if some do, `sql/floors.sql` computes what the floors of these days ended.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{AsArray, Date32Array, RecordBatch};
use arrow::datatypes::{DataType, Date32Type, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DFSchema, Result as DataFusionResult};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{
    Expr, LogicalPlan, LogicalPlanBuilder, ScalarUDF, TableProviderFilterPushDown, TableType,
};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;

use crate::aggregate::placed_floors::{Day, PlacedFloors};
use crate::error::Result;
use crate::state::floors::Floor;
use crate::state::versions::VersionsLayout;

/// The stored versions, and what floors ended.
#[derive(Debug)]
pub(super) struct FlooredVersions {
    stored: Arc<dyn TableProvider>,
    layout: VersionsLayout,
    seq: ScalarUDF,
    floors: PlacedFloors,
}

impl FlooredVersions {
    /// `seq` is the function of that name.
    pub(super) fn new(
        stored: Arc<dyn TableProvider>,
        layout: &VersionsLayout,
        seq: &ScalarUDF,
        floors: &[Floor],
    ) -> Result<Self> {
        let floors = PlacedFloors::new(floors, seq)?;
        Ok(FlooredVersions { stored, layout: layout.clone(), seq: seq.clone(), floors })
    }

    /// The versions, with what floors of these days ended.
    async fn with_ended(
        &self,
        state: &dyn Session,
        days: &BTreeSet<Day>,
    ) -> DataFusionResult<LogicalPlan> {
        // A relation and functions of its own, which queries do not see.
        let runtime = Arc::clone(state.runtime_env());
        let context = SessionContext::new_with_config_rt(state.config().clone(), runtime);
        context.register_table("stored_versions", Arc::clone(&self.stored))?;
        context.register_udf(self.seq.clone());
        self.floors.columns().for_each(|column| context.register_udf(column));
        context.register_udf(self.floors.floor_after(days));
        context.register_udf(self.floors.floor_of_day_after(days));
        Ok(context.sql(&floors_sql(&self.layout, days)).await?.logical_plan().clone())
    }
}

#[async_trait]
impl TableProvider for FlooredVersions {
    fn schema(&self) -> SchemaRef {
        self.stored.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    /// A filter above the scan filters the rows.
    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> DataFusionResult<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let days = asked_days(state, self.floors.days(), filters);
        if days.is_empty() {
            return self.stored.scan(state, projection, filters, limit).await;
        }
        let rows = self.with_ended(state, &days).await?;
        let schema = self.schema();
        let all = || (0..schema.fields().len()).collect();
        let columns = projection.cloned().unwrap_or_else(all);
        let columns = columns.into_iter().map(|column| schema.field(column).name().as_str());
        scan_query(state, rows, columns, filters, limit).await
    }
}

/// Scans the result of a query: some of its columns, of the rows that pass filters.
pub(super) async fn scan_query<'a>(
    state: &dyn Session,
    rows: LogicalPlan,
    columns: impl Iterator<Item = &'a str>,
    filters: &[Expr],
    limit: Option<usize>,
) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
    let columns = columns
        .map(|name| rows.schema().qualified_field_with_unqualified_name(name).map(Expr::from));
    let columns = columns.collect::<DataFusionResult<Vec<Expr>>>()?;
    let mut chosen = LogicalPlanBuilder::from(rows);
    if let Some(filter) = conjunction(filters.iter().cloned()) {
        chosen = chosen.filter(filter)?;
    }
    let chosen = chosen.project(columns)?.limit(0, limit)?.build()?;
    state.create_physical_plan(&chosen).await
}

/// Those of the days for which a scan with such filters can be asked: filters of nothing but `event_dt`
/// decide, as far as they can be computed.
pub(super) fn asked_days(
    state: &dyn Session,
    days: BTreeSet<Day>,
    filters: &[Expr],
) -> BTreeSet<Day> {
    let passes = filters.iter().filter_map(|filter| passing_days(state, &days, filter));
    passes.fold(days.clone(), |asked, passes| &asked & &passes)
}

/// The days that pass a filter; `None` if that cannot be told.
fn passing_days(state: &dyn Session, days: &BTreeSet<Day>, filter: &Expr) -> Option<BTreeSet<Day>> {
    let columns = filter.column_refs();
    let is_of_day = !columns.is_empty() && columns.iter().all(|column| column.name == "event_dt");
    if !is_of_day || filter.is_volatile() {
        return None;
    }
    let schema = Arc::new(Schema::new(vec![Field::new("event_dt", DataType::Date32, true)]));
    let values = Arc::new(days.iter().copied().collect::<Date32Array>());
    let rows = RecordBatch::try_new(Arc::clone(&schema), vec![values]).ok()?;
    let schema = DFSchema::try_from(schema).ok()?;
    let filter = state.create_physical_expr(filter.clone(), &schema).ok()?;
    // A part of a query's filter may fail for rows that another part excludes.
    let passes = filter.evaluate(&rows).ok()?.into_array(days.len()).ok()?;
    let passes = passes.as_boolean_opt()?;
    let days = days.iter().zip(passes.iter());
    Some(days.filter(|(_, passes)| *passes == Some(true)).map(|(day, _)| *day).collect())
}

/// `sql/floors.sql` with its placeholders replaced.
fn floors_sql(layout: &VersionsLayout, days: &BTreeSet<Day>) -> String {
    let names = layout.column_names();
    let nulls = (0..layout.partitions.len()).map(|number| format!("NULL AS part_{number},"));
    let dates = days.iter().flatten().map(|day| {
        let date = Date32Type::to_naive_date_opt(*day).unwrap_or_default();
        format!("DATE '{date}'")
    });
    let dates: Vec<String> = dates.collect();
    let is_null = days.contains(&None).then(|| "event_dt IS NULL".to_string());
    let is_one = (!dates.is_empty()).then(|| format!("event_dt IN ({})", dates.join(", ")));
    let of_days = [is_null, is_one].into_iter().flatten().collect::<Vec<_>>().join(" OR ");
    include_str!("../../sql/floors.sql")
        .replace("{keys}", &names[..layout.keys.len()].join(", "))
        .replace("{columns}", &names.join(", "))
        .replace("{nulls}", &nulls.collect::<Vec<_>>().join(" "))
        .replace("{seq}", &VersionsLayout::seq_sql())
        .replace("{of_days}", &of_days)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow::array::{
        ArrayRef, BinaryArray, BooleanArray, Int32Array, Int64Array, StringArray, new_null_array,
    };
    use arrow::datatypes::Int64Type;
    use arrow::util::pretty::pretty_format_batches;
    use datafusion::catalog::MemTable;
    use datafusion::physical_plan::displayable;

    use crate::aggregate::history::{HistoryOrder, reads_ended, register_history};
    use crate::changes::file_order::FileNumbers;
    use crate::layout::FileOrder;
    use crate::state::versions::ORDER_BYTES;

    use super::*;

    /// A floor of a day at a time; in a pipeline that orders by bytes, the bytes are one, the time.
    fn floor(day: Day, time: u8, packed: bool) -> Floor {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::STANDARD.encode([time]);
        let order = (!packed).then_some(bytes);
        let time = packed.then_some((i64::from(time), 0));
        let floor = serde_json::json!({"location": 0, "path": "a", "row": 0, "day": day, "cdc": true,
            "time": time, "order": order});
        serde_json::from_value(floor).expect("a floor")
    }

    /// Keys, days and times of versions: 9 keys, the days from 1 to 6 and no day, times from 0 to 99.
    fn entries() -> Vec<(i64, Day, u8)> {
        let all = (0..9).flat_map(|key| (0..7).map(move |day| (key, day)));
        let some = all.filter(|(key, day)| (key * 7 + i64::from(*day) * 5) % 3 != 0);
        let time = |key: i64, day: i32| ((key * 37 + i64::from(day) * 53) % 100) as u8;
        some.map(|(key, day)| (key, (day > 0).then_some(day), time(key, day))).collect()
    }

    /// Whether the version of a time is deleted.
    fn is_deleted(time: u8) -> bool {
        time.is_multiple_of(5)
    }

    /// Days and times of floors. A version of the same time is later: its file is.
    const FLOORS: [(Day, u8); 4] = [(Some(4), 80), (Some(2), 30), (Some(4), 50), (None, 60)];

    /// What `history` has: per key and day whether it is deleted.
    fn naive() -> BTreeMap<(i64, Day), bool> {
        let mut last: BTreeMap<(i64, Day), (u8, bool, bool)> = BTreeMap::new();
        let mut add = |key_and_day, place| {
            let known = last.entry(key_and_day).or_insert(place);
            *known = place.max(*known);
        };
        for (key, day, time) in entries() {
            add((key, day), (time, true, is_deleted(time)));
            let later = FLOORS.into_iter().filter(|floor| floor.1 > time);
            let first = later.clone().min_by_key(|floor| floor.1);
            let is_last = |floor: &(Day, u8)| {
                !entries()
                    .iter()
                    .any(|other| other.0 == key && (time + 1..floor.1).contains(&other.2))
            };
            let of_day = later.filter(|floor| floor.0 == day).min_by_key(|floor| floor.1);
            let ends = first.filter(is_last).into_iter().chain(of_day);
            ends.filter(|_| !is_deleted(time))
                .for_each(|end| add((key, end.0), (end.1, false, true)));
        }
        last.into_iter().map(|(key_and_day, place)| (key_and_day, place.2)).collect()
    }

    /// The versions in their columns.
    fn versions(layout: &VersionsLayout) -> RecordBatch {
        let rows = entries();
        let days = rows.iter().map(|row| row.1);
        let times = || rows.iter().map(|row| layout.packed.then_some(i64::from(row.2)));
        let bytes = rows.iter().map(|row| (!layout.packed).then_some([row.2]));
        let schema = layout.schema();
        let columns = schema.fields().iter().map(|field| -> ArrayRef {
            match field.name().as_str() {
                "key_0" => Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))),
                "event_dt" => Arc::new(days.clone().collect::<Date32Array>()),
                "deleted" => Arc::new(BooleanArray::from_iter(
                    rows.iter().map(|row| Some(is_deleted(row.2))),
                )),
                "cdc" => Arc::new(BooleanArray::from(vec![true; rows.len()])),
                "time_us" => Arc::new(Int64Array::from_iter(times())),
                "time_ns" => Arc::new(Int32Array::from_iter(times().map(|time| time.map(|_| 0)))),
                ORDER_BYTES => Arc::new(BinaryArray::from_iter(bytes.clone())),
                "location" => Arc::new(Int32Array::from(vec![0; rows.len()])),
                "file" => Arc::new(StringArray::from(vec!["b"; rows.len()])),
                "row" => Arc::new(Int64Array::from_iter_values(0..rows.len() as i64)),
                _ => new_null_array(field.data_type(), rows.len()),
            }
        });
        RecordBatch::try_new(Arc::clone(&schema), columns.collect()).expect("versions")
    }

    /// A session with `history`, and `every`, which has what `history` without a filter has.
    async fn session_with_history(packed: bool) -> SessionContext {
        let keys = vec![("id".to_string(), DataType::Int64)];
        let layout = VersionsLayout { keys, packed, ..VersionsLayout::default() };
        let floors = FLOORS.map(|(day, time)| floor(day, time, packed)).to_vec();
        let files = FileNumbers::default();
        files.number(0, "b");
        let stored = versions(&layout);
        let stored = MemTable::try_new(stored.schema(), vec![vec![stored]]).expect("a table");
        let context = SessionContext::new();
        let order = HistoryOrder { files, order: FileOrder::Name, floors };
        register_history(&context, Arc::new(stored), &layout, order).await.expect("a history");
        let all = context.sql("SELECT id, event_dt, deleted FROM history").await.expect("planned");
        let all = all.collect().await.expect("rows");
        let all = MemTable::try_new(all[0].schema(), vec![all]).expect("a table");
        context.register_table("every", Arc::new(all)).expect("a table");
        context
    }

    /// Filters, and whether they let a day of a floor pass, or it cannot be told.
    const FILTERS: [(&str, bool); 22] = [
        ("event_dt = DATE '1970-01-02'", false),
        ("event_dt = DATE '1970-01-03'", true),
        ("DATE '1970-01-05' = event_dt", true),
        ("event_dt BETWEEN DATE '1970-01-06' AND DATE '1970-01-09'", false),
        ("event_dt BETWEEN DATE '1970-01-05' AND DATE '1970-01-09'", true),
        ("event_dt >= DATE '1970-01-04' AND event_dt < DATE '1970-01-05'", false),
        ("event_dt >= DATE '1970-01-04' AND event_dt < DATE '1970-01-06'", true),
        ("event_dt >= '1970-01-04' AND event_dt < '1970-01-05'", false),
        ("event_dt IN (DATE '1970-01-02', DATE '1970-01-04')", false),
        ("event_dt IN (DATE '1970-01-02', DATE '1970-01-05')", true),
        ("event_dt NOT IN (DATE '1970-01-03', DATE '1970-01-05')", false),
        ("event_dt IS NULL", true),
        ("event_dt IS NOT NULL", true),
        ("event_dt = DATE '1970-01-02' OR event_dt IS NULL", true),
        ("CAST(event_dt AS TIMESTAMP) > TIMESTAMP '1970-01-05 12:00:00'", false),
        ("date_trunc('month', event_dt) = TIMESTAMP '1970-02-01 00:00:00'", false),
        ("event_dt > DATE '1970-01-05' AND deleted", false),
        ("event_dt > DATE '1970-01-05' OR id = 3", true),
        ("event_dt > DATE '1970-01-05' AND random() < 2", false),
        ("event_dt IN (SELECT MAX(event_dt) FROM every)", true),
        ("id = 3", true),
        ("TRUE", true),
    ];

    #[tokio::test]
    async fn scans_compute_what_floors_ended_for_the_days_that_filters_let_pass() {
        let floor_days = [Some(2), Some(4), None].into();
        for (packed, (filter, is_asked)) in
            FILTERS.map(|filter| [(true, filter), (false, filter)]).concat()
        {
            let context = session_with_history(packed).await;
            let sql = |relation: &str| {
                format!("SELECT id, event_dt, deleted FROM {relation} WHERE {filter}")
            };
            let rows = async |sql: String| {
                let frame =
                    context.sql(&format!("{sql} ORDER BY id, event_dt")).await.expect("planned");
                let rows = frame.collect().await.expect("rows");
                pretty_format_batches(&rows).expect("rows").to_string()
            };
            assert_eq!(rows(sql("history")).await, rows(sql("every")).await, "{filter}");
            let wrapped = format!("SELECT * FROM (SELECT * FROM history) AS h WHERE {filter}");
            for sql in [sql("history"), wrapped.replace("SELECT *", "SELECT id, event_dt, deleted")]
            {
                let plan = context.sql(&sql).await.expect("planned");
                let plan = plan.into_optimized_plan().expect("optimized");
                let state = context.state();
                let found = reads_ended(&state, &plan, &floor_days).expect("a plan");
                let plan = state.create_physical_plan(&plan).await.expect("planned");
                let plan = displayable(plan.as_ref()).indent(false).to_string();
                let sorts = plan.contains("WindowAggExec") && plan.contains("SortExec");
                assert_eq!((found, sorts), (is_asked, is_asked), "{filter} {packed}: {plan}");
            }
        }
    }

    #[tokio::test]
    async fn keys_that_floors_ended_are_deleted_on_the_floors_days() {
        for packed in [true, false] {
            let context = session_with_history(packed).await;
            let every = context.table("every").await.expect("a table");
            let mut found = BTreeMap::new();
            for rows in every.collect().await.expect("rows") {
                let keys = rows.column(0).as_primitive::<Int64Type>();
                let days = rows.column(1).as_primitive::<Date32Type>().iter();
                for (at, day) in days.enumerate() {
                    let deleted = rows.column(2).as_boolean().value(at);
                    assert_eq!(found.insert((keys.value(at), day), deleted), None, "twice");
                }
            }
            assert_eq!(found, naive());
        }
    }
}
