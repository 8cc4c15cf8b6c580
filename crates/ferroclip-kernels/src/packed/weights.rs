//! Weights in panels.

use std::ops::Range;

use rayon::prelude::*;

use super::columns::{self, Form};
use super::interleave::{Rows, STEP, interleave};
use super::lines::{Lines, bits};
use super::{Kind, PackedRows, Precision, Sizes, parts};
use crate::Isa;
use crate::gemm::Matrix;
use crate::isa::dispatch;
use crate::math::nearest;

/// A matrix of weights, `outputs` x `inputs`, packed for one instruction set and precision.
#[derive(Clone, Debug)]
pub struct PackedWeights {
    isa: Isa,
    precision: Precision,
    outputs: usize,
    inputs: usize,
    /// `[panels][stride][nr]`; a group is one f32, two bf16 or four 8-bit integers. For tiles of f32 a panel is
    /// `[nr / 16][k / 32][part][16][16]`, pairs of bf16 ([`parts`]).
    groups: Lines,
    /// Int8: what the integers of each output are multiplied with.
    scales: Vec<f32>,
    /// Int8: the sum of each output's integers, times 128: what moving the rows' integers to 0..=255
    /// adds to a sum.
    moved: Vec<i32>,
}

/// Weights below this number are packed by one thread.
const SERIAL_WEIGHTS: usize = 1 << 16;

impl PackedWeights {
    /// Packs a matrix whose row `j` holds the weights of output `j`; a large one on all threads of the
    /// pool.
    ///
    /// # Panics
    /// When the matrix is shorter than its shape.
    pub fn pack(isa: Isa, precision: Precision, shape: [usize; 2], weight: Matrix) -> Self {
        let mut packed = PackedWeights {
            isa,
            precision,
            outputs: 0,
            inputs: 0,
            groups: Lines::default(),
            scales: Vec::new(),
            moved: Vec::new(),
        };
        packed.repack(shape, weight);
        packed
    }

    /// Packs other weights into the same memory, as far as it goes.
    ///
    /// # Panics
    /// As [`PackedWeights::pack`].
    pub fn repack(&mut self, [outputs, inputs]: [usize; 2], weight: Matrix) {
        (self.outputs, self.inputs) = (outputs, inputs);
        let (isa, precision, nr, panels) = (self.isa, self.precision, self.nr(), self.panels());
        let stride = self.stride() * nr;
        self.groups.reserve(panels * stride);
        let with_scales = if precision == Precision::Int8 { panels * nr } else { 0 };
        // Outputs of no inputs set none.
        self.scales.clear();
        self.scales.resize(with_scales, 0.0);
        self.moved.clear();
        self.moved.resize(with_scales, 0);
        let mut scales = self.scales.chunks_mut(nr);
        let mut moved = self.moved.chunks_mut(nr);
        let groups = self.groups.groups_mut()[..panels * stride].chunks_mut(stride.max(1));
        let panels = groups.enumerate().map(|(j, groups)| Panel {
            columns: j * nr..outputs.min((j + 1) * nr),
            groups,
            scales: scales.next().unwrap_or_default(),
            moved: moved.next().unwrap_or_default(),
        });
        let pack = |memory: &mut Memory, mut panel: Panel| {
            panel.pack(isa, precision, inputs, weight, memory);
        };
        if outputs * inputs < SERIAL_WEIGHTS {
            let memory = &mut Memory::default();
            panels.for_each(|panel| pack(memory, panel));
        } else {
            let panels: Vec<Panel> = panels.collect();
            panels.into_par_iter().for_each_init(Memory::default, pack);
        }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The set that the panels are laid out for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The numbers that products are made of.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    pub(super) fn kind(&self) -> Kind {
        Kind::new(self.isa, self.precision)
    }

    pub(super) fn nr(&self) -> usize {
        Sizes::of(self.isa, self.kind()).nr
    }

    pub(super) fn panels(&self) -> usize {
        self.outputs.div_ceil(self.nr())
    }

    pub(super) fn fits(&self, rows: &PackedRows) -> bool {
        rows.made_for(self.isa, self.precision, self.inputs)
    }

    /// Stored groups of an output.
    fn depth(&self) -> usize {
        self.inputs.div_ceil(stored_elements(self.precision))
    }

    /// Groups from one panel to the next, for each of its columns.
    fn stride(&self) -> usize {
        match self.kind() {
            kind @ Kind::F32Tiles => kind.groups(self.inputs),
            _ => self.depth().next_multiple_of(STEP),
        }
    }

    /// The stored groups of a panel.
    pub(super) fn panel(&self, panel: usize) -> &[u32] {
        let nr = self.nr();
        let depth = if self.kind().tiles() { self.stride() } else { self.depth() };
        &self.groups.groups()[panel * self.stride() * nr..][..depth * nr]
    }

    /// The part of a bias that belongs to a panel.
    pub(super) fn of_panel<'a>(&self, panel: usize, bias: Option<&'a [f32]>) -> Option<&'a [f32]> {
        let columns = panel * self.nr()..self.outputs.min((panel + 1) * self.nr());
        bias.map(|bias| &bias[columns])
    }

    /// Whether a panel must be widened before it is multiplied.
    pub(super) fn widens(&self) -> bool {
        !self.kind().tiles() && stored_elements(self.precision) != self.kind().unit()[0]
    }

    /// Stored groups, widened to twice as many: a pair of bf16 to two f32, four 8-bit integers to two
    /// pairs of 16-bit ones.
    pub(super) fn widen(&self, stored: &[u32], out: &mut [u32]) {
        match self.precision {
            Precision::F32 => unreachable!("f32 is multiplied as it is stored"),
            Precision::Bf16 => widen_bf16(self.isa, self.nr(), stored, out),
            Precision::Int8 => widen_int8(self.isa, self.nr(), stored, out),
        }
    }

    /// Integer sums of a panel to numbers, in place; `row_scales` has one for each row of sums.
    pub(super) fn scale_sums(&self, panel: usize, row_scales: &[f32], sums: &mut [u32]) {
        let nr = self.nr();
        let columns = panel * nr..self.outputs.min((panel + 1) * nr);
        let moves = self.kind() == Kind::U8Quads;
        let moved = if moves { &self.moved[columns.clone()] } else { &[] };
        scale_sums(self.isa, nr, row_scales, &self.scales[columns], moved, sums);
    }
}

/// Memory of one thread while it packs.
#[derive(Default)]
struct Memory {
    plain: Vec<f32>,
    grouped: Vec<u32>,
    /// A panel of f32 before it is split into parts.
    whole: Lines,
}

/// A panel that is being packed.
struct Panel<'a> {
    columns: Range<usize>,
    groups: &'a mut [u32],
    scales: &'a mut [f32],
    moved: &'a mut [i32],
}

impl Panel<'_> {
    fn pack(
        &mut self,
        isa: Isa,
        precision: Precision,
        inputs: usize,
        weight: Matrix,
        memory: &mut Memory,
    ) {
        let kind = Kind::new(isa, precision);
        let nr = Sizes::of(isa, kind).nr;
        if kind == Kind::F32Tiles {
            let mut whole = std::mem::take(&mut memory.whole);
            let length = kind.elements(self.groups.len() / nr) * nr;
            whole.reserve(length);
            let groups = &mut whole.groups_mut()[..length];
            let columns = self.columns.clone();
            let mut panel = Panel { columns, groups, scales: &mut [], moved: &mut [] };
            panel.pack_groups(isa, precision, nr, inputs, weight, memory);
            parts::columns(isa, nr, panel.groups, self.groups);
            memory.whole = whole;
            return;
        }
        self.pack_groups(isa, precision, nr, inputs, weight, memory);
    }

    /// One group of f32, two bf16 or four integers after the other.
    fn pack_groups(
        &mut self,
        isa: Isa,
        precision: Precision,
        nr: usize,
        inputs: usize,
        weight: Matrix,
        memory: &mut Memory,
    ) {
        if weight.row == 1 && precision != Precision::Int8 {
            return self.pack_columns(isa, precision, nr, inputs, weight);
        }
        let depth = self.groups.len() / nr;
        if precision == Precision::F32 && weight.col == 1 && depth == inputs {
            let data = bits(&weight.data[self.columns.start * weight.row..]);
            let rows = Rows { data, held: self.columns.len(), stride: weight.row };
            return interleave(isa, nr, rows, depth, self.groups);
        }
        let width = depth * stored_elements(precision);
        memory.plain.clear();
        memory.plain.resize(nr * width, 0.0);
        for (row, output) in memory.plain.chunks_exact_mut(width.max(1)).zip(self.columns.clone()) {
            let from = &weight.data[output * weight.row..];
            match weight.col {
                1 => row[..inputs].copy_from_slice(&from[..inputs]),
                step => {
                    let from = from.iter().step_by(step);
                    row[..inputs].iter_mut().zip(from).for_each(|(to, &x)| *to = x);
                }
            }
        }
        memory.grouped.resize(nr * depth, 0);
        let grouped = &mut memory.grouped;
        group_weights(isa, precision, nr, &memory.plain, grouped, self.scales, self.moved);
        let rows = Rows { data: grouped, held: nr, stride: depth };
        interleave(isa, nr, rows, depth, self.groups);
    }

    /// Outputs that lie side by side already.
    fn pack_columns(
        &mut self,
        isa: Isa,
        precision: Precision,
        nr: usize,
        inputs: usize,
        weight: Matrix,
    ) {
        let form = if precision == Precision::Bf16 { Form::Pairs } else { Form::F32 };
        let data = &weight.data[self.columns.start..];
        let shape = [self.columns.len(), weight.col, inputs];
        columns::pack(isa, nr, form, data, shape, self.groups);
        // Tiles are multiplied whole.
        self.groups[inputs.div_ceil(stored_elements(precision)) * nr..].fill(0);
    }
}

/// Rows of weights to rows of groups.
#[inline(always)]
fn group_weights_body(
    precision: Precision,
    n: usize,
    plain: &[f32],
    grouped: &mut [u32],
    scales: &mut [f32],
    moved: &mut [i32],
) {
    match precision {
        Precision::F32 => plain.iter().zip(grouped).for_each(|(x, to)| *to = x.to_bits()),
        Precision::Bf16 => {
            let pairs = plain.as_chunks::<2>().0;
            pairs.iter().zip(grouped).for_each(|(x, to)| *to = bf16_pair(x[0], x[1]));
        }
        Precision::Int8 => {
            let (width, depth) = ((plain.len() / n).max(1), (grouped.len() / n).max(1));
            let rows = plain.chunks_exact(width).zip(grouped.chunks_exact_mut(depth));
            for (((row, grouped), scale), moved) in rows.zip(scales).zip(moved) {
                *scale = int8_scale(row);
                let inverse = inverse(*scale);
                let mut sum = 0;
                for (x, to) in row.as_chunks::<4>().0.iter().zip(grouped) {
                    let q = x.map(|x| quantized(x, inverse));
                    sum += q[0] + q[1] + q[2] + q[3];
                    let [a, b, c, d] = q.map(|q| q as u32 & 0xff);
                    *to = a | (b << 8) | (c << 16) | (d << 24);
                }
                *moved = 128 * sum;
            }
        }
    }
}

dispatch! {
    fn group_weights(
        precision: Precision, n: usize, plain: &[f32], grouped: &mut [u32],
        scales: &mut [f32], moved: &mut [i32],
    ) = group_weights_body unfused
}

/// Elements of a group as weights are stored.
fn stored_elements(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 1,
        Precision::Bf16 => 2,
        Precision::Int8 => 4,
    }
}

/// The nearest bf16, in the upper half of an f32; of two, the even one. Not for NaN, which no
/// weight is and which a row may only become when it is lost already.
#[inline(always)]
pub(super) fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000
}

#[inline(always)]
pub(super) fn bf16_pair(first: f32, second: f32) -> u32 {
    (bf16_bits(first) >> 16) | bf16_bits(second)
}

/// The scale that takes the largest of these numbers to 127; NaN where one is NaN or infinite, so that no sum of them is
/// a number.
#[inline(always)]
pub(super) fn int8_scale(row: &[f32]) -> f32 {
    let (mut largest, mut nothing) = ([0.0f32; 16], [0.0f32; 16]);
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for ((top, nothing), x) in largest.iter_mut().zip(&mut nothing).zip(chunk) {
            *top = if x.abs() > *top { x.abs() } else { *top };
            // 0, but for what is no number.
            *nothing += x * 0.0;
        }
    }
    let largest = largest.iter().chain(rest).fold(0.0, |top: f32, x| top.max(x.abs()));
    let nothing: f32 = nothing.iter().sum::<f32>() + rest.iter().map(|x| x * 0.0).sum::<f32>();
    largest / 127.0 + nothing
}

/// 1 / scale, and 0 for a row of zeros.
#[inline(always)]
pub(super) fn inverse(scale: f32) -> f32 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}

/// The nearest integer of -127 to 127. NaN, which only a row or weight that is lost already has, becomes
/// one of them, too.
#[inline(always)]
#[expect(clippy::manual_clamp, reason = "`clamp` keeps NaN, whose integer would be out of range")]
pub(super) fn quantized(x: f32, inverse: f32) -> i32 {
    nearest((x * inverse).max(-127.0).min(127.0))
}

#[inline(always)]
fn widen_bf16_body(nr: usize, stored: &[u32], out: &mut [u32]) {
    for (pair, out) in stored.chunks_exact(nr).zip(out.chunks_exact_mut(2 * nr)) {
        let (first, second) = out.split_at_mut(nr);
        for ((&x, first), second) in pair.iter().zip(first).zip(second) {
            *first = x << 16;
            *second = x & 0xffff_0000;
        }
    }
}

#[inline(always)]
fn widen_int8_body(nr: usize, stored: &[u32], out: &mut [u32]) {
    // Byte `at` of a group as a 16-bit integer.
    let signed = |x: u32, at: u32| ((x << (24 - 8 * at)) as i32 >> 24) as u32 & 0xffff;
    for (quad, out) in stored.chunks_exact(nr).zip(out.chunks_exact_mut(2 * nr)) {
        let (first, second) = out.split_at_mut(nr);
        for ((&x, first), second) in quad.iter().zip(first).zip(second) {
            *first = signed(x, 0) | (signed(x, 1) << 16);
            *second = signed(x, 2) | (signed(x, 3) << 16);
        }
    }
}

#[inline(always)]
fn scale_sums_body(nr: usize, row_scales: &[f32], scales: &[f32], moved: &[i32], sums: &mut [u32]) {
    for (sums, &row_scale) in sums.chunks_exact_mut(nr).zip(row_scales) {
        let sums = &mut sums[..scales.len()];
        for (sum, &moved) in sums.iter_mut().zip(moved) {
            *sum = (*sum as i32 - moved) as u32;
        }
        for (sum, &scale) in sums.iter_mut().zip(scales) {
            *sum = (*sum as i32 as f32 * (row_scale * scale)).to_bits();
        }
    }
}

dispatch! {
    fn widen_bf16(nr: usize, stored: &[u32], out: &mut [u32]) = widen_bf16_body unfused
}
dispatch! {
    fn widen_int8(nr: usize, stored: &[u32], out: &mut [u32]) = widen_int8_body unfused
}
dispatch! {
    fn scale_sums(
        nr: usize, row_scales: &[f32], scales: &[f32], moved: &[i32], sums: &mut [u32],
    ) = scale_sums_body unfused
}
