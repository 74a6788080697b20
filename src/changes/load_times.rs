//! The times of full loads, where `raw.full_load_at` gives them one.
//!
//! A load ends all rows from before its time, as a truncate does ([`crate::state::floors`]), and its rows
//! are inserts right after it. With *t* its time, the floor is 2 ns before *t*, its rows are 1 ns before
//! *t*, all at once, and the changes of *t* come after both. Times of CDC tools have microseconds at
//! best. Loads of the same time are one load.
//!
//! With `column` a file lasts from the least to the greatest commit time of its rows. Files are of one load,
//! wherever they are, if the pauses between them are not longer than `raw.full_load_settle`; its time is
//! the least of all. This does not depend on which run folds which of the files: one that is found later
//! joins its load, and is refused if it would have changed the load's time. A run that finds several new
//! loads is refused: most likely they are one, and each would end the rows of the one before. With `name`
//! each time is a load.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Date32Array, Decimal128Array, Int64Array, new_null_array};
use arrow::datatypes::DataType;
use chrono::{DateTime, Duration, Utc};
use chrono_tz::Tz;
use futures::TryStreamExt;
use tracing::{info, warn};

use crate::changes::pass_one::{FloorOf, FoundFloors};
use crate::changes::position::{OrderEncoder, pack_column};
use crate::changes::{Changes, CommitTime, OpenInput, instant_of};
use crate::config::{FullLoadAt, Raw};
use crate::engine::tasks::{Work, join_all, spawn};
use crate::error::{Error, Result};
use crate::layout::load_time;
use crate::raw::discover::RawFile;
use crate::raw::input::LoadTime;
use crate::raw::loads::EarlierLoads;
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
    /// are the full loads of earlier runs, which do not count from empty but for their number.
    ///
    /// # Errors
    /// Usage, when the order does not begin with the commit time; data, when a load has no time, or one
    /// that contradicts an earlier run.
    pub(super) async fn time_full_loads(
        &mut self,
        earlier: EarlierLoads<'_>,
        threads: usize,
    ) -> Result<()> {
        if !self.raw.full_loads.at.is_time() {
            return Ok(());
        }
        if !self.is_ordered_by_time() {
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
            _ => {
                let times = new.iter().map(|file| time_of(&self.raw, &self.files[*file]));
                times.collect::<Result<_>>()?
            }
        };
        let new = new.into_iter().zip(spans).collect();
        let loads = set_times(&mut self.files, new, earlier, &self.raw)?;
        let floors = loads.iter().map(|load| {
            let name = &self.files[load.file].file.name;
            info!(
                "the full load of {name} is at {}: it ends all rows before it",
                instant(load.at)?
            );
            self.floor_at(load.at, load.file, FloorOf::Load)
        });
        let floors = floors.collect::<Result<Vec<_>>>()?;
        self.timed_floors.extend(floors);
        Ok(())
    }

    /// Adds truncates that were set by hand: each ends the changes before its time.
    ///
    /// # Errors
    /// Usage, when the order does not begin with the commit time.
    pub(crate) fn add_truncates_by_hand(&mut self, times: &[DateTime<Utc>]) -> Result<()> {
        if times.is_empty() {
            return Ok(());
        }
        if self.is_keyless() {
            let why = "a table without a key accepts inserts only, and no truncate";
            return Err(Error::usage(why).hint("name the primary key in `key`"));
        }
        let no_place = |why| Error::usage(format!("a truncate by hand has no place: {why}"));
        if !self.raw.can_begin_with_commit_time() || !self.is_ordered_by_time() {
            let why = "the first column of `raw.order_by` is not the commit time";
            return Err(no_place(why).hint(
                "order changes by their commit time, or by it and then other columns; if truncates were set before the \
                 order was changed, change it back, and take each back: glueless truncate --undo",
            ));
        }
        // The order of full loads with times is that of these.
        let has_times = self.commit_time_column().is_some() || self.raw.full_loads.at.is_time();
        if !has_times {
            let why = "no change with a commit time was folded yet";
            return Err(
                no_place(why).hint("set it when one was: until then the order is not known")
            );
        }
        let floors = times.iter().map(|at| self.floor_at(instant_ns(*at), 0, FloorOf::Hand(*at)));
        let floors = floors.collect::<Result<Vec<_>>>()?;
        self.timed_floors.extend(floors);
        Ok(())
    }

    /// Whether the order of changes begins with the commit time.
    fn is_ordered_by_time(&self) -> bool {
        let first = self.raw.order_by.first().and_then(|name| self.raw_column(name));
        self.commit_time == CommitTime::Column(first)
    }

    /// The day of a full load.
    pub(super) fn day_of_load(&self, at: i128) -> i32 {
        self.day_of_time(at, self.raw.full_loads.at == FullLoadAt::Column)
    }

    /// The day of a time, which may be a commit time. A date without a time is that day in every zone.
    fn day_of_time(&self, at: i128, is_commit_time: bool) -> i32 {
        let kind =
            self.commit_time_column().map(|column| self.raw_schema.field(column).data_type());
        let is_date = is_commit_time && kind == Some(&DataType::Date32);
        day_in(at, if is_date { Tz::UTC } else { self.raw.day_zone })
    }

    /// A floor at a time: before all changes of that time. That of a full load is before its rows.
    fn floor_at(&self, at: i128, file: usize, of: FloorOf) -> Result<FoundFloors> {
        let order = (self.is_packed(), self.raw.order_by.len());
        let (time, day) = match of {
            FloorOf::Load => (at + TO_FLOOR, self.day_of_load(at)),
            // It is before a full load of its time, too.
            _ if self.raw.full_loads.at.is_time() => (at + TO_FLOOR, self.day_of_time(at, true)),
            // It has no file, so it comes before the changes of its time.
            _ => (at, self.day_of_time(at, true)),
        };
        Ok(FoundFloors {
            positions: positions_at(time, order, file, std::iter::once(0))?,
            days: Date32Array::from(vec![day]),
            instants: Int64Array::from(vec![instant_of(Some(at))]),
            of,
        })
    }
}

/// Sets the times of new files, given with their spans. Returns the loads that no earlier run began.
fn set_times(
    files: &mut [OpenInput],
    new: Vec<(usize, Option<Span>)>,
    EarlierLoads { files: earlier, is_from_empty }: EarlierLoads<'_>,
    raw: &Raw,
) -> Result<Vec<NewLoad>> {
    let mut timed: Vec<(Span, usize)> = Vec::new();
    for (file, span) in new {
        match span {
            Some(span) => timed.push((span, file)),
            None if files[file].file.row_count() == 0 => {
                if before(earlier, &files[file].input.file).is_some() {
                    return Err(emptied(&files[file]));
                }
                warn!("{} is a full load without rows, and ends none", files[file].file.name);
            }
            None => return Err(without_time(&files[file], raw)),
        }
    }
    timed.sort_by_key(|(span, file)| (*span, *file));
    let mut loads = Vec::new();
    let pause = pause(raw);
    let mut found: Vec<(i128, Vec<(Span, usize)>)> = Vec::new();
    for of_load in chunks(timed, pause) {
        let known =
            if is_from_empty { None } else { joined_load(files, &of_load, earlier, pause)? };
        if known.is_none() {
            loads.push(NewLoad { at: of_load[0].0.0, file: of_load[0].1 });
        }
        found.push((known.unwrap_or(of_load[0].0.0), of_load));
    }
    check_one_load(files, &loads, earlier, raw, is_from_empty)?;
    for (at, of_load) in found {
        for ((_, until), file) in of_load {
            let file = &mut files[file].input.file;
            let replaces = !is_from_empty && before(earlier, file).is_some();
            let load = LoadTime { at: instant(at)?, until: instant(until)?, replaces };
            file.load = Some(Box::new(load));
        }
    }
    for open in files.iter_mut().filter(|open| open.load_at().is_some()) {
        open.commit_time = open.load_at();
    }
    Ok(loads)
}

/// The longest pause between files of one load, in nanoseconds.
fn pause(raw: &Raw) -> i128 {
    if raw.full_loads.at == FullLoadAt::Column { nanoseconds(raw.full_loads.settle) } else { 0 }
}

/// Divides sorted spans where one begins later than a pause after the end of all before.
fn chunks(timed: Vec<(Span, usize)>, pause: i128) -> Vec<Vec<(Span, usize)>> {
    let mut parts: Vec<Vec<(Span, usize)>> = Vec::new();
    let mut end = 0;
    for one in timed {
        match parts.last_mut() {
            Some(part) if one.0.0 - end <= pause => {
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

/// Refuses several new loads by commit times, unless runs have folded as many before.
fn check_one_load(
    files: &[OpenInput],
    loads: &[NewLoad],
    earlier: &[RawFile],
    raw: &Raw,
    is_from_empty: bool,
) -> Result<()> {
    let known: BTreeSet<_> =
        earlier.iter().filter_map(|file| Some(file.load.as_ref()?.at)).collect();
    let most = if is_from_empty { known.len().max(1) } else { 1 };
    let [.., before, last] = loads else { return Ok(()) };
    if raw.full_loads.at != FullLoadAt::Column || loads.len() <= most {
        return Ok(());
    }
    let name = |load: &NewLoad| files[load.file].file.name.clone();
    Err(Error::data(format!(
        "the full loads have {} times, such as {} and {} ({} and {}): each would end the rows of the one \
         before",
        loads.len(),
        instant(before.at)?,
        instant(last.at)?,
        name(before),
        name(last)
    ))
    .hint(
        "if they are one load, with pauses while it was written, set a longer `raw.full_load_settle`; if the \
         column is not the time of the transfer, it cannot say when a load was: set raw.full_load_at = \
         \"before\"; if they are several, give each a run of its own, the earliest first",
    ))
}

/// The input of an earlier run that a file was written over, if it has a time.
fn before<'a>(earlier: &'a [RawFile], file: &RawFile) -> Option<&'a LoadTime> {
    let is_same_path =
        |before: &&RawFile| (before.location, &before.path) == (file.location, &file.path);
    earlier.iter().find(is_same_path)?.load.as_deref()
}

/// The time of the load of an earlier run that some new files are a part of; `None` if they are another
/// load.
fn joined_load(
    files: &[OpenInput],
    of_load: &[(Span, usize)],
    earlier: &[RawFile],
    pause: i128,
) -> Result<Option<i128>> {
    let ((begin, _), first) = of_load[0];
    let end = of_load.iter().map(|((_, until), _)| *until).max().unwrap_or(begin);
    // A file that is written again is of another load, and later.
    let own = of_load.iter().filter_map(|(_, file)| before(earlier, &files[*file].input.file));
    let replaced = own.map(|load| instant_ns(load.until)).max();
    if replaced.is_some_and(|until| begin <= until) {
        return Err(contradicts(&files[first], "has changed, and is not of a later time"));
    }
    let mut joined = None;
    for load in earlier.iter().filter_map(|before| before.load.as_ref()) {
        let (at, until) = (instant_ns(load.at), instant_ns(load.until));
        let is_near = begin - until <= pause && at - end <= pause;
        if !is_near || replaced.is_some_and(|replaced| at <= replaced) {
            continue;
        }
        if begin < at {
            let why = "begins earlier than the rest of its load, which was folded without it";
            return Err(contradicts(&files[first], why));
        }
        joined = joined.max(Some(at));
    }
    Ok(joined)
}

fn contradicts(open: &OpenInput, why: &str) -> Error {
    Error::data(format!("{} is a full load that {why}", open.file.name)).hint(
        "if the file is right, fold everything again: glueless rebuild; if files of one load are \
         written with long pauses, set `raw.full_load_settle`",
    )
}

/// The time in the name of a file; `None` if it has no rows.
fn time_of(raw: &Raw, open: &OpenInput) -> Result<Option<Span>> {
    let time = load_time(&open.input.file.path, raw.time_zone).map(instant_ns);
    let time = time.ok_or_else(|| without_time(open, raw))?;
    Ok((open.file.row_count() > 0).then_some((time, time)))
}

fn emptied(open: &OpenInput) -> Error {
    let name = &open.file.name;
    Error::data(format!("{name} is a full load without rows, written over one that was folded"))
        .hint(
            "a load says what the table has from its rows: that it was emptied, a truncate can say",
        )
}

fn without_time(open: &OpenInput, raw: &Raw) -> Error {
    let (what, hint) = match raw.full_loads.at {
        FullLoadAt::Name => (
            "has no date in its name or folders, or several",
            "write the date into the name or a folder; if it is no full load, it does not belong here, or `raw.full_load` must \
             leave it out",
        ),
        _ => (
            "is a full load without commit times",
            "raw.full_load_at = \"column\" reads the commit time of its rows: without one, set \"name\" or \
             \"before\"",
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

/// From the time of a full load to the place of its rows, and to that of its floor, in nanoseconds: both are before all
/// changes of that time.
pub(super) const TO_ROWS: i128 = -1;
const TO_FLOOR: i128 = -2;

/// The positions at a time, given by their row ordinals. `order` is the number of order columns: all but the first are
/// null.
///
/// # Errors
/// Data, when the time is out of range.
pub(super) fn positions_at(
    time: i128,
    (is_packed, order): (bool, usize),
    file: usize,
    rows: impl ExactSizeIterator<Item = u64>,
) -> Result<ArrayRef> {
    let count = rows.len();
    if is_packed {
        let times = std::iter::repeat_n(Some(time), count);
        let out_of_range = |_| Error::data("the time of a full load or truncate is out of range");
        return pack_column(true, times, file as u32, rows).map_err(out_of_range);
    }
    let mut columns: Vec<ArrayRef> = vec![Arc::new(Decimal128Array::from(vec![time; count]))];
    columns.resize_with(order, || new_null_array(&DataType::Int64, count));
    OrderEncoder::encode(true, &columns, file as u32, rows)
}
