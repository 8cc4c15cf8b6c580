//! Where a tower takes its parameters from.

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::TensorData;
use ferroclip_ops::{Precision, TokenTable};
use half::bf16;

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

/// Gives the elements of the tensor of a name, some at a time.
type Read<'a> = dyn FnMut(&str, &mut dyn FnMut(&[f32])) -> Result<(), Error> + 'a;

/// Parameters for inference on the CPU. Each is read when the tower asks for it, and freed once it is
/// packed: no more than one block of the tower lies in memory twice.
pub(crate) struct Loader<'a> {
    shapes: BTreeMap<String, Vec<usize>>,
    read: RefCell<&'a mut Read<'a>>,
    failed: RefCell<Option<Error>>,
    precision: Precision,
}

impl<'a> Loader<'a> {
    /// Parameters of these shapes, which `read` gives by name.
    pub(crate) fn new(
        shapes: BTreeMap<String, Vec<usize>>,
        precision: Precision,
        read: &'a mut Read<'a>,
    ) -> Loader<'a> {
        Loader { shapes, read: RefCell::new(read), failed: RefCell::new(None), precision }
    }

    /// The tower that `new` makes of the parameters, or the first error in reading them.
    pub(crate) fn build<T>(self, new: impl FnOnce(&dyn Source) -> T) -> Result<T, Error> {
        let tower = new(&self);
        match self.failed.into_inner() {
            Some(error) => Err(error),
            None => Ok(tower),
        }
    }

    /// Elements and first side of a tensor.
    fn size(&self, name: &str) -> [usize; 2] {
        let shape = self.shapes.get(name).expect("towers ask for the tensors of their config");
        [shape.iter().product(), shape.first().copied().unwrap_or(1).max(1)]
    }

    /// The elements, each made into what is kept of it. After an error the others are zeros, in a tower that nobody
    /// will see; constructors need no results then.
    fn take<T: Clone + Default>(&self, name: &str, make: fn(f32) -> T) -> Vec<T> {
        let [n, _] = self.size(name);
        let mut elements = Vec::with_capacity(n);
        let mut failed = self.failed.borrow_mut();
        if failed.is_none() {
            let mut each = |piece: &[f32]| elements.extend(piece.iter().map(|&x| make(x)));
            *failed = (self.read.borrow_mut())(name, &mut each).err();
        }
        elements.resize(n, T::default());
        elements
    }
}

impl Source for Loader<'_> {
    fn tensor1(&self, name: &str) -> Tensor<1> {
        let data = self.take(name, |x| x);
        let n = data.len();
        Tensor::from_data(TensorData::new(data, [n]), &Device::flex())
    }

    fn tensor2(&self, name: &str) -> Tensor<2> {
        let [n, rows] = self.size(name);
        let data = self.take(name, |x| x);
        Tensor::from_data(TensorData::new(data, [rows, n / rows]), &Device::flex())
    }

    /// In bf16 unless the weights are f32: the table is most of a text tower's memory, and a batch reads a few rows.
    fn token_table(&self, name: &str) -> TokenTable {
        let [n, rows] = self.size(name);
        match self.precision {
            Precision::F32 => TokenTable::new(self.tensor2(name)),
            Precision::Bf16 | Precision::Int8 => {
                TokenTable::rounded(self.take(name, bf16::from_f32), n / rows)
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
}
