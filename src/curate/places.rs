//! The places of rows among the rows of all inputs: the order of files and rows as one number.

/// Per input the number of rows before it.
#[derive(Clone, Debug)]
pub(crate) struct Places(Vec<u64>);

impl Places {
    /// The places in inputs of so many row ordinals.
    pub(crate) fn new(ordinals: impl Iterator<Item = u64>) -> Self {
        let before = ordinals.scan(0, |next, count| {
            let first = *next;
            *next += count;
            Some(first)
        });
        Places(before.collect())
    }

    /// The place of an input's row ordinal, from 1.
    pub(crate) fn of(&self, file: usize, ordinal: usize) -> u64 {
        self.0[file] + ordinal as u64 + 1
    }
}
