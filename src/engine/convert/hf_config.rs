//! `config.json`: the hyperparameters of a model as transformers writes them, checked.

use super::checkpoint_files::CheckpointFolder;
use crate::engine::error::{LoadError, escaped};
use serde::Deserialize;

/// The name of the file.
const FILE: &str = "config.json";

/// The keys that are read.
#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: Option<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    vocab_size: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Scaling>,
    /// transformers 5 puts both of the above here.
    rope_parameters: Option<Scaling>,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<TokenIds>,
    quantization_config: Option<Quantization>,
    weight_bits: Option<u32>,
    input_bits: Option<u32>,
}

/// One id or several.
#[derive(Debug, Clone, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum TokenIds {
    /// One.
    One(u32),
    /// Several.
    Many(Vec<u32>),
}

impl TokenIds {
    /// All of them.
    pub fn all(&self) -> &[u32] {
        match self {
            TokenIds::One(id) => std::slice::from_ref(id),
            TokenIds::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
struct Scaling {
    rope_type: Option<String>,
    /// The same key in older files; some have both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

#[derive(Deserialize)]
struct Quantization {
    quant_method: Option<String>,
    linear_class: Option<String>,
    quantization_mode: Option<String>,
    #[serde(default)]
    use_rms_norm: bool,
    modules_to_not_convert: Option<Vec<String>>,
}

/// A family of models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelFamily {
    /// `BitNetForCausalLM`: microsoft/bitnet-b1.58-2B-4T.
    BitNetB158,
    /// `BitnetForCausalLM`: 1bitLLM/bitnet_b1_58-large and -3B.
    BitNet,
    /// `LlamaForCausalLM` with ternary layers: Llama3-8B-1.58, Falcon3-1.58bit, Falcon-E.
    Llama,
}

impl ModelFamily {
    /// The architecture's name in a GGUF file.
    pub fn arch(self) -> &'static str {
        match self {
            ModelFamily::BitNetB158 => "bitnet-b1.58",
            ModelFamily::BitNet => "bitnet",
            ModelFamily::Llama => "llama",
        }
    }
}

/// How a model's weights become ternary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightScheme {
    /// Floats that are quantised by their mean magnitude whenever the model runs.
    Online,
    /// Codes, or floats that are already ternary, which are multiplied by a `weight_scale`.
    Multiplied,
    /// Codes, or floats that are already ternary, which are divided by a `weight_scale`.
    Divided,
}

/// Llama 3's stretching of long wavelengths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Rope {
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
}

/// The hyperparameters of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct HfConfig {
    /// Family.
    pub family: ModelFamily,
    /// How its weights become ternary.
    pub weight_scheme: WeightScheme,
    /// Width of the residual stream.
    pub dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest context it was trained for.
    pub context: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Added to the mean square before its root.
    pub epsilon: f32,
    /// Base of the rotation frequencies.
    pub rope_base: f32,
    /// What positions are divided by.
    pub rope_stretch: f32,
    /// Stretched wavelengths.
    pub rope: Option<Llama3Rope>,
    /// Whether the embedding is also the head; `None` where the file does not say.
    pub tied: Option<bool>,
    /// Id that begins a text.
    pub bos: Option<u32>,
    /// Ids that end one.
    pub eos: Vec<u32>,
}

/// Far above any model: larger sizes are refused before anything is computed from them.
const MAX_SIZE: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 10;

impl HfConfig {
    /// Reads and checks the file of a folder.
    pub fn read(folder: &CheckpointFolder) -> Result<Self, LoadError> {
        let raw: Option<RawConfig> = folder.json(FILE)?;
        let raw = raw.ok_or_else(|| {
            LoadError::new(FILE, "missing; give a checkpoint folder as Hugging Face has it, or a GGUF file")
        })?;
        let family = family(&raw.architectures)?;
        check_model_type(family, raw.model_type.as_deref())?;
        let heads = raw.num_attention_heads;
        let config = HfConfig {
            family,
            weight_scheme: weight_scheme(family, &raw)?,
            dim: raw.hidden_size,
            ffn: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(heads),
            head_dim: raw.head_dim.unwrap_or(raw.hidden_size / heads.max(1)),
            context: raw.max_position_embeddings,
            vocab: raw.vocab_size,
            epsilon: float("rms_norm_eps", raw.rms_norm_eps)?,
            rope_base: rope_base(family, &raw)?,
            rope_stretch: rope_stretch(&raw)?,
            rope: rope(&raw)?,
            tied: raw.tie_word_embeddings,
            bos: raw.bos_token_id,
            eos: raw.eos_token_id.as_ref().map_or(Vec::new(), |ids| ids.all().to_vec()),
        };
        check_activation(family, raw.hidden_act.as_deref())?;
        config.check_sizes()?;
        Ok(config)
    }

    fn check_sizes(&self) -> Result<(), LoadError> {
        let sizes = [
            ("hidden_size", self.dim, MAX_SIZE),
            ("intermediate_size", self.ffn, MAX_SIZE),
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("num_attention_heads", self.heads, MAX_SIZE),
            ("num_key_value_heads", self.kv_heads, MAX_SIZE),
            ("head_dim", self.head_dim, MAX_SIZE / self.heads.max(1)),
            ("max_position_embeddings", self.context, MAX_SIZE),
            ("vocab_size", self.vocab, MAX_SIZE),
        ];
        if let Some((name, size, max)) = sizes.iter().find(|(_, size, max)| !(1..=*max).contains(size)) {
            return Err(key(name, format!("is {size}, where 1 to {max} make sense")));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let message = format!("{} does not divide {} heads", self.kv_heads, self.heads);
            return Err(key("num_key_value_heads", message));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(key(
                "head_dim",
                format!("{} is odd; its halves are rotated together", self.head_dim),
            ));
        }
        Ok(())
    }

    /// What each rotation frequency is divided by, `[head_dim / 2]`; `None` where none is scaled. Source:
    /// `_compute_llama3_parameters` of transformers.
    pub fn rope_factors(&self) -> Option<Vec<f32>> {
        let rope = self.rope?;
        let factor = |pair: usize| {
            let exponent = 2.0 * pair as f64 / self.head_dim as f64;
            let wavelength = std::f64::consts::TAU * f64::from(self.rope_base).powf(exponent);
            let smooth = (rope.original / wavelength - rope.low) / (rope.high - rope.low);
            // Short wavelengths stay, long ones are stretched, and those between are interpolated.
            match smooth {
                s if s >= 1.0 => 1.0,
                s if s <= 0.0 => rope.factor,
                s => 1.0 / ((1.0 - s) / rope.factor + s),
            }
        };
        Some((0..self.head_dim / 2).map(|pair| factor(pair) as f32).collect())
    }
}

fn key(name: &str, message: impl Into<String>) -> LoadError {
    LoadError::new(format!("{FILE}: {name}"), message)
}

fn family(architectures: &[String]) -> Result<ModelFamily, LoadError> {
    match architectures.first().map(String::as_str) {
        Some("BitNetForCausalLM") => Ok(ModelFamily::BitNetB158),
        Some("BitnetForCausalLM") => Ok(ModelFamily::BitNet),
        Some("LlamaForCausalLM") => Ok(ModelFamily::Llama),
        Some(other) => Err(key(
            "architectures",
            format!(
                "\"{}\" is not known; BitNetForCausalLM, BitnetForCausalLM and LlamaForCausalLM are",
                escaped(other)
            ),
        )),
        None => Err(key("architectures", "missing; the file is no complete model")),
    }
}

/// Checks that the file describes the architecture that it names: other types give its keys other meanings.
fn check_model_type(family: ModelFamily, given: Option<&str>) -> Result<(), LoadError> {
    let sound: &[&str] = match family {
        ModelFamily::BitNetB158 => &["bitnet"],
        // 1bitLLM's configurations were made from Llama's.
        ModelFamily::BitNet => &["llama", "bitnet"],
        ModelFamily::Llama => &["llama"],
    };
    match given.filter(|given| !sound.contains(given)) {
        None => Ok(()),
        Some(given) => {
            let message = format!(
                "\"{}\" does not fit the architecture, which has {}",
                escaped(given),
                sound.join(" or ")
            );
            Err(key("model_type", format!("{message}; use another model")))
        }
    }
}

/// Source: `BitNetQuantConfig` and the linear classes it chooses between, in transformers.
fn weight_scheme(family: ModelFamily, raw: &RawConfig) -> Result<WeightScheme, LoadError> {
    let bits = [("weight_bits", raw.weight_bits, 1), ("input_bits", raw.input_bits, 8)];
    for (name, bits, want) in bits {
        if let Some(bits) = bits.filter(|bits| *bits != want) {
            return Err(key(name, format!("is {bits}; this engine runs {want}")));
        }
    }
    let Some(quantization) = &raw.quantization_config else {
        // 1bitLLM's own code quantises whatever the file says; other models would not be ternary at all.
        return Ok(if family == ModelFamily::BitNet {
            WeightScheme::Online
        } else {
            WeightScheme::Multiplied
        });
    };
    let name = |part: &str| format!("quantization_config.{part}");
    if let Some(method) = quantization.quant_method.as_deref().filter(|method| *method != "bitnet") {
        return Err(key(
            &name("quant_method"),
            format!("\"{}\" is no BitNet; use a BitNet model", escaped(method)),
        ));
    }
    if quantization.use_rms_norm {
        return Err(key(&name("use_rms_norm"), "norms before each matrix are not supported"));
    }
    check_modules(quantization.modules_to_not_convert.as_deref())?;
    let class = quantization.linear_class.as_deref();
    let mode = quantization.quantization_mode.as_deref();
    match (class, mode) {
        (Some("autobitlinear"), Some("online")) => Ok(WeightScheme::Online),
        (Some("autobitlinear"), None | Some("offline")) => Ok(WeightScheme::Multiplied),
        (Some("bitlinear"), _) => Ok(WeightScheme::Divided),
        // Missing, as in HF1BitLLM's and Falcon3's files; Microsoft's scales always multiply.
        (None, _) if family == ModelFamily::BitNetB158 => Ok(WeightScheme::Multiplied),
        (None, _) => Ok(WeightScheme::Divided),
        (Some(class), mode) => {
            let message = format!("\"{}\" {}", escaped(class), mode.map(escaped).unwrap_or_default());
            Err(key(&name("linear_class"), format!("{} is not known", message.trim_end())))
        }
    }
}

/// Checks the modules that are not converted. The head never is; only transformers' own list names others.
fn check_modules(named: Option<&[String]>) -> Result<(), LoadError> {
    /// The matrices whose names contain a listed one.
    const MATRICES: [&str; 7] = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];
    let Some(named) = named else { return Ok(()) };
    let fail = |message: String| Err(key("quantization_config.modules_to_not_convert", message));
    for name in named {
        let other = ["lm_head", "model.lm_head", "embed_tokens", "model.embed_tokens", "norm", "model.norm"];
        if !other.contains(&name.as_str()) {
            let is_matrix =
                name.starts_with("model.layers") || MATRICES.iter().any(|matrix| matrix.contains(name));
            let what = if is_matrix {
                "leaves a layer's matrix unconverted"
            } else {
                "is a module that is not known"
            };
            return fail(format!("\"{}\" {what}, which is not supported; use another model", escaped(name)));
        }
    }
    match named.iter().any(|name| name.ends_with("lm_head")) {
        true => Ok(()),
        false => fail(
            "does not name lm_head: a ternary head is not supported; name it, or leave the key out".into(),
        ),
    }
}

/// A GGUF file names no activation; its architecture implies it.
fn check_activation(family: ModelFamily, given: Option<&str>) -> Result<(), LoadError> {
    let want = if family == ModelFamily::BitNetB158 { "relu2" } else { "silu" };
    match given.filter(|given| *given != want) {
        None => Ok(()),
        Some(given) => {
            let message = format!("\"{}\", where {} has {want}", escaped(given), family.arch());
            Err(key("hidden_act", message))
        }
    }
}

/// A float above 0.
fn float(name: &str, x: f64) -> Result<f32, LoadError> {
    match x as f32 {
        x if x > 0.0 && x.is_finite() => Ok(x),
        _ => Err(key(name, format!("is {x}, not a number above 0"))),
    }
}

/// The base of the rotation frequencies. Where no key gives it, it is the default of the family's configuration class
/// in transformers (`BitNetConfig`, `LlamaConfig`) or in 1bitLLM's code.
fn rope_base(family: ModelFamily, raw: &RawConfig) -> Result<f32, LoadError> {
    let default = match family {
        ModelFamily::BitNetB158 => 500_000.0,
        ModelFamily::BitNet | ModelFamily::Llama => 10_000.0,
    };
    let inner = |part: &Option<Scaling>| part.as_ref().and_then(|rope| rope.rope_theta);
    let declared = [raw.rope_theta, inner(&raw.rope_parameters), inner(&raw.rope_scaling)];
    let mut declared = declared.into_iter().flatten();
    let base = declared.next().unwrap_or(default);
    if let Some(other) = declared.find(|other| *other != base) {
        return Err(key("rope_theta", format!("is {base} in one place and {other} in another")));
    }
    match float("rope_theta", base)? {
        // Below 1 the frequencies would grow without bound.
        base if base < 1.0 => Err(key("rope_theta", format!("{base} is below 1"))),
        base => Ok(base),
    }
}

/// The section that stretches positions, where the file has one, and its method.
fn scaling(raw: &RawConfig) -> Result<Option<(&Scaling, &str)>, LoadError> {
    let sections = [("rope_scaling", &raw.rope_scaling), ("rope_parameters", &raw.rope_parameters)];
    let given = sections.into_iter().find_map(|(name, section)| Some((name, section.as_ref()?)));
    let Some((name, scaling)) = given else { return Ok(None) };
    let fail = |message: String| Err(key(&format!("{name}.rope_type"), message));
    let numbers = [
        ("factor", scaling.factor),
        ("low_freq_factor", scaling.low_freq_factor),
        ("high_freq_factor", scaling.high_freq_factor),
        ("original_max_position_embeddings", scaling.original_max_position_embeddings),
    ];
    match (scaling.rope_type.as_deref(), scaling.old_type.as_deref()) {
        (Some(kind), Some(other)) if kind != other => {
            let (kind, other) = (escaped(kind), escaped(other));
            fail(format!("is \"{kind}\", and type is \"{other}\"; remove the wrong one"))
        }
        (Some(kind), _) | (None, Some(kind)) => Ok(Some((scaling, kind))),
        (None, None) => match numbers.iter().find(|(_, number)| number.is_some()) {
            None => Ok(None),
            Some((number, _)) => fail(format!(
                "missing beside {number}, so that the method is unknown; add it, or remove {name}"
            )),
        },
    }
}

/// Linear scaling.
fn rope_stretch(raw: &RawConfig) -> Result<f32, LoadError> {
    let Some((scaling, "linear")) = scaling(raw)? else { return Ok(1.0) };
    let name = "rope_scaling.factor";
    let factor = scaling.factor.ok_or_else(|| key(name, "missing; linear scaling needs it"))?;
    match float(name, factor)? {
        factor if factor >= 1.0 => Ok(factor),
        factor => Err(key(name, format!("{factor} is below 1"))),
    }
}

fn rope(raw: &RawConfig) -> Result<Option<Llama3Rope>, LoadError> {
    let name = "rope_scaling";
    let Some((scaling, kind)) = scaling(raw)? else { return Ok(None) };
    match kind {
        "default" | "linear" => return Ok(None),
        "llama3" => {}
        other => {
            let message = format!("\"{}\" is not supported; default, linear and llama3 are", escaped(other));
            return Err(key(name, message));
        }
    }
    let number = |part: &str, number: Option<f64>| {
        number.ok_or_else(|| key(&format!("{name}.{part}"), "missing; llama3 scaling needs it"))
    };
    let rope = Llama3Rope {
        factor: number("factor", scaling.factor)?,
        low: number("low_freq_factor", scaling.low_freq_factor)?,
        high: number("high_freq_factor", scaling.high_freq_factor)?,
        original: number("original_max_position_embeddings", scaling.original_max_position_embeddings)?,
    };
    let sound = [rope.factor, rope.low, rope.original].iter().all(|x| x.is_finite() && *x > 0.0);
    match sound && rope.high.is_finite() && rope.high > rope.low {
        true => Ok(Some(rope)),
        false => Err(key(name, "its factors are not above 0, or not in order")),
    }
}
