//! The pipeline against what PIL, torchvision and open_clip made of the same files
//! (`fixtures/image/make.py`), and against bad files.

use std::path::PathBuf;

use ferroclip_kernels::Isa;
use ferroclip_kernels::resample::{Axis, Filter, Scratch, resample};
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Case {
    kind: String,
    file: String,
    shape: Vec<usize>,
    offset: usize,
    size: Option<OneOrMore<usize, 2>>,
    resize_mode: Option<ResizeMode>,
    interpolation: Option<Interpolation>,
    fill_color: Option<u8>,
    factor: Option<f64>,
    #[serde(rename = "box")]
    region: Option<[f32; 4]>,
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/image")
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join("pictures").join(name)).unwrap()
}

fn open(name: &str) -> Picture {
    Picture::decode(&file(name), &DecodeLimits::default()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The cases of a kind with their expected bytes.
fn cases(kind: &str) -> Vec<(Case, Vec<u8>)> {
    let text = std::fs::read_to_string(fixtures().join("cases.json")).unwrap();
    let all: Vec<Case> = serde_json::from_str(&text).unwrap();
    let expected = std::fs::read(fixtures().join("expected.bin")).unwrap();
    let width = if kind == "tensor" { 4 } else { 1 };
    let bytes = |case: &Case| {
        let n = case.shape.iter().product::<usize>() * width;
        expected[case.offset..case.offset + n].to_vec()
    };
    all.into_iter()
        .filter(|case| case.kind == kind)
        .map(|case| (bytes(&case), case))
        .map(|(b, c)| (c, b))
        .collect()
}

fn pipeline(case: &Case) -> ImagePipeline {
    let config = PreprocessConfig {
        size: case.size,
        interpolation: case.interpolation,
        resize_mode: case.resize_mode,
        fill_color: case.fill_color,
        ..PreprocessConfig::default()
    };
    config.resolve([1, 1]).unwrap()
}

fn difference(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let apart = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = apart.clone().map(u64::from).sum();
    (apart.max().unwrap_or(0), sum as f64 / a.len() as f64)
}

#[test]
fn resize_and_crop_give_the_bytes_of_the_references() {
    let mut wrong = Vec::new();
    let mut n_png = 0;
    for (case, expected) in cases("pipeline") {
        n_png += usize::from(case.file.ends_with(".png"));
        let image = pipeline(&case).rgb8(open(&case.file));
        assert_eq!([image.height, image.width, 3], case.shape[..], "{}", case.file);
        if image.pixels != expected {
            let apart = difference(&image.pixels, &expected);
            wrong.push(format!("{} {:?} {:?} {apart:?}", case.file, case.size, case.resize_mode));
        }
    }
    assert!(wrong.is_empty(), "{} cases differ: {wrong:#?}", wrong.len());
    assert!(n_png >= 200, "only {n_png} cases on PNG");
}

#[test]
fn decoding_gives_the_bytes_of_pil() {
    let cases = cases("decode");
    assert!(cases.len() > 60);
    for (case, expected) in cases {
        let picture = open(&case.file);
        assert_eq!([picture.height(), picture.width(), 3], case.shape[..], "{}", case.file);
        assert_eq!(picture.to_rgb(picture.pixels()), expected, "{}", case.file);
    }
}

/// JPEG leaves rounding and chroma upsampling to the decoder. Measured against libjpeg-turbo: at
/// most 4 for one sample and 0.3 on average (4:2:0); lossy WebP equals libwebp's on these files.
#[test]
fn lossy_formats_are_near_pil() {
    for (case, expected) in cases("lossy") {
        let picture = open(&case.file);
        assert_eq!([picture.height(), picture.width(), 3], case.shape[..], "{}", case.file);
        let (most, mean) = difference(&picture.to_rgb(picture.pixels()), &expected);
        assert!(most <= 4 && mean <= 0.5, "{}: {most}, {mean}", case.file);
    }
}

#[test]
fn exif_is_applied_when_asked_and_only_then() {
    for (case, expected) in cases("exif") {
        let picture = open(&case.file);
        let turned = picture.clone().apply_exif();
        assert_eq!([turned.height(), turned.width(), 3], case.shape[..], "{}", case.file);
        let (most, _) = difference(turned.pixels(), &expected);
        assert!(most <= if case.file.ends_with("jpg") { 3 } else { 0 }, "{}: {most}", case.file);
        if picture.orientation() > 1 {
            let plain = ImagePipeline { size: [8, 8], ..ImagePipeline::default() };
            let upright = ImagePipeline { exif: true, ..plain.clone() };
            assert_eq!(upright.rgb8(&picture), plain.rgb8(&turned));
            assert_ne!(upright.rgb8(&picture), plain.rgb8(&picture));
        }
        assert_eq!(turned.orientation(), 1);
    }
}

#[test]
fn pictures_are_rgb_first_where_that_is_asked_for() {
    let plain = ImagePipeline { size: [8, 8], ..ImagePipeline::default() };
    let first = ImagePipeline { rgb_first: true, ..plain.clone() };
    let rgba: Vec<u8> = (0..40 * 30 * 4).map(|i| (i * 37 % 251) as u8).collect();
    let rgb = rgba.chunks(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
    let of_rgb = plain.rgb8(Picture::from_rgb8(40, 30, rgb));
    let picture = Picture::from_rgba8(40, 30, rgba);
    assert_eq!(first.rgb8(&picture).pixels, of_rgb.pixels);
    assert_ne!(plain.rgb8(&picture).pixels, of_rgb.pixels, "alpha weighs colours");
}

#[test]
fn the_tensor_is_open_clips() {
    for (case, expected) in cases("tensor") {
        let pipeline = pipeline(&case);
        let mut tensor = vec![0.0; pipeline.tensor_len()];
        pipeline.tensor(&pipeline.rgb8(open(&case.file)), &mut tensor);
        let expected = expected.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let apart = tensor.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart <= 1e-6, "{}: {apart}", case.file);
    }
}

#[test]
fn boxes_are_pils() {
    for (case, expected) in cases("box") {
        let picture = open(&case.file);
        let [left, top, right, bottom] = case.region.unwrap();
        let filter = Filter::from(case.interpolation.unwrap());
        let x = Axis::new(picture.width(), case.shape[1]).from_box(left, right);
        let y = Axis::new(picture.height(), case.shape[0]).from_box(top, bottom);
        let mut out = vec![0; expected.len()];
        resample(
            Isa::active(),
            picture.pixels(),
            3,
            [&x, &y],
            filter,
            &mut Scratch::default(),
            &mut out,
        );
        assert_eq!(out, expected, "{:?} {:?}", case.region, case.interpolation);
    }
}

#[test]
fn colour_jitter_is_torchvisions() {
    for kind in ["grey", "brightness", "contrast", "saturation", "hue"] {
        for (case, expected) in cases(kind) {
            let mut pixels = open(&case.file).pixels().to_vec();
            let factor = case.factor.unwrap_or(0.0);
            match kind {
                "brightness" => color::adjust_brightness(&mut pixels, factor as f32),
                "contrast" => color::adjust_contrast(&mut pixels, factor as f32),
                "saturation" => color::adjust_saturation(&mut pixels, factor as f32),
                "hue" => color::adjust_hue(&mut pixels, factor),
                _ => color::to_grey(&mut pixels),
            }
            assert_eq!(difference(&pixels, &expected), (0, 0.0), "{kind} {factor}");
        }
    }
}

#[test]
fn the_config_is_open_clips_and_strict() {
    let text = r#"{"size": 224, "mode": "RGB", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear", "resize_mode": "squash", "fill_color": 7}"#;
    let pipeline: ImagePipeline = serde_json::from_str(text).unwrap();
    assert_eq!((pipeline.size, pipeline.mean, pipeline.fill_color), ([224, 224], [0.5; 3], 7));
    let again = serde_json::to_string(&pipeline).unwrap();
    assert_eq!(serde_json::from_str::<ImagePipeline>(&again).unwrap(), pipeline);
    assert!(again.starts_with(r#"{"size":224,"mode":"RGB""#), "{again}");

    let sparse: PreprocessConfig =
        serde_json::from_str(r#"{"mean": 0.5, "fill_color": null}"#).unwrap();
    let sparse = sparse.resolve([32, 48]).unwrap();
    assert_eq!((sparse.size, sparse.mean), ([32, 48], [0.5; 3]));
    let oblong = serde_json::to_string(&sparse).unwrap();
    assert_eq!(serde_json::from_str::<ImagePipeline>(&oblong).unwrap(), sparse);

    for (bad, names) in [
        (r#"{"sice": 224}"#, "sice"),
        (r#"{"size": 0}"#, "size"),
        (r#"{"size": [224, 224, 3]}"#, "list of numbers"),
        (r#"{"mode": "L"}"#, "`RGB`"),
        (r#"{"std": [0.5, 0.0, 0.5]}"#, "`std`"),
        (r#"{"mean": [0.5, 0.5]}"#, "list of numbers"),
        (r#"{"interpolation": "nearest"}"#, "nearest"),
        (r#"{"resize_mode": "crop"}"#, "crop"),
        (r#"{"fill_color": 256}"#, "256"),
    ] {
        let error = serde_json::from_str::<ImagePipeline>(bad).unwrap_err().to_string();
        assert!(error.contains(names), "{bad}: {error}");
    }
}

#[test]
fn extreme_shapes_cost_only_what_is_kept() {
    // 1 x 100,000 would be 64 x 6,400,000 before the crop; PIL runs out of memory there.
    let long = Picture::from_rgb8(1, 100_000, vec![77; 300_000]);
    for resize_mode in [ResizeMode::Shortest, ResizeMode::Longest, ResizeMode::Squash] {
        let pipeline = ImagePipeline { size: [64, 64], resize_mode, ..ImagePipeline::default() };
        let image = pipeline.rgb8(&long);
        assert_eq!(image.pixels.len(), 64 * 64 * 3);
        assert!(image.pixels.contains(&77));
    }
    let indices = vec![0; 1 << 20];
    let long = Picture::with_palette(1 << 20, 1, indices, vec![[9, 8, 7, 255]]);
    let image = ImagePipeline::default().rgb8(&long);
    assert_eq!(image.pixels[..3], [9, 8, 7]);
}

mod bad_files {
    use super::*;

    fn error(bytes: &[u8]) -> ImageError {
        let error = Picture::decode(bytes, &DecodeLimits::default()).unwrap_err();
        let text = error.to_string();
        assert!(!text.contains('\n') && text.len() < 200, "{text}");
        assert!(error.hint().is_some());
        error
    }

    #[test]
    fn files_that_are_no_pictures() {
        assert_eq!(error(b"").to_string(), "the picture file is empty");
        let text = error("a text in a file named .png".as_bytes()).to_string();
        assert_eq!(
            text,
            "not a picture in a known format: a text that begins with \"a text in a file nam\""
        );
        assert!(error(&[7, 0, 200]).to_string().ends_with("it begins with the bytes 07 00 c8"));
        assert!(error(b"<svg xmlns=").to_string().contains("SVG"));
        assert!(error(b"\0\0\0\x20ftypavif").to_string().contains("AVIF"));
        assert!(error(b"<!DOCTYPE html>").to_string().contains("HTML"));
    }

    #[test]
    fn every_truncated_file_is_an_error() {
        for name in [
            "rgb-0.png",
            "p-0.png",
            "1-0.png",
            "rgb-interlaced.png",
            "444.jpg",
            "progressive.jpg",
            "cmyk.jpg",
            "p.gif",
            "interlaced.gif",
            "rgb.bmp",
            "p.bmp",
            "rle8.bmp",
            "rgb.tif",
            "rgb-tiff_lzw.tif",
            "p-lzw.tif",
            "rgb-0.webp",
            "lossy.webp",
            "lossy-alpha.webp",
        ] {
            let whole = file(name);
            let step = (whole.len() / 97).max(1);
            // PNG's end chunk and checksum, a GIF's last marks and BMP's end code may be missing,
            // as in PIL.
            let spare = [(".png", 20), (".gif", 4), (".bmp", 2)];
            let spare = spare.iter().find(|(end, _)| name.ends_with(end)).map_or(0, |(_, n)| *n);
            for n in (0..whole.len() - spare).step_by(step) {
                let result = Picture::decode(&whole[..n], &DecodeLimits::default());
                let Err(error) = result else { panic!("{name} opens with {n} of {}", whole.len()) };
                assert!(!error.to_string().contains('\n'));
            }
        }
        for name in ["rgb-0.png", "444.jpg", "p.gif", "rgb.bmp", "rgb.tif", "rgb-0.webp"] {
            let whole = file(name);
            let text = error(&whole[..whole.len() * 2 / 3]).to_string();
            assert!(text.ends_with("file is truncated"), "{name}: {text}");
        }
    }

    #[test]
    fn sizes_are_refused_before_pixels_are_allocated() {
        let mut png = file("rgb-0.png");
        png[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        png[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        let expected = "the picture is too large: 60000 x 60000 pixels, limit 178956970";
        assert_eq!(error(&png).to_string(), expected);
        assert_eq!(error(&png[..26]).to_string(), expected);
        png[20..24].fill(0);
        assert_eq!(error(&png).to_string(), "the PNG picture has no pixels: 60000 x 0");

        let mut png = file("rgb-0.png");
        for side in [16, 20] {
            png[side..side + 4].copy_from_slice(&13_000u32.to_be_bytes());
        }
        let expected = "the picture is too large: its 13000 x 13000 pixels take 508 MB of memory, limit 480 MB";
        assert_eq!(error(&png).to_string(), expected);
        assert!(error(&png).hint().is_some_and(|hint| hint.contains("--max-pixels 169000000")));
        // What the user says holds, whatever it takes; this file ends too early.
        let said = DecodeLimits::of_pixels(Some(169_000_000));
        let found = Picture::decode(&png, &said).unwrap_err();
        assert!(!matches!(found, ImageError::TooMuchMemory { .. }), "{found}");

        let limits = DecodeLimits { max_pixels: 40 * 40, ..Default::default() };
        for name in ["rgb-0.png", "444.jpg", "small-frame.gif", "lossy.webp"] {
            let error = Picture::decode(&file(name), &limits).unwrap_err();
            assert!(
                matches!(error, ImageError::TooLarge { max_pixels: 1600, .. }),
                "{name}: {error}"
            );
        }
        let limits = DecodeLimits { max_pixels: 8 * 8, ..Default::default() };
        for name in ["rgb.bmp", "rgb.tif"] {
            let error = Picture::decode(&file(name), &limits).unwrap_err();
            assert!(matches!(error, ImageError::TooLarge { .. }), "{name}: {error}");
        }
        let mut bmp = file("rgb.bmp");
        bmp[22..26].copy_from_slice(&i32::MIN.to_le_bytes());
        assert!(matches!(error(&bmp), ImageError::TooLarge { .. }));
        bmp[18..22].fill(0);
        assert!(matches!(error(&bmp), ImageError::ZeroSize { .. }));
    }

    #[test]
    fn damage_anywhere_never_panics() {
        // A hostile file may be an error or a picture, within its limits.
        let limits = DecodeLimits { max_pixels: 1 << 20, ..Default::default() };
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize
        };
        for entry in std::fs::read_dir(fixtures().join("pictures")).unwrap() {
            let whole = std::fs::read(entry.unwrap().path()).unwrap();
            for _ in 0..rounds() {
                let mut bytes = whole.clone();
                for _ in 0..1 + next() % 4 {
                    // Headers are where lies hurt.
                    let range = if next() % 2 == 0 { bytes.len() } else { bytes.len().min(64) };
                    bytes[next() % range] = [0, 0xff, 0x7f, 1, next() as u8][next() % 5];
                }
                if next() % 4 == 0 {
                    bytes.truncate(next() % bytes.len());
                }
                if let Ok(picture) = Picture::decode(&bytes, &limits) {
                    assert!(picture.width() * picture.height() <= 1 << 20);
                }
            }
        }
    }

    /// `FERROCLIP_FUZZ_ROUNDS` asks for a longer search than the tests need.
    fn rounds() -> usize {
        let rounds = std::env::var("FERROCLIP_FUZZ_ROUNDS");
        rounds.ok().and_then(|n| n.parse().ok()).unwrap_or(30)
    }
}

/// `fixtures/checkpoints/pictures.py`: RGB before the resize, and the smaller one of two middle pixels.
#[test]
fn the_convention_of_transformers_gives_its_bytes() {
    #[derive(Deserialize)]
    struct Case {
        file: String,
        size: usize,
        resize_mode: ResizeMode,
        rgb: String,
    }
    let text = std::fs::read_to_string(fixtures().join("../checkpoints/pictures.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() > 20);
    let mut differ = 0;
    for Case { file, size, resize_mode, rgb } in cases {
        let ours = ImagePipeline { size: [size; 2], resize_mode, ..ImagePipeline::default() };
        let theirs = ImagePipeline { convention: Convention::HuggingFace, ..ours.clone() };
        let picture = open(&file);
        let hex = |pixels: &[u8]| pixels.iter().map(|v| format!("{v:02x}")).collect::<String>();
        assert_eq!(hex(&theirs.rgb8(&picture).pixels), rgb, "{file}, {size}, {resize_mode:?}");
        differ += usize::from(hex(&ours.rgb8(&picture).pixels) != rgb);
    }
    assert!(differ > 5, "the conventions give other bytes in {differ} cases");
}
