//! Parts of A and B, copied into panels that the kernel reads from one end to the other.

use super::{MR, Matrix, NR};
use crate::Isa;
use crate::isa::Level;

/// Columns `j0..j0 + NR` of rows `k0..k0 + depth` of B, as `[depth][NR]`, zeros beyond column n.
pub(crate) fn pack_b(
    isa: Isa,
    b: Matrix,
    k0: usize,
    depth: usize,
    n: usize,
    j0: usize,
    panel: &mut [f32],
) {
    let cols = NR.min(n - j0);
    let data = &b.data[k0 * b.row + j0 * b.col..];
    pack::<NR>(isa, data, [b.col, b.row], cols, depth, panel);
}

/// Rows `i0..i0 + rows` of A at `k0..k0 + depth`, as panels `[depth][MR]`, zeros beyond the rows.
pub(super) fn pack_a(
    isa: Isa,
    a: Matrix,
    i0: usize,
    rows: usize,
    k0: usize,
    depth: usize,
    packed: &mut Vec<f32>,
) {
    packed.resize(rows.div_ceil(MR) * MR * depth, 0.0);
    for (t, panel) in packed.chunks_exact_mut(MR * depth).enumerate() {
        let held = MR.min(rows - t * MR);
        let data = &a.data[(i0 + t * MR) * a.row + k0 * a.col..];
        pack::<MR>(isa, data, [a.row, a.col], held, depth, panel);
    }
}

/// `panel[p * W + r] = data[r * across + p * along]` for `r < held`, 0 from there to `W`.
fn pack<const W: usize>(
    isa: Isa,
    data: &[f32],
    [across, along]: [usize; 2],
    held: usize,
    depth: usize,
    panel: &mut [f32],
) {
    let places = panel.chunks_exact_mut(W).take(depth).enumerate();
    match (across, along) {
        (1, _) if held == W => {
            for (p, out) in places {
                // Of a fixed length, so that it is no call.
                let row: &[f32; W] = data[p * along..].first_chunk().expect("a row of W");
                out.copy_from_slice(row);
            }
        }
        (1, _) => {
            for (p, out) in places {
                let (row, rest) = out.split_at_mut(held);
                row.copy_from_slice(&data[p * along..p * along + held]);
                rest.fill(0.0);
            }
        }
        (_, 1) => {
            let rows: [&[f32]; W] = std::array::from_fn(|r| match r < held {
                true => &data[r * across..][..depth],
                false => &[],
            });
            interleave::<W>(isa, &rows, depth, panel);
        }
        _ => {
            for (p, out) in places {
                for (r, out) in out.iter_mut().enumerate() {
                    *out = if r < held { data[r * across + p * along] } else { 0.0 };
                }
            }
        }
    }
}

/// `panel[p * W + r] = rows[r][p]` for `p < depth`, 0 where a row is empty: a transpose.
pub(crate) fn interleave<const W: usize>(
    isa: Isa,
    rows: &[&[f32]; W],
    depth: usize,
    panel: &mut [f32],
) {
    assert!(rows.iter().all(|row| row.is_empty() || row.len() >= depth));
    assert!(depth * W <= panel.len());
    #[cfg(target_arch = "x86_64")]
    if let Level::Avx512(_) = isa.0 {
        for (i, rows) in rows.chunks(16).enumerate() {
            // SAFETY: the `Isa` value proves the features; the assertions above cover all that is
            // read and written.
            unsafe { super::avx512::interleave(rows, depth, panel.as_mut_ptr().add(16 * i), W) };
        }
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if let Level::Avx2 = isa.0 {
        for (i, rows) in rows.chunks(8).enumerate() {
            // SAFETY: as above.
            unsafe { super::avx2::interleave(rows, depth, panel.as_mut_ptr().add(8 * i), W) };
        }
        return;
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    for (r, row) in rows.iter().enumerate() {
        for p in 0..depth {
            panel[p * W + r] = row.get(p).copied().unwrap_or(0.0);
        }
    }
}
