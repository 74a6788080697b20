//! Keys as bytes, and their hashes.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, SortField};

use crate::error::Result;

/// The length up to which a key is inlined in its view.
pub(super) const INLINE_BYTES: usize = 12;

/// The keys of a batch as bytes, which are equal if and only if all key columns are.
pub(super) enum Keys {
    /// One column of text or binary, as Arrow views.
    Views(ScalarBuffer<u128>, ArrayRef),
    /// One column of values of `width` bytes.
    Fixed { width: usize, bytes: Buffer },
    /// Any other columns, encoded: `ends` has the end of each key in `bytes`.
    Encoded { ends: Vec<usize>, bytes: Vec<u8> },
}

impl Keys {
    pub(super) fn new(columns: &[ArrayRef]) -> Result<Self> {
        if let [only] = columns {
            if let Some(texts) = only.as_string_view_opt() {
                return Ok(Keys::Views(texts.views().clone(), Arc::clone(only)));
            }
            if let Some(binaries) = only.as_binary_view_opt() {
                return Ok(Keys::Views(binaries.views().clone(), Arc::clone(only)));
            }
            if let Some(width) = only.data_type().primitive_width() {
                let data = only.to_data();
                let bytes = data.buffers()[0].slice(data.offset() * width);
                return Ok(Keys::Fixed { width, bytes });
            }
        }
        let rows = columns.first().map_or(0, |column| column.len());
        let is_plain = |column: &ArrayRef| {
            column.data_type().primitive_width().is_some()
                || matches!(column.data_type(), DataType::Utf8View)
        };
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(rows);
        if !columns.iter().all(is_plain) {
            let fields = columns.iter().map(|column| SortField::new(column.data_type().clone()));
            let converted = RowConverter::new(fields.collect())?.convert_columns(columns)?;
            for row in &converted {
                bytes.extend_from_slice(row.data());
                ends.push(bytes.len());
            }
            return Ok(Keys::Encoded { ends, bytes });
        }
        let data: Vec<_> = columns.iter().map(|column| column.to_data()).collect();
        for row in 0..rows {
            for (column, data) in columns.iter().zip(&data) {
                match column.data_type().primitive_width() {
                    Some(width) => {
                        let start = (data.offset() + row) * width;
                        bytes.extend_from_slice(&data.buffers()[0][start..start + width]);
                    }
                    None => {
                        let text = column.as_string_view().value(row);
                        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
                        bytes.extend_from_slice(text.as_bytes());
                    }
                }
            }
            ends.push(bytes.len());
        }
        Ok(Keys::Encoded { ends, bytes })
    }
}

/// A key's view in Arrow's format: the length, then the inlined bytes, or the first four of a
/// longer key. Also returns the bytes of a longer key.
/// <https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-view-layout>
#[inline]
pub(super) fn view_of(key: &[u8]) -> (u128, &[u8]) {
    let mut view = [0; 16];
    view[..4].copy_from_slice(&(key.len() as u32).to_le_bytes());
    let (inlined, long): (_, &[u8]) = match key.len() {
        0..=INLINE_BYTES => (key, &[]),
        _ => (&key[..4], key),
    };
    view[4..4 + inlined.len()].copy_from_slice(inlined);
    (u128::from_le_bytes(view), long)
}

pub(super) fn length_of(view: u128) -> usize {
    view as u32 as usize
}

/// The view of a long key whose bytes begin at `start`.
pub(super) fn long_view(view: u128, start: usize) -> u128 {
    u128::from(view as u64) | (start as u128) << 64
}

/// The bytes of a long key in `long`; empty for an inlined key.
#[inline]
pub(super) fn long_bytes(view: u128, long: &[u8]) -> &[u8] {
    let length = length_of(view);
    if length <= INLINE_BYTES {
        return &[];
    }
    let start = (view >> 64) as usize;
    &long[start..start + length]
}

/// Multiplies 64 bits by 64 and folds the product.
#[inline]
pub(super) fn mix(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    product as u64 ^ (product >> 64) as u64
}

/// Constants with well-distributed bits: the fractions of the square roots of 2, 3 and 5.
pub(super) const SEEDS: [u64; 3] =
    [0x6a09_e667_f3bc_c909, 0xbb67_ae85_84ca_a73b, 0x3c6e_f372_fe94_f82b];

/// The hash of a key: of its view if the key is inlined, of its bytes otherwise.
#[inline]
pub(super) fn hash(view: u128, long: &[u8]) -> u64 {
    let (mut low, mut high) = (view as u64, (view >> 64) as u64);
    if !long.is_empty() {
        (low, high) = (long.len() as u64, 0);
        for chunk in long.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            high = mix(high ^ SEEDS[2], u64::from_le_bytes(bytes) ^ SEEDS[1]);
        }
    }
    mix(mix(low ^ SEEDS[0], high ^ SEEDS[1]), SEEDS[2])
}
