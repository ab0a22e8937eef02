//! The arguments that choose a model, shared by the commands that run one in their own process.

use super::{Failure, host};
use crate::engine::model::Layout;
use crate::engine::pool;
use crate::engine::tuner::Threads;
use crate::engine::{Engine, ModelFile, Options, Source};
use clap::builder::PossibleValuesParser;
use std::path::PathBuf;

/// What `--i2s-layout` takes.
pub(super) fn layout_arg() -> PossibleValuesParser {
    std::iter::once("auto").chain(Layout::ALL.map(Layout::name)).into()
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
        Ok(ModelFile::open(&source, Layout::named(&self.i2s_layout))?)
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

    /// What it is run on.
    pub fn options(&self) -> Options {
        let threads = self.threads.map_or_else(|| host::host().threads(), usize::from);
        Options { threads, pin: false, kernel: self.kernel.clone() }
    }
}
