//! Tables in Parquet, by rows; every cell becomes text, and nulls become empty.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use parquet::record::Field;

use crate::table::{Table, TableBuilder};
use crate::{DataError, Filter};

/// Reads a table; `path` is named by errors, and rows count as lines from 1.
pub(crate) fn read<R: ChunkReader + 'static>(
    reader: R,
    path: &Path,
    filters: &[Filter],
) -> Result<Table, DataError> {
    // The reader is known to panic on some malformed files; to us they are bad input like others.
    catch_unwind(AssertUnwindSafe(|| read_rows(reader, path, filters)))
        .unwrap_or_else(|_| Err(malformed(path, None, &"its pages contradict each other")))
}

fn read_rows<R: ChunkReader + 'static>(
    reader: R,
    path: &Path,
    filters: &[Filter],
) -> Result<Table, DataError> {
    let reader = SerializedFileReader::new(reader).map_err(|e| malformed(path, None, &e))?;
    let schema = reader.metadata().file_metadata().schema();
    let names = schema.get_fields().iter().map(|field| field.name().to_owned()).collect();
    let mut builder = TableBuilder::with_header(names, filters, path)?;
    let rows = reader.get_row_iter(None).map_err(|e| malformed(path, None, &e))?;
    for (number, row) in (1..).zip(rows) {
        let row = row.map_err(|e| malformed(path, Some(number), &e))?;
        let cells: Vec<String> = row.get_column_iter().map(|(_, field)| cell(field)).collect();
        let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
        builder.push_line(&cells, number)?;
    }
    Ok(builder.finish())
}

fn cell(field: &Field) -> String {
    match field {
        Field::Null => String::new(),
        Field::Str(text) => text.clone(),
        Field::Bytes(bytes) => String::from_utf8_lossy(bytes.data()).into_owned(),
        other => other.to_string(),
    }
}

fn malformed(path: &Path, line: Option<u64>, reason: &dyn ToString) -> DataError {
    DataError::Table { path: path.to_owned(), line, reason: reason.to_string() }
}
