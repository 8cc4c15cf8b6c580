//! The fast path's door: CPU f32 tensors as slices, results and gradients as tensors.
//!
//! An operation asks [`operands`] for its inputs. Where all of them are f32 on the CPU backend it
//! gets them back as [`Operands`], computes with the kernels, and makes its result with
//! [`Operands::finish`], which records the hand-written backward if autodiff is on. Otherwise it
//! gets `None` and takes the portable path.

use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::ops::{Backward, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, BackendTypes, Flex};
use burn::tensor::{DType, Tensor, TensorData};

/// A contiguous f32 tensor in CPU memory. Cloning shares the memory.
#[derive(Clone, Debug)]
pub(crate) struct Cpu(FlexTensor);

impl Cpu {
    fn new(tensor: FlexTensor) -> Option<Cpu> {
        (tensor.dtype() == DType::F32).then(|| Cpu(tensor.to_contiguous()))
    }

    /// A tensor over these values.
    pub(crate) fn from_vec(values: Vec<f32>, shape: &[usize]) -> Cpu {
        Cpu(FlexTensor::from_data(TensorData::new(values, shape.to_vec())))
    }

    /// The elements, row by row.
    pub(crate) fn data(&self) -> &[f32] {
        self.0.as_slice().expect("made contiguous when it was taken")
    }

    /// An operand of packed weights, whatever its rank. Where nothing else holds the tensor,
    /// [`Cpu::data_mut`] then changes it in place.
    ///
    /// # Panics
    /// When it is no f32 tensor in CPU memory, or on a tape: packed weights have no gradient.
    pub(crate) fn packed_operand<const D: usize>(x: Tensor<D>) -> Cpu {
        Cpu::plain(x).expect("packed weights take f32 tensors in CPU memory, without gradients")
    }

    /// An f32 tensor in CPU memory that is not on a tape.
    pub(crate) fn plain<const D: usize>(x: Tensor<D>) -> Option<Cpu> {
        x.try_into_primitive::<Flex>().ok().and_then(Cpu::new)
    }

    /// The elements, row by row, to be changed; copied first where another tensor shares them.
    pub(crate) fn data_mut(&mut self) -> &mut [f32] {
        let (start, n) = (self.0.layout().start_offset(), self.data().len());
        &mut self.0.storage_mut()[start..start + n]
    }

    /// A tensor without a tape.
    pub(crate) fn into_tensor<const D: usize>(self) -> Tensor<D> {
        Tensor::from_primitive::<Flex>(self.0)
    }

    /// The gradient that arrived for an operation's result.
    pub(crate) fn gradient(tensor: FlexTensor) -> Cpu {
        Cpu::new(tensor).expect("the gradient of an f32 tensor is f32")
    }

    /// The primitive that Burn registers as a gradient.
    pub(crate) fn into_primitive(self) -> FlexTensor {
        self.0
    }
}

/// A tensor with its place in the gradient graph.
type Tracked = <Autodiff<Flex> as BackendTypes>::FloatTensorPrimitive;

/// One input of an operation, whatever its rank.
pub(crate) enum Input {
    Tracked(Tracked),
    Plain(FlexTensor),
    Elsewhere,
}

/// The input's primitive, if it lives in CPU memory.
pub(crate) fn input<const D: usize>(x: &Tensor<D>) -> Input {
    if let Ok(x) = x.clone().try_into_primitive::<Autodiff<Flex>>() {
        return Input::Tracked(x);
    }
    match x.clone().try_into_primitive::<Flex>() {
        Ok(x) => Input::Plain(x),
        Err(_) => Input::Elsewhere,
    }
}

/// The inputs of an operation on the fast path.
pub(crate) struct Operands<const N: usize> {
    /// The values.
    pub(crate) values: [Cpu; N],
    tracked: Option<[Tracked; N]>,
}

/// The inputs as CPU memory, or `None` for the portable path.
pub(crate) fn operands<const N: usize>(inputs: [Input; N]) -> Option<Operands<N>> {
    let mut values = Vec::with_capacity(N);
    let mut tracked = Vec::with_capacity(N);
    for input in inputs {
        match input {
            Input::Tracked(x) => {
                values.push(Cpu::new(x.primitive().clone())?);
                tracked.push(x);
            }
            Input::Plain(x) => values.push(Cpu::new(x)?),
            Input::Elsewhere => return None,
        }
    }
    let values = values.try_into().ok()?;
    if tracked.is_empty() {
        return Some(Operands { values, tracked: None });
    }
    // Inputs of both kinds in one operation would be our bug; Burn's own path reports it.
    let tracked = tracked.try_into().ok()?;
    Some(Operands { values, tracked: Some(tracked) })
}

impl<const N: usize> Operands<N> {
    /// Whether a gradient may be wanted.
    pub(crate) fn is_tracked(&self) -> bool {
        self.tracked.is_some()
    }

    /// The operation's result; `backward` is recorded with `state` where a gradient is wanted.
    pub(crate) fn finish<B>(self, result: Cpu, backward: B, state: B::State) -> Tensor<2>
    where
        B: Backward<Flex, N>,
    {
        let Some(tracked) = self.tracked else {
            return Tensor::from_primitive::<Flex>(result.0);
        };
        let nodes = tracked.each_ref().map(Tracked::node);
        let prepared = backward.prepare::<NoCheckpointing>(nodes).compute_bound().stateful();
        Tensor::from_primitive::<Autodiff<Flex>>(match prepared {
            OpsKind::Tracked(prepared) => prepared.finish(state, result.0),
            OpsKind::UnTracked(prepared) => prepared.finish(result.0),
        })
    }
}
