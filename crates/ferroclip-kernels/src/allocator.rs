//! A setting of mimalloc, which a program may have as its allocator (feature `mimalloc`).

use std::ffi::c_long;

use libmimalloc_sys::{mi_option_get, mi_option_set, mi_option_t};

/// `mi_option_purge_delay` in `mimalloc.h` of version 3; the binding has no name for it.
const PURGE_DELAY: mi_option_t = 15;
/// Its default in milliseconds: anything else means another option, or a user's own choice.
const DEFAULT_DELAY: c_long = 1000;
/// `mi_option_arena_max_object_size`, likewise, and its default in KiB.
const LARGEST_KEPT: mi_option_t = 45;
const DEFAULT_LARGEST: c_long = 2 << 20;
/// In KiB: 128 MiB. The pixels of a large picture are not kept, because the next one may not fit where they were: two
/// that were decoded one after the other would be in memory together.
const LARGEST: c_long = 128 << 10;

/// Keeps freed memory for the next allocation instead of giving it back to the system after a
/// second: a training step frees hundreds of megabytes that the next one, about a second later,
/// wants again, at the cost of page faults. Blocks above 128 MiB are given back at once. Returns whether the setting
/// was changed; it is not where `MIMALLOC_PURGE_DELAY` is set.
///
/// To be called first thing in `main`, before there are threads.
pub fn keep_freed_memory() -> bool {
    // SAFETY: all calls take plain numbers, and mimalloc checks the option's. They are not to run
    // beside other calls on options, of which there are none before threads start.
    unsafe {
        let is_default = mi_option_get(PURGE_DELAY) == DEFAULT_DELAY;
        if is_default {
            mi_option_set(PURGE_DELAY, -1);
        }
        if is_default && mi_option_get(LARGEST_KEPT) == DEFAULT_LARGEST {
            mi_option_set(LARGEST_KEPT, LARGEST);
        }
        is_default
    }
}
