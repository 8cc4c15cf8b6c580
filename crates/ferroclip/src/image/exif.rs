//! The orientation in EXIF data, and the few TIFF tags that our TIFF reader needs itself.
//!
//! EXIF is a TIFF file without pixels: a byte order, the offset of a directory, and in it entries
//! of 12 bytes: tag, type, count, value. Damaged data means no orientation, never an error.

/// Tag of the orientation, 1 to 8.
const ORIENTATION: u16 = 0x0112;

/// The first directory of a TIFF structure.
pub(super) struct Directory<'a> {
    bytes: &'a [u8],
    big_endian: bool,
    entries: usize,
    n_entries: usize,
}

impl<'a> Directory<'a> {
    /// `None` when the bytes are no TIFF structure; BigTIFF is none.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Directory<'a>> {
        let big_endian = match bytes.get(..4)? {
            b"II*\0" => false,
            b"MM\0*" => true,
            _ => return None,
        };
        let mut directory = Directory { bytes, big_endian, entries: 0, n_entries: 0 };
        let at = directory.u32(4)? as usize;
        directory.n_entries = usize::from(directory.u16(at)?);
        directory.entries = at.checked_add(2)?;
        Some(directory)
    }

    /// The position of a tag's entry.
    pub(super) fn entry(&self, tag: u16) -> Option<usize> {
        (0..self.n_entries)
            .map(|i| self.entries.saturating_add(12 * i))
            .find(|&at| self.u16(at) == Some(tag))
    }

    /// The first value of a tag of type SHORT, which stands in the entry itself.
    pub(super) fn short(&self, tag: u16) -> Option<u16> {
        const SHORT: u16 = 3;
        let at = self.entry(tag)?;
        if self.u16(at + 2)? != SHORT || self.u32(at + 4)? == 0 { None } else { self.u16(at + 8) }
    }

    /// Two bytes in the byte order of the structure, for a value put in place of another.
    pub(super) fn short_bytes(&self, value: u16) -> [u8; 2] {
        if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }
}

/// The orientation that EXIF data states, with or without its `Exif` prefix; 1 (as stored)
/// otherwise.
pub(super) fn orientation(exif: &[u8]) -> u8 {
    let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    match Directory::first(tiff).and_then(|directory| directory.short(ORIENTATION)) {
        Some(value @ 1..=8) => value as u8,
        _ => 1,
    }
}
