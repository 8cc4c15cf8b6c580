//! A table of text columns in Parquet, as plain as the format allows: one row group, one page a
//! column, `REQUIRED` UTF-8 values in `PLAIN` encoding, uncompressed.
//!
//! The file is `PAR1`, the pages, the metadata in Thrift's compact protocol, its length, `PAR1`.
//! The `parquet` crate would do it too, but builds longer than the rest of this program.

use std::path::Path;

use crate::atomic::AtomicFile;
use crate::error::Result;

const MAGIC: &[u8] = b"PAR1";
// Thrift's compact types.
const I32: u8 = 5;
const I64: u8 = 6;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;
// Parquet's enumerations.
const BYTE_ARRAY: i64 = 6;
const UTF8: i64 = 0;
const REQUIRED: i64 = 0;
const PLAIN: i64 = 0;
const RLE: i64 = 3;

/// Writes `rows`, each with a cell for every column.
pub(crate) fn write(path: &Path, columns: &[String], rows: &[Vec<String>]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write(MAGIC)?;
    let mut offset = MAGIC.len();
    let mut chunks = Vec::new();
    for column in 0..columns.len() {
        let mut values = Vec::new();
        for row in rows {
            values.extend((row[column].len() as u32).to_le_bytes());
            values.extend(row[column].as_bytes());
        }
        let header = page_header(values.len(), rows.len());
        file.write(&header)?;
        file.write(&values)?;
        chunks.push((offset, header.len() + values.len()));
        offset += header.len() + values.len();
    }
    let metadata = file_metadata(columns, rows.len(), &chunks);
    file.write(&metadata)?;
    file.write(&(metadata.len() as u32).to_le_bytes())?;
    file.write(MAGIC)?;
    file.commit()
}

fn page_header(n_bytes: usize, n_rows: usize) -> Vec<u8> {
    let mut page = Thrift::default();
    page.int(1, I32, n_rows as i64).int(2, I32, PLAIN).int(3, I32, RLE).int(4, I32, RLE);
    let mut header = Thrift::default();
    let n_bytes = n_bytes as i64;
    header.int(1, I32, 0).int(2, I32, n_bytes).int(3, I32, n_bytes).nested(5, page);
    header.finish()
}

/// `chunks` holds the offset and the bytes of each column.
fn file_metadata(columns: &[String], n_rows: usize, chunks: &[(usize, usize)]) -> Vec<u8> {
    let mut root = Thrift::default();
    root.text(4, "schema").int(5, I32, columns.len() as i64);
    let mut schema = vec![root];
    for name in columns {
        let mut column = Thrift::default();
        column.int(1, I32, BYTE_ARRAY).int(3, I32, REQUIRED).text(4, name).int(6, I32, UTF8);
        schema.push(column);
    }
    let chunk = |(name, &(offset, n_bytes)): (&String, &(usize, usize))| {
        let (offset, n_bytes) = (offset as i64, n_bytes as i64);
        let mut meta = Thrift::default();
        meta.int(1, I32, BYTE_ARRAY).ints(2, &[PLAIN]).texts(3, &[name]).int(4, I32, 0);
        meta.int(5, I64, n_rows as i64).int(6, I64, n_bytes).int(7, I64, n_bytes);
        meta.int(9, I64, offset);
        let mut chunk = Thrift::default();
        chunk.int(2, I64, offset).nested(3, meta);
        chunk
    };
    let n_bytes: usize = chunks.iter().map(|chunk| chunk.1).sum();
    let mut group = Thrift::default();
    group.structs(1, columns.iter().zip(chunks).map(chunk).collect());
    group.int(2, I64, n_bytes as i64).int(3, I64, n_rows as i64);
    let mut file = Thrift::default();
    file.int(1, I32, 1).structs(2, schema).int(3, I64, n_rows as i64).structs(4, vec![group]);
    file.text(6, concat!("ferroclip ", env!("CARGO_PKG_VERSION")));
    file.finish()
}

/// A struct in Thrift's compact protocol; fields must come in the order of their numbers.
#[derive(Default)]
struct Thrift {
    bytes: Vec<u8>,
    last_field: u8,
}

impl Thrift {
    fn field(&mut self, field: u8, kind: u8) -> &mut Self {
        // Our fields are never more than 15 apart.
        self.bytes.push((field - self.last_field) << 4 | kind);
        self.last_field = field;
        self
    }

    fn varint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
        self
    }

    fn zigzag(&mut self, value: i64) -> &mut Self {
        self.varint((value << 1 ^ value >> 63) as u64)
    }

    fn int(&mut self, field: u8, kind: u8, value: i64) -> &mut Self {
        self.field(field, kind).zigzag(value)
    }

    fn raw_text(&mut self, text: &str) -> &mut Self {
        self.varint(text.len() as u64).bytes.extend(text.bytes());
        self
    }

    fn text(&mut self, field: u8, text: &str) -> &mut Self {
        self.field(field, BINARY).raw_text(text)
    }

    fn list(&mut self, field: u8, kind: u8, len: usize) -> &mut Self {
        self.field(field, LIST);
        if len < 15 {
            self.bytes.push((len as u8) << 4 | kind);
            return self;
        }
        self.bytes.push(0xf0 | kind);
        self.varint(len as u64)
    }

    fn ints(&mut self, field: u8, values: &[i64]) -> &mut Self {
        self.list(field, I32, values.len());
        values.iter().fold(self, |this, &value| this.zigzag(value))
    }

    fn texts(&mut self, field: u8, texts: &[&String]) -> &mut Self {
        self.list(field, BINARY, texts.len());
        texts.iter().fold(self, |this, text| this.raw_text(text))
    }

    fn nested(&mut self, field: u8, value: Thrift) -> &mut Self {
        self.field(field, STRUCT).bytes.extend(value.finish());
        self
    }

    fn structs(&mut self, field: u8, values: Vec<Thrift>) -> &mut Self {
        self.list(field, STRUCT, values.len());
        self.bytes.extend(values.into_iter().flat_map(Thrift::finish));
        self
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.push(0);
        self.bytes
    }
}
