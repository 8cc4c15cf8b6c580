//! What the towers return: one row of numbers for each input.

use ferroclip_kernels::{Isa, dots};

/// Rows of embeddings on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embeddings {
    /// Number of rows.
    pub rows: usize,
    /// Numbers in a row: the model's `embed_dim`, unless other features were asked for.
    pub dim: usize,
    /// The rows, one behind the other.
    pub data: Vec<f32>,
    /// Of texts: the rows whose text did not fit the context length and was cut.
    pub truncated: Vec<usize>,
}

impl Embeddings {
    /// No rows yet.
    pub fn empty(dim: usize) -> Self {
        Embeddings { dim, ..Embeddings::default() }
    }

    /// Row `i`.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.dim..(i + 1) * self.dim]
    }

    /// All rows in turn.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.data.chunks_exact(self.dim.max(1))
    }

    /// Dot products with the rows of another, `[self.rows, other.rows]`: cosines, where both are
    /// unit embeddings.
    ///
    /// # Panics
    /// When the dimensions differ.
    pub fn similarity(&self, other: &Embeddings) -> Vec<f32> {
        assert_eq!(self.dim, other.dim, "embeddings of one dimension");
        dots(Isa::active(), &self.data, &other.data, self.dim.max(1))
    }

    pub(crate) fn append(&mut self, data: &[f32]) {
        self.data.extend_from_slice(data);
        self.rows = self.data.len() / self.dim.max(1);
    }
}

/// Dot product, summed in a fixed order.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Divides a row by its Euclidean norm.
pub(crate) fn normalize(row: &mut [f32]) {
    let norm = dot(row, row).sqrt();
    row.iter_mut().for_each(|v| *v /= norm);
}
