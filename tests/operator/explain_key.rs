//! `explain-key` about what cannot be read, or is missing.

use crate::support::raw_file;

use super::{builder, lab};

#[test]
fn a_row_in_quarantine_wins_nothing_and_one_that_cannot_be_read_is_told() {
    let lab = builder().set("raw.on_bad_row", "quarantine").build();
    lab.put_day(1, &[("I", 1, "a"), ("X", 1, "b"), ("I", 2, "a")]);
    lab.run_days(1, 2);
    let explained = lab.explain(&["1"]);
    assert_eq!((explained.changes.len(), explained.changes[0].wins), (1, true));
    assert!(
        explained.notes[0].contains("1 changes of this key cannot be read"),
        "{:?}",
        explained.notes
    );
}

#[test]
fn a_folded_file_that_is_gone_is_told_by_explain_key() {
    let lab = lab(1..=2);
    lab.run_days(1, 3);
    lab.remove(&raw_file(2));
    let explained = lab.explain(&["1"]);
    assert!(
        explained.notes[0].contains("1 inputs that were folded are missing"),
        "{:?}",
        explained.notes
    );
}
