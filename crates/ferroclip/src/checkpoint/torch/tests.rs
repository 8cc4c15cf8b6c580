use std::io::Cursor;

use super::*;

/// The bytes of a zip archive with these entries, nothing compressed.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let at = bytes.len() as u32;
        let sizes = [data.len() as u32, data.len() as u32].map(u32::to_le_bytes).concat();
        let names = [name.len() as u16, 0].map(u16::to_le_bytes).concat();
        bytes.extend(
            [b"PK\x03\x04".as_slice(), &[0; 14], &sizes, &names, name.as_bytes(), data].concat(),
        );
        let place = at.to_le_bytes();
        directory.extend(
            [b"PK\x01\x02".as_slice(), &[0; 16], &sizes, &names, &[0; 10], &place, name.as_bytes()]
                .concat(),
        );
    }
    let (start, size) = (bytes.len() as u32, directory.len() as u32);
    let n = (entries.len() as u16).to_le_bytes();
    bytes.extend(directory);
    bytes.extend([b"PK\x05\x06".as_slice(), &[0; 4], &n, &n].concat());
    bytes.extend([&size.to_le_bytes()[..], &start.to_le_bytes(), &[0; 2]].concat());
    bytes
}

fn read_bytes(bytes: Vec<u8>) -> Result<Torch, String> {
    let len = bytes.len() as u64;
    read(&mut Cursor::new(bytes), len)
}

fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// A tuple of small numbers.
fn tuple(numbers: &[u8]) -> Vec<u8> {
    let numbers: Vec<u8> = numbers.iter().flat_map(|&n| [b'K', n]).collect();
    [&b"("[..], &numbers, b"t"].concat()
}

/// A tensor of f32, by its place in a storage of `held` elements.
fn tensor(key: &str, held: u8, offset: u8, shape: &[u8], stride: &[u8]) -> Vec<u8> {
    let storage = [
        &b"("[..],
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text(key),
        &text("cpu"),
        &[b'K', held],
        b"tQ",
    ];
    let call = [&b"ctorch._utils\n_rebuild_tensor_v2\n("[..], &storage.concat()];
    [&call.concat()[..], &[b'K', offset], &tuple(shape), &tuple(stride), b"\x89}tR"].concat()
}

/// A dictionary of these entries.
fn dictionary(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries = entries.iter().flat_map(|(name, value)| [text(name), value.clone()].concat());
    [&b"}("[..], &entries.collect::<Vec<u8>>(), b"u"].concat()
}

fn pickle(value: Vec<u8>) -> Vec<u8> {
    [&b"\x80\x02"[..], &value, b"."].concat()
}

fn archive(value: Vec<u8>) -> Vec<u8> {
    let data: Vec<u8> = (0..6u8).flat_map(|n| f32::from(n).to_le_bytes()).collect();
    zip(&[("archive/data.pkl", &pickle(value)), ("archive/data/0", &data)])
}

#[track_caller]
fn assert_error(bytes: Vec<u8>, part: &str) {
    let shown = read_bytes(bytes).err().expect("a bad file");
    assert!(shown.contains(part), "`{part}` is not in: {shown}");
}

#[test]
fn dictionaries_and_checkpoints_are_read() {
    let of = || {
        dictionary(&[
            ("w", tensor("0", 6, 0, &[2, 3], &[3, 1])),
            ("b", tensor("0", 6, 4, &[2], &[1])),
        ])
    };
    let whole = archive(of());
    let found = read_bytes(whole.clone()).expect("read");
    assert_eq!(found.kind, FileKind::Torch);
    let (w, b) = (&found.tensors["w"], &found.tensors["b"]);
    assert_eq!((w.shape.as_slice(), w.strides.as_ref()), (&[2, 3][..], None));
    assert_eq!(b.start - w.start, 16);
    // Beside what training keeps.
    let checkpoint = dictionary(&[("epoch", b"K\x03".to_vec()), ("state_dict", of())]);
    assert_eq!(read_bytes(archive(checkpoint)).expect("read").tensors.len(), 2);
    // `model` may be a name, or settings; two dictionaries of tensors are one too many.
    let named = dictionary(&[("state_dict", of()), ("model", text("ViT-B-32"))]);
    assert_eq!(read_bytes(archive(named)).expect("read").tensors.len(), 2);
    let settings = dictionary(&[("layers", b"K\x03".to_vec())]);
    let beside = dictionary(&[("model", settings), ("state_dict", of())]);
    assert_eq!(read_bytes(archive(beside)).expect("read").tensors.len(), 2);
    let two = dictionary(&[("model", of()), ("state_dict", of())]);
    assert_error(archive(two), "as `model` and as `state_dict`");
    let twice = dictionary(&[("state_dict", of()), ("state_dict", of())]);
    assert_error(archive(twice), "as `state_dict` and as `state_dict`");
    for tenth in 0..10 {
        assert!(read_bytes(whole[..whole.len() * tenth / 10].to_vec()).is_err());
    }
}

#[test]
fn modules_are_walked_through() {
    let class = |state: Vec<u8>| [&b"c__torch__.model\nModule\n)\x81"[..], &state, b"b"].concat();
    let inner = class(dictionary(&[
        ("weight", tensor("0", 6, 0, &[6], &[1])),
        ("training", b"\x88".to_vec()),
    ]));
    let found = read_bytes(archive(class(dictionary(&[("visual", inner)])))).expect("read");
    assert_eq!(found.kind, FileKind::TorchScript { has_gelu: false });
    assert_eq!(found.tensors.keys().collect::<Vec<_>>(), ["visual.weight"]);
    // A module that is its own attribute: `q0` notes it before its state is built.
    let own =
        [&b"c__torch__\nA\n)\x81q\0"[..], &dictionary(&[("a", b"h\0".to_vec())]), b"b"].concat();
    assert_error(archive(own), "too deep");
}

#[test]
fn strides_of_views_are_kept() {
    let found = read_bytes(archive(dictionary(&[("t", tensor("0", 6, 0, &[3, 2], &[1, 3]))])));
    assert_eq!(found.expect("read").tensors["t"].strides, Some(vec![1, 3]));
    // The stride of a single index does not matter.
    let found = read_bytes(archive(dictionary(&[("t", tensor("0", 6, 0, &[1, 6], &[77, 1]))])));
    assert_eq!(found.expect("read").tensors["t"].strides, None);
}

/// What PyTorch would make other numbers of.
#[test]
fn tensors_that_are_no_plain_views_are_refused() {
    let plain = tensor("0", 6, 0, &[6], &[1]);
    let with = |metadata: &[u8]| [&plain[..plain.len() - 2], metadata, b"tR"].concat();
    let negated = with(&[&b"}"[..], &text("neg"), b"\x88s"].concat());
    assert_error(archive(dictionary(&[("w", negated)])), "negated");
    for metadata in [&b"}"[..], b"N"] {
        assert!(read_bytes(archive(dictionary(&[("w", with(metadata))]))).is_ok());
    }
    let moved = [&plain[..], &tuple(&[0]), b"b"].concat();
    assert_error(archive(dictionary(&[("w", moved)])), "a state to a tensor");
}

#[test]
fn tensors_that_do_not_lie_in_their_storage_are_refused() {
    let with = |tensor: Vec<u8>| archive(dictionary(&[("w", tensor)]));
    assert_error(with(tensor("1", 6, 0, &[6], &[1])), "storage `1` is missing");
    assert_error(with(tensor("../0", 6, 0, &[6], &[1])), "is missing");
    assert_error(with(tensor("0", 7, 0, &[6], &[1])), "holds 24 bytes");
    assert_error(with(tensor("0", 6, 1, &[6], &[1])), "beyond its storage");
    assert_error(with(tensor("0", 6, 0, &[7], &[1])), "does not fit");
    assert_error(with(tensor("0", 6, 0, &[7], &[0])), "does not fit");
    assert_error(with(tensor("0", 6, 0, &[3, 2], &[1])), "beyond its storage");
    assert_error(with(b"K\x01".to_vec()), "`w` is no tensor");
    let same = tensor("0", 6, 0, &[6], &[1]);
    assert_error(archive(dictionary(&[("w", same.clone()), ("w", same)])), "`w` twice");
    assert_error(archive(dictionary(&[])), "no tensors");
    assert_error(archive(b"K\x01".to_vec()), "neither");
}

#[test]
fn shapes_whose_product_overflows_are_refused() {
    let large = |n: u64| [&b"\x8a\x08"[..], &n.to_le_bytes()].concat();
    let shape = [&b"("[..], &large(1 << 62), &large(1 << 62), b"t"].concat();
    let usual = tensor("0", 6, 0, &[2, 3], &[3, 1]);
    let (from, to) = (tuple(&[2, 3]), shape);
    let at = usual.windows(from.len()).position(|window| window == from).expect("its shape");
    let tensor = [&usual[..at], &to, &usual[at + from.len()..]].concat();
    assert_error(archive(dictionary(&[("w", tensor)])), "does not fit");
}

#[test]
fn empty_tensors_have_a_place_and_few_sides() {
    let with = |tensor: Vec<u8>| archive(dictionary(&[("w", tensor)]));
    assert!(read_bytes(with(tensor("0", 6, 6, &[0], &[1]))).is_ok());
    assert_error(with(tensor("0", 6, 7, &[0], &[1])), "begins beyond its storage");
    let sides = [1; crate::checkpoint::stored::MAX_SIDES + 1];
    assert_error(with(tensor("0", 6, 0, &sides, &sides)), "no list of at most");
    let long = "a".repeat(1000);
    assert_error(
        archive(dictionary(&[(long.as_str(), tensor("0", 6, 0, &[6], &[1]))])),
        "takes 1000 bytes",
    );
}

#[test]
fn archives_that_pytorch_does_not_write_are_refused() {
    let value = pickle(dictionary(&[("w", tensor("0", 6, 0, &[6], &[1]))]));
    let data = [0; 24];
    assert_error(zip(&[("a/data/0", &data)]), "no `data.pkl`");
    assert_error(zip(&[]), "empty");
    let entries: [(&str, &[u8]); 3] =
        [("a/data.pkl", &value), ("a/data/0", &data), ("a/data/0", &data)];
    assert_error(zip(&entries), "`a/data/0` is in it twice");
    assert_error(zip(&[("a/data.pkl", &value), ("../b", &data)]), "outside its folder");
    assert_error(zip(&[("a/data.pkl", &value), ("a/../b", &data)]), "outside its folder");
    let big = zip(&[("a/data.pkl", &value), ("a/data/0", &data), ("a/byteorder", b"big")]);
    assert_error(big, "byte order is `big`");
    // Compressed and encrypted entries, by their marks in the directory.
    let whole = zip(&[("a/data.pkl", &value), ("a/data/0", &data)]);
    let directory =
        whole.windows(4).position(|window| window == b"PK\x01\x02").expect("a directory");
    for (place, part) in [
        (10, "compressed or encrypted"),
        (8, "compressed or encrypted"),
        (23, "outside the file"),
        (45, "outside the file"),
    ] {
        let mut bytes = whole.clone();
        bytes[directory + place] |= 1 | u8::from(place > 20) << 7;
        assert_error(bytes, part);
    }
    assert_error(
        zip(&[("a/data.pkl", &pickle(b"cos\nsystem\n".to_vec())), ("a/data/0", &data)]),
        "`os.system`",
    );
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    let whole = archive(dictionary(&[("w", tensor("0", 6, 0, &[2, 3], &[3, 1]))]));
    for end in 0..whole.len() {
        assert!(read_bytes(whole[..end].to_vec()).is_err(), "cut at {end}");
    }
    for place in 0..whole.len() {
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[place] = byte;
            let _ = read_bytes(bytes);
        }
    }
}
