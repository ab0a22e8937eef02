//! Choosing the number of threads on real passes.

use crate::allocations;
use bitnetd::engine::session::{GenerateOptions as Generate, Step};
use bitnetd::engine::thread_tuner::ThreadCounts;
use bitnetd::engine::{Engine, EngineOptions, ModelFile, Source};
use std::ops::ControlFlow;

fn engine(threads: usize) -> Engine {
    let file = ModelFile::open(&Source::BuiltIn, None).expect("the built-in model");
    file.load(&EngineOptions { threads, ..EngineOptions::default() }).expect("sound")
}

/// Of 150 tokens: two full batches of a prompt, and a rest.
fn bits(engine: &Engine) -> Vec<u32> {
    let tokens: Vec<u32> = (0..150).map(|i| i * 7 % 2000).collect();
    let mut bits = Vec::new();
    let row = |_, logits: &[f32]| bits.extend(logits.iter().map(|x| x.to_bits()));
    engine.session(256).logits(&tokens, row).expect("sound tokens");
    bits
}

#[test]
fn no_bit_depends_on_numbers_that_are_tried_out_or_pinned() {
    let want = bits(&engine(1));
    let tuned = engine(3).tuned(ThreadCounts::default());
    while tuned.model().threads().prefill.is_none() {
        assert!(bits(&tuned) == want, "while it is tried out");
    }
    assert!(bits(&tuned) == want, "found: {:?}", tuned.model().threads());
    let pinned = engine(3).tuned(ThreadCounts { decode: Some(1), prefill: Some(2) });
    assert!(bits(&pinned) == want, "pinned");
}

#[test]
fn numbers_are_found_without_an_allocation_in_the_decode_loop() {
    let engine = engine(3).tuned(ThreadCounts::default());
    let options = Generate { max_tokens: Some(60), ignore_eos: true, ..Generate::default() };
    let mut session = engine.session(128);
    let mut largest = usize::MAX;
    let step = |step: Step<'_>| {
        if matches!(step, Step::Prefill(_)) {
            allocations::forget();
        }
        largest = allocations::largest_so_far();
        ControlFlow::Continue(())
    };
    session.generate(&[5, 6, 7], &options, step).expect("it fits");
    assert_eq!(largest, 0);
    let found = engine.model().threads();
    assert!(found.decode.is_some_and(|threads| (1..=3).contains(&threads)), "{found:?}");
    assert_eq!(found.prefill, None, "three tokens are no prompt to measure");
}

#[test]
fn without_the_wish_to_find_out_all_threads_are_used() {
    assert_eq!(engine(2).model().threads(), ThreadCounts { decode: Some(2), prefill: Some(2) });
}

#[test]
fn the_same_tokens_come_under_any_limit_and_no_pass_uses_more_threads() {
    let engine = engine(3).tuned(ThreadCounts::default());
    let options = Generate { max_tokens: Some(40), ignore_eos: true, ..Generate::default() };
    let prompt: Vec<u32> = (0..100).map(|i| i * 7 % 2000).collect();
    let mut session = engine.session(256);
    let mut tokens = |limit: usize| {
        engine.model().limit_threads(limit);
        let mut most = 0;
        let step = |_: Step<'_>| {
            most = engine.model().pool().active().max(most);
            ControlFlow::Continue(())
        };
        let answer = session.generate(&prompt, &options, step).expect("it fits");
        (answer.tokens, most)
    };
    let (want, _) = tokens(3);
    for limit in [1, 2, 1, 3] {
        let (got, most) = tokens(limit);
        assert!(got == want, "under a limit of {limit}");
        assert!((1..=limit).contains(&most), "{most} threads under a limit of {limit}");
    }
}

#[test]
fn a_limit_applies_to_fixed_numbers_and_lifting_it_restores_them() {
    let engine = engine(3).tuned(ThreadCounts { decode: Some(3), prefill: Some(2) });
    let active = |limit| {
        engine.model().limit_threads(limit);
        bits(&engine);
        engine.model().pool().active()
    };
    // After a pass the number is that for what comes after the layers: decoding's.
    assert_eq!([active(1), active(2), active(3), active(99)], [1, 2, 3, 3]);
    assert_eq!(engine.model().threads(), ThreadCounts { decode: Some(3), prefill: Some(2) });
}
