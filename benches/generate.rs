//! Makes the raw change files that the benchmark reads: seeded, so that every
//! machine measures the same rows.
//!
//! ```text
//! cargo run --release --example generate_changes -- --case narrow --out DIR
//! ```
//!
//! One capture day or several, cut into files of equal length that are named as
//! AWS DMS names its CDC files, by the time they were closed. A file's rows
//! depend on the arguments and the file's number only, never on the number of
//! threads.
//!
//! The rows of case `narrow`:
//!
//! | column | Arrow type | nullable | meaning |
//! |---|---|---|---|
//! | `Op` | Utf8 | no | I, U, and D for about 3 in 100; a D carries the full row |
//! | `TIMESTAMP` | Utf8 | no | commit time, microseconds; never goes back; shared by the 1 to 4 rows of a transaction |
//! | `event_id` | Int64 | yes | the row's number over all files |
//! | `event_ts` | Timestamp(µs) | yes | whole seconds, up to 30 before the commit; for about 1 in 100 a day earlier (`--on-time`: of the commit's day) |
//! | `cust_id` | Utf8 | yes | the key, drawn evenly: `C0001234567` (`--each-key-once`: one after the other) |
//! | `business_op_code` | Utf8 | yes | REGN for I, UPGD or DNGD else |
//! | `cust_loyalty_category` | Utf8 | yes | Basic, Silver, Gold or Platinum, drawn evenly |

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use arrow::array::{
    ArrayRef, Int64Builder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use chrono::{Datelike, Days, NaiveDate};
use clap::{Parser, ValueEnum};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

/// The first capture day, if none is named.
const FIRST_DAY: NaiveDate = NaiveDate::from_ymd_opt(2024, 1, 2).expect("a date");
const DAY_US: i64 = 86_400_000_000;
const SECOND_US: i64 = 1_000_000;

const ROWS_PER_BATCH: u64 = 16_384;
const ROWS_PER_ROW_GROUP: usize = 100_000;

/// Writes seeded raw change files for the benchmark.
#[derive(Parser)]
struct Arguments {
    /// Which shape of rows to write
    #[arg(long)]
    case: Case,
    /// The folder to write to; made if it is missing
    #[arg(long)]
    out: PathBuf,
    /// Changes over all files
    #[arg(long, default_value = "20000000")]
    rows: u64,
    /// Distinct keys to draw from, up to 10,000,000,000
    #[arg(long, default_value = "5000000")]
    keys: NonZeroU64,
    /// Files, each one an equal part of the capture days
    #[arg(long, default_value = "40")]
    files: NonZeroU64,
    /// The first capture day
    #[arg(long, default_value_t = FIRST_DAY)]
    first_day: NaiveDate,
    /// Capture days
    #[arg(long, default_value = "1")]
    days: NonZeroU64,
    /// No event is of an earlier day than its commit
    #[arg(long)]
    on_time: bool,
    /// The keys one after the other, instead of drawn
    #[arg(long)]
    each_key_once: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Case {
    /// 7 columns, one text key
    Narrow,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let started = Instant::now();
    fs::create_dir_all(&arguments.out)
        .map_err(|error| format!("cannot make {}: {error}", arguments.out.display()))?;
    let bytes = write_files(&arguments)?;
    println!(
        "{} rows in {} files, {} bytes, {:.1} s",
        arguments.rows,
        arguments.files,
        bytes,
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Writes all files, one thread per processor taking the next file, and
/// returns their size in bytes.
fn write_files(arguments: &Arguments) -> Result<u64, Box<dyn Error>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(0);
    let bytes = AtomicU64::new(0);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> Result<(), String> {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= arguments.files.get() {
                            return Ok(());
                        }
                        let span = Span::new(number, arguments);
                        let path = arguments.out.join(span.name());
                        let written = match arguments.case {
                            Case::Narrow => write_narrow(&path, &span, arguments),
                        }
                        .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
                        bytes.fetch_add(written, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().expect("a worker does not panic")?;
        }
        Ok::<_, String>(())
    })?;
    Ok(bytes.into_inner())
}

/// One file's part of the rows and of the capture day.
struct Span {
    /// What seeds its rows.
    seed: u64,
    first_day: NaiveDate,
    first_row: u64,
    rows: u64,
    /// Microseconds since the start of the first day; the end is exclusive.
    start_us: i64,
    end_us: i64,
}

impl Span {
    fn new(number: u64, arguments: &Arguments) -> Self {
        let files = arguments.files.get();
        let first_row = share(arguments.rows, number, files);
        let all_us = DAY_US as u64 * arguments.days.get();
        let days_later = (arguments.first_day - FIRST_DAY).num_days() as u64;
        Span {
            seed: number.wrapping_add(days_later.wrapping_mul(1_000_000)),
            first_day: arguments.first_day,
            first_row,
            rows: share(arguments.rows, number + 1, files) - first_row,
            start_us: share(all_us, number, files) as i64,
            end_us: share(all_us, number + 1, files) as i64,
        }
    }

    /// `yyyyMMdd-HHmmssSSS.parquet`: the last millisecond of the span.
    fn name(&self) -> String {
        let closed_us = self.end_us - 1;
        let day = date(self.first_day, closed_us).format("%Y%m%d");
        let closed_ms = closed_us % DAY_US / 1_000;
        let (seconds, ms) = (closed_ms / 1_000, closed_ms % 1_000);
        let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        format!("{day}-{hour:02}{minute:02}{second:02}{ms:03}.parquet")
    }

    /// A time for the row at `offset` in this file; grows with the offset.
    fn time_us(&self, offset: u64, random: &mut SplitMix64) -> i64 {
        let width = (self.end_us - self.start_us) as u64;
        let from = share(width, offset, self.rows);
        let to = share(width, offset + 1, self.rows);
        self.start_us + (from + random.below((to - from).max(1))) as i64
    }
}

/// The date so many microseconds after the start of a day.
fn date(first_day: NaiveDate, after_us: i64) -> NaiveDate {
    first_day + Days::new((after_us / DAY_US) as u64)
}

/// The start of part `number` of `parts` equal parts of `total`.
fn share(total: u64, number: u64, parts: u64) -> u64 {
    (u128::from(total) * u128::from(number) / u128::from(parts)) as u64
}

/// The rows of case `narrow`, see the module's table.
fn write_narrow(path: &Path, span: &Span, arguments: &Arguments) -> Result<u64, Box<dyn Error>> {
    let schema = narrow_schema();
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(ROWS_PER_ROW_GROUP))
        // Almost every value is new: a dictionary would only be in the way.
        .set_column_dictionary_enabled("TIMESTAMP".into(), false)
        .set_column_dictionary_enabled("event_id".into(), false)
        .set_column_dictionary_enabled("cust_id".into(), false)
        .build();
    let file = BufWriter::new(File::create(path)?);
    let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties))?;
    let mut random = SplitMix64::for_file(span.seed);
    let mut commit = Commit::default();
    let mut first = 0;
    while first < span.rows {
        let rows = ROWS_PER_BATCH.min(span.rows - first);
        let mut batch = NarrowBatch::default();
        for offset in first..first + rows {
            if commit.rows_left == 0 {
                let time_us = span.time_us(offset, &mut random);
                commit.begin(span.first_day, time_us, 1 + random.below(4));
            }
            commit.rows_left -= 1;
            batch.push(span.first_row + offset, &commit, arguments, &mut random);
        }
        writer.write(&batch.finish(&schema)?)?;
        first += rows;
    }
    let file = writer.into_inner()?.into_inner().map_err(io::Error::from)?;
    Ok(file.metadata()?.len())
}

fn narrow_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("Op", DataType::Utf8, false),
        Field::new("TIMESTAMP", DataType::Utf8, false),
        Field::new("event_id", DataType::Int64, true),
        Field::new(
            "event_ts",
            DataType::Timestamp(TimeUnit::Microsecond, None),
            true,
        ),
        Field::new("cust_id", DataType::Utf8, true),
        Field::new("business_op_code", DataType::Utf8, true),
        Field::new("cust_loyalty_category", DataType::Utf8, true),
    ]))
}

#[derive(Default)]
struct NarrowBatch {
    op: StringBuilder,
    timestamp: StringBuilder,
    event_id: Int64Builder,
    event_ts: TimestampMicrosecondBuilder,
    cust_id: StringBuilder,
    business_op_code: StringBuilder,
    cust_loyalty_category: StringBuilder,
}

impl NarrowBatch {
    fn push(&mut self, row: u64, commit: &Commit, arguments: &Arguments, random: &mut SplitMix64) {
        let (op, business_op_code) = match random.below(100) {
            0..3 => ("D", "DNGD"),
            3..28 => ("I", "REGN"),
            28..70 => ("U", "UPGD"),
            _ => ("U", "DNGD"),
        };
        let days_late = i64::from(random.below(100) == 0);
        let seconds_late = 1 + random.below(30) as i64;
        let mut event_us =
            commit.time_us / SECOND_US * SECOND_US - days_late * DAY_US - seconds_late * SECOND_US;
        if arguments.on_time {
            event_us = event_us.max(commit.time_us / DAY_US * DAY_US);
        }
        let first_day_us = (arguments.first_day - NaiveDate::default()).num_days() * DAY_US;
        let category = ["Basic", "Silver", "Gold", "Platinum"][random.below(4) as usize];
        let drawn = random.below(arguments.keys.get());
        let key = match arguments.each_key_once {
            true => row % arguments.keys,
            false => drawn,
        };

        self.op.append_value(op);
        self.timestamp.append_value(&commit.text);
        self.event_id.append_value(row as i64);
        self.event_ts.append_value(first_day_us + event_us);
        self.cust_id.append_value(key_text(key).as_str());
        self.business_op_code.append_value(business_op_code);
        self.cust_loyalty_category.append_value(category);
    }

    fn finish(mut self, schema: &SchemaRef) -> Result<RecordBatch, Box<dyn Error>> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.op.finish()),
            Arc::new(self.timestamp.finish()),
            Arc::new(self.event_id.finish()),
            Arc::new(self.event_ts.finish()),
            Arc::new(self.cust_id.finish()),
            Arc::new(self.business_op_code.finish()),
            Arc::new(self.cust_loyalty_category.finish()),
        ];
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }
}

/// The transaction that the next rows belong to.
#[derive(Default)]
struct Commit {
    /// Microseconds since the start of the first capture day.
    time_us: i64,
    /// The same as DMS writes it, `yyyy-MM-dd HH:mm:ss.SSSSSS`.
    text: String,
    rows_left: u64,
}

impl Commit {
    fn begin(&mut self, first_day: NaiveDate, time_us: i64, rows: u64) {
        self.time_us = time_us;
        self.rows_left = rows;
        let seconds = (time_us % DAY_US / SECOND_US) as u64;
        let day = date(first_day, time_us);
        self.text.clear();
        push_digits(&mut self.text, day.year() as u64, 4);
        for (separator, number, digits) in [
            ('-', day.month().into(), 2),
            ('-', day.day().into(), 2),
            (' ', seconds / 3_600, 2),
            (':', seconds / 60 % 60, 2),
            (':', seconds % 60, 2),
            ('.', (time_us % SECOND_US) as u64, 6),
        ] {
            self.text.push(separator);
            push_digits(&mut self.text, number, digits);
        }
    }
}

/// `C0001234567`: the key with this number.
fn key_text(number: u64) -> String {
    let mut text = String::with_capacity(11);
    text.push('C');
    push_digits(&mut text, number, 10);
    text
}

/// `number` in decimal with leading zeros; `format!` is several times slower.
fn push_digits(text: &mut String, number: u64, digits: u32) {
    for place in (0..digits).rev() {
        let digit = number / 10_u64.pow(place) % 10;
        text.push(char::from(b'0' + digit as u8));
    }
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    /// A sequence of its own for each file.
    fn for_file(number: u64) -> Self {
        SplitMix64(SplitMix64(number).next_u64())
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Evenly from `0..end`.
    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(end)) >> 64) as u64
    }
}
