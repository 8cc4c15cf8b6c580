//! A setting of mimalloc, which a program may have as its allocator (feature `mimalloc`).

use std::ffi::c_long;

use libmimalloc_sys::{mi_option_get, mi_option_set, mi_option_t};

/// `mi_option_purge_delay` in `mimalloc.h` of version 3; the binding has no name for it.
const PURGE_DELAY: mi_option_t = 15;
/// Its default in milliseconds: anything else means another option, or a user's own choice.
const DEFAULT_DELAY: c_long = 1000;

/// Keeps freed memory for the next allocation instead of giving it back to the system after a
/// second: a training step frees hundreds of megabytes that the next one, about a second later,
/// wants again, at the cost of page faults. Returns whether the setting was changed; it is not
/// where `MIMALLOC_PURGE_DELAY` is set.
///
/// To be called first thing in `main`, before there are threads.
pub fn keep_freed_memory() -> bool {
    // SAFETY: both calls take plain numbers, and mimalloc checks the option's. They are not to run
    // beside other calls on options, of which there are none before threads start.
    unsafe {
        let is_default = mi_option_get(PURGE_DELAY) == DEFAULT_DELAY;
        if is_default {
            mi_option_set(PURGE_DELAY, -1);
        }
        is_default
    }
}
