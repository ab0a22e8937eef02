//! Files of a checkpoint that contradict each other or leave out what they need: refused by name, or a note names what
//! is left out.

use super::hf_config::{BYTES, LLAMA, PIECES, changed, error, json, parsed, refused};
use super::{files, options};
use bitnetd::engine::convert::{CheckpointFolder, ConvertPlan};
use bitnetd::engine::gguf::Gguf;
use serde_json::{Value, json};

const TOKENIZER: &str = "tokenizer.json";
const COMPANION: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const GENERATION: &str = "generation_config.json";

/// The notes of a plan, in one text.
fn notes(folder: &CheckpointFolder) -> String {
    let plan = ConvertPlan::checkpoint(folder, &options()).expect("a sound checkpoint");
    plan.notes().join("\n")
}

fn adds_bos(file: &Gguf) -> bool {
    file.bool("tokenizer.ggml.add_bos_token").expect("a bool").expect("there")
}

fn steps(tokenizer: &mut Value) -> &mut Vec<Value> {
    tokenizer["decoder"]["decoders"].as_array_mut().expect("a list")
}

#[test]
fn the_decoder_is_exactly_the_one_that_this_engine_has() {
    for start in [0, 2, 3] {
        refused(PIECES, TOKENIZER, "decoder: [", |v| steps(v)[3]["start"] = json!(start));
    }
    refused(PIECES, TOKENIZER, "decoder: [", |v| steps(v)[3]["stop"] = json!(1));
    for step in 0..4 {
        refused(PIECES, TOKENIZER, "decoder: [", |v| drop(steps(v).remove(step)));
        refused(PIECES, TOKENIZER, "decoder: [", |v| {
            let again = steps(v)[step].clone();
            steps(v).push(again);
        });
    }
    refused(PIECES, TOKENIZER, "decoder: [", |v| steps(v).swap(0, 1));
    for name in [PIECES, BYTES, LLAMA] {
        refused(name, TOKENIZER, "decoder: missing", |v| v["decoder"] = json!(null));
        refused(name, TOKENIZER, "decoder: missing", |v| {
            drop(v.as_object_mut().map(|v| v.remove("decoder")))
        });
    }
    refused(BYTES, TOKENIZER, "decoder: [ByteLevel, Fuse]", |v| {
        v["decoder"] = json!({"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Fuse"}]});
    });
    // A space is removed exactly where one is put before a text.
    let without_space = |v: &mut Value| {
        drop(v["normalizer"]["normalizers"].as_array_mut().expect("a list").remove(0));
    };
    refused(PIECES, TOKENIZER, "decoder: [", without_space);
    let file = parsed(&changed(PIECES, TOKENIZER, |v| {
        without_space(v);
        steps(v).pop();
    }));
    assert_eq!(file.bool("tokenizer.ggml.add_space_prefix"), Ok(Some(false)));
}

#[test]
fn special_tokens_that_no_vocabulary_has_or_two_files_dispute_are_refused() {
    let nowhere = "<|nowhere|>";
    for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
        for file in [MAP, COMPANION] {
            refused(LLAMA, file, key, |v| v[key] = json!(nowhere));
        }
    }
    for key in ["additional_special_tokens", "extra_special_tokens"] {
        for file in [MAP, COMPANION] {
            refused(LLAMA, file, key, |v| v[key] = json!([nowhere]));
            refused(LLAMA, file, key, |v| v[key] = json!({"x": nowhere}));
            refused(LLAMA, file, key, |v| v[key] = json!([5]));
            refused(LLAMA, file, key, |v| v[key] = json!("<|eot_id|>"));
            for flag in ["lstrip", "rstrip", "single_word"] {
                let token = json!({"content": "<|eot_id|>", flag: true});
                refused(LLAMA, file, &format!("{key}.x.{flag}"), |v| v[key] = json!({"x": token}));
                refused(LLAMA, file, &format!("{key}[0].{flag}"), |v| v[key] = json!([token]));
            }
            parsed(&changed(LLAMA, file, |v| v[key] = json!(["<|eot_id|>"])));
        }
    }
    refused(LLAMA, MAP, "bos_token: is token 298", |v| v["bos_token"] = json!("<|eot_id|>"));
    refused(PIECES, MAP, "unk_token: is token 2", |v| v["unk_token"] = json!("</s>"));
    refused(LLAMA, MAP, "add_bos_token", |v| v["add_bos_token"] = json!(false));
    refused(LLAMA, GENERATION, "bos_token_id: is 5", |v| v["bos_token_id"] = json!(5));
    parsed(&changed(LLAMA, GENERATION, |v| v["bos_token_id"] = json!(296)));
    // What only the map names is carried over.
    let mut named = files(LLAMA);
    json(&mut named, COMPANION, |v| *v = json!({}));
    json(&mut named, "config.json", |v| v["bos_token_id"] = json!(null));
    json(&mut named, MAP, |v| *v = json!({"bos_token": "<|begin_of_text|>", "pad_token": "<|eot_id|>"}));
    let file = parsed(&CheckpointFolder::memory(named));
    for (key, id) in [("bos", 296), ("padding", 298)] {
        assert_eq!(file.number(&format!("tokenizer.ggml.{key}_token_id")), Ok(id));
    }
    let other = changed(LLAMA, "config.json", |v| v["bos_token_id"] = json!(5));
    assert!(notes(&other).contains("config.json: bos_token_id 5 left out"), "{}", notes(&other));
}

#[test]
fn tokens_that_were_added_later_are_those_of_the_vocabulary() {
    let added = "added_tokens.json";
    for name in [LLAMA, BYTES, PIECES] {
        refused(name, added, "<|nowhere|>: is token 2, where", |v| *v = json!({"<|nowhere|>": 2}));
        refused(name, added, "<|nowhere|>: is token 9999, outside", |v| *v = json!({"<|nowhere|>": 9999}));
    }
    refused(PIECES, added, "<|nowhere|>: is token 341, where", |v| *v = json!({"<|nowhere|>": 341}));
    refused(LLAMA, added, "<|eot_id|>: is token 297, where", |v| *v = json!({"<|eot_id|>": 297}));
    parsed(&changed(LLAMA, added, |v| *v = json!({"<|eot_id|>": 298, "<|end_of_text|>": 297})));
    // The same where the vocabulary is SentencePiece's own file.
    let message = error(PIECES, |files| {
        files.retain(|(name, _)| name != TOKENIZER);
        let model = std::fs::read(crate::data("checkpoints/sentence-piece/tokenizer.model")).expect("data");
        files.push(("tokenizer.model".into(), model));
        json(files, added, |v| *v = json!({"<|nowhere|>": 5}));
    });
    assert!(message.starts_with("added_tokens.json: <|nowhere|>: is token 5, where"), "{message}");
    refused(LLAMA, COMPANION, "added_tokens_decoder.298.special", |v| {
        v["added_tokens_decoder"] = json!({"298": {"content": "<|eot_id|>", "special": false}});
    });
}

#[test]
fn templates_that_are_not_used_are_named() {
    let list = |names: &[&str]| {
        let one =
            |name: &&str| json!({"name": name, "template": format!("{name} {{{{ messages[0].content }}}}")});
        Value::from(names.iter().map(one).collect::<Vec<_>>())
    };
    let of = |names: &[&str]| changed(LLAMA, COMPANION, |v| v["chat_template"] = list(names));
    let template = |folder: &CheckpointFolder| {
        parsed(folder).text("tokenizer.chat_template").expect("a text").map(str::to_owned)
    };
    let none = of(&["tool_use", "rag"]);
    assert!(template(&none).is_none());
    let left_out = notes(&none);
    assert!(left_out.contains("\"tool_use\", \"rag\" left out: none of them is \"default\""), "{left_out}");
    let two = of(&["default", "rag"]);
    assert!(template(&two).is_some_and(|text| text.starts_with("default ")));
    assert!(notes(&two).contains("chat_template: \"rag\" left out"), "{}", notes(&two));
    for twice in [&["default", "default"], &["rag", "rag"]] {
        refused(LLAMA, COMPANION, "chat_template: ", |v| v["chat_template"] = list(twice));
    }
    // In the order of transformers: the file of its own, the JSON file, the tokenizer's configuration.
    let mut files = files(LLAMA);
    let text = |n: u32| format!("{n}{{{{ messages[0].content }}}}");
    json(&mut files, COMPANION, |v| v["chat_template"] = json!(text(3)));
    json(&mut files, "chat_template.json", |v| v["chat_template"] = json!(text(2)));
    let folder = CheckpointFolder::memory(files.clone());
    assert_eq!(template(&folder), Some(text(2)));
    assert!(notes(&folder).contains("tokenizer_config.json: chat_template left out"), "{}", notes(&folder));
    files.push(("chat_template.jinja".into(), text(1).into_bytes()));
    files.push(("additional_chat_templates/rag.jinja".into(), text(4).into_bytes()));
    let folder = CheckpointFolder::memory(files);
    assert_eq!(template(&folder), Some(text(1)));
    for left_out in ["chat_template.json: chat_template left out", "additional_chat_templates left out"] {
        assert!(notes(&folder).contains(left_out), "{}", notes(&folder));
    }
    refused(LLAMA, "chat_template.json", "unheard_of", |v| v["unheard_of"] = json!("x"));
}

#[test]
fn rotation_is_the_familys_default_where_no_key_gives_it_and_half_given_stretching_is_refused() {
    for (name, key, want) in [
        (BYTES, "bitnet-b1.58", 500_000.0),
        (PIECES, "bitnet", 10_000.0),
        ("falcon-tiny-sharded", "llama", 10_000.0),
    ] {
        let file = parsed(&changed(name, "config.json", |v| v["rope_theta"] = json!(null)));
        assert_eq!(file.float_or(&format!("{key}.rope.freq_base"), 0.0), Ok(want), "{name}");
    }
    for section in ["rope_scaling", "rope_parameters"] {
        for scaling in [json!({"factor": 4.0}), json!({"original_max_position_embeddings": 64})] {
            refused("falcon-tiny-sharded", "config.json", &format!("{section}.rope_type: missing"), |v| {
                v[section] = scaling;
            });
        }
    }
    refused(LLAMA, "config.json", "rope_scaling.rope_type", |v| v["rope_scaling"]["type"] = json!("linear"));
    parsed(&changed(LLAMA, "config.json", |v| v["rope_scaling"]["type"] = json!("llama3")));
    let base = json!({"rope_theta": 1_000_042.0});
    parsed(&changed("falcon-tiny-sharded", "config.json", |v| v["rope_parameters"] = base));
}

#[test]
fn a_model_type_that_does_not_fit_the_architecture_is_refused() {
    for (name, sound, others) in [
        (LLAMA, &["llama"][..], &["mistral", "gemma2", "bitnet"][..]),
        (BYTES, &["bitnet"], &["llama", "mistral"]),
        (PIECES, &["llama", "bitnet"], &["mistral"]),
    ] {
        for other in others {
            refused(name, "config.json", "model_type", |v| v["model_type"] = json!(other));
        }
        for sound in sound {
            parsed(&changed(name, "config.json", |v| v["model_type"] = json!(sound)));
        }
        parsed(&changed(name, "config.json", |v| v["model_type"] = json!(null)));
    }
}

#[test]
fn whether_texts_begin_with_a_token_is_consistent() {
    let null = |v: &mut Value| v["post_processor"] = json!(null);
    let processor = "post_processor: no template, and no add_bos_token is given: ";
    refused(LLAMA, COMPANION, "add_bos_token: is false", |v| v["add_bos_token"] = json!(false));
    let message = error(LLAMA, |files| {
        json(files, COMPANION, |v| v["add_bos_token"] = json!(true));
        json(files, TOKENIZER, |v| {
            drop(v["post_processor"]["single"].as_array_mut().map(|all| all.remove(0)))
        });
    });
    assert!(message.starts_with("tokenizer_config.json: add_bos_token: is true"), "{message}");
    let message = error(LLAMA, |files| {
        json(files, "config.json", |v| v["bos_token_id"] = json!(null));
        json(files, COMPANION, |v| *v = json!({"add_bos_token": true}));
        json(files, TOKENIZER, null);
    });
    assert!(message.starts_with("tokenizer_config.json: add_bos_token: "), "{message}");
    refused(LLAMA, TOKENIZER, "post_processor.single: puts the tokens [296, 296] before", |v| {
        let single = v["post_processor"]["single"].as_array_mut().expect("a list");
        single.insert(0, single[0].clone());
    });
    // The generic class of transformers does only what the file says; Llama's puts the token before texts.
    let generic = changed(LLAMA, TOKENIZER, null);
    assert!(!adds_bos(&parsed(&generic)));
    assert!(notes(&generic).contains(&format!("{processor}no token is put")), "{}", notes(&generic));
    for (class, begins) in [("LlamaTokenizerFast", true), ("PreTrainedTokenizerFast", false)] {
        let mut files = files(LLAMA);
        json(&mut files, TOKENIZER, null);
        json(&mut files, COMPANION, |v| v["tokenizer_class"] = json!(class));
        assert_eq!(adds_bos(&parsed(&CheckpointFolder::memory(files))), begins, "{class}");
    }
    // The published vocabulary of BitNet b1.58 2B-4T is of this kind, and its texts begin with the token.
    let bitnet = CheckpointFolder::memory(files(BYTES));
    assert!(adds_bos(&parsed(&bitnet)));
    assert!(notes(&bitnet).contains(&format!("{processor}texts begin")), "{}", notes(&bitnet));
}
