//! `FoldExec`, the plan node that finds the last changes.
//! [`FoldRule`] replaces the engine's own grouping with it when a query computes only
//! [`last_changes`](crate::fold::last_changes) by key, as `sql/fold.sql` does:
//!
//! ```text
//! ProjectionExec: last_changes                         FoldExec: key=[…], …
//!   AggregateExec: Final, last_changes(…)      ─▶        <changes>
//!     AggregateExec: Partial, last_changes(…)
//!       <changes>
//! ```
//! All input partitions fill one [`KeyTable`]. When the last of them has ended, the output
//! partitions share the table's shards: an output row is one key, in no order.
//!
//! | column | Arrow type | nullable | meaning |
//! |---|---|---|---|
//! | named by the query | List(Struct(`event_dt` Date32, `position`)) | no | per day of the key, in no order, the position of the last change |
//!
//! `EXPLAIN` shows the node. Its metrics: `input_rows`, `output_rows` (keys), `output_bytes`,
//! `output_batches`, `spilled_bytes`, `spilled_rows` (keys), `peak_mem_used`, `elapsed_compute`.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result as EngineResult};
use datafusion::config::ConfigOptions;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::{
    Boundedness, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions,
    apply_expression_roots,
};
use datafusion::physical_plan::metrics::{
    BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, RecordOutput,
};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PhysicalExpr, PlanProperties,
};
use futures::future::{BoxFuture, Shared, try_join_all};
use futures::{FutureExt, TryFutureExt, TryStreamExt, stream};

use crate::changes::position::{PACKED_TYPE, Position};
use crate::engine::session::BATCH_ROWS;
use crate::engine::tasks::{Work, spawn};
use crate::error::Result;
use crate::fold::key_table::{Inserter, KeyTable, SealedShard};
use crate::fold::last_changes::{self, KeysBuilder};

/// Puts [`FoldExec`] into a plan. It must run before the engine's rules, which insert other nodes
/// between the two phases of a grouping.
#[derive(Debug)]
pub(super) struct FoldRule;

impl PhysicalOptimizerRule for FoldRule {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> EngineResult<Arc<dyn ExecutionPlan>> {
        let replaced = plan.transform_down(|node| {
            Ok(match fold_node(&node) {
                Some(fold) => Transformed::yes(fold?),
                None => Transformed::no(node),
            })
        });
        Ok(replaced?.data)
    }

    fn name(&self) -> &str {
        "fold"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The node that replaces a projection of only the last changes of each key; `None` for other
/// nodes.
fn fold_node(node: &Arc<dyn ExecutionPlan>) -> Option<EngineResult<Arc<dyn ExecutionPlan>>> {
    let projection = node.downcast_ref::<ProjectionExec>()?;
    let grouped = projection.input().downcast_ref::<AggregateExec>()?;
    let ([function], [chosen]) = (grouped.aggr_expr(), projection.expr()) else {
        return None;
    };
    let column = chosen.expr.downcast_ref::<Column>()?;
    let key_count = grouped.group_expr().expr().len();
    if function.fun().name() != last_changes::NAME || column.index() != key_count {
        return None;
    }
    // The phase that reads the input rows.
    let rows = match grouped.mode() {
        AggregateMode::Single | AggregateMode::SinglePartitioned => grouped,
        _ => grouped.input().downcast_ref::<AggregateExec>()?,
    };
    let groups = rows.group_expr().expr().iter();
    let keys = groups.map(|(key, _)| Arc::clone(key)).collect();
    let [day, position] = &rows.aggr_expr().first()?.expressions()[..] else {
        return None;
    };
    let arguments = [Arc::clone(day), Arc::clone(position)];
    let (input, schema) = (Arc::clone(rows.input()), node.schema());
    let data_type = arguments[1].data_type(&input.schema());
    Some(data_type.map(|data_type| -> Arc<dyn ExecutionPlan> {
        if data_type == PACKED_TYPE {
            Arc::new(FoldExec::<i128>::new(input, keys, arguments, schema))
        } else {
            Arc::new(FoldExec::<Box<[u8]>>::new(input, keys, arguments, schema))
        }
    }))
}

/// Finds the last change per key and day; see the [module](self).
struct FoldExec<P> {
    input: Arc<dyn ExecutionPlan>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    /// Day and position.
    arguments: [Arc<dyn PhysicalExpr>; 2],
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
    /// The table of one execution, created by the first partition that executes.
    filled: Mutex<Option<Filled<P>>>,
}

/// A table that is being filled, shared by all output partitions.
type Filled<P> = Shared<BoxFuture<'static, EngineResult<Arc<Sealed<P>>, Arc<DataFusionError>>>>;

/// A filled table.
struct Sealed<P> {
    table: Arc<KeyTable<P>>,
    shards: Work<usize>,
    /// The memory limit of one shard, in bytes.
    share: usize,
}

impl<P: Position> FoldExec<P> {
    fn new(
        input: Arc<dyn ExecutionPlan>,
        keys: Vec<Arc<dyn PhysicalExpr>>,
        arguments: [Arc<dyn PhysicalExpr>; 2],
        schema: SchemaRef,
    ) -> Self {
        let partitions = input.properties().partitioning.partition_count();
        FoldExec {
            input,
            keys,
            arguments,
            properties: Arc::new(PlanProperties::new(
                EquivalenceProperties::new(schema),
                Partitioning::UnknownPartitioning(partitions),
                EmissionType::Final,
                Boundedness::Bounded,
            )),
            metrics: ExecutionPlanMetricsSet::new(),
            filled: Mutex::new(None),
        }
    }

    /// The table, filled by all input partitions, which start when it is first awaited.
    fn filled(&self, context: &Arc<TaskContext>) -> Filled<P> {
        let mut filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = filled.get_or_insert_with(|| {
            let partitions = self.input.properties().partitioning.partition_count();
            let fill = Fill {
                input: Arc::clone(&self.input),
                keys: self.keys.clone(),
                arguments: self.arguments.clone(),
                input_rows: MetricBuilder::new(&self.metrics).global_counter("input_rows"),
                table: Arc::new(KeyTable::<P>::new(
                    context.runtime_env(),
                    partitions,
                    &self.metrics,
                )),
            };
            let filling = Arc::new(fill).run(Arc::clone(context), partitions);
            let shareable = filling.map(|filled| {
                filled.map(Arc::new).map_err(|error| Arc::new(DataFusionError::from(error)))
            });
            shareable.boxed().shared()
        });
        filled.clone()
    }
}

/// Fills a table from the input.
struct Fill<P> {
    input: Arc<dyn ExecutionPlan>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    arguments: [Arc<dyn PhysicalExpr>; 2],
    input_rows: Count,
    table: Arc<KeyTable<P>>,
}

impl<P: Position> Fill<P> {
    async fn run(
        self: Arc<Self>,
        context: Arc<TaskContext>,
        partitions: usize,
    ) -> Result<Sealed<P>> {
        let tasks = (0..partitions).map(|partition| {
            let (fill, context) = (Arc::clone(&self), Arc::clone(&context));
            spawn(async move {
                let mut rows = fill.input.execute(partition, context)?;
                let mut inserter = Inserter::new(&fill.table);
                while let Some(batch) = rows.try_next().await? {
                    fill.insert(&batch, &mut inserter)?;
                }
                inserter.finish()
            })
        });
        try_join_all(tasks).await?;
        let (shards, share) = self.table.seal()?;
        Ok(Sealed { table: Arc::clone(&self.table), shards: Work::new(shards), share })
    }

    fn insert(&self, batch: &RecordBatch, inserter: &mut Inserter<P>) -> Result<()> {
        let evaluate = |expression: &Arc<dyn PhysicalExpr>| {
            let value = expression.evaluate(batch)?;
            value.into_array(batch.num_rows())
        };
        let keys = self.keys.iter().map(evaluate).collect::<EngineResult<Vec<_>>>()?;
        let [days, positions] = &self.arguments;
        let (days, positions) = (evaluate(days)?, evaluate(positions)?);
        self.input_rows.add(batch.num_rows());
        inserter.insert(&keys, days.as_primitive(), P::read(&positions))
    }
}

/// One output partition: the keys of the shards that it takes.
struct Output<P: Position> {
    sealed: Arc<Sealed<P>>,
    shard: Option<SealedShard<P>>,
    schema: SchemaRef,
    metrics: BaselineMetrics,
}

impl<P: Position> Output<P> {
    /// The next batch; `None` at the end.
    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        let timer = self.metrics.elapsed_compute().clone();
        let _timer = timer.timer();
        let mut keys = KeysBuilder::<P>::with_capacity(BATCH_ROWS);
        while keys.len() < BATCH_ROWS {
            let mut shard = match self.shard.take() {
                Some(shard) => shard,
                None => match self.sealed.shards.next() {
                    Some(number) => self.sealed.table.open(number, self.sealed.share),
                    None => break,
                },
            };
            if shard.next_keys(BATCH_ROWS - keys.len(), |key| keys.push(key))? {
                self.shard = Some(shard);
            }
        }
        if keys.len() == 0 {
            return Ok(None);
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), vec![keys.finish()])?;
        Ok(Some(batch.record_output(&self.metrics)))
    }
}

impl<P: Position> ExecutionPlan for FoldExec<P> {
    fn name(&self) -> &str {
        "FoldExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    /// All threads share one table, so rows may come in any partition.
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> EngineResult<TreeNodeRecursion>,
    ) -> EngineResult<TreeNodeRecursion> {
        apply_expression_roots(self.keys.iter().chain(&self.arguments), visit)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> EngineResult<Arc<dyn ExecutionPlan>> {
        let input = children.swap_remove(0);
        let (keys, arguments) = (self.keys.clone(), self.arguments.clone());
        Ok(Arc::new(FoldExec::<P>::new(input, keys, arguments, self.schema())))
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> EngineResult<Arc<dyn ExecutionPlan>> {
        let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        self.replace_children(children, options)
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> EngineResult<SendableRecordBatchStream> {
        let filled = self.filled(&context);
        let schema = self.schema();
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let output_schema = Arc::clone(&schema);
        let rows = filled.map(|filled| match filled {
            Err(error) => Err(DataFusionError::Shared(error)),
            Ok(sealed) => {
                let output = Output { sealed, shard: None, schema: output_schema, metrics };
                Ok(stream::try_unfold(output, |mut output| async move {
                    // The other partitions were woken on this thread, and wait until it gives way.
                    tokio::task::yield_now().await;
                    let batch = output.next_batch()?;
                    Ok(batch.map(|batch| (batch, output)))
                }))
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows.try_flatten_stream())))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

impl<P> DisplayAs for FoldExec<P> {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        let [day, position] = &self.arguments;
        write!(f, "FoldExec: key=[{}], day={day}, position={position}", keys.join(", "))
    }
}

impl<P> fmt::Debug for FoldExec<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_as(DisplayFormatType::Default, f)
    }
}
