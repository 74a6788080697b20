//! How CSV files are written: the keys `raw.csv_…`.
//!
//! Every character that has a meaning is one ASCII character, and no two meanings share one: then a
//! line can be read in one way only.

use serde::Deserialize;

use crate::error::{Error, Result};

/// How CSV files are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsvForm {
    /// `raw.csv_header`: whether the first line names the columns; default false: they are those
    /// of `raw.columns`, in that order.
    pub header: bool,
    /// `raw.csv_null`: the unquoted text of a null; default the empty text.
    pub null: Option<String>,
    /// `raw.csv_quoted = false`: quotes are ordinary characters; default true.
    pub unquoted: bool,
    /// `raw.csv_op_in_full_load`: whether full loads without a header have the operation column
    /// too; default false.
    pub op_in_full_load: bool,
    /// `raw.csv_delimiter`: the character between two fields; default a comma.
    pub delimiter: u8,
    /// `raw.csv_row_delimiter`: the character that ends a row; default a line feed, before which a
    /// carriage return is dropped.
    pub row_delimiter: u8,
    /// `raw.csv_quote`: the character around a quoted field; default `"`.
    pub quote: u8,
    /// `raw.csv_escape`: the character before a quote, or before itself, inside a quoted field;
    /// default none: a quote inside a quoted field is written twice.
    pub escape: Option<u8>,
    /// `raw.csv_no_sup_value`: the text of a value that the source's log lacks, quoted or not. A row
    /// with it is bad, but for a delete, which needs no other columns than its key and those of its
    /// order; default none.
    pub no_sup_value: Option<String>,
    /// `raw.csv_short_lines`: `refuse` (default): a line has all columns. `null`: the last columns,
    /// which were added later, are null in lines that lack them.
    pub null_in_short_lines: bool,
}

/// What is done with lines that lack the last columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ShortLines {
    /// They are bad.
    Refuse,
    /// These columns are null.
    Null,
}

impl Default for CsvForm {
    fn default() -> Self {
        CsvForm {
            header: false,
            null: None,
            unquoted: false,
            op_in_full_load: false,
            delimiter: b',',
            row_delimiter: b'\n',
            quote: b'"',
            escape: None,
            no_sup_value: None,
            null_in_short_lines: false,
        }
    }
}

/// The keys of CSV as they are written in `pipeline.toml`.
#[derive(Debug, Default)]
pub(super) struct CsvKeys {
    pub(super) header: Option<bool>,
    pub(super) null: Option<String>,
    pub(super) quoted: Option<bool>,
    pub(super) op_in_full_load: Option<bool>,
    pub(super) delimiter: Option<String>,
    pub(super) row_delimiter: Option<String>,
    pub(super) quote: Option<String>,
    pub(super) escape: Option<String>,
    pub(super) no_sup_value: Option<String>,
    pub(super) short_lines: Option<ShortLines>,
}

/// Makes the error for a key, from the key and what is wrong with it.
type Wrong<'a> = &'a dyn Fn(&str, String) -> Error;

const DELIMITER: &str = "raw.csv_delimiter";
const ROW_DELIMITER: &str = "raw.csv_row_delimiter";
const QUOTE: &str = "raw.csv_quote";
const ESCAPE: &str = "raw.csv_escape";
const NO_SUP_VALUE: &str = "raw.csv_no_sup_value";
const SHORT_LINES: &str = "raw.csv_short_lines";

impl CsvKeys {
    /// Checks the keys of a pipeline whose files are CSV, or are not.
    pub(super) fn check(self, is_csv: bool, wrong: Wrong<'_>) -> Result<CsvForm> {
        self.check_format(is_csv, wrong)?;
        let unquoted = !self.quoted.unwrap_or(true);
        let of_quotes = [(QUOTE, &self.quote), (ESCAPE, &self.escape)];
        if let Some((key, _)) = of_quotes.iter().find(|(_, text)| text.is_some() && unquoted) {
            let why = "has no effect: raw.csv_quoted = false makes quotes ordinary text";
            return Err(wrong(key, why.into()).hint("leave one of the two out"));
        }
        let plain = CsvForm::default();
        let of = |key, text: &Option<String>, default| match text {
            Some(text) => character(key, text, wrong),
            None => Ok(default),
        };
        let quote = of(QUOTE, &self.quote, plain.quote)?;
        // An escape character that is the quote itself means the default.
        let escape = match of(ESCAPE, &self.escape, quote)? {
            escape if escape == quote => None,
            escape => Some(escape),
        };
        let form = CsvForm {
            header: self.header.unwrap_or_default(),
            unquoted,
            op_in_full_load: self.op_in_full_load.unwrap_or_default(),
            delimiter: of(DELIMITER, &self.delimiter, plain.delimiter)?,
            row_delimiter: match self.row_delimiter.as_deref() {
                None => plain.row_delimiter,
                Some(text) => row_delimiter(text, wrong)?,
            },
            quote,
            escape,
            null_in_short_lines: self.short_lines == Some(ShortLines::Null),
            no_sup_value: self.no_sup_value.clone(),
            null: self.null.clone(),
        };
        self.check_meanings(wrong)?;
        self.check_distinct(&form, wrong)?;
        Ok(form)
    }

    /// Refuses keys that only CSV files have where the files have another format.
    fn check_format(&self, is_csv: bool, wrong: Wrong<'_>) -> Result<()> {
        let set = [
            ("raw.csv_null", self.null.is_some()),
            ("raw.csv_header", self.header == Some(true)),
            ("raw.csv_quoted", self.quoted == Some(false)),
            ("raw.csv_op_in_full_load", self.op_in_full_load == Some(true)),
            (DELIMITER, self.delimiter.is_some()),
            (ROW_DELIMITER, self.row_delimiter.is_some()),
            (QUOTE, self.quote.is_some()),
            (ESCAPE, self.escape.is_some()),
            (NO_SUP_VALUE, self.no_sup_value.is_some()),
            (SHORT_LINES, self.short_lines.is_some()),
        ];
        match set.into_iter().find(|(_, is_set)| *is_set) {
            Some((key, _)) if !is_csv => Err(wrong(key, "is for CSV files".into())
                .hint("leave it out, or write raw.format = \"csv\"")),
            _ => Ok(()),
        }
    }

    /// Refuses texts and lines that would have two meanings.
    fn check_meanings(&self, wrong: Wrong<'_>) -> Result<()> {
        let null = self.null.as_deref().unwrap_or_default();
        if self.no_sup_value.as_deref().is_some_and(str::is_empty) {
            return Err(wrong(NO_SUP_VALUE, "is empty".into())
                .hint("write the text of CsvNoSupValue in the settings of DMS"));
        }
        if self.no_sup_value.as_deref() == Some(null) {
            return Err(wrong(NO_SUP_VALUE, "is the text of `raw.csv_null`".into())
                .hint("let DMS write another CsvNoSupValue than CsvNullValue"));
        }
        if self.header == Some(true) && self.short_lines == Some(ShortLines::Null) {
            return Err(wrong(SHORT_LINES, "is for files without a header".into())
                .hint("leave it out: each file's header names the columns that its lines have"));
        }
        Ok(())
    }

    /// Refuses two meanings for one character.
    fn check_distinct(&self, form: &CsvForm, wrong: Wrong<'_>) -> Result<()> {
        let quote = (!form.unquoted).then_some(form.quote);
        let used = [
            (DELIMITER, Some(form.delimiter), self.delimiter.is_some()),
            (ROW_DELIMITER, Some(form.row_delimiter), self.row_delimiter.is_some()),
            (QUOTE, quote, self.quote.is_some()),
            (ESCAPE, form.escape, self.escape.is_some()),
        ];
        for (number, (key, character, is_set)) in used.iter().enumerate() {
            let mut others = used[..number].iter();
            let same = others.find(|(_, other, _)| character.is_some() && other == character);
            let Some((other, ..)) = same else {
                continue;
            };
            // The message names a key that the user has written.
            let (key, other) = if *is_set { (key, other) } else { (other, key) };
            return Err(wrong(key, format!("is the character of `{other}`"))
                .hint("give each its own character"));
        }
        Ok(())
    }
}

const ONE: &str = "write one ASCII character that is no letter, digit or line end, such as \",\", \"|\", \
                   \"\\t\" or \"\\u0001\"";

/// The one character of a key. Escapes are understood as well, because the command line and literal
/// strings do not: `\t` and `\x01`.
fn character(key: &str, text: &str, wrong: Wrong<'_>) -> Result<u8> {
    let refused = |why: String| Err(wrong(key, why).hint(ONE));
    match unescaped(text).as_slice() {
        [one] if one.is_ascii_alphanumeric() => refused(format!("is `{text}`")),
        [b'\r' | b'\n'] => refused("is a line end".into()),
        [one] if one.is_ascii() => Ok(*one),
        [] => refused("is empty".into()),
        _ => refused(format!("is `{text}`")),
    }
}

/// The character that ends a row.
fn row_delimiter(text: &str, wrong: Wrong<'_>) -> Result<u8> {
    match unescaped(text).as_slice() {
        b"\n" | b"\r\n" => Ok(b'\n'),
        b"\r" => Ok(b'\r'),
        _ => character(ROW_DELIMITER, text, wrong).map_err(|error| {
            error.hint(
                "write \"\\n\", \"\\r\\n\", or one ASCII character that is no letter or digit",
            )
        }),
    }
}

/// The bytes of a text, in which `\t`, `\r`, `\n` and `\x01` are those characters.
fn unescaped(text: &str) -> Vec<u8> {
    let whole = match text {
        r"\t" => Some(b"\t".to_vec()),
        r"\r" => Some(b"\r".to_vec()),
        r"\n" => Some(b"\n".to_vec()),
        r"\r\n" => Some(b"\r\n".to_vec()),
        _ => {
            let digits = text.strip_prefix(r"\x").filter(|digits| digits.len() == 2);
            digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).map(|byte| vec![byte])
        }
    };
    whole.unwrap_or_else(|| text.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(keys: CsvKeys) -> Result<CsvForm> {
        keys.check(true, &|key, why| Error::usage(format!("`{key}` {why}")))
    }

    fn some(text: &str) -> Option<String> {
        Some(text.into())
    }

    #[test]
    fn a_character_is_written_as_itself_or_as_its_escape() {
        for (text, byte) in
            [("|", b'|'), ("\t", b'\t'), (r"\t", b'\t'), ("\u{1}", 1), (r"\x01", 1), ("\\", b'\\')]
        {
            let form = check(CsvKeys { delimiter: some(text), ..Default::default() });
            assert_eq!(form.expect("good").delimiter, byte, "{text:?}");
        }
        for (text, byte) in [("\r\n", b'\n'), (r"\n", b'\n'), ("\r", b'\r'), ("\u{1e}", 0x1e)] {
            let form = check(CsvKeys { row_delimiter: some(text), ..Default::default() });
            assert_eq!(form.expect("good").row_delimiter, byte, "{text:?}");
        }
        let same = check(CsvKeys { escape: some("\""), ..Default::default() });
        assert_eq!(same.expect("good"), CsvForm::default());
    }

    #[test]
    fn wrong_characters_are_refused() {
        for text in ["", "||", "a", "7", "\n", "\r\n", "§", r"\xff", r"\q"] {
            let error = check(CsvKeys { delimiter: some(text), ..Default::default() });
            let error = error.expect_err(text);
            assert!(error.to_string().starts_with("`raw.csv_delimiter` is "), "{error}");
            assert!(error.hint.expect("a hint").contains("one ASCII character"), "{text:?}");
        }
        for text in ["", "\n\r", "ab", "x", "§"] {
            let error = check(CsvKeys { row_delimiter: some(text), ..Default::default() });
            let error = error.expect_err(text);
            assert!(error.to_string().starts_with("`raw.csv_row_delimiter` is "), "{error}");
        }
    }

    #[test]
    fn no_character_has_two_meanings() {
        let refused = |keys: CsvKeys| check(keys).expect_err("refused").to_string();
        let keys = CsvKeys { delimiter: some("\""), ..Default::default() };
        assert_eq!(refused(keys), "`raw.csv_delimiter` is the character of `raw.csv_quote`");
        let keys = CsvKeys { row_delimiter: some(","), ..Default::default() };
        assert_eq!(
            refused(keys),
            "`raw.csv_row_delimiter` is the character of `raw.csv_delimiter`"
        );
        let keys = CsvKeys { escape: some("|"), delimiter: some("|"), ..Default::default() };
        assert_eq!(refused(keys), "`raw.csv_escape` is the character of `raw.csv_delimiter`");
        // A quote that is ordinary text may be the delimiter.
        let keys = CsvKeys { delimiter: some("\""), quoted: Some(false), ..Default::default() };
        assert_eq!(check(keys).expect("good").delimiter, b'"');
        let keys = CsvKeys { escape: some("\\"), quoted: Some(false), ..Default::default() };
        assert!(refused(keys).starts_with("`raw.csv_escape` has no effect"));
    }

    #[test]
    fn no_text_has_two_meanings() {
        let refused = |keys: CsvKeys| check(keys).expect_err("refused").to_string();
        let keys = CsvKeys { no_sup_value: some(""), ..Default::default() };
        assert_eq!(refused(keys), "`raw.csv_no_sup_value` is empty");
        let keys = CsvKeys { no_sup_value: some("N"), null: some("N"), ..Default::default() };
        assert_eq!(refused(keys), "`raw.csv_no_sup_value` is the text of `raw.csv_null`");
        let short_lines = Some(ShortLines::Null);
        let keys = CsvKeys { short_lines, header: Some(true), ..Default::default() };
        assert_eq!(refused(keys), "`raw.csv_short_lines` is for files without a header");
    }

    #[test]
    fn keys_of_csv_are_refused_for_other_files() {
        let keys = CsvKeys { delimiter: some(","), ..Default::default() };
        let error = keys.check(false, &|key, why| Error::usage(format!("{key} {why}")));
        assert_eq!(error.expect_err("refused").to_string(), "raw.csv_delimiter is for CSV files");
    }
}
