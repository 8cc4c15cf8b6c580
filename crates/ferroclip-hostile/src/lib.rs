//! What every parser does with bytes from outside.
//!
//! A fuzz target, the test of the files in `fixtures/hostile` and the test of memory call the same function, which
//! feeds a parser through the public doors of `ferroclip` and `ferroclip-data` and drops what comes out. Where a door
//! takes a path, the bytes become a file in memory (`/dev/shm`) first.
//!
//! There is none for `.npy`: the program reads none but its own, whose header and length it compares whole.
//!
//! Not published; nothing depends on it but `fuzz/`.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use ferroclip::image::DecodeLimits;
use ferroclip::{Config, Error, ModelFiles, Picture, Tokenizer, Weights};
use ferroclip_data::{DataError, Dataset};
use tempfile::TempDir;

mod archive;

/// A parser.
#[derive(Clone, Copy, Debug)]
pub struct Parser {
    /// Its name, and that of its folder in `fixtures/hostile`.
    pub name: &'static str,
    /// Feeds it; an error is what the parser said.
    pub feed: fn(&[u8]) -> Result<(), String>,
}

/// All parsers.
pub const PARSERS: [Parser; 11] = [
    Parser { name: "safetensors", feed: weights },
    Parser { name: "torch", feed: weights },
    Parser { name: "pickle", feed: pickle },
    Parser { name: "index", feed: index },
    Parser { name: "config", feed: config },
    Parser { name: "preprocessor", feed: preprocessor },
    Parser { name: "tokenizer", feed: tokenizer },
    Parser { name: "image", feed: image },
    Parser { name: "table", feed: table },
    Parser { name: "zip", feed: zip },
    Parser { name: "tar", feed: tar },
];

/// The parser of this name.
///
/// # Panics
/// When there is none.
pub fn parser(name: &str) -> Parser {
    let found = PARSERS.into_iter().find(|parser| parser.name == name);
    found.expect("the name of a parser")
}

/// The most pixels that are decoded: a picture of 178 million is no fault, but takes too long here.
const MAX_PIXELS: u64 = 1 << 20;
/// The most bytes of a picture in an archive.
const MAX_PICTURE_BYTES: u64 = 1 << 20;
/// The most rows whose pictures are read.
const MAX_ROWS: usize = 16;
/// A file of one tensor that no model has, for readers that look at the weights before the rest.
const ONE_TENSOR: &[u8] =
    b"\x36\0\0\0\0\0\0\0{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}\0\0\0\0";

/// A file of weights of any format: its tensors, and the architecture that they tell.
fn weights(bytes: &[u8]) -> Result<(), String> {
    in_folder(|folder| {
        let path = put(folder, "model", bytes);
        // Few files are a model; what the others lack is no fault of the parser.
        let _ = ModelFiles::load(&path);
        Weights::load(&path).map(drop).map_err(shown)
    })
}

/// A pickle, as the one of an archive whose other entry holds six numbers.
fn pickle(bytes: &[u8]) -> Result<(), String> {
    weights(&archive::of_pickle(bytes))
}

/// The list of the files that weights were cut into.
fn index(bytes: &[u8]) -> Result<(), String> {
    in_folder(|folder| {
        put(folder, "config.json", br#"{"model_type": "clip"}"#);
        put(folder, "part.safetensors", ONE_TENSOR);
        put(folder, "model.safetensors.index.json", bytes);
        all_but_tensors(folder)
    })
}

/// A config of open_clip's or of transformers'.
fn config(bytes: &[u8]) -> Result<(), String> {
    let open_clip = match std::str::from_utf8(bytes) {
        Ok(text) => Config::from_json(text, "config").map_err(shown),
        Err(error) => Err(error.to_string()),
    };
    let transformers = in_folder(|folder| {
        put(folder, "model.safetensors", ONE_TENSOR);
        put(folder, "config.json", bytes);
        all_but_tensors(folder)
    });
    match open_clip {
        // What was read can be written and read again.
        Ok(config) => {
            Config::from_json(&config.to_json(), "the config written").map(drop).map_err(shown)
        }
        Err(open_clip) => transformers.map_err(|error| format!("{open_clip}; {error}")),
    }
}

/// The image pipeline of transformers.
fn preprocessor(bytes: &[u8]) -> Result<(), String> {
    in_folder(|folder| {
        put(folder, "model.safetensors", ONE_TENSOR);
        put(folder, "config.json", br#"{"model_type": "clip"}"#);
        put(folder, "preprocessor_config.json", bytes);
        all_but_tensors(folder)
    })
}

/// A vocabulary by each of its readers, with texts if it is one.
fn tokenizer(bytes: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    // Any file of no lines is a list of no merges.
    let _ = Tokenizer::from_merges(text);
    let read = [
        Tokenizer::from_json(text, None, false),
        Tokenizer::from_hf_json(text),
        Tokenizer::from_transformers_json(text),
    ];
    let mut errors = Vec::new();
    for found in read {
        match found {
            Ok(tokenizer) => use_tokenizer(&tokenizer),
            Err(error) => errors.push(error.to_string()),
        }
    }
    if errors.len() < 3 { Ok(()) } else { Err(errors.join("; ")) }
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    for text in [
        "",
        "a photo of a cat, ab",
        "Gro\u{308}\u{df}e \u{1f642}\u{200d}\u{fe0f} \0x aaaaaaaaaaaaaaaaaaaaaaaa",
    ] {
        for context_length in [0, 3, 77] {
            let ids = tokenizer.tokenize(text, context_length).ids;
            drop(tokenizer.decode(&ids));
        }
    }
    drop(tokenizer.decode(&[0, 1, u32::MAX]));
    drop(tokenizer.to_hf_json());
}

/// A picture of any format.
fn image(bytes: &[u8]) -> Result<(), String> {
    let picture = Picture::decode(bytes, &DecodeLimits::of_pixels(Some(MAX_PIXELS)));
    picture.map(|picture| drop(picture.apply_exif())).map_err(shown)
}

/// A table of captions. Its pictures lie wherever it says, so they are not read.
fn table(bytes: &[u8]) -> Result<(), String> {
    in_folder(|folder| Dataset::open(&put(folder, "data", bytes), &[]).map(drop).map_err(shown))
}

/// A zip of pictures.
fn zip(bytes: &[u8]) -> Result<(), String> {
    in_folder(|folder| read_rows(&put(folder, "data.zip", bytes)).map_err(shown))
}

/// A WebDataset shard.
fn tar(bytes: &[u8]) -> Result<(), String> {
    in_folder(|folder| read_rows(&put(folder, "data.tar", bytes)).map_err(shown))
}

fn read_rows(path: &Path) -> Result<(), DataError> {
    let data = Dataset::open(path, &[])?.with_max_bytes(MAX_PICTURE_BYTES);
    (0..data.len().min(MAX_ROWS)).try_for_each(|row| data.read(row).map(drop))
}

/// Opens a model that lacks all its tensors, which is found last.
fn all_but_tensors(folder: &Path) -> Result<(), String> {
    match ModelFiles::load(folder) {
        Ok(_) | Err(Error::Mismatch { .. }) => Ok(()),
        Err(error) => Err(shown(error)),
    }
}

fn shown(error: impl ToString) -> String {
    error.to_string()
}

/// Calls `work` with an empty folder.
fn in_folder<T>(work: impl FnOnce(&Path) -> T) -> T {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    let folder = made.expect("a folder for the bytes");
    work(folder.path())
}

fn put(folder: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).expect("room for the bytes");
    path
}
