//! The sessions that read tables in a snapshot, and which of them reads what.
//!
//! Locks are a small store that all sessions of a server share, and each session locks what it reads
//! ([`crate::capture::hold`]). Of few tables each session locks all, so that none is idle while there is something to
//! read. Of many, what is read in one piece is locked by the one session that reads it, and only what is read in
//! several pieces by all. A whole table of the log is copied, which locks no index.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::iter::{from_fn, once};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_postgres::Client;

use crate::capture::catalog::{Part, Reads, Table};
use crate::capture::hold::{Session, hold};
use crate::error::Result;
use crate::postgres::ServerName;

/// The pages that are read in one piece: 256 MiB.
const PIECE_PAGES: u32 = 32 << 10;

/// The most tables and partitions that all sessions lock.
const FEW: usize = 100;

/// The first page of a piece, and the first one behind; all pages from the first one on if there is none.
pub(super) type Pages = (u32, Option<u32>);

/// Sessions that hold tables.
pub(super) struct Readers<'a> {
    first: &'a Client,
    others: Vec<Client>,
    /// By their names in SQL, what one session reads; all read the rest.
    alone: BTreeMap<String, usize>,
}

/// What one session reads, or all.
struct Unit {
    /// Its names in SQL, and whether reading it is planned.
    names: Vec<(String, bool)>,
    pages: u64,
    is_shared: bool,
}

impl<'a> Readers<'a> {
    /// Locks tables by the sessions that will read them.
    ///
    /// # Errors
    /// Those of [`hold`].
    pub(super) async fn hold(
        (first, others): (&'a Client, Vec<Client>),
        server: &ServerName,
        tables: &BTreeMap<String, Table>,
        reads: Reads,
    ) -> Result<Self> {
        let units: Vec<Unit> = tables.values().flat_map(|table| units_of(table, reads)).collect();
        let assigned = assign(&units, others.len() + 1, FEW);
        let mut names = vec![Vec::new(); others.len() + 1];
        let mut alone = BTreeMap::new();
        for (unit, session) in units.into_iter().zip(assigned) {
            match session {
                Some(session) => {
                    alone.extend(unit.names.iter().map(|(name, _)| (name.clone(), session)));
                    names[session].extend(unit.names);
                }
                None => names.iter_mut().for_each(|all| all.extend(unit.names.iter().cloned())),
            }
        }
        let clients = once(first).chain(&others);
        let sessions = clients.zip(names).map(|(client, names)| Session { client, server, names });
        hold(&sessions.collect::<Vec<_>>()).await?;
        Ok(Readers { first, others, alone })
    }

    /// The sessions, each with what it reads: first what it reads alone, then what nobody has begun of the rest.
    pub(super) fn queues<'q, T>(
        &self,
        items: &'q [T],
        alone: impl Fn(&T) -> Option<usize>,
    ) -> Vec<(&Client, impl Iterator<Item = &'q T>)> {
        let (mut own, mut shared) = (vec![Vec::new(); self.others.len() + 1], Vec::new());
        for item in items {
            match alone(item) {
                Some(session) => own[session].push(item),
                None => shared.push(item),
            }
        }
        let shared = Arc::new(Mutex::new(shared.into_iter()));
        let queue = |own: Vec<&'q T>| {
            let shared = Arc::clone(&shared);
            let next = move || shared.lock().unwrap_or_else(PoisonError::into_inner).next();
            own.into_iter().chain(from_fn(next))
        };
        once(self.first).chain(&self.others).zip(own.into_iter().map(queue)).collect()
    }

    /// The number of the session that alone reads a table or part, if one does.
    pub(super) fn alone(&self, name: &str) -> Option<usize> {
        self.alone.get(name).copied()
    }

    /// A session that reads a whole table.
    pub(super) fn of(&self, table: &Table) -> &Client {
        match self.alone(&table.sql_name()).and_then(|number| number.checked_sub(1)) {
            Some(other) => &self.others[other],
            None => self.first,
        }
    }
}

/// The number of pieces of tables.
pub(super) fn count_pieces(tables: &BTreeMap<String, Table>) -> usize {
    tables.values().flat_map(Table::parts_with_rows).map(|part| pieces_of(part).len()).sum()
}

/// The pieces of a part.
pub(super) fn pieces_of(part: &Part) -> Vec<Pages> {
    let (mut pieces, mut first) = (Vec::new(), 0);
    while part.pages.saturating_sub(first) > PIECE_PAGES + PIECE_PAGES / 2 {
        pieces.push((first, Some(first + PIECE_PAGES)));
        first += PIECE_PAGES;
    }
    // The table can have grown since its pages were counted.
    pieces.push((first, None));
    pieces
}

/// Whether a piece is a whole table of the log, which is copied and not queried.
pub(super) fn is_copied(table: &Table, pages: Pages, reads: Reads) -> bool {
    reads == Reads::Log && pages == (0, None) && !table.columns.is_empty()
}

/// What is read of a table by one session, or by all: each of its parts; all of it by extracts, which ask
/// for its times too.
fn units_of(table: &Table, reads: Reads) -> Vec<Unit> {
    let parts = table.parts_with_rows().map(|part| {
        let pieces = pieces_of(part);
        let is_planned = !is_copied(table, pieces[0], reads);
        Unit {
            names: vec![(part.sql_name(), is_planned)],
            pages: part.pages.into(),
            is_shared: pieces.len() > 1,
        }
    });
    if reads == Reads::Log {
        return parts.collect();
    }
    let whole = Unit { names: vec![(table.sql_name(), true)], pages: 0, is_shared: false };
    vec![parts.fold(whole, |mut whole, part| {
        // The name of a table is that of all its parts, too.
        whole.names.extend(part.names.into_iter().filter(|_| table.is_partitioned));
        whole.pages += part.pages;
        whole.is_shared |= part.is_shared;
        whole
    })]
}

/// The session of each unit, so that all read about as much; `None` for those that all read, as all of few.
fn assign(units: &[Unit], sessions: usize, few: usize) -> Vec<Option<usize>> {
    let mut assigned = vec![None; units.len()];
    if units.len() <= few {
        return assigned;
    }
    let mut largest_first: Vec<usize> =
        (0..units.len()).filter(|unit| !units[*unit].is_shared).collect();
    largest_first.sort_by_key(|unit| Reverse(units[*unit].pages));
    let mut pages = vec![0; sessions];
    for unit in largest_first {
        let least = (0..sessions).min_by_key(|session| pages[*session]).unwrap_or(0);
        // An empty table takes a session, too.
        pages[least] += units[unit].pages + 1;
        assigned[unit] = Some(least);
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_alone_is_spread_by_its_size() {
        let unit = |pages, is_shared| Unit { names: Vec::new(), pages, is_shared };
        let units = [unit(0, false), unit(90_000, true), unit(50, false), unit(30, false)];
        assert_eq!(assign(&units, 2, 3), [Some(1), None, Some(0), Some(1)]);
        assert_eq!(assign(&units, 1, 3), [Some(0), None, Some(0), Some(0)]);
        assert_eq!(assign(&units, 2, 4), [None; 4]);
        assert_eq!(assign(&[], 2, 0), []);
        let many: Vec<Unit> = (0..100).map(|_| unit(0, false)).collect();
        let of_first = assign(&many, 4, 3).into_iter().filter(|session| *session == Some(0));
        assert_eq!(of_first.count(), 25);
    }
}
