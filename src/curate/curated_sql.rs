//! `curated.sql`: planned over `latest`, checked to be row-wise, and made total.
//!
//! The query may only project and filter with immutable functions, so that one changed key changes
//! one row. It is rewritten so that it drops no row: a filter becomes a flag, and every computed
//! column is evaluated for live rows only. The rewritten query returns one row per last change, with
//! the query's columns first and then:
//!
//! | column | Arrow type | meaning |
//! |---|---|---|
//! | live | Boolean | whether the curated table may hold the row: not deleted, not filtered out |
//! | latest | Boolean | whether this is its key's last change |
//! | position | see [`crate::changes::position`] | the position in the order of changes |
//! | day | Date32 | the change's day |
//! | key 0, … | as found | the key columns, and the instant if the table keeps times |
//!
//! The names of these columns begin with a prefix that no other name in the query begins with
//! ([`Hidden`]); they are read by their place ([`CuratedRows`]).

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::catalog::TableProvider;
use datafusion::common::{Column, DFSchema, DataFusionError};
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{
    Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, SubqueryAlias, lit, when,
};
use datafusion::prelude::SessionContext;

use crate::changes::reader::{ChangesTable, NamedColumns};
use crate::changes::row_bitmap::Winners;
use crate::changes::{ChangeColumn, Changes, EVENT_DT};
use crate::config::{ENVELOPE_PREFIX, Format, Keep, LATEST_RELATION, Pipeline, Sql};
use crate::engine::row_wise::not_row_wise;
use crate::engine::session::first_line;
use crate::error::{Error, Result};
use crate::state::versions::quoted;
use crate::table::delta_log::delta_columns;
use crate::table::writer;

/// The checked and rewritten query.
#[derive(Debug)]
pub(crate) struct CuratedQuery {
    /// The plan; returns [`CuratedQuery::columns`], then the hidden columns.
    pub plan: LogicalPlan,
    /// The columns of the curated table, partition columns included.
    pub columns: Vec<Field>,
    /// The columns whose type is unknown, because they come from raw columns that have only nulls so
    /// far. In [`CuratedQuery::columns`] they are text.
    pub untyped: Vec<String>,
    /// The column that is the day.
    pub day: Option<String>,
}

/// A batch of the rewritten query.
pub(crate) struct CuratedRows<'a> {
    /// The columns of the curated table.
    pub columns: &'a [ArrayRef],
    hidden: &'a [ArrayRef],
}

impl<'a> CuratedRows<'a> {
    /// The columns of a batch, whose query has `count` columns.
    pub(crate) fn of(batch: &'a RecordBatch, count: usize) -> Self {
        let (columns, hidden) = batch.columns().split_at(count);
        CuratedRows { columns, hidden }
    }

    /// Whether the curated table may hold each row.
    pub(crate) fn live(&self) -> &'a BooleanArray {
        self.hidden[0].as_boolean()
    }

    /// Whether each is its key's last change.
    pub(crate) fn latest(&self) -> &'a BooleanArray {
        self.hidden[1].as_boolean()
    }

    /// The positions in the order of changes.
    pub(crate) fn positions(&self) -> &'a ArrayRef {
        &self.hidden[2]
    }

    /// The days.
    pub(crate) fn days(&self) -> &'a ArrayRef {
        &self.hidden[3]
    }

    /// The key columns.
    pub(crate) fn keys(&self) -> &'a [ArrayRef] {
        &self.hidden[4..]
    }
}

/// The name of the instant after the prefix of hidden columns.
const INSTANT: &str = "instant";

/// The names of the hidden columns.
struct Hidden {
    prefix: String,
    /// The names in `latest` of the columns that follow the first three: the day and the key columns.
    visible: Vec<String>,
}

impl Hidden {
    /// Names that no column of raw or of the query has.
    fn new(plan: &LogicalPlan, changes: &Changes) -> Result<Self> {
        fn has(plan: &LogicalPlan, prefix: &str) -> bool {
            let mut fields = plan.schema().fields().iter();
            fields.any(|field| field.name().starts_with(prefix))
                || plan.inputs().into_iter().any(|input| has(input, prefix))
        }
        let is_raw = |prefix: &str| {
            let mut fields = changes.raw_schema().fields().iter();
            fields.any(|field| field.name().starts_with(prefix))
        };
        let mut prefix = "__".to_string();
        while has(plan, &prefix) || is_raw(&prefix) {
            prefix.push('_');
        }
        let mut visible = vec![changes.day_names()[0].clone()];
        visible.extend(changes.fold_columns()?.into_iter().map(|column| match column {
            ChangeColumn::Raw(column) => changes.raw_schema().field(column).name().clone(),
            _ => format!("{prefix}{INSTANT}"),
        }));
        Ok(Hidden { prefix, visible })
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// All names, in the order of the columns.
    fn names(&self) -> Vec<String> {
        let first = ["live", "latest", "position", "day"].map(|name| self.name(name));
        let keys = 0..self.visible.len() - 1;
        first.into_iter().chain(keys.map(|key| self.name(&format!("key_{key}")))).collect()
    }
}

/// Plans, checks and rewrites `curated.sql` over the winners' rows.
///
/// # Errors
/// Usage: the SQL cannot be planned, is not row-wise, lacks a key or partition column, or partitions
/// by a type that cannot be a folder name.
pub(crate) async fn plan(
    context: &SessionContext,
    pipeline: &Pipeline,
    changes: &Arc<Changes>,
    winners: &Arc<Winners>,
    partitions: usize,
) -> Result<CuratedQuery> {
    let sql = &pipeline.curated.sql;
    let parsed = parse(context, changes, &text_of(pipeline, changes)).await.map_err(|error| {
        let after = match &pipeline.raw.envelope {
            Some(_) => "; write a column `x` of the row as x, or as \"after.x\" in quotes",
            None => "",
        };
        Error::usage(format!("cannot plan {}", sql.file))
            .hint(format!(
                "the query can read the relation `latest`: the raw columns and `{}`; declare a \
                 column that no file of the window has in `[raw.columns]`{after}",
                changes.day_names()[0]
            ))
            .caused_by(first_line(&error))
    })?;
    check_row_wise(&parsed, sql)?;
    if changes.mixed_columns().next().is_some() {
        check_not_mixed(&parsed, changes)?;
    }
    let day = check_columns(&parsed, pipeline, changes)?;
    let fields = parsed.schema().fields().iter();
    let untyped = fields.clone().filter(|field| field.data_type().is_null());
    let untyped = untyped.map(|field| field.name().clone()).collect();
    let columns: Vec<Field> =
        fields.map(|field| known_type(field, changes).with_nullable(true)).collect();
    let columns = match pipeline.curated.format {
        Format::Parquet => columns,
        Format::Delta => delta_columns(&sql.file, columns)?,
    };

    let hidden = Hidden::new(&parsed, changes)?;
    let raw = changes.raw_schema().fields().iter().enumerate();
    let mut named: NamedColumns =
        raw.map(|(number, field)| (field.name().clone(), ChangeColumn::Raw(number))).collect();
    named.extend(changes.day_names().iter().map(|name| (name.clone(), ChangeColumn::Day)));
    let system = [ChangeColumn::Live, ChangeColumn::Latest, ChangeColumn::Position];
    named.extend(hidden.names().into_iter().zip(system));
    named.push((hidden.name(INSTANT), ChangeColumn::Instant));
    let table = ChangesTable::pass_two(changes, Arc::clone(winners), named, partitions);
    let rewritten = rewrite(&parsed, &Arc::new(table), &hidden)?;
    // A plan whose root is not a projection (a bare filter) returns its columns first too.
    let schema = Arc::clone(rewritten.schema());
    let mut outputs: Vec<Expr> = parsed
        .schema()
        .iter()
        .map(|(qualifier, field)| Expr::Column(Column::new(qualifier.cloned(), field.name())))
        .collect();
    outputs.extend(hidden.columns(&schema)?);
    let plan = LogicalPlanBuilder::from(rewritten).project(outputs)?.build()?;
    Ok(CuratedQuery { plan, columns, untyped, day })
}

/// The text of a pipeline's query. Where there is none, it takes the raw columns and the day, but not what says what a
/// change was: the operation, columns with the values of before, and those of an envelope.
pub(super) fn text_of(pipeline: &Pipeline, changes: &Changes) -> String {
    let (raw, sql) = (&pipeline.raw, &pipeline.curated.sql);
    if !sql.is_default {
        return sql.text.clone();
    }
    let of_envelope = raw.envelope.as_ref().map(|_| ENVELOPE_PREFIX);
    let prefixes = [raw.before_image_prefix.as_deref(), of_envelope];
    let is_of_row = |name: &&String| {
        !raw.op.name.as_ref().is_some_and(|op| op.eq_ignore_ascii_case(name))
            && (pipeline.key.contains(name)
                || !prefixes.into_iter().flatten().any(|prefix| begins_with(name, prefix)))
    };
    let columns = changes.raw_schema().fields().iter().map(|field| field.name());
    let columns = columns.filter(is_of_row).chain(changes.day_names().first());
    let columns: Vec<String> = columns.map(|name| quoted(name)).collect();
    format!("SELECT {} FROM {LATEST_RELATION}", columns.join(", "))
}

/// Whether a name begins with a prefix, in any case.
fn begins_with(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// Plans a query over an empty relation `latest`.
pub(super) async fn parse(
    context: &SessionContext,
    changes: &Changes,
    text: &str,
) -> std::result::Result<LogicalPlan, DataFusionError> {
    let mut visible = changes.raw_schema().fields().to_vec();
    let days = changes.day_names().iter();
    visible.extend(days.map(|name| Arc::new(Field::new(name, DataType::Date32, true))));
    let latest = Arc::new(EmptyTable::new(Arc::new(Schema::new(visible))));
    context.register_table(LATEST_RELATION, latest)?;
    let parsed = context.state().create_logical_plan(text).await;
    context.deregister_table(LATEST_RELATION)?;
    parsed
}

fn check_row_wise(plan: &LogicalPlan, sql: &Sql) -> Result<()> {
    let refuse = |what: &str| {
        Error::usage(format!("{} is not row-wise: it has {what}", sql.file))
            .hint("project and filter the rows of `latest` with immutable functions only")
    };
    let name = match plan {
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::TableScan(_) => None,
        LogicalPlan::Aggregate(_) => Some("an aggregate"),
        LogicalPlan::Window(_) => Some("a window function"),
        LogicalPlan::Join(_) => Some("a join"),
        LogicalPlan::Distinct(_) => Some("DISTINCT"),
        LogicalPlan::Union(_) => Some("UNION"),
        LogicalPlan::Limit(_) => Some("LIMIT"),
        LogicalPlan::Sort(_) => Some("ORDER BY"),
        LogicalPlan::Unnest(_) => Some("unnest"),
        LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_) => {
            Some("rows that are not from `latest`")
        }
        _ => Some("more than one SELECT"),
    };
    if let Some(name) = name {
        return Err(refuse(name));
    }
    for expression in plan.expressions() {
        if let Some(wrong) = not_row_wise(&expression)? {
            return Err(refuse(&wrong));
        }
    }
    plan.inputs().into_iter().try_for_each(|input| check_row_wise(input, sql))
}

/// Checks that the query reads no column whose types were not unified.
fn check_not_mixed(plan: &LogicalPlan, changes: &Changes) -> Result<()> {
    for expression in plan.expressions() {
        let mixed =
            |column: &&Column| changes.mixed_columns().any(|mixed| mixed.name() == column.name());
        if let Some(column) = expression.column_refs().into_iter().find(mixed) {
            let name = column.name();
            return Err(Error::internal(format!("the query reads the column `{name}` unseen")));
        }
    }
    plan.inputs().into_iter().try_for_each(|input| check_not_mixed(input, changes))
}

/// Checks the columns that the query returns. Returns the one that is the day.
fn check_columns(
    plan: &LogicalPlan,
    pipeline: &Pipeline,
    changes: &Changes,
) -> Result<Option<String>> {
    let file = &pipeline.curated.sql.file;
    let schema = plan.schema();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let listed = || format!("columns of the query: {}", names.join(", "));
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            return Err(Error::usage(format!("{file} has two columns named `{name}`")));
        }
    }
    let keep = pipeline.keep;
    for key in &pipeline.key {
        let origin = names.iter().position(|name| name == key).and_then(|at| origin(plan, at));
        let origin = origin.map(|column| changes.first_name(column));
        let raw = changes.raw_column(key).map(|column| changes.raw_schema().field(column).name());
        // Of a key that has only nulls, all rows are bad.
        let is_untyped = changes.is_untyped(key) && names.contains(&key.as_str());
        if (origin.is_none() || origin.as_ref() != raw) && !is_untyped {
            let message = format!("{file} does not return the key column `{key}` unchanged");
            let found = changes.raw_column(key);
            return Err(Error::usage(message).hint(match found {
                Some(column) if names.contains(&key.as_str()) => format!(
                    "its type is {}: select it unchanged, or cast it so that different keys stay \
                     different; `[raw.columns]` can give it another type",
                    changes.raw_schema().field(column).data_type()
                ),
                _ => {
                    let own = || "select it under its own name".into();
                    format!("{}; {}", spelling(key, &names).unwrap_or_else(own), listed())
                }
            }));
        }
    }
    let lacks = |what: String, column: &str, setting: &str| {
        Error::usage(format!("{file} lacks {what}")).hint(match spelling(column, &names) {
            Some(quotes) => format!("{quotes}; {}", listed()),
            None => format!("select it, or correct `{setting}`; {}", listed()),
        })
    };
    let own = keep.own_columns();
    let partition_by = pipeline.curated.partition_by.iter();
    for column in partition_by.filter(|column| !own.contains(&column.as_str())) {
        let Some(at) = names.iter().position(|name| name == column) else {
            let what = format!("the partition column `{column}`");
            return Err(lacks(what, column, "curated.partition_by"));
        };
        let field = known_type(&schema.fields()[at], changes);
        let data_type = field.data_type();
        if !is_partition_type(data_type) {
            return Err(Error::usage(format!(
                "{file}: the partition column `{column}` is {data_type}, which cannot be a folder name"
            ))
            .hint("partition by text, integer, boolean, decimal, date or timestamp"));
        }
    }
    if let Some(column) = pipeline.history_columns.iter().find(|one| !names.contains(&one.as_str()))
    {
        let what = format!("the column `{column}`, by which rows are compared");
        return Err(lacks(what, column, "history_columns"));
    }
    let has = |column: &str| keep.own_columns().contains(&column) || names.contains(&column);
    if let Some(column) = pipeline.curated.sort_by.iter().find(|column| !has(column)) {
        let what = format!("the column `{column}`, by which rows are sorted");
        return Err(lacks(what, column, "curated.sort_by"));
    }
    let day = day_column(plan, &names, pipeline, changes)?;
    let fields = schema.fields().iter().map(|field| known_type(field, changes));
    let fields: Vec<Field> = fields.collect();
    writer::check_columns(file, fields.iter(), &pipeline.curated.partition_by)?;
    Ok(day)
}

/// The column of the query that is the day: it has a name of the day, or the name `event_dt`.
fn day_column(
    plan: &LogicalPlan,
    names: &[&str],
    pipeline: &Pipeline,
    changes: &Changes,
) -> Result<Option<String>> {
    let file = &pipeline.curated.sql.file;
    let day_names = changes.day_names();
    let day_name = &day_names[0];
    let is_day = |at: usize| origin(plan, at).is_some_and(|origin| day_names.contains(&origin));
    let named = |name: &str| names.iter().position(|known| *known == name);
    let is_other = named(EVENT_DT).is_some_and(|at| !is_day(at));
    if is_other && day_name == EVENT_DT {
        return Err(Error::usage(format!(
            "{file} gives `{EVENT_DT}` another meaning than the change's day"
        ))
        .hint("select it unchanged, and give the other value another name"));
    }
    let mut candidates = std::iter::once(EVENT_DT).chain(day_names.iter().map(String::as_str));
    let day = candidates.find(|name| named(name).is_some_and(is_day));
    if day.is_none() && pipeline.keep == Keep::LatestPerDay {
        return Err(Error::usage(format!(
            "{file} lacks the column `{day_name}`, which distinguishes the rows of one key"
        ))
        .hint(if is_other {
            format!(
                "select it: under `latest-per-day` a key has a row per day, and `{EVENT_DT}` is a \
                 raw column here"
            )
        } else {
            "select it: under `latest-per-day` a key has a row per day".into()
        }));
    }
    Ok(day.map(String::from))
}

/// How to write a column that the query returns in another case; `None` if it returns no such column.
fn spelling(column: &str, names: &[&str]) -> Option<String> {
    let name = names.iter().find(|name| name.eq_ignore_ascii_case(column))?;
    let quoted = column.replace('"', "\"\"");
    Some(format!(
        "without quotes SQL reads names in lower case: select \"{quoted}\", or write `{name}` in the \
         pipeline"
    ))
}

/// A column of the query. One that comes from raw columns that have only nulls so far is text.
fn known_type(field: &FieldRef, changes: &Changes) -> Field {
    let field = field.as_ref().clone();
    match field.data_type() {
        DataType::Null if changes.has_untyped() => field.with_data_type(DataType::Utf8View),
        _ => field,
    }
}

fn is_partition_type(data_type: &DataType) -> bool {
    data_type.is_integer()
        || data_type.is_string()
        || matches!(
            data_type,
            DataType::Boolean
                | DataType::Date32
                | DataType::Timestamp(_, _)
                | DataType::Decimal32(_, _)
                | DataType::Decimal64(_, _)
                | DataType::Decimal128(_, _)
        )
}

/// The raw column that an output column returns unchanged: bare, renamed, or cast without loss.
fn origin(plan: &LogicalPlan, at: usize) -> Option<String> {
    match plan {
        LogicalPlan::TableScan(scan) => Some(scan.projected_schema.field(at).name().clone()),
        LogicalPlan::Filter(filter) => origin(&filter.input, at),
        LogicalPlan::SubqueryAlias(alias) => origin(&alias.input, at),
        LogicalPlan::Projection(projection) => {
            let mut expression = projection.expr[at].clone().unalias();
            let input = projection.input.schema();
            if let Expr::Cast(cast) = &expression {
                let from = cast.expr.get_type(input.as_ref()).ok()?;
                let to = expression.get_type(input.as_ref()).ok()?;
                if !is_injective(&from, &to) {
                    return None;
                }
                expression = cast.expr.as_ref().clone();
            }
            let Expr::Column(column) = expression else {
                return None;
            };
            origin(&projection.input, input.index_of_column(&column).ok()?)
        }
        _ => None,
    }
}

/// Whether a cast keeps different values different.
fn is_injective(from: &DataType, to: &DataType) -> bool {
    let bits = |data_type: &DataType| match data_type {
        DataType::Int8 => Some((true, 8)),
        DataType::Int16 => Some((true, 16)),
        DataType::Int32 => Some((true, 32)),
        DataType::Int64 => Some((true, 64)),
        DataType::UInt8 => Some((false, 8)),
        DataType::UInt16 => Some((false, 16)),
        DataType::UInt32 => Some((false, 32)),
        DataType::UInt64 => Some((false, 64)),
        _ => None,
    };
    if from == to || (from.is_string() && to.is_string()) {
        return true;
    }
    match (bits(from), bits(to)) {
        (Some((a_signed, a)), Some((b_signed, b))) => {
            (a_signed == b_signed && a <= b) || (!a_signed && b_signed && a < b)
        }
        _ => {
            matches!(
                (from, to),
                (DataType::Decimal128(a, s), DataType::Decimal128(b, t)) if s <= t && i16::from(*b) - i16::from(*a) >= i16::from(t - s)
            ) || matches!((from, to), (DataType::Float32, DataType::Float64))
                || (from.is_integer() && to.is_string())
        }
    }
}

impl Hidden {
    /// The hidden columns of a rewritten node, to be returned by its parent.
    fn columns(&self, schema: &DFSchema) -> Result<Vec<Expr>> {
        let column = |name: String| {
            let (qualifier, field) = schema.qualified_field_with_unqualified_name(&name)?;
            Ok(Expr::Column(Column::new(qualifier.cloned(), field.name())))
        };
        self.names().into_iter().map(column).collect()
    }
}

fn rewrite(plan: &LogicalPlan, table: &Arc<ChangesTable>, hidden: &Hidden) -> Result<LogicalPlan> {
    Ok(match plan {
        LogicalPlan::TableScan(scan) => {
            let source = provider_as_source(Arc::clone(table) as Arc<dyn TableProvider>);
            let builder = LogicalPlanBuilder::scan(LATEST_RELATION, source, None)?;
            let column = |name: &str| Expr::Column(Column::new(Some(LATEST_RELATION), name));
            let mut columns: Vec<Expr> =
                scan.projected_schema.fields().iter().map(|field| column(field.name())).collect();
            let names = hidden.names();
            let (of_change, others) = names.split_at(3);
            columns.extend(of_change.iter().map(|name| column(name)));
            let visible = hidden.visible.iter().zip(others);
            columns.extend(visible.map(|(visible, name)| column(visible).alias(name)));
            builder.project(columns)?.build()?
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let input = Arc::new(rewrite(&alias.input, table, hidden)?);
            LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(input, alias.alias.clone())?)
        }
        LogicalPlan::Filter(filter) => {
            let input = rewrite(&filter.input, table, hidden)?;
            let is_live = hidden.name("live");
            let columns = input
                .schema()
                .iter()
                .map(|(qualifier, field)| {
                    let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
                    if *field.name() != is_live {
                        return Ok(column);
                    }
                    // CASE evaluates the condition for live rows only.
                    let live = when(column.clone(), filter.predicate.clone().is_true())
                        .otherwise(lit(false))?;
                    Ok(live.alias_qualified(qualifier.cloned(), is_live.clone()))
                })
                .collect::<Result<Vec<_>>>()?;
            LogicalPlanBuilder::from(input).project(columns)?.build()?
        }
        LogicalPlan::Projection(projection) => {
            let input = rewrite(&projection.input, table, hidden)?;
            let hidden = hidden.columns(input.schema())?;
            let live = hidden[0].clone();
            let mut columns = Vec::new();
            for (expression, (qualifier, field)) in
                projection.expr.iter().zip(projection.schema.iter())
            {
                let bare = expression.clone().unalias();
                columns.push(match bare {
                    Expr::Column(_) => expression.clone(),
                    computed => when(live.clone(), computed)
                        .end()?
                        .alias_qualified(qualifier.cloned(), field.name()),
                });
            }
            columns.extend(hidden);
            LogicalPlanBuilder::from(input).project(columns)?.build()?
        }
        other => {
            return Err(Error::internal(format!("an unchecked plan: {}", other.display())));
        }
    })
}
