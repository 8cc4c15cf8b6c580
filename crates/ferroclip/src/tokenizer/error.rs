//! What can be wrong with a vocabulary.

/// Why a tokenizer could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// OpenAI's vocabulary has no such part.
    #[error("vocabulary size out of range: {vocab_size}, expected {min} to {max}")]
    VocabSize {
        /// The size asked for.
        vocab_size: usize,
        /// The smallest size: byte symbols, start and end.
        min: usize,
        /// The size of the whole vocabulary.
        max: usize,
    },
    /// The text is no JSON.
    #[error("`tokenizer.json` is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A merge is not a pair of symbols that exist before it, or repeats one.
    #[error("`tokenizer.json` has a bad merge at position {position}: {reason}")]
    Merge {
        /// Index in the list of merges, from 0.
        position: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The rules of the file cannot be used.
    #[error("`tokenizer.json` cannot be used: {0}")]
    Rules(String),
    /// The file beside it asks for what is not done here.
    #[error("`tokenizer_config.json` asks for what is not supported: {0}")]
    Config(String),
    /// A part of the file is not as ferroclip writes it.
    #[error("`tokenizer.json` differs from CLIP's tokenizer in `{field}`")]
    Unsupported {
        /// Path of the field, with dots.
        field: String,
    },
}

impl TokenizerError {
    /// What to do about it, where that can be said.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::VocabSize { max, .. } => {
                Some(format!("leave the size out for OpenAI's whole vocabulary of {max} entries"))
            }
            Self::Merge { .. } | Self::Unsupported { .. } => Some(
                "only a byte-level BPE with `</w>` as ferroclip writes it can be read; \
                 for OpenAI's own vocabulary remove the file"
                    .to_owned(),
            ),
            Self::Config(_) => Some(
                "use the files that were saved together, of a tokenizer that cuts and fills up on the right"
                    .to_owned(),
            ),
            Self::Json(_) | Self::Rules(_) => {
                Some("copy the file again from the model's source".to_owned())
            }
        }
    }
}
