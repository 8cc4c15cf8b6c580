//! `eval` on datasets of CLIP_benchmark and on ImageNet's classes, and labels that are kept as embeddings.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::common::{changed_model, draw, on_model, run, write};

/// Writes a tar of these files.
fn write_tar(path: &Path, files: &[(&str, &[u8])]) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.finish().unwrap();
}

fn picture(folder: &Path, colour: [u8; 3]) -> Vec<u8> {
    fs::read(draw(&folder.join("picture.png"), colour)).unwrap()
}

/// A dataset of two classes that are called alike; its folder.
fn dataset(folder: &Path) -> String {
    let root = folder.join("wds_colours");
    fs::create_dir_all(root.join("test")).unwrap();
    let (red, blue) = (picture(folder, [255, 0, 0]), picture(folder, [0, 0, 255]));
    write_tar(&root.join("test/0.tar"), &[("a.png", &red), ("a.cls", b"0")]);
    write_tar(&root.join("test/1.tar"), &[("b.cls", b"1"), ("b.png", &blue)]);
    write(&root.join("test/nshards.txt"), b"2\n");
    write(&root.join("classnames.txt"), b"colour\ncolour\n");
    write(&root.join("zeroshot_classification_templates.txt"), b"a {c}.\nthe {c}\n");
    root.display().to_string()
}

#[test]
fn eval_reads_and_writes_as_clip_benchmark_does() {
    let folder = tempdir().unwrap();
    let data = dataset(folder.path());
    let result = folder.path().join("result.json").display().to_string();
    let args = ["eval", "zero-shot", "--data", &data, "--json", "--result", &result];
    let document = on_model(&args).json();
    assert_eq!((&document["n"], &document["n_labels"]), (&json!(2), &json!(2)));
    assert_eq!(document["templates"], json!(["a {}.", "the {}"]));
    // Both classes have one embedding, so that the first is found for both pictures.
    assert_eq!((&document["top1"], &document["top5"]), (&json!(0.5), &json!(1.0)));
    let written: Value = serde_json::from_str(&fs::read_to_string(&result).unwrap()).unwrap();
    assert_eq!(written["dataset"], "wds_colours");
    assert_eq!(
        (&written["task"], &written["language"]),
        (&json!("zeroshot_classification"), &json!("en"))
    );
    let metrics = json!({"acc1": 0.5, "acc5": null, "mean_per_class_recall": 0.5});
    assert_eq!(written["metrics"], metrics);
    assert!(written["model"].is_string() && written["pretrained"].is_string());

    // Other names for the same classes, as many of them.
    let other = [&args[..], &["--label", "red", "--label", "blue"]].concat();
    assert_eq!(on_model(&other).json()["n_labels"], 2);
    on_model(&["eval", "zero-shot", "--data", &data, "--label", "red"])
        .fails(2, "1 labels for the 2 classes");
    fs::remove_file(Path::new(&data).join("classnames.txt")).unwrap();
    on_model(&args[..4]).fails(1, "has no `classnames.txt`");
    let few = ["eval", "zero-shot", "--data", &data, "--label", "red"];
    on_model(&few).fails(1, "a sample is of class 1, and there are 1 classes");
}

#[test]
fn eval_retrieval_takes_each_line_of_a_text_as_a_caption() {
    let folder = tempdir().unwrap();
    let data = dataset(folder.path());
    let root = Path::new(&data);
    write(&root.join("dataset_type.txt"), b"retrieval\n");
    let (red, blue) = (picture(folder.path(), [255, 0, 0]), picture(folder.path(), [0, 0, 255]));
    write_tar(&root.join("test/0.tar"), &[("a.png", &red), ("a.txt", b"red\na red one")]);
    write_tar(&root.join("test/1.tar"), &[("a.png", &blue), ("a.txt", b"blue\n")]);
    let result = folder.path().join("result.json").display().to_string();
    let document =
        on_model(&["eval", "retrieval", "--data", &data, "--json", "--result", &result]).json();
    assert_eq!((&document["n"], &document["n_texts"]), (&json!(2), &json!(3)));
    let written: Value = serde_json::from_str(&fs::read_to_string(&result).unwrap()).unwrap();
    assert_eq!(written["metrics"]["image_retrieval_recall@5"], 1.0);
    assert_eq!(written["metrics"]["text_retrieval_recall@1"], document["image_to_text"]["r1"]);
}

#[test]
fn eval_maps_folders_of_wordnet_ids_to_imagenets_classes() {
    let folder = tempdir().unwrap();
    let cache = tempdir().unwrap();
    for id in ["n01440764", "n04008634"] {
        fs::create_dir(folder.path().join(id)).unwrap();
        draw(&folder.path().join(id).join("0.png"), [0, 255, 0]);
    }
    let (data, cache) = (folder.path().display().to_string(), cache.path().display().to_string());
    let args = [
        "eval",
        "zero-shot",
        "--data",
        &data,
        "--labels",
        "imagenet",
        "--context-length",
        "64",
        "--class-cache",
        &cache,
        "--json",
    ];
    let document = on_model(&args).json();
    assert_eq!((&document["n"], &document["n_labels"]), (&json!(2), &json!(1000)));
    let classes: Vec<&Value> =
        document["classes"].as_array().unwrap().iter().map(|class| &class["label"]).collect();
    assert_eq!(classes, [&json!("tench"), &json!("missile")]);

    // The embeddings were kept, and are used again to the same scores.
    let kept: Vec<_> = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [kept] = kept.as_slice() else { panic!("{kept:?}") };
    let written = kept.metadata().unwrap().modified().unwrap();
    assert_eq!(on_model(&args).json(), document);
    assert_eq!(kept.metadata().unwrap().modified().unwrap(), written);
    // A file that is not whole is written anew; other templates are another file.
    fs::write(kept, b"\x93NUMPY").unwrap();
    assert_eq!(on_model(&args).json(), document);
    assert!(kept.metadata().unwrap().len() > 1000);
    on_model(&[&args[..], &["--template", "{}"]].concat()).json();
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 2);
    // So are other numbers, and other weights in files of the same place.
    on_model(&[&args[..], &["--precision", "bf16"]].concat()).json();
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 3);
    let other = tempdir().unwrap();
    let args = |model: &str| -> Vec<String> {
        let own = args.iter().map(|arg| (*arg).to_owned());
        own.chain(["--model".to_owned(), model.to_owned()]).collect()
    };
    for (weight, n_kept) in [(0.5, 4), (0.25, 5)] {
        let model = changed_model(&other.path().join("model"), |weights| {
            weights.get_mut("text_projection").unwrap().data[0] = weight;
        });
        let args = args(&model);
        run(&args.iter().map(String::as_str).collect::<Vec<_>>()).json();
        assert_eq!(fs::read_dir(&cache).unwrap().count(), n_kept);
    }
}
