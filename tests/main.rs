//! The integration tests, one binary, because linking the query engine is slow.

mod cli;
mod concurrency;
mod delta;
mod discovery;
mod faults;
mod interruptions;
mod model;
mod publishing;
mod raw_types;
mod rebuild;
mod support;
