//! Generates the raw change files that the benchmark reads, from a seed, so
//! that every machine measures the same rows.
//!
//! ```text
//! cargo run --release --example generate_changes -- --case narrow --out DIR
//! ```
//!
//! The capture days are divided into files of equal length, named like the CDC
//! files of AWS DMS, by the time when they were closed. The rows of a file
//! depend on the arguments and the file's number only, not on the number of
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
//!
//! The rows of case `wide`: `Op`, `TIMESTAMP`, `event_id`, `event_ts` and `cust_loyalty_category`
//! as above, the key `order_id` (Int64, drawn evenly), and 17 columns, all nullable, drawn for
//! each row: names, streets, mail addresses and comments of random letters, cities and codes
//! out of a few, decimals, a double, counts, a time and two dates (about 1 in 10 null).

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
    ArrayRef, Date32Builder, Decimal128Builder, Float64Builder, Int32Builder, Int64Builder,
    RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use chrono::{Datelike, Days, NaiveDate};
use clap::{Parser, ValueEnum};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

/// The default of the first capture day.
const FIRST_DAY: NaiveDate = NaiveDate::from_ymd_opt(2024, 1, 2).expect("a date");
const DAY_US: i64 = 86_400_000_000;
const SECOND_US: i64 = 1_000_000;

const ROWS_PER_BATCH: u64 = 16_384;
const ROWS_PER_ROW_GROUP: usize = 100_000;

/// Writes seeded raw change files for the benchmark.
#[derive(Parser)]
struct Arguments {
    /// The kind of rows to write
    #[arg(long)]
    case: Case,
    /// The folder to write to; created if it is missing
    #[arg(long)]
    out: PathBuf,
    /// Number of changes over all files
    #[arg(long, default_value = "20000000")]
    rows: u64,
    /// Number of distinct keys to draw from, up to 10,000,000,000
    #[arg(long, default_value = "5000000")]
    keys: NonZeroU64,
    /// Number of files, each with an equal part of the capture days
    #[arg(long, default_value = "40")]
    files: NonZeroU64,
    /// The first capture day
    #[arg(long, default_value_t = FIRST_DAY)]
    first_day: NaiveDate,
    /// Number of capture days
    #[arg(long, default_value = "1")]
    days: NonZeroU64,
    /// Date every event on the day of its commit
    #[arg(long)]
    on_time: bool,
    /// Use the keys one after the other, instead of drawing them
    #[arg(long)]
    each_key_once: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Case {
    /// 7 columns, one text key
    Narrow,
    /// 23 columns, a number as key
    Wide,
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

/// Writes all files, with one thread per processor. Returns their size in bytes.
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
                            Case::Narrow => write_file::<NarrowBatch>(&path, &span, arguments),
                            Case::Wide => write_file::<WideBatch>(&path, &span, arguments),
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
    /// The seed of the file's rows.
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

    /// The time of the row at `offset` in this file; increases with the offset.
    fn time_us(&self, offset: u64, random: &mut SplitMix64) -> i64 {
        let width = (self.end_us - self.start_us) as u64;
        let from = share(width, offset, self.rows);
        let to = share(width, offset + 1, self.rows);
        self.start_us + (from + random.below((to - from).max(1))) as i64
    }
}

/// The date `time_us` microseconds after the start of a day.
fn date(first_day: NaiveDate, after_us: i64) -> NaiveDate {
    first_day + Days::new((after_us / DAY_US) as u64)
}

/// The start of part `number` of `parts` equal parts of `total`.
fn share(total: u64, number: u64, parts: u64) -> u64 {
    (u128::from(total) * u128::from(number) / u128::from(parts)) as u64
}

/// Rows of one case, see the module's tables.
trait Rows: Default {
    /// Columns of which almost all values differ, for which a dictionary is of no use.
    const NEW: &[&str];

    fn schema() -> Schema;

    fn push(&mut self, row: u64, commit: &Commit, arguments: &Arguments, random: &mut SplitMix64);

    fn finish(self) -> Vec<ArrayRef>;
}

fn write_file<R: Rows>(
    path: &Path,
    span: &Span,
    arguments: &Arguments,
) -> Result<u64, Box<dyn Error>> {
    let schema = Arc::new(R::schema());
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(ROWS_PER_ROW_GROUP));
    for column in R::NEW {
        properties = properties.set_column_dictionary_enabled((*column).into(), false);
    }
    let file = BufWriter::new(File::create(path)?);
    let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties.build()))?;
    let mut random = SplitMix64::for_file(span.seed);
    let mut commit = Commit::default();
    let mut first = 0;
    while first < span.rows {
        let rows = ROWS_PER_BATCH.min(span.rows - first);
        let mut batch = R::default();
        for offset in first..first + rows {
            if commit.rows_left == 0 {
                let time_us = span.time_us(offset, &mut random);
                commit.begin(span.first_day, time_us, 1 + random.below(4));
            }
            commit.rows_left -= 1;
            batch.push(span.first_row + offset, &commit, arguments, &mut random);
        }
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), batch.finish())?)?;
        first += rows;
    }
    let file = writer.into_inner()?.into_inner().map_err(io::Error::from)?;
    Ok(file.metadata()?.len())
}

const TIME: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

fn schema_of(columns: &[(&str, DataType)]) -> Schema {
    let fields = columns.iter().map(|(name, data_type)| {
        let is_systems = ["Op", "TIMESTAMP"].contains(name);
        Field::new(*name, data_type.clone(), !is_systems)
    });
    Schema::new(fields.collect::<Vec<_>>())
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

/// A change's operation and its code.
fn operation(random: &mut SplitMix64) -> (&'static str, &'static str) {
    match random.below(100) {
        0..3 => ("D", "DNGD"),
        3..28 => ("I", "REGN"),
        28..70 => ("U", "UPGD"),
        _ => ("U", "DNGD"),
    }
}

/// A change's event time, in microseconds since 1970.
fn event_us(commit: &Commit, arguments: &Arguments, random: &mut SplitMix64) -> i64 {
    let days_late = i64::from(random.below(100) == 0);
    let seconds_late = 1 + random.below(30) as i64;
    let mut event_us =
        commit.time_us / SECOND_US * SECOND_US - days_late * DAY_US - seconds_late * SECOND_US;
    if arguments.on_time {
        event_us = event_us.max(commit.time_us / DAY_US * DAY_US);
    }
    (arguments.first_day - NaiveDate::default()).num_days() * DAY_US + event_us
}

fn category(random: &mut SplitMix64) -> &'static str {
    random.one_of(&["Basic", "Silver", "Gold", "Platinum"])
}

/// The number of a row's key.
fn key(row: u64, arguments: &Arguments, random: &mut SplitMix64) -> u64 {
    let drawn = random.below(arguments.keys.get());
    if arguments.each_key_once { row % arguments.keys } else { drawn }
}

impl Rows for NarrowBatch {
    const NEW: &[&str] = &["TIMESTAMP", "event_id", "cust_id"];

    fn schema() -> Schema {
        schema_of(&[
            ("Op", DataType::Utf8),
            ("TIMESTAMP", DataType::Utf8),
            ("event_id", DataType::Int64),
            ("event_ts", TIME),
            ("cust_id", DataType::Utf8),
            ("business_op_code", DataType::Utf8),
            ("cust_loyalty_category", DataType::Utf8),
        ])
    }

    fn push(&mut self, row: u64, commit: &Commit, arguments: &Arguments, random: &mut SplitMix64) {
        let (op, business_op_code) = operation(random);
        let event_us = event_us(commit, arguments, random);
        let category = category(random);
        let key = key(row, arguments, random);

        self.op.append_value(op);
        self.timestamp.append_value(&commit.text);
        self.event_id.append_value(row as i64);
        self.event_ts.append_value(event_us);
        self.cust_id.append_value(key_text(key).as_str());
        self.business_op_code.append_value(business_op_code);
        self.cust_loyalty_category.append_value(category);
    }

    fn finish(mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.op.finish()),
            Arc::new(self.timestamp.finish()),
            Arc::new(self.event_id.finish()),
            Arc::new(self.event_ts.finish()),
            Arc::new(self.cust_id.finish()),
            Arc::new(self.business_op_code.finish()),
            Arc::new(self.cust_loyalty_category.finish()),
        ]
    }
}

/// The columns of case `wide` that are text.
const WIDE_TEXTS: [&str; 8] =
    ["customer_name", "mail", "street", "comment", "city", "country", "status", "currency"];

struct WideBatch {
    op: StringBuilder,
    timestamp: StringBuilder,
    event_id: Int64Builder,
    event_ts: TimestampMicrosecondBuilder,
    order_id: Int64Builder,
    cust_loyalty_category: StringBuilder,
    texts: [StringBuilder; WIDE_TEXTS.len()],
    decimals: [Decimal128Builder; 3],
    weight: Float64Builder,
    counts: [Int32Builder; 2],
    created_ts: TimestampMicrosecondBuilder,
    dates: [Date32Builder; 2],
}

impl Default for WideBatch {
    fn default() -> Self {
        let decimals = || Decimal128Builder::new().with_data_type(DataType::Decimal128(18, 2));
        WideBatch {
            op: Default::default(),
            timestamp: Default::default(),
            event_id: Default::default(),
            event_ts: Default::default(),
            order_id: Default::default(),
            cust_loyalty_category: Default::default(),
            texts: Default::default(),
            decimals: std::array::from_fn(|_| decimals()),
            weight: Default::default(),
            counts: Default::default(),
            created_ts: Default::default(),
            dates: Default::default(),
        }
    }
}

impl Rows for WideBatch {
    const NEW: &[&str] = &[
        "TIMESTAMP",
        "event_id",
        "order_id",
        "customer_name",
        "mail",
        "street",
        "comment",
        "amount",
        "tax",
        "discount",
        "weight",
        "created_ts",
    ];

    fn schema() -> Schema {
        let mut columns = vec![
            ("Op", DataType::Utf8),
            ("TIMESTAMP", DataType::Utf8),
            ("event_id", DataType::Int64),
            ("event_ts", TIME),
            ("order_id", DataType::Int64),
            ("cust_loyalty_category", DataType::Utf8),
        ];
        columns.extend(WIDE_TEXTS.map(|name| (name, DataType::Utf8)));
        let decimals = ["amount", "tax", "discount"];
        columns.extend(decimals.map(|name| (name, DataType::Decimal128(18, 2))));
        columns.push(("weight", DataType::Float64));
        columns.extend(["quantity", "warehouse"].map(|name| (name, DataType::Int32)));
        columns.push(("created_ts", TIME));
        columns.extend(["due_date", "ship_date"].map(|name| (name, DataType::Date32)));
        schema_of(&columns)
    }

    fn push(&mut self, row: u64, commit: &Commit, arguments: &Arguments, random: &mut SplitMix64) {
        let event_us = event_us(commit, arguments, random);
        self.op.append_value(operation(random).0);
        self.timestamp.append_value(&commit.text);
        self.event_id.append_value(row as i64);
        self.event_ts.append_value(event_us);
        self.order_id.append_value(key(row, arguments, random) as i64);
        self.cust_loyalty_category.append_value(category(random));
        let [name, mail, street, comment, city, country, status, currency] = &mut self.texts;
        name.append_value(random.letters(10, 20));
        mail.append_value(format!("{}@example.com", random.letters(6, 12)));
        street.append_value(format!("{} {}", random.letters(8, 16), random.below(200)));
        comment.append_value(random.letters(30, 60));
        city.append_value(format!("city {:03}", random.below(500)));
        country.append_value(random.one_of(&["AT", "BE", "CH", "DE", "DK", "ES", "FR", "IT"]));
        status.append_value(random.one_of(&["open", "paid", "sent", "done", "back"]));
        currency.append_value(random.one_of(&["EUR", "CHF", "DKK"]));
        for decimals in &mut self.decimals {
            decimals.append_value(random.below(10_000_000).into());
        }
        self.weight.append_value(random.below(1 << 40) as f64 / 1e6);
        for counts in &mut self.counts {
            counts.append_value(random.below(100) as i32);
        }
        self.created_ts.append_value(event_us - random.below(90 * DAY_US as u64) as i64);
        for dates in &mut self.dates {
            let day = (event_us / DAY_US) as i32 + random.below(30) as i32;
            dates.append_option((random.below(10) > 0).then_some(day));
        }
    }

    fn finish(mut self) -> Vec<ArrayRef> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.op.finish()),
            Arc::new(self.timestamp.finish()),
            Arc::new(self.event_id.finish()),
            Arc::new(self.event_ts.finish()),
            Arc::new(self.order_id.finish()),
            Arc::new(self.cust_loyalty_category.finish()),
        ];
        columns.extend(self.texts.map(|mut texts| Arc::new(texts.finish()) as ArrayRef));
        let decimals = self.decimals;
        columns.extend(decimals.map(|mut column| Arc::new(column.finish()) as ArrayRef));
        columns.push(Arc::new(self.weight.finish()));
        columns.extend(self.counts.map(|mut column| Arc::new(column.finish()) as ArrayRef));
        columns.push(Arc::new(self.created_ts.finish()));
        columns.extend(self.dates.map(|mut column| Arc::new(column.finish()) as ArrayRef));
        columns
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
    /// A different sequence per file.
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

    fn one_of(&mut self, values: &[&'static str]) -> &'static str {
        values[self.below(values.len() as u64) as usize]
    }

    /// Random small letters, with a length within the given bounds.
    fn letters(&mut self, least: u64, most: u64) -> String {
        let count = least + self.below(most - least + 1);
        let mut letters = String::with_capacity(count as usize);
        let mut bits = 0;
        for number in 0..count {
            if number % 12 == 0 {
                bits = self.next_u64();
            }
            letters.push(char::from(b'a' + (bits % 26) as u8));
            bits /= 26;
        }
        letters
    }

    /// Evenly from `0..end`.
    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(end)) >> 64) as u64
    }
}
