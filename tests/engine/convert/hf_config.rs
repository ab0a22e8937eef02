//! Settings of a checkpoint's files that change a result: carried over, or refused by the name of their key before
//! anything is written.

use super::{converted, engine, files, options};
use bitnetd::engine::convert::{CheckpointFolder, ConvertPlan};
use bitnetd::engine::gguf::{FileMap, Gguf};
use serde_json::{Value, json};

pub(super) type Files = Vec<(String, Vec<u8>)>;

pub(super) const BYTES: &str = "b158-tiny";
pub(super) const PIECES: &str = "bitnet-tiny-f16";
pub(super) const LLAMA: &str = "llama-tiny-packed";

/// Changes a JSON file, which is made where there is none.
pub(super) fn json(files: &mut Files, name: &str, change: impl FnOnce(&mut Value)) {
    let at = files.iter().position(|(file, _)| file == name);
    let mut value = at.map_or(json!({}), |at| serde_json::from_slice(&files[at].1).expect("JSON"));
    change(&mut value);
    files.retain(|(file, _)| file != name);
    files.push((name.to_owned(), value.to_string().into_bytes()));
}

/// What is wrong with a checkpoint whose plan is refused.
#[track_caller]
pub(super) fn error(name: &str, change: impl FnOnce(&mut Files)) -> String {
    let mut files = files(name);
    change(&mut files);
    let plan = ConvertPlan::checkpoint(&CheckpointFolder::memory(files), &options());
    let message = plan.expect_err("what changes the result").to_string();
    assert!(!message.contains(char::is_control) && message.len() < 600, "{message}");
    message
}

#[track_caller]
pub(super) fn refused(name: &str, file: &str, place: &str, change: impl FnOnce(&mut Value)) {
    let message = error(name, |files| json(files, file, change));
    assert!(message.starts_with(&format!("{file}: {place}")), "{place}: {message}");
}

pub(super) fn changed(name: &str, file: &str, change: impl FnOnce(&mut Value)) -> CheckpointFolder {
    let mut files = files(name);
    json(&mut files, file, change);
    CheckpointFolder::memory(files)
}

pub(super) fn parsed(folder: &CheckpointFolder) -> Gguf {
    Gguf::parse(FileMap::from(converted(folder, &options()))).expect("sound")
}

#[test]
fn every_end_token_of_every_file_ends_an_answer() {
    let mut files = files(BYTES);
    json(&mut files, "generation_config.json", |v| v["eos_token_id"] = json!([2047, 1012, 7]));
    json(&mut files, "config.json", |v| v["eos_token_id"] = json!([2046, 9]));
    json(&mut files, "special_tokens_map.json", |v| v["eos_token"] = json!({"content": "<|eot_id|>"}));
    let tokenizer = engine(converted(&CheckpointFolder::memory(files), &options()));
    let tokenizer = tokenizer.tokenizer();
    let ends: Vec<u32> = (0..2048).filter(|id| tokenizer.is_end(*id)).collect();
    assert_eq!(ends, [7, 9, 1012, 2046, 2047]);
    let file = parsed(&changed(BYTES, "config.json", |v| v["eos_token_id"] = json!(1012)));
    let all: Vec<i64> =
        file.integers("tokenizer.ggml.eos_token_ids").expect("sound").expect("three").collect();
    assert_eq!(all, [2046, 1012]);
    refused(BYTES, "tokenizer_config.json", "eos_token", |v| v["eos_token"] = json!("<|nowhere|>"));
}

#[test]
fn unsupported_normalizers_and_pre_tokenizers_are_refused() {
    let tokenizer = "tokenizer.json";
    for kind in ["NFC", "NFD", "NFKC", "Lowercase", "StripAccents", "Nmt", "Precompiled", "BertNormalizer"] {
        refused(BYTES, tokenizer, "normalizer", |v| v["normalizer"] = json!({"type": kind}));
        refused(PIECES, tokenizer, "normalizer", |v| {
            v["normalizer"]["normalizers"].as_array_mut().expect("a list").insert(0, json!({"type": kind}));
        });
    }
    refused(PIECES, tokenizer, "normalizer", |v| v["normalizer"] = json!(null));
    refused(PIECES, tokenizer, "normalizer", |v| v["normalizer"]["normalizers"][0]["prepend"] = json!("x"));
    for scheme in ["first", "always"] {
        refused(PIECES, tokenizer, "pre_tokenizer", |v| {
            v["normalizer"] = json!(null);
            v["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false});
        });
    }
    for (step, key, value) in [
        (0, "behavior", json!("Removed")),
        (0, "invert", json!(true)),
        (1, "add_prefix_space", json!(true)),
        (1, "use_regex", json!(true)),
        (1, "unheard_of", json!(1)),
    ] {
        refused(BYTES, tokenizer, "pre_tokenizer", |v| {
            v["pre_tokenizer"]["pretokenizers"][step][key] = value
        });
    }
    refused(BYTES, tokenizer, "decoder", |v| v["decoder"] = json!({"type": "WordPiece"}));
    refused(LLAMA, tokenizer, "post_processor.single", |v| {
        let sequence = json!({"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}});
        v["post_processor"]["single"].as_array_mut().expect("a list").push(sequence);
    });
    refused(LLAMA, tokenizer, "post_processor", |v| v["post_processor"] = json!({"type": "BertProcessing"}));
}

#[test]
fn text_that_begins_with_no_token_stays_so() {
    let folder = changed(LLAMA, "tokenizer.json", |v| {
        v["post_processor"]["single"].as_array_mut().expect("a list").remove(0);
    });
    assert_eq!(parsed(&folder).bool("tokenizer.ggml.add_bos_token").expect("a bool"), Some(false));
}

#[test]
fn options_of_the_model_and_flags_of_added_tokens_are_refused() {
    for (key, value) in [
        ("dropout", json!(0.1)),
        ("continuing_subword_prefix", json!("##")),
        ("end_of_word_suffix", json!("</w>")),
        ("unheard_of", json!(1)),
    ] {
        refused(BYTES, "tokenizer.json", &format!("model.{key}"), |v| v["model"][key] = value);
    }
    refused(PIECES, "tokenizer.json", "model.ignore_merges", |v| v["model"]["ignore_merges"] = json!(true));
    for flag in ["lstrip", "rstrip", "single_word"] {
        refused(BYTES, "tokenizer.json", &format!("added_tokens[1].{flag}"), |v| {
            v["added_tokens"][1][flag] = json!(true);
        });
        refused(BYTES, "tokenizer_config.json", &format!("eos_token.{flag}"), |v| {
            v["eos_token"] = json!({"content": "<|end_of_text|>", flag: true});
        });
        refused(BYTES, "tokenizer_config.json", &format!("added_tokens_decoder.2047.{flag}"), |v| {
            v["added_tokens_decoder"] = json!({"2047": {"content": "<|eot_id|>", flag: true}});
        });
    }
    refused(PIECES, "tokenizer.json", "added_tokens[0].normalized", |v| {
        v["added_tokens"][0]["normalized"] = json!(true);
    });
    // Nothing is rewritten there.
    let folder = changed(BYTES, "tokenizer.json", |v| v["added_tokens"][0]["normalized"] = json!(true));
    parsed(&folder);
    refused(BYTES, "tokenizer.json", "added_tokens[0].id", |v| {
        v["added_tokens"][0]["content"] =
            v["model"]["vocab"].as_object().expect("tokens").keys().next().cloned().into();
    });
}

#[test]
fn merges_that_alone_decide_are_carried_over_only_where_they_do() {
    // The first merge's token is reached no more.
    let without_a_merge = |ignore: bool| {
        changed(BYTES, "tokenizer.json", move |v| {
            v["model"]["ignore_merges"] = json!(ignore);
            v["model"]["merges"].as_array_mut().expect("a list").pop();
        })
    };
    let error =
        ConvertPlan::checkpoint(&without_a_merge(false), &options()).expect_err("another cut").to_string();
    assert!(error.starts_with("tokenizer.json: model.ignore_merges: "), "{error}");
    parsed(&without_a_merge(true));
}

#[test]
fn a_head_beside_a_tied_flag_is_the_embedding_or_refused() {
    // Both are [vocab, dim]; the data of another tensor is as good as any.
    let head = |same: bool| {
        let mut files = files(BYTES);
        let model = &mut files.iter_mut().find(|(name, _)| name == "model.safetensors").expect("there").1;
        let end = 8 + u64::from_le_bytes(model[..8].try_into().expect("eight")) as usize;
        let mut header: Value = serde_json::from_slice(&model[8..end]).expect("JSON");
        let entry = header["model.embed_tokens.weight"].clone();
        let offsets = [0, 1].map(|at| entry["data_offsets"][at].as_u64().expect("a number") as usize);
        let mut data = model[end..].to_vec();
        let mut copy = data[offsets[0]..offsets[1]].to_vec();
        copy[1] ^= if same { 0 } else { 0x80 };
        let place = [data.len(), data.len() + copy.len()];
        data.extend(copy);
        header["lm_head.weight"] =
            json!({"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": place});
        let header = header.to_string().into_bytes();
        *model = [(header.len() as u64).to_le_bytes().to_vec(), header, data].concat();
        ConvertPlan::checkpoint(&CheckpointFolder::memory(files), &options())
    };
    head(true).expect("the same numbers");
    let message = head(false).expect_err("another matrix").to_string();
    assert!(message.contains("lm_head.weight") && message.contains("tie_word_embeddings"), "{message}");
}

#[test]
fn modules_attention_and_rope_that_this_engine_has_not_are_refused() {
    for list in [json!(["model.layers.0.mlp.down_proj", "lm_head"]), json!(["q_proj", "lm_head"]), json!([])]
    {
        refused(LLAMA, "config.json", "quantization_config.modules_to_not_convert", |v| {
            v["quantization_config"]["modules_to_not_convert"] = list;
        });
    }
    parsed(&changed(LLAMA, "config.json", |v| {
        v["quantization_config"]["modules_to_not_convert"] = json!(["lm_head"]);
    }));
    for (key, value) in [
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("sliding_window", json!(128)),
        ("partial_rotary_factor", json!(0.5)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("final_logit_softcapping", json!(30.0)),
        ("unheard_of", json!("x")),
        ("suppress_tokens", json!([5])),
    ] {
        refused(LLAMA, "config.json", key, |v| v[key] = value);
    }
    refused(LLAMA, "config.json", "rope_theta", |v| v["rope_theta"] = json!(10_000.0));
    refused(LLAMA, "config.json", "rope_scaling.factor", |v| {
        drop(v["rope_scaling"].as_object_mut().map(|o| o.remove("factor")))
    });
    refused(LLAMA, "config.json", "rope_scaling.beta_fast", |v| v["rope_scaling"]["beta_fast"] = json!(32));
    refused(LLAMA, "config.json", "rope_parameters", |v| {
        v["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 500_000.0});
    });
    for (key, value) in
        [("stop_strings", json!(["x"])), ("no_repeat_ngram_size", json!(3)), ("unheard_of", json!(1))]
    {
        refused(LLAMA, "generation_config.json", key, |v| v[key] = value);
    }
    for (key, value) in [
        ("add_eos_token", json!(true)),
        ("do_lower_case", json!(true)),
        ("add_prefix_space", json!(true)),
        ("additional_special_tokens", json!(["<|nowhere|>"])),
        ("added_tokens_decoder", json!({"298": {"content": "<|other|>"}})),
        ("unheard_of", json!(1)),
    ] {
        refused(LLAMA, "tokenizer_config.json", key, |v| v[key] = value);
    }
}

#[test]
fn keys_that_cannot_change_a_result_are_accepted() {
    let mut files = files(LLAMA);
    json(&mut files, "config.json", |v| {
        let more = json!({"transformers_version": "4.40.0", "auto_map": {"AutoConfig": "x"}, "use_cache": true,
            "attention_bias": false, "attention_dropout": 0.0, "initializer_range": 0.02, "pretraining_tp": 1,
            "sliding_window": null, "_name_or_path": "/x", "pad_token_id": 0});
        v.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    });
    json(&mut files, "generation_config.json", |v| {
        *v = json!({"_from_model_config": true, "do_sample": true, "temperature": 0.6, "top_p": 0.9, "max_length": 4096,
            "transformers_version": "4.40.0", "eos_token_id": [297, 298], "bos_token_id": 296});
    });
    json(&mut files, "tokenizer_config.json", |v| {
        v["clean_up_tokenization_spaces"] = json!(true);
        v["model_input_names"] = json!(["input_ids"]);
        v["added_tokens_decoder"] =
            json!({"298": {"content": "<|eot_id|>", "lstrip": false, "special": true}});
    });
    let plan =
        ConvertPlan::checkpoint(&CheckpointFolder::memory(files), &options()).expect("nothing that matters");
    assert!(plan.notes().iter().any(|note| note.contains("temperature, top_p")), "{:?}", plan.notes());
}

#[test]
fn linear_scaling_is_carried_over() {
    let file = parsed(&changed(LLAMA, "config.json", |v| {
        v["rope_scaling"] = json!({"rope_type": "linear", "factor": 2.0});
    }));
    assert_eq!(file.text("llama.rope.scaling.type").expect("a text"), Some("linear"));
    assert_eq!(file.float_or("llama.rope.scaling.factor", 0.0), Ok(2.0));
}

#[test]
fn duplicate_keys_and_byte_order_marks_are_found_in_every_file() {
    for (name, place) in
        [("config.json", "hidden_size"), ("tokenizer.json", "model.vocab.x"), ("tokenizer_config.json", "a")]
    {
        let message = error(BYTES, |files| {
            let text = &mut files.iter_mut().find(|(file, _)| file == name).expect("there").1;
            let twice = match name {
                "tokenizer.json" => "{\"model\":{\"vocab\":{\"x\":1,\"x\":1}},".to_owned(),
                _ => format!("{{\"{place}\":1,\"{place}\":1,"),
            };
            let rest = text[text.iter().position(|byte| *byte == b'{').expect("an object") + 1..].to_vec();
            *text = [twice.into_bytes(), rest].concat();
        });
        assert!(message.starts_with(&format!("{name}: {place}: given twice")), "{message}");
    }
    let mut marked = files(BYTES);
    for (name, bytes) in &mut marked {
        if name.ends_with(".json") {
            bytes.splice(..0, *b"\xef\xbb\xbf");
        }
    }
    let bytes = converted(&CheckpointFolder::memory(marked), &options());
    assert!(bytes == converted(&CheckpointFolder::memory(files(BYTES)), &options()));
}

#[test]
fn files_left_by_a_failed_download_are_identified() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        for (bytes, word) in
            [(pointer.clone(), "git-LFS"), (b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec(), "gzip")]
        {
            let message = error(BYTES, |files| {
                files.iter_mut().find(|(file, _)| file == name).expect("there").1 = bytes
            });
            assert!(message.contains(name) && message.contains(word), "{message}");
        }
    }
    let message = error(BYTES, |files| {
        files.iter_mut().find(|(file, _)| file == "tokenizer.json").expect("there").1.truncate(999)
    });
    assert!(message.contains("tokenizer.json") && message.contains("half-downloaded"), "{message}");
    for (name, word) in
        [("model-00001-of-00002.safetensors", "part of a split"), ("pytorch_model.bin", "PyTorch")]
    {
        let message = error(BYTES, |files| {
            files.iter_mut().find(|(file, _)| file == "model.safetensors").expect("there").0 = name.into();
        });
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn numbers_that_cannot_be_written_are_found_before_anything_is() {
    for (name, tensor, bytes) in [
        (BYTES, "model.norm.weight", &[0xc0, 0x7f, 0xc0, 0x7f][..]),
        (BYTES, "model.layers.1.mlp.up_proj.weight", &[0xc0, 0x7f]),
        ("b158-tiny-packed", "model.layers.0.self_attn.q_proj.weight", &[0xff]),
    ] {
        let mut files = files(name);
        let model = &mut files.iter_mut().find(|(file, _)| file == "model.safetensors").expect("there").1;
        let end = 8 + u64::from_le_bytes(model[..8].try_into().expect("eight")) as usize;
        let header: Value = serde_json::from_slice(&model[8..end]).expect("JSON");
        let at = end + header[tensor]["data_offsets"][0].as_u64().expect("there") as usize;
        // Whatever the type, two bytes of these are the upper half of a NaN.
        model[at..at + bytes.len()].copy_from_slice(bytes);
        let plan =
            ConvertPlan::checkpoint(&CheckpointFolder::memory(files), &options()).expect("not read yet");
        let message = plan.verify().expect_err("damage").to_string();
        assert!(message.contains(tensor), "{message}");
    }
}
