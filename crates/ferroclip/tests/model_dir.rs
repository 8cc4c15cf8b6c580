//! Model directories, whole and broken: each fault is one error that names the thing.

use std::fs;
use std::path::Path;

use ferroclip::{
    Clip, Config, Error, FloatFormat, ImageEncoder, ModelFiles, Picture, TextEncoder, WeightTensor,
    Weights, init,
};
use tempfile::TempDir;

const CONFIG: &str = r#"{
  "model_cfg": {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 8, "head_width": 4, "patch_size": 8},
    "text_cfg": {
      "context_length": 8, "vocab_size": 600, "hf_tokenizer_name": "tiny",
      "tokenizer_kwargs": {"clean": "lower"}, "width": 8, "heads": 2, "layers": 1
    }
  },
  "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
}"#;
const WEIGHTS_FILE: &str = "open_clip_model.safetensors";

fn config() -> Config {
    Config::from_json(CONFIG, "test").expect("a valid config")
}

fn parts() -> ModelFiles {
    let config = config();
    let weights = init(&config.model, 1);
    let tokenizer = config.new_tokenizer().expect("600 entries");
    ModelFiles { config, weights, tokenizer }
}

/// A directory with the model after a change to its weights.
fn directory(change: impl FnOnce(&mut Weights)) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut files = parts();
    change(&mut files.weights);
    files.save(folder.path(), FloatFormat::F32).expect("written");
    folder
}

fn open_error(path: &Path) -> Error {
    Clip::open(path).expect_err("the model is broken")
}

#[track_caller]
fn assert_error(error: &Error, kind: &str, parts: &[&str]) {
    let message = error.to_string();
    assert_eq!(error.kind(), kind, "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(!message.contains('\n'), "one line: {message}");
    assert!(error.hint().is_some(), "no hint: {message}");
}

#[test]
fn what_is_saved_is_what_is_read() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("new");
    let files = parts();
    files.save(&folder, FloatFormat::F32).expect("written");
    let again = ModelFiles::load(&folder).expect("read");
    assert_eq!(again.config, files.config);
    assert_eq!(again.weights, files.weights);
    assert_eq!(again.tokenizer.to_hf_json(), files.tokenizer.to_hf_json());
    let again = ModelFiles::load(&folder.join(WEIGHTS_FILE)).expect("the file beside its config");
    let copy = parent.path().join("copy");
    again.save(&copy, FloatFormat::F32).expect("written");
    for name in ["open_clip_config.json", WEIGHTS_FILE, "tokenizer.json"] {
        assert_eq!(fs::read(folder.join(name)).ok(), fs::read(copy.join(name)).ok(), "{name}");
    }
    assert_eq!(fs::read_dir(parent.path()).expect("a folder").count(), 2, "temporary files stay");
}

#[test]
fn half_precision_rounds_and_rereads_exactly() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut files = parts();
    files.save(folder.path(), FloatFormat::F16).expect("written");
    let rounded = ModelFiles::load(folder.path()).expect("read").weights;
    for ((name, a), (_, b)) in files.weights.iter().zip(&rounded) {
        let off = a.data.iter().zip(&b.data).map(|(a, b)| ((a - b) / a.abs().max(1e-3)).abs());
        assert!(off.fold(0.0, f32::max) <= 1.0 / 2048.0, "{name}");
    }
    files.weights = rounded.clone();
    files.save(folder.path(), FloatFormat::F16).expect("written over");
    assert_eq!(ModelFiles::load(folder.path()).expect("read").weights, rounded);
}

#[test]
fn faults_of_the_weights_are_named() {
    let folder = directory(|weights| {
        weights.remove("visual.proj");
    });
    assert_error(&open_error(folder.path()), "weights", &["missing: `visual.proj`", WEIGHTS_FILE]);

    let folder = directory(|weights| {
        weights.insert("extra.bias", WeightTensor { shape: vec![2], data: vec![0.0; 2] });
    });
    assert_error(&open_error(folder.path()), "weights", &["left over: `extra.bias`"]);

    let folder = directory(|weights| {
        weights.insert("ln_final.bias", WeightTensor { shape: vec![9], data: vec![0.0; 9] });
    });
    let expected = "wrong shape: `ln_final.bias` (expected [8], found [9])";
    assert_error(&open_error(folder.path()), "weights", &[expected]);

    let folder = directory(|weights| {
        weights.get_mut("text_projection").expect("present").data[3] = f32::NAN;
    });
    assert_error(&open_error(folder.path()), "weights", &["`text_projection` holds NaN"]);

    let folder = directory(|weights| {
        weights.get_mut("logit_scale").expect("present").data[0] = 100.0;
    });
    assert_error(&open_error(folder.path()), "weights", &["`logit_scale` holds 100"]);
}

#[test]
fn a_variance_is_never_negative() {
    let mut weights = ferroclip::Weights::new();
    let name = "visual.bn1.running_var";
    for (value, found) in [(0.0, None), (-0.5, Some((name, -0.5)))] {
        weights.insert(name, WeightTensor { shape: vec![1], data: vec![value] });
        assert_eq!(weights.first_impossible(), found);
    }
}

#[test]
fn embeddings_that_overflow_are_an_error() {
    let folder = directory(|weights| {
        weights.get_mut("text_projection").expect("present").data.fill(1e38);
    });
    let clip = Clip::open(folder.path()).expect("every weight is finite");
    let error = clip.embed_texts(&["a cat"]).expect_err("infinite");
    assert_error(&error, "weights", &["not finite"]);
}

#[test]
fn a_scale_with_one_dimension_and_openais_bookkeeping_are_read() {
    let folder = directory(|weights| {
        let scale = weights.get_mut("logit_scale").expect("present");
        *scale = WeightTensor { shape: vec![1], data: vec![3.0] };
        weights.insert("context_length", WeightTensor { shape: vec![], data: vec![8.0] });
    });
    assert_eq!(Clip::open(folder.path()).expect("read").logit_scale(), 3.0);
}

#[test]
fn damaged_files_are_errors_and_cost_no_memory() {
    let folder = directory(|_| {});
    let path = folder.path().join(WEIGHTS_FILE);
    let whole = fs::read(&path).expect("written");
    let broken: [(&[u8], &str); 7] = [
        (b"", "empty"),
        (b"abc", "header"),
        (&whole[..whole.len() - 1], "truncated"),
        (&whole[..100], "header"),
        (&[0xff; 64], "not a safetensors file"),
        (b"\x02\0\0\0\0\0\0\0{}", "missing: `ln_final.bias`"),
        (b"\x10\0\0\0\0\0\0\0\x89PNG not a header", "bad header"),
    ];
    for (bytes, part) in broken {
        fs::write(&path, bytes).expect("written");
        assert_error(&open_error(folder.path()), "weights", &[part, WEIGHTS_FILE]);
    }
    let huge = br#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}"#;
    let far = br#"{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}"#;
    let cases = [(huge.as_slice(), "does not match its shape"), (far, "before `a` does")];
    for (header, part) in cases {
        let length = (header.len() as u64).to_le_bytes();
        fs::write(&path, [&length, header, &[0; 16]].concat()).expect("written");
        assert_error(&open_error(folder.path()), "weights", &[part, WEIGHTS_FILE]);
    }
}

#[test]
fn tensors_that_repeat_overlap_or_leave_holes_are_refused() {
    let folder = directory(|_| {});
    let path = folder.path().join(WEIGHTS_FILE);
    let one = |name: &str, start: usize| {
        let end = start + 8;
        format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":[{start},{end}]}}"#)
    };
    // The sum of the lengths is that of the file in the first two.
    let cases = [
        ([one("a", 0), one("a", 8)], 16, "it has `a` twice"),
        ([one("a", 0), one("b", 4)], 16, "`b`"),
        ([one("a", 0), one("b", 12)], 20, "`b`"),
    ];
    for (tensors, n_bytes, part) in cases {
        let header = format!("{{{}}}", tensors.join(","));
        let length = (header.len() as u64).to_le_bytes();
        let bytes = [&length, header.as_bytes(), &vec![0; n_bytes]].concat();
        fs::write(&path, bytes).expect("written");
        let error = open_error(folder.path());
        assert_error(&error, "weights", &[part, WEIGHTS_FILE]);
        assert!(!error.to_string().contains("missing"), "{error}");
    }
}

#[test]
fn faults_of_the_config_are_named() {
    let cases = [
        (r#""embed_dim": 8"#, r#""embed_dim": 8, "embed_dims": 9"#, "unknown field `embed_dims`"),
        (
            r#""layers": 1, "width": 8, "head"#,
            r#""layers": 1, "ls_init_value": 0.1, "head"#,
            "ls_init_value",
        ),
        (r#""embed_dim": 8"#, r#""embed_dim": 0"#, "`embed_dim`: 0, expected 1 to"),
        (
            r#""width": 8, "heads": 2"#,
            r#""width": 8, "heads": 3"#,
            "`text_cfg.width`: 8, not a multiple",
        ),
        (r#""patch_size": 8"#, r#""patch_size": 17"#, "`vision_cfg.patch_size`: 17"),
        (
            r#""layers": 1, "width": 8, "head"#,
            r#""layers": 999999999, "width": 8, "head"#,
            "layers",
        ),
        (
            r#""layers": 1, "width": 8, "head"#,
            r#""layers": [1, 1, 1, 1], "width": 8, "head"#,
            "`vision_cfg.image_size`: 16, expected 32 to",
        ),
        (
            r#""image_size": 16, "layers": 1, "width": 8"#,
            r#""image_size": 64, "layers": [1, 0, 1, 1], "width": 8"#,
            "a ResNet has blocks in each stage",
        ),
        (
            r#""image_size": 16, "layers": 1, "width": 8"#,
            r#""image_size": 64, "no_ln_pre": true, "layers": [1, 1, 1, 1], "width": 8"#,
            "`vision_cfg.no_ln_pre` has no meaning for a ResNet",
        ),
        (r#""patch_size": 8"#, r#""patch_size": null"#, "`vision_cfg.patch_size`: null"),
        (r#""std": [0.5, 0.5, 0.5]"#, r#""std": [0.5, 0, 0.5]"#, "`preprocess_cfg`"),
        (r#""mean""#, r#""size": 99, "mean""#, "`preprocess_cfg.size`: [99, 99]"),
        (
            r#""preprocess_cfg""#,
            r#""templates": ["a photo"], "preprocess_cfg""#,
            "`a photo` has no `{}`",
        ),
        ("{", "", "invalid model config in `test`"),
    ];
    for (from, to, part) in cases {
        let json = CONFIG.replacen(from, to, 1);
        assert_ne!(json, CONFIG, "{from}");
        let error = Config::from_json(&json, "test").expect_err("a broken config");
        assert_error(&error, "config", &[part, "`test`"]);
    }
}

#[test]
fn missing_parts_are_named() {
    let missing = open_error(Path::new("/nonexistent/model"));
    assert_error(&missing, "io", &["/nonexistent/model"]);
    let empty = tempfile::tempdir().expect("a folder");
    assert_error(&open_error(empty.path()), "model", &["open_clip_config.json"]);
    let stray = empty.path().join("weights.safetensors");
    fs::write(&stray, b"x").expect("written");
    assert_error(
        &open_error(&stray),
        "weights",
        &["weights.safetensors", "ends within its header"],
    );
    let mut weights = ferroclip::Weights::new();
    weights.insert("logit_scale", WeightTensor { shape: vec![], data: vec![1.0] });
    weights.save(&stray, FloatFormat::F32).expect("written");
    assert_error(
        &open_error(&stray),
        "model",
        &["weights.safetensors", "no config beside it", "`visual."],
    );
    let folder = directory(|_| {});
    fs::remove_file(folder.path().join("tokenizer.json")).expect("removed");
    assert_error(&open_error(folder.path()), "io", &["tokenizer.json"]);
    fs::write(folder.path().join("tokenizer.json"), "[]").expect("written");
    assert_error(&open_error(folder.path()), "tokenizer", &["tokenizer.json"]);
    let error = Config::preset("ViT-Z-99").expect_err("no such preset");
    assert_error(&error, "config", &["`ViT-Z-99`"]);
    assert!(error.hint().expect("a hint").contains("ViT-B-32-quickgelu"));
}

#[test]
fn a_tokenizer_of_another_size_is_refused() {
    let ModelFiles { config, weights, .. } = parts();
    let other = ferroclip::Tokenizer::openai_prefix(700).expect("700 entries");
    let error = Clip::from_parts(config, weights, other).expect_err("sizes differ");
    assert_error(&error, "tokenizer", &["700", "600"]);
}

#[test]
fn presets_are_read_and_written_again() {
    for name in Config::preset_names() {
        let config = Config::preset(name).expect(name);
        assert_eq!(Config::from_json(&config.to_json(), name).expect(name), config);
        assert_eq!(config.model.quick_gelu, name.ends_with("-quickgelu"), "{name}");
    }
    // Parameters as open_clip counts them.
    let counts = [
        ("ViT-B-32", 151_277_313),
        ("ViT-L-14-336", 427_944_193),
        ("ViT-H-14", 986_109_441),
        ("RN50", 102_007_137),
        ("RN101", 119_688_033),
        ("RN50x4", 178_300_601),
        ("RN50x64", 623_258_305),
    ];
    for (name, n) in counts {
        let shapes = Config::preset(name).expect(name).model.parameter_shapes();
        let trained = shapes.iter().filter(|(name, _)| !ferroclip::is_buffer(name));
        let count: usize = trained.map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(count, n, "{name}");
    }
}

/// A directory whose tensors with names that are `spoilt` hold NaN.
fn spoilt(spoilt: impl Fn(&str) -> bool) -> TempDir {
    directory(|weights| {
        let tensors = weights.iter_mut().filter(|(name, _)| spoilt(name));
        tensors.for_each(|(_, tensor)| tensor.data.fill(f32::NAN));
    })
}

#[test]
fn one_tower_is_opened_without_reading_the_other() {
    let is_image = |name: &str| name.starts_with("visual.");
    let whole = Clip::open(directory(|_| {}).path()).expect("the whole model");
    let red = Picture::from_rgb8(20, 18, [255, 40, 0].repeat(20 * 18));

    let folder = spoilt(|name| !is_image(name));
    assert_error(&TextEncoder::open(folder.path()).expect_err("NaN"), "weights", &["holds NaN"]);
    // The image tower needs no vocabulary either.
    fs::remove_file(folder.path().join("tokenizer.json")).expect("removed");
    let image = ImageEncoder::open(folder.path()).expect("the image tower is sound");
    assert_eq!(image.embed_images([&red]).ok(), whole.embed_images([&red]).ok());

    let folder = spoilt(|name| is_image(name) || name == "logit_scale");
    assert_error(&open_error(folder.path()), "weights", &["holds NaN"]);
    assert_error(&ImageEncoder::open(folder.path()).expect_err("NaN"), "weights", &["holds NaN"]);
    let text = TextEncoder::open(folder.path()).expect("the text tower is sound");
    let texts = ["a cat", "two small dogs"];
    assert_eq!(text.embed_texts(&texts).ok(), whole.embed_texts(&texts).ok());
}

#[test]
fn one_tower_is_refused_where_the_other_does_not_fit() {
    let folder = directory(|weights| {
        weights.remove("visual.proj");
        weights.insert("ln_final.bias", WeightTensor { shape: vec![9], data: vec![0.0; 9] });
        weights.insert("extra.bias", WeightTensor { shape: vec![2], data: vec![0.0; 2] });
    });
    let image = ImageEncoder::open(folder.path()).expect_err("the header is checked whole");
    let text = TextEncoder::open(folder.path()).expect_err("the header is checked whole");
    for error in [image, text] {
        assert_error(&error, "weights", &["`visual.proj`", "`ln_final.bias`", "`extra.bias`"]);
    }
}

#[test]
fn the_towers_of_the_builtin_model_open_alone() {
    let whole = Clip::builtin().expect("the built-in model");
    let text = TextEncoder::builtin().expect("its text tower");
    assert_eq!(text.embed_texts(&["a cat"]).ok(), whole.embed_texts(&["a cat"]).ok());
    let red = Picture::from_rgb8(2, 2, [255, 0, 0].repeat(4));
    let image = ImageEncoder::builtin().expect("its image tower");
    assert_eq!(image.embed_images([&red]).ok(), whole.embed_images([&red]).ok());
}
