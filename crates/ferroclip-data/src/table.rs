//! Tables of text: how they are held, and how tsv and csv are read.
//!
//! A table is held by columns, each one long string and the end of every cell in it: four bytes a
//! cell beside its text, and no allocation per cell. Rows that a filter drops are never stored.
//!
//! tsv here is the plain kind: UTF-8, one header line, tabs between cells, no quoting. csv quotes
//! as RFC 4180 does. A `.csv` whose header holds a tab is separated by tabs (open_clip's habit).

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::{DataError, Filter};

/// The most bytes of a table, once unpacked. Cell ends are `u32` because of it.
pub(crate) const MAX_TABLE_BYTES: u64 = 1 << 30;
/// The most bytes of one line of a tsv.
const MAX_LINE_BYTES: u64 = 16 << 20;
/// The most columns.
const MAX_COLUMNS: usize = 4096;
/// The most rows: a row number is a `u32`.
const MAX_ROWS: usize = u32::MAX as usize - 1;
/// Where the path of the picture is looked for, in this order.
const FILE_COLUMNS: [&str; 4] = ["file", "path", "filepath", "image"];

/// Text columns, row by row the same length.
#[derive(Debug, Default)]
pub(crate) struct Table {
    names: Vec<String>,
    columns: Vec<Column>,
    /// The line of each row in its file; empty where rows have no lines.
    lines: Vec<u32>,
    rows: usize,
    /// The column that holds the path of the picture.
    file_column: usize,
}

#[derive(Debug, Default)]
struct Column {
    text: String,
    ends: Vec<u32>,
}

impl Column {
    fn cell(&self, row: usize) -> &str {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.text[start as usize..self.ends[row] as usize]
    }
}

impl Table {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn column_index(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|column| column == name)
    }

    pub(crate) fn cell(&self, row: usize, column: usize) -> &str {
        self.columns[column].cell(row)
    }

    pub(crate) fn key(&self, row: usize) -> &str {
        self.cell(row, self.file_column)
    }

    /// Forgets the lines, where the rows come from no file.
    pub(crate) fn without_lines(mut self) -> Self {
        self.lines = Vec::new();
        self
    }

    pub(crate) fn line(&self, row: usize) -> Option<u64> {
        self.lines.get(row).map(|&line| u64::from(line))
    }
}

/// Fills a [`Table`], dropping the rows that the filters drop.
#[derive(Debug)]
pub(crate) struct TableBuilder<'a> {
    table: Table,
    filters: &'a [Filter],
    path: &'a Path,
}

impl<'a> TableBuilder<'a> {
    /// A table whose header is known, as that of a file is; `path` is named by errors.
    pub(crate) fn with_header(
        names: Vec<String>,
        filters: &'a [Filter],
        path: &'a Path,
    ) -> Result<Self, DataError> {
        check_limit(path, "columns", names.len(), MAX_COLUMNS)?;
        let mut sorted: Vec<&String> = names.iter().collect();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(DataError::DuplicateColumn {
                path: path.to_owned(),
                column: pair[0].clone(),
            });
        }
        let position = |wanted: &&str| names.iter().position(|name| name == wanted);
        let file_column = FILE_COLUMNS.iter().find_map(position);
        let file_column = file_column.ok_or_else(|| DataError::MissingFileColumn {
            path: path.to_owned(),
            columns: names.clone(),
        })?;
        Filter::check_columns(filters, &names, path)?;
        let columns = names.iter().map(|_| Column::default()).collect();
        let table = Table { names, columns, file_column, ..Table::default() };
        Ok(Self { table, filters, path })
    }

    /// Adds one row of a file with a header.
    pub(crate) fn push_line(&mut self, cells: &[&str], line: u64) -> Result<(), DataError> {
        let expected = self.table.names.len();
        if cells.len() != expected {
            return Err(DataError::RaggedRow {
                path: self.path.to_owned(),
                line,
                expected: expected as u64,
                found: cells.len() as u64,
            });
        }
        let key = cells[self.table.file_column];
        if key.is_empty() {
            return Err(DataError::EmptyFileCell { path: self.path.to_owned(), line });
        }
        let names = &self.table.names;
        let cell = |name: &str| Some(cells[names.iter().position(|column| column == name)?]);
        if self.filters.iter().all(|filter| filter.keeps(key, cell)) {
            check_limit(self.path, "rows", self.table.rows + 1, MAX_ROWS)?;
            for (column, cell) in self.table.columns.iter_mut().zip(cells) {
                append(column, cell, self.path)?;
            }
            self.table.lines.push(u32::try_from(line).unwrap_or(u32::MAX));
            self.table.rows += 1;
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Table {
        self.table
    }
}

/// Fills a [`Table`] whose columns come to light row by row, as those of tar shards do.
///
/// Column 0 is `file`. The filters' columns can be checked only at the end.
#[derive(Debug)]
pub(crate) struct OpenTableBuilder<'a> {
    table: Table,
    filters: &'a [Filter],
    path: &'a Path,
    max_columns: usize,
}

impl<'a> OpenTableBuilder<'a> {
    pub(crate) fn new(filters: &'a [Filter], path: &'a Path, max_columns: usize) -> Self {
        let table = Table {
            names: vec!["file".to_owned()],
            columns: vec![Column::default()],
            ..Table::default()
        };
        Self { table, filters, path, max_columns }
    }

    /// Adds one row of named cells, none of them `file`; says whether the filters kept it.
    pub(crate) fn push(
        &mut self,
        key: &str,
        cells: &[(String, String)],
    ) -> Result<bool, DataError> {
        for (name, _) in cells {
            if self.table.column_index(name).is_none() {
                self.add_column(name)?;
            }
        }
        let cell = |name: &str| match name {
            "file" => Some(key),
            _ => cells.iter().find(|(n, _)| n == name).map(|(_, text)| text.as_str()),
        };
        if !self.filters.iter().all(|filter| filter.keeps(key, cell)) {
            return Ok(false);
        }
        check_limit(self.path, "rows", self.table.rows + 1, MAX_ROWS)?;
        for (name, column) in self.table.names.iter().zip(&mut self.table.columns) {
            append(column, cell(name).unwrap_or_default(), self.path)?;
        }
        self.table.rows += 1;
        Ok(true)
    }

    pub(crate) fn finish(self) -> Result<Table, DataError> {
        Filter::check_columns(self.filters, &self.table.names, self.path)?;
        Ok(self.table)
    }

    fn add_column(&mut self, name: &str) -> Result<(), DataError> {
        check_limit(self.path, "columns", self.table.names.len() + 1, self.max_columns)?;
        self.table.names.push(name.to_owned());
        self.table.columns.push(Column { text: String::new(), ends: vec![0; self.table.rows] });
        Ok(())
    }
}

fn append(column: &mut Column, cell: &str, path: &Path) -> Result<(), DataError> {
    let end = column.text.len() + cell.len();
    check_limit(path, "bytes in a column", end, MAX_TABLE_BYTES as usize)?;
    column.text.push_str(cell);
    column.ends.push(end as u32);
    Ok(())
}

fn check_limit(path: &Path, what: &'static str, n: usize, limit: usize) -> Result<(), DataError> {
    if n > limit {
        return Err(DataError::TooLarge { path: path.to_owned(), what, limit: limit as u64 });
    }
    Ok(())
}

/// How a text table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextFormat {
    Tsv,
    Csv,
}

/// Reads a tsv or csv; `path` decides nothing and is named by errors.
pub(crate) fn read_text(
    reader: impl Read,
    format: TextFormat,
    path: &Path,
    filters: &[Filter],
) -> Result<Table, DataError> {
    let limited = Limited { inner: reader, left: MAX_TABLE_BYTES };
    let mut reader = BufReader::with_capacity(1 << 16, limited);
    let head = reader.fill_buf().map_err(|e| text_io(path, e))?;
    let has_mark = head.starts_with("\u{feff}".as_bytes());
    let has_tab = head.iter().take_while(|&&b| b != b'\n').any(|&b| b == b'\t');
    if has_mark {
        reader.consume("\u{feff}".len());
    }
    match format {
        TextFormat::Tsv => read_tsv(reader, path, filters),
        TextFormat::Csv => read_csv(reader, if has_tab { b'\t' } else { b',' }, path, filters),
    }
}

fn read_tsv(mut reader: impl BufRead, path: &Path, filters: &[Filter]) -> Result<Table, DataError> {
    let mut line = Vec::new();
    let Some(header) = next_line(&mut reader, &mut line, path, 1)? else {
        return Err(DataError::EmptyTable { path: path.to_owned() });
    };
    let names = header.split('\t').map(str::to_owned).collect();
    let mut builder = TableBuilder::with_header(names, filters, path)?;
    for number in 2.. {
        let Some(text) = next_line(&mut reader, &mut line, path, number)? else {
            break;
        };
        let cells: Vec<&str> = text.split('\t').collect();
        builder.push_line(&cells, number)?;
    }
    Ok(builder.finish())
}

/// The next line without its end, or `None` at the end of the file.
fn next_line<'b>(
    reader: &mut impl BufRead,
    buffer: &'b mut Vec<u8>,
    path: &Path,
    number: u64,
) -> Result<Option<&'b str>, DataError> {
    buffer.clear();
    let read = reader.take(MAX_LINE_BYTES + 1).read_until(b'\n', buffer);
    if read.map_err(|e| text_io(path, e))? == 0 {
        return Ok(None);
    }
    check_limit(path, "bytes in a line", buffer.len(), MAX_LINE_BYTES as usize)?;
    let line = buffer.strip_suffix(b"\n").unwrap_or(buffer);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match std::str::from_utf8(line) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(DataError::NotUtf8 { path: path.to_owned(), line: Some(number) }),
    }
}

fn read_csv(
    reader: impl Read,
    delimiter: u8,
    path: &Path,
    filters: &[Filter],
) -> Result<Table, DataError> {
    let mut csv = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(reader);
    let header = csv.headers().map_err(|e| csv_error(path, e))?;
    if header.is_empty() {
        return Err(DataError::EmptyTable { path: path.to_owned() });
    }
    let names = header.iter().map(str::to_owned).collect();
    let mut builder = TableBuilder::with_header(names, filters, path)?;
    let mut record = csv::StringRecord::new();
    while csv.read_record(&mut record).map_err(|e| csv_error(path, e))? {
        let line = record.position().map_or(0, csv::Position::line);
        let cells: Vec<&str> = record.iter().collect();
        builder.push_line(&cells, line)?;
    }
    Ok(builder.finish())
}

fn csv_error(path: &Path, error: csv::Error) -> DataError {
    let path = path.to_owned();
    let line = error.position().map(csv::Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(source) => text_io(&path, source),
        csv::ErrorKind::Utf8 { .. } => DataError::NotUtf8 { path, line: Some(line.unwrap_or(1)) },
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => DataError::RaggedRow {
            path,
            line: line.unwrap_or(0),
            expected: expected_len,
            found: len,
        },
        other => DataError::Table { path, line, reason: format!("{other:?}") },
    }
}

/// A reader that fails, rather than ends, when the table is too long: an archive may unpack to
/// any length, and a table cut short must not pass for a whole one.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(n)
    }
}

fn text_io(path: &Path, error: io::Error) -> DataError {
    match error.kind() {
        io::ErrorKind::FileTooLarge => {
            DataError::TooLarge { path: path.to_owned(), what: "bytes", limit: MAX_TABLE_BYTES }
        }
        _ => DataError::io(path, error),
    }
}

/// Whether a name stays below the directory or archive that it is relative to.
pub(crate) fn stays_inside(name: &str) -> bool {
    let drive = name.as_bytes().get(1) == Some(&b':')
        && (cfg!(windows) || matches!(name.as_bytes().get(2), Some(b'/' | b'\\')));
    !drive
        && !name.contains('\0')
        && !name.starts_with(['/', '\\'])
        && !name.split(['/', '\\']).any(|part| part == "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], format: TextFormat, filters: &[&str]) -> Result<Table, DataError> {
        let filters: Vec<Filter> = filters.iter().map(|f| f.parse().unwrap()).collect();
        read_text(bytes, format, Path::new("labels"), &filters)
    }

    fn rows(table: &Table) -> Vec<Vec<&str>> {
        let cells = |row| (0..table.names.len()).map(move |column| table.cell(row, column));
        (0..table.rows).map(|row| cells(row).collect()).collect()
    }

    #[test]
    fn reads_tsv_with_mark_and_windows_line_ends() {
        let table = read(
            "\u{feff}file\tlabel\r\na.png\t\"quoted\"\r\nb.png\t\n".as_bytes(),
            TextFormat::Tsv,
            &[],
        )
        .unwrap();
        assert_eq!(table.names(), ["file", "label"]);
        assert_eq!(rows(&table), [["a.png", "\"quoted\""], ["b.png", ""]]);
        assert_eq!((table.line(0), table.line(1)), (Some(2), Some(3)));
    }

    #[test]
    fn reads_csv_with_quotes() {
        let text = b"label,filepath\n\"a, \"\"b\"\"\nc\",x.png\n,y.png\n";
        let table = read(text, TextFormat::Csv, &[]).unwrap();
        assert_eq!(rows(&table), [["a, \"b\"\nc", "x.png"], ["", "y.png"]]);
        assert_eq!((table.key(0), table.line(1)), ("x.png", Some(4)));
    }

    #[test]
    fn reads_csv_separated_by_tabs() {
        let table = read(b"title\tfilepath\n\"a\tb, c\"\tx.png\n", TextFormat::Csv, &[]).unwrap();
        assert_eq!(rows(&table), [["a\tb, c", "x.png"]]);
    }

    #[test]
    fn prefers_file_to_other_names() {
        let table = read(b"image\tpath\tfile\n1\t2\t3\n", TextFormat::Tsv, &[]).unwrap();
        assert_eq!(table.key(0), "3");
        let table = read(b"image\tpath\n1\t2\n", TextFormat::Tsv, &[]).unwrap();
        assert_eq!(table.key(0), "2");
    }

    #[test]
    fn filters_rows() {
        let text = b"file\tvendor\na\tx\nb\ty\nc\tx\n";
        let keys = |filters: &[&str]| {
            let table = read(text, TextFormat::Tsv, filters).unwrap();
            (0..table.rows()).map(|row| table.key(row).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(keys(&["vendor=x"]), ["a", "c"]);
        assert_eq!(keys(&["vendor!=x"]), ["b"]);
        assert_eq!(keys(&["vendor=x", "file!=a"]), ["c"]);
        assert_eq!(keys(&["vendor=z"]).len(), 0);
        let error = read(text, TextFormat::Tsv, &["colour=red"]).unwrap_err();
        assert_eq!(error.to_string(), "`labels` has no column `colour`, only: `file`, `vendor`");
    }

    #[test]
    fn names_what_is_malformed() {
        use TextFormat::{Csv, Tsv};
        for (bytes, format, message) in [
            (&b""[..], Tsv, "`labels` is an empty table, without even a header"),
            (b"", Csv, "`labels` is an empty table, without even a header"),
            (b"name\tlabel\n", Tsv, "`labels` has no column `file`, only: `name`, `label`"),
            (b"file\tx\tx\n", Tsv, "`labels` has two columns `x`"),
            (b"file\tx\na\n", Tsv, "`labels`, line 2: expected 2 cells, found 1"),
            (b"file\tx\na\tb\n\n", Tsv, "`labels`, line 3: expected 2 cells, found 1"),
            (b"file,x\na,b\na,b,c\n", Csv, "`labels`, line 3: expected 2 cells, found 3"),
            (b"file\tx\na\tb\nc\t\xff\n", Tsv, "`labels` is not UTF-8 at line 3"),
            (b"file,x\na,b\nc,\xff\n", Csv, "`labels` is not UTF-8 at line 3"),
            (b"fi\xffle\tx\n", Tsv, "`labels` is not UTF-8 at line 1"),
            (b"fi\xffle,x\n", Csv, "`labels` is not UTF-8 at line 1"),
            (b"file\tx\n\tb\n", Tsv, "`labels`, line 2: the path of the picture is empty"),
        ] {
            assert_eq!(read(bytes, format, &[]).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn bounds_the_length_of_lines_and_tables() {
        let line = io::repeat(b'x').take(MAX_LINE_BYTES + 10);
        let error = read_text(line, TextFormat::Tsv, Path::new("t"), &[]).unwrap_err();
        assert_eq!(error.to_string(), "`t` is too large: more than 16777216 bytes in a line");
        let mut limited = Limited { inner: io::repeat(b'x'), left: 10 };
        let error = limited.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn columns_may_come_late() {
        let mut builder = OpenTableBuilder::new(&[], Path::new("t"), 3);
        let cell = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        builder.push("a", &[]).unwrap();
        builder.push("b", &[cell("x", "1")]).unwrap();
        builder.push("c", &[cell("y", "2")]).unwrap();
        let error = builder.push("d", &[cell("z", "3")]).unwrap_err();
        assert_eq!(error.to_string(), "`t` is too large: more than 3 columns");
        let table = builder.finish().unwrap();
        assert_eq!(rows(&table), [["a", "", ""], ["b", "1", ""], ["c", "", "2"]]);
    }

    #[test]
    fn knows_names_that_leave() {
        for name in ["a.png", "a/b..c/d.png", "...", "a:b.png", "./a.png"] {
            assert!(stays_inside(name), "{name}");
        }
        for name in ["../a", "a/../b", "a/..", "/a", "\\a", "a\\..\\b", "C:\\a", "c:/a", "a\0b"] {
            assert!(!stays_inside(name), "{name}");
        }
    }
}
