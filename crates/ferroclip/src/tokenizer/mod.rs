//! OpenAI's CLIP tokenizer: text to token ids and back.
//!
//! ```text
//! clean   repair broken text (ftfy), undo HTML escapes twice, single spaces, lower case
//! split   special strings, English contractions, runs of letters, single digits, other runs
//! encode  UTF-8 bytes of each piece -> byte symbols -> merges by rank -> ids
//! ```
//!
//! Every id equals that of the reference (`clip.simple_tokenizer` with ftfy 6.3.1 on Python 3.11);
//! `fixtures/tokenizer` holds the comparison. A shorter vocabulary keeps the first merges only, so
//! that small models do not spend their parameters on rare words.
//!
//! Ids: 512 byte symbols, one per merge, then the start and, as the largest of all, the end of
//! text; id 0 (`!`) doubles as padding. The special strings typed by a user become the special
//! ids, as in the reference.
//!
//! Limits: texts with characters newer than Unicode 14 may differ from a reference that runs on an
//! older Python. Memory is proportional to the text; nothing is cached.

use std::fmt;
use std::sync::Arc;

use bpe::{Bpe, N_BYTE_SYMBOLS};

mod bpe;
mod clean;
mod error;
mod ftfy;
mod hf;
mod html;
mod split;
mod tables;
#[cfg(test)]
mod tests;
mod transformers;
mod white_space;

pub use error::TokenizerError;

/// Entries of OpenAI's vocabulary.
const OPENAI_VOCAB_SIZE: usize = 49_408;
/// Start and end of text.
const N_SPECIAL: usize = 2;

/// A byte-level BPE tokenizer in the manner of CLIP. Cheap to clone.
///
/// # Example
///
/// ```
/// # use ferroclip::Tokenizer;
/// let tokenizer = Tokenizer::openai();
/// assert_eq!(tokenizer.encode("a photo of a cat"), [49406, 320, 1125, 539, 320, 2368, 49407]);
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    bpe: Arc<Bpe>,
    normalization: Normalization,
}

/// What becomes of a text before it is split into words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalization {
    /// OpenAI's and open_clip's: broken text is repaired (ftfy), HTML unescaped twice, white space made single
    /// spaces, capitals small.
    #[default]
    OpenAi,
    /// That of transformers' fast tokenizer: characters composed (NFC), white space made single spaces, capitals
    /// small. Nothing is repaired or unescaped.
    HuggingFace,
}

/// Token ids of one text that has been fitted to a context length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// The ids, from start to end of text, without padding.
    pub ids: Vec<u32>,
    /// How many ids had to go; 0 if the text fits.
    pub truncated: usize,
}

impl Tokenizer {
    /// OpenAI's vocabulary of 49,408 entries.
    pub fn openai() -> Self {
        Self::with_openai_merges(OPENAI_VOCAB_SIZE - N_SPECIAL - N_BYTE_SYMBOLS)
    }

    /// OpenAI's vocabulary cut to `vocab_size` entries: the byte symbols, as many of the first
    /// merges as there is room for, start and end.
    ///
    /// # Errors
    ///
    /// If `vocab_size` is below 514 or above 49,408.
    pub fn openai_prefix(vocab_size: usize) -> Result<Self, TokenizerError> {
        let min = N_BYTE_SYMBOLS + N_SPECIAL;
        if !(min..=OPENAI_VOCAB_SIZE).contains(&vocab_size) {
            return Err(TokenizerError::VocabSize { vocab_size, min, max: OPENAI_VOCAB_SIZE });
        }
        Ok(Self::with_openai_merges(vocab_size - min))
    }

    fn with_openai_merges(n_merges: usize) -> Self {
        let id = |low, high| u32::from(u16::from_le_bytes([low, high]));
        let (pairs, _) = tables::MERGES.as_chunks::<4>();
        let merges = pairs.iter().map(|&[a, b, c, d]| (id(a, b), id(c, d)));
        Self::with_merges(merges.take(n_merges).collect())
    }

    fn with_merges(merges: Vec<(u32, u32)>) -> Self {
        Self { bpe: Arc::new(Bpe::new(merges)), normalization: Normalization::OpenAi }
    }

    /// The same vocabulary behind another preparation of texts.
    #[must_use]
    pub fn normalized(self, normalization: Normalization) -> Self {
        Self { normalization, ..self }
    }

    /// How texts are prepared.
    pub fn normalization(&self) -> Normalization {
        self.normalization
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        self.bpe.n_symbols() + N_SPECIAL
    }

    /// Id of the start of text.
    pub fn start_id(&self) -> u32 {
        self.bpe.n_symbols() as u32
    }

    /// Id of the end of text, the largest id.
    pub fn end_id(&self) -> u32 {
        self.start_id() + 1
    }

    /// The ids of a text with start and end, however many they are.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = vec![self.start_id()];
        let text = match self.normalization {
            Normalization::OpenAi => clean::clean(text),
            Normalization::HuggingFace => clean::compose(text),
        };
        for piece in split::split(&text) {
            match piece {
                split::START_TEXT => ids.push(self.start_id()),
                split::END_TEXT => ids.push(self.end_id()),
                word => self.bpe.encode_word(word, &mut ids),
            }
        }
        ids.push(self.end_id());
        ids
    }

    /// The ids of a text for a model that reads `context_length` positions.
    ///
    /// A text that is too long keeps its beginning, and its last position becomes the end of text;
    /// `truncated` says how many ids did not fit.
    pub fn tokenize(&self, text: &str, context_length: usize) -> Tokens {
        let mut ids = self.encode(text);
        let truncated = ids.len().saturating_sub(context_length);
        if truncated > 0 {
            ids.truncate(context_length);
            if let Some(last) = ids.last_mut() {
                *last = self.end_id();
            }
        }
        Tokens { ids, truncated }
    }

    /// The text of ids: cleaned, in lower case, a space after each word, special ids as the
    /// strings that stand for them. Bytes that are no UTF-8 and unknown ids become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            if id < self.start_id() {
                self.bpe.decode_symbol(id, &mut bytes);
            } else if id == self.start_id() {
                bytes.extend_from_slice(split::START_TEXT.as_bytes());
            } else if id == self.end_id() {
                bytes.extend_from_slice(split::END_TEXT.as_bytes());
            } else {
                bytes.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
        String::from_utf8_lossy(&bytes).replace(bpe::WORD_END, " ")
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}
