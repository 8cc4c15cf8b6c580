//! The text tower: a transformer, causal or not.

use burn::prelude::*;
use ferroclip_ops::{LayerNorm, Precision, Projection, Spans, TokenTable, embed_tokens};

use super::block::{BlockConfig, Transformer, norm};
use super::source::Source;
use super::stream::Stream;
use crate::config::{ModelConfig, TextPool, TextProjection};
use crate::param::{Params, Weights};

/// Token ids to embeddings.
#[derive(Clone, Debug)]
pub struct TextTower {
    tokens: Tokens,
    positions: Tensor<2>,
    transformer: Transformer,
    ln_final: LayerNorm,
    pool: TextPool,
    reads_padding: bool,
    projection: Option<Projection>,
    projection_bias: Option<Tensor<1>>,
}

const TOKENS: &str = "token_embedding.weight";

/// The embeddings of tokens.
#[derive(Clone, Debug)]
enum Tokens {
    Kept(TokenTable),
    Streamed(Stream),
}

impl Tokens {
    fn new(params: &dyn Source) -> Tokens {
        match params.stream() {
            Some(stream) => Tokens::Streamed(stream),
            None => Tokens::Kept(params.token_table(TOKENS)),
        }
    }

    fn vocab_size(&self) -> usize {
        match self {
            Tokens::Kept(table) => table.vocab_size(),
            Tokens::Streamed(stream) => stream.table_rows(TOKENS),
        }
    }

    /// The rows that enter the first block.
    fn embed(&self, positions: &Tensor<2>, ids: &[u32], spans: &Spans) -> Tensor<2> {
        match self {
            Tokens::Kept(table) => embed_tokens(table, positions, ids, spans),
            Tokens::Streamed(stream) => {
                let (table, ids) = stream.tokens(TOKENS, ids);
                embed_tokens(&table, positions, &ids, spans)
            }
        }
    }
}

impl TextTower {
    /// The tower of these parameters.
    ///
    /// # Panics
    /// When the parameters are not those of the config.
    pub fn new(config: &ModelConfig, params: &Params) -> Self {
        TextTower::build(config, params)
    }

    /// The tower of weights for inference on the CPU, packed in this precision: the same numbers in
    /// f32, and no gradient. Weights that the tower does not need are dropped.
    ///
    /// # Panics
    /// As [`TextTower::new`].
    pub fn packed(config: &ModelConfig, weights: Weights, precision: Precision) -> Self {
        let tower = weights.build(config, precision, |source| TextTower::build(config, source));
        tower.expect("nothing is read from a file")
    }

    pub(crate) fn build(config: &ModelConfig, params: &dyn Source) -> Self {
        let text = &config.text_cfg;
        let has_projection = text.proj_type == TextProjection::Linear;
        let projection = has_projection.then(|| Projection::new(params.tensor2("text_projection")));
        let projection = match params.packing() {
            Some(_) => projection.map(|projection| projection.packed(Precision::F32)),
            None => projection,
        };
        let blocks = BlockConfig {
            heads: text.heads,
            eps: text.norm_eps(),
            activation: config.text_activation(),
            causal: !text.no_causal_mask,
        };
        TextTower {
            tokens: Tokens::new(params),
            positions: params.tensor2("positional_embedding"),
            transformer: Transformer::new(params, "transformer", text.layers, blocks, true),
            ln_final: norm(params, "ln_final", text.norm_eps()),
            pool: text.pool_type,
            reads_padding: text.reads_padding(),
            projection,
            projection_bias: text.proj_bias.then(|| params.tensor1("text_projection_bias")),
        }
    }

    /// Embeddings, not normalised: `[texts, embed_dim]`. The texts are ids with start and end;
    /// padding behind the end is allowed and costs nothing, unless the tower reads padding: then a text has as many ids
    /// as the context is long.
    ///
    /// # Panics
    /// When a text is empty, has an id beyond the vocabulary, or its end lies beyond the context
    /// length.
    pub fn forward<T: AsRef<[u32]>>(&self, texts: &[T]) -> Tensor<2> {
        let pooled = self.pooled(texts);
        let x = match &self.projection {
            Some(projection) => projection.forward(pooled),
            None => pooled,
        };
        match &self.projection_bias {
            Some(bias) => x + bias.clone().unsqueeze::<2>(),
            None => x,
        }
    }

    /// Pooled features: the row at the end of each text behind `ln_final`, before the projection,
    /// `[texts, width]`.
    ///
    /// # Panics
    /// As [`TextTower::forward`].
    pub fn pooled<T: AsRef<[u32]>>(&self, texts: &[T]) -> Tensor<2> {
        let read: Vec<&[u32]> = texts.iter().map(|ids| self.read_part(ids.as_ref())).collect();
        let spans = Spans::from_lengths(read.iter().map(|ids| ids.len()));
        let ids = read.concat();
        self.check(&ids, &spans);
        let x = self.tokens.embed(&self.positions, &ids, &spans);
        let rows = spans.iter().zip(&read).map(|(rows, ids)| rows.start + self.pooled_place(ids));
        let rows: Vec<usize> = rows.collect();
        let pooled = self.transformer.forward_pooled(x, &spans, &rows);
        self.ln_final.forward(pooled)
    }

    /// The ids that can reach the pooled row: up to and including it, or all where padding does.
    fn read_part<'a>(&self, ids: &'a [u32]) -> &'a [u32] {
        match self.reads_padding {
            true => ids,
            false => &ids[..=self.pooled_place(ids)],
        }
    }

    /// The place of the row that is pooled.
    fn pooled_place(&self, ids: &[u32]) -> usize {
        match self.pool {
            TextPool::Last => ids.len() - 1,
            TextPool::Argmax => {
                let largest = ids.iter().max().expect("a text has a start and an end");
                let end = ids.iter().position(|id| id == largest);
                end.expect("the maximum is one of the ids")
            }
        }
    }

    fn check(&self, ids: &[u32], spans: &Spans) {
        let (vocab_size, context_length) = (self.tokens.vocab_size(), self.positions.dims()[0]);
        let longest = spans.longest();
        assert!(longest <= context_length, "a text of {longest} tokens, limit {context_length}");
        let whole = !self.reads_padding || spans.rows() == spans.count() * context_length;
        assert!(whole, "this tower reads padding: texts have {context_length} tokens");
        let known = ids.iter().all(|&id| (id as usize) < vocab_size);
        assert!(known, "a token id is beyond the vocabulary of {vocab_size}");
    }
}
