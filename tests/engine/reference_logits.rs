//! Logits and greedy text against files computed by a plain PyTorch pass; `tests/data/README.md`
//! says how they were made.

use crate::{data, few};
use bitnetd::engine::gguf::{FileMap, Gguf};
use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::model::Layout;
use bitnetd::engine::quant::TensorType;
use bitnetd::engine::sampler::argmax;
use bitnetd::engine::session::{GenerateOptions as Generate, Session};
use bitnetd::engine::{Engine, EngineOptions, ModelFile, Source};
use serde::Deserialize;
use std::ops::ControlFlow;

#[derive(Deserialize)]
struct Reference {
    files: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    tokens: Vec<u32>,
    logits_file: String,
    greedy_16: Vec<u32>,
}

fn open(file: &str, kernel: &str, threads: usize) -> Engine {
    let layout = file.contains("i2_s-64").then_some(Layout::Blocks64);
    let options = EngineOptions { threads, kernel: Some(kernel.into()), ..EngineOptions::default() };
    let file = ModelFile::open(&Source::File(data(&format!("reference/{file}"))), layout).expect("sound");
    file.load(&options).expect("sound")
}

fn floats(file: &str) -> Vec<f32> {
    let bytes = std::fs::read(data(&format!("reference/{file}"))).expect("reference data");
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Largest difference allowed, as a share of the largest logit.
fn tolerance(file: &str) -> f32 {
    // A scale in half precision is up to 2^-12 off. That moves some activations over the edge
    // between two int8 codes, and each of them moves the logits: an independent float64 pass with
    // these scales is up to 1.9 % off too. That such files are read right is shown to the last bit
    // by `files_with_half_precision_scales_give_the_bits_of_i2_s_with_the_same_scales`.
    if half_precision_scales(file) { 3e-2 } else { 1e-3 }
}

fn half_precision_scales(file: &str) -> bool {
    ["tq1_0", "tq2_0", "f16"].iter().any(|kind| file.contains(kind))
}

fn check_logits(session: &mut Session<'_>, case: &Case, file: &str) -> f32 {
    let want = floats(&case.logits_file);
    let vocab = want.len() / case.tokens.len();
    let largest = want.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    let mut worst = 0.0f32;
    let mut rows = 0;
    let row = |position: usize, logits: &[f32]| {
        let want = &want[position * vocab..(position + 1) * vocab];
        worst = logits.iter().zip(want).fold(worst, |a, (x, y)| a.max((x - y).abs()));
        rows += 1;
    };
    session.logits(&case.tokens, row).expect("a sound prompt");
    assert_eq!(rows, case.tokens.len());
    assert!(worst <= tolerance(file) * largest, "{file} {}: {worst} of {largest}", case.logits_file);
    worst / largest
}

fn check_greedy(session: &mut Session<'_>, case: &Case, file: &str) {
    let tokens = few(6).min(16);
    let options = Generate { max_tokens: Some(tokens), ignore_eos: true, ..Generate::default() };
    let answer = session.generate(&case.tokens, &options, |_| ControlFlow::Continue(())).expect("sound");
    let parted = answer.tokens.iter().zip(&case.greedy_16).position(|(a, b)| a != b);
    let Some(step) = parted else { return assert_eq!(answer.tokens.len(), tokens) };
    // Equal wherever the reference's two best are further apart than the tolerance.
    let prompt: Vec<u32> = case.tokens.iter().chain(&case.greedy_16[..step]).copied().collect();
    let mut last = Vec::new();
    session.logits(&prompt, |_, logits| last = logits.to_vec()).expect("sound");
    let gap = last[argmax(&last) as usize] - last[case.greedy_16[step] as usize];
    let largest = last.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    assert!(gap <= 2.0 * tolerance(file) * largest, "{file}: parted at {step} with a gap of {gap}");
}

fn check(name: &str) {
    let text = std::fs::read_to_string(data(&format!("reference/{name}.json"))).expect("reference data");
    let reference: Reference = serde_json::from_str(&text).expect("reference data");
    assert!(!reference.files.is_empty() && !reference.cases.is_empty());
    for file in &reference.files {
        for kernels in Kernels::all() {
            let engine = open(file, kernels.name(), 2);
            let mut session = engine.exact_session(512);
            for case in reference.cases.iter().take(few(1)) {
                let share = check_logits(&mut session, case, file);
                check_greedy(&mut session, case, file);
                println!("{file} {} on {}: {share:.1e}", case.logits_file, kernels.name());
            }
        }
    }
}

#[test]
fn bitnet_b158_agrees_with_the_reference_in_every_tensor_type() {
    check("b158-tiny");
}

#[test]
fn bitnet_agrees_with_the_reference() {
    check("bitnet-tiny");
}

#[test]
fn ternary_llama_agrees_with_the_reference() {
    check("llama-tiny");
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let text = std::fs::read_to_string(data("reference/b158-tiny.json")).expect("reference data");
    let reference: Reference = serde_json::from_str(&text).expect("reference data");
    let bits = |threads| {
        let engine = open("b158-tiny.i2_s.gguf", Kernels::detect().name(), threads);
        let mut bits: Vec<u32> = Vec::new();
        let row = |_, logits: &[f32]| bits.extend(logits.iter().map(|x| x.to_bits()));
        engine.exact_session(512).logits(&reference.cases[1].tokens, row).expect("sound");
        bits
    };
    assert_eq!(bits(1), bits(3));
}

#[test]
fn files_with_half_precision_scales_give_the_bits_of_i2_s_with_the_same_scales() {
    for (family, kinds) in [("b158-tiny", &["tq1_0", "tq2_0", "f16"][..]), ("llama-tiny", &["tq2_0"])] {
        let want = bits(&load(FileMap::from(with_half_precision_scales(&format!("{family}.i2_s.gguf")))));
        for kind in kinds {
            let bytes = std::fs::read(data(&format!("reference/{family}.{kind}.gguf"))).expect("data");
            assert_eq!(bits(&load(FileMap::from(bytes))), want, "{family} {kind}");
        }
    }
}

fn load(map: FileMap) -> Engine {
    let file = ModelFile::parse(map, "test", None).expect("sound");
    file.load(&EngineOptions { threads: 1, ..EngineOptions::default() }).expect("sound")
}

fn bits(engine: &Engine) -> Vec<u32> {
    let tokens: Vec<u32> = (0..40).map(|i| i * 37 % 2048).collect();
    let mut bits = Vec::new();
    let row = |_, logits: &[f32]| bits.extend(logits.iter().map(|x| x.to_bits()));
    engine.session(64).logits(&tokens, row).expect("sound");
    bits
}

/// An I2_S file with every scale rounded as TQ and F16 files have it.
fn with_half_precision_scales(file: &str) -> Vec<u8> {
    let mut bytes = std::fs::read(data(&format!("reference/{file}"))).expect("data");
    let parsed = Gguf::parse(FileMap::from(bytes.clone())).expect("sound");
    for tensor in parsed.tensors().iter().filter(|tensor| tensor.kind == TensorType::I2S) {
        let at = tensor.bytes.end - 32;
        let scale = f32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let rounded = half::f16::from_f32(scale).to_f32();
        bytes[at..at + 4].copy_from_slice(&rounded.to_le_bytes());
    }
    bytes
}
