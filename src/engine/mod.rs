//! The ternary engine: a GGUF file in, text out.
//!
//! ```text
//! Source ── open ──> ModelFile ── load ──> Engine ── session ──> Session
//!                     (planned)            (weights)              (KV cache)
//! ```
//!
//! Deliberately knows nothing of the daemon: no tokio, no wire types, no logging, no environment,
//! and no clock but for its own timings and the age of what it keeps. It could be published as a crate tomorrow.

mod builtin;
pub mod check;
pub mod convert;
pub mod error;
pub mod gguf;
pub mod kept;
pub mod kernels;
mod known_keys;
pub mod model;
mod ops;
pub mod perplexity;
pub mod pool;
pub mod quant;
pub mod sampler;
pub mod session;
pub mod shapes;
pub mod tokenizer;
pub mod tuner;

use check::Figure;
use error::LoadError;
use gguf::{Gguf, Map};
use kept::Kept;
use kernels::Kernels;
use model::{BATCH, CacheForm, HeadForm, Layout, Model, Shape, WeightBytes};
use pool::Pool;
use session::Session;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread;
use tokenizer::{ChatTemplate, LocalClock, Tokenizer};
use tuner::Threads;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// The one inside the binary.
    BuiltIn,
    /// Random weights of a well-known shape.
    Random(shapes::Known),
    /// A GGUF file.
    File(PathBuf),
}

/// A model file, mapped and checked but not loaded: enough to plan its memory.
#[derive(Debug)]
pub struct ModelFile {
    place: String,
    /// Where it is, if it is a file.
    path: Option<PathBuf>,
    file: Gguf,
    shape: Shape,
    layout: Option<Layout>,
    head: HeadForm,
    cache: CacheForm,
    template: ChatTemplate,
    clock: LocalClock,
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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Threads that compute, the calling one counted.
    pub threads: usize,
    /// Whether each keeps to one processor.
    pub pin: bool,
    /// A kernel table by name; `None` is the fastest.
    pub kernel: Option<String>,
    /// Folder in which what is worked out of a model file is kept for the next start; `None` keeps nothing.
    pub keep_in: Option<PathBuf>,
}

/// What a tokenizer takes whatever its vocabulary: word patterns with their caches, the special tokens'
/// automaton, the template engine. Measured after a hundred prompts: 0.8 to 1.4 MB.
const TOKENIZER_FIXED: usize = 3 << 19;

/// Under which the layout that was found out is kept.
const LAYOUT: &str = "layout";

/// A loaded model.
#[derive(Debug)]
pub struct Engine {
    name: String,
    model: Model,
    tokenizer: Tokenizer,
    /// In which its I2_S weights were read.
    layout: Layout,
    cache: CacheForm,
    notes: Vec<String>,
    /// The files that weights are read from. Not kept alive: a file that nothing is read from any more may go.
    files: Vec<Weak<Map>>,
}

impl ModelFile {
    /// Maps and checks a model. `layout` is that of its I2_S weights; `None` finds it out when the model
    /// is loaded.
    pub fn open(source: &Source, layout: Option<Layout>) -> Result<Self, LoadError> {
        match source {
            // Its layout is known.
            Source::BuiltIn => {
                let layout = layout.unwrap_or_default();
                Self::parse(Map::from_static(builtin::bytes()), builtin::NAME, Some(layout))
            }
            Source::Random(known) => {
                Self::parse(known.image()?, known.name, Some(layout.unwrap_or_default()))
            }
            Source::File(path) => {
                // A name with a line break in it must not break the error's line.
                let place = path.display().to_string().replace(char::is_control, "?");
                if path.is_dir() {
                    let said =
                        "a folder, not a regular file; make one of it: bitnetd convert FOLDER OUT.gguf";
                    return Err(LoadError::new(place, said));
                }
                let map = Map::open_guarded(path)
                    .map_err(|error| LoadError::new(&place, format!("cannot be read: {error}")))?;
                let file = Self::parse(map, &place, layout).map_err(|error| gguf::with_name(error, path))?;
                Ok(ModelFile { path: Some(path.clone()), ..file })
            }
        }
    }

    /// Checks a model given as bytes; `place` names it in errors.
    pub fn parse(map: Map, place: &str, layout: Option<Layout>) -> Result<Self, LoadError> {
        let file = Gguf::parse(map).map_err(|error| error.within(place))?;
        let shape = Shape::read(&file).map_err(|error| error.within(place))?;
        model::check_tensors(&file, &shape).map_err(|error| error.within(place))?;
        let head = HeadForm::of(&file, &shape, None).map_err(|error| error.within(place))?;
        Ok(ModelFile {
            place: place.to_owned(),
            path: None,
            file,
            shape,
            layout,
            head,
            cache: CacheForm::default(),
            template: ChatTemplate::default(),
            clock: LocalClock::default(),
        })
    }

    /// The same with its head read in another form; `None` is the fastest that chooses the same tokens.
    pub fn with_head(self, wanted: Option<HeadForm>) -> Result<Self, LoadError> {
        let head =
            HeadForm::of(&self.file, &self.shape, wanted).map_err(|error| error.within(&self.place))?;
        Ok(ModelFile { head, ..self })
    }

    /// The same with keys and values kept in `cache`.
    pub fn with_cache(self, cache: CacheForm) -> Result<Self, LoadError> {
        let size = self.shape.head_dim;
        if cache.takes(size) {
            return Ok(ModelFile { cache, ..self });
        }
        let said = format!("heads of {size} numbers are no whole blocks of 32, as int8 has them; use f16");
        Err(LoadError::new("KV cache", said).within(&self.place))
    }

    /// The same with a chat template of the owner's choice.
    pub fn with_template(self, template: ChatTemplate) -> Self {
        ModelFile { template, ..self }
    }

    /// The same with a clock for chat templates that write the date.
    pub fn with_clock(self, clock: LocalClock) -> Self {
        ModelFile { clock, ..self }
    }

    /// How its head will be read.
    pub fn head(&self) -> HeadForm {
        self.head
    }

    /// Its numbers.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The layout that was named for its I2_S weights.
    pub fn layout(&self) -> Option<Layout> {
        self.layout
    }

    /// The parsed file.
    pub fn file(&self) -> &Gguf {
        &self.file
    }

    /// Its tokenizer alone, without its weights.
    pub fn tokenizer(&self) -> Result<Tokenizer, LoadError> {
        self.read_tokenizer().map_err(|error| error.within(&self.place))
    }

    /// The memory it would take. A layout yet to be found out changes none of the sums: what is
    /// repacked is no longer read from the file.
    pub fn footprint(&self) -> Footprint {
        let weights = WeightBytes::plan(&self.file, &self.shape, self.layout.unwrap_or_default(), self.head);
        let strings = |key: &str| self.file.strings(key).map_or(0, |strings| strings.len());
        // A token: about 8 bytes, its offset, its place in their order, its rank; a merge: four numbers.
        // The map from text to id that loading needs for a moment takes about 64 bytes a token.
        let tokens = 80 * strings("tokenizer.ggml.tokens") + 16 * strings("tokenizer.ggml.merges");
        let tokenizer = tokens + TOKENIZER_FIXED;
        Footprint {
            mapped: weights.mapped,
            copied: weights.copied,
            cache_per_token: self.shape.cache_bytes_per_token(self.cache),
            scratch: self.shape.scratch_bytes(BATCH),
            tokenizer,
        }
    }

    /// Loads it. The calling thread becomes the first of the computing ones.
    pub fn load(self, options: &Options) -> Result<Engine, LoadError> {
        let kept = self.kept(options);
        let found = || Layout::named(&kept.text(LAYOUT)?).filter(|layout| self.shape.allows(*layout));
        let known = self.layout.or_else(found);
        let loaded = self.load_as(known.unwrap_or_default(), options).and_then(|engine| {
            if known.is_some() || !self.has_layout() {
                return Ok(engine);
            }
            let engine = self.settle(engine)?;
            if self.is_trained() {
                kept.keep_text(LAYOUT, engine.layout.name());
            }
            Ok(engine)
        });
        self.file.release_header();
        let engine = loaded.map_err(|error| error.within(&self.place))?;
        engine.check_files()?;
        Ok(engine)
    }

    fn kept(&self, options: &Options) -> Kept {
        match (&options.keep_in, &self.path) {
            (Some(folder), Some(path)) => Kept::of(folder, path),
            _ => Kept::nowhere(),
        }
    }

    /// Reads the head in its form from now on; the image of it is kept, or made.
    /// Gives the file that holds it.
    fn put_head(
        &self,
        model: &mut Model,
        kept: &Kept,
        notes: &mut Vec<String>,
    ) -> Result<Option<Weak<Map>>, LoadError> {
        let form = self.head;
        if form == HeadForm::File {
            return Ok(None);
        }
        let bytes = form.image_bytes(&self.shape);
        let is_sound = |image: &[u8]| model.is_image_of_head(form, image);
        let image = kept
            .image(&format!("head-{}", form.name()), bytes, is_sound, |out| model.write_head(form, out))
            .map_err(|error| LoadError::new("head", format!("{} cannot be made: {error}", form.name())))?;
        model.use_head(form, &image.map, image.start);
        if let Some(why) = image.why_not_kept {
            notes.push(format!(
                "the head as {} is made at each start, since it cannot be kept: {why}; set model.cache_dir, or \
                 CACHE_DIRECTORY in the environment, to a folder that can be written",
                form.name()
            ));
        }
        Ok(Some(Arc::downgrade(&image.map)))
    }

    /// How well the model foretells a built-in text in each layout that its I2_S weights may have, or
    /// as it is where it has none.
    pub fn check(&self, options: &Options) -> Result<Vec<Figure>, LoadError> {
        let layouts = if self.has_layout() { &Layout::ALL[..] } else { &Layout::ALL[..1] };
        let measured = self.load_as(layouts[0], options).and_then(|mut engine| {
            let mut figures = vec![check::measure(&engine.model, &engine.tokenizer, layouts[0])];
            for layout in &layouts[1..] {
                engine = self.figure(engine, *layout, &mut figures)?;
            }
            Ok(figures)
        });
        measured.map_err(|error| error.within(&self.place))
    }

    /// Whether any of its matrices is I2_S, and so has a layout.
    pub fn has_layout(&self) -> bool {
        check::has_layout(&self.file)
    }

    /// Why a model with such figures, see [`ModelFile::check`], is refused: it was trained, and foretells in
    /// no layout.
    pub fn refusal(&self, figures: &[Figure]) -> Option<LoadError> {
        let vocab = self.shape.vocab;
        let refused = self.is_trained() && check::choose(figures, vocab).is_none();
        refused.then(|| check::damaged(figures, vocab).within(&self.place))
    }

    /// Whether the weights were trained: drawn at random they foretell nothing in any layout.
    pub fn is_trained(&self) -> bool {
        check::is_trained(&self.file)
    }

    /// Finds out the layout of a model that was loaded in the official one.
    fn settle(&self, mut engine: Engine) -> Result<Engine, LoadError> {
        if !self.is_trained() {
            let said = "the weights were never trained, so that no text shows their I2_S layout; read as 128";
            engine.notes.push(said.into());
            return Ok(engine);
        }
        let vocab = self.shape.vocab;
        let mut figures = vec![check::measure(&engine.model, &engine.tokenizer, engine.layout)];
        // The first that foretells is taken: none of the others would, and reading all of them takes long.
        for layout in &Layout::ALL[1..] {
            if check::choose(&figures, vocab).is_some() {
                break;
            }
            engine = self.figure(engine, *layout, &mut figures)?;
        }
        let layout = check::choose(&figures, vocab).ok_or_else(|| check::damaged(&figures, vocab))?;
        if layout != Layout::default() {
            let (name, said) = (layout.name(), check::said(&figures, vocab));
            engine.notes.push(format!(
                "I2_S weights are in the layout {name} (perplexity of a short text as {said}); name it to start sooner"
            ));
        }
        Ok(engine)
    }

    /// Reads the weights again in another layout and measures; one that the shapes rule out is passed over.
    fn figure(
        &self,
        mut engine: Engine,
        layout: Layout,
        figures: &mut Vec<Figure>,
    ) -> Result<Engine, LoadError> {
        if self.shape.allows(layout) {
            engine.model = engine.model.reload(&self.file, layout)?;
            engine.layout = layout;
            figures.push(check::measure(&engine.model, &engine.tokenizer, layout));
        }
        Ok(engine)
    }

    fn read_tokenizer(&self) -> Result<Tokenizer, LoadError> {
        let tokenizer = Tokenizer::read_with(&self.file, &self.template)?.with_clock(self.clock);
        if tokenizer.vocab_size() != self.shape.vocab {
            let (tokens, rows) = (tokenizer.vocab_size(), self.shape.vocab);
            let said = format!("{tokens} tokens, but the embedding has {rows} rows");
            return Err(LoadError::key("tokenizer.ggml.tokens", said));
        }
        Ok(tokenizer)
    }

    fn load_as(&self, layout: Layout, options: &Options) -> Result<Engine, LoadError> {
        let kernels = match &options.kernel {
            None => Kernels::detect(),
            Some(name) => Kernels::named(name).ok_or_else(|| {
                let all = Kernels::all().iter().map(Kernels::name).collect::<Vec<_>>().join(", ");
                LoadError::new(format!("kernel {name}"), format!("this processor runs {all}"))
            })?,
        };
        let cpus = if options.pin { pool::processors() } else { Vec::new() };
        let pool = Pool::new(options.threads, &cpus)
            .map_err(|error| LoadError::new("threads", format!("cannot be started: {error}")))?;
        let name = self.file.text("general.name")?.unwrap_or(&self.shape.arch).to_owned();
        let (tokenizer, model) = self.read_both(|| Model::load(&self.file, layout, kernels, pool))?;
        let mut model = model?;
        let mut notes = self.notes(&model, &tokenizer);
        let head = self.put_head(&mut model, &self.kept(options), &mut notes)?;
        let files = head.into_iter().chain([Arc::downgrade(self.file.map())]).collect();
        Ok(Engine { name, model, tokenizer, layout, cache: self.cache, notes, files })
    }

    /// The tokenizer, and what `load` gives: each takes a few tenths of a second for a large model, so the
    /// former is read on a thread of its own, which ends with this call.
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
        if model::is_renamed_b158(&self.file, &self.shape.arch)
            && self.shape.activation == model::Activation::SquaredRelu
        {
            notes.push("architecture bitnet with Llama 3's vocabulary: taken for BitNet-b1.58-2B-4T".into());
        }
        let dense = model.dense_matrices();
        if dense > 0 {
            notes.push(format!("{dense} matrices are not ternary, and run as they are: slower"));
        }
        notes
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

    /// What was wrong or missing in the file, and how it was read all the same: a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The layout in which its I2_S weights were read, named or found out.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// From now on finds out during its first passes how many threads are fastest, where `said` leaves it
    /// open; a number that is said is used as it is. Without this call every pass uses all there are.
    pub fn tuned(mut self, said: Threads) -> Self {
        self.model.tune(said);
        self
    }

    /// Whether the files that weights are read from are still what they were when they were loaded. What was
    /// computed since the check before is not to be trusted where they are not.
    pub fn check_files(&self) -> Result<(), LoadError> {
        self.files.iter().filter_map(Weak::upgrade).find_map(|map| map.damage()).map_or(Ok(()), Err)
    }

    /// Whether the last pass read zeros in the place of weights: a look at memory, made for every token.
    pub fn is_torn(&self) -> bool {
        self.files.iter().filter_map(Weak::upgrade).any(|map| map.is_torn())
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
        Session::new(&self.model, &self.tokenizer, context, self.cache)
    }

    /// An empty session whose cache rounds nothing; see [`Session::exact`].
    pub fn exact_session(&self, context: usize) -> Session<'_> {
        Session::exact(&self.model, &self.tokenizer, context)
    }
}
