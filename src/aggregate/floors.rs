//! The relation of versions where there are floors: `sql/floors.sql`.

use std::sync::Arc;

use arrow::array::{AsArray, Int32Array, RecordBatch};
use arrow::datatypes::{DataType, Date32Type, Decimal128Type, Field, Schema};
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, Volatility, create_udf,
};
use datafusion::prelude::SessionContext;

use crate::changes::position::{PACKED_TYPE, packed_array};
use crate::error::{Error, Result};
use crate::state::floors::Floor;
use crate::state::versions::{ORDER_BYTES, SEQ, VersionsLayout};

/// A place in the order of changes: order bytes, and `seq`.
type Place = (Option<Vec<u8>>, i128);

/// Registers the relation `versions`: those stored, and what floors ended. `seq` is the function of
/// that name.
pub(super) async fn register_versions(
    context: &SessionContext,
    stored: Arc<dyn TableProvider>,
    layout: &VersionsLayout,
    seq: &ScalarUDF,
    floors: &[Floor],
) -> Result<()> {
    if floors.is_empty() {
        context.register_table("versions", stored)?;
        return Ok(());
    }
    let rows = Floor::columns(floors.iter())?;
    let places = places(&rows, seq)?;
    let mut sorted: Vec<usize> = (0..floors.len()).collect();
    sorted.sort_by(|a, b| places[*a].cmp(&places[*b]));
    let mut numbers = vec![0; floors.len()];
    for (number, at) in sorted.iter().enumerate() {
        numbers[*at] = number as i32;
    }
    let mut fields = rows.schema().fields().to_vec();
    fields.push(Arc::new(Field::new(SEQ, PACKED_TYPE, false)));
    fields.push(Arc::new(Field::new("number", DataType::Int32, false)));
    let mut columns = rows.columns().to_vec();
    columns.push(packed_array(places.iter().map(|place| place.1).collect()));
    columns.push(Arc::new(Int32Array::from(numbers)));
    let schema = Arc::new(Schema::new(fields));
    let rows = RecordBatch::try_new(Arc::clone(&schema), columns)?;
    context.register_table("floors", Arc::new(MemTable::try_new(schema, vec![vec![rows]])?))?;
    let sorted = sorted.iter().map(|at| (places[*at].clone(), floors[*at].day));
    let sorted: Arc<Vec<_>> = Arc::new(sorted.collect());
    context.register_udf(floor_after(&sorted));
    context.register_udf(floor_of_day_after(&sorted));
    context.register_table("stored_versions", stored)?;
    let versions = context.sql(&floors_sql(layout, floors)).await?;
    context.register_table("versions", versions.into_view())?;
    Ok(())
}

/// `sql/floors.sql` with its placeholders replaced.
fn floors_sql(layout: &VersionsLayout, floors: &[Floor]) -> String {
    let quoted = |names: &[String]| {
        names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
    };
    let names: Vec<String> =
        layout.schema().fields().iter().map(|field| field.name().clone()).collect();
    let nulls = (0..layout.partitions.len()).map(|number| format!("NULL AS part_{number},"));
    let mut days: Vec<i32> = floors.iter().filter_map(|floor| floor.day).collect();
    days.sort_unstable();
    days.dedup();
    let days = days.into_iter().map(|day| {
        let date = Date32Type::to_naive_date_opt(day).unwrap_or_default();
        format!("DATE '{date}'")
    });
    let days: Vec<String> = days.collect();
    let days = if days.is_empty() { "CAST(NULL AS DATE)".into() } else { days.join(", ") };
    include_str!("../../sql/floors.sql")
        .replace("{keys}", &quoted(&names[..layout.keys.len()]))
        .replace("{columns}", &quoted(&names))
        .replace("{nulls}", &nulls.collect::<Vec<_>>().join(" "))
        .replace("{seq}", &format!("{SEQ}(cdc, time_us, time_ns, location, file, \"row\")"))
        .replace("{days}", &days)
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

/// Floors by their place in the order of changes, with their days.
type SortedFloors = Arc<Vec<(Place, Option<i32>)>>;

/// Whether a floor is later than order bytes and a `seq`.
fn is_after((of_floor, at): &Place, bytes: Option<&[u8]>, seq: i128) -> bool {
    (of_floor.as_deref(), *at) > (bytes, seq)
}

/// The SQL function `floor_after(order_bytes, seq)`: the number of the first floor after a place in
/// the order of changes; null if none is.
fn floor_after(floors: &SortedFloors) -> ScalarUDF {
    let floors = Arc::clone(floors);
    let compute = move |values: &[ColumnarValue]| {
        let columns = ColumnarValue::values_to_arrays(values)?;
        let bytes = columns[0].as_binary::<i32>();
        let seqs = columns[1].as_primitive::<Decimal128Type>();
        let after = bytes.iter().zip(seqs.values()).map(|(bytes, seq)| {
            let number = floors.partition_point(|(place, _)| !is_after(place, bytes, *seq));
            (number < floors.len()).then_some(number as i32)
        });
        Ok(ColumnarValue::Array(Arc::new(after.collect::<Int32Array>())))
    };
    let arguments = vec![DataType::Binary, PACKED_TYPE];
    create_udf("floor_after", arguments, DataType::Int32, Volatility::Immutable, Arc::new(compute))
}

/// The SQL function `floor_of_day_after(event_dt, order_bytes, seq)`: the number of the first floor of a
/// day that is after a place in the order of changes; null if none is.
fn floor_of_day_after(floors: &SortedFloors) -> ScalarUDF {
    let floors = Arc::clone(floors);
    let compute = move |values: &[ColumnarValue]| {
        let columns = ColumnarValue::values_to_arrays(values)?;
        let days = columns[0].as_primitive::<Date32Type>();
        let bytes = columns[1].as_binary::<i32>();
        let seqs = columns[2].as_primitive::<Decimal128Type>();
        let places = days.iter().zip(bytes).zip(seqs.values());
        let after = places.map(|((day, bytes), seq)| {
            let is_first = |(place, of_floor): &(Place, Option<i32>)| {
                *of_floor == day && is_after(place, bytes, *seq)
            };
            floors.iter().position(is_first).map(|number| number as i32)
        });
        Ok(ColumnarValue::Array(Arc::new(after.collect::<Int32Array>())))
    };
    let arguments = vec![DataType::Date32, DataType::Binary, PACKED_TYPE];
    let (kind, compute) = (DataType::Int32, Arc::new(compute));
    create_udf("floor_of_day_after", arguments, kind, Volatility::Immutable, compute)
}
