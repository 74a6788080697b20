//! The aggregate function of the fold: `last_changes(event_dt, position)`.
//!
//! Grouped by key, it keeps for each day the position of the last change, and whether another
//! change had the same order columns (a tie, decided by file and row). One pass thus answers both
//! questions of the fold: the last change per key and day, and, as the greatest of these, the
//! last change per key. A plain `max` could not count ties, and grouping by key and day would
//! need a second grouping by key.
//!
//! The result, and the state that is merged and spilled, is a byte string per key: its entries,
//! day (4 bytes) and position ([`Position::push`]) each; [`entries`] reads them. Bytes and not a
//! list of structs, because Arrow moves them between threads several times as fast.

use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, BooleanArray};
use arrow::datatypes::{DataType, Date32Type, Field, FieldRef};
use datafusion::common::{Result, internal_err, not_impl_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
};

use crate::position::Position;

/// The function's name in SQL.
pub const NAME: &str = "last_changes";

/// The aggregate over positions of one kind.
pub fn last_changes<P: Position>() -> AggregateUDF {
    AggregateUDF::from(LastChanges::<P> {
        signature: Signature::exact(
            vec![DataType::Date32, P::data_type()],
            Volatility::Immutable,
        ),
        kind: PhantomData,
    })
}

/// The entries of a key: day (as `Date32`) and position, in no order.
pub fn entries<P: Position>(mut bytes: &[u8]) -> impl Iterator<Item = (Option<i32>, P)> {
    std::iter::from_fn(move || {
        let (day, rest) = bytes.split_first_chunk()?;
        let (position, rest) = P::pull(rest)?;
        bytes = rest;
        Some((
            Some(i32::from_le_bytes(*day)).filter(|day| *day != NO_DAY),
            position,
        ))
    })
}

/// Stands for a change without a day.
const NO_DAY: i32 = i32::MIN;

#[derive(Debug)]
struct LastChanges<P> {
    signature: Signature,
    kind: PhantomData<P>,
}

impl<P: Position> PartialEq for LastChanges<P> {
    fn eq(&self, other: &Self) -> bool {
        self.signature == other.signature
    }
}

impl<P: Position> Eq for LastChanges<P> {}

impl<P: Position> Hash for LastChanges<P> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.signature.hash(state);
    }
}

impl<P: Position> AggregateUDFImpl for LastChanges<P> {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Binary)
    }

    fn state_fields(&self, _args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(
            "last_changes",
            DataType::Binary,
            true,
        ))])
    }

    fn accumulator(&self, _args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        not_impl_err!("{NAME} needs a GROUP BY")
    }

    fn groups_accumulator_supported(&self, _args: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(
        &self,
        _args: AccumulatorArgs,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(LastPerDay::<P>::new()))
    }
}

/// The day of an entry of a group that has none yet.
const NO_ENTRY: i32 = i32::MIN + 1;
/// No further entry.
const END: u32 = u32::MAX;

#[derive(Clone, Debug, Default)]
struct Entry<P> {
    position: P,
    day: i32,
    next: u32,
}

/// Per group its entries: one inline, further ones (for most keys none) linked behind it.
#[derive(Debug)]
struct LastPerDay<P> {
    firsts: Vec<Entry<P>>,
    others: Vec<Entry<P>>,
    heap_bytes: usize,
}

impl<P: Position> LastPerDay<P> {
    fn new() -> Self {
        LastPerDay {
            firsts: Vec::new(),
            others: Vec::new(),
            heap_bytes: 0,
        }
    }

    #[inline]
    fn add(&mut self, group: usize, day: i32, position: P) -> Result<()> {
        let first = &mut self.firsts[group];
        if first.day == day {
            keep_later(&mut first.position, position);
            return Ok(());
        }
        if first.day == NO_ENTRY {
            self.heap_bytes += position.heap_bytes();
            *first = Entry {
                position,
                day,
                next: END,
            };
            return Ok(());
        }
        let mut at = first.next;
        while at != END && self.others[at as usize].day != day {
            at = self.others[at as usize].next;
        }
        if at == END {
            let Some(new) = u32::try_from(self.others.len())
                .ok()
                .filter(|new| *new != END)
            else {
                return internal_err!("too many keys and days for one partition of the fold");
            };
            self.heap_bytes += position.heap_bytes();
            // Changes come mostly in the order of time: the newest day goes in front.
            let old = std::mem::replace(
                first,
                Entry {
                    position,
                    day,
                    next: new,
                },
            );
            self.others.push(old);
        } else {
            let other = &mut self.others[at as usize];
            keep_later(&mut other.position, position);
            std::mem::swap(&mut first.position, &mut other.position);
            std::mem::swap(&mut first.day, &mut other.day);
        }
        Ok(())
    }

    fn resize(&mut self, groups: usize) {
        self.firsts.resize_with(groups, || Entry {
            day: NO_ENTRY,
            ..Default::default()
        });
    }

    /// Takes the first groups out and closes the gap.
    fn emit(&mut self, emit_to: EmitTo) -> ArrayRef {
        let taken = emit_to.take_needed(&mut self.firsts);
        let mut lists = BinaryBuilder::with_capacity(taken.len(), taken.len() * 20);
        let mut bytes = Vec::new();
        for first in &taken {
            bytes.clear();
            let mut next = Some(first).filter(|first| first.day != NO_ENTRY);
            while let Some(entry) = next {
                bytes.extend_from_slice(&entry.day.to_le_bytes());
                entry.position.push(&mut bytes);
                next = self.others.get(entry.next as usize);
            }
            lists.append_value(&bytes);
        }
        let rest = std::mem::replace(self, LastPerDay::new());
        for mut first in rest.firsts {
            if first.day != NO_ENTRY {
                self.heap_bytes += first.position.heap_bytes();
                let mut at = first.next;
                if at != END {
                    first.next = self.others.len() as u32;
                }
                while let Some(old) = rest.others.get(at as usize) {
                    let mut moved = old.clone();
                    at = moved.next;
                    if at != END {
                        moved.next = self.others.len() as u32 + 1;
                    }
                    self.heap_bytes += moved.position.heap_bytes();
                    self.others.push(moved);
                }
            }
            self.firsts.push(first);
        }
        Arc::new(lists.finish())
    }
}

/// Keeps the later of two changes, tied if only file and row decide.
#[inline]
pub fn keep_later<P: Position>(kept: &mut P, position: P) {
    let tied = kept.same_order(&position);
    if kept.is_before(&position) {
        *kept = position;
    }
    if tied {
        kept.tie();
    }
}

impl<P: Position> GroupsAccumulator for LastPerDay<P> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        if filter.is_some() {
            return not_impl_err!("{NAME} takes no FILTER");
        }
        self.resize(total_num_groups);
        let days = values[0].as_primitive::<Date32Type>();
        for (index, group) in group_indices.iter().enumerate() {
            let day = if days.is_valid(index) {
                days.value(index)
            } else {
                NO_DAY
            };
            self.add(*group, day, P::read(&values[1], index))?;
        }
        Ok(())
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        total_num_groups: usize,
    ) -> Result<()> {
        self.resize(total_num_groups);
        let lists = values[0].as_binary::<i32>();
        for (index, group) in group_indices.iter().enumerate() {
            for (day, position) in entries(lists.value(index)) {
                self.add(*group, day.unwrap_or(NO_DAY), position)?;
            }
        }
        Ok(())
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        if filter.is_some() {
            return not_impl_err!("{NAME} takes no FILTER");
        }
        let days = values[0].as_primitive::<Date32Type>();
        let mut lists = BinaryBuilder::with_capacity(days.len(), days.len() * 20);
        let mut bytes = Vec::new();
        for index in 0..days.len() {
            let day = if days.is_valid(index) {
                days.value(index)
            } else {
                NO_DAY
            };
            bytes.clear();
            bytes.extend_from_slice(&day.to_le_bytes());
            P::read(&values[1], index).push(&mut bytes);
            lists.append_value(&bytes);
        }
        Ok(vec![Arc::new(lists.finish())])
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        Ok(self.emit(emit_to))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.emit(emit_to)])
    }

    fn size(&self) -> usize {
        self.firsts.capacity() * size_of::<Entry<P>>()
            + self.others.capacity() * size_of::<Entry<P>>()
            + self.heap_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{pack, packed_array};
    use arrow::array::Date32Array;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Row = (usize, Option<i32>, i64, u32);

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let row = (0..3usize, prop::option::of(0..3i32), 0..3i64);
        prop::collection::vec(row, 1..40).prop_map(|rows| {
            rows.into_iter()
                .enumerate()
                .map(|(i, (g, d, t))| (g, d, t, i as u32))
                .collect()
        })
    }

    fn columns(rows: &[Row]) -> (Vec<ArrayRef>, Vec<usize>) {
        let days = Date32Array::from_iter(rows.iter().map(|row| row.1));
        let positions: Vec<i128> = rows
            .iter()
            .map(|row| pack(true, Some(row.2.into()), 0, row.3.into()).expect("packs"))
            .collect();
        let positions = packed_array(positions);
        (
            vec![Arc::new(days), positions],
            rows.iter().map(|row| row.0).collect(),
        )
    }

    type Found = BTreeMap<(usize, Option<i32>), (usize, bool)>;

    /// Per group and day: the row that won, and whether another one had its time.
    fn read(array: &ArrayRef, groups: std::ops::Range<usize>) -> Found {
        let lists = array.as_binary::<i32>();
        let mut found = BTreeMap::new();
        for (place, group) in groups.enumerate() {
            for (day, position) in entries::<i128>(lists.value(place)) {
                let told = (position.file_and_row().1, position.is_tied());
                let old = found.insert((group, day), told);
                assert_eq!(old, None, "one entry per group and day");
            }
        }
        found
    }

    fn model(rows: &[Row]) -> Found {
        let mut best = BTreeMap::new();
        for row in rows {
            let slot: &mut Row = best.entry((row.0, row.1)).or_insert(*row);
            if (slot.2, slot.3) < (row.2, row.3) {
                *slot = *row;
            }
        }
        best.into_iter()
            .map(|(at, won)| {
                let same = rows
                    .iter()
                    .filter(|r| (r.0, r.1, r.2) == (won.0, won.1, won.2))
                    .count();
                (at, (won.3 as usize, same > 1))
            })
            .collect()
    }

    proptest! {
        #[test]
        fn winners_and_ties_are_the_models_however_the_rows_are_split(rows in rows(), cut in 0..40usize, skip in any::<bool>(), first in 0..4usize) {
            let (left, right) = rows.split_at(cut.min(rows.len()));
            let mut merged = LastPerDay::<i128>::new();
            for part in [left, right] {
                let (values, groups) = columns(part);
                let state = if skip {
                    merged.convert_to_state(&values, None).expect("converted")
                } else {
                    let mut partial = LastPerDay::<i128>::new();
                    partial.update_batch(&values, &groups, None, 3).expect("updated");
                    partial.state(EmitTo::All).expect("state")
                };
                let groups = if skip { groups } else { vec![0, 1, 2] };
                merged.merge_batch(&state, &groups, 3).expect("merged");
            }
            let first = first.min(3);
            let mut found = read(&merged.evaluate(EmitTo::First(first)).expect("emitted"), 0..first);
            found.extend(read(&merged.evaluate(EmitTo::All).expect("emitted"), first..3));
            prop_assert_eq!(found, model(&rows));
        }
    }
}
