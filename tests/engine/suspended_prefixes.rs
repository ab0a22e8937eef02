//! Answers that are suspended where the beginnings of prompts are stored on disk: each is the one it would have been without
//! disk and without the interruption.

use crate::is_emulated;
use crate::suspension::{CONTEXT, assert_same, evict, go_on, greedy, interrupted, kinds, prompt};
use bitnetd::engine::model::KV_BLOCK;
use bitnetd::engine::session::{GenerateOptions, Session, Step};
use bitnetd::engine::{Engine, EngineOptions, ModelFile, Source};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const LIMIT: u64 = 64 << 20;

fn folder() -> TempDir {
    TempDir::with_prefix("bitnetd-").expect("a temporary folder")
}

/// An engine as a process of its own would have it.
fn engine(cache_dir: &Path) -> Engine {
    let options = EngineOptions { threads: 2, cache_dir: Some(cache_dir.into()), ..EngineOptions::default() };
    ModelFile::open(&Source::BuiltIn, None).and_then(|file| file.load(&options)).expect("sound")
}

fn stored(engine: &Engine, limit: u64) -> Session<'_> {
    engine.stored_session(CONTEXT, 2, limit).expect("made")
}

fn write_all(session: &mut Session<'_>) {
    while session.store_block() {}
}

fn files(root: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(root.join("built-in/prefixes")).expect("there").flatten();
    files.map(|entry| entry.path()).collect()
}

/// The tokens of a session's answer in the first slot, once it has ended.
fn finish(session: &mut Session<'_>) -> (Vec<u32>, usize) {
    loop {
        session.step(|_, step| go_on(step));
        if let Some(answer) = session.take_answer(0) {
            let answer = answer.expect("sound");
            session.release(0);
            return (answer.tokens, answer.cached);
        }
    }
}

#[test]
fn an_answer_whose_blocks_are_written_while_it_is_suspended_and_read_again_is_the_one_without() {
    let plain = engine(folder().path());
    let prompt = prompt(&plain, 130);
    for (name, options) in kinds(&plain).into_iter().step_by(if is_emulated() { 4 } else { 1 }) {
        let alone =
            interrupted(&mut plain.session(CONTEXT), &prompt, &options, |_| false, |_| unreachable!());
        // Space for all, and for two blocks and a half, so that some are removed while it is suspended.
        let block = (plain.session(CONTEXT).cache_bytes_per_token() * KV_BLOCK) as u64;
        for limit in [LIMIT, block * 5 / 2] {
            let folder = folder();
            for process in ["first", "second"] {
                let engine = engine(folder.path());
                let mut session = stored(&engine, limit);
                // Also behind the first token, since some of the answers are short.
                let is_suspended = |step: usize| step % 5 == 1;
                let found = interrupted(&mut session, &prompt, &options, is_suspended, |session| {
                    write_all(session);
                    evict(session);
                });
                let place = format!("{name}, {process} process, {limit} bytes");
                assert_same(&found, &alone, &place);
                assert!(found.2 > 0, "{place}: never suspended");
                if limit == LIMIT {
                    let earlier = if process == "first" { 0 } else { 2 * KV_BLOCK };
                    assert_eq!(found.0.cached, earlier, "{place}");
                }
                assert_eq!(session.take_store_problem(), None, "{place}");
            }
        }
    }
}

#[test]
fn a_suspended_answer_finds_its_blocks_on_disk_where_others_took_their_memory() {
    let folder = folder();
    let engine = engine(folder.path());
    let (prompt, options) = (prompt(&engine, 250), greedy(20));
    let alone = engine.session(CONTEXT).generate(&prompt, &options, go_on).expect("sound").tokens;
    let passes = |is_written: bool| {
        let mut session = stored(&engine, LIMIT);
        session.begin(0, &prompt, &options).expect("sound");
        let step_until_token = |session: &mut Session<'_>| {
            let (mut passes, mut is_token) = (0, false);
            while !is_token {
                passes += 1;
                session.step(|slot, step| {
                    is_token |= slot == 0 && matches!(step, Step::Token(_));
                    ControlFlow::Continue(())
                });
            }
            passes
        };
        for _ in 0..10 {
            step_until_token(&mut session);
        }
        let suspended = session.suspend(0).expect("under way");
        if is_written {
            write_all(&mut session);
        }
        evict(&mut session);
        // Beside another answer a pass reads 4 to 12 tokens, so that passes count tokens.
        session.begin(1, &[9], &greedy(100)).expect("sound");
        session.step(|_, step| go_on(step));
        session.resume(0, suspended);
        let passes = step_until_token(&mut session);
        let rest = finish(&mut session);
        assert_eq!(rest, (alone.clone(), 0));
        passes
    };
    // Nothing is on disk in the first round.
    assert!(passes(false) >= 250_usize.div_ceil(12));
    // Four blocks, one a pass, and what is less than a block.
    let found = passes(true);
    assert!(found <= 4 + KV_BLOCK / 4, "{found} passes");
}

#[test]
fn an_answer_that_is_suspended_while_its_prompt_is_read_from_disk_goes_on_where_it_was() {
    for (blocks, is_damaged) in (0..5).flat_map(|blocks| [(blocks, false), (blocks, true)]) {
        let place = format!("after {blocks} blocks, damaged: {is_damaged}");
        let folder = folder();
        let engine = engine(folder.path());
        let (prompt, options) = (prompt(&engine, 300), greedy(9));
        let mut session = stored(&engine, LIMIT);
        session.begin(0, &prompt, &options).expect("sound");
        let (alone, _) = finish(&mut session);
        write_all(&mut session);
        assert_eq!(files(folder.path()).len(), 4);

        let mut session = stored(&engine, LIMIT);
        session.begin(0, &prompt, &options).expect("sound");
        (0..blocks).for_each(|_| session.step(|_, step| go_on(step)));
        let suspended = session.suspend(0).expect("under way");
        evict(&mut session);
        if is_damaged {
            for file in files(folder.path()) {
                let bytes = fs::read(&file).expect("there");
                fs::write(&file, &bytes[..bytes.len() / 2]).expect("written");
            }
        }
        session.resume(0, suspended);
        // What was found before counts, although it is read now.
        let found = if is_damaged { blocks.min(4) * KV_BLOCK } else { 4 * KV_BLOCK };
        assert_eq!(finish(&mut session), (alone, found), "{place}");
        assert_eq!(session.take_store_problem().is_some(), is_damaged, "{place}");
    }
}

#[test]
fn what_a_session_forgot_is_neither_written_nor_found_by_an_answer_that_goes_on() {
    let folder = folder();
    let engine = engine(folder.path());
    let (prompt, options) = (prompt(&engine, 150), greedy(30));
    let other: Vec<u32> = prompt.iter().map(|token| token ^ 1).collect();
    let alone = |prompt: &[u32]| {
        let options = GenerateOptions { logprobs: Some(2), ..options.clone() };
        engine.session(CONTEXT).generate(prompt, &options, go_on).expect("sound")
    };
    let mut session = stored(&engine, LIMIT);
    session.begin(0, &prompt, &options).expect("sound");
    (0..5).for_each(|_| session.step(|_, step| go_on(step)));
    let suspended = session.suspend(0).expect("under way");
    // As after a panic, with blocks that were not written yet. The next text takes their places.
    session.reset();
    session.begin(0, &other, &options).expect("sound");
    assert_eq!(finish(&mut session), (alone(&other).tokens, 0));
    write_all(&mut session);
    session.resume(0, suspended);
    assert_eq!(finish(&mut session), (alone(&prompt).tokens, 0));
    write_all(&mut session);
    // Another process finds what belongs to each.
    let engine_after = self::engine(folder.path());
    let mut session = stored(&engine_after, LIMIT);
    for prompt in [&prompt, &other] {
        let options = GenerateOptions { logprobs: Some(2), ..options.clone() };
        let found = session.generate(prompt, &options, go_on).expect("sound");
        let expected = alone(prompt);
        assert_eq!((found.tokens, found.logprobs), (expected.tokens, expected.logprobs));
        assert_eq!(found.cached, 2 * KV_BLOCK);
    }
}
