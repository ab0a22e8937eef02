//! Beginnings of prompts that an earlier process left on disk: an answer behind them is the one it would have been.

use bitnetd::engine::model::{KV_BLOCK, KvCacheFormat};
use bitnetd::engine::session::{Answer, GenerateOptions, Session, Step};
use bitnetd::engine::{Engine, EngineOptions, ModelFile, Source};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const CONTEXT: usize = 400;
const LIMIT: u64 = 64 << 20;

fn folder() -> TempDir {
    TempDir::with_prefix("bitnetd-").expect("a temporary folder")
}

/// An engine as a process of its own would have it.
fn engine(cache_dir: &Path, cache: KvCacheFormat) -> Engine {
    let options = EngineOptions { threads: 2, cache_dir: Some(cache_dir.into()), ..EngineOptions::default() };
    let file = ModelFile::open(&Source::BuiltIn, None).and_then(|file| file.with_cache(cache));
    file.and_then(|file| file.load(&options)).expect("sound")
}

fn prompt(engine: &Engine, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|at| (at * 31 + 5) % engine.model().shape().vocab as u32).collect()
}

fn options(scope: u128) -> GenerateOptions {
    let prefix_scope = scope;
    GenerateOptions {
        max_tokens: Some(8),
        ignore_eos: true,
        logprobs: Some(3),
        prefix_scope,
        ..GenerateOptions::default()
    }
}

fn answer(session: &mut Session<'_>, prompt: &[u32], scope: u128) -> Answer {
    session.generate(prompt, &options(scope), |_: Step<'_>| ControlFlow::Continue(())).expect("sound")
}

/// Writes all that is new; the problem that there was.
fn write_all(session: &mut Session<'_>) -> Option<String> {
    session.release(0);
    while session.store_block() {}
    session.take_store_problem()
}

fn files(root: &Path) -> Vec<PathBuf> {
    let folder = root.join("built-in/prefixes");
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).expect("there").flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

#[test]
fn an_answer_behind_blocks_from_disk_is_the_one_without_to_the_bit() {
    for cache in [KvCacheFormat::F16, KvCacheFormat::Int8] {
        let folder = folder();
        let first = engine(folder.path(), cache);
        let prompt = prompt(&first, 3 * KV_BLOCK + 9);
        let mut session = first.stored_session(CONTEXT, 2, LIMIT).expect("made");
        let expected = answer(&mut session, &prompt, 1);
        assert_eq!((expected.cached, write_all(&mut session)), (0, None));
        drop(session);
        drop(first);

        let second = engine(folder.path(), cache);
        let mut session = second.stored_session(CONTEXT, 2, LIMIT).expect("there");
        let found = answer(&mut session, &prompt, 1);
        assert_eq!(found.cached, 3 * KV_BLOCK);
        assert_eq!((&found.tokens, &found.logprobs), (&expected.tokens, &expected.logprobs));
        // In memory now, and nothing is written twice.
        session.release(0);
        assert_eq!(answer(&mut session, &prompt, 1).cached, 3 * KV_BLOCK);
        let before = files(folder.path());
        assert_eq!(write_all(&mut session), None);
        assert_eq!(files(folder.path()), before);
        // The generated text is found as well.
        let more = [&prompt[..], &expected.tokens, &prompt[..KV_BLOCK]].concat();
        assert_eq!(answer(&mut session, &more, 1).cached, 3 * KV_BLOCK);
        // Other clients find nothing of it.
        assert_eq!(answer(&mut session, &prompt, 2).cached, 0);
    }
}

#[test]
fn another_format_of_the_cache_finds_nothing() {
    let folder = folder();
    let first = engine(folder.path(), KvCacheFormat::F16);
    let prompt = prompt(&first, 2 * KV_BLOCK + 1);
    let mut session = first.stored_session(CONTEXT, 1, LIMIT).expect("made");
    answer(&mut session, &prompt, 0);
    assert_eq!(write_all(&mut session), None);
    assert_eq!(files(folder.path()).len(), 2);
    let second = engine(folder.path(), KvCacheFormat::Int8);
    let mut session = second.stored_session(CONTEXT, 1, LIMIT).expect("there");
    assert_eq!(answer(&mut session, &prompt, 0).cached, 0);
}

#[test]
fn files_that_are_not_as_they_were_written_never_change_an_answer() {
    let folder = folder();
    let engine = engine(folder.path(), KvCacheFormat::F16);
    let prompt = prompt(&engine, 3 * KV_BLOCK + 1);
    let expected = answer(&mut engine.session(CONTEXT), &prompt, 0);
    let damage: [fn(&[PathBuf]); 4] = [
        // Cut, as after a power failure.
        |files| fs::write(&files[0], &fs::read(&files[0]).expect("there")[..1000]).expect("written"),
        // One bit.
        |files| {
            let mut bytes = fs::read(&files[1]).expect("there");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 16;
            fs::write(&files[1], bytes).expect("written");
        },
        // Each in the place of another.
        |files| {
            let contents: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).expect("there")).collect();
            files
                .iter()
                .zip(contents.iter().rev())
                .for_each(|(file, bytes)| fs::write(file, bytes).expect("written"));
        },
        |files| files.iter().for_each(|file| fs::write(file, "").expect("written")),
    ];
    for damage in damage {
        let mut session = engine.stored_session(CONTEXT, 1, LIMIT).expect("made");
        answer(&mut session, &prompt, 0);
        assert_eq!(write_all(&mut session), None);
        assert_eq!(files(folder.path()).len(), 3);
        damage(&files(folder.path()));
        let mut session = engine.stored_session(CONTEXT, 1, LIMIT).expect("there");
        let found = answer(&mut session, &prompt, 0);
        assert!(found.cached < 3 * KV_BLOCK, "{}", found.cached);
        assert_eq!((&found.tokens, &found.logprobs), (&expected.tokens, &expected.logprobs));
        let problem = session.take_store_problem().expect("reported");
        assert!(problem.contains("ignored and removed"), "{problem}");
    }
}

#[test]
fn blocks_that_were_overwritten_before_they_could_be_written_are_left_out() {
    let folder = folder();
    let engine = engine(folder.path(), KvCacheFormat::F16);
    let mut session = engine.stored_session(2 * KV_BLOCK, 1, LIMIT).expect("made");
    let texts: Vec<Vec<u32>> = (0..4)
        .map(|at| prompt(&engine, KV_BLOCK + 3).into_iter().map(|token| token ^ at).collect())
        .collect();
    let expected: Vec<Answer> = texts.iter().map(|text| answer(&mut session, text, 0)).collect();
    assert_eq!(write_all(&mut session), None);
    assert!((1..=2).contains(&files(folder.path()).len()), "the cache has two blocks");
    let mut session = engine.stored_session(2 * KV_BLOCK, 1, LIMIT).expect("there");
    for (text, expected) in texts.iter().zip(expected) {
        assert_eq!(answer(&mut session, text, 0).logprobs, expected.logprobs);
    }
}

#[test]
fn a_cancelled_prompt_reads_no_more_blocks_from_disk() {
    let folder = folder();
    let engine = engine(folder.path(), KvCacheFormat::F16);
    let prompt = prompt(&engine, 5 * KV_BLOCK + 1);
    let mut session = engine.stored_session(CONTEXT, 1, LIMIT).expect("made");
    answer(&mut session, &prompt, 0);
    assert_eq!(write_all(&mut session), None);
    let mut session = engine.stored_session(CONTEXT, 1, LIMIT).expect("there");
    let mut reports = Vec::new();
    let answer = session.generate(&prompt, &options(0), |step| {
        if let Step::Prefill(read) = step {
            reports.push(read);
        }
        if reports.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((reports, answer.expect("cancelled").cached), (vec![KV_BLOCK, 2 * KV_BLOCK], 2 * KV_BLOCK));
}
