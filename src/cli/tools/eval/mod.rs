//! `bitnetd eval`: how many of one's own cases a model answers right. Deliberately uses no daemon.

mod cases;

use crate::cli::activity::Activity;
use crate::cli::model_args::ModelArgs;
use crate::cli::{Failure, print};
use crate::engine::Engine;
use crate::engine::error::PromptError;
use crate::engine::grammar::GrammarSource;
use crate::engine::session::{GenerateOptions, Session};
use crate::engine::tokenizer::{ChatRole, Turn};
use crate::external_text::utf8;
use crate::protocol::text::{for_terminal, json_line};
use cases::{Case, Judge, JudgeKind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of the largest file.
const MAX_FILE: u64 = 64 << 20;
/// Tokens of an answer where the case names no number.
const MAX_TOKENS: u32 = 256;

/// Score the answers of the model to one's own cases
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct Eval {
    #[command(flatten)]
    model: ModelArgs,
    /// Print one JSON object, with every answer
    #[arg(long)]
    json: bool,
    /// One case a line, as JSON: "prompt", optionally "system", "max_tokens", "schema" and "name", and which answer is
    /// right: "exact", "contains", "regex", "json", or "choices" with the index "answer"
    #[arg(value_name = "FILE.jsonl")]
    file: PathBuf,
}

/// The outcome of one case.
#[derive(Debug, Serialize)]
struct CaseResult {
    line: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    kind: JudgeKind,
    right: bool,
    /// The answer, or the choice with the highest probability.
    answer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_probabilities: Option<Vec<f64>>,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// How many of some cases are right.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Score {
    cases: usize,
    right: usize,
}

#[derive(Debug, Serialize)]
struct EvalOutput {
    model: String,
    kernel: &'static str,
    head: &'static str,
    cases: usize,
    right: usize,
    kinds: BTreeMap<JudgeKind, Score>,
    seconds: f64,
    completion_tokens: usize,
    /// While answers were generated; null where there were none.
    tokens_per_second: Option<f64>,
    results: Vec<CaseResult>,
}

pub(in crate::cli) fn run(args: Eval) -> Result<(), Failure> {
    let cases = read(&args.file)?;
    let file = args.model.open()?;
    let head = file.head().name();
    let engine = args.model.load_file(file)?;
    let mut evaluation = Evaluation::new(&engine, &args.model);
    let began = Instant::now();
    let activity = Activity::begin(format!("answering {} cases", cases.len()));
    let results: Vec<CaseResult> = cases.into_iter().map(|case| evaluation.judge(case)).collect();
    drop(activity);
    engine.check_files()?;
    let mut kinds = BTreeMap::<JudgeKind, Score>::new();
    for result in &results {
        let score = kinds.entry(result.kind).or_default();
        (score.cases, score.right) = (score.cases + 1, score.right + usize::from(result.right));
    }
    let decoding = evaluation.decoding.as_secs_f64();
    let output = EvalOutput {
        model: engine.name().to_owned(),
        kernel: engine.model().kernels().name(),
        head,
        cases: results.len(),
        right: results.iter().filter(|result| result.right).count(),
        kinds,
        seconds: began.elapsed().as_secs_f64(),
        completion_tokens: evaluation.tokens,
        tokens_per_second: (decoding > 0.0).then(|| evaluation.later_tokens as f64 / decoding),
        results,
    };
    match args.json {
        true => print(json_line(&output).as_bytes()),
        false => print(table(&output).as_bytes()),
    }
}

fn read(path: &Path) -> Result<Vec<Case>, Failure> {
    let failed = |why: String| Failure::usage(for_terminal(&format!("{}: {why}", path.display())));
    let size = path.metadata().map_err(|error| failed(format!("cannot be read: {error}")))?;
    if !size.is_file() {
        return Err(failed("no regular file; give a file with one case a line".into()));
    }
    if size.len() > MAX_FILE {
        return Err(failed(format!("larger than {} MiB; split it", MAX_FILE >> 20)));
    }
    let bytes = std::fs::read(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
    let text = utf8(&bytes).map_err(|why| failed(format!("the file {why}")))?;
    let cases = cases::parse(text).map_err(failed)?;
    if cases.is_empty() {
        return Err(failed("no case in it; write one a line".into()));
    }
    Ok(cases)
}

/// A session that answers one case after the other; what they have in common at their beginning is read once.
struct Evaluation<'e> {
    engine: &'e Engine,
    session: Session<'e>,
    tokens: usize,
    /// Tokens but the first of each answer, and the time that they took.
    later_tokens: usize,
    decoding: Duration,
}

impl<'e> Evaluation<'e> {
    fn new(engine: &'e Engine, model: &ModelArgs) -> Self {
        let session = model.exact_session(engine, engine.model().shape().context);
        Evaluation { engine, session, tokens: 0, later_tokens: 0, decoding: Duration::ZERO }
    }

    fn judge(&mut self, case: Case) -> CaseResult {
        let judged = match &case.judge {
            Judge::Choice(choices, right) => self.choose(&case, choices).map(|scores| {
                let better = |best: usize, at: usize| if scores[at] > scores[best] { at } else { best };
                let best = (1..scores.len()).fold(0, better);
                (choices[best].clone(), best == *right, Some(scores))
            }),
            judge => self.generate(&case).map(|text| {
                let right = judge.accepts(&text);
                (text, right, None)
            }),
        };
        let kind = case.judge.kind();
        let (line, name) = (case.line, case.name);
        match judged {
            Ok((answer, right, log_probabilities)) => {
                CaseResult { line, name, kind, right, answer, log_probabilities, error: None }
            }
            Err(error) => {
                let (answer, error) = (String::new(), Some(error));
                CaseResult { line, name, kind, right: false, answer, log_probabilities: None, error }
            }
        }
    }

    fn prompt(&self, case: &Case) -> Result<Vec<u32>, PromptError> {
        let system = case.system.iter().map(|text| Turn { role: ChatRole::System, text });
        let user = Turn { role: ChatRole::User, text: &case.prompt };
        let turns: Vec<Turn<'_>> = system.chain([user]).collect();
        self.engine.tokenizer().prompt_chat(&turns)
    }

    fn generate(&mut self, case: &Case) -> Result<String, String> {
        let prompt = self.prompt(case).map_err(|error| error.to_string())?;
        let constraint = case.schema.as_ref().map(|schema| {
            let source = GrammarSource::JsonSchema(schema.to_string());
            self.engine.grammars().and_then(|grammars| grammars.compile(&source))
        });
        let constraint = constraint.transpose().map_err(|error| format!("schema: {error}"))?;
        let max_tokens = Some(case.max_tokens.unwrap_or(MAX_TOKENS) as usize);
        let options =
            GenerateOptions { max_tokens, constraint, speculate: true, ..GenerateOptions::default() };
        let answer = self.session.generate(&prompt, &options, |_| ControlFlow::Continue(()));
        let answer = answer.map_err(|error| error.to_string())?;
        self.tokens += answer.tokens.len();
        self.later_tokens += answer.tokens.len().saturating_sub(1);
        self.decoding += answer.decode;
        Ok(answer.text)
    }

    /// The natural logarithm of the probability of each text as the beginning of the answer.
    fn choose(&mut self, case: &Case, choices: &[String]) -> Result<Vec<f64>, String> {
        let prompt = self.prompt(case).map_err(|error| error.to_string())?;
        let score = |choice: &String| {
            let mut tokens = prompt.clone();
            tokens.extend(self.engine.tokenizer().encode(choice));
            let mut sum = 0.0;
            let scored = self.session.token_nll(&tokens, prompt.len(), |nats| sum -= nats);
            scored.map(|()| sum).map_err(|error| error.to_string())
        };
        choices.iter().map(score).collect()
    }
}

fn table(output: &EvalOutput) -> String {
    let percent = |score: Score| 100.0 * score.right as f64 / score.cases.max(1) as f64;
    let mut text = format!("{} on {}, head {}\n", output.model, output.kernel, output.head);
    for (kind, score) in &output.kinds {
        let name = json_line(kind);
        let name = name.trim().trim_matches('"');
        text += &format!("{name:<10} {:>6} of {:>6} {:>6.1} %\n", score.right, score.cases, percent(*score));
    }
    let all = Score { cases: output.cases, right: output.right };
    text += &format!("{:<10} {:>6} of {:>6} {:>6.1} %\n", "all", all.right, all.cases, percent(all));
    let speed = output.tokens_per_second.map_or(String::new(), |speed| format!(", {speed:.1} tokens/s"));
    text += &format!("{:.1} s, {} tokens{speed}\n", output.seconds, output.completion_tokens);
    for result in output.results.iter().filter(|result| !result.right) {
        let name = result.name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
        let what = result.error.as_ref().unwrap_or(&result.answer);
        let what: String = what.chars().take(120).collect();
        text += &format!(
            "wrong: line {}{}: {}\n",
            result.line,
            for_terminal(&name),
            for_terminal(&what.replace('\n', " "))
        );
    }
    text
}
