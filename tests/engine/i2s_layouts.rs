//! The three layouts that share the type I2_S, detected by how well the model predicts text.

use crate::{data, few};
use bitnetd::engine::gguf::{FileMap, Gguf};
use bitnetd::engine::model::Layout;
use bitnetd::engine::quant::{self, TensorType};
use bitnetd::engine::session::GenerateOptions as Generate;
use bitnetd::engine::tokenizer::{ChatRole, Turn};
use bitnetd::engine::{Engine, EngineOptions, ModelFile};
use std::ops::{ControlFlow, Range};

fn options() -> EngineOptions {
    EngineOptions { threads: 1, ..EngineOptions::default() }
}

fn built_in() -> Vec<u8> {
    std::fs::read("models/home-intents.i2_s.gguf").expect("the model of the repository")
}

/// Where a file's I2_S codes are, with rows and columns.
fn matrices(bytes: &[u8]) -> Vec<(Range<usize>, usize, usize)> {
    let file = Gguf::parse(FileMap::from(bytes.to_vec())).expect("sound");
    let ternary = file.tensors().iter().filter(|tensor| tensor.kind == TensorType::I2S);
    ternary
        .map(|tensor| {
            let codes = tensor.bytes.start..tensor.bytes.end - quant::I2S_TAIL;
            (codes, tensor.dims[1], tensor.dims[0])
        })
        .collect()
}

/// The same model as another writer would have saved it.
pub fn saved_in(layout: Layout) -> Vec<u8> {
    let mut bytes = built_in();
    for (range, rows, cols) in matrices(&bytes) {
        let official = bytes[range.clone()].to_vec();
        let codes = &mut bytes[range];
        codes.fill(0);
        for (row, line) in official.chunks_exact(quant::packed_row(cols)).enumerate().take(rows) {
            for col in 0..cols {
                let (byte, shift) = place(layout, row, col, cols);
                codes[byte] |= quant::code(line, col) << shift;
            }
        }
    }
    bytes
}

/// Byte and shift of a code. Source: the three writers of bitnet.cpp.
fn place(layout: Layout, row: usize, col: usize, cols: usize) -> (usize, usize) {
    let at = row * cols + col;
    match layout {
        Layout::Blocks128 => (at / 128 * 32 + at % 32, 6 - 2 * (at % 128 / 32)),
        Layout::Blocks64 => (at / 64 * 16 + at % 16, 6 - 2 * (at % 64 / 16)),
        Layout::Rows4 => (row / 4 * cols + col, 6 - 2 * (row % 4)),
    }
}

fn load(bytes: Vec<u8>, layout: Option<Layout>) -> Result<Engine, String> {
    let file = ModelFile::parse(FileMap::from(bytes), "m.gguf", layout).expect("sound");
    file.load(&options()).map_err(|error| error.to_string())
}

fn answer(engine: &Engine) -> String {
    let turn = Turn { role: ChatRole::User, text: "turn on the kitchen lights" };
    let prompt = engine.tokenizer().prompt_chat(&[turn]).expect("a form for it");
    let options = Generate { max_tokens: Some(40), ..Generate::default() };
    let mut session = engine.session(128);
    session.generate(&prompt, &options, |_| ControlFlow::Continue(())).expect("fits").text
}

const RIGHT: &str = r#"{"intent":"HassTurnOn","slots":{"domain":"light","area":"kitchen"}}"#;

#[test]
fn a_trained_model_gives_the_right_text_whichever_layout_it_was_saved_in() {
    for layout in Layout::ALL.into_iter().rev().take(few(1)) {
        let engine = load(saved_in(layout), None).expect("one layout predicts the text");
        assert_eq!(answer(&engine), RIGHT, "{}", layout.name());
        let message = engine.notes().iter().any(|note| note.contains(&format!("layout {}", layout.name())));
        assert_eq!(message, layout != Layout::Blocks128, "{:?}", engine.notes());
    }
}

#[test]
fn a_named_layout_is_taken_at_its_word() {
    let engine = load(saved_in(Layout::Rows4), Some(Layout::Rows4)).expect("sound");
    assert_eq!(answer(&engine), RIGHT);
    let wrong = load(saved_in(Layout::Rows4), Some(Layout::Blocks128)).expect("nothing is checked");
    assert_ne!(answer(&wrong), RIGHT);
}

#[test]
fn the_figures_of_all_layouts_leave_no_doubt() {
    for saved in Layout::ALL.into_iter().take(few(1)) {
        let file = ModelFile::parse(FileMap::from(saved_in(saved)), "m.gguf", None).expect("sound");
        let figures = file.score_layouts(&options()).expect("sound");
        assert_eq!(figures.len(), 3);
        for figure in figures {
            // Blind guessing among 2,048 tokens has a perplexity of 2,048.
            let expected = if figure.layout == saved { 0.0..2.0 } else { 1000.0..f64::INFINITY };
            assert!(expected.contains(&figure.perplexity()), "saved {saved:?}: {figure:?}");
        }
    }
}

#[test]
fn a_trained_model_with_damaged_weights_is_refused_unless_its_layout_is_named() {
    let mut bytes = built_in();
    for (range, ..) in matrices(&bytes) {
        bytes[range].reverse(); // still codes of 0, 1, 2, in no known order
    }
    let message = load(bytes.clone(), None).expect_err("no layout predicts the text");
    for part in [
        "m.gguf: I2_S weights: this file looks damaged or has an unknown layout",
        "1x4: ",
        "name the layout by hand",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(load(bytes, Some(Layout::Blocks128)).is_ok());
}

#[test]
fn a_model_that_was_never_trained_is_read_in_the_official_layout_and_says_so() {
    let bytes = std::fs::read(data("reference/b158-tiny.i2_s.gguf")).expect("data");
    let engine = load(bytes, None).expect("sound");
    assert!(engine.notes().iter().any(|note| note.contains("never trained")), "{:?}", engine.notes());
}

#[test]
fn rows_that_are_no_groups_of_four_rule_the_layout_1x4_out() {
    let bytes = std::fs::read(data("reference/b158-tiny.i2_s.gguf")).expect("data");
    let file = ModelFile::parse(FileMap::from(bytes), "m.gguf", None).expect("sound");
    let mut shape = file.shape().clone();
    assert!(shape.supports_layout(Layout::Rows4));
    shape.ffn += 2;
    assert!(!shape.supports_layout(Layout::Rows4) && shape.supports_layout(Layout::Blocks64));
}
