//! Tables taken from the reference packages by `fixtures/tokenizer/make_tables.py`.

pub(crate) mod charmaps;
pub(crate) mod entities;
pub(crate) mod mojibake;
pub(crate) mod unicode;

/// OpenAI's merges in order of rank: pairs of symbol ids, two little-endian `u16` each.
pub(crate) static MERGES: &[u8] = include_bytes!("merges.bin");

/// Whether `c` lies in a set given by the sorted code points where membership flips.
pub(crate) fn contains(boundaries: &[u32], c: char) -> bool {
    boundaries.partition_point(|&b| b <= u32::from(c)) % 2 == 1
}
