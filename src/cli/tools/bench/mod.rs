//! `bitnetd bench`: speed of prefill and decode with their variation, where the time is spent, and the share of the
//! memory bandwidth that decoding reaches. Deliberately compares nothing with other programs.

mod bandwidth;
mod constrained;
mod decode_speed;
mod own_prompts;
mod parallel;
mod peak_compute;
mod report;
mod speculation;
mod texts;

use crate::cli::activity::Activity;
use crate::cli::model_args::ModelArgs;
use crate::cli::{Failure, host, print};
use crate::engine::session::{Answer, GenerateOptions, Session, Step};
use crate::engine::synthetic::{self, SyntheticShape};
use crate::engine::thread_tuner::{PREFILL_TOKENS, ThreadCounts};
use crate::engine::{Engine, ModelFile, Source};
use crate::protocol::text::json_line;
use crate::telemetry::sensors;
use bandwidth::BandwidthProbe;
use clap::builder::PossibleValuesParser;
pub(in crate::cli) use decode_speed::{DecodeSpeed, decode_speed};
use own_prompts::{OutputForm, PromptsBench};
use peak_compute::ComputeProbe;
use report::{
    BenchReport, ConstrainedTimes, MeasuredTime, ParallelTimes, ShortlistSummary, SpeculationTimes,
    TimeShares, TunedThreads, summary, table,
};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Jobs that are sent to the thread pool to measure the overhead of one; some milliseconds in all.
const HAND_OVER_JOBS: usize = 2001;
/// The least decoding time between two probes of the memory bandwidth: long enough that the caches that a probe empties do
/// not matter.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// The most warm-up answers until the numbers of threads are tuned; with usual sizes two or three are enough, and
/// very short prompts or answers may never settle them.
const MAX_WARM_UPS: usize = 16;

/// The values of `--shape`.
fn shape_arg() -> PossibleValuesParser {
    synthetic::ALL.map(|known| known.name).into()
}

/// Measure prefill and decode speed with their spread
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct Bench {
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
    /// Number of measurements, after one or more warm-ups until the number of threads is tuned
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Also compare a JSON answer of 100 tokens under a schema with free decoding of as many
    #[arg(long)]
    constrained: bool,
    /// Also compare N requests that are answered together with one alone, and measure how a prompt of --prompt-tokens that
    /// joins running answers delays them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    parallel: Option<u8>,
    /// Also compare speculation with decoding without it, for answers that echo a document, quote, and do neither
    #[arg(long)]
    speculate: bool,
    /// Instead of all this: time the answers to the prompts of a file, one a line, or one JSON object a line with "prompt" and
    /// optionally "system" and "max_tokens"
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shape", "constrained", "parallel", "speculate"])]
    prompts: Option<PathBuf>,
    /// With --prompts: how often each is answered
    #[arg(long, value_name = "N", default_value_t = 1, requires = "prompts", value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// With --prompts: compare a baseline, what is on by default, and all that is faster
    #[arg(long, requires = "prompts", conflicts_with_all = ["head", "kv_cache"])]
    levels: bool,
    /// With --prompts: print comma-separated values
    #[arg(long, requires = "prompts", conflicts_with = "json")]
    csv: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(in crate::cli) fn run(args: Bench) -> Result<(), Failure> {
    if let Some(file) = &args.prompts {
        let form = match (args.json, args.csv) {
            (true, _) => OutputForm::Json,
            (_, true) => OutputForm::Csv,
            _ => OutputForm::Table,
        };
        let bench = PromptsBench { file, runs: args.runs, compares_levels: args.levels, form };
        return own_prompts::run(&args.model, bench);
    }
    let engine = load(&args)?;
    let activity = Activity::begin("measuring");
    let measured = measure(&engine, &args)?;
    drop(activity);
    engine.check_files()?;
    let message = report(&engine, &args, measured);
    match args.json {
        true => print(json_line(&message).as_bytes()),
        false => print(table(&message).as_bytes()),
    }
}

/// The measurements of all rounds.
struct Rounds {
    /// Tokens per second of each round.
    prefill: Vec<f64>,
    /// Tokens per second of each round.
    decode: Vec<f64>,
    /// Time from the start to the first token.
    to_first: Vec<MeasuredTime>,
    /// Time from the first token to the last.
    to_last: Vec<MeasuredTime>,
    peak_compute: ComputeProbe,
    memory: BandwidthProbe,
    peak_memory: Option<u64>,
    screen: Option<ShortlistSummary>,
    /// Bytes of the KV cache that a decoded token read, on average.
    cache_bytes: usize,
    /// `None` where it was not asked for.
    constrained: Option<ConstrainedTimes>,
    /// `None` where it was not asked for.
    parallel: Option<ParallelTimes>,
    /// Empty where it was not asked for.
    speculation: Vec<SpeculationTimes>,
    /// Whether the numbers of threads were still being tuned when the first round began.
    was_tuning: bool,
}

fn report(engine: &Engine, args: &Bench, measured: Rounds) -> BenchReport {
    let model = engine.model();
    // Measured over many, since one takes a microsecond.
    let hand_over = model.pool().handoff_latency(HAND_OVER_JOBS);
    let bandwidth = measured.memory.bandwidth();
    let bytes_per_token = model.bytes_read_per_token(measured.screen.map(|screen| screen.counts));
    let cache_bytes_per_token = measured.cache_bytes;
    let bytes_read = (bytes_per_token + cache_bytes_per_token) as f64;
    let shares =
        measured.decode.iter().zip(&bandwidth).map(|(decode, bandwidth)| decode * bytes_read / bandwidth);
    let bandwidth_share = summary(shares.collect()).median;
    let (arithmetic, prompt_tokens) = (measured.peak_compute.speeds(), args.prompt_tokens as usize);
    let products = model.shape().prefill_macs(prompt_tokens) as f64 / prompt_tokens as f64;
    let shares = measured.prefill.iter().zip(&arithmetic).map(|(prefill, alone)| prefill * products / alone);
    let arithmetic_share = summary(shares.collect()).median;
    let prefill = summary(measured.prefill);
    let decode = summary(measured.decode);
    BenchReport {
        model: engine.name().to_owned(),
        kernel: model.kernels().name(),
        threads: model.pool().threads(),
        threads_found: args
            .model
            .threads
            .is_none()
            .then(|| TunedThreads::of(model.threads(), measured.was_tuning)),
        prompt_tokens: args.prompt_tokens,
        generate_tokens: args.generate_tokens,
        repeat: args.repeat,
        prefill,
        prefill_parts: TimeShares::of(&measured.to_first, args.prompt_tokens),
        decode_parts: TimeShares::of(&measured.to_last, args.generate_tokens - 1),
        hand_over: hand_over.map(|time| time.as_secs_f64() * 1e6),
        bytes_per_token,
        cache_bytes_per_token,
        screen: measured.screen,
        constrained: measured.constrained,
        parallel: measured.parallel,
        speculation: measured.speculation,
        read_speed: decode.median * bytes_read,
        bandwidth_share,
        memory_bandwidth: summary(bandwidth),
        multiply_speed: prefill.median * products,
        arithmetic: summary(arithmetic),
        arithmetic_share,
        decode,
        peak_memory: measured.peak_memory,
    }
}

fn load(args: &Bench) -> Result<Engine, Failure> {
    let Some(known) = args.shape.as_deref().and_then(SyntheticShape::named) else { return args.model.load() };
    let (needed, budget) = (known.bytes()?, host::host().memory_bytes / 4 * 3);
    if needed > budget {
        let message = format!(
            "--shape {}: takes {} MiB, and three quarters of this machine's memory are {}",
            known.name,
            needed >> 20,
            budget >> 20
        );
        return Err(Failure::usage(format!("{message}; choose a smaller one")));
    }
    let activity = Activity::begin("making the model");
    let file = ModelFile::open(&Source::Random(known), None)?;
    drop(activity);
    args.model.load_file(args.model.apply_settings(file)?)
}

fn measure(engine: &Engine, args: &Bench) -> Result<Rounds, Failure> {
    let (model, context) = (engine.model(), total_tokens(engine, args)?);
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
    for _ in 1..MAX_WARM_UPS {
        if is_tuning(engine, args) {
            answer(&mut session, &options);
        }
    }
    // Later allocations are for the measurement only.
    let peak_memory = sensors::peak_memory(Path::new("/"));
    let mut measured =
        Rounds::new(peak_memory, ComputeProbe::new(*model.kernels(), model.pool(), prompt.len()));
    // The positions of the prompt, and on average half of the answer's.
    let positions = (args.prompt_tokens + args.generate_tokens / 2) as usize;
    measured.cache_bytes = positions * session.cache_bytes_per_token();
    measured.was_tuning = is_tuning(engine, args);
    for _ in 0..args.repeat {
        let (pool, threads) = (model.pool(), prefill_threads(engine, args));
        measured.peak_compute.probe(pool, threads);
        let answer = generate_with_probes(&mut session, &prompt, &options, |is_first| match is_first {
            true => measured.peak_compute.probe(pool, threads),
            false => measured.memory.probe(pool),
        });
        measured.add(&answer, args);
        measured.peak_compute.end_round();
        measured.memory.end_round(pool);
    }
    if let Some(counts) = session.shortlist_stats() {
        let ours = answer(&mut session, &options).tokens;
        let whole = answer(&mut session, &GenerateOptions { exact_head: true, ..options }).tokens;
        let alike = ours.iter().zip(&whole).take_while(|(a, b)| a == b).count();
        measured.screen = Some(ShortlistSummary::of(counts, alike));
    }
    drop(session);
    if args.constrained {
        measured.constrained = Some(constrained::measure(engine, &prompt, args.repeat)?);
    }
    measured.parallel = args.parallel.map(|parallel| {
        let settings = parallel::ParallelBench {
            parallel: usize::from(parallel),
            tokens: args.generate_tokens as usize,
            prompt_tokens: args.prompt_tokens as usize,
            rounds: args.repeat,
        };
        parallel::measure(engine, settings)
    });
    if args.speculate {
        measured.speculation = speculation::measure(engine, args.repeat)?;
    }
    Ok(measured)
}

/// Generates an answer and probes the machine during it, first right after the prompt; the time of the probes is
/// subtracted. Between two of them it decodes for as long as a probe takes, so that where memory is slow, as under an
/// emulator, probing at most doubles the time.
fn generate_with_probes(
    session: &mut Session<'_>,
    prompt: &[u32],
    options: &GenerateOptions,
    mut look: impl FnMut(bool),
) -> Answer {
    let (mut last, mut paused, mut interval) = (None::<Instant>, Duration::ZERO, PROBE_INTERVAL);
    let step = |step: Step<'_>| {
        let now = Instant::now();
        if matches!(step, Step::Token(_)) && last.is_none_or(|last| now - last >= interval) {
            look(last.is_none());
            let after = Instant::now();
            last = Some(after);
            paused += after - now;
            interval = PROBE_INTERVAL.max(after - now);
        }
        ControlFlow::Continue(())
    };
    let mut answer = session.generate(prompt, options, step).expect("checked before");
    answer.decode -= paused;
    answer
}

/// The threads that read the prompt; a short one is read with those of decoding.
fn prefill_threads(engine: &Engine, args: &Bench) -> usize {
    let ThreadCounts { decode, prefill } = engine.model().threads();
    let found = if args.prompt_tokens as usize >= PREFILL_TOKENS { prefill } else { decode };
    found.unwrap_or(engine.model().pool().threads())
}

/// Whether the numbers of threads in use are still being tuned; short prompts are read with those of decoding.
fn is_tuning(engine: &Engine, args: &Bench) -> bool {
    let ThreadCounts { decode, prefill } = engine.model().threads();
    decode.is_none() || (prefill.is_none() && args.prompt_tokens as usize >= PREFILL_TOKENS)
}

/// Tokens of prompt and answer together, if the model's context is long enough.
fn total_tokens(engine: &Engine, args: &Bench) -> Result<usize, Failure> {
    let generated = if args.constrained { constrained::TOKENS } else { 0 }.max(args.generate_tokens as usize);
    let context = args.prompt_tokens as usize + generated;
    let longest = engine.model().shape().context;
    if context > longest {
        let message = format!("{context} tokens in all, and the model's context is {longest}; ask for fewer");
        return Err(Failure::usage(format!("--prompt-tokens, --generate-tokens: {message}")));
    }
    Ok(context)
}

impl Rounds {
    fn new(peak_memory: Option<u64>, arithmetic: ComputeProbe) -> Self {
        Rounds {
            prefill: Vec::new(),
            decode: Vec::new(),
            to_first: Vec::new(),
            to_last: Vec::new(),
            peak_compute: arithmetic,
            memory: BandwidthProbe::new(host::host().memory_bytes),
            peak_memory,
            screen: None,
            cache_bytes: 0,
            constrained: None,
            parallel: None,
            speculation: Vec::new(),
            was_tuning: false,
        }
    }

    fn add(&mut self, answer: &Answer, args: &Bench) {
        self.prefill.push(f64::from(args.prompt_tokens) / answer.prefill.as_secs_f64());
        self.decode.push(f64::from(args.generate_tokens - 1) / answer.decode.as_secs_f64());
        let to_first = answer.prefill + answer.first_token.unwrap_or_default();
        self.to_first.push(MeasuredTime { wall: to_first, parts: answer.prefill_parts });
        self.to_last.push(MeasuredTime { wall: answer.decode, parts: answer.decode_parts });
    }
}
