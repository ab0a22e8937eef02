//! `bitnetd bench`: prefill and decode speed with their spread, and how near memory's own they come.

use super::model::ModelArgs;
use super::{Failure, host, print};
use crate::engine::pool::Pool;
use crate::engine::session::{Options, Step};
use crate::engine::shapes::{self, Known};
use crate::engine::{Engine, ModelFile, Source};
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What `--shape` takes.
fn shape_arg() -> PossibleValuesParser {
    shapes::ALL.map(|known| known.name).into()
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
    /// Measurements, after one that does not count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Least, middle and most of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

#[derive(Serialize)]
struct Said {
    model: String,
    kernel: &'static str,
    threads: usize,
    prompt_tokens: u32,
    generate_tokens: u32,
    repeat: u32,
    /// Tokens a second.
    prefill: Spread,
    /// Tokens a second.
    decode: Spread,
    /// Weights that one decoded token reads.
    bytes_per_token: usize,
    /// Bytes a second that the same threads read from memory.
    memory_bandwidth: Spread,
    /// Weight bytes a second over that, medians. Above 1 where the weights fit the caches.
    bandwidth_share: f64,
}

pub(super) fn run(args: Bench) -> Result<(), Failure> {
    let engine = load(&args)?;
    let (prefill, decode) = measure(&engine, &args)?;
    let bandwidth = memory_bandwidth(engine.model().pool(), args.repeat);
    let bytes_per_token = engine.model().bytes_per_token();
    let said = Said {
        model: engine.name().to_owned(),
        kernel: engine.model().kernels().name(),
        threads: engine.model().pool().threads(),
        prompt_tokens: args.prompt_tokens,
        generate_tokens: args.generate_tokens,
        repeat: args.repeat,
        prefill,
        decode,
        bytes_per_token,
        bandwidth_share: decode.median * bytes_per_token as f64 / bandwidth.median,
        memory_bandwidth: bandwidth,
    };
    match args.json {
        true => print(format!("{}\n", serde_json::to_string(&said).expect("numbers")).as_bytes()),
        false => print(table(&said).as_bytes()),
    }
}

fn load(args: &Bench) -> Result<Engine, Failure> {
    let Some(known) = args.shape.as_deref().and_then(Known::named) else { return args.model.load() };
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
    Ok(ModelFile::open(&Source::Random(known), None)?.load(&args.model.options())?)
}

fn measure(engine: &Engine, args: &Bench) -> Result<(Spread, Spread), Failure> {
    let context = (args.prompt_tokens + args.generate_tokens) as usize;
    let longest = engine.model().shape().context;
    if context > longest {
        let said = format!("{context} tokens in all, and the model's context is {longest}; ask for fewer");
        return Err(Failure::usage(format!("--prompt-tokens, --generate-tokens: {said}")));
    }
    let vocab = engine.model().shape().vocab as u32;
    // Any tokens will do: speed does not depend on them.
    let prompt: Vec<u32> = (0..args.prompt_tokens).map(|i| i.wrapping_mul(7919) % vocab).collect();
    let options =
        Options { max_tokens: Some(args.generate_tokens as usize), ignore_end: true, ..Options::default() };
    let mut session = engine.session(context);
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for round in 0..=args.repeat {
        let go_on = |_: Step<'_>| ControlFlow::Continue(());
        let answer = session.generate(&prompt, &options, go_on).expect("checked above");
        if round > 0 {
            prefill.push(f64::from(args.prompt_tokens) / answer.prefill.as_secs_f64());
            decode.push(f64::from(args.generate_tokens - 1) / answer.decode.as_secs_f64());
        }
    }
    Ok((spread(prefill), spread(decode)))
}

/// Reads a block larger than any cache of a small device, several times.
fn memory_bandwidth(pool: &Pool, repeat: u32) -> Spread {
    const WORDS: usize = 64 << 20 >> 3;
    const PART: usize = 1 << 14;
    let block = vec![1u64; WORDS];
    let total = AtomicU64::new(0);
    let pass = || {
        let started = Instant::now();
        // As many parts as the threads take turns at, each long enough to prefetch.
        let parts = 16 * pool.threads();
        let size = (WORDS / parts).next_multiple_of(PART);
        pool.run(WORDS.div_ceil(size), &|part| {
            let words = &block[part * size..((part + 1) * size).min(WORDS)];
            let sum = words.iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
            total.fetch_add(sum, Ordering::Relaxed);
        });
        (WORDS * 8) as f64 / started.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
    };
    pass();
    let spread = spread((0..repeat).map(|_| pass()).collect());
    assert_eq!(total.into_inner(), WORDS as u64 * u64::from(repeat + 1), "every word was read");
    spread
}

fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    // The mean of the two in the middle where their number is even.
    let median = (values[middle] + values[(values.len() - 1) / 2]) / 2.0;
    Spread { min: values[0], median, max: values[values.len() - 1] }
}

fn table(said: &Said) -> String {
    let mut out = String::new();
    let mut line = |name: &str, spread: Spread, scale: f64, unit: &str| {
        let [min, median, max] = [spread.min, spread.median, spread.max].map(|x| x / scale);
        writeln!(out, "{name:<18} {median:>10.1} {unit:<9} (min {min:.1}, max {max:.1})")
            .expect("into a string");
    };
    line("prefill", said.prefill, 1.0, "tokens/s");
    line("decode", said.decode, 1.0, "tokens/s");
    line("memory, read only", said.memory_bandwidth, 1e9, "GB/s");
    let megabytes = said.bytes_per_token as f64 / 1e6;
    let share = said.bandwidth_share * 100.0;
    format!(
        "{} on {}, threads: {}, {} prompt tokens, {} generated, {} rounds, medians\n\
         {out}{:<18} {megabytes:>10.1} MB, {share:.0} % of the memory's speed{}\n",
        said.model,
        said.kernel,
        said.threads,
        said.prompt_tokens,
        said.generate_tokens,
        said.repeat,
        "bytes per token",
        if share > 100.0 { " (the weights fit the caches)" } else { "" }
    )
}
