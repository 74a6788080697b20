//! `[mask]`: columns whose values are not to be stored, and what stands in their place.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, NullArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use toml::{Table, Value};

use crate::config::envelope::{BEFORE_PREFIX, column_of};
use crate::error::{Error, Result};
use crate::types::mask::Mask;

/// The key in `[mask]` of the variable with the key of `hmac`, and its default.
const KEY_ENV: (&str, &str) = ("key_env", "GLUELESS_MASK_KEY");
/// The key in `[mask]` of the variable with the salt of `sha256`, and its default.
const SALT_ENV: (&str, &str) = ("salt_env", "GLUELESS_MASK_SALT");
/// The least length of a secret, in bytes: a shorter one could be found by trying.
const SECRET_BYTES_MIN: usize = 16;
/// The kinds of masks, by their names in `[mask]`.
const KINDS: [(&str, Kind); 7] = [
    ("hmac", Kind::Hmac),
    ("sha256", Kind::Sha256),
    ("null", Kind::Null),
    ("redact", Kind::Redact),
    ("last4", Kind::Last4),
    ("year", Kind::Year),
    ("none", Kind::None),
];

/// A kind of mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Hmac,
    Sha256,
    Null,
    Redact,
    Last4,
    Year,
    /// No mask: a pipeline takes back that of its project, or a field that of its object.
    None,
}

impl Kind {
    fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// Whether the mask needs a secret.
    fn needs_secret(self) -> bool {
        matches!(self, Kind::Hmac | Kind::Sha256)
    }

    /// The mask; `None` if there is none, or it needs a secret.
    fn mask(self) -> Option<Mask> {
        match self {
            Kind::Hmac | Kind::Sha256 | Kind::None => None,
            Kind::Null => Some(Mask::Null),
            Kind::Redact => Some(Mask::Redact),
            Kind::Last4 => Some(Mask::Last4),
            Kind::Year => Some(Mask::Year),
        }
    }
}

/// The masks of a pipeline's raw columns. They are applied when a raw file is read, before anything else sees a value.
#[derive(Clone, Debug, Default)]
pub struct Masks {
    columns: Vec<MaskedColumn>,
    /// What the names of columns with a value before an update begin with.
    before_image: Option<String>,
    /// The variables with the secrets.
    key_env: String,
    salt_env: String,
    /// What is known of the secrets: hashes by which others are told from them.
    fingerprints: BTreeMap<&'static str, String>,
}

/// A column with a mask.
#[derive(Clone)]
struct MaskedColumn {
    /// Its name: that of a column, or what is before a dot in the names of columns.
    name: String,
    kind: Kind,
    /// The mask; `None` until its secret is known.
    mask: Option<Mask>,
    /// Whether the pipeline names the column itself, and not its project.
    is_own: bool,
}

impl fmt::Debug for MaskedColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.name, self.kind.name())
    }
}

impl MaskedColumn {
    /// Whether it stands for a column.
    fn covers(&self, column: &str) -> bool {
        covers(&self.name, column)
    }
}

/// Whether a name in `[mask]` stands for a column: it is that, or an object whose field it is.
pub(crate) fn covers(masked: &str, column: &str) -> bool {
    let start = column.get(..masked.len()).filter(|start| start.eq_ignore_ascii_case(masked));
    start.is_some() && matches!(column.as_bytes().get(masked.len()), None | Some(b'.'))
}

/// What `[mask]` is checked with.
pub(super) struct OtherColumns<'a> {
    pub(super) key: &'a [String],
    /// The columns that say what a change is, by the settings that name them.
    pub(super) roles: [(&'static str, &'a [String]); 4],
    /// `raw.before_image_prefix`, or that of envelopes.
    pub(super) before_image: Option<&'a String>,
    /// The column that a name means.
    pub(super) named: &'a dyn Fn(String) -> String,
    /// Whether a name stands in the pipeline's own file.
    pub(super) is_own: &'a dyn Fn(&str) -> bool,
}

impl Masks {
    /// Checks `[mask]`; `wrong` makes the error for a key.
    pub(super) fn check(
        section: Table,
        columns: &OtherColumns<'_>,
        wrong: &dyn Fn(&str, String) -> Error,
    ) -> Result<Self> {
        let mut masks = Masks {
            before_image: columns.before_image.cloned(),
            key_env: KEY_ENV.1.into(),
            salt_env: SALT_ENV.1.into(),
            ..Masks::default()
        };
        for (name, value) in section {
            let setting = format!("mask.{name}");
            let Value::String(text) = value else {
                return Err(wrong(&setting, "is not a text".into()).hint(
                    "write `email = \"hmac\"`; a name with a dot stands in quotation marks",
                ));
            };
            if name == KEY_ENV.0 || name == SALT_ENV.0 {
                let is_name = !text.is_empty() && !text.contains(['=', ':', '/', ' ']);
                if !is_name {
                    // A secret is not to be repeated.
                    return Err(wrong(
                        &setting,
                        "is not the name of an environment variable".into(),
                    )
                    .hint("write the secret into a variable, and name the variable here"));
                }
                let to = if name == KEY_ENV.0 { &mut masks.key_env } else { &mut masks.salt_env };
                *to = text;
                continue;
            }
            let found = KINDS.iter().find(|(known, _)| *known == text);
            let kind = found.map(|(_, kind)| *kind).ok_or_else(|| {
                let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
                wrong(&setting, format!("is `{text}`"))
                    .hint(format!("write one of {}", names.join(", ")))
            })?;
            let is_own = (columns.is_own)(&name);
            masks.columns.push(MaskedColumn {
                name: (columns.named)(name),
                kind,
                mask: kind.mask(),
                is_own,
            });
        }
        masks.check_roles(columns, wrong)?;
        Ok(masks)
    }

    /// Refuses masks of columns that say what a change is, and those by which rows of several keys would become one, or a key
    /// would differ from what it was before an update.
    fn check_roles(
        &self,
        columns: &OtherColumns<'_>,
        wrong: &dyn Fn(&str, String) -> Error,
    ) -> Result<()> {
        let setting = |masked: &MaskedColumn| format!("mask.{}", masked.name);
        let mask_of = |name: &String| self.find(name).filter(|masked| masked.kind != Kind::None);
        for (role, names) in columns.roles {
            if let Some(masked) = names.iter().find_map(mask_of) {
                let why = format!("is a mask of a column of `{role}`");
                return Err(wrong(&setting(masked), why).hint(
                    "what orders changes and says what they are cannot be masked; to store only a part of it, leave the \
                     rest out of curated.sql",
                ));
            }
        }
        let is_weak = |masked: &&MaskedColumn| !masked.kind.needs_secret();
        if let Some(masked) = columns.key.iter().filter_map(mask_of).find(is_weak) {
            let kind = masked.kind.name();
            let why =
                format!("is `{kind}`, for a key column: rows of several keys would become one");
            return Err(
                wrong(&setting(masked), why).hint("write hmac: by it every key stays one key")
            );
        }
        for (number, masked) in self.columns.iter().enumerate() {
            let name = &masked.name;
            let starts = |prefix: &str| {
                let start = name.get(..prefix.len());
                start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
            };
            let of_envelope = columns.before_image.is_some_and(|prefix| prefix == BEFORE_PREFIX);
            let is_before = columns.before_image.is_some_and(|prefix| starts(prefix));
            if is_before || (of_envelope && starts("before.")) {
                let why = "is a mask of a value before an update".to_string();
                return Err(wrong(&setting(masked), why).hint(
                    "mask the column itself: its values before an update have the same mask",
                ));
            }
            let is_same = |other: &MaskedColumn| {
                other.is_own == masked.is_own && other.name.eq_ignore_ascii_case(name)
            };
            if let Some(other) = self.columns[..number].iter().find(|other| is_same(other)) {
                let why = format!("names the column of `mask.{}` once more", other.name);
                return Err(wrong(&setting(masked), why).hint("write it once, in any case"));
            }
        }
        Ok(())
    }

    /// Takes the secrets from the environment. A mask whose secret is missing is refused when a raw file is read.
    ///
    /// # Errors
    /// Usage, when a secret is too short.
    pub(crate) fn unlock(&mut self, environment: &BTreeMap<String, String>) -> Result<()> {
        for (kind, setting) in [(Kind::Hmac, KEY_ENV.0), (Kind::Sha256, SALT_ENV.0)] {
            let variable = self.variable(kind).to_string();
            let of_kind = self.columns.iter_mut().filter(|column| column.kind == kind);
            let secret = environment.get(&variable).filter(|secret| !secret.is_empty());
            let Some(secret) = secret.map(String::as_bytes) else { continue };
            let mask = match kind {
                Kind::Hmac => Mask::hmac(secret),
                _ => Some(Mask::sha256(secret)),
            };
            let mut is_used = false;
            for column in of_kind {
                column.mask.clone_from(&mask);
                is_used = true;
            }
            if is_used && secret.len() < SECRET_BYTES_MIN {
                return Err(Error::usage(format!(
                    "the variable {variable} (`mask.{setting}`) has fewer than {SECRET_BYTES_MIN} characters"
                ))
                .hint(NEW_SECRET));
            }
            if let (true, Some(mask)) = (is_used, mask) {
                let fingerprint = mask.of_text(FINGERPRINTED, &DataType::Utf8View);
                self.fingerprints.insert(setting, fingerprint.unwrap_or_default());
            }
        }
        Ok(())
    }

    fn variable(&self, kind: Kind) -> &str {
        if kind == Kind::Sha256 { &self.salt_env } else { &self.key_env }
    }

    /// Refuses to go on without the secrets of the masks.
    ///
    /// # Errors
    /// Usage, naming the variable that is missing.
    pub(crate) fn check_unlocked(&self) -> Result<()> {
        let is_locked =
            |column: &&MaskedColumn| column.kind.needs_secret() && column.mask.is_none();
        let Some(locked) = self.columns.iter().find(is_locked) else { return Ok(()) };
        let variable = self.variable(locked.kind);
        let setting = if locked.kind == Kind::Sha256 { SALT_ENV.0 } else { KEY_ENV.0 };
        Err(Error::usage(format!(
            "the environment has no variable {variable} (`mask.{setting}`), by which the column `{}` is masked",
            locked.name
        ))
        .hint(NEW_SECRET))
    }

    /// Whether no column has a mask.
    pub(crate) fn is_empty(&self) -> bool {
        self.columns.iter().all(|column| column.kind == Kind::None)
    }

    /// Whether the pipeline says what becomes of a column, be it that it has no mask.
    pub(crate) fn decides(&self, column: &str) -> bool {
        self.find(column).is_some()
    }

    /// The mask of a column, by its name in any case; that of a column with values before an update is that of the values
    /// after it. The most exact name counts, and of equal ones that of the pipeline itself.
    pub(crate) fn of(&self, column: &str) -> Option<&Mask> {
        // Where the secret is missing, nothing is shown.
        let hidden = &Mask::Redact;
        let found = self.find(column).filter(|found| found.kind != Kind::None)?;
        Some(found.mask.as_ref().unwrap_or(hidden))
    }

    fn find(&self, column: &str) -> Option<&MaskedColumn> {
        if self.columns.is_empty() {
            return None;
        }
        let after = self.before_image.as_ref().and_then(|prefix| {
            let start = column.get(..prefix.len())?;
            start.eq_ignore_ascii_case(prefix).then(|| &column[prefix.len()..])
        });
        let of = |name: &str| -> Option<&MaskedColumn> {
            let covering = self.columns.iter().filter(|masked| masked.covers(name));
            covering.max_by_key(|masked| (masked.name.len(), masked.is_own))
        };
        let found = of(column).or_else(|| after.and_then(of));
        if found.is_some() || self.before_image.as_deref() != Some(BEFORE_PREFIX) {
            return found;
        }
        // Another name of a column, or of a field of envelopes.
        of(&column_of(column.to_string()))
    }

    /// The names in `[mask]` of columns with masks, and whether the pipeline itself has them, and not its project.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, bool)> {
        let masked = self.columns.iter().filter(|masked| masked.kind != Kind::None);
        masked.map(|masked| (masked.name.as_str(), masked.is_own))
    }

    /// The columns, in lower case, and the names of their masks; a hash of each secret, by the name of its setting.
    pub(crate) fn identity(&self) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        // One that takes back no mask is as if it were not there.
        let counts = |masked: &&MaskedColumn| {
            let mut others = self.columns.iter().filter(|other| other.kind != Kind::None);
            masked.kind != Kind::None || others.any(|other| other.covers(&masked.name))
        };
        let columns = self.columns.iter().filter(counts).filter_map(|masked| {
            let kind = self.find(&masked.name)?.kind;
            Some((masked.name.to_lowercase(), kind.name().to_string()))
        });
        let fingerprints = self.fingerprints.iter();
        let fingerprints = fingerprints.map(|(setting, hash)| (setting.to_string(), hash.clone()));
        (columns.collect(), fingerprints.collect())
    }

    /// The columns of a file when its values are masked. Of one whose type cannot be masked nothing is left: it is refused if it is
    /// used.
    pub(crate) fn schema(&self, schema: &SchemaRef) -> SchemaRef {
        if self.is_empty() {
            return SchemaRef::clone(schema);
        }
        let fields = schema.fields().iter().map(|field| match self.of(field.name()) {
            Some(mask) => {
                let masked = mask.masked_type(field.data_type()).unwrap_or(DataType::Null);
                Field::new(field.name(), masked, true)
            }
            None => field.as_ref().clone(),
        });
        Schema::new(fields.collect::<Vec<_>>()).into()
    }

    /// Masks the values of a column that can be masked. Returns the indices of the others too, in whose place is null.
    pub(crate) fn apply_to_fit(&self, mask: &Mask, values: &ArrayRef) -> (ArrayRef, Vec<usize>) {
        match mask.masked_type(values.data_type()) {
            Some(_) => mask.apply_to_fit(values),
            None => (Arc::new(NullArray::new(values.len())), Vec::new()),
        }
    }

    /// Masks rows, whose columns are to be those of `schema`. In place of a value that cannot be masked is null.
    ///
    /// # Errors
    /// Internal, when the columns are not those.
    pub(crate) fn apply(&self, rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
        let columns = rows.columns().iter().zip(rows.schema_ref().fields());
        let columns = columns.map(|(column, field)| match self.of(field.name()) {
            Some(mask) => self.apply_to_fit(mask, column).0,
            None => ArrayRef::clone(column),
        });
        Ok(RecordBatch::try_new(SchemaRef::clone(schema), columns.collect())?)
    }
}

/// The error for a column of a file whose type cannot be masked.
pub(crate) fn unfit(mask: &Mask, field: &Field, file: &str) -> Error {
    Error::data(format!(
        "column `{}` of {file} is {}, which cannot be masked by `{mask:?}`",
        field.name(),
        field.data_type()
    ))
    .hint("mask it by `redact` or `null`; or give it another type in `[raw.columns]`")
}

/// What fingerprints of secrets are hashes of.
const FINGERPRINTED: &str = "the secret of glueless's masks";
/// The hint where a secret is missing.
const NEW_SECRET: &str = "set it to the secret with which the tables were made; for new tables, to the output of: openssl \
                          rand -hex 32; and keep it where secrets are kept: without it no key can be found again";
