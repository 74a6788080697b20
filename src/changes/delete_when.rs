//! `raw.delete_when`: the condition under which a change is a delete.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::prep_null_mask_filter;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::record_batch::RecordBatchOptions;
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::logical_expr::ExprSchemable;
use datafusion::physical_expr::PhysicalExpr;

use crate::engine::row_wise::not_row_wise;
use crate::engine::session::{first_line, planning_session};
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
            refused("cannot be planned".into()).caused_by(first_line(&error))
        };
        let state = planning_session().state();
        let schema = DFSchema::try_from(Schema::clone(raw)).map_err(failed)?;
        let expression = state.create_logical_expr(condition, &schema).map_err(failed)?;
        if let Some(wrong) = not_row_wise(&expression).map_err(failed)? {
            return Err(refused(format!("has {wrong}")));
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
