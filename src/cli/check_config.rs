//! `bitnetd check-config`: checks a configuration file, and the file of names that it names. Deliberately starts nothing.

use super::{Failure, host, print};
use crate::config::Config;
use crate::home;
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
        Ok(config) => match config.home.file.as_deref().map(home::file::load) {
            Some(Err(error)) => Err(Failure::usage(format!("{}: {error}", args.file.display()))),
            Some(Ok(_)) | None => print(format!("{}: sound\n", args.file.display()).as_bytes()),
        },
        Err(error) => Err(Failure::usage(error.to_string())),
    }
}
