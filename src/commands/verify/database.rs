//! Compares the published table with a table of a database, such as the source of its changes.
//!
//! The rows of the database's table are read in one snapshot, into the spill folder. Both tables are compared by
//! the columns that both have: rows are counted and hashed; if that differs, equal rows on both sides cancel each
//! other out, and those that are left are the keys that differ.
//!
//! The published table is behind its source by what was not captured and folded yet. So a comparison can be made
//! twice: what differs both times, although the source's row has not changed in between, is a difference. Or the
//! source is captured and folded up to the snapshot ([`super::at_position`]).

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type};
use arrow::row::{RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{ident, lit, try_cast, when};
use datafusion::prelude::{DataFrame, SessionContext};
use futures::TryStreamExt;
use tracing::{info, warn};

use super::at_position::captured_and_folded;
use super::buckets::{buckets_of, rows_of};
use super::{
    Compared, KeyDifference, OpenPipeline, POSTGRES, Side, Verified, aligned, quarantine_note, side,
};
use crate::capture::export::{Exported, Reader, WantedColumns};
use crate::commands::one_commit::{Reads, of_one_commit};
use crate::commands::open_pipeline::{RunContext, span_of};
use crate::config::{DELETED, Keep, Pipeline, VerifyMethod, VerifySource};
use crate::engine::session::sorting_session;
use crate::error::{Error, Result};
use crate::postgres::row_hash::{BUCKETS, Bucket};
use crate::state::State;
use crate::state::contract::read_types;
use crate::state::inputs::NeededInputs;
use crate::state::ledger::CURATED;
use crate::table::digest::{Digest, DigestColumns, digest};
use crate::table::files::{FileTable, PartitionFile};

/// The most rows that differ that are told apart.
const DIFFERENT_MAX: usize = 200_000;
/// The keys that are named.
const NAMED: usize = 10;

/// The differences of a comparison.
struct Found {
    verified: Verified,
    /// The columns that were compared.
    columns: Vec<String>,
    /// The keys that differ, by their values in arrow's row format.
    keys: BTreeMap<Box<[u8]>, Difference>,
    /// Whether there were more.
    is_cut: bool,
}

/// A key that differs, with hashes of the columns of its rows.
#[derive(Clone, Debug, Default)]
struct Difference {
    key: Vec<(String, String)>,
    expected: Vec<Vec<u64>>,
    found: Vec<Vec<u64>>,
}

pub(super) async fn against_database(
    run_context: &RunContext<'_>,
    compared: &Compared,
) -> Result<Verified> {
    let pipeline = run_context.pipeline;
    let settings = pipeline.verify.as_ref().ok_or_else(|| {
        Error::usage(format!("the pipeline `{}` has no [verify]", pipeline.name))
            .hint("add [verify] with `url_env` and `table`")
    })?;
    if matches!(pipeline.keep, Keep::LatestPerDay | Keep::History) {
        return Err(Error::usage(format!(
            "a table of `keep = \"{}\"` has several rows per key",
            pipeline.keep
        ))
        .hint("compare a table of `keep = \"latest\"` with the database"));
    }
    if compared.days.is_some() {
        return Err(Error::usage("days cannot be selected with --against postgres")
            .hint("leave --start-date and --end-date out"));
    }
    let mut position = None;
    let reader = reader_of(run_context, settings).await?;
    let mut found = match &compared.source {
        None => compare(run_context, &reader, 1).await?,
        Some((source, run_ids)) => {
            let held = captured_and_folded(run_context, (source, run_ids), reader).await?;
            position = Some(held.position.clone());
            compare(run_context, &held.reader, 1).await?
        }
    };
    if let Some(lag) = compared.lag
        && !found.keys.is_empty()
        && !found.is_cut
    {
        info!("{} keys differ: comparing again in {} s", found.keys.len(), lag.as_secs());
        tokio::time::sleep(lag).await;
        let again = compare(run_context, &reader_of(run_context, settings).await?, 2).await?;
        found = again.and_before(&found);
    }
    let mut verified = found.verified;
    if let Some(position) = position {
        let note = format!("both are as of {position} in the log: captured and folded up to there");
        verified.notes.insert(0, note);
    }
    verified.keys_different = found.keys.len() as u64;
    let named = found.keys.values().take(NAMED);
    verified.key_differences =
        named.map(|difference| difference.describe(&found.columns)).collect();
    if found.is_cut {
        verified
            .notes
            .push(format!("more than {DIFFERENT_MAX} rows differ: not all were told apart"));
    }
    // Without keys to tell apart, counts and hashes decide.
    verified.is_equal =
        verified.keys_different == 0 && !found.is_cut && verified.columns_unfit.is_empty();
    verified.seconds = run_context.meter.seconds();
    verified.peak_memory_bytes = (run_context.meter.peak_memory_bytes)();
    if verified.is_equal {
        info!("no difference from {}", settings.table);
    } else {
        warn!("{} keys differ from {}", verified.keys_different, settings.table);
    }
    Ok(verified)
}

/// Opens a session that reads the table of the database.
async fn reader_of<'a>(
    run_context: &RunContext<'_>,
    settings: &'a VerifySource,
) -> Result<Reader<'a>> {
    let variable = &settings.url_env;
    let url = run_context.environment.get(variable).filter(|url| !url.is_empty());
    let url = url.ok_or_else(|| {
        Error::usage(format!("the environment has no variable {variable} (`verify.url_env`)"))
            .hint("set it to postgresql://user:password@host:5432/database")
    })?;
    Reader::open((url, variable), &settings.table).await
}

/// Compares with the newest commit.
async fn compare(
    run_context: &RunContext<'_>,
    reader: &Reader<'_>,
    number: usize,
) -> Result<Found> {
    let tries = std::cell::Cell::new(0);
    of_one_commit(run_context, (Reads::Files, NeededInputs::Recent), async |open, state| {
        span_of(state, "verify")?;
        open.check_verifiable(state).await?;
        let name = format!("database-{number}-{}", tries.replace(tries.get() + 1));
        let found = open.compare_with_database(state, reader, &name).await;
        let _ = std::fs::remove_dir_all(open.spill.path().join(name));
        found
    })
    .await
}

impl OpenPipeline<'_> {
    async fn compare_with_database(
        &self,
        state: &State,
        reader: &Reader<'_>,
        folder_name: &str,
    ) -> Result<Found> {
        let pipeline = self.run_context.pipeline;
        let mut verified = Verified {
            pipeline: pipeline.name.clone(),
            against: format!("{POSTGRES}: {}", reader.table),
            ..Default::default()
        };
        let Some(contract) = &state.ledger.contract else {
            return Err(Error::usage("no run has found an input yet: the table does not exist")
                .hint("run the pipeline first"));
        };
        let columns = read_types(&contract.columns)?;
        let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
        reader.begin().await?;
        let plain = without_masked(pipeline, &columns, reader, &mut verified)?;
        let wanted = reader.wanted(&plain).await?;
        let there = wanted.columns();
        let has = |name: &str| there.iter().any(|(it, _)| it.eq_ignore_ascii_case(name));
        check_key(pipeline, |key| has(key) && names.contains(&key), reader)?;
        let of_rows = &columns[..columns.len() - contract.own_columns(pipeline.keep).len()];
        let (common, others): (Vec<_>, Vec<_>) =
            of_rows.iter().cloned().partition(|(name, _)| has(name));
        let others: Vec<_> = others.iter().filter(|column| plain.contains(column)).collect();
        if !others.is_empty() {
            let others: Vec<&str> = others.iter().map(|(name, _)| name.as_str()).collect();
            let note =
                format!("not compared: `{}`, which {} lacks", others.join("`, `"), reader.table);
            verified.notes.push(note);
        }
        let context = sorting_session(&self.runtime, self.run_context.resources.threads);
        let folder = &self.output(CURATED)?.folder;
        let files = state.ledger.files(CURATED).map(PartitionFile::of);
        let table =
            FileTable::of_partitions(folder, files, &columns, &pipeline.curated.partition_by)?;
        let found = side(&context, folder, std::sync::Arc::new(table), &columns)?.rows;
        let found = match pipeline.keep {
            // The database has no deleted rows.
            Keep::LatestAndDeleted => found.filter(ident(DELETED).eq(lit(false)))?,
            _ => found,
        };
        let found = aligned(found, &common)?;
        verified.notes.extend(quarantine_note(state));
        let partition_by = &pipeline.curated.partition_by;
        let mut found = with_nulls(found, &common, partition_by)?;
        let mut all = Found {
            verified,
            columns: common.iter().map(|(name, _)| name.clone()).collect(),
            keys: BTreeMap::new(),
            is_cut: false,
        };
        let hashed = self.compare_hashes(reader, (&wanted, &common), &found, &mut all).await?;
        let mut buckets = None;
        if let Some((hash, different)) = &hashed {
            if different.is_empty() {
                reader.end().await?;
                return Ok(all);
            }
            found.rows = rows_of(found.rows, different)?;
            buckets = Some((hash.as_str(), &different[..]));
        }
        let rows_folder = self.dry_folder(folder_name)?;
        let exported = reader.export(&wanted, buckets, &rows_folder).await?;
        reader.end().await?;
        let expected = database_side(&context, &rows_folder, &exported, &common)?;
        let expected = with_nulls(expected, &common, partition_by)?;
        let verified = &mut all.verified;
        let one = digest_of(&expected, &common, verified).await?;
        let other = digest_of(&found, &common, verified).await?;
        if hashed.is_none() {
            (verified.rows_expected, verified.rows_found) = (one.rows, other.rows);
        }
        if one != other {
            all.find_keys(&context, (&expected.rows, &found.rows), &common, &pipeline.key).await?;
        }
        Ok(all)
    }

    /// Compares by hashes of the server: returns the hash in SQL, and the buckets that differ. `None` if rows are
    /// compared, because the pipeline says so, or the server cannot hash a column, or most rows are to be read.
    async fn compare_hashes(
        &self,
        reader: &Reader<'_>,
        (wanted, columns): (&WantedColumns, &[(String, DataType)]),
        found: &Side,
        all: &mut Found,
    ) -> Result<Option<(String, Vec<usize>)>> {
        let pipeline = self.run_context.pipeline;
        if pipeline.verify.as_ref().is_none_or(|verify| verify.method == VerifyMethod::Rows) {
            return Ok(None);
        }
        let is_partition = |name: &str| pipeline.curated.partition_by.iter().any(|it| it == name);
        let hash = match wanted.hash(columns, is_partition) {
            Ok(hash) => hash,
            Err(column) => {
                all.verified.notes.push(format!(
                    "all rows were read: `{column}` has another type there than in the curated table, so that \
                     the server cannot hash it"
                ));
                return Ok(None);
            }
        };
        let expected = reader.buckets(wanted, &hash).await?;
        let found = buckets_of(&found.rows).await?;
        let rows = |buckets: &[Bucket]| buckets.iter().map(|bucket| bucket.rows).sum::<u64>();
        all.verified.rows_expected = rows(&expected);
        all.verified.rows_found = rows(&found);
        let differ = (0..BUCKETS).filter(|bucket| expected[*bucket] != found[*bucket]);
        let different: Vec<usize> = differ.collect();
        all.verified.notes.push(format!(
            "compared by hashes of the server: {} of {BUCKETS} buckets of rows differ",
            different.len()
        ));
        // Most rows are read sooner with all the others than by hashing them once more.
        let to_read: u64 = different.iter().map(|bucket| expected[*bucket].rows).sum();
        Ok((to_read <= all.verified.rows_expected / 2).then_some((hash, different)))
    }
}

/// The columns of the curated table whose values are those of the source; notes the others.
fn without_masked(
    pipeline: &Pipeline,
    columns: &[(String, DataType)],
    reader: &Reader<'_>,
    verified: &mut Verified,
) -> Result<Vec<(String, DataType)>> {
    let is_masked = |name: &str| pipeline.raw.masks.of(name).is_some();
    if let Some(key) = pipeline.key.iter().find(|key| is_masked(key)) {
        return Err(Error::usage(format!(
            "the key column `{key}` is masked: its values are not those of {}",
            reader.table
        ))
        .hint("compare with raw instead: glueless verify, without --against"));
    }
    let (masked, plain): (Vec<_>, Vec<_>) =
        columns.iter().cloned().partition(|(name, _)| is_masked(name));
    if !masked.is_empty() {
        let masked: Vec<&str> = masked.iter().map(|(name, _)| name.as_str()).collect();
        let note = format!("not compared: `{}`, which `[mask]` masks", masked.join("`, `"));
        verified.notes.push(note);
    }
    Ok(plain)
}

/// Checks that both tables have the key columns.
fn check_key(
    pipeline: &Pipeline,
    is_in_both: impl Fn(&str) -> bool,
    reader: &Reader<'_>,
) -> Result<()> {
    match pipeline.key.iter().find(|key| !is_in_both(key)) {
        None => Ok(()),
        Some(key) => Err(Error::usage(format!(
            "the key column `{key}` is not in both {} and the curated table",
            reader.table
        ))
        .hint("let `verify.table` name a view with the columns of the curated table")),
    }
}

/// A side where an empty text in a partition column is null, as folders have both.
fn with_nulls(side: Side, columns: &[(String, DataType)], partition_by: &[String]) -> Result<Side> {
    let columns = columns.iter().map(|(name, kind)| {
        if kind.is_string() && partition_by.contains(name) {
            let null = lit(ScalarValue::Utf8(None));
            Ok(when(ident(name).eq(lit("")), null).otherwise(ident(name))?.alias(name))
        } else {
            Ok(ident(name))
        }
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    Ok(Side { rows: side.rows.select(columns)?, missing: side.missing })
}

fn database_side(
    context: &SessionContext,
    folder: &crate::store::Folder,
    exported: &Exported,
    common: &[(String, DataType)],
) -> Result<Side> {
    let files = exported.files.iter().map(|(name, bytes)| PartitionFile::new(name, *bytes));
    let table = FileTable::of_partitions(folder, files, &exported.columns, &[])?;
    let rows = side(context, folder, std::sync::Arc::new(table), &exported.columns)?.rows;
    aligned(rows, common)
}

/// Counts and hashes rows, and notes the columns with values that do not fit.
async fn digest_of(
    side: &Side,
    columns: &[(String, DataType)],
    verified: &mut Verified,
) -> Result<Digest> {
    let types = columns.iter().map(|(_, kind)| kind.clone()).collect();
    let whole = DigestColumns { partition_by: Vec::new(), day: None, types };
    let digests = digest(side.rows.clone().execute_stream_partitioned().await?, &whole).await?;
    for at in &digests.unfit {
        let name = &columns[*at].0;
        if !verified.columns_unfit.contains(name) {
            verified.columns_unfit.push(name.clone());
        }
    }
    Ok(digests.partitions.into_values().next().unwrap_or_default())
}

impl Found {
    /// Finds the keys of rows that are not on both sides equally often.
    async fn find_keys(
        &mut self,
        context: &SessionContext,
        (expected, found): (&DataFrame, &DataFrame),
        columns: &[(String, DataType)],
        key: &[String],
    ) -> Result<()> {
        for (name, rows) in [("expected", expected), ("found", found)] {
            let numbered = columns.iter().enumerate();
            let numbered = numbered.map(|(number, (name, kind))| {
                try_cast(ident(name), kind.clone()).alias(format!("c{number}"))
            });
            let rows = rows.clone().select(numbered.collect::<Vec<_>>())?;
            context.register_table(name, rows.into_view())?;
        }
        let list = (0..columns.len()).map(|at| format!("c{at}")).collect::<Vec<_>>().join(", ");
        let query = format!(
            "SELECT {list}, sum(e) - sum(f) AS more FROM ( \
             SELECT {list}, CAST(1 AS BIGINT) AS e, CAST(0 AS BIGINT) AS f FROM expected \
             UNION ALL SELECT {list}, CAST(0 AS BIGINT), CAST(1 AS BIGINT) FROM found) \
             GROUP BY {list} HAVING sum(e) <> sum(f)"
        );
        let mut rows = context.sql(&query).await?.execute_stream().await?;
        let mut different = 0;
        let is_keyless = key.is_empty();
        let key: Vec<usize> = if is_keyless {
            (0..columns.len()).collect()
        } else {
            let at = |name: &String| columns.iter().position(|(column, _)| column == name);
            key.iter().filter_map(at).collect()
        };
        while let Some(batch) = rows.try_next().await? {
            different += batch.num_rows();
            self.add(&batch, columns, &key, is_keyless)?;
            if different > DIFFERENT_MAX {
                self.is_cut = true;
                break;
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        batch: &RecordBatch,
        columns: &[(String, DataType)],
        key: &[usize],
        is_keyless: bool,
    ) -> Result<()> {
        let format = FormatOptions::default().with_null("null");
        let field = |at: &usize| SortField::new(batch.column(*at).data_type().clone());
        let of = |columns: &[usize]| -> Result<_> {
            let arrays: Vec<_> = columns.iter().map(|at| batch.column(*at).clone()).collect();
            Ok(RowConverter::new(columns.iter().map(field).collect())?.convert_columns(&arrays)?)
        };
        let keys = of(key)?;
        let each = (0..columns.len()).map(|at| of(&[at])).collect::<Result<Vec<_>>>()?;
        let more = batch.column(columns.len()).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let difference = self.keys.entry(keys.row(row).data().into()).or_default();
            // Without a key, only values would identify the row, and they are not shown.
            if difference.key.is_empty() && !is_keyless {
                for at in key {
                    let shown = ArrayFormatter::try_new(batch.column(*at).as_ref(), &format)?;
                    let value = shown.value(row).try_to_string()?;
                    difference.key.push((columns[*at].0.clone(), value));
                }
            }
            let hashes = each.iter().map(|rows| {
                let mut hasher = DefaultHasher::new();
                hasher.write(rows.row(row).data());
                hasher.finish()
            });
            let side =
                if more.value(row) > 0 { &mut difference.expected } else { &mut difference.found };
            side.push(hashes.collect());
        }
        Ok(())
    }

    /// What differs now and differed before, although the row of the database is the same.
    fn and_before(mut self, before: &Found) -> Found {
        let mut changing = 0;
        self.keys.retain(|key, now| match before.keys.get(key) {
            None => false,
            Some(then) if then.sorted() == now.sorted() => true,
            Some(_) => {
                changing += 1;
                false
            }
        });
        if changing > 0 {
            self.verified.notes.push(format!(
                "{changing} keys differ both times and have changed in the database in between: not decided"
            ));
        }
        self
    }
}

impl Difference {
    /// The rows of the database, in one order.
    fn sorted(&self) -> Vec<&Vec<u64>> {
        let mut rows: Vec<&Vec<u64>> = self.expected.iter().collect();
        rows.sort();
        rows
    }

    fn describe(&self, columns: &[String]) -> KeyDifference {
        let why = match (&self.expected[..], &self.found[..]) {
            ([], _) => "it has a row that is not expected".into(),
            (_, []) => "its row is missing".into(),
            ([expected], [found]) => {
                let pairs = columns.iter().zip(expected.iter().zip(found));
                let differ = pairs.filter(|(_, (expected, found))| expected != found);
                let names: Vec<String> = differ.map(|(name, _)| format!("`{name}`")).collect();
                format!("its row differs in {}", names.join(", "))
            }
            _ => "its rows differ".into(),
        };
        KeyDifference { partition: String::new(), key: self.key.clone(), why }
    }
}
