//! Work done ahead on threads, delivered in order through a bounded queue.
//!
//! One lock is the turn to take from the input, so that items are numbered in the order in which
//! they are taken; another guards the window of results between the oldest not yet delivered and
//! the newest taken. A worker that would make the window too long sleeps until the consumer has
//! taken a result. Nobody polls.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

/// Maps `f` over `input` on `workers` threads; results come in the order of the input.
///
/// At most `workers + queue` items are taken ahead of the consumer. A panic in `f` or in `input`
/// is raised in the consumer, when it comes to that item. Dropping the iterator ends the threads,
/// after the items in work. Fails only where threads cannot be started.
pub fn map_ordered<I, T, R, F>(
    input: I,
    workers: usize,
    queue: usize,
    f: F,
) -> io::Result<Ordered<R>>
where
    I: Iterator<Item = T> + Send + 'static,
    T: 'static,
    R: Send + 'static,
    F: Fn(T) -> R + Send + Sync + 'static,
{
    let workers = workers.max(1);
    let shared = Arc::new(Shared {
        window: Mutex::new(Window { results: VecDeque::new(), delivered: 0, ended: false }),
        room: Condvar::new(),
        ready: Condvar::new(),
        limit: workers.saturating_add(queue),
    });
    let input = Arc::new(Mutex::new(input));
    let f = Arc::new(f);
    let mut ordered = Ordered { shared, threads: Vec::new() };
    for number in 0..workers {
        let (shared, input, f) = (ordered.shared.clone(), input.clone(), f.clone());
        let thread = Builder::new()
            .name(format!("prefetch-{number}"))
            .spawn(move || work(&shared, &input, &*f))?;
        ordered.threads.push(thread);
    }
    Ok(ordered)
}

/// The results of [`map_ordered`].
#[derive(Debug)]
pub struct Ordered<R> {
    shared: Arc<Shared<R>>,
    threads: Vec<JoinHandle<()>>,
}

/// A result, or what a panic left behind.
type Outcome<R> = Result<R, Box<dyn Any + Send>>;

#[derive(Debug)]
struct Shared<R> {
    window: Mutex<Window<R>>,
    /// Signalled when the window has room, or everything ended.
    room: Condvar,
    /// Signalled when the oldest result is there, or the input ended.
    ready: Condvar,
    /// The longest window.
    limit: usize,
}

#[derive(Debug)]
struct Window<R> {
    /// Items taken and not delivered, oldest first; `None` while in work.
    results: VecDeque<Option<Outcome<R>>>,
    /// Items delivered: the number of the oldest in `results`.
    delivered: u64,
    /// Whether nothing more is taken from the input.
    ended: bool,
}

/// A panic never happens under these locks but in the input, which is caught.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<'a, T>(signal: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    signal.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

fn work<I: Iterator, R>(shared: &Shared<R>, input: &Mutex<I>, f: impl Fn(I::Item) -> R) {
    while let Some((number, item)) = take(shared, input) {
        let outcome = catch_unwind(AssertUnwindSafe(|| f(item)));
        shared.deliver(number, outcome);
    }
}

/// Waits for room and takes the next item; `None` when there is no more to do.
fn take<I: Iterator, R>(shared: &Shared<R>, input: &Mutex<I>) -> Option<(u64, I::Item)> {
    let mut input = lock(input);
    let mut window = lock(&shared.window);
    while !window.ended && window.results.len() >= shared.limit {
        window = wait(&shared.room, window);
    }
    if window.ended {
        return None;
    }
    // The consumer goes on while the input thinks.
    drop(window);
    let next = catch_unwind(AssertUnwindSafe(|| input.next()));
    let mut window = lock(&shared.window);
    let number = window.delivered + window.results.len() as u64;
    match next {
        Ok(Some(item)) => {
            window.results.push_back(None);
            return Some((number, item));
        }
        Ok(None) => {}
        Err(panic) => window.results.push_back(Some(Err(panic))),
    }
    window.ended = true;
    shared.ready.notify_all();
    None
}

impl<R> Shared<R> {
    fn deliver(&self, number: u64, outcome: Outcome<R>) {
        let mut window = lock(&self.window);
        let place = (number - window.delivered) as usize;
        window.results[place] = Some(outcome);
        if place == 0 {
            self.ready.notify_all();
        }
    }

    fn end(&self) {
        lock(&self.window).ended = true;
        self.room.notify_all();
        self.ready.notify_all();
    }
}

impl<R> Iterator for Ordered<R> {
    type Item = R;

    fn next(&mut self) -> Option<R> {
        let mut window = lock(&self.shared.window);
        let outcome = loop {
            if let Some(outcome) = window.results.front_mut().and_then(Option::take) {
                break outcome;
            }
            if window.ended && window.results.is_empty() {
                return None;
            }
            window = wait(&self.shared.ready, window);
        };
        window.results.pop_front();
        window.delivered += 1;
        drop(window);
        self.shared.room.notify_one();
        match outcome {
            Ok(result) => Some(result),
            Err(panic) => {
                self.shared.end();
                resume_unwind(panic)
            }
        }
    }
}

impl<R> Drop for Ordered<R> {
    fn drop(&mut self) {
        self.shared.end();
        for thread in self.threads.drain(..) {
            // Panics of the work are caught above and delivered; none is left to hear of here.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;
    use crate::order::{below, keyed_rng};

    #[test]
    fn keeps_the_order_under_jitter() {
        for (workers, queue) in [(0, 0), (1, 0), (1, 3), (4, 0), (4, 2), (9, 30)] {
            let jitter = |n: u64| {
                sleep(Duration::from_micros(u64::from(below(
                    &mut keyed_rng(0, "jitter", 0, n),
                    800,
                ))));
                n * n
            };
            let results: Vec<u64> =
                map_ordered(0..300_u64, workers, queue, jitter).unwrap().collect();
            assert_eq!(results, (0..300).map(|n| n * n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn takes_no_more_than_workers_and_queue_ahead() {
        let taken = Arc::new(AtomicUsize::new(0));
        let counter = taken.clone();
        let input = std::iter::repeat_with(move || counter.fetch_add(1, SeqCst));
        let mut results = map_ordered(input, 3, 4, |n| n).unwrap();
        for delivered in 1..50 {
            results.next();
            sleep(Duration::from_millis(1));
            assert!(taken.load(SeqCst) <= delivered + 7);
        }
        // And that many it does take, sooner or later.
        while taken.load(SeqCst) < 49 + 7 {
            sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn dropping_early_ends_the_threads() {
        let alive = Arc::new(());
        for consumed in [0, 1, 20] {
            let witness = alive.clone();
            let mut results =
                map_ordered(0.., 4, 4, move |n: u64| (n, Arc::strong_count(&witness))).unwrap();
            results.by_ref().take(consumed).for_each(drop);
            drop(results);
            assert_eq!(Arc::strong_count(&alive), 1, "no thread holds the closure any more");
        }
    }

    #[test]
    fn raises_panics_in_their_place() {
        let mut results = map_ordered(0..100, 4, 4, |n| {
            assert!(n != 20, "twenty");
            n
        })
        .unwrap();
        assert_eq!(results.by_ref().take(20).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
        let panic = catch_unwind(AssertUnwindSafe(|| results.next())).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"twenty"));

        let input = (0..100).inspect(|n| assert!(*n != 20, "input"));
        let mut results = map_ordered(input, 4, 4, |n| n).unwrap();
        assert_eq!(results.by_ref().take(20).count(), 20);
        let panic = catch_unwind(AssertUnwindSafe(|| results.next())).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"input"));
    }

    #[test]
    fn ends_for_good() {
        let mut results = map_ordered(0..3, 8, 8, |n| n).unwrap();
        assert_eq!(results.by_ref().count(), 3);
        assert_eq!((results.next(), results.next()), (None, None));
        assert_eq!(map_ordered(0..0, 2, 2, |n: i32| n).unwrap().count(), 0);
    }
}
