//! `bitnetd check-config`: checks a configuration file, and the files of names and patterns that it names. Deliberately starts nothing.

use super::{Failure, host, print};
use crate::config::Config;
use crate::{guard, home};
use std::path::PathBuf;

/// Say what is wrong with a configuration, and where
#[derive(Debug, Clone, clap::Args)]
pub(super) struct CheckConfig {
    /// The TOML file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(super) fn run(args: CheckConfig) -> Result<(), Failure> {
    match Config::load(&args.file, &host::host()) {
        Ok(config) => {
            let wrong = |error: String| Failure::usage(format!("{}: {error}", args.file.display()));
            config.home.file.as_deref().map(home::file::load).transpose().map_err(wrong)?;
            config.guard.filter_file.as_deref().map(guard::filter::load).transpose().map_err(wrong)?;
            print(format!("{}: sound\n", args.file.display()).as_bytes())
        }
        Err(error) => Err(Failure::usage(error.to_string())),
    }
}
