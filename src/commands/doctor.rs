//! Looks for what would fail tonight: configuration, reach and rights of all locations, the clock, memory and disk, what the
//! next run would read, gaps, quarantine and lag, and the targets of followers.
//!
//! What it finds is the answer; a check that fails does not stop the others. It changes nothing, but for a small object in each
//! location that is written to, which it removes again.

use std::collections::BTreeMap;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use crate::commands::follow;
use crate::commands::one_commit::{Reads, of_one_commit};
use crate::commands::open_pipeline::RunContext;
use crate::commands::plan::{Planned, plan};
use crate::config::{Pipeline, Raw};
use crate::error::{Error, Result};
use crate::raw::discover::{self, Input, Recorded};
use crate::report::examined::Examined;
use crate::report::size;
use crate::report::text_table::day_or_instant;
use crate::state::State;
use crate::state::inputs::NeededInputs;
use crate::state::ledger::{Ledger, Run, Step};
use crate::window::Window;

mod places;

/// The runs from which it is told how often the pipeline runs.
const RUNS_MIN: usize = 4;
/// The most time between the end of a window and its run on a schedule.
const RECENT: TimeDelta = TimeDelta::days(3);
/// A pipeline is late when it has not run for so many times as long as between two of its runs.
const LATE_TIMES: i32 = 3;

/// What the machine has.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Its memory, or that of the container, in bytes.
    pub memory_bytes: u64,
    /// The free bytes of the disk of the folder for spilled data, if they are known.
    pub free_disk_bytes: Option<u64>,
}

/// Examines a pipeline.
///
/// # Errors
/// None: what fails is a finding.
pub fn doctor<'a>(
    run_context: &'a RunContext<'_>,
    machine: Machine,
) -> LocalBoxFuture<'a, Result<Examined>> {
    async move {
        let mut examined = Examined::of(&run_context.pipeline.name);
        examined.environment(run_context.pipeline, run_context.environment);
        places::examine(run_context, &mut examined).await;
        if let Some(ledger) = examined.state(run_context).await {
            examined.runs(&ledger, run_context.now);
            examined.machine(&ledger, run_context, machine);
            // Where raw files cannot be listed, no run can either.
            if !examined.has_failed("raw") {
                examined.raw_files(run_context, &ledger).await;
            }
        } else {
            examined.machine(&Ledger::default(), run_context, machine);
        }
        follow::examine(run_context, &mut examined).await;
        Ok(examined)
    }
    .boxed_local()
}

impl Examined {
    /// The variables that the pipeline names.
    fn environment(&mut self, pipeline: &Pipeline, environment: &BTreeMap<String, String>) {
        let mut named: Vec<(&str, &String)> = Vec::new();
        named.extend(pipeline.load.iter().map(|load| ("load.url_env", &load.url_env)));
        named.extend(pipeline.verify.iter().map(|verify| ("verify.url_env", &verify.url_env)));
        let is_set = |name: &String| environment.get(name).is_some_and(|value| !value.is_empty());
        for (key, variable) in named.iter().filter(|(_, variable)| !is_set(variable)) {
            let message = format!("the environment has no variable {variable} (`{key}`)");
            self.error(
                "environment",
                message,
                "set it to postgresql://user:password@host:5432/database",
            );
        }
        let masks = pipeline.raw.masks.check_unlocked();
        if let Err(error) = &masks {
            self.failed("environment", error);
        }
        let has_all = named.iter().all(|(_, variable)| is_set(variable)) && masks.is_ok();
        if has_all && (!named.is_empty() || !pipeline.raw.masks.is_empty()) {
            self.ok("environment", "the variables that the pipeline names are set");
        }
    }

    /// The state: whether it can be read, and is this pipeline's. Returns its ledger.
    async fn state(&mut self, run_context: &RunContext<'_>) -> Option<Ledger> {
        let reads = (Reads::LogOnly, NeededInputs::Recent);
        let opened = of_one_commit(run_context, reads, async |open, state| {
            let is_publishing = open.is_publishing(state).await?;
            Ok((state.ledger.with_inputs(Default::default()), state.last_commit(), is_publishing))
        });
        match opened.await {
            Err(error) => {
                self.failed("tables", &error);
                None
            }
            Ok((ledger, 0, _)) => {
                self.ok("tables", "no run has committed anything yet");
                Some(ledger)
            }
            Ok((ledger, commit, is_publishing)) => {
                if is_publishing {
                    let message = "a run is publishing, or was interrupted".to_string();
                    self.warning("tables", message, "the next run finishes it");
                } else {
                    self.ok(
                        "tables",
                        format!("the state is at commit {commit}, and is this pipeline's"),
                    );
                }
                Some(ledger)
            }
        }
    }

    /// Gaps, quarantine, and how old the newest change and the last run are.
    fn runs(&mut self, ledger: &Ledger, now: DateTime<Utc>) {
        let gaps = ledger.gaps();
        match gaps.iter().next() {
            None if ledger.runs.is_empty() => {}
            None => self.ok("windows", "there is no gap between the windows that were run"),
            Some(first) => {
                let (start, end) = (day_or_instant(first.start), day_or_instant(first.end));
                let message =
                    format!("{} gaps between windows, such as {start} to {end}", gaps.len());
                self.warning("windows", message, "fold their files: glueless catch-up");
            }
        }
        if !ledger.quarantined.is_empty() {
            let message = format!(
                "{} raw files have rows in quarantine, or are there as a whole",
                ledger.quarantined.len()
            );
            self.warning(
                "quarantine",
                message,
                "look at them, mend them, and fold them: glueless catch-up",
            );
        }
        let is_fold = |run: &&Run| matches!(run.command, Step::Curate | Step::CatchUp);
        let folds = || ledger.runs.iter().filter(is_fold);
        let Some(last) = folds().next_back().map(|run| run.at) else { return };
        // Runs of old windows are those of a backfill, and say nothing about the schedule.
        let is_recent = |run: &&Run| run.at - run.end < RECENT && run.command == Step::Curate;
        let begins: Vec<DateTime<Utc>> = folds().filter(is_recent).map(|run| run.at).collect();
        let newest = ledger.newest_commit_time().map_or(String::new(), |newest| {
            format!("; the newest change is {} old", length(now - newest))
        });
        let message = format!("the last run began {} ago{newest}", length(now - last));
        let usual = usual_distance(&begins);
        match usual.filter(|usual| now - last > *usual * LATE_TIMES) {
            Some(usual) => {
                let message = format!("{message}; there is one every {} otherwise", length(usual));
                self.warning(
                    "lag",
                    message,
                    "see whether its schedule still starts it, and how it ended",
                );
            }
            None => self.ok("lag", message),
        }
    }

    /// Memory and disk, against the largest run so far.
    fn machine(&mut self, ledger: &Ledger, run_context: &RunContext<'_>, machine: Machine) {
        let limit = run_context.resources.memory_bytes;
        let largest =
            |count: &str| ledger.runs.iter().map(|run| run.count(count)).max().unwrap_or(0);
        let peak = largest("peak_memory_bytes");
        let message = format!(
            "the limit is {}, the machine has {}, the largest run so far took {}",
            size(limit),
            size(machine.memory_bytes),
            size(peak)
        );
        if limit > machine.memory_bytes {
            self.error("memory", message, "lower `limits.memory` below what the machine has");
        } else if peak > machine.memory_bytes / 100 * 90 {
            self.warning(
                "memory",
                message,
                "lower `limits.memory`, or use a machine with more memory",
            );
        } else {
            self.ok("memory", message);
        }
        let Some(free) = machine.free_disk_bytes else { return };
        let folder = run_context.resources.spill_dir.display().to_string();
        let bytes = largest("bytes");
        let message = format!(
            "{} are free in {folder}; the largest run so far read {}",
            size(free),
            size(bytes)
        );
        if free < bytes {
            self.warning(
                "disk",
                message,
                "free some, or set `limits.spill_dir` to a folder on a larger disk",
            );
        } else {
            self.ok("disk", message);
        }
    }

    /// What the next run would read, and raw files that no run takes.
    async fn raw_files(&mut self, run_context: &RunContext<'_>, ledger: &Ledger) {
        let now = run_context.now;
        let span = ledger.folded_windows().span();
        // To whole seconds, to be read easily.
        let now = now.duration_trunc(TimeDelta::seconds(1)).unwrap_or(now);
        let start = span.map_or(now - TimeDelta::days(1), |span| span.end.min(now));
        let window = Window::new(start, now.max(start + TimeDelta::seconds(1)));
        let planned = match window {
            Ok(window) => plan(run_context, window, false).await,
            Err(why) => Err(Error::internal(why)),
        };
        match planned {
            Err(error) => return self.failed("next run", &error),
            Ok(planned) => self.next_run(&planned),
        }
        let Some(span) = span else { return };
        match unfolded(run_context, span).await {
            Err(error) => self.failed("raw files", &error),
            Ok(Unfolded { before: 0, within: 0 }) => {
                self.ok("raw files", "every file of the windows that were run is folded");
            }
            Ok(Unfolded { before, within }) => {
                if within > 0 {
                    let message = format!(
                        "{within} files of windows that were run are not folded; the next run takes those of the last {}",
                        length(run_context.pipeline.raw.lookback)
                    );
                    self.warning("raw files", message, "fold the others: glueless catch-up");
                }
                if before > 0 {
                    let message = format!(
                        "{before} files are from before the first window, {}: no run takes them",
                        day_or_instant(span.start)
                    );
                    self.warning(
                        "raw files",
                        message,
                        "fold them with `glueless backfill`, if the table is to have them",
                    );
                }
            }
        }
    }

    fn next_run(&mut self, planned: &Planned) {
        let since = day_or_instant(planned.start);
        let message = format!(
            "a run from {since} to now would read {} files, {}",
            planned.files,
            size(planned.bytes)
        );
        match planned.notes.first() {
            Some(note) => {
                self.warning("next run", format!("{message}; {note}"), "see docs/operating.md")
            }
            None => self.ok("next run", message),
        }
    }
}

/// Raw files that no run has folded.
#[derive(Clone, Copy, Debug, Default)]
struct Unfolded {
    /// Those before the first window.
    before: u64,
    /// Those within the span of the windows.
    within: u64,
}

/// Counts the raw files that no run has folded and that the next ones do not look for: CDC files that are not in quarantine.
async fn unfolded(run_context: &RunContext<'_>, span: Window) -> Result<Unfolded> {
    let raw: &Raw = &run_context.pipeline.raw;
    let inputs = discover::discover_all(&run_context.raw()?, raw).await?;
    let reads = (Reads::LogOnly, NeededInputs::All);
    of_one_commit(run_context, reads, async |_, state| Ok(unfolded_of(&inputs, raw, state, span)))
        .await
}

/// The same of these inputs.
fn unfolded_of(inputs: &[Input], raw: &Raw, state: &State, span: Window) -> Unfolded {
    let ledger = &state.ledger;
    let mut found = Unfolded::default();
    for input in inputs {
        let (location, path) = (input.file.location, &input.file.path);
        let is_known =
            ledger.folded(location, path).is_some() || ledger.is_quarantined(location, path);
        let Some(of_file) =
            discover::span(raw, &input.file).filter(|_| !is_known && !input.full_load)
        else {
            continue;
        };
        if of_file.end <= span.start {
            found.before += 1;
        } else if of_file.start < span.end {
            found.within += 1;
        }
    }
    found
}

/// The usual time between the begins of two runs: the middle one of all.
fn usual_distance(begins: &[DateTime<Utc>]) -> Option<TimeDelta> {
    let mut distances: Vec<TimeDelta> = begins.windows(2).map(|two| two[1] - two[0]).collect();
    distances.sort_unstable();
    distances.get(distances.len() / 2).copied().filter(|_| begins.len() >= RUNS_MIN)
}

/// A length of time, in its greatest unit.
fn length(length: TimeDelta) -> String {
    let seconds = length.num_seconds().max(0);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_known_by_the_middle_of_its_distances() {
        let at = |hours: i64| DateTime::UNIX_EPOCH + TimeDelta::hours(hours);
        let begins = [0, 24, 25, 48, 72, 200].map(at);
        assert_eq!(usual_distance(&begins), Some(TimeDelta::hours(24)));
        assert_eq!(usual_distance(&begins[..3]), None);
        assert_eq!(usual_distance(&[]), None);
    }

    #[test]
    fn lengths_are_shown_in_their_greatest_unit() {
        let shown = [-5, 0, 119, 7_199, 7_200, 172_800].map(|it| length(TimeDelta::seconds(it)));
        assert_eq!(shown, ["0 s", "0 s", "119 s", "119 min", "2 h", "2 days"]);
    }
}
