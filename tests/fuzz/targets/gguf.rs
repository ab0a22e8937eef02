//! Whatever a model file holds: an error of one line that names the place, or a model that runs.
//!
//! Run it with `-malloc_limit_mb=16`: a file of some kilobytes has no claim to more.

#![no_main]

use bitnetd::engine::gguf::FileMap;
use bitnetd::engine::model::Layout;
use bitnetd::engine::{Engine, ModelFile, EngineOptions};
use libfuzzer_sys::fuzz_target;

/// Longer than any file of the seeds: nothing a small file says may plan more than this for one token.
const PLAN_LIMIT: usize = 1 << 30;

fuzz_target!(|bytes: &[u8]| {
    for layout in [None, Some(Layout::Blocks64), Some(Layout::Rows4)] {
        let loaded = ModelFile::parse(FileMap::from(bytes.to_vec()), "fuzz.gguf", layout).and_then(|file| {
            assert!(file.footprint().total(1, 1) < PLAN_LIMIT, "{:?}", file.footprint());
            file.load(&EngineOptions { threads: 1, ..EngineOptions::default() })
        });
        match loaded {
            Ok(engine) => run(&engine),
            Err(error) => check_error(&error.to_string()),
        }
    }
});

fn check_error(said: &str) {
    assert!(said.starts_with("fuzz.gguf: "), "{said}");
    assert!(said.len() < 1000 && !said.contains(char::is_control), "{said}");
}

/// A model that was loaded gives numbers, and its vocabulary gives back any text.
fn run(engine: &Engine) {
    let text = "the he\n<|eot_id|> \u{e9}";
    let tokenizer = engine.tokenizer();
    let ids = tokenizer.encode(text);
    let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.bytes(*id)).copied().collect();
    assert_eq!(bytes, text.as_bytes());
    let mut rows = 0;
    let mut session = engine.session(4);
    session.logits(&ids[..2], |_, _| rows += 1).expect("two tokens of its own");
    assert_eq!(rows, 2);
}
