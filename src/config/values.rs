//! Parsing and checking of single values.

use toml::Value;

/// Checks that no name is repeated. Returns the first that is as the error.
pub(super) fn no_repeats(names: &[String]) -> Result<(), String> {
    let mut numbered = names.iter().enumerate();
    match numbered.find(|(number, name)| names[..*number].contains(name)) {
        Some((_, name)) => Err(name.clone()),
        None => Ok(()),
    }
}

/// A number of bytes: an integer, or text with a unit, decimal (`kB`, `MB`, `GB`, `TB`) or
/// binary (`KiB`, `MiB`, `GiB`, `TiB`).
pub(super) fn bytes(value: &Value) -> Option<u64> {
    let text = match value {
        Value::Integer(number) => return u64::try_from(*number).ok(),
        Value::String(text) => text.trim(),
        _ => return None,
    };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}
