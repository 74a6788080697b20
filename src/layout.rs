//! The only place that makes or parses object names.
//!
//! Names come in three kinds, and each is read and written here and nowhere else:
//!
//! - **raw**: the times in the names of CDC files ([`cdc_file_time`]) and in date folders
//!   ([`folder_span`], [`folder_may_hold`]), as AWS DMS and its like write them;
//! - **partitions**: `column=value` folders, escaped as Hive escapes them ([`partition_segment`]);
//! - **published**: the names of our own files ([`part_file_name`]) and of the owner marker.
//!
//! Paths are relative, parted by `/`, without one at either end.

mod date_folders;
mod hive;
mod own_names;

pub use date_folders::{cdc_file_time, folder_may_hold, folder_span};
pub use hive::{is_hidden, parse_partition_segment, partition_segment, partition_values};
pub use own_names::{
    OWNER_MARKER, aggregate_run_id, attempt_commit, attempt_name, fnv1a, is_leftover,
    part_file_commit, part_file_name, run_id_of_aggregate, staging_name,
};

/// The order of files, which is part of the order of changes: base name, path, location. It tells
/// any two files apart.
pub fn file_order(location: usize, path: &str) -> (&str, &str, usize) {
    (base_name(path), path, location)
}

/// The last part of a path: the file's own name.
pub fn base_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// The directory of a path, without a `/` at its end; empty where there is none.
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
