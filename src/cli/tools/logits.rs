//! `bitnetd logits`: writes the logits of every position of one forward pass to a file. Deliberately samples
//! nothing.

use crate::cli::Failure;
use crate::cli::activity::Activity;
use crate::cli::model_args::ModelArgs;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

/// Write the logits of one forward pass: little-endian float32, [n_tokens, vocab]
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct Logits {
    #[command(flatten)]
    model: ModelArgs,
    /// Token ids
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(in crate::cli) fn run(args: Logits) -> Result<(), Failure> {
    let engine = args.model.load_unmodified()?;
    let failed = |error: std::io::Error| Failure::usage(format!("{}: {error}", args.out.display()));
    let mut out = BufWriter::new(File::create(&args.out).map_err(failed)?);
    let mut written = Ok(());
    // An f32 cache, so that nothing is rounded.
    let mut session = engine.exact_session(args.tokens.len());
    let activity = Activity::begin("computing");
    let pass = session.logits(&args.tokens, |_, logits| {
        if written.is_ok() {
            written = logits.iter().try_for_each(|logit| out.write_all(&logit.to_le_bytes()));
        }
    });
    drop(activity);
    pass.map_err(|error| Failure::usage(error.to_string()))?;
    written.and_then(|()| out.flush()).map_err(failed)?;
    Ok(engine.check_files()?)
}
