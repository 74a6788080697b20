//! A pipeline, opened: its folders, what owns them, and whether its state is its own.

use std::sync::Arc;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use datafusion::execution::runtime_env::RuntimeEnv;

use crate::config::Pipeline;
use crate::engine::resources::Resources;
use crate::engine::session::runtime;
use crate::engine::spill::SpillFolder;
use crate::error::{Error, Result};
use crate::layout::{base_name, part_file_commit, staging_name};
use crate::publish::owner::Owner;
use crate::report::Meter;
use crate::state::State;
use crate::state::identity::Identity;
use crate::state::ledger::CURATED;
use crate::store::listing::list;
use crate::store::{Folder, Stores};
use crate::table::delta_log::LOG_FOLDER;
use crate::window::Window;

/// One run: everything it needs is handed to it.
#[derive(Debug)]
pub struct RunContext<'a> {
    /// The checked pipeline.
    pub pipeline: &'a Pipeline,
    /// Unique, and growing with time.
    pub run_id: String,
    /// The time of the run, for file times.
    pub now: DateTime<Utc>,
    /// Opens locations.
    pub stores: &'a Stores,
    /// What the run may use.
    pub resources: &'a Resources,
    /// What measures it.
    pub meter: Meter,
}

impl RunContext<'_> {
    /// The raw folders.
    pub(crate) fn raw(&self) -> Result<Vec<Folder>> {
        let urls = self.pipeline.raw.urls.iter();
        urls.map(|url| self.stores.open(url)).collect()
    }
}

/// A table that the pipeline writes.
pub(super) struct Output {
    pub(super) name: String,
    pub(super) setting: String,
    pub(super) folder: Folder,
    pub(super) staging: Folder,
    pub(super) owner: Owner,
    pub(super) is_marked: bool,
}

/// The span of all windows that were run.
pub(super) fn span_of(state: &State, what: &str) -> Result<Window> {
    let windows = state.ledger.folded_windows().into_iter();
    let span = windows.reduce(|span, window| span.span(&window));
    span.ok_or_else(|| nothing_folded(what))
}

pub(super) fn nothing_folded(what: &str) -> Error {
    Error::usage(format!(
        "there is nothing to {what}: no run has folded anything yet"
    ))
    .hint("fold a window first: glueless run")
}

/// Refuses where tables of the pipeline are, whose state is gone.
///
/// # Errors
/// Usage, naming the state.
pub(crate) async fn check_not_lost(run_context: &RunContext<'_>, state: &mut State) -> Result<()> {
    let open = OpenPipeline::open(run_context).await?;
    open.check_not_lost(state).await
}

/// A run, opened.
pub(super) struct OpenPipeline<'a> {
    pub(super) run_context: &'a RunContext<'a>,
    pub(super) runtime: Arc<RuntimeEnv>,
    pub(super) outputs: Vec<Output>,
    pub(super) announced: Folder,
    /// Where rows and files are put aside.
    pub(super) quarantine: Folder,
    /// Dropped after what spills to it.
    pub(super) spill: SpillFolder,
}

impl<'a> OpenPipeline<'a> {
    pub(super) async fn open(run_context: &'a RunContext<'a>) -> Result<Self> {
        let (pipeline, limit) = (run_context.pipeline, run_context.resources);
        let spill = SpillFolder::create(&limit.spill_dir, &run_context.run_id)?;
        Ok(OpenPipeline {
            run_context,
            runtime: runtime(limit, &spill)?,
            outputs: open_outputs(run_context).await?,
            announced: run_context
                .stores
                .open(&pipeline.state.join("publishing"))?,
            quarantine: run_context
                .stores
                .open(&pipeline.state.join("quarantine"))?,
            spill,
        })
    }

    /// Opens the pipeline for a question, with its state.
    pub(super) async fn open_read_only(run_context: &'a RunContext<'a>) -> Result<(Self, State)> {
        let mut state = State::open(run_context.stores, run_context.pipeline).await?;
        let open = OpenPipeline::open(run_context).await?;
        check_identity(&state, run_context.pipeline)?;
        state.check_known()?;
        open.check_not_lost(&mut state).await?;
        Ok((open, state))
    }

    /// Refuses to begin anew where tables of this pipeline are, whose state is gone: nothing would
    /// be known of their rows.
    pub(super) async fn check_not_lost(&self, state: &mut State) -> Result<()> {
        if state.last_commit() > 0 {
            return Ok(());
        }
        for output in self.outputs.iter().filter(|output| output.name != "state") {
            let files = list(&output.folder).await?;
            let is_ours = |path: &String| {
                path.starts_with(LOG_FOLDER) || part_file_commit(base_name(path)).is_some()
            };
            if !output.is_marked || !files.iter().any(is_ours) {
                continue;
            }
            // A first run may just have ended.
            state.refresh().await?;
            if state.last_commit() == 0 {
                return Err(Error::usage(format!(
                    "{} holds files of this pipeline, but its state {} is gone",
                    output.folder.location, self.run_context.pipeline.state
                ))
                .hint("restore the state, or empty the folder to begin anew"));
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

/// Refuses a pipeline that is no longer what made its tables.
pub(super) fn check_identity(state: &State, pipeline: &Pipeline) -> Result<()> {
    let Some(contract) = &state.ledger.contract else {
        return Ok(());
    };
    let differences = contract.identity.differences(&Identity::of(pipeline));
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::usage(format!(
        "the pipeline `{}` is no longer what made its tables: `{}` changed",
        pipeline.name,
        differences.join("`, `")
    ))
    .hint(format!(
        "undo the change, make the tables again with `glueless rebuild`, or use another `name` and \
         `curated.url`; the state is in {}",
        pipeline.state
    )))
}

/// Refuses to make a table again in another format beside what it was.
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
        "{} cannot become a table of the format `{}`",
        pipeline.curated.url, pipeline.curated.format
    ))
    .hint("give it another `curated.url` as well"))
}

/// Opens the folders of all tables and checks that they are this pipeline's, or free.
async fn open_outputs(run_context: &RunContext<'_>) -> Result<Vec<Output>> {
    let RunContext {
        pipeline, stores, ..
    } = run_context;
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
        // Files are renamed or copied from staging, which neither crosses a store.
        let beside = location
            .sibling("_glueless")
            .unwrap_or_else(|| location.join("_glueless"));
        // Pipelines of one name can lie side by side with a state each.
        let own = staging_name(&pipeline.state.to_string());
        let staging = beside.join(&pipeline.name).join("staging").join(&own);
        let staging = stores.open(&staging)?;
        let owner = Owner {
            pipeline: pipeline.name.clone(),
            table: owned_as,
            state: pipeline.state.to_string(),
        };
        let folder = stores.open(location)?;
        let is_marked = owner.check(&folder, &setting).await?;
        outputs.push(Output {
            name,
            setting,
            folder,
            staging,
            owner,
            is_marked,
        });
    }
    // The state folder is owned as well: two pipelines that share it would mix their memories.
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

pub(super) fn date(day: i32) -> Option<NaiveDate> {
    NaiveDate::from_ymd_opt(1970, 1, 1)?.checked_add_signed(TimeDelta::days(day.into()))
}

/// The URL under which the engine finds a folder's store.
pub(super) fn object_store_root(folder: &Folder) -> url::Url {
    let mut url = folder.location.url().clone();
    url.set_path("");
    url
}
