//! Models of other programs: `inspect`, `verify` and `convert`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::tempdir;

use crate::common::run;

fn fixture(name: &str) -> String {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/checkpoints").join(name);
    folder.display().to_string()
}

#[test]
fn verify_prints_differences_and_fails_beyond_the_limit() {
    let (model, against) = (fixture("hf-bin"), fixture("hf-bin"));
    let good = run(&["verify", "--model", &model, "--against", &against]);
    assert_eq!((good.code, good.stderr.as_str()), (0, ""));
    let lines: Vec<&str> = good.stdout.lines().collect();
    assert!(
        lines[0].starts_with("image: 2 unit embeddings, largest difference "),
        "{}",
        good.stdout
    );
    assert!(lines[1].starts_with("text: 6 unit embeddings, "), "{}", good.stdout);
    let document = run(&["verify", "--model", &model, "--against", &against, "--json"]).json();
    assert!(document["image"]["largest"].as_f64().unwrap() <= 1e-5 && document["text"]["n"] == 6);

    let gelu = fixture("openai-state-dict/model.pt");
    let against = fixture("openai-state-dict");
    let failed = run(&["verify", "--model", &gelu, "--against", &against]);
    assert_eq!(failed.code, 1);
    assert!(
        failed.stderr.starts_with("error: the embeddings of the image tower differ by up to "),
        "{}",
        failed.stderr
    );
    assert_eq!(failed.stdout.lines().count(), 2);
    let document = run(&["verify", "--model", &gelu, "--against", &against, "--json"]).json();
    assert_eq!(document["error"]["kind"], "input");
    run(&["verify", "--model", &model, "--against", &fixture("hf-sharded")])
        .fails(1, "cannot compare with");
    run(&["verify", "--model", &model, "--against", "/nonexistent"]).fails(1, "/nonexistent");
    run(&["verify", "--against", &against]).fails(2, "built-in model");
}

#[test]
fn what_is_assumed_is_said() {
    let picture = |name: &str| {
        let small = tempdir().unwrap();
        let picture = crate::common::draw(&small.path().join("x.png"), [1, 2, 3]);
        let out = small.path().join("x.npy").display().to_string();
        run(&["preprocess", &picture, "--out", &out, "--model", &fixture(name)])
    };
    let bare = picture("openai-vit/model.pt");
    assert_eq!(bare.code, 0);
    assert!(
        bare.stderr.contains("note: assumed of the model: `quick_gelu`: true"),
        "{}",
        bare.stderr
    );
    assert_eq!(picture("open-clip-bin").stderr, "");
}

#[test]
fn a_vocabulary_that_does_not_fit_is_shown() {
    let model = fixture("clipa");
    let document = run(&["inspect", "--model", &model, "--json"]).json();
    let error = document["tokenizer"]["error"].as_str().expect("an error");
    assert!(error.contains("49408") && document["format"] == "safetensors", "{error}");
    run(&["tokenize", "--text", "a", "--model", &model]).fails(1, "49408");
}

#[test]
fn convert_writes_a_model_that_gives_the_same() {
    let folder = tempdir().unwrap();
    let out = |name: &str| folder.path().join(name).display().to_string();
    let model = fixture("openai-vit/model.pt");
    let done = run(&["convert", "--model", &model, "--to", "hf", "--out", &out("hf"), "--json"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    run(&["convert", "--model", &model, "--to", "hf", "--out", &out("x"), "--precision", "bf16"])
        .fails(2, "`--precision` has no meaning");
    let document = done.json();
    assert_eq!(
        (&document["verified"], &document["tensors"]),
        (&Value::Bool(true), &Value::from(62))
    );
    assert!(document["weights"].as_str().unwrap().ends_with("model.safetensors"));
    assert!(done.stderr.contains("as in transformers"), "{}", done.stderr);
    let again = run(&["verify", "--model", &out("hf"), "--against", &fixture("openai-vit")]);
    assert_eq!(again.code, 0, "{}", again.stderr);

    run(&["convert", "--model", &model, "--to", "hf", "--out", &out("hf")]).fails(1, "hf");
    let resnet = fixture("openai-resnet/model.pt");
    let done =
        run(&["convert", "--model", &resnet, "--to", "open-clip", "--out", &out("rn"), "--json"]);
    let notes = done.json()["notes"].to_string();
    assert!(notes.contains("`num_batches_tracked`"), "{notes}");
    run(&["convert", "--model", &resnet, "--to", "hf", "--out", &out("no")])
        .fails(1, "`vision_cfg.layers`");
    assert!(!PathBuf::from(out("no")).exists());
    run(&["convert", "--to", "hf", "--out", &out("no")]).fails(2, "built-in model");
}

#[test]
fn pickles_that_would_run_code_are_refused_by_name() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let whole = std::fs::read(fixture("openai-state-dict/model.pt")).unwrap();
    // The name of the function that makes tensors becomes another of the same length.
    let (from, to) =
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"cposix\nsystem_and_some_oth_thing\n");
    assert_eq!(from.len(), to.len());
    let at = whole.windows(from.len()).position(|window| window == from).unwrap();
    let bytes = [&whole[..at], to, &whole[at + from.len()..]].concat();
    std::fs::write(&path, bytes).unwrap();
    let path = path.display().to_string();
    run(&["embed", "--model", &path, "--text", "a", "--out", "/tmp/never"])
        .fails(1, "`posix.system_and_some");
}
