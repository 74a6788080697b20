//! The program as a process: its arguments, its environment, its exit code and what it prints.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use super::lab::Lab;
use super::s3::environment_of;

/// How long a program may run.
const LONGEST: Duration = Duration::from_secs(600);

/// Where the program is.
pub fn glueless() -> PathBuf {
    assert_cmd::cargo::cargo_bin!("glueless").to_path_buf()
}

/// A process that is about to be started. Its environment is empty.
#[derive(Debug)]
pub struct Program {
    command: Command,
}

impl Program {
    /// The program itself.
    pub fn glueless() -> Self {
        Program::new(&glueless())
    }

    /// Another program, such as a shell that starts ours.
    pub fn new(path: &Path) -> Self {
        let mut command = Command::new(path);
        command.env_clear();
        Program { command }
    }

    /// A line of shell; its arguments are `$0`, `$1` and so on.
    pub fn shell(line: &str) -> Self {
        Program::new(Path::new("/bin/sh")).args(["-c", line])
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<std::ffi::OsStr>>(
        mut self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        self.command.args(arguments);
        self
    }

    /// Adds the arguments and the environment of another program.
    pub fn arguments_of(mut self, other: &Program) -> Self {
        self.command.args(other.command.get_args());
        for (name, value) in other.command.get_envs() {
            self.command.env(name, value.unwrap_or_default());
        }
        self
    }

    /// Adds overrides of the pipeline's keys.
    pub fn set(self, overrides: &[&str]) -> Self {
        let pairs = overrides.iter().flat_map(|text| ["--set", text]);
        self.args(pairs)
    }

    /// Adds variables to the environment.
    pub fn envs(
        mut self,
        variables: impl IntoIterator<Item = (impl AsRef<str>, impl AsRef<str>)>,
    ) -> Self {
        for (name, value) in variables {
            self.command.env(name.as_ref(), value.as_ref());
        }
        self
    }

    /// Runs it to its end. It is killed after [`LONGEST`], so that a test of a program that waits for ever fails.
    #[track_caller]
    pub fn run(mut self) -> Output {
        self.command.stdin(Stdio::null());
        let child = self.start();
        let process = child.id();
        let (ended, is_ended) = mpsc::channel();
        let watch = std::thread::spawn(move || {
            if is_ended.recv_timeout(LONGEST) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = Command::new("kill").args(["-KILL", &process.to_string()]).status();
            }
        });
        let output = child.wait_with_output().expect("its output");
        let _ = ended.send(());
        watch.join().expect("watched");
        output.into()
    }

    /// Runs it to its end, which must be a success.
    #[track_caller]
    pub fn succeed(self) -> Output {
        let output = self.run();
        output.assert_success();
        output
    }

    /// Starts it, with pipes for both streams.
    #[track_caller]
    pub fn start(mut self) -> Child {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command.spawn().expect("it starts")
    }
}

impl Lab {
    /// A command for the lab's pipeline, such as `verify`.
    pub fn program(&self, command: &str) -> Program {
        Program::glueless().envs(environment_of(&self.base)).arg(command).arg(&self.pipeline)
    }

    /// A command for a window of the lab's pipeline, such as `run`.
    pub fn program_for(&self, command: &str, start: &str, end: &str) -> Program {
        let dates = ["--start-date", start, "--end-date", end];
        self.program(command).args(dates)
    }
}

/// What a process did.
#[derive(Clone, Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<std::process::Output> for Output {
    fn from(output: std::process::Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Output {
            code: output.status.code().expect("an exit code"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Output {
    /// Checks that the process succeeded.
    #[track_caller]
    pub fn assert_success(&self) {
        assert_eq!(self.code, 0, "{}", self.stderr);
    }

    /// What the process printed on stdout, which must be JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("no JSON: {}", self.stdout))
    }

    /// The output with the path of a folder, and the ids of runs, replaced by what they are.
    pub fn masked(self, folder: &str) -> Self {
        let masked = |text: &str| mask_run_ids(&text.replace(folder, "[folder]"));
        Output { code: self.code, stdout: masked(&self.stdout), stderr: masked(&self.stderr) }
    }
}

/// The text with `[run]` in place of every id of a run.
pub fn mask_run_ids(text: &str) -> String {
    let is_id = |part: &str| uuid::Uuid::try_parse(part).is_ok();
    let mut masked = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        if let Some(id) = rest.get(..36).filter(|part| is_id(part)) {
            masked.push_str("[run]");
            rest = &rest[id.len()..];
        } else {
            masked.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    masked
}

/// Sends a signal, such as `-INT`, to a process.
pub fn send_signal(process: &Child, name: &str) {
    let sent: io::Result<_> = Command::new("kill").args([name, &process.id().to_string()]).status();
    assert!(sent.expect("it starts").success());
}
