//! Judges a model on this device: which board has the memory for it, how fast it should be by the memory bandwidth, how
//! fast it is, and what would help. Deliberately knows no form of output but its own lines.

use super::advice::{Advice, AdviceFacts, ContextFacts, HeadSizes, MEMORY_BOUND_SHARE, advice};
use crate::cli::activity::Activity;
use crate::cli::board_fit::BoardFit;
use crate::cli::tools::bench::{DecodeSpeed, decode_speed};
use crate::cli::{Failure, host};
use crate::config::{Config, KvCachePrecision};
use crate::daemon::{self, DaemonError, MemoryPlan, ServedOverTcp};
use crate::engine::model::{EMBEDDING, HEAD, HeadFormat};
use crate::engine::thread_pool;
use crate::engine::thread_tuner::ThreadCounts;
use crate::engine::{Engine, EngineOptions, ModelFile};
use crate::protocol::text::{one_line, shortened};
use crate::telemetry::sensors::{self, HostTuning, Sensors, host_tuning};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The word for the model inside the program.
const BUILT_IN: &str = "built-in";

/// Boards and their memory in MiB.
const BOARDS: [(&str, usize); 8] = [
    ("Raspberry Pi Zero 2 W, 512 MB", 512),
    ("Raspberry Pi 3, 1 GB", 1024),
    ("Raspberry Pi 4, 2 GB", 2048),
    ("Raspberry Pi 4, 4 GB", 4096),
    ("Raspberry Pi 4, 8 GB", 8192),
    ("Raspberry Pi 5, 4 GB", 4096),
    ("Raspberry Pi 5, 8 GB", 8192),
    ("Raspberry Pi 5, 16 GB", 16384),
];

/// The verdict on a model.
#[derive(Serialize)]
pub(super) struct ModelJudgement {
    /// The path, or `built-in`.
    file: String,
    name: Option<String>,
    /// The board that this is, where its firmware names it.
    board: Option<String>,
    boards: Vec<BoardFit>,
    /// The memory plan of this device, or why the model does not fit.
    plan: String,
    fits: bool,
    /// `null` where it does not fit.
    speed: Option<MeasuredSpeed>,
    /// What would help, that with the largest gain first.
    advice: Vec<Advice>,
}

#[derive(Serialize)]
struct MeasuredSpeed {
    kernel: &'static str,
    head: &'static str,
    /// Threads that generated.
    threads: usize,
    generated_tokens: usize,
    tokens_per_second: f64,
    prompt_tokens_per_second: f64,
    /// Bytes that a token read, of weights and of the KV cache.
    bytes_per_token: usize,
    /// Bytes a second, with the same threads.
    memory_bandwidth: f64,
    /// The second by the first.
    expected_tokens_per_second: f64,
    /// Of the expected speed, 1 is all of it.
    share: f64,
}

impl ModelJudgement {
    /// Loads and measures the model `named` under the other settings of `config`.
    pub fn new(config: &Config, named: &Path) -> Result<Self, Failure> {
        let path = (named != Path::new(BUILT_IN)).then(|| named.to_owned());
        let file = shortened(&named.display().to_string());
        let config = with_model(config, path);
        match daemon::plan(&config, ServedOverTcp::of(&config), None) {
            Ok((model, plan)) => Judge { config: &config, plan: &plan }.judge(file, model),
            // What boards would do is worth more than the refusal alone.
            Err(DaemonError::Budget(refused)) => Self::too_large(&config, file, &refused.to_string()),
            Err(error) => Err(error.into()),
        }
    }

    fn too_large(config: &Config, file: String, refusal: &str) -> Result<Self, Failure> {
        let model = daemon::open_model(config)?;
        Ok(ModelJudgement {
            file,
            name: name(&model),
            board: host_tuning(Path::new("/")).board,
            boards: boards(&model),
            plan: refusal.to_owned(),
            fits: false,
            speed: None,
            advice: Vec::new(),
        })
    }

    /// Why the command fails.
    pub fn failure(&self) -> Option<Failure> {
        (!self.fits).then(|| Failure { code: 3, message: one_line(&self.plan) })
    }

    /// Its lines of the table: a name, and what it says.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let name = self.name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
        let mut lines = vec![("model", one_line(&format!("{}{name}", self.file)))];
        lines.extend(self.board.as_ref().map(|board| ("this board", one_line(board))));
        lines.extend(self.boards.iter().map(|board| ("fits", board_line(board))));
        if self.fits {
            lines.push(("plan here", one_line(&self.plan)));
        }
        if let Some(speed) = &self.speed {
            lines.extend(speed.lines());
        }
        let numbered = (1..).zip(&self.advice).map(|(number, piece)| format!("{number}. {}", piece.text));
        lines.extend(numbered.map(|text| ("advice", one_line(&text))));
        if self.fits && self.advice.is_empty() {
            lines.push(("advice", "none: nothing that was looked at holds it back".into()));
        }
        lines
    }
}

fn board_line(board: &BoardFit) -> String {
    let mib = |bytes: usize| bytes >> 20;
    match board.fits {
        true => format!(
            "{}: yes, {} tokens of context, {} requests at a time, {} of {} MiB",
            board.name,
            board.context,
            board.parallel,
            mib(board.total),
            mib(board.budget)
        ),
        false => {
            format!("{}: NO, it takes {} MiB of {} at least", board.name, mib(board.total), mib(board.budget))
        }
    }
}

impl MeasuredSpeed {
    fn new(engine: &Engine, head: HeadFormat, measured: &DecodeSpeed) -> Self {
        let bytes_per_token = measured.weight_bytes + measured.cache_bytes;
        let expected = measured.bandwidth / bytes_per_token as f64;
        MeasuredSpeed {
            kernel: engine.model().kernels().name(),
            head: head.name(),
            threads: measured.threads,
            generated_tokens: measured.tokens,
            tokens_per_second: measured.tokens_per_second,
            prompt_tokens_per_second: measured.prompt_tokens_per_second,
            bytes_per_token,
            memory_bandwidth: measured.bandwidth,
            expected_tokens_per_second: expected,
            share: measured.tokens_per_second / expected,
        }
    }

    fn lines(&self) -> [(&'static str, String); 2] {
        let remark = match self.share < MEMORY_BOUND_SHARE {
            true => "; arithmetic and what surrounds it take longer than the memory",
            false => "",
        };
        let expected = format!(
            "{:.1} tokens/s ESTIMATED: {:.1} GB/s of memory bandwidth, {:.1} MB a token",
            self.expected_tokens_per_second,
            self.memory_bandwidth / 1e9,
            self.bytes_per_token as f64 / 1e6
        );
        let measured = format!(
            "{:.1} tokens/s, {:.0} % of that, with {} thread{}, kernel {}, head {}; prompts {:.0} tokens/s{remark}",
            self.tokens_per_second,
            100.0 * self.share,
            self.threads,
            if self.threads == 1 { "" } else { "s" },
            self.kernel,
            self.head,
            self.prompt_tokens_per_second
        );
        [("expected", expected), ("measured", measured)]
    }
}

/// The settings with another model.
fn with_model(config: &Config, path: Option<PathBuf>) -> Config {
    let mut config = config.clone();
    config.model.path = path;
    config
}

fn name(model: &ModelFile) -> Option<String> {
    model.file().text("general.name").ok().flatten().map(shortened)
}

fn boards(model: &ModelFile) -> Vec<BoardFit> {
    let board = |(name, mib): (&str, usize)| BoardFit::new(model, name.to_owned(), mib << 20, None);
    BOARDS.into_iter().map(board).collect()
}

/// A model that fits this device, to be judged.
struct Judge<'j> {
    config: &'j Config,
    plan: &'j MemoryPlan,
}

impl Judge<'_> {
    fn judge(&self, file: String, model: ModelFile) -> Result<ModelJudgement, Failure> {
        let (name, boards, head, sizes) = (name(&model), boards(&model), model.head(), head_sizes(&model));
        let activity = Activity::begin("loading the model");
        let engine = self.load(model)?;
        drop(activity);
        let _activity = Activity::begin("measuring its speed");
        let root = Path::new("/");
        let mut sensors = Sensors::new(root);
        sensors.read(Instant::now());
        let mut faults_before = None;
        let measured = decode_speed(&engine, || faults_before = host_tuning(root).major_faults);
        engine.check_files()?;
        let (host, tuning) = (sensors.read(Instant::now()), host_tuning(root));
        let speed = MeasuredSpeed::new(&engine, head, &measured);
        let clock = host.cpu.frequency.as_ref().map(|clock| clock.value);
        let facts = AdviceFacts {
            threads: self.config.budget.threads,
            processors: host::processors().big.len(),
            active_threads: measured.threads,
            expected: speed.expected_tokens_per_second,
            measured: speed.tokens_per_second,
            weight_bytes: measured.weight_bytes,
            head: sizes,
            context: ContextFacts {
                planned: self.plan.context,
                wanted: self.plan.wanted_context,
                bytes_per_position: measured.cache_bytes_per_position,
                is_int8: self.config.model.kv_cache == KvCachePrecision::Int8,
            },
            read_again: read_again(faults_before, &tuning, measured.tokens),
            available: host.memory.host_available_bytes,
            thermal: &host.thermal,
            clock_mhz: clock.zip(host.cpu.frequency_max_mhz),
            tuning: &tuning,
            limit: sensors::memory_limit(root),
        };
        let advice = advice(&facts);
        let (board, plan) = (tuning.board.clone(), self.plan.to_string());
        Ok(ModelJudgement { file, name, board, boards, plan, fits: true, speed: Some(speed), advice })
    }

    /// Loads it as the daemon does.
    fn load(&self, model: ModelFile) -> Result<Engine, Failure> {
        let budget = &self.config.budget;
        thread_pool::pin_to(&budget.allowed_cpus);
        let options = EngineOptions {
            threads: budget.threads,
            pin: budget.pin,
            kernel: None,
            cache_dir: self.config.model.cache_dir.clone(),
        };
        let fixed = ThreadCounts { decode: budget.decode_threads, prefill: budget.prefill_threads };
        Ok(model.load(&options)?.tuned(fixed))
    }
}

/// The head's sizes where it is read whole although the automatic choice would not.
fn head_sizes(model: &ModelFile) -> Option<HeadSizes> {
    let automatic = HeadFormat::choose(model.file(), model.shape(), None).ok()?;
    let tensor = model.file().tensor(HEAD).or_else(|| model.file().tensor(EMBEDDING))?;
    let is_better = model.head() == HeadFormat::File && automatic == HeadFormat::Shortlist;
    is_better.then(|| HeadSizes { whole: tensor.bytes.len(), screened: automatic.image_bytes(model.shape()) })
}

/// Bytes that were read from the disk for each token. The kernel reads more than the page that was missing, so it is the
/// least.
fn read_again(before: Option<u64>, now: &HostTuning, tokens: usize) -> Option<u64> {
    let faults = now.major_faults?.saturating_sub(before?);
    Some(faults * rustix::param::page_size() as u64 / tokens.max(1) as u64)
}
