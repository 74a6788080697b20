//! Names of the files that glueless writes: published files, attempts, the owner marker.

use uuid::Uuid;

/// The name of the file that says which pipeline owns a published folder. Readers of a table ignore
/// names that begin with `_`.
pub const OWNER_MARKER: &str = "_glueless.json";

/// The beginning of the names of objects that are written to try whether they can be, and removed again.
const PROBE: &str = "_glueless-probe-";

/// The name of an object that a run writes to try whether it can.
pub fn probe_name(run_id: &str) -> String {
    format!("{PROBE}{run_id}")
}

/// The name after which a listing has those of [`probe_name`].
pub fn before_probes() -> &'static str {
    PROBE.trim_end_matches('-')
}

/// Whether an object is one that was written to try whether it can be.
pub fn is_probe(base_name: &str) -> bool {
    base_name.starts_with(PROBE)
}

/// The beginning of the names of files of deletion vectors, as Delta prescribes it.
const DELETION_VECTOR: &str = "deletion_vector_";
/// The last bytes of the UUIDs of these files; the two highest bits are those of all UUIDs.
const OWN: &[u8; 8] = b"glueless";
/// The greatest number of a file of deletion vectors of a commit.
const NUMBER_MAX: usize = 0xfff;

/// The suffix of a run's id in the ledger for the run's second commit, that of the aggregates.
const AGGREGATE: &str = "-aggregate";

/// The id of a run for the commit of its aggregates.
pub fn aggregate_run_id(run_id: &str) -> String {
    format!("{run_id}{AGGREGATE}")
}

/// The id of the run, if `run_id` is that of a commit of aggregates.
pub fn run_id_of_aggregate(run_id: &str) -> Option<&str> {
    run_id.strip_suffix(AGGREGATE)
}

/// The name of a published file: the commit that first gave its partition a file of this name, and
/// a number from 0.
///
/// A partition with one file before and after a commit keeps the file's name, so that the new file
/// replaces the old one in one step. No other commit reuses a name: a frozen process that wakes up
/// and removes its files cannot remove files that others have published since.
///
/// ```
/// # use glueless::layout::part_file_name;
/// assert_eq!(part_file_name(12, 3), "part-c00000012-00003.snappy.parquet");
/// ```
pub fn part_file_name(commit: u64, number: usize) -> String {
    format!("part-c{commit:08}-{number:05}.snappy.parquet")
}

/// The name of a file of deletion vectors of a Delta table. Delta derives it from a UUID; this one has
/// the commit, the version 8 of custom UUIDs, a number, and the bytes `glueless` less two bits.
///
/// ```
/// # use glueless::layout::deletion_vector_name;
/// let name = "deletion_vector_00000000-000c-8003-a76c-75656c657373.bin";
/// assert_eq!(deletion_vector_name(12, 3), name);
/// ```
pub fn deletion_vector_name(commit: u64, number: usize) -> String {
    format!("{DELETION_VECTOR}{}.bin", deletion_vector_uuid(commit, number))
}

/// The UUID in a base name made by [`deletion_vector_name`]; `None` for any other name.
pub fn parse_deletion_vector_name(base_name: &str) -> Option<Uuid> {
    let text = base_name.strip_prefix(DELETION_VECTOR)?.strip_suffix(".bin")?;
    let uuid = Uuid::try_parse(text).ok()?;
    let bits = uuid.as_u128();
    let (commit, number) = ((bits >> 80) as u64, (bits >> 64) as usize & NUMBER_MAX);
    (deletion_vector_name(commit, number) == base_name).then_some(uuid)
}

fn deletion_vector_uuid(commit: u64, number: usize) -> Uuid {
    let number = (number & NUMBER_MAX) as u128;
    let bits = u128::from(commit) << 80 | number << 64 | u128::from(u64::from_be_bytes(*OWN));
    uuid::Builder::from_custom_bytes(bits.to_be_bytes()).into_uuid()
}

/// The commit in the name of a file of a table, made by [`part_file_name`] or
/// [`deletion_vector_name`], with or without `_` before it; `None` for any other name.
pub fn own_file_commit(base_name: &str) -> Option<u64> {
    let of_vector = || {
        let name = base_name.strip_prefix('_').unwrap_or(base_name);
        Some((parse_deletion_vector_name(name)?.as_u128() >> 80) as u64)
    };
    part_file_commit(base_name).or_else(of_vector)
}

/// The commit in a base name made by [`part_file_name`]; `None` for any other name.
pub fn part_file_commit(base_name: &str) -> Option<u64> {
    let middle = base_name.strip_prefix("part-c")?.strip_suffix(".snappy.parquet")?;
    let (commit, number) = middle.split_once('-')?;
    let (commit, number) = (commit.parse().ok()?, number.parse().ok()?);
    (part_file_name(commit, number) == base_name).then_some(commit)
}

/// The name of a run's attempt at a commit, part of the name of every file written before the
/// commit. An attempt can only become that commit: once a commit of that number exists, all other
/// attempts at it are dead.
///
/// ```
/// # use glueless::layout::{attempt_commit, attempt_name};
/// assert_eq!(attempt_name(12, "run-1"), "00000000000000000012-run-1");
/// assert_eq!(attempt_commit("00000000000000000012-run-1"), Some(12));
/// assert_eq!(attempt_commit("12-run-1"), None);
/// ```
pub fn attempt_name(commit: u64, run_id: &str) -> String {
    format!("{commit:020}-{run_id}")
}

/// The name of the staging folder of a pipeline whose state is at a URL or path.
pub fn staging_name(state: &str) -> String {
    format!("{:016x}", fnv1a(state.bytes()))
}

/// FNV-1a, a hash that must never change: its values are part of names and of the state.
pub fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The commit of an attempt, from a name that begins with the attempt's name.
pub fn attempt_commit(name: &str) -> Option<u64> {
    let (commit, _) = name.split_once('-')?;
    let digits = commit.len() == 20 && commit.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| commit.parse().ok())?
}

/// Whether a base name is a leftover of a crash on a local disk: `<name>#1`, the name under which
/// object_store's `LocalFileSystem` writes a file before renaming it. Its listings skip such files.
pub fn is_leftover(base_name: &str) -> bool {
    base_name.rsplit_once('#').is_some_and(|(name, number)| {
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        !name.is_empty() && !number.is_empty() && digits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_file_is_known_by_its_name() {
        for (commit, number, name) in [
            (12, 3, "part-c00000012-00003.snappy.parquet"),
            (0, 0, "part-c00000000-00000.snappy.parquet"),
            (123_456_789, 123_456, "part-c123456789-123456.snappy.parquet"),
        ] {
            assert_eq!(part_file_name(commit, number), name);
            assert_eq!(part_file_commit(name), Some(commit), "{name}");
            assert_eq!(part_file_commit(&format!("{name}#1")), None, "{name}");
        }
        for name in ["part-00000.snappy.parquet", "part-c12-3.snappy.parquet"] {
            assert_eq!(part_file_commit(name), None, "{name}");
        }
    }

    #[test]
    fn a_file_of_deletion_vectors_is_known_by_its_name() {
        for (commit, number) in [(0, 0), (12, 3), (123_456_789, 4_095)] {
            let name = deletion_vector_name(commit, number);
            assert_eq!(own_file_commit(&name), Some(commit), "{name}");
            assert_eq!(own_file_commit(&format!("_{name}")), Some(commit), "{name}");
        }
        assert_eq!(own_file_commit("part-c00000012-00003.snappy.parquet"), Some(12));
        for name in [
            "deletion_vector_61d16c75-6994-46b7-a15b-8b538852e50e.bin",
            "deletion_vector_00000000-000c-7003-a76c-75656c657373.bin",
            "deletion_vector_00000000-000c-8003-a76c-75656c657373",
            "deletion_vector_00000000000c8003a76c75656c657373.bin",
        ] {
            assert_eq!(own_file_commit(name), None, "{name}");
        }
    }

    #[test]
    fn files_of_others_are_not_ours() {
        for name in [
            "",
            OWNER_MARKER,
            "part-.snappy.parquet",
            "part-0000.snappy.parquet",
            "part-000000.snappy.parquet",
            "part-+0001.snappy.parquet",
            "part-00000.parquet",
            "part-00000.snappy.parquet.crc",
            "part-00000-3b1c.c000.snappy.parquet",
            "part-c00000012.snappy.parquet",
            "part-c0000012-00003.snappy.parquet",
            "part-c00000012-3.snappy.parquet",
            "part-c000000012-00003.snappy.parquet",
            "part-c99999999999999999999-00003.snappy.parquet",
            "Part-00000.snappy.parquet",
            "xpart-00000.snappy.parquet",
            "d/part-00000.snappy.parquet",
        ] {
            assert_eq!(part_file_commit(name), None, "{name}");
        }
    }

    #[test]
    fn a_leftover_ends_in_a_hash_and_a_number() {
        for name in [
            "part-00000.snappy.parquet#1",
            "part-00000.snappy.parquet#12",
            "_glueless.json#1",
            "a#b#1",
        ] {
            assert!(is_leftover(name), "{name}");
        }
        for name in ["", "#1", "a#", "a#x", "a#1x", "a", "a#1.parquet", "a%231", "a#+1"] {
            assert!(!is_leftover(name), "{name}");
        }
    }
}
