//! Fingerprints of raw files: whether a file with another time or ETag still has the same bytes.
//!
//! A file of up to 1 MiB is looked at as a whole. Of a larger one these parts are looked at: its
//! first 64 KiB, and its end: the last 64 KiB, or the whole footer of a Parquet file if that is
//! longer. A footer has the number of rows, and of every column chunk its place, its size and
//! mostly its least and greatest value, so that files that a tool wrote with other content differ
//! there. What a fingerprint cannot see is a byte between the two parts of a large file that was
//! replaced in place: the file has the same size, and nothing in its ends says so.
//!
//! The bytes are those that a run reads anyway, but for the first 64 KiB of a large Parquet file.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use futures::future::try_join;
use object_store::ObjectStoreExt;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::parquet_io::open::{FOOTER_BYTES_HINT, FetchedPart, SMALL_BYTES_MAX};
use crate::store::{Folder, parse_path};

/// The length of each looked-at end of a large file.
const END_BYTES: u64 = FOOTER_BYTES_HINT as u64;
/// The last bytes of a Parquet file: the length of its footer, and the magic number.
const TRAILER_BYTES: u64 = 8;

/// A fingerprint of a file's bytes: 128 bits of the BLAKE3 hash of what is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u128);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map(Fingerprint).map_err(serde::de::Error::custom)
    }
}

/// The head of a large file that is looked at; `None` for a file that is looked at as a whole.
pub(crate) fn head(size: u64) -> Option<Range<u64>> {
    (size > SMALL_BYTES_MAX).then_some(0..END_BYTES)
}

/// Where the looked-at end of a large file starts. `end` are its last bytes, at least
/// [`TRAILER_BYTES`] of them.
fn end_start(size: u64, end: &[u8]) -> u64 {
    let plain = size - END_BYTES;
    let Some([length @ .., b'P', b'A', b'R', b'1']) = end.last_chunk::<8>() else {
        return plain;
    };
    let footer = u64::from(u32::from_le_bytes(*length)) + TRAILER_BYTES;
    // A footer that would reach into the head is none.
    size.checked_sub(footer).map_or(plain, |start| start.min(plain).max(END_BYTES))
}

/// The fingerprint of a file of this size, from parts of it; `None` if a part that is looked at is
/// not among them.
pub(crate) fn of_parts(size: u64, parts: &[FetchedPart]) -> Option<Fingerprint> {
    let mut looked_at = Vec::new();
    match head(size) {
        None => add(0..size, parts, &mut looked_at)?,
        Some(head) => {
            add(head, parts, &mut looked_at)?;
            let mut trailer = Vec::new();
            add(size - TRAILER_BYTES..size, parts, &mut trailer)?;
            let end = end_start(size, &trailer.concat());
            add(end..size, parts, &mut looked_at)?;
        }
    }
    let mut hasher = blake3::Hasher::new();
    looked_at.iter().for_each(|piece| {
        hasher.update(piece);
    });
    let hash = hasher.finalize();
    let half = hash.as_bytes().first_chunk()?;
    Some(Fingerprint(u128::from_be_bytes(*half)))
}

/// Adds the bytes of a range, in pieces; `None` if they are not all among the parts.
fn add<'a>(range: Range<u64>, parts: &'a [FetchedPart], pieces: &mut Vec<&'a [u8]>) -> Option<()> {
    let mut at = range.start;
    while at < range.end {
        let holds =
            |(start, part): &&FetchedPart| (*start..*start + part.len() as u64).contains(&at);
        let (start, part) = parts.iter().find(holds)?;
        let end = range.end.min(start + part.len() as u64);
        pieces.push(&part[(at - start) as usize..(end - start) as usize]);
        at = end;
    }
    Some(())
}

/// The parts of a file that are looked at, of bytes that pass by in order.
#[derive(Debug)]
pub(crate) struct Passing {
    size: u64,
    parts: Vec<FetchedPart>,
}

impl Passing {
    pub(crate) fn new(size: u64) -> Self {
        Passing { size, parts: Vec::new() }
    }

    /// Keeps what is looked at of the bytes at an offset.
    pub(crate) fn pass(&mut self, offset: u64, bytes: &Bytes) {
        let whole = 0..self.size;
        let (first, last) = match head(self.size) {
            None => (whole, None),
            Some(head) => (head, Some(self.size - END_BYTES..self.size)),
        };
        for range in std::iter::once(first).chain(last) {
            let (start, end) =
                (range.start.max(offset), range.end.min(offset + bytes.len() as u64));
            if start < end {
                let part = &bytes[(start - offset) as usize..(end - offset) as usize];
                self.parts.push((start, Bytes::copy_from_slice(part)));
            }
        }
    }

    /// The fingerprint; `None` if not all bytes have passed.
    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        of_parts(self.size, &self.parts)
    }
}

/// Reads the fingerprint of a file.
///
/// # Errors
/// Storage, when it cannot be read.
pub(crate) async fn read(folder: &Folder, path: &str, size: u64) -> Result<Fingerprint> {
    let object = parse_path(path)?;
    let fetch = async |range: Range<u64>| {
        let bytes = folder.store.get_range(&object, range.clone()).await;
        let failed = |error| Error::store(format!("read {}", folder.describe(path)), error);
        Ok::<_, Error>((range.start, bytes.map_err(failed)?))
    };
    let parts = match head(size) {
        None if size == 0 => Vec::new(),
        None => vec![fetch(0..size).await?],
        Some(head) => {
            let (head, end) = try_join(fetch(head), fetch(size - END_BYTES..size)).await?;
            let start = end_start(size, &end.1);
            let mut parts = vec![head, end];
            if start < size - END_BYTES {
                parts.push(fetch(start..size - END_BYTES).await?);
            }
            parts
        }
    };
    let shorter = || Error::storage(format!("{} changes while it is read", folder.describe(path)));
    of_parts(size, &parts).ok_or_else(shorter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Location, Stores};
    use proptest::prelude::*;

    /// A large file of pseudo-random bytes that ends like a Parquet file with a footer of this
    /// length.
    fn large(size: usize, footer: u32) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
        let trailer = size - TRAILER_BYTES as usize;
        bytes[trailer..trailer + 4].copy_from_slice(&footer.to_le_bytes());
        bytes[trailer + 4..].copy_from_slice(b"PAR1");
        bytes
    }

    fn of_whole(bytes: &[u8]) -> Fingerprint {
        let size = bytes.len() as u64;
        of_parts(size, &[(0, Bytes::copy_from_slice(bytes))]).expect("the whole file")
    }

    fn is_seen(bytes: &[u8], at: usize) -> bool {
        let mut changed = bytes.to_vec();
        changed[at] ^= 1;
        of_whole(bytes) != of_whole(&changed)
    }

    #[test]
    fn every_byte_of_a_small_file_is_seen() {
        let small = large(1 << 20, 100);
        assert!((0..small.len()).step_by(4099).all(|at| is_seen(&small, at)));
    }

    #[test]
    fn of_a_large_file_the_head_and_the_whole_footer_are_seen() {
        let size = 2 << 20;
        let end = 64 << 10;
        let short = large(size, 100);
        for (at, seen) in
            [(0, true), (end - 1, true), (end, false), (size - end - 1, false), (size - end, true)]
        {
            assert_eq!(is_seen(&short, at), seen, "{at}");
        }
        let long = large(size, 1 << 20);
        assert!(is_seen(&long, size / 2 + 100) && !is_seen(&long, size / 2 - 100));
        // These lengths are none of a footer.
        for wrong in [u32::MAX, size as u32 - 8] {
            assert!(is_seen(&large(size, wrong), size - 20));
        }
    }

    #[test]
    fn a_fingerprint_is_written_and_read_in_the_same_form() {
        let one = of_whole(b"a file");
        let text = serde_json::to_string(&one).expect("written");
        assert_eq!(text.len(), 34);
        assert_eq!(serde_json::from_str::<Fingerprint>(&text).expect("read"), one);
        assert_eq!(text, "\"3e976d6acf20bedbc9b9375b9d39ce37\"");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Bytes that pass by in pieces, parts that are fetched, and a read give one fingerprint.
        #[test]
        fn all_ways_to_take_a_fingerprint_agree(
            size in prop_oneof![0..200usize, 1_048_574..1_048_579usize, 1_100_000..3_000_000usize],
            footer in prop_oneof![Just(10u32), 0..2_000_000u32],
            piece in 1_000..500_000usize,
        ) {
            let bytes = if size < 8 { vec![7; size] } else { large(size, footer) };
            let mut passing = Passing::new(size as u64);
            for (number, part) in bytes.chunks(piece).enumerate() {
                passing.pass((number * piece) as u64, &Bytes::copy_from_slice(part));
            }
            let whole = of_whole(&bytes);
            if size <= 1 << 20 || footer < END_BYTES as u32 - 8 {
                prop_assert_eq!(passing.fingerprint(), Some(whole));
            }
            let raw = tempfile::tempdir().expect("a folder");
            std::fs::write(raw.path().join("f"), &bytes).expect("written");
            let location = Location::parse(".", raw.path()).expect("a location");
            let folder = Stores::default().open(&location).expect("a folder");
            let found = futures::executor::block_on(read(&folder, "f", size as u64));
            prop_assert_eq!(found.expect("read"), whole);
        }
    }
}
