//! BMP, read here because PIL's choice among `1`, `L`, `P`, `RGB` and `RGBA` depends on details of
//! header and palette.

use super::{Admission, gather, unpack};
use crate::image::error::ImageError;
use crate::image::picture::{Mode, Picture};

const FORMAT: &str = "BMP";
const FILE_HEADER: usize = 14;
/// Compression codes.
const RAW: u32 = 0;
const RLE8: u32 = 1;
const RLE4: u32 = 2;
const BITFIELDS: u32 = 3;

pub(super) fn decode(bytes: &[u8], admission: &Admission<'_>) -> Result<Picture, ImageError> {
    let header = Header::read(bytes)?;
    // Indices and what they are unpacked of are less than an index and its colour.
    let [width, height] = admission.check(FORMAT, [header.width, header.height], 4)?;
    let palette = header.palette(bytes)?;
    let row_bytes = (width * usize::from(header.bits)).div_ceil(32) * 4;
    let data = bytes.get(header.pixels..).ok_or(ImageError::Truncated { format: FORMAT })?;
    let is_runs = matches!(header.compression, RLE8 | RLE4);
    let mut rows = if is_runs {
        run_lengths(data, [width, height], header.compression == RLE4)?
    } else {
        let Some(data) = data.get(..row_bytes * height) else {
            return Err(ImageError::Truncated { format: FORMAT });
        };
        header.samples(data, row_bytes, width)?
    };
    if !header.top_down {
        flip(&mut rows, height);
    }
    Ok(match palette {
        None if header.has_alpha() => Picture::new(width, height, Mode::Rgba, rows),
        None => Picture::new(width, height, Mode::Rgb, rows),
        Some(palette) => palette.picture(width, height, rows),
    })
}

/// The last row first, without a copy.
fn flip(pixels: &mut [u8], height: usize) {
    let row = pixels.len() / height;
    let (top, bottom) = pixels.split_at_mut(height / 2 * row);
    for (a, b) in top.chunks_exact_mut(row).zip(bottom.chunks_exact_mut(row).rev()) {
        a.swap_with_slice(b);
    }
}

struct Header {
    width: u64,
    height: u64,
    top_down: bool,
    bits: u16,
    compression: u32,
    /// Where the palette begins, its number of colours and the bytes of each.
    palette_at: usize,
    colors: usize,
    color_bytes: usize,
    /// Red, green, blue, alpha.
    masks: [u32; 4],
    /// Where the pixels begin.
    pixels: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Header, ImageError> {
        let field = |at: usize| u32_at(bytes, FILE_HEADER + at);
        let size = field(0)? as usize;
        let mut header = match size {
            12 => {
                let [sides, depth] = [field(4)?, field(8)?];
                let [width, height] = [sides & 0xffff, sides >> 16].map(u64::from);
                let bits = (depth >> 16) as u16;
                let core = Header { width, height, top_down: false, bits, ..EMPTY };
                Header { compression: RAW, color_bytes: 3, ..core }
            }
            40 | 52 | 56 | 64 | 108 | 124 => {
                let height = field(8)? as i32;
                Header {
                    width: u64::from(field(4)?),
                    height: u64::from(height.unsigned_abs()),
                    top_down: height < 0,
                    bits: (field(12)? >> 16) as u16,
                    compression: field(16)?,
                    colors: field(32)? as usize,
                    color_bytes: 4,
                    ..EMPTY
                }
            }
            _ => return Err(ImageError::unsupported(FORMAT, format!("a header of {size} bytes"))),
        };
        if !matches!(header.bits, 1 | 4 | 8 | 16 | 24 | 32) {
            return Err(ImageError::unsupported(FORMAT, format!("{} bits a pixel", header.bits)));
        }
        header.palette_at = FILE_HEADER + size;
        if header.compression == BITFIELDS {
            header.read_masks(bytes, size)?;
        }
        let runs = [(RLE8, 8), (RLE4, 4)].contains(&(header.compression, header.bits));
        if !runs && !matches!(header.compression, RAW | BITFIELDS) {
            return Err(ImageError::unsupported(FORMAT, "this compression"));
        }
        if header.colors == 0 && header.bits <= 8 {
            header.colors = 1 << header.bits;
        }
        let after_palette = match header.bits <= 8 {
            true => {
                header.palette_at.saturating_add(header.colors.saturating_mul(header.color_bytes))
            }
            false => header.palette_at,
        };
        let stated = u32_at(bytes, 10)? as usize;
        // PIL moves an offset that forgets the palette.
        let forgets = stated == FILE_HEADER + size || stated == 0;
        header.pixels = if forgets { after_palette } else { stated };
        Ok(header)
    }

    fn read_masks(&mut self, bytes: &[u8], size: usize) -> Result<(), ImageError> {
        for (i, mask) in self.masks.iter_mut().enumerate().take(3) {
            *mask = u32_at(bytes, FILE_HEADER + 40 + 4 * i)?;
        }
        match size {
            40 => self.palette_at += 12,
            56.. => self.masks[3] = u32_at(bytes, FILE_HEADER + 52)?,
            _ => {}
        }
        Ok(())
    }

    fn has_alpha(&self) -> bool {
        self.compression == BITFIELDS
            && self.bits == 32
            && (self.masks[3] != 0 || self.masks == [0; 4])
    }

    fn palette(&self, bytes: &[u8]) -> Result<Option<Palette>, ImageError> {
        if self.bits > 8 {
            return Ok(None);
        }
        if self.colors > 65_536 {
            return Err(ImageError::unsupported(FORMAT, format!("{} colours", self.colors)));
        }
        let end = self.palette_at + self.colors * self.color_bytes;
        let Some(colors) = bytes.get(self.palette_at..end) else {
            return Err(ImageError::Truncated { format: FORMAT });
        };
        let colors = colors.chunks_exact(self.color_bytes).map(|c| [c[2], c[1], c[0]]).collect();
        Ok(Some(Palette { colors }))
    }

    /// Rows without padding: indices, RGB or RGBA, in the order of the file.
    fn samples(&self, data: &[u8], row_bytes: usize, width: usize) -> Result<Vec<u8>, ImageError> {
        let bytes = usize::from(self.bits / 8);
        let layout = || ImageError::unsupported(FORMAT, "this layout of the colour bits");
        let rows = data.chunks_exact(row_bytes);
        let n = rows.len() * width;
        let pixels = rows.flat_map(|row| row[..width * bytes].chunks_exact(bytes.max(1)));
        let fields = self.compression == BITFIELDS;
        Ok(match (self.bits, fields) {
            (1 | 4 | 8, false) => unpack(data, row_bytes, width, self.bits as u8),
            (16, _) => {
                let five_six_five = match (fields, &self.masks[..3]) {
                    (false, _) | (true, [0x7c00, 0x3e0, 0x1f]) => false,
                    (true, [0xf800, 0x7e0, 0x1f]) => true,
                    _ => return Err(layout()),
                };
                gather(n, pixels.map(|p| short_color([p[0], p[1]], five_six_five)))
            }
            (24, false) => gather(n, pixels.map(|p| [p[2], p[1], p[0]])),
            (24, true) if self.masks[..3] == [0xff_0000, 0xff00, 0xff] => {
                gather(n, pixels.map(|p| [p[2], p[1], p[0]]))
            }
            (32, false) => gather(n, pixels.map(|p| [p[2], p[1], p[0]])),
            (32, true) => {
                let order = self.byte_order().ok_or_else(layout)?;
                let [r, g, b, a] = order;
                match self.has_alpha() {
                    true => gather(n, pixels.map(|p| [p[r], p[g], p[b], p[a]])),
                    false => gather(n, pixels.map(|p| [p[r], p[g], p[b]])),
                }
            }
            _ => return Err(layout()),
        })
    }

    /// The byte of red, green, blue and alpha in a 32-bit pixel.
    fn byte_order(&self) -> Option<[usize; 4]> {
        let byte =
            |mask: u32| [0xff, 0xff00, 0xff_0000, 0xff00_0000].iter().position(|&m| m == mask);
        if self.masks == [0; 4] {
            return Some([2, 1, 0, 3]);
        }
        let [r, g, b] = [byte(self.masks[0])?, byte(self.masks[1])?, byte(self.masks[2])?];
        let alpha = if self.masks[3] == 0 { 0 } else { byte(self.masks[3])? };
        Some([r, g, b, alpha])
    }
}

const EMPTY: Header = Header {
    width: 0,
    height: 0,
    top_down: false,
    bits: 0,
    compression: RAW,
    palette_at: 0,
    colors: 0,
    color_bytes: 4,
    masks: [0; 4],
    pixels: 0,
};

struct Palette {
    colors: Vec<[u8; 3]>,
}

impl Palette {
    /// PIL drops a palette of black and white, or of all greys in order.
    fn picture(self, width: usize, height: usize, mut indices: Vec<u8>) -> Picture {
        let n = self.colors.len();
        if n == 2 && self.colors == [[0; 3], [255; 3]] {
            indices.iter_mut().for_each(|v| *v = if *v == 0 { 0 } else { 255 });
            return Picture::new(width, height, Mode::Bilevel, indices);
        }
        let ramp =
            self.colors.iter().enumerate().all(|(i, c)| c.iter().all(|&v| usize::from(v) == i));
        if ramp && n > 2 {
            return Picture::new(width, height, Mode::L, indices);
        }
        let colors = self.colors.iter().take(256).map(|&[r, g, b]| [r, g, b, 255]);
        Picture::with_palette(width, height, indices, colors.collect())
    }
}

/// 5 bits of each colour, or 6 of green.
fn short_color(bytes: [u8; 2], five_six_five: bool) -> [u8; 3] {
    let pixel = u32::from(u16::from_le_bytes(bytes));
    let five = |shift: u32| ((pixel >> shift & 31) * 255 / 31) as u8;
    match five_six_five {
        true => [five(11), ((pixel >> 5 & 63) * 255 / 63) as u8, five(0)],
        false => [five(10), five(5), five(0)],
    }
}

/// Run lengths of 8-bit or 4-bit indices; what they leave out is index 0.
fn run_lengths(
    data: &[u8],
    [width, height]: [usize; 2],
    nibbles: bool,
) -> Result<Vec<u8>, ImageError> {
    let truncated = ImageError::Truncated { format: FORMAT };
    let mut out = vec![0; width * height];
    let mut input = data.iter().copied();
    let [mut x, mut y] = [0, 0];
    let mut put = |x: &mut usize, y: usize, value: u8| {
        if *x < width && y < height {
            out[y * width + *x] = value;
        }
        *x += 1;
    };
    let pick = |byte: u8, i: usize| match (nibbles, i % 2) {
        (false, _) => byte,
        (true, 0) => byte >> 4,
        (true, _) => byte & 15,
    };
    // Files without the final end code are common; the last row may also just be full.
    while y < height && !(y + 1 == height && x >= width) {
        let (Some(count), Some(code)) = (input.next(), input.next()) else { return Err(truncated) };
        match (count, code) {
            (0, 0) => [x, y] = [0, y + 1],
            (0, 1) => break,
            (0, 2) => {
                let (Some(right), Some(up)) = (input.next(), input.next()) else {
                    return Err(truncated);
                };
                x += usize::from(right);
                y += usize::from(up);
            }
            (0, n) => {
                let n = usize::from(n);
                let n_bytes = if nibbles { n.div_ceil(2) } else { n };
                let literal: Vec<u8> = input.by_ref().take(n_bytes).collect();
                if literal.len() < n_bytes {
                    return Err(truncated);
                }
                for i in 0..n {
                    put(&mut x, y, pick(literal[if nibbles { i / 2 } else { i }], i));
                }
                if n_bytes % 2 == 1 {
                    input.next();
                }
            }
            (n, value) => (0..usize::from(n)).for_each(|i| put(&mut x, y, pick(value, i))),
        }
    }
    Ok(out)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ImageError> {
    let bytes = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    bytes.map(u32::from_le_bytes).ok_or(ImageError::Truncated { format: FORMAT })
}
