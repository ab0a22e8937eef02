//! Whatever a checkpoint folder holds: an error of one line, or a file that this engine loads.
//!
//! The input is `config.json`, `tokenizer.json`, `tokenizer_config.json`, `generation_config.json` and
//! `model.safetensors`, with a zero byte between them.
//! Run it with `-malloc_limit_mb=16`: a folder of some kilobytes has no claim to more.

#![no_main]

use bitnetd::engine::convert::{ConvertError, CheckpointFolder, ConvertOptions, ConvertPlan, WeightFormat};
use bitnetd::engine::gguf::FileMap;
use bitnetd::engine::model::Layout;
use bitnetd::engine::{EngineOptions, ModelFile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let names =
        ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"];
    let parts = bytes.splitn(names.len(), |byte| *byte == 0);
    let folder = CheckpointFolder::memory(names.into_iter().map(String::from).zip(parts.map(<[u8]>::to_vec)));
    for weights in [WeightFormat::I2S, WeightFormat::Tq1, WeightFormat::Tq2] {
        let options = ConvertOptions { weights, head: None, from: Layout::default() };
        let plan = ConvertPlan::checkpoint(&folder, &options).map_err(ConvertError::from);
        match plan.and_then(|plan| plan.verify().map(|()| plan).map_err(ConvertError::from)?.write(Vec::new())) {
            Ok(file) => check_file(file),
            Err(error) => check_error(&error.to_string()),
        }
    }
});

fn check_file(file: Vec<u8>) {
    let file = ModelFile::parse(FileMap::from(file), "fuzz.gguf", Some(Layout::default()));
    let run = EngineOptions { threads: 1, ..EngineOptions::default() };
    file.and_then(|file| file.load(&run)).expect("what is written is read");
}

fn check_error(said: &str) {
    assert!(said.len() < 1000 && !said.contains(char::is_control), "{said}");
}
