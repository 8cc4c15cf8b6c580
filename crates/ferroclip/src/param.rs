//! The parameters of a model: as plain numbers ([`Weights`]) and as Burn tensors ([`Params`]).
//!
//! Both are keyed by open_clip's checkpoint names, so that optimiser state, gradients, files and
//! fine-tuning rules all speak of `visual.proj` and need no other identity.

use std::collections::BTreeMap;
use std::collections::btree_map;

use burn::prelude::*;
use burn::tensor::{Gradients, TensorData};

use ferroclip_ops::Precision;

use crate::config::ModelConfig;
use crate::error::{Differences, Error};
use crate::towers::{Elements, Loader, Source};

/// A tensor as a checkpoint holds it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightTensor {
    /// Its dimensions; none for a single number.
    pub shape: Vec<usize>,
    /// Its elements, the last dimension fastest.
    pub data: Vec<f32>,
}

/// The first of these elements that the tensor of this name cannot have; see [`Weights::first_impossible`].
pub(crate) fn first_impossible(name: &str, data: &[f32]) -> Option<f32> {
    let mut values = data.iter().copied();
    match name {
        "logit_scale" => values.find(|value| !value.exp().is_finite()),
        name if name.ends_with(".running_var") => {
            values.find(|&value| !(value.is_finite() && value >= 0.0))
        }
        _ => first_not_finite(data),
    }
}

/// Whole chunks are looked at without branches: hundreds of millions of elements may pass here.
fn first_not_finite(data: &[f32]) -> Option<f32> {
    const CHUNK: usize = 1024;
    let finite = |x: f32| x.abs() < f32::INFINITY;
    let suspect = |chunk: &&[f32]| !chunk.iter().fold(true, |all, &x| all & finite(x));
    let chunk = data.chunks(CHUNK).find(suspect)?;
    chunk.iter().copied().find(|&x| !finite(x))
}

/// Whether the image tower needs the parameter of this name.
pub(crate) fn is_of_image(name: &str) -> bool {
    name.starts_with("visual.")
}

/// Named tensors in the order of their names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights(BTreeMap<String, WeightTensor>);

impl Weights {
    /// No tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&WeightTensor> {
        self.0.get(name)
    }

    /// The tensor of this name, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut WeightTensor> {
        self.0.get_mut(name)
    }

    /// Adds a tensor, or replaces the one of this name and returns it.
    ///
    /// # Panics
    /// When the number of elements does not match the shape.
    pub fn insert(
        &mut self,
        name: impl Into<String>,
        tensor: WeightTensor,
    ) -> Option<WeightTensor> {
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(tensor.data.len(), elements, "elements of a tensor of shape {:?}", tensor.shape);
        self.0.insert(name.into(), tensor)
    }

    /// Takes a tensor out.
    pub fn remove(&mut self, name: &str) -> Option<WeightTensor> {
        self.0.remove(name)
    }

    /// Names and tensors, in the order of the names.
    pub fn iter(&self) -> btree_map::Iter<'_, String, WeightTensor> {
        self.0.iter()
    }

    /// Names and tensors, to be changed.
    pub fn iter_mut(&mut self) -> btree_map::IterMut<'_, String, WeightTensor> {
        self.0.iter_mut()
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of elements that are trained: all but the running statistics of batch norms.
    pub fn n_parameters(&self) -> usize {
        let trained = self.0.iter().filter(|(name, _)| !is_buffer(name));
        trained.map(|(_, tensor)| tensor.data.len()).sum()
    }

    /// How names and shapes differ from those that the config asks for.
    pub fn differences(&self, config: &ModelConfig) -> Differences {
        let found = self.0.iter().map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice()));
        differences(&config.parameter_shapes(), found)
    }

    /// What `new` builds of these weights for inference, each of which is dropped once it is packed.
    pub(crate) fn build<T>(
        mut self,
        config: &ModelConfig,
        precision: Precision,
        new: impl FnOnce(&dyn Source) -> T,
    ) -> Result<T, Error> {
        Loader::new(&config.parameter_shapes(), precision, &mut self, None).build(new)
    }

    /// Name and value of the first element that no model can have: NaN, infinite, a variance below
    /// zero, or a `logit_scale` whose exponential is infinite.
    pub fn first_impossible(&self) -> Option<(&str, f32)> {
        let mut tensors = self.0.iter();
        tensors
            .find_map(|(name, tensor)| Some((name.as_str(), first_impossible(name, &tensor.data)?)))
    }
}

impl Elements for Weights {
    /// Each tensor is dropped behind it.
    fn pieces(&mut self, name: &str, each: &mut dyn FnMut(&[f32])) -> Result<(), Error> {
        each(&self.remove(name).unwrap_or_default().data);
        Ok(())
    }
}

impl Extend<(String, WeightTensor)> for Weights {
    fn extend<I: IntoIterator<Item = (String, WeightTensor)>>(&mut self, tensors: I) {
        for (name, tensor) in tensors {
            self.insert(name, tensor);
        }
    }
}

impl FromIterator<(String, WeightTensor)> for Weights {
    fn from_iter<I: IntoIterator<Item = (String, WeightTensor)>>(tensors: I) -> Self {
        let mut weights = Weights::new();
        weights.extend(tensors);
        weights
    }
}

impl IntoIterator for Weights {
    type Item = (String, WeightTensor);
    type IntoIter = btree_map::IntoIter<String, WeightTensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Weights {
    type Item = (&'a String, &'a WeightTensor);
    type IntoIter = btree_map::Iter<'a, String, WeightTensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Compares names and shapes. One number may be stored with no dimension or with one.
pub(crate) fn differences<'a>(
    expected: &BTreeMap<String, Vec<usize>>,
    found: impl Iterator<Item = (&'a str, &'a [usize])>,
) -> Differences {
    let found: BTreeMap<&str, &[usize]> = found.collect();
    let mut differences = Differences::default();
    for (name, shape) in expected {
        match found.get(name.as_str()) {
            None => differences.missing.push(name.clone()),
            Some(other) if shape == other || (shape.is_empty() && **other == [1]) => {}
            Some(other) => {
                differences.misshapen.push((name.clone(), shape.clone(), other.to_vec()));
            }
        }
    }
    let left_over = found.keys().filter(|name| !expected.contains_key(**name));
    differences.left_over = left_over.map(|name| (*name).to_owned()).collect();
    differences
}

/// Whether a tensor of this name is not trained: the running statistics of batch norms.
pub fn is_buffer(name: &str) -> bool {
    name.ends_with(".running_mean") || name.ends_with(".running_var")
}

/// A parameter on a device. The towers need no more than two dimensions: the patch convolution is
/// kept as the matrix `[width, 3 * patch height * patch width]`, other convolutions likewise,
/// `logit_scale` as `[1]`. The
/// elements are in the order of the checkpoint.
#[derive(Clone, Debug)]
pub enum ParamTensor {
    /// A vector.
    Rank1(Tensor<1>),
    /// A matrix.
    Rank2(Tensor<2>),
}

impl ParamTensor {
    fn new(name: &str, tensor: WeightTensor, device: &Device) -> Self {
        let n = tensor.data.len();
        let rows = tensor.shape.first().copied().unwrap_or(1).max(1);
        let track = device.is_autodiff() && !is_buffer(name);
        if tensor.shape.len() <= 1 {
            let data = TensorData::new(tensor.data, [n]);
            let x = Tensor::<1>::from_data(data, device);
            ParamTensor::Rank1(if track { x.require_grad() } else { x })
        } else {
            let data = TensorData::new(tensor.data, [rows, n / rows]);
            let x = Tensor::<2>::from_data(data, device);
            ParamTensor::Rank2(if track { x.require_grad() } else { x })
        }
    }

    fn into_elements(self) -> Vec<f32> {
        match self {
            ParamTensor::Rank1(x) => elements(x),
            ParamTensor::Rank2(x) => elements(x),
        }
    }

    fn len(&self) -> usize {
        match self {
            ParamTensor::Rank1(x) => x.dims()[0],
            ParamTensor::Rank2(x) => x.dims().iter().product(),
        }
    }
}

/// The elements of a float tensor of any device as f32.
pub(crate) fn elements<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    let data = x.into_data().convert::<f32>();
    data.try_into_vec().expect("the data was just converted to f32")
}

/// The parameters as tensors on one device.
#[derive(Clone, Debug)]
pub struct Params {
    tensors: BTreeMap<String, ParamTensor>,
    device: Device,
    rounding: Precision,
    recompute: bool,
}

impl Params {
    /// Copies the weights to a device. On an autodiff device every tensor but the running
    /// statistics of batch norms requires its gradient.
    pub fn new(weights: &Weights, device: &Device) -> Self {
        Params::from_weights(weights.clone(), device)
    }

    /// As [`Params::new`], but nothing is copied where the device is the CPU.
    pub fn from_weights(weights: Weights, device: &Device) -> Self {
        let tensors = weights.into_iter().map(|(name, weight)| {
            let tensor = ParamTensor::new(&name, weight, device);
            (name, tensor)
        });
        Params {
            tensors: tensors.collect(),
            device: device.clone(),
            rounding: Precision::F32,
            recompute: false,
        }
    }

    /// Where the tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Names and tensors, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ParamTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The vector of this name.
    ///
    /// # Panics
    /// When there is none: weights are checked against the config before towers are built.
    pub fn tensor1(&self, name: &str) -> Tensor<1> {
        match self.tensors.get(name) {
            Some(ParamTensor::Rank1(x)) => x.clone(),
            found => panic!("no vector `{name}` among the parameters: {found:?}"),
        }
    }

    /// The matrix of this name.
    ///
    /// # Panics
    /// As [`Params::tensor1`].
    pub fn tensor2(&self, name: &str) -> Tensor<2> {
        match self.tensors.get(name) {
            Some(ParamTensor::Rank2(x)) => x.clone(),
            found => panic!("no matrix `{name}` among the parameters: {found:?}"),
        }
    }

    /// Takes the gradient of one parameter after the other, with the elements in the checkpoint's order;
    /// `None` where a parameter had no part in the loss.
    pub fn gradients(
        &self,
        gradients: &mut Gradients,
        mut take: impl FnMut(&str, usize, Option<Vec<f32>>),
    ) {
        for (name, tensor) in &self.tensors {
            let gradient = match tensor {
                ParamTensor::Rank1(x) => x.grad_remove(gradients).map(elements),
                ParamTensor::Rank2(x) => x.grad_remove(gradients).map(elements),
            };
            take(name, tensor.len(), gradient);
        }
    }

    /// The same tensors without gradients; nothing is copied.
    pub fn inner(&self) -> Params {
        let inner = |tensor: &ParamTensor| match tensor {
            ParamTensor::Rank1(x) => ParamTensor::Rank1(x.clone().inner()),
            ParamTensor::Rank2(x) => ParamTensor::Rank2(x.clone().inner()),
        };
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.clone(), inner(tensor)));
        Params { tensors: tensors.collect(), device: self.device.clone().inner(), ..*self }
    }

    /// The parameters of towers whose layers round the operands of their products, forward and
    /// backward, to f32 or bf16 ([`Linear::rounded`](ferroclip_ops::Linear::rounded)).
    pub fn rounded(self, rounding: Precision) -> Params {
        Params { rounding, ..self }
    }

    pub(crate) fn rounding(&self) -> Precision {
        self.rounding
    }

    /// The parameters of towers whose blocks keep nothing but their inputs for the backward pass and
    /// compute the rest again: less memory, more time.
    pub fn recomputed(self, recompute: bool) -> Params {
        Params { recompute, ..self }
    }

    pub(crate) fn recomputes(&self) -> bool {
        self.recompute
    }

    /// The tensors as numbers again, in the shapes of the checkpoint; on the CPU a tensor that nothing
    /// else holds is not copied.
    ///
    /// # Panics
    /// When the parameters are not those of the config.
    pub fn into_weights(self, config: &ModelConfig) -> Weights {
        let mut shapes = config.parameter_shapes();
        let tensors = self.tensors.into_iter().map(|(name, tensor)| {
            let shape = shapes.remove(&name).expect("a parameter of the config");
            (name, WeightTensor { shape, data: tensor.into_elements() })
        });
        tensors.collect()
    }
}
