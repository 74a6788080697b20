//! The memory pool of a run.
//!
//! A consumer that can spill may reserve all free memory except a floor for each other consumer
//! that can spill. The engine's fair pool gives every consumer an equal share instead, most of
//! which stays unused: the tables of the fold need nearly all memory, the operators that feed them
//! hardly any. A consumer that cannot spill may reserve all free memory, including the floors.
//!
//! All floors together are half of the pool: with n consumers that can spill, one that needs memory
//! alone gets (n + 1) / 2n of it, more than half however many there are. The fair pool would give it
//! 1 / n.
//!
//! With the fair pool folds take as long. At 128 MB, where a share is about 3 MB, it stopped an aggregate that
//! this pool lets finish, while each sort set 10 MiB aside for merging. Now that sorts set less aside
//! ([`crate::engine::session`]), that aggregate finishes with both pools
//! (`the_status_from_the_balance_is_that_from_the_history`, in the tests).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{
    MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation,
};

/// A pool of memory with a floor for every consumer that can spill.
#[derive(Debug)]
pub struct FloorPool {
    limit: usize,
    reserved: Mutex<Reserved>,
}

#[derive(Debug, Default)]
struct Reserved {
    total: usize,
    /// The bytes reserved by each consumer that can spill, by its id.
    spillers: HashMap<usize, usize>,
}

impl FloorPool {
    /// A pool of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        FloorPool { limit, reserved: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Reserved> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that a consumer may still reserve. All floors together are half of the pool.
    fn free(&self, reserved: &Reserved, consumer: &MemoryConsumer) -> usize {
        let mut taken = reserved.total;
        if consumer.can_spill() {
            let floor = self.limit / (2 * reserved.spillers.len().max(1));
            let others = reserved.spillers.iter();
            taken += others
                .filter(|(id, _)| **id != consumer.id())
                .map(|(_, used)| floor.saturating_sub(*used))
                .sum::<usize>();
        }
        self.limit.saturating_sub(taken)
    }

    fn add(reserved: &mut Reserved, consumer: &MemoryConsumer, bytes: usize) {
        reserved.total += bytes;
        if consumer.can_spill() {
            *reserved.spillers.entry(consumer.id()).or_default() += bytes;
        }
    }
}

impl fmt::Display for FloorPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes reserved", self.reserved(), self.limit)
    }
}

impl MemoryPool for FloorPool {
    fn name(&self) -> &str {
        "floor"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        Self::add(&mut self.lock(), consumer, 0);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.lock().spillers.remove(&consumer.id());
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        Self::add(&mut self.lock(), reservation.consumer(), additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        let mut reserved = self.lock();
        reserved.total = reserved.total.saturating_sub(shrink);
        if let Some(used) = reserved.spillers.get_mut(&reservation.consumer().id()) {
            *used = used.saturating_sub(shrink);
        }
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let mut reserved = self.lock();
        let consumer = reservation.consumer();
        let free = self.free(&reserved, consumer);
        if additional > free {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{} has {} bytes and needs {additional} more; {free} of {} are free",
                consumer.name(),
                reservation.size(),
                self.limit
            )));
        }
        Self::add(&mut reserved, consumer, additional);
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.lock().total
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_spiller_may_reserve_all_but_the_floors_of_others() {
        let pool: Arc<dyn MemoryPool> = Arc::new(FloorPool::new(1_000));
        let spiller = |name: &str| MemoryConsumer::new(name).with_can_spill(true).register(&pool);
        let (table, reader) = (spiller("table"), spiller("reader"));
        assert!(table.try_grow(751).is_err(), "the reader's floor is 250");
        assert!(table.try_grow(750).is_ok());
        assert!(reader.try_grow(250).is_ok());
        assert!(reader.try_grow(1).is_err());
        table.free();
        assert!(reader.try_grow(500).is_ok());
        assert!(reader.try_grow(1).is_err(), "the table's floor is 250");
        let merge = MemoryConsumer::new("merge").register(&pool);
        assert!(merge.try_grow(250).is_ok(), "floors are for spillers only");
        assert!(table.try_grow(1).is_err());
        drop(reader);
        assert!(table.try_grow(750).is_ok(), "a dropped consumer has no floor");
        assert_eq!(pool.reserved(), 1_000);
        drop((table, merge));
        assert_eq!(pool.reserved(), 0);
    }
}
