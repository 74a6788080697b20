//! File numbers: raw files numbered in the order of files.
//!
//! Versions name the file of a change. To compare orders, names are turned into numbers. Numbers are
//! valid within one run only; the state stores names.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, Int32Array, StringArray, UInt32Array};

use crate::error::{Error, Result};
use crate::layout::FileOrder;

/// The numbers of files, named by location and path.
#[derive(Debug, Default)]
pub struct FileNumbers {
    files: Vec<(usize, Arc<str>)>,
    /// Per location the number of each path.
    numbers: Vec<HashMap<Arc<str>, u32>>,
}

impl FileNumbers {
    /// Numbers files, which may be given in any order and repeatedly.
    pub fn new(order: FileOrder, files: impl IntoIterator<Item = (usize, String)>) -> Self {
        let files = files.into_iter().map(|(location, path)| (location, Arc::from(path)));
        let mut files: Vec<(usize, Arc<str>)> = files.collect();
        order.sort(&mut files, |(location, path)| (*location, path));
        files.dedup();
        let locations = files.iter().map(|(location, _)| location + 1).max();
        let mut numbers = vec![HashMap::new(); locations.unwrap_or_default()];
        for ((location, path), number) in files.iter().zip(0..) {
            numbers[*location].insert(Arc::clone(path), number);
        }
        FileNumbers { files, numbers }
    }

    /// The file with a number: location and path.
    pub fn file(&self, number: u32) -> (usize, &str) {
        let (location, path) = &self.files[number as usize];
        (*location, path)
    }

    /// The number of a file.
    ///
    /// # Errors
    /// Data, when there is no such file.
    pub fn number(&self, location: i32, path: &str) -> Result<u32> {
        let numbers = usize::try_from(location).ok().and_then(|at| self.numbers.get(at));
        let number = numbers.and_then(|numbers| numbers.get(path));
        number.copied().ok_or_else(|| {
            Error::data(format!("versions refer to the input {path}, which is not in the ledger"))
                .hint("the state is damaged: rebuild it with `glueless rebuild`")
        })
    }

    /// The numbers of the files of versions.
    ///
    /// # Errors
    /// As [`FileNumbers::number`].
    pub fn numbers(&self, locations: &Int32Array, paths: &StringArray) -> Result<UInt32Array> {
        let mut known: Option<((i32, &str), u32)> = None;
        let mut numbers = Vec::with_capacity(paths.len());
        for (location, path) in locations.values().iter().zip(paths) {
            let at = (*location, path.unwrap_or_default());
            // Most batches have rows of few files.
            let number = match known {
                Some((same, number)) if same == at => number,
                _ => self.number(at.0, at.1)?,
            };
            known = Some((at, number));
            numbers.push(number);
        }
        Ok(UInt32Array::from(numbers))
    }
}
