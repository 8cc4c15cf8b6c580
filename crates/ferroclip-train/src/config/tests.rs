use std::path::{Path, PathBuf};

use super::*;

const MINIMAL: &str = r#"
    [model]
    config = "draw-mini"
    [[data.train]]
    path = "a.zip"
    captions = ["label"]
    [run]
    epochs = 2
    batch_size = 8
    out = "runs/a"
"#;

fn parse(overrides: &[&str]) -> Result<TrainConfig, TrainError> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    TrainConfig::from_toml(MINIMAL, "a.toml", &overrides)
}

#[test]
fn defaults_are_written_out_and_read_back() {
    let config = parse(&[]).unwrap();
    assert_eq!(config.micro_batch(), 8);
    assert_eq!(TrainConfig::from_toml(&config.to_toml(), "b", &[]).unwrap(), config);
    assert!(config.to_toml().contains("weight_decay = 0.2"));
}

#[test]
fn overrides_reach_tables_and_lists() {
    let config = parse(&[
        "run.batch_size=16",
        "optimizer.lr=1e-3",
        "data.train.0.path=b c.zip",
        r#"run.out="x=y""#,
        r#"data.train.0.filter=["a!=b"]"#,
    ]);
    let config = config.unwrap();
    assert_eq!((config.run.batch_size, config.optimizer.lr), (16, 1e-3));
    assert_eq!(config.data.train[0].path, PathBuf::from("b c.zip"));
    assert_eq!(config.run.out, PathBuf::from("x=y"));
    assert_eq!(config.data.train[0].filter, ["a!=b"]);
}

#[test]
fn mistakes_are_named() {
    for (text, named) in [
        ("run.batchsize=1", "batchsize"),
        ("run.precision=int8", "int8"),
        ("data.train.1.path=x", "no place"),
        ("run.out.x=1", "lies in"),
        ("run.epochs", "a.b=value"),
        ("optimizer.lr=nan", "optimizer.lr"),
        ("run.batch_size=1", "batch_size"),
        ("data.train.0.templates=[\"x\"]", "`x`"),
        ("image.flip_prob=2", "flip_prob"),
        ("data.train.0.captions=[]", "captions"),
        ("data.train.0.word_dropout=1.0", "word_dropout"),
        ("data.train.0.word_dropout=-0.1", "word_dropout"),
    ] {
        let error = parse(&[text]).unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
    }
}

#[test]
fn only_some_fields_may_change() {
    let before = parse(&[]).unwrap();
    let now = parse(&["run.epochs=9", "run.out=elsewhere", "run.threads=3"]).unwrap();
    assert!(now.differences(&before).is_empty());
    let now = parse(&["run.seed=1", "data.train.0.weight=2.0"]).unwrap();
    assert_eq!(
        now.differences(&before),
        ["`data.train.0.weight` was 1.0, is 2.0", "`run.seed` was 0, is 1"]
    );
}

/// A file of the repository.
fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

#[test]
fn the_files_of_the_repository_are_valid() {
    for path in [
        "recipes/draw-mini.toml",
        "benchmarks/reference/held-out-style.toml",
        "benchmarks/trials/base.toml",
    ] {
        TrainConfig::from_toml(&read(path), path, &[]).unwrap();
    }
}

#[test]
fn the_documentation_names_every_field() {
    let valid = ValidData {
        path: PathBuf::new(),
        label: Some(String::new()),
        captions: Vec::new(),
        templates: Vec::new(),
        filter: Vec::new(),
    };
    let mut config = parse(&["data.train.0.label=label", r#"model.templates=["{}"]"#]).unwrap();
    config.data.valid.push(valid);
    let text = read("docs/training.md");
    for line in config.to_toml().lines() {
        let Some((field, _)) = line.split_once(" = ") else { continue };
        assert!(text.contains(&format!("`{field}`")), "docs/training.md lacks `{field}`");
    }
}
