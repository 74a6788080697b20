//! The aggregate function of the fold: `last_changes(event_dt, position)`.
//! Grouped by key, it returns per day the position of the last change, with a bit for a tie:
//! another change had the same order columns, and file and row decided. One pass thus gives both
//! results of the fold: the last change per key and day, and, as the greatest of these, the last
//! change per key. A plain `max` could not count ties, and grouping by key and day would need a
//! second grouping by key.
//! The function is only planned; [`FoldExec`](crate::fold::exec) computes it.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanBufferBuilder, Date32Array, ListArray, PrimitiveArray,
    StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Date32Type, Field, FieldRef, Fields};
use datafusion::common::not_impl_err;
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Signature, TypeSignature, Volatility,
};

use crate::changes::position::{PACKED_TYPE, Position};

/// The function's name in SQL.
pub(super) const NAME: &str = "last_changes";

/// The aggregate function, for positions of either kind.
pub(super) fn last_changes() -> AggregateUDF {
    let of = |position| TypeSignature::Exact(vec![DataType::Date32, position]);
    AggregateUDF::from(LastChanges {
        signature: Signature::one_of(
            vec![of(PACKED_TYPE), of(<Box<[u8]> as Position>::data_type())],
            Volatility::Immutable,
        ),
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct LastChanges {
    signature: Signature,
}

impl AggregateUDFImpl for LastChanges {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> datafusion::common::Result<DataType> {
        Ok(DataType::List(days_field(arguments[1].clone())))
    }

    fn accumulator(
        &self,
        _args: AccumulatorArgs,
    ) -> datafusion::common::Result<Box<dyn Accumulator>> {
        not_impl_err!("{NAME} is computed by FoldExec, which this plan lacks")
    }
}

/// The items of the function's lists: one entry per day.
fn days_field(position: DataType) -> FieldRef {
    let fields =
        [Field::new("event_dt", DataType::Date32, true), Field::new("position", position, false)];
    Arc::new(Field::new_list_field(DataType::Struct(Fields::from_iter(fields)), false))
}

/// Builds a result column of the function: one list per key.
pub(super) struct KeysBuilder<P: Position> {
    offsets: Vec<i32>,
    days: Vec<i32>,
    has_day: BooleanBufferBuilder,
    positions: P::Builder,
}

impl<P: Position> KeysBuilder<P> {
    /// A builder with capacity for `keys` keys.
    pub(super) fn with_capacity(keys: usize) -> Self {
        let mut offsets = Vec::with_capacity(keys + 1);
        offsets.push(0);
        KeysBuilder {
            offsets,
            days: Vec::with_capacity(keys),
            has_day: BooleanBufferBuilder::new(keys),
            positions: P::Builder::default(),
        }
    }

    /// The number of keys added.
    pub(super) fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Adds a key: per day the position of its last change.
    #[inline]
    pub(super) fn push<'a>(&mut self, key: impl Iterator<Item = (Option<i32>, &'a P)>) {
        for (day, position) in key {
            self.days.push(day.unwrap_or_default());
            self.has_day.append(day.is_some());
            position.append_to(&mut self.positions);
        }
        self.offsets.push(self.days.len() as i32);
    }

    /// Returns the column.
    pub(super) fn finish(mut self) -> ArrayRef {
        let nulls =
            Some(NullBuffer::new(self.has_day.finish())).filter(|nulls| nulls.null_count() > 0);
        let days = Date32Array::new(ScalarBuffer::from(self.days), nulls);
        let item = days_field(P::data_type());
        let DataType::Struct(fields) = item.data_type() else {
            unreachable!("a day is a struct");
        };
        let columns = vec![Arc::new(days) as ArrayRef, P::build(self.positions)];
        let entries = StructArray::new(fields.clone(), columns, None);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(self.offsets));
        Arc::new(ListArray::new(item, offsets, Arc::new(entries), None))
    }
}

/// Reads a result column of the function.
pub(super) struct Keys<'a, P> {
    offsets: &'a [i32],
    days: &'a PrimitiveArray<Date32Type>,
    positions: Vec<P>,
}

impl<'a, P: Position> Keys<'a, P> {
    /// Reads a column of positions of this kind.
    pub(super) fn read(column: &'a dyn Array) -> Self {
        let lists = column.as_list::<i32>();
        let entries = lists.values().as_struct();
        Keys {
            offsets: lists.value_offsets(),
            days: entries.column(0).as_primitive(),
            positions: P::read(entries.column(1)),
        }
    }

    /// The keys: per day the position of the last change.
    pub(super) fn iter(&self) -> impl Iterator<Item = impl Iterator<Item = (Option<i32>, &P)>> {
        self.offsets.windows(2).map(|ends| {
            let entries = ends[0] as usize..ends[1] as usize;
            entries.map(|at| {
                let day = self.days.is_valid(at).then(|| self.days.value(at));
                (day, &self.positions[at])
            })
        })
    }
}
