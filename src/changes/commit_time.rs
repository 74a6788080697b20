//! Where the commit time of a change comes from: a column, or the change's file.
//!
//! A file's time is that in its name, else the start of its folder's, else when it was written.

use arrow::datatypes::DataType;
use chrono_tz::Tz;
use parquet::file::statistics::Statistics;

use crate::changes::OpenInput;
use crate::changes::position::TIME_KIND;
use crate::config::Raw;
use crate::error::{Error, Result};
use crate::layout::file_time;
use crate::parquet_io::open::first_leaf;
use crate::raw::discover::RawFile;
use crate::types::times::{instant_ns, is_time_type, parse_time};

/// Where the commit time of a change comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommitTime {
    /// A raw column, by its index; `None` in runs whose inputs, all of them full loads, lack it.
    Column(Option<usize>),
    /// The time of the change's file: of CDC files only, or of full loads too.
    File {
        /// Whether full loads have a commit time.
        full_loads: bool,
    },
}

/// Finds where commit times come from. `columns` are the raw columns, `find` finds one by its name;
/// `orders` are the order columns of earlier runs and their kinds, which do not change.
pub(super) fn commit_time(
    raw: &Raw,
    files: &[OpenInput],
    columns: &[(String, DataType)],
    orders: &[(String, String)],
    find: &dyn Fn(&str) -> Option<usize>,
) -> CommitTime {
    if let Some(name) = &raw.commit_time {
        return CommitTime::Column(find(name));
    }
    let Some(first) = raw.order_by.first() else {
        return CommitTime::File { full_loads: true };
    };
    let known_kind = |column: usize| {
        let mut orders = orders.iter();
        let found = orders.find(|(name, _)| name.eq_ignore_ascii_case(&columns[column].0));
        found.map(|(_, kind)| kind == TIME_KIND)
    };
    let is_time = |column: usize| match &columns[column].1 {
        _ if raw.constants.has(&columns[column].0) => false,
        _ if known_kind(column).is_some() => known_kind(column) == Some(true),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => texts_are_times(files, column),
        number if number.is_integer() => raw.commit_time_unit.is_some(),
        other => is_time_type(other),
    };
    let found: Vec<Option<usize>> = raw.order_by.iter().map(|name| find(name)).collect();
    if let Some(column) = found.iter().flatten().find(|column| is_time(**column)) {
        return CommitTime::Column(Some(*column));
    }
    if found.iter().any(Option::is_none) {
        // A run that reads full loads only: they have no commit time.
        return CommitTime::Column(find(first));
    }
    // Full loads have no commit time here either, whichever files a run reads.
    CommitTime::File { full_loads: false }
}

/// Whether the texts of a column are times, by the statistics of the first file that has some. Without
/// any they are taken for times: each is checked when it is read.
fn texts_are_times(files: &[OpenInput], column: usize) -> bool {
    let in_file = |open: &OpenInput| {
        let metadata = open.file.decoded_metadata()?;
        let leaf = first_leaf(&metadata, open.columns[column]?)?;
        metadata.row_groups().iter().find_map(|group| {
            let Statistics::ByteArray(values) = group.column(leaf).statistics()? else {
                return None;
            };
            let is_time = |bytes: &[u8]| {
                std::str::from_utf8(bytes).is_ok_and(|text| parse_time(text, Tz::UTC).is_some())
            };
            Some(is_time(values.min_opt()?.data()) || is_time(values.max_opt()?.data()))
        })
    };
    let cdc = files.iter().filter(|open| !open.input.full_load);
    let mut all = cdc.chain(files.iter().filter(|open| open.input.full_load));
    all.find_map(in_file).unwrap_or(true)
}

impl CommitTime {
    /// Checks that the column has times.
    ///
    /// # Errors
    /// Data: a number without `raw.commit_time_unit`, or a type that is not a time.
    pub(super) fn check(
        self,
        raw: &Raw,
        files: &[OpenInput],
        columns: &[(String, DataType)],
    ) -> Result<()> {
        let CommitTime::Column(Some(column)) = self else {
            return Ok(());
        };
        let (name, data_type) = &columns[column];
        let of_files = files.iter().filter_map(|open| {
            let found = open.file.schema().field(open.columns[column]?).data_type();
            Some((open, found))
        });
        let number = of_files.clone().find(|(_, found)| found.is_integer());
        let lacks_unit =
            raw.commit_time_unit.is_none() && (data_type.is_integer() || raw.lacks_unit(name));
        if let Some((open, found)) = number.filter(|_| lacks_unit) {
            return Err(Error::data(format!(
                "column `{name}` of {} is {found}: the unit of these commit times is not known",
                open.file.name
            ))
            .hint("set raw.commit_time_unit to \"s\", \"ms\", \"us\" or \"ns\""));
        }
        if raw.commit_time_unit.is_some() && !data_type.is_integer() {
            let file = of_files.clone().next();
            let file = file.map_or("the raw files", |(open, _)| &open.file.name);
            return Err(Error::data(format!(
                "column `{name}` of {file} is {data_type}: `raw.commit_time_unit` is for integers"
            ))
            .hint("leave `raw.commit_time_unit` out, or declare the column as BIGINT in `[raw.columns]`"));
        }
        Ok(())
    }
}

/// The time of a file, in nanoseconds since 1970.
pub(crate) fn time_of_file(file: &RawFile, zone: Tz) -> i128 {
    instant_ns(file_time(&file.path, zone).unwrap_or_else(|| file.window_time()))
}
