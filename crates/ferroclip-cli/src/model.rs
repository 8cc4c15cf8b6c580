//! Options of commands that run a model, and names of models.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use ferroclip::{Clip, ImageEncoder, ModelFiles, Precision, TextEncoder};
use ferroclip_kernels::Isa;

use crate::error::{Error, Result};

/// The model inside the program.
pub(crate) const BUILTIN: &str = "draw-mini";

#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// A built-in name, a model directory, or a file
    #[arg(long, default_value = BUILTIN, help_heading = "Model")]
    pub(crate) model: String,
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

/// The halves of a model that a command needs; only their tensors were read.
pub(crate) struct Encoders {
    image: Option<ImageEncoder>,
    text: Option<TextEncoder>,
}

impl Encoders {
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
    pub(crate) fn open(&self) -> Result<Clip> {
        let path = self.set_up()?;
        let precision = self.compute.precision.precision();
        Ok(match path {
            None => Clip::builtin_with(precision)?,
            Some(path) => Clip::open_with(path, precision)?,
        })
    }

    /// Sets up the computation; the path of a model that is not the built-in one.
    pub(crate) fn path(&self) -> Result<PathBuf> {
        let path = self.set_up()?.map(Path::to_owned);
        path.ok_or_else(|| {
            Error::usage("the built-in model has no files").hint("give a model with `--model PATH`")
        })
    }

    /// The parts of the model, to be trained; the computation is set up already.
    pub(crate) fn files(&self) -> Result<ModelFiles> {
        Ok(match self.model.as_str() {
            BUILTIN => ModelFiles::builtin()?,
            path => ModelFiles::load(Path::new(path))?,
        })
    }

    /// Sets up the computation and opens the towers asked for.
    pub(crate) fn open_encoders(&self, image: bool, text: bool) -> Result<Encoders> {
        let path = self.set_up()?;
        let precision = self.compute.precision.precision();
        let open_image = || match path {
            None => ImageEncoder::builtin_with(precision),
            Some(path) => ImageEncoder::open_with(path, precision),
        };
        let open_text = || match path {
            None => TextEncoder::builtin_with(precision),
            Some(path) => TextEncoder::open_with(path, precision),
        };
        // Reading and packing keep one core busy each.
        let (image, text) =
            rayon::join(|| image.then(open_image).transpose(), || text.then(open_text).transpose());
        Ok(Encoders { image: image?, text: text? })
    }

    /// Sets up the computation; the path of the model, `None` for the built-in one.
    fn set_up(&self) -> Result<Option<&Path>> {
        self.compute.set_up()?;
        if self.model == BUILTIN {
            return Ok(None);
        }
        let path = Path::new(&self.model);
        if !path.exists() {
            let hint = format!(
                "give a model directory or file, or `{BUILTIN}`, the built-in model; \
                 this build does not download models"
            );
            return Err(Error::input(format!("no such model: `{}`", self.model)).hint(hint));
        }
        Ok(Some(path))
    }
}
