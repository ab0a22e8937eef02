//! Plans the conversion of a checkpoint folder: which of its tensors becomes which tensor of the file, and in which
//! format.

use super::checkpoint_files::CheckpointFolder;
use super::float_table::{self, FloatTable};
use super::hf_config::{HfConfig, ModelFamily, WeightScheme};
use super::safetensors::{StoredTensor, Tensors};
use super::ternary_matrix::{MatrixSource, TernaryMatrix};
use super::{Content, ConvertOptions, ConvertPlan, key_checks, vocabulary};
use crate::engine::error::{LoadError, escaped};
use crate::engine::gguf::NewValue;
use crate::engine::model::{EMBEDDING, HEAD, Layout};
use crate::engine::quant::{FloatFormat, TensorType, is_ternary};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// Tensors that are computed from the configuration instead.
const LEFT_OUT: &str = ".rotary_emb.inv_freq";

pub(super) fn plan(folder: &CheckpointFolder, options: &ConvertOptions) -> Result<ConvertPlan, LoadError> {
    let config = HfConfig::read(folder)?;
    let notes = key_checks::check(folder)?;
    let tensors = Tensors::read(folder)?;
    let mut plan = ConvertPlan::new();
    notes.into_iter().for_each(|note| plan.note(note));
    set_metadata(folder, &config, options, &mut plan);
    let mut builder = Builder { config: &config, options, tensors: &tensors, plan, used: BTreeSet::new() };
    builder.tables()?;
    for layer in 0..config.layers {
        builder.layer(layer)?;
    }
    builder.rope()?;
    builder.check_all_used()?;
    // Last, like the rotation factors: by now there are tensors of the sizes that the configuration claims, so that
    // it cannot make the engine allocate more.
    vocabulary::add(folder, &config, &mut builder.plan)?;
    Ok(builder.plan)
}

/// Sets the keys that `Shape::read` and bitnet.cpp read.
fn set_metadata(
    folder: &CheckpointFolder,
    config: &HfConfig,
    options: &ConvertOptions,
    plan: &mut ConvertPlan,
) {
    let draft = &mut plan.draft;
    let arch = config.family.arch();
    draft.set("general.architecture", arch);
    if let Some(name) = folder.name() {
        draft.set("general.name", name.as_str());
    }
    draft.set("general.file_type", NewValue::U32(options.weights.file_type()));
    let numbers = [
        ("vocab_size", config.vocab),
        ("context_length", config.context),
        ("embedding_length", config.dim),
        ("block_count", config.layers),
        ("feed_forward_length", config.ffn),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ];
    for (name, number) in numbers {
        let number = u32::try_from(number).expect("checked to be far below");
        draft.set(&format!("{arch}.{name}"), NewValue::U32(number));
    }
    draft.set(&format!("{arch}.rope.freq_base"), NewValue::F32(config.rope_base));
    if config.rope_stretch != 1.0 {
        draft.set(&format!("{arch}.rope.scaling.type"), "linear");
        draft.set(&format!("{arch}.rope.scaling.factor"), NewValue::F32(config.rope_stretch));
    }
    draft.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), NewValue::F32(config.epsilon));
}

struct Builder<'a> {
    config: &'a HfConfig,
    options: &'a ConvertOptions,
    tensors: &'a Tensors,
    plan: ConvertPlan,
    /// Tensors of the source that have been used.
    used: BTreeSet<String>,
}

impl Builder<'_> {
    /// Adds embedding, last norm and head.
    fn tables(&mut self) -> Result<(), LoadError> {
        let (vocab, dim) = (self.config.vocab, self.config.dim);
        self.table("model.embed_tokens.weight", EMBEDDING, vocab, dim)?;
        self.vector("model.norm.weight", "output_norm.weight", dim)?;
        let head = "lm_head.weight";
        match self.config.tied.unwrap_or_else(|| self.tensors.get(head).is_none()) {
            true => self.check_tied(head)?,
            false => self.table(head, HEAD, vocab, dim)?,
        }
        Ok(())
    }

    /// Some files hold the tied head once more; a different matrix would be silently dropped.
    fn check_tied(&mut self, head: &str) -> Result<(), LoadError> {
        if self.tensors.get(head).is_none() {
            return Ok(());
        }
        let shape = [self.config.vocab, self.config.dim];
        let (head, embedding) =
            (self.numbers(head, &shape)?, self.numbers("model.embed_tokens.weight", &shape)?);
        if head.has_same_numbers(&embedding) {
            return Ok(());
        }
        let message = "differs from model.embed_tokens.weight, and config.json: tie_word_embeddings is true; set that to \
                    false where the model has a head of its own, or remove the tensor";
        Err(LoadError::tensor(&head.name, message))
    }

    fn rope(&mut self) -> Result<(), LoadError> {
        let Some(factors) = self.config.rope_factors() else { return Ok(()) };
        let dims = [factors.len()];
        self.plan.add_tensor("rope_freqs.weight", TensorType::F32, &dims, Content::Numbers(factors))
    }

    fn layer(&mut self, layer: usize) -> Result<(), LoadError> {
        let config = self.config;
        let (dim, ffn, head) = (config.dim, config.ffn, config.head_dim);
        let (q, kv) = (config.heads * head, config.kv_heads * head);
        // Only llama.cpp's `llama` rotates neighbouring elements.
        let paired = (config.family == ModelFamily::Llama).then_some(head);
        let matrices = [
            ("self_attn.q_proj", "attn_q", q, dim, paired),
            ("self_attn.k_proj", "attn_k", kv, dim, paired),
            ("self_attn.v_proj", "attn_v", kv, dim, None),
            ("self_attn.o_proj", "attn_output", dim, q, None),
            ("mlp.gate_proj", "ffn_gate", ffn, dim, None),
            ("mlp.up_proj", "ffn_up", ffn, dim, None),
            ("mlp.down_proj", "ffn_down", dim, ffn, None),
        ];
        let norms = [("input_layernorm", "attn_norm", dim), ("post_attention_layernorm", "ffn_norm", dim)];
        let sub_norms: &[(&str, &str, usize)] = match config.family {
            ModelFamily::BitNetB158 => {
                &[("self_attn.attn_sub_norm", "attn_sub_norm", q), ("mlp.ffn_sub_norm", "ffn_sub_norm", ffn)]
            }
            ModelFamily::BitNet => {
                &[("self_attn.inner_attn_ln", "attn_sub_norm", q), ("mlp.ffn_layernorm", "ffn_sub_norm", ffn)]
            }
            ModelFamily::Llama => &[],
        };
        for (from, to, len) in norms.iter().chain(sub_norms) {
            let (from, to) =
                (format!("model.layers.{layer}.{from}.weight"), format!("blk.{layer}.{to}.weight"));
            self.vector(&from, &to, *len)?;
        }
        for (from, to, rows, cols, paired) in matrices {
            let (from, to) = (format!("model.layers.{layer}.{from}"), format!("blk.{layer}.{to}"));
            let matrix = self.matrix(&from, rows, cols, paired)?;
            self.plan.add_matrix(&to, matrix, self.options.weights.kind())?;
        }
        Ok(())
    }

    fn stored(&mut self, name: &str) -> Result<&StoredTensor, LoadError> {
        self.used.insert(name.to_owned());
        self.tensors
            .get(name)
            .ok_or_else(|| LoadError::tensor(name, "missing; the checkpoint is no complete model"))
    }

    /// A tensor of numbers with this shape.
    fn numbers(&mut self, name: &str, shape: &[usize]) -> Result<FloatTable, LoadError> {
        let stored = self.stored(name)?;
        let from = dense(stored)?.into();
        check_shape(stored, shape)?;
        let cols = *shape.last().expect("a matrix or a vector has a last dimension");
        Ok(FloatTable {
            name: name.to_owned(),
            data: stored.data.clone(),
            from,
            cols,
            to: FloatFormat::F32.into(),
        })
    }

    fn table(&mut self, from: &str, to: &str, rows: usize, cols: usize) -> Result<(), LoadError> {
        let mut table = self.numbers(from, &[rows, cols])?;
        table.to = float_table::choose_format(&table.data, table.from, self.options.head);
        self.plan.add_table(to, table)
    }

    fn vector(&mut self, from: &str, to: &str, len: usize) -> Result<(), LoadError> {
        let table = self.numbers(from, &[len])?;
        self.plan.add_vector(to, table)
    }

    fn matrix(
        &mut self,
        from: &str,
        rows: usize,
        cols: usize,
        paired: Option<usize>,
    ) -> Result<TernaryMatrix, LoadError> {
        let name = format!("{from}.weight");
        let scale_name = format!("{from}.weight_scale");
        let recipe = self.config.weight_scheme;
        let scale = match self.tensors.get(&scale_name) {
            Some(stored) => Some(weight_scale(stored, recipe)?),
            None => None,
        };
        self.used.insert(scale_name.clone());
        let stored = self.stored(&name)?;
        let data = stored.data.clone();
        let source = if stored.dtype == "U8" {
            check_shape(stored, &[rows.div_ceil(4), cols])?;
            let scale = scale.ok_or_else(|| {
                LoadError::tensor(&scale_name, "missing; packed weights mean nothing without it")
            })?;
            MatrixSource::Strided { data, scale }
        } else {
            let kind = dense(stored)?;
            check_shape(stored, &[rows, cols])?;
            // Checked now, not after the embedding was written.
            if recipe != WeightScheme::Online && !is_ternary(&data, kind, cols) {
                let message =
                    "is not ternary, and config.json names no way to make it so: not a BitNet model; use one";
                return Err(LoadError::tensor(&name, message));
            }
            match recipe {
                WeightScheme::Online => MatrixSource::Master { data, kind },
                _ => MatrixSource::Tensor {
                    data,
                    kind: tensor_type(kind),
                    layout: Layout::default(),
                    factor: scale.unwrap_or(1.0),
                },
            }
        };
        Ok(TernaryMatrix { name, source, rows, cols, rope_head: paired, factor: OnceLock::new() })
    }

    /// Refuses a checkpoint with a tensor that was not used: it is then another model than its configuration
    /// claims.
    fn check_all_used(&self) -> Result<(), LoadError> {
        let left = |name: &&str| !self.used.contains(*name) && !name.ends_with(LEFT_OUT);
        match self.tensors.names().find(left) {
            None => Ok(()),
            Some(name) => {
                let message = format!(
                    "is not part of {} as this engine knows it; use another model",
                    self.config.family.arch()
                );
                Err(LoadError::tensor(name, message))
            }
        }
    }
}

fn check_shape(stored: &StoredTensor, shape: &[usize]) -> Result<(), LoadError> {
    if stored.shape == shape {
        return Ok(());
    }
    let message = format!("has shape {:?}, where config.json asks for {shape:?}", stored.shape);
    Err(LoadError::tensor(&stored.name, message))
}

fn dense(stored: &StoredTensor) -> Result<FloatFormat, LoadError> {
    match stored.dtype.as_str() {
        "F32" => Ok(FloatFormat::F32),
        "F16" => Ok(FloatFormat::F16),
        "BF16" => Ok(FloatFormat::Bf16),
        other => {
            let message = format!("is {}, where F32, F16 or BF16 is read", escaped(other));
            Err(LoadError::tensor(&stored.name, message))
        }
    }
}

fn tensor_type(kind: FloatFormat) -> TensorType {
    match kind {
        FloatFormat::F32 => TensorType::F32,
        FloatFormat::F16 => TensorType::F16,
        FloatFormat::Bf16 => TensorType::Bf16,
    }
}

/// The scale that a matrix is multiplied by.
fn weight_scale(stored: &StoredTensor, recipe: WeightScheme) -> Result<f32, LoadError> {
    let fail = |message: String| Err(LoadError::tensor(&stored.name, message));
    let kind = dense(stored)?;
    if stored.data.len() != kind.size() {
        return fail(format!("has shape {:?}, where one number is read", stored.shape));
    }
    let mut number = [0.0];
    kind.read(&stored.data, &mut number);
    let scale = if recipe == WeightScheme::Divided { 1.0 / number[0] } else { number[0] };
    match number[0] > 0.0 && scale > 0.0 && scale.is_finite() {
        true => Ok(scale),
        false => fail(format!("is {}, not a number above 0; the file is damaged", number[0])),
    }
}
