//! `bitnetd tokenize`: a text as token ids.

use super::model::ModelArgs;
use super::{Failure, print, text_as_it_is};
use crate::protocol::text::json_line;

/// Print the token ids of a text
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Tokenize {
    #[command(flatten)]
    model: ModelArgs,
    /// Read the names of special tokens as those tokens
    #[arg(long)]
    special: bool,
    /// The text; read from standard input when left out or `-`
    // Any text may be asked about, also one that looks like a flag.
    #[arg(value_name = "TEXT|-", allow_hyphen_values = true)]
    text: Option<String>,
}

pub(super) fn run(args: Tokenize) -> Result<(), Failure> {
    // A byte-order mark too: who asks for ids wants those of every character.
    let text = text_as_it_is(args.text.as_deref())?;
    // Not a weight is read for it.
    let tokenizer = args.model.open()?.tokenizer()?;
    let ids = match args.special {
        true => tokenizer.encode_with_specials(&text),
        false => tokenizer.encode(&text),
    };
    print(json_line(&ids).as_bytes())
}
