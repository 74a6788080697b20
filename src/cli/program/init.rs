//! Writes a project.

use std::path::Path;
use std::time::Instant;

use super::{Program, print};
use crate::cli::args;
use crate::cli::resources::{peak_memory_bytes, resources};
use crate::commands::{InitContext, init};
use crate::config::{Limits, full_path};
use crate::error::Result;
use crate::report::{Answer, Meter};

impl Program {
    pub(super) fn init(&self, arguments: &args::Init) -> Result<u8> {
        let started = Instant::now();
        let run_id = uuid::Uuid::now_v7().to_string();
        self.log.begin(&run_id, "init");
        let limits =
            Limits { memory_bytes: None, spill_dir: None, spill_bytes_max: None, threads: None };
        let resources = resources(&limits);
        let context = InitContext {
            url: &arguments.url,
            out: &arguments.out,
            lake: arguments.lake.as_deref(),
            source_url_env: arguments.source_url_env.as_deref(),
            current: &full_path(Path::new("."))?,
            run_id: &run_id,
            stores: &self.stores,
            environment: &self.environment,
            resources: &resources,
            meter: Meter { started, peak_memory_bytes },
        };
        let initialized = self.runtime(&resources)?.block_on(init(&context))?;
        print(&initialized, arguments.output)?;
        Ok(initialized.exit_code())
    }
}
