//! Debezium's events in JSON: each line is an envelope, which is flattened to a row
//! ([`crate::raw::envelope`]). The envelope may be the `payload` beside the `schema` of Kafka Connect.

use crate::config::{BEFORE_PREFIX, ENVELOPE_PREFIX, Envelope, OpValues, Operation};
use crate::raw::envelope::{
    EnvelopeFault, NO_AFTER, NO_BEFORE, NO_ENVELOPE, Unavailable, operation,
};
use crate::raw::json::rows::{LineFault, Rows, check_is_object, each_field};

/// How a pipeline's events are read.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    /// The primary-key columns.
    key: Vec<String>,
    op_values: OpValues,
    /// The mark for a value that the source's log lacks.
    pub(super) unavailable: Unavailable,
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A row.
    Row,
    /// No change of a row.
    Ignored,
}

/// The parts of an event, as JSON text.
#[derive(Default)]
struct Event<'t> {
    before: Option<&'t str>,
    after: Option<&'t str>,
    op: Option<&'t str>,
    payload: Option<&'t str>,
    schema: Option<&'t str>,
    /// Whether it has any other field.
    has_more: bool,
}

impl From<EnvelopeFault> for LineFault {
    fn from((column, reason, hint): EnvelopeFault) -> Self {
        LineFault::of_column(column, reason, hint)
    }
}

/// A value that is not null.
fn some(value: Option<&str>) -> Option<&str> {
    value.filter(|value| *value != "null")
}

impl Events {
    /// The events of a pipeline.
    pub(super) fn of((envelope, marks): (&Envelope, &Unavailable)) -> Self {
        Events {
            key: envelope.key.clone(),
            op_values: envelope.op_values.clone(),
            unavailable: marks.clone(),
        }
    }

    /// Reads a line as the next row: the fields of its envelope, and its row.
    ///
    /// # Errors
    /// What is wrong with the line.
    pub(super) fn read(&self, rows: &mut Rows<'_>, line: &str) -> Result<Line, LineFault> {
        rows.begin();
        if line.trim_ascii() == "null" {
            return Ok(Line::Ignored);
        }
        check_is_object(line)?;
        let mut event = Event::default();
        set_envelope(rows, line, &mut event)?;
        // An envelope of Kafka Connect has nothing else; a row may have a column `payload`.
        if let (Some(payload), false) = (event.payload, event.has_parts() || event.has_more) {
            event = Event::default();
            match payload.as_bytes().first() {
                Some(b'n') => return Ok(Line::Ignored),
                Some(b'{') => set_envelope(rows, payload, &mut event)?,
                _ => {
                    let hint = "check the converter that wrote the file";
                    return Err(LineFault::of_column("payload", "is not an object", hint));
                }
            }
        }
        let (before, after) = (some(event.before), some(event.after));
        let Some(op) = some(event.op) else {
            // A tombstone has no value, or an empty one.
            if before.is_none() && after.is_none() && !event.has_more {
                return Ok(Line::Ignored);
            }
            return Err(LineFault::of_line(NO_ENVELOPE.0, NO_ENVELOPE.1));
        };
        let operation = operation(op.trim_matches('"'), &self.op_values)?;
        let row = match operation {
            Operation::Ignore => return Ok(Line::Ignored),
            Operation::Truncate => {
                rows.with_prefix(ENVELOPE_PREFIX, |rows| rows.field("op", op))?;
                // A file of nothing but truncates has the key, too.
                rows.with_prefix("", |rows| {
                    self.key.iter().try_for_each(|key| rows.field(key, "null"))
                })?;
                return Ok(Line::Row);
            }
            Operation::Delete => before.ok_or(NO_BEFORE)?,
            Operation::Insert | Operation::Update => after.ok_or(NO_AFTER)?,
        };
        let of_row = if operation == Operation::Delete { "before" } else { "after" };
        check_is_row(of_row, row)?;
        rows.with_prefix(ENVELOPE_PREFIX, |rows| rows.field("op", op))?;
        rows.reads_delete = operation == Operation::Delete;
        rows.reads_row = true;
        rows.with_prefix("", |rows| rows.fields(row))?;
        rows.reads_row = false;
        if let (Operation::Update, Some(before)) = (operation, before) {
            check_is_row("before", before)?;
            set_key_before(rows, before, &self.key)?;
        }
        Ok(Line::Row)
    }
}

/// Takes an envelope apart, and sets the columns of the fields that only describe the change.
fn set_envelope<'t>(
    rows: &mut Rows<'_>,
    envelope: &'t str,
    event: &mut Event<'t>,
) -> Result<(), LineFault> {
    each_field(envelope, &mut |name, value| {
        let part = match name {
            "before" => &mut event.before,
            "after" => &mut event.after,
            "op" => &mut event.op,
            "payload" => &mut event.payload,
            "schema" => &mut event.schema,
            _ => {
                event.has_more = true;
                return rows.with_prefix(ENVELOPE_PREFIX, |rows| rows.field(name, value));
            }
        };
        match part.replace(value) {
            None => Ok(()),
            Some(_) => Err(LineFault::duplicate(name)),
        }
    })
}

/// Sets the columns of the key before an update, if it differs from the row's.
fn set_key_before(rows: &mut Rows<'_>, before: &str, key: &[String]) -> Result<(), LineFault> {
    let name_of = |name: &str| key.iter().find(|known| known.eq_ignore_ascii_case(name));
    let mut columns = Vec::new();
    each_field(before, &mut |name, value| {
        let (Some(name), true) = (name_of(name), value != "null") else {
            return Ok(());
        };
        let before = rows.with_prefix(BEFORE_PREFIX, |rows| rows.column(name, value))?;
        columns.push((name, before));
        Ok(())
    })?;
    let differs = |(name, before): &(&String, usize)| {
        let after = rows.columns.in_any_case(name).and_then(|after| rows.columns.text(after));
        after.is_some_and(|after| Some(after) != rows.columns.text(*before))
    };
    if !columns.iter().any(differs) {
        columns.iter().for_each(|(_, before)| rows.columns.unset(*before));
    }
    Ok(())
}

impl Event<'_> {
    fn has_parts(&self) -> bool {
        self.op.is_some() || self.after.is_some() || self.before.is_some()
    }
}

/// Checks that a part of an envelope is a row.
fn check_is_row(name: &str, value: &str) -> Result<(), LineFault> {
    match value.as_bytes().first() {
        Some(b'{') => Ok(()),
        _ => Err(LineFault::of_column(
            name,
            "is not an object",
            "rows that are text, as those of MongoDB, need the transform ExtractNewDocumentState",
        )),
    }
}
