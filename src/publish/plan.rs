//! The plan: which files of a table a commit adds and removes.

use std::collections::{BTreeMap, BTreeSet};

use crate::layout::{parent, part_file_name};
use crate::table::TableFile;
use crate::table::writer::StagedFile;

/// How new files of a partition are named that has one file before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileNames {
    /// The new file takes the old name and replaces the old file atomically.
    Reused,
    /// Every file has a new name.
    New,
}

/// The changes to one table.
#[derive(Debug, Default)]
pub struct Plan {
    /// The paths of published files to be removed.
    pub removes: Vec<String>,
    /// The table's files after publishing, sorted by path; the new ones are still in staging.
    pub files: Vec<TableFile>,
    /// How much changes, for the report.
    pub counts: Counts,
}

/// How much a plan changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows written.
    pub rows_written: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Partitions written.
    pub partitions_written: u64,
    /// Partitions that are left without rows.
    pub partitions_removed: u64,
    /// Rows that the replaced partitions had before.
    pub rows_removed: u64,
}

/// Plans the replacement of those partitions for whose folder `is_replaced` is true. All staged
/// files belong to these.
pub(crate) fn plan(
    staged: Vec<StagedFile>,
    before: &[TableFile],
    is_replaced: impl Fn(&str) -> bool,
    commit: u64,
    names: FileNames,
) -> Plan {
    let mut plan = Plan::default();
    let mut by_partition: BTreeMap<String, Vec<StagedFile>> = BTreeMap::new();
    for file in staged {
        by_partition.entry(file.partition.clone()).or_default().push(file);
    }
    let mut old: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in before {
        if is_replaced(parent(&file.path)) {
            old.entry(parent(&file.path)).or_default().push(&file.path);
            plan.counts.rows_removed += file.rows;
        } else {
            plan.files.push(TableFile { staged: None, ..file.clone() });
        }
    }
    plan.counts.partitions_written = by_partition.len() as u64;
    for (partition, files) in &by_partition {
        let replaced = old.get(partition.as_str()).map_or(&[][..], Vec::as_slice);
        for (number, file) in files.iter().enumerate() {
            let name = part_file_name(commit, number);
            let path = match replaced {
                [only] if files.len() == 1 && names == FileNames::Reused => only.to_string(),
                _ if partition.is_empty() => name,
                _ => format!("{partition}/{name}"),
            };
            plan.counts.rows_written += file.rows;
            plan.counts.bytes_written += file.bytes;
            plan.files.push(TableFile {
                path,
                rows: file.rows,
                bytes: file.bytes,
                staged: Some(file.staged.clone()),
            });
        }
    }
    plan.files.sort_by(|a, b| a.path.cmp(&b.path));
    let after: BTreeSet<&str> = plan.files.iter().map(|file| file.path.as_str()).collect();
    plan.removes = before
        .iter()
        .map(|file| file.path.clone())
        .filter(|path| !after.contains(path.as_str()))
        .collect();
    let emptied: BTreeSet<&str> = before
        .iter()
        .map(|file| parent(&file.path))
        .filter(|partition| is_replaced(partition) && !by_partition.contains_key(*partition))
        .collect();
    plan.counts.partitions_removed = emptied.len() as u64;
    plan
}

impl Plan {
    /// The files to be moved from staging, whether under a new or an old name.
    pub fn added(&self) -> impl Iterator<Item = &TableFile> {
        self.files.iter().filter(|file| file.staged.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(partition: &str, rows: u64) -> StagedFile {
        StagedFile {
            partition: partition.into(),
            staged: format!("s/{rows}"),
            rows,
            bytes: rows * 10,
        }
    }

    fn file(path: &str, rows: u64) -> TableFile {
        TableFile { path: path.into(), rows, bytes: rows * 10, staged: None }
    }

    #[test]
    fn a_partition_of_one_file_keeps_its_name_and_others_carry_the_commit() {
        let plan = plan(
            vec![staged("d=1", 1), staged("d=2", 2), staged("d=2", 3)],
            &[file("d=1/part-c00000003-00000.snappy.parquet", 5)],
            |_| true,
            7,
            FileNames::Reused,
        );
        let paths: Vec<&str> = plan.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "d=1/part-c00000003-00000.snappy.parquet",
                "d=2/part-c00000007-00000.snappy.parquet",
                "d=2/part-c00000007-00001.snappy.parquet"
            ]
        );
    }

    #[test]
    fn exactly_the_replaced_partitions_change_and_emptied_ones_are_removed() {
        let before = [
            file("d=1/part-c00000003-00000.snappy.parquet", 5),
            file("d=2/part-c00000003-00000.snappy.parquet", 6),
            file("d=3/part-c00000003-00000.snappy.parquet", 7),
        ];
        let plan = plan(
            vec![staged("d=1", 1)],
            &before,
            |partition| partition != "d=3",
            7,
            FileNames::Reused,
        );
        assert_eq!(plan.removes, ["d=2/part-c00000003-00000.snappy.parquet"]);
        let new = TableFile {
            staged: Some("s/1".into()),
            ..file("d=1/part-c00000003-00000.snappy.parquet", 1)
        };
        assert_eq!(plan.files, [new, before[2].clone()]);
        assert_eq!(
            plan.counts,
            Counts {
                rows_written: 1,
                bytes_written: 10,
                partitions_written: 1,
                partitions_removed: 1,
                rows_removed: 11
            }
        );
    }
}
