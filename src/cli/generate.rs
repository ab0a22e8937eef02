//! `bitnetd generate`: one answer in this process. Deliberately uses no daemon and no configuration.

use super::activity::Activity;
use super::model_args::ModelArgs;
use super::prompt_args::PromptArgs;
use super::sampling_args::SamplingArgs;
use super::server_events::CutOff;
use super::{Failure, print, schema_file, text};
use crate::engine::Engine;
use crate::engine::error::PromptError;
use crate::engine::grammar::{Constraint, GrammarSource};
use crate::engine::session::{Answer, GenerateOptions, Step, StopReason};
use crate::engine::tokenizer::{ChatRole, Turn};
use crate::protocol::text::json_line;
use serde::Serialize;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Most tokens of an answer where none are named.
const MAX_TOKENS: u32 = 256;

/// Answer one prompt in this process, without a daemon
///
/// An answer that is cut off by --max-tokens or the end of the context is printed as far as it goes; standard error says so, and
/// the exit code is 5. With --json the key finish_reason says so, and the exit code is 0.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    /// Continue the text as it is, without a chat template
    #[arg(long)]
    raw: bool,
    /// With --raw: put the beginning-of-text token before it
    #[arg(long, requires = "raw")]
    bos: bool,
    /// A file with a JSON schema that the answer has to fit
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Print one JSON object with text, counts and timings
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    input: PromptArgs,
}

#[derive(Serialize)]
struct GenerateOutput<'a> {
    text: &'a str,
    finish_reason: &'static str,
    prompt_tokens: usize,
    completion_tokens: usize,
    tokens: &'a [u32],
    prompt_ms: f64,
    ttft_ms: f64,
    tokens_per_second: Option<f64>,
    kernel: &'static str,
    threads: usize,
}

pub(super) fn run(args: Generate) -> Result<(), Failure> {
    let prompt = args.input.prompt(|words| match words {
        Some(words) => text(Some(words.to_owned())),
        None => {
            Err(Failure::usage("no PROMPT; give one, or - for standard input; see bitnetd generate --help"))
        }
    })?;
    if args.raw && args.input.system.is_some() {
        return Err(Failure::usage("--system: with --raw there is no chat template that has a place for it"));
    }
    let engine = args.model.load()?;
    let prompt = prompt_ids(&engine, &args, &prompt)?;
    let most = args.sampling.max_tokens.unwrap_or(MAX_TOKENS);
    let max_tokens = Some(most as usize);
    let (sampling, constraint) = (args.sampling.params(), constraint(&engine, &args)?);
    let options =
        GenerateOptions { sampling, max_tokens, constraint, speculate: true, ..GenerateOptions::default() };
    // Memory for this request, not for the model's longest context.
    let wanted = prompt.len() + most as usize;
    // One answer is short enough for an f32 cache.
    let mut session = args.model.exact_session(&engine, wanted.min(engine.model().shape().context));
    let mut stuck = None;
    let what = if args.json { "answering" } else { "reading the prompt" };
    let mut activity = Some(Activity::begin(what));
    let answer = session.generate(&prompt, &options, |step| match step {
        Step::Token(text) if !args.json => {
            activity = None;
            print(text.as_bytes()).map_or_else(
                |failure| {
                    stuck = Some(failure);
                    ControlFlow::Break(())
                },
                ControlFlow::Continue,
            )
        }
        _ => ControlFlow::Continue(()),
    });
    drop(activity);
    let answer = answer.map_err(refused)?;
    engine.check_files()?;
    match stuck {
        Some(failure) => Err(failure),
        None if args.json => print(json(&engine, prompt.len(), &answer).as_bytes()),
        None => {
            print(b"\n")?;
            let tokens = answer.tokens.len() as u64;
            let is_cut_off = answer.end == StopReason::Length;
            let cut_off = is_cut_off.then_some(CutOff::Length { tokens, wanted: Some(most) });
            cut_off.map_or(Ok(()), |cut_off| Err(cut_off.failure()))
        }
    }
}

fn refused(error: PromptError) -> Failure {
    Failure { code: 5, message: error.to_string() }
}

fn prompt_ids(engine: &Engine, args: &Generate, prompt: &str) -> Result<Vec<u32>, Failure> {
    if args.raw {
        let mut ids = engine.tokenizer().encode(prompt);
        ids.splice(0..0, engine.tokenizer().bos().filter(|_| args.bos));
        return Ok(ids);
    }
    let system = args.input.system.as_deref().map(|text| Turn { role: ChatRole::System, text });
    let turns: Vec<Turn<'_>> =
        system.into_iter().chain([Turn { role: ChatRole::User, text: prompt }]).collect();
    engine.tokenizer().prompt_chat(&turns).map_err(refused)
}

/// The constraint of `--schema`.
fn constraint(engine: &Engine, args: &Generate) -> Result<Option<Constraint>, Failure> {
    let Some(path) = &args.schema else { return Ok(None) };
    let source = GrammarSource::JsonSchema(schema_file::read(path)?.to_string());
    let compiled = engine.grammars().and_then(|grammars| grammars.compile(&source));
    compiled.map(Some).map_err(|error| Failure { code: 5, message: format!("--schema: {error}") })
}

fn json(engine: &Engine, prompt_tokens: usize, answer: &Answer) -> String {
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1000.0;
    let later = answer.tokens.len().saturating_sub(1) as f64;
    let output = GenerateOutput {
        text: &answer.text,
        finish_reason: if answer.end == StopReason::Length { "length" } else { "stop" },
        prompt_tokens,
        completion_tokens: answer.tokens.len(),
        tokens: &answer.tokens,
        prompt_ms: ms(answer.prefill),
        ttft_ms: ms(answer.prefill + answer.first_token.unwrap_or_default()),
        tokens_per_second: (later > 0.0).then(|| later / answer.decode.as_secs_f64()),
        kernel: engine.model().kernels().name(),
        threads: engine.model().pool().threads(),
    };
    json_line(&output)
}
