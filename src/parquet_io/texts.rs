//! Texts of a Parquet file that are not UTF-8.
//!
//! Parquet's texts are UTF-8, and the decoder refuses a page, or a whole dictionary, that has one that
//! is not. To find the rows, the same columns are decoded once more as bytes, as if the file said
//! nothing of texts. Columns whose texts turn out to be UTF-8 become text again; the others stay bytes,
//! and whoever reads them finds the rows ([`first_bad_text`]).
//!
//! The decoder does not check texts that the file calls JSON: those are always decoded as bytes.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{Field, Fields, Schema};
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::basic::{ConvertedType, Type as PhysicalType};
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::{FileMetaData, ParquetMetaData};
use parquet::schema::types::{SchemaDescriptor, Type, TypePtr};

use crate::parquet_io::open::arrow_metadata;

/// Whether the decoder leaves texts of some columns (indices into the schema) unchecked.
pub(super) fn has_unchecked_texts(schema: &SchemaDescriptor, columns: &[usize]) -> bool {
    let is_read = |leaf: usize| columns.contains(&schema.get_column_root_idx(leaf));
    let leaves = schema.columns().iter().enumerate();
    let mut json = leaves.filter(|(_, leaf)| leaf.converted_type() == ConvertedType::JSON);
    json.any(|(leaf, _)| is_read(leaf))
}

/// A footer by which texts are decoded as bytes.
pub(super) fn with_texts_as_bytes(
    footer: &ArrowReaderMetadata,
) -> ParquetResult<ArrowReaderMetadata> {
    let metadata = footer.metadata();
    let file = metadata.file_metadata();
    let root = without_texts(&file.schema_descr().root_schema_ptr())?;
    let file = FileMetaData::new(
        file.version(),
        file.num_rows(),
        file.created_by().map(String::from),
        None,
        Arc::new(SchemaDescriptor::new(root)),
        None,
    );
    arrow_metadata(Arc::new(ParquetMetaData::new(file, metadata.row_groups().to_vec())), None)
}

/// A Parquet type whose texts are bytes.
fn without_texts(node: &TypePtr) -> ParquetResult<TypePtr> {
    let info = node.get_basic_info();
    let name = info.name();
    let id = info.has_id().then(|| info.id());
    if node.is_group() {
        let fields = node.get_fields().iter().map(without_texts);
        let mut group = Type::group_type_builder(name)
            .with_converted_type(info.converted_type())
            .with_logical_type(info.logical_type_ref().cloned())
            .with_fields(fields.collect::<ParquetResult<Vec<_>>>()?)
            .with_id(id);
        if info.has_repetition() {
            group = group.with_repetition(info.repetition());
        }
        return Ok(Arc::new(group.build()?));
    }
    let is_text = matches!(info.converted_type(), ConvertedType::UTF8 | ConvertedType::JSON);
    if !is_text || node.get_physical_type() != PhysicalType::BYTE_ARRAY {
        return Ok(Arc::clone(node));
    }
    let bytes = Type::primitive_type_builder(name, PhysicalType::BYTE_ARRAY)
        .with_repetition(info.repetition())
        .with_id(id);
    Ok(Arc::new(bytes.build()?))
}

/// A batch in which bytes are texts again, where all of a column are. `fields` are its columns as the
/// file has them.
pub(super) fn with_valid_texts(batch: RecordBatch, fields: &Fields) -> ParquetResult<RecordBatch> {
    let strict = CastOptions { safe: false, ..Default::default() };
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns()).zip(fields);
    let columns = columns.map(|((found, column), wanted)| {
        if column.data_type() == wanted.data_type() || first_bad_text(column).is_some() {
            return (Arc::clone(found), Arc::clone(column));
        }
        match cast_with_options(column, wanted.data_type(), &strict) {
            Ok(texts) => (Arc::clone(wanted), texts),
            Err(_) => (Arc::clone(found), Arc::clone(column)),
        }
    });
    let (fields, columns): (Vec<Arc<Field>>, Vec<ArrayRef>) = columns.unzip();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// The index of the first value of a column of bytes that is not UTF-8; `None` for other columns too.
pub(crate) fn first_bad_text(column: &ArrayRef) -> Option<usize> {
    let bytes = column.as_binary_view_opt()?;
    bytes.iter().position(|value| value.is_some_and(|value| std::str::from_utf8(value).is_err()))
}

/// A value of a column of bytes as text, with escapes for the bytes that are not.
pub(crate) fn escaped_text(column: &ArrayRef, row: usize) -> Option<String> {
    let bytes = column.as_binary_view_opt()?;
    let mut text = String::new();
    for chunk in bytes.value(row).utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02X}")));
    }
    Some(text)
}
