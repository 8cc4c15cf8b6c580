//! Where a tower takes its parameters from.

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::TensorData;
use ferroclip_ops::{Precision, TokenTable};
use half::bf16;

use super::stream::Stream;
use crate::error::Error;
use crate::param::Params;

/// Named parameters, and whether the tower is to pack them.
pub(crate) trait Source {
    /// The vector of this name.
    ///
    /// # Panics
    /// When there is none: names and shapes are checked before towers are built.
    fn tensor1(&self, name: &str) -> Tensor<1>;

    /// The matrix of this name.
    ///
    /// # Panics
    /// As [`Source::tensor1`].
    fn tensor2(&self, name: &str) -> Tensor<2>;

    /// The table of token embeddings of this name.
    ///
    /// # Panics
    /// As [`Source::tensor1`].
    fn token_table(&self, name: &str) -> TokenTable {
        TokenTable::new(self.tensor2(name))
    }

    /// Whether there is a tensor of this name.
    fn contains(&self, name: &str) -> bool;

    /// The precision to pack weights in; none where they are to have gradients.
    fn packing(&self) -> Option<Precision>;

    /// The precision that products round their operands to where weights are not packed.
    fn rounding(&self) -> Precision;

    /// Whether blocks keep their inputs alone for the backward pass.
    fn recomputes(&self) -> bool;

    /// Where the tower is to read its blocks whenever inputs pass them, if it is not to keep them.
    fn stream(&self) -> Option<Stream> {
        None
    }
}

impl Source for Params {
    fn tensor1(&self, name: &str) -> Tensor<1> {
        Params::tensor1(self, name)
    }

    fn tensor2(&self, name: &str) -> Tensor<2> {
        Params::tensor2(self, name)
    }

    fn contains(&self, name: &str) -> bool {
        Params::contains(self, name)
    }

    fn packing(&self) -> Option<Precision> {
        None
    }

    fn rounding(&self) -> Precision {
        Params::rounding(self)
    }

    fn recomputes(&self) -> bool {
        Params::recomputes(self)
    }
}

/// The tensors of a model, wherever they lie.
pub(crate) trait Elements: Send {
    /// Calls `each` with the elements of the tensor of this name, some at a time.
    ///
    /// # Errors
    /// When they cannot be read, or no model can have them.
    fn pieces(&mut self, name: &str, each: &mut dyn FnMut(&[f32])) -> Result<(), Error>;
}

/// Parameters for inference on the CPU. Each is read when the tower asks for it, and freed once it is
/// packed: no more than one block of the tower lies in memory twice.
pub(crate) struct Loader<'a> {
    shapes: &'a BTreeMap<String, Vec<usize>>,
    elements: RefCell<&'a mut dyn Elements>,
    failed: RefCell<Option<Error>>,
    precision: Precision,
    stream: Option<Stream>,
}

impl<'a> Loader<'a> {
    /// Parameters of these shapes. With a `stream`, which reads the same tensors, the tower keeps no blocks.
    pub(crate) fn new(
        shapes: &'a BTreeMap<String, Vec<usize>>,
        precision: Precision,
        elements: &'a mut dyn Elements,
        stream: Option<Stream>,
    ) -> Loader<'a> {
        let (elements, failed) = (RefCell::new(elements), RefCell::new(None));
        Loader { shapes, elements, failed, precision, stream }
    }

    /// The tower that `new` makes of the parameters, or the first error in reading them.
    pub(crate) fn build<T>(self, new: impl FnOnce(&dyn Source) -> T) -> Result<T, Error> {
        match self.build_anyway(new) {
            (tower, None) => Ok(tower),
            (_, Some(error)) => Err(error),
        }
    }

    /// What `new` makes of the parameters, and the first error in reading them: the elements behind it are NaN.
    pub(super) fn build_anyway<T>(self, new: impl FnOnce(&dyn Source) -> T) -> (T, Option<Error>) {
        (new(&self), self.failed.into_inner())
    }

    /// Elements and first side of a tensor.
    fn size(&self, name: &str) -> [usize; 2] {
        let shape = self.shapes.get(name).expect("towers ask for the tensors of their config");
        [shape.iter().product(), shape.first().copied().unwrap_or(1).max(1)]
    }

    /// Has `each` called with the elements of a tensor, unless one before could not be read.
    fn read(&self, name: &str, each: &mut dyn FnMut(&[f32])) {
        let mut failed = self.failed.borrow_mut();
        if failed.is_none() {
            *failed = self.elements.borrow_mut().pieces(name, each).err();
        }
    }

    /// The elements. Constructors need no results: what cannot be read is NaN, in a tower that nobody will see or whose
    /// embeddings nobody gets.
    fn take(&self, name: &str) -> Vec<f32> {
        let [n, _] = self.size(name);
        let mut elements = Vec::with_capacity(n);
        self.read(name, &mut |piece| elements.extend_from_slice(piece));
        elements.resize(n, f32::NAN);
        elements
    }
}

impl Source for Loader<'_> {
    fn tensor1(&self, name: &str) -> Tensor<1> {
        let data = self.take(name);
        let n = data.len();
        Tensor::from_data(TensorData::new(data, [n]), &Device::flex())
    }

    fn tensor2(&self, name: &str) -> Tensor<2> {
        let [n, rows] = self.size(name);
        let data = self.take(name);
        Tensor::from_data(TensorData::new(data, [rows, n / rows]), &Device::flex())
    }

    /// In bf16 unless the weights are f32: the table is most of a text tower's memory, and a batch reads a few rows.
    fn token_table(&self, name: &str) -> TokenTable {
        let [n, rows] = self.size(name);
        match self.precision {
            Precision::F32 => TokenTable::new(self.tensor2(name)),
            Precision::Bf16 | Precision::Int8 => {
                let mut elements = Vec::with_capacity(n);
                self.read(name, &mut |piece| {
                    elements.extend(piece.iter().map(|&x| bf16::from_f32(x)));
                });
                elements.resize(n, bf16::NAN);
                TokenTable::rounded(elements, n / rows)
            }
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }

    fn packing(&self) -> Option<Precision> {
        Some(self.precision)
    }

    fn rounding(&self) -> Precision {
        Precision::F32
    }

    fn recomputes(&self) -> bool {
        false
    }

    fn stream(&self) -> Option<Stream> {
        self.stream.clone()
    }
}
