//! `bitnetd perplexity`: the perplexity of a model on a text. Deliberately uses no daemon.

use crate::cli::model_args::ModelArgs;
use crate::cli::{Failure, print};
use crate::engine::perplexity::Perplexity;
use crate::external_text::utf8;
use crate::protocol::text::json_line;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Tokens of the shortest window.
const MIN_WINDOW: usize = 8;
/// Bytes of the longest text; usual ones have a few MB, and a small board reads some KB an hour.
const MAX_TEXT: u64 = 64 << 20;

/// Measure the perplexity of the model on a text
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of a window; windows overlap by half [at most the model's own context]
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(8..=1_000_000))]
    context: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// The text, in UTF-8
    #[arg(value_name = "TEXTFILE")]
    text: PathBuf,
}

#[derive(Serialize)]
struct PerplexityOutput {
    model: String,
    perplexity: f64,
    /// Standard error.
    error: Option<f64>,
    /// Tokens that were predicted.
    tokens: usize,
    /// Tokens of a window.
    context: usize,
    /// The perplexity of random guessing: the size of the vocabulary.
    chance: usize,
    kernel: &'static str,
}

pub(in crate::cli) fn run(args: PerplexityArgs) -> Result<(), Failure> {
    let text = read(&args.text)?;
    let engine = args.model.load_unmodified()?;
    let tokens = engine.tokenizer().encode(&text);
    let bos = engine.tokenizer().bos_of_text();
    if tokens.len() + usize::from(bos.is_some()) < 2 {
        let output = format!("{}: it has no token to predict; give a longer text", args.text.display())
            .replace(char::is_control, "?");
        return Err(Failure::usage(output));
    }
    let shape = engine.model().shape();
    if shape.context < MIN_WINDOW {
        let key = format!("metadata key {}.context_length", shape.arch);
        let message =
            format!("{key}: {} tokens are too few; a window has {MIN_WINDOW} at least", shape.context);
        return Err(Failure { code: 3, message });
    }
    // No longer than the text, to save memory.
    let context = (args.context as usize).min(shape.context).min(tokens.len() + MIN_WINDOW);
    let mut session = args.model.exact_session(&engine, context);
    let watched = std::io::stderr().is_terminal();
    let measured = Perplexity::of(&mut session, bos, &tokens, |so_far| {
        if watched {
            progress(so_far, tokens.len());
        }
    });
    let figure = measured.map_err(|error| Failure { code: 3, message: error.to_string() })?;
    engine.check_files()?;
    if watched {
        let _ = write!(std::io::stderr(), "\r\x1b[K"); // clears the progress line
    }
    let output = PerplexityOutput {
        model: engine.name().to_owned(),
        perplexity: figure.value(),
        error: Some(figure.error()).filter(|error| error.is_finite()),
        tokens: figure.tokens,
        context,
        chance: shape.vocab,
        kernel: engine.model().kernels().name(),
    };
    match args.json {
        true => print(json_line(&output).as_bytes()),
        false => print(line(&output).as_bytes()),
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    // A path with a line break must not break the error's line.
    let place = path.display().to_string().replace(char::is_control, "?");
    let failed = |output: String| Failure::usage(format!("{place}: {output}"));
    let facts = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if !facts.is_file() {
        return Err(failed("not a regular file".into()));
    }
    if facts.len() > MAX_TEXT {
        return Err(failed(format!("has more than {} MiB; give a part of it", MAX_TEXT >> 20)));
    }
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    utf8(&bytes).map(str::to_owned).map_err(failed)
}

/// Shows the figure so far: a long text takes a small board hours, and the figure settles much sooner.
fn progress(so_far: &Perplexity, tokens: usize) {
    let _ = write!(
        std::io::stderr(),
        "\r\x1b[K{} of {tokens} tokens, perplexity so far {:.3}",
        so_far.tokens,
        so_far.value()
    );
}

fn line(output: &PerplexityOutput) -> String {
    let error = output.error.map_or(String::new(), |error| format!(" +/- {error:.3}"));
    format!(
        "perplexity {:.3}{error} over {} tokens in windows of {}; random guessing has {}\n",
        output.perplexity, output.tokens, output.context, output.chance
    )
}
