use rand_chacha::rand_core::SeedableRng;

use super::*;
use crate::image::{ImagePipeline, ResizeMode};

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn ramp(width: usize, height: usize) -> Picture {
    let at = |i: usize| [i % width * 255 / width, i / width * 255 / height, i * 7 % 256];
    Picture::from_rgb8(width, height, (0..width * height).flat_map(at).map(|v| v as u8).collect())
}

/// An opaque red square in the middle of nothing.
fn sticker(side: usize) -> Picture {
    let inside = |v: usize| (side / 4..side * 3 / 4).contains(&v);
    let at = |i: usize| match inside(i % side) && inside(i / side) {
        true => [255, 0, 0, 255],
        false => [0, 0, 0, 0],
    };
    Picture::from_rgba8(side, side, (0..side * side).flat_map(at).collect())
}

fn view(augment: &Augment, picture: &Picture, size: [usize; 2], seed: u64) -> Rgb8Image {
    augment.validate().unwrap();
    augment.rgb8(picture, size, Interpolation::Bicubic, &mut rng(seed))
}

fn full() -> Augment {
    Augment {
        scale: [0.4, 1.0],
        rotate_degrees: 20.0,
        translate: [0.1, 0.1],
        zoom: [0.7, 1.2],
        shear_degrees: 10.0,
        flip_prob: 0.5,
        color_jitter: [0.4, 0.4, 0.4, 0.1],
        color_jitter_prob: 0.8,
        gray_scale_prob: 0.1,
        background_prob: 0.9,
        background_gradient_prob: 0.5,
        ..Augment::default()
    }
}

fn mean_apart(a: &[u8], b: &[u8]) -> f64 {
    let sum: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.len() as f64
}

#[test]
fn none_is_the_plain_resize() {
    for picture in [ramp(53, 31), sticker(40)] {
        let squash = ImagePipeline {
            size: [24, 32],
            resize_mode: ResizeMode::Squash,
            ..ImagePipeline::default()
        };
        assert_eq!(view(&Augment::none(), &picture, [24, 32], 1), squash.rgb8(&picture));
    }
}

#[test]
fn equal_generators_give_equal_pictures_and_others_do_not() {
    let picture = sticker(96);
    let one = view(&full(), &picture, [64, 64], 5);
    assert_eq!(one, view(&full(), &picture, [64, 64], 5));
    assert_ne!(one, view(&full(), &picture, [64, 64], 6));
}

/// Pins the draws: a change of order or arithmetic changes training runs.
#[test]
fn the_draws_are_stable() {
    let mut generator = rng(3);
    let augment = Augment { scale: [0.2, 0.8], ..Augment::default() };
    let crops: Vec<_> = (0..3).map(|_| augment.draw_crop([200, 100], &mut generator)).collect();
    assert_eq!(crops, CROPS);
}

const CROPS: [[usize; 4]; 3] = [[72, 0, 79, 100], [36, 3, 74, 87], [79, 2, 102, 89]];

#[test]
fn crops_keep_to_their_ranges() {
    let augment = Augment { scale: [0.2, 0.8], ratio: [0.5, 2.0], ..Augment::default() };
    let mut generator = rng(1);
    for _ in 0..2_000 {
        let [left, top, w, h] = augment.draw_crop([120, 90], &mut generator);
        assert!(w > 0 && h > 0 && left + w <= 120 && top + h <= 90);
        let (area, ratio) = ((w * h) as f64 / (120.0 * 90.0), w as f64 / h as f64);
        assert!((0.19..0.81).contains(&area), "{area}");
        assert!((0.48..2.1).contains(&ratio), "{ratio}");
    }
    // No rectangle of these ratios and areas fits: torchvision's fallback.
    assert_eq!(Augment::default().draw_crop([1000, 10], &mut generator), [493, 0, 13, 10]);
    assert_eq!(Augment::default().draw_crop([1, 1], &mut generator), [0, 0, 1, 1]);
}

#[test]
fn mirroring_twice_changes_nothing() {
    let flip = Augment { flip_prob: 1.0, ..Augment::none() };
    let picture = ramp(33, 20);
    let once = view(&flip, &picture, [20, 33], 1);
    assert_ne!(once.pixels, picture.pixels());
    let once = Picture::from_rgb8(33, 20, once.pixels);
    assert_eq!(view(&flip, &once, [20, 33], 2).pixels, picture.pixels());
}

#[test]
fn a_mapping_that_moves_nothing_samples_the_picture_itself() {
    // The smallest zoom that is not exactly none takes the way of the affine mappings.
    let almost = Augment { zoom: [1.000_001, 1.000_001], ..Augment::none() };
    for picture in [ramp(48, 40), sticker(48)] {
        let size = [picture.height(), picture.width()];
        let plain = view(&Augment::none(), &picture, size, 1);
        assert!(mean_apart(&view(&almost, &picture, size, 1).pixels, &plain.pixels) < 0.01);
    }
    // Shrinking stays near the antialiased resize, also where the source is shrunk first.
    let picture =
        Picture::from_rgb8(640, 480, ramp(640, 480).pixels().iter().map(|v| v / 2).collect());
    for side in [24, 48, 200] {
        let smooth = view(&Augment::none(), &picture, [side, side], 1);
        let sampled = view(&almost, &picture, [side, side], 1);
        let apart = mean_apart(&sampled.pixels, &smooth.pixels);
        assert!(apart < 3.0, "{side}: {apart}");
    }
}

#[test]
fn a_quarter_turn_is_exact() {
    let mapping =
        Affine { angle: std::f64::consts::FRAC_PI_2, shear: 0.0, shift: [0.0; 2], zoom: 1.0 };
    let picture = ramp(16, 16);
    let turned = sample(&picture, &mapping.inverse([0, 0, 16, 16], [16, 16]), [16, 16], None);
    for y in 0..16 {
        for x in 0..16 {
            // Angles turn clockwise, since rows run downwards.
            let from = ((15 - x) * 16 + y) * 3;
            let to = (y * 16 + x) * 3;
            assert!(mean_apart(&turned[to..to + 3], &picture.pixels()[from..from + 3]) < 0.5);
        }
    }
}

#[test]
fn shifts_move_by_shares_of_the_size() {
    let moved = Affine { angle: 0.0, shear: 0.0, shift: [4.0, -2.0], zoom: 1.0 };
    let mapping = moved.inverse([0, 0, 16, 16], [16, 16]);
    let point = |x: f64, y: f64| {
        [0, 1].map(|i| mapping.start[i] + mapping.at_x[i] * x + mapping.at_y[i] * y)
    };
    assert_eq!(point(4.0, 0.0), [0.0, 2.0]);
}

#[test]
fn backgrounds_show_only_through_alpha() {
    let behind = Augment { background_prob: 1.0, ..Augment::none() };
    let gradient = Augment { background_gradient_prob: 1.0, ..behind.clone() };
    for (augment, n_colors) in [(&behind, 1), (&gradient, 20)] {
        let image = view(augment, &sticker(32), [32, 32], 9);
        let mut outside = std::collections::HashSet::new();
        for (i, pixel) in image.pixels.chunks_exact(3).enumerate() {
            let inside = |v: usize| (8..24).contains(&v);
            match inside(i % 32) && inside(i / 32) {
                true => assert_eq!(pixel, [255, 0, 0]),
                false => drop(outside.insert(pixel.to_vec())),
            }
        }
        assert!(if n_colors == 1 { outside.len() == 1 } else { outside.len() > n_colors });
    }
    // Nothing shows behind an opaque picture.
    assert_eq!(view(&behind, &ramp(32, 32), [32, 32], 9).pixels, ramp(32, 32).pixels());
    // A palette's and a single colour's transparency count, too.
    let palette = Picture::with_palette(2, 1, vec![0, 1], vec![[1, 2, 3, 0], [4, 5, 6, 255]]);
    let keyed = Picture::from_rgb8(2, 1, vec![1, 2, 3, 4, 5, 6]).with_transparent(Some([1, 2, 3]));
    for picture in [palette, keyed] {
        let image = view(&behind, &picture, [1, 2], 9);
        assert_ne!(image.pixels[..3], [1, 2, 3]);
        assert_eq!(image.pixels[3..], [4, 5, 6]);
        assert_eq!(view(&Augment::none(), &picture, [1, 2], 9).pixels, [1, 2, 3, 4, 5, 6]);
    }
}

#[test]
fn sampling_and_resizing_agree_about_alpha() {
    let soft = resize_samples_of(&sticker(64), 48);
    for background_prob in [0.0, 1.0] {
        let background = Background {
            from: [10.0, 200.0, 60.0],
            to: [10.0, 200.0, 60.0],
            direction: [1.0, 0.0],
        };
        let background = (background_prob > 0.0).then_some(background);
        let a = resize_crop(&soft, [0, 0, 48, 48], [48, 48], Filter::Bicubic, background.as_ref());
        let none = Affine { angle: 0.0, shear: 0.0, shift: [0.0; 2], zoom: 1.0 };
        let b =
            sample(&soft, &none.inverse([0, 0, 48, 48], [48, 48]), [48, 48], background.as_ref());
        assert!(mean_apart(&a, &b) < 0.6, "{}", mean_apart(&a, &b));
    }
}

fn resize_samples_of(picture: &Picture, side: usize) -> Picture {
    let axes = [Axis::new(picture.width(), side), Axis::new(picture.height(), side)];
    let pixels = crate::image::resize::resize_samples(picture.into(), &axes, Filter::Bilinear);
    Picture::from_rgba8(side, side, pixels)
}

#[test]
fn grey_and_jitter_do_what_they_say() {
    let grey = Augment { gray_scale_prob: 1.0, ..Augment::none() };
    let image = view(&grey, &ramp(20, 20), [20, 20], 1);
    assert!(image.pixels.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]));

    let bright = Augment { color_jitter: [0.5, 0.0, 0.0, 0.0], ..Augment::none() };
    let flat = Picture::from_rgb8(4, 4, vec![100; 48]);
    let levels: Vec<u8> =
        (0..300).map(|seed| view(&bright, &flat, [4, 4], seed).pixels[0]).collect();
    assert!(levels.iter().all(|v| (50..=150).contains(v)));
    assert!(levels.iter().any(|&v| v < 60) && levels.iter().any(|&v| v > 140));

    let never = Augment { color_jitter_prob: 0.0, ..bright };
    assert_eq!(view(&never, &flat, [4, 4], 1).pixels, [100; 48]);
}

#[test]
fn every_kind_of_picture_survives_everything() {
    let odd = [ramp(1, 1), ramp(1, 300), ramp(300, 1), sticker(4), sticker(257)];
    let wild = Augment {
        scale: [0.01, 1.0],
        ratio: [0.01, 100.0],
        rotate_degrees: 180.0,
        translate: [1.0, 1.0],
        zoom: [0.01, 100.0],
        shear_degrees: 80.0,
        ..full()
    };
    for picture in &odd {
        for seed in 0..60 {
            for augment in [&wild, &full()] {
                assert_eq!(view(augment, picture, [9, 14], seed).pixels.len(), 9 * 14 * 3);
            }
        }
    }
}

#[test]
fn settings_are_strict() {
    let read = |text: &str| serde_json::from_str::<Augment>(text);
    assert_eq!(read("{}").unwrap(), Augment::default());
    assert!(read(r#"{"flip": 0.5}"#).unwrap_err().to_string().contains("flip"));
    let written = serde_json::to_string(&full()).unwrap();
    assert_eq!(read(&written).unwrap(), full());
    for (text, field) in [
        (r#"{"scale": [0.0, 1.0]}"#, "scale"),
        (r#"{"scale": [0.9, 0.5]}"#, "scale"),
        (r#"{"flip_prob": 1.5}"#, "flip_prob"),
        (r#"{"color_jitter": [0.1, 0.1, 0.1, 0.6]}"#, "color_jitter"),
        (r#"{"zoom": [0.0, 1.0]}"#, "zoom"),
        (r#"{"translate": [-0.1, 0.0]}"#, "translate"),
    ] {
        let error = read(text).unwrap().validate().unwrap_err().to_string();
        assert!(error.contains(field), "{text}: {error}");
    }
}

/// What evaluation shows of a picture: hidden colours as they are where it has the model's size,
/// black where it must be resized.
#[test]
fn hidden_colours_show_where_evaluation_shows_them() {
    let hidden = Picture::from_rgba8(8, 8, [200, 100, 50, 0].repeat(64));
    let middle = |augment: &Augment, side: usize| {
        let pixels = view(augment, &hidden, [side, side], 3).pixels;
        pixels[(side / 2 * side + side / 2) * 3..][..3].to_vec()
    };
    let turned = Augment { rotate_degrees: 20.0, ..Augment::default() };
    for augment in [Augment::default(), turned.clone()] {
        assert_eq!(middle(&augment, 8), [200, 100, 50]);
        assert_eq!(middle(&augment, 4), [0, 0, 0]);
    }
    let behind = Augment { background_prob: 1.0, ..turned };
    assert_ne!(middle(&behind, 8), [200, 100, 50]);
}
