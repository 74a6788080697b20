//! Object names: the only module that formats or parses them.
//!
//! There are three kinds of names, each read and written only here:
//!
//! - **raw**: the times in the names of CDC files ([`cdc_file_time`]) and in date folders
//!   ([`folder_span`], [`folder_may_hold`]), written by AWS DMS and similar tools, and the ranges
//!   of names that a listing reads ([`cdc_names`]);
//! - **partitions**: `column=value` folders, escaped as Hive escapes them ([`partition_segment`]);
//! - **published**: the names of the files that glueless writes ([`part_file_name`],
//!   [`deletion_vector_name`]) and of the owner marker.
//!
//! Paths are relative and separated by `/`, without a leading or trailing one.

mod date_folders;
mod hive;
mod load_names;
mod name_ranges;
mod own_names;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

pub use date_folders::{
    cdc_file_time, folder_may_hold, folder_span, folders_before_dates, is_transaction_file,
};
#[cfg(feature = "glue")]
pub(crate) use hive::DEFAULT_PARTITION;
pub use hive::{
    escape_name, is_hidden, parse_partition_segment, partition_segment, partition_values,
};
pub use load_names::load_time;
pub use name_ranges::{CdcNames, cdc_names, date_folder_names};
pub use own_names::{
    OWNER_MARKER, aggregate_run_id, attempt_commit, attempt_name, before_probes,
    deletion_vector_name, fnv1a, is_leftover, is_probe, own_file_commit,
    parse_deletion_vector_name, part_file_commit, part_file_name, probe_name, run_id_of_aggregate,
    staging_name,
};

/// The order of files, which is part of the order of changes. No two files are equal in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOrder {
    /// By base name, path, location.
    Name,
    /// By the time in the name, else that of the folder ([`file_time`]), files without a time first;
    /// then by path and location.
    Time(Tz),
}

impl FileOrder {
    /// What files, given by location and path, are compared by.
    fn key(self, (location, path): (usize, &str)) -> (Option<DateTime<Utc>>, &str, &str, usize) {
        match self {
            FileOrder::Name => (None, base_name(path), path, location),
            FileOrder::Time(zone) => (file_time(path, zone), path, path, location),
        }
    }

    /// Whether a file comes after another, or is the same.
    pub fn is_from(self, file: (usize, &str), other: (usize, &str)) -> bool {
        self.key(file) >= self.key(other)
    }

    /// Sorts items by their files.
    pub fn sort<T>(self, items: &mut [T], file: impl Fn(&T) -> (usize, &str)) {
        match self {
            FileOrder::Name => items.sort_by(|a, b| self.key(file(a)).cmp(&self.key(file(b)))),
            // The time of a path is found once.
            FileOrder::Time(_) => items.sort_by_cached_key(|item| {
                let (time, _, path, location) = self.key(file(item));
                (time, path.to_string(), location)
            }),
        }
    }
}

/// The time of a file by its path: that in its name, else the start of its folder's; `None` if
/// neither has one. Local times are of `zone`.
pub fn file_time(path: &str, zone: Tz) -> Option<DateTime<Utc>> {
    let of_folder = || folder_span(parent(path), zone).map(|span| span.start);
    cdc_file_time(base_name(path), zone).or_else(of_folder)
}

/// The last segment of a path: the file name.
pub fn base_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// The folder of a path, without a trailing `/`; empty if there is none.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_its_parent_and_its_base_name() {
        for (path, directory, name) in [
            ("a/b/c.parquet", "a/b", "c.parquet"),
            ("a/c.parquet", "a", "c.parquet"),
            ("c.parquet", "", "c.parquet"),
            ("", "", ""),
        ] {
            assert_eq!((parent(path), base_name(path)), (directory, name));
        }
    }
}
