//! Decodes messages of `pgoutput`, the plugin that PostgreSQL decodes its log with.
//!
//! Version 1 of its protocol: a transaction is sent as a whole when it has committed, in the order of
//! commits. The format is described in PostgreSQL's manual, "Logical Replication Message Formats". Values
//! are texts, as the types' output functions write them.

use std::borrow::Cow;

/// A message of the log.
#[derive(Debug, PartialEq)]
pub(super) enum Message<'a> {
    /// A transaction begins.
    Begin {
        /// Where its commit is in the log.
        commit: u64,
        /// When it committed, in microseconds since 2000.
        time: i64,
        xid: u32,
    },
    /// A transaction ends.
    Commit {
        /// Where the log goes on after it.
        end: u64,
    },
    /// The shape of a table; it precedes the table's first change and the first one with a new shape.
    Relation(Relation<'a>),
    Insert {
        relation: u32,
        new: Tuple<'a>,
    },
    Update {
        relation: u32,
        /// The row before, if the replica identity has it or its key has changed.
        old: Option<Old<'a>>,
        new: Tuple<'a>,
    },
    Delete {
        relation: u32,
        old: Old<'a>,
    },
    Truncate {
        relations: Vec<u32>,
    },
    /// A message that says nothing about rows.
    Other,
}

/// A table as a message describes it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Relation<'a> {
    pub(super) id: u32,
    pub(super) schema: Cow<'a, str>,
    pub(super) name: Cow<'a, str>,
    pub(super) columns: Vec<RelationColumn<'a>>,
}

/// A column of a [`Relation`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RelationColumn<'a> {
    /// Whether it is part of the replica identity.
    pub(super) is_identity: bool,
    pub(super) name: Cow<'a, str>,
    pub(super) type_id: u32,
    pub(super) modifier: i32,
}

/// A row before a change.
#[derive(Debug, PartialEq)]
pub(super) struct Old<'a> {
    /// Whether it has all columns, not the replica identity alone.
    pub(super) is_whole: bool,
    pub(super) values: Tuple<'a>,
}

/// The values of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tuple<'a> {
    pub(super) columns: usize,
    bytes: &'a [u8],
}

/// A value of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    /// A value out of line that the update did not change: it is not sent.
    Unchanged,
    Text(&'a [u8]),
}

/// What is wrong with a message.
pub(super) type Malformed = &'static str;

impl<'a> Message<'a> {
    /// Decodes a message.
    ///
    /// # Errors
    /// What is wrong, when it ends too early or is of another format.
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut input = Input(bytes);
        let message = match input.u8()? {
            b'B' => {
                let commit = input.u64()?;
                Message::Begin { commit, time: input.i64()?, xid: input.u32()? }
            }
            b'C' => {
                input.take(1 + 8)?;
                let end = input.u64()?;
                input.take(8)?;
                Message::Commit { end }
            }
            b'R' => Message::Relation(input.relation()?),
            b'I' => {
                let relation = input.u32()?;
                match input.u8()? {
                    b'N' => Message::Insert { relation, new: input.tuple()? },
                    _ => return Err("an insert has no row"),
                }
            }
            b'U' => {
                let relation = input.u32()?;
                let mut kind = input.u8()?;
                let mut old = None;
                if kind != b'N' {
                    old = Some(input.old(kind)?);
                    kind = input.u8()?;
                }
                match kind {
                    b'N' => Message::Update { relation, old, new: input.tuple()? },
                    _ => return Err("an update has no row"),
                }
            }
            b'D' => {
                let relation = input.u32()?;
                let kind = input.u8()?;
                Message::Delete { relation, old: input.old(kind)? }
            }
            b'T' => {
                let count = input.u32()?;
                input.take(1)?;
                let relations = (0..count).map(|_| input.u32());
                Message::Truncate { relations: relations.collect::<Result<_, _>>()? }
            }
            // Origins, types and messages of applications.
            b'O' | b'Y' | b'M' => return Ok(Message::Other),
            _ => return Err("its kind is not known"),
        };
        if input.0.is_empty() { Ok(message) } else { Err("it is longer than its content") }
    }
}

impl<'a> Tuple<'a> {
    /// The values, one for each column.
    pub(super) fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut input = Input(self.bytes);
        // They were checked when the message was decoded.
        (0..self.columns).map(move |_| input.value().unwrap_or(Value::Null))
    }
}

/// Bytes that are read from their start.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("it ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| "it ends too early")
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_be_bytes)
    }

    /// A text that ends with a zero.
    fn text(&mut self) -> Result<Cow<'a, str>, Malformed> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or("a name has no end")?;
        let text = self.take(end)?;
        self.take(1)?;
        Ok(String::from_utf8_lossy(text))
    }

    fn relation(&mut self) -> Result<Relation<'a>, Malformed> {
        let (id, schema, name) = (self.u32()?, self.text()?, self.text()?);
        let schema = if schema.is_empty() { Cow::Borrowed("pg_catalog") } else { schema };
        self.take(1)?;
        let count = self.u16()?;
        let columns = (0..count).map(|_| {
            let is_identity = self.u8()? & 1 == 1;
            let (name, type_id) = (self.text()?, self.u32()?);
            let modifier = self.array().map(i32::from_be_bytes)?;
            Ok(RelationColumn { is_identity, name, type_id, modifier })
        });
        let columns = columns.collect::<Result<_, Malformed>>()?;
        Ok(Relation { id, schema, name, columns })
    }

    fn old(&mut self, kind: u8) -> Result<Old<'a>, Malformed> {
        match kind {
            b'K' | b'O' => Ok(Old { is_whole: kind == b'O', values: self.tuple()? }),
            _ => Err("a row before a change is of an unknown kind"),
        }
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, Malformed> {
        let columns = usize::from(self.u16()?);
        let before = self.0;
        for _ in 0..columns {
            self.value()?;
        }
        Ok(Tuple { columns, bytes: &before[..before.len() - self.0.len()] })
    }

    fn value(&mut self) -> Result<Value<'a>, Malformed> {
        match self.u8()? {
            b'n' => Ok(Value::Null),
            b'u' => Ok(Value::Unchanged),
            b't' => {
                let length = self.u32()?;
                Ok(Value::Text(self.take(length as usize)?))
            }
            _ => Err("a value is of an unknown kind"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An update with the row before it, as PostgreSQL 15 sent it.
    fn update() -> Vec<u8> {
        let mut bytes = b"U\x00\x00\x40\x01K\x00\x02t\x00\x00\x00\x017n".to_vec();
        bytes.extend(b"N\x00\x02t\x00\x00\x00\x018u");
        bytes
    }

    #[test]
    fn an_update_has_its_old_key_and_its_new_row() {
        let bytes = update();
        let Ok(Message::Update { relation: 0x4001, old: Some(old), new }) = Message::decode(&bytes)
        else {
            panic!("not an update");
        };
        assert!(!old.is_whole);
        let values: Vec<Value<'_>> = old.values.values().collect();
        assert_eq!(values, [Value::Text(b"7"), Value::Null]);
        assert_eq!(new.values().collect::<Vec<_>>(), [Value::Text(b"8"), Value::Unchanged]);
    }

    #[test]
    fn a_relation_has_its_columns() {
        let bytes = b"R\x00\x00\x00\x05s\0t\0d\x00\x01\x01id\0\x00\x00\x00\x17\xff\xff\xff\xff";
        let Ok(Message::Relation(relation)) = Message::decode(bytes) else {
            panic!("not a relation");
        };
        assert_eq!((relation.id, &*relation.schema, &*relation.name), (5, "s", "t"));
        let column = &relation.columns[0];
        assert_eq!((column.is_identity, &*column.name, column.type_id), (true, "id", 23));
        assert_eq!(column.modifier, -1);
    }

    #[test]
    fn a_message_that_is_cut_or_too_long_is_refused() {
        let whole = update();
        for end in 0..whole.len() {
            assert!(Message::decode(&whole[..end]).is_err(), "{end}");
        }
        assert!(Message::decode(&[whole.as_slice(), b"x"].concat()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// No bytes make the decoder panic, or take memory that the message does not have.
        #[test]
        fn any_bytes_are_decoded_or_refused(
            kind in prop::sample::select(b"BCRIUDTOYMx".to_vec()),
            rest in prop::collection::vec(any::<u8>(), 0..80),
            cut in 0_usize..40,
        ) {
            let _ = Message::decode(&[&[kind][..], &rest].concat());
            let mut changed = update();
            for (at, byte) in rest.iter().enumerate().take(cut) {
                let length = changed.len();
                changed[(at * 7) % length] ^= byte & 3;
            }
            if let Ok(Message::Update { new, .. }) = Message::decode(&changed) {
                prop_assert_eq!(new.values().count(), new.columns);
            }
        }
    }
}
