//! Row bitmaps: which row ordinals are last changes, of a key and day or of a key.
//!
//! Bits take less memory than lists of positions: 100 million changes take 25 MB.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::buffer::{BooleanBuffer, Buffer};

/// The row ordinals of last changes, as one bit per ordinal.
#[derive(Debug)]
pub(crate) struct Winners {
    /// Per file the index of its first bit, and at the end the number of bits.
    firsts: Vec<usize>,
    days: BooleanBuffer,
    latest: BooleanBuffer,
    unsettled: Option<BooleanBuffer>,
    ended: Option<BooleanBuffer>,
}

/// [`Winners`] under construction, by several threads at once.
#[derive(Debug)]
pub(crate) struct RowBitmap {
    firsts: Vec<usize>,
    days: Bits,
    latest: Bits,
    unsettled: Option<Bits>,
    ended: Option<Bits>,
}

impl RowBitmap {
    /// A bitmap without winners, for files with these numbers of row ordinals.
    pub(crate) fn new(ordinal_counts: impl Iterator<Item = u64>) -> Self {
        let mut firsts = vec![0];
        for rows in ordinal_counts {
            firsts.push(firsts[firsts.len() - 1] + rows as usize);
        }
        let bits = firsts[firsts.len() - 1];
        let (days, latest) = (Bits::new(bits), Bits::new(bits));
        RowBitmap { firsts, days, latest, unsettled: None, ended: None }
    }

    /// A bitmap with these winners.
    pub(crate) fn of(winners: &Winners) -> Self {
        RowBitmap {
            firsts: winners.firsts.clone(),
            days: Bits::of(&winners.days),
            latest: Bits::of(&winners.latest),
            unsettled: None,
            ended: None,
        }
    }

    /// The same, with room for marks of unsettled winners.
    pub(crate) fn with_unsettled(self) -> Self {
        let bits = Bits::new(self.firsts[self.firsts.len() - 1]);
        RowBitmap { unsettled: Some(bits), ..self }
    }

    /// The same, with room for marks of winners whose rows a floor has ended.
    pub(crate) fn with_ended(self) -> Self {
        let bits = Bits::new(self.firsts[self.firsts.len() - 1]);
        RowBitmap { ended: Some(bits), ..self }
    }

    /// Marks the last change of a key and day.
    #[inline]
    pub(crate) fn set_day(&self, file: usize, row: usize) {
        self.days.set(self.firsts[file] + row);
    }

    /// Marks the last change of a key.
    #[inline]
    pub(crate) fn set_latest(&self, file: usize, row: usize) {
        self.latest.set(self.firsts[file] + row);
    }

    /// Takes the mark of the last change of a key and day away.
    pub(crate) fn unset_day(&self, file: usize, row: usize) {
        self.days.unset(self.firsts[file] + row);
    }

    /// Takes the mark of the last change of a key away.
    pub(crate) fn unset_latest(&self, file: usize, row: usize) {
        self.latest.unset(self.firsts[file] + row);
    }

    /// Marks a winner whose key's standing is counted after its row was read.
    pub(crate) fn set_unsettled(&self, file: usize, row: usize) {
        if let Some(bits) = &self.unsettled {
            bits.set(self.firsts[file] + row);
        }
    }

    /// Marks a winner whose row a floor has ended.
    pub(crate) fn set_ended(&self, file: usize, row: usize) {
        if let Some(bits) = &self.ended {
            bits.set(self.firsts[file] + row);
        }
    }

    /// Returns the marked winners.
    pub(crate) fn finish(self) -> Winners {
        let bits = self.firsts[self.firsts.len() - 1];
        Winners {
            firsts: self.firsts,
            days: self.days.finish(bits),
            latest: self.latest.finish(bits),
            unsettled: self.unsettled.map(|unsettled| unsettled.finish(bits)),
            ended: self.ended.map(|ended| ended.finish(bits)),
        }
    }
}

impl Winners {
    /// The number of last changes of keys and days.
    pub(crate) fn count(&self) -> usize {
        self.days.count_set_bits()
    }

    /// Which of a file's row ordinals are the last change of a key and day.
    pub(crate) fn days(&self, file: usize, first_row: usize, rows: usize) -> BooleanBuffer {
        self.days.slice(self.firsts[file] + first_row, rows)
    }

    /// Whether any of a file's row ordinals is the last change of a key and day.
    pub(crate) fn has_any(&self, file: usize, rows: Range<usize>) -> bool {
        self.days.slice(self.firsts[file] + rows.start, rows.len()).count_set_bits() > 0
    }

    /// Whether a row ordinal is the last change of a key and day.
    #[inline]
    pub(crate) fn is_day(&self, file: usize, row: usize) -> bool {
        self.days.value(self.firsts[file] + row)
    }

    /// Whether a row ordinal is its key's last change.
    #[inline]
    pub(crate) fn is_latest(&self, file: usize, row: usize) -> bool {
        self.latest.value(self.firsts[file] + row)
    }

    /// Whether a row ordinal is an unsettled winner.
    pub(crate) fn is_unsettled(&self, file: usize, row: usize) -> bool {
        let bit = self.firsts[file] + row;
        self.unsettled.as_ref().is_some_and(|unsettled| unsettled.value(bit))
    }

    /// Whether a floor has ended the row of any winner.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.as_ref().is_some_and(|ended| ended.count_set_bits() > 0)
    }

    /// Whether a floor has ended the row of a winner.
    pub(crate) fn is_ended(&self, file: usize, row: usize) -> bool {
        self.ended.as_ref().is_some_and(|ended| ended.value(self.firsts[file] + row))
    }
}

/// Bits that several threads can set.
#[derive(Debug)]
struct Bits(Vec<AtomicU64>);

impl Bits {
    fn new(bits: usize) -> Self {
        Bits((0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn of(bits: &BooleanBuffer) -> Self {
        let words = bits.bit_chunks().iter_padded();
        Bits(words.take(bits.len().div_ceil(64)).map(AtomicU64::new).collect())
    }

    #[inline]
    fn set(&self, bit: usize) {
        self.0[bit / 64].fetch_or(1 << (bit % 64), Ordering::Relaxed);
    }

    fn unset(&self, bit: usize) {
        self.0[bit / 64].fetch_and(!(1 << (bit % 64)), Ordering::Relaxed);
    }

    fn finish(self, bits: usize) -> BooleanBuffer {
        let words: Vec<u64> = self.0.into_iter().map(|word| word.into_inner().to_le()).collect();
        BooleanBuffer::new(Buffer::from_vec(words), 0, bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn winners_that_are_marked_again_are_those_of_before_but_for_what_is_taken_away(
            counts in prop::collection::vec(0..150u64, 1..4),
            marked in prop::collection::btree_set((0..4usize, 0..150usize), 0..200),
            taken in prop::collection::btree_set((0..4usize, 0..150usize), 0..50),
        ) {
            let is_there = |(file, row): &(usize, usize)| {
                counts.get(*file).is_some_and(|rows| (*row as u64) < *rows)
            };
            let bitmap = RowBitmap::new(counts.iter().copied());
            for (file, row) in marked.iter().filter(|at| is_there(at)) {
                bitmap.set_day(*file, *row);
                bitmap.set_latest(*file, *row);
            }
            let again = RowBitmap::of(&bitmap.finish());
            for (file, row) in taken.iter().filter(|at| is_there(at)) {
                again.unset_day(*file, *row);
                if row % 2 == 0 {
                    again.unset_latest(*file, *row);
                }
            }
            let winners = again.finish();
            for (file, rows) in counts.iter().enumerate() {
                for row in 0..*rows as usize {
                    let (was, gone) = (marked.contains(&(file, row)), taken.contains(&(file, row)));
                    prop_assert_eq!(winners.is_day(file, row), was && !gone);
                    prop_assert_eq!(winners.is_latest(file, row), was && !(gone && row % 2 == 0));
                }
            }
        }
    }
}
