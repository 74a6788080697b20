//! The relations `history`, over versions, and `balance`, over its files.
//!
//! The words `event_dt`, `deleted` and `seq` always have the meaning that they have here. A key or
//! partition column of such a name has a prefix in this relation ([`VersionsLayout::history_sql`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result as DataFusionResult;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::expr_rewriter::unnormalize_cols;
use datafusion::logical_expr::{Expr, LogicalPlan, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{DataFrame, SessionContext};
use futures::TryStreamExt;

use crate::aggregate::floors::{FlooredVersions, asked_days, scan_query};
use crate::aggregate::placed_floors::Day;
use crate::changes::file_order::FileNumbers;
use crate::changes::position::{PACKED_TYPE, packed_array};
use crate::error::Result;
use crate::layout::FileOrder;
use crate::state::balance::BALANCE;
use crate::state::floors::Floor;
use crate::state::ledger::HISTORY;
use crate::state::versions::{SEQ, VersionsLayout, seq_function};
use crate::table::sorter::{Order, Readers, Sorted, Sorter};

/// The relation that `history` reads.
const VERSIONS: &str = "versions";

/// The order of changes in `history`.
pub struct HistoryOrder {
    /// The files that versions can name.
    pub files: FileNumbers,
    /// Their order.
    pub order: FileOrder,
    /// The floors.
    pub floors: Vec<Floor>,
}

/// Registers `history` over versions.
pub(super) async fn register_history(
    context: &SessionContext,
    versions: Arc<dyn TableProvider>,
    layout: &VersionsLayout,
    order: HistoryOrder,
) -> Result<()> {
    let HistoryOrder { files, order, floors } = order;
    for floor in &floors {
        files.number(floor.location, &floor.path);
    }
    let seq = seq_function(files, order);
    context.register_udf(seq.clone());
    let mut versions = versions;
    if layout.has_instants {
        // A relation that queries do not see.
        let context = SessionContext::new();
        context.register_udf(seq.clone());
        context.register_table("stored_versions", versions)?;
        versions = context.sql(&layout.last_of_days_sql()).await?.into_view();
    }
    let layout = &layout.of_days();
    if !floors.is_empty() {
        versions = Arc::new(FlooredVersions::new(versions, layout, &seq, &floors)?);
    }
    context.register_table(VERSIONS, versions)?;
    let rows = context.sql(&layout.history_sql()).await?;
    let history: Arc<dyn TableProvider> =
        if layout.packed { rows.into_view() } else { Arc::new(NumberedHistory::new(&rows)?) };
    context.register_table(HISTORY, history)?;
    Ok(())
}

/// Registers `balance` over its files.
pub(super) async fn register_balance(
    context: &SessionContext,
    files: Arc<dyn TableProvider>,
    layout: &VersionsLayout,
) -> Result<()> {
    context.register_table("balance_files", files)?;
    let rows = context.sql(&layout.balance_sql()).await?;
    context.register_table(BALANCE, rows.into_view())?;
    Ok(())
}

/// Whether an optimized plan computes `seq`.
pub(super) fn has_seq(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        found |= computes_seq(node)?;
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Whether an optimized plan reads what floors of these days ended.
pub(super) fn reads_ended(
    state: &dyn Session,
    plan: &LogicalPlan,
    days: &BTreeSet<Day>,
) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && [VERSIONS, HISTORY].contains(&scan.table_name.table())
        {
            let filters = unnormalize_cols(scan.filters.iter().cloned());
            found |= !asked_days(state, days.clone(), &filters).is_empty();
        }
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Whether a node of an optimized plan computes `seq`, as a function or by numbering rows.
fn computes_seq(node: &LogicalPlan) -> DataFusionResult<bool> {
    if let LogicalPlan::TableScan(scan) = node
        && scan.table_name.table() == HISTORY
    {
        return Ok(scan.projected_schema.has_column_with_unqualified_name(SEQ));
    }
    let is_seq = |expression: &Expr| match expression {
        Expr::ScalarFunction(called) => Ok(called.name() == SEQ),
        _ => Ok(false),
    };
    let mut found = false;
    node.apply_expressions(|expression| {
        found |= expression.exists(is_seq)?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

/// A history whose order is bytes: its rows are sorted and numbered, and the number becomes `seq`.
#[derive(Debug)]
pub(super) struct NumberedHistory {
    pub(super) rows: LogicalPlan,
    pub(super) order: Arc<Order>,
    pub(super) schema: SchemaRef,
}

impl NumberedHistory {
    pub(super) fn new(history: &DataFrame) -> Result<Self> {
        let unsorted = Arc::clone(history.schema().inner());
        // The order bytes and `seq` come last.
        let count = unsorted.fields().len();
        let by = [count - 2, count - 1];
        let stored: Vec<usize> =
            (0..unsorted.fields().len()).filter(|column| !by.contains(column)).collect();
        let mut fields = unsorted.project(&stored)?.fields.to_vec();
        fields.push(Arc::new(Field::new(SEQ, PACKED_TYPE, false)));
        Ok(NumberedHistory {
            rows: history.logical_plan().clone(),
            order: Arc::new(Order::new(unsorted, vec![], by.to_vec(), stored)?),
            schema: Arc::new(Schema::new(fields)),
        })
    }
}

#[async_trait]
impl TableProvider for NumberedHistory {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
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
        let seq = self.schema.fields().len() - 1;
        if let Some(columns) = projection.filter(|columns| !columns.contains(&seq)) {
            // Without `seq` the rows need no order.
            let columns = columns.iter().map(|column| self.schema.field(*column).name().as_str());
            return scan_query(state, self.rows.clone(), columns, filters, limit).await;
        }
        // The numbers of rows do not depend on the filters.
        let rows = Arc::new(NumberedRows {
            rows: state.create_physical_plan(&self.rows).await?,
            order: Arc::clone(&self.order),
            schema: Arc::clone(&self.schema),
        });
        let schema = Arc::clone(&self.schema);
        let plan = StreamingTableExec::try_new(schema, vec![rows], projection, [], false, limit)?;
        Ok(Arc::new(plan))
    }
}

/// The scan of a [`NumberedHistory`].
#[derive(Debug)]
pub(super) struct NumberedRows {
    pub(super) rows: Arc<dyn ExecutionPlan>,
    pub(super) order: Arc<Order>,
    pub(super) schema: SchemaRef,
}

impl PartitionStream for NumberedRows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (schema, order) = (Arc::clone(&self.schema), Arc::clone(&self.order));
        let plan = Arc::clone(&self.rows);
        let mut numbered = RecordBatchReceiverStreamBuilder::new(Arc::clone(&schema), 2);
        let sender = numbered.tx();
        numbered.spawn(async move {
            let mut sorter = Sorter::new(Arc::clone(&order), context.runtime_env());
            let mut rows = execute_stream(plan, context)?;
            while let Some(batch) = rows.try_next().await? {
                sorter.push(&batch)?;
            }
            let sorted = Sorted::new(&order, vec![sorter])?;
            let mut readers = Readers::new();
            let mut merge = sorted.rows("", &mut readers)?;
            let mut next = 0;
            while let Some(batch) = merge.next_batch()? {
                let end = next + batch.num_rows() as i128;
                let mut columns = batch.columns().to_vec();
                columns.push(packed_array((next..end).collect()));
                next = end;
                let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
                if sender.send(Ok(batch)).await.is_err() {
                    // The receiver needs no more rows.
                    break;
                }
            }
            Ok(())
        });
        numbered.build()
    }
}
