//! `raw.delete_when`: the condition under which a change is a delete.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::prep_null_mask_filter;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::record_batch::RecordBatchOptions;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, ExprSchemable, Volatility};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::error::{Error, Result};

/// A condition over the raw columns of one row.
#[derive(Clone, Debug)]
pub(crate) struct DeleteWhen {
    condition: Arc<dyn PhysicalExpr>,
    /// The raw columns that it reads, ascending.
    columns: Vec<usize>,
    /// Their schema.
    schema: SchemaRef,
}

impl DeleteWhen {
    /// Plans a condition over the raw columns.
    ///
    /// # Errors
    /// Usage: it is not valid SQL, names a column that no file has, is not true or false, or is not
    /// a function of the row alone.
    pub(crate) fn new(condition: &str, raw: &SchemaRef) -> Result<Self> {
        let refused = |why: String| {
            Error::usage(format!("`raw.delete_when` {why}"))
                .hint("write a condition over raw columns, such as deleted_at IS NOT NULL")
        };
        let failed = |error: DataFusionError| {
            let root = error.find_root().strip_backtrace();
            let line = root.lines().next().unwrap_or_default().to_string();
            refused("cannot be planned".into()).caused_by(line)
        };
        let mut config = SessionConfig::new();
        config.options_mut().execution.time_zone = Some("+00:00".into());
        config.options_mut().sql_parser.map_string_types_to_utf8view = true;
        let state = SessionContext::new_with_config(config).state();
        let schema = DFSchema::try_from(Schema::clone(raw)).map_err(failed)?;
        let expression = state.create_logical_expr(condition, &schema).map_err(failed)?;
        let mut unfit = None;
        expression
            .apply(|part| {
                unfit = unfit.or(match part {
                    Expr::ScalarFunction(ScalarFunction { func, .. })
                        if func.signature().volatility != Volatility::Immutable =>
                    {
                        Some("has a function whose result is not the same at any time")
                    }
                    Expr::AggregateFunction(_) => Some("has an aggregate"),
                    Expr::WindowFunction(_) => Some("has a window function"),
                    Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => {
                        Some("has a subquery")
                    }
                    _ => None,
                });
                Ok(TreeNodeRecursion::Continue)
            })
            .map_err(failed)?;
        if let Some(why) = unfit {
            return Err(refused(why.into()));
        }
        let found = expression.get_type(&schema).map_err(failed)?;
        if found != DataType::Boolean {
            return Err(refused(format!("is {found}, not true or false")));
        }
        let columns = expression.column_refs().into_iter();
        let columns = columns.filter_map(|column| raw.index_of(column.name()).ok());
        let mut columns: Vec<usize> = columns.collect();
        columns.sort_unstable();
        let used = Arc::new(raw.project(&columns)?);
        let of_used = DFSchema::try_from(Schema::clone(&used)).map_err(failed)?;
        let condition = state.create_physical_expr(expression, &of_used).map_err(failed)?;
        Ok(DeleteWhen { condition, columns, schema: used })
    }

    /// The raw columns that it reads, ascending.
    pub(crate) fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Where the condition is true. `columns` are those of [`DeleteWhen::columns`].
    ///
    /// # Errors
    /// When the condition cannot be computed for some row.
    pub(crate) fn rows(
        &self,
        rows: usize,
        columns: Vec<ArrayRef>,
    ) -> Result<BooleanArray, DataFusionError> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let schema = Arc::clone(&self.schema);
        let batch = RecordBatch::try_new_with_options(schema, columns, &options)?;
        let found = self.condition.evaluate(&batch)?.into_array(rows)?;
        let found = found.as_boolean();
        Ok(if found.null_count() == 0 { found.clone() } else { prep_null_mask_filter(found) })
    }
}
