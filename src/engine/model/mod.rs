//! A BitNet transformer: its hyperparameters, its weights, its state, and the forward pass.
//!
//! Deliberately knows nothing of text: token ids go in, logits come out.

mod attention;
mod forward;
mod fused_rows;
mod lm_head;
mod state;
mod thread_tuning;
mod timings;
mod weight_bytes;
mod weights;

pub use lm_head::{AllowedTokens, HeadFormat, LogitsRequest, ShortlistStats};
pub use state::{KV_BLOCK, KvCacheFormat, MAX_LOGITS, MAX_SEQUENCES, Segment, State};
pub use timings::PassTimings;
pub use weight_bytes::WeightBytes;
pub use weights::Layout;

use super::error::{LoadError, escaped};
use super::gguf::Gguf;
use super::kernels::Kernels;
use super::known_keys::check_architecture;
use super::ops::RopePairs;
use super::quant::packed_row;
use super::thread_pool::ThreadPool;
use super::thread_tuner::{ThreadCounts, ThreadTuner};
use state::{RowBytes, StateSize};
use std::sync::Mutex;
use weights::Weights;
pub use weights::{EMBEDDING, HEAD, check_tensors, has_duplicate_head};

/// Tokens of a prompt that go through the model in one pass. More would reuse each weight more often, but scratch
/// memory grows with it, and so does the time until a caller can cancel. With 64, computing is the limit; the batch
/// kernel, which only x86-64 has, transposes weights once for all tokens, and is some 8 % faster with 128.
pub const BATCH: usize = if cfg!(target_arch = "x86_64") { 128 } else { 64 };

/// What an answer without a sequence retains for each token of the vocabulary, in bytes: a candidate of 8, a count and a raw
/// logit of 4 each, and two marks.
const RETAINED_BYTES_PER_TOKEN: usize = 18;

/// Positions that an f32 can tell apart: beyond, the rotation of two neighbours would be the same.
const MAX_CONTEXT: usize = 1 << 24;
/// Columns of a matrix whose sums of codes (at most 2) times int8 fit 32 bits.
const MAX_WIDTH: usize = i32::MAX as usize / 256;

/// The hyperparameters of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// The architecture, as the file names it.
    pub arch: String,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Longest context it was trained for.
    pub context: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Elements of a head that are rotated.
    pub rope_dims: usize,
    /// Base of the rotation frequencies.
    pub rope_base: f32,
    /// What positions are divided by: 1 unless the context was stretched after training.
    pub rope_stretch: f32,
    /// Which elements are rotated together.
    pub rope_pairs: RopePairs,
    /// Added to the mean square before its root is taken.
    pub epsilon: f32,
    /// The activation of the gate.
    pub activation: Activation,
    /// Whether attention and feed-forward outputs are normalised before their last matrix.
    pub sub_norms: bool,
}

/// The activation function of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `relu(x)^2`: BitNet-b1.58-2B-4T.
    SquaredRelu,
    /// `x * sigmoid(x)`: Llama, and the first BitNet models.
    Silu,
}

impl Shape {
    /// Reads and checks the hyperparameters of a file.
    pub fn read(file: &Gguf) -> Result<Self, LoadError> {
        let arch = file.text("general.architecture")?.ok_or_else(|| {
            LoadError::key("general.architecture", "missing; the file is no complete model")
        })?;
        let (usual, sub_norms, rope_pairs) = family_defaults(arch)?;
        check_architecture(file, arch)?;
        let key = |name: &str| format!("{arch}.{name}");
        let heads = file.number(&key("attention.head_count"))?;
        let dim = file.number(&key("embedding_length"))?;
        let head_dim = file.number_or_none(&key("attention.key_length"))?;
        let head_dim = head_dim.unwrap_or(dim / heads.max(1));
        let embedding = file
            .tensor(EMBEDDING)
            .ok_or_else(|| LoadError::tensor(EMBEDDING, "missing; the file is no complete model"))?;
        let shape = Shape {
            vocab: *embedding.dims.get(1).unwrap_or(&1),
            context: file.number(&key("context_length"))?,
            dim,
            layers: file.number(&key("block_count"))?,
            heads,
            kv_heads: file.number_or_none(&key("attention.head_count_kv"))?.unwrap_or(heads),
            head_dim,
            ffn: file.number(&key("feed_forward_length"))?,
            rope_dims: file.number_or_none(&key("rope.dimension_count"))?.unwrap_or(head_dim),
            rope_base: file.float_or(&key("rope.freq_base"), 10_000.0)?,
            rope_stretch: rope_stretch(file, arch)?,
            rope_pairs,
            epsilon: file.float_or(&key("attention.layer_norm_rms_epsilon"), 1e-5)?,
            activation: activation(file, arch, usual)?,
            sub_norms,
            arch: arch.to_owned(),
        };
        shape.check_limits(file)?;
        shape.check(file)?;
        Ok(shape)
    }

    fn check(&self, file: &Gguf) -> Result<(), LoadError> {
        let fail = |key: &str, message: String| Err(LoadError::key(&format!("{}.{key}", self.arch), message));
        let stated = file.value(&format!("{}.attention.key_length", self.arch)).is_some();
        if !stated && self.heads > 0 && !self.dim.is_multiple_of(self.heads) {
            let message = format!("{} heads do not divide a width of {}", self.heads, self.dim);
            return fail("attention.head_count", message);
        }
        let sizes = [
            ("context_length", self.context),
            ("embedding_length", self.dim),
            ("block_count", self.layers),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("feed_forward_length", self.ffn),
        ];
        if let Some((key, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return fail(key, "is 0".into());
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let message = format!("{} does not divide {} heads", self.kv_heads, self.heads);
            return fail("attention.head_count_kv", message);
        }
        if !self.rope_dims.is_multiple_of(2) || self.rope_dims > self.head_dim {
            let message = format!("{} is odd or above the {} of a head", self.rope_dims, self.head_dim);
            return fail("rope.dimension_count", message);
        }
        let value_length = file.number_or_none(&format!("{}.attention.value_length", self.arch))?;
        if let Some(length) = value_length.filter(|length| *length != self.head_dim) {
            let message =
                format!("{length} differs from the {} of a key; no such model is known", self.head_dim);
            return fail("attention.value_length", message);
        }
        // Below 1 the frequencies would grow without bound.
        if self.rope_base < 1.0 {
            return fail("rope.freq_base", format!("{} is below 1", self.rope_base));
        }
        if self.epsilon <= 0.0 {
            return fail("attention.layer_norm_rms_epsilon", format!("{} is not above 0", self.epsilon));
        }
        Ok(())
    }

    /// Refuses hyperparameters for which this file has no tensors, before anything is computed from them: a memory
    /// plan made of them would be absurd, or overflow.
    fn check_limits(&self, file: &Gguf) -> Result<(), LoadError> {
        let widest = file.tensors().iter().flat_map(|tensor| &tensor.dims).max().map_or(0, |dim| *dim);
        let widest = widest.min(MAX_WIDTH);
        let limits = [
            ("context_length", self.context, MAX_CONTEXT),
            // A layer has more than one tensor.
            ("block_count", self.layers, file.tensors().len()),
            ("embedding_length", self.dim, widest),
            ("feed_forward_length", self.ffn, widest),
            ("attention.head_count", self.heads, widest),
            ("attention.key_length", self.head_dim, widest / self.heads.max(1)),
        ];
        match limits.iter().find(|(_, size, most)| size > most) {
            None => Ok(()),
            Some((key, size, most)) => {
                let message = format!("is {size}, where this file can have {most} at most");
                Err(LoadError::key(&format!("{}.{key}", self.arch), message))
            }
        }
    }

    /// Whether the model's I2_S matrices can be in a layout at all.
    pub fn supports_layout(&self, layout: Layout) -> bool {
        let rows = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.dim, self.ffn];
        layout != Layout::Rows4 || rows.iter().all(|rows| rows.is_multiple_of(4))
    }

    /// Bytes of the KV cache for each token of context, in one format.
    ///
    /// # Panics
    /// When the format does not support heads of this size; see [`KvCacheFormat::supports`].
    pub fn cache_bytes_per_token(&self, form: KvCacheFormat) -> usize {
        self.layers * 2 * self.kv_heads * form.row_bytes(self.head_dim)
    }

    /// Bytes of everything else that a session holds, for `batch` tokens at a time, without what each sequence takes.
    pub fn scratch_bytes(&self, batch: usize) -> usize {
        let keys = 2 * self.kv_heads * self.head_dim;
        let row = 4 * (3 * self.dim + keys + self.widest_buffer() + self.rope_dims)
            + 4 * packed_row(self.widest_input());
        batch * row + state::SPARE_LOGITS * self.sequence_bytes()
    }

    /// Bytes that each sequence takes besides its keys and values: its logits, the vector that they are computed of, and
    /// what an answer retains that has given up its sequence for another: what its sampler knows of each token.
    pub fn sequence_bytes(&self) -> usize {
        4 * (self.vocab + self.dim) + RETAINED_BYTES_PER_TOKEN * self.vocab
    }

    /// Multiply-accumulate operations that a prompt of `tokens` takes in the matrices of the layers. In the last
    /// layer only the last token needs the matrices behind attention.
    pub fn prefill_macs(&self, tokens: usize) -> usize {
        let before = (self.heads + 2 * self.kv_heads) * self.head_dim;
        let behind = self.heads * self.head_dim + 3 * self.ffn;
        self.dim * (tokens * (self.layers * before + (self.layers - 1) * behind) + behind)
    }

    /// Floats of a token in the buffer that attention and feed-forward share.
    fn widest_buffer(&self) -> usize {
        self.ffn.max(2 * self.heads * self.head_dim)
    }

    fn widest_input(&self) -> usize {
        self.dim.max(self.heads * self.head_dim).max(self.ffn)
    }
}

/// What positions are divided by. llama.cpp's converter writes linear scaling by 1 for every `bitnet`.
fn rope_stretch(file: &Gguf, arch: &str) -> Result<f32, LoadError> {
    let (kind, factor) = (format!("{arch}.rope.scaling.type"), format!("{arch}.rope.scaling.factor"));
    match file.text(&kind)? {
        None | Some("none") => Ok(1.0),
        Some("linear") => match file.float_or(&factor, 1.0)? {
            // The meaning of a missing factor in llama.cpp.
            0.0 => Ok(1.0),
            stretch if stretch >= 1.0 => Ok(stretch),
            other => Err(LoadError::key(&factor, format!("{other} is below 1; the file is damaged"))),
        },
        Some(other) => {
            let message =
                format!("\"{}\" is not supported; use a model with linear scaling or none", escaped(other));
            Err(LoadError::key(&kind, message))
        }
    }
}

/// The activation that the file names, else the usual one of the architecture. llama.cpp's converter calls
/// BitNet-b1.58-2B-4T `bitnet` too and names no activation; the vocabulary identifies it.
fn activation(file: &Gguf, arch: &str, usual: Activation) -> Result<Activation, LoadError> {
    let key = format!("{arch}.hidden_activation");
    match file.text(&key)? {
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("relu2" | "relu_sqr" | "squared_relu") => Ok(Activation::SquaredRelu),
        Some(other) => {
            Err(LoadError::key(&key, format!("\"{}\" is not supported; silu and relu2 are", escaped(other))))
        }
        None if is_mislabelled_b158(file, arch) => Ok(Activation::SquaredRelu),
        None => Ok(usual),
    }
}

/// Whether a file that calls itself `bitnet` has the whole vocabulary of Llama 3, which the 2B model has and
/// 1bitLLM's models do not.
pub fn is_mislabelled_b158(file: &Gguf, arch: &str) -> bool {
    const LLAMA3: usize = 128_256;
    let tokens = || file.strings("tokenizer.ggml.tokens").is_ok_and(|tokens| tokens.len() == LLAMA3);
    arch == "bitnet" && file.text("tokenizer.ggml.model") == Ok(Some("gpt2")) && tokens()
}

/// The architectures of BitNet-embedding-0.6B (Qwen3) and -270M (Gemma 3).
const EMBEDDING_ARCHS: &[&str] = &["qwen3", "gemma3", "gemma-embedding"];

/// The activation, sub-norms and rotation of an architecture.
fn family_defaults(arch: &str) -> Result<(Activation, bool, RopePairs), LoadError> {
    match arch {
        "bitnet-b1.58" | "bitnet-25" => Ok((Activation::SquaredRelu, true, RopePairs::Halves)),
        "bitnet" => Ok((Activation::Silu, true, RopePairs::Halves)),
        "llama" => Ok((Activation::Silu, false, RopePairs::Neighbours)),
        other => {
            let name = escaped(other);
            let message = if EMBEDDING_ARCHS.contains(&other) {
                format!(
                    "\"{name}\", as the BitNet-embedding models have it, is not supported yet: they give vectors, \
                     not text; use bitnet-b1.58, bitnet or llama with ternary weights"
                )
            } else {
                format!(
                    "\"{name}\" is not supported; use bitnet-b1.58, bitnet-25, bitnet or llama with ternary weights"
                )
            };
            Err(LoadError::key("general.architecture", message))
        }
    }
}

/// A loaded model with the kernels and threads that run it.
#[derive(Debug)]
pub struct Model {
    shape: Shape,
    weights: Weights,
    kernels: Kernels,
    pool: ThreadPool,
    /// Locked briefly around each layer.
    tuner: Mutex<ThreadTuner>,
}

impl Model {
    /// Loads the weights of a file.
    pub fn load(file: &Gguf, layout: Layout, kernels: Kernels, pool: ThreadPool) -> Result<Self, LoadError> {
        let shape = Shape::read(file)?;
        let weights = Weights::load(file, &shape, layout)?;
        let all = Some(pool.threads());
        let tuner =
            ThreadTuner::new(pool.threads(), BATCH, ThreadCounts { decode: all, prefill: all }).into();
        Ok(Model { shape, weights, kernels, pool, tuner })
    }

    /// Reads the weights of the same file again in another layout. The old ones are dropped first, so that there is
    /// never more than one copy.
    pub fn reload(self, file: &Gguf, layout: Layout) -> Result<Self, LoadError> {
        let Model { shape, weights, kernels, pool, tuner } = self;
        let head = weights.into_head();
        let mut weights = Weights::load(file, &shape, layout)?;
        weights.restore_head(head);
        Ok(Model { shape, weights, kernels, pool, tuner })
    }

    /// The model's hyperparameters.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The kernels that the model runs on.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// The threads that the model runs on.
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    /// Bytes of weights that one decoded token reads.
    pub fn bytes_per_token(&self) -> usize {
        self.weights.bytes_per_token()
    }

    /// How many matrices of layers are not ternary and are multiplied as floats.
    pub fn float_matrices(&self) -> usize {
        self.weights.float_matrices()
    }

    /// An empty state for one sequence of `context` tokens, read in batches of at most `batch` and [`BATCH`], with a KV cache in format
    /// `cache`.
    pub fn state(&self, context: usize, batch: usize, cache: KvCacheFormat) -> State {
        let mut state = self.shared_state(context, batch, cache, 1);
        (0..state.blocks()).for_each(|block| state.push_block(0, block as u32));
        state
    }

    /// An empty state for several sequences of `context` tokens, which have no blocks of the cache yet.
    ///
    /// # Panics
    /// With no sequences, or more than [`MAX_SEQUENCES`].
    pub fn shared_state(
        &self,
        context: usize,
        batch: usize,
        cache: KvCacheFormat,
        sequences: usize,
    ) -> State {
        let row_bytes = RowBytes {
            embedding: self.weights.embedding.row_bytes(),
            head: self.weights.head().row_bytes(),
            has_shortlist: self.weights.shortlist.is_some(),
        };
        State::new(&self.shape, StateSize { context, batch, sequences }, cache, row_bytes)
    }
}
