//! Floors as `sql/floors.sql` sees them: functions that find one, and give its columns.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{AsArray, Int32Array, RecordBatch, UInt32Array};
use arrow::compute::{take, take_record_batch};
use arrow::datatypes::{DataType, Date32Type, Decimal128Type, Field, Schema};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, Volatility, create_udf,
};

use crate::changes::position::{PACKED_TYPE, packed_array};
use crate::error::{Error, Result};
use crate::state::floors::{Floor, FloorsOfDays};
use crate::state::versions::{ORDER_BYTES, SEQ};

/// A place in the order of changes: order bytes, and `seq`.
type Place = (Option<Vec<u8>>, i128);

/// A day; `None` is that of floors without a commit time.
pub(super) type Day = Option<i32>;

/// Floors, numbered in the order of changes.
#[derive(Debug)]
pub(super) struct PlacedFloors {
    /// Per number the columns of [`Floor::columns`], and `seq`.
    rows: RecordBatch,
    /// Per number the place.
    places: Arc<Vec<Place>>,
    /// Per number the day.
    days: Vec<Day>,
}

impl PlacedFloors {
    /// Numbers floors. `seq` is the function of that name.
    pub(super) fn new(floors: &[Floor], seq: &ScalarUDF) -> Result<Self> {
        let rows = Floor::columns(floors.iter())?;
        let places = places(&rows, seq)?;
        let mut sorted: Vec<usize> = (0..floors.len()).collect();
        sorted.sort_by(|a, b| places[*a].cmp(&places[*b]));
        let mut fields = rows.schema().fields().to_vec();
        fields.push(Arc::new(Field::new(SEQ, PACKED_TYPE, true)));
        let mut columns = rows.columns().to_vec();
        columns.push(packed_array(places.iter().map(|place| place.1).collect()));
        let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
        let by_number = UInt32Array::from_iter_values(sorted.iter().map(|at| *at as u32));
        Ok(PlacedFloors {
            rows: take_record_batch(&rows, &by_number)?,
            places: Arc::new(sorted.iter().map(|at| places[*at].clone()).collect()),
            days: sorted.iter().map(|at| floors[*at].day).collect(),
        })
    }

    /// The days of floors.
    pub(super) fn days(&self) -> BTreeSet<Day> {
        self.days.iter().copied().collect()
    }

    /// The SQL functions `floor_event_dt(number)`, `floor_seq(number)` and so on: the columns of a floor.
    pub(super) fn columns(&self) -> impl Iterator<Item = ScalarUDF> {
        let fields = self.rows.schema_ref().fields().iter();
        fields.zip(self.rows.columns()).map(|(field, values)| {
            let (kind, values) = (values.data_type().clone(), Arc::clone(values));
            let compute = move |numbers: &[ColumnarValue]| {
                let numbers = ColumnarValue::values_to_arrays(numbers)?;
                Ok(ColumnarValue::Array(take(&*values, &numbers[0], None)?))
            };
            let (name, compute) = (format!("floor_{}", field.name()), Arc::new(compute));
            create_udf(&name, vec![DataType::Int32], kind, Volatility::Immutable, compute)
        })
    }

    /// The SQL function `floor_after(order_bytes, seq)`: the number of the first floor after a place in
    /// the order of changes, if it is of one of the days; null otherwise.
    pub(super) fn floor_after(&self, days: &BTreeSet<Day>) -> ScalarUDF {
        let places = Arc::clone(&self.places);
        let is_of_days: Vec<bool> = self.days.iter().map(|day| days.contains(day)).collect();
        let compute = move |values: &[ColumnarValue]| {
            let columns = ColumnarValue::values_to_arrays(values)?;
            let bytes = columns[0].as_binary::<i32>();
            let seqs = columns[1].as_primitive::<Decimal128Type>();
            let after = bytes.iter().zip(seqs.values()).map(|(bytes, seq)| {
                let number = places.partition_point(|place| !is_after(place, bytes, *seq));
                is_of_days.get(number).is_some_and(|is| *is).then_some(number as i32)
            });
            Ok(ColumnarValue::Array(Arc::new(after.collect::<Int32Array>())))
        };
        let arguments = vec![DataType::Binary, PACKED_TYPE];
        let (kind, compute) = (DataType::Int32, Arc::new(compute));
        create_udf("floor_after", arguments, kind, Volatility::Immutable, compute)
    }

    /// The SQL function `floor_of_day_after(event_dt, order_bytes, seq)`: the number of the first floor
    /// of a day that is after a place in the order of changes, if it is one of the days; null otherwise.
    pub(super) fn floor_of_day_after(&self, days: &BTreeSet<Day>) -> ScalarUDF {
        let places = Arc::clone(&self.places);
        let numbered = self.days.iter().copied().enumerate();
        let of_days = FloorsOfDays::new(numbered.filter(|(_, day)| days.contains(day)));
        let compute = move |values: &[ColumnarValue]| {
            let columns = ColumnarValue::values_to_arrays(values)?;
            let days = columns[0].as_primitive::<Date32Type>();
            let bytes = columns[1].as_binary::<i32>();
            let seqs = columns[2].as_primitive::<Decimal128Type>();
            let after = days.iter().zip(bytes).zip(seqs.values()).map(|((day, bytes), seq)| {
                let is_after = |number: usize| is_after(&places[number], bytes, *seq);
                of_days.first_after(day, is_after).map(|number| number as i32)
            });
            Ok(ColumnarValue::Array(Arc::new(after.collect::<Int32Array>())))
        };
        let arguments = vec![DataType::Date32, DataType::Binary, PACKED_TYPE];
        let (kind, compute) = (DataType::Int32, Arc::new(compute));
        create_udf("floor_of_day_after", arguments, kind, Volatility::Immutable, compute)
    }
}

/// Whether a floor is later than order bytes and a `seq`.
fn is_after((of_floor, at): &Place, bytes: Option<&[u8]>, seq: i128) -> bool {
    (of_floor.as_deref(), *at) > (bytes, seq)
}

/// The places of floors, in the columns of [`Floor::columns`].
fn places(rows: &RecordBatch, seq: &ScalarUDF) -> Result<Vec<Place>> {
    let named = ["cdc", "time_us", "time_ns", "location", "file", "row"];
    let arguments = named.iter().map(|name| {
        let lost = || Error::internal(format!("floors lack the column `{name}`"));
        Ok(ColumnarValue::Array(Arc::clone(rows.column_by_name(name).ok_or_else(lost)?)))
    });
    let arguments: Vec<ColumnarValue> = arguments.collect::<Result<_>>()?;
    let fields = named.iter().map(|name| rows.schema().field_with_name(name).cloned());
    let fields = fields.map(|field| field.map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
    let computed = seq.invoke_with_args(ScalarFunctionArgs {
        args: arguments,
        arg_fields: fields,
        number_rows: rows.num_rows(),
        return_field: Arc::new(Field::new(SEQ, PACKED_TYPE, false)),
        config_options: Arc::default(),
    })?;
    let seqs = computed.into_array(rows.num_rows())?;
    let seqs = seqs.as_primitive::<Decimal128Type>().values().iter();
    let lost = || Error::internal("floors lack their order");
    let bytes = rows.column_by_name(ORDER_BYTES).ok_or_else(lost)?.as_binary::<i32>().iter();
    Ok(bytes.zip(seqs).map(|(bytes, seq)| (bytes.map(<[u8]>::to_vec), *seq)).collect())
}
