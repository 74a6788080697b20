//! The plan: which files of a table a commit adds and removes.

use std::collections::{BTreeMap, BTreeSet};

use crate::layout::{deletion_vector_name, parent, part_file_name};
use crate::table::TableFile;
use crate::table::deletion_vector::DeletionVector;
use crate::table::writer::{KeptFile, StagedFile};

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
    /// Bytes written, deletion vectors included.
    pub bytes_written: u64,
    /// Partitions written.
    pub partitions_written: u64,
    /// Partitions that are left without rows.
    pub partitions_removed: u64,
    /// Rows that the replaced files had before, and rows that were deleted from files that stay.
    pub rows_removed: u64,
}

/// The files of written partitions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartitionFiles<'a> {
    /// New files, in staging.
    pub staged: &'a [StagedFile],
    /// Published files that stay.
    pub kept: &'a [KeptFile],
}

/// Plans the replacement of those partitions for whose folder `is_replaced` is true. All staged and
/// kept files belong to these.
pub(crate) fn plan(
    PartitionFiles { staged, kept }: PartitionFiles<'_>,
    before: &[TableFile],
    is_replaced: impl Fn(&str) -> bool,
    commit: u64,
    names: FileNames,
) -> Plan {
    let mut plan = Plan::default();
    let mut by_partition: BTreeMap<&str, Vec<&StagedFile>> = BTreeMap::new();
    for file in staged {
        by_partition.entry(&file.partition).or_default().push(file);
    }
    let kept: BTreeMap<&str, &KeptFile> =
        kept.iter().map(|kept| (kept.path.as_str(), kept)).collect();
    let vectors: BTreeSet<&str> = kept.values().filter_map(|kept| staged_vectors(kept)).collect();
    let mut old: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut partitions_marked = BTreeSet::new();
    for file in before {
        let mut stays = file.published();
        match kept.get(file.path.as_str()) {
            None if is_replaced(parent(&file.path)) => {
                old.entry(parent(&file.path)).or_default().push(&file.path);
                plan.counts.rows_removed += file.live_rows();
                continue;
            }
            None => {}
            Some(kept) => {
                plan.counts.rows_removed += file.live_rows() - kept.rows;
                if let Some(deleted) = &kept.deleted {
                    plan.counts.bytes_written += u64::from(deleted.bytes);
                    let staged = staged_vectors(kept);
                    let number = vectors.iter().position(|one| Some(*one) == staged);
                    let name = deletion_vector_name(commit, number.unwrap_or_default());
                    // Hidden, where the vectors are in the log.
                    let path = if deleted.fits_inline() { format!("_{name}") } else { name };
                    stays.deleted = Some(DeletionVector { path, ..deleted.clone() });
                    partitions_marked.insert(parent(&file.path));
                }
            }
        }
        plan.files.push(stays);
    }
    let partitions = by_partition.keys().copied().chain(partitions_marked);
    plan.counts.partitions_written = partitions.collect::<BTreeSet<&str>>().len() as u64;
    for (partition, files) in &by_partition {
        let replaced = old.get(partition).map_or(&[][..], Vec::as_slice);
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
                deleted: None,
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
    let left: BTreeSet<&str> = plan.files.iter().map(|file| parent(&file.path)).collect();
    let had = before.iter().map(|file| parent(&file.path)).collect::<BTreeSet<&str>>();
    plan.counts.partitions_removed = had.difference(&left).count() as u64;
    plan
}

/// The path in staging of the file of a new deletion vector.
fn staged_vectors(kept: &KeptFile) -> Option<&str> {
    kept.deleted.as_ref()?.staged.as_deref()
}

impl Plan {
    /// The files that the commit adds, whether under a new or an old name, or whose deletion vector is
    /// new.
    pub fn added(&self) -> impl Iterator<Item = &TableFile> {
        self.files.iter().filter(|file| file.to_move().next().is_some())
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

    fn new(staged: &[StagedFile]) -> PartitionFiles<'_> {
        PartitionFiles { staged, kept: &[] }
    }

    fn file(path: &str, rows: u64) -> TableFile {
        TableFile { path: path.into(), rows, bytes: rows * 10, staged: None, deleted: None }
    }

    #[test]
    fn a_partition_of_one_file_keeps_its_name_and_others_carry_the_commit() {
        let plan = plan(
            new(&[staged("d=1", 1), staged("d=2", 2), staged("d=2", 3)]),
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
            new(&[staged("d=1", 1)]),
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

    #[test]
    fn files_that_stay_have_their_deletion_vectors_in_files_of_the_commit() {
        let name = "part-c00000003-00000.snappy.parquet";
        let before: Vec<TableFile> =
            ["d=1", "d=2", "d=3"].map(|folder| file(&format!("{folder}/{name}"), 5)).into();
        let vector = |staged: &str, rows| DeletionVector {
            path: String::new(),
            file_bytes: 9,
            offset: 1,
            bytes: if rows > 1 { 8 } else { 9_000 },
            checksum: 0,
            rows,
            staged: Some(staged.into()),
        };
        let kept = |folder: &str, rows, deleted| KeptFile {
            path: format!("{folder}/{name}"),
            rows,
            deleted,
        };
        let kept = [
            kept("d=1", 4, Some(vector("s/v-1", 1))),
            kept("d=2", 5, None),
            kept("d=3", 3, Some(vector("s/v-0", 2))),
        ];
        let staged = [staged("d=2", 7)];
        let files = PartitionFiles { staged: &staged, kept: &kept };
        let plan = plan(files, &before, |_| true, 7, FileNames::New);
        assert_eq!(plan.removes, [""; 0]);
        let counts = Counts {
            rows_written: 7,
            bytes_written: 9_078,
            partitions_written: 3,
            partitions_removed: 0,
            rows_removed: 3,
        };
        assert_eq!(plan.counts, counts);
        let moved: Vec<(&str, &str)> = plan
            .files
            .iter()
            .flat_map(TableFile::to_move)
            .map(|staged| (staged.from, staged.path))
            .collect();
        let (first, second) = (deletion_vector_name(7, 0), deletion_vector_name(7, 1));
        let first = format!("_{first}");
        let new = "d=2/part-c00000007-00000.snappy.parquet";
        assert_eq!(moved, [("s/v-1", second.as_str()), ("s/7", new), ("s/v-0", first.as_str())]);
    }
}
