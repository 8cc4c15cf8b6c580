//! Name and shape of every tensor of a model, in open_clip's names and layouts.

use std::collections::BTreeMap;

use crate::config::{ImagePool, ModelConfig, TextConfig, TextProjection, Towers, VisionConfig};

/// Channels that leave a bottleneck, for each channel inside.
const EXPANSION: usize = 4;

/// Shapes by name.
struct Shapes(BTreeMap<String, Vec<usize>>);

impl ModelConfig {
    /// Name and shape of every tensor of the model, in open_clip's names and layouts: parameters,
    /// and the running statistics of batch norms.
    pub fn parameter_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let mut shapes = Shapes(BTreeMap::new());
        if self.towers == Towers::Both {
            shapes.add("logit_scale", &[]);
            if self.init_logit_bias.is_some() {
                shapes.add("logit_bias", &[]);
            }
        }
        if self.towers.has_image() {
            match self.vision_cfg.layers.stages() {
                None => shapes.transformer(&self.vision_cfg, self.embed_dim),
                Some(stages) => shapes.resnet(&self.vision_cfg, stages, self.embed_dim),
            }
        }
        if self.towers.has_text() {
            shapes.text(&self.text_cfg, self.embed_dim);
        }
        shapes.0
    }
}

impl Shapes {
    fn add(&mut self, name: &str, shape: &[usize]) {
        self.0.insert(name.to_owned(), shape.to_vec());
    }

    fn text(&mut self, text: &TextConfig, embed_dim: usize) {
        self.add("token_embedding.weight", &[text.vocab_size, text.width]);
        self.add("positional_embedding", &[text.context_length, text.width]);
        if text.proj_type == TextProjection::Linear {
            self.add("text_projection", &[text.width, embed_dim]);
        }
        if text.proj_bias {
            self.add("text_projection_bias", &[embed_dim]);
        }
        self.norm("ln_final", text.width);
        for layer in 0..text.layers {
            let block = format!("transformer.resblocks.{layer}");
            self.block(&block, text.width, text.mlp_width());
        }
    }

    fn transformer(&mut self, vision: &VisionConfig, embed_dim: usize) {
        let (width, [patch_height, patch_width]) = (vision.width, vision.patch());
        self.add("visual.conv1.weight", &[width, 3, patch_height, patch_width]);
        match vision.pool_type {
            ImagePool::Map => self.attention_pool(vision),
            ImagePool::Tok | ImagePool::Avg => {
                self.add("visual.class_embedding", &[width]);
                self.add("visual.positional_embedding", &[vision.grid_cells() + 1, width]);
                if !vision.no_proj {
                    self.add("visual.proj", &[width, embed_dim]);
                }
            }
        }
        self.norm("visual.ln_post", width);
        if !vision.no_ln_pre {
            self.norm("visual.ln_pre", width);
        }
        for layer in 0..vision.layers.blocks() {
            let block = format!("visual.transformer.resblocks.{layer}");
            self.block(&block, width, vision.mlp_width());
        }
    }

    /// What an image tower that pools by attention has in place of class token and projection. The names are ours.
    fn attention_pool(&mut self, vision: &VisionConfig) {
        let (width, mlp_width) = (vision.width, vision.mlp_width());
        self.add("visual.conv1.bias", &[width]);
        self.add("visual.positional_embedding", &[vision.grid_cells(), width]);
        self.add("visual.attn_pool.probe", &[width]);
        self.attention("visual.attn_pool", width);
        self.norm("visual.attn_pool.ln", width);
        self.mlp("visual.attn_pool", width, mlp_width);
    }

    fn resnet(&mut self, vision: &VisionConfig, stages: [usize; 4], embed_dim: usize) {
        let (width, half) = (vision.width, vision.width / 2);
        for (i, [inputs, outputs]) in (1..).zip([[3, half], [half, half], [half, width]]) {
            self.add(&format!("visual.conv{i}.weight"), &[outputs, inputs, 3, 3]);
            self.batch_norm(&format!("visual.bn{i}"), outputs);
        }
        let mut inputs = width;
        for (stage, blocks) in stages.into_iter().enumerate() {
            let inner = width << stage;
            for block in 0..blocks {
                let name = format!("visual.layer{}.{block}", stage + 1);
                self.bottleneck(&name, inputs, inner, stage > 0 && block == 0);
                inputs = EXPANSION * inner;
            }
        }
        let pooled = vision.pooled_width();
        let pool = |name: &str| format!("visual.attnpool.{name}");
        self.add(&pool("positional_embedding"), &[vision.grid_cells() + 1, pooled]);
        for (name, outputs) in
            [("q_proj", pooled), ("k_proj", pooled), ("v_proj", pooled), ("c_proj", embed_dim)]
        {
            self.add(&pool(&format!("{name}.weight")), &[outputs, pooled]);
            self.add(&pool(&format!("{name}.bias")), &[outputs]);
        }
    }

    fn bottleneck(&mut self, name: &str, inputs: usize, inner: usize, pools: bool) {
        let outputs = EXPANSION * inner;
        for (i, shape) in
            (1..).zip([[inner, inputs, 1, 1], [inner, inner, 3, 3], [outputs, inner, 1, 1]])
        {
            self.add(&format!("{name}.conv{i}.weight"), &shape);
            self.batch_norm(&format!("{name}.bn{i}"), shape[0]);
        }
        if pools || inputs != outputs {
            self.add(&format!("{name}.downsample.0.weight"), &[outputs, inputs, 1, 1]);
            self.batch_norm(&format!("{name}.downsample.1"), outputs);
        }
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.add(&format!("{name}.weight"), &[width]);
        self.add(&format!("{name}.bias"), &[width]);
    }

    fn batch_norm(&mut self, name: &str, width: usize) {
        self.norm(name, width);
        self.add(&format!("{name}.running_mean"), &[width]);
        self.add(&format!("{name}.running_var"), &[width]);
    }

    fn block(&mut self, block: &str, width: usize, mlp_width: usize) {
        self.norm(&format!("{block}.ln_1"), width);
        self.norm(&format!("{block}.ln_2"), width);
        self.attention(block, width);
        self.mlp(block, width, mlp_width);
    }

    fn attention(&mut self, block: &str, width: usize) {
        let name = |name: &str| format!("{block}.attn.{name}");
        self.add(&name("in_proj_weight"), &[3 * width, width]);
        self.add(&name("in_proj_bias"), &[3 * width]);
        self.add(&name("out_proj.weight"), &[width, width]);
        self.add(&name("out_proj.bias"), &[width]);
    }

    fn mlp(&mut self, block: &str, width: usize, mlp_width: usize) {
        let name = |name: &str| format!("{block}.mlp.{name}");
        self.add(&name("c_fc.weight"), &[mlp_width, width]);
        self.add(&name("c_fc.bias"), &[mlp_width]);
        self.add(&name("c_proj.weight"), &[width, mlp_width]);
        self.add(&name("c_proj.bias"), &[width]);
    }
}
