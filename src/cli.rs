//! The command line: arguments, logs, metrics, and the program itself.

pub mod args;
mod keys;
pub mod logging;
pub mod metrics;
pub mod program;
mod resources;
