//! File numbers: raw files numbered as they are met, and ranked in the order of files.
//!
//! Versions name the file of a change. Names are turned into numbers when versions are read, and
//! numbers are compared by their ranks once all files are known. Both are valid within one run only;
//! the state stores names.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, Int32Array, StringArray, UInt32Array};

use crate::layout::FileOrder;

/// Location and path.
type File = (usize, Arc<str>);

/// The numbers of files, named by location and path; several threads can number files at once.
#[derive(Debug, Default)]
pub struct FileNumbers {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    files: Vec<File>,
    /// Per location the number of each path.
    numbers: Vec<HashMap<Arc<str>, u32>>,
}

impl Known {
    fn number(&mut self, location: usize, path: &str) -> u32 {
        if self.numbers.len() <= location {
            self.numbers.resize_with(location + 1, HashMap::new);
        }
        if let Some(number) = self.numbers[location].get(path) {
            return *number;
        }
        let (next, path) = (self.files.len() as u32, Arc::<str>::from(path));
        self.files.push((location, Arc::clone(&path)));
        self.numbers[location].insert(path, next);
        next
    }
}

impl FileNumbers {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a file.
    pub fn number(&self, location: usize, path: &str) -> u32 {
        self.lock().number(location, path)
    }

    /// The numbers of the files of versions.
    pub fn numbers(&self, locations: &Int32Array, paths: &StringArray) -> UInt32Array {
        let mut before: Option<((i32, &str), u32)> = None;
        let mut numbers = Vec::with_capacity(paths.len());
        let mut known = self.lock();
        for (location, path) in locations.values().iter().zip(paths) {
            let at = (*location, path.unwrap_or_default());
            // Most batches have rows of few files.
            let number = match before {
                Some((same, number)) if same == at => number,
                _ => known.number(at.0 as usize, at.1),
            };
            before = Some((at, number));
            numbers.push(number);
        }
        UInt32Array::from(numbers)
    }

    /// The files that have a number now, in an order.
    pub fn ranked(&self, order: FileOrder) -> RankedFiles {
        let files = self.lock().files.clone();
        let mut sorted: Vec<(&File, usize)> = files.iter().zip(0..).collect();
        order.sort(&mut sorted, |((location, path), _)| (*location, path));
        let mut ranks = vec![0; files.len()];
        for ((_, number), rank) in sorted.into_iter().zip(0..) {
            ranks[number] = rank;
        }
        RankedFiles { files, ranks }
    }
}

/// Numbered files, with their place in the order of files.
#[derive(Debug, Default)]
pub struct RankedFiles {
    files: Vec<File>,
    ranks: Vec<u32>,
}

impl RankedFiles {
    /// The file with a number: location and path.
    pub fn file(&self, number: u32) -> (usize, &str) {
        let (location, path) = &self.files[number as usize];
        (*location, path)
    }

    /// The place of the file with a number; `None` if it got its number since the files were ranked.
    pub fn rank(&self, number: u32) -> Option<u32> {
        self.ranks.get(number as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_numbered_as_they_are_met_and_ranked_in_order() {
        let numbers = FileNumbers::default();
        let locations = Int32Array::from(vec![0, 0, 1, 0]);
        let paths = StringArray::from(vec!["b", "c", "b", "b"]);
        assert_eq!(numbers.numbers(&locations, &paths).values(), &[0, 1, 2, 0]);
        assert_eq!(numbers.number(0, "a"), 3);
        let ranked = numbers.ranked(FileOrder::Name);
        let files: Vec<_> = (0..4).map(|number| ranked.file(number)).collect();
        assert_eq!(files, [(0, "b"), (0, "c"), (1, "b"), (0, "a")]);
        let ranks: Vec<_> = (0..4).map(|number| ranked.rank(number)).collect();
        assert_eq!(ranks, [Some(1), Some(3), Some(2), Some(0)]);
        assert_eq!((numbers.number(0, "d"), ranked.rank(4)), (4, None));
    }
}
