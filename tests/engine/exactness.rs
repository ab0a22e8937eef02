//! No setting for speed changes an answer: kernels, threads, batches and head formats.

use crate::is_emulated;
use bitnetd::engine::gguf::{FileMap, Gguf};
use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::model::{HeadFormat, KvCacheFormat, Layout, Model};
use bitnetd::engine::thread_pool::ThreadPool;
use bitnetd::engine::tokenizer::{ChatRole, Turn};
use bitnetd::engine::{ModelFile, Source};
use std::sync::Arc;

/// Tokens that are generated.
const TOKENS: usize = 12;
const PROMPTS: [&str; 2] =
    ["turn on the kitchen lights", "set the thermostat in the living room to 21 degrees"];

/// The numbers of threads, the batches and the prompts that are tried.
fn settings() -> (&'static [usize], &'static [usize], &'static [&'static str]) {
    if is_emulated() { (&[3], &[1, 13], &PROMPTS[..1]) } else { (&[1, 2, 3], &[1, 5, 8, 13, 64], &PROMPTS) }
}

fn load(kernels: Kernels, threads: usize, form: HeadFormat) -> Model {
    let bytes = include_bytes!("../../models/home-intents.i2_s.gguf");
    let file = Gguf::parse(FileMap::from(bytes.to_vec())).expect("sound");
    let pool = ThreadPool::new(threads, &[]).expect("threads");
    let mut model = Model::load(&file, Layout::Blocks128, kernels, pool).expect("sound");
    let mut image = Vec::new();
    if form != HeadFormat::File {
        model.write_head(form, &mut image).expect("into memory");
        model.attach_head(form, &Arc::new(FileMap::from(image)), 0);
    }
    model
}

fn best(logits: &[f32]) -> u32 {
    let better = |best: usize, at: usize| if logits[at] > logits[best] { at } else { best };
    (1..logits.len()).fold(0, better) as u32
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn rows_are_the_same_where_only_they_are_wanted() {
    let len = if is_emulated() { 10 } else { 40 };
    let prompt: Vec<u32> = (5..5 + len as u32).collect();
    for kernels in Kernels::all() {
        let model = load(kernels, 2, HeadFormat::File);
        for wanted in [0, 1, 3, len] {
            let [mut all, mut some] = [0, 1].map(|_| model.state(50, len, KvCacheFormat::F16));
            model.forward(&prompt, &mut all);
            model.forward_for(&prompt, wanted, &mut some);
            for row in 0..wanted {
                let expected = bits(model.logits(len - wanted + row, &mut all));
                assert_eq!(
                    bits(model.logits(row, &mut some)),
                    expected,
                    "{}, {wanted}: {row}",
                    kernels.name()
                );
            }
            // Also what comes behind them.
            let [expected, behind] = [&mut all, &mut some].map(|state| {
                model.forward(&[7], state);
                bits(model.logits(0, state))
            });
            assert_eq!(behind, expected, "{}, {wanted}", kernels.name());
        }
    }
}

/// Greedy tokens behind a prompt that is read in batches, and the bits of the last logits.
fn answer(model: &Model, prompt: &[u32], batch: usize) -> (Vec<u32>, Vec<u32>) {
    answer_with_cache(model, prompt, batch, KvCacheFormat::F16)
}

fn answer_with_cache(
    model: &Model,
    prompt: &[u32],
    batch: usize,
    cache: KvCacheFormat,
) -> (Vec<u32>, Vec<u32>) {
    let mut state = model.state(prompt.len() + TOKENS, batch, cache);
    let mut row = 0;
    for part in prompt.chunks(batch) {
        model.forward(part, &mut state);
        row = part.len() - 1;
    }
    let mut tokens = vec![best(model.sampling_logits(row, &mut state, 0.0, None))];
    while tokens.len() < TOKENS {
        model.forward(&tokens[tokens.len() - 1..], &mut state);
        tokens.push(best(model.sampling_logits(0, &mut state, 0.0, None)));
    }
    (tokens, bits(model.logits(0, &mut state)))
}

#[test]
fn bits_are_the_same_for_every_kernel_and_any_threads_and_batches() {
    let tokenizer = ModelFile::open(&Source::BuiltIn, None).and_then(|file| file.tokenizer()).expect("sound");
    let (threads_tried, batches, prompts) = settings();
    for text in prompts {
        let prompt = tokenizer.prompt_chat(&[Turn { role: ChatRole::User, text }]).expect("one turn");
        let mut wanted: Option<Vec<u32>> = None;
        let mut wanted_bits: Option<Vec<u32>> = None;
        for kernels in Kernels::all() {
            for threads in threads_tried {
                for form in [HeadFormat::File, HeadFormat::Shortlist] {
                    let model = load(kernels, *threads, form);
                    for batch in batches {
                        let at =
                            format!("{}, {threads} threads, {form:?}, batches of {batch}", kernels.name());
                        let (tokens, bits) = answer(&model, &prompt, *batch);
                        assert_eq!(&tokens, wanted.get_or_insert_with(|| tokens.clone()), "{at}");
                        let same = bits == *wanted_bits.get_or_insert_with(|| bits.clone());
                        assert!(same, "{at}: other bits");
                    }
                }
            }
        }
    }
}

/// Attention goes over some hundred positions at a time, and computes several tokens of a prompt together.
#[test]
fn bits_are_the_same_for_a_long_prompt_in_any_batches() {
    let (len, batches): (u32, &[usize]) =
        if is_emulated() { (300, &[7, 64]) } else { (600, &[1, 2, 7, 9, 64, 100, 128]) };
    let threads_tried = if is_emulated() { 2..3 } else { 1..4 };
    for cache in [KvCacheFormat::F16, KvCacheFormat::F32, KvCacheFormat::Int8] {
        let mut wanted = None;
        for threads in threads_tried.clone() {
            let model = load(Kernels::detect(), threads, HeadFormat::File);
            let vocab = model.shape().vocab as u32;
            let prompt: Vec<u32> = (0..len).map(|i| (i * 7 + i * i % 5) % vocab).collect();
            for batch in batches {
                let found = answer_with_cache(&model, &prompt, *batch, cache);
                let wanted = wanted.get_or_insert_with(|| found.clone());
                assert_eq!(&found, wanted, "{cache:?}, {threads} threads, batches of {batch}");
            }
        }
    }
}
