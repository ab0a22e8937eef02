//! `bitnetd inspect`: what a model file contains, whether it runs, and what memory it takes on which board.
//! Deliberately runs no model, except with `--check`.

mod render;

use super::board_fit::BoardFit;
use super::model_args::{cache_arg, head_arg, layout_arg};
use super::{Failure, host, print};
use crate::cli::activity::Activity;
use crate::engine::error::LoadError;
use crate::engine::gguf::{FileMap, Gguf, MetadataValue, STRING};
use crate::engine::layout_detect::{LayoutScore, choose_layout};
use crate::engine::model::{EMBEDDING, HEAD, HeadFormat, KvCacheFormat, Layout};
use crate::engine::tokenizer::{ChatTemplate, Tokenizer};
use crate::engine::{EngineOptions, ModelFile, Source};
use crate::protocol::text::{json_line, one_line, shortened};
use serde::Serialize;
use std::path::PathBuf;

/// Show what a model file contains, whether it runs, and what memory it takes
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Inspect {
    /// A GGUF file [default: the built-in model]
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Load it, and measure the perplexity of a short text in each I2_S layout
    #[arg(long)]
    check: bool,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Layout of I2_S weights for the memory plan: 128, 64 or 1x4
    #[arg(long, value_name = "LAYOUT", default_value = "auto", value_parser = layout_arg())]
    i2s_layout: String,
    /// Format of the output head for the memory plan: f16 (the file's own), q8, q6_k or screened; auto is the
    /// daemon's choice
    #[arg(long, value_name = "FORM", default_value = "auto", value_parser = head_arg())]
    head: String,
    /// Format of the KV cache for the memory plan
    #[arg(long, value_name = "FORM", default_value = KvCacheFormat::default().name(), value_parser = cache_arg())]
    kv_cache: String,
    /// Requests that are answered at the same time, for the memory plan [default: as many as fit, up to 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    parallel: Option<u8>,
    /// Chat template: file, the model file's own; built-in, that of its architecture; or the path of a Jinja template
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Memory of common boards, in MiB.
const BOARDS: [usize; 5] = [512, 1024, 2048, 4096, 8192];

#[derive(Serialize)]
struct InspectReport {
    file: String,
    bytes: usize,
    name: Option<String>,
    metadata: Vec<MetadataEntry>,
    types: Vec<TypeCount>,
    tensors: Vec<TensorLine>,
    /// Why it cannot be run; `null` when it can.
    problem: Option<String>,
    model: Option<ModelFacts>,
    tokenizer: Option<TokenizerFacts>,
    /// The layout of I2_S weights; `auto` is detected when the model is loaded.
    i2s_layout: Option<&'static str>,
    head: Option<HeadForms>,
    memory: Option<MemoryNeeds>,
    check: Option<LayoutCheck>,
}

#[derive(Serialize)]
struct MetadataEntry {
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
    beginning: Option<TokenText>,
    ends: Vec<TokenText>,
    /// The chat template that is used.
    chat_template: String,
    /// Defects of the file, and how they are worked around.
    notes: Vec<String>,
}

#[derive(Serialize)]
struct TokenText {
    id: u32,
    text: String,
}

/// The output head in the file and in memory.
#[derive(Serialize)]
struct HeadForms {
    /// The format by its name in the settings; `f16` is the file's own format, whatever that is.
    form: &'static str,
    /// The tensor type in the file.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Its bytes in the file.
    file_bytes: usize,
    /// Bytes of the derived format; 0 where the file's own is used.
    image_bytes: usize,
}

#[derive(Serialize)]
struct MemoryNeeds {
    /// Weights that are mapped from the file, in bytes.
    mapped: usize,
    /// Weights that are repacked into allocated memory, in bytes.
    repacked: usize,
    cache_per_token: usize,
    scratch: usize,
    tokenizer: usize,
    /// Structured output, from its first use on: the trie of the vocabulary.
    token_trie: usize,
    /// Each grammar at work, of which there is one more than requests that are answered at the same time.
    per_grammar: usize,
    boards: Vec<BoardFit>,
}

#[derive(Serialize)]
struct LayoutCheck {
    /// Whether the weights look trained; random weights are at chance level in every layout.
    trained: bool,
    /// The perplexity of random guessing.
    chance: usize,
    layouts: Vec<LayoutPerplexity>,
    /// The layout that is clearly better than chance; `null` where none is.
    layout: Option<&'static str>,
}

#[derive(Serialize)]
struct LayoutPerplexity {
    layout: &'static str,
    perplexity: f64,
}

pub(super) fn run(args: Inspect) -> Result<(), Failure> {
    let source = args.model.clone().map_or(Source::BuiltIn, Source::File);
    let opened = open(&args, &source);
    let mut report = match (&opened, &args.model) {
        (Ok(file), _) => describe(&args, file.file()),
        // The contents are shown also for a model that cannot be run.
        (Err(error), Some(path)) => match FileMap::open(path).ok().and_then(|map| Gguf::parse(map).ok()) {
            Some(file) => describe(&args, &file),
            None => return Err(error.clone().into()),
        },
        (Err(error), None) => return Err(error.clone().into()),
    };
    let outcome = match opened {
        Ok(file) => add_model(&mut report, file, &args),
        Err(error) => Err(error.into()),
    };
    report.problem = outcome.as_ref().err().map(|failure| one_line(&failure.message));
    match args.json {
        true => print(json_line(&report).as_bytes())?,
        false => print(render::page(&report, args.tensors).as_bytes())?,
    }
    outcome
}

fn open(args: &Inspect, source: &Source) -> Result<ModelFile, LoadError> {
    let _activity = Activity::begin("reading the file");
    let file = ModelFile::open(source, Layout::by_name(&args.i2s_layout))?;
    let template = args.chat_template.as_deref().map(ChatTemplate::of_setting).transpose()?;
    let file = file.with_template(template.unwrap_or_default()).with_head(HeadFormat::by_name(&args.head))?;
    file.with_cache(KvCacheFormat::named(&args.kv_cache).unwrap_or_default())
}

fn describe(args: &Inspect, file: &Gguf) -> InspectReport {
    let mut types: Vec<TypeCount> = Vec::new();
    for tensor in file.tensors() {
        let (kind, bytes) = (tensor.kind.name(), tensor.bytes.len());
        match types.iter_mut().find(|count| count.kind == kind) {
            Some(count) => (count.tensors, count.bytes) = (count.tensors + 1, count.bytes + bytes),
            None => types.push(TypeCount { kind, tensors: 1, bytes }),
        }
    }
    let metadata =
        file.metadata().iter().map(|(key, value)| MetadataEntry { key: shortened(key), value: json(value) });
    let tensors = file.tensors().iter().map(|tensor| TensorLine {
        name: shortened(&tensor.name),
        kind: tensor.kind.name(),
        shape: tensor.dims.clone(),
        bytes: tensor.bytes.len(),
    });
    InspectReport {
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

/// A metadata value; an array is only described, since vocabularies have megabytes.
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

/// Most floats of a file are f32, so 1e-5 is shown instead of 9.999999747378752e-6.
fn shortest(x: f64) -> f64 {
    let short = x as f32;
    if f64::from(short) == x { short.to_string().parse().unwrap_or(x) } else { x }
}

/// Adds what needs a model that can be run.
fn add_model(report: &mut InspectReport, file: ModelFile, args: &Inspect) -> Result<(), Failure> {
    let shape = file.shape();
    report.model = Some(ModelFacts {
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
    report.head = head(&file);
    report.memory = Some(memory(&file, args.parallel.map(usize::from)));
    report.tokenizer = Some(tokenizer(&file.tokenizer()?));
    report.i2s_layout = file.has_layout().then(|| file.layout().map_or("auto", Layout::name));
    if args.check {
        // The file's own head is enough to compare layouts; another format would be derived only for this check.
        let file = file.with_head(Some(HeadFormat::File))?;
        let figures = file
            .score_layouts(&EngineOptions { threads: host::host().threads(), ..EngineOptions::default() })?;
        report.check = Some(check(&file, &figures));
        if let Some(refusal) = file.rejection(&figures) {
            return Err(refusal.into());
        }
    }
    Ok(())
}

fn head(file: &ModelFile) -> Option<HeadForms> {
    let tensor = file.file().tensor(HEAD).or_else(|| file.file().tensor(EMBEDDING))?;
    let form = file.head();
    Some(HeadForms {
        form: form.name(),
        kind: tensor.kind.name(),
        file_bytes: tensor.bytes.len(),
        image_bytes: form.image_bytes(file.shape()),
    })
}

fn memory(file: &ModelFile, parallel: Option<usize>) -> MemoryNeeds {
    let footprint = file.footprint();
    let host = host::host();
    let board = |name: String, memory: usize| BoardFit::new(file, name, memory, parallel);
    let mut boards: Vec<BoardFit> = BOARDS.iter().map(|mib| board(board_name(*mib), mib << 20)).collect();
    boards.push(board("this machine".into(), host.memory_bytes as usize));
    MemoryNeeds {
        mapped: footprint.mapped,
        repacked: footprint.copied,
        cache_per_token: footprint.cache_per_token,
        scratch: footprint.scratch,
        tokenizer: footprint.tokenizer,
        token_trie: footprint.token_trie,
        per_grammar: footprint.per_grammar,
        boards,
    }
}

fn board_name(mib: usize) -> String {
    if mib < 1024 { format!("{mib} MB") } else { format!("{} GB", mib >> 10) }
}

fn tokenizer(tokenizer: &Tokenizer) -> TokenizerFacts {
    let token = |id: u32| TokenText { id, text: shortened(&String::from_utf8_lossy(tokenizer.bytes(id))) };
    let all = 0..tokenizer.vocab_size() as u32;
    TokenizerFacts {
        beginning: tokenizer.bos().map(token),
        ends: all.filter(|id| tokenizer.is_end(*id)).map(token).collect(),
        chat_template: shortened(tokenizer.chat_template()),
        notes: tokenizer.notes().iter().map(|note| one_line(note)).collect(),
    }
}

fn check(file: &ModelFile, figures: &[LayoutScore]) -> LayoutCheck {
    let chance = file.shape().vocab;
    let layouts = figures
        .iter()
        .map(|figure| LayoutPerplexity { layout: figure.layout.name(), perplexity: figure.perplexity() });
    LayoutCheck {
        trained: file.is_trained(),
        chance,
        layouts: layouts.collect(),
        layout: choose_layout(figures, chance).map(Layout::name),
    }
}
