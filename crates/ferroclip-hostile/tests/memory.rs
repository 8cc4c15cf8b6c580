//! The memory that a hostile file takes: at most 500 MB over its size.
//!
//! Each file is read in a process of its own, whose peak the kernel knows: this program again, told what to do by
//! environment variables. Files of many megabytes are made here, the others lie in `fixtures/hostile`.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use ferroclip::image::{Convention, DecodeLimits, ImageError, ImagePipeline};
use tempfile::TempDir;

/// What is allowed beside the file.
const LIMIT_BYTES: u64 = 500 * 1000 * 1000;
/// The reader and the file of the process inside.
const READER: &str = "FERROCLIP_HOSTILE_READER";
const FILE: &str = "FERROCLIP_HOSTILE_FILE";
/// The longest vocabulary, header and pickle that are read.
const LONGEST_VOCABULARY: usize = 64 << 20;
const LONGEST_HEADER: usize = 16 << 20;
const LONGEST_PICKLE: usize = 16 << 20;

/// As many of `item` as there is room for between two ends.
fn filled(begin: &str, item: &str, end: &str, len: usize) -> Vec<u8> {
    let n = (len - begin.len() - end.len()) / item.len();
    [begin, &item.repeat(n), end].concat().into_bytes()
}

fn vocabulary(begin: &str, item: &str, end: &str) -> Vec<u8> {
    filled(begin, item, end, LONGEST_VOCABULARY)
}

/// A safetensors file of this header and no bytes of tensors.
fn safetensors(header: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header].concat()
}

fn header(begin: &str, item: &str, end: &str) -> Vec<u8> {
    safetensors(&filled(begin, item, end, LONGEST_HEADER))
}

/// Empty tensors, as many as a header holds.
fn many_tensors() -> Vec<u8> {
    let entry = |n: usize| format!(r#""{n:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let n = LONGEST_HEADER / (entry(usize::from(u16::MAX)).len() + 2);
    let entries: Vec<String> = (0..n).map(entry).collect();
    safetensors(format!("{{{}}}", entries.join(",")).as_bytes())
}

fn pickle(begin: &[u8], item: &[u8]) -> Vec<u8> {
    [begin, &item.repeat((LONGEST_PICKLE - begin.len()) / item.len())].concat()
}

/// Ten thousand tensors that share one list of a hundred thousand sides.
fn shared_sides() -> Vec<u8> {
    let text =
        |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let mut bytes = b"\x80\x02(".to_vec();
    bytes.extend(b"K\x01".repeat(100_000));
    bytes.extend(b"tq\x000}(");
    for n in 0..10_000 {
        bytes.extend(text(&format!("t{n}")));
        bytes.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        bytes.extend(
            [text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu")].concat(),
        );
        bytes.extend(b"K\x06tQK\x00h\x00h\x00\x89}tR");
    }
    bytes.extend(b"u.");
    bytes
}

/// Name, reader and bytes of the files that are too long to be kept.
fn long_files() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    vec![
        ("wide-vocabulary", "tokenizer", vocabulary(r#"{"model":{"vocab":["#, "[0],", "0]}}")),
        ("deep-vocabulary", "tokenizer", vocabulary(r#"{"model":{"merges":["#, &deep(60), "0]}}")),
        ("bottomless-vocabulary", "tokenizer", vocabulary("", "[", "")),
        ("vocabulary-of-lines", "tokenizer", vocabulary("", "a b\n", "")),
        ("vocabulary-of-one-text", "tokenizer", vocabulary(r#"{"model":""#, "a", r#""}"#)),
        (
            "vocabulary-of-one-piece",
            "tokenizer",
            vocabulary(r#"{"model":{"type":"Unigram","unk_id":0,"vocab":[[""#, "a", r#"",0.0]]}}"#),
        ),
        (
            "vocabulary-of-added-tokens",
            "tokenizer",
            vocabulary(
                r#"{"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"},"added_tokens":["#,
                r#"{"id":1,"content":"b","single_word":false,"lstrip":false,"rstrip":false,"normalized":true,"special":true},"#,
                r#"{"id":1,"content":"b","single_word":false,"lstrip":false,"rstrip":false,"normalized":true,"special":true}]}"#,
            ),
        ),
        ("wide-header", "safetensors", header(r#"{"a":{"shape":["#, "[0],", "0]}}")),
        ("deep-header", "safetensors", header(r#"{"a":{"shape":["#, &deep(60), "0]}}")),
        (
            "header-of-sides",
            "safetensors",
            header(r#"{"a":{"dtype":"U8","data_offsets":[0,0],"shape":["#, "0,", "0]}}"),
        ),
        (
            "survives-header-of-metadata",
            "safetensors",
            header(r#"{"__metadata__":["#, r#"{"":0},"#, "0]}"),
        ),
        ("header-of-tensors", "safetensors", many_tensors()),
        ("notes", "pickle", pickle(b"\x80\x02N", b"\x94")),
        ("marks", "pickle", pickle(b"\x80\x02", b"(")),
        ("lists", "pickle", pickle(b"\x80\x02", b"]Na")),
        ("dictionaries", "pickle", pickle(b"\x80\x02", b"}NNs")),
        ("one-long-list", "pickle", pickle(b"\x80\x02](", b"N")),
        ("shared-sides", "pickle", shared_sides()),
    ]
}

fn deep(depth: usize) -> String {
    format!("{}0{},", "[".repeat(depth), "]".repeat(depth))
}

#[test]
fn hostile_files_take_little_memory() {
    let folder = TempDir::new().expect("a folder");
    for (name, reader, bytes) in long_files() {
        let path = folder.path().join(name);
        fs::write(&path, &bytes).expect("written");
        drop(bytes);
        check(reader, &path);
        fs::remove_file(&path).expect("removed");
    }
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/hostile");
    for (reader, file) in [
        ("torch", "bomb.pt"),
        ("torch", "bomb-storage.pt"),
        ("zip", "bomb-table.zip"),
        ("zip", "bomb-picture.zip"),
    ] {
        check(reader, &kept.join(reader).join(file));
    }
    for file in fs::read_dir(kept.join("image")).expect("run `python fixtures/hostile/make.py`") {
        let path = file.expect("a file").path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("claims")) {
            check("any picture", &path);
        }
    }
}

/// What a header promises is what the picture takes, so that the limit on it is one on memory: of one picture, and of
/// all that are on their way at the same time.
#[test]
fn pictures_take_no_more_memory_than_their_headers_say() {
    // Tables of a decoder, pages that are larger than what they hold, a tensor's worth of pixels.
    const BESIDE: u64 = 6 << 20;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/image/large");
    let files: Vec<_> =
        fs::read_dir(folder).expect("run `python fixtures/image/large.py`").collect();
    assert!(files.len() > 30);
    let mut broken = Vec::new();
    for file in files {
        let path = file.expect("a file").path();
        // Eight of one mode of each format: the others are counted in the same way.
        let together =
            path.file_stem().is_some_and(|stem| stem == "RGB").then_some("eight at once");
        let stacks = if together.is_some() { 8 << 17 } else { 0 };
        for reader in ["whole picture"].into_iter().chain(together) {
            let out = read(reader, &path);
            let [taken, promised] = ["took ", "promised "].map(|what| number_behind(&out, what));
            if taken > promised + BESIDE + stacks {
                let path = path.display();
                broken.push(format!("{path}, {reader}: took {taken} of {promised} bytes"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Reads a file in another process and looks at its peak.
fn check(reader: &str, path: &Path) {
    let taken = number_behind(&read(reader, path), "took ");
    let allowed = LIMIT_BYTES + fs::metadata(path).expect("a file").len();
    assert!(taken <= allowed, "{}: took {taken} bytes, allowed {allowed}", path.display());
}

/// What the process says that reads a file.
fn read(reader: &str, path: &Path) -> String {
    let run = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "inside", "--ignored", "--nocapture"])
        .env(READER, reader)
        .env(FILE, path)
        // What is freed is gone, and not kept for the next picture.
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .output()
        .expect("this program runs");
    let (out, errors) =
        (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{}: {}\n{out}\n{errors}", path.display(), run.status);
    out.into_owned()
}

fn number_behind(text: &str, what: &str) -> u64 {
    let number = text.split(what).nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    number.expect("a number of bytes")
}

#[test]
#[ignore = "the test above runs it, in processes of their own"]
#[expect(clippy::print_stdout, reason = "it is how the process outside learns of it")]
fn inside() {
    let (Some(reader), Some(path)) = (env::var_os(READER), env::var_os(FILE)) else { return };
    let bytes = fs::read(&path).expect("the file");
    let may_be_read = path.to_string_lossy().contains("survives-");
    let before = kilobytes("VmRSS:");
    let found = match reader.to_str().expect("a name") {
        // What a program decodes, not what the fuzz target does.
        "any picture" => read_picture(&bytes, &DecodeLimits::default()).map_err(|e| e.to_string()),
        "whole picture" | "eight at once" => {
            // As much as it asks for, once by its header and once where it is turned.
            let mut limits = DecodeLimits { max_memory: 0, ..DecodeLimits::default() };
            let mut found = read_picture(&bytes, &limits);
            while let Err(ImageError::TooMuchMemory { bytes: promised, .. }) = found {
                limits.max_memory = promised;
                found = read_picture(&bytes, &limits);
            }
            println!("promised {} bytes", limits.max_memory);
            if reader == "eight at once" {
                std::thread::scope(|scope| {
                    let threads = [(); 8].map(|()| scope.spawn(|| read_picture(&bytes, &limits)));
                    for thread in threads {
                        thread.join().expect("no panic").expect("it was a picture before");
                    }
                });
            }
            found.map_err(|e| e.to_string())
        }
        name => (ferroclip_hostile::parser(name).feed)(&bytes),
    };
    // That pixels are missing is no fault to some decoders.
    let may_be_read = may_be_read || reader == "any picture";
    match reader == "whole picture" || reader == "eight at once" {
        true => found.expect("a picture"),
        false => assert!(found.is_err() || may_be_read, "it was read"),
    }
    println!("took {} bytes", (kilobytes("VmHWM:") - before) * 1024);
}

/// As a program reads it, in the two ways that take more memory than others.
fn read_picture(bytes: &[u8], limits: &DecodeLimits) -> Result<(), ImageError> {
    for convention in [Convention::OpenClip, Convention::HuggingFace] {
        ImagePipeline { convention, exif: true, ..ImagePipeline::default() }.open(bytes, limits)?;
    }
    Ok(())
}

/// A line of `/proc/self/status`.
fn kilobytes(line: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let value = status.lines().find_map(|found| found.strip_prefix(line)).expect("the line");
    value.trim().trim_end_matches(" kB").parse().expect("a number")
}
