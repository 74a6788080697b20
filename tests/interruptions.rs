//! Interruptions: a run whose requests fail from the n-th on, for every n, as if its process had
//! been killed there; one whose n-th request alone fails; and one whose n-th request is done and
//! its reply lost, or taken for another's. Nothing of it may be visible before its commit, all of
//! it must be after the next command, and that run repeated must end where a clean one ends.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;

use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray};
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use futures::stream::{self, BoxStream, StreamExt};
use glueless::layout::attempt_name;
use glueless::pipeline::Task;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

use crate::support::{Lab, Place, Row, batch};

const TOML: &str = r#"
name = "cut"
key = ["id"]
keep = "latest"
[raw]
url = "{base}/raw"
window_by = "name"
order_by = ["ts"]
[curated]
url = "{base}/lake/curated"
partition_by = ["event_dt", "cat"]
[[aggregate]]
name = "daily"
sql = "daily.sql"
url = "{base}/lake/daily"
day = "dt"
"#;

const DAILY: &str = "SELECT event_dt AS dt, cat, COUNT(*) AS n FROM curated
WHERE event_dt >= $start_date AND event_dt < $end_date GROUP BY event_dt, cat";

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// It and all that follow are not done.
    AllDead,
    /// It alone is not done.
    OneDead,
    /// It is done, and its reply lost.
    ReplyLost,
    /// It is done, its reply lost, and a second try meets what the first one did.
    ReplyExists,
    /// It waits until it is woken.
    Sleep,
    /// Another process has always just made what a commit makes.
    AlwaysLate,
}

/// Lets the first requests through, and fails the next one.
#[derive(Clone, Debug)]
pub struct Cut {
    pub inner: Arc<dyn ObjectStore>,
    pub left: Arc<AtomicUsize>,
    pub fault: Fault,
    /// Whom to tell of the sleep, and what ends it.
    pub sleep: Option<(Sender<bool>, Shared<BoxFuture<'static, ()>>)>,
}

pub const NO_LIMIT: usize = usize::MAX;

impl Cut {
    /// Whether the request goes through; where it does not, and a lost reply is not asked for, it
    /// is not done.
    async fn request(&self) -> Result<bool> {
        let take = |left: usize| match left {
            NO_LIMIT => Some(NO_LIMIT),
            left => left.checked_sub(1),
        };
        let taken = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        if taken.is_ok() {
            return Ok(true);
        }
        if self.fault != Fault::AllDead {
            self.left.store(NO_LIMIT, Ordering::SeqCst);
        }
        match self.fault {
            Fault::AllDead | Fault::OneDead => Err(dead()),
            Fault::ReplyLost | Fault::ReplyExists => Ok(false),
            Fault::Sleep => {
                let (asleep, woken) = self.sleep.clone().expect("a sleep");
                asleep.send(true).expect("told");
                woken.await;
                Ok(true)
            }
            Fault::AlwaysLate => Ok(true),
        }
    }

    /// The reply of a request that was done.
    fn reply<T>(&self, through: bool, at: &Path, done: Result<T>) -> Result<T> {
        match (through, self.fault) {
            (false, Fault::ReplyExists) => Err(exists(at)),
            (false, _) => Err(dead()),
            (true, _) => done,
        }
    }
}

fn exists(at: &Path) -> Error {
    Error::AlreadyExists {
        path: at.to_string(),
        source: "a first try did it".into(),
    }
}

fn dead() -> Error {
    Error::Generic {
        store: "cut",
        source: "the line is dead".into(),
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cut {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Cut {
    async fn put_opts(&self, at: &Path, bytes: PutPayload, o: PutOptions) -> Result<PutResult> {
        let through = self.request().await?;
        if self.fault == Fault::AlwaysLate && at.as_ref().contains("_delta_log") {
            // An empty commit of someone else.
            let empty = r#"{"commitInfo":{"timestamp":0,"operation":"WRITE"}}"#;
            self.inner.put_opts(at, empty.into(), o).await?;
            return Err(exists(at));
        }
        let done = self.inner.put_opts(at, bytes, o).await;
        self.reply(through, at, done)
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let through = self.request().await?;
        let done = self.inner.put_multipart_opts(at, options).await;
        self.reply(through, at, done)
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let through = self.request().await?;
        let done = self.inner.get_opts(at, options).await;
        self.reply(through, at, done)
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let through = self.request().await?;
        let done = self.inner.get_ranges(at, ranges).await;
        self.reply(through, at, done)
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let cut = self.clone();
        let deleted = async move {
            match cut.request().await {
                Ok(true) => cut.inner.delete_stream(paths),
                Ok(false) => {
                    let done = cut.inner.delete_stream(paths);
                    done.map(|_| Err(dead())).boxed()
                }
                Err(error) => stream::once(async { Err(error) }).boxed(),
            }
        };
        deleted.flatten_stream().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (cut, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            match cut.request().await {
                Ok(true) => cut.inner.list(prefix.as_ref()),
                _ => stream::once(async { Err(dead()) }).boxed(),
            }
        };
        listed.flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        match self.request().await {
            Ok(true) => self.inner.list_with_delimiter(prefix).await,
            _ => Err(dead()),
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let through = self.request().await?;
        let done = self.inner.copy_opts(from, to, options).await;
        self.reply(through, to, done)
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let through = self.request().await?;
        let done = self.inner.rename_opts(from, to, options).await;
        self.reply(through, to, done)
    }
}

fn lab(place: Place) -> Lab {
    let sql = [
        ("curated.sql", "SELECT id, cat, v, event_dt FROM latest"),
        ("daily.sql", DAILY),
    ];
    Lab::new(place, TOML, &sql)
}

/// One file of a day: ids, each with a category and the day as its value.
fn put(lab: &Lab, day: i64, changes: &[(&str, i64, &str)]) {
    let column = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
    let ids = changes.iter().map(|change| change.1);
    let time = 1_577_836_800_000_000 + (day - 1) * 86_400_000_000;
    let columns: Vec<(&str, ArrayRef)> = vec![
        (
            "Op",
            column(changes.iter().map(|change| change.0).collect()),
        ),
        ("id", Arc::new(Int64Array::from_iter_values(ids))),
        (
            "cat",
            column(changes.iter().map(|change| change.2).collect()),
        ),
        ("v", Arc::new(Int64Array::from(vec![day; changes.len()]))),
        (
            "ts",
            Arc::new(TimestampMicrosecondArray::from_iter_values(
                (0..changes.len() as i64).map(|row| time + row),
            )),
        ),
    ];
    lab.put_raw(
        &format!("202001{day:02}-000000000.parquet"),
        &batch(columns),
    );
}

fn first_day(lab: &Lab) {
    put(
        lab,
        1,
        &[("I", 1, "a"), ("I", 2, "a"), ("I", 3, "b"), ("I", 4, "c")],
    );
}

/// A row changes its partition, one is deleted and empties its partition, one is new.
fn second_day(lab: &Lab) {
    put(lab, 2, &[("U", 1, "b"), ("D", 4, "c"), ("I", 5, "d")]);
}

type Tables = (Vec<Row>, Vec<String>, Vec<Row>, Vec<String>);

fn tables(lab: &Lab) -> Tables {
    // The commit in a name may be another one after a fault.
    let files = |table: &str| -> Vec<String> {
        let names = lab.list(table).into_iter();
        let names = names.map(|name| match name.split_once("part-c") {
            Some((before, after)) => format!("{before}part-{}", &after[9..]),
            None => name,
        });
        names.collect()
    };
    (
        lab.table("lake/curated"),
        files("lake/curated"),
        lab.table("lake/daily"),
        files("lake/daily"),
    )
}

fn check(place: Place, step: usize, fault: Fault) {
    let clean = lab(place);
    first_day(&clean);
    clean.run("2020-01-01", "2020-01-02").expect("a run");
    let before = tables(&clean);
    second_day(&clean);
    clean.run("2020-01-02", "2020-01-03").expect("a run");
    let after = tables(&clean);
    assert_ne!(before, after);

    let (mut published, mut failed) = (0, 0);
    for requests in (0..).step_by(step) {
        let mut lab = lab(place);
        first_day(&lab);
        lab.run("2020-01-01", "2020-01-02").expect("a run");
        second_day(&lab);
        let whole = lab.stores.clone();
        let left = Arc::new(AtomicUsize::new(requests));
        let shared = Arc::clone(&left);
        lab.stores = whole.clone().wrapped(Arc::new(move |inner| {
            let left = Arc::clone(&shared);
            Arc::new(Cut {
                inner,
                left,
                fault,
                sleep: None,
            })
        }));
        let cut = lab.run("2020-01-02", "2020-01-03");
        lab.stores = whole;
        let enough = cut.is_ok() && !matches!(left.load(Ordering::SeqCst), 0 | NO_LIMIT);

        // The next command, whatever it is, finishes or undoes.
        lab.run_with(Task::Aggregate, "2020-01-01", "2020-01-02", &[])
            .unwrap_or_else(|error| panic!("after {requests} requests: {error}"));
        let curated = |tables: Tables| (tables.0, tables.1);
        let found = curated(tables(&lab));
        let is_published = found == curated(after.clone());
        assert!(
            is_published || found == curated(before.clone()),
            "after {requests} requests: {found:?}"
        );
        published += usize::from(is_published);
        lab.run("2020-01-02", "2020-01-03")
            .unwrap_or_else(|error| panic!("after {requests} requests: {error}"));
        assert_eq!(tables(&lab), after, "after {requests} requests");
        let left = lab.list_all("lake/_glueless/cut");
        let strays = left.iter().filter(|path| !path.starts_with("versions/"));
        let strays: Vec<&String> = strays.filter(|path| *path != "_glueless.json").collect();
        assert!(strays.is_empty(), "after {requests} requests: {strays:?}");
        if enough {
            break;
        }
        failed += usize::from(cut.is_err());
    }
    // A lost reply can go unnoticed.
    let lost = matches!(fault, Fault::ReplyLost | Fault::ReplyExists);
    assert!(lost || failed > 10 / step, "{failed} runs were cut");
    assert!(published > 1, "some were cut after their commit");
}

#[test]
fn a_run_cut_at_any_request_is_finished_or_undone_in_a_local_folder() {
    check(Place::Local, 1, Fault::AllDead);
}

#[test]
fn a_run_with_one_failed_request_is_finished_or_undone() {
    check(Place::Local, 1, Fault::OneDead);
}

#[test]
fn a_run_cut_at_any_request_is_finished_or_undone_on_an_s3_server() {
    check(Place::S3, 5, Fault::AllDead);
}

#[test]
fn a_run_that_loses_a_reply_is_finished_or_undone() {
    check(Place::Local, 1, Fault::ReplyLost);
    check(Place::S3, 11, Fault::ReplyLost);
}

#[test]
fn a_run_that_takes_its_own_work_for_anothers_is_finished_or_undone() {
    check(Place::Local, 1, Fault::ReplyExists);
    check(Place::S3, 11, Fault::ReplyExists);
}

#[test]
fn an_aggregate_that_is_gone_does_not_hold_up_what_was_interrupted() {
    let lab = lab(Place::Local);
    first_day(&lab);
    let report = lab.run("2020-01-01", "2020-01-02").expect("a run");
    let announced = attempt_name(2, &format!("{}-aggregate", report.run_id));
    let announced = format!("lake/_glueless/cut/publishing/{announced}");
    lab.put(&announced, Vec::new());
    let toml = lab.pipeline.join("pipeline.toml");
    let text = std::fs::read_to_string(&toml).expect("read");
    let (without, _) = text.split_once("[[aggregate]]").expect("an aggregate");
    std::fs::write(&toml, without).expect("written");
    lab.run("2020-01-01", "2020-01-02").expect("a run");
    let left = lab.list_all("lake/_glueless/cut/publishing");
    assert!(left.is_empty(), "{left:?}");
}
