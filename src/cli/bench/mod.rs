//! `bitnetd bench`: prefill and decode speed with their spread, where the time goes, and how near to memory's
//! own speed decoding comes.

mod arithmetic;
mod bandwidth;
mod report;

use super::model::ModelArgs;
use super::{Failure, host, print};
use crate::engine::session::{Answer, GenerateOptions, Session, Step};
use crate::engine::synthetic::{self, SyntheticShape};
use crate::engine::thread_tuner::{PREFILL_TOKENS, ThreadCounts};
use crate::engine::{Engine, ModelFile, Source};
use crate::protocol::text::json_line;
use crate::telemetry::sensors;
use arithmetic::Arithmetic;
use bandwidth::Memory;
use clap::builder::PossibleValuesParser;
use report::{Found, Parts, Said, Screen, Spent, spread, table};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

/// Jobs that are handed over and back to measure what one takes: some milliseconds in all.
const HAND_OVERS: usize = 2001;
/// How long is decoded between two looks at the speed of memory: so seldom that the caches they empty cost nothing.
const LOOK_EACH: Duration = Duration::from_millis(100);
/// Answers that do not count, at most, until the numbers of threads are found: two or three where the sizes are
/// the usual ones. A prompt or an answer of a few tokens may never settle them.
const WARM_UPS: usize = 16;

/// What `--shape` takes.
fn shape_arg() -> PossibleValuesParser {
    synthetic::ALL.map(|known| known.name).into()
}

/// Measure prefill and decode speed with their spread
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Bench {
    #[command(flatten)]
    model: ModelArgs,
    /// Instead of a model file: random weights of this shape, made in memory
    #[arg(long, value_name = "SHAPE", conflicts_with = "model", value_parser = shape_arg())]
    shape: Option<String>,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens: u32,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    generate_tokens: u32,
    /// Measurements, after one that does not count, or some where the number of threads is yet to be found out
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Bench) -> Result<(), Failure> {
    let engine = load(&args)?;
    let measured = measure(&engine, &args)?;
    engine.check_files()?;
    let said = report(&engine, &args, measured);
    match args.json {
        true => print(json_line(&said).as_bytes()),
        false => print(table(&said).as_bytes()),
    }
}

/// What all rounds brought.
struct Measured {
    /// Tokens a second of each round.
    prefill: Vec<f64>,
    /// Tokens a second of each round.
    decode: Vec<f64>,
    /// From the start to the choice of the first token.
    to_first: Vec<Spent>,
    /// From the first token to the last.
    to_last: Vec<Spent>,
    arithmetic: Arithmetic,
    memory: Memory,
    peak_memory: Option<u64>,
    screen: Option<Screen>,
    /// Keys and values that a decoded token read, mean.
    cache_bytes: usize,
    /// Whether numbers of threads were still being tried out when the first round began.
    was_open: bool,
}

fn report(engine: &Engine, args: &Bench, measured: Measured) -> Said {
    let model = engine.model();
    // Of many, since one takes but a microsecond.
    let hand_over = model.pool().handoff_latency(HAND_OVERS);
    let bandwidth = measured.memory.bandwidth();
    let bytes_per_token = model.bytes_read_per_token(measured.screen.map(|screen| screen.counts));
    let cache_bytes_per_token = measured.cache_bytes;
    let bytes_read = (bytes_per_token + cache_bytes_per_token) as f64;
    let shares =
        measured.decode.iter().zip(&bandwidth).map(|(decode, bandwidth)| decode * bytes_read / bandwidth);
    let bandwidth_share = spread(shares.collect()).median;
    let (arithmetic, prompt_tokens) = (measured.arithmetic.speeds(), args.prompt_tokens as usize);
    let products = model.shape().prefill_macs(prompt_tokens) as f64 / prompt_tokens as f64;
    let shares = measured.prefill.iter().zip(&arithmetic).map(|(prefill, alone)| prefill * products / alone);
    let arithmetic_share = spread(shares.collect()).median;
    let prefill = spread(measured.prefill);
    let decode = spread(measured.decode);
    Said {
        model: engine.name().to_owned(),
        kernel: model.kernels().name(),
        threads: model.pool().threads(),
        threads_found: args.model.threads.is_none().then(|| Found::of(model.threads(), measured.was_open)),
        prompt_tokens: args.prompt_tokens,
        generate_tokens: args.generate_tokens,
        repeat: args.repeat,
        prefill,
        prefill_parts: Parts::of(&measured.to_first, args.prompt_tokens),
        decode_parts: Parts::of(&measured.to_last, args.generate_tokens - 1),
        hand_over: hand_over.map(|time| time.as_secs_f64() * 1e6),
        bytes_per_token,
        cache_bytes_per_token,
        screen: measured.screen,
        read_speed: decode.median * bytes_read,
        bandwidth_share,
        memory_bandwidth: spread(bandwidth),
        multiply_speed: prefill.median * products,
        arithmetic: spread(arithmetic),
        arithmetic_share,
        decode,
        peak_memory: measured.peak_memory,
    }
}

fn load(args: &Bench) -> Result<Engine, Failure> {
    let Some(known) = args.shape.as_deref().and_then(SyntheticShape::named) else { return args.model.load() };
    let (needed, budget) = (known.bytes()?, host::host().memory_bytes / 4 * 3);
    if needed > budget {
        let said = format!(
            "--shape {}: takes {} MiB, and three quarters of this machine's memory are {}",
            known.name,
            needed >> 20,
            budget >> 20
        );
        return Err(Failure::usage(format!("{said}; choose a smaller one")));
    }
    args.model.load_file(args.model.settings(ModelFile::open(&Source::Random(known), None)?)?)
}

fn measure(engine: &Engine, args: &Bench) -> Result<Measured, Failure> {
    let (model, context) = (engine.model(), room(engine, args)?);
    let vocab = model.shape().vocab as u32;
    // Any tokens will do: speed does not depend on them.
    let prompt: Vec<u32> = (0..args.prompt_tokens).map(|i| i.wrapping_mul(7919) % vocab).collect();
    let options = GenerateOptions {
        max_tokens: Some(args.generate_tokens as usize),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    let mut session = engine.session(context);
    let answer = |session: &mut Session<'_>, options: &GenerateOptions| {
        let go_on = |_: Step<'_>| ControlFlow::Continue(());
        session.generate(&prompt, options, go_on).expect("checked above")
    };
    answer(&mut session, &options);
    for _ in 1..WARM_UPS {
        if is_open(engine, args) {
            answer(&mut session, &options);
        }
    }
    // What comes after this is for the measurement only.
    let peak_memory = sensors::peak_memory(Path::new("/"));
    let mut measured =
        Measured::new(peak_memory, Arithmetic::new(*model.kernels(), model.pool(), prompt.len()));
    // Those of the prompt, and on average of half the answer.
    let positions = (args.prompt_tokens + args.generate_tokens / 2) as usize;
    measured.cache_bytes = positions * session.cache_bytes_per_token();
    measured.was_open = is_open(engine, args);
    for _ in 0..args.repeat {
        let (pool, threads) = (model.pool(), prompt_threads(engine, args));
        measured.arithmetic.look(pool, threads);
        let answer = with_looks(&mut session, &prompt, &options, |is_first| match is_first {
            true => measured.arithmetic.look(pool, threads),
            false => measured.memory.look(pool),
        });
        measured.add(&answer, args);
        measured.arithmetic.end_round();
        measured.memory.end_round(pool);
    }
    if let Some(counts) = session.shortlist_stats() {
        let ours = answer(&mut session, &options).tokens;
        let whole = answer(&mut session, &GenerateOptions { exact_head: true, ..options }).tokens;
        let alike = ours.iter().zip(&whole).take_while(|(a, b)| a == b).count();
        measured.screen = Some(Screen::of(counts, alike));
    }
    Ok(measured)
}

/// An answer in the middle of which the machine is looked at, first right behind the prompt; what the looks take is
/// no part of its time.
fn with_looks(
    session: &mut Session<'_>,
    prompt: &[u32],
    options: &GenerateOptions,
    mut look: impl FnMut(bool),
) -> Answer {
    let (mut last, mut paused) = (None::<Instant>, Duration::ZERO);
    let step = |step: Step<'_>| {
        let now = Instant::now();
        if matches!(step, Step::Token(_)) && last.is_none_or(|last| now - last >= LOOK_EACH) {
            look(last.is_none());
            let after = Instant::now();
            last = Some(after);
            paused += after - now;
        }
        ControlFlow::Continue(())
    };
    let mut answer = session.generate(prompt, options, step).expect("checked before");
    answer.decode -= paused;
    answer
}

/// Threads that read the prompt; a short one is read on as many as decoding has.
fn prompt_threads(engine: &Engine, args: &Bench) -> usize {
    let ThreadCounts { decode, prefill } = engine.model().threads();
    let found = if args.prompt_tokens as usize >= PREFILL_TOKENS { prefill } else { decode };
    found.unwrap_or(engine.model().pool().threads())
}

/// Whether numbers of threads that are measured are still being tried out; short prompts are read on as many as
/// decoding has.
fn is_open(engine: &Engine, args: &Bench) -> bool {
    let ThreadCounts { decode, prefill } = engine.model().threads();
    decode.is_none() || (prefill.is_none() && args.prompt_tokens as usize >= PREFILL_TOKENS)
}

/// Tokens in all, when the model can take them.
fn room(engine: &Engine, args: &Bench) -> Result<usize, Failure> {
    let context = (args.prompt_tokens + args.generate_tokens) as usize;
    let longest = engine.model().shape().context;
    if context > longest {
        let said = format!("{context} tokens in all, and the model's context is {longest}; ask for fewer");
        return Err(Failure::usage(format!("--prompt-tokens, --generate-tokens: {said}")));
    }
    Ok(context)
}

impl Measured {
    fn new(peak_memory: Option<u64>, arithmetic: Arithmetic) -> Self {
        Measured {
            prefill: Vec::new(),
            decode: Vec::new(),
            to_first: Vec::new(),
            to_last: Vec::new(),
            arithmetic,
            memory: Memory::new(host::host().memory_bytes),
            peak_memory,
            screen: None,
            cache_bytes: 0,
            was_open: false,
        }
    }

    fn add(&mut self, answer: &Answer, args: &Bench) {
        self.prefill.push(f64::from(args.prompt_tokens) / answer.prefill.as_secs_f64());
        self.decode.push(f64::from(args.generate_tokens - 1) / answer.decode.as_secs_f64());
        let to_first = answer.prefill + answer.first_token.unwrap_or_default();
        self.to_first.push(Spent { wall: to_first, parts: answer.prefill_parts });
        self.to_last.push(Spent { wall: answer.decode, parts: answer.decode_parts });
    }
}
