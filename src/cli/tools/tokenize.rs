//! `bitnetd tokenize`: prints the token ids of a text. Deliberately reads no weights.

use crate::cli::model_args::ModelArgs;
use crate::cli::{Failure, print, text_unchanged};
use crate::protocol::text::json_line;

/// Print the token ids of a text
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct Tokenize {
    #[command(flatten)]
    model: ModelArgs,
    /// Read the names of special tokens as those tokens
    #[arg(long)]
    special: bool,
    /// The text; read from standard input when left out or `-`
    // Any text is accepted, also one that looks like a flag.
    #[arg(value_name = "TEXT|-", allow_hyphen_values = true)]
    text: Option<String>,
}

pub(in crate::cli) fn run(args: Tokenize) -> Result<(), Failure> {
    // A byte-order mark is kept, since the ids are those of every character.
    let text = text_unchanged(args.text.as_deref())?;
    // No weights are read.
    let tokenizer = args.model.open()?.tokenizer()?;
    let ids = match args.special {
        true => tokenizer.encode_with_specials(&text),
        false => tokenizer.encode(&text),
    };
    print(json_line(&ids).as_bytes())
}
