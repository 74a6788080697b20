//! Lists a folder with very many files that have times in their names, without reading all names.
//!
//! On an object store, keys come in the order of their names: the listing begins at the first name of
//! the look-back, and ends behind the window; names of other forms are listed as they are. The names
//! between, which are jumped over, are those of files of other times. A date folder of the window can
//! lie among them by its name, such as `2024/` before `20240101-…` of the same year: for each form of
//! such folders that [`folder_span`](crate::layout::folder_span) reads, one request looks whether there is one. If
//! there is, or keys are not in order, the folder is listed as a whole.
//!
//! In a local folder all names are read, but only files of the window and the look-back are looked
//! at.
//!
//! What is not found: other folders whose names begin with a date before the look-back, such as
//! `20240101_old`. `catch-up` lists everything.

use std::collections::BTreeSet;

use chrono::{DateTime, Days, NaiveDate, Utc};
use chrono_tz::Tz;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error, ListResult, ObjectStore, ObjectStoreExt, Result};

use crate::layout::{CdcNames, cdc_names, date_folder_names};
use crate::raw::list::{CONCURRENT_LISTINGS, relative};
use crate::store::Folder;
use crate::window::Window;

/// The most ranges of names that are jumped over, and folders that are met; with more of them the
/// folder is listed as a whole.
const JUMPS_MAX: usize = 20;

/// The most days of a window with its look-back; with more of them the folder is listed as a whole.
const DAYS_MAX: usize = 40;

/// A folder with very many files.
pub(super) struct FlatFolder<'a> {
    pub(super) folder: &'a Folder,
    pub(super) prefix: &'a Path,
    pub(super) zone: Tz,
    /// The names that come in one reply: so many are read before others are jumped over.
    pub(super) page: usize,
}

impl FlatFolder<'_> {
    /// Lists the folder's files of a window, its files without a time in their name, and its folders;
    /// `None` if it has to be listed as a whole.
    pub(super) async fn list(&self, window: &Window) -> Result<Option<ListResult>> {
        let Some(names) = cdc_names(window, self.zone) else {
            return Ok(None);
        };
        if self.folder.location.file_path().is_some() {
            return self.list_local(&names).await;
        }
        let hidden = self.hidden(window);
        if hidden.is_empty() {
            return Ok(None);
        }
        let store = &self.folder.root_store;
        let (mut objects, mut folders) = (Vec::new(), BTreeSet::new());
        let (mut last, mut skipped, mut jumps) = (String::new(), 0, 0);
        let mut listed = store.list(Some(self.prefix));
        while let Some(object) = listed.try_next().await? {
            let name = relative(self.prefix, &object.location);
            if name <= last {
                return Ok(None);
            }
            let (target, is_folder) = match name.split_once('/') {
                Some((folder, _)) => {
                    folders.insert(folder.to_string());
                    (Some(format!("{folder}/~")), true)
                }
                None => (self.next(&names, &name), false),
            };
            match target {
                None => objects.push(object),
                Some(_) => skipped += 1,
            }
            last = match target.filter(|target| skipped >= self.page && *target > name) {
                None => name,
                Some(_) if jumps == JUMPS_MAX => return Ok(None),
                Some(target) => {
                    if !is_folder && self.has_any(&hidden, &name, &target).await? {
                        return Ok(None);
                    }
                    (skipped, jumps) = (0, jumps + 1);
                    listed = store.list_with_offset(Some(self.prefix), &self.at(&target)?);
                    target
                }
            };
        }
        let common_prefixes = folders.iter().map(|folder| self.at(folder));
        let common_prefixes = common_prefixes.collect::<Result<_>>()?;
        Ok(Some(ListResult { common_prefixes, objects }))
    }

    /// The name behind which the listing goes on, if this is the name of a file outside of the window.
    fn next(&self, names: &[CdcNames], name: &str) -> Option<String> {
        let form = names.iter().find(|form| form.has_form(name, self.zone))?;
        if *name < *form.start {
            return Some(form.start.clone());
        }
        (*name >= *form.end).then(|| form.end_of_form.clone())
    }

    /// The ranges of names of the date folders that can have files of the window; none if there are
    /// too many.
    fn hidden(&self, window: &Window) -> BTreeSet<(String, String)> {
        let day = |at: DateTime<Utc>| at.with_timezone(&self.zone).date_naive();
        // As wide as the listing is pruned.
        let first = day(window.start) - Days::new(1);
        let last = day(window.end) + Days::new(1);
        let days: Vec<NaiveDate> =
            first.iter_days().take_while(|day| *day <= last).take(DAYS_MAX + 1).collect();
        if days.len() > DAYS_MAX {
            return BTreeSet::new();
        }
        days.into_iter().flat_map(date_folder_names).collect()
    }

    /// Whether some of these ranges, between two names, have an object.
    async fn has_any(
        &self,
        ranges: &BTreeSet<(String, String)>,
        from: &str,
        to: &str,
    ) -> Result<bool> {
        let store = &self.folder.root_store;
        for (start, end) in ranges.iter().filter(|(start, end)| **start < *to && **end > *from) {
            // Just before the first name of the range.
            let mut before = start.clone();
            if let Some(last) = before.pop().and_then(|last| char::from_u32(last as u32 - 1)) {
                before.extend([last, '~']);
            }
            let mut listed = store.list_with_offset(Some(self.prefix), &self.at(&before)?);
            if let Some(first) = listed.try_next().await?
                && *relative(self.prefix, &first.location) < **end
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The path of an object or folder in this one.
    fn at(&self, name: &str) -> Result<Path> {
        Ok(match self.prefix.as_ref() {
            "" => Path::parse(name)?,
            prefix => Path::parse(format!("{prefix}/{name}"))?,
        })
    }

    /// The listing of a local folder: names are read, and only those of the window looked at.
    async fn list_local(&self, names: &[CdcNames]) -> Result<Option<ListResult>> {
        let Some(root) = self.folder.location.file_path() else {
            return Ok(None);
        };
        let (mut kept, mut folders, mut skipped) = (Vec::new(), Vec::new(), 0);
        let below = relative(&self.folder.prefix, self.prefix);
        let failed =
            |error: std::io::Error| Error::Generic { store: "local", source: error.into() };
        for entry in std::fs::read_dir(root.join(below)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (name, kind) = (entry.file_name(), entry.file_type().map_err(failed)?);
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.=".contains(&byte);
            let Some(name) = name.to_str().filter(|name| name.bytes().all(is_plain)) else {
                return Ok(None);
            };
            if kind.is_dir() {
                folders.push(self.at(name)?);
            } else if !kind.is_file() {
                return Ok(None);
            } else if self.next(names, name).is_some() {
                skipped += 1;
            } else {
                kept.push(self.at(name)?);
            }
        }
        if kept.len() > skipped {
            // A listing looks at many files faster than one by one.
            return Ok(None);
        }
        let store = &self.folder.root_store;
        let heads = stream::iter(kept).map(async |path| match store.head(&path).await {
            Err(Error::NotFound { .. }) => Ok(None),
            found => found.map(Some),
        });
        let objects = heads.buffered(CONCURRENT_LISTINGS).try_collect::<Vec<_>>().await?;
        let objects = objects.into_iter().flatten().collect();
        Ok(Some(ListResult { common_prefixes: folders, objects }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use chrono::Duration;
    use futures::stream::BoxStream;
    use object_store::memory::InMemory;
    use object_store::{
        CopyOptions, GetOptions, GetResult, MultipartUpload, ObjectMeta, PutMultipartOptions,
        PutOptions, PutPayload, PutResult,
    };
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    use super::*;
    use crate::layout::cdc_file_time;
    use crate::store::Location;

    fn folder(store: Arc<dyn ObjectStore>) -> Folder {
        let location = Location::parse("s3://bucket/raw", "/".as_ref()).expect("a location");
        Folder { location, store: Arc::clone(&store), root_store: store, prefix: Path::from("raw") }
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    fn list(folder: &Folder, window: &Window, page: usize) -> Option<ListResult> {
        let flat = FlatFolder { folder, prefix: &folder.prefix, zone: Tz::UTC, page };
        futures::executor::block_on(flat.list(window)).expect("listed")
    }

    /// A file or folder, by a number of minutes since the end of 2022 and a form.
    fn key((minutes, form): &(i64, u8)) -> String {
        let time = at("2022-12-30T00:00:00Z") + Duration::minutes(*minutes);
        let name = |format: &str| time.format(format).to_string();
        let file = name("%Y%m%d-%H%M%S000.parquet");
        match form {
            0..8 => file,
            8..12 => name("CDC_TXN-%Y%m%d%H%M%S000.parquet"),
            12 => format!("LOAD{minutes:08}.parquet"),
            13 => format!("{}/{file}", name("%Y/%m/%d")),
            14 => format!("{}/{file}", name("%Y-%m-%d")),
            15 => format!("{}/{file}", name("%Y_%m_%d_%H")),
            16 => format!("{}/{file}", name("%Y%m%d")),
            17 => format!("{}/{file}", name("%Y%m")),
            18 => format!("{}/{file}", name("%d%m%Y")),
            19 => format!("{}/{file}", name("%d/%m/%Y")),
            20 => format!("{}/{file}", name("%m/%Y/%d")),
            21 => format!("{}/{file}", name("year=%Y/month=%m/day=%d")),
            22 => format!("table/{file}"),
            _ => format!("10/{file}"),
        }
    }

    #[test]
    fn no_file_and_no_folder_of_the_window_is_missed() {
        let keys = prop::collection::vec((0i64..800_000, 0u8..24), 1..80);
        let mut runner = TestRunner::new(Config { cases: 400, ..Default::default() });
        let cases = (keys, 0i64..800_000, 1i64..4_000, 1usize..6);
        let check = |(keys, start, minutes, page): (Vec<(i64, u8)>, i64, i64, usize)| {
            let store = Arc::new(InMemory::new());
            for one in &keys {
                let path = Path::parse(format!("raw/{}", key(one))).expect("a path");
                futures::executor::block_on(store.put(&path, "x".into())).expect("written");
            }
            let start = at("2022-12-30T00:00:00Z") + Duration::minutes(start);
            let window = Window::new(start, start + Duration::minutes(minutes)).expect("a window");
            let folder = folder(store);
            let Some(found) = list(&folder, &window, page) else { return Ok(()) };
            let all = folder.root_store.list_with_delimiter(Some(&folder.prefix));
            let all = futures::executor::block_on(all).expect("listed");
            for object in &all.objects {
                let name = relative(&folder.prefix, &object.location);
                let is_wanted = cdc_file_time(&name, Tz::UTC).is_none_or(|at| window.contains(at));
                prop_assert!(!is_wanted || found.objects.contains(object), "{name}");
            }
            for prefix in &all.common_prefixes {
                let name = relative(&folder.prefix, prefix);
                let inside = folder.root_store.list(Some(prefix)).try_collect::<Vec<_>>();
                let inside = futures::executor::block_on(inside).expect("listed");
                let has_wanted = inside.iter().any(|object| {
                    let name = object.location.filename().unwrap_or_default();
                    cdc_file_time(name, Tz::UTC).is_some_and(|at| window.contains(at))
                });
                prop_assert!(!has_wanted || found.common_prefixes.contains(prefix), "{name}");
            }
            prop_assert!(found.objects.iter().all(|object| all.objects.contains(object)));
            Ok(())
        };
        runner.run(&cases, check).expect("nothing missed");
    }

    /// A bucket with a file of every minute from a time on, in one folder, and a full load.
    #[derive(Debug)]
    struct Minutes {
        first: DateTime<Utc>,
        count: i64,
        requests: Arc<AtomicUsize>,
    }

    impl Minutes {
        fn name(&self, minute: i64) -> Path {
            if minute == self.count {
                return Path::from("raw/LOAD00000001.parquet");
            }
            let at = self.first + Duration::minutes(minute);
            Path::from(at.format("raw/%Y%m%d-%H%M%S000.parquet").to_string())
        }
    }

    impl std::fmt::Display for Minutes {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a file of every minute")
        }
    }

    #[async_trait]
    impl ObjectStore for Minutes {
        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.list_with_offset(prefix, &Path::default())
        }

        fn list_with_offset(
            &self,
            _: Option<&Path>,
            offset: &Path,
        ) -> BoxStream<'static, Result<ObjectMeta>> {
            let all: Vec<i64> = (0..=self.count).collect();
            let first = all.partition_point(|minute| self.name(*minute) <= *offset);
            let names: Vec<Path> = all[first..].iter().map(|minute| self.name(*minute)).collect();
            let requests = Arc::clone(&self.requests);
            if names.is_empty() {
                requests.fetch_add(1, Ordering::Relaxed);
            }
            let objects = names.into_iter().enumerate().map(move |(number, location)| {
                if number % 1000 == 0 {
                    requests.fetch_add(1, Ordering::Relaxed);
                }
                let last_modified = DateTime::UNIX_EPOCH;
                Ok(ObjectMeta { location, last_modified, size: 1, e_tag: None, version: None })
            });
            stream::iter(objects).boxed()
        }

        async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
            Err(Error::NotImplemented { operation: "list".into(), implementer: "Minutes".into() })
        }

        async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
            unimplemented!()
        }

        async fn put_multipart_opts(
            &self,
            _: &Path,
            _: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            unimplemented!()
        }

        async fn get_opts(&self, _: &Path, _: GetOptions) -> Result<GetResult> {
            unimplemented!()
        }

        fn delete_stream(
            &self,
            _: BoxStream<'static, Result<Path>>,
        ) -> BoxStream<'static, Result<Path>> {
            unimplemented!()
        }

        async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
            unimplemented!()
        }
    }

    #[test]
    fn a_night_after_years_of_a_file_a_minute_takes_few_requests() {
        for (years, ends_at) in [(1, 0), (3, 0), (1, 7 * 60)] {
            let requests = Arc::new(AtomicUsize::new(0));
            let end = at("2024-11-28T00:00:00Z");
            let first = end - Duration::days(365 * years);
            let count = (end - first).num_minutes() + ends_at;
            let store = Minutes { first, count, requests: Arc::clone(&requests) };
            // The window of a day and its look-back of two.
            let window = Window::new(end - Duration::days(3), end).expect("a window");
            let found = list(&folder(Arc::new(store)), &window, 1000).expect("in ranges");
            assert!(found.objects.len() >= 3 * 1440);
            assert!(found.objects.iter().any(|one| one.location.as_ref().contains("LOAD")));
            let requests = requests.load(Ordering::Relaxed);
            assert!(requests < 10, "{requests} requests after {years} years");
        }
    }
}
