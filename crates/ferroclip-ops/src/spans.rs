//! Where each sequence of a packed batch starts.

use std::ops::Range;
use std::sync::Arc;

/// Offsets of the sequences in packed rows: sequence `i` is rows `offsets[i]..offsets[i + 1]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spans(Arc<[usize]>);

impl Spans {
    /// `n` sequences of `len` rows each, as a batch of images has.
    pub fn uniform(n: usize, len: usize) -> Self {
        Spans((0..=n).map(|i| i * len).collect())
    }

    /// Sequences of the given lengths, as a batch of texts has.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut offsets = vec![0];
        let mut end = 0;
        for length in lengths {
            end += length;
            offsets.push(end);
        }
        Spans(offsets.into())
    }

    /// Number of sequences.
    pub fn count(&self) -> usize {
        self.0.len() - 1
    }

    /// Number of rows of all sequences together.
    pub fn rows(&self) -> usize {
        self.0[self.count()]
    }

    /// The `count() + 1` offsets, from 0 to `rows()`.
    pub fn offsets(&self) -> &[usize] {
        &self.0
    }

    /// The rows of sequence `i`.
    pub fn range(&self, i: usize) -> Range<usize> {
        self.0[i]..self.0[i + 1]
    }

    /// The rows of each sequence in turn.
    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.0.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// Rows of the longest sequence.
    pub fn longest(&self) -> usize {
        self.iter().map(|rows| rows.len()).max().unwrap_or(0)
    }
}
