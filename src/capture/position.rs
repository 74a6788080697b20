//! Positions in the log of a server.
//!
//! A change's position is that of its transaction's commit in the log (the LSN of PostgreSQL: a byte
//! position), and the number of the change in its transaction. As text it has a fixed width, so that
//! texts are ordered as positions are: `00000000016B3748-0000000A`.

use std::fmt;

/// A position in the log, in bytes since the server was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lsn(pub(crate) u64);

impl Lsn {
    /// Reads `16/B374D848`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (high, low) = text.split_once('/')?;
        let half = |digits: &str| u64::from(u32::from_str_radix(digits, 16).unwrap_or(u32::MAX));
        let is_half = |digits: &str| u32::from_str_radix(digits, 16).is_ok();
        (is_half(high) && is_half(low)).then(|| Lsn(half(high) << 32 | half(low)))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The position of a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// Where its transaction's commit is.
    pub(crate) commit: u64,
    /// Its number in the transaction, from 0.
    pub(crate) row: u32,
}

impl Position {
    /// Reads what [`Position`] is displayed as.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (commit, row) = text.split_once('-')?;
        let commit = u64::from_str_radix(commit, 16).ok()?;
        Some(Position { commit, row: u32::from_str_radix(row, 16).ok()? })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}-{:08X}", self.commit, self.row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(Lsn::parse(text).expect("a position").to_string(), text);
        }
        for text in ["", "16", "16/", "/1", "1/100000000", "x/1"] {
            assert_eq!(Lsn::parse(text), None, "{text}");
        }
        let position = Position { commit: 0x16_B374_D848, row: 10 };
        assert_eq!(position.to_string(), "00000016B374D848-0000000A");
        assert_eq!(Position::parse(&position.to_string()), Some(position));
        assert_eq!(Position::parse("7"), None);
    }

    #[test]
    fn texts_are_ordered_as_positions_are() {
        let of = |commit, row| Position { commit, row };
        let all = [of(0, 0), of(0, 9), of(0, u32::MAX), of(15, 0), of(16, 1), of(u64::MAX, 0)];
        assert!(all.windows(2).all(|two| two[0] < two[1]));
        assert!(all.windows(2).all(|two| two[0].to_string() < two[1].to_string()));
    }
}
