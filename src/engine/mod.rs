//! The ternary engine: a GGUF file in, text out.
//!
//! ```text
//! Source ── open ──> ModelFile ── load ──> Engine ── session ──> Session
//!                     (planned)            (weights)              (KV cache)
//! ```
//!
//! Deliberately knows nothing of the daemon: no tokio, no wire types, no logging, no environment,
//! and no clock but for its own timings. It could be published as a crate tomorrow.

mod builtin;
pub mod convert;
pub mod error;
pub mod gguf;
pub mod kernels;
pub mod model;
mod ops;
pub mod pool;
pub mod quant;
pub mod sampler;
pub mod session;
pub mod tokenizer;

use error::LoadError;
use gguf::{Gguf, Map};
use kernels::Kernels;
use model::{BATCH, Dense, Layout, Model, Shape, WeightBytes};
use pool::Pool;
use session::Session;
use std::path::PathBuf;
use tokenizer::Tokenizer;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The one inside the binary.
    BuiltIn,
    /// A GGUF file.
    File(PathBuf),
}

/// A model file, mapped and checked but not loaded: enough to plan its memory.
#[derive(Debug)]
pub struct ModelFile {
    place: String,
    file: Gguf,
    shape: Shape,
    layout: Layout,
}

/// Memory that a model takes, in bytes, so that it can be planned before anything is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Weights read from the file's own pages.
    pub mapped: usize,
    /// Weights repacked into memory of ours.
    pub copied: usize,
    /// KV cache for each token of context.
    pub cache_per_token: usize,
    /// Buffers of a pass.
    pub scratch: usize,
    /// The vocabulary and its rules.
    pub tokenizer: usize,
}

/// How a model is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Threads that compute, the calling one counted.
    pub threads: usize,
    /// Whether each keeps to one processor.
    pub pin: bool,
    /// A kernel table by name; `None` is the fastest.
    pub kernel: Option<String>,
}

/// A loaded model.
#[derive(Debug)]
pub struct Engine {
    name: String,
    model: Model,
    tokenizer: Tokenizer,
}

impl ModelFile {
    /// Maps and checks a model.
    pub fn open(source: &Source, layout: Layout) -> Result<Self, LoadError> {
        match source {
            Source::BuiltIn => Self::parse(Map::from_static(builtin::bytes()), builtin::NAME, layout),
            Source::File(path) => {
                // A name with a line break in it must not break the error's line.
                let place = path.display().to_string().replace(char::is_control, "?");
                let map = Map::open(path)
                    .map_err(|error| LoadError::new(&place, format!("cannot be read: {error}")))?;
                Self::parse(map, &place, layout)
            }
        }
    }

    /// Checks a model given as bytes; `place` names it in errors.
    pub fn parse(map: Map, place: &str, layout: Layout) -> Result<Self, LoadError> {
        let file = Gguf::parse(map).map_err(|error| error.within(place))?;
        let shape = Shape::read(&file).map_err(|error| error.within(place))?;
        Ok(ModelFile { place: place.to_owned(), file, shape, layout })
    }

    /// Its numbers.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The memory it would take.
    pub fn footprint(&self) -> Footprint {
        let weights = WeightBytes::plan(&self.file, self.layout);
        let strings = |key: &str| self.file.strings(key).map_or(0, |strings| strings.len());
        // A token: about 8 bytes, its offset, its place in their order; a merge: four numbers. The map
        // from text to id that loading needs for a moment takes about 64 bytes a token.
        let tokenizer = 80 * strings("tokenizer.ggml.tokens") + 16 * strings("tokenizer.ggml.merges");
        Footprint {
            mapped: weights.mapped,
            copied: weights.copied,
            cache_per_token: self.shape.cache_bytes_per_token(Dense::F16),
            scratch: self.shape.scratch_bytes(BATCH),
            tokenizer,
        }
    }

    /// Loads it. The calling thread becomes the first of the computing ones.
    pub fn load(self, options: &Options) -> Result<Engine, LoadError> {
        self.load_parts(options).map_err(|error| error.within(&self.place))
    }

    fn load_parts(&self, options: &Options) -> Result<Engine, LoadError> {
        let kernels = match &options.kernel {
            None => Kernels::detect(),
            Some(name) => Kernels::named(name).ok_or_else(|| {
                let all = Kernels::all().iter().map(Kernels::name).collect::<Vec<_>>().join(", ");
                LoadError::new(format!("kernel {name}"), format!("this processor runs {all}"))
            })?,
        };
        let tokenizer = Tokenizer::read(&self.file)?;
        if tokenizer.vocab_size() != self.shape.vocab {
            let (tokens, rows) = (tokenizer.vocab_size(), self.shape.vocab);
            let said = format!("{tokens} tokens, but the embedding has {rows} rows");
            return Err(LoadError::key("tokenizer.ggml.tokens", said));
        }
        let cpus = if options.pin { pool::processors() } else { Vec::new() };
        let pool = Pool::new(options.threads, &cpus)
            .map_err(|error| LoadError::new("threads", format!("cannot be started: {error}")))?;
        let name = self.file.text("general.name")?.unwrap_or(&self.shape.arch).to_owned();
        let model = Model::load(&self.file, self.layout, kernels, pool)?;
        Ok(Engine { name, model, tokenizer })
    }
}

impl Footprint {
    /// All of it, with a cache of `context` tokens.
    pub fn total(&self, context: usize) -> usize {
        let fixed = self.mapped + self.copied + self.scratch + self.tokenizer;
        fixed.saturating_add(self.cache_per_token.saturating_mul(context))
    }
}

impl Engine {
    /// The model's name, as its file gives it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// An empty session for `context` tokens.
    pub fn session(&self, context: usize) -> Session<'_> {
        Session::new(&self.model, &self.tokenizer, context)
    }

    /// An empty session whose cache rounds nothing; see [`Session::exact`].
    pub fn exact_session(&self, context: usize) -> Session<'_> {
        Session::exact(&self.model, &self.tokenizer, context)
    }
}
