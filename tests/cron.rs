//! The lines of `examples/cron/crontab`, run by the shell as cron does.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::{Lab, Output, Program, glueless, json_lines, raw_file};

const CRONTAB: &str = include_str!("../examples/cron/crontab");

type Pairs = Vec<(String, String)>;

/// The crontab as cron reads it: variables, and schedules with their commands.
fn parsed() -> (Pairs, Pairs) {
    let lines =
        CRONTAB.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (mut variables, mut commands) = (Pairs::new(), Pairs::new());
    for line in lines {
        let mut fields = line.splitn(6, ' ');
        let schedule: Vec<&str> = fields.by_ref().take(5).collect();
        match (line.split_once('='), fields.next()) {
            (Some((name, value)), None) => variables.push((name.into(), value.into())),
            (_, Some(command)) => {
                // A percent sign without a backslash would end the command.
                assert!(!command.replace("\\%", "").contains('%'), "{command}");
                commands.push((schedule.join(" "), command.trim().replace("\\%", "%")));
            }
            _ => panic!("neither a variable nor a command: {line}"),
        }
    }
    (variables, commands)
}

#[expect(clippy::disallowed_methods, reason = "cron's dates come from the real clock")]
fn yesterday() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time");
    now.saturating_sub(Duration::from_secs(86_400)).as_secs() as i64
}

struct Cron {
    lab: Lab,
    variables: Vec<(String, String)>,
    commands: Vec<String>,
}

impl Cron {
    fn new() -> Self {
        let lab = Lab::builder()
            .set("name", "nightly")
            .window_by("modified")
            .set("raw.event_time", "event")
            .partition_by(&["event_dt"])
            .curated_sql("SELECT id, v, event_dt FROM latest")
            .build();
        let (mut variables, commands) = parsed();
        let schedules: Vec<&str> = commands.iter().map(|(schedule, _)| schedule.as_str()).collect();
        assert_eq!(schedules, ["1 0 * * *", "0 4 * * *"]);
        let pipelines = lab.folder.path().join("pipelines");
        std::fs::create_dir(&pipelines).expect("a folder");
        std::fs::rename(&lab.pipeline, pipelines.join("nightly")).expect("moved");
        let program = glueless();
        let bin = program.parent().expect("a folder").display().to_string();
        for (name, value) in &mut variables {
            *value = match name.as_str() {
                "PATH" => format!("{bin}:{value}"),
                "SHELL" => value.clone(),
                "PIPELINES" => pipelines.display().to_string(),
                "REPORTS" => format!("{}/reports.jsonl", lab.base),
                "METRICS" => format!("{}/glueless.prom", lab.base),
                _ => panic!("a variable that the test does not know: {name}"),
            };
        }
        let commands = commands.into_iter().map(|(_, command)| command).collect();
        Cron { lab, variables, commands }
    }

    fn put(&self, number: i64) {
        self.lab.put_day(number, &[("I", number, "a")]);
        self.lab.set_modified(&raw_file(number), yesterday());
    }

    fn run(&self, line: usize) -> Output {
        let variables = self.variables.iter();
        Program::shell(&self.commands[line])
            .envs(variables.map(|(name, value)| (name, value)))
            .run()
    }

    /// Runs a line that succeeds: cron has nothing to mail.
    fn run_in_silence(&self, line: usize) {
        let output = self.run(line);
        assert_eq!(output.code, 0, "{}", output.stderr);
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""));
    }

    fn reports(&self) -> Vec<Value> {
        json_lines(&self.lab.get_text("reports.jsonl"))
    }

    fn metric(&self, name: &str) -> Option<f64> {
        let text = self.lab.get_text("glueless.prom");
        let line = format!("{name}{{pipeline=\"nightly\"}} ");
        text.lines().find_map(|text| text.strip_prefix(&line)?.parse().ok())
    }
}

#[test]
fn a_night_folds_yesterday_twice_and_says_nothing() {
    let cron = Cron::new();
    cron.put(1);
    cron.run_in_silence(0);
    assert_eq!(cron.lab.table("lake/curated").len(), 1);
    cron.put(2);
    cron.run_in_silence(1);
    assert_eq!(cron.lab.table("lake/curated").len(), 2);
    let reports = cron.reports();
    let files: Vec<u64> =
        reports.iter().map(|report| report["files"].as_u64().expect("files")).collect();
    assert_eq!(files, [1, 2]);
    assert_eq!(cron.metric("glueless_last_run_exit_code"), Some(0.0));
    assert_eq!(cron.metric("glueless_files"), Some(2.0));
    assert!(cron.metric("glueless_lag_seconds").expect("a lag") > 86_400.0);
}

#[test]
fn nights_that_overlap_do_no_harm() {
    let cron = Cron::new();
    (1..=4).for_each(|number| cron.put(number));
    thread::scope(|scope| {
        for line in [0, 1, 0] {
            let cron = &cron;
            scope.spawn(move || cron.run_in_silence(line));
        }
    });
    assert_eq!(cron.lab.table("lake/curated").len(), 4);
    assert_eq!(cron.reports().len(), 3);
}

#[test]
fn a_night_that_fails_is_mailed_and_told_to_prometheus() {
    let cron = Cron::new();
    cron.put(1);
    cron.run_in_silence(0);
    cron.lab.put(&raw_file(2), "not Parquet");
    cron.lab.set_modified(&raw_file(2), yesterday());
    let output = cron.run(1);
    assert_eq!(output.code, 65);
    let message = output.stderr;
    assert!(
        message.starts_with("error: ") && message.contains("20200102-000000000.parquet"),
        "{message}"
    );
    assert_eq!(cron.metric("glueless_last_run_exit_code"), Some(65.0));
    // What the last successful run reported stays.
    assert_eq!(cron.metric("glueless_files"), Some(1.0));
    assert_eq!(cron.lab.table("lake/curated").len(), 1);
}
