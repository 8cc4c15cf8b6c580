//! From the rows of data sets to batches: decode, augment, draw a caption, on worker threads.

use std::sync::Arc;

use ferroclip::image::{Augment, DecodeLimits, ImagePipeline, Rgb8Image};
use ferroclip::{Config, Tokenizer};
use ferroclip_data::{
    Cursor, Dataset, Order, Ordered, Plan, Tally, Visit, below, keyed_rng, map_ordered,
};

use crate::captions::Captions;
use crate::config::{TrainConfig, TrainData};
use crate::error::TrainError;
use crate::gradient::Batch;

/// Batches that the workers may be ahead, and pictures: those of two large batches would be gigabytes.
const BATCHES_AHEAD: usize = 2;
const PICTURES_AHEAD: usize = 1024;

/// The training data of a run.
#[derive(Debug)]
pub(crate) struct TrainSet {
    sources: Arc<Vec<CaptionedSet>>,
    pub(crate) plan: Plan,
}

/// A data set and where its captions are.
#[derive(Debug)]
struct CaptionedSet {
    dataset: Dataset,
    captions: Captions,
}

impl TrainSet {
    pub(crate) fn open(config: &TrainConfig) -> Result<TrainSet, TrainError> {
        let sets = config.data.train.iter().map(CaptionedSet::open);
        let sets: Vec<CaptionedSet> = sets.collect::<Result<_, _>>()?;
        let weights = config.data.train.iter().map(|data| data.weight);
        let sizes: Vec<(usize, f64)> =
            sets.iter().map(|set| set.dataset.len()).zip(weights).collect();
        let plan = Plan::new(&sizes, config.run.seed)?;
        Ok(TrainSet { sources: Arc::new(sets), plan })
    }

    /// A digest of the rows of each data set, to notice that one has changed.
    pub(crate) fn fingerprints(&self) -> Vec<String> {
        self.sources.iter().map(|set| set.dataset.fingerprint()).collect()
    }

    pub(crate) fn notices(&self) -> impl Iterator<Item = String> {
        let notices = self.sources.iter().flat_map(|set| {
            let path = set.dataset.path().display();
            set.dataset.notices().iter().map(move |notice| format!("`{path}`: {notice}"))
        });
        notices.collect::<Vec<_>>().into_iter()
    }

    /// Starts the workers; samples come from `cursor` on, without end.
    pub(crate) fn stream(
        &self,
        config: &TrainConfig,
        model: &Config,
        tokenizer: &Tokenizer,
        cursor: Cursor,
    ) -> Result<Stream, TrainError> {
        let order: Order = self.plan.order(cursor)?;
        let maker = SampleMaker {
            sources: self.sources.clone(),
            augment: config.image.clone(),
            pipeline: model.preprocess.clone(),
            tokenizer: tokenizer.clone(),
            context_length: model.model.text_cfg.context_length,
            grid_cells: model.model.vision_cfg.grid_cells(),
            patch_dropout: config.run.patch_dropout,
            seed: config.run.seed,
            limits: config.limits(),
        };
        let queue = (BATCHES_AHEAD * config.run.batch_size).min(PICTURES_AHEAD);
        let samples = map_ordered(order, config.threads(), queue, move |visit| maker.make(visit));
        let samples = samples.map_err(TrainError::io("start threads for", &config.run.out))?;
        Ok(Stream { samples, pipeline: model.preprocess.clone() })
    }
}

impl CaptionedSet {
    fn open(data: &TrainData) -> Result<CaptionedSet, TrainError> {
        let dataset = data.source()?.open()?;
        if let Some(label) = &data.label {
            dataset.column_index(label)?;
        }
        let captions = Captions::new(data, &dataset)?;
        Ok(CaptionedSet { dataset, captions })
    }
}

/// What the workers share.
struct SampleMaker {
    sources: Arc<Vec<CaptionedSet>>,
    augment: Augment,
    pipeline: ImagePipeline,
    tokenizer: Tokenizer,
    context_length: usize,
    grid_cells: usize,
    patch_dropout: f64,
    seed: u64,
    limits: DecodeLimits,
}

/// A sample as the workers deliver it.
#[derive(Debug)]
struct Sample {
    after: Cursor,
    pair: Result<Pair, Bad>,
}

#[derive(Debug)]
struct Pair {
    image: Rgb8Image,
    ids: Vec<u32>,
    truncated: bool,
    keep: Option<Vec<usize>>,
}

/// Name and reason of a sample that cannot be used.
#[derive(Debug)]
struct Bad {
    key: String,
    reason: String,
}

impl SampleMaker {
    fn make(&self, visit: Visit) -> Sample {
        let set = &self.sources[visit.dataset];
        let pair = self.pair(set, visit).map_err(|reason| {
            let key = set.dataset.key(visit.row).to_owned();
            Bad { key, reason }
        });
        Sample { after: visit.after, pair }
    }

    fn pair(&self, set: &CaptionedSet, visit: Visit) -> Result<Pair, String> {
        let (epoch, sample) = (visit.epoch, u64::from(visit.sample));
        let mut rng = keyed_rng(self.seed, "caption", epoch, sample);
        let caption = set.captions.draw(&set.dataset, visit.row, &mut rng);
        let caption = caption.ok_or("it has no caption")?;
        let bytes = set.dataset.read(visit.row).map_err(|error| error.to_string())?;
        let mut rng = keyed_rng(self.seed, "augment", epoch, sample);
        let (size, filter) = (self.pipeline.size, self.pipeline.interpolation);
        let image = self.augment.open(&bytes, &self.limits, size, filter, &mut rng);
        let image = image.map_err(|error| error.to_string())?;
        let tokens = self.tokenizer.tokenize(&caption, self.context_length);
        let keep = self.draw_patches(epoch, sample);
        Ok(Pair { image, truncated: tokens.truncated > 0, ids: tokens.ids, keep })
    }

    /// The patches that patch dropout leaves, as many for every image, in the order of the grid.
    fn draw_patches(&self, epoch: u64, sample: u64) -> Option<Vec<usize>> {
        if self.patch_dropout == 0.0 {
            return None;
        }
        let n = self.grid_cells;
        let n_kept = ((n as f64 * (1.0 - self.patch_dropout)) as usize).max(1);
        let mut rng = keyed_rng(self.seed, "patches", epoch, sample);
        let mut cells: Vec<usize> = (0..n).collect();
        for place in 0..n_kept {
            cells.swap(place, place + below(&mut rng, (n - place) as u32) as usize);
        }
        cells.truncate(n_kept);
        cells.sort_unstable();
        Some(cells)
    }
}

/// Samples being made ahead of the loop.
#[derive(Debug)]
pub(crate) struct Stream {
    samples: Ordered<Sample>,
    pipeline: ImagePipeline,
}

/// A batch and where the run stands when it is done.
#[derive(Debug)]
pub(crate) struct NextBatch {
    pub(crate) batch: Batch,
    pub(crate) after: Cursor,
    pub(crate) truncated: u64,
}

impl Stream {
    /// The next `n` good samples; bad ones are entered in the tally and passed over.
    pub(crate) fn next_batch(
        &mut self,
        n: usize,
        tally: &mut Tally,
        max_bad_share: f64,
    ) -> Result<NextBatch, TrainError> {
        let len = self.pipeline.tensor_len();
        let mut batch = Batch { pixels: vec![0.0; n * len], ..Batch::default() };
        let (mut keep, mut truncated) = (Vec::new(), 0);
        loop {
            let sample = self.samples.next().expect("the order has no end");
            match sample.pair {
                Ok(pair) => {
                    let place = batch.texts.len() * len;
                    self.pipeline.tensor(&pair.image, &mut batch.pixels[place..place + len]);
                    batch.texts.push(pair.ids);
                    keep.extend(pair.keep);
                    truncated += u64::from(pair.truncated);
                    tally.pass();
                }
                Err(Bad { key, reason }) => {
                    tally.fail(&key, reason);
                    tally.check(max_bad_share)?;
                    self.stop_where_nothing_is_good(tally)?;
                }
            }
            if batch.texts.len() == n {
                batch.keep = (!keep.is_empty()).then_some(keep);
                return Ok(NextBatch { batch, after: sample.after, truncated });
            }
        }
    }

    /// A share of bad samples of 1 is never exceeded: without this check, data that is all bad
    /// would be read for ever.
    fn stop_where_nothing_is_good(&self, tally: &Tally) -> Result<(), TrainError> {
        if tally.failed() == tally.seen() && tally.seen() >= 1000 {
            tally.check(0.999)?;
        }
        Ok(())
    }
}
