//! Several runs at once: processes that overlap, processes that are killed, and a run that sleeps at
//! any of its requests while others finish. Whatever happens, the tables must be those of the same
//! runs one after the other.

use std::process::Child;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;

use crate::support::{
    COUNT_PER_DAY, Change, DAY_US, DELETION_VECTORS, Fault, Lab, Output, PLACES, Place, Row, STATE,
    day, raw_file, send_signal,
};

const DAYS: i64 = 6;

const FORMATS: [&str; 3] = ["parquet", "delta", DELETION_VECTORS];

/// A lab with a file for each day. The files change the same keys and days.
fn lab(place: Place, keep: &str, format: &str) -> Lab {
    let lab = Lab::builder()
        .place(place)
        .keep(keep)
        .format(format)
        .set("raw.event_time", "event")
        .aggregate("daily", COUNT_PER_DAY)
        .build();
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
    lab.put_changes(&raw_file(day), day, &changes.collect::<Vec<_>>());
}

fn tables(lab: &Lab) -> [Vec<Row>; 2] {
    lab.tables(["lake/curated", "lake/daily"])
}

/// The tables after one run over everything.
fn tables_of_one_run(keep: &str) -> [Vec<Row>; 2] {
    let lab = lab(Place::Local, keep, "parquet");
    lab.run_days(1, DAYS + 1);
    tables(&lab)
}

/// Starts a process that runs some days.
fn start(lab: &Lab, (first, end): (i64, i64)) -> Child {
    let program = lab.program_for("run", &day(first), &day(end));
    program.set(&["limits.memory=200MB"]).start()
}

/// Waits for the end of a process.
fn end_of(process: Child) -> Output {
    process.wait_with_output().expect("it ends").into()
}

/// Runs windows at once, and repeats each of them until it is done.
fn overlap(place: Place, keep: &str, format: &str, windows: &[(i64, i64)]) {
    let lab = lab(place, keep, format);
    let limit = Instant::now() + Duration::from_secs(120);
    std::thread::scope(|scope| {
        for window in windows {
            let lab = &lab;
            scope.spawn(move || {
                loop {
                    let output = end_of(start(lab, *window));
                    match output.code {
                        0 => break,
                        75 => assert!(Instant::now() < limit, "{window:?} is never done"),
                        code => panic!("{code}: {}", output.stderr),
                    }
                }
            });
        }
    });
    assert_eq!(tables(&lab), tables_of_one_run(keep));
    lab.assert_tidy();
}

#[test]
fn two_processes_at_once_end_where_one_after_the_other_does() {
    for place in PLACES {
        for format in FORMATS {
            overlap(place, "latest", format, &[(1, 5), (3, 7)]);
        }
    }
}

#[test]
fn eight_processes_at_once_end_where_one_after_the_other_does() {
    let windows = [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (1, 4), (2, 7)];
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
#[expect(
    clippy::disallowed_methods,
    reason = "the test has a thread of its own, and waits for a process"
)]
fn runs_killed_at_any_moment_harm_nothing() {
    for (place, kills) in [(Place::Local, 30), (Place::S3, 6)] {
        for (keep, format) in
            [("latest", "parquet"), ("latest", "delta"), ("latest-per-day", "parquet")]
        {
            let lab = lab(place, keep, format);
            // The time that a run takes here.
            let begun = Instant::now();
            let output = end_of(start(&lab, (1, 3)));
            assert_eq!(output.code, 0, "{}", output.stderr);
            let whole = begun.elapsed();
            for kill in 0..kills {
                let first = 1 + kill % DAYS;
                let mut run = start(&lab, (first, first + 1 + kill % 3));
                // The kills are spread over that time.
                std::thread::sleep(whole * ((kill * 37) % 101) as u32 / 90);
                run.kill().expect("killed");
                run.wait().expect("it ends");
            }
            let last = end_of(start(&lab, (1, DAYS + 1)));
            assert_eq!(last.code, 0, "{}", last.stderr);
            assert_eq!(tables(&lab), tables_of_one_run(keep));
            lab.assert_tidy();
        }
    }
}

/// Writes a file of a day that changes a row in each of many partitions.
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
    lab.put_changes(&raw_file(day), day, &changes.collect::<Vec<_>>());
}

#[test]
fn a_process_frozen_while_it_publishes_undoes_nothing_when_it_wakes_up() {
    for format in FORMATS {
        let lab = lab(Place::Local, "latest", format);
        lab.run_days(1, DAYS + 1);
        let log = lab.folder.path().join(format!("{STATE}/versions/_delta_log"));
        let commits = || std::fs::read_dir(&log).expect("a log").count();
        let (mut frozen, mut day) = (0, DAYS);
        while frozen < 2 && day < 26 {
            (1..=2).for_each(|later| put_wide(&lab, day + later));
            let before = commits();
            let mut run = start(&lab, (day + 1, day + 2));
            while commits() == before && run.try_wait().expect("watched").is_none() {}
            send_signal(&run, "-STOP");
            frozen += usize::from(!lab.list_all(&format!("{STATE}/staging")).is_empty());
            lab.run_days(day + 2, day + 3);
            let after = tables(&lab);
            send_signal(&run, "-CONT");
            let ended = end_of(run);
            assert_eq!(ended.code, 0, "{}", ended.stderr);
            assert_eq!(tables(&lab), after);
            day += 2;
        }
        assert!(frozen > 0, "no process was frozen while it published");
        lab.run_days(1, day + 1);
        let at_once = self::lab(Place::Local, "latest", "parquet");
        (DAYS + 1..=day).for_each(|day| put_wide(&at_once, day));
        at_once.run_days(1, day + 1);
        assert_eq!(tables(&lab), tables(&at_once));
        lab.assert_tidy();
    }
}

/// A run falls asleep at its n-th request, for every n; other runs finish; it wakes up.
fn sleep(place: Place, format: &str, step: usize) {
    let mut slept = 0;
    for requests in (0..).step_by(step) {
        let lab = lab(place, "latest", format);
        lab.run_days(1, 3);
        let (wake, woken) = oneshot::channel::<()>();
        let woken: Shared<_> = woken.map(|_| ()).boxed().shared();
        let (asleep, falls_asleep) = mpsc::channel();
        let (sleeper, requests_left) = lab.sleeping_after(requests, (asleep.clone(), woken));
        let run = std::thread::spawn(move || {
            let done = sleeper.run(&day(3), &day(5));
            let _ = asleep.send(false);
            done
        });
        let is_asleep = falls_asleep.recv().expect("received");
        if is_asleep {
            lab.run_days(4, DAYS + 1);
            lab.run_days(2, 4);
            let before = tables(&lab);
            wake.send(()).expect("it sleeps");
            let done = run.join().expect("it ends");
            // It may be refused because it is too late, or find that nothing is left to do.
            if let Err(error) = &done {
                assert_eq!(error.kind.exit_code(), 75, "after {requests}: {error}");
            }
            assert_eq!(tables(&lab), before, "after {requests} requests");
            slept += 1;
        } else {
            run.join().expect("it ends").expect("a run");
        }
        lab.run_days(1, DAYS + 1);
        assert_eq!(tables(&lab), tables_of_one_run("latest"), "after {requests} requests");
        lab.assert_tidy();
        if !is_asleep {
            assert!(requests_left.left().is_some());
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
    lab.run_days(1, 2);
    let before = tables(&lab);
    // Another run is always faster: its commit exists already at each try.
    let busy = lab.with_fault(Fault::AlwaysLate);
    let error = busy.run(&day(2), &day(3)).expect_err("busy");
    assert_eq!(error.kind.exit_code(), 75, "{error}");
    assert_eq!(tables(&lab), before);
    lab.run_days(1, DAYS + 1);
    assert_eq!(tables(&lab), tables_of_one_run("latest"));
}
