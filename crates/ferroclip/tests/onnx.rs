//! Towers as ONNX graphs. `fixtures/onnx/parity.py` runs them in ONNX Runtime; what is checked here is that the graphs are
//! the ones that it ran.

use std::path::{Path, PathBuf};

use ferroclip::{OpenOptions, Precision, export_onnx, verify};
use sha2::{Digest, Sha256};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// The model of a golden: its directory, or the file of weights that stands for it.
fn model(name: &str) -> PathBuf {
    let folder = fixtures().join(name);
    let files = ["model.pt", "epoch_1.pt"].map(|file| folder.join(file));
    files.into_iter().find(|path| path.exists()).unwrap_or(folder)
}

#[test]
fn graphs_are_those_that_onnx_runtime_ran() {
    let table = std::fs::read_to_string(fixtures().join("onnx/parity.tsv")).expect("the table");
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split('\t').collect()).collect();
    assert!(rows.len() > 40, "the table is short: {} rows", rows.len());
    let parent = tempfile::tempdir().expect("a folder");
    for row in rows {
        let [name, tower, expected] = row[..] else { panic!("three columns: {row:?}") };
        let out = parent.path().join(name.replace('/', "-"));
        if !out.exists() {
            export_onnx(&model(name), Precision::F32, &out).expect(name);
        }
        let mut hash = Sha256::new();
        for file in [format!("{tower}.onnx"), format!("{tower}.onnx.data")] {
            hash.update(std::fs::read(out.join(file)).expect("a file"));
        }
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            found, expected,
            "{name}, {tower}: run fixtures/onnx/parity.py on the new graph"
        );
        // The reference beside the graph is the model's own.
        let found = verify(&model(name), &out, Precision::F32).expect(name);
        let all = [found.image, found.text];
        assert!(all.into_iter().flatten().all(|d| d.largest == 0.0), "{name}: {found:?}");
    }
}

#[test]
fn an_export_appears_whole_or_not_at_all() {
    let parent = tempfile::tempdir().expect("a folder");
    let out = parent.path().join("out");
    let bad = OpenOptions { image_size: Some(3), ..OpenOptions::default() };
    assert!(export_onnx(&model("towers/base"), bad, &out).is_err());
    assert!(!out.exists());
    let larger = OpenOptions { image_size: Some(48), ..OpenOptions::default() };
    let towers = export_onnx(&model("towers/base"), larger, &out).expect("written");
    assert_eq!(towers.iter().map(|tower| tower.tower).collect::<Vec<_>>(), ["image", "text"]);
    assert!(towers.iter().all(|tower| tower.operators > 50 && tower.bytes > 1000), "{towers:?}");
    let found = verify(&model("towers/base"), &out, larger).expect("the same sizes");
    assert_eq!(found.image.expect("images").largest, 0.0);
    let again = export_onnx(&model("towers/base"), Precision::F32, &out).expect_err("it exists");
    assert_eq!(again.kind(), "io", "{again}");
    assert_eq!(std::fs::read_dir(parent.path()).expect("a folder").count(), 1);
}
