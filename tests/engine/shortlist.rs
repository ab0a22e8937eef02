//! A head that is read through a shortlist chooses the same tokens as the whole head, and falls back to it where
//! the shortlist cannot be trusted.

use crate::few;
use bitnetd::engine::gguf::{FileMap, Gguf};
use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::model::{
    AllowedTokens, HeadFormat, KvCacheFormat, Layout, LogitsRequest, Model, ShortlistStats, State,
};
use bitnetd::engine::sampler::{Sampler, SamplingParams};
use bitnetd::engine::synthetic::SyntheticShape;
use bitnetd::engine::thread_pool::ThreadPool;
use bitnetd::engine::{EngineOptions, ModelFile, Source};
use half::f16;
use std::sync::{Arc, LazyLock};

/// More than are ever read for one token.
const VOCAB: usize = 2_500;
const PROMPT: [u32; 5] = [17, 1_000, 1_499, 4, 300];

/// The file of a model of the 2B shape, narrow in layers and words. Its random numbers are made once.
fn narrow() -> Vec<u8> {
    static NARROW: LazyLock<FileMap> = LazyLock::new(|| {
        SyntheticShape::named("b158-2b4t").expect("known").truncated(1, VOCAB).build().expect("small")
    });
    NARROW.to_vec()
}

fn model(kernels: Kernels, threads: usize) -> Model {
    load(FileMap::from(narrow()), kernels, threads)
}

/// The same with a channel of the hidden vector that outweighs all others, and rows of the head that are as
/// large in it: what four bits cut off there counts thirty times.
fn lopsided() -> Model {
    const CHANNEL: usize = 77;
    let mut bytes = narrow();
    let file = Gguf::parse(FileMap::from(bytes.clone())).expect("sound");
    let start = |name: &str| file.tensor(name).expect("there").bytes.start;
    let norm = start("output_norm.weight") + 4 * CHANNEL;
    bytes[norm..norm + 4].copy_from_slice(&30.0f32.to_le_bytes());
    let dim = file.tensor("output_norm.weight").expect("there").dims[0];
    for row in (0..VOCAB).step_by(25) {
        let at = start("token_embd.weight") + 2 * (row * dim + CHANNEL);
        let sign = if row % 50 == 0 { 1.0 } else { -1.0 };
        bytes[at..at + 2].copy_from_slice(&f16::from_f32(sign * 0.4).to_le_bytes());
    }
    load(FileMap::from(bytes), Kernels::detect(), 2)
}

fn load(image: FileMap, kernels: Kernels, threads: usize) -> Model {
    let file = Gguf::parse(image).expect("sound");
    let pool = ThreadPool::new(threads, &[]).expect("threads");
    Model::load(&file, Layout::Blocks128, kernels, pool).expect("sound")
}

fn image(model: &Model, form: HeadFormat) -> Vec<u8> {
    let mut image = Vec::new();
    model.write_head(form, &mut image).expect("into memory");
    assert_eq!(image.len(), form.image_bytes(model.shape()));
    image
}

fn with_shortlist(mut model: Model) -> Model {
    let image = Arc::new(FileMap::from(image(&model, HeadFormat::Shortlist)));
    model.attach_head(HeadFormat::Shortlist, &image, 0);
    model
}

fn state(model: &Model) -> State {
    let mut state = model.state(600, 8, KvCacheFormat::F32);
    model.forward(&PROMPT, &mut state);
    state
}

fn counts(state: &State) -> ShortlistStats {
    state.shortlist_stats().expect("the head is screened")
}

fn best(logits: &[f32]) -> u32 {
    let better = |best: usize, at: usize| if logits[at] > logits[best] { at } else { best };
    (1..logits.len()).fold(0, better) as u32
}

/// Greedy choice for a number of tokens.
fn greedy(model: &Model, state: &mut State, tokens: usize) -> Vec<u32> {
    let mut row = PROMPT.len() - 1;
    let mut chosen = Vec::new();
    for _ in 0..tokens {
        let id = best(model.sampling_logits(row, state, 0.0, None));
        chosen.push(id);
        model.forward(&[id], state);
        row = 0;
    }
    chosen
}

#[test]
fn the_same_tokens_are_chosen_with_every_kernel_and_any_number_of_threads() {
    let mut answers = Vec::new();
    let settings = |table| [(table, 3), (table, 1)].into_iter().take(few(1));
    for (kernels, threads) in Kernels::all().into_iter().flat_map(settings) {
        let whole = model(kernels, threads);
        let wanted = greedy(&whole, &mut state(&whole), 6);
        assert_eq!(state(&whole).shortlist_stats(), None);
        let with_shortlist = with_shortlist(whole);
        let mut state = state(&with_shortlist);
        assert_eq!(greedy(&with_shortlist, &mut state, 6), wanted, "{}, {threads} threads", kernels.name());
        let message = counts(&state);
        assert_eq!((message.tokens, message.scans), (6, 0), "{}", kernels.name());
        assert!(message.rows >= 6 && message.rows < 6 * 200, "{message:?}");
        assert!(message.fine >= message.rows && message.fine < 6 * 800, "{message:?}");
        answers.push((kernels.name(), image(&with_shortlist, HeadFormat::Shortlist)));
    }
    let all_alike = answers.windows(2).all(|two| two[0].1 == two[1].1);
    assert!(all_alike, "an image does not depend on kernels or threads");
}

#[test]
fn a_head_of_several_parts_of_codes_works_too() {
    let known = SyntheticShape::named("b158-2b4t").expect("known").truncated(1, 8_500);
    let whole = load(known.build().expect("small"), Kernels::detect(), 3);
    let wanted = greedy(&whole, &mut state(&whole), 6);
    let with_shortlist = with_shortlist(whole);
    let mut state = state(&with_shortlist);
    assert_eq!(greedy(&with_shortlist, &mut state, 6), wanted);
    assert_eq!((counts(&state).tokens, counts(&state).scans), (6, 0));
    // The last part is not whole.
    let image = image(&with_shortlist, HeadFormat::Shortlist);
    assert!(with_shortlist.is_image_of_head(HeadFormat::Shortlist, &image));
}

#[test]
fn logits_within_reach_are_the_exact_ones_to_the_bit() {
    let model = with_shortlist(model(Kernels::detect(), 2));
    let mut state = state(&model);
    let exact = model.logits(PROMPT.len() - 1, &mut state).to_vec();
    let top = exact[best(&exact) as usize];
    for reach in [0.0, 0.05, 0.3] {
        let near = model.sampling_logits(PROMPT.len() - 1, &mut state, reach, None).to_vec();
        let mut within = 0;
        for (row, (exact, near)) in exact.iter().zip(&near).enumerate() {
            if *exact >= top - reach {
                assert!(exact.to_bits() == near.to_bits(), "row {row}: {exact}, {near}");
                within += 1;
            }
            // Elsewhere they are near: a deviation of two bits is a third of what logits differ by.
            assert!((exact - near).abs() < 0.5 * top.abs().max(1.0), "row {row}: {exact}, {near}");
        }
        assert!(within >= 1);
    }
}

#[test]
fn when_any_logit_may_matter_the_whole_head_is_read() {
    let model = with_shortlist(model(Kernels::detect(), 2));
    let mut state = state(&model);
    let exact = model.logits(PROMPT.len() - 1, &mut state).to_vec();
    let near = model.sampling_logits(PROMPT.len() - 1, &mut state, 1e9, None).to_vec();
    assert!(exact == near);
    assert_eq!(counts(&state).scans, 1);
}

#[test]
fn a_channel_that_outweighs_all_others_hides_no_token() {
    let whole = lopsided();
    let tokens = few(12).min(40);
    let wanted = greedy(&whole, &mut state(&whole), tokens);
    let with_shortlist = with_shortlist(whole);
    let mut state = state(&with_shortlist);
    assert_eq!(greedy(&with_shortlist, &mut state, tokens), wanted);
    let message = counts(&state);
    assert!(message.tokens > tokens as u64 * 9 / 10, "{message:?}");
}

#[test]
fn bounds_of_nan_are_rejected_and_change_no_answer() {
    let model = model(Kernels::detect(), 2);
    let wanted = greedy(&model, &mut state(&model), 6);
    let sound = image(&model, HeadFormat::Shortlist);
    let bounds = VOCAB * model.shape().dim / 2;
    for number in [f32::NAN, 0.0] {
        let mut codes = sound.clone();
        codes[bounds..bounds + VOCAB * 32].copy_from_slice(&number.to_le_bytes().repeat(8 * VOCAB));
        assert!(!model.is_image_of_head(HeadFormat::Shortlist, &codes), "{number}");
        let mut model = self::model(Kernels::detect(), 2);
        model.attach_head(HeadFormat::Shortlist, &Arc::new(FileMap::from(codes)), 0);
        let mut state = state(&model);
        assert_eq!(greedy(&model, &mut state, 6), wanted, "{number}");
        assert_eq!((counts(&state).tokens, counts(&state).scans), (0, 6), "{number}");
    }
}

#[test]
fn a_repetition_penalty_chooses_alike_and_seldom_needs_the_whole_head() {
    let sampling = SamplingParams { repetition_penalty: 1.3, ..SamplingParams::default() };
    let choose = |model: &Model, state: &mut State| {
        let mut sampler = Sampler::new(sampling.clone(), VOCAB);
        PROMPT.iter().for_each(|id| sampler.record(*id));
        let (mut row, mut chosen) = (PROMPT.len() - 1, Vec::new());
        for _ in 0..12 {
            let logits = model.sampling_logits(row, state, 0.0, sampler.penalised());
            let id = sampler.sample(logits);
            sampler.record(id);
            chosen.push(id);
            model.forward(&[id], state);
            row = 0;
        }
        chosen
    };
    let whole = model(Kernels::detect(), 2);
    let wanted = choose(&whole, &mut state(&whole));
    let with_shortlist = with_shortlist(whole);
    let mut state = state(&with_shortlist);
    assert_eq!(choose(&with_shortlist, &mut state), wanted);
    assert!(counts(&state).scans < 3, "{:?}", counts(&state));
}

#[test]
fn a_shortlist_of_another_head_is_detected_and_changes_no_answer() {
    let mut wrong = model(Kernels::detect(), 2);
    let wanted = greedy(&wrong, &mut state(&wrong), 8);
    let mut codes = image(&wrong, HeadFormat::Shortlist);
    // The codes of every row are those of its neighbour.
    let width = wrong.shape().dim / 4;
    codes.chunks_mut(VOCAB * width).take(2).for_each(|codes| codes.rotate_left(width));
    assert!(!wrong.is_image_of_head(HeadFormat::Shortlist, &codes), "it would not have been taken");
    wrong.attach_head(HeadFormat::Shortlist, &Arc::new(FileMap::from(codes)), 0);
    let mut state = state(&wrong);
    assert_eq!(greedy(&wrong, &mut state, 8), wanted);
    assert_eq!((counts(&state).tokens, counts(&state).scans), (0, 8));
}

#[test]
fn bounds_that_are_too_small_are_detected() {
    let mut model = model(Kernels::detect(), 2);
    let mut codes = image(&model, HeadFormat::Shortlist);
    let bounds = VOCAB * model.shape().dim / 2;
    for bound in codes[bounds..bounds + VOCAB * 32].as_chunks_mut::<16>().0 {
        bound[4..].copy_from_slice(&1e-30f32.to_le_bytes().repeat(3));
    }
    assert!(!model.is_image_of_head(HeadFormat::Shortlist, &codes), "it would not have been taken");
    model.attach_head(HeadFormat::Shortlist, &Arc::new(FileMap::from(codes)), 0);
    let mut state = state(&model);
    model.sampling_logits(PROMPT.len() - 1, &mut state, 0.0, None);
    assert_eq!((counts(&state).tokens, counts(&state).scans), (0, 1));
}

#[test]
fn a_sound_shortlist_passes_verification() {
    let model = with_shortlist(model(Kernels::detect(), 2));
    let mut state = state(&model);
    // One in 512 is checked.
    let tokens = few(515).min(1030);
    for _ in 0..tokens {
        model.sampling_logits(PROMPT.len() - 1, &mut state, 0.0, None);
    }
    assert_eq!((counts(&state).checks, counts(&state).misses), (tokens as u64 / 512, 0));
}

#[test]
fn a_shortlist_that_misses_the_best_row_is_detected_and_abandoned() {
    let mut model = model(Kernels::detect(), 2);
    let row = PROMPT.len() - 1;
    let wanted = best(model.logits(row, &mut state(&model))) as usize;
    let mut codes = image(&model, HeadFormat::Shortlist);
    let width = model.shape().dim / 4;
    for codes in codes.chunks_mut(VOCAB * width).take(2) {
        codes[wanted * width..(wanted + 1) * width].fill(0b01_10_01_10); // small numbers of both signs
    }
    model.attach_head(HeadFormat::Shortlist, &Arc::new(FileMap::from(codes)), 0);
    let mut state = state(&model);
    let mut chosen = (0..514).map(|_| best(model.sampling_logits(row, &mut state, 0.0, None)) as usize);
    let before = chosen.by_ref().take(511).filter(|id| *id == wanted).count();
    assert_eq!(before, 0, "nothing shows it before the check");
    assert!(chosen.all(|id| id == wanted), "from it on the whole head is read");
    assert_eq!((counts(&state).checks, counts(&state).misses), (1, 1));
}

#[test]
fn a_head_in_fewer_bits_is_near_the_files_own() {
    let whole = model(Kernels::detect(), 2);
    let exact = whole.logits(PROMPT.len() - 1, &mut state(&whole)).to_vec();
    let rms = |x: &mut dyn Iterator<Item = f32>| (x.map(|x| x * x).sum::<f32>() / VOCAB as f32).sqrt();
    let size = rms(&mut exact.iter().copied());
    for (form, share) in [(HeadFormat::Q8, 0.01), (HeadFormat::Q6K, 0.03)] {
        let mut model = model(Kernels::detect(), 2);
        let (bytes, image) = (model.bytes_per_token(), Arc::new(FileMap::from(image(&model, form))));
        assert!(model.is_image_of_head(form, &image));
        model.attach_head(form, &image, 0);
        assert!(model.bytes_per_token() < bytes - VOCAB * model.shape().dim * 7 / 8);
        let logits = model.logits(PROMPT.len() - 1, &mut state(&model)).to_vec();
        let off = rms(&mut logits.iter().zip(&exact).map(|(a, b)| a - b));
        assert!(off > 0.0 && off < share * size, "{form:?}: {off} of {size}");
    }
}

#[test]
fn a_large_head_gets_a_shortlist_and_a_small_one_does_not() {
    let open = |vocab| {
        let known = SyntheticShape::named("b158-2b4t").expect("known").truncated(1, vocab);
        ModelFile::open(&Source::Random(known), None).expect("sound")
    };
    assert_eq!(open(2_000).head(), HeadFormat::File);
    assert_eq!(open(8_000).head(), HeadFormat::Shortlist);
    let whole = open(8_000).with_head(Some(HeadFormat::File)).expect("any has that");
    assert_eq!(whole.head(), HeadFormat::File);
    let engine = open(8_000).load(&EngineOptions { threads: 1, ..EngineOptions::default() }).expect("sound");
    let ternary = whole.load(&EngineOptions { threads: 1, ..EngineOptions::default() }).expect("sound");
    assert!(engine.model().bytes_per_token() < ternary.model().bytes_per_token());
}

/// The logits of one row where only some tokens may be chosen.
fn allowed_logits(
    model: &Model,
    row: usize,
    state: &mut State,
    reach: Option<f32>,
    allowed: AllowedTokens<'_>,
) -> Vec<f32> {
    let request = LogitsRequest { row, reach, allowed: Some(allowed), ..LogitsRequest::default() };
    model.compute_logits(&[request], state);
    state.logits_of(0).to_vec()
}

#[test]
fn the_best_of_the_allowed_tokens_is_found_with_and_without_a_shortlist() {
    // One, few, more than are read one by one, all but the best, all.
    let densities: [fn(usize) -> bool; 6] =
        [|at| at == 3, |at| at % 100 == 7, |at| at % 2 == 1, |at| at > 1_200, |at| at % 31 != 0, |_| true];
    for model in
        [model(Kernels::detect(), 2), with_shortlist(model(Kernels::detect(), 2)), with_shortlist(lopsided())]
    {
        let row = PROMPT.len() - 1;
        let mut state = state(&model);
        let exact = model.logits(row, &mut state).to_vec();
        for is_allowed in densities.into_iter().take(few(3)) {
            let mut mask = vec![0u32; VOCAB.div_ceil(32)];
            (0..VOCAB).filter(|at| is_allowed(*at)).for_each(|at| mask[at / 32] |= 1 << (at % 32));
            let allowed =
                AllowedTokens { mask: &mask, count: (0..VOCAB).filter(|at| is_allowed(*at)).count() };
            let wanted: Vec<f32> =
                (0..VOCAB).map(|at| if is_allowed(at) { exact[at] } else { f32::NEG_INFINITY }).collect();
            let all = allowed_logits(&model, row, &mut state, None, allowed);
            assert_eq!(all, wanted);
            let near = allowed_logits(&model, row, &mut state, Some(0.0), allowed);
            assert_eq!(best(&near), best(&wanted));
            assert!((0..VOCAB).all(|at| is_allowed(at) || near[at] == f32::NEG_INFINITY));
        }
    }
}
