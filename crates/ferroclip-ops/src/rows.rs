//! Making, choosing and reducing packed rows. Plain Burn operations: they move little memory.

use burn::prelude::*;
use burn::tensor::{Int, TensorData};

use crate::cpu::Cpu;
use crate::threads::{in_rows, zeros};
use crate::{Spans, TokenTable};

pub(crate) fn indices(values: impl IntoIterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.into_iter().map(|i| i as i32).collect();
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}

/// Rows of a batch of texts: the token's embedding plus that of its place in the text.
///
/// | value | shape |
/// |---|---|
/// | `table` | `[vocab_size, width]` |
/// | `positions` | `[context_length, width]` |
/// | `ids` | one for each row of `spans`, all below `vocab_size` |
/// | result | `[rows, width]` |
pub fn embed_tokens(
    table: &TokenTable,
    positions: &Tensor<2>,
    ids: &[u32],
    spans: &Spans,
) -> Tensor<2> {
    assert_eq!(ids.len(), spans.rows(), "one id for each row");
    let places = spans.iter().flat_map(|rows| 0..rows.len());
    table.rows(ids) + positions.clone().select(0, indices(places, &positions.device()))
}

/// The row that stands before the patch rows of an image.
#[derive(Clone, Copy, Debug)]
pub enum Lead<'a> {
    /// The same for every image, `[width]`: a class row.
    Shared(&'a Tensor<1>),
    /// One of its own for each image, `[n, width]`.
    Each(&'a Tensor<2>),
}

/// Rows of a batch of images: the leading row, where there is one, before the patch rows of each
/// image; the position table is added to both.
///
/// | value | shape |
/// |---|---|
/// | `patches` | `[n * grid_cells, width]`, after the patch projection |
/// | `positions` | `[rows of an image, width]` |
/// | result | `[n * rows of an image, width]` |
pub fn patch_rows(patches: Tensor<2>, lead: Option<Lead<'_>>, positions: &Tensor<2>) -> Tensor<2> {
    let [per_image, width] = positions.dims();
    let cells = per_image - usize::from(lead.is_some());
    let n = patches.dims()[0] / cells;
    if let Some(rows) = plain_patch_rows(&patches, lead, positions) {
        return rows;
    }
    let mut x: Tensor<3> = patches.reshape([n, cells, width]);
    if let Some(lead) = lead {
        let lead: Tensor<3> = match lead {
            Lead::Shared(row) => row.clone().reshape([1, 1, width]).expand([n, 1, width]),
            Lead::Each(rows) => rows.clone().reshape([n, 1, width]),
        };
        x = Tensor::cat(vec![lead, x], 1);
    }
    let x = x + positions.clone().unsqueeze::<3>();
    x.reshape([n * per_image, width])
}

/// [`patch_rows`] of tensors in CPU memory without a tape: no copy lies between, and no core waits.
fn plain_patch_rows(
    patches: &Tensor<2>,
    lead: Option<Lead<'_>>,
    positions: &Tensor<2>,
) -> Option<Tensor<2>> {
    let [per_image, width] = positions.dims();
    let cells = per_image - usize::from(lead.is_some());
    let n = patches.dims()[0] / cells;
    let (leads, first) = match lead {
        Some(Lead::Shared(row)) => (Some(Cpu::plain(row.clone())?), 0),
        Some(Lead::Each(rows)) => (Some(Cpu::plain(rows.clone())?), width),
        None => (None, 0),
    };
    let (patches, positions) = (Cpu::plain(patches.clone())?, Cpu::plain(positions.clone())?);
    let mut out = zeros(n * per_image * width);
    in_rows(&mut out, width, |first_row, rows| {
        for (row, out) in (first_row..).zip(rows.chunks_exact_mut(width)) {
            let (image, place) = (row / per_image, row % per_image);
            let of = match &leads {
                Some(leads) if place == 0 => &leads.data()[image * first..][..width],
                Some(_) => &patches.data()[(image * cells + place - 1) * width..][..width],
                None => &patches.data()[row * width..][..width],
            };
            let position = &positions.data()[place * width..][..width];
            out.iter_mut().zip(of).zip(position).for_each(|((out, x), p)| *out = x + p);
        }
    });
    Some(Cpu::from_vec(out, &[n * per_image, width]).into_tensor())
}

/// Rows that `write(i, row)` writes, `[n, width]`, in parallel.
pub fn written_rows(
    [n, width]: [usize; 2],
    device: &Device,
    write: impl Fn(usize, &mut [f32]) + Sync,
) -> Tensor<2> {
    let mut rows = zeros(n * width);
    in_rows(&mut rows, width, |first, rows| {
        (first..).zip(rows.chunks_exact_mut(width)).for_each(|(i, row)| write(i, row));
    });
    Tensor::from_data(TensorData::new(rows, [n, width]), device)
}

/// The rows at `chosen`, in that order: `[chosen.len(), width]`.
pub fn select_rows(x: Tensor<2>, chosen: &[usize]) -> Tensor<2> {
    let device = x.device();
    x.select(0, indices(chosen.iter().copied(), &device))
}

/// The mean of each span's rows from its row `skip` on: `[spans.count(), width]`.
///
/// All spans must have the same length, as those of images do.
pub fn mean_rows(x: Tensor<2>, spans: &Spans, skip: usize) -> Tensor<2> {
    let (n, len, width) = (spans.count(), spans.longest(), x.dims()[1]);
    assert_eq!(n * len, x.dims()[0], "spans of one length");
    let x: Tensor<3> = x.reshape([n, len, width]);
    x.slice([0..n, skip..len, 0..width]).mean_dim(1).reshape([n, width])
}

/// Each row divided by its Euclidean norm, `[rows, width]`. No epsilon, as in the references.
pub fn unit_rows(x: Tensor<2>) -> Tensor<2> {
    let norm = (x.clone() * x.clone()).sum_dim(1).sqrt();
    x / norm
}
