//! `--set key=value`: overrides keys before they are checked.

use toml::{Table, Value};

use crate::config::known_keys::unknown_key;
use crate::error::{Error, Result};

/// Applies one `key=value`. A value that is not valid TOML is read as text.
pub(super) fn set(table: &mut Table, text: &str, known: &'static [&'static str]) -> Result<()> {
    let (key, value) = text.split_once('=').ok_or_else(|| {
        Error::usage(format!("`--set {text}` has no `=`")).hint("write --set key=value")
    })?;
    let key = key.trim();
    let value = match format!("v = {value}").parse::<Table>() {
        Ok(mut parsed) => parsed.remove("v").unwrap_or_else(|| Value::String(value.into())),
        Err(_) => Value::String(value.into()),
    };
    let parts: Vec<&str> = key.split('.').collect();
    let unknown =
        |name: &str| Error::usage(format!("`--set {key}`: there is no aggregate named `{name}`"));
    match parts.as_slice() {
        ["aggregate", name, sections @ .., last] => {
            let aggregates = table.get_mut("aggregate").and_then(Value::as_array_mut);
            let mut inner = aggregates
                .into_iter()
                .flatten()
                .filter_map(Value::as_table_mut)
                .find(|one| one.get("name").and_then(Value::as_str) == Some(name))
                .ok_or_else(|| unknown(name))?;
            for section in sections {
                let entry = inner.entry(*section).or_insert_with(|| Value::Table(Table::new()));
                inner = entry.as_table_mut().ok_or_else(|| unknown_key(key, "--set", known))?;
            }
            inner.insert((*last).into(), value);
        }
        ["raw", section @ ("columns" | "op_values"), column] => {
            let mut inner = table;
            for name in ["raw", section] {
                let entry = inner.entry(name).or_insert_with(|| Value::Table(Table::new()));
                let wrong = || unknown_key(key, "--set", known);
                inner = entry.as_table_mut().ok_or_else(wrong)?;
            }
            inner.insert((*column).into(), value);
        }
        ["mask", column @ ..] if !column.is_empty() => {
            let entry = table.entry("mask").or_insert_with(|| Value::Table(Table::new()));
            let masks = entry.as_table_mut().ok_or_else(|| unknown_key(key, "--set", known))?;
            // Columns can have names with dots.
            masks.insert(column.join("."), value);
        }
        [section, last] => {
            let entry = table.entry(*section).or_insert_with(|| Value::Table(Table::new()));
            match entry.as_table_mut() {
                Some(section) => section.insert((*last).into(), value),
                None => return Err(unknown_key(key, "--set", known)),
            };
        }
        [last] => {
            table.insert((*last).into(), value);
        }
        _ => return Err(unknown_key(key, "--set", known)),
    }
    Ok(())
}
