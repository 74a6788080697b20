//! Stands for `load` in a program without PostgreSQL.

use crate::commands::open_pipeline::RunContext;
use crate::config::{Load, TargetTable};
use crate::error::{Error, Result};
use crate::report::FollowerReport;
use crate::window::Window;

pub(super) async fn load_tables(
    _: &RunContext<'_>,
    _: &Load,
    _: Option<Window>,
    _: bool,
) -> Result<Option<Vec<FollowerReport>>> {
    Err(not_built())
}

pub(super) async fn examine(
    _: &RunContext<'_>,
    _: &Load,
    _: &[&TargetTable],
) -> Result<Vec<String>> {
    Err(not_built())
}

fn not_built() -> Error {
    Error::usage("this program was built without the feature `postgres`")
        .hint("build it with its default features, or remove [load]")
}
