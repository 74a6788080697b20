//! The laboratory of the tests: everything that more than one test needs.
//!
//! A [`Lab`] is a pipeline with its own raw folder and its own lake, in a local folder or on an S3
//! server. It is made by a [`LabBuilder`], which has a default for every setting, so that a test
//! names only the settings that it is about.
//!
//! | file | contents |
//! |---|---|
//! | `builder.rs` | the default pipeline, and how a test changes it |
//! | `lab.rs` | the folder, its objects, and the pipeline's files |
//! | `raw.rs` | raw files: columns, rows of text, changes of one day |
//! | `commands.rs` | runs, plans, checks: the library's commands in this process |
//! | `program.rs` | the program as a process: arguments, exit code, both streams |
//! | `tables.rs` | reading tables with code that is not the program's own |
//! | `readers.rs` | reading tables with DuckDB, Polars and delta-rs |
//! | `faults.rs` | a store whose requests fail, lose their reply, or sleep |
//! | `s3.rs` | the S3 server |
//! | `glue.rs` | the catalog of the S3 server |
//! | `postgres.rs` | PostgreSQL servers |
//! | `capture.rs` | databases that are captured |
//!
//! Tests take the library's types from here, too: only this folder names the library's modules.

mod builder;
mod capture;
mod commands;
mod faults;
mod glue;
mod lab;
mod postgres;
mod program;
mod raw;
mod readers;
mod s3;
mod tables;

use std::sync::LazyLock;

pub use builder::{
    COUNT_PER_DAY, DELETION_VECTORS, FLOWS, LabBuilder, ROWS_PER_DAY, count_of_each_day_so_far,
};
pub use capture::{LOGICAL, SIMPLE, Shop, beside, pause};
pub use faults::Fault;
pub use glue::{Glue, GlueProxy, Trouble};
pub use glueless::commands::runs::History;
pub use glueless::commands::{Compared, Explained, Task, Verified};
pub use glueless::error::{Error, Kind, Result};
pub use glueless::layout::{attempt_name, staging_name};
pub use glueless::report::{Answer, Report};
pub use lab::{Lab, PLACES, Place, STATE};
pub use postgres::{Database, Server};
pub use program::{Output, Program, glueless, mask_run_ids, send_signal};
pub use raw::{
    Change, Columns, DAY_US, Event, EventRow, FIRST_DAY_US, ORDERS, assert_folds_in_little_memory,
    batch, day, events_json, events_parquet, file_of_columns, file_of_rows, gzip, integers,
    optional_texts, parquet, raw_file, texts, timestamps,
};
pub use readers::{now, python, read_with, row_as_text};
pub use s3::environment_of;
pub use tables::{Row, assert_nowhere, batches_of, cells, json_lines, rows_of};

use glueless::window::{Window, parse_instant};

/// What runs the asynchronous code of the tests.
pub static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
});

/// How much longer than usual to test: `make test-long` says it.
#[expect(clippy::disallowed_methods, reason = "how long to test is not a matter of the program")]
pub fn test_times() -> u32 {
    let times = std::env::var("GLUELESS_TEST_TIMES").map(|times| times.parse().expect("a number"));
    times.unwrap_or(1)
}

/// A window, given by its dates.
pub fn window(start: &str, end: &str) -> Window {
    let date = |text| parse_instant(text).expect("a date");
    Window::new(date(start), date(end)).expect("a window")
}

/// Checks how a command was refused: its exit code, and parts of its message and of its hint.
#[track_caller]
pub fn assert_refused(error: Error, code: u8, message: &str, hint: &str) {
    let found = error.to_string();
    assert_eq!(error.kind.exit_code(), code, "{found}");
    assert!(found.contains(message), "{found}");
    let found = error.hint.unwrap_or_default();
    assert!(found.contains(hint), "{found}");
}
