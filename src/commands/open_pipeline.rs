//! An open pipeline: its folders, their owners, and checks of its state.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use tracing::debug;

use crate::changes::forgotten::KEEP_FORGOTTEN;
use crate::config::Pipeline;
use crate::engine::resources::Resources;
use crate::engine::session::{memory_limit, runtime};
use crate::engine::spill::SpillFolder;
use crate::error::{Error, Result};
use crate::layout::{base_name, own_file_commit, staging_name};
use crate::publish::owner::Owner;
use crate::report::Meter;
use crate::state::State;
use crate::state::identity::Identity;
use crate::state::inputs::NeededInputs;
use crate::state::ledger::CURATED;
use crate::store::listing::list;
use crate::store::{Folder, Stores};
use crate::table::delta_log::LOG_FOLDER;
use crate::window::Window;

/// The context of one run: all that it depends on.
#[derive(Debug)]
pub struct RunContext<'a> {
    /// The checked pipeline.
    pub pipeline: &'a Pipeline,
    /// The run's id: unique, and ascending with time.
    pub run_id: String,
    /// The start time of the run, used for file times.
    pub now: DateTime<Utc>,
    /// Opens the stores of locations.
    pub stores: &'a Stores,
    /// The environment variables, for those that a pipeline names.
    pub environment: &'a BTreeMap<String, String>,
    /// Whether followers are brought to the commit at the end of the run.
    pub follows: bool,
    /// The limits of the run.
    pub resources: &'a Resources,
    /// Measures the run.
    pub meter: Meter,
}

impl RunContext<'_> {
    /// The raw folders.
    pub(crate) fn raw(&self) -> Result<Vec<Folder>> {
        let urls = self.pipeline.raw.urls.iter();
        urls.map(|url| self.stores.open(url)).collect()
    }
}

/// A table that the pipeline writes, or its state.
pub(super) struct Output {
    pub(super) name: String,
    pub(super) setting: String,
    pub(super) folder: Folder,
    pub(super) staging: Folder,
    pub(super) owner: Owner,
    pub(super) is_marked: bool,
}

/// The span of all windows that were folded; `command` names the command in the error.
pub(super) fn span_of(state: &State, command: &str) -> Result<Window> {
    state.ledger.folded_windows().span().ok_or_else(|| nothing_folded(command))
}

pub(super) fn nothing_folded(command: &str) -> Error {
    Error::usage(format!("there is nothing to {command}: no run has folded anything yet"))
        .hint("fold a window first with `glueless run`")
}

/// Refuses a pipeline that has tables but no state.
///
/// # Errors
/// Usage, naming the missing state.
pub(crate) async fn check_state_exists(
    run_context: &RunContext<'_>,
    state: &mut State,
) -> Result<()> {
    let open = OpenPipeline::open(run_context).await?;
    open.check_state_exists(state).await
}

/// An open pipeline.
pub(super) struct OpenPipeline<'a> {
    pub(super) run_context: &'a RunContext<'a>,
    pub(super) runtime: Arc<RuntimeEnv>,
    pub(super) outputs: Vec<Output>,
    pub(super) announced: Folder,
    /// The folder of quarantine files.
    pub(super) quarantine: Folder,
    /// The memory of the ledger's inputs.
    inputs_memory: MemoryReservation,
    /// Declared last: dropped after everything that spills to it.
    pub(super) spill: SpillFolder,
}

impl<'a> OpenPipeline<'a> {
    pub(super) async fn open(run_context: &'a RunContext<'a>) -> Result<Self> {
        let (pipeline, limit) = (run_context.pipeline, run_context.resources);
        let dialect = pipeline.raw.dialect;
        debug!("raw.dialect = \"{}\" sets by default: {}", dialect.name(), dialect.described());
        let spill = SpillFolder::create(&limit.spill_dir, &run_context.run_id)?;
        let runtime = runtime(limit, &spill)?;
        let inputs_memory = MemoryConsumer::new("inputs of the ledger");
        Ok(OpenPipeline {
            run_context,
            inputs_memory: inputs_memory.register(&runtime.memory_pool),
            runtime,
            outputs: open_outputs(run_context).await?,
            announced: run_context.stores.open(&pipeline.state.join("publishing"))?,
            quarantine: run_context.stores.open(&pipeline.state.join("quarantine"))?,
            spill,
        })
    }

    /// Counts the memory of the inputs that the state has read: at most half of the limit, so that
    /// enough is left to work with.
    pub(super) fn count_inputs(&self, state: &State) {
        let most = memory_limit(&self.runtime) / 2;
        self.inputs_memory.resize(state.ledger.inputs.bytes().min(most));
    }

    /// Opens the pipeline and its state for a command that changes nothing.
    pub(super) async fn open_read_only(
        run_context: &'a RunContext<'a>,
        needed: NeededInputs,
    ) -> Result<(Self, State)> {
        let mut state = State::open(run_context.stores, run_context.pipeline, needed).await?;
        let open = OpenPipeline::open(run_context).await?;
        check_identity(&state, run_context.pipeline)?;
        state.check_known()?;
        open.check_state_exists(&mut state).await?;
        open.count_inputs(&state);
        Ok((open, state))
    }

    /// Refuses to start from empty when tables of this pipeline exist but its state is missing: the
    /// rows of the tables would be unknown.
    pub(super) async fn check_state_exists(&self, state: &mut State) -> Result<()> {
        if state.last_commit() > 0 {
            return Ok(());
        }
        for output in self.outputs.iter().filter(|output| output.name != "state") {
            let files = list(&output.folder).await?;
            let is_ours = |path: &String| {
                path.starts_with(LOG_FOLDER) || own_file_commit(base_name(path)).is_some()
            };
            if !output.is_marked || !files.iter().any(is_ours) {
                continue;
            }
            // The first run may have committed since the state was opened.
            state.refresh().await?;
            if state.last_commit() == 0 {
                return Err(Error::usage(format!(
                    "{} has files of this pipeline, but its state {} is missing",
                    output.folder.location, self.run_context.pipeline.state
                ))
                .hint(
                    "restore the state; only if every raw file is still there, empty the folder \
                     instead, and fold them all again",
                ));
            }
        }
        Ok(())
    }

    pub(super) fn output(&self, name: &str) -> Result<&Output> {
        let mut outputs = self.outputs.iter();
        outputs
            .find(|output| output.name == name)
            .ok_or_else(|| Error::internal(format!("the table `{name}` was not opened")))
    }
}

/// Refuses a pipeline whose identity differs from the one that wrote its tables.
pub(super) fn check_identity(state: &State, pipeline: &Pipeline) -> Result<()> {
    let Some(contract) = &state.ledger.contract else {
        return Ok(());
    };
    let differences = contract.differences(&Identity::of(pipeline));
    if differences.is_empty() {
        return Ok(());
    }
    let is_of_table = differences.iter().all(|name| OF_TABLE.contains(name));
    let from_table =
        if is_of_table { " (where raw files are gone, with --from-table)" } else { "" };
    Err(Error::usage(format!(
        "the pipeline `{}` differs from the one that wrote its tables: `{}` changed",
        pipeline.name,
        differences.join("`, `")
    ))
    .hint(match check_format(state, pipeline) {
        Err(_) => "undo the change; a table does not change its format in place: set another \
                   `curated.url` as well, and rebuild the tables with `glueless rebuild`"
            .to_string() + from_table,
        Ok(()) => format!(
            "undo the change, rebuild the tables with `glueless rebuild`{from_table}, or use another `name` and \
             `curated.url`; the state is in {}",
            pipeline.state
        ),
    }))
}

/// Refuses to rebuild a table of which keys were forgotten with another mask of a key column: their hashes are those of
/// masked values.
pub(super) fn check_forgotten(state: &State, pipeline: &Pipeline) -> Result<()> {
    let Some(contract) =
        state.ledger.contract.as_ref().filter(|_| !state.ledger.forgotten.is_empty())
    else {
        return Ok(());
    };
    let now = Identity::of(pipeline);
    if !contract.identity.masks_differently(&now, pipeline.key.iter().map(String::as_str)) {
        return Ok(());
    }
    Err(Error::usage(
        "keys were forgotten, and would come back with another mask of the key, by which they are not recognized",
    )
    .hint(KEEP_FORGOTTEN))
}

/// What of a pipeline can change when its table is made again from its own rows.
pub(super) const OF_TABLE: [&str; 4] =
    ["curated.url", "curated.format", "curated.partition_by", "curated.sql"];

/// Refuses to rebuild a table in another format at the same URL.
pub(super) fn check_format(state: &State, pipeline: &Pipeline) -> Result<()> {
    let Some(contract) = &state.ledger.contract else {
        return Ok(());
    };
    let now = Identity::of(pipeline);
    let ((url, format), (now_url, now_format)) = (contract.identity.table(), now.table());
    if url != now_url || format == now_format {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{} cannot be changed to the format `{}`",
        pipeline.curated.url, pipeline.curated.format
    ))
    .hint("set another `curated.url` as well"))
}

/// Opens the folders of all tables, and checks that each belongs to this pipeline or to none.
async fn open_outputs(run_context: &RunContext<'_>) -> Result<Vec<Output>> {
    let RunContext { pipeline, stores, .. } = run_context;
    let mut tables = vec![(
        CURATED.to_string(),
        CURATED.to_string(),
        "curated.url".to_string(),
        &pipeline.curated.url,
    )];
    for aggregate in &pipeline.aggregates {
        let setting = format!("aggregate.{}.url", aggregate.name);
        let name = aggregate.name.clone();
        tables.push((aggregate.table(), name, setting, &aggregate.url));
    }
    let mut outputs = Vec::new();
    for (name, owned_as, setting, location) in tables {
        // Staging is in the table's own store: renames and copies do not cross stores.
        let work = location.sibling("_glueless").unwrap_or_else(|| location.join("_glueless"));
        // Pipelines of the same name can have tables in the same folder, each with its own state.
        let name_of_state = staging_name(&pipeline.state.to_string());
        let staging =
            stores.open(&work.join(&pipeline.name).join("staging").join(&name_of_state))?;
        let owner = Owner {
            pipeline: pipeline.name.clone(),
            table: owned_as,
            state: pipeline.state.to_string(),
        };
        let folder = stores.open(location)?;
        let is_marked = owner.check(&folder, &setting).await?;
        outputs.push(Output { name, setting, folder, staging, owner, is_marked });
    }
    // The state folder is owned as well: two pipelines that share it would mix their states.
    let folder = stores.open(&pipeline.state)?;
    let owner = Owner {
        pipeline: pipeline.name.clone(),
        table: "state".into(),
        state: pipeline.state.to_string(),
    };
    let is_marked = owner.check_marker(&folder, "state.url").await?;
    let staging = folder.clone();
    outputs.push(Output {
        name: "state".into(),
        setting: "state.url".into(),
        folder,
        staging,
        owner,
        is_marked,
    });
    Ok(outputs)
}

/// The date of a day in days since 1970.
pub(super) fn date(day: i32) -> Option<NaiveDate> {
    NaiveDate::from_ymd_opt(1970, 1, 1)?.checked_add_signed(TimeDelta::days(day.into()))
}
