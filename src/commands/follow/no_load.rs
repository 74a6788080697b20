//! Stands for `load` in a program without PostgreSQL.

use crate::commands::open_pipeline::RunContext;
use crate::config::Load;
use crate::error::{Error, Result};
use crate::report::FollowerReport;
use crate::window::Window;

pub(super) async fn load_tables(
    _: &RunContext<'_>,
    _: &Load,
    _: Option<Window>,
    _: bool,
) -> Result<Option<Vec<FollowerReport>>> {
    Err(Error::usage("this program was built without the feature `postgres`")
        .hint("build it with its default features, or remove [load]"))
}
