//! Where a tower takes its parameters from.

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::TensorData;
use ferroclip_ops::Precision;

use crate::error::Error;
use crate::param::{Params, WeightTensor};

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

/// Gives the tensor of a name.
type Read<'a> = dyn FnMut(&str) -> Result<WeightTensor, Error> + 'a;

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

    /// The elements and the first side. After an error they are zeros, in a tower that nobody will
    /// see; constructors need no results then.
    fn take(&self, name: &str) -> (Vec<f32>, usize) {
        let shape = self.shapes.get(name).expect("towers ask for the tensors of their config");
        let mut failed = self.failed.borrow_mut();
        let read = if failed.is_none() { Some((self.read.borrow_mut())(name)) } else { None };
        let data = match read {
            Some(Ok(tensor)) => tensor.data,
            Some(Err(error)) => {
                *failed = Some(error);
                Vec::new()
            }
            None => Vec::new(),
        };
        let n = shape.iter().product();
        let data = if data.is_empty() { vec![0.0; n] } else { data };
        (data, shape.first().copied().unwrap_or(1).max(1))
    }
}

impl Source for Loader<'_> {
    fn tensor1(&self, name: &str) -> Tensor<1> {
        let (data, _) = self.take(name);
        let n = data.len();
        Tensor::from_data(TensorData::new(data, [n]), &Device::flex())
    }

    fn tensor2(&self, name: &str) -> Tensor<2> {
        let (data, rows) = self.take(name);
        let columns = data.len() / rows;
        Tensor::from_data(TensorData::new(data, [rows, columns]), &Device::flex())
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
