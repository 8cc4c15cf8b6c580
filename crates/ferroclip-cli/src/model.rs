//! Options of commands that run a model, and names of models.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use ferroclip::{
    Clip, ImageEncoder, ModelFiles, OpenOptions, Origin, Precision, Pretrained, TextEncoder,
};
use ferroclip_kernels::Isa;

use crate::common::Common;
use crate::error::{Error, Result};
use crate::hub;
use crate::output::note;

/// The model inside the program.
pub(crate) const BUILTIN: &str = "draw-mini";

#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// A built-in name, a model directory, a file, or a model on the hub (downloaded once): `hf:owner/name`, or
    /// a model and a tag of open_clip such as `ViT-B-32:laion2b_s34b_b79k`
    #[arg(long, default_value = BUILTIN, help_heading = "Model")]
    pub(crate) model: String,
    /// Side of the images that the image tower sees: its positions are resampled [default: the model's]
    #[arg(long, value_name = "PIXELS", help_heading = "Model")]
    pub(crate) image_size: Option<usize>,
    /// Positions of texts: the text tower's are interpolated [default: the model's]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub(crate) context_length: Option<usize>,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ComputeArgs {
    /// Where to compute: `cpu`
    #[arg(long, default_value = "cpu", help_heading = "Model")]
    pub(crate) device: String,
    /// Numbers that weights are kept and multiplied in; what lies between products stays f32
    #[arg(long, value_enum, default_value_t = PrecisionArg::F32, help_heading = "Model")]
    pub(crate) precision: PrecisionArg,
    /// Threads [default: the cores that this process may use]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub(crate) threads: Option<usize>,
}

/// [`Precision`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum PrecisionArg {
    /// Exact
    F32,
    /// Two bytes a weight, rounded to 8 bits of mantissa
    Bf16,
    /// One byte a weight; scales are found as rows come, without calibration
    Int8,
}

impl PrecisionArg {
    pub(crate) fn precision(self) -> Precision {
        match self {
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Bf16 => Precision::Bf16,
            PrecisionArg::Int8 => Precision::Int8,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            PrecisionArg::F32 => "f32",
            PrecisionArg::Bf16 => "bf16",
            PrecisionArg::Int8 => "int8",
        }
    }
}

impl ComputeArgs {
    /// Checks the choices and starts the threads; to be called once, before any computation.
    pub(crate) fn set_up(&self) -> Result<()> {
        if self.device != "cpu" {
            return Err(Error::usage(format!("this build has no device `{}`", self.device))
                .hint("use `--device cpu`; GPU devices are to come as cargo features"));
        }
        if let Some(name) = Isa::unknown_name() {
            let sets: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
            let message = format!(
                "`FERROCLIP_ISA` is `{name}`, which is no instruction set of this processor"
            );
            return Err(Error::usage(message)
                .hint(format!("set it to one of {}, or unset it", sets.join(", "))));
        }
        if !(1..=1024).contains(&self.n_threads()) {
            return Err(Error::usage("`--threads` is out of range").hint("give 1 to 1024"));
        }
        rayon::ThreadPoolBuilder::new()
            .num_threads(self.n_threads())
            .build_global()
            .map_err(|error| Error::input(format!("cannot start threads: {error}")))
    }

    pub(crate) fn n_threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(cores)
    }
}

/// How often inputs will pass a half of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Nothing,
    /// One batch passes: the tower need not be kept.
    Once,
    Often,
}

impl Need {
    /// Of this many batches.
    pub(crate) fn of_batches(n: usize) -> Need {
        match n {
            0 => Need::Nothing,
            1 => Need::Once,
            _ => Need::Often,
        }
    }
}

/// The halves of a model that a command needs; only their tensors were read.
pub(crate) struct Encoders {
    image: Option<ImageEncoder>,
    text: Option<TextEncoder>,
}

impl Encoders {
    /// Where the model came from; `None` where the command asked for neither half.
    pub(crate) fn origin(&self) -> Option<&Origin> {
        let image = self.image.as_ref().map(ImageEncoder::origin);
        image.or_else(|| self.text.as_ref().map(TextEncoder::origin))
    }

    /// # Panics
    /// When the command did not ask for it.
    pub(crate) fn image(&self) -> &ImageEncoder {
        self.image.as_ref().expect("the command asked for the image tower")
    }

    /// # Panics
    /// When the command did not ask for it.
    pub(crate) fn text(&self) -> &TextEncoder {
        self.text.as_ref().expect("the command asked for the text tower")
    }
}

impl ModelArgs {
    /// Sets up the computation and opens the model.
    pub(crate) fn open(&self, need: Need, common: &Common) -> Result<Clip> {
        let (path, options) = (self.set_up(common)?, self.options_for(need));
        let clip = match path {
            None => Clip::builtin_with(options)?,
            Some(path) => Clip::open_with(path, options)?,
        };
        self.tell_guesses(clip.origin(), common);
        Ok(clip)
    }

    /// What is asked for besides the model.
    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions {
            precision: self.compute.precision.precision(),
            image_size: self.image_size,
            context_length: self.context_length,
            streamed: false,
        }
    }

    fn options_for(&self, need: Need) -> OpenOptions {
        OpenOptions { streamed: need == Need::Once, ..self.options() }
    }

    /// Sets up the computation; the path of a model that is not the built-in one.
    pub(crate) fn path(&self, common: &Common) -> Result<PathBuf> {
        self.set_up(common)?.ok_or_else(|| {
            Error::usage("the built-in model has no files").hint("give a model with `--model PATH`")
        })
    }

    /// The parts of the model, to be trained; the computation is set up already.
    pub(crate) fn files(&self, common: &Common) -> Result<ModelFiles> {
        self.refuse_sizes("training")?;
        Ok(match locate(&self.model, common)? {
            None => ModelFiles::builtin()?,
            Some(path) => ModelFiles::load(&path)?,
        })
    }

    /// Sets up the computation and opens the towers asked for.
    pub(crate) fn open_encoders(
        &self,
        image: Need,
        text: Need,
        common: &Common,
    ) -> Result<Encoders> {
        let path = self.set_up(common)?;
        let path = path.as_deref();
        let idle = |need: Need| need == Need::Nothing;
        let sizes = [
            ("--image-size", self.image_size.is_some() && idle(image), "picture"),
            ("--context-length", self.context_length.is_some() && idle(text), "text"),
        ];
        for (option, _, what) in sizes.into_iter().filter(|(_, is_idle, _)| *is_idle) {
            note(common, &format!("`{option}` changes nothing: no {what} goes through the model"));
        }
        let open_image = || match path {
            None => ImageEncoder::builtin_with(self.options_for(image)),
            Some(path) => ImageEncoder::open_with(path, self.options_for(image)),
        };
        let open_text = || match path {
            None => TextEncoder::builtin_with(self.options_for(text)),
            Some(path) => TextEncoder::open_with(path, self.options_for(text)),
        };
        // Reading and packing keep one core busy each.
        let (image, text) = rayon::join(
            || (!idle(image)).then(open_image).transpose(),
            || (!idle(text)).then(open_text).transpose(),
        );
        let encoders = Encoders { image: image?, text: text? };
        if let Some(origin) = encoders.origin() {
            self.tell_guesses(origin, common);
        }
        Ok(encoders)
    }

    /// Says what was assumed that decides all numbers.
    fn tell_guesses(&self, origin: &Origin, common: &Common) {
        for guess in origin.guesses() {
            note(
                common,
                &format!("assumed of the model: {guess} (`ferroclip inspect` tells more)"),
            );
        }
    }

    /// Says that a model cannot have another size here.
    pub(crate) fn refuse_sizes(&self, what: &str) -> Result<()> {
        if self.image_size.is_none() && self.context_length.is_none() {
            return Ok(());
        }
        let message = format!("`--image-size` and `--context-length` have no meaning for {what}");
        Err(Error::usage(message).hint("leave them out"))
    }

    /// Sets up the computation; the path of the model, `None` for the built-in one.
    pub(crate) fn set_up(&self, common: &Common) -> Result<Option<PathBuf>> {
        self.compute.set_up()?;
        if self.context_length.is_some_and(|n| n < 2) {
            return Err(Error::usage("`--context-length` is too small")
                .hint("start and end of text alone fill 2 positions"));
        }
        locate(&self.model, common)
    }
}

/// The path of a model, `None` for the built-in one. What is not in the cache is downloaded.
fn locate(model: &str, common: &Common) -> Result<Option<PathBuf>> {
    if model == BUILTIN {
        return Ok(None);
    }
    match from_hub(model, common)? {
        Some(folder) => Ok(Some(folder)),
        None if Path::new(model).exists() => Ok(Some(model.into())),
        None => Err(hub::unknown(model)),
    }
}

/// The folder of a model that is named as one on the hub; a path that exists is none.
pub(crate) fn from_hub(model: &str, common: &Common) -> Result<Option<PathBuf>> {
    if Path::new(model).exists() {
        return Ok(None);
    }
    let Some(name) = hub::Name::parse(model).transpose()? else { return Ok(None) };
    let folder = hub::locate(&name, common)?;
    if let Some(known) = Pretrained::all().find(|known| known.name() == model) {
        known.check(&folder)?;
    }
    Ok(Some(folder))
}
