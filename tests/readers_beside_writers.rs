//! Readers beside writers: whatever runs replace and remove while a question is answered, the
//! answer is of one commit, and nobody takes a state that is whole for a damaged one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;

use crate::support::{COUNT_PER_DAY, Change, Lab, Result, Task, day};

/// How many commits follow each other until the ledger's files are replaced by one, and removed.
const COMMITS: i64 = 10;

fn lab() -> Lab {
    let lab =
        Lab::builder().set("raw.event_time", "event").aggregate("daily", COUNT_PER_DAY).build();
    write(&lab, 0);
    lab
}

/// Commits changes that replace every file of the table and of the versions, and more until all
/// files of the ledger are replaced.
fn write(lab: &Lab, number: i64) {
    let changes = (0..6).map(|id| Change {
        op: "U",
        id,
        cat: ["a", "b"][((id + number) % 2) as usize],
        v: number,
        us: number * 1_000 + id,
        event_us: 0,
    });
    let file = format!("raw/20200101-0000{number:05}.parquet");
    lab.put_changes(&file, 1, &changes.collect::<Vec<_>>());
    lab.run_days(1, 2);
    for empty in 0..COMMITS / 2 {
        lab.run_days(10 + empty, 11 + empty);
    }
}

type Question = fn(&Lab) -> Result<String>;

const QUESTIONS: [(&str, Question); 4] = [
    ("plan", |lab| {
        let planned = lab.plan(&day(1), &day(2), true)?;
        Ok(format!("{} {:?}", planned.files, planned.fold.expect("a fold").days))
    }),
    ("verify", |lab| {
        let verified = lab.verify()?;
        Ok(format!("{} {}", verified.is_equal, verified.rows_read))
    }),
    ("explain-key", |lab| {
        let mut explained = lab.try_explain(&["3"])?;
        explained.seconds = 0.0;
        Ok(serde_json::to_string(&explained).expect("JSON"))
    }),
    ("runs", |lab| {
        lab.history()?;
        Ok(String::new())
    }),
];

/// The reader falls asleep at its n-th request, for every third n; meanwhile all files that it may be
/// about to read are replaced and removed; it wakes up.
#[test]
fn a_question_that_sleeps_at_any_request_is_answered_for_the_newest_commit() {
    for (name, question) in QUESTIONS {
        let lab = lab();
        let mut slept = 0;
        for requests in (0..).step_by(3) {
            let (wake, woken) = oneshot::channel::<()>();
            let woken: Shared<_> = woken.map(|_| ()).boxed().shared();
            let (asleep, falls_asleep) = mpsc::channel();
            let (sleeper, _) = lab.sleeping_after(requests, (asleep.clone(), woken));
            let asked = std::thread::spawn(move || {
                let answer = question(&sleeper);
                let _ = asleep.send(false);
                answer
            });
            if !falls_asleep.recv().expect("received") {
                asked.join().expect("it ends").expect("an answer");
                break;
            }
            write(&lab, requests as i64 + 1);
            wake.send(()).expect("it sleeps");
            let answer = asked
                .join()
                .expect("it ends")
                .unwrap_or_else(|error| panic!("{name} after {requests}: {error}"));
            assert_eq!(answer, question(&lab).expect("an answer"), "{name} after {requests}");
            slept += 1;
        }
        assert!(slept > 1, "{name} slept {slept} times");
    }
}

/// The same for runs: they may be too late, and lose nothing.
#[test]
fn a_run_that_sleeps_at_any_request_never_takes_a_whole_state_for_a_damaged_one() {
    for task in [Task::Run, Task::Aggregate] {
        let lab = lab();
        for requests in (0..).step_by(5) {
            let (wake, woken) = oneshot::channel::<()>();
            let woken: Shared<_> = woken.map(|_| ()).boxed().shared();
            let (asleep, falls_asleep) = mpsc::channel();
            let (sleeper, _) = lab.sleeping_after(requests, (asleep.clone(), woken));
            let run = std::thread::spawn(move || {
                let done = sleeper.run_with(task, &day(1), &day(2), &[]);
                let _ = asleep.send(false);
                done
            });
            if !falls_asleep.recv().expect("received") {
                run.join().expect("it ends").expect("a run");
                break;
            }
            write(&lab, requests as i64 + 1);
            wake.send(()).expect("it sleeps");
            if let Err(error) = run.join().expect("it ends") {
                assert_eq!(error.kind.exit_code(), 75, "after {requests}: {error}");
            }
        }
        lab.run_days(1, 2);
        lab.assert_verified();
    }
}

#[test]
fn questions_in_a_loop_beside_commits_are_answered_or_told_to_ask_again() {
    let lab = lab();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (name, question) in QUESTIONS {
            let (lab, is_done) = (&lab, &is_done);
            scope.spawn(move || {
                while !is_done.load(Ordering::Relaxed) {
                    if let Err(error) = question(lab) {
                        assert_eq!(error.kind.exit_code(), 75, "{name}: {error}");
                    }
                }
            });
        }
        (1..10).for_each(|number| write(&lab, number));
        is_done.store(true, Ordering::Relaxed);
    });
    lab.assert_verified();
}
