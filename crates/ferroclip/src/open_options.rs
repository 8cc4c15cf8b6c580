//! How a model is opened.

use ferroclip_ops::Precision;

use crate::checkpoint::{Resize, TensorReader};
use crate::config::{Config, ImagePool, Sides};
use crate::error::Error;

/// How a model is opened: what it computes in, and whether it takes inputs of another size than it was trained with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OpenOptions {
    /// The precision of inference.
    pub precision: Precision,
    /// Height and width of the images that the image tower sees; its own where none are given. The table of positions is
    /// resampled, as open_clip does it with `force_image_size`.
    pub image_size: Option<usize>,
    /// Positions of texts; the text tower's own where none are given. The table of positions is interpolated, as
    /// open_clip does it with `force_context_length`: every position gets another embedding, not only those that come to it.
    pub context_length: Option<usize>,
    /// Do not keep the blocks of the towers, nor the table of tokens: read them anew whenever inputs pass them. For a
    /// single batch, which then neither waits for memory nor takes it, or for a model that is larger than memory. The
    /// files are looked at again with each batch. Of a ResNet all is kept.
    pub streamed: bool,
}

impl From<Precision> for OpenOptions {
    fn from(precision: Precision) -> Self {
        OpenOptions { precision, ..OpenOptions::default() }
    }
}

impl OpenOptions {
    /// Gives a model, which errors call `origin`, the sizes that are asked for. The sentences that it returns say what
    /// became of its tensors.
    ///
    /// # Errors
    /// When the model cannot have such a size.
    pub(crate) fn resize(
        &self,
        config: &mut Config,
        tensors: &mut TensorReader,
        origin: &str,
    ) -> Result<Vec<String>, Error> {
        let bad = |reason: String| Error::Config { origin: origin.to_owned(), reason };
        let old = config.model.clone();
        let asks = [
            (self.image_size.is_some(), old.towers.has_image(), "image"),
            (self.context_length.is_some(), old.towers.has_text(), "text"),
        ];
        if let Some((_, _, tower)) = asks.into_iter().find(|(asked, has, _)| *asked && !has) {
            return Err(bad(format!("it has no {tower} tower to give another size")));
        }
        if let Some(side) =
            self.image_size.filter(|&side| [side; 2] != old.vision_cfg.image_size.each())
        {
            if old.vision_cfg.layers.stages().is_some() {
                return Err(bad("a ResNet takes images of its own size alone".to_owned()));
            }
            config.model.vision_cfg.image_size = Sides::Square(side);
            config.preprocess.size = [side; 2];
        }
        if let Some(length) = self.context_length {
            config.model.text_cfg.context_length = length;
        }
        config.model.validate().map_err(bad)?;
        let (vision, text) = (&config.model.vision_cfg, &config.model.text_cfg);
        let [from, to] = [old.vision_cfg.grid(), vision.grid()];
        let mut notes = Vec::new();
        if from != to && old.towers.has_image() {
            let class_rows = usize::from(vision.pool_type != ImagePool::Map);
            tensors.resize("visual.positional_embedding", Resize::Grid { class_rows, from, to });
            notes.push(format!(
                "image positions: resampled from {} x {} to {} x {}",
                from[0], from[1], to[0], to[1]
            ));
        }
        let [from, to] = [old.text_cfg.context_length, text.context_length];
        if from != to && old.towers.has_text() {
            tensors.resize("positional_embedding", Resize::Line { from, to });
            notes.push(format!("text positions: interpolated from {from} to {to}"));
        }
        Ok(notes)
    }
}
