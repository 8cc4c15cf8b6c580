//! CLIP (Contrastive Language-Image Pre-training) as a library: embed pictures and texts in one
//! space, and classify pictures by words.
//!
//! ```
//! use ferroclip::{Clip, Picture};
//!
//! let clip = Clip::builtin()?; // or Clip::open("path/to/model")?
//! let red = Picture::from_rgb8(2, 2, [255, 0, 0].repeat(4));
//! for best in clip.classify([&red], &["a red square", "a green hill"], 2)?.remove(0) {
//!     assert!(best.score > 0.0 && best.similarity <= 1.0);
//! }
//! let images = clip.embed_images([&red])?;
//! let texts = clip.embed_texts(&["a red square"])?;
//! let cosine = images.similarity(&texts)[0];
//! assert!(cosine.abs() <= 1.0001);
//! # Ok::<(), ferroclip::Error>(())
//! ```
//!
//! # How it hangs together
//!
//! A model is three things that belong together, and [`Clip`] holds all of them: [`Config`] says
//! what the towers are and how a picture is resized, cropped and normalised
//! ([`image::ImagePipeline`]); [`Weights`] are the parameters by open_clip's names; [`Tokenizer`]
//! turns a text into ids. A model directory has a file for each, in the layout of open_clip, which
//! reads what we write. Where one tower is enough, [`ImageEncoder`] and [`TextEncoder`] open it
//! alone and read no tensor of the other.
//!
//! ```text
//! bytes -> Picture -> ImagePipeline -> pixels -> ImageTower \
//!                                                            unit embeddings -> Classifier
//! text  -> Tokenizer -> ids         ->          TextTower   /
//! ```
//!
//! The towers are written once, over Burn tensors and the leaf operations of `ferroclip-ops`.
//! [`Params`] puts weights on a device: on a plain one for inference, on an autodiff one for
//! training; `ferroclip-train` uses the very same towers. Rows of all sequences are packed one
//! behind the other; nothing is padded, so that a batch of short texts costs what its tokens cost.
//!
//! # What holds everywhere
//!
//! - Nothing is printed, downloaded or kept in global state.
//! - Files are hostile until checked: an unknown field, a missing, left-over or wrongly shaped
//!   tensor, a NaN is an [`Error`] that names it, and [`Error::hint`] says what to do.
//! - Files are written under a temporary name and renamed: they are whole or absent.
//! - An input's embedding does not depend on what it is batched with.
//! - Panics are for our bugs; anything from outside that is wrong is a `Result`.
#![forbid(unsafe_code)]

mod builtin;
mod checkpoint;
mod clip;
mod config;
mod embed_options;
mod embeddings;
mod error;
mod files;
pub mod image;
mod image_encoder;
mod init;
mod model_dir;
mod onnx;
mod open_options;
mod param;
mod parameter_shapes;
mod pretrained;
mod text_encoder;
pub mod tokenizer;
mod towers;
mod verify;
mod zero_shot;

pub use checkpoint::FloatFormat;
pub use clip::Clip;
pub use config::{
    ActivationConfig, Approximation, Cleaning, Config, ImagePool, Layers, ModelConfig, NormConfig,
    Sides, TextConfig, TextPool, TextProjection, TokenizerConfig, Towers, VisionConfig,
};
pub use embed_options::{EmbedOptions, Features};
pub use embeddings::Embeddings;
pub use error::{Differences, Error, make_room};
pub use ferroclip_ops::Precision;
pub use files::write_atomically;
pub use image::Picture;
pub use image_encoder::{ImageEmbeddings, ImageEncoder, ImageSource};
pub use init::init;
pub use model_dir::{Converted, Inspection, ModelFiles, Origin, Program, convert, inspect};
pub use onnx::{ExportedTower, export_onnx};
pub use open_options::OpenOptions;
pub use param::{ParamTensor, Params, WeightTensor, Weights, is_buffer};
pub use pretrained::Pretrained;
pub use text_encoder::TextEncoder;
pub use tokenizer::Tokenizer;
pub use towers::{BatchStatistics, ImageTower, TextTower};
pub use verify::{Agreement, Difference as VerifiedDifference, verify};
pub use zero_shot::{Classifier, Score, Scoring, check_templates};
