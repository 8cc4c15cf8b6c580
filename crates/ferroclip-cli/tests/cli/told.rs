//! Nothing is silent: what is passed over, cut, ignored or different from before is told.

use serde_json::json;
use tempfile::tempdir;

use crate::common::{draw, files_below, on_model, on_model_with_stdin, run, write};
#[cfg(target_os = "linux")]
use crate::training::Place;

const LONG: &str = "one two three four five six seven eight nine ten eleven twelve thirteen";

#[test]
fn resumed_embeddings_are_of_the_same_inputs() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (a, b) = (draw(&at("a.png"), [200, 0, 0]), draw(&at("b.png"), [0, 0, 200]));
    let bad = write(&at("bad.png"), b"text");
    let out = at("out").display().to_string();
    let embed = |images: &[&str], more: &[&str]| {
        on_model(&[&["embed", "--images"], images, &["--out", &out, "--json"], more].concat())
    };
    assert_eq!(embed(&[&a, &bad], &[]).code, 3);
    // The failure of the finished file is not forgotten.
    let again = embed(&[&a, &bad], &["--resume"]);
    assert_eq!((again.code, &again.json()["finished_before"]), (3, &json!(1)));
    assert_eq!(again.json()["failures"][0]["path"], json!(bad));
    let other = embed(&[&a, &b], &["--resume"]);
    assert_eq!(other.code, 1);
    let message = other.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.ends_with("other settings or inputs: inputs"), "{message}");
}

#[test]
fn cut_texts_are_counted() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out").display().to_string();
    let cut = on_model(&["embed", "--text", LONG, "--text", "short", "--out", &out]);
    assert_eq!((cut.code, cut.stderr.trim()), (0, "note: 1 texts were too long and were cut"));
    let data = folder.path().join("data");
    std::fs::create_dir_all(data.join(LONG)).unwrap();
    draw(&data.join(LONG).join("a.png"), [200, 0, 0]);
    let data = data.display().to_string();
    let scored = on_model(&["eval", "zero-shot", "--data", &data]);
    assert!(scored.stderr.contains("1 labels were too long and were cut"), "{}", scored.stderr);
}

#[test]
fn rows_without_a_label_or_caption_are_named() {
    let folder = tempdir().unwrap();
    for name in ["a.png", "b.png"] {
        draw(&folder.path().join(name), [200, 0, 0]);
    }
    let table = b"file,label\na.png,red\nb.png,\n";
    let data = write(&folder.path().join("labels.csv"), table);
    let eval = |args: &[&str]| on_model(&[&["eval"], args, &["--data", &data, "--json"]].concat());
    let found = eval(&["zero-shot"]);
    assert_eq!((found.code, &found.json()["n"]), (3, &json!(1)));
    assert_eq!(found.json()["failures"], json!([{"path": "b.png", "error": "it has no label"}]));
    let found = eval(&["retrieval", "--caption-columns", "label"]);
    assert_eq!(found.json()["failures"], json!([{"path": "b.png", "error": "it has no caption"}]));
}

#[test]
fn the_right_thing_is_named() {
    let folder = tempdir().unwrap();
    let picture = draw(&folder.path().join("a.png"), [200, 0, 0]);
    let classify = ["classify", "--label", "red"];
    on_model_with_stdin(&[&classify[..], &["-"]].concat(), b"").fails(1, "`standard input`");
    let small = [&classify[..], &[&picture, "--max-pixels", "100"]].concat();
    on_model(&small).fails(1, "40 x 24 pixels, limit 100");
    let empty = write(&folder.path().join("empty.txt"), b"");
    let out = folder.path().join("out").display().to_string();
    on_model(&["embed", "--texts", &empty, "--out", &out]).fails(1, "empty.txt` holds no texts");
}

#[test]
fn options_that_change_nothing_are_refused_or_told() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out").display().to_string();
    let embed = ["embed", "--text", "red", "--out", &out];
    assert_eq!(on_model(&[&embed[..], &["--filter", "a=b"]].concat()).code, 2);
    let exif = on_model(&[&embed[..], &["--exif"]].concat());
    assert_eq!(exif.stderr.trim(), "note: `--exif` changes nothing: there are no pictures");
    let picture = draw(&folder.path().join("a.png"), [200, 0, 0]);
    let classify = ["classify", picture.as_str(), "--label", "red"];
    assert_eq!(on_model(&[&classify[..], &["--column", "a"]].concat()).code, 2);
    assert_eq!(on_model(&[&classify[..], &["--threshold", "nan"]].concat()).code, 2);
    assert_eq!(on_model(&["eval", "zero-shot", "--data", "x", "--batch", "0"]).code, 2);
}

#[cfg(target_os = "linux")]
#[test]
fn training_names_what_it_passes_over() {
    let place = Place::new(16);
    write(&place.path("data/red/0.png"), b"not a picture");
    let out = place.path("run");
    let config = place.config(&out, 2, 5);
    let trained = run(&["train", &config, "--json"]);
    assert_eq!(trained.code, 3, "{}", trained.stderr);
    let document = trained.json();
    assert!((1..=2).contains(&document["bad_samples"].as_u64().unwrap()), "{document}");
    assert_eq!(document["failures"].as_array().unwrap().len(), 1);
    assert_eq!(document["failures"][0]["path"], json!("red/0.png"));
    assert_eq!(document["valid"][0]["failures"][0]["key"], json!("red/0.png"));
    let trained = run(&["train", &config, "--set", "run.out=other", "--dry-run"]);
    assert_eq!(trained.code, 0, "{}", trained.stderr);
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_that_cannot_go_on_says_why() {
    let place = Place::new(16);
    let out = place.path("run");
    let config = place.config(&out, 2, 2);
    let train = |more: &[&str]| run(&[&["train", config.as_str()], more].concat());
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("picture.png"), b"").unwrap();
    train(&["-q"]).fails(1, "is not empty, and holds no run");
    std::fs::remove_file(out.join("picture.png")).unwrap();
    assert_eq!(train(&["-q"]).code, 0);
    train(&["-q"]).fails(1, "holds a run already");
    let before = files_below(&out);
    let lock = std::fs::File::open(&out).unwrap();
    lock.lock().unwrap();
    train(&["-q", "--resume"]).fails(1, "another process trains in");
    drop(lock);
    train(&["-q", "--resume", "--set", "run.epochs=1"]).fails(1, "the run has done 5");

    let model = place.path("model.json");
    let other = std::fs::read_to_string(&model).unwrap().replace("\"layers\": 1", "\"layers\": 2");
    let usual = std::fs::read_to_string(&model).unwrap();
    std::fs::write(&model, other).unwrap();
    train(&["-q", "--resume"]).fails(1, "the architecture of `model.config`");
    std::fs::write(&model, usual).unwrap();
    assert_eq!(files_below(&out), before);

    for name in ["checkpoint-4", "checkpoint-5"] {
        std::fs::remove_dir_all(out.join(name)).unwrap();
    }
    train(&["-q", "--resume"]).fails(1, "its checkpoints are gone");
}
