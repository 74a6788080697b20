//! Several pipelines: one after the other, or several at once, each with a share of the limits.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Program, print, write_metrics};
use crate::cli::args::AtOnce;
use crate::cli::metrics::MetricsFile;
use crate::cli::resources::{now, resources};
use crate::config::{
    Limits, MEMORY_BYTES_MIN, file_of, full_path, name_of, pipelines_of, written_name,
};
use crate::engine::resources::Resources;
use crate::engine::tasks::Work;
use crate::error::{Error, Result};
use crate::report::{Answer, PipelineResult, Results};
use crate::window::parse_duration;

/// How often the time on a line of progress changes.
const TICK: Duration = Duration::from_millis(250);

/// What one of several pipelines may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share<'a> {
    /// The overrides of keys.
    pub(super) set: &'a [String],
    /// The number of pipelines that share the limits.
    jobs: usize,
    /// Whether there are other pipelines.
    pub(super) is_of_several: bool,
    /// When a pipeline is given up.
    timeout: Option<Duration>,
}

impl<'a> Share<'a> {
    /// All of the limits.
    pub(super) fn whole(set: &'a [String]) -> Self {
        Share { set, jobs: 1, is_of_several: false, timeout: None }
    }

    /// The same share with other overrides.
    pub(super) fn with<'b>(&self, set: &'b [String]) -> Share<'b> {
        let Share { jobs, is_of_several, timeout, .. } = *self;
        Share { set, jobs, is_of_several, timeout }
    }

    /// The pipeline's part of the limits.
    ///
    /// # Errors
    /// Usage, when it is less than a run can work with.
    pub(super) fn resources(&self, limits: &Limits) -> Result<Resources> {
        let whole = resources(limits);
        if self.jobs == 1 {
            return Ok(whole);
        }
        let jobs = self.jobs as u64;
        if whole.memory_bytes / jobs < MEMORY_BYTES_MIN {
            let (at_once, most) = (self.jobs, whole.memory_bytes / MEMORY_BYTES_MIN);
            return Err(Error::usage(format!(
                "{at_once} pipelines at once need {} MB of memory, and the limit is {} MB",
                jobs * MEMORY_BYTES_MIN / 1_000_000,
                whole.memory_bytes / 1_000_000
            ))
            .hint(format!("write --jobs {}, or raise `limits.memory`", most.max(1))));
        }
        Ok(Resources {
            memory_bytes: whole.memory_bytes / jobs,
            spill_bytes_max: match whole.spill_bytes_max {
                u64::MAX => u64::MAX,
                limited => limited / jobs,
            },
            threads: (whole.threads / self.jobs).max(whole.threads.min(THREADS_MIN)),
            ..whole
        })
    }
}

/// The least threads of a pipeline, if the machine has them.
const THREADS_MIN: usize = 2;

impl Program {
    /// Applies `run` to one pipeline, or to several, and prints their results. `metrics` is the file that says how long each
    /// took the last time: of several at once the longest begin first.
    pub(super) fn run_each<A: Answer + Send>(
        &self,
        (paths, at_once): (&[PathBuf], &AtOnce),
        metrics: Option<&MetricsFile>,
        run: impl Fn(&Path, &Share<'_>) -> Result<A> + Sync,
    ) -> Result<u8> {
        let output = at_once.common.output;
        let timeout = at_once.timeout.as_deref().map(|text| {
            let parsed =
                parse_duration(text).map_err(|why| Error::usage(format!("--timeout: {why}")))?;
            Ok::<_, Error>(parsed.to_std().unwrap_or_default())
        });
        let timeout = timeout.transpose()?;
        let share = Share { timeout, ..Share::whole(&at_once.common.set) };
        if let [path] = paths
            && pipelines_of(path)?.is_none()
        {
            let answer = run(path, &share)?;
            print(&answer, output)?;
            return Ok(answer.exit_code());
        }
        let paths = pipelines(paths)?;
        let jobs = at_once.jobs.get().min(paths.len());
        let share = Share { jobs, is_of_several: paths.len() > 1, ..share };
        self.check_all(&paths, &share)?;
        let run_one = |path: &PathBuf| {
            // Threads of one that was given up may still log.
            self.log.separate(jobs > 1);
            let (name, began) = (name_of(path), now());
            let ended = catch_unwind(AssertUnwindSafe(|| run(path, &share)));
            let ended = ended.unwrap_or_else(|panic| {
                let error = ended_abruptly(&*panic);
                write_metrics(metrics, [&name, &name], began, Err(&error));
                Err(error)
            });
            if let Err(error) = &ended {
                self.log.failed_of(&name, error);
            }
            PipelineResult::new(name, ended)
        };
        let results = if jobs == 1 {
            paths.iter().map(run_one).collect()
        } else {
            self.run_at_once(&paths, jobs, metrics, &run_one)?
        };
        let results = Results::new(results);
        print(&results, output)?;
        Ok(results.exit_code())
    }

    /// Refuses pipelines that have one state, such as by one name: each would take the tables of the other for its own; and
    /// more at once than the memory is enough for.
    fn check_all(&self, paths: &[PathBuf], share: &Share<'_>) -> Result<()> {
        let mut known: BTreeMap<String, &PathBuf> = BTreeMap::new();
        for path in paths {
            // One that cannot be read is reported when it is its turn.
            let Ok(pipeline) = self.pipeline(path, share.set) else { continue };
            share.resources(&pipeline.limits)?;
            if let Some(other) = known.insert(pipeline.state.to_string(), path) {
                return Err(Error::usage(format!(
                    "the pipelines {} and {} have one state, {}",
                    other.display(),
                    path.display(),
                    pipeline.state
                ))
                .hint("nothing was changed: give each its own `name`, or its own `state.url`"));
            }
        }
        Ok(())
    }

    /// Runs several pipelines at once. Returns their results in the order of the pipelines.
    fn run_at_once<A: Answer + Send>(
        &self,
        paths: &[PathBuf],
        jobs: usize,
        metrics: Option<&MetricsFile>,
        run_one: &(impl Fn(&PathBuf) -> PipelineResult<A> + Sync),
    ) -> Result<Vec<PipelineResult<A>>> {
        let seconds = metrics.map(MetricsFile::seconds).unwrap_or_default();
        let seconds = paths.iter().map(|path| seconds.get(&written_name(path)).copied());
        let work = Work::new(longest_first(seconds));
        let done = self.bars.add(bar("{bar:30} {pos} of {len} pipelines, {elapsed}"));
        done.set_length(paths.len() as u64);
        let run_some = || {
            let mut results = Vec::new();
            while let Some(number) = work.next() {
                let line = self.bars.add(bar("  {spinner} {prefix} {elapsed} {msg}"));
                line.set_prefix(name_of(&paths[number]));
                if !line.is_hidden() {
                    line.enable_steady_tick(TICK);
                }
                results.push((number, run_one(&paths[number])));
                line.finish_and_clear();
                self.bars.remove(&line);
                done.inc(1);
            }
            results
        };
        let mut results = std::thread::scope(|scope| {
            let started: Vec<_> = (0..jobs)
                .map(|_| std::thread::Builder::new().spawn_scoped(scope, run_some))
                .collect();
            // Those that have started do the work of others too.
            let (mut results, mut failed) = (Vec::new(), None);
            for thread in started {
                let how = |how| Error::internal(format!("a thread that runs pipelines {how}"));
                match thread.map(|thread| thread.join()) {
                    Ok(Ok(of_thread)) => results.extend(of_thread),
                    Ok(Err(_)) => failed = Some(how("ended abruptly")),
                    Err(error) => failed = Some(how("cannot start").caused_by(error)),
                }
            }
            let is_whole = results.len() == paths.len();
            failed.filter(|_| !is_whole).map_or(Ok(results), Err)
        })?;
        done.finish_and_clear();
        results.sort_by_key(|(number, _)| *number);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    /// A runtime whose threads log with the labels of this one.
    pub(super) fn runtime(&self, resources: &Resources) -> Result<tokio::runtime::Runtime> {
        let labels = self.log.labels();
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(resources.threads)
            .on_thread_start(move || labels.adopt())
            .enable_all()
            .build()
            .map_err(|error| Error::internal("cannot start the runtime").caused_by(error))
    }

    /// Does what is asynchronous of one pipeline, which is given up when its time is over.
    ///
    /// # Errors
    /// Storage, when it is; and those of `work`.
    pub(super) fn block_on<T>(
        &self,
        share: &Share<'_>,
        resources: &Resources,
        work: LocalBoxFuture<'_, Result<T>>,
    ) -> Result<T> {
        let runtime = self.runtime(resources)?;
        let Some(timeout) = share.timeout else { return runtime.block_on(work) };
        let ended = runtime.block_on(async { tokio::time::timeout(timeout, work).await });
        ended.unwrap_or_else(|_| {
            // What still waits for storage is not waited for.
            runtime.shutdown_background();
            let seconds = timeout.as_secs();
            Err(Error::storage(format!("it has not ended within {seconds} s, and was given up")).hint(
                "run it again: it finishes or undoes what was begun; if it needs longer, raise --timeout",
            ))
        })
    }
}

/// The order in which pipelines begin: the longest first, so that none is left alone at the end. `seconds` is how long each
/// took the last time; one that has not run yet can be the longest.
fn longest_first(seconds: impl Iterator<Item = Option<f64>>) -> Vec<usize> {
    let mut order: Vec<(usize, f64)> =
        seconds.map(|seconds| seconds.unwrap_or(f64::INFINITY)).enumerate().collect();
    order.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    order.into_iter().map(|(number, _)| number).collect()
}

/// A line of progress.
fn bar(template: &str) -> ProgressBar {
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// The error for a pipeline whose thread has panicked.
fn ended_abruptly(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text =
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("for an unknown reason");
    Error::internal(format!("the run ended abruptly: {text}"))
}

/// The pipelines among several paths, and in folders of projects.
fn pipelines(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let (mut named, mut known) = (Vec::new(), BTreeSet::new());
    for path in paths {
        let of_project = pipelines_of(path)?.filter(|found| !found.is_empty());
        for one in of_project.unwrap_or_else(|| vec![path.clone()]) {
            // However it is named.
            if known.insert(full_path(&file_of(&one))?) {
                named.push(one);
            }
        }
    }
    // A path that does not exist is a mistake: it is kept, and reported when it is read.
    let is_skipped = |path: &PathBuf| {
        if path.is_dir() {
            !file_of(path).exists()
        } else {
            let is_toml = path.extension().is_some_and(|extension| extension == "toml");
            path.exists() && (!is_toml || path.ends_with("glueless.toml"))
        }
    };
    let (skipped, paths): (Vec<PathBuf>, Vec<PathBuf>) = named.into_iter().partition(is_skipped);
    for path in skipped {
        tracing::warn!("{} is not a pipeline, skipped", path.display());
    }
    if paths.is_empty() {
        return Err(Error::usage("none of the paths is a pipeline")
            .hint("name folders with a pipeline.toml each"));
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipelines_that_took_longest_begin_first() {
        let seconds = [Some(1.0), None, Some(9.0), Some(9.0), None, Some(2.5)];
        assert_eq!(longest_first(seconds.into_iter()), [1, 4, 2, 3, 5, 0]);
    }

    #[test]
    fn pipelines_at_once_share_the_limits() {
        let limits = |memory_bytes: u64| Limits {
            memory_bytes: Some(memory_bytes),
            spill_dir: None,
            spill_bytes_max: Some(900),
            threads: Some(8),
        };
        let of = |jobs: usize| Share { jobs, ..Share::whole(&[]) };
        let share = of(3).resources(&limits(900_000_000)).expect("enough");
        assert_eq!(
            (share.memory_bytes, share.spill_bytes_max, share.threads),
            (300_000_000, 300, 2)
        );
        let whole = of(1).resources(&limits(200_000_000)).expect("enough");
        assert_eq!((whole.memory_bytes, whole.threads), (200_000_000, 8));
        let error = of(3).resources(&limits(300_000_000)).expect_err("too little");
        let expected = "3 pipelines at once need 384 MB of memory, and the limit is 300 MB";
        assert_eq!(error.to_string(), expected);
        assert!(error.hint.expect("a hint").starts_with("write --jobs 2"));
    }
}
