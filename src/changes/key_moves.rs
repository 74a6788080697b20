//! Key moves: updates that change a row's key, and which of their deletes are none.
//!
//! An update from key A to key B is a delete of A and, right behind it, the row as B. That is right
//! for one row that moves on within a transaction (A to B, B to C: only C is left), and for two that
//! change places by way of a third key. It is not for rows that change places directly, as a
//! database allows that checks keys when a statement or a transaction ends: after A to B and B to A,
//! the second delete would take away the row that has just come.
//!
//! ```text
//! A ─▶ B, B ─▶ C           one row moves on:              deletes of A and B
//! A ─▶ T, B ─▶ A, T ─▶ B   two rows, by way of T:         deletes of A, B and T
//! A ─▶ B, B ─▶ A           back where it began:           two rows that change places, no delete
//! ```
//!
//! So rows are followed through their transaction, the changes with the same commit time. One that
//! would come back to the key that it left is taken for as many rows as it has keys: each
//! key gets a row from another one, and none is deleted. Only moves are looked at, and only those of
//! one run's inputs: a transaction whose changes lie in files of different windows is not seen
//! whole.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::row::{RowConverter, SortField};
use chrono_tz::Tz;
use datafusion::catalog::TableProvider;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::physical_plan::execute_stream_partitioned;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use tracing::info;

use crate::changes::position::Position;
use crate::changes::reader::ChangesTable;
use crate::changes::{Changes, KeySwaps, POSITION};
use crate::engine::tasks::{join_all, spawn};
use crate::error::{Error, Result};
use crate::types::times::times_ns;

/// A key at a transaction, or rather a hash of both: 128 bits, so that two are not mistaken for one.
type Node = u128;

/// One half of an update: the key that it leaves, or the one that it comes to.
#[derive(Clone, Debug)]
struct Half<P> {
    /// The first place of its row, or the second.
    position: P,
    node: Node,
}

/// Finds the key_swaps among a run's key moves.
///
/// # Errors
/// Data, for a row that cannot be folded; usage, when the moves do not fit into the memory limit.
pub async fn key_swaps(
    context: &SessionContext,
    changes: &Arc<Changes>,
    partitions: usize,
) -> Result<KeySwaps> {
    match changes.is_packed() {
        true => find::<i128>(context, changes, partitions).await,
        false => find::<Box<[u8]>>(context, changes, partitions).await,
    }
}

async fn find<P: Position>(
    context: &SessionContext,
    changes: &Arc<Changes>,
    partitions: usize,
) -> Result<KeySwaps> {
    let memory = MemoryConsumer::new("key moves").register(&context.runtime_env().memory_pool);
    let memory = Arc::new(memory);
    let table = ChangesTable::key_moves(changes, partitions);
    let roles = changes.roles();
    let mut columns = roles.key;
    let keys = columns.len();
    columns.push(table.schema().index_of(POSITION)?);
    let lost = || Error::internal("the commit time was lost");
    columns.push(roles.commit_time.ok_or_else(lost)?);
    let state = context.state();
    let plan = table.scan(&state, Some(&columns), &[], None).await?;
    let streams = execute_stream_partitioned(plan, context.task_ctx())?;
    let tasks = streams.into_iter().map(|mut rows| {
        let memory = Arc::clone(&memory);
        spawn(async move {
            let mut halves = Vec::new();
            while let Some(batch) = rows.try_next().await? {
                let before = halves.len();
                add::<P>(&batch, keys, &mut halves)?;
                let heap = halves[before..]
                    .iter()
                    .map(|half| half.position.heap_bytes());
                // The map and the set come on top of the list.
                let bytes = batch.num_rows() * 3 * size_of::<Half<P>>() + heap.sum::<usize>();
                memory.try_grow(bytes).map_err(|_| {
                    let told = "the memory limit is too small for this run's key moves";
                    Error::usage(told).hint("raise `limits.memory`, or run smaller windows")
                })?;
            }
            Ok(halves)
        })
    });
    let mut halves = Vec::new();
    for some in join_all(tasks).await? {
        halves.extend(some);
    }
    let found = of_halves(halves);
    if !found.is_empty() {
        info!(
            "{} updates of keys go in a circle at one commit time: taken for rows that change places",
            found.len()
        );
    }
    Ok(found)
}

fn add<P: Position>(batch: &RecordBatch, keys: usize, halves: &mut Vec<Half<P>>) -> Result<()> {
    let columns: &[ArrayRef] = &batch.columns()[..keys];
    let fields = columns
        .iter()
        .map(|column| SortField::new(column.data_type().clone()));
    let rows = RowConverter::new(fields.collect())?.convert_columns(columns)?;
    let times = times_ns(batch.column(keys + 1), Tz::UTC);
    let times = times.map_err(|_| Error::internal("a commit time was lost"))?;
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

/// A row on its way through a transaction.
struct Path {
    start: Node,
    moves: Vec<(u32, u64)>,
}

fn of_halves<P: Position>(mut halves: Vec<Half<P>>) -> KeySwaps {
    halves.sort_unstable_by(|a, b| match a.position.is_before(&b.position) {
        true => Ordering::Less,
        false => Ordering::Greater,
    });
    let row = |half: &Half<P>| {
        let (file, place) = half.position.file_and_row();
        (file as u32, place as u64 / 2)
    };
    let mut here: HashMap<Node, Path> = HashMap::new();
    let mut found = KeySwaps::new();
    for pair in halves.chunk_by(|a, b| row(a) == row(b)) {
        let [from, to] = pair else {
            continue;
        };
        let mut path = here.remove(&from.node).unwrap_or_else(|| Path {
            start: from.node,
            moves: Vec::new(),
        });
        path.moves.push(row(from));
        match path.start == to.node {
            true => found.extend(path.moves),
            false => {
                here.insert(to.node, path);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changes::position::pack;

    /// The rows whose deletes are none, of moves from key to key in one transaction.
    fn exchanged(moves: &[(u128, u128)]) -> Vec<u64> {
        let halves = moves.iter().zip(0u64..).flat_map(|((from, to), row)| {
            [(0, *from), (1, *to)].map(|(half, node)| Half {
                position: pack(true, Some(7), 3, row * 2 + half).expect("in range"),
                node,
            })
        });
        let mut halves: Vec<Half<i128>> = halves.collect();
        halves.reverse();
        let found = of_halves(halves);
        let mut rows: Vec<u64> = found.iter().map(|(_, row)| *row).collect();
        rows.sort_unstable();
        rows
    }

    #[test]
    fn rows_that_change_places_are_told_from_rows_that_move_on() {
        const NONE: [u64; 0] = [];
        let (a, b, c, t) = (1, 2, 3, 9);
        assert_eq!(exchanged(&[(a, b), (b, c)]), NONE);
        assert_eq!(exchanged(&[(b, c), (a, b)]), NONE);
        assert_eq!(exchanged(&[(a, t), (b, a), (t, b)]), NONE);
        assert_eq!(exchanged(&[(a, b), (b, a)]), [0, 1]);
        assert_eq!(exchanged(&[(a, b), (b, c), (c, a)]), [0, 1, 2]);
        assert_eq!(exchanged(&[(a, b), (5, 6), (b, a), (6, 7)]), [0, 2]);
    }
}
