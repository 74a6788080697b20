//! Debezium's envelopes: the flat row of a change, taken out when a file is opened.
//!
//! An envelope has the row `before` and `after` a change, the operation `op`, and fields that say where
//! and when it happened. The row of a change is `after`; of a delete it is `before`.
//!
//! | column | type | meaning |
//! |---|---|---|
//! | the row's columns | as found | those of `after`, or of `before` for a delete |
//! | `__op` | Utf8View | c, u, d, or r, which is a row of a snapshot |
//! | `__ts_ms`, `__source.lsn`, … | as found | the envelope's other fields; objects in it have names with dots |
//! | `__…ts_ms`, `__…ts_us`, `__…ts_ns` | Timestamp in UTC | the whole numbers of these fields |
//! | `__before.id`, … | as the key | the key before an update; it may be null where it is the same |
//!
//! A row of a snapshot is an insert at its place in the order, and not before all changes: `ts_ms`, when
//! the connector processed an event, puts it before the changes that follow, and after the changes
//! that an earlier connector has seen.
//!
//! Tombstones (null, or an empty payload) and operations to ignore, such as messages (`op = "m"`), are
//! not changes: they become rows of nulls, which are counted, and not folded.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Int64Type, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use crate::config::{ENVELOPE_PREFIX, Envelope, OpValues, Operation};
use crate::raw::columns::UsedColumns;

pub(crate) mod flatten;

/// The default mark, and its form as an element of an array of UUIDs.
const DEFAULT_UUID: (&str, &str) =
    ("__debezium_unavailable_value", "b68a35a7-17ad-35b3-af2a-ae46edb4545a");
/// The most white space that is expected in the JSON text of a mark, besides one after each byte.
const WHITE_SPACE_MAX: usize = 64;

/// What is wrong with an envelope: the faulty field, the reason, and a hint.
pub(crate) type EnvelopeFault = (&'static str, Cow<'static, str>, &'static str);

/// The fault of a row that is no envelope.
pub(crate) const NO_ENVELOPE: (&str, &str) = (
    "is not an envelope: it has no `op`",
    "raw.dialect = \"debezium\" is for envelopes with `before`, `after` and `op`; if all rows are flat, \
     leave it out, and name their operation column in `raw.op`",
);
pub(crate) const NO_AFTER: EnvelopeFault = (
    "after",
    Cow::Borrowed("is missing in a change that is not a delete"),
    "check the connector and the file",
);
pub(crate) const NO_BEFORE: EnvelopeFault = (
    "before",
    Cow::Borrowed("is missing in a delete, so that its key is unknown"),
    "check the connector; PostgreSQL logs the key of a delete only with a REPLICA IDENTITY",
);
pub(crate) const UNAVAILABLE: (&str, &str) = (
    "is the mark for a value that the source's log lacks",
    "have the source log whole rows (PostgreSQL: REPLICA IDENTITY FULL), or have the connector look \
     such values up",
);

/// The hint for rows that seem to be envelopes, and are not read as such.
pub(crate) const ENVELOPES_MEANT: &str =
    "the rows look like envelopes of Debezium: set raw.dialect = \"debezium\"";

/// Whether the columns of rows are those of envelopes. `after` may be a struct, or flat.
pub(crate) fn look_like_envelopes<'a>(columns: impl Iterator<Item = &'a str> + Clone) -> bool {
    let is_part = |column: &str, part: &str| {
        column.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let has = |part: &str| columns.clone().any(|column| is_part(column, part));
    has("op") && has("after")
}

/// The operation of an envelope.
///
/// # Errors
/// Why it is none.
pub(crate) fn operation(op: &str, values: &OpValues) -> Result<Operation, EnvelopeFault> {
    match values.operation(Some(op)) {
        Some(operation) => Ok(operation),
        None => {
            let why = format!("is none of {}", values.listed());
            Err(("op", why.into(), "check the file, or name its values in `[raw.op_values]`"))
        }
    }
}

/// The unit of the times in a field of envelopes.
pub(crate) fn time_unit(column: &str) -> Option<TimeUnit> {
    let field = column.strip_prefix(ENVELOPE_PREFIX)?;
    let of_object = ["source.", "transaction."].iter();
    let mut of_object = of_object.filter_map(|object| field.strip_prefix(object));
    match of_object.next().unwrap_or(field) {
        "ts_ms" => Some(TimeUnit::Millisecond),
        "ts_us" => Some(TimeUnit::Microsecond),
        "ts_ns" => Some(TimeUnit::Nanosecond),
        _ => None,
    }
}

/// The type of a field of envelopes with times.
pub(crate) fn time_type(unit: TimeUnit) -> DataType {
    DataType::Timestamp(unit, Some("UTC".into()))
}

/// Whole numbers of 64 bits as times in UTC.
pub(crate) fn as_times(numbers: &ArrayRef, unit: TimeUnit) -> ArrayRef {
    let numbers = numbers.as_primitive::<Int64Type>();
    match unit {
        TimeUnit::Nanosecond => {
            Arc::new(numbers.reinterpret_cast::<TimestampNanosecondType>().with_timezone("UTC"))
        }
        TimeUnit::Microsecond => {
            Arc::new(numbers.reinterpret_cast::<TimestampMicrosecondType>().with_timezone("UTC"))
        }
        _ => Arc::new(numbers.reinterpret_cast::<TimestampMillisecondType>().with_timezone("UTC")),
    }
}

/// The forms of the mark for a value that the source's log lacks.
#[derive(Clone, Debug)]
pub(crate) struct Unavailable {
    /// As text, and as text for bytes.
    texts: Vec<String>,
    /// As the only element of an array of texts.
    elements: Vec<String>,
    /// As JSON arrays and objects without white space.
    json: Vec<String>,
    used: UsedColumns,
}

impl Unavailable {
    /// The forms of a pipeline's mark, which matter in the columns that it uses.
    pub(crate) fn of(envelope: &Envelope, used: UsedColumns) -> Self {
        let mark = &envelope.unavailable_value;
        let hex: String = mark.bytes().map(|byte| format!("{byte:02x}")).collect();
        let mut texts = vec![mark.clone(), STANDARD.encode(mark), URL_SAFE.encode(mark), hex];
        texts.dedup();
        let mut elements = texts.clone();
        if mark == DEFAULT_UUID.0 {
            elements.push(DEFAULT_UUID.1.into());
        }
        let quoted = |text: &String| serde_json::Value::from(text.as_str()).to_string();
        let arrays = elements.iter().map(|text| format!("[{}]", quoted(text)));
        let bytes: Vec<String> = mark.bytes().map(|byte| (byte as i8).to_string()).collect();
        let of_bytes = format!("[{}]", bytes.join(","));
        // A map, such as an HSTORE of PostgreSQL.
        let map = format!("{{{0}:{0}}}", quoted(mark));
        let json = arrays.chain([of_bytes, map]).collect();
        Unavailable { texts, elements, json, used }
    }

    /// Whether a value of a column matters: one that is not used needs none.
    pub(crate) fn matters_in(&self, column: &str) -> bool {
        self.used.has(column)
    }

    /// Whether a text is the mark.
    pub(crate) fn is_text(&self, text: &str) -> bool {
        self.texts.iter().any(|mark| mark == text)
    }

    /// Whether bytes are the mark.
    pub(crate) fn is_bytes(&self, bytes: &[u8]) -> bool {
        self.texts.first().is_some_and(|mark| mark.as_bytes() == bytes)
    }

    /// Whether the only element of an array of texts is the mark.
    pub(crate) fn is_element(&self, text: &str) -> bool {
        self.elements.iter().any(|mark| mark == text)
    }

    /// Whether the JSON text of an array or an object is the mark.
    pub(crate) fn is_json(&self, json: &str) -> bool {
        let longest = self.json.iter().map(String::len).max().unwrap_or_default();
        json.len() <= 2 * longest + WHITE_SPACE_MAX && {
            let dense: String = json.chars().filter(|char| !char.is_ascii_whitespace()).collect();
            self.json.iter().any(|mark| *mark == dense || mark == json)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_mark_is_known() {
        let of = |value: &str| {
            let envelope = Envelope {
                key: Vec::new(),
                op_values: OpValues::default(),
                unavailable_value: value.into(),
            };
            Unavailable::of(&envelope, UsedColumns::default())
        };
        let mark = of("__debezium_unavailable_value");
        for text in [
            "__debezium_unavailable_value",
            "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==",
            "5f5f646562657a69756d5f756e617661696c61626c655f76616c7565",
        ] {
            assert!(mark.is_text(text), "{text}");
            assert!(mark.is_json(&format!("[ \"{text}\" ]")), "{text}");
            assert!(!mark.is_json(&format!("[\"{text}\",1]")), "{text}");
        }
        assert!(mark.is_json("[\"b68a35a7-17ad-35b3-af2a-ae46edb4545a\"]"));
        assert!(of("no").is_json("[110, 111]") && !of("no").is_json("[110]"));
        assert!(mark.is_element("b68a35a7-17ad-35b3-af2a-ae46edb4545a"));
        assert!(!mark.is_text("b68a35a7-17ad-35b3-af2a-ae46edb4545a"));
        assert!(
            mark.is_json("{\"__debezium_unavailable_value\": \"__debezium_unavailable_value\"}")
        );
        assert!(!mark.is_json("{\"__debezium_unavailable_value\": 1}"));
        assert!(!mark.is_json("[]") && !mark.is_json("{}") && !mark.is_text(""));
        assert!(mark.is_bytes(b"__debezium_unavailable_value") && !mark.is_bytes(b"x"));
    }

    #[test]
    fn envelopes_are_known_by_their_columns() {
        let look = |columns: &[&str]| look_like_envelopes(columns.iter().copied());
        assert!(look(&["before", "after", "op", "ts_ms"]));
        assert!(look(&["ts_ms", "op", "after.id"]));
        assert!(!look(&["op", "after_hours"]) && !look(&["after.id", "op_type"]));
    }

    #[test]
    fn times_are_known_by_the_name_of_their_field() {
        assert_eq!(time_unit("__ts_ms"), Some(TimeUnit::Millisecond));
        assert_eq!(time_unit("__source.ts_us"), Some(TimeUnit::Microsecond));
        assert_eq!(time_unit("__source.ts_ns"), Some(TimeUnit::Nanosecond));
        for name in ["ts_ms", "source.ts_ms", "__source.lsn", "__before.ts_ms"] {
            assert_eq!(time_unit(name), None, "{name}");
        }
    }
}
