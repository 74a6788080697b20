//! The answer of `doctor`: findings, a line each.

use std::fmt::Write;

use serde::Serialize;

use crate::error::{Error, Kind};
use crate::report::Answer;

/// The next step where a store refuses something, or does not answer.
const STORAGE_NEXT: &str = "check that the location exists and can be reached, and grant what is missing: docs/permissions.md \
                            lists what each command needs";

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing is wrong.
    Ok,
    /// The next run works, and something is to be looked at.
    Warning,
    /// The next run fails, or loses what it is for.
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// What one check has found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The check.
    pub check: String,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The findings of a pipeline.
#[derive(Clone, Debug, Serialize)]
pub struct Examined {
    /// The pipeline's name.
    pub pipeline: String,
    /// The findings, in the order of the checks.
    pub findings: Vec<Finding>,
}

impl Examined {
    /// No findings so far.
    pub(crate) fn of(pipeline: &str) -> Self {
        Examined { pipeline: pipeline.into(), findings: Vec::new() }
    }

    /// A pipeline that cannot be read.
    pub fn unreadable(pipeline: &str, error: &Error) -> Self {
        let mut examined = Examined::of(pipeline);
        examined.failed("configuration", error);
        examined
    }

    pub(crate) fn ok(&mut self, check: &str, message: impl Into<String>) {
        self.add(check, Level::Ok, message.into(), None);
    }

    pub(crate) fn warning(&mut self, check: &str, message: impl Into<String>, next: &str) {
        self.add(check, Level::Warning, message.into(), Some(next.into()));
    }

    pub(crate) fn error(&mut self, check: &str, message: impl Into<String>, next: &str) {
        self.add(check, Level::Error, message.into(), Some(next.into()));
    }

    /// An error that a check has ended in.
    pub(crate) fn failed(&mut self, check: &str, error: &Error) {
        let next = error.hint.clone().or_else(|| {
            let is_of_storage = error.kind == Kind::Storage;
            is_of_storage.then(|| STORAGE_NEXT.to_string())
        });
        self.add(check, Level::Error, error.to_string(), next);
    }

    /// Whether a check has found an error.
    pub(crate) fn has_failed(&self, check: &str) -> bool {
        self.findings.iter().any(|finding| finding.check == check && finding.level == Level::Error)
    }

    fn add(&mut self, check: &str, level: Level, message: String, next: Option<String>) {
        self.findings.push(Finding { check: check.into(), level, message, next });
    }
}

impl Answer for Examined {
    fn text(&self) -> String {
        let mut text = format!("{}\n", self.pipeline);
        for finding in &self.findings {
            let Finding { check, level, message, next } = finding;
            let _ = writeln!(text, "  {:<8} {check:<12} {message}", level.name());
            if let Some(next) = next {
                let _ = writeln!(text, "  {:<8} {:<12} → {next}", "", "");
            }
        }
        text
    }

    fn exit_code(&self) -> u8 {
        self.findings.iter().any(|finding| finding.level == Level::Error).into()
    }
}
