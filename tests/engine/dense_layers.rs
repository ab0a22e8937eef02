//! Matrices of layers that are not ternary, in every format: multiplied as floats, and never copied.

use crate::fixtures::{self, File, VOCAB, Weights};
use crate::formats;
use crate::{allocations, data};
use bitnetd::engine::error::LoadError;
use bitnetd::engine::gguf::{FileMap, Gguf};
use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::quant::{RowFormat, TensorType};
use bitnetd::engine::session::{GenerateOptions as Generate, Step};
use bitnetd::engine::{Engine, EngineOptions, ModelFile};
use bitnetd::random::Lcg;
use std::collections::HashMap;
use std::ops::ControlFlow;

/// Width of the model: one block of the largest format.
const DIM: usize = 256;
const EPSILON: f64 = 1e-5;

/// ggml's numbers of F32, F16, BF16, Q8_0, Q6_K, Q4_K and Q4_0.
const FORMATS: [u32; 7] = [0, 1, 30, 8, 14, 12, 2];

/// The matrices of the layer; `attn_q` is left ternary.
const MATRICES: [(&str, usize); 6] = [
    ("attn_k", DIM / 2),
    ("attn_v", DIM / 2),
    ("attn_output", DIM),
    ("ffn_gate", DIM),
    ("ffn_up", DIM),
    ("ffn_down", DIM),
];

/// Numbers that are the same on every machine, between -1 and 1.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut numbers = Lcg::new(seed);
    (0..len).map(|_| numbers.fraction() * 2.0 - 1.0).collect()
}

/// Rows of some numbers in the format of a tensor type.
fn rows(id: u32, seed: u64, rows: usize) -> Vec<u8> {
    let x = numbers(seed, rows * DIM);
    match numbers_of(id).writer() {
        Some(write) => {
            let mut bytes = vec![0; numbers_of(id).row_bytes(x.len()).expect("whole blocks")];
            write(&mut bytes, &x);
            bytes
        }
        None => blocks(id, seed, rows),
    }
}

/// Blocks that this engine does not write: those of the test data with scales of usual size.
fn blocks(id: u32, seed: u64, rows: usize) -> Vec<u8> {
    let (name, size, len) = if id == 2 { ("q4_0", 18, 32) } else { ("q4_k", 144, 256) };
    let bytes = formats::bytes(&format!("{name}.blocks"));
    let usual: Vec<&[u8]> = bytes.chunks_exact(size).skip(16).collect();
    let pick = |x: &f32| usual[((x + 1.0) * 1000.0) as usize % usual.len()];
    numbers(seed, rows * DIM / len).iter().flat_map(pick).copied().collect()
}

fn numbers_of(id: u32) -> RowFormat {
    RowFormat::of(TensorType::from_id(id).expect("is read")).expect("holds numbers")
}

/// A model of one layer in which all matrices but one are dense, the first in format `first` of
/// [`FORMATS`] and the others in the formats behind it; embedding and head likewise.
fn model(first: usize) -> File {
    let mut file = fixtures::model(DIM, Weights::I2S);
    let id = |at: usize| FORMATS[(first + at) % FORMATS.len()];
    for (at, (name, count)) in MATRICES.into_iter().enumerate() {
        let tensor = file.tensor(&format!("blk.0.{name}.weight"));
        (tensor.kind, tensor.data) = (id(at), rows(id(at), at as u64 + 1, count));
    }
    let embedding = file.tensor("token_embd.weight");
    (embedding.kind, embedding.data) = (id(6), rows(id(6), 8, VOCAB));
    file.add("output.weight", id(7), &[DIM as u64, VOCAB as u64], rows(id(7), 9, VOCAB));
    file
}

fn open(file: &File) -> ModelFile {
    parse(file).expect("sound")
}

fn parse(file: &File) -> Result<ModelFile, LoadError> {
    ModelFile::parse(FileMap::from(file.bytes()), "m.gguf", None)
}

fn load(file: &File, threads: usize) -> Engine {
    open(file).load(&EngineOptions { threads, ..EngineOptions::default() }).expect("sound")
}

fn logits(engine: &Engine, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    engine.exact_session(64).logits(tokens, |_, logits| rows.push(logits.to_vec())).expect("sound");
    rows
}

/// The matrices of a file as numbers, and the pass of one token through them in f64, written as the
/// paper has it. At the first position attention is the value itself, and nothing is rotated.
struct Plain(HashMap<String, Vec<f64>>);

impl Plain {
    fn of(file: &File) -> Plain {
        let tensors = file.tensors.iter().filter_map(|tensor| {
            let kind = RowFormat::of(TensorType::from_id(tensor.kind).ok()?)?;
            let mut x = vec![0.0; tensor.dims.iter().product::<u64>() as usize];
            kind.read(&tensor.data, &mut x);
            let name = String::from_utf8_lossy(&tensor.name).replace("blk.0.", "").replace(".weight", "");
            Some((name, x.into_iter().map(f64::from).collect()))
        });
        Plain(tensors.collect())
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + EPSILON).sqrt();
        x.iter().zip(&self.0[name]).map(|(x, weight)| x * scale * weight).collect()
    }

    fn times(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.0[name].chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    }

    fn logits(&self, token: usize) -> Vec<f64> {
        let mut x = self.0["token_embd"][token * DIM..(token + 1) * DIM].to_vec();
        let value = self.times("attn_v", &self.norm("attn_norm", &x));
        // Two heads share the one key and value head.
        let attention = self.norm("attn_sub_norm", &value.repeat(2));
        add(&mut x, &self.times("attn_output", &attention));
        let h = self.norm("ffn_norm", &x);
        let (gate, up) = (self.times("ffn_gate", &h), self.times("ffn_up", &h));
        let product: Vec<f64> = gate.iter().zip(&up).map(|(gate, up)| gate.max(0.0).powi(2) * up).collect();
        add(&mut x, &self.times("ffn_down", &self.norm("ffn_sub_norm", &product)));
        self.times("output", &self.norm("output_norm", &x))
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

#[test]
fn every_format_in_every_place_agrees_with_a_plain_pass_in_f64() {
    for first in 0..FORMATS.len() {
        let file = model(first);
        let plain = Plain::of(&file);
        for kernels in Kernels::all() {
            let options =
                EngineOptions { threads: 1, kernel: Some(kernels.name().into()), ..EngineOptions::default() };
            let engine = open(&file).load(&options).expect("sound");
            assert_eq!(engine.model().float_matrices(), MATRICES.len());
            for token in [0, 77, VOCAB - 1] {
                let (ours, want) = (logits(&engine, &[token as u32]), plain.logits(token));
                let largest = want.iter().fold(0.0f64, |a, x| a.max(x.abs()));
                let worst =
                    ours[0].iter().zip(&want).fold(0.0f64, |a, (x, y)| a.max((f64::from(*x) - y).abs()));
                assert!(worst < 1e-4 * largest, "{first} {token} {}: {worst} of {largest}", kernels.name());
            }
        }
    }
}

#[test]
fn a_scale_beside_a_dense_matrix_multiplies_it() {
    // A power of two rounds nothing: the bits are those of a matrix that has it inside.
    let with = |inside: f32, beside: f32| {
        let mut file = model(0);
        let up = file.tensor("blk.0.ffn_up.weight");
        up.kind = 0;
        up.data = numbers(5, DIM * DIM).iter().flat_map(|x| (x * inside).to_le_bytes()).collect();
        file.add("blk.0.ffn_up.scale", 0, &[1], beside.to_le_bytes().to_vec());
        logits(&load(&file, 1), &[5, 6])
    };
    assert_eq!(with(-0.5, 1.0), with(1.0, -0.5));
    assert_ne!(with(1.0, 1.0), with(1.0, -0.5));
}

#[test]
fn threads_and_batches_change_no_bit_of_dense_matrices() {
    let tokens: Vec<u32> = (0..20).map(|i| i * 13 % VOCAB as u32).collect();
    for first in 0..FORMATS.len() {
        let file = model(first);
        let whole = logits(&load(&file, 1), &tokens);
        assert_eq!(whole, logits(&load(&file, 3), &tokens), "{first}: other threads");
        let engine = load(&file, 1);
        for end in [1, 2, 7] {
            assert_eq!(logits(&engine, &tokens[..end])[end - 1], whole[end - 1], "{first}: batch of {end}");
        }
    }
}

#[test]
fn dense_matrices_are_planned_as_mapped_and_ternary_ones_as_copied() {
    let file = model(0);
    let plan = open(&file).footprint();
    assert_eq!(plan.copied, 0);
    assert_eq!(plan.mapped, file.tensors.iter().map(|tensor| tensor.data.len()).sum::<usize>());
    let mut ternary = file;
    let down = ternary.tensor("blk.0.ffn_down.weight");
    let size = down.data.len();
    (down.kind, down.data) =
        (0, [0.5f32, 0.0, -0.5, 0.5].map(f32::to_le_bytes).concat().repeat(DIM * DIM / 4));
    let after = open(&ternary).footprint();
    assert_eq!((after.copied, after.mapped), (DIM * DIM / 4, plan.mapped - size));
    assert_eq!(load(&ternary, 1).model().float_matrices(), MATRICES.len() - 1);
}

#[test]
fn loading_and_decoding_dense_matrices_makes_no_copy_of_them() {
    let file = model(3);
    let bytes = file.bytes();
    let parsed = ModelFile::parse(FileMap::from(bytes), "m.gguf", None).expect("sound");
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    let (engine, largest) = allocations::largest(|| parsed.load(&options).expect("sound"));
    // The smallest of them has 18 KB, the vocabulary's tables less.
    assert!(largest < 16 << 10, "{largest} bytes at once");
    let mut session = engine.session(64);
    let mut steps = Vec::new();
    let options = Generate { max_tokens: Some(8), ignore_eos: true, ..Generate::default() };
    let step = |_: Step<'_>| {
        steps.push(allocations::largest_so_far());
        allocations::forget();
        ControlFlow::Continue(())
    };
    session.generate(&[1, 2, 3], &options, step).expect("sound");
    assert!(steps.len() >= 4 && steps[2..].iter().all(|largest| *largest == 0), "{steps:?}");
}

fn error_of(file: &File) -> LoadError {
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    parse(file).and_then(|file| file.load(&options)).map(drop).expect_err("must not load")
}

#[test]
fn a_model_without_any_ternary_matrix_is_refused() {
    for (first, id) in FORMATS.into_iter().enumerate() {
        let mut file = model(first);
        let q = file.tensor("blk.0.attn_q.weight");
        (q.kind, q.data) = (id, rows(id, 11, DIM));
        let message = error_of(&file).to_string();
        assert!(
            message.contains("is not ternary, nor is any other matrix of a layer: not a BitNet"),
            "{message}"
        );
    }
}

#[test]
fn a_dense_matrix_that_holds_no_number_is_refused_with_its_place() {
    // F32 and Q8_0: a number, and the scale of a block.
    for (id, at, bytes, place) in [
        (0, 4 * (3 * DIM + 5), &f32::NAN.to_le_bytes()[..], "row 3: column 5 is not a number"),
        (8, 34 * (2 * DIM / 32 + 1), &[0, 0x7c], "row 2: column 32 is not a number"),
    ] {
        let mut file = model(0);
        let down = file.tensor("blk.0.ffn_down.weight");
        (down.kind, down.data) = (id, rows(id, 4, DIM));
        down.data[at..at + bytes.len()].copy_from_slice(bytes);
        let message = error_of(&file).to_string();
        assert!(message.contains(&format!("tensor blk.0.ffn_down.weight: {place}")), "{message}");
    }
}

/// A reference file with one of its F16 matrices changed by `change`.
fn with_changed(name: &str, mut change: impl FnMut(usize, f32) -> f32) -> Engine {
    let mut bytes = std::fs::read(data("reference/b158-tiny.f16.gguf")).expect("reference data");
    let parsed = Gguf::parse(FileMap::from(bytes.clone())).expect("sound");
    let range = parsed.tensor(name).expect("every model has it").bytes.clone();
    for (at, number) in bytes[range].as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let x = change(at, half::f16::from_le_bytes(*number).to_f32());
        *number = half::f16::from_f32(x).to_le_bytes();
    }
    let file = ModelFile::parse(FileMap::from(bytes), "m.gguf", None).expect("sound");
    file.load(&EngineOptions { threads: 2, ..EngineOptions::default() }).expect("sound")
}

/// Largest difference of logits as a share of the largest logit.
fn difference(a: &Engine, b: &Engine) -> f32 {
    let tokens: Vec<u32> = (0..30).map(|i| i * 37 % 2048).collect();
    let (a, b) = (logits(a, &tokens).concat(), logits(b, &tokens).concat());
    let largest = a.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    a.iter().zip(&b).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

#[test]
fn a_reference_model_with_one_matrix_made_dense_differs_as_much_as_its_numbers_do() {
    for name in ["blk.0.attn_q.weight", "blk.1.attn_output.weight", "blk.1.ffn_down.weight"] {
        let ternary = with_changed(name, |_, x| x);
        // One number a thousandth larger: the rest is as it was, but its input is no longer rounded.
        let almost = with_changed(name, |at, x| if at == 0 { 1e-3 } else { x });
        let other = with_changed(name, |at, x| x * [1.0, -0.5, 0.25][at % 3]);
        assert_eq!([&ternary, &almost, &other].map(|engine| engine.model().float_matrices()), [0, 1, 1]);
        let (near, far) = (difference(&ternary, &almost), difference(&ternary, &other));
        println!("{name}: {near:.1e} almost the same, {far:.1e} another");
        assert!(near > 0.0 && near < 5e-2, "{name}: {near}");
        assert!(far > 4.0 * near, "{name}: {far} beside {near}");
    }
}
