//! The integration tests, one binary, because linking the query engine is slow.

#![allow(unreachable_pub, reason = "a test binary shows nothing to others")]

mod backfill;
mod balance;
mod capture;
mod catalog;
mod cli;
mod concurrency;
mod cron;
mod day_zone;
mod ddl;
mod debezium;
mod deletion_vectors;
mod delta;
mod discovery;
mod docs;
mod explain;
mod follow;
mod house;
mod interruptions;
mod json;
mod key_moves;
mod log_order;
mod model;
mod old_inputs;
mod operations;
mod operator;
mod publishing;
mod quarantine;
mod raw_columns;
mod raw_csv;
mod raw_guide;
mod raw_names;
mod raw_shapes;
mod raw_text;
mod raw_transactions;
mod raw_types;
mod readers_beside_writers;
mod rebuild;
mod reloads;
mod row_order;
mod same_bytes;
mod states;
mod support;
mod truncates;
mod verify_source;
