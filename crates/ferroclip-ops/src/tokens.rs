//! The embeddings of tokens.

use std::sync::Arc;

use burn::prelude::*;
use half::bf16;

use crate::cpu::Cpu;
use crate::rows::indices;

/// A table of token embeddings, `[vocab_size, width]`: with a gradient, or in bf16.
#[derive(Clone, Debug)]
pub struct TokenTable(Table);

#[derive(Clone, Debug)]
enum Table {
    Parameter(Box<Tensor<2>>),
    Rounded(Arc<Rounded>),
}

#[derive(Debug)]
struct Rounded {
    elements: Vec<bf16>,
    width: usize,
}

impl TokenTable {
    /// The table of this parameter.
    pub fn new(table: Tensor<2>) -> Self {
        TokenTable(Table::Parameter(Box::new(table)))
    }

    /// The table of these elements, row by row, for inference on the CPU.
    pub fn rounded(elements: Vec<bf16>, width: usize) -> Self {
        TokenTable(Table::Rounded(Arc::new(Rounded { elements, width })))
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        match &self.0 {
            Table::Parameter(table) => table.dims()[0],
            Table::Rounded(table) => table.elements.len() / table.width,
        }
    }

    /// The rows of these tokens, `[ids.len(), width]`.
    pub(crate) fn rows(&self, ids: &[u32]) -> Tensor<2> {
        let ids = ids.iter().map(|&id| id as usize);
        match &self.0 {
            Table::Parameter(table) => {
                Tensor::clone(table).select(0, indices(ids, &table.device()))
            }
            Table::Rounded(table) => {
                let Rounded { elements, width } = &**table;
                let n = ids.len();
                let rows = ids.flat_map(|id| &elements[id * width..(id + 1) * width]);
                Cpu::from_vec(rows.map(|x| x.to_f32()).collect(), &[n, *width]).into_tensor()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rounded_row_is_the_row_rounded() {
        let values: Vec<f32> = (0..15).map(|i| (i as f32 * 0.7).sin()).collect();
        let table = Tensor::<1>::from_floats(&values[..], &Device::flex()).reshape([5, 3]);
        let exact = TokenTable::new(table);
        let rounded = values.iter().map(|&x| bf16::from_f32(x)).collect();
        let rounded = TokenTable::rounded(rounded, 3);
        assert_eq!([exact.vocab_size(), rounded.vocab_size()], [5, 5]);
        let ids = [4, 0, 4];
        let [exact, rounded] = [exact, rounded]
            .map(|table| table.rows(&ids).into_data().try_to_vec::<f32>().expect("f32"));
        assert_eq!(exact[..3], values[12..]);
        let want: Vec<f32> = exact.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
        assert_eq!(rounded, want);
    }
}
