//! Bad input: each case one clear line that names the thing, one hint, and nothing half-written.

use std::fs::OpenOptions;
use std::path::Path;

use crate::common::{changed_model, command, draw, files_below, model, on_model, run, write};
use ferroclip::WeightTensor;
use serde_json::json;
use tempfile::tempdir;

fn classify(picture: &str) -> crate::common::Run {
    on_model(&["classify", picture, "--label", "a", "--label", "b"])
}

/// A PNG that says to be 60,000 x 60,000 pixels.
fn huge_png(path: &Path) -> String {
    let small = path.with_extension("small.png");
    draw(&small, [0, 0, 0]);
    let mut bytes = std::fs::read(&small).unwrap();
    for at in [16, 20] {
        bytes[at..at + 4].copy_from_slice(&60_000_u32.to_be_bytes());
    }
    // The checksum of the header chunk.
    let mut crc = !0_u32;
    for &byte in &bytes[12..29] {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0xedb8_8320 & (!(crc & 1)).wrapping_add(1));
        }
    }
    bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
    write(path, &bytes)
}

#[test]
fn pictures() {
    let folder = tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    classify("missing.png").fails(1, "`missing.png`");
    classify(&write(&file("empty.png"), b"")).fails(1, "empty.png");
    let jpeg = [
        &b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"[..],
        b"\xff\xdb\x00\x43\x00\x01",
    ]
    .concat();
    classify(&write(&file("cut.jpg"), &jpeg)).fails(1, "cut.jpg");
    classify(&write(&file("text.png"), b"I am a text")).fails(1, "a text that begins with");
    classify(&huge_png(&file("huge.png"))).fails(1, "60000 x 60000");
    classify("/dev/null").fails(1, "not a regular file");
    // Of a file that is too long nothing is read.
    let long = std::fs::File::create(file("long.png")).unwrap();
    long.set_len(300 << 20).unwrap();
    classify(&file("long.png").display().to_string()).fails(1, "more than 268435456 bytes");
    let empty = tempdir().unwrap();
    classify(&empty.path().display().to_string()).fails(1, "no pictures in");
}

#[test]
fn some_bad_pictures_are_status_3() {
    let folder = tempdir().unwrap();
    let good = draw(&folder.path().join("good.png"), [1, 2, 3]);
    let bad = write(&folder.path().join("bad.png"), b"");
    let args = ["classify", &good, &bad, "nowhere.png", "--label", "a"];
    let table = on_model(&args);
    assert_eq!(table.code, 3);
    assert_eq!(table.stdout.lines().count(), 2, "{}", table.stdout);
    assert_eq!(table.stderr.lines().filter(|line| line.starts_with("failed: ")).count(), 2);
    let document = on_model(&[&args[..], &["--json"]].concat());
    assert_eq!((document.code, document.stderr.as_str()), (3, ""));
    let failures = document.json()["failures"].clone();
    assert_eq!(failures[0]["path"], json!(bad));
    assert_eq!(failures[1]["path"], "nowhere.png");
}

#[test]
fn labels_and_templates() {
    let folder = tempdir().unwrap();
    let picture = draw(&folder.path().join("x.png"), [1, 2, 3]);
    let labels = |file: &str| on_model(&["classify", &picture, "--labels", file]);
    labels(&write(&folder.path().join("blank"), b"\n \n")).fails(1, "holds no labels");
    labels(&write(&folder.path().join("latin1"), b"dog\ncaf\xe9\n")).fails(1, "not UTF-8: line 2");
    labels("no-such-file").fails(1, "`no-such-file`");
    let template = ["classify", &picture, "--label", "a", "--template", "a photo"];
    on_model(&template).fails(1, "{}");
}

#[test]
fn failures_as_json() {
    let run = on_model(&["classify", "missing.png", "--label", "a", "--json"]);
    assert_eq!((run.code, run.stderr.as_str()), (1, ""));
    let error = run.json()["error"].clone();
    assert_eq!(error["kind"], "io");
    assert!(error["message"].as_str().unwrap().contains("missing.png"));
    assert!(error["hint"].is_string());
}

#[test]
fn models() {
    let folder = tempdir().unwrap();
    let inspect = |path: &str| run(&["inspect", "--model", path]);
    let model = |name: &str| folder.path().join(name);
    let name = "visual.conv1.weight";
    let missing = changed_model(&model("missing"), |weights| {
        weights.remove(name);
    });
    inspect(&missing).fails(1, name);
    let extra = changed_model(&model("extra"), |weights| {
        weights.insert("surplus", WeightTensor { shape: vec![1], data: vec![0.0] });
    });
    inspect(&extra).fails(1, "surplus");
    let shape = changed_model(&model("shape"), |weights| {
        weights.insert(name, WeightTensor { shape: vec![2], data: vec![0.0; 2] });
    });
    inspect(&shape).fails(1, name);
    let nan = changed_model(&model("nan"), |weights| {
        weights.get_mut(name).unwrap().data[3] = f32::NAN;
    });
    inspect(&nan).fails(1, name);
    let unknown = changed_model(&model("unknown"), |_| {});
    let config = model("unknown").join("open_clip_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    write(&config, text.replacen("\"embed_dim\"", "\"surprise\": 1, \"embed_dim\"", 1).as_bytes());
    inspect(&unknown).fails(1, "surprise");
    inspect(&folder.path().display().to_string()).fails(1, "no model in");
    inspect(&config.display().to_string()).fails(1, "it holds no weights");
    inspect("/dev/null").fails(1, "neither a file nor a directory");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let folder = tempdir().unwrap();
    let picture = draw(&folder.path().join("x.png"), [1, 2, 3]);
    on_model(&["preprocess", &picture, "--out", "/dev/full"]).fails(1, "/dev/full");
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let model = model().display().to_string();
    let mut command = command(&["tokenize", "--text", "a", "--model", &model]);
    let output = command.stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("no space left"), "{stderr}");
}

#[test]
fn nothing_half_written_is_left() {
    let folder = tempdir().unwrap();
    let picture = write(&folder.path().join("x.png"), b"");
    let out = folder.path().join("x.npy").display().to_string();
    on_model(&["preprocess", &picture, "--out", &out]).fails(1, "x.png");
    let nowhere = folder.path().join("none/x.npy").display().to_string();
    let good = draw(&folder.path().join("y.png"), [1, 2, 3]);
    on_model(&["preprocess", &good, "--out", &nowhere]).fails(1, "none/x.npy");
    assert_eq!(files_below(folder.path()), ["x.png", "y.png"]);
}
