//! Vocabularies of checkpoints as the metadata that this engine and llama.cpp read.

use super::{engine, files, options};
use bitnetd::engine::convert::{CheckpointFolder, ConvertPlan};
use bitnetd::engine::gguf::{FileMap, Gguf, MetadataValue};
use serde_json::json;
use std::collections::BTreeMap;

fn header(files: Vec<(String, Vec<u8>)>) -> Gguf {
    let plan = ConvertPlan::checkpoint(&CheckpointFolder::memory(files), &options()).expect("sound");
    Gguf::parse(FileMap::from(plan.write(Vec::new()).expect("sound"))).expect("sound")
}

fn strings(file: &Gguf, key: &str) -> Vec<String> {
    let strings = file.strings(key).expect("an array of texts");
    strings.map(|text| String::from_utf8(text.to_vec()).expect("UTF-8")).collect()
}

#[test]
fn a_byte_level_vocabulary_is_that_of_the_reference_file() {
    let made = header(files("b158-tiny"));
    let file = std::fs::read(crate::data("reference/b158-tiny.i2_s.gguf")).expect("data");
    let reference = Gguf::parse(FileMap::from(file)).expect("sound");
    for key in reference.keys().filter(|key| key.starts_with("tokenizer.ggml")) {
        assert!(made.value_bytes(key) == reference.value_bytes(key), "{key}");
    }
    let template = made.text("tokenizer.chat_template").expect("a text").expect("there");
    assert!(template.contains("capitalize"), "{template}");
}

#[test]
fn a_sentence_piece_vocabulary_gets_its_scores_from_the_order_of_merges() {
    let file = header(files("bitnet-tiny-f16"));
    assert_eq!(file.text("tokenizer.ggml.model").expect("a text"), Some("llama"));
    assert_eq!(file.value("tokenizer.ggml.add_space_prefix"), Some(&MetadataValue::Bool(true)));
    assert_eq!(file.value("tokenizer.ggml.add_bos_token"), Some(&MetadataValue::Bool(true)));
    for (key, id) in [("bos", 1), ("eos", 2), ("unknown", 0)] {
        assert_eq!(file.number(&format!("tokenizer.ggml.{key}_token_id")).expect("there"), id);
    }
    let tokens = strings(&file, "tokenizer.ggml.tokens");
    let kinds: Vec<i64> =
        file.integers("tokenizer.ggml.token_type").expect("sound").expect("there").collect();
    assert_eq!((&tokens[1], kinds[1]), (&"<s>".into(), 3));
    assert_eq!((&tokens[0], kinds[0]), (&"<unk>".into(), 2));
    assert_eq!((&tokens[3 + 0x41], kinds[3 + 0x41]), (&"<0x41>".into(), 6));
    // Two rows of the embedding have no token.
    assert_eq!((tokens.last(), kinds.last()), (Some(&format!("[PAD{}]", tokens.len() - 1)), Some(&5)));
    let score = |token: &str| {
        let Some(MetadataValue::Array(scores)) = file.value("tokenizer.ggml.scores") else {
            panic!("scores")
        };
        assert_eq!((scores.kind, scores.len), (6, tokens.len()));
        let bytes = file.value_bytes("tokenizer.ggml.scores").expect("there");
        let at = tokens.iter().position(|other| other == token).expect("a token") * 4;
        // The type of the value and of its elements, and their number, come before them.
        f32::from_le_bytes(bytes[16 + at..20 + at].try_into().expect("four bytes"))
    };
    let merges = strings(&file, "tokenizer.ggml.merges");
    let scores: Vec<f32> = merges.iter().map(|merge| score(&merge.replace(' ', ""))).collect();
    assert_eq!(scores[0], 0.0);
    assert!(scores.windows(2).all(|pair| pair[0] > pair[1]), "the first merge is the best");
}

/// The checkpoint with a vocabulary of another: `tokenizer.model` as it is when `damage` is done.
fn with_pieces(damage: impl FnOnce(&mut Vec<u8>)) -> CheckpointFolder {
    let mut files = files("bitnet-tiny-f16");
    files.retain(|(name, _)| name != "tokenizer.json");
    let mut model = std::fs::read(crate::data("checkpoints/sentence-piece/tokenizer.model")).expect("data");
    damage(&mut model);
    files.push(("tokenizer.model".into(), model));
    // Two that were added later: one of them is a piece already.
    files.push(("added_tokens.json".into(), json!({"</s>": 2, "<pad>": 330}).to_string().into_bytes()));
    CheckpointFolder::memory(files)
}

#[test]
fn a_folder_with_tokenizer_model_alone_cuts_text_as_sentencepiece_does() {
    let engine = engine(super::converted(&with_pieces(|_| {}), &options()));
    let ids = std::fs::read(crate::data("checkpoints/sentence-piece/ids.json")).expect("data");
    let ids: BTreeMap<String, Vec<u32>> = serde_json::from_slice(&ids).expect("data");
    assert_eq!(ids.len(), 10);
    for (text, ids) in ids {
        assert_eq!(engine.tokenizer().encode(&text), ids, "{text:?}");
    }
    assert_eq!(engine.tokenizer().bos(), Some(1));
    assert!(engine.tokenizer().is_end(2));
    assert_eq!(engine.tokenizer().bytes(330), b"<pad>");
}

#[test]
fn a_damaged_tokenizer_model_is_refused_or_still_sound() {
    let len = std::fs::read(crate::data("checkpoints/sentence-piece/tokenizer.model")).expect("data").len();
    let plan = |damage: &dyn Fn(&mut Vec<u8>)| {
        ConvertPlan::checkpoint(&with_pieces(|bytes| damage(bytes)), &options())
    };
    let mut refused = 0;
    for at in (0..len).step_by(11) {
        for damage in [&|bytes: &mut Vec<u8>| bytes[at] = 0xff, &|bytes: &mut Vec<u8>| bytes.truncate(at)]
            as [&dyn Fn(&mut Vec<u8>); 2]
        {
            if let Err(error) = plan(damage) {
                let message = error.to_string();
                assert!(message.len() < 500 && !message.contains(char::is_control), "{message:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > len / 11, "{refused}");
}

#[test]
fn end_of_turn_and_beginning_of_text_are_found_in_every_file_that_names_them() {
    let mut files = files("llama-tiny-packed");
    let file = header(files.clone());
    // By its post-processor, since no setting says so.
    assert_eq!(file.value("tokenizer.ggml.add_bos_token"), Some(&MetadataValue::Bool(true)));
    assert_eq!(file.number("tokenizer.ggml.eot_token_id").expect("there"), 298);
    let id =
        |file: &Gguf, name: &str| file.number(&format!("tokenizer.ggml.{name}_token_id")).expect("there");
    assert_eq!((id(&file, "bos"), id(&file, "eos")), (296, 297));
    let tokenizer = files.iter_mut().find(|(name, _)| name == "tokenizer.json").expect("there");
    let without = String::from_utf8(tokenizer.1.clone()).expect("UTF-8").replace("<|eot_id|>", "<|other|>");
    let mut without: serde_json::Value = serde_json::from_str(&without).expect("JSON");
    without["post_processor"] = json!(null);
    tokenizer.1 = without.to_string().into_bytes();
    files
        .push(("generation_config.json".into(), json!({"eos_token_id": [297, 42]}).to_string().into_bytes()));
    let templates = [1, 2].map(|n| format!("{{% for m in messages %}}{n}{{{{ m.content }}}}{{% endfor %}}"));
    let list = json!([{"name": "tool_use", "template": "x"}, {"name": "default", "template": templates[0]}]);
    let config = json!({"add_bos_token": false, "chat_template": list});
    files.retain(|(name, _)| name != "tokenizer_config.json");
    files.push(("tokenizer_config.json".into(), config.to_string().into_bytes()));
    let file = header(files.clone());
    assert_eq!((id(&file, "eos"), id(&file, "eot")), (297, 42));
    assert_eq!(file.value("tokenizer.ggml.add_bos_token"), Some(&MetadataValue::Bool(false)));
    assert_eq!(file.text("tokenizer.chat_template").expect("a text"), Some(templates[0].as_str()));
    files.push(("chat_template.jinja".into(), templates[1].clone().into_bytes()));
    assert_eq!(header(files).text("tokenizer.chat_template").expect("a text"), Some(templates[1].as_str()));
}

#[test]
fn a_line_break_that_is_listed_among_the_added_tokens_stays_a_line_break() {
    let mut files = files("llama-tiny-packed");
    let tokenizer = files.iter_mut().find(|(name, _)| name == "tokenizer.json").expect("there");
    let mut json: serde_json::Value = serde_json::from_slice(&tokenizer.1).expect("JSON");
    let id = json["model"]["vocab"]["\u{10a}"].as_u64().expect("a byte");
    let added = json["added_tokens"].as_array_mut().expect("a list");
    added.push(json!({"id": id, "content": "\u{10a}", "special": false}));
    added[2]["special"] = json!(false);
    tokenizer.1 = json.to_string().into_bytes();
    let kinds: Vec<i64> =
        header(files).integers("tokenizer.ggml.token_type").expect("sound").expect("there").collect();
    assert_eq!((kinds[id as usize], kinds[298]), (1, 4));
}
