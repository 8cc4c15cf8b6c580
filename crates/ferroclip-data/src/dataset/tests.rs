//! Packs written by the tests themselves, well formed and malformed.

use std::fs;
use std::io::Write;

use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;

/// Files of a pack: names and contents.
type Files<'a> = &'a [(&'a str, &'a [u8])];

const LABELS: &[u8] = b"file\tlabel\na/x.png\tred dot\nb/y.png\tblue dot\na/z.png\t\n";
const PACK: Files<'static> = &[
    ("labels.tsv", LABELS),
    ("a/x.png", b"picture x"),
    ("b/y.png", b"picture y"),
    ("a/z.png", b"picture z"),
];

fn write_tree(root: &Path, files: Files) {
    for (name, bytes) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn write_zip(path: &Path, files: Files, method: CompressionMethod) {
    let mut zip = ZipWriter::new(File::create(path).unwrap());
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in files {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// Replaces all occurrences of a byte string in a file by one of equal length.
fn patch(path: &Path, from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(path).unwrap();
    let mut found = 0;
    for start in 0..=bytes.len() - from.len() {
        if bytes[start..].starts_with(from) {
            bytes[start..start + from.len()].copy_from_slice(to);
            found += 1;
        }
    }
    assert!(found > 0, "nothing to patch");
    fs::write(path, bytes).unwrap();
}

fn write_tar(path: &Path, files: Files) {
    let mut tar = tar::Builder::new(File::create(path).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.finish().unwrap();
}

fn open(path: &Path) -> Dataset {
    Dataset::open(path, &[]).unwrap()
}

fn open_error(path: &Path) -> String {
    Dataset::open(path, &[]).unwrap_err().to_string()
}

fn filters(texts: &[&str]) -> Vec<Filter> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn keys(data: &Dataset) -> Vec<&str> {
    (0..data.len()).map(|row| data.key(row)).collect()
}

fn check_pack(data: &Dataset) {
    assert_eq!(data.columns(), ["file", "label"]);
    assert_eq!(keys(data), ["a/x.png", "b/y.png", "a/z.png"]);
    assert_eq!(data.text(1, "label"), Some("blue dot"));
    assert_eq!(data.text(2, "label"), Some(""));
    assert_eq!(data.text(0, "colour"), None);
    assert_eq!(data.column_index("label").unwrap(), 1);
    for (row, bytes) in [b"picture x", b"picture y", b"picture z"].iter().enumerate() {
        assert_eq!(data.read(row).unwrap(), *bytes);
    }
    assert!(data.notices().is_empty());
}

#[test]
fn reads_a_directory_with_a_table() {
    let dir = TempDir::new().unwrap();
    write_tree(dir.path(), PACK);
    check_pack(&open(dir.path()));
    // The table by its own path is the same data.
    check_pack(&open(&dir.path().join("labels.tsv")));
}

#[test]
fn reads_zips_stored_and_deflated() {
    let dir = TempDir::new().unwrap();
    for (number, method) in
        [CompressionMethod::Stored, CompressionMethod::Deflated].into_iter().enumerate()
    {
        // The name tells nothing; the content does.
        let path = dir.path().join(number.to_string());
        write_zip(&path, PACK, method);
        check_pack(&open(&path));
    }
}

#[test]
fn reads_a_folder_that_was_zipped_whole() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("pack.zip");
    let files: Vec<(String, &[u8])> =
        PACK.iter().map(|(name, bytes)| (format!("pack/{name}"), *bytes)).collect();
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    write_zip(&path, &files, CompressionMethod::Stored);
    check_pack(&open(&path));
}

#[test]
fn zip_is_read_by_many_threads_at_once() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("pack.zip");
    let contents: Vec<Vec<u8>> = (0..200_usize).map(|n| vec![n as u8; 100 + 37 * n]).collect();
    let names: Vec<String> = (0..200).map(|n| format!("{n}.bin")).collect();
    let table = format!("file\n{}\n", names.join("\n"));
    let mut files: Vec<(&str, &[u8])> = vec![("labels.tsv", table.as_bytes())];
    files
        .extend(names.iter().zip(&contents).map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    write_zip(&path, &files, CompressionMethod::Deflated);
    let data = open(&path);
    std::thread::scope(|scope| {
        for thread in 0..8_usize {
            let (data, contents) = (&data, &contents);
            scope.spawn(move || {
                for n in 0..400 {
                    let row = (n * 7 + thread * 31) % 200;
                    assert_eq!(data.read(row).unwrap(), contents[row]);
                }
            });
        }
    });
}

#[test]
fn filters_and_hashes_rows() {
    let dir = TempDir::new().unwrap();
    write_tree(dir.path(), PACK);
    let open = |texts: &[&str]| Dataset::open(dir.path(), &filters(texts));
    assert_eq!(keys(&open(&["label=red dot"]).unwrap()), ["a/x.png"]);
    let kept = open(&["hash%2=0"]).map_or(0, |data| data.len());
    let dropped = open(&["hash%2!=0"]).map_or(0, |data| data.len());
    assert_eq!(kept + dropped, 3);
    let error = open(&["label=green dot"]).unwrap_err();
    assert!(error.to_string().ends_with("has no samples that pass the filters"));
    let error = open(&["vendor=x"]).unwrap_err();
    assert!(
        error.to_string().ends_with("has no column `vendor`, only: `file`, `label`"),
        "{error}"
    );
    // Rows that were filtered out do not shift the lines that errors name.
    fs::remove_file(dir.path().join("b/y.png")).unwrap();
    let error = open(&["label=blue dot"]).unwrap().read(0).unwrap_err();
    assert!(error.to_string().contains("labels.tsv` at line 3,"), "{error}");
}

#[test]
fn reads_class_folders() {
    let dir = TempDir::new().unwrap();
    write_tree(
        dir.path(),
        &[
            ("tabby_cat/2.JPG", b"2"),
            ("tabby_cat/10.jpg", b"10"),
            ("tabby_cat/more/1.png", b"1"),
            ("tabby_cat/notes.txt", b""),
            ("dog/a.webp", b"a"),
            ("dog/.hidden.png", b""),
            (".git/x.png", b""),
            ("empty/README", b""),
            ("README", b""),
        ],
    );
    let data = open(dir.path());
    assert_eq!(data.columns(), ["file", "label"]);
    assert_eq!(
        keys(&data),
        ["dog/a.webp", "tabby_cat/10.jpg", "tabby_cat/2.JPG", "tabby_cat/more/1.png"]
    );
    assert_eq!(data.text(3, "label"), Some("tabby_cat"));
    assert_eq!(data.read(2).unwrap(), b"2");
    assert_eq!(
        data.notices(),
        [
            "class folder `empty` holds no pictures",
            "2 files are not named like pictures and were passed over; first `empty/README`"
        ]
    );
    let data = Dataset::open(dir.path(), &filters(&["label=dog"])).unwrap();
    assert_eq!(keys(&data), ["dog/a.webp"]);
}

#[test]
fn reads_a_csv_of_paths() {
    let dir = TempDir::new().unwrap();
    let elsewhere = dir.path().join("elsewhere.png");
    fs::write(&elsewhere, b"e").unwrap();
    let csv =
        format!("title,filepath\n\"a, b\",pictures/p.png\nabsolute,{}\n", elsewhere.display());
    write_tree(dir.path(), &[("lists/train.csv", csv.as_bytes()), ("lists/pictures/p.png", b"p")]);
    let data = open(&dir.path().join("lists/train.csv"));
    assert_eq!((data.key(0), data.text(0, "title")), ("pictures/p.png", Some("a, b")));
    assert_eq!((data.read(0).unwrap(), data.read(1).unwrap()), (b"p".to_vec(), b"e".to_vec()));
}

#[test]
fn reads_webdataset_shards() {
    let dir = TempDir::new().unwrap();
    let long = format!("{}/long.jpg", "d".repeat(150));
    let long_text = long.replace(".jpg", ".txt");
    write_tar(
        &dir.path().join("00009.tar"),
        &[
            ("0001.jpg", b"picture one"),
            (
                "0001.json",
                br#"{"caption": "other", "width": 12, "nsfw": null, "tags": ["a"], "file": "f"}"#,
            ),
            ("0001.txt", b"caption one\n"),
            ("lonely.txt", b"no picture"),
        ],
    );
    write_tar(
        &dir.path().join("00010.tar"),
        &[
            ("0002.png", b"picture two"),
            ("0002.json", br#"{"caption": "two", "height": 7}"#),
            (&long, b"long"),
            (&long_text, b"deep"),
        ],
    );
    let pattern = dir.path().join("{00009..00010}.tar");
    let data = open(&pattern);
    assert_eq!(data.columns(), ["file", "caption", "width", "nsfw", "tags", "height"]);
    assert_eq!(keys(&data), ["0001.jpg", "0002.png", &long]);
    let row = |row| (0..6).map(|column| data.cell(row, column)).collect::<Vec<_>>();
    assert_eq!(row(0), ["0001.jpg", "caption one", "12", "", "[\"a\"]", ""]);
    assert_eq!(row(1), ["0002.png", "two", "", "", "", "7"]);
    assert_eq!(row(2)[1], "deep");
    assert_eq!(data.read(0).unwrap(), b"picture one");
    assert_eq!(data.read(2).unwrap(), b"long");
    assert_eq!(data.notices(), ["1 samples without a picture were passed over"]);

    let filtered = Dataset::open(&pattern, &filters(&["height=7"])).unwrap();
    assert_eq!(
        (keys(&filtered), filtered.read(0).unwrap()),
        (vec!["0002.png"], b"picture two".to_vec())
    );
    let error = Dataset::open(&pattern, &filters(&["depth=7"])).unwrap_err();
    assert!(matches!(error, DataError::UnknownColumn { .. }));
    assert_eq!(open(&dir.path().join("00010.tar")).len(), 2);
    assert!(open_error(&dir.path().join("{00009..00011}.tar")).contains("00011.tar"));
}

#[test]
fn absent_pictures_fail_when_read_with_file_and_line() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("pack.zip");
    write_zip(&path, &PACK[..2], CompressionMethod::Stored);
    let data = open(&path);
    assert!(data.read(0).is_ok());
    let shown = |root: &Path| {
        format!(
            "`b/y.png`, listed in `{}` at line 3, does not exist",
            root.join("labels.tsv").display()
        )
    };
    assert_eq!(data.read(1).unwrap_err().to_string(), shown(&path));
    write_tree(dir.path(), &PACK[..2]);
    let error = open(dir.path()).read(1).unwrap_err().to_string();
    assert_eq!(error, shown(dir.path()));
}

#[test]
fn large_pictures_are_refused_everywhere() {
    let dir = TempDir::new().unwrap();
    write_tree(&dir.path().join("tree"), PACK);
    write_zip(&dir.path().join("p.zip"), PACK, CompressionMethod::Deflated);
    write_tar(&dir.path().join("p.tar"), &PACK[1..]);
    for name in ["tree", "p.zip", "p.tar"] {
        let path = dir.path().join(name);
        assert!(open(&path).with_max_bytes(9).read(0).is_ok());
        let error = open(&path).with_max_bytes(8).read(0).unwrap_err();
        assert!(
            matches!(error, DataError::PictureTooLarge { found: 9, limit: 8, .. }),
            "{name}: {error}"
        );
    }
}

#[test]
fn names_that_leave_are_refused() {
    let dir = TempDir::new().unwrap();
    for (number, bad) in ["../x", "/a/x", "a/..", "c:\\x"].into_iter().enumerate() {
        let zip = dir.path().join(format!("{number}.zip"));
        let same_length = "z".repeat(bad.len());
        write_zip(&zip, &[("labels.tsv", LABELS), (&same_length, b"")], CompressionMethod::Stored);
        patch(&zip, same_length.as_bytes(), bad.as_bytes());
        assert_eq!(open_error(&zip), format!("`{}` names a file outside: `{bad}`", zip.display()));

        let table = format!("file\nx.png\n{bad}\n");
        let files: Files = &[("labels.tsv", table.as_bytes())];
        write_zip(&zip, files, CompressionMethod::Stored);
        let tree = dir.path().join(number.to_string());
        write_tree(&tree, files);
        for path in [zip, tree] {
            let shown = path.join("labels.tsv").display().to_string();
            assert_eq!(
                open_error(&path),
                format!("`{shown}`, line 3, names a file outside: `{bad}`")
            );
        }
    }
    let tar = dir.path().join("t.tar");
    write_tar(&tar, &[("zz/a.png", b"")]);
    let mut bytes = fs::read(&tar).unwrap();
    bytes[..2].copy_from_slice(b"..");
    // The checksum in octal at 148 is a sum of bytes.
    let sum: u32 = bytes[..512]
        .iter()
        .enumerate()
        .map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u32::from(b) })
        .sum();
    bytes[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    fs::write(&tar, bytes).unwrap();
    assert_eq!(open_error(&tar), format!("`{}` names a file outside: `../a.png`", tar.display()));
}

#[test]
fn names_that_come_twice_are_refused() {
    let dir = TempDir::new().unwrap();
    let zip = dir.path().join("pack.zip");
    write_zip(
        &zip,
        &[("labels.tsv", LABELS), ("a/x.png", b"1"), ("a/w.png", b"2")],
        CompressionMethod::Stored,
    );
    patch(&zip, b"a/w.png", b"a/x.png");
    assert!(open_error(&zip).ends_with("a name is listed twice"));
    let tar = dir.path().join("t.tar");
    for twice in [[("a.jpg", b"{}"), ("a.png", b"{}")], [("a.txt", b"{}"), ("a.txt", b"{}")]] {
        write_tar(&tar, &twice.map(|(name, bytes)| (name, &bytes[..])));
        assert!(open_error(&tar).contains("holds two entries `a."));
    }
    write_tree(dir.path(), &[("two/labels.tsv", LABELS), ("two/labels.csv", b"file\n")]);
    assert!(
        open_error(&dir.path().join("two"))
            .ends_with("holds two tables: `labels.tsv` and `labels.csv`")
    );
}

#[test]
fn zip_entries_that_lie_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("pack.zip");
    let central = |bytes: &[u8], name: &[u8]| {
        // The name stands 46 bytes into the last record that holds it.
        let at = bytes.windows(name.len()).rposition(|window| window == name).unwrap();
        at - 46
    };
    // A picture whose declared size (offset 24) is too small, too large, or a bomb's.
    for (method, size) in [
        (CompressionMethod::Stored, 3_u32),
        (CompressionMethod::Stored, 5000),
        (CompressionMethod::Deflated, 3),
        (CompressionMethod::Deflated, 5000),
        (CompressionMethod::Deflated, u32::MAX - 1),
    ] {
        write_zip(&path, PACK, method);
        let mut bytes = fs::read(&path).unwrap();
        let record = central(&bytes, b"a/x.png");
        bytes[record + 24..record + 28].copy_from_slice(&size.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        // Either it does not open, or that one picture does not read.
        let error = match Dataset::open(&path, &[]) {
            Ok(data) => data.read(0).unwrap_err(),
            Err(error) => error,
        };
        let expected = matches!(
            error,
            DataError::WrongSize { .. }
                | DataError::Archive { .. }
                | DataError::PictureTooLarge { .. }
        );
        assert!(expected && error.to_string().contains("pack.zip"), "{method} {size}: {error}");
    }
    // A damaged picture fails its checksum, and only that one.
    write_zip(&path, PACK, CompressionMethod::Stored);
    patch(&path, b"picture x", b"picture !");
    let data = open(&path);
    let error = data.read(0).unwrap_err().to_string();
    assert!(error.contains("entry `a/x.png`") && error.ends_with("Invalid checksum"), "{error}");
    assert!(data.read(1).is_ok());
}

#[test]
fn zip_bombs_stop_at_the_limit() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("pack.zip");
    let zeros = vec![0; 20 << 20];
    write_zip(
        &path,
        &[("labels.tsv", b"file\nz.png\n"), ("z.png", &zeros)],
        CompressionMethod::Deflated,
    );
    let error = open(&path).with_max_bytes(10 << 20).read(0).unwrap_err();
    assert!(matches!(error, DataError::PictureTooLarge { .. }), "{error}");
}

#[test]
fn cut_and_garbled_archives_never_panic() {
    let dir = TempDir::new().unwrap();
    let (zip, tar) = (dir.path().join("p.zip"), dir.path().join("p.tar"));
    write_zip(&zip, PACK, CompressionMethod::Deflated);
    write_tar(&tar, &[("a.jpg", &[7; 700]), ("a.json", br#"{"x": 1}"#), ("a.txt", b"text")]);
    let read_all = |path: &Path| {
        if let Ok(data) = Dataset::open(path, &[]) {
            (0..data.len()).for_each(|row| drop(data.read(row)));
        }
    };
    for path in [zip, tar] {
        let whole = fs::read(&path).unwrap();
        for length in (0..whole.len()).step_by(13) {
            fs::write(&path, &whole[..length]).unwrap();
            read_all(&path);
        }
        let mut rng = crate::keyed_rng(0, "garble", 0, 0);
        for _ in 0..2000 {
            let mut bytes = whole.clone();
            let place = crate::below(&mut rng, bytes.len() as u32) as usize;
            bytes[place] ^= 1 + crate::below(&mut rng, 255) as u8;
            fs::write(&path, bytes).unwrap();
            read_all(&path);
        }
    }
}

#[test]
fn malformed_shards_are_named() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("p.tar");
    let big = vec![b'x'; 2 << 20];
    for (name, bytes, reason) in [
        ("a.txt", &b"\xff"[..], "text that is not UTF-8"),
        ("a.txt", &big, "text of more than 1 MiB"),
        ("a.json", b"{", "EOF while parsing"),
        ("a.json", b"[1]", "the json is no object"),
    ] {
        write_tar(&path, &[("a.jpg", b"p"), (name, bytes)]);
        let error = open_error(&path);
        assert!(error.contains(&format!("entry `{name}`")) && error.contains(reason), "{error}");
    }
    write_tar(&path, &[("a.jpg", &[1; 5000])]);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..2000]).unwrap();
    assert!(open_error(&path).contains("cut short"));
    fs::write(&path, [b'x'; 2048]).unwrap();
    assert!(open_error(&path).contains("malformed archive"));
}

#[test]
fn other_paths_are_no_data() {
    let dir = TempDir::new().unwrap();
    write_tree(
        dir.path(),
        &[
            ("flat/a.png", b""),
            ("x.png", b"\x89PNG\r\n\x1a\n\0\0"),
            ("x.tgz", b"\x1f\x8b\x08"),
            ("x.dat", b""),
            ("x.csv", b""),
        ],
    );
    let path = |name: &str| dir.path().join(name);
    write_zip(&path("bare.zip"), &[("a.png", b"")], CompressionMethod::Stored);
    fs::write(path("cut.zip"), b"PK\x03\x04").unwrap();
    for (name, reason) in [
        ("flat", "a directory without class folders"),
        ("x.png", "a binary file of an unknown kind"),
        ("x.tgz", "a gzip file"),
        ("x.dat", "an empty file"),
        ("x.csv", "is an empty table"),
        ("bare.zip", "a zip without labels.tsv"),
        ("cut.zip", "is a malformed archive"),
        ("nowhere", "cannot read"),
        ("{0..", "`{` without `}`"),
    ] {
        let error = open_error(&path(name));
        assert!(error.contains(reason) && error.contains(name), "{name}: {error}");
    }
    let error = Dataset::open(&path("nowhere"), &[]).unwrap_err();
    assert!(error.hint().unwrap().contains("check the path"));
}

#[test]
fn fingerprints_tell_rows_apart() {
    let dir = TempDir::new().unwrap();
    write_tree(dir.path(), PACK);
    let all = open(dir.path()).fingerprint();
    assert_eq!((all.len(), &all), (16, &open(dir.path()).fingerprint()));
    let fewer = Dataset::open(dir.path(), &filters(&["label!="])).unwrap();
    assert_ne!(all, fewer.fingerprint());
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_says_how_to_build_it() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("x"), b"PAR1....PAR1").unwrap();
    let error = Dataset::open(&dir.path().join("x"), &[]).unwrap_err();
    assert!(matches!(error, DataError::ParquetNotBuilt { .. }));
    assert!(error.hint().unwrap().contains("--features parquet"));
}

#[cfg(feature = "parquet")]
#[test]
fn reads_parquet() {
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    let dir = TempDir::new().unwrap();
    write_tree(dir.path(), &PACK[1..]);
    let schema = "message table { required binary file (UTF8); optional binary label (UTF8); required int32 n; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let path = dir.path().join("labels.parquet");
    let mut writer =
        SerializedFileWriter::new(File::create(&path).unwrap(), schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let text = |texts: &[&str]| texts.iter().map(|text| ByteArray::from(*text)).collect::<Vec<_>>();
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<ByteArrayType>()
        .write_batch(&text(&["a/x.png", "b/y.png"]), None, None)
        .unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&text(&["red dot"]), Some(&[1, 0]), None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int32Type>().write_batch(&[5, -6], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();

    let zip = dir.path().join("p.zip");
    let bytes = fs::read(&path).unwrap();
    write_zip(&zip, &[("labels.parquet", &bytes), PACK[1], PACK[2]], CompressionMethod::Deflated);
    for path in [dir.path(), &path, &zip] {
        let data = open(path);
        assert_eq!(data.columns(), ["file", "label", "n"]);
        let row = |row| (0..3).map(|column| data.cell(row, column)).collect::<Vec<_>>();
        assert_eq!((row(0), row(1)), (vec!["a/x.png", "red dot", "5"], vec!["b/y.png", "", "-6"]));
        assert_eq!(data.read(1).unwrap(), b"picture y");
    }
    for place in 0..bytes.len() {
        let mut garbled = bytes.clone();
        garbled[place] ^= 0x55;
        fs::write(&path, garbled).unwrap();
        let _ = Dataset::open(&path, &[]);
    }
}

/// A dataset of CLIP_benchmark: three pictures in two shards.
fn write_benchmark(root: &Path, files: Files) {
    write_tree(root, files);
    write_tar(
        &root.join("test/0.tar"),
        &[("s0.cls", b"1"), ("s0.png", b"x"), ("s1.cls", b"0\n"), ("s1.png", b"y")],
    );
    write_tar(&root.join("test/1.tar"), &[("s2.webp", b"z"), ("s2.cls", b"one")]);
}

#[test]
fn a_dataset_of_clip_benchmark_brings_classes_and_templates() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("wds_pets");
    let beside: Files = &[
        ("test/nshards.txt", b"2\n"),
        ("classnames.txt", b"cat\ndog \ncat\n"),
        ("zeroshot_classification_templates.txt", b"a photo of a {c}.\n{c}, a {c}"),
    ];
    write_benchmark(&root, beside);
    for path in [root.clone(), root.join("test")] {
        let data = open(&path);
        assert_eq!(keys(&data), ["s0.png", "s1.png", "s2.webp"]);
        let classes: Vec<_> = (0..3).map(|row| data.class(row)).collect();
        assert_eq!(classes, [Some(1), Some(0), None]);
        let expected = Benchmark {
            name: "wds_pets".to_owned(),
            classes: ["cat", "dog", "cat"].map(str::to_owned).to_vec(),
            templates: ["a photo of a {}.", "{}, a {}"].map(str::to_owned).to_vec(),
            is_retrieval: false,
        };
        assert_eq!(data.benchmark(), Some(&expected));
    }
    fs::write(root.join("dataset_type.txt"), "Retrieval\n").unwrap();
    assert!(open(&root).benchmark().unwrap().is_retrieval);
}

#[test]
fn a_malformed_dataset_of_clip_benchmark_is_refused() {
    let refusal = |name: &str, bytes: &[u8]| {
        let dir = TempDir::new().unwrap();
        write_benchmark(dir.path(), &[("test/nshards.txt", b"2"), (name, bytes)]);
        open_error(dir.path())
    };
    for (name, bytes, expected) in [
        ("test/nshards.txt", &b""[..], "expected the number of shards"),
        ("test/nshards.txt", &b"0"[..], "expected the number of shards"),
        ("test/nshards.txt", &b"99999999999"[..], "expected the number of shards"),
        ("test/nshards.txt", &b"3"[..], "2.tar"),
        ("dataset_type.txt", &b"multilabel"[..], "type `multilabel`"),
        ("classnames.txt", &b"\xff"[..], "not UTF-8"),
    ] {
        let error = refusal(name, bytes);
        assert!(error.contains(expected), "{name}: {error}");
    }
}
