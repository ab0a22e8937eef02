//! The arguments that choose a model, shared by the commands that run one in their own process.

use super::{Failure, host};
use crate::engine::model::Layout;
use crate::engine::{Engine, ModelFile, Options, Source};
use std::path::PathBuf;

/// Which model, and on what
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct ModelArgs {
    /// A GGUF file [default: the built-in model]
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Block layout of I2_S weights: 128, the official one, or 64
    #[arg(long, value_name = "LAYOUT", default_value = "auto", value_parser = ["auto", "128", "64"])]
    pub i2s_layout: String,
    /// Threads that compute [default: the processors there are]
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
        let layout = if self.i2s_layout == "64" { Layout::Blocks64 } else { Layout::Blocks128 };
        Ok(ModelFile::open(&source, layout)?)
    }

    /// Maps, checks and loads the model.
    pub fn load(&self) -> Result<Engine, Failure> {
        let threads = self.threads.map_or_else(host::processors, usize::from);
        Ok(self.open()?.load(&Options { threads, pin: false, kernel: self.kernel.clone() })?)
    }
}
