//! The malformed files of `fixtures/hostile`, whole, cut short and changed: an error each, and never a panic.

use std::fs;
use std::path::{Path, PathBuf};

use ferroclip_hostile::{PARSERS, Parser};

/// Copies of a file that are changed at random places.
const CHANGES: u64 = 100;

struct File {
    name: String,
    bytes: Vec<u8>,
}

/// The files of a folder below `fixtures`, by name.
fn files(folder: &str) -> Vec<File> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(folder);
    let listed = fs::read_dir(&folder).expect("run `python fixtures/hostile/make.py`");
    let mut paths: Vec<PathBuf> = listed.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    let file = |path: PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        File { bytes: fs::read(&path).expect("a file"), name }
    };
    paths.into_iter().map(file).collect()
}

fn hostile(parser: Parser) -> Vec<File> {
    files(&format!("hostile/{}", parser.name))
}

#[test]
fn a_file_is_read_or_refused_as_its_name_says() {
    let mut wrong = Vec::new();
    for parser in PARSERS {
        let files = hostile(parser);
        assert!(files.iter().any(|file| file.name.starts_with("valid")), "{}", parser.name);
        for File { name, bytes } in files {
            let found = (parser.feed)(&bytes);
            let is_right = match &found {
                _ if name.starts_with("survives") => true,
                Ok(()) => name.starts_with("valid"),
                Err(reason) => !name.starts_with("valid") && !reason.trim().is_empty(),
            };
            if !is_right {
                wrong.push(format!("{}/{name}: {found:?}", parser.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn errors_can_be_shown() {
    for parser in PARSERS {
        for File { name, bytes } in hostile(parser) {
            if let Err(reason) = (parser.feed)(&bytes) {
                let shown = reason.chars().all(|c| !c.is_control() || c == '\n');
                assert!(shown && reason.len() < 4000, "{}/{name}: {reason:?}", parser.name);
            }
        }
    }
}

#[test]
fn files_cut_at_each_tenth_are_refused() {
    // A tar or a table may end behind any of its rows.
    let may_end = ["tar", "table"];
    for parser in PARSERS {
        for File { name, bytes } in hostile(parser) {
            for tenth in 0..10 {
                let found = (parser.feed)(&bytes[..bytes.len() * tenth / 10]);
                let must_fail = name.starts_with("valid") && !may_end.contains(&parser.name);
                assert!(found.is_err() || !must_fail, "{}/{name} cut at {tenth}", parser.name);
            }
        }
    }
}

#[test]
fn changed_bytes_never_panic() {
    for parser in PARSERS {
        hostile(parser).iter().for_each(|file| feed_changed(parser, file));
    }
}

#[test]
fn changed_pictures_of_all_kinds_never_panic() {
    let image = ferroclip_hostile::parser("image");
    files("image/pictures").iter().for_each(|file| feed_changed(image, file));
}

fn feed_changed(parser: Parser, file: &File) {
    for change in 0..CHANGES {
        let bytes = changed(&file.bytes, change);
        // Whether it is still read does not matter.
        let _ = (parser.feed)(&bytes);
    }
}

/// A copy with one to four bytes changed, or a few taken out or put in twice.
fn changed(bytes: &[u8], change: u64) -> Vec<u8> {
    /// Bytes that are limits somewhere: of numbers, of digits, of what is a character.
    const LIMITS: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'9', b'"', b'['];
    let mut bytes = bytes.to_vec();
    if bytes.is_empty() {
        return vec![random(change, 0) as u8];
    }
    for draw in 0..=random(change, 0) % 4 {
        let [place, how, value] = [1, 2, 3].map(|n| random(change, 3 * draw + n));
        let place = place as usize % bytes.len();
        match how % 8 {
            0..=2 => bytes[place] ^= 1 << (value % 8),
            3 | 4 => bytes[place] = LIMITS[value as usize % LIMITS.len()],
            5 => bytes[place] = value as u8,
            6 => drop(bytes.drain(place..bytes.len().min(place + 1 + value as usize % 8))),
            _ => {
                let twice = bytes[place..bytes.len().min(place + 1 + value as usize % 8)].to_vec();
                drop(bytes.splice(place..place, twice));
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// A number that depends on its arguments alone (SplitMix64's mixing).
fn random(change: u64, draw: u64) -> u64 {
    let mut x = (change << 32 | draw).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
