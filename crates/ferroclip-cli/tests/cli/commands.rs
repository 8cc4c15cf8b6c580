//! The program as its users see it: documents, tables, exit codes.

use std::path::Path;
use std::process::Stdio;

use crate::common::{
    changed_model, command, draw, files_below, model, on_model, on_model_with_stdin, run, write,
};
use serde_json::{Value, json};
use tempfile::tempdir;

/// Two pictures in a directory.
fn pictures(folder: &Path) -> String {
    draw(&folder.join("b.png"), [0, 0, 255]);
    draw(&folder.join("a.png"), [255, 0, 0]);
    write(&folder.join("notes.txt"), b"no picture");
    folder.display().to_string()
}

/// Shape and descr of a `.npy` file, and its data.
fn npy(path: &Path) -> (String, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    assert_eq!(bytes[127], b'\n');
    (String::from_utf8(bytes[10..128].to_vec()).unwrap(), bytes[128..].to_vec())
}

fn names(value: &Value, key: &str) -> Vec<String> {
    let list = value.as_array().unwrap();
    list.iter().map(|item| item[key].as_str().unwrap().to_owned()).collect()
}

#[test]
fn classify_prints_one_document() {
    let folder = tempdir().unwrap();
    let path = pictures(folder.path());
    let labels = write(&folder.path().join("labels"), "red\r\n\nblue\nred\n ça \n".as_bytes());
    let run = on_model(&["classify", &path, "--labels", &labels, "--json", "--top-k", "2"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(run.stderr, "note: the label `red` is given twice; kept once\n");
    let document = run.json();
    assert_eq!(document["labels"], json!(["red", "blue", "ça"]));
    assert_eq!(document["failures"], json!([]));
    let images = document["images"].as_array().unwrap();
    let paths = names(&document["images"], "path");
    assert!(paths[0].ends_with("a.png") && paths[1].ends_with("b.png"));
    for image in images {
        let scores = image["scores"].as_array().unwrap();
        assert_eq!(scores.len(), 2);
        assert!(scores[0]["score"].as_f64() >= scores[1]["score"].as_f64());
        assert!(scores[0]["similarity"].as_f64().unwrap().abs() <= 1.0 + 1e-6);
    }
}

#[test]
fn classify_prints_a_table() {
    let folder = tempdir().unwrap();
    let path = pictures(folder.path());
    let run = on_model(&["classify", &path, "--label", "red", "--label", "blue", "--quiet"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert_eq!(run.stdout.lines().count(), 1 + 2 * 2, "{}", run.stdout);
    assert!(run.stdout.starts_with("picture"));
    assert!(run.stdout.contains('█') && !run.stdout.contains('\u{1b}'));
}

#[test]
fn scores_of_all_labels_add_up() {
    let folder = tempdir().unwrap();
    let path = draw(&folder.path().join("x.png"), [9, 9, 9]);
    let labels = ["--label", "a", "--label", "b", "--label", "c"];
    let args = [&["classify", path.as_str(), "--json", "--top-k", "0"], &labels[..]].concat();
    let document = on_model(&args).json();
    let scores = document["images"][0]["scores"].as_array().unwrap();
    let sum: f64 = scores.iter().map(|score| score["score"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    let imagenet = on_model(&[&args[..], &["--templates", "imagenet"]].concat()).json();
    assert_eq!(imagenet["templates"].as_array().unwrap().len(), 80);
}

#[test]
fn a_picture_may_come_from_standard_input() {
    let folder = tempdir().unwrap();
    let path = draw(&folder.path().join("x.png"), [9, 9, 9]);
    let bytes = std::fs::read(path).unwrap();
    let run = on_model_with_stdin(&["classify", "-", "--label", "a", "--json"], &bytes);
    assert_eq!(run.json()["images"][0]["path"], "-");
}

#[test]
fn tokenize_gives_ids_without_padding() {
    let long = "word ".repeat(40);
    let run = on_model(&["tokenize", "--json", "--text", "a cat", "--text", &long]);
    let document = run.json();
    let first = &document["texts"][0];
    assert_eq!((&first["text"], &first["truncated"]), (&json!("a cat"), &json!(false)));
    let ids = first["ids"].as_array().unwrap();
    assert_eq!((ids[0].as_u64(), ids[ids.len() - 1].as_u64()), (Some(998), Some(999)));
    let second = &document["texts"][1];
    assert_eq!((second["ids"].as_array().unwrap().len(), &second["truncated"]), (12, &json!(true)));
}

#[test]
fn texts_come_from_lines_jsonl_and_csv() {
    let folder = tempdir().unwrap();
    let lines = on_model_with_stdin(&["tokenize", "--json", "--texts", "-"], b"one\n\ntwo");
    assert_eq!(names(&lines.json()["texts"], "text"), ["one", "", "two"]);
    let jsonl = write(&folder.path().join("t.jsonl"), b"\"one\"\n{\"text\": \"two\"}\n");
    let run = on_model(&["tokenize", "--json", "--texts", &jsonl]);
    assert_eq!(names(&run.json()["texts"], "text"), ["one", "two"]);
    let csv = write(&folder.path().join("t.csv"), b"id,caption\n1,\"a, b\"\n");
    let run = on_model(&["tokenize", "--json", "--texts", &csv, "--column", "caption"]);
    assert_eq!(names(&run.json()["texts"], "text"), ["a, b"]);
    on_model(&["tokenize", "--texts", &csv]).fails(1, "no column `text`");
}

#[test]
fn preprocess_writes_the_tensor() {
    let folder = tempdir().unwrap();
    let path = draw(&folder.path().join("x.png"), [255, 0, 0]);
    let out = folder.path().join("x.npy");
    let run = on_model(&["preprocess", &path, "--out", out.to_str().unwrap(), "--json"]);
    assert_eq!(run.json()["shape"], json!([3, 32, 32]));
    let (header, data) = npy(&out);
    assert!(header.contains("'<f4'") && header.contains("(3,32,32,)"), "{header}");
    assert_eq!(data.len(), 3 * 32 * 32 * 4);
    let first = f32::from_le_bytes(data[..4].try_into().unwrap());
    assert!((first - (1.0 - 0.481_454_66) / 0.268_629_54).abs() < 1e-5, "{first}");
}

#[test]
fn similarity_of_texts_with_themselves_is_one() {
    let texts =
        ["--text", "red", "--text", "blue", "--against-text", "red", "--against-text", "blue"];
    let run = on_model(&[&["similarity", "--json"], &texts[..]].concat());
    let matrix = run.json()["similarity"].clone();
    for i in 0..2 {
        assert!((matrix[i][i].as_f64().unwrap() - 1.0).abs() < 1e-5, "{matrix}");
    }
    let run = on_model(&[&["similarity", "--json", "--top-k", "1"], &texts[..]].concat());
    let pairs = run.json()["pairs"].clone();
    assert_eq!(names(&pairs, "column"), ["red", "blue"]);
    on_model(&["similarity", "--text", "red"]).fails(2, "columns");
    let no_file = ["similarity", "--text", "red", "--against-text", "blue", "--column", "name"];
    on_model(&no_file).fails(2, "--column");
}

#[test]
fn embed_writes_clip_retrievals_layout() {
    let folder = tempdir().unwrap();
    let path = pictures(folder.path());
    write(&folder.path().join("broken.png"), b"");
    let out = folder.path().join("out");
    let args = ["embed", "--images", &path, "--text", "red", "--out", out.to_str().unwrap()];
    let run = on_model(&[&args[..], &["--json", "--quiet"]].concat());
    assert_eq!(run.code, 3, "{}", run.stderr);
    let document = run.json();
    assert_eq!((&document["images"], &document["texts"]), (&json!(2), &json!(1)));
    assert!(names(&document["failures"], "path")[0].ends_with("broken.png"));
    let expected = [
        "embed.json",
        "failures.jsonl",
        "img_emb/img_emb_0.npy",
        "metadata/metadata_0.parquet",
        "text_emb/text_emb_0.npy",
        "text_metadata/text_metadata_0.parquet",
    ];
    assert_eq!(files_below(&out), expected);
    let (header, data) = npy(&out.join("img_emb/img_emb_0.npy"));
    assert!(header.contains("'<f2'") && header.contains("(2,16,)"), "{header}");
    assert_eq!(data.len(), 2 * 16 * 2);
    on_model(&args).fails(1, "exists already");
    let resumed = on_model(&[&args[..], &["--json", "--resume"]].concat());
    assert_eq!((resumed.code, &resumed.json()["finished_before"]), (0, &json!(2)));
    on_model(&[&args[..], &["--resume", "--dtype", "f32"]].concat()).fails(1, "other settings");
}

#[test]
fn a_command_reads_the_tower_that_it_needs() {
    let folder = tempdir().unwrap();
    let model = changed_model(&folder.path().join("model"), |weights| {
        let of_image = weights.iter_mut().filter(|(name, _)| name.starts_with("visual."));
        of_image.for_each(|(_, tensor)| tensor.data.fill(f32::NAN));
    });
    let texts = ["similarity", "--text", "red", "--against-text", "blue", "--model", &model];
    assert_eq!(run(&texts).code, 0);
    let path = pictures(folder.path());
    let images = ["similarity", "--text", "red", "--against-images", &path, "--model", &model];
    run(&images).fails(1, "holds NaN");
}

#[test]
fn embed_writes_pooled_and_patch_features() {
    let folder = tempdir().unwrap();
    let path = pictures(folder.path());
    let config = on_model(&["inspect", "--json"]).json()["config"]["model_cfg"].clone();
    let width = &config["vision_cfg"]["width"];
    let out = folder.path().join("out");
    let args = |features: &'static str, out: &'static str| {
        let out = folder.path().join(out).display().to_string();
        ["embed", "--images", &path, "--features", features, "--out", &out].map(str::to_owned)
    };
    let on = |args: &[String]| on_model(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(on(&args("pooled", "out")).code, 0);
    let (header, _) = npy(&out.join("img_emb/img_emb_0.npy"));
    assert!(header.contains(&format!("(2,{width},)")), "{header}");
    let run = on(&[&args("patches", "patches")[..], &["--no-normalize".to_owned()]].concat());
    assert!(run.code == 0 && run.stderr.contains("changes nothing"), "{}", run.stderr);
    let (header, data) = npy(&folder.path().join("patches/img_emb/img_emb_0.npy"));
    assert!(header.contains("(2,") && header.contains(&format!(",{width},)")), "{header}");
    assert!(data.len() > 2 * 2 * width.as_u64().unwrap() as usize);
    on(&args("patches", "out")).fails(1, "other settings");
    let texts = [&args("patches", "t")[..], &["--text", "a"].map(str::to_owned)].concat();
    on(&texts).fails(2, "texts have no patches");
}

#[test]
fn shards_share_the_files() {
    let folder = tempdir().unwrap();
    let data = folder.path().join("data");
    for (label, colour) in [("blue", [0, 0, 255]), ("red", [255, 0, 0]), ("tan", [210, 180, 140])] {
        std::fs::create_dir_all(data.join(label)).unwrap();
        draw(&data.join(label).join("0.png"), colour);
        draw(&data.join(label).join("1.png"), colour);
    }
    let (data, out) = (data.display().to_string(), folder.path().join("out"));
    let args =
        ["embed", &data, "--out", out.to_str().unwrap(), "--rows-per-file", "2", "--dtype", "f32"];
    let second = on_model(&[&args[..], &["--shard", "2/2", "--json"]].concat());
    assert_eq!((second.code, &second.json()["files"]), (0, &json!(1)), "{}", second.stderr);
    assert!(out.join("img_emb/img_emb_1.npy").exists());
    let first = on_model(&[&args[..], &["--shard", "1/2", "--json"]].concat());
    assert_eq!(first.json()["files"], 2);
    let texts: Vec<Vec<u8>> =
        (0..3).map(|k| npy(&out.join(format!("text_emb/text_emb_{k}.npy"))).1).collect();
    // Both rows of a file are of one label, so their captions are the same.
    assert!(texts.iter().all(|data| data[..64] == data[64..]) && texts[0] != texts[1]);
    on_model(&[&args[..], &["--shard", "3/2"]].concat());
}

#[test]
fn inspect_tells_everything() {
    let document = on_model(&["inspect", "--json"]).json();
    let sum = document["parameters"]["image"].as_u64().unwrap()
        + document["parameters"]["text"].as_u64().unwrap();
    assert_eq!(document["parameters"]["total"].as_u64(), Some(sum + 1));
    assert_eq!(document["config"]["model_cfg"]["embed_dim"], 16);
    assert_eq!(document["tokenizer"]["vocab_size"], 1000);
    assert!(on_model(&["inspect"]).stdout.contains("config.model_cfg.embed_dim"));
}

#[test]
fn eval_scores_class_folders() {
    let folder = tempdir().unwrap();
    for label in ["red", "blue"] {
        std::fs::create_dir(folder.path().join(label)).unwrap();
        draw(&folder.path().join(label).join("0.png"), [255, 0, 0]);
    }
    let data = folder.path().display().to_string();
    let csv = tempdir().unwrap();
    let csv = csv.path().join("p.csv");
    let args = ["eval", "zero-shot", "--data", &data, "--json", "--predictions"];
    let run = on_model(&[&args[..], &[csv.to_str().unwrap()]].concat());
    let document = run.json();
    assert_eq!((&document["n"], &document["top5"]), (&json!(2), &json!(1.0)));
    assert_eq!(document["top1"], 0.5);
    assert!(std::fs::read_to_string(csv).unwrap().starts_with("file,label,predicted"));
    let args = ["eval", "retrieval", "--data", &data, "--caption-columns", "label", "--json"];
    assert_eq!(on_model(&args).json()["text_to_image"]["r5"], 1.0);
}

#[test]
fn bench_names_its_conditions() {
    let document = on_model(&["bench", "--batch", "2", "--what", "text", "--json"]).json();
    assert!(document["isa"].is_string() && document["version"].is_string());
    assert_eq!(document["threads"], 1);
    assert!(document["text"]["per_s"].as_f64().unwrap() > 0.0);
    let document = on_model(&["bench", "--batch", "2", "--what", "train", "--json"]).json();
    assert_eq!(document["train"]["batch"], 2);
    let (ms, per_s) = (&document["train"]["ms"], &document["train"]["per_s"]);
    assert!((ms.as_f64().unwrap() * per_s.as_f64().unwrap() / 2000.0 - 1.0).abs() < 1e-9);
    let fma = on_model(&["bench", "--what", "fma", "--json"]).json();
    assert!(fma["fma"]["per_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn bench_runs_a_round_for_each_line() {
    let folder = tempdir().unwrap();
    let texts = write(&folder.path().join("texts.txt"), b"a cat\na dog\na red bird\n");
    for what in ["text", "train"] {
        let args = ["bench", "--paced", "--what", what, "--batch", "2", "--texts", &texts];
        let run = on_model_with_stdin(&args, b"\n\n");
        assert_eq!((run.code, run.stdout.lines().count()), (0, 3), "{}", run.stderr);
        let lines: Vec<Value> =
            run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0], json!({"ready": true}));
        // A round of texts is all three, a step the next two.
        let n = if what == "text" { 3000.0 } else { 2000.0 };
        let per_s = lines[2]["per_s"].as_f64().unwrap();
        assert!((lines[2]["ms"].as_f64().unwrap() * per_s / n - 1.0).abs() < 1e-9);
    }
    on_model(&["bench", "--paced"]).fails(2, "`--paced` measures one thing");
    on_model(&["bench", "--texts", &texts]).fails(1, "fewer than a batch");
    let args = ["bench", "--paced", "--what", "text", "--texts", "-"];
    on_model(&args).fails(2, "both read standard input");
}

#[test]
fn wrong_usage_is_status_2() {
    let run_json = run(&["classify", "x.png", "--nonsense", "--json"]);
    assert_eq!((run_json.code, &run_json.json()["error"]["kind"]), (2, &json!("usage")));
    assert_eq!(run(&[]).code, 2);
    assert_eq!(run(&["--version"]).code, 0);
    on_model(&["classify", "x.png"]).fails(2, "no labels");
    let label = ["classify", "x.png", "--label", "a"];
    let wrong = on_model(&[&label[..], &["--precision", "f16"]].concat());
    assert_eq!(wrong.code, 2);
    assert!(wrong.stderr.contains("possible values: f32, bf16, int8"), "{}", wrong.stderr);
    on_model(&[&label[..], &["--device", "cuda"]].concat()).fails(2, "no device `cuda`");
    run(&[&label[..], &["--model", "nowhere"]].concat()).fails(1, "no such model: `nowhere`");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let model = model().display().to_string();
    let args = ["tokenize", "--text", "a", "--model", &model];
    let mut child = command(&args).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[cfg(unix)]
#[test]
fn a_signal_ends_with_130() {
    let model = model().display().to_string();
    let args = ["tokenize", "--texts", "-", "--model", &model];
    let mut child = command(&args).stdin(Stdio::piped()).spawn().unwrap();
    // Open to the end, so that the program does not find an empty input before the signal.
    let _stdin = child.stdin.take();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let id = child.id().to_string();
    std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
}
