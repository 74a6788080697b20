//! `curated.sql`: planned over `latest`, checked to be row-wise, and made total.
//!
//! The query may only project and filter with immutable functions, so that one changed key changes
//! one row. It is rewritten so that it drops no row: a filter becomes a flag, and every computed
//! column is evaluated for live rows only. The rewritten query returns one row per last change, with
//! the query's columns first and then:
//!
//! | column | Arrow type | meaning |
//! |---|---|---|
//! | `__live` | Boolean | whether the curated table may hold the row: not deleted, not filtered out |
//! | `__latest` | Boolean | whether this is its key's last change |
//! | `__position` | see [`crate::changes::position`] | the position in the order of changes |
//! | `__day` | Date32 | the change's day |
//! | `__key_0`, … | as found | the key columns |

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::catalog::TableProvider;
use datafusion::common::Column;
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{
    Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, SubqueryAlias, lit, when,
};
use datafusion::prelude::SessionContext;

use crate::changes::reader::ChangesTable;
use crate::changes::{Changes, EVENT_DT, LATEST, LIVE, POSITION};
use crate::config::{Format, Keep, LATEST_RELATION, Pipeline, Sql};
use crate::engine::row_wise::not_row_wise;
use crate::engine::session::first_line;
use crate::error::{Error, Result};
use crate::state::versions::{DAY, key_name};
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
}

/// Plans, checks and rewrites `curated.sql` over the winners' rows.
///
/// # Errors
/// Usage: the SQL cannot be planned, is not row-wise, lacks a key or partition column, or partitions
/// by a type that cannot be a folder name.
pub(crate) async fn plan(
    context: &SessionContext,
    pipeline: &Pipeline,
    changes: &Changes,
    table: ChangesTable,
) -> Result<CuratedQuery> {
    let sql = &pipeline.curated.sql;
    let mut visible = changes.raw_schema().fields().to_vec();
    visible.push(Arc::new(Field::new(EVENT_DT, DataType::Date32, true)));
    let latest = Arc::new(EmptyTable::new(Arc::new(Schema::new(visible))));
    context.register_table(LATEST_RELATION, latest)?;
    let parsed = context.state().create_logical_plan(&sql.text).await;
    context.deregister_table(LATEST_RELATION)?;
    let parsed = parsed.map_err(|error| {
        Error::usage(format!("cannot plan {}", sql.file))
            .hint(
                "the query can read the relation `latest`: the raw columns and `event_dt`; declare a \
                 column that no file of the window has in `[raw.columns]`",
            )
            .caused_by(first_line(&error))
    })?;
    check_row_wise(&parsed, sql)?;
    if changes.mixed_columns().next().is_some() {
        check_not_mixed(&parsed, changes)?;
    }
    check_columns(&parsed, pipeline, changes)?;
    let fields = parsed.schema().fields().iter();
    let untyped = fields.clone().filter(|field| field.data_type().is_null());
    let untyped = untyped.map(|field| field.name().clone()).collect();
    let columns: Vec<Field> =
        fields.map(|field| known_type(field, changes).with_nullable(true)).collect();
    let columns = match pipeline.curated.format {
        Format::Parquet => columns,
        Format::Delta => delta_columns(&sql.file, columns)?,
    };

    let keys = pipeline.key.len();
    let key_columns: Vec<Expr> = pipeline
        .key
        .iter()
        .enumerate()
        .filter_map(|(number, name)| {
            let column = changes.raw_schema().field(changes.raw_column(name)?).name().clone();
            Some(Expr::Column(Column::new(Some(LATEST_RELATION), column)).alias(key_name(number)))
        })
        .collect();
    let rewritten = rewrite(&parsed, &Arc::new(table), &key_columns)?;
    // A plan whose root is not a projection (a bare filter) returns its columns first too.
    let schema = Arc::clone(rewritten.schema());
    let mut outputs: Vec<Expr> = parsed
        .schema()
        .iter()
        .map(|(qualifier, field)| Expr::Column(Column::new(qualifier.cloned(), field.name())))
        .collect();
    outputs.extend(hidden(&schema, keys)?);
    let plan = LogicalPlanBuilder::from(rewritten).project(outputs)?.build()?;
    Ok(CuratedQuery { plan, columns, untyped })
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

fn check_columns(plan: &LogicalPlan, pipeline: &Pipeline, changes: &Changes) -> Result<()> {
    let file = &pipeline.curated.sql.file;
    let schema = plan.schema();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let listed = || format!("columns of the query: {}", names.join(", "));
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            return Err(Error::usage(format!("{file} has two columns named `{name}`")));
        }
        if name.starts_with("__") {
            return Err(Error::usage(format!("{file}: the column name `{name}` is reserved"))
                .hint("choose a name that does not begin with two underscores"));
        }
    }
    for key in &pipeline.key {
        let origin = names.iter().position(|name| name == key).and_then(|at| origin(plan, at));
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
                _ => format!("select it under its own name; {}", listed()),
            }));
        }
    }
    for column in &pipeline.curated.partition_by {
        let Some(at) = names.iter().position(|name| name == column) else {
            return Err(Error::usage(format!("{file} lacks the partition column `{column}`"))
                .hint(format!("select it, or correct `curated.partition_by`; {}", listed())));
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
    let day = names.iter().position(|name| *name == EVENT_DT);
    if day.is_some_and(|day| origin(plan, day).as_deref() != Some(EVENT_DT)) {
        return Err(Error::usage(format!(
            "{file} gives `{EVENT_DT}` another meaning than the change's day"
        ))
        .hint("select it unchanged, and give the other value another name"));
    }
    if day.is_none() && pipeline.keep == Keep::LatestPerDay {
        return Err(Error::usage(format!(
            "{file} lacks the column `{EVENT_DT}`, which distinguishes the rows of one key"
        ))
        .hint("select it: under `latest-per-day` a key has a row per day"));
    }
    let fields = schema.fields().iter().map(|field| known_type(field, changes));
    let fields: Vec<Field> = fields.collect();
    writer::check_columns(file, fields.iter(), &pipeline.curated.partition_by)
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
                (DataType::Decimal128(a, s), DataType::Decimal128(b, t)) if s <= t && b - a >= (t - s) as u8
            ) || matches!((from, to), (DataType::Float32, DataType::Float64))
                || (from.is_integer() && to.is_string())
        }
    }
}

/// The hidden columns of a rewritten node, to be returned by its parent.
fn hidden(schema: &datafusion::common::DFSchema, keys: usize) -> Result<Vec<Expr>> {
    let names = [LIVE, LATEST, POSITION, DAY].map(String::from).into_iter();
    names
        .chain((0..keys).map(key_name))
        .map(|name| {
            let (qualifier, field) = schema.qualified_field_with_unqualified_name(&name)?;
            Ok(Expr::Column(Column::new(qualifier.cloned(), field.name())))
        })
        .collect()
}

fn rewrite(plan: &LogicalPlan, table: &Arc<ChangesTable>, key: &[Expr]) -> Result<LogicalPlan> {
    Ok(match plan {
        LogicalPlan::TableScan(scan) => {
            let source = provider_as_source(Arc::clone(table) as Arc<dyn TableProvider>);
            let builder = LogicalPlanBuilder::scan(LATEST_RELATION, source, None)?;
            let column = |name: &str| Expr::Column(Column::new(Some(LATEST_RELATION), name));
            let mut columns: Vec<Expr> =
                scan.projected_schema.fields().iter().map(|field| column(field.name())).collect();
            columns.extend([LIVE, LATEST, POSITION].map(column));
            columns.push(column(EVENT_DT).alias(DAY));
            columns.extend_from_slice(key);
            builder.project(columns)?.build()?
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let input = Arc::new(rewrite(&alias.input, table, key)?);
            LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(input, alias.alias.clone())?)
        }
        LogicalPlan::Filter(filter) => {
            let input = rewrite(&filter.input, table, key)?;
            let columns = input
                .schema()
                .iter()
                .map(|(qualifier, field)| {
                    let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
                    if field.name() != LIVE {
                        return Ok(column);
                    }
                    // CASE evaluates the condition for live rows only.
                    let live = when(column.clone(), filter.predicate.clone().is_true())
                        .otherwise(lit(false))?;
                    Ok(live.alias_qualified(qualifier.cloned(), LIVE))
                })
                .collect::<Result<Vec<_>>>()?;
            LogicalPlanBuilder::from(input).project(columns)?.build()?
        }
        LogicalPlan::Projection(projection) => {
            let input = rewrite(&projection.input, table, key)?;
            let hidden = hidden(input.schema(), key.len())?;
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
