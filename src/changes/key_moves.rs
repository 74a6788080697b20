//! Key moves: updates that change a row's key, and key swaps among them, which delete no row.
//!
//! An update from key A to key B is a delete of A, directly followed by the row with key B. That is
//! right for one row that moves on within a transaction (A to B, B to C: only C is left), and for two
//! rows that swap keys by way of a third key. It is wrong for rows that swap keys directly, which a
//! database allows if it checks keys at the end of a statement or a transaction: after A to B and B
//! to A, the second delete would remove the row that has just moved to B.
//!
//! ```text
//! A ─▶ B, B ─▶ C           one row moves on:              deletes of A and B
//! A ─▶ T, B ─▶ A, T ─▶ B   two rows, by way of T:         deletes of A, B and T
//! A ─▶ B, B ─▶ A           a cycle:                       two rows swap keys, no delete
//! ```
//!
//! So rows are followed through their transaction, the changes with the same commit time. A cycle of
//! n moves is read as n rows that swap keys: each key gets the row of another key, and none is
//! deleted. Only the moves of one run's inputs are compared: a transaction whose changes are in files
//! of different windows is not seen as a whole.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::row::{RowConverter, SortField};
use datafusion::catalog::TableProvider;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::physical_plan::execute_stream_partitioned;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use tracing::info;

use crate::changes::position::Position;
use crate::changes::reader::{ChangesTable, numbered};
use crate::changes::{ChangeColumn, Changes, KeySwaps};
use crate::engine::tasks::{join_all, spawn};
use crate::error::{Error, Result};
use crate::types::times::instants_ns;

/// A hash of a key and its transaction, with 128 bits so that collisions do not matter.
type Node = u128;

/// One half of an update: the key before it, or the key after it.
#[derive(Clone, Debug)]
struct Half<P> {
    /// The position of the row's first ordinal, or of its second.
    position: P,
    node: Node,
}

/// Finds the key swaps among a run's key moves.
///
/// # Errors
/// Data, for a row that cannot be folded; usage, when the moves do not fit into the memory limit.
pub(crate) async fn key_swaps(
    context: &SessionContext,
    changes: &Arc<Changes>,
    partitions: usize,
) -> Result<KeySwaps> {
    if changes.is_packed() {
        find::<i128>(context, changes, partitions).await
    } else {
        find::<Box<[u8]>>(context, changes, partitions).await
    }
}

async fn find<P: Position>(
    context: &SessionContext,
    changes: &Arc<Changes>,
    partitions: usize,
) -> Result<KeySwaps> {
    let pool = &context.runtime_env().memory_pool;
    let memory = Arc::new(MemoryConsumer::new("key moves").register(pool));
    let unit_ns = changes.commit_unit_ns();
    let mut columns = changes.key_columns()?;
    let keys = columns.len();
    columns.push(ChangeColumn::Position);
    let lost = || Error::internal("the commit time was lost");
    columns.push(ChangeColumn::Raw(changes.roles().commit_time.ok_or_else(lost)?));
    let table = ChangesTable::key_moves(changes, numbered(columns), partitions);
    let plan = table.scan(&context.state(), None, &[], None).await?;
    let streams = execute_stream_partitioned(plan, context.task_ctx())?;
    let tasks = streams.into_iter().map(|mut rows| {
        let memory = Arc::clone(&memory);
        spawn(async move {
            let mut halves = Vec::new();
            while let Some(batch) = rows.try_next().await? {
                let before = halves.len();
                append_halves::<P>(&batch, keys, unit_ns, &mut halves)?;
                let heap = halves[before..].iter().map(|half| half.position.heap_bytes());
                // Counts the map and the set in addition to the list.
                let bytes = batch.num_rows() * 3 * size_of::<Half<P>>() + heap.sum::<usize>();
                memory.try_grow(bytes).map_err(|_| {
                    let message = "the memory limit is too small for this run's key moves";
                    Error::usage(message).hint("raise `limits.memory`, or run smaller windows")
                })?;
            }
            Ok(halves)
        })
    });
    let mut halves = Vec::new();
    for some in join_all(tasks).await? {
        halves.extend(some);
    }
    let found = find_cycles(halves);
    if !found.is_empty() {
        info!(
            "{} key updates form a cycle at one commit time: read as rows that swap keys",
            found.len()
        );
    }
    Ok(found)
}

fn append_halves<P: Position>(
    batch: &RecordBatch,
    keys: usize,
    unit_ns: Option<i128>,
    halves: &mut Vec<Half<P>>,
) -> Result<()> {
    let columns: &[ArrayRef] = &batch.columns()[..keys];
    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone()));
    let rows = RowConverter::new(fields.collect())?.convert_columns(columns)?;
    let times = instants_ns(batch.column(keys + 1), unit_ns)
        .map_err(|_| Error::internal("a commit time was lost"))?;
    let positions = P::read(batch.column(keys));
    for ((position, key), time) in positions.into_iter().zip(&rows).zip(times) {
        let part = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, time, key.data()).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        let node = part(0) << 64 | part(1);
        halves.push(Half { position, node });
    }
    Ok(())
}

/// The keys that a row has had in a transaction.
struct Path {
    start: Node,
    moves: Vec<(u32, u64)>,
}

/// The moves of rows that come back to the key where they started.
fn find_cycles<P: Position>(mut halves: Vec<Half<P>>) -> KeySwaps {
    halves.sort_unstable_by(|a, b| {
        if a.position.is_before(&b.position) { Ordering::Less } else { Ordering::Greater }
    });
    let row = |half: &Half<P>| {
        let (file, ordinal) = half.position.file_and_row();
        (file as u32, ordinal as u64 / 2)
    };
    // Each row by the key that it has now.
    let mut paths: HashMap<Node, Path> = HashMap::new();
    let mut found = KeySwaps::new();
    for pair in halves.chunk_by(|a, b| row(a) == row(b)) {
        let [from, to] = pair else {
            continue;
        };
        let mut path = paths
            .remove(&from.node)
            .unwrap_or_else(|| Path { start: from.node, moves: Vec::new() });
        path.moves.push(row(from));
        if path.start == to.node {
            found.extend(path.moves);
        } else {
            paths.insert(to.node, path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changes::position::pack;

    /// The rows that swap keys, of moves from key to key in one transaction.
    fn swapped(moves: &[(u128, u128)]) -> Vec<u64> {
        let mut halves: Vec<Half<i128>> = moves
            .iter()
            .zip(0u64..)
            .flat_map(|((from, to), row)| {
                [(0, *from), (1, *to)].map(|(half, node)| Half {
                    position: pack(true, Some(7), 3, row * 2 + half).expect("in range"),
                    node,
                })
            })
            .collect();
        halves.reverse();
        let found = find_cycles(halves);
        let mut rows: Vec<u64> = found.iter().map(|(_, row)| *row).collect();
        rows.sort_unstable();
        rows
    }

    #[test]
    fn rows_that_swap_keys_are_distinguished_from_rows_that_move_on() {
        const NONE: [u64; 0] = [];
        let (a, b, c, t) = (1, 2, 3, 9);
        assert_eq!(swapped(&[(a, b), (b, c)]), NONE);
        assert_eq!(swapped(&[(b, c), (a, b)]), NONE);
        assert_eq!(swapped(&[(a, t), (b, a), (t, b)]), NONE);
        assert_eq!(swapped(&[(a, b), (b, a)]), [0, 1]);
        assert_eq!(swapped(&[(a, b), (b, c), (c, a)]), [0, 1, 2]);
        assert_eq!(swapped(&[(a, b), (5, 6), (b, a), (6, 7)]), [0, 2]);
    }
}
