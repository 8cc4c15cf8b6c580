//! Checkpoints of other programs: `fixtures/checkpoints` holds small models that OpenAI's code, open_clip and transformers wrote,
//! and the unit embeddings that each computed from its own files.

use std::fs;
use std::path::{Path, PathBuf};

use ferroclip::{
    Error, ImageEncoder, ModelFiles, OpenOptions, Picture, Precision, Program, convert, verify,
};
use tempfile::TempDir;

/// The bound of the design; PyTorch's own f32 noise is below 1e-6.
const TOLERANCE: f32 = 1e-5;

/// Name, and the file of the model where it is not the directory.
const CASES: [(&str, Option<&str>); 14] = [
    ("openai-vit", Some("model.pt")),
    ("openai-resnet", Some("model.pt")),
    ("openai-state-dict", Some("model.pt")),
    ("open-clip-bin", None),
    ("open-clip-training", Some("epoch_1.pt")),
    ("open-clip-compiled", Some("checkpoint.pt")),
    ("open-clip-script", Some("model.pt")),
    ("hf-sharded", None),
    ("hf-bin", None),
    ("siglip", None),
    ("siglip2", None),
    ("hf-siglip", None),
    ("clipa", None),
    ("no-mask", None),
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/checkpoints").join(name)
}

fn model(name: &str, file: Option<&str>) -> PathBuf {
    file.map_or(folder(name), |file| folder(name).join(file))
}

/// OpenAI's plain dictionaries do not tell that they are QuickGELU: a config beside them does.
fn assumes_gelu(name: &str) -> bool {
    name == "openai-state-dict"
}

#[test]
fn every_dialect_gives_its_programs_numbers() {
    for (name, file) in CASES {
        let found = verify(&model(name, file), &folder(name), Precision::F32).expect(name);
        let (image, text) = (found.image.expect("images"), found.text.expect("texts"));
        assert_eq!((image.n, text.n), (2, 6), "{name}");
        let worst = image.largest.max(text.largest);
        match assumes_gelu(name) {
            false => assert!(worst <= TOLERANCE, "{name}: {worst}"),
            true => assert!(worst > 1e-3, "{name}: the activation makes no difference"),
        }
    }
}

#[test]
fn towers_that_are_streamed_give_the_same_numbers() {
    for (name, file) in CASES {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let [kept, streamed] = [false, true].map(|streamed| {
                let options = OpenOptions { precision, streamed, ..OpenOptions::default() };
                let found = verify(&model(name, file), &folder(name), options).expect(name);
                (found.image.expect("images").largest, found.text.expect("texts").largest)
            });
            assert_eq!(kept, streamed, "{name} {precision:?}");
        }
    }
}

/// What is left of the file ends within the last blocks of the tower.
#[test]
fn a_file_that_is_cut_before_a_streamed_pass_is_an_error() {
    let work = TempDir::new().expect("a folder");
    for each in folder("siglip").read_dir().expect("a folder").flatten() {
        fs::copy(each.path(), work.path().join(each.file_name())).expect("copied");
    }
    let streamed = OpenOptions { streamed: true, ..OpenOptions::default() };
    let encoder = ImageEncoder::open_with(work.path(), streamed).expect("whole");
    let picture = Picture::from_rgb8(2, 2, vec![90; 12]);
    let before = encoder.embed_images([&picture]).expect("whole");
    let again = encoder.embed_images([&picture]).expect("whole");
    assert_eq!(before, again);
    let weights = work.path().join("open_clip_model.safetensors");
    let file = fs::OpenOptions::new().write(true).open(weights).expect("opened");
    file.set_len(file.metadata().expect("a file").len() / 2).expect("cut");
    let shown = encoder.embed_images([&picture]).expect_err("it is cut").to_string();
    assert!(shown.contains("it was cut while it was read"), "{shown}");
}

#[test]
fn positions_are_resized_as_open_clip_does_it() {
    let model = folder("resized");
    for (reference, image_size, context_length) in
        [("larger.safetensors", 56, 24), ("smaller.safetensors", 16, 12)]
    {
        let sizes = (Some(image_size), Some(context_length));
        let options =
            OpenOptions { image_size: sizes.0, context_length: sizes.1, ..Default::default() };
        let found = verify(&model, &model.join(reference), options).expect(reference);
        assert!(found.image.expect("images").largest <= TOLERANCE, "{reference}: {found:?}");
        assert!(found.text.expect("texts").largest <= TOLERANCE, "{reference}: {found:?}");
        let image = ImageEncoder::open_with(&model, options).expect(reference);
        assert!(
            image.origin().assumptions.iter().any(|line| line.starts_with("image positions: "))
        );
        assert_eq!(image.config().preprocess.size, [image_size; 2]);
    }
    let refused = |model: &Path, options: OpenOptions, part: &str| {
        let error = ImageEncoder::open_with(model, options).expect_err("refused");
        assert!(error.to_string().contains(part), "`{part}` is not in: {error}");
    };
    let side = |side| OpenOptions { image_size: Some(side), ..OpenOptions::default() };
    refused(&folder("openai-resnet").join("model.pt"), side(96), "a ResNet");
    refused(&model, side(7), "`vision_cfg.patch_size`: 8");
    refused(&model, side(1 << 40), "`vision_cfg.image_size`");
    refused(&model, OpenOptions { context_length: Some(1 << 40), ..side(32) }, "context_length");
}

/// Each with the tower that it has.
const LONE_TOWERS: [(&str, &str); 6] = [
    ("hf-text", "text"),
    ("hf-text-bare", "text"),
    ("hf-siglip-text", "text"),
    ("hf-vision", "image"),
    ("hf-vision-bare", "image"),
    ("hf-siglip-vision", "image"),
];

#[test]
fn models_of_one_tower_give_their_programs_numbers() {
    for (name, tower) in LONE_TOWERS {
        let found = verify(&folder(name), &folder(name), Precision::F32).expect(name);
        let (has, other) = match tower {
            "image" => (found.image, found.text),
            _ => (found.text, found.image),
        };
        assert!(has.expect(tower).largest <= TOLERANCE && other.is_none(), "{name}: {has:?}");
    }
}

#[test]
fn what_needs_the_other_tower_is_refused() {
    let (lacks_image, lacks_text) = ("has no image tower", "has no text tower");
    assert_error(&folder("hf-text"), "model", lacks_image);
    assert_error(&folder("hf-vision"), "model", lacks_text);
    let error = ImageEncoder::open(folder("hf-text")).expect_err("texts alone");
    assert!(error.to_string().contains(lacks_image), "{error}");
    assert!(ImageEncoder::open(folder("hf-vision")).is_ok());
    let out = tempfile::tempdir().expect("a folder");
    let error = convert(&folder("hf-vision"), Program::OpenClip, &out.path().join("out"));
    assert!(error.expect_err("half a model").to_string().contains(lacks_text));
    let error = verify(&folder("hf-vision"), &folder("hf-text"), Precision::F32);
    assert!(error.expect_err("texts of another").to_string().contains(lacks_text));
}

#[test]
fn a_dictionary_of_openai_is_exact_with_the_config_beside_it() {
    let copy = tempfile::tempdir().expect("a folder");
    let config = r#"{"embed_dim": 24, "quick_gelu": true,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 512, "width": 64, "heads": 1, "layers": 2}}"#;
    std::fs::write(copy.path().join("open_clip_config.json"), config).expect("written");
    let (from, to) = (folder("openai-state-dict"), copy.path().join("model.pt"));
    std::fs::copy(from.join("model.pt"), &to).expect("copied");
    let found = verify(&to, &from, Precision::F32).expect("opened");
    assert!(found.image.expect("images").largest <= TOLERANCE);
    assert!(found.text.expect("texts").largest <= TOLERANCE);
}

/// A copy of a model, to be broken.
fn copy_of(name: &str) -> TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(folder(name)).expect("a fixture") {
        let path = file.expect("a file").path();
        std::fs::copy(&path, copy.path().join(path.file_name().expect("a name"))).expect("copied");
    }
    copy
}

#[track_caller]
fn assert_error(path: &Path, kind: &str, part: &str) {
    let error = ModelFiles::load(path).expect_err("the model is broken");
    let shown = error.to_string();
    assert!(shown.contains(part) && !shown.contains('\n'), "`{part}` is not in: {shown}");
    assert_eq!(error.kind(), kind, "{shown}");
    assert!(error.hint().is_some(), "{shown}");
}

#[test]
fn files_cut_off_anywhere_are_an_error() {
    for (name, file) in CASES {
        let Some(file) = file.or((name == "hf-bin").then_some("pytorch_model.bin")) else {
            continue;
        };
        let copy = copy_of(name);
        let path = copy.path().join(file);
        let whole = std::fs::read(&path).expect("a file");
        for tenth in 0..10 {
            std::fs::write(&path, &whole[..whole.len() * tenth / 10]).expect("written");
            let model = if name == "hf-bin" { copy.path() } else { &path };
            assert_error(model, "weights", file);
        }
    }
}

#[test]
fn shards_that_do_not_fit_together_are_named() {
    let index = "model.safetensors.index.json";
    let change = |from: &str, to: &str| {
        let copy = copy_of("hf-sharded");
        let path = copy.path().join(index);
        let text = std::fs::read_to_string(&path).expect("an index");
        std::fs::write(&path, text.replace(from, to)).expect("written");
        copy
    };
    let copy = change("model-00001", "../model-00001");
    assert_error(copy.path(), "weights", "no name of a file beside it");
    let copy = change("weight_map", "map");
    assert_error(copy.path(), "weights", "`weight_map`");
    let copy = copy_of("hf-sharded");
    let shards =
        std::fs::read_dir(copy.path()).expect("a folder").map(|file| file.expect("a file").path());
    let mut shards: Vec<PathBuf> =
        shards.filter(|path| path.extension().is_some_and(|kind| kind == "safetensors")).collect();
    shards.retain(|path| !path.ends_with("inputs_outputs.safetensors"));
    shards.sort();
    std::fs::remove_file(&shards[0]).expect("removed");
    assert_error(copy.path(), "io", "cannot read");
    std::fs::copy(&shards[1], &shards[0]).expect("copied");
    assert_error(copy.path(), "weights", "is in another file, too");
}

#[test]
fn references_that_are_not_of_the_model_are_refused() {
    let other = |name: &str| {
        verify(&folder("hf-bin"), &folder(name), Precision::F32).expect_err("another model")
    };
    assert!(matches!(other("hf-sharded"), Error::Reference { .. }));
    let copy = copy_of("hf-bin");
    std::fs::write(copy.path().join("inputs_outputs.safetensors"), b"short").expect("written");
    let error = verify(&folder("hf-bin"), copy.path(), Precision::F32).expect_err("no reference");
    assert!(matches!(error, Error::Reference { .. }), "{error}");
}

/// A tower that reads padding needs all of it; fewer ids are an error, not a panic.
#[test]
fn texts_shorter_than_a_context_that_is_read_whole_are_refused() {
    let error = verify(&folder("siglip"), &short_ids(), Precision::F32).expect_err("too short");
    assert!(error.to_string().contains("reads 16 to 16 ids"), "{error}");
}

/// A reference whose texts have four ids.
fn short_ids() -> PathBuf {
    use safetensors::Dtype;
    use safetensors::tensor::{TensorView, serialize};
    let (ids, unit) = ([0; 32], [0; 96]);
    let tensors = [
        ("ids", TensorView::new(Dtype::I64, vec![1, 4], &ids).expect("32 bytes")),
        ("text_unit", TensorView::new(Dtype::F32, vec![1, 24], &unit).expect("96 bytes")),
    ];
    let path = std::env::temp_dir().join(format!("ferroclip-short-ids-{}", std::process::id()));
    std::fs::write(&path, serialize(tensors, None).expect("a file")).expect("written");
    path
}

#[test]
fn what_was_assumed_is_said() {
    let origin = |name: &str, file: Option<&str>| {
        let error = ferroclip::ImageEncoder::open(model(name, file))
            .map(|encoder| encoder.origin().clone());
        error.expect(name)
    };
    let openai = origin("openai-vit", Some("model.pt"));
    assert_eq!((openai.format, openai.dialect), ("TorchScript", "open_clip"));
    assert!(
        openai.assumptions.iter().any(|line| line.starts_with("`quick_gelu`: true")),
        "{openai:?}"
    );
    let script = origin("open-clip-script", Some("model.pt"));
    assert!(
        script.assumptions.iter().any(|line| line.contains("the archive holds modules `GELU`")),
        "{script:?}"
    );
    let plain = origin("openai-state-dict", Some("model.pt"));
    assert!(
        plain.assumptions.iter().any(|line| line.starts_with("`quick_gelu`: false")),
        "{plain:?}"
    );
    let hf = origin("hf-sharded", None);
    assert_eq!(
        (hf.format, hf.dialect, hf.conventions),
        ("safetensors", "Hugging Face", "transformers")
    );
    assert_eq!(
        hf.assumptions,
        ["the vocabulary: OpenAI's, there is neither `tokenizer.json` nor `merges.txt`"]
    );
    let vision = origin("hf-vision", None).assumptions;
    assert!(!vision.iter().any(|line| line.starts_with("the vocabulary")), "{vision:?}");
    let siglip = origin("hf-siglip", None);
    assert!(siglip.assumptions[0].starts_with("the preparation of texts"), "{siglip:?}");
}

/// To go on as if the file were not there would be to guess.
#[test]
#[cfg(unix)]
fn files_that_cannot_be_read_are_not_taken_for_absent() {
    let files = [
        ("hf-bin", "tokenizer.json"),
        ("hf-bin", "merges.txt"),
        ("hf-bin", "processor_config.json"),
        ("hf-siglip", "tokenizer_config.json"),
        ("open-clip-bin", "open_clip_model.safetensors"),
    ];
    for (name, file) in files {
        let copy = copy_of(name);
        let path = copy.path().join(file);
        std::fs::create_dir(&path).expect("made");
        assert_error(copy.path(), "io", file);
        std::fs::remove_dir(&path).expect("removed");
        std::os::unix::fs::symlink("nothing", &path).expect("linked");
        assert_error(copy.path(), "io", file);
    }
}

#[test]
fn weights_of_an_unusual_name_are_told() {
    let copy = copy_of("hf-bin");
    let path = copy.path().join("epoch_1.pt");
    std::fs::rename(copy.path().join("pytorch_model.bin"), &path).expect("renamed");
    assert_error(copy.path(), "model", "epoch_1.pt` can be given by its path");
    assert!(ferroclip::ImageEncoder::open(&path).is_ok());
}

#[test]
fn conversions_go_round_bit_for_bit() {
    let parent = tempfile::tempdir().expect("a folder");
    let at = |name: &str| parent.path().join(name);
    let steps = [
        (model("openai-vit", Some("model.pt")), Program::OpenClip, at("a")),
        (at("a"), Program::Transformers, at("b")),
        (at("b"), Program::OpenAi, at("c")),
        (at("c/model.pt"), Program::OpenClip, at("d")),
    ];
    for (from, to, out) in &steps {
        let done = convert(from, *to, out).expect("converted");
        assert_eq!(done.tensors, 62, "{to:?}");
    }
    let file = "open_clip_model.safetensors";
    let (first, last) = (std::fs::read(at("a").join(file)), std::fs::read(at("d").join(file)));
    assert!(first.expect("a file") == last.expect("a file"), "the tensors differ");
    // f16 where OpenAI's file has it: half the size of f32.
    assert!(std::fs::metadata(at("a").join(file)).expect("a file").len() < 700_000);
    for out in ["a", "b", "c/model.pt", "d"] {
        let found = verify(&at(out), &folder("openai-vit"), Precision::F32).expect(out);
        assert!(found.image.expect("images").largest <= TOLERANCE, "{out}");
        assert!(found.text.expect("texts").largest <= TOLERANCE, "{out}");
    }
    assert_eq!(
        std::fs::read_dir(parent.path()).expect("a folder").count(),
        4,
        "temporary files stay"
    );
}

#[test]
fn siglip_goes_to_transformers_and_not_to_openai() {
    let parent = tempfile::tempdir().expect("a folder");
    let out = parent.path().join("hf");
    let model = folder("siglip");
    convert(&model, Program::Transformers, &out).expect("converted");
    let found = verify(&out, &model, Precision::F32).expect("opened");
    assert!(found.image.expect("images").largest <= TOLERANCE);
    assert!(found.text.expect("texts").largest <= TOLERANCE);
    let error =
        convert(&model, Program::OpenAi, &parent.path().join("openai")).expect_err("refused");
    assert_eq!((error.kind(), error.hint().is_some()), ("model", true), "{error}");
    assert!(error.to_string().contains("`init_logit_bias`"), "{error}");
    // timm has no tower of this width.
    let error =
        convert(&model, Program::OpenClip, &parent.path().join("open-clip")).expect_err("refused");
    assert!(error.to_string().contains("timm"), "{error}");
    assert_eq!(
        std::fs::read_dir(parent.path()).expect("a folder").count(),
        1,
        "nothing else is written"
    );
}

#[test]
fn what_another_program_cannot_compute_is_refused() {
    let parent = tempfile::tempdir().expect("a folder");
    let refused = |name: &str, file: Option<&str>, to: Program, part: &str| {
        let error =
            convert(&model(name, file), to, &parent.path().join("out")).expect_err("refused");
        assert!(error.to_string().contains(part), "`{part}` is not in: {error}");
    };
    // GELU, heads that are not 64 wide, a ResNet, average pooling.
    refused("open-clip-bin", None, Program::OpenAi, "`quick_gelu`");
    refused("open-clip-training", Some("epoch_1.pt"), Program::OpenAi, "`vision_cfg.head_width`");
    refused("openai-resnet", Some("model.pt"), Program::Transformers, "`vision_cfg.layers`");
    refused("clipa", None, Program::Transformers, "`vision_cfg.");
    let exists =
        convert(&folder("hf-bin"), Program::OpenClip, parent.path()).expect_err("it exists");
    assert_eq!(exists.kind(), "io", "{exists}");
}
