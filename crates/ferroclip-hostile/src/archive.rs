//! A PyTorch archive around a pickle: a zip of two entries, nothing compressed.

/// The bytes of an archive with this pickle, whose storage `0` holds six numbers. Checksums are zero: nobody reads them.
pub(crate) fn of_pickle(pickle: &[u8]) -> Vec<u8> {
    let numbers: Vec<u8> = (0..6u8).flat_map(|n| f32::from(n).to_le_bytes()).collect();
    let (mut body, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in [("a/data.pkl", pickle), ("a/data/0", numbers.as_slice())] {
        let place = (body.len() as u32).to_le_bytes();
        let size = (data.len() as u32).to_le_bytes();
        let lengths = [name.len() as u16, 0].map(u16::to_le_bytes).concat();
        let (name, sizes) = (name.as_bytes(), [size, size].concat());
        body.extend([b"PK\x03\x04".as_slice(), &[0; 14], &sizes, &lengths, name, data].concat());
        directory.extend([b"PK\x01\x02".as_slice(), &[0; 16], &sizes, &lengths].concat());
        directory.extend([[0; 10].as_slice(), &place, name].concat());
    }
    let start = (body.len() as u32).to_le_bytes();
    let length = (directory.len() as u32).to_le_bytes();
    body.extend(directory);
    body.extend(
        [b"PK\x05\x06".as_slice(), &[0, 0, 0, 0, 2, 0, 2, 0], &length, &start, &[0; 2]].concat(),
    );
    body
}
