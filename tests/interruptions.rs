//! Interruptions: a run whose requests fail from the n-th on, for every n, as if its process had
//! been killed there; and one whose n-th request alone fails. Nothing of it may be visible before
//! its commit, all of it must be after the next command, and that run repeated must end where a
//! clean one ends.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
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

/// Lets the first requests through, and fails the next one, or all that follow.
#[derive(Debug)]
struct Cut {
    inner: Arc<dyn ObjectStore>,
    left: Arc<AtomicUsize>,
    once: bool,
}

const NO_LIMIT: usize = usize::MAX;

impl Cut {
    fn request(&self) -> Result<()> {
        let take = |left: usize| match left {
            NO_LIMIT => Some(NO_LIMIT),
            left => left.checked_sub(1),
        };
        match self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
        {
            Ok(_) => Ok(()),
            Err(_) => {
                if self.once {
                    self.left.store(NO_LIMIT, Ordering::SeqCst);
                }
                Err(Error::Generic {
                    store: "cut",
                    source: "the line is dead".into(),
                })
            }
        }
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
        self.request()?;
        self.inner.put_opts(at, bytes, o).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.request()?;
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.request()?;
        self.inner.get_opts(at, options).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.request()?;
        self.inner.get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        match self.request() {
            Ok(()) => self.inner.delete_stream(paths),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.request() {
            Ok(()) => self.inner.list(prefix),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.request()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.request()?;
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.request()?;
        self.inner.rename_opts(from, to, options).await
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
    (
        lab.table("lake/curated"),
        lab.list("lake/curated"),
        lab.table("lake/daily"),
        lab.list("lake/daily"),
    )
}

fn check(place: Place, step: usize, once: bool) {
    let clean = lab(place);
    first_day(&clean);
    clean.run("2020-01-01", "2020-01-02").expect("a run");
    let before = tables(&clean);
    second_day(&clean);
    clean.run("2020-01-01", "2020-01-03").expect("a run");
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
            Arc::new(Cut { inner, left, once })
        }));
        let cut = lab.run("2020-01-01", "2020-01-03");
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
        lab.run("2020-01-01", "2020-01-03")
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
    assert!(failed > 10 / step, "{failed} runs were cut");
    assert!(published > 1, "some were cut after their commit");
}

#[test]
fn a_run_cut_at_any_request_is_finished_or_undone_in_a_local_folder() {
    check(Place::Local, 1, false);
}

#[test]
fn a_run_with_one_failed_request_is_finished_or_undone() {
    check(Place::Local, 1, true);
}

#[test]
fn a_run_cut_at_any_request_is_finished_or_undone_on_an_s3_server() {
    check(Place::S3, 5, false);
}

#[test]
fn an_aggregate_that_is_gone_does_not_hold_up_what_was_interrupted() {
    let lab = lab(Place::Local);
    first_day(&lab);
    let report = lab.run("2020-01-01", "2020-01-02").expect("a run");
    let announced = format!("lake/_glueless/cut/publishing/{}-aggregate", report.run_id);
    lab.put(&announced, Vec::new());
    let toml = lab.pipeline.join("pipeline.toml");
    let text = std::fs::read_to_string(&toml).expect("read");
    let (without, _) = text.split_once("[[aggregate]]").expect("an aggregate");
    std::fs::write(&toml, without).expect("written");
    lab.run("2020-01-01", "2020-01-02").expect("a run");
    let left = lab.list_all("lake/_glueless/cut/publishing");
    assert!(left.is_empty(), "{left:?}");
}
