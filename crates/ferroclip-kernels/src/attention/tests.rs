//! Attention against f64, and its gradients against differences of that.

use super::*;

/// Attention of `q[i]` over `k[..seen(i)]`, in f64, one head of one span.
fn head(
    q: &[Vec<f64>],
    k: &[Vec<f64>],
    v: &[Vec<f64>],
    seen: impl Fn(usize) -> usize,
) -> Vec<Vec<f64>> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = (q[0].len() as f64).powf(-0.5);
    let row = |i: usize| {
        let e: Vec<f64> = k[..seen(i)].iter().map(|k| (scale * dot(&q[i], k)).exp()).collect();
        let sum: f64 = e.iter().sum();
        (0..v[0].len()).map(|c| e.iter().zip(v).map(|(e, v)| e / sum * v[c]).sum()).collect()
    };
    (0..q.len()).map(row).collect()
}

const SHAPE: AttentionShape = AttentionShape { heads: 2, head_width: 5, causal: false };
const OFFSETS: [usize; 4] = [0, 1, 8, 20];

fn values(n: usize) -> Vec<f64> {
    (0..n).map(|i| ((i * i + 3 * i) as f64 * 0.37).sin()).collect()
}

/// `prefix` holds the rows of the keys, then those of the values.
fn full(shape: AttentionShape, qkv: &[f64], prefix: &[f64]) -> Vec<f64> {
    let (w, d) = (10, 5);
    let before = prefix.len() / (2 * w);
    let mut out = vec![0.0; qkv.len() / 3];
    for span in OFFSETS.windows(2) {
        for h in 0..2 {
            let third = |t: usize| -> Vec<Vec<f64>> {
                (span[0]..span[1]).map(|r| qkv[r * 3 * w + t * w + h * d..][..d].to_vec()).collect()
            };
            let after_prefix = |t: usize| -> Vec<Vec<f64>> {
                let rows = prefix[(t - 1) * before * w..][..before * w].chunks(w);
                rows.map(|row| row[h * d..][..d].to_vec()).chain(third(t)).collect()
            };
            let all = before + span[1] - span[0];
            let seen = |i| if shape.causal { before + i + 1 } else { all };
            let o = head(&third(0), &after_prefix(1), &after_prefix(2), seen);
            for (i, o) in o.iter().enumerate() {
                out[(span[0] + i) * w + h * d..][..d].copy_from_slice(o);
            }
        }
    }
    out
}

fn pooled_reference(q: &[f64], kv: &[f64]) -> Vec<f64> {
    let (w, d) = (10, 5);
    let mut out = vec![0.0; q.len()];
    for (i, span) in OFFSETS.windows(2).enumerate() {
        for h in 0..2 {
            let half = |t: usize| -> Vec<Vec<f64>> {
                (span[0]..span[1]).map(|r| kv[r * 2 * w + t * w + h * d..][..d].to_vec()).collect()
            };
            let o = head(&[q[i * w + h * d..][..d].to_vec()], &half(0), &half(1), |_| {
                span[1] - span[0]
            });
            out[i * w + h * d..][..d].copy_from_slice(&o[0]);
        }
    }
    out
}

fn f32s(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

/// d(sum of f(x) weights)/dx by central differences.
fn slopes(x: &[f64], weights: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let loss = |x: &[f64]| f(x).iter().zip(weights).map(|(y, w)| y * w).sum::<f64>();
    let at = |i: usize, by: f64| {
        let mut x = x.to_vec();
        x[i] += by;
        loss(&x)
    };
    (0..x.len()).map(|i| (at(i, 1e-5) - at(i, -1e-5)) / 2e-5).collect()
}

fn close(got: &[f32], want: &[f64]) {
    let worst = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
    assert!(worst < 3e-6, "{worst}");
}

#[test]
fn full_and_causal_match_f64() {
    let (qkv, dout) = (values(20 * 30), values(20 * 10));
    for isa in Isa::available() {
        for (causal, before) in [(false, 0), (true, 0), (false, 3), (true, 4)] {
            let shape = AttentionShape { causal, ..SHAPE };
            let both: Vec<f64> = values(2 * before * 10).iter().map(|x| x * 1.5).collect();
            let singles = f32s(&both);
            let (keys, values) = singles.split_at(before * 10);
            let prefix = Prefix { keys, values };
            let (x, d) = (f32s(&qkv), f32s(&dout));
            let (mut out, mut dqkv) = (vec![0.0; 200], vec![0.0; 600]);
            attention(isa, shape, &OFFSETS, &x, prefix, &mut out);
            close(&out, &full(shape, &qkv, &both));
            let d_prefix = attention_backward(isa, shape, &OFFSETS, &x, prefix, &d, &mut dqkv);
            close(&dqkv, &slopes(&qkv, &dout, |x| full(shape, x, &both)));
            let slopes = slopes(&both, &dout, |prefix| full(shape, &qkv, prefix));
            close(&d_prefix.concat(), &slopes);
        }
    }
}

#[test]
fn pooled_matches_f64() {
    let (q, kv, dout) = (values(3 * 10), values(20 * 20), values(30));
    for isa in Isa::available() {
        let mut out = vec![0.0; 30];
        attention_pooled(isa, SHAPE, &OFFSETS, &f32s(&q), &f32s(&kv), &mut out);
        close(&out, &pooled_reference(&q, &kv));
        let (mut dq, mut dkv) = (vec![0.0; 30], vec![0.0; 400]);
        attention_pooled_backward(
            isa,
            SHAPE,
            &OFFSETS,
            &f32s(&q),
            &f32s(&kv),
            &f32s(&dout),
            &mut dq,
            &mut dkv,
        );
        close(&dq, &slopes(&q, &dout, |q| pooled_reference(q, &kv)));
        close(&dkv, &slopes(&kv, &dout, |kv| pooled_reference(&q, kv)));
    }
}

/// A batch is its spans, however many there are.
#[test]
fn gradients_of_many_spans_are_those_of_each() {
    let offsets: Vec<usize> = (0..=40).map(|i| 3 * i).collect();
    let (x, d) = (f32s(&values(120 * 30)), f32s(&values(120 * 10)));
    let prefix_values = f32s(&values(40));
    let prefix = Prefix { keys: &prefix_values[..20], values: &prefix_values[20..] };
    for isa in Isa::available() {
        let mut all = vec![0.0; x.len()];
        let d_prefix = attention_backward(isa, SHAPE, &offsets, &x, prefix, &d, &mut all);
        let mut sums = vec![0.0; 40];
        for (i, all) in all.chunks_exact(90).enumerate() {
            let (x, d, mut one) = (&x[i * 90..][..90], &d[i * 30..][..30], vec![0.0; 90]);
            let found = attention_backward(isa, SHAPE, &[0, 3], x, prefix, d, &mut one);
            assert_eq!(all, one, "{isa:?}, span {i}");
            sums.iter_mut().zip(found.concat()).for_each(|(sum, d)| *sum += f64::from(d));
        }
        for (got, want) in d_prefix.concat().iter().zip(sums) {
            assert!((f64::from(*got) - want).abs() < 1e-4, "{isa:?}: {got} {want}");
        }
    }
}
