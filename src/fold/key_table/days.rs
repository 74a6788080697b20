//! The last change per day of one key.
//! The entry of a key stores one day; those of further days, which most keys lack, are in a linked
//! list behind it.

use crate::changes::position::Position;
use crate::error::{Error, Result};

/// Reads the entries that [`LaterDays::push`] wrote: day and position.
pub(super) fn entries<P: Position>(mut bytes: &[u8]) -> impl Iterator<Item = (Option<i32>, P)> {
    std::iter::from_fn(move || {
        let (day, rest) = bytes.split_first_chunk()?;
        let (position, rest) = P::pull(rest)?;
        bytes = rest;
        Some((known_day(i32::from_le_bytes(*day)), position))
    })
}

/// The value for a change without a day.
const NO_DAY: i32 = i32::MIN;

/// The end of a list.
const END: u32 = u32::MAX;

fn known_day(day: i32) -> Option<i32> {
    Some(day).filter(|day| *day != NO_DAY)
}

/// The last change of a key and day. The first of a key is stored with the key, those of further
/// days in [`LaterDays`].
#[derive(Clone, Debug)]
pub(super) struct LastChange<P> {
    position: P,
    day: i32,
    next: u32,
}

impl<P: Position> LastChange<P> {
    /// The first change of a key.
    #[inline]
    pub(super) fn first(day: Option<i32>, position: P) -> Self {
        LastChange { position, day: day.unwrap_or(NO_DAY), next: END }
    }

    /// Touches the entry, so that it is in the CPU caches for the next access.
    #[inline]
    pub(super) fn prefetch(&self) -> u64 {
        self.day as u64
    }
}

/// The last changes of further days, of all keys.
#[derive(Debug, Default)]
pub(super) struct LaterDays<P> {
    changes: Vec<LastChange<P>>,
    heap_bytes: usize,
}

impl<P: Position> LaterDays<P> {
    /// Adds a change of a key whose entry is `first`.
    ///
    /// # Errors
    /// Usage, when there are too many entries.
    #[inline]
    pub(super) fn add(
        &mut self,
        first: &mut LastChange<P>,
        day: Option<i32>,
        position: P,
    ) -> Result<()> {
        let day = day.unwrap_or(NO_DAY);
        if first.day == day {
            keep_later(&mut first.position, position);
            return Ok(());
        }
        let mut at = first.next;
        while at != END && self.changes[at as usize].day != day {
            at = self.changes[at as usize].next;
        }
        if at == END {
            let new = u32::try_from(self.changes.len()).ok();
            let Some(new) = new.filter(|new| *new != END) else {
                return Err(
                    Error::usage("too many keys and days for one run").hint("run smaller windows")
                );
            };
            self.heap_bytes += position.heap_bytes();
            // Changes mostly come in the order of time: the newest day is stored first.
            let newest = LastChange { position, day, next: new };
            self.changes.push(std::mem::replace(first, newest));
        } else {
            let other = &mut self.changes[at as usize];
            keep_later(&mut other.position, position);
            std::mem::swap(&mut first.position, &mut other.position);
            std::mem::swap(&mut first.day, &mut other.day);
        }
        Ok(())
    }

    /// The last changes of a key, in no order.
    pub(super) fn of<'a>(
        &'a self,
        first: &'a LastChange<P>,
    ) -> impl Iterator<Item = (Option<i32>, &'a P)> {
        let mut next = Some(first);
        std::iter::from_fn(move || {
            let change = next?;
            next = self.changes.get(change.next as usize);
            Some((known_day(change.day), &change.position))
        })
    }

    /// Appends the last changes of a key as bytes, for [`entries`].
    pub(super) fn push(&self, first: &LastChange<P>, bytes: &mut Vec<u8>) {
        for (day, position) in self.of(first) {
            bytes.extend_from_slice(&day.unwrap_or(NO_DAY).to_le_bytes());
            position.push(bytes);
        }
    }

    /// The number of changes.
    pub(super) fn count(&self) -> usize {
        self.changes.len()
    }

    /// The allocated memory, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.changes.capacity() * size_of::<LastChange<P>>() + self.heap_bytes
    }
}

/// Keeps the later of two changes, and marks a tie if only file and row decide.
#[inline]
pub(crate) fn keep_later<P: Position>(last: &mut P, position: P) {
    let tied = last.same_order(&position);
    if last.is_before(&position) {
        *last = position;
    }
    if tied {
        last.tie();
    }
}
