//! `bench --prompts`: times the answers to one's own prompts, on one setting or on three levels of optimisation.
//!
//! Deliberately judges no answer: `bitnetd eval` does.

use crate::cli::activity::Activity;
use crate::cli::model_args::ModelArgs;
use crate::cli::{Failure, print};
use crate::config;
use crate::engine::Engine;
use crate::engine::model::{HeadFormat, KvCacheFormat};
use crate::engine::session::{Answer, GenerateOptions};
use crate::engine::tokenizer::{ChatRole, Turn};
use crate::external_text::utf8;
use crate::protocol::Method;
use crate::protocol::text::{for_terminal, json_line};
use crate::telemetry::sensors::{self, Sensors};
use rustix::param::page_size;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

/// Tokens of an answer where the prompt names no number.
const MAX_TOKENS: u32 = 128;

/// A line of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnPrompt {
    prompt: String,
    system: Option<String>,
    max_tokens: Option<u32>,
}

/// How the outcome is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputForm {
    Table,
    Json,
    Csv,
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct PromptsBench<'a> {
    pub file: &'a Path,
    /// How often each prompt is answered.
    pub runs: u32,
    /// Whether all levels are compared, instead of the setting of the arguments.
    pub compares_levels: bool,
    pub form: OutputForm,
}

/// Settings for speed.
#[derive(Debug, Clone, Copy)]
struct OptimisationLevel {
    name: &'static str,
    /// `None` is chosen automatically.
    head: Option<HeadFormat>,
    cache: KvCacheFormat,
    speculate: bool,
}

/// From nothing that is optional to everything. The first two give the same tokens; keys and values of eight bits may change
/// some.
const LEVELS: [OptimisationLevel; 3] = [
    OptimisationLevel {
        name: "baseline",
        head: Some(HeadFormat::File),
        cache: KvCacheFormat::F16,
        speculate: false,
    },
    OptimisationLevel { name: "optimised", head: None, cache: KvCacheFormat::F16, speculate: true },
    OptimisationLevel { name: "aggressive", head: None, cache: KvCacheFormat::Int8, speculate: true },
];

/// The figures of one level.
#[derive(Debug, Serialize)]
struct LevelReport {
    level: &'static str,
    head: &'static str,
    kv_cache: &'static str,
    requests: usize,
    answered: usize,
    success_percent: f64,
    mean_ms: f64,
    prompt_tokens_per_second: Option<f64>,
    tokens_per_second: Option<f64>,
    requests_per_minute: f64,
    memory_bytes: Option<u64>,
    /// Null where no sensor measures the power.
    joules_per_token: Option<f64>,
    /// Answers with the tokens of the first level.
    same_answers: usize,
    /// Why some were not answered; the first reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct PromptsReport {
    model: String,
    kernel: &'static str,
    threads: usize,
    prompts: usize,
    runs: u32,
    levels: Vec<LevelReport>,
}

pub(super) fn run(model: &ModelArgs, bench: PromptsBench<'_>) -> Result<(), Failure> {
    let prompts = read(bench.file)?;
    let chosen = OptimisationLevel {
        name: "chosen",
        head: model.head(),
        cache: model.kv_cache().unwrap_or_default(),
        speculate: true,
    };
    let levels = if bench.compares_levels { LEVELS.to_vec() } else { vec![chosen] };
    let (mut reports, mut first) = (Vec::new(), Vec::new());
    let mut described = None;
    for level in levels {
        let file = model.open()?.with_head(level.head)?.with_cache(level.cache)?;
        let head = file.head().name();
        let engine = model.load_file(file)?;
        let mut measured = Measured::default();
        let activity = Activity::begin(format!("answering {} prompts", prompts.len()));
        measure(&engine, level, &prompts, bench.runs, &mut measured);
        drop(activity);
        engine.check_files()?;
        if reports.is_empty() {
            first.clone_from(&measured.answers);
        }
        reports.push(measured.report(level, head, &first));
        let facts =
            (engine.name().to_owned(), engine.model().kernels().name(), engine.model().pool().threads());
        described.get_or_insert(facts);
    }
    let (model, kernel, threads) = described.unwrap_or_default();
    let report =
        PromptsReport { model, kernel, threads, prompts: prompts.len(), runs: bench.runs, levels: reports };
    print(
        match bench.form {
            OutputForm::Json => json_line(&report),
            OutputForm::Csv => csv(&report),
            OutputForm::Table => table(&report),
        }
        .as_bytes(),
    )
}

/// The prompts of a file: one a line, or one JSON object a line.
fn read(path: &Path) -> Result<Vec<OwnPrompt>, Failure> {
    let failed = |why: String| Failure::usage(for_terminal(&format!("--prompts {}: {why}", path.display())));
    let text = config::read_text(path).map_err(failed)?;
    let text = utf8(text.as_bytes()).map_err(|why| failed(format!("the file {why}")))?;
    let is_json = text.trim_start().starts_with('{');
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompts: Result<Vec<OwnPrompt>, Failure> = lines
        .map(|(index, line)| {
            let failed = |why: String| failed(format!("line {}: {why}", index + 1));
            if !is_json {
                return Ok(OwnPrompt { prompt: line.to_owned(), system: None, max_tokens: None });
            }
            let prompt: OwnPrompt = serde_json::from_str(line).map_err(|error| failed(error.to_string()))?;
            if prompt.prompt.trim().is_empty() || prompt.max_tokens == Some(0) {
                return Err(failed(
                    "prompt is empty, or max_tokens is 0; ask something, and allow an answer".into(),
                ));
            }
            Ok(prompt)
        })
        .collect();
    let prompts = prompts?;
    if prompts.is_empty() { Err(failed("no prompt in it; write one a line".into())) } else { Ok(prompts) }
}

/// Sums over all answers.
#[derive(Debug, Default)]
struct Measured {
    /// The tokens of each answer; `None` where there is none.
    answers: Vec<Option<Vec<u32>>>,
    time: Duration,
    prompt_tokens: usize,
    prefill: Duration,
    /// Tokens but the first of each answer.
    later_tokens: usize,
    decode: Duration,
    tokens: usize,
    joules: Option<f64>,
    memory: Option<u64>,
    error: Option<String>,
}

fn measure(
    engine: &Engine,
    level: OptimisationLevel,
    prompts: &[OwnPrompt],
    runs: u32,
    measured: &mut Measured,
) {
    let mut session = engine.session(engine.model().shape().context);
    let mut sensors = Sensors::new(Path::new("/"));
    for _ in 0..runs {
        for prompt in prompts {
            let system = prompt.system.iter().map(|text| Turn { role: ChatRole::System, text });
            let user = Turn { role: ChatRole::User, text: &prompt.prompt };
            let turns: Vec<Turn<'_>> = system.chain([user]).collect();
            let max_tokens = Some(prompt.max_tokens.unwrap_or(MAX_TOKENS) as usize);
            let options =
                GenerateOptions { max_tokens, speculate: level.speculate, ..GenerateOptions::default() };
            // A second run must not find the prompt of the first.
            session.reset();
            let before = sensors.power(Instant::now());
            let began = Instant::now();
            let answer = engine.tokenizer().prompt_chat(&turns).and_then(|tokens| {
                let answer = session.generate(&tokens, &options, |_| ControlFlow::Continue(()))?;
                Ok((tokens.len(), answer))
            });
            let took = began.elapsed();
            let watts = sensors.power(Instant::now()).map(|after| match before {
                // Of two readings of a moment the mean; otherwise the second is the mean since the first.
                Some(before) if after.method == Method::Measured => 0.5 * (before.value + after.value),
                _ => after.value,
            });
            match answer {
                Ok((prompt_tokens, answer)) => measured.add(prompt_tokens, answer, took, watts),
                Err(error) => {
                    measured.answers.push(None);
                    measured.error.get_or_insert(error.to_string());
                }
            }
        }
    }
    measured.memory = sensors::resident_memory(Path::new("/"), page_size()).map(|(resident, _)| resident);
}

impl Measured {
    fn add(&mut self, prompt_tokens: usize, answer: Answer, took: Duration, watts: Option<f64>) {
        self.time += took;
        self.prompt_tokens += prompt_tokens;
        self.prefill += answer.prefill;
        self.tokens += answer.tokens.len();
        self.later_tokens += answer.tokens.len().saturating_sub(1);
        self.decode += answer.decode;
        if let Some(watts) = watts {
            *self.joules.get_or_insert(0.0) += watts * took.as_secs_f64();
        }
        self.answers.push(Some(answer.tokens));
    }

    fn report(self, level: OptimisationLevel, head: &'static str, first: &[Option<Vec<u32>>]) -> LevelReport {
        let answered = self.answers.iter().flatten().count();
        let (seconds, requests) = (self.time.as_secs_f64(), self.answers.len());
        let rate =
            |count: usize, time: Duration| (count > 0).then(|| count as f64 / time.as_secs_f64().max(1e-9));
        LevelReport {
            level: level.name,
            head,
            kv_cache: level.cache.name(),
            requests,
            answered,
            success_percent: 100.0 * answered as f64 / requests.max(1) as f64,
            mean_ms: 1e3 * seconds / answered.max(1) as f64,
            prompt_tokens_per_second: rate(self.prompt_tokens, self.prefill),
            tokens_per_second: rate(self.later_tokens, self.decode),
            requests_per_minute: 60.0 * answered as f64 / seconds.max(1e-9),
            memory_bytes: self.memory,
            joules_per_token: self.joules.map(|joules| joules / self.tokens.max(1) as f64),
            same_answers: self
                .answers
                .iter()
                .zip(first)
                .filter(|(ours, first)| ours.is_some() && ours == first)
                .count(),
            error: self.error,
        }
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}

fn table(report: &PromptsReport) -> String {
    let PromptsReport { model, kernel, threads, prompts, runs, levels } = report;
    let mut text =
        format!("{model} on {kernel}, {threads} threads: {prompts} prompts, each {runs} times\n\n");
    text += "level       head      cache   answered   mean ms  prompt t/s  answer t/s    a minute       MiB   J/token   same\n";
    for level in levels {
        let mebibytes = level.memory_bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
        text += &format!(
            "{:<11} {:<9} {:<5} {:>7.1} %  {:>8.1}  {:>10}  {:>10}  {:>10.1}  {:>8}  {:>8}  {:>5}\n",
            level.level,
            level.head,
            level.kv_cache,
            level.success_percent,
            level.mean_ms,
            number(level.prompt_tokens_per_second, 1),
            number(level.tokens_per_second, 1),
            level.requests_per_minute,
            number(mebibytes, 1),
            number(level.joules_per_token, 3),
            level.same_answers,
        );
    }
    for level in levels {
        if let Some(error) = &level.error {
            text += &format!("{}: {}\n", level.level, for_terminal(error));
        }
    }
    text
}

fn csv(report: &PromptsReport) -> String {
    let mut text = "level,head,kv_cache,requests,answered,success_percent,mean_ms,prompt_tokens_per_second,tokens_per_second,\
         requests_per_minute,memory_bytes,joules_per_token,same_answers\n"
        .to_owned();
    let optional = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    for level in &report.levels {
        let cells = [
            level.level.to_owned(),
            level.head.to_owned(),
            level.kv_cache.to_owned(),
            level.requests.to_string(),
            level.answered.to_string(),
            level.success_percent.to_string(),
            level.mean_ms.to_string(),
            optional(level.prompt_tokens_per_second),
            optional(level.tokens_per_second),
            level.requests_per_minute.to_string(),
            level.memory_bytes.map_or(String::new(), |bytes| bytes.to_string()),
            optional(level.joules_per_token),
            level.same_answers.to_string(),
        ];
        text += &cells.join(",");
        text.push('\n');
    }
    text
}
