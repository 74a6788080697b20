//! The integration tests, one binary, because linking the query engine is slow.

#![allow(unreachable_pub, reason = "a test binary shows nothing to others")]

mod backfill;
mod cli;
mod concurrency;
mod cron;
mod delta;
mod discovery;
mod docs;
mod explain;
mod house;
mod interruptions;
mod key_moves;
mod model;
mod operator;
mod publishing;
mod quarantine;
mod raw_columns;
mod raw_guide;
mod raw_names;
mod raw_shapes;
mod raw_text;
mod raw_types;
mod readers_beside_writers;
mod rebuild;
mod states;
mod support;
