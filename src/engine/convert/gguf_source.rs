//! Plans the conversion of another GGUF file: its metadata is copied and repaired, its matrices are rewritten in
//! another format, and the rest is copied.

use super::float_table::{self, FloatTable};
use super::ternary_matrix::{MatrixSource, TernaryMatrix};
use super::{Content, ConvertOptions, ConvertPlan};
use crate::engine::error::LoadError;
use crate::engine::gguf::{Gguf, NewValue, TensorInfo};
use crate::engine::model::{self, EMBEDDING, HEAD, Shape};
use crate::engine::quant::{RowFormat, is_ternary};
use crate::engine::tokenizer::Tokenizer;
use std::sync::OnceLock;

pub(super) fn plan(source: &Gguf, options: &ConvertOptions) -> Result<ConvertPlan, LoadError> {
    // What this engine could not run is refused now, before gigabytes are written.
    let shape = Shape::read(source)?;
    model::check_tensors(source, &shape)?;
    let mut plan = ConvertPlan::new();
    source.keys().for_each(|key| plan.draft.copy(source, key));
    plan.draft.set("general.file_type", NewValue::U32(options.weights.file_type()));
    repair(source, &mut plan)?;
    for tensor in source.tensors() {
        add_tensor(source, tensor, options, &mut plan)?;
    }
    Ok(plan)
}

fn add_tensor(
    source: &Gguf,
    tensor: &TensorInfo,
    options: &ConvertOptions,
    plan: &mut ConvertPlan,
) -> Result<(), LoadError> {
    let name = tensor.name.as_str();
    if name == HEAD && model::has_duplicate_head(source) {
        plan.notes.push(format!("{HEAD} is {EMBEDDING} once more, left out"));
        return Ok(());
    }
    if [EMBEDDING, HEAD].contains(&name) {
        return add_table(source, tensor, options, plan);
    }
    if is_matrix(source, tensor) {
        let part = name.strip_suffix(".weight").expect("`is_matrix` checks the suffix");
        return plan.add_matrix(part, matrix(source, tensor, options)?, options.weights.kind());
    }
    // The scale of a matrix is converted together with it.
    let of = name.strip_suffix(".scale").and_then(|part| source.tensor(&format!("{part}.weight")));
    match of.filter(|tensor| is_matrix(source, tensor)) {
        Some(_) => Ok(()),
        None => plan.add_tensor(name, tensor.kind, &tensor.dims, Content::Bytes(source.data(tensor))),
    }
}

/// Whether a tensor is a ternary matrix of a layer. Other matrices are copied.
fn is_matrix(source: &Gguf, tensor: &TensorInfo) -> bool {
    let layer = tensor.name.starts_with("blk.") && tensor.name.ends_with(".weight");
    layer
        && tensor.dims.len() == 2
        && RowFormat::of(tensor.kind)
            .is_none_or(|kind| is_ternary(&source.data(tensor), kind, tensor.dims[0]))
}

fn add_table(
    source: &Gguf,
    tensor: &TensorInfo,
    options: &ConvertOptions,
    plan: &mut ConvertPlan,
) -> Result<(), LoadError> {
    let data = source.data(tensor);
    let from = RowFormat::of(tensor.kind).filter(|_| tensor.dims.len() == 2);
    let from =
        from.ok_or_else(|| LoadError::tensor(&tensor.name, "is no table of numbers; the file is damaged"))?;
    // Copied where nothing is asked for, even where fewer bits would do.
    let to =
        if options.head.is_some() { float_table::choose_format(&data, from, options.head) } else { from };
    plan.add_table(
        &tensor.name,
        FloatTable { name: tensor.name.clone(), data, from, cols: tensor.dims[0], to },
    )
}

fn matrix(source: &Gguf, tensor: &TensorInfo, options: &ConvertOptions) -> Result<TernaryMatrix, LoadError> {
    let scale = tensor.name.replace(".weight", ".scale");
    let factor = match source.tensor(&scale) {
        None => 1.0,
        Some(scale) => one_number(source, scale)?,
    };
    let data = source.data(tensor);
    Ok(TernaryMatrix {
        name: tensor.name.clone(),
        source: MatrixSource::Tensor { data, kind: tensor.kind, layout: options.from, factor },
        rows: tensor.dims[1],
        cols: tensor.dims[0],
        rope_head: None,
        factor: OnceLock::new(),
    })
}

fn one_number(source: &Gguf, tensor: &TensorInfo) -> Result<f32, LoadError> {
    let fail = |message: &str| LoadError::tensor(&tensor.name, message);
    let kind = RowFormat::of(tensor.kind).filter(|_| tensor.dims == [1]);
    let kind = kind.ok_or_else(|| fail("is not one plain number; the file is damaged"))?;
    let mut number = [0.0];
    kind.read(&source.data(tensor), &mut number);
    match number {
        [number] if f32::is_finite(number) => Ok(number),
        _ => Err(fail("is not a number; the file is damaged")),
    }
}

/// Repairs what published files are known to have wrong or missing.
fn repair(source: &Gguf, plan: &mut ConvertPlan) -> Result<(), LoadError> {
    // All BitNet b1.58 models share this vocabulary.
    if !Tokenizer::has_llama3_vocabulary(source)? {
        return Ok(());
    }
    let key = "tokenizer.ggml.pre";
    let pre = source.text(key)?;
    if source.text("tokenizer.ggml.model")? == Some("gpt2") && matches!(pre, None | Some("gpt-2")) {
        plan.draft.set(key, "llama-bpe");
        plan.notes.push(format!("{key} was {}, set to llama-bpe", pre.unwrap_or("missing")));
    }
    let key = "tokenizer.chat_template";
    let Some(template) = Tokenizer::template_for(source)? else { return Ok(()) };
    plan.draft.set(key, template);
    plan.notes.push(match source.text(key)? {
        None => format!("{key} was missing, set to BitNet's"),
        Some(_) => format!("{key} was not what the model was trained on, replaced"),
    });
    Ok(())
}
