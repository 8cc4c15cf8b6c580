//! Kernels on operands that end at a page which may not be touched, or begin behind one: reading or
//! writing a single element too many ends the process. On every instruction set present.
#![cfg(unix)]

use std::ops::{Deref, DerefMut};

use ferroclip_kernels::{
    Activation, AdamStep, AttentionScratch, AttentionShape, BatchNorm, Finish, Isa, Maps, Matrix,
    Moments, Onto, PackedRows, PackedWeights, Precision, Prefix, Scratch, activation,
    activation_and_backward, activation_backward, adamw, attend, attend_backward, attend_row,
    attention, attention_backward, attention_pooled, attention_pooled_backward, contrastive_loss,
    conv3x3, conv3x3_rows, conv3x3_weight_gradient, dots, flipped_taps, gemm, gemm_serial, largest,
    layer_norm, layer_norm_backward, multiply, multiply_to_rows, resample, top_k,
};

/// Where the operand lies between two protected pages.
#[derive(Clone, Copy, Debug)]
enum Edge {
    Start,
    End,
}

/// Numbers between two protected pages.
struct Guarded {
    base: *mut u8,
    mapped: usize,
    data: *mut f32,
    len: usize,
}

impl Guarded {
    fn new(values: &[f32], edge: Edge) -> Guarded {
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let bytes = size_of_val(values);
        let inner = bytes.next_multiple_of(page);
        let mapped = inner + 2 * page;
        // SAFETY: a new private mapping; nothing else uses the memory.
        let base = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base = libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            let opened =
                libc::mprotect(base.byte_add(page), inner, libc::PROT_READ | libc::PROT_WRITE);
            assert_eq!(opened, 0);
            base.cast::<u8>()
        };
        let offset = match edge {
            Edge::Start => page,
            Edge::End => page + inner - bytes,
        };
        // SAFETY: `bytes` from `offset` on are mapped, writable and aligned to 4 bytes.
        let data = unsafe {
            let data = base.add(offset).cast::<f32>();
            data.copy_from_nonoverlapping(values.as_ptr(), values.len());
            data
        };
        Guarded { base, mapped, data, len: values.len() }
    }
}

impl Deref for Guarded {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `len` initialised numbers, which live as long as the mapping.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

impl Guarded {
    /// The same memory as samples.
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: every byte is initialised and may hold any value; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data.cast(), 4 * self.len) }
    }
}

impl DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows it any more.
        unsafe { libc::munmap(self.base.cast(), self.mapped) };
    }
}

/// Calls `test(isa, make)` for every set and edge; `make(n)` gives `n` guarded numbers.
fn everywhere(test: impl Fn(Isa, &dyn Fn(usize) -> Guarded)) {
    for isa in Isa::available() {
        for edge in [Edge::Start, Edge::End] {
            let values = |n: usize| -> Vec<f32> {
                (0..n).map(|i| ((i * 7919 % 2003) as f32 / 1001.5) - 1.0).collect()
            };
            test(isa, &|n| Guarded::new(&values(n), edge));
        }
    }
}

#[test]
fn products() {
    everywhere(|isa, make| {
        for [m, n, k] in [[1, 1, 1], [7, 17, 33], [13, 33, 5], [13, 33, 128], [25, 40, 801]] {
            let (a, b, mut c, bias) = (make(m * k), make(k * n), make(m * n), make(n));
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                for flags in 0..4 {
                    let am = match flags & 1 > 0 {
                        true => Matrix::rows(&a, m).transposed(),
                        false => Matrix::rows(&a, k),
                    };
                    let bm = match flags & 2 > 0 {
                        true => Matrix::rows(&b, k).transposed(),
                        false => Matrix::rows(&b, n),
                    };
                    for onto in [Onto::Nothing, Onto::Bias(&bias), Onto::Sum] {
                        gemm(isa, precision, [m, n, k], am, bm, &mut c, n, onto);
                    }
                }
                let weights = PackedWeights::pack(isa, precision, [n, k], Matrix::rows(&b, k));
                let mut rows = PackedRows::default();
                rows.fill_matrix(isa, precision, [m, k], Matrix::rows(&a, k));
                for kind in [Activation::Gelu, Activation::QuickGelu, Activation::GeluTanh] {
                    let finish = Finish::Activate(kind);
                    multiply(&weights, &rows, Some(&bias), finish, &mut c, n, true);
                    let (mut between, mut next) = (Vec::new(), PackedRows::default());
                    for split in [false, true] {
                        let bias = Some(&bias[..]);
                        multiply_to_rows(
                            &weights,
                            &rows,
                            bias,
                            finish,
                            &mut between,
                            &mut next,
                            split,
                        );
                    }
                }
                for split in [false, true] {
                    rows.fill_dense(isa, precision, [m, k], &a, split);
                }
                rows.fill(isa, precision, [m, k], |i, row| row.copy_from_slice(&a[i * k..][..k]));
                for finish in [Finish::Add, Finish::Rectify, Finish::AddRectified] {
                    multiply(&weights, &rows, Some(&bias), finish, &mut c, n, false);
                }
                let (am, bm) = (Matrix::rows(&a, k), Matrix::rows(&b, n));
                let mut scratch = Scratch::new(isa, precision);
                gemm_serial([m, n, k], am, bm, &mut c, n, Onto::Sum, &mut scratch);
            }
        }
    });
}

#[test]
fn attentions() {
    let offsets = [0, 1, 8, 20];
    let shape = AttentionShape { heads: 2, head_width: 5, causal: true };
    everywhere(|isa, make| {
        let (qkv, mut out, mut dqkv) = (make(20 * 30), make(200), make(600));
        let (keys, values) = (make(30), make(30));
        for prefix in [Prefix::default(), Prefix { keys: &keys, values: &values }] {
            attention(isa, shape, &offsets, &qkv, prefix, &mut out);
            attention_backward(isa, shape, &offsets, &qkv, prefix, &out, &mut dqkv);
        }
        let mut d_prefix = [vec![0.0; 30], vec![0.0; 30]];
        let prefix = Prefix { keys: &keys, values: &values };
        let mut scratch = AttentionScratch::new(isa);
        let (d, s) = (&mut d_prefix, &mut scratch);
        attend_backward(isa, shape, 1, &qkv, prefix, &out, &mut dqkv, d, s);
        let (mut head, mut scratch) = (make(20 * 5), AttentionScratch::new(isa));
        attend(isa, shape, 1, &qkv, Prefix::default(), &mut head, 5, &mut scratch);
        let (q, kv, mut out) = (make(30), make(400), make(30));
        attention_pooled(isa, shape, &offsets, &q, &kv, &mut out);
        let (dout, mut dq, mut dkv) = (make(30), make(30), make(400));
        attention_pooled_backward(isa, shape, &offsets, &q, &kv, &dout, &mut dq, &mut dkv);
        let (query, rows, mut out) = (make(10), make(70), make(10));
        attend_row(isa, 0.3, &query, &rows, &mut Vec::new(), &mut out);
    });
}

#[test]
fn norms_and_activations() {
    everywhere(|isa, make| {
        for width in [1, 5, 16, 33] {
            let (x, dy, mut y, mut dx) =
                (make(3 * width), make(3 * width), make(3 * width), make(3 * width));
            let (gain, bias, mut dgain, mut dbias) =
                (make(width), make(width), make(width), make(width));
            layer_norm(isa, &x, &gain, &bias, 1e-5, &mut y);
            layer_norm_backward(isa, &x, &gain, 1e-5, &dy, &mut dx, &mut dgain, &mut dbias);
            for kind in [Activation::Gelu, Activation::QuickGelu, Activation::GeluTanh] {
                activation(isa, kind, &x, &mut y);
                activation_backward(isa, kind, &x, &dy, &mut dx);
                activation_and_backward(isa, kind, &mut y, &mut dx);
            }
        }
    });
}

#[test]
fn batch_norms() {
    everywhere(|isa, make| {
        for width in [1, 5, 16, 33] {
            let (x, dy, mut y, mut dx) =
                (make(70 * width), make(70 * width), make(70 * width), make(70 * width));
            let moments = Moments::of(isa, &x, width);
            for rectified in [false, true] {
                let norm = BatchNorm::new(&moments, &make(width), &make(width), 1e-5, rectified);
                norm.forward(isa, &x, &mut y);
                norm.backward(isa, &x, &dy, &mut dx);
                norm.backward_frozen(isa, &x, &dy, &mut dx);
            }
        }
    });
}

#[test]
fn similarities_and_losses() {
    everywhere(|isa, make| {
        for dim in [1, 5, 32, 67] {
            let (a, b) = (make(4 * dim), make(7 * dim));
            assert_eq!(dots(isa, &a, &b, dim).len(), 28);
            assert_eq!(top_k(isa, &a, &b, dim, 3).len(), 4);
            assert_eq!(largest(&b, 3).len(), 3);
            assert!(contrastive_loss(isa, &a, &b[..4 * dim], &[0, 1, 2, 3], 1.0).value.is_finite());
        }
    });
}

#[test]
fn optimiser() {
    everywhere(|isa, make| {
        for n in [1, 7, 16, 37] {
            let (gradient, mut weight, mut first) = (make(n), make(n), make(n));
            let mut second = make(n);
            let step = AdamStep::new(1, 1e-3, [0.9, 0.98], 1e-6, 0.2);
            adamw(isa, step, &gradient, &mut weight, &mut first, &mut second);
        }
    });
}

#[test]
fn convolutions() {
    let maps = Maps { n: 2, height: 3, width: 5 };
    everywhere(|isa, make| {
        for channels @ [inputs, outputs] in [[1, 1], [3, 17], [8, 33]] {
            let (x, w, mut y) = (make(30 * inputs), make(9 * inputs * outputs), make(30 * outputs));
            conv3x3(isa, maps, channels, &x, &w, &mut y);
            let mut packed = PackedRows::default();
            for split in [false, true] {
                let shape = [17, 9 * inputs];
                conv3x3_rows(isa, Precision::F32, maps, 13, shape, &x, &mut packed, split);
            }
            let mut dw = make(9 * inputs * outputs);
            conv3x3_weight_gradient(isa, maps, channels, &x, &y, &mut dw);
            assert_eq!(flipped_taps(channels, &w).len(), w.len());
        }
    });
}

#[test]
fn pictures() {
    use resample::{Axis, Filter};
    everywhere(|isa, make| {
        for channels in 1..=4 {
            for [from, to] in [[[8, 6], [5, 4]], [[3, 4], [8, 9]], [[40, 2], [4, 2]]] {
                let axes = [Axis::new(from[0], to[0]), Axis::new(from[1], to[1])];
                let floats = |sides: [usize; 2]| sides[0] * sides[1] * channels / 4;
                let (mut source, mut out) = (make(floats(from)), make(floats(to)));
                for filter in [Filter::Bilinear, Filter::Bicubic] {
                    let scratch = &mut resample::Scratch::default();
                    let axes = [&axes[0], &axes[1]];
                    let (source, out) = (&*source.bytes(), out.bytes());
                    resample::resample(isa, source, channels, axes, filter, scratch, out);
                }
            }
        }
    });
}
