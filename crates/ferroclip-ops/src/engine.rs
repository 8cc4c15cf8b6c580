//! Where the rows of a packed product are computed: on one core each, or all cores on one product.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ferroclip_kernels::{AttentionScratch, Isa, PackedRows};
use rayon::prelude::*;

use crate::Spans;

/// Rows that go through an operation together in training, where what lies between the products is written to memory anyway: smaller
/// tasks leave less to wait for at the end.
pub(crate) const TRAINING_TASK_ROWS: usize = 64;
/// A core's share of rows below which all cores work on one product together instead: then each reads a part of the
/// weights, not all of them. One image of 50 rows is worth it.
const MIN_SHARE: usize = 32;

/// What a thread without work stays awake for where all of them share a product: longer than what lies between two
/// parallel parts.
const AWAKE: Duration = Duration::from_millis(1);

/// A part of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    /// Sequences, or rows where they are independent.
    pub(crate) range: Range<usize>,
    /// Whether all cores work on it together.
    pub(crate) split: bool,
}

/// Whole sequences, about `task_rows` rows, for each task; what is left over when the cores have
/// equally many is for all of them together.
pub(crate) fn span_tasks(spans: &Spans, threads: usize, task_rows: usize) -> Vec<Task> {
    let count = spans.count();
    // With many sequences to a core an unequal number costs less than working together.
    let even = if count < 4 * threads { count - count % threads } else { count };
    let rows = spans.offsets()[even];
    let mut tasks = Vec::new();
    if rows > 0 {
        let wanted = rows.div_ceil(task_rows).next_multiple_of(threads).min(even);
        let mut start = 0;
        for i in 1..=wanted {
            let target = rows * i / wanted;
            let end = spans.offsets()[..=even].partition_point(|&offset| offset < target).min(even);
            if end > start {
                tasks.push(Task { range: start..end, split: false });
                start = end;
            }
        }
        if start < even {
            tasks.push(Task { range: start..even, split: false });
        }
    } else if even > 0 {
        tasks.push(Task { range: 0..even, split: false });
    }
    if even < count {
        tasks.push(Task { range: even..count, split: threads > 1 });
    }
    tasks
}

/// About `task_rows` rows for each task.
pub(crate) fn row_tasks(rows: usize, threads: usize, task_rows: usize) -> Vec<Task> {
    if threads > 1 && rows < threads * MIN_SHARE {
        return vec![Task { range: 0..rows, split: true }];
    }
    let wanted = rows.div_ceil(task_rows).next_multiple_of(threads).min(rows).max(1);
    let cut = |i: usize| rows * i / wanted;
    (0..wanted).map(|i| Task { range: cut(i)..cut(i + 1), split: false }).collect()
}

/// What a core computes with.
pub(crate) struct Memory {
    /// The operand of a product.
    pub(crate) rows: PackedRows,
    /// That of the product behind it.
    pub(crate) next: PackedRows,
    /// Rows of queries, keys and values, or of an MLP's hidden layer.
    pub(crate) wide: Vec<f32>,
    /// Rows between attention and its projection.
    pub(crate) mixed: Vec<f32>,
    pub(crate) attention: AttentionScratch,
}

impl Memory {
    fn new() -> Memory {
        Memory {
            rows: PackedRows::default(),
            next: PackedRows::default(),
            wide: Vec::new(),
            mixed: Vec::new(),
            attention: AttentionScratch::new(Isa::active()),
        }
    }
}

thread_local! {
    /// Kept from one operation to the next, so that a batch touches no new pages. A thread that waits
    /// for others may be given another task meanwhile, which then has memory of its own.
    static MEMORY: Cell<Option<Box<Memory>>> = const { Cell::new(None) };
}

fn with_memory(work: impl FnOnce(&mut Memory)) {
    let mut memory = MEMORY.take().unwrap_or_else(|| Box::new(Memory::new()));
    work(&mut memory);
    MEMORY.set(Some(memory));
}

/// The parts of `out` that belong to the tasks, `length(task)` elements each, one behind the other.
pub(crate) fn parts<'a>(
    tasks: &[Task],
    mut out: &'a mut [f32],
    length: impl Fn(&Task) -> usize,
) -> Vec<&'a mut [f32]> {
    let parts = tasks.iter().map(|task| {
        let (mine, rest) = std::mem::take(&mut out).split_at_mut(length(task));
        out = rest;
        mine
    });
    parts.collect()
}

/// Runs `work(memory, task, part)` for all tasks, with the part of the results that each writes:
/// those of one core in parallel, then the others one by one.
pub(crate) fn run<T: Send>(
    tasks: &[Task],
    parts: impl IntoIterator<Item = T>,
    work: impl Fn(&mut Memory, &Task, T) + Sync + Send,
) {
    let (together, alone): (Vec<_>, Vec<_>) =
        tasks.iter().zip(parts).partition(|(task, _)| task.split);
    // One at a time: a chunk of several could leave a core idle at the end.
    alone.into_par_iter().with_max_len(1).for_each(|(task, part)| {
        with_memory(|memory| work(memory, task, part));
    });
    if !together.is_empty() {
        all_awake(|| {
            together
                .into_iter()
                .for_each(|(task, part)| with_memory(|memory| work(memory, task, part)));
        });
    }
}

/// Runs `work`, whose parallel parts are short and follow each other closely, while the other threads look for them
/// all the time: falling asleep between them and being woken would take longer than some of them do.
fn all_awake(work: impl FnOnce() + Send) {
    let done = AtomicBool::new(false);
    rayon::scope(|scope| {
        let (here, done) = (rayon::current_thread_index(), &done);
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(move |_| {
                // Not on the thread that it would wait for.
                if rayon::current_thread_index() != here {
                    look_for_work(done);
                }
            });
        }
        work();
        done.store(true, Ordering::Release);
    });
}

/// Does what other threads offer until all is done, or nothing was offered for [`AWAKE`]: whatever may wait for
/// this thread meanwhile does not wait for ever.
fn look_for_work(done: &AtomicBool) {
    let mut idle = Instant::now();
    while !done.load(Ordering::Acquire) && idle.elapsed() < AWAKE {
        match rayon::yield_now() {
            Some(rayon::Yield::Executed) => idle = Instant::now(),
            _ => std::hint::spin_loop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK_ROWS: usize = 128;

    fn covered(tasks: &[Task]) -> usize {
        tasks.iter().fold(0, |end, task| {
            assert_eq!(task.range.start, end);
            task.range.end
        })
    }

    #[test]
    fn tasks_cover_everything_once() {
        for threads in [1, 2, 3, 8] {
            for rows in [0, 1, 50, 127, 1600] {
                assert_eq!(covered(&row_tasks(rows, threads, TASK_ROWS)), rows);
            }
            for count in [0, 1, 2, 3, 7, 32, 33] {
                for length in [0, 1, 14, 50, 257] {
                    let tasks = span_tasks(&Spans::uniform(count, length), threads, TASK_ROWS);
                    assert_eq!(covered(&tasks), count, "{count} of {length}, {threads} threads");
                }
            }
            let ragged = Spans::from_lengths([3, 77, 0, 5, 200, 1, 9, 30, 14]);
            assert_eq!(covered(&span_tasks(&ragged, threads, TASK_ROWS)), 9);
        }
    }

    /// Nested, with more threads than cores, beside other work of the pool, and where the caller is no thread of
    /// the pool: all parts run, and nothing waits for ever.
    #[test]
    fn work_of_threads_that_stay_awake_is_done() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
        let count = std::sync::atomic::AtomicUsize::new(0);
        let shared = |parts: usize| {
            (0..parts).into_par_iter().for_each(|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        };
        pool.scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|_| {
                    all_awake(|| {
                        shared(50);
                        std::thread::sleep(2 * AWAKE);
                        all_awake(|| shared(50));
                    });
                });
            }
        });
        assert_eq!(count.load(Ordering::Relaxed), 20 * 100);
        all_awake(|| shared(50));
        assert_eq!(count.load(Ordering::Relaxed), 20 * 100 + 50);
    }

    #[test]
    fn one_sequence_is_for_all_cores() {
        assert!(span_tasks(&Spans::uniform(1, 50), 2, TASK_ROWS)[0].split);
        assert!(!span_tasks(&Spans::uniform(2, 50), 2, TASK_ROWS)[0].split);
        let three = span_tasks(&Spans::uniform(3, 50), 2, TASK_ROWS);
        assert_eq!(three.iter().map(|task| task.split).collect::<Vec<_>>(), [false, false, true]);
    }
}
