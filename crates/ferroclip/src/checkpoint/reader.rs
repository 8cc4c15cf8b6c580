//! The tensors of a model, by the names of this library, wherever a file keeps them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ferroclip_ops::Precision;
use safetensors::Dtype;

use super::dialect::{Dialect, Place, transposed};
use super::resize::Resize;
use super::stored::{Stored, TensorFile};
use super::write::Outgoing;
use super::{BATCHES_TRACKED, FileKind, is_bookkeeping};
use crate::config::ModelConfig;
use crate::error::Error;
use crate::param::{WeightTensor, Weights, differences, first_impossible};
use crate::towers::{Elements, Loader, Source};

/// Opened files of weights, not compared with a config yet.
pub(crate) struct Checkpoint {
    files: Vec<TensorFile>,
    origin: String,
    /// The file that each tensor is in.
    tensors: BTreeMap<String, usize>,
    /// Step counts of batch norms, which are passed over.
    n_counters: usize,
    dialect: Dialect,
    kind: FileKind,
}

impl Checkpoint {
    /// Opens a file. Nothing is read yet but what says where its tensors lie.
    pub(crate) fn open(path: &Path) -> Result<Checkpoint, Error> {
        let (file, kind) = TensorFile::open(path)?;
        Checkpoint::new(vec![file], path.display().to_string(), kind)
    }

    /// Opens the files that one set of weights was cut into; errors call them all `index`.
    pub(crate) fn open_shards(paths: &[PathBuf], index: &Path) -> Result<Checkpoint, Error> {
        let files: Result<Vec<_>, Error> =
            paths.iter().map(|path| TensorFile::open(path)).collect();
        let (files, kinds): (Vec<_>, Vec<_>) = files?.into_iter().unzip();
        let kind = kinds.first().copied().unwrap_or(FileKind::Safetensors);
        Checkpoint::new(files, index.display().to_string(), kind)
    }

    /// The tensors in the bytes of a file that errors call `origin`.
    pub(crate) fn from_bytes(bytes: &'static [u8], origin: &str) -> Result<Checkpoint, Error> {
        let (file, kind) = TensorFile::new(Box::new(std::io::Cursor::new(bytes)), origin)?;
        Checkpoint::new(vec![file], origin.to_owned(), kind)
    }

    fn new(
        mut files: Vec<TensorFile>,
        origin: String,
        kind: FileKind,
    ) -> Result<Checkpoint, Error> {
        let (mut tensors, mut n_counters) = (BTreeMap::new(), 0);
        let tower = lone_tower(&files);
        for (number, file) in files.iter_mut().enumerate() {
            // Training on several devices, and `torch.compile`, put these before all names, in either order.
            for prefix in ["module.", "_orig_mod.", "module."] {
                file.strip(prefix);
            }
            if let Some(tower) = tower {
                file.put_below(tower);
            }
            n_counters +=
                file.tensors.keys().filter(|name| name.ends_with(BATCHES_TRACKED)).count();
            file.tensors.retain(|name, _| !is_bookkeeping(name));
            for name in file.tensors.keys() {
                if tensors.insert(name.clone(), number).is_some() {
                    return Err(file.bad(format!("`{name}` is in another file, too")));
                }
            }
        }
        let bytes = |file: &TensorFile| file.tensors.values().map(Stored::bytes).sum::<u64>();
        if let Some(file) = files.iter().find(|file| bytes(file) > file.len) {
            let reason = "its tensors share bytes: together they are larger than it";
            return Err(file.bad(reason.to_owned()));
        }
        let dialect = Dialect::of(tensors.keys().map(String::as_str));
        Ok(Checkpoint { files, origin, tensors, n_counters, dialect, kind })
    }

    /// How it calls its tensors.
    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The format of its files.
    pub(crate) fn kind(&self) -> FileKind {
        self.kind
    }

    /// Name and shape of all tensors, as the files call them.
    pub(crate) fn shapes(&self) -> BTreeMap<&str, &[usize]> {
        let tensors = self.tensors.iter();
        tensors
            .map(|(name, &file)| (name.as_str(), self.files[file].tensors[name].shape.as_slice()))
            .collect()
    }

    /// The tensors of a model of this config, once all names and shapes are those that it asks for.
    pub(crate) fn model(self, config: &ModelConfig) -> Result<TensorReader, Error> {
        let shapes = config.parameter_shapes();
        let places = self.dialect.places(&shapes);
        let parts = places.values().flat_map(|place| place.parts.iter().cloned());
        let differences = differences(&parts.collect(), self.shapes().into_iter());
        if !differences.is_empty() {
            return Err(Error::Mismatch { origin: self.origin, differences });
        }
        Ok(TensorReader { checkpoint: self, shapes, places, resized: BTreeMap::new() })
    }

    /// All tensors by the names of the files.
    pub(super) fn read_all(mut self) -> Result<Weights, Error> {
        let names: Vec<(String, usize)> = self.tensors.clone().into_iter().collect();
        let mut weights = Weights::new();
        for (name, file) in names {
            let shape = self.files[file].tensors[&name].shape.clone();
            let mut data = Vec::with_capacity(shape.iter().product());
            self.files[file].pieces(&name, &mut |piece| {
                data.extend_from_slice(piece);
                Ok(())
            })?;
            weights.insert(name, WeightTensor { shape, data });
        }
        Ok(weights)
    }
}

/// Where the tensors of a model of transformers belong that has one tower, and names it nowhere.
fn lone_tower(files: &[TensorFile]) -> Option<&'static str> {
    let names = || files.iter().flat_map(|file| file.tensors.keys());
    let towers = [
        ("embeddings.token_embedding.weight", "text_model."),
        ("embeddings.patch_embedding.weight", "vision_model."),
    ];
    let (_, tower) = towers.into_iter().find(|(table, _)| names().any(|name| name == table))?;
    (!names().any(|name| name.starts_with(tower))).then_some(tower)
}

/// The tensors of a model, checked by name and shape and read one by one.
pub(crate) struct TensorReader {
    checkpoint: Checkpoint,
    shapes: BTreeMap<String, Vec<usize>>,
    places: BTreeMap<String, Place>,
    /// Tables of positions that are read at another size than the files have.
    resized: BTreeMap<String, Resize>,
}

impl TensorReader {
    /// Reads this table of positions at another size from now on.
    ///
    /// # Panics
    /// When the config has none of this name.
    pub(crate) fn resize(&mut self, name: &str, resize: Resize) {
        let shape = self.shapes.get_mut(name).expect("a tensor of the config");
        shape[0] = resize.rows();
        self.resized.insert(name.to_owned(), resize);
    }

    /// How many step counts of batch norms (`num_batches_tracked`) the files hold. They are not read.
    pub(crate) fn n_counters(&self) -> usize {
        self.checkpoint.n_counters
    }

    /// Whether the config has a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }

    /// One tensor.
    ///
    /// # Panics
    /// When the config has none of this name.
    pub(crate) fn read(&mut self, name: &str) -> Result<WeightTensor, Error> {
        let shape = self.shapes.get(name).expect("a tensor of the config").clone();
        let mut data = Vec::with_capacity(shape.iter().product());
        self.pieces(name, &mut |piece| data.extend_from_slice(piece))?;
        Ok(WeightTensor { shape, data })
    }

    /// The elements of one tensor, some at a time, at the size that the files have.
    fn stored_pieces(&mut self, name: &str, each: &mut dyn FnMut(&[f32])) -> Result<(), Error> {
        let place = self.places.get(name).expect("a tensor of the config");
        if !place.transposed {
            return place
                .parts
                .iter()
                .try_for_each(|(part, _)| self.checkpoint.part(name, part, each));
        }
        let mut data = Vec::new();
        for (part, _) in &place.parts {
            self.checkpoint.part(name, part, &mut |piece| data.extend_from_slice(piece))?;
        }
        each(&transposed(&data, self.shapes[name][0]));
        Ok(())
    }

    /// These tensors in another dialect, each stored as it is in the files, or in f32 where its parts differ.
    pub(crate) fn outgoing(&mut self, dialect: Dialect) -> Outgoing<'_> {
        let dtype = |name: &str| {
            let mut parts =
                self.places[name].parts.iter().map(|(part, _)| self.checkpoint.stored(part).dtype);
            let first = parts.next().unwrap_or(Dtype::F32);
            if parts.all(|dtype| dtype == first) { first } else { Dtype::F32 }
        };
        let dtypes: BTreeMap<String, Dtype> =
            self.shapes.keys().map(|name| (name.clone(), dtype(name))).collect();
        let places = dialect.places(&self.shapes);
        Outgoing::new(places, |name| dtypes[name], |name| self.read(name).map(Cow::Owned))
    }

    /// Reads all tensors and keeps none.
    ///
    /// # Errors
    /// When one cannot be read, or holds what no model can have.
    pub(crate) fn check_all(&mut self) -> Result<(), Error> {
        let names: Vec<String> = self.shapes.keys().cloned().collect();
        names.iter().try_for_each(|name| self.pieces(name, &mut |_| {}))
    }

    /// All tensors.
    pub(crate) fn read_all(mut self) -> Result<Weights, Error> {
        let names: Vec<String> = self.shapes.keys().cloned().collect();
        names.into_iter().map(|name| Ok((name.clone(), self.read(&name)?))).collect()
    }

    /// What `new` builds of the tensors for inference, each of which is read when it is wanted.
    pub(crate) fn build<T>(
        &mut self,
        config: &ModelConfig,
        precision: Precision,
        new: impl FnOnce(&dyn Source) -> T,
    ) -> Result<T, Error> {
        Loader::new(&config.parameter_shapes(), precision, self, None).build(new)
    }
}

impl Elements for TensorReader {
    fn pieces(&mut self, name: &str, each: &mut dyn FnMut(&[f32])) -> Result<(), Error> {
        if let Some(&resize) = self.resized.get(name) {
            let mut table = Vec::new();
            self.stored_pieces(name, &mut |piece| table.extend_from_slice(piece))?;
            each(&resize.apply(&table, self.shapes[name][1]));
            return Ok(());
        }
        self.stored_pieces(name, each)
    }
}

impl Checkpoint {
    fn stored(&self, part: &str) -> &Stored {
        &self.files[self.tensors[part]].tensors[part]
    }

    /// The elements of a tensor of the files, which belong to the tensor `name`.
    fn part(&mut self, name: &str, part: &str, each: &mut dyn FnMut(&[f32])) -> Result<(), Error> {
        let origin = &self.origin;
        let file = &mut self.files[self.tensors[part]];
        file.pieces(part, &mut |piece| match first_impossible(name, piece) {
            Some(found) => {
                let (origin, tensor) = (origin.clone(), part.to_owned());
                Err(Error::ImpossibleWeight { origin, tensor, found })
            }
            None => {
                each(piece);
                Ok(())
            }
        })
    }
}
