//! Conversion of other model files to GGUF. Deliberately runs no Python: what transformers computes of the checkpoints
//! is in `tests/data`.

mod checkpoint;
mod command;
mod contradictions;
mod fuzz_seeds;
mod gguf_source;
mod hf_config;
mod malformed;
mod resumable_output;
mod vocabulary;
mod writer;

use crate::data;
use bitnetd::engine::convert::{CheckpointFolder, ConvertOptions, ConvertPlan, WeightFormat};
use bitnetd::engine::gguf::FileMap;
use bitnetd::engine::model::Layout;
use bitnetd::engine::{Engine, EngineOptions as Run, ModelFile};

/// What `bitnetd convert` does when nothing is asked for.
fn options() -> ConvertOptions {
    ConvertOptions { weights: WeightFormat::default(), head: None, from: Layout::Blocks128 }
}

/// A checkpoint of `tests/data`, with the tokenizer they share.
fn files(name: &str) -> Vec<(String, Vec<u8>)> {
    let read = |path: &str| std::fs::read(data(path)).expect("test data");
    let mut files = vec![("tokenizer.json".to_owned(), read("reference/tokenizer.json"))];
    for entry in std::fs::read_dir(data(&format!("checkpoints/{name}"))).expect("test data") {
        let file = entry.expect("test data").file_name().into_string().expect("UTF-8");
        let bytes = read(&format!("checkpoints/{name}/{file}"));
        files.retain(|(name, _)| *name != file);
        files.push((file, bytes));
    }
    files
}

fn folder(name: &str) -> CheckpointFolder {
    CheckpointFolder::memory(files(name))
}

fn converted(folder: &CheckpointFolder, options: &ConvertOptions) -> Vec<u8> {
    let plan = ConvertPlan::checkpoint(folder, options).expect("a sound checkpoint");
    let bytes = plan.write(Vec::new()).expect("a sound checkpoint");
    assert_eq!(bytes.len() as u64, plan.draft().file_bytes());
    bytes
}

fn engine(bytes: Vec<u8>) -> Engine {
    let file =
        ModelFile::parse(FileMap::from(bytes), "converted", Some(Layout::Blocks128)).expect("a sound file");
    file.load(&Run { threads: 1, ..Run::default() }).expect("a sound file")
}
