//! Byte-pair encoding: bytes become symbols, neighbours merge by rank.
//!
//! Symbol ids: 0 to 255 are bytes in OpenAI's order (printable ones first), 256 to 511 the same
//! bytes at the end of a word, 512 + r is what the merge of rank r makes. In the reference all
//! pairs of the lowest rank merge from left to right, then all of the next. A heap ordered by
//! (rank, position) gives the same, because a symbol has one origin only and so takes part only
//! in merges of higher rank than its own; it needs n log n steps where the reference needs n².

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Symbols made of one byte.
pub(crate) const N_BYTE_SYMBOLS: usize = 512;
/// What marks the end of a word in the text of a symbol.
pub(crate) const WORD_END: &str = "</w>";

/// The merges of a vocabulary.
pub(crate) struct Bpe {
    merges: Vec<(u32, u32)>,
    ranks: HashMap<(u32, u32), u32>,
}

impl Bpe {
    /// From pairs of symbol ids in order of rank. Each pair must be made of earlier symbols, and
    /// no two pairs may spell the same symbol.
    pub(crate) fn new(merges: Vec<(u32, u32)>) -> Self {
        let ranks = merges.iter().zip(0..).map(|(&pair, rank)| (pair, rank));
        Self { ranks: ranks.collect(), merges }
    }

    pub(crate) fn merges(&self) -> &[(u32, u32)] {
        &self.merges
    }

    /// Byte symbols and merged symbols.
    pub(crate) fn n_symbols(&self) -> usize {
        N_BYTE_SYMBOLS + self.merges.len()
    }

    /// Appends the symbol ids of one word.
    pub(crate) fn encode_word(&self, word: &str, ids: &mut Vec<u32>) {
        let mut chain = Chain::new(word.as_bytes());
        let mut queue = BinaryHeap::new();
        for left in 0..chain.symbols.len() {
            queue.extend(self.candidate(&chain, left));
        }
        while let Some(Reverse((rank, left))) = queue.pop() {
            let pair = self.merges[rank as usize];
            if chain.pair(left) != Some(pair) {
                continue;
            }
            chain.merge(left, N_BYTE_SYMBOLS as u32 + rank);
            queue.extend(self.candidate(&chain, left));
            if let Some(before) = chain.before(left) {
                queue.extend(self.candidate(&chain, before));
            }
        }
        ids.extend(chain.symbols.into_iter().filter(|&s| s != Chain::GONE));
    }

    fn candidate(&self, chain: &Chain, left: usize) -> Option<Reverse<(u32, usize)>> {
        let rank = *self.ranks.get(&chain.pair(left)?)?;
        Some(Reverse((rank, left)))
    }

    /// Appends the bytes of a symbol, with `</w>` where it ends a word.
    pub(crate) fn decode_symbol(&self, id: u32, bytes: &mut Vec<u8>) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            match (id as usize).checked_sub(N_BYTE_SYMBOLS) {
                Some(rank) => {
                    let (left, right) = self.merges[rank];
                    pending.extend([right, left]);
                }
                None => {
                    bytes.push(SYMBOL_BYTES[id as usize % 256]);
                    if id >= 256 {
                        bytes.extend_from_slice(WORD_END.as_bytes());
                    }
                }
            }
        }
    }
}

/// The symbols of a word as a doubly linked list over the places of its bytes.
struct Chain {
    symbols: Vec<u32>,
    /// Place of the next symbol; the number of places at the end.
    next: Vec<usize>,
    /// Place of the symbol before, plus one; 0 at the start.
    before: Vec<usize>,
}

impl Chain {
    const GONE: u32 = u32::MAX;

    fn new(word: &[u8]) -> Self {
        let mut symbols: Vec<u32> = word.iter().map(|&b| byte_symbol(b)).collect();
        if let Some(last) = symbols.last_mut() {
            *last += 256;
        }
        Self { symbols, next: (1..=word.len()).collect(), before: (0..word.len()).collect() }
    }

    fn pair(&self, left: usize) -> Option<(u32, u32)> {
        let right = *self.symbols.get(self.next[left])?;
        let symbol = self.symbols[left];
        (symbol != Self::GONE).then_some((symbol, right))
    }

    fn before(&self, at: usize) -> Option<usize> {
        self.before[at].checked_sub(1)
    }

    /// Puts `symbol` in the place of `left` and of the symbol after it.
    fn merge(&mut self, left: usize, symbol: u32) {
        let right = self.next[left];
        self.symbols[left] = symbol;
        self.symbols[right] = Self::GONE;
        self.next[left] = self.next[right];
        if let Some(link) = self.before.get_mut(self.next[right]) {
            *link = left + 1;
        }
    }
}

/// Bytes in the order of their symbols: the printable ones of Latin-1, then the others.
static SYMBOL_BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut at = 0;
    let mut pass = 0;
    while pass < 2 {
        let mut byte = 0;
        while byte < 256 {
            if is_printable(byte as u8) == (pass == 0) {
                bytes[at] = byte as u8;
                at += 1;
            }
            byte += 1;
        }
        pass += 1;
    }
    bytes
};

/// The inverse of `SYMBOL_BYTES`.
static BYTE_SYMBOLS: [u8; 256] = {
    let mut symbols = [0; 256];
    let mut at = 0;
    while at < 256 {
        symbols[SYMBOL_BYTES[at] as usize] = at as u8;
        at += 1;
    }
    symbols
};

const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

fn byte_symbol(byte: u8) -> u32 {
    u32::from(BYTE_SYMBOLS[byte as usize])
}

/// The character that stands for a byte symbol in vocabulary files (GPT-2's table).
pub(crate) fn symbol_char(symbol: u8) -> char {
    const N_PRINTABLE: u32 = 188;
    let byte = SYMBOL_BYTES[symbol as usize];
    match u32::from(symbol).checked_sub(N_PRINTABLE) {
        None => char::from(byte),
        // The others are numbered from U+0100 on.
        Some(n) => char::from_u32(256 + n).unwrap_or(char::REPLACEMENT_CHARACTER),
    }
}
