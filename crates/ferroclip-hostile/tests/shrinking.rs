//! Archives that another program cuts after they were opened. (Of weights: `checkpoint/stored.rs` in `ferroclip`.)

use std::fs::{self, OpenOptions};
use std::path::Path;

use ferroclip_data::Dataset;
use tempfile::TempDir;

#[test]
fn pictures_that_are_gone_are_an_error() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/hostile");
    for name in ["tar/valid.tar", "zip/valid.zip", "zip/valid-deflated.zip"] {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("data").with_extension(&name[..3]);
        fs::copy(kept.join(name), &path).expect("copied");
        let data = Dataset::open(&path, &[]).expect("whole");
        assert!(data.read(0).is_ok(), "{name}");
        let file = OpenOptions::new().write(true).open(&path).expect("opened");
        file.set_len(40).expect("cut");
        let error = data.read(0).expect_err("it is gone").to_string();
        assert!(error.contains("data."), "{name}: {error}");
    }
}
