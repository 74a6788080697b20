//! Several runs at once: processes that overlap, processes that are killed, and a run that sleeps
//! at any of its requests while others finish. Whatever happens, the tables end where one run
//! after the other ends.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;
use glueless::commands::Task;

use crate::faults::{Cut, Fault, NO_LIMIT};
use crate::support::{Change, DAY_US, Lab, Place, Row, s3_environment};

const TOML: &str = r#"
name = "many"
key = ["id"]
keep = "{keep}"
[raw]
url = "{base}/raw"
window_by = "name"
order_by = ["ts"]
event_time = "event"
[curated]
url = "{base}/lake/curated"
partition_by = ["event_dt", "cat"]
format = "{format}"
[[aggregate]]
name = "daily"
sql = "daily.sql"
url = "{base}/lake/daily"
day = "dt"
"#;

const DAILY: &str = "SELECT event_dt AS dt, COUNT(*) AS n FROM history
WHERE NOT deleted AND event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt";

const DAYS: i64 = 6;

const FORMATS: [&str; 2] = ["parquet", "delta"];

/// A lab with a file per day, whose changes touch the keys and days of the other files.
fn lab(place: Place, keep: &str, format: &str) -> Lab {
    let sql = [
        ("curated.sql", "SELECT id, cat, v, event_dt FROM latest"),
        ("daily.sql", DAILY),
    ];
    let toml = TOML.replace("{keep}", keep).replace("{format}", format);
    let lab = Lab::new(place, &toml, &sql);
    for day in 1..=DAYS {
        put(&lab, day);
    }
    lab
}

fn put(lab: &Lab, day: i64) {
    let changes = (0..40).map(|row| {
        let id = (row * 7 + day * 11) % 23;
        Change {
            op: if (row + id) % 9 == 0 { "D" } else { "U" },
            id,
            cat: ["a", "b", "c"][((id + day) % 3) as usize],
            v: row * 100 + day,
            us: row * 1_000_000,
            event_us: ((id + day) % 4) * DAY_US,
        }
    });
    lab.put_changes(day, &changes.collect::<Vec<_>>());
}

fn date(day: i64) -> String {
    format!("2020-01-{day:02}")
}

type Tables = (Vec<Row>, Vec<Row>);

fn tables(lab: &Lab) -> Tables {
    (lab.table("lake/curated"), lab.table("lake/daily"))
}

/// The tables after one run over everything.
fn sequential(keep: &str) -> Tables {
    let lab = lab(Place::Local, keep, "parquet");
    lab.run(&date(1), &date(DAYS + 1)).expect("a run");
    tables(&lab)
}

fn start(lab: &Lab, task: &str, (first, end): (i64, i64)) -> Child {
    Command::new(assert_cmd::cargo::cargo_bin!("glueless"))
        .arg(task)
        .arg(&lab.pipeline)
        .args(["--start-date", &date(first), "--end-date", &date(end)])
        .args(["--set", "limits.memory=200MB"])
        .envs(s3_environment_of(lab))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

fn s3_environment_of(lab: &Lab) -> Vec<(String, String)> {
    match lab.base.starts_with("s3://") {
        true => s3_environment(),
        false => vec![],
    }
}

/// Runs windows at once, each again until it is done.
fn overlap(place: Place, keep: &str, format: &str, windows: &[(i64, i64)]) {
    let lab = lab(place, keep, format);
    let limit = Instant::now() + Duration::from_secs(120);
    std::thread::scope(|scope| {
        for window in windows {
            let lab = &lab;
            scope.spawn(move || {
                loop {
                    let output = start(lab, "run", *window)
                        .wait_with_output()
                        .expect("waited");
                    match output.status.code() {
                        Some(0) => break,
                        Some(75) => assert!(Instant::now() < limit, "{window:?} is never done"),
                        code => panic!("{code:?}: {}", String::from_utf8_lossy(&output.stderr)),
                    }
                }
            });
        }
    });
    assert_eq!(tables(&lab), sequential(keep));
    lab.assert_tidy();
}

#[test]
fn two_processes_at_once_end_where_one_after_the_other_does() {
    for place in [Place::Local, Place::S3] {
        for format in FORMATS {
            overlap(place, "latest", format, &[(1, 5), (3, 7)]);
        }
    }
}

#[test]
fn eight_processes_at_once_end_where_one_after_the_other_does() {
    let windows = [
        (1, 2),
        (2, 3),
        (3, 4),
        (4, 5),
        (5, 6),
        (6, 7),
        (1, 4),
        (2, 7),
    ];
    overlap(Place::Local, "latest", "parquet", &windows);
    overlap(Place::Local, "latest", "delta", &windows);
    overlap(Place::Local, "latest-per-day", "parquet", &windows);
}

#[test]
fn four_processes_at_once_end_where_one_after_the_other_does_on_an_s3_server() {
    let windows = [(1, 3), (2, 5), (4, 7), (1, 7)];
    for format in FORMATS {
        overlap(Place::S3, "latest", format, &windows);
    }
}

#[test]
fn runs_killed_at_any_moment_harm_nothing() {
    for (place, kills) in [(Place::Local, 30), (Place::S3, 6)] {
        for (keep, format) in [
            ("latest", "parquet"),
            ("latest", "delta"),
            ("latest-per-day", "parquet"),
        ] {
            let lab = lab(place, keep, format);
            // How long a run takes here.
            let begun = Instant::now();
            assert!(start(&lab, "run", (1, 3)).wait().expect("waited").success());
            let whole = begun.elapsed();
            for kill in 0..kills {
                let first = 1 + kill % DAYS;
                let mut run = start(&lab, "run", (first, first + 1 + kill % 3));
                // Spread over the run's time.
                std::thread::sleep(whole * ((kill * 37) % 101) as u32 / 90);
                run.kill().expect("killed");
                run.wait().expect("waited");
            }
            let last = start(&lab, "run", (1, DAYS + 1)).wait_with_output();
            let last = last.expect("waited");
            let told = String::from_utf8_lossy(&last.stderr);
            assert!(last.status.success(), "{told}");
            assert_eq!(tables(&lab), sequential(keep));
            lab.assert_tidy();
        }
    }
}

/// Sends a signal to a process.
fn signal(process: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([name, &process.id().to_string()])
        .status();
    assert!(sent.expect("sent").success());
}

/// Writes the file of a day that changes a row in each of many partitions.
fn put_wide(lab: &Lab, day: i64) {
    let cats: Vec<String> = (1000..1600).map(|id| id.to_string()).collect();
    let changes = (1000..1600).zip(&cats).map(|(id, cat)| Change {
        op: if (id + day) % 9 == 0 { "D" } else { "U" },
        id,
        cat,
        v: day,
        us: id,
        event_us: 0,
    });
    lab.put_changes(day, &changes.collect::<Vec<_>>());
}

#[test]
fn a_process_frozen_while_it_publishes_undoes_nothing_when_it_wakes_up() {
    for format in FORMATS {
        let lab = lab(Place::Local, "latest", format);
        lab.run(&date(1), &date(DAYS + 1)).expect("a run");
        let log = lab
            .folder
            .path()
            .join("lake/_glueless/many/versions/_delta_log");
        let commits = || std::fs::read_dir(&log).expect("a log").count();
        let (mut frozen, mut day) = (0, DAYS);
        while frozen < 2 && day < 26 {
            (1..=2).for_each(|later| put_wide(&lab, day + later));
            let before = commits();
            let mut run = start(&lab, "run", (day + 1, day + 2));
            while commits() == before && run.try_wait().expect("waited").is_none() {}
            signal(&run, "-STOP");
            frozen += usize::from(!lab.list_all("lake/_glueless/many/staging").is_empty());
            lab.run(&date(day + 2), &date(day + 3)).expect("a run");
            let after = tables(&lab);
            signal(&run, "-CONT");
            let ended = run.wait_with_output().expect("waited");
            let told = String::from_utf8_lossy(&ended.stderr);
            assert!(ended.status.success(), "{told}");
            assert_eq!(tables(&lab), after);
            day += 2;
        }
        assert!(frozen > 0, "no process was frozen while it published");
        lab.run(&date(1), &date(day + 1)).expect("a run");
        let at_once = self::lab(Place::Local, "latest", "parquet");
        (DAYS + 1..=day).for_each(|day| put_wide(&at_once, day));
        at_once.run(&date(1), &date(day + 1)).expect("a run");
        assert_eq!(tables(&lab), tables(&at_once));
        lab.assert_tidy();
    }
}

/// A run sleeps at its n-th request, for every n; others finish meanwhile; it wakes up.
fn sleep(place: Place, format: &str, step: usize) {
    let mut slept = 0;
    for requests in (0..).step_by(step) {
        let lab = lab(place, "latest", format);
        lab.run(&date(1), &date(3)).expect("a run");
        let (wake, woken) = oneshot::channel::<()>();
        let woken: Shared<_> = woken.map(|_| ()).boxed().shared();
        let (tell, told) = mpsc::channel();
        let left = Arc::new(AtomicUsize::new(requests));
        let shared = Arc::clone(&left);
        let asleep = tell.clone();
        let sleeper = lab.through(move |inner| {
            Arc::new(Cut {
                left: Arc::clone(&shared),
                sleep: Some((asleep.clone(), woken.clone())),
                ..Cut::new(inner, Fault::Sleep)
            })
        });
        let run = std::thread::spawn(move || {
            let done = sleeper.run(&date(3), &date(5));
            let _ = tell.send(false);
            done
        });
        let is_asleep = told.recv().expect("told");
        if is_asleep {
            lab.run(&date(4), &date(DAYS + 1)).expect("a run");
            lab.run(&date(2), &date(4)).expect("a run");
            let before = tables(&lab);
            wake.send(()).expect("it sleeps");
            let done = run.join().expect("it ends");
            // It may find that it came too late, or that all is done.
            if let Err(error) = &done {
                assert_eq!(error.kind.exit_code(), 75, "after {requests}: {error}");
            }
            assert_eq!(tables(&lab), before, "after {requests} requests");
            slept += 1;
        } else {
            run.join().expect("it ends").expect("a run");
        }
        lab.run(&date(1), &date(DAYS + 1)).expect("a run");
        assert_eq!(
            tables(&lab),
            sequential("latest"),
            "after {requests} requests"
        );
        lab.assert_tidy();
        if !is_asleep {
            assert!(left.load(Ordering::SeqCst) != NO_LIMIT);
            break;
        }
    }
    assert!(slept > 40 / step, "{slept} runs slept");
}

#[test]
fn a_run_that_sleeps_at_any_request_undoes_nothing_when_it_wakes_up() {
    sleep(Place::Local, "parquet", 3);
    sleep(Place::Local, "delta", 5);
}

#[test]
fn a_run_that_sleeps_at_any_request_undoes_nothing_when_it_wakes_up_on_an_s3_server() {
    sleep(Place::S3, "parquet", 29);
    sleep(Place::S3, "delta", 43);
}

#[test]
fn a_run_that_never_gets_its_turn_says_so_and_changes_nothing() {
    let lab = lab(Place::Local, "latest", "parquet");
    lab.run(&date(1), &date(2)).expect("a run");
    let before = tables(&lab);
    // Another run is always faster: at each try a commit is there already.
    let busy = lab.through(|inner| Arc::new(Cut::new(inner, Fault::AlwaysLate)));
    let error = busy
        .run_with(Task::Run, &date(2), &date(3), &[])
        .expect_err("busy");
    assert_eq!(error.kind.exit_code(), 75, "{error}");
    assert_eq!(tables(&lab), before);
    lab.run(&date(1), &date(DAYS + 1)).expect("a run");
    assert_eq!(tables(&lab), sequential("latest"));
}
