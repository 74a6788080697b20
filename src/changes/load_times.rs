//! The times of full loads, where `raw.full_load_at` gives them one.
//!
//! A load ends all rows from before its time, as a truncate does ([`crate::state::floors`]), and its rows
//! are inserts right after it. With *t* its time, the floor is 2 ns before *t*, its rows are 1 ns before
//! *t*, all at once, and the changes of *t* come after both. Times of CDC tools have microseconds at
//! best. Loads of the same time are one load.
//!
//! A file lasts from the least to the greatest time in it: the commit times of its rows, or the one time
//! when it was written or that is in its name. Files of a folder are of one load if the pauses between
//! them are not longer than `raw.full_load_settle`; its time is the least of all. This does not depend on
//! which run folds which of the files: one that is found later joins its load, and is refused if it
//! would have changed the load's time.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Date32Array, Decimal128Array, new_null_array};
use arrow::datatypes::DataType;
use chrono::{DateTime, Duration, Utc};
use futures::TryStreamExt;
use tracing::{info, warn};

use crate::changes::commit_time::time_of_file;
use crate::changes::pass_one::FoundFloors;
use crate::changes::position::{OrderEncoder, pack_column};
use crate::changes::{Changes, CommitTime, OpenInput};
use crate::config::{FullLoadAt, Raw};
use crate::engine::tasks::{Work, join_all, spawn};
use crate::error::{Error, Result};
use crate::layout::{file_time, parent};
use crate::raw::discover::RawFile;
use crate::raw::input::LoadTime;
use crate::types::column_type::cast_values;
use crate::types::times::{day_in, instant_ns, instants_ns};

/// A span of time, in nanoseconds since 1970, with both ends.
type Span = (i128, i128);

/// A new full load: its time, and the first of its files.
struct NewLoad {
    at: i128,
    file: usize,
}

impl Changes {
    /// Gives the full loads among the inputs their times, and finds the floors of the new ones. `earlier`
    /// are the full loads of earlier runs.
    ///
    /// # Errors
    /// Usage, when the order does not begin with the commit time; data, when a load has no time, or one
    /// that contradicts an earlier run.
    pub(super) async fn time_full_loads(
        &mut self,
        earlier: &[RawFile],
        threads: usize,
    ) -> Result<()> {
        if !self.raw.full_loads.at.is_time() {
            return Ok(());
        }
        let first = self.raw.order_by.first().and_then(|name| self.raw_column(name));
        if self.commit_time != CommitTime::Column(first) {
            let at = self.raw.full_loads.at.name();
            let why = "cannot be used: the first column of `raw.order_by` is not the commit time";
            return Err(Error::usage(format!("raw.full_load_at = \"{at}\" {why}")).hint(
                "the time of a full load is its place among the changes: order by their time",
            ));
        }
        let is_new = |open: &OpenInput| open.input.full_load && open.input.file.load.is_none();
        let files = 0..self.files.len();
        let new: Vec<usize> = files.filter(|file| is_new(&self.files[*file])).collect();
        let spans = match self.raw.full_loads.at {
            FullLoadAt::Column => {
                let column = |column| (column, self.raw_schema.field(column).data_type().clone());
                let column = self.commit_time_column().map(column);
                let (unit_ns, batch_rows) = (self.commit_unit_ns(), self.batch_rows);
                let times = Times { column, unit_ns, batch_rows };
                times.of_files(&self.files, &new, threads).await?
            }
            at => {
                let times = new.iter().map(|file| time_of(at, &self.raw, &self.files[*file]));
                times.map(|time| time.map(Some)).collect::<Result<_>>()?
            }
        };
        let new = new.into_iter().zip(spans).collect();
        let loads = set_times(&mut self.files, new, earlier, &self.raw)?;
        let floors = loads.iter().map(|load| self.floor_of(load));
        self.load_floors = floors.collect::<Result<_>>()?;
        Ok(())
    }

    /// The floor of a new full load.
    fn floor_of(&self, load: &NewLoad) -> Result<FoundFloors> {
        let name = &self.files[load.file].file.name;
        info!("the full load of {name} is at {}: it ends all rows before it", instant(load.at)?);
        let order = (self.is_packed(), self.raw.order_by.len());
        Ok(FoundFloors {
            positions: positions_of_load(load.at, true, order, load.file, std::iter::once(0))?,
            days: Date32Array::from(vec![day_in(load.at, self.raw.day_zone)]),
            are_loads: true,
        })
    }
}

/// Sets the times of new files, given with their spans. Returns the loads that no earlier run began.
fn set_times(
    files: &mut [OpenInput],
    new: Vec<(usize, Option<Span>)>,
    earlier: &[RawFile],
    raw: &Raw,
) -> Result<Vec<NewLoad>> {
    let mut timed: Vec<(Span, usize)> = Vec::new();
    for (file, span) in new {
        match span {
            Some(span) => timed.push((span, file)),
            None if files[file].file.row_count() == 0 => {
                warn!("{} is a full load without rows, and ends none", files[file].file.name);
            }
            None => return Err(without_time(&files[file], raw)),
        }
    }
    let folder = |file: usize| {
        let file = &files[file].input.file;
        (file.location, parent(&file.path).to_string())
    };
    timed.sort_by_key(|(span, file)| (folder(*file), *span));
    let mut loads = Vec::new();
    let pause = raw.full_loads.settle;
    let is_next = |(a, of): &(Span, usize), (b, file): &(Span, usize)| {
        folder(*of) == folder(*file) && b.0 - a.1 <= nanoseconds(pause)
    };
    let mut found: Vec<(i128, Vec<(Span, usize)>)> = Vec::new();
    for of_load in chunks(timed, is_next) {
        let known = Load::new(files, &of_load).join(earlier, raw, files)?;
        if known.is_none() {
            let file = of_load.iter().map(|(_, file)| *file).min().unwrap_or_default();
            loads.push(NewLoad { at: of_load[0].0.0, file });
        }
        found.push((known.unwrap_or(of_load[0].0.0), of_load));
    }
    for (at, of_load) in found {
        for ((_, until), file) in of_load {
            let file = &mut files[file].input.file;
            let is_before =
                |before: &RawFile| (before.location, &before.path) == (file.location, &file.path);
            let replaces = earlier.iter().any(is_before);
            let load = LoadTime { at: instant(at)?, until: instant(until)?, replaces };
            file.load = Some(Box::new(load));
        }
    }
    for open in files.iter_mut() {
        if let Some(load) = &open.input.file.load {
            open.commit_time = Some(instant_ns(load.at));
        }
    }
    Ok(loads)
}

/// Divides a sorted list where `is_next` does not hold between the whole part so far and an item. The
/// spans of a part are joined for it.
fn chunks(
    timed: Vec<(Span, usize)>,
    is_next: impl Fn(&(Span, usize), &(Span, usize)) -> bool,
) -> Vec<Vec<(Span, usize)>> {
    let mut parts: Vec<Vec<(Span, usize)>> = Vec::new();
    let mut end = 0;
    for one in timed {
        match parts.last_mut() {
            Some(part) if is_next(&((part[0].0.0, end), part[0].1), &one) => {
                end = end.max(one.0.1);
                part.push(one);
            }
            _ => {
                end = one.0.1;
                parts.push(vec![one]);
            }
        }
    }
    parts
}

/// A load that this run has found.
struct Load {
    span: Span,
    /// The location, folder and paths of its files.
    location: usize,
    folder: String,
    paths: Vec<String>,
}

impl Load {
    fn new(files: &[OpenInput], of_load: &[(Span, usize)]) -> Self {
        let first = &files[of_load[0].1].input.file;
        let until = of_load.iter().map(|((_, until), _)| *until).max().unwrap_or_default();
        let paths = of_load.iter().map(|(_, file)| files[*file].input.file.path.clone());
        Load {
            span: (of_load[0].0.0, until),
            location: first.location,
            folder: parent(&first.path).to_string(),
            paths: paths.collect(),
        }
    }

    /// The time of the load of an earlier run that it is a part of; `None` if it is another load.
    fn join(&self, earlier: &[RawFile], raw: &Raw, files: &[OpenInput]) -> Result<Option<i128>> {
        let (mut joined, pause) = (None, nanoseconds(raw.full_loads.settle));
        for before in earlier {
            let Some(load) = before.load.as_ref() else { continue };
            let is_of_folder =
                before.location == self.location && parent(&before.path) == self.folder;
            let (at, until) = (instant_ns(load.at), instant_ns(load.until));
            let is_near = self.span.0 - until <= pause && at - self.span.1 <= pause;
            if !is_of_folder || !is_near {
                // A file that is written again is another load, and later.
                if is_of_folder && self.paths.contains(&before.path) && self.span.0 <= until {
                    return Err(self.contradicts(files, "has changed, and is not of a later time"));
                }
                continue;
            }
            if self.paths.contains(&before.path) {
                if self.span.0 <= until {
                    return Err(self.contradicts(files, "has changed, and is not of a later time"));
                }
                continue;
            }
            if self.span.0 < at {
                let why = "begins earlier than the rest of its load, which was folded without it";
                return Err(self.contradicts(files, why));
            }
            joined = joined.max(Some(at));
        }
        Ok(joined)
    }

    fn contradicts(&self, files: &[OpenInput], why: &str) -> Error {
        let path = self.paths.iter().min().map(String::as_str).unwrap_or_default();
        let file = files.iter().find(|open| {
            (open.input.file.location, open.input.file.path.as_str()) == (self.location, path)
        });
        let name = file.map_or(path, |open| &open.file.name);
        Error::data(format!("{name} is a full load that {why}")).hint(
            "if the file is right, fold everything again: glueless rebuild; if files of one load are \
             written with long pauses, set `raw.full_load_settle`",
        )
    }
}

/// The time of a file that has one.
fn time_of(at: FullLoadAt, raw: &Raw, open: &OpenInput) -> Result<Span> {
    let file = &open.input.file;
    let time = match at {
        FullLoadAt::Name => match file_time(&file.path, raw.time_zone) {
            Some(_) => time_of_file(file, raw.time_zone),
            None => return Err(without_time(open, raw)),
        },
        _ => instant_ns(file.window_time()),
    };
    Ok((time, time))
}

fn without_time(open: &OpenInput, raw: &Raw) -> Error {
    let (what, hint) = match raw.full_loads.at {
        FullLoadAt::Name => (
            "has no time in its name, and no date in its folders",
            "set raw.full_load_at = \"modified\", or rename the file",
        ),
        _ => (
            "is a full load without commit times",
            "raw.full_load_at = \"column\" reads the commit time of its rows: without one, set \
             \"modified\"",
        ),
    };
    Error::data(format!("{} {what}", open.file.name)).hint(hint)
}

/// Reads the commit times of full loads.
struct Times {
    /// The raw column with the commit time, and its type; `None` if no input has it.
    column: Option<(usize, DataType)>,
    /// The unit of times that are numbers, in nanoseconds.
    unit_ns: Option<i128>,
    batch_rows: usize,
}

impl Times {
    /// The span of each of some files; `None` for one without times.
    async fn of_files(
        self,
        files: &[OpenInput],
        wanted: &[usize],
        threads: usize,
    ) -> Result<Vec<Option<Span>>> {
        let Some((column, kind)) = self.column else {
            return Ok(vec![None; wanted.len()]);
        };
        let reads = wanted.iter().enumerate().filter_map(|(at, file)| {
            let open = &files[*file];
            let index = open.columns[column]?;
            let groups = (0..open.file.row_groups().len()).map(|number| (number, None));
            Some((at, open.file.read_selected_raw(&[index], groups, self.batch_rows)))
        });
        let reads = Arc::new(Work::new(reads.collect()));
        let tasks = (0..threads.max(1)).map(|_| {
            let (reads, kind, unit_ns) = (Arc::clone(&reads), kind.clone(), self.unit_ns);
            spawn(async move {
                let mut spans = Vec::new();
                while let Some((at, mut rows)) = reads.next() {
                    let mut span: Option<Span> = None;
                    while let Some(batch) = rows.try_next().await? {
                        let times = span_of(batch.column(0), &kind, unit_ns);
                        span = span.into_iter().chain(times).reduce(joined);
                    }
                    spans.push((at, span));
                }
                Ok(spans)
            })
        });
        let mut all = vec![None; wanted.len()];
        for (at, span) in join_all(tasks).await?.into_iter().flatten() {
            all[at] = span;
        }
        Ok(all)
    }
}

fn joined(a: Span, b: Span) -> Span {
    (a.0.min(b.0), a.1.max(b.1))
}

/// The least and the greatest time of a column. Values that are no times do not count: the load's time
/// stands for them.
fn span_of(values: &ArrayRef, kind: &DataType, unit_ns: Option<i128>) -> Option<Span> {
    let times = match cast_values(values, kind) {
        Ok(cast) => instants_ns(&cast, unit_ns),
        Err(bad) => Err(bad),
    };
    match times {
        Ok(times) => {
            let times = || times.iter().copied().flatten();
            Some((times().min()?, times().max()?))
        }
        Err(bad) => {
            let before = (bad > 0).then(|| values.slice(0, bad));
            let after =
                (bad + 1 < values.len()).then(|| values.slice(bad + 1, values.len() - bad - 1));
            let parts = [before, after].into_iter().flatten();
            parts.filter_map(|part| span_of(&part, kind, unit_ns)).reduce(joined)
        }
    }
}

fn nanoseconds(duration: Duration) -> i128 {
    i128::from(duration.num_seconds()) * 1_000_000_000 + i128::from(duration.subsec_nanos())
}

fn instant(ns: i128) -> Result<DateTime<Utc>> {
    let seconds = i64::try_from(ns.div_euclid(1_000_000_000)).ok();
    let nanos = ns.rem_euclid(1_000_000_000) as u32;
    let time = seconds.and_then(|seconds| DateTime::from_timestamp(seconds, nanos));
    time.ok_or_else(|| Error::data("the time of a full load is out of range"))
}

/// The positions of rows of a full load, or with `is_floor` of its floor, given by their row ordinals;
/// `at` is its time. `order` is the number of order columns: all but the first are null.
///
/// # Errors
/// Data, when the time is out of range.
pub(super) fn positions_of_load(
    at: i128,
    is_floor: bool,
    (is_packed, order): (bool, usize),
    file: usize,
    rows: impl ExactSizeIterator<Item = u64>,
) -> Result<ArrayRef> {
    let (time, count) = (at - 1 - i128::from(is_floor), rows.len());
    if is_packed {
        let times = std::iter::repeat_n(Some(time), count);
        let out_of_range = |_| Error::data("the time of a full load is out of range");
        return pack_column(true, times, file as u32, rows).map_err(out_of_range);
    }
    let mut columns: Vec<ArrayRef> = vec![Arc::new(Decimal128Array::from(vec![time; count]))];
    columns.resize_with(order, || new_null_array(&DataType::Int64, count));
    OrderEncoder::encode(true, &columns, file as u32, rows)
}
