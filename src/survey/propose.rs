//! The settings of one table, from its files' names and a sample of its rows.

use std::collections::BTreeSet;
use std::ops::Range;

use arrow::datatypes::DataType;
use serde_json::Value as Json;
use toml::{Table, Value};

use crate::config::{Dialect, LINE_COLUMNS, LOADS_OF_DMS, Operation, Raw, RawFormat, UNANSWERED};
use crate::error::{Error, Kind, Result};
use crate::layout::{base_name, load_time};
use crate::report::size;
use crate::survey::key::{self, Key};
use crate::survey::order::{self, Order};
use crate::survey::sample::{Column, Head, Reading, Sample, SampledFile};
use crate::survey::tables::{Files, Sampled};
use crate::survey::transactions::TableToRead;
use crate::survey::{
    Certainty, KnownTable, Proposal, Setting, csv_text, csv_types, days, operations, personal,
};
use crate::types::column_type::widen;

/// The name of the operation column of CSV files without a header.
const OP: &str = "Op";
/// The name of the commit time of CSV files without a header.
const COMMIT_TIME: &str = "commit_ts";
/// What the names of other columns of CSV files without a header begin with.
const COLUMN: &str = "column_";
/// Names of columns with the time of a row's last change, in lower case.
const LAST_CHANGES: [&str; 8] = [
    "updated_at",
    "modified_at",
    "last_updated",
    "last_modified",
    "update_ts",
    "updated_on",
    "modified_on",
    "last_update",
];
/// Names of columns that say when or whether a row was deleted, in lower case.
const DELETED: [&str; 6] =
    ["deleted_at", "deleted_on", "is_deleted", "deleted", "_deleted", "__deleted"];

/// A table to propose settings for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proposing<'a> {
    pub(super) reading: &'a Reading<'a>,
    pub(super) table: &'a TableToRead,
    /// What the source's catalog says of it.
    pub(super) known: Option<&'a KnownTable>,
    /// Whether it is known by its schema, too.
    pub(super) is_known_by_schema: bool,
}

/// Settings as they are found.
#[derive(Debug, Default)]
struct Draft {
    settings: Vec<Setting>,
    notes: Vec<String>,
    /// `[raw]` so far, to read the sample with.
    section: Table,
}

impl Draft {
    fn set(
        &mut self,
        key: &str,
        value: impl Into<Value>,
        certainty: Certainty,
        why: impl Into<String>,
    ) {
        let (value, why) = (value.into(), why.into());
        if let Some(name) = key.strip_prefix("raw.") {
            match name.split_once('.') {
                None => {
                    self.section.insert(name.into(), value.clone());
                }
                Some((section, name)) => {
                    let inner =
                        self.section.entry(section).or_insert_with(|| Value::Table(Table::new()));
                    if let Value::Table(inner) = inner {
                        inner.insert(name.into(), value.clone());
                    }
                }
            }
        }
        self.settings.retain(|setting| setting.key != key);
        self.settings.push(Setting { key: key.into(), value, certainty, why });
    }

    /// A setting that the files themselves show.
    fn sure(&mut self, key: &str, value: impl Into<Value>) {
        self.set(key, value, Certainty::Sure, "");
    }

    /// The settings so far, to read a sample with: what is bad in it is left out.
    fn raw(&self) -> Result<Raw> {
        let mut section = self.section.clone();
        section.retain(|_, value| value.as_str() != Some(UNANSWERED));
        section.insert("url".into(), "/sample".into());
        section.insert("on_bad_row".into(), "quarantine".into());
        section.insert("on_bad_file".into(), "quarantine".into());
        Raw::of_section(section)
    }
}

impl Proposing<'_> {
    fn files(&self) -> &Files {
        &self.table.found.files
    }

    /// The files to read, each a full load or not, loads first.
    fn sampled(&self) -> Vec<(&Sampled, bool)> {
        let loads = self.files().loads.sampled().into_iter().map(|sampled| (sampled, true));
        loads
            .chain(self.files().changes.sampled().into_iter().map(|sampled| (sampled, false)))
            .collect()
    }

    /// Reads a sample and proposes settings.
    ///
    /// # Errors
    /// Storage, when a file cannot be fetched.
    pub(super) async fn propose(&self) -> Result<Proposal> {
        let format = self.files().format();
        let mut draft = Draft::default();
        if format != RawFormat::Parquet {
            draft.sure("raw.format", format.name());
        }
        if self.files().is_mixed() {
            draft.notes.push(
                "it has Parquet and CSV files: give each format a folder, a pipeline and a table of its own".into(),
            );
        }
        let heads = self.heads(format).await?;
        let written = self.form(format, &heads, &mut draft).await?;
        let mut sample = self.sample(&draft, &heads).await?;
        let mut order = order::find(&sample);
        if let Some(written) = written.filter(|written| !written.form.header) {
            self.name_columns(&mut draft, &mut sample, &mut order, &written);
        }
        draft
            .notes
            .extend(sample.unreadable.iter().map(|why| format!("a file cannot be read: {why}")));
        if sample.bad_rows > 0 {
            draft.notes.push(format!(
                "rows of the sample that cannot be read: {}, such as one that {}; a run stops at them",
                sample.bad_rows, sample.why_bad
            ));
        }
        self.by_names(&mut draft);
        self.operations(&mut draft, &sample);
        let others = self.roles(&mut draft, &sample, order)?;
        self.days(&mut draft, &sample, &others)?;
        types(&mut draft, &sample, format)?;
        let personal = personal::find(&sample, &others);
        Ok(Proposal {
            folder: self.table.found.folder.clone(),
            raw: self.table.found.raw.clone(),
            format,
            files: self.files().count(),
            bytes: self.files().bytes(),
            rows: sample.rows(),
            settings: draft.settings,
            personal,
            notes: draft.notes,
        })
    }

    /// The first bytes of each file to read, if these are texts.
    async fn heads(&self, format: RawFormat) -> Result<Vec<Option<Head>>> {
        let mut heads = Vec::new();
        if format != RawFormat::Parquet {
            for (sampled, _) in self.sampled() {
                heads.push(self.reading.head(sampled).await?);
            }
        }
        Ok(heads)
    }

    /// What must be known before rows can be read: envelopes, and how CSV files are written.
    async fn form(
        &self,
        format: RawFormat,
        heads: &[Option<Head>],
        draft: &mut Draft,
    ) -> Result<Option<csv_text::Written>> {
        match format {
            RawFormat::Csv => self.csv_form(heads, draft),
            RawFormat::Json => {
                if heads.iter().flatten().any(|head| head.text.trim_ascii_start().starts_with(b"["))
                {
                    draft.notes.push(
                        "files are JSON arrays, and a run reads one object a line: jq -c '.[]' makes such files".into(),
                    );
                }
                let mut first = heads.iter().flatten().filter_map(|head| first_object(&head.text));
                if first.any(|object| is_envelope(&object)) {
                    draft.sure("raw.dialect", Dialect::Debezium.name());
                }
                Ok(None)
            }
            RawFormat::Parquet => {
                for (sampled, _) in self.sampled() {
                    let file = match self.reading.parquet(sampled).await {
                        Ok(file) => file,
                        Err(error) if error.kind == Kind::Data => continue,
                        Err(error) => return Err(error),
                    };
                    let has = |name: &str| file.schema().column_with_name(name).is_some();
                    let is_struct = |name: &str| {
                        file.schema()
                            .column_with_name(name)
                            .is_some_and(|(_, field)| field.data_type().is_nested())
                    };
                    if has("op") && (is_struct("after") || is_struct("before")) {
                        draft.sure("raw.dialect", Dialect::Debezium.name());
                    }
                    break;
                }
                Ok(None)
            }
        }
    }

    fn csv_form(
        &self,
        heads: &[Option<Head>],
        draft: &mut Draft,
    ) -> Result<Option<csv_text::Written>> {
        let sampled = self.sampled();
        let texts: Vec<csv_text::Head> = sampled
            .iter()
            .zip(heads)
            .filter_map(|((_, is_load), head)| {
                let head = head.as_ref()?;
                Some(csv_text::Head { text: &head.text, is_load: *is_load })
            })
            .collect();
        if let Some(in_lines) = &self.table.in_lines {
            return self.form_of_lines(in_lines, &texts, draft).map(Some);
        }
        let Some(written) = csv_text::find(&texts)? else {
            let why = "no file that was read has a line: write whether the first line names the columns; if it does not, list them in \
                       [raw.columns]";
            draft.set("raw.csv_header", UNANSWERED, Certainty::Asked, why);
            draft.section.insert("csv_header".into(), true.into());
            return Ok(None);
        };
        let form = &written.form;
        if form.delimiter != b',' {
            draft.sure("raw.csv_delimiter", char::from(form.delimiter).to_string());
        }
        if form.escape.is_some() {
            draft.set(
                "raw.csv_escape",
                "\\",
                Certainty::Likely,
                "quotes have a backslash before them",
            );
        }
        if form.unquoted {
            draft.set(
                "raw.csv_quoted",
                false,
                Certainty::Likely,
                "quotes stand where they can have no meaning",
            );
        }
        if let Some(null) = &form.null {
            let why = "this text stands without quotes, and no field is empty";
            draft.set("raw.csv_null", null.clone(), Certainty::Likely, why);
        }
        if form.header {
            draft.set("raw.csv_header", true, Certainty::Likely, "the first lines are names");
            return Ok(Some(written));
        }
        if written.is_header_unclear {
            let why = "the first line may be names, or a row: write true or false. With false, [raw.columns] has to list all columns";
            draft.set("raw.csv_header", UNANSWERED, Certainty::Asked, why);
        }
        if form.op_in_full_load {
            draft.sure("raw.csv_op_in_full_load", true);
        }
        if written.has_op {
            let op = self.op_name(draft);
            draft.sure(&format!("raw.columns.{op}"), "VARCHAR");
        }
        for number in 1..=written.columns.saturating_sub(usize::from(written.has_op)) {
            draft.set(&format!("raw.columns.{COLUMN}{number}"), "VARCHAR", Certainty::Guess, "");
        }
        Ok(Some(written))
    }

    /// The form of files with the changes of all tables, by the table's name in them and the number of its own columns.
    fn form_of_lines(
        &self,
        (name, columns): &(String, usize),
        texts: &[csv_text::Head],
        draft: &mut Draft,
    ) -> Result<csv_text::Written> {
        draft.sure("raw.layout", "transactions");
        draft.sure("raw.table", name.clone());
        let op = self.op_name(draft);
        for name in [op, self.free_name("table"), self.free_name("schema")] {
            draft.sure(&format!("raw.columns.{name}"), "VARCHAR");
        }
        let form = crate::config::CsvForm::default();
        let columns = match columns {
            // Only its full loads were seen.
            0 => csv_text::find(texts)?.map_or(0, |written| written.columns),
            seen => *seen,
        };
        for number in 1..=columns {
            draft.set(&format!("raw.columns.{COLUMN}{number}"), "VARCHAR", Certainty::Guess, "");
        }
        let columns = columns + LINE_COLUMNS;
        Ok(csv_text::Written { form, columns, has_op: true, is_header_unclear: false })
    }

    async fn sample(&self, draft: &Draft, heads: &[Option<Head>]) -> Result<Sample> {
        let raw = draft.raw()?;
        let sampled = self.sampled();
        match self.reading.sample(&raw, &sampled, heads).await {
            Ok(sample) => Ok(sample),
            // What is wrong with all rows is a finding, not an error of this command.
            Err(error) if error.kind == Kind::Data => {
                Ok(Sample { unreadable: vec![error.to_string()], ..Sample::default() })
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the columns of CSV files without a header names: those of the source's catalog, else numbers.
    fn name_columns(
        &self,
        draft: &mut Draft,
        sample: &mut Sample,
        order: &mut Order,
        written: &csv_text::Written,
    ) {
        let before = match &self.table.in_lines {
            Some(_) => LINE_COLUMNS,
            None => usize::from(written.has_op),
        };
        let count = written.columns.saturating_sub(before);
        let of_source = self.known.map(|known| known.columns.as_slice());
        // With the columns of the source, it is known whether there is another one, which is the first or the last.
        let may_be_time = |number: usize| match of_source.map(<[_]>::len) {
            Some(known) if known == count => false,
            Some(known) if known + 1 == count => number == 1 || number == count,
            _ => true,
        };
        let time = order.columns.first().filter(|_| order.unit.is_none());
        let time = (1..=count)
            .find(|number| time == Some(&format!("{COLUMN}{number}")))
            .filter(|number| may_be_time(*number));
        if time.is_none() && order.columns.first().is_some_and(|column| column.starts_with(COLUMN))
        {
            *order = Order::default();
        }
        let own = count - usize::from(time.is_some());
        let known = of_source.filter(|columns| columns.len() == own);
        let mut names = known.into_iter().flatten();
        let mut renamed = Vec::new();
        for number in 1..=count {
            let before = format!("{COLUMN}{number}");
            let (new, data_type) = if time == Some(number) {
                let name = self.free_name(COMMIT_TIME);
                order.columns = vec![name.clone()];
                (name, None)
            } else if let Some((known, data_type)) = names.next() {
                (known.clone(), Some(data_type.clone().unwrap_or_else(|| "VARCHAR".into())))
            } else {
                (before.clone(), None)
            };
            renamed.push((before, new, data_type));
        }
        draft.settings.retain(|setting| !setting.key.starts_with(&format!("raw.columns.{COLUMN}")));
        if let Some(Value::Table(columns)) = draft.section.get_mut("columns") {
            columns.retain(|name, _| !name.starts_with(COLUMN));
        }
        for (before, new, of_source) in renamed {
            let column = sample.columns.iter_mut().find(|column| column.name == before);
            let found = column.map(|column| {
                column.name.clone_from(&new);
                csv_types::of(column)
            });
            let is_known = of_source.is_some();
            let data_type = of_source.or(found).unwrap_or_else(|| "VARCHAR".into());
            let is_sure = is_known && self.is_known_by_schema;
            let certainty = if is_sure { Certainty::Sure } else { Certainty::Guess };
            draft.set(&format!("raw.columns.{new}"), data_type, certainty, "");
        }
        match (self.known, known) {
            (_, Some(_)) => {}
            (Some(known), None) => draft.notes.push(format!(
                "lines have {own} columns of the table, and the source has {}: the columns have no names yet",
                known.columns.len()
            )),
            (None, None) => draft.notes.push(
                "the files do not name their columns: give them their names and types in [raw.columns], or take these \
                 from the source with --source-url-env"
                    .into(),
            ),
        }
    }

    /// A name for a column of the tool that no column of the source has.
    fn free_name(&self, name: &str) -> String {
        let columns = self.known.map_or(&[][..], |known| &known.columns);
        let mut free = name.to_string();
        while columns.iter().any(|(known, _)| known.eq_ignore_ascii_case(&free)) {
            free.insert(0, '_');
        }
        free
    }

    /// The name of the operation column of files that name none.
    fn op_name(&self, draft: &mut Draft) -> String {
        let name = self.free_name(OP);
        if name != OP {
            draft.sure("raw.op", name.clone());
        }
        name
    }

    /// What the names of files say: how windows select them, and which are full loads.
    fn by_names(&self, draft: &mut Draft) {
        let found = &self.table.found;
        let changes = &found.files.changes;
        let (all, named, dated) = (changes.files, found.files.named, found.files.dated);
        if all > 0 && named == all {
            draft.sure("raw.window_by", "name");
        } else if all > 0 && dated == all {
            draft.sure("raw.window_by", "path");
        } else if all == 0 && found.files.has_named_loads {
            let why =
                "there are only full loads so far; the names of changes of AWS DMS have a time";
            draft.set("raw.window_by", "name", Certainty::Guess, why);
        } else if all > 0 {
            draft.notes.push(
                "neither the names nor the folders of all files have a time: windows select files by when they were written"
                    .into(),
            );
        }
        if found.loads_in.is_empty() {
            return;
        }
        let mut patterns: Vec<Value> = Vec::new();
        if found.files.has_named_loads {
            patterns.extend(LOADS_OF_DMS.map(Value::from));
        }
        patterns.extend(found.loads_in.iter().map(|folder| Value::from(self.load_pattern(folder))));
        draft.set("raw.full_load", patterns, Certainty::Likely, "by the name of their folder");
    }

    /// The pattern of full loads in a folder. It begins with the location where a shorter one would be of changes, too.
    fn load_pattern(&self, folder: &str) -> String {
        let location = self.reading.folder.location.to_string();
        let short = format!("*/{}/*", glob::Pattern::escape(folder));
        let changes = self.files().changes.sampled();
        let is_of_changes = glob::Pattern::new(&short).is_ok_and(|pattern| {
            changes.iter().any(|sampled| pattern.matches(&format!("{location}/{}", sampled.path)))
        });
        if is_of_changes {
            format!("{}/*", glob::Pattern::escape(&format!("{location}/{folder}")))
        } else {
            short
        }
    }

    /// Where full loads of several days are in the order of changes.
    fn times_of_loads(&self, draft: &mut Draft, sample: &Sample) {
        if self.table.found.loads_in.is_empty() {
            return;
        }
        let loads: Vec<&SampledFile> = sample.files.iter().filter(|file| file.is_load).collect();
        let days = loads
            .iter()
            .map(|file| load_time(&file.path, chrono_tz::UTC).map(|time| time.date_naive()));
        let days: Option<BTreeSet<_>> = days.collect();
        if days.is_none_or(|days| days.len() < 2) {
            return;
        }
        if repeats_rows(sample, &loads) && draft.section.contains_key("order_by") {
            let why = "there are full loads of several days, which have the same rows: each ends what was before it";
            draft.set("raw.full_load_at", "name", Certainty::Likely, why);
            return;
        }
        let why = "there are full loads of several days. Write \"before\" if they are parts of one load; or \"name\" if each \
                   is a load of the whole table, which ends what was before it: that needs the column with the commit time \
                   in raw.order_by";
        draft.set("raw.full_load_at", UNANSWERED, Certainty::Asked, why);
    }

    /// What the operations of the changes are.
    fn operations(&self, draft: &mut Draft, sample: &Sample) {
        if draft.section.contains_key("dialect") || self.table.in_lines.is_some() {
            return;
        }
        let has = |name: &str| sample.column(name).is_some();
        if has("header__change_oper") && has("header__change_seq") {
            draft.sure("raw.dialect", Dialect::Qlik.name());
            return;
        }
        if has("__$operation") && has("__$start_lsn") {
            draft.sure("raw.dialect", Dialect::SqlServerCdc.name());
            return;
        }
        if let Some(found) = operations::find(sample) {
            if found.is_unclear {
                let why = format!(
                    "the column `{0}` may say what has happened to each row: write \"{0}\" then; if it is one of the \
                     application, replace this line by dialect = \"flat\"",
                    found.column
                );
                draft.set("raw.op", UNANSWERED, Certainty::Asked, why);
                return;
            }
            if !found.column.eq_ignore_ascii_case(OP) {
                let why = "its name and its values say so";
                draft.set("raw.op", found.column, Certainty::Likely, why);
            }
            for (key, values) in found.values {
                let values: Vec<Value> = values.into_iter().map(Value::from).collect();
                draft.set(&format!("raw.op_values.{key}"), values, Certainty::Likely, "");
            }
            return;
        }
        if has(OP) || sample.changes().all(|file| file.rows.is_empty()) {
            // An operation that is not known stops a run, or there are only full loads so far.
            return;
        }
        self.without_operations(draft, sample);
    }

    /// What rows without operations are: copies of the table, or rows as they are from then on.
    fn without_operations(&self, draft: &mut Draft, sample: &Sample) {
        let files: Vec<_> = sample.changes().collect();
        let dated = files.iter().map(|file| load_time(&file.path, chrono_tz::UTC));
        let days: Option<BTreeSet<_>> = dated.collect();
        let are_copies = days.is_some_and(|days| days.len() > 1) && repeats_rows(sample, &files);
        if are_copies {
            let why = "rows have no operation, and those of one date come again with the next. Write \"snapshot\" if each date has \
                       a complete copy of the table, so that rows which a copy lacks are deleted; or \"changes\" if it has \
                       the rows that were changed";
            draft.set("raw.kind", UNANSWERED, Certainty::Asked, why);
            draft.sure("raw.dialect", Dialect::Flat.name());
            return;
        }
        let why = "rows have no operation: each is the row as it is from then on";
        draft.set("raw.dialect", Dialect::Flat.name(), Certainty::Likely, why);
        match delete_when(sample) {
            Some(condition) => {
                draft.set("raw.delete_when", condition, Certainty::Guess, "by the name of the column and its values");
            }
            None => draft.notes.push(
                "rows that are deleted at the source are not seen: no column is known to say so (raw.delete_when)".into(),
            ),
        }
    }

    /// The order of changes and the key. Returns the columns that are not the table's own.
    fn roles(&self, draft: &mut Draft, sample: &Sample, order: Order) -> Result<Vec<String>> {
        let dialect = draft.section.get("dialect").and_then(Value::as_str).map(String::from);
        let are_copies = draft.section.contains_key("kind");
        let is_flat = dialect.as_deref() == Some(Dialect::Flat.name()) && !are_copies;
        if dialect.is_none() || is_flat {
            set_order(draft, if is_flat { last_change(sample) } else { order });
        }
        let raw = draft.raw_as_far_as_known()?;
        let mut others: Vec<String> =
            raw.op.name.iter().chain(&raw.order_by).chain(&raw.commit_time).cloned().collect();
        let is_of_tool = |name: &str| {
            let lower = name.to_ascii_lowercase();
            let starts = ["header__", "__$", "_commit_", "_hoodie_", "ar_h_"];
            ["_lsn", "_xid"].contains(&lower.as_str())
                || starts.iter().any(|start| lower.starts_with(start))
                || raw.dialect == Dialect::Debezium && lower.starts_with("__")
        };
        others.extend(
            sample.columns.iter().map(|column| column.name.clone()).filter(|name| is_of_tool(name)),
        );
        if self.table.in_lines.is_some() {
            others.extend(["table", "schema"].map(|name| self.free_name(name)));
        }
        let operations = operations_of(sample, &raw);
        let files = self.files();
        let sampled = self.sampled().len() as u64;
        let rows = key::Rows {
            sample,
            operations: &operations,
            others: &others,
            table: base_name(&self.table.found.folder),
            is_flat: is_flat || are_copies,
            are_copies,
            is_gapless: sampled == files.count()
                && sample.files.len() as u64 == sampled
                && sample.files.iter().all(|file| file.is_whole),
        };
        let found = key::find(&rows);
        let key = self.key(found, sample, &rows);
        if raw.envelope.is_none()
            && let Some(prefix) = &key.before_image_prefix
        {
            draft.sure("raw.before_image_prefix", prefix.clone());
        }
        self.times_of_loads(draft, sample);
        let key = of_several_tables(sample).map_or(key, key::unknown);
        let key = self.with_path_columns(draft, key);
        let value: Vec<Value> = match key.columns {
            Some(columns) => columns.into_iter().map(Value::from).collect(),
            None => vec![UNANSWERED.into()],
        };
        draft.set("key", value, key.certainty, key.why);
        Ok(others)
    }

    /// The key where folders say columns, such as tenants: whether these belong to it is asked.
    fn with_path_columns(&self, draft: &mut Draft, key: Key) -> Key {
        let columns = &self.files().path_columns;
        if columns.is_empty() {
            return key;
        }
        let named: Vec<Value> = columns.iter().cloned().map(Value::from).collect();
        draft.set(
            "raw.path_columns",
            named,
            Certainty::Likely,
            "folders say these columns of their files",
        );
        let names = columns.iter().cloned().collect::<Vec<_>>().join(", ");
        let found = key.columns.map_or("it is not known".into(), |columns| columns.join(", "));
        let why = format!(
            "folders say the columns {names}. Write them into the key if rows of two folders can have the same key, as those \
             of tenants; if they cannot, leave them out: then a row moves to another folder. Without them: {found} ({})",
            key.why
        );
        Key { before_image_prefix: key.before_image_prefix, ..key::unknown(why) }
    }

    /// The key that the source's catalog has, else the one that was found.
    fn key(&self, found: Key, sample: &Sample, rows: &key::Rows) -> Key {
        let Some(known) = self.known else { return found };
        if known.key.is_empty() {
            let why = format!(
                "the source's table {}.{} has no primary key and no unique index without nulls: every row is kept",
                known.schema, known.table
            );
            return match found.columns {
                // Updates and deletes need one.
                Some(columns) if !columns.is_empty() => Key {
                    why: format!("the source has no primary key; {}", found.why),
                    columns: Some(columns),
                    ..found
                },
                _ => Key {
                    columns: Some(Vec::new()),
                    certainty: Certainty::Likely,
                    why,
                    before_image_prefix: None,
                },
            };
        }
        let named = |name: &String| sample.column(name).map(|column| column.name.clone());
        let Some(columns) = known.key.iter().map(named).collect::<Option<Vec<String>>>() else {
            return Key {
                why: format!(
                    "the source's key is {}, which the files do not have; {}",
                    known.key.join(", "),
                    found.why
                ),
                certainty: found.certainty.max(Certainty::Guess),
                ..found
            };
        };
        if !rows.may_be_key(&columns) {
            return key::unknown(format!(
                "the source's table {}.{} has the key {}, and the files have rows that contradict it; {}",
                known.schema,
                known.table,
                columns.join(", "),
                found.why
            ));
        }
        let (certainty, why) = if self.is_known_by_schema {
            (Certainty::Sure, "the source's catalog says so".to_string())
        } else {
            (
                Certainty::Guess,
                format!(
                    "of the source's table {}.{}, by its name alone",
                    known.schema, known.table
                ),
            )
        };
        Key {
            columns: Some(columns),
            certainty,
            why,
            before_image_prefix: found.before_image_prefix,
        }
    }

    /// The column whose day is that of a row, if partitions by it are worth it.
    fn days(&self, draft: &mut Draft, sample: &Sample, others: &[String]) -> Result<()> {
        let raw = draft.raw_as_far_as_known()?;
        if raw.envelope.is_some() {
            // Times of rows in envelopes are numbers.
            return Ok(());
        }
        let operations = operations_of(sample, &raw);
        let has_all =
            |row: &usize| matches!(operations[*row], Operation::Insert | Operation::Update);
        let rows: Vec<usize> = (0..sample.rows()).filter(has_all).collect();
        let files = self.files();
        let bytes = if files.loads.files > 0 { files.loads.bytes } else { files.changes.bytes };
        let Some(found) = days::find(sample, others, &rows, bytes) else { return Ok(()) };
        let estimate = format!(
            "by the day of `{}` there would be about {} partitions of about {} of raw files each",
            found.column,
            found.days,
            size(found.bytes)
        );
        if found.are_worth_it() {
            draft.set("raw.event_time", found.column, Certainty::Guess, estimate);
            draft.set("curated.partition_by", vec![Value::from("event_dt")], Certainty::Guess, "");
        } else {
            draft.notes.push(format!("{estimate}: too small, so that the table has none"));
        }
        Ok(())
    }
}

impl Draft {
    /// The settings so far, without questions.
    fn raw_as_far_as_known(&self) -> Result<Raw> {
        let mut known = Draft { section: self.section.clone(), ..Draft::default() };
        // It needs the order, and the key.
        for key in ["full_load_at", "delete_when", "before_image_prefix"] {
            known.section.remove(key);
        }
        known.raw().map_err(|error| {
            Error::internal("the settings that were found do not fit together").caused_by(error)
        })
    }
}

/// The condition under which a row is a delete, by a column of a name that says so, if it holds for some rows at most.
fn delete_when(sample: &Sample) -> Option<String> {
    let column = DELETED.iter().find_map(|name| sample.column(name))?;
    let name = format!("\"{}\"", column.name.replace('"', "\"\""));
    let values: BTreeSet<&str> = column.values.iter().flatten().map(String::as_str).collect();
    let are_flags = |flags: &[&str]| values.iter().all(|value| flags.contains(value));
    let is_text = column.data_type.is_string();
    let condition = if column.data_type == DataType::Boolean {
        name
    } else if column.data_type.is_integer() && are_flags(&["0", "1"]) {
        format!("{name} = 1")
    } else if is_text && are_flags(&["true", "false"]) {
        format!("{name} = 'true'")
    } else if is_text && are_flags(&["Y", "N"]) {
        format!("{name} = 'Y'")
    } else if column.name.to_ascii_lowercase().ends_with("_at") && is_text {
        format!("{name} <> ''")
    } else if column.data_type.is_temporal() || column.data_type == DataType::Null {
        format!("{name} IS NOT NULL")
    } else {
        return None;
    };
    let is_set = |value: &Option<String>| {
        value.as_deref().is_some_and(|value| !["", "false", "0", "N"].contains(&value))
    };
    let all = column.values.iter().all(is_set);
    (!all || column.values.is_empty()).then_some(condition)
}

/// Why envelopes are of several tables, if they are.
fn of_several_tables(sample: &Sample) -> Option<String> {
    let column = sample.column("__source.table")?;
    let tables: BTreeSet<&String> = column.values.iter().flatten().collect();
    (tables.len() > 1).then(|| {
        format!(
            "the envelopes are of {} tables: give each a folder of its own, or write the key, and a condition on \
             \"source.table\" in curated.sql",
            tables.len()
        )
    })
}

/// Sets the columns that order changes.
fn set_order(draft: &mut Draft, order: Order) {
    draft.notes.extend(order.note);
    if order.columns.is_empty() {
        return;
    }
    let columns: Vec<Value> = order.columns.into_iter().map(Value::from).collect();
    draft.set("raw.order_by", columns, order.certainty, order.why);
    if let Some(column) = order.commit_time {
        draft.sure("raw.commit_time", column);
    }
    if let Some(unit) = order.unit {
        draft.set("raw.commit_time_unit", unit, Certainty::Likely, "by the size of its numbers");
    }
}

/// The column with the time of a row's last change, in files without operations.
fn last_change(sample: &Sample) -> Order {
    let is_complete = |name: &&str| {
        let column = sample.column(name)?;
        let may_be_time = column.data_type.is_temporal() || column.data_type.is_string();
        (may_be_time && column.values.iter().all(Option::is_some)).then_some(column)
    };
    let Some(column) = LAST_CHANGES.iter().find_map(is_complete) else { return Order::default() };
    Order {
        columns: vec![column.name.clone()],
        certainty: Certainty::Likely,
        why: "its name says that it is when a row was last changed".into(),
        ..Order::default()
    }
}

/// What each row of a sample is.
fn operations_of(sample: &Sample, raw: &Raw) -> Vec<Operation> {
    let column = raw.op.name.as_ref().and_then(|name| sample.column(name));
    let of_row = |row: usize| {
        let value = column.and_then(|column| column.values[row].as_deref());
        raw.op.values.operation(value).unwrap_or(Operation::Ignore)
    };
    (0..sample.rows()).map(of_row).collect()
}

/// Whether most rows of the first of some files come again in the last one, by their first column with different values.
fn repeats_rows(sample: &Sample, files: &[&SampledFile]) -> bool {
    let files: Vec<_> = files.iter().filter(|file| !file.rows.is_empty()).collect();
    let (Some(first), Some(last)) = (files.first(), files.last()) else { return false };
    if first.path == last.path || first.rows.len() < 2 {
        return false;
    }
    let distinct = |rows: &Range<usize>, column: &Column| {
        let values: BTreeSet<String> =
            column.values[rows.clone()].iter().flatten().cloned().collect();
        values
    };
    let is_identifying = |column: &&Column| distinct(&first.rows, column).len() == first.rows.len();
    let Some(column) = sample.columns.iter().find(is_identifying) else { return false };
    let (before, after) = (distinct(&first.rows, column), distinct(&last.rows, column));
    before.intersection(&after).count() * 2 >= before.len()
}

/// Types that files do not agree on, and those of CSV files with a header.
fn types(draft: &mut Draft, sample: &Sample, format: RawFormat) -> Result<()> {
    let has_header = draft.section.get("csv_header").is_some();
    let raw = draft.raw_as_far_as_known()?;
    for column in &sample.columns {
        let key = format!("raw.columns.{}", column.name);
        if has_header {
            let found = csv_types::of(column);
            if found != "VARCHAR" && !raw.op.is(&column.name) {
                draft.set(&key, found, Certainty::Guess, "");
            }
            continue;
        }
        let mut others = column.other_types.iter();
        let common =
            others.try_fold(column.data_type.clone(), |common, other| widen(&common, other));
        if common.is_none() && column.data_type.is_nested() {
            draft.notes.push(format!(
                "the column `{}` has structures that do not fit together: leave it out in a curated.sql",
                column.name
            ));
        }
        if format != RawFormat::Csv && common.is_none() && !column.data_type.is_nested() {
            let why = "files have it in types that do not fit together";
            draft.set(&key, "VARCHAR", Certainty::Guess, why);
        }
    }
    Ok(())
}

/// The first object of JSON lines; of one with a payload, that.
fn first_object(text: &[u8]) -> Option<serde_json::Map<String, Json>> {
    let mut lines = text.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    lines.find_map(|line| match serde_json::from_slice(line) {
        Ok(Json::Object(mut object)) => match object.remove("payload") {
            Some(Json::Object(payload)) => Some(payload),
            Some(Json::Null) => None,
            _ => Some(object),
        },
        _ => None,
    })
}

/// Whether an object is the envelope of a change, as Debezium writes it.
fn is_envelope(object: &serde_json::Map<String, Json>) -> bool {
    let is_row = |name: &str| object.get(name).is_some_and(Json::is_object);
    object.contains_key("op") && (is_row("after") || is_row("before"))
}
