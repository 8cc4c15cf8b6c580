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

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bpe::{Bpe, N_BYTE_SYMBOLS};
use loaded::Loaded;

mod bpe;
mod charsmap;
mod clean;
mod error;
mod ftfy;
mod growth;
mod hf;
mod html;
mod loaded;
mod rules;
mod skim;
mod split;
mod tables;
#[cfg(test)]
mod tests;
mod transformers;
mod white_space;

pub use error::TokenizerError;
pub(crate) use loaded::read_config;

/// Entries of OpenAI's vocabulary.
pub(crate) const OPENAI_VOCAB_SIZE: usize = 49_408;
/// Start and end of text.
const N_SPECIAL: usize = 2;

/// A byte-level BPE tokenizer in the manner of CLIP, or any other that a `tokenizer.json` describes. Cheap to clone.
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
    vocabulary: Vocabulary,
    normalization: Normalization,
}

#[derive(Clone)]
enum Vocabulary {
    /// OpenAI's scheme.
    Bpe(Arc<Bpe>),
    /// Any other, by the rules of its file.
    Loaded(Arc<Loaded>),
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
    /// open_clip's for most other vocabularies: repaired, unescaped, single spaces.
    Whitespace,
    /// open_clip's for SigLIP: repaired, unescaped, `_` as a space, without other punctuation of ASCII, single spaces,
    /// capitals small.
    Canonical,
    /// transformers' for SigLIP: without punctuation of ASCII, single spaces, capitals small.
    HuggingFaceCanonical,
    /// The rules of the vocabulary's file alone.
    None,
}

impl Normalization {
    /// The text that is split into words.
    fn apply(self, text: &str) -> Cow<'_, str> {
        match self {
            Normalization::OpenAi => clean::clean(text).into(),
            Normalization::HuggingFace => clean::compose(text).into(),
            Normalization::Whitespace => clean::whitespace(text).into(),
            Normalization::Canonical => clean::canonical(text).into(),
            Normalization::HuggingFaceCanonical => clean::without_punctuation(text).into(),
            Normalization::None => text.into(),
        }
    }
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
        Self::with_bpe(Bpe::new(merges))
    }

    fn with_bpe(bpe: Bpe) -> Self {
        Self { vocabulary: Vocabulary::Bpe(Arc::new(bpe)), normalization: Normalization::OpenAi }
    }

    /// Any vocabulary, from a `tokenizer.json` and the `tokenizer_config.json` beside it. `strip_sep_token` is open_clip's
    /// option of this name: the separator at the end becomes padding.
    ///
    /// # Errors
    ///
    /// If a text is no JSON, or asks for rules that are not known.
    pub fn from_json(
        json: &str,
        about: Option<&str>,
        strip_sep_token: bool,
    ) -> Result<Self, TokenizerError> {
        let loaded = Loaded::new(json, about, strip_sep_token)?;
        let vocabulary = Vocabulary::Loaded(Arc::new(loaded));
        Ok(Self { vocabulary, normalization: Normalization::Whitespace })
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
        match &self.vocabulary {
            Vocabulary::Bpe(bpe) => bpe.n_symbols() + N_SPECIAL,
            Vocabulary::Loaded(loaded) => loaded.vocab_size(),
        }
    }

    /// Whether a table of `vocab_size` rows holds its ids. Those of other vocabularies are often rounded up; of OpenAI's
    /// scheme the end of text is the last row.
    pub(crate) fn fits(&self, vocab_size: usize) -> bool {
        match &self.vocabulary {
            Vocabulary::Bpe(_) => self.vocab_size() == vocab_size,
            Vocabulary::Loaded(_) => self.vocab_size() <= vocab_size,
        }
    }

    /// Ids of the start and of the end of text, the two largest, where the vocabulary is of OpenAI's scheme.
    pub fn start_and_end(&self) -> Option<[u32; 2]> {
        match &self.vocabulary {
            Vocabulary::Bpe(bpe) => Some([bpe.start_id(), bpe.end_id()]),
            Vocabulary::Loaded(_) => None,
        }
    }

    /// The id that fills a text up to the context length, for text towers that read it.
    pub fn pad_id(&self) -> u32 {
        match &self.vocabulary {
            Vocabulary::Bpe(_) => 0,
            Vocabulary::Loaded(loaded) => loaded.pad(),
        }
    }

    /// The ids of a text with start and end, however many they are.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.tokenize(text, usize::MAX).ids
    }

    /// The ids of a text for a model that reads `context_length` positions.
    ///
    /// A text that is too long keeps its beginning, and its last position becomes the end of text;
    /// `truncated` says how many ids did not fit.
    pub fn tokenize(&self, text: &str, context_length: usize) -> Tokens {
        let text = self.normalization.apply(text);
        let bpe = match &self.vocabulary {
            Vocabulary::Bpe(bpe) => bpe,
            Vocabulary::Loaded(loaded) => return loaded.encode(&text, context_length),
        };
        let mut ids = encode(bpe, &text);
        let truncated = ids.len().saturating_sub(context_length);
        if truncated > 0 {
            ids.truncate(context_length);
            if let Some(last) = ids.last_mut() {
                *last = bpe.end_id();
            }
        }
        Tokens { ids, truncated }
    }

    /// The text of ids: cleaned, in lower case, a space after each word, special ids as the
    /// strings that stand for them. Bytes that are no UTF-8 and unknown ids become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.vocabulary {
            Vocabulary::Bpe(bpe) => decode(bpe, ids),
            Vocabulary::Loaded(loaded) => loaded.decode(ids),
        }
    }
}

impl Bpe {
    /// Id of the start of text.
    fn start_id(&self) -> u32 {
        self.n_symbols() as u32
    }

    /// Id of the end of text, the largest id.
    fn end_id(&self) -> u32 {
        self.start_id() + 1
    }
}

fn encode(bpe: &Bpe, text: &str) -> Vec<u32> {
    let mut ids = vec![bpe.start_id()];
    for piece in split::split(text) {
        match piece {
            split::START_TEXT => ids.push(bpe.start_id()),
            split::END_TEXT => ids.push(bpe.end_id()),
            word => bpe.encode_word(word, &mut ids),
        }
    }
    ids.push(bpe.end_id());
    ids
}

fn decode(bpe: &Bpe, ids: &[u32]) -> String {
    let mut bytes = Vec::new();
    for &id in ids {
        if id < bpe.start_id() {
            bpe.decode_symbol(id, &mut bytes);
        } else if id == bpe.start_id() {
            bytes.extend_from_slice(split::START_TEXT.as_bytes());
        } else if id == bpe.end_id() {
            bytes.extend_from_slice(split::END_TEXT.as_bytes());
        } else {
            bytes.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    String::from_utf8_lossy(&bytes).replace(bpe::WORD_END, " ")
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}
