//! A few thousand rows of a table, as texts.
//!
//! They come through the same conversions as those of a run ([`crate::raw::open`]), so that what is found in them is what a run
//! will see. Of CSV and JSON files only the first bytes are fetched.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::StreamExt;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use tokio::sync::Semaphore;

use crate::config::Raw;
use crate::engine::resources::Resources;
use crate::engine::session::BATCH_ROWS;
use crate::error::{Error, Kind, Result};
use crate::layout::{base_name, cdc_file_time, fnv1a};
use crate::parquet_io::open::ParquetFile;
use crate::raw::bad_rows::BadRows;
use crate::raw::columns::UsedColumns;
use crate::raw::csv::decompressed;
use crate::raw::discover::{Input, RawFile};
use crate::raw::open::{Opened, Opening};
use crate::store::{Folder, parse_path};
use crate::survey::AT_ONCE;
use crate::survey::tables::Sampled;

/// The most rows of a file that are looked at, and the most values.
const ROWS_MAX: usize = 5_000;
const VALUES_MAX: usize = 200_000;
/// Longer texts are told apart by their begin and a hash.
const TEXT_MAX: usize = 64;
/// The size from which on files are read one at a time.
const LARGE_BYTES: u64 = 32 << 20;
/// The bytes of a CSV or JSON file that are fetched.
const HEAD_BYTES: u64 = 256 << 10;
/// The most that these become when they are decompressed.
const HEAD_BYTES_MAX: u64 = 4 << 20;
/// The most bad rows of a sample.
const BAD_ROWS_MAX: u64 = 100_000;

/// What a sample is read with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading<'a> {
    /// The folder that was listed.
    pub(crate) folder: &'a Folder,
    pub(crate) resources: &'a Resources,
    pub(crate) runtime: &'a Arc<RuntimeEnv>,
    /// Large files take all of them, so that one at a time is read.
    pub(crate) permits: &'a Arc<Semaphore>,
}

/// The first bytes of a text file.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) text: Bytes,
    /// Whether that is all of it.
    pub(super) is_whole: bool,
}

/// A column of a sample, in all files.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// Its type in the first file that has it.
    pub(crate) data_type: DataType,
    /// Its other types.
    pub(crate) other_types: Vec<DataType>,
    /// Its value in each row; `None` for null, and where a file does not have it.
    pub(crate) values: Vec<Option<String>>,
    /// Its least and greatest values, as the footers of files say.
    pub(crate) extremes: Vec<String>,
}

/// A file of a sample.
#[derive(Clone, Debug)]
pub(crate) struct SampledFile {
    pub(crate) path: String,
    pub(crate) is_load: bool,
    /// The time in its name.
    pub(crate) time: Option<DateTime<Utc>>,
    /// Its rows in the sample.
    pub(crate) rows: Range<usize>,
    /// Whether these are all of its rows.
    pub(crate) is_whole: bool,
}

/// Rows of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) columns: Vec<Column>,
    /// The files, in the order of files, loads first.
    pub(crate) files: Vec<SampledFile>,
    /// Files that cannot be read, and why.
    pub(crate) unreadable: Vec<String>,
    /// How many rows could not be read, and why one of them could not.
    pub(crate) bad_rows: u64,
    pub(crate) why_bad: String,
}

impl Sample {
    /// The number of its rows.
    pub(crate) fn rows(&self) -> usize {
        self.files.last().map_or(0, |file| file.rows.end)
    }

    /// A column by its name in any case.
    pub(crate) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// The files of changes.
    pub(crate) fn changes(&self) -> impl Iterator<Item = &SampledFile> {
        self.files.iter().filter(|file| !file.is_load)
    }

    fn add(&mut self, file: SampledFile, columns: Vec<Column>) {
        let before = file.rows.start;
        for column in columns {
            let known =
                self.columns.iter_mut().find(|known| known.name.eq_ignore_ascii_case(&column.name));
            match known {
                Some(known) => {
                    let is_new = known.data_type != column.data_type
                        && column.data_type != DataType::Null
                        && !known.other_types.contains(&column.data_type);
                    if is_new && known.data_type == DataType::Null {
                        known.data_type = column.data_type;
                    } else if is_new {
                        known.other_types.push(column.data_type);
                    }
                    known.values.resize(before, None);
                    known.values.extend(column.values);
                    known.extremes.extend(column.extremes);
                }
                None => {
                    let mut values = vec![None; before];
                    values.extend(column.values);
                    self.columns.push(Column { values, ..column });
                }
            }
        }
        for column in &mut self.columns {
            column.values.resize(file.rows.end, None);
        }
        self.files.push(file);
    }
}

impl Reading<'_> {
    /// The first bytes of a CSV or JSON file, decompressed, up to the end of a line; `None` if that cannot be done.
    ///
    /// # Errors
    /// Storage, when it cannot be fetched.
    pub(super) async fn head(&self, sampled: &Sampled) -> Result<Option<Head>> {
        let end = sampled.object.size.min(HEAD_BYTES);
        let name = || format!("read {}", self.folder.describe(&sampled.path));
        let fetched = self.folder.store.get_range(&parse_path(&sampled.path)?, 0..end).await;
        let fetched = fetched.map_err(|error| Error::store(name(), error))?;
        let mut text = Vec::new();
        let whole = decompressed(&sampled.path, fetched.as_ref())?
            .take(HEAD_BYTES_MAX)
            .read_to_end(&mut text);
        let is_whole =
            whole.is_ok() && end == sampled.object.size && (text.len() as u64) < HEAD_BYTES_MAX;
        if !is_whole {
            let lines = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            text.truncate(lines);
        }
        Ok((!text.is_empty()).then(|| Head { text: text.into(), is_whole }))
    }

    /// Opens a Parquet file.
    ///
    /// # Errors
    /// As [`ParquetFile::open`].
    pub(super) async fn parquet(&self, sampled: &Sampled) -> Result<ParquetFile> {
        let (store, path) = (Arc::clone(&self.folder.store), parse_path(&sampled.path)?);
        let name = self.folder.describe(&sampled.path);
        ParquetFile::open(store, path, sampled.object.size, name).await
    }

    /// Reads rows of files, each a full load or not, in the order of files. Of text files, these are the heads.
    ///
    /// # Errors
    /// Storage, when a file cannot be fetched; usage, when the settings fit no file.
    pub(super) async fn sample(
        &self,
        raw: &Raw,
        files: &[(&Sampled, bool)],
        heads: &[Option<Head>],
    ) -> Result<Sample> {
        let is_large =
            heads.is_empty() && files.iter().any(|(file, _)| file.object.size > LARGE_BYTES);
        let permits = if is_large { AT_ONCE as u32 } else { 1 };
        let _permits = self.permits.acquire_many(permits).await;
        let memory = Arc::new(InMemory::new());
        let mut inputs = Vec::new();
        for (number, (sampled, full_load)) in files.iter().enumerate() {
            let mut file = RawFile::new(0, sampled.path.clone(), sampled.object.clone());
            match heads.get(number) {
                None => {}
                Some(None) => continue,
                Some(Some(head)) => {
                    // It is not compressed any more, and two files can differ in that alone.
                    let lower = file.path.to_ascii_lowercase();
                    let end = [".gz", ".zst"].into_iter().find(|end| lower.ends_with(end));
                    let plain = &file.path[..file.path.len() - end.map_or(0, str::len)];
                    file.path = format!("{number}/{plain}");
                    file.size = head.text.len() as u64;
                    let path = parse_path(&file.path)?;
                    let put = memory.put(&path, head.text.clone().into()).await;
                    put.map_err(|error| Error::store(format!("read {}", file.path), error))?;
                }
            }
            inputs.push(Input { file, full_load: *full_load, late: false, rows: None, only: None });
        }
        let mut folder = self.folder.clone();
        if !heads.is_empty() {
            folder.store = memory as Arc<dyn ObjectStore>;
        }
        let bad_rows = Arc::new(BadRows::new(BAD_ROWS_MAX));
        let opening = Opening::new(
            std::slice::from_ref(&folder),
            raw,
            self.resources,
            self.runtime,
            &bad_rows,
        );
        let opened = opening.open(inputs, &[], &UsedColumns::default()).await?;
        let mut sample = Sample::default();
        sample.unreadable.extend(opened.bad.iter().map(|(_, error)| error.to_string()));
        for one in &opened.opened {
            let number = one.input.file.path.split('/').next().and_then(|text| text.parse().ok());
            let head = number.and_then(|number: usize| heads.get(number)?.as_ref());
            let was_cut = head.is_some_and(|head| !head.is_whole);
            match self.rows(one, sample.rows(), was_cut).await {
                Ok((file, columns)) => sample.add(file, columns),
                Err(error) if error.kind == Kind::Data => {
                    sample.unreadable.push(error.to_string());
                }
                Err(error) => return Err(error),
            }
            sample.bad_rows += one.bad_rows.len() as u64;
            if let Some(bad) = one.bad_rows.first().filter(|_| sample.why_bad.is_empty()) {
                sample.why_bad = match &bad.column {
                    Some(column) => format!("whose `{column}` {}", bad.reason),
                    None => bad.reason.clone(),
                };
            }
        }
        Ok(sample)
    }

    /// The rows of a file, the first of which gets this number, and their columns.
    async fn rows(
        &self,
        opened: &Opened,
        first: usize,
        was_cut: bool,
    ) -> Result<(SampledFile, Vec<Column>)> {
        let file = &opened.file;
        let fields = &file.schema().fields()[..file.schema().fields().len() - 1];
        let mut columns: Vec<Column> = fields
            .iter()
            .map(|field| Column {
                name: field.name().clone(),
                data_type: field.data_type().clone(),
                other_types: Vec::new(),
                values: Vec::new(),
                extremes: extremes(file, field.name(), field.data_type()),
            })
            .collect();
        let numbers: Vec<usize> = (0..fields.len()).collect();
        let rows_max = (VALUES_MAX / fields.len().max(1)).clamp(1, ROWS_MAX);
        let mut batches = file.read(&numbers, BATCH_ROWS.min(rows_max));
        let is_left_out = |row: u64| {
            opened.bad_rows.iter().any(|bad| bad.row == row)
                || opened.ignored.binary_search(&row).is_ok()
        };
        let (mut read, mut kept) = (0, 0);
        // A file without columns has no rows to look at.
        while !numbers.is_empty()
            && read < rows_max
            && let Some(batch) = batches.next().await
        {
            let batch = batch?;
            let rows = batch.num_rows().min(rows_max - read);
            let wanted: Vec<usize> =
                (0..rows).filter(|row| !is_left_out((read + row) as u64)).collect();
            for (column, array) in columns.iter_mut().zip(batch.columns()) {
                add_texts(array, &wanted, &mut column.values)?;
            }
            kept += wanted.len();
            read += rows;
        }
        let path = opened.input.file.path.clone();
        let sampled = SampledFile {
            time: cdc_file_time(base_name(&path), chrono_tz::UTC),
            path,
            is_load: opened.input.full_load,
            rows: first..first + kept,
            is_whole: !was_cut && read as u64 == file.row_count(),
        };
        Ok((sampled, columns))
    }
}

/// Adds the values of some rows as texts; those of lists, structs and bytes are not looked at.
fn add_texts(array: &ArrayRef, rows: &[usize], texts: &mut Vec<Option<String>>) -> Result<()> {
    if has_no_text(array.data_type()) {
        texts.extend(rows.iter().map(|row| array.is_valid(*row).then(String::new)));
        return Ok(());
    }
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(array.as_ref(), &options)?;
    for row in rows {
        let is_null = array.is_null(*row) || *array.data_type() == DataType::Null;
        texts.push((!is_null).then(|| short(formatter.value(*row).to_string())));
    }
    Ok(())
}

/// A text, or the begin of a long one and its hash.
fn short(text: String) -> String {
    if text.len() <= TEXT_MAX {
        return text;
    }
    let hash = fnv1a(text.bytes());
    let begin: String = text.chars().take(TEXT_MAX / 4).collect();
    format!("{begin}{hash:016x}")
}

/// Whether values of a type are not looked at.
pub(super) fn has_no_text(data_type: &DataType) -> bool {
    use DataType::{Binary, BinaryView, FixedSizeBinary, LargeBinary};
    data_type.is_nested()
        || matches!(data_type, Binary | BinaryView | LargeBinary | FixedSizeBinary(_))
}

/// The least and greatest value of a column that can be a time, as the footer says.
fn extremes(file: &ParquetFile, name: &str, data_type: &DataType) -> Vec<String> {
    let may_be_time = data_type.is_temporal() || data_type.is_string();
    let Some(metadata) = file.decoded_metadata().filter(|_| may_be_time) else { return Vec::new() };
    let schema = metadata.file_metadata().schema_descr();
    let Ok(converter) = StatisticsConverter::try_new(name, file.schema(), schema) else {
        return Vec::new();
    };
    let groups = metadata.row_groups();
    let (least, greatest) = (converter.row_group_mins(groups), converter.row_group_maxes(groups));
    let mut texts = Vec::new();
    for array in [least, greatest].into_iter().flatten() {
        let rows: Vec<usize> = (0..array.len()).collect();
        // What cannot be shown is not known.
        let _ = add_texts(&array, &rows, &mut texts);
    }
    texts.into_iter().flatten().collect()
}
