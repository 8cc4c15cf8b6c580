//! Towers that are read while inputs pass them.
//!
//! A tower that inputs pass once need not be kept: its blocks are read and packed one by one, each while the inputs pass
//! the one before it, and dropped behind them. No more than two blocks lie in memory then, and none of the time goes
//! into finding memory for the others, which is most of a cold start. The numbers are those of a tower that is kept.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferroclip_ops::{Precision, TokenTable};

use super::source::{Elements, Loader, Source};
use crate::error::Error;

/// Where such a tower reads its parameters.
#[derive(Clone)]
pub(crate) struct Stream(Arc<Shared>);

struct Shared {
    elements: Mutex<Box<dyn Elements>>,
    shapes: BTreeMap<String, Vec<usize>>,
    precision: Precision,
    failed: Mutex<Option<Error>>,
}

impl Stream {
    /// Tensors of these shapes.
    pub(crate) fn new(
        shapes: BTreeMap<String, Vec<usize>>,
        precision: Precision,
        elements: Box<dyn Elements>,
    ) -> Stream {
        let (elements, failed) = (Mutex::new(elements), Mutex::new(None));
        Stream(Arc::new(Shared { elements, shapes, precision, failed }))
    }

    /// The tower that `new` makes of the tensors, or the first error in reading those that it keeps.
    pub(crate) fn build<T>(&self, new: impl FnOnce(&dyn Source) -> T) -> Result<T, Error> {
        let Shared { elements, shapes, precision, .. } = &*self.0;
        Loader::new(shapes, *precision, &mut Locked(elements), Some(self.clone())).build(new)
    }

    /// Whether all was read that the tower wanted since the last call. A part that could not be read is full of NaN.
    ///
    /// # Errors
    /// The first that it met.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match lock(&self.0.failed).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The part of a tower that `new` makes of tensors that are read now.
    pub(super) fn part<T>(&self, new: impl FnOnce(&dyn Source) -> T) -> T {
        let Shared { elements, shapes, precision, .. } = &*self.0;
        let mut elements = Locked(elements);
        let loader = Loader::new(shapes, *precision, &mut elements, None);
        let (part, error) = loader.build_anyway(new);
        self.note(error);
        part
    }

    /// Rows of the table of this name.
    pub(super) fn table_rows(&self, name: &str) -> usize {
        self.0.shapes[name][0]
    }

    /// A table of those tokens alone that are among `ids`, and `ids` as that table numbers them.
    pub(super) fn tokens(&self, name: &str, ids: &[u32]) -> (TokenTable, Vec<u32>) {
        let mut known: Vec<u32> = ids.to_vec();
        known.sort_unstable();
        known.dedup();
        let place = |id: &u32| known.binary_search(id).expect("one of the ids") as u32;
        let places = ids.iter().map(place).collect();
        let width = self.0.shapes[name][1];
        let shapes = BTreeMap::from([(name.to_owned(), vec![known.len(), width])]);
        let mut rows = Rows { table: Locked(&self.0.elements), rows: &known, width };
        let loader = Loader::new(&shapes, self.0.precision, &mut rows, None);
        let (table, error) = loader.build_anyway(|source| source.token_table(name));
        self.note(error);
        (table, places)
    }

    fn note(&self, error: Option<Error>) {
        let mut failed = lock(&self.0.failed);
        *failed = failed.take().or(error);
    }
}

/// Tensors that are read one at a time: between them, and while one is packed, the lock is free. While it is held,
/// nothing waits for other threads of the pool; this one could be given work that wants the lock, too.
struct Locked<'a>(&'a Mutex<Box<dyn Elements>>);

impl Elements for Locked<'_> {
    fn pieces(&mut self, name: &str, each: &mut dyn FnMut(&[f32])) -> Result<(), Error> {
        lock(self.0).pieces(name, each)
    }
}

/// Some rows of a table, in order; all of it passes by.
struct Rows<'a> {
    table: Locked<'a>,
    rows: &'a [u32],
    width: usize,
}

impl Elements for Rows<'_> {
    fn pieces(&mut self, name: &str, each: &mut dyn FnMut(&[f32])) -> Result<(), Error> {
        let (width, mut at) = (self.width, 0);
        let mut rows =
            self.rows.iter().map(|&row| row as usize * width..(row as usize + 1) * width);
        let mut row = rows.next();
        self.table.pieces(name, &mut |piece| {
            let end = at + piece.len();
            while let Some(wanted) = row.clone().filter(|row| row.start < end) {
                each(&piece[wanted.start.max(at) - at..wanted.end.min(end) - at]);
                if wanted.end > end {
                    break;
                }
                row = rows.next();
            }
            at = end;
        })
    }
}

/// What a thread that panicked left is whole: it only reads.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("precision", &self.0.precision).finish_non_exhaustive()
    }
}
