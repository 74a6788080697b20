//! Transaction files: the changes of all tables of a task, in commit order.
//!
//! DMS writes them with `PreserveTransactions` into the folder `CdcPath`. A line is operation, table,
//! schema, the commit time if the endpoint has a timestamp column, then the table's columns (user
//! guide, "Capturing data changes (CDC) including transaction order on the S3 target"). Real files
//! also have lines that begin with B and C, where a transaction begins and is committed; the guide
//! does not describe them, so nothing else of them is used. Because files and lines are in commit
//! order, a transaction may begin in one file and end in another.
//!
//! Every line is a change of the pipeline's table, a change of another table, the begin or end of a
//! transaction, or bad. Lines that are not of the table get no row number.

use std::io::Read;

use crate::config::{Named, OpValues, SourceTable};
use crate::raw::csv::fault::Fault;
use crate::raw::csv::records::Records;

/// What a line is.
pub(super) enum Line {
    /// A change of the pipeline's table, or a line that ends with the file.
    Change,
    /// A change of another table.
    OtherChange,
    /// The begin or the end of a transaction.
    Transaction,
}

/// What a line is.
///
/// # Errors
/// Why that cannot be said.
pub(super) fn classify(
    record: &Records<'_, impl Read>,
    table: &SourceTable,
    values: &OpValues,
    expected: usize,
) -> Result<Line, Fault> {
    if record.is_cut_off {
        return Ok(Line::Change);
    }
    if record.fields.iter().any(|field| field.is_malformed) {
        // The line may have swallowed others, of whatever table it is.
        return Err(Fault::of_line(
            "has an unexpected quote",
            "fix the file; if quotes are ordinary text, set raw.csv_quoted = false",
        ));
    }
    let text = |number: usize| record.fields.get(number).and_then(|_| record.text(number));
    let op = text(0).unwrap_or_default();
    let is_one_of = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(op));
    let is_transaction = is_one_of(&["B", "C"]);
    let (Some(name), Some(schema)) = (text(1), text(2)) else {
        if is_transaction {
            return Ok(Line::Transaction);
        }
        let usual = "a change of a transaction file begins with operation, table and schema: check \
                     `raw.layout` and the file";
        return Err(Fault::of_line(
            "names no schema and table",
            record.other_delimiter(expected).unwrap_or(usual),
        ));
    };
    match table.compare(schema, name) {
        Named::Same => Ok(Line::Change),
        _ if is_transaction => Ok(Line::Transaction),
        Named::InOtherCase => Err(Fault::of_line(
            "names the table of `raw.table` in another case",
            "write raw.table as the files do; or, if that is another table, in double quotes: \
             'schema.\"table\"'",
        )),
        Named::Other if values.operation(text(0)).is_some() => Ok(Line::OtherChange),
        Named::Other => Err(Fault::of_line(
            "begins with no operation, and with none of B, C",
            "a change of a transaction file begins with operation, table and schema: check \
             `raw.layout` and the file",
        )),
    }
}
