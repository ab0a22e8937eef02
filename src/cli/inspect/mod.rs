//! `bitnetd inspect`: what a model file holds, whether it runs, and what memory it takes where.

mod text;

use super::model::{cache_arg, head_arg, layout_arg};
use super::{Failure, host, print};
use crate::config::Config;
use crate::daemon::{Allowed, Clients, Plan};
use crate::engine::error::LoadError;
use crate::engine::gguf::{FileMap, Gguf, MetadataValue, STRING};
use crate::engine::layout_detect::{LayoutScore, choose_layout};
use crate::engine::model::{EMBEDDING, HEAD, HeadFormat, KvCacheFormat, Layout};
use crate::engine::tokenizer::{ChatTemplate, Tokenizer};
use crate::engine::{EngineOptions, ModelFile, Source};
use crate::protocol::text::{json_line, one_line, shortened};
use serde::Serialize;
use std::path::PathBuf;

/// Show what a model file holds, whether it runs, and what memory it takes
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Inspect {
    /// A GGUF file [default: the built-in model]
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Load it, and measure how well it foretells a short text in each I2_S layout
    #[arg(long)]
    check: bool,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Layout of I2_S weights that the memory plan reckons with: 128, 64 or 1x4
    #[arg(long, value_name = "LAYOUT", default_value = "auto", value_parser = layout_arg())]
    i2s_layout: String,
    /// How the memory plan has the head read: f16, as the file has it, q8, q6_k or screened; auto is what the daemon
    /// takes
    #[arg(long, value_name = "FORM", default_value = "auto", value_parser = head_arg())]
    head: String,
    /// What the memory plan keeps keys and values in
    #[arg(long, value_name = "FORM", default_value = KvCacheFormat::default().name(), value_parser = cache_arg())]
    kv_cache: String,
    /// Chat template: file, the model file's own; built-in, that of its architecture; or the path of a Jinja template
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Memory of the boards that people have, in MiB.
const BOARDS: [usize; 5] = [512, 1024, 2048, 4096, 8192];

#[derive(Serialize)]
struct Said {
    file: String,
    bytes: usize,
    name: Option<String>,
    metadata: Vec<Entry>,
    types: Vec<TypeCount>,
    tensors: Vec<TensorLine>,
    /// Why it cannot be run; `null` when it can.
    problem: Option<String>,
    model: Option<ModelFacts>,
    tokenizer: Option<TokenizerFacts>,
    /// The layout that I2_S weights are read in; `auto` is found out when the model is loaded.
    i2s_layout: Option<&'static str>,
    head: Option<Head>,
    memory: Option<Memory>,
    check: Option<Check>,
}

#[derive(Serialize)]
struct Entry {
    key: String,
    /// A text is cut to 200 characters.
    value: serde_json::Value,
}

#[derive(Serialize)]
struct TypeCount {
    #[serde(rename = "type")]
    kind: &'static str,
    tensors: usize,
    bytes: usize,
}

#[derive(Serialize)]
struct TensorLine {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    /// Columns first, as ggml counts.
    shape: Vec<usize>,
    bytes: usize,
}

#[derive(Serialize)]
struct ModelFacts {
    architecture: String,
    layers: usize,
    width: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    feed_forward: usize,
    vocabulary: usize,
    context: usize,
}

#[derive(Serialize)]
struct TokenizerFacts {
    beginning: Option<Token>,
    ends: Vec<Token>,
    /// Which chat template prompts are made with.
    chat_template: String,
    /// What the file had wrong or missing, and how it is read all the same.
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Token {
    id: u32,
    text: String,
}

/// How the head is read, as far as the memory plan goes.
#[derive(Serialize)]
struct Head {
    /// As settings name it; `f16` is as the file has it, whatever that is.
    form: &'static str,
    /// What the file has it in.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Bytes of it in the file.
    file_bytes: usize,
    /// Bytes of its other form, which is made once; 0 where it is read as the file has it.
    image_bytes: usize,
}

#[derive(Serialize)]
struct Memory {
    /// Weights read from the file's own pages, in bytes.
    mapped: usize,
    /// Weights repacked into memory of ours.
    repacked: usize,
    cache_per_token: usize,
    scratch: usize,
    tokenizer: usize,
    boards: Vec<Board>,
}

#[derive(Serialize)]
struct Board {
    /// `512 MB`, or `this machine`.
    name: String,
    /// The daemon's default: three quarters of the memory.
    budget: usize,
    fits: bool,
    /// Tokens of context within the budget; the least that could be asked for where it does not fit.
    context: usize,
    /// What the daemon takes with it.
    total: usize,
}

#[derive(Serialize)]
struct Check {
    /// Whether the weights were trained: drawn at random they foretell nothing.
    trained: bool,
    /// What blind guessing has.
    chance: usize,
    layouts: Vec<LayoutFigure>,
    /// The layout that clearly foretells; `null` where none does.
    layout: Option<&'static str>,
}

#[derive(Serialize)]
struct LayoutFigure {
    layout: &'static str,
    perplexity: f64,
}

pub(super) fn run(args: Inspect) -> Result<(), Failure> {
    let source = args.model.clone().map_or(Source::BuiltIn, Source::File);
    let opened = open(&args, &source);
    let mut said = match (&opened, &args.model) {
        (Ok(file), _) => describe(&args, file.file()),
        // What it holds is worth showing also where it cannot be run.
        (Err(error), Some(path)) => match FileMap::open(path).ok().and_then(|map| Gguf::parse(map).ok()) {
            Some(file) => describe(&args, &file),
            None => return Err(error.clone().into()),
        },
        (Err(error), None) => return Err(error.clone().into()),
    };
    let outcome = match opened {
        Ok(file) => add_model(&mut said, file, args.check),
        Err(error) => Err(error.into()),
    };
    said.problem = outcome.as_ref().err().map(|failure| one_line(&failure.message));
    match args.json {
        true => print(json_line(&said).as_bytes())?,
        false => print(text::page(&said, args.tensors).as_bytes())?,
    }
    outcome
}

fn open(args: &Inspect, source: &Source) -> Result<ModelFile, LoadError> {
    let file = ModelFile::open(source, Layout::by_name(&args.i2s_layout))?;
    let template = args.chat_template.as_deref().map(ChatTemplate::of_setting).transpose()?;
    let file = file.with_template(template.unwrap_or_default()).with_head(HeadFormat::by_name(&args.head))?;
    file.with_cache(KvCacheFormat::named(&args.kv_cache).unwrap_or_default())
}

fn describe(args: &Inspect, file: &Gguf) -> Said {
    let mut types: Vec<TypeCount> = Vec::new();
    for tensor in file.tensors() {
        let (kind, bytes) = (tensor.kind.name(), tensor.bytes.len());
        match types.iter_mut().find(|count| count.kind == kind) {
            Some(count) => (count.tensors, count.bytes) = (count.tensors + 1, count.bytes + bytes),
            None => types.push(TypeCount { kind, tensors: 1, bytes }),
        }
    }
    let metadata =
        file.metadata().iter().map(|(key, value)| Entry { key: shortened(key), value: json(value) });
    let tensors = file.tensors().iter().map(|tensor| TensorLine {
        name: shortened(&tensor.name),
        kind: tensor.kind.name(),
        shape: tensor.dims.clone(),
        bytes: tensor.bytes.len(),
    });
    Said {
        file: args.model.as_ref().map_or("built-in".into(), |path| shortened(&path.display().to_string())),
        bytes: file.byte_len(),
        name: file.text("general.name").ok().flatten().map(shortened),
        metadata: metadata.collect(),
        types,
        tensors: tensors.collect(),
        problem: None,
        model: None,
        tokenizer: None,
        i2s_layout: None,
        head: None,
        memory: None,
        check: None,
    }
}

/// A metadata value; of an array only what it is: vocabularies have megabytes.
fn json(value: &MetadataValue) -> serde_json::Value {
    match value {
        MetadataValue::Unsigned(n) => (*n).into(),
        MetadataValue::Signed(n) => (*n).into(),
        MetadataValue::Float(x) => shortest(*x).into(),
        MetadataValue::Bool(flag) => (*flag).into(),
        MetadataValue::Text(text) => shortened(text).into(),
        MetadataValue::Array(array) => {
            let kind = if array.kind == STRING { "texts" } else { "numbers" };
            serde_json::json!({ "array_of": kind, "length": array.len })
        }
    }
}

/// Most floats of a file are f32: 1e-5 is what it means, not 9.999999747378752e-6.
fn shortest(x: f64) -> f64 {
    let short = x as f32;
    if f64::from(short) == x { short.to_string().parse().unwrap_or(x) } else { x }
}

/// Adds what only a model that runs has.
fn add_model(said: &mut Said, file: ModelFile, wants_check: bool) -> Result<(), Failure> {
    let shape = file.shape();
    said.model = Some(ModelFacts {
        architecture: shortened(&shape.arch),
        layers: shape.layers,
        width: shape.dim,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        feed_forward: shape.ffn,
        vocabulary: shape.vocab,
        context: shape.context,
    });
    said.head = head(&file);
    said.memory = Some(memory(&file));
    said.tokenizer = Some(tokenizer(&file.tokenizer()?));
    said.i2s_layout = file.has_layout().then(|| file.layout().map_or("auto", Layout::name));
    if wants_check {
        // Layouts differ in any form of it, and another would be made for this look alone.
        let file = file.with_head(Some(HeadFormat::File))?;
        let figures = file
            .score_layouts(&EngineOptions { threads: host::host().threads(), ..EngineOptions::default() })?;
        said.check = Some(check(&file, &figures));
        if let Some(refusal) = file.rejection(&figures) {
            return Err(refusal.into());
        }
    }
    Ok(())
}

fn head(file: &ModelFile) -> Option<Head> {
    let tensor = file.file().tensor(HEAD).or_else(|| file.file().tensor(EMBEDDING))?;
    let form = file.head();
    Some(Head {
        form: form.name(),
        kind: tensor.kind.name(),
        file_bytes: tensor.bytes.len(),
        image_bytes: form.image_bytes(file.shape()),
    })
}

fn memory(file: &ModelFile) -> Memory {
    let footprint = file.footprint();
    let host = host::host();
    let clients = Clients::of(&Config::defaults(&host));
    let board = |name: String, memory: usize| {
        let allowed = Allowed { bytes: memory / 4 * 3, is_kernels: false };
        let planned = Plan::make(&footprint, file.shape().context, None, clients, allowed);
        let (fits, plan) = match planned {
            Ok(plan) => (true, plan),
            Err(refused) => (false, refused.plan),
        };
        Board { name, budget: plan.budget.bytes, fits, context: plan.context, total: plan.total() }
    };
    let mut boards: Vec<Board> = BOARDS.iter().map(|mib| board(board_name(*mib), mib << 20)).collect();
    boards.push(board("this machine".into(), host.memory_bytes as usize));
    Memory {
        mapped: footprint.mapped,
        repacked: footprint.copied,
        cache_per_token: footprint.cache_per_token,
        scratch: footprint.scratch,
        tokenizer: footprint.tokenizer,
        boards,
    }
}

fn board_name(mib: usize) -> String {
    if mib < 1024 { format!("{mib} MB") } else { format!("{} GB", mib >> 10) }
}

fn tokenizer(tokenizer: &Tokenizer) -> TokenizerFacts {
    let token = |id: u32| Token { id, text: shortened(&String::from_utf8_lossy(tokenizer.bytes(id))) };
    let all = 0..tokenizer.vocab_size() as u32;
    TokenizerFacts {
        beginning: tokenizer.bos().map(token),
        ends: all.filter(|id| tokenizer.is_end(*id)).map(token).collect(),
        chat_template: shortened(tokenizer.chat_template()),
        notes: tokenizer.notes().iter().map(|note| one_line(note)).collect(),
    }
}

fn check(file: &ModelFile, figures: &[LayoutScore]) -> Check {
    let chance = file.shape().vocab;
    let layouts = figures
        .iter()
        .map(|figure| LayoutFigure { layout: figure.layout.name(), perplexity: figure.perplexity() });
    Check {
        trained: file.is_trained(),
        chance,
        layouts: layouts.collect(),
        layout: choose_layout(figures, chance).map(Layout::name),
    }
}
