//! Stands for `catalog` in a program without AWS Glue.

use crate::commands::open_pipeline::RunContext;
use crate::config::Catalog;
use crate::error::{Error, Result};
use crate::report::FollowerReport;

pub(super) async fn register_tables(
    _: &RunContext<'_>,
    _: &Catalog,
    _: bool,
) -> Result<Option<Vec<FollowerReport>>> {
    Err(not_built())
}

pub(super) async fn examine(_: &RunContext<'_>, _: &Catalog) -> Result<()> {
    Err(not_built())
}

fn not_built() -> Error {
    Error::usage("this program was built without the feature `glue`")
        .hint("build it with its default features, or remove [catalog]")
}
