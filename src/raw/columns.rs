//! Raw columns: the union of the columns of a run's inputs, by name.
//!
//! Columns can be added, dropped, moved, renamed in case or retyped from file to file. A column of
//! the union has the type that the pipeline sets, or the type that all its files, and those of
//! earlier runs, widen to without loss; without such a type the run stops.

use std::sync::Arc;

use arrow::compute::can_cast_types;
use arrow::datatypes::{DataType, Field, SchemaRef};

use crate::config::{Pipeline, Raw};
use crate::error::{Error, Result};
use crate::parquet_io::open::ParquetFile;
use crate::types::column_type::widen;

/// The hint where types have no common type.
const FIX: &str = "set its type in `[raw.columns]`, if all values fit it, or fix the files";

/// The union of the inputs' columns by name, each with the type that all inputs widen to, or that
/// the pipeline sets.
pub(crate) struct RawColumns<'a> {
    /// The columns, all nullable.
    pub fields: Vec<Field>,
    /// Per field, the file that its type comes from; empty where no file has it.
    source_files: Vec<String>,
    raw: &'a Raw,
    /// The column names as `curated.sql` writes them.
    names: Vec<String>,
    /// The schema that was added last: many files share it.
    last_schema: Option<SchemaRef>,
}

impl<'a> RawColumns<'a> {
    /// An empty union. A column is named as in `curated.sql`, whatever its case in the files.
    pub(crate) fn new(pipeline: &'a Pipeline) -> Self {
        RawColumns {
            fields: Vec::new(),
            source_files: Vec::new(),
            raw: &pipeline.raw,
            names: pipeline.curated.sql.names(),
            last_schema: None,
        }
    }

    fn name_of(&self, column: &str) -> String {
        let names = self.names.iter().map(String::as_str);
        let known = find_column(names, column).map(|index| &self.names[index]);
        known.map_or_else(|| column.to_string(), String::clone)
    }

    /// The index of a column, by its name in any case.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        find_column(self.fields.iter().map(|field| field.name().as_str()), name)
    }

    /// Adds a file's columns, in the order of the run's inputs.
    ///
    /// # Errors
    /// Data, naming both files, the column and both types, when these have no common type.
    pub(crate) fn add(&mut self, file: &ParquetFile) -> Result<()> {
        let schema = file.schema();
        if self.last_schema.as_ref().is_some_and(|last| Arc::ptr_eq(last, schema)) {
            return Ok(());
        }
        self.last_schema = Some(Arc::clone(schema));
        let fields = schema.fields();
        let names = fields[..fields.len() - 1].iter().map(|field| field.name());
        for (index, name) in names.clone().enumerate() {
            let mut before = names.clone().take(index);
            if let Some(other) = before.find(|other| other.eq_ignore_ascii_case(name)) {
                return Err(Error::data(format!(
                    "columns `{other}` and `{name}` of {} differ only in case",
                    file.name
                ))
                .hint("rename one of them where the changes are captured"));
            }
        }
        for field in &fields[..fields.len() - 1] {
            let (name, data_type) = (field.name(), field.data_type());
            let fixed = self.raw.fixed_type(name);
            if let Some(fixed) = fixed.filter(|fixed| !can_cast_types(data_type, fixed)) {
                return Err(Error::data(format!(
                    "column `{name}` of {} is {data_type}, which cannot become {fixed}",
                    file.name
                ))
                .hint("correct its type in `[raw.columns]`"));
            }
            match self.find(name) {
                None => {
                    let data_type = fixed.unwrap_or(data_type).clone();
                    let name = self.name_of(name);
                    self.fields.push(Field::new(name, data_type, true));
                    self.source_files.push(file.name.clone());
                }
                Some(_) if fixed.is_some() => {}
                Some(index) => {
                    let known = self.fields[index].data_type();
                    let widened = widen(known, data_type).ok_or_else(|| {
                        Error::data(format!(
                            "column `{name}` is {known} in {} and {data_type} in {}",
                            self.source_files[index], file.name
                        ))
                        .hint(FIX)
                    })?;
                    if widened != *known {
                        self.source_files[index] = file.name.clone();
                        self.fields[index] = Field::new(self.fields[index].name(), widened, true);
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds the columns of earlier runs; those in none of the files are null.
    ///
    /// # Errors
    /// Data, when a column's types have no common type.
    pub(crate) fn add_known(&mut self, known: &[(String, DataType)]) -> Result<()> {
        for (name, data_type) in known {
            let fixed = self.raw.fixed_type(name);
            let data_type = fixed.unwrap_or(data_type);
            let Some(index) = self.find(name) else {
                self.fields.push(Field::new(name, data_type.clone(), true));
                self.source_files.push(String::new());
                continue;
            };
            let found = self.fields[index].data_type();
            let widened = widen(found, data_type).ok_or_else(|| {
                Error::data(format!(
                    "column `{name}` is {found} in {}, and was {data_type} in earlier runs",
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
    pub(crate) fn add_declared(&mut self) {
        for (name, data_type) in &self.raw.columns {
            if self.find(name).is_none() {
                let name = self.name_of(name);
                self.fields.push(Field::new(name, data_type.clone(), true));
                self.source_files.push(String::new());
            }
        }
    }

    /// Per column of the union, its index in a file.
    pub(crate) fn columns_of(&self, file: &ParquetFile) -> Vec<Option<usize>> {
        let fields = file.schema().fields();
        let names = || fields[..fields.len() - 1].iter().map(|field| field.name().as_str());
        self.fields.iter().map(|field| find_column(names(), field.name())).collect()
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
