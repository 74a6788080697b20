//! Object names: the only module that formats or parses them.
//!
//! There are three kinds of names, each read and written only here:
//!
//! - **raw**: the times in the names of CDC files ([`cdc_file_time`]) and in date folders
//!   ([`folder_span`], [`folder_may_hold`]), written by AWS DMS and similar tools;
//! - **partitions**: `column=value` folders, escaped as Hive escapes them ([`partition_segment`]);
//! - **published**: the names of the files that glueless writes ([`part_file_name`]) and of the
//!   owner marker.
//!
//! Paths are relative and separated by `/`, without a leading or trailing one.

mod date_folders;
mod hive;
mod own_names;

pub use date_folders::{cdc_file_time, folder_may_hold, folder_span};
pub use hive::{is_hidden, parse_partition_segment, partition_segment, partition_values};
pub use own_names::{
    OWNER_MARKER, aggregate_run_id, attempt_commit, attempt_name, fnv1a, is_leftover,
    part_file_commit, part_file_name, run_id_of_aggregate, staging_name,
};

/// The order of files, which is part of the order of changes: base name, path, location. No two
/// files are equal in it.
pub fn file_order(location: usize, path: &str) -> (&str, &str, usize) {
    (base_name(path), path, location)
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
