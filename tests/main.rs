//! The integration tests, one binary, because linking the query engine is slow.

mod cli;
mod discovery;
mod interruptions;
mod model;
mod publishing;
mod raw_types;
mod support;
