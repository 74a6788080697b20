//! Errors: a kind says what the operator does next, a message names the thing, a hint says how.
//!
//! Every error of the crate is an [`Error`]. DataFusion, Arrow and Parquet box foreign errors;
//! [`Error::from`] unboxes them, so that a bad value found deep inside a query still reaches the
//! user with its file, row and column.
//!
//! Why neither `thiserror` nor `anyhow`: the kinds are few and say what to do next, not where an error
//! comes from, so that there is no variant per cause to derive; every error carries a hint, and the
//! input that it is about; and one that passed through the engine must be found again, copied out of
//! what shares it, and printed without repeating its causes.

use std::error::Error as StdError;
use std::fmt;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use library_texts::{FOOTER_NOT_FETCHED, JOIN_NOT_SPILLED, SPILLED_TOO_MUCH};
use parquet::errors::ParquetError;

pub mod library_texts;

/// What the operator does next; each kind has its own exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command line or the pipeline is wrong: fix it. Exit code 2.
    Usage,
    /// The input data is wrong: fix it or move it away. Exit code 65.
    Data,
    /// Storage cannot be reached, read or written: retry later. Exit code 69.
    Storage,
    /// A bug of this program: report it. Exit code 70.
    Internal,
    /// Another run is publishing: retry later. Exit code 75.
    Busy,
}

impl Kind {
    /// The process exit code, after BSD `sysexits.h` where it has one.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Usage => 2,
            Kind::Data => 65,
            Kind::Storage => 69,
            Kind::Internal => 70,
            Kind::Busy => 75,
        }
    }
}

/// The exit code of a backfill that Ctrl-C stopped.
pub const INTERRUPTED: u8 = 130;

/// The worst of some exit codes: failures that need a fix outrank those that can be retried.
pub fn worst(codes: impl IntoIterator<Item = u8>) -> u8 {
    const FROM_BEST: [u8; 8] = [0, 1, INTERRUPTED, 75, 69, 65, 2, 70];
    let rank = |code: &u8| FROM_BEST.iter().position(|known| known == code);
    codes.into_iter().max_by_key(rank).unwrap_or(0)
}

/// A failure: the kind, the message, the hint and the cause.
#[derive(Debug)]
pub struct Error {
    /// What the operator does next.
    pub kind: Kind,
    /// One line in lower case that names the file, row, column, key or date.
    pub message: String,
    /// The next step, if there is one.
    pub hint: Option<String>,
    /// The raw location and path of the input, if an input is bad as a whole.
    pub input: Option<Box<(usize, String)>>,
    /// Whether single rows are bad, not a file as a whole.
    pub is_of_rows: bool,
    /// Whether a bad row was found late, because its text had not been read before: the fold can be
    /// tried again with texts checked first.
    pub is_of_unchecked_text: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the error begins with if memory has ended.
const TOO_LITTLE_MEMORY: &str = "the memory limit is too small for this run";

impl Error {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
            hint: None,
            input: None,
            is_of_rows: false,
            is_of_unchecked_text: false,
            source: None,
        }
    }

    /// A wrong command line or pipeline.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Wrong input data.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Kind::Data, message)
    }

    /// A storage failure.
    pub fn storage(message: impl Into<String>) -> Self {
        Self::new(Kind::Storage, message)
    }

    /// A bug of this program.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Another run is publishing.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(Kind::Busy, message)
    }

    /// Adds the next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Marks the error as one of single rows.
    pub fn of_rows(mut self) -> Self {
        self.is_of_rows = true;
        self
    }

    /// Marks the error as one of a text that had not been read before.
    pub fn of_unchecked_text(mut self) -> Self {
        self.is_of_unchecked_text = true;
        self
    }

    /// Names the bad input, if the error is one of input data.
    pub fn of_input(mut self, location: usize, path: &str) -> Self {
        if self.kind == Kind::Data {
            self.input = Some(Box::new((location, path.to_string())));
        }
        self
    }

    /// Adds the cause, which is printed after the message.
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    fn out_of_memory(message: &str) -> Self {
        Error::usage(format!("{TOO_LITTLE_MEMORY}: {message}")).hint("raise `limits.memory`")
    }

    /// Whether the memory limit is too small.
    pub fn is_out_of_memory(&self) -> bool {
        self.message.starts_with(TOO_LITTLE_MEMORY)
    }

    /// The error for a pipeline query that failed on its rows. The engine's message contains row
    /// values and is therefore not repeated.
    pub fn query(file: &str, error: DataFusionError) -> Self {
        let failed = matches!(
            error.find_root(),
            DataFusionError::ArrowError(_, _) | DataFusionError::Execution(_)
        );
        // A failure to spill or to read has the same variants, but another error inside.
        let is_of_storage = root_io(&error).is_some() || is_of_a_store(&error);
        if !failed || is_of_storage || find_ours(&error).is_some() {
            return Error::from(error);
        }
        Error::data(format!("{file} fails on a row: a value cannot be cast or computed")).hint(
            "correct the query; TRY_CAST makes such a value null, and WHERE leaves its row out of \
                 the table",
        )
    }

    /// The error for a failed object-store request; `doing` names the action and the object.
    pub fn store(doing: impl fmt::Display, error: object_store::Error) -> Self {
        let hint = match &error {
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. } => {
                Some("check the permissions of that location")
            }
            _ => storage_hint(&error),
        };
        let failed = Self::storage(format!("cannot {doing}")).caused_by(error);
        match hint {
            Some(hint) => failed.hint(hint),
            None => failed,
        }
    }
}

/// The hint for a storage failure, by its root I/O error.
pub fn storage_hint(error: &(dyn StdError + 'static)) -> Option<&'static str> {
    match root_io(error)?.kind() {
        std::io::ErrorKind::PermissionDenied => Some("check the permissions of that location"),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Some("the disk is full: free some space and run again")
        }
        _ => None,
    }
}

/// The innermost I/O error of a chain: outer ones only wrap it.
fn root_io<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a std::io::Error> {
    let mut found = None;
    let mut next = Some(error);
    while let Some(error) = next {
        found = error.downcast_ref::<std::io::Error>().or(found);
        next = error.source();
    }
    found
}

impl fmt::Display for Error {
    /// The message and its causes on one line, without repetitions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        let mut written = self.message.clone();
        let mut next = self.source.as_deref().map(|source| source as &(dyn StdError + 'static));
        while let Some(cause) = next {
            let text = cause.to_string().replace('\n', " ");
            if !written.contains(&text) {
                write!(f, ": {text}")?;
                written.push_str(&text);
            }
            next = cause.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::External(inner) => match inner.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(other) => from_foreign(other),
            },
            DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => {
                Error::from(*inner)
            }
            DataFusionError::ArrowError(inner, _) => Error::from(*inner),
            DataFusionError::ParquetError(inner) => Error::from(*inner),
            DataFusionError::ObjectStore(inner) => Error::store("use the object store", *inner),
            DataFusionError::Shared(inner) => match find_ours(inner.as_ref()) {
                Some(ours) => ours,
                None => from_foreign(Box::new(DataFusionError::Shared(inner))),
            },
            DataFusionError::ResourcesExhausted(message) => Error::out_of_memory(&message),
            other => from_foreign(Box::new(other)),
        }
    }
}

impl From<ArrowError> for Error {
    fn from(error: ArrowError) -> Self {
        match error {
            ArrowError::ExternalError(inner) => match inner.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(inner) => match inner.downcast::<DataFusionError>() {
                    Ok(datafusion) => Error::from(*datafusion),
                    Err(other) => from_foreign(other),
                },
            },
            // The message contains the value, which may be confidential.
            ArrowError::CastError(_) | ArrowError::ParseError(_) => {
                Error::data("a query casts a value to a type that it does not fit")
                    .hint("use TRY_CAST where null is acceptable, or correct the value")
            }
            other => from_foreign(Box::new(other)),
        }
    }
}

impl From<ParquetError> for Error {
    fn from(error: ParquetError) -> Self {
        match error {
            ParquetError::External(inner) => match inner.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(inner) => match inner.downcast::<object_store::Error>() {
                    Ok(store) => Error::store("use the object store", *store),
                    Err(other) => from_foreign(other),
                },
            },
            other => from_foreign(Box::new(other)),
        }
    }
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

/// A copy of the first error of this crate in a chain that it cannot be moved out of.
pub(crate) fn find_ours(error: &(dyn StdError + 'static)) -> Option<Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(ours) = error.downcast_ref::<Error>() {
            let mut copy = Error::new(ours.kind, ours.to_string());
            copy.hint = ours.hint.clone();
            copy.input = ours.input.clone();
            copy.is_of_rows = ours.is_of_rows;
            return Some(copy);
        }
        next = error.source();
    }
    None
}

/// The path of the object that a store did not find, if that is the failure.
pub fn missing_object<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a str> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(object_store::Error::NotFound { path, .. }) = error.downcast_ref() {
            return Some(path);
        }
        next = error.source();
    }
    None
}

/// What the engine says if memory has ended.
fn exhausted<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a str> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(DataFusionError::ResourcesExhausted(message)) = error.downcast_ref() {
            return Some(message);
        }
        if let Some(DataFusionError::Internal(message)) = error.downcast_ref()
            && message.contains(JOIN_NOT_SPILLED)
        {
            return Some("a join cannot be spilled");
        }
        next = error.source();
    }
    None
}

/// Whether a request to an object store failed.
fn is_of_a_store(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<object_store::Error>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// The error for spilling more than `limits.spill_bytes_max`, recognized by the engine's message.
pub fn spilled_too_much(error: &(dyn StdError + 'static)) -> Option<Error> {
    let message = root_io(error)?.to_string();
    message.contains(SPILLED_TOO_MUCH).then(|| {
        Error::usage("the run needs more spill space than `limits.spill_bytes_max` allows")
            .hint("raise it, raise `limits.memory`, or run smaller windows")
    })
}

/// Converts an error of another crate: storage if its root is an I/O error or a failed request, else
/// internal.
fn from_foreign(error: Box<dyn StdError + Send + Sync>) -> Error {
    if let Some(ours) = find_ours(error.as_ref()) {
        return ours;
    }
    if let Some(too_much) = spilled_too_much(error.as_ref()) {
        return too_much;
    }
    if let Some(message) = exhausted(error.as_ref()) {
        return Error::out_of_memory(message);
    }
    if let Some(path) = missing_object(error.as_ref()) {
        return Error::storage(format!("a file is missing: {path}"))
            .hint("if it belongs to a published table, rebuild the table with `glueless rebuild`");
    }
    match root_io(error.as_ref()).map(std::io::Error::kind) {
        Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) => {
            Error::storage("the disk is full")
                .hint("free some space (spilled data goes to `limits.spill_dir`) and run again")
                .caused_by(error)
        }
        Some(_) => Error::storage("input or output failed").caused_by(error),
        None if is_of_a_store(error.as_ref()) => {
            Error::storage("a request to the object store failed").caused_by(error)
        }
        None if error.to_string().contains(FOOTER_NOT_FETCHED) => {
            Error::storage("cannot read a file of a table or of its state").caused_by(error)
        }
        None => Error::internal("the query engine failed").caused_by(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_ours_survives_the_engine() {
        let ours = Error::data("row 7 of a.parquet is bad").hint("fix it");
        let boxed = DataFusionError::Context("while scanning".into(), Box::new(ours.into()));
        let through_arrow = ArrowError::ExternalError(Box::new(boxed));
        let back = Error::from(DataFusionError::ArrowError(Box::new(through_arrow), None));
        assert_eq!(back.kind, Kind::Data);
        assert_eq!(back.to_string(), "row 7 of a.parquet is bad");
        assert_eq!(back.hint.as_deref(), Some("fix it"));
    }

    #[test]
    fn a_query_that_cannot_spill_did_not_fail_on_a_row() {
        let query_error = |io: std::io::Error| {
            let arrow = ArrowError::IoError("cannot write".into(), io);
            Error::query("daily.sql", DataFusionError::ArrowError(Box::new(arrow), None))
        };
        let too_much =
            query_error(std::io::Error::other("… `datafusion.runtime.max_temp_directory_size`"));
        assert_eq!(too_much.kind, Kind::Usage);
        assert_eq!(query_error(std::io::ErrorKind::StorageFull.into()).kind, Kind::Storage);
        let cause = Box::new(ArrowError::CastError("x".into()));
        let cast = Error::query("daily.sql", DataFusionError::ArrowError(cause, None));
        assert_eq!(cast.kind, Kind::Data);
    }

    #[test]
    fn a_shared_error_of_ours_is_copied() {
        let shared =
            DataFusionError::Shared(std::sync::Arc::new(Error::data("row 7 is bad").into()));
        let back = Error::from(shared);
        assert_eq!((back.kind, back.to_string().as_str()), (Kind::Data, "row 7 is bad"));
    }

    #[test]
    fn a_cause_is_chained_and_not_repeated() {
        let inner = Error::storage("no route");
        let outer = Error::storage("cannot list s3://b/raw").caused_by(inner);
        assert_eq!(outer.to_string(), "cannot list s3://b/raw: no route");
        let repeated = Error::data("cannot read a: no route").caused_by(Error::storage("no route"));
        assert_eq!(repeated.to_string(), "cannot read a: no route");
    }

    #[test]
    fn a_footer_that_cannot_be_fetched_is_a_storage_error() {
        let text = "Failed to fetch metadata for file a: Object Store error: Generic error";
        let engine = DataFusionError::ParquetError(Box::new(ParquetError::General(text.into())));
        let shared = DataFusionError::Shared(std::sync::Arc::new(engine));
        assert_eq!(Error::from(shared).kind, Kind::Storage);
    }

    #[test]
    fn a_request_that_failed_while_a_query_read_is_a_storage_error() {
        let store = object_store::Error::Generic { store: "s3", source: "the line is dead".into() };
        let engine = ParquetError::External(Box::new(store));
        let engine = DataFusionError::ParquetError(Box::new(engine));
        let shared = DataFusionError::Shared(std::sync::Arc::new(engine));
        assert_eq!(Error::from(shared).kind, Kind::Storage);
        let store = object_store::Error::Generic { store: "s3", source: "the line is dead".into() };
        let arrow = ArrowError::ExternalError(Box::new(store));
        let engine = DataFusionError::ArrowError(Box::new(arrow), None);
        assert_eq!(Error::query("daily.sql", engine).kind, Kind::Storage);
    }

    #[test]
    fn an_error_of_memory_is_one_of_usage() {
        let exhausted = DataFusionError::ResourcesExhausted("0 bytes are free".into());
        let context = DataFusionError::Context("sorting".into(), Box::new(exhausted));
        let error = Error::from(DataFusionError::Shared(std::sync::Arc::new(context)));
        assert_eq!((error.kind, error.is_out_of_memory()), (Kind::Usage, true));
        let join = DataFusionError::Internal(format!("{JOIN_NOT_SPILLED}. This is a bug"));
        let error = Error::from(DataFusionError::Shared(std::sync::Arc::new(join)));
        assert_eq!((error.kind, error.is_out_of_memory()), (Kind::Usage, true));
        assert!(!error.to_string().contains("bug"), "{error}");
    }

    #[test]
    fn a_full_disk_is_a_storage_error() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = Error::from(DataFusionError::IoError(full));
        assert_eq!(error.kind, Kind::Storage);
        assert!(error.to_string().contains("disk is full"), "{error}");
    }
}
