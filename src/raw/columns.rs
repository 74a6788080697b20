//! Raw columns: the union of the columns of a run's inputs, by name.
//!
//! Columns can be added, dropped, moved, renamed in case or retyped from file to file. A column of
//! the union has the type that the pipeline sets, or the type that all its files, and those of
//! earlier runs, widen to without loss; without such a type the run stops.
//!
//! A column that has nothing but nulls so far, in all files and all runs, has the type Null.
//!
//! Columns that the pipeline does not use ([`UsedColumns`]) are listed, and that is all: their types
//! are not checked, and no value of theirs is read. Where their types have no common type, it is
//! Null.

use std::sync::Arc;

use arrow::compute::can_cast_types;
use arrow::datatypes::{DataType, Field, SchemaRef, TimeUnit};

use crate::config::{ENVELOPE_PREFIX, LATEST_RELATION, Pipeline, QueryColumns, Raw, unfit};
use crate::error::{Error, Result};
use crate::parquet_io::open::ParquetFile;
use crate::types::column_type::widen;
use crate::types::mask::Mask;

/// The hint where types have no common type.
const FIX: &str = "set its type in `[raw.columns]`, if all values fit it, or fix the files";

/// The columns that a pipeline uses: those that it names, and those that `curated.sql` and
/// `raw.delete_when` read.
#[derive(Clone, Debug, Default)]
pub struct UsedColumns {
    named: Vec<String>,
    query: QueryColumns,
    condition: QueryColumns,
    /// Whether columns can be fields of envelopes.
    has_envelopes: bool,
}

impl UsedColumns {
    /// The columns that a pipeline uses.
    pub(crate) fn of(pipeline: &Pipeline) -> Self {
        let raw = &pipeline.raw;
        let mut named = pipeline.key.clone();
        named.extend(raw.before_images(&pipeline.key));
        named.extend_from_slice(&raw.order_by);
        let roles = [&raw.op.name, &raw.commit_time, &raw.event_time];
        named.extend(roles.into_iter().flatten().cloned());
        UsedColumns {
            named,
            query: pipeline.curated.sql.columns_of(LATEST_RELATION),
            condition: raw.delete_when_columns(),
            has_envelopes: raw.envelope.is_some(),
        }
    }

    /// The columns that `curated.sql` names.
    pub(crate) fn query(&self) -> &QueryColumns {
        &self.query
    }

    /// Whether a column, by its name in any case, is used.
    pub(crate) fn has(&self, column: &str) -> bool {
        let is_named = self.named.iter().any(|name| name.eq_ignore_ascii_case(column));
        let is_read = self.query.uses(column) || self.condition.uses(column);
        is_named || is_read || self.other_name(column).is_some()
    }

    /// The other name by which the queries use a column: a field of envelopes without its prefix, or a
    /// column of rows with `after.` before it.
    fn other_name(&self, column: &str) -> Option<&str> {
        if !self.has_envelopes {
            return None;
        }
        let spelling =
            |name: &str| self.query.spelling(name).or_else(|| self.condition.spelling(name));
        match column.strip_prefix(ENVELOPE_PREFIX) {
            Some(field) => spelling(field),
            None => spelling(&format!("after.{column}")),
        }
    }
}

/// The union of the inputs' columns by name, each with the type that all inputs widen to, or that
/// the pipeline sets.
pub(crate) struct RawColumns<'a> {
    /// The columns, all nullable, in their types before they are masked.
    pub fields: Vec<Field>,
    /// Per field, the file that its type comes from; empty where no file has it.
    source_files: Vec<String>,
    /// Per field, whether the pipeline uses it.
    pub is_used: Vec<bool>,
    /// Per field, whether its types have no common type. It is not used.
    pub is_mixed: Vec<bool>,
    raw: &'a Raw,
    pub used: &'a UsedColumns,
    /// The fields that are other names of columns, with the names that the files have.
    pub other_names: Vec<(usize, String)>,
    /// The schema that was added last, and that before it was masked: many files share them.
    last_schemas: Option<(SchemaRef, Option<SchemaRef>)>,
}

impl<'a> RawColumns<'a> {
    /// An empty union. A column is named as in `curated.sql`, whatever its case in the files.
    pub(crate) fn new(raw: &'a Raw, used: &'a UsedColumns) -> Self {
        RawColumns {
            fields: Vec::new(),
            source_files: Vec::new(),
            is_used: Vec::new(),
            is_mixed: Vec::new(),
            raw,
            used,
            other_names: Vec::new(),
            last_schemas: None,
        }
    }

    fn name_of(&self, column: &str) -> String {
        let in_condition = || self.used.condition.spelling(column);
        self.used.query.spelling(column).or_else(in_condition).unwrap_or(column).to_string()
    }

    /// The file that a column's type comes from, by the column's exact name; `None` if no file has it.
    pub(crate) fn source_of(&self, name: &str) -> Option<&str> {
        let column = self.fields.iter().position(|field| field.name() == name)?;
        Some(self.source_files[column].as_str()).filter(|file| !file.is_empty())
    }

    /// Adds a column, which `file` has; empty if no file has it.
    fn push(&mut self, name: String, data_type: &DataType, file: &str) {
        self.is_used.push(self.used.has(&name));
        self.is_mixed.push(false);
        self.fields.push(Field::new(name, data_type.clone(), true));
        self.source_files.push(file.into());
    }

    /// The index of a column, by its name in any case.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        find_column(self.fields.iter().map(|field| field.name().as_str()), name)
    }

    /// Adds a file's columns, in the order of the run's inputs. Their types are those before they are masked: where the file has
    /// masked values, those of `source`.
    ///
    /// # Errors
    /// Data, naming both files, the column and both types, when these have no common type; or when a column's type cannot
    /// be masked.
    pub(crate) fn add(&mut self, file: &ParquetFile, source: Option<&SchemaRef>) -> Result<()> {
        let schema = file.schema();
        let is_last = |(last, last_source): &(SchemaRef, Option<SchemaRef>)| {
            Arc::ptr_eq(last, schema) && last_source.as_ref() == source
        };
        if self.last_schemas.as_ref().is_some_and(is_last) {
            return Ok(());
        }
        self.last_schemas = Some((Arc::clone(schema), source.cloned()));
        let fields = match source {
            Some(source) => source.fields(),
            // The row number is the last.
            None => &schema.fields()[..schema.fields().len() - 1],
        };
        let names = fields.iter().map(|field| field.name());
        for (index, name) in names.clone().enumerate() {
            let mut before = names.clone().take(index);
            let other = before.find(|other| other.eq_ignore_ascii_case(name));
            if let Some(other) = other.filter(|_| self.used.has(name)) {
                return Err(Error::data(format!(
                    "columns `{other}` and `{name}` of {} differ only in case",
                    file.name
                ))
                .hint("rename one of them where the changes are captured"));
            }
        }
        for field in fields {
            let (name, data_type) = (field.name(), field.data_type());
            let fixed = self.raw.fixed_type(name);
            let is_castable = |fixed: &&DataType| can_cast_types(data_type, fixed);
            if let Some(fixed) = fixed.filter(|fixed| !is_castable(fixed) && self.used.has(name)) {
                return Err(Error::data(format!(
                    "column `{name}` of {} is {data_type}, which cannot become {fixed}",
                    file.name
                ))
                .hint("correct its type in `[raw.columns]`"));
            }
            if let Some(mask) = self.raw.masks.of(name)
                && mask.masked_type(fixed.unwrap_or(data_type)).is_none()
                && self.used.has(name)
            {
                return Err(unfit(mask, field, &file.name));
            }
            match self.find(name) {
                None => {
                    let data_type = fixed.unwrap_or(data_type);
                    self.push(self.name_of(name), data_type, &file.name);
                }
                Some(_) if fixed.is_some() => {}
                Some(index) => {
                    let known = self.fields[index].data_type().clone();
                    let widened = self.widened(index, &known, data_type);
                    let widened = widened.ok_or_else(|| {
                        Error::data(format!(
                            "column `{name}` is {known} in {} and {data_type} in {}",
                            self.source_files[index], file.name
                        ))
                        .hint(FIX)
                    })?;
                    if widened != known {
                        self.source_files[index] = file.name.clone();
                        self.fields[index] = Field::new(self.fields[index].name(), widened, true);
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds the columns that are said by where files are; all files were added before.
    ///
    /// # Errors
    /// Data, when a file has such a column.
    fn add_constants(&mut self) -> Result<()> {
        let raw = self.raw;
        for name in raw.constants.names() {
            if let Some(index) = self.find(name) {
                return Err(Error::data(format!(
                    "{} has the column `{name}`, which its source or folder says",
                    self.source_files[index]
                ))
                .hint("give the column of `[[raw.source]]` another name, or leave it out of `raw.path_columns`"));
            }
            let data_type = raw.fixed_type(name).cloned().unwrap_or(DataType::Utf8View);
            self.push(self.name_of(name), &data_type, "");
        }
        Ok(())
    }

    /// The type that both types of a column widen to; `None` if there is none, and it is used.
    fn widened(&mut self, index: usize, known: &DataType, found: &DataType) -> Option<DataType> {
        if self.is_mixed[index] {
            return Some(DataType::Null);
        }
        let widened = widen(known, found);
        if widened.is_none() && !self.is_used[index] {
            self.is_mixed[index] = true;
            return Some(DataType::Null);
        }
        widened
    }

    /// Adds columns that no file need have: those that are said by where files are, those of earlier runs, those that the pipeline
    /// declares, and the other names by which `curated.sql` uses columns. `known` are the columns of earlier runs; without them
    /// and without files there are none.
    ///
    /// # Errors
    /// Data, when a column's types have no common type, or a name means another column than in earlier runs.
    pub(crate) fn add_others(
        &mut self,
        known: &[(String, DataType)],
        has_files: bool,
    ) -> Result<()> {
        if has_files {
            self.add_constants()?;
        } else if known.is_empty() {
            return Ok(());
        }
        self.add_known(known)?;
        self.add_declared();
        self.add_other_names(known)
    }

    /// Adds the columns of earlier runs; those in none of the files are null.
    ///
    /// # Errors
    /// Data, when a column's types have no common type.
    fn add_known(&mut self, known: &[(String, DataType)]) -> Result<()> {
        for (name, earlier) in known {
            let data_type = self.raw.fixed_type(name).unwrap_or(earlier);
            let Some(index) = self.find(name) else {
                self.push(name.clone(), data_type, "");
                continue;
            };
            let found = self.fields[index].data_type().clone();
            // A hash is that of the value in its type of before.
            let is_hashed = self.raw.masks.of(name).is_some_and(Mask::is_hash);
            let is_other = is_hashed && self.is_used[index] && widen(&found, earlier).is_none();
            let widened = self.widened(index, &found, data_type).filter(|_| !is_other);
            let widened = widened.ok_or_else(|| {
                Error::data(format!(
                    "column `{name}` is {found} in {}, and was {earlier} in earlier runs",
                    self.source_files[index]
                ))
                .hint(
                    "set its type in `[raw.columns]`, if all values fit it, and rebuild the \
                     tables: glueless rebuild",
                )
            })?;
            // Queries use the name it had in earlier runs.
            self.fields[index] = Field::new(name, widened, true);
        }
        Ok(())
    }

    /// Adds the columns that the pipeline declares and that are in none of the files: they are
    /// null.
    fn add_declared(&mut self) {
        for (name, data_type) in &self.raw.columns {
            if self.find(name).is_none() {
                self.push(self.name_of(name), data_type, "");
            }
        }
    }

    /// Adds the other names by which `curated.sql` uses columns: `op` for the field `__op` of
    /// envelopes, unless the rows have a column of that name, and `after.op` for the column `op` of the
    /// rows. `known` are the columns of earlier runs.
    ///
    /// # Errors
    /// Data, when the rows have such a column now, and had none when earlier runs used the name.
    fn add_other_names(&mut self, known: &[(String, DataType)]) -> Result<()> {
        for index in 0..self.fields.len() {
            let column = self.fields[index].name().clone();
            let Some(name) = self.used.other_name(&column).map(String::from) else {
                continue;
            };
            let is_known =
                |wanted: &str| known.iter().any(|(known, _)| known.eq_ignore_ascii_case(wanted));
            match self.find(&name) {
                None => {
                    self.other_names.push((self.fields.len(), column));
                    let data_type = self.fields[index].data_type().clone();
                    self.push(name, &data_type, "");
                }
                Some(_) if is_known(&column) && !is_known(&name) => {
                    return Err(Error::data(format!(
                        "the rows have a column `{name}` now, and curated.sql has read the \
                         envelope's `{name}` so far"
                    ))
                    .hint(format!(
                        "write \"{column}\" in curated.sql for the envelope's, or \"after.{name}\" \
                         for the row's, and rebuild the tables: glueless rebuild"
                    )));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Gives columns without a type one that fits what the pipeline uses them for. Returns which
    /// columns have no type of their own.
    pub(crate) fn settle(&mut self, key: &[String]) -> Vec<bool> {
        let untyped: Vec<bool> =
            self.fields.iter().map(|field| *field.data_type() == DataType::Null).collect();
        let raw = self.raw;
        let time = DataType::Timestamp(TimeUnit::Microsecond, None);
        let mut roles: Vec<(String, DataType)> = Vec::new();
        let times = [&raw.commit_time, &raw.event_time].into_iter().flatten();
        roles.extend(times.map(|name| (name.clone(), time.clone())));
        let texts = key.iter().chain(&raw.op.name).chain(&raw.order_by);
        roles.extend(texts.map(|name| (name.clone(), DataType::Utf8View)));
        for (image, key) in raw.before_images(key).into_iter().zip(key) {
            let key = self.find(key).map(|key| self.fields[key].data_type().clone());
            roles.push((image, key.filter(|key| !key.is_null()).unwrap_or(DataType::Utf8View)));
        }
        for (name, data_type) in roles {
            if let Some(index) = self.find(&name)
                && *self.fields[index].data_type() == DataType::Null
            {
                self.fields[index] = Field::new(self.fields[index].name(), data_type, true);
            }
        }
        untyped
    }

    /// The names of the columns, and their types.
    pub(crate) fn types(&self) -> Vec<(String, DataType)> {
        let fields = self.fields.iter();
        fields.map(|field| (field.name().clone(), field.data_type().clone())).collect()
    }

    /// The columns once they are masked.
    pub(crate) fn masked(&self) -> Vec<Field> {
        let masked =
            |field: &Field| match self.raw.masks.of(field.name()).and_then(Mask::fixed_type) {
                Some(data_type) => field.clone().with_data_type(data_type),
                None => field.clone(),
            };
        self.fields.iter().map(masked).collect()
    }

    /// Per column of the union, its index in a file.
    pub(crate) fn columns_of(&self, file: &ParquetFile) -> Vec<Option<usize>> {
        let fields = file.schema().fields();
        let names = || fields[..fields.len() - 1].iter().map(|field| field.name().as_str());
        let columns = self.fields.iter().enumerate().map(|(index, field)| {
            let other = self.other_names.iter().find(|(other, _)| *other == index);
            find_column(names(), other.map_or(field.name(), |(_, column)| column))
        });
        columns.collect()
    }
}

/// The index of a name: an exact match, else one in another case.
pub(crate) fn find_column<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    wanted: &str,
) -> Option<usize> {
    names
        .clone()
        .position(|name| name == wanted)
        .or_else(|| names.clone().position(|name| name.eq_ignore_ascii_case(wanted)))
}
