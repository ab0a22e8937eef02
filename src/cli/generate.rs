//! `bitnetd generate`: one answer in this process. Deliberately uses no daemon and no configuration.

use super::model_args::ModelArgs;
use super::{Failure, print, schema_file, text};
use crate::engine::Engine;
use crate::engine::error::PromptError;
use crate::engine::grammar::{Constraint, GrammarSource};
use crate::engine::sampler::SamplingParams;
use crate::engine::session::{Answer, GenerateOptions, Step, StopReason};
use crate::engine::tokenizer::{ChatRole, Turn};
use crate::protocol::text::json_line;
use serde::Serialize;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Answer one prompt in this process, without a daemon
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
    /// 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature, allow_negative_numbers = true)]
    temperature: f32,
    /// Seed of the random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Most tokens of the answer
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// A file with a JSON schema that the answer has to fit
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Print one JSON object with text, counts and timings
    #[arg(long)]
    json: bool,
    /// What to answer; read from standard input when `-`
    #[arg(value_name = "PROMPT")]
    prompt: String,
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(t) if (0.0..=10.0).contains(&t) => Ok(t),
        _ => Err("a number from 0 to 10".into()),
    }
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
    let prompt = text(Some(args.prompt.clone()))?;
    if prompt.trim().is_empty() {
        return Err(Failure::usage("PROMPT: empty; say something"));
    }
    let engine = args.model.load()?;
    let refused = |error: PromptError| Failure { code: 5, message: error.to_string() };
    let prompt = match args.raw {
        true => {
            let mut ids = engine.tokenizer().encode(&prompt);
            ids.splice(0..0, engine.tokenizer().bos().filter(|_| args.bos));
            ids
        }
        false => {
            let turn = Turn { role: ChatRole::User, text: &prompt };
            engine.tokenizer().prompt_chat(&[turn]).map_err(refused)?
        }
    };
    let sampling =
        SamplingParams { temperature: args.temperature, seed: args.seed, ..SamplingParams::default() };
    let max_tokens = Some(args.max_tokens as usize);
    let constraint = constraint(&engine, &args)?;
    let options =
        GenerateOptions { sampling, max_tokens, constraint, speculate: true, ..GenerateOptions::default() };
    // Memory for this request, not for the model's longest context.
    let wanted = prompt.len() + args.max_tokens as usize;
    // One answer is short enough for an f32 cache.
    let mut session = args.model.exact_session(&engine, wanted.min(engine.model().shape().context));
    let mut stuck = None;
    let answer = session.generate(&prompt, &options, |step| match step {
        Step::Token(text) if !args.json => print(text.as_bytes()).map_or_else(
            |failure| {
                stuck = Some(failure);
                ControlFlow::Break(())
            },
            ControlFlow::Continue,
        ),
        _ => ControlFlow::Continue(()),
    });
    let answer = answer.map_err(refused)?;
    engine.check_files()?;
    match stuck {
        Some(failure) => Err(failure),
        None if args.json => print(json(&engine, prompt.len(), &answer).as_bytes()),
        None => print(b"\n"),
    }
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
