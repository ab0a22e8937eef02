//! GGUF files converted to other formats, and back.

use super::{engine, options};
use crate::{data, few};
use bitnetd::engine::Engine;
use bitnetd::engine::convert::{ConvertError, ConvertOptions, ConvertPlan, TableFormat, WeightFormat};
use bitnetd::engine::gguf::{FileMap, Gguf, GgufDraft, NewValue};
use bitnetd::engine::model::Layout;
use bitnetd::engine::quant::TensorType;
use std::io::Write;

fn reference(name: &str) -> Vec<u8> {
    std::fs::read(data(&format!("reference/{name}.gguf"))).expect("reference data")
}

fn plan(bytes: &[u8], options: &ConvertOptions) -> ConvertPlan {
    let file = Gguf::parse(FileMap::from(bytes.to_vec())).expect("a sound file");
    ConvertPlan::file(&file, options).expect("a sound file")
}

fn converted(bytes: &[u8], options: &ConvertOptions) -> Vec<u8> {
    plan(bytes, options).write(Vec::new()).expect("a sound file")
}

fn with(weights: WeightFormat) -> ConvertOptions {
    ConvertOptions { weights, ..options() }
}

fn bits(engine: &Engine) -> Vec<u32> {
    let tokens: Vec<u32> = (0..20).map(|i| i * 37 % 2048).collect();
    let mut bits = Vec::new();
    let row = |_, logits: &[f32]| bits.extend(logits.iter().map(|x| x.to_bits()));
    engine.exact_session(32).logits(&tokens, row).expect("sound");
    bits
}

/// A file with its tensors' data put through `change`, and what `more` adds.
fn changed(
    bytes: &[u8],
    metadata: impl Fn(&mut GgufDraft),
    change: impl Fn(&str, TensorType, &[u8]) -> Vec<u8>,
    more: &[(&str, &str)],
) -> Vec<u8> {
    let file = Gguf::parse(FileMap::from(bytes.to_vec())).expect("sound");
    let mut draft = GgufDraft::default();
    file.keys().for_each(|key| draft.copy(&file, key));
    metadata(&mut draft);
    let mut tensors: Vec<(&str, &str)> =
        file.tensors().iter().map(|t| (t.name.as_str(), t.name.as_str())).collect();
    tensors.extend(more);
    let of = |name: &str| file.tensor(name).expect("there");
    for (name, from) in &tensors {
        draft.tensor(name, of(from).kind, &of(from).dims).expect("sound");
    }
    let mut writer = draft.begin(Vec::new()).expect("into memory");
    for (name, from) in &tensors {
        writer.write_all(&change(name, of(from).kind, &file.data(of(from)))).expect("as long as it was");
        writer.end_tensor().expect("as long as it was");
    }
    writer.finish().expect("complete")
}

fn same(_: &str, _: TensorType, data: &[u8]) -> Vec<u8> {
    data.to_vec()
}

#[test]
fn a_file_in_the_best_form_is_converted_into_itself() {
    for name in ["b158-tiny.i2_s", "bitnet-tiny.i2_s", "llama-tiny.i2_s"] {
        let bytes = reference(name);
        assert!(converted(&bytes, &options()) == bytes, "{name}");
    }
}

#[test]
fn ternary_blocks_of_llama_cpp_and_back_give_the_same_bytes_and_logits() {
    let names = ["b158-tiny.i2_s", "bitnet-tiny.i2_s", "llama-tiny.i2_s"];
    for name in names.into_iter().take(few(1)) {
        let bytes = reference(name);
        let want = bits(&engine(bytes.clone()));
        for weights in [WeightFormat::Tq1, WeightFormat::Tq2] {
            let there = converted(&bytes, &with(weights));
            assert!(bits(&engine(there.clone())) == want, "{name} {weights:?}");
            assert!(converted(&there, &options()) == bytes, "{name} {weights:?}");
        }
    }
}

#[test]
fn a_scale_in_half_precision_stays_in_its_blocks_and_another_goes_beside_them() {
    let scales = |bytes: &[u8]| {
        let file = Gguf::parse(FileMap::from(bytes.to_vec())).expect("sound");
        file.tensors().iter().filter(|tensor| tensor.name.ends_with(".scale")).count()
    };
    let from_tq1 = converted(&reference("b158-tiny.tq1_0"), &with(WeightFormat::Tq2));
    let data = |bytes: &[u8]| {
        let file = Gguf::parse(FileMap::from(bytes.to_vec())).expect("sound");
        file.tensors()
            .iter()
            .map(|tensor| (tensor.name.clone(), file.data(tensor).to_vec()))
            .collect::<Vec<_>>()
    };
    assert!(data(&from_tq1) == data(&reference("b158-tiny.tq2_0")), "the bytes of gguf-py");
    // Seven matrices in each of two layers, whose scales are means of many numbers.
    assert_eq!(scales(&converted(&reference("b158-tiny.i2_s"), &with(WeightFormat::Tq2))), 14);
}

#[test]
fn every_form_of_ternary_weights_becomes_i2_s_with_the_same_logits() {
    let forms = ["b158-tiny.tq1_0", "b158-tiny.tq2_0", "b158-tiny.f16", "llama-tiny.tq2_0"];
    for name in forms.into_iter().take(few(1)) {
        let bytes = reference(name);
        let i2s = converted(&bytes, &options());
        let file = Gguf::parse(FileMap::from(i2s.clone())).expect("sound");
        let matrix = file.tensor("blk.0.ffn_down.weight").expect("there");
        assert_eq!(matrix.kind, TensorType::I2S, "{name}");
        assert!(bits(&engine(i2s)) == bits(&engine(bytes)), "{name}");
    }
}

#[test]
fn the_other_layouts_of_i2_s_become_the_official_one() {
    let want = reference("b158-tiny.i2_s");
    let from_64 = ConvertOptions { from: Layout::Blocks64, ..options() };
    assert!(converted(&reference("b158-tiny.i2_s-64"), &from_64) == want);
    let from_1x4 = ConvertOptions { from: Layout::Rows4, ..options() };
    assert!(converted(&in_rows_of_four(&want), &from_1x4) == want);
}

/// The same model in the layout 1x4, written here by its definition: byte `row / 4 * cols + col`.
fn in_rows_of_four(bytes: &[u8]) -> Vec<u8> {
    let file = Gguf::parse(FileMap::from(bytes.to_vec())).expect("sound");
    let cols = |name: &str| file.tensor(name).expect("there").dims[0];
    changed(
        bytes,
        |_| {},
        |name, kind, data| {
            let mut out = data.to_vec();
            if kind == TensorType::I2S {
                let (codes, cols) = (data.len() - 32, cols(name));
                out[..codes].fill(0);
                for at in 0..codes * 4 {
                    let (row, col) = (at / cols, at % cols);
                    let code = data[at / 128 * 32 + at % 32] >> (6 - 2 * (at % 128 / 32)) & 3;
                    out[row / 4 * cols + col] |= code << (6 - 2 * (row % 4));
                }
            }
            out
        },
        &[],
    )
}

#[test]
fn a_head_that_is_the_embedding_once_more_is_left_out() {
    let want = reference("b158-tiny.i2_s");
    let april = changed(&want, |_| {}, same, &[("output.weight", "token_embd.weight")]);
    let plan = plan(&april, &options());
    assert!(plan.notes().iter().any(|note| note.contains("output.weight")), "{:?}", plan.notes());
    assert!(plan.write(Vec::new()).expect("sound") == want);
    // By the rule of the engine, which reads each 61st row: what it would not read is not kept.
    let other_row = |name: &str, _: TensorType, data: &[u8]| {
        let mut data = data.to_vec();
        if name == "output.weight" {
            data[600] ^= 1;
        }
        data
    };
    let nearly = changed(&want, |_| {}, other_row, &[("output.weight", "token_embd.weight")]);
    assert!(!plan_has(&nearly, "output.weight"));
    // One that is another stays.
    let llama = reference("llama-tiny.i2_s");
    assert!(plan_has(&llama, "output.weight"));
}

fn plan_has(bytes: &[u8], name: &str) -> bool {
    plan(bytes, &options()).draft().tensors().iter().any(|tensor| tensor.name == name)
}

#[test]
fn known_errors_of_the_official_file_are_repaired() {
    let official = |draft: &mut GgufDraft| {
        draft.remove("tokenizer.ggml.pre");
        draft.set(
            "tokenizer.chat_template",
            "{% for m in messages %}Human: {{ m }}\n\nBITNETAssistant: {% endfor %}",
        );
    };
    let sound = reference("b158-tiny.i2_s");
    let plan = plan(&changed(&sound, official, same, &[]), &options());
    assert_eq!(plan.notes().len(), 2, "{:?}", plan.notes());
    let repaired = Gguf::parse(FileMap::from(plan.write(Vec::new()).expect("sound"))).expect("sound");
    let sound = Gguf::parse(FileMap::from(sound)).expect("sound");
    for key in ["tokenizer.ggml.pre", "tokenizer.chat_template"] {
        assert_eq!(repaired.text(key).expect("a text"), sound.text(key).expect("a text"));
    }
    // Another family's template is its own affair.
    const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let llama = reference("llama-tiny.i2_s");
    let other = changed(&llama, |draft| draft.set("tokenizer.chat_template", TEMPLATE), same, &[]);
    assert!(super::gguf_source::plan(&other, &options()).notes().is_empty());
}

#[test]
fn a_converters_word_for_words_it_does_not_know_is_repaired() {
    let sound = reference("b158-tiny.i2_s");
    let unknown = changed(&sound, |draft| draft.set("tokenizer.ggml.pre", "gpt-2"), same, &[]);
    assert!(converted(&unknown, &options()) == sound);
}

#[test]
fn heads_are_written_in_fewer_bits_and_the_logits_stay_near() {
    for (head, kind, most) in
        [(TableFormat::Q8_0, TensorType::Q8_0, 0.08), (TableFormat::Q6K, TensorType::Q6K, 0.1)]
    {
        for name in ["b158-tiny.i2_s", "llama-tiny.i2_s"].into_iter().take(few(1)) {
            let bytes = reference(name);
            let small = converted(&bytes, &ConvertOptions { head: Some(head), ..options() });
            let file = Gguf::parse(FileMap::from(small.clone())).expect("sound");
            let tables =
                ["token_embd.weight", "output.weight"].into_iter().filter_map(|name| file.tensor(name));
            assert!(tables.clone().all(|table| table.kind == kind));
            assert!(small.len() < bytes.len());
            let off = off(&engine(small), &engine(bytes));
            assert!(off > 0.0 && off < most, "{name} {head:?}: {off}");
        }
    }
    // Nothing is asked for: not a bit changes.
    let small = converted(
        &reference("b158-tiny.i2_s"),
        &ConvertOptions { head: Some(TableFormat::Q8_0), ..options() },
    );
    assert!(converted(&small, &options()) == small);
}

/// Root of the mean square difference of logits, as a share of that of the logits.
fn off(one: &Engine, other: &Engine) -> f64 {
    let numbers = |engine| bits(engine).into_iter().map(|bits| f64::from(f32::from_bits(bits)));
    let (one, other): (Vec<f64>, Vec<f64>) = (numbers(one).collect(), numbers(other).collect());
    let square = |sum: f64, x: f64| sum + x * x;
    let difference = one.iter().zip(&other).map(|(a, b)| a - b).fold(0.0, square);
    (difference / other.into_iter().fold(0.0, square)).sqrt()
}

#[test]
fn metadata_is_carried_over_whatever_it_is() {
    let extra = |draft: &mut GgufDraft| {
        draft.set("general.note", "kept");
        draft.set("some.shorts", NewValue::Array(3, 2, vec![1, 2, 3, 4]));
    };
    let source = changed(&reference("b158-tiny.i2_s"), extra, same, &[]);
    let result = Gguf::parse(FileMap::from(converted(&source, &with(WeightFormat::Tq2)))).expect("sound");
    let source = Gguf::parse(FileMap::from(source)).expect("sound");
    assert!(result.keys().eq(source.keys()));
    let differs = |key: &&str| result.value_bytes(key) != source.value_bytes(key);
    assert_eq!(source.keys().filter(differs).collect::<Vec<_>>(), ["general.file_type"]);
}

#[track_caller]
fn refused(bytes: &[u8], wanted: &[&str]) {
    let file = Gguf::parse(FileMap::from(bytes.to_vec())).expect("damaged only in its data");
    let result = ConvertPlan::file(&file, &options())
        .map_err(ConvertError::from)
        .and_then(|plan| plan.write(Vec::new()));
    let Err(ConvertError::Source(error)) = result else { panic!("not refused for its source: {wanted:?}") };
    let message = error.to_string();
    assert!(wanted.iter().all(|wanted| message.contains(wanted)) && !message.contains('\n'), "{message}");
}

#[test]
fn a_model_that_this_engine_would_not_run_is_refused_before_anything_is_written() {
    let early = |bytes: Vec<u8>, wanted: &str| {
        let file = Gguf::parse(FileMap::from(bytes)).expect("sound");
        let message = ConvertPlan::file(&file, &options()).expect_err("no BitNet model").to_string();
        assert!(message.contains(wanted) && !message.contains('\n'), "{message}");
    };
    let dense = |name: &str, kind: TensorType, data: &[u8]| {
        let mut data = data.to_vec();
        if name.starts_with("blk.") && kind == TensorType::F16 {
            data[..4].copy_from_slice(&[0x12, 0x34, 0x34, 0x38]);
        }
        data
    };
    early(changed(&reference("b158-tiny.f16"), |_| {}, dense, &[]), "not a BitNet model");
    let bias = [("blk.1.attn_q.bias", "blk.1.attn_norm.weight")];
    let sound = reference("b158-tiny.i2_s");
    early(changed(&sound, |_| {}, same, &bias), "tensor blk.1.attn_q.bias: is not part of");
    let layers = |draft: &mut GgufDraft| draft.set("bitnet-b1.58.block_count", NewValue::U32(3));
    early(changed(&sound, layers, same, &[]), "tensor blk.2.attn_norm.weight: missing");
    let norm = |name: &str, _: TensorType, data: &[u8]| match name {
        "output_norm.weight" => vec![0xff; data.len()],
        _ => data.to_vec(),
    };
    early(changed(&sound, |_| {}, norm, &[]), "tensor output_norm.weight: element 0 is not a number");
}

#[test]
fn matrices_that_cannot_be_read_are_refused_by_name() {
    let name = "blk.1.ffn_up.weight";
    let damage = |of: &str, at: usize, with: [u8; 4]| {
        let damaged = |tensor: &str, _: TensorType, data: &[u8]| {
            let mut data = data.to_vec();
            let at = if at == usize::MAX { data.len() - 32 } else { at };
            if tensor == name {
                data[at..at + 4].copy_from_slice(&with);
            }
            data
        };
        changed(&reference(of), |_| {}, damaged, &[])
    };
    refused(&damage("b158-tiny.i2_s", 7, [0xff; 4]), &[name, "code 3"]);
    refused(&damage("b158-tiny.i2_s", usize::MAX, [0; 4]), &[name, "scale is 0"]);
    refused(&damage("b158-tiny.i2_s", usize::MAX, [0xff; 4]), &[name, "not a number"]);
    refused(&damage("b158-tiny.f16", 4096, [0x12, 0x34, 0x12, 0x34]), &[name, "row 8", "not ternary"]);
    refused(&damage("b158-tiny.tq2_0", 64, [0x11, 0x22, 0, 0]), &[name, "scale"]);
}
