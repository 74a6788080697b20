//! Deletion vectors of Delta tables: the rows that readers leave out of a file, so that a row is
//! deleted without writing its file again.
//!
//! ```text
//! file of vectors:  1 (a byte), vector, vector, …
//! vector:           size (u32, big endian), magic (u32, little endian), bitmap, CRC-32 (u32, big endian)
//! ```
//!
//! Small vectors are in the log itself, in Z85, magic and bitmap alone: readers need no file for them.
//! glueless has them in a file too, whose hidden name readers and `VACUUM` ignore, because its ledger
//! would become large with them.
//!
//! The size and the checksum are those of magic and bitmap, and the bitmap is a 64-bit Roaring bitmap
//! of row ordinals, from 0, in its portable format
//! (<https://github.com/delta-io/delta/blob/master/PROTOCOL.md#deletion-vector-format>).

use arrow::array::BooleanBufferBuilder;
use arrow::buffer::BooleanBuffer;
use bytes::Bytes;
use deltalake::kernel::{DeletionVectorDescriptor, StorageType};
use flate2::Crc;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout::parse_deletion_vector_name;
use crate::store::{Folder, parse_path};

/// The first byte of a file of vectors: the version of the format.
const VERSION: u8 = 1;
/// The first bytes of a vector's data.
const MAGIC: [u8; 4] = 1_681_511_377_u32.to_le_bytes();

/// The size of magic and bitmap up to which a vector is in the log.
const INLINE_BYTES_MAX: u32 = 4096;

/// The deletion vector of a published file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionVector {
    /// The path of the file of vectors, relative to the table's URL.
    pub path: String,
    /// The size of the file of vectors, in bytes.
    pub file_bytes: u64,
    /// The offset of the vector in it, in bytes.
    pub offset: u32,
    /// The size of magic and bitmap, in bytes.
    pub bytes: u32,
    /// The CRC-32 of magic and bitmap.
    pub checksum: u32,
    /// The number of rows that it deletes.
    pub rows: u64,
    /// The path in staging of the file of vectors, until the commit that wrote it is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<String>,
}

impl DeletionVector {
    /// Whether a published vector is in the log, and its file is hidden.
    pub(crate) fn is_inline(&self) -> bool {
        self.path.starts_with('_')
    }

    /// Whether a vector that is to be published is small enough for the log.
    pub(crate) fn fits_inline(&self) -> bool {
        self.bytes <= INLINE_BYTES_MAX
    }

    /// The vector as a Delta log describes it. `file` is the content of the file of vectors, which is needed
    /// for one that is in the log.
    ///
    /// # Errors
    /// Data, when the file does not have the vector; internal, when its name is of another kind.
    pub(crate) fn descriptor(&self, file: &[u8]) -> Result<DeletionVectorDescriptor> {
        let wrong = || Error::internal(format!("`{}` is no file of deletion vectors", self.path));
        let (storage_type, path_or_inline_dv, offset) = if self.is_inline() {
            let start = self.offset as usize + 4;
            let mut data =
                file.get(start..start + self.bytes as usize).unwrap_or_default().to_vec();
            if crc_of(&data) != self.checksum {
                return Err(self.changed(&self.path));
            }
            // Z85 encodes four bytes at a time; readers stop at the end of the bitmap.
            data.resize(data.len().next_multiple_of(4), 0);
            (StorageType::Inline, z85::encode(&data), None)
        } else {
            let uuid = parse_deletion_vector_name(&self.path).ok_or_else(wrong)?;
            let offset = i32::try_from(self.offset).map_err(|_| wrong())?;
            (StorageType::UuidRelativePath, z85::encode(uuid.as_bytes()), Some(offset))
        };
        Ok(DeletionVectorDescriptor {
            storage_type,
            path_or_inline_dv,
            offset,
            size_in_bytes: i32::try_from(self.bytes).map_err(|_| wrong())?,
            cardinality: self.rows as i64,
        })
    }

    /// Whether a Delta log describes this vector.
    pub(crate) fn is_described_by(&self, found: &DeletionVectorDescriptor) -> bool {
        if !self.is_inline() {
            return self.descriptor(&[]).is_ok_and(|descriptor| descriptor == *found);
        }
        let data = z85::decode(&found.path_or_inline_dv).unwrap_or_default();
        found.storage_type == StorageType::Inline
            && found.size_in_bytes as u32 == self.bytes
            && found.cardinality as u64 == self.rows
            && data.get(..self.bytes as usize).is_some_and(|data| crc_of(data) == self.checksum)
    }

    fn changed(&self, name: &str) -> Error {
        Error::data(format!("{name} is not the file that was published")).hint(
            "restore it from a backup or an earlier version of the object; without it the table must \
             be made again from all of its raw files: glueless rebuild",
        )
    }

    /// Reads the vector of a file of `rows` rows in a table's folder: a bit per row, set for deleted
    /// ones.
    ///
    /// # Errors
    /// Data, when it is missing or not what was published; storage, when it cannot be read.
    pub(crate) async fn read_in(&self, table: &Folder, rows: u64) -> Result<BooleanBuffer> {
        let path = parse_path(&self.path)?;
        self.read(&table.store, &path, &table.describe(&self.path), rows).await
    }

    /// As [`DeletionVector::read_in`], from a path in a store; `name` is for messages.
    ///
    /// # Errors
    /// As [`DeletionVector::read_in`].
    pub(crate) async fn read(
        &self,
        store: &dyn ObjectStore,
        path: &Path,
        name: &str,
        rows: u64,
    ) -> Result<BooleanBuffer> {
        let changed = || self.changed(name);
        // With the version of the file, if this is its first vector.
        let start = if self.offset == 1 { 0 } else { u64::from(self.offset) };
        let end = u64::from(self.offset) + 8 + u64::from(self.bytes);
        let found = match store.get_range(path, start..end).await {
            Ok(found) => found,
            Err(error @ object_store::Error::NotFound { .. }) => {
                return Err(changed().caused_by(error));
            }
            // A range that the object does not have fails in many ways.
            Err(error) => match store.head(path).await {
                Ok(meta) if meta.size != self.file_bytes => return Err(changed().caused_by(error)),
                _ => return Err(Error::store(format!("read {name}"), error)),
            },
        };
        let vector = if start == 0 { found.strip_prefix(&[VERSION]) } else { Some(&found[..]) };
        let deleted = vector.and_then(|bytes| self.decode(bytes)).ok_or_else(changed)?;
        let mut bits = BooleanBufferBuilder::new(rows as usize);
        bits.append_n(rows as usize, false);
        for row in &deleted {
            if row >= rows {
                return Err(changed());
            }
            bits.set_bit(row as usize, true);
        }
        Ok(bits.finish())
    }

    /// The deleted rows; `None` if the bytes are not this vector.
    fn decode(&self, bytes: &[u8]) -> Option<RoaringTreemap> {
        let (size, rest) = bytes.split_at_checked(4)?;
        let (data, checksum) = rest.split_at_checked(self.bytes as usize)?;
        let is_whole = *size == self.bytes.to_be_bytes()
            && *checksum == self.checksum.to_be_bytes()
            && crc_of(data) == self.checksum;
        let bitmap = data.strip_prefix(&MAGIC).filter(|_| is_whole)?;
        let deleted = RoaringTreemap::deserialize_from(bitmap).ok()?;
        (deleted.len() == self.rows).then_some(deleted)
    }
}

fn crc_of(data: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(data);
    crc.sum()
}

/// A vector that is not in a file yet.
#[derive(Debug)]
pub(crate) struct NewVector {
    /// Its bytes in a file of vectors.
    data: Vec<u8>,
    checksum: u32,
    rows: u64,
}

impl NewVector {
    /// The vector of deleted rows, given as a bit per row of a file.
    ///
    /// # Errors
    /// Internal, when it is too large.
    pub(crate) fn new(deleted: &BooleanBuffer) -> Result<Self> {
        let too_large = || Error::internal("a deletion vector is too large");
        let rows = RoaringTreemap::from_sorted_iter(deleted.set_indices().map(|row| row as u64));
        let rows = rows.map_err(|error| too_large().caused_by(error))?;
        let mut data = vec![0; 4];
        data.extend(MAGIC);
        rows.serialize_into(&mut data).map_err(|error| too_large().caused_by(error))?;
        let size = i32::try_from(data.len() - 4).map_err(|_| too_large())?;
        data[..4].copy_from_slice(&size.to_be_bytes());
        let checksum = crc_of(&data[4..]);
        data.extend(checksum.to_be_bytes());
        Ok(NewVector { data, checksum, rows: rows.len() })
    }

    /// As [`DeletionVector::fits_inline`].
    pub(crate) fn fits_inline(&self) -> bool {
        self.data.len() - 8 <= INLINE_BYTES_MAX as usize
    }

    /// The number of rows that it deletes.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Its size in a file, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.data.len()
    }
}

/// A file of vectors that is being made, in memory.
#[derive(Debug)]
pub(crate) struct VectorsFile {
    staged: String,
    data: Vec<u8>,
}

impl VectorsFile {
    /// A file without vectors, to be written to this path in staging.
    pub(crate) fn new(staged: String) -> Self {
        VectorsFile { staged, data: vec![VERSION] }
    }

    /// Adds a vector. Its path and the size of the file are not known yet.
    pub(crate) fn add(&mut self, vector: &NewVector) -> DeletionVector {
        let offset = self.data.len() as u32;
        self.data.extend(&vector.data);
        DeletionVector {
            path: String::new(),
            file_bytes: 0,
            offset,
            bytes: (vector.data.len() - 8) as u32,
            checksum: vector.checksum,
            rows: vector.rows,
            staged: Some(self.staged.clone()),
        }
    }

    /// Its size so far, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.data.len() as u64
    }

    /// Its path in staging.
    pub(crate) fn staged(&self) -> &str {
        &self.staged
    }

    /// Its bytes.
    pub(crate) fn into_bytes(self) -> Bytes {
        self.data.into()
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::error::Kind;
    use crate::layout::deletion_vector_name;

    fn bits(rows: &[usize], count: usize) -> BooleanBuffer {
        BooleanBuffer::collect_bool(count, |row| rows.contains(&row))
    }

    /// The file that the format's documentation and other writers give for the same rows.
    #[test]
    fn a_vector_has_the_bytes_of_the_format() {
        let mut file = VectorsFile::new("s".into());
        let vector = NewVector::new(&bits(&[0, 9], 10)).expect("a vector");
        let added = file.add(&vector);
        assert_eq!((added.offset, added.rows), (1, 2));
        let data = file.into_bytes();
        #[rustfmt::skip]
        let expected = [
            1,
            0, 0, 0, 36, 0xd1, 0xd3, 0x39, 0x64,
            1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0x3a, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 16, 0, 0, 0, 0, 0, 9, 0,
        ];
        assert_eq!(data[..expected.len()], expected);
        assert_eq!(data.len(), expected.len() + 4);
    }

    #[tokio::test]
    async fn a_vector_is_read_and_a_damaged_one_refused() {
        let store = InMemory::new();
        let path = Path::from("vectors");
        let mut file = VectorsFile::new("s".into());
        let all: Vec<BooleanBuffer> =
            vec![bits(&[3], 5), bits(&[], 4), BooleanBuffer::new_set(70_000), bits(&[0, 6], 7)];
        let added: Vec<DeletionVector> =
            all.iter().map(|rows| file.add(&NewVector::new(rows).expect("a vector"))).collect();
        let data = file.into_bytes();
        store.put(&path, data.clone().into()).await.expect("written");
        for (vector, rows) in added.iter().zip(&all) {
            let read = vector.read(&store, &path, "vectors", rows.len() as u64).await;
            assert_eq!(read.expect("read"), *rows);
        }
        let refused = |result: Result<BooleanBuffer>| {
            let error = result.expect_err("refused");
            assert_eq!(error.kind, Kind::Data, "{error}");
        };
        let last = &added[3];
        refused(last.read(&store, &path, "vectors", 6).await);
        refused(last.read(&store, &Path::from("other"), "other", 7).await);
        let other = DeletionVector { rows: 1, ..last.clone() };
        refused(other.read(&store, &path, "vectors", 7).await);
        for at in last.offset as usize..data.len() {
            let mut damaged = data.to_vec();
            damaged[at] ^= 1;
            store.put(&path, damaged.into()).await.expect("written");
            refused(last.read(&store, &path, "vectors", 7).await);
        }
        let first = DeletionVector { file_bytes: data.len() as u64, ..added[0].clone() };
        let mut other_version = data.to_vec();
        other_version[0] = 2;
        for damaged in [other_version, Vec::new(), data[..20].to_vec()] {
            store.put(&path, damaged.into()).await.expect("written");
            refused(first.read(&store, &path, "vectors", 5).await);
        }
    }

    #[test]
    fn a_large_vector_is_described_by_its_file() {
        let mut file = VectorsFile::new("s".into());
        let rows = BooleanBuffer::collect_bool(70_000, |row| row % 7 == 0);
        let mut vector = file.add(&NewVector::new(&rows).expect("a vector"));
        assert!(!vector.fits_inline());
        assert!(vector.descriptor(&[]).is_err());
        vector.path = deletion_vector_name(12, 3);
        let descriptor = vector.descriptor(&[]).expect("a descriptor");
        assert_eq!(descriptor.path_or_inline_dv.len(), 20);
        let uuid = z85::decode(&descriptor.path_or_inline_dv).expect("decoded");
        let uuid = uuid::Uuid::from_slice(&uuid).expect("a uuid");
        assert_eq!(format!("deletion_vector_{uuid}.bin"), vector.path);
        assert_eq!((descriptor.offset, descriptor.cardinality), (Some(1), 10_000));
        assert!(vector.is_described_by(&descriptor));
        let other = DeletionVectorDescriptor { offset: Some(2), ..descriptor };
        assert!(!vector.is_described_by(&other));
    }

    #[test]
    fn a_small_vector_is_described_by_its_bitmap() {
        let mut file = VectorsFile::new("s".into());
        file.add(&NewVector::new(&bits(&[1], 10)).expect("a vector"));
        let mut vector = file.add(&NewVector::new(&bits(&[0, 2, 9], 10)).expect("a vector"));
        assert!(vector.fits_inline());
        vector.path = format!("_{}", deletion_vector_name(12, 3));
        let data = file.into_bytes();
        let descriptor = vector.descriptor(&data).expect("a descriptor");
        assert_eq!((descriptor.storage_type, descriptor.offset), (StorageType::Inline, None));
        let bitmap = z85::decode(&descriptor.path_or_inline_dv).expect("decoded");
        assert_eq!(bitmap[..4], MAGIC);
        let rows = RoaringTreemap::deserialize_from(&bitmap[4..]).expect("a bitmap");
        assert_eq!(rows.iter().collect::<Vec<_>>(), [0, 2, 9]);
        assert_eq!((descriptor.size_in_bytes, descriptor.cardinality), (38, 3));
        assert!(vector.is_described_by(&descriptor));
        let others = [
            DeletionVectorDescriptor { cardinality: 2, ..descriptor.clone() },
            DeletionVectorDescriptor { size_in_bytes: 36, ..descriptor.clone() },
            DeletionVectorDescriptor { path_or_inline_dv: "0rJua".into(), ..descriptor },
        ];
        assert!(!others.iter().any(|other| vector.is_described_by(other)));
        assert!(vector.descriptor(&data[1..]).is_err());
    }
}
