//! The arguments that choose and load a model, shared by the commands that run one in their own process.
//! Deliberately knows no command.

use super::activity::Activity;
use super::{Failure, host};
use crate::engine::model::{HeadFormat, KvCacheFormat, Layout};
use crate::engine::session::Session;
use crate::engine::thread_pool;
use crate::engine::thread_tuner::ThreadCounts;
use crate::engine::tokenizer::{ChatTemplate, LocalClock};
use crate::engine::{Engine, EngineOptions, ModelFile, Source};
use clap::builder::PossibleValuesParser;
use std::path::PathBuf;

/// The values of `--i2s-layout`.
pub(super) fn layout_arg() -> PossibleValuesParser {
    std::iter::once("auto").chain(Layout::ALL.map(Layout::name)).into()
}

/// The values of `--head`.
pub(super) fn head_arg() -> PossibleValuesParser {
    std::iter::once("auto").chain(HeadFormat::ALL.map(HeadFormat::name)).into()
}

/// The values of `--kv-cache`.
pub(super) fn cache_arg() -> PossibleValuesParser {
    KvCacheFormat::ALL.map(KvCacheFormat::name).into()
}

/// Which model, and on what
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct ModelArgs {
    /// A GGUF file [default: the built-in model]
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Layout of I2_S weights: 128, the official one, 64 or 1x4; auto detects it with a short text
    #[arg(long, value_name = "LAYOUT", default_value = "auto", value_parser = layout_arg())]
    pub i2s_layout: String,
    /// Format of the output head: f16, the file's own; q8 or q6_k, requantised to 8 or 6 bits; screened, in 2 bits,
    /// in 4 bits and whole only for rows that may win; auto is screened where the head is large. Formats other than
    /// f16 are made once (168 MB screened, with the 2B model) and stored in /var/cache/bitnetd as root, else in
    /// $XDG_CACHE_HOME/bitnetd or ~/.cache/bitnetd; CACHE_DIRECTORY in the environment names another folder
    #[arg(long, value_name = "FORM", default_value = "auto", value_parser = head_arg())]
    pub head: String,
    /// Format of the KV cache: f32, f16, or int8, which takes half the memory of f16 [default: f32 for one answer
    /// or a measurement, f16 as in the daemon]
    #[arg(long, value_name = "FORM", value_parser = cache_arg())]
    pub kv_cache: Option<String>,
    /// Chat template: file, the model file's own; built-in, that of its architecture; or the path of a Jinja template
    /// [default: the file's own where it can be used]
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// Threads that compute, exactly [default: at most the processors there are, the big ones where some are
    /// little; how many of them is measured during the first passes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// Kernel table by name, as `bitnetd doctor` lists them [default: the fastest]
    #[arg(long, value_name = "NAME")]
    pub kernel: Option<String>,
}

impl ModelArgs {
    /// Maps and checks the model.
    pub fn open(&self) -> Result<ModelFile, Failure> {
        let source = self.model.clone().map_or(Source::BuiltIn, Source::File);
        let _activity = Activity::begin("reading the model's file");
        self.apply_settings(ModelFile::open(&source, Layout::by_name(&self.i2s_layout))?)
    }

    /// Applies the arguments to a model file.
    pub fn apply_settings(&self, file: ModelFile) -> Result<ModelFile, Failure> {
        let template = self.chat_template.as_deref().map(ChatTemplate::of_setting).transpose()?;
        let file = file
            .with_template(template.unwrap_or_default())
            .with_clock(LocalClock::new(jiff::ZonedDateTime::now));
        Ok(file.with_head(self.head())?.with_cache(self.kv_cache().unwrap_or_default())?)
    }

    /// Maps, checks and loads the model.
    pub fn load(&self) -> Result<Engine, Failure> {
        self.load_file(self.open()?)
    }

    /// Loads a model that is mapped. Binds the calling thread, which will compute, to the big processors.
    pub fn load_file(&self, file: ModelFile) -> Result<Engine, Failure> {
        let _activity = Activity::begin("loading the model");
        let options = self.options();
        thread_pool::pin_to(&host::host().keep_to(options.threads));
        let engine = file.load(&options)?;
        Ok(if self.threads.is_some() { engine } else { engine.tuned(ThreadCounts::default()) })
    }

    /// The same for measurements of the model itself: its head is the file's own, unless the arguments name
    /// another.
    pub fn load_unmodified(&self) -> Result<Engine, Failure> {
        let head = self.head().unwrap_or(HeadFormat::File);
        self.load_file(self.open()?.with_head(Some(head))?)
    }

    /// Format of the KV cache; `None` where the argument is missing.
    pub fn kv_cache(&self) -> Option<KvCacheFormat> {
        self.kv_cache.as_deref().and_then(KvCacheFormat::named)
    }

    /// An empty session with an f32 cache, unless the arguments name another format.
    pub fn exact_session<'e>(&self, engine: &'e Engine, context: usize) -> Session<'e> {
        match self.kv_cache() {
            None => engine.exact_session(context),
            Some(_) => engine.session(context),
        }
    }

    /// Format of the head; `None` is chosen automatically.
    pub fn head(&self) -> Option<HeadFormat> {
        HeadFormat::by_name(&self.head)
    }

    /// The engine's options.
    pub fn options(&self) -> EngineOptions {
        let threads = self.threads.map_or_else(|| host::host().threads(), usize::from);
        let keep_in = Some(host::cache_dir());
        EngineOptions { threads, kernel: self.kernel.clone(), cache_dir: keep_in, ..EngineOptions::default() }
    }
}
