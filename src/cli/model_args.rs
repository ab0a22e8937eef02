//! The arguments that choose a model, shared by the commands that run one in their own process.

use super::{Failure, host};
use crate::engine::model::{CacheForm, HeadForm, Layout};
use crate::engine::pool;
use crate::engine::session::Session;
use crate::engine::tokenizer::ChatTemplate;
use crate::engine::tuner::Threads;
use crate::engine::{Engine, ModelFile, Options, Source};
use clap::builder::PossibleValuesParser;
use std::path::PathBuf;

/// What `--i2s-layout` takes.
pub(super) fn layout_arg() -> PossibleValuesParser {
    std::iter::once("auto").chain(Layout::ALL.map(Layout::name)).into()
}

/// What `--head` takes.
pub(super) fn head_arg() -> PossibleValuesParser {
    std::iter::once("auto").chain(HeadForm::ALL.map(HeadForm::name)).into()
}

/// What `--kv-cache` takes.
pub(super) fn cache_arg() -> PossibleValuesParser {
    CacheForm::ALL.map(CacheForm::name).into()
}

/// Which model, and on what
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct ModelArgs {
    /// A GGUF file [default: the built-in model]
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Layout of I2_S weights: 128, the official one, 64 or 1x4; auto finds it out with a short text
    #[arg(long, value_name = "LAYOUT", default_value = "auto", value_parser = layout_arg())]
    pub i2s_layout: String,
    /// How the head is read: f16, as the file has it; q8 or q6_k, written again in 8 or 6 bits; screened, in 2
    /// bits, in 4 and whole only where it matters; auto is screened where the head is large.
    /// Forms other than f16 are made once (168 MB screened, with the 2B model) and kept in /var/cache/bitnetd as root,
    /// else in $XDG_CACHE_HOME/bitnetd or ~/.cache/bitnetd; CACHE_DIRECTORY in the environment names another folder
    #[arg(long, value_name = "FORM", default_value = "auto", value_parser = head_arg())]
    pub head: String,
    /// What keys and values are kept in: f32, f16, or int8, which takes half the memory of f16 [default: f32 where one
    /// answer or a measurement is made, f16 as the daemon]
    #[arg(long, value_name = "FORM", value_parser = cache_arg())]
    pub kv_cache: Option<String>,
    /// Chat template: file, the model file's own; built-in, that of its architecture; or the path of a Jinja template
    /// [default: the file's own where it can be used]
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// Threads that compute, exactly [default: at most the processors there are, the big ones where some are
    /// little; how many of them is found out from the first passes]
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
        self.settings(ModelFile::open(&source, Layout::named(&self.i2s_layout))?)
    }

    /// Applies what was asked for to a model.
    pub fn settings(&self, file: ModelFile) -> Result<ModelFile, Failure> {
        let template = self.chat_template.as_deref().map(ChatTemplate::of_setting).transpose()?;
        let file = file.with_template(template.unwrap_or_default());
        Ok(file.with_head(self.head())?.with_cache(self.kv_cache().unwrap_or_default())?)
    }

    /// Maps, checks and loads the model.
    pub fn load(&self) -> Result<Engine, Failure> {
        self.load_file(self.open()?)
    }

    /// Loads a model that is mapped. Keeps the calling thread, which will compute, to the big processors.
    pub fn load_file(&self, file: ModelFile) -> Result<Engine, Failure> {
        let options = self.options();
        pool::keep_to(&host::host().keep_to(options.threads));
        let engine = file.load(&options)?;
        Ok(if self.threads.is_some() { engine } else { engine.tuned(Threads::default()) })
    }

    /// The same for measurements of the model itself: its head is the file's own, unless another was asked for.
    pub fn load_as_it_is(&self) -> Result<Engine, Failure> {
        let head = self.head().unwrap_or(HeadForm::File);
        self.load_file(self.open()?.with_head(Some(head))?)
    }

    /// What keys and values are kept in; `None` where it was not said.
    pub fn kv_cache(&self) -> Option<CacheForm> {
        self.kv_cache.as_deref().and_then(CacheForm::named)
    }

    /// An empty session whose cache rounds nothing, unless another was asked for.
    pub fn exact_session<'e>(&self, engine: &'e Engine, context: usize) -> Session<'e> {
        match self.kv_cache() {
            None => engine.exact_session(context),
            Some(_) => engine.session(context),
        }
    }

    /// How the head is read; `None` is found out.
    pub fn head(&self) -> Option<HeadForm> {
        HeadForm::named(&self.head)
    }

    /// What it is run on.
    pub fn options(&self) -> Options {
        let threads = self.threads.map_or_else(|| host::host().threads(), usize::from);
        let keep_in = Some(host::cache_dir());
        Options { threads, kernel: self.kernel.clone(), keep_in, ..Options::default() }
    }
}
