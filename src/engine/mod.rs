//! The inference engine for ternary (BitNet b1.58) models: a GGUF file in, text out.
//!
//! ```text
//! Source ── open ──> ModelFile ── load ──> Engine ── session ──> Session
//!                     (planned)            (weights)              (KV cache)
//! ```
//!
//! Deliberately knows nothing of the daemon: no tokio, no wire types, no logging, no environment, and no clock
//! except for its own timings and the age of its derived files. It could be published as a crate tomorrow.

mod builtin;
pub mod convert;
pub mod derived_cache;
pub mod description;
pub mod error;
pub mod gguf;
pub mod grammar;
pub mod kernels;
mod known_keys;
pub mod layout_detect;
pub mod logprobs;
pub mod model;
mod ops;
pub mod perplexity;
mod prefix_cache;
pub mod prefix_store;
pub mod quant;
pub mod sampler;
pub mod session;
pub mod synthetic;
pub mod thread_pool;
pub mod thread_tuner;
pub mod tokenizer;

use derived_cache::DerivedCache;
use error::LoadError;
use gguf::{FileMap, Gguf};
use grammar::{GrammarCompiler, GrammarError};
use kernels::Kernels;
use layout_detect::LayoutScore;
use model::{BATCH, HeadFormat, KV_BLOCK, KvCacheFormat, Layout, Model, Shape, WeightBytes};
use prefix_store::PrefixStore;
use session::Session;
use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use thread_pool::ThreadPool;
use thread_tuner::ThreadCounts;
use tokenizer::{ChatTemplate, LocalClock, Tokenizer};

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// The model inside the binary.
    BuiltIn,
    /// Random weights in the shape of a well-known model.
    Random(synthetic::SyntheticShape),
    /// A GGUF file.
    File(PathBuf),
}

/// A model file, mapped and checked but not loaded: enough to plan its memory.
#[derive(Debug)]
pub struct ModelFile {
    place: String,
    /// The file's path, if it is a file.
    path: Option<PathBuf>,
    file: Gguf,
    shape: Shape,
    layout: Option<Layout>,
    head: HeadFormat,
    cache: KvCacheFormat,
    template: ChatTemplate,
    clock: LocalClock,
}

/// The memory that a model takes, in bytes, so that it can be planned before anything is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Weights that are read from the file's own pages.
    pub mapped: usize,
    /// Weights that are repacked into allocated memory.
    pub copied: usize,
    /// KV cache for each token of context.
    pub cache_per_token: usize,
    /// Buffers of a pass.
    pub scratch: usize,
    /// What each answer at the same time takes besides its KV cache.
    pub per_sequence: usize,
    /// The tokenizer.
    pub tokenizer: usize,
    /// The trie of the vocabulary, from the first use of structured output on.
    pub token_trie: usize,
    /// Each grammar at work.
    pub per_grammar: usize,
}

/// How a model is run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineOptions {
    /// Threads that compute, including the calling one.
    pub threads: usize,
    /// Whether each thread is pinned to one CPU.
    pub pin: bool,
    /// A kernel table by name; `None` is the fastest.
    pub kernel: Option<String>,
    /// The folder for data derived from a model file, which the next start reuses; `None` keeps nothing.
    pub cache_dir: Option<PathBuf>,
}

/// The memory of a tokenizer apart from its vocabulary: word patterns with their caches, the automaton of the
/// special tokens, the template engine. Measured after a hundred prompts: 0.8 to 1.4 MB.
const TOKENIZER_FIXED: usize = 3 << 19;

/// The name of the detected layout in the derived cache.
const LAYOUT_ENTRY: &str = "layout";

/// A loaded model.
#[derive(Debug)]
pub struct Engine {
    name: String,
    model: Model,
    tokenizer: Arc<Tokenizer>,
    /// Made when first asked for.
    grammars: OnceLock<GrammarCompiler>,
    /// The layout in which the I2_S weights were read.
    layout: Layout,
    cache: KvCacheFormat,
    notes: Vec<String>,
    /// The folder for what is derived from the model; `None` where nothing is stored.
    cache_folder: Option<PathBuf>,
    /// The files that weights are read from. They are not kept alive: a file that is not read any more may go.
    files: Vec<Weak<FileMap>>,
}

impl ModelFile {
    /// Maps and checks a model. `layout` is that of its I2_S weights; with `None` it is detected when the model is
    /// loaded.
    pub fn open(source: &Source, layout: Option<Layout>) -> Result<Self, LoadError> {
        match source {
            // Its layout is known.
            Source::BuiltIn => {
                let layout = layout.unwrap_or_default();
                Self::parse(FileMap::from_static(builtin::bytes()), builtin::NAME, Some(layout))
            }
            Source::Random(known) => {
                Self::parse(known.build()?, known.name, Some(layout.unwrap_or_default()))
            }
            Source::File(path) => {
                // A name with a line break must not break the line of the error.
                let place = path.display().to_string().replace(char::is_control, "?");
                if path.is_dir() {
                    let message =
                        "a folder, not a regular file; make one of it: bitnetd convert FOLDER OUT.gguf";
                    return Err(LoadError::new(place, message));
                }
                let map = FileMap::open_guarded(path)
                    .map_err(|error| LoadError::new(&place, format!("cannot be read: {error}")))?;
                let file =
                    Self::parse(map, &place, layout).map_err(|error| gguf::with_name_hint(error, path))?;
                Ok(ModelFile { path: Some(path.clone()), ..file })
            }
        }
    }

    /// Checks a model given as bytes; `place` names it in errors.
    pub fn parse(map: FileMap, place: &str, layout: Option<Layout>) -> Result<Self, LoadError> {
        let file = Gguf::parse(map).map_err(|error| error.within(place))?;
        let shape = Shape::read(&file).map_err(|error| error.within(place))?;
        model::check_tensors(&file, &shape).map_err(|error| error.within(place))?;
        let head = HeadFormat::choose(&file, &shape, None).map_err(|error| error.within(place))?;
        Ok(ModelFile {
            place: place.to_owned(),
            path: None,
            file,
            shape,
            layout,
            head,
            cache: KvCacheFormat::default(),
            template: ChatTemplate::default(),
            clock: LocalClock::default(),
        })
    }

    /// The same with its head read in another format; `None` is the fastest that chooses the same tokens.
    pub fn with_head(self, wanted: Option<HeadFormat>) -> Result<Self, LoadError> {
        let head =
            HeadFormat::choose(&self.file, &self.shape, wanted).map_err(|error| error.within(&self.place))?;
        Ok(ModelFile { head, ..self })
    }

    /// The same with keys and values stored in format `cache`.
    pub fn with_cache(self, cache: KvCacheFormat) -> Result<Self, LoadError> {
        let size = self.shape.head_dim;
        if cache.supports(size) {
            return Ok(ModelFile { cache, ..self });
        }
        let message = format!("heads of {size} numbers are no whole blocks of 32, as int8 has them; use f16");
        Err(LoadError::new("KV cache", message).within(&self.place))
    }

    /// The same with a chat template of the owner's choice.
    pub fn with_template(self, template: ChatTemplate) -> Self {
        ModelFile { template, ..self }
    }

    /// The same with a clock for chat templates that write the date.
    pub fn with_clock(self, clock: LocalClock) -> Self {
        ModelFile { clock, ..self }
    }

    /// The format in which the head will be read.
    pub fn head(&self) -> HeadFormat {
        self.head
    }

    /// The model's hyperparameters.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The layout that was named for the I2_S weights.
    pub fn layout(&self) -> Option<Layout> {
        self.layout
    }

    /// Its path; `None` where it is no file.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The parsed file.
    pub fn file(&self) -> &Gguf {
        &self.file
    }

    /// The tokenizer alone, without the weights.
    pub fn tokenizer(&self) -> Result<Tokenizer, LoadError> {
        self.read_tokenizer().map_err(|error| error.within(&self.place))
    }

    /// The memory that the model would take. It does not depend on a layout that is still to be detected: what is
    /// repacked is no longer read from the file.
    pub fn footprint(&self) -> Footprint {
        let weights = WeightBytes::plan(&self.file, &self.shape, self.layout.unwrap_or_default(), self.head);
        let strings = |key: &str| self.file.strings(key).map_or(0, |strings| strings.len());
        // A token takes about 8 bytes, an offset, a place in the sorted order and a rank; a merge takes four
        // numbers. The map from text to id that loading needs for a moment takes about 64 bytes a token.
        let tokens = 80 * strings("tokenizer.ggml.tokens") + 16 * strings("tokenizer.ggml.merges");
        let tokenizer = tokens + TOKENIZER_FIXED;
        Footprint {
            mapped: weights.mapped,
            copied: weights.copied,
            cache_per_token: self.shape.cache_bytes_per_token(self.cache),
            scratch: self.shape.scratch_bytes(BATCH),
            per_sequence: self.shape.sequence_bytes(),
            tokenizer,
            token_trie: self.token_trie_bytes(),
            per_grammar: grammar::CONSTRAINT_BYTES,
        }
    }

    fn token_trie_bytes(&self) -> usize {
        let tokens = self.file.strings("tokenizer.ggml.tokens");
        let (count, text_bytes) = tokens.map_or((0, 0), |tokens| (tokens.len(), tokens.byte_len()));
        GrammarCompiler::trie_bytes(count, text_bytes)
    }

    /// Loads the model. The calling thread becomes the first of the computing ones.
    pub fn load(self, options: &EngineOptions) -> Result<Engine, LoadError> {
        let cache = self.derived_cache(options);
        let found = || {
            Layout::by_name(&cache.text(LAYOUT_ENTRY)?).filter(|layout| self.shape.supports_layout(*layout))
        };
        let known = self.layout.or_else(found);
        let loaded = self.load_as(known.unwrap_or_default(), options).and_then(|engine| {
            if known.is_some() || !self.has_layout() {
                return Ok(engine);
            }
            let engine = self.detect_layout(engine)?;
            if self.is_trained() {
                cache.store_text(LAYOUT_ENTRY, engine.layout.name());
            }
            Ok(engine)
        });
        self.file.release_header();
        let engine = loaded.map_err(|error| error.within(&self.place))?;
        engine.check_files()?;
        Ok(engine)
    }

    /// The folder for what is derived from this model, by the file or, of the built-in model, the version of the program.
    fn cache_folder(&self, options: &EngineOptions) -> Option<PathBuf> {
        match &self.path {
            Some(_) => self.derived_cache(options).folder().map(Path::to_owned),
            None => options.cache_dir.as_ref().map(|root| root.join("built-in")),
        }
    }

    fn derived_cache(&self, options: &EngineOptions) -> DerivedCache {
        match (&options.cache_dir, &self.path) {
            (Some(folder), Some(path)) => DerivedCache::for_model(folder, path),
            _ => DerivedCache::disabled(),
        }
    }

    /// Attaches the head in its format, from the derived cache or made now. Returns the file that holds it.
    fn attach_head(
        &self,
        model: &mut Model,
        cache: &DerivedCache,
        notes: &mut Vec<String>,
    ) -> Result<Option<Weak<FileMap>>, LoadError> {
        let form = self.head;
        if form == HeadFormat::File {
            return Ok(None);
        }
        let bytes = form.image_bytes(&self.shape);
        let is_sound = |image: &[u8]| model.is_image_of_head(form, image);
        let image = cache
            .load_or_create(&format!("head-{}", form.name()), bytes, is_sound, |out| {
                model.write_head(form, out)
            })
            .map_err(|error| LoadError::new("head", format!("{} cannot be made: {error}", form.name())))?;
        model.attach_head(form, &image.map, image.start);
        if let Some(why) = image.not_cached_because {
            notes.push(format!(
                "the head as {} is made at each start, since it cannot be kept: {why}; set model.cache_dir, or \
                 CACHE_DIRECTORY in the environment, to a folder that can be written",
                form.name()
            ));
        }
        Ok(Some(Arc::downgrade(&image.map)))
    }

    /// How well the model predicts a built-in text in each layout that its I2_S weights may have, or as it is where
    /// it has none.
    pub fn score_layouts(&self, options: &EngineOptions) -> Result<Vec<LayoutScore>, LoadError> {
        let layouts = if self.has_layout() { &Layout::ALL[..] } else { &Layout::ALL[..1] };
        let measured = self.load_as(layouts[0], options).and_then(|mut engine| {
            let mut figures = vec![layout_detect::score_layout(&engine.model, &engine.tokenizer, layouts[0])];
            for layout in &layouts[1..] {
                engine = self.score_in(engine, *layout, &mut figures)?;
            }
            Ok(figures)
        });
        measured.map_err(|error| error.within(&self.place))
    }

    /// Whether any of the matrices is I2_S and therefore has a layout.
    pub fn has_layout(&self) -> bool {
        layout_detect::has_layout(&self.file)
    }

    /// Why a model with such scores, see [`ModelFile::score_layouts`], is refused: it was trained, and predicts
    /// text in no layout.
    pub fn rejection(&self, figures: &[LayoutScore]) -> Option<LoadError> {
        let vocab = self.shape.vocab;
        let refused = self.is_trained() && layout_detect::choose_layout(figures, vocab).is_none();
        refused.then(|| layout_detect::damaged_error(figures, vocab).within(&self.place))
    }

    /// Whether the weights were trained: random weights predict nothing in any layout.
    pub fn is_trained(&self) -> bool {
        layout_detect::is_trained(&self.file)
    }

    /// Detects the layout of a model that was loaded in the official one.
    fn detect_layout(&self, mut engine: Engine) -> Result<Engine, LoadError> {
        if !self.is_trained() {
            let message =
                "the weights were never trained, so that no text shows their I2_S layout; read as 128";
            engine.notes.push(message.into());
            return Ok(engine);
        }
        let vocab = self.shape.vocab;
        let mut figures = vec![layout_detect::score_layout(&engine.model, &engine.tokenizer, engine.layout)];
        // The first layout that predicts text is taken: none of the others would, and reading all of them takes
        // long.
        for layout in &Layout::ALL[1..] {
            if layout_detect::choose_layout(&figures, vocab).is_some() {
                break;
            }
            engine = self.score_in(engine, *layout, &mut figures)?;
        }
        let layout = layout_detect::choose_layout(&figures, vocab)
            .ok_or_else(|| layout_detect::damaged_error(&figures, vocab))?;
        if layout != Layout::default() {
            let (name, message) = (layout.name(), layout_detect::summary(&figures, vocab));
            engine.notes.push(format!(
                "I2_S weights are in the layout {name} (perplexity of a short text as {message}); name it to start sooner"
            ));
        }
        Ok(engine)
    }

    /// Reads the weights again in another layout and scores it; one that the shapes rule out is skipped.
    fn score_in(
        &self,
        mut engine: Engine,
        layout: Layout,
        figures: &mut Vec<LayoutScore>,
    ) -> Result<Engine, LoadError> {
        if self.shape.supports_layout(layout) {
            engine.model = engine.model.reload(&self.file, layout)?;
            engine.layout = layout;
            figures.push(layout_detect::score_layout(&engine.model, &engine.tokenizer, layout));
        }
        Ok(engine)
    }

    fn read_tokenizer(&self) -> Result<Tokenizer, LoadError> {
        let tokenizer = Tokenizer::read_with(&self.file, &self.template)?.with_clock(self.clock);
        if tokenizer.vocab_size() != self.shape.vocab {
            let (tokens, rows) = (tokenizer.vocab_size(), self.shape.vocab);
            let message = format!("{tokens} tokens, but the embedding has {rows} rows");
            return Err(LoadError::key("tokenizer.ggml.tokens", message));
        }
        Ok(tokenizer)
    }

    fn load_as(&self, layout: Layout, options: &EngineOptions) -> Result<Engine, LoadError> {
        let kernels = match &options.kernel {
            None => Kernels::detect(),
            Some(name) => Kernels::named(name).ok_or_else(|| {
                let all = Kernels::all().iter().map(Kernels::name).collect::<Vec<_>>().join(", ");
                LoadError::new(format!("kernel {name}"), format!("this processor runs {all}"))
            })?,
        };
        let cpus = if options.pin { thread_pool::processors() } else { Vec::new() };
        let pool = ThreadPool::new(options.threads, &cpus)
            .map_err(|error| LoadError::new("threads", format!("cannot be started: {error}")))?;
        let name = self.file.text("general.name")?.unwrap_or(&self.shape.arch).to_owned();
        let (tokenizer, model) = self.read_both(|| Model::load(&self.file, layout, kernels, pool))?;
        let mut model = model?;
        let mut notes = self.notes(&model, &tokenizer);
        let head = self.attach_head(&mut model, &self.derived_cache(options), &mut notes)?;
        let files = head.into_iter().chain([Arc::downgrade(self.file.map())]).collect();
        let tokenizer = Arc::new(tokenizer);
        let grammars = OnceLock::new();
        let cache_folder = self.cache_folder(options);
        Ok(Engine { name, model, tokenizer, grammars, layout, cache: self.cache, notes, cache_folder, files })
    }

    /// Reads the tokenizer on a thread of its own while `load` runs: each takes a few tenths of a second for a
    /// large model.
    fn read_both<T>(&self, load: impl FnOnce() -> T) -> Result<(Tokenizer, T), LoadError> {
        thread::scope(|scope| {
            let reading = thread::Builder::new().name("vocabulary".into());
            let reading = reading
                .spawn_scoped(scope, || self.read_tokenizer())
                .map_err(|error| LoadError::new("threads", format!("cannot be started: {error}")))?;
            let loaded = load();
            let tokenizer = reading.join().unwrap_or_else(|panic| resume_unwind(panic))?;
            Ok((tokenizer, loaded))
        })
    }

    fn notes(&self, model: &Model, tokenizer: &Tokenizer) -> Vec<String> {
        let mut notes = tokenizer.notes().to_vec();
        if model::has_duplicate_head(&self.file) {
            notes.push("the head is a copy of the embedding, and is left in the file".into());
        }
        if model::is_mislabelled_b158(&self.file, &self.shape.arch)
            && self.shape.activation == model::Activation::SquaredRelu
        {
            notes.push("architecture bitnet with Llama 3's vocabulary: taken for BitNet-b1.58-2B-4T".into());
        }
        let dense = model.float_matrices();
        if dense > 0 {
            notes.push(format!("{dense} matrices are not ternary, and run as they are: slower"));
        }
        notes
    }
}

impl Footprint {
    /// The sum of all but structured output, for so many answers at the same time with `context` tokens each.
    pub fn total(&self, context: usize, sequences: usize) -> usize {
        let fixed = self.mapped + self.copied + self.scratch + self.tokenizer;
        let each = self.cache_bytes(context).saturating_add(self.per_sequence);
        fixed.saturating_add(each.saturating_mul(sequences))
    }

    /// What structured output takes besides, with so many grammars at work at the same time.
    pub fn structured_output(&self, grammars: usize) -> usize {
        self.token_trie.saturating_add(self.per_grammar.saturating_mul(grammars))
    }

    /// Bytes of the KV cache of one answer with `context` tokens, which is made of whole blocks.
    pub fn cache_bytes(&self, context: usize) -> usize {
        self.cache_per_token.saturating_mul(context.next_multiple_of(KV_BLOCK))
    }
}

impl Engine {
    /// The model's name, as its file gives it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was wrong or missing in the file, and how it was read nevertheless: one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The layout in which the I2_S weights were read, named or detected.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// From now on measures during its first passes how many threads are fastest, where `fixed` leaves it open; a
    /// number that is fixed is used as it is. Without this call every pass uses all threads.
    pub fn tuned(mut self, fixed: ThreadCounts) -> Self {
        self.model.tune(fixed);
        self
    }

    /// Checks that the files that weights are read from are unchanged since they were loaded. Where they are not,
    /// whatever was computed since the last check is not to be trusted.
    pub fn check_files(&self) -> Result<(), LoadError> {
        self.files.iter().filter_map(Weak::upgrade).find_map(|map| map.damage()).map_or(Ok(()), Err)
    }

    /// Whether zeros were read in place of weights because a file became shorter. A check of memory that is made
    /// for every token.
    pub fn has_zeroed_pages(&self) -> bool {
        self.files.iter().filter_map(Weak::upgrade).any(|map| map.has_zeroed_pages())
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The compiler of grammars for its vocabulary. The first call makes the trie of the vocabulary, which takes
    /// [`Footprint::token_trie`] and up to some tenths of a second.
    ///
    /// # Errors
    /// When the vocabulary cannot be used for it.
    pub fn grammars(&self) -> Result<&GrammarCompiler, GrammarError> {
        if let Some(grammars) = self.grammars.get() {
            return Ok(grammars);
        }
        let made = GrammarCompiler::new(&self.tokenizer)?;
        Ok(self.grammars.get_or_init(|| made))
    }

    /// An empty session for `context` tokens.
    pub fn session(&self, context: usize) -> Session<'_> {
        Session::new(&self.model, &self.tokenizer, context, self.cache)
    }

    /// An empty session that answers up to `slots` prompts of `context` tokens at the same time, and computes what their
    /// beginnings have in common once.
    pub fn shared_session(&self, context: usize, slots: usize) -> Session<'_> {
        Session::shared(&self.model, &self.tokenizer, context, self.cache, slots)
    }

    /// The same, which also finds the beginnings of prompts in files, of which it writes up to `limit` bytes; see
    /// [`Session::store_block`].
    ///
    /// # Errors
    /// Where there is no folder for what is derived from the model, or none can be made.
    pub fn stored_session(&self, context: usize, slots: usize, limit: u64) -> io::Result<Session<'_>> {
        let folder = self.cache_folder.as_ref();
        let folder =
            folder.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "model.cache_dir is empty"))?;
        let store = PrefixStore::open(&folder.join("prefixes"), limit)?;
        // What the file is, how its weights are read, and how keys and values are written.
        let file = folder.file_name().unwrap_or_default().to_string_lossy();
        let model = format!("{file} {} {} {}", self.name, self.layout.name(), self.cache.name());
        Ok(self.shared_session(context, slots).with_store(store, model))
    }

    /// An empty session whose cache rounds nothing; see [`Session::exact`].
    pub fn exact_session(&self, context: usize) -> Session<'_> {
        Session::exact(&self.model, &self.tokenizer, context)
    }
}
