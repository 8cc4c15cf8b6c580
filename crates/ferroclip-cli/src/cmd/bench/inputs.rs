//! What goes through the towers.

use ferroclip::{ModelConfig, Tokenizer};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::{Error, Result};
use crate::inputs::read_texts;

/// Tokens of a random text, where the tower reads no padding.
const TEXT_TOKENS: usize = 12;

pub(super) fn random_pixels(model: &ModelConfig, batch: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let n = batch * model.vision_cfg.image_len();
    let number = |_| rng.next_u32() as f32 / u32::MAX as f32 * 4.0 - 2.0;
    (0..n).map(number).collect()
}

fn random_texts(model: &ModelConfig, batch: usize) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let text = &model.text_cfg;
    let reads_padding = text.reads_padding();
    let n = if reads_padding { text.context_length } else { TEXT_TOKENS.min(text.context_length) };
    let end = text.vocab_size as u32 - 1;
    let mut text = |_| {
        let words = (0..n.saturating_sub(1)).map(|_| rng.next_u32() % end);
        words.chain([end]).collect()
    };
    (0..batch).map(&mut text).collect()
}

/// The ids of the texts of a file in batches, the last one perhaps short; one batch of random texts
/// without a file.
pub(super) fn text_batches(
    model: &ModelConfig,
    tokenizer: &Tokenizer,
    batch: usize,
    file: Option<&str>,
) -> Result<Vec<Vec<Vec<u32>>>> {
    let Some(file) = file else {
        return Ok(vec![random_texts(model, batch)]);
    };
    let texts = read_texts(file, None)?;
    if texts.len() < batch {
        let message = format!("`{file}` holds {} texts, fewer than a batch", texts.len());
        return Err(Error::input(message).hint("give more texts, or a smaller `--batch`"));
    }
    let length = model.text_cfg.context_length;
    let reads_padding = model.text_cfg.reads_padding();
    let ids = |text: &String| {
        let mut ids = tokenizer.tokenize(text, length).ids;
        if reads_padding {
            ids.resize(length, tokenizer.pad_id());
        }
        ids
    };
    let ids: Vec<Vec<u32>> = texts.iter().map(ids).collect();
    Ok(ids.chunks(batch).map(<[_]>::to_vec).collect())
}
