//! Checkpoints that are damaged, hostile or of another kind: each is an error of one line that names
//! the place, none is a panic.

use super::{files, options};
use bitnetd::engine::convert::{CheckpointFolder, ConvertError, ConvertPlan};
use serde_json::{Value, json};

/// A checkpoint in parts that a test changes.
struct Checkpoint(Vec<(String, Vec<u8>)>);

impl Checkpoint {
    fn new(name: &str) -> Self {
        Checkpoint(files(name))
    }

    fn file(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.0.iter_mut().find(|(file, _)| file == name).expect("a file of that name").1
    }

    fn remove(&mut self, name: &str) {
        self.0.retain(|(file, _)| file != name);
    }

    fn json(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let file = self.file(name);
        let mut value = serde_json::from_slice(file).expect("JSON");
        change(&mut value);
        *file = value.to_string().into_bytes();
    }

    /// Changes the header of `model.safetensors`; data stays.
    fn header(&mut self, change: impl FnOnce(&mut Value)) {
        let file = self.file("model.safetensors");
        let end = 8 + u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
        let mut header = serde_json::from_slice(&file[8..end]).expect("JSON");
        change(&mut header);
        self.raw_header(&header.to_string());
    }

    fn raw_header(&mut self, header: &str) {
        let file = self.file("model.safetensors");
        let end = 8 + u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
        let data = file.split_off(end);
        *file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(data);
    }

    /// Overwrites the first bytes of a tensor.
    fn tensor(&mut self, name: &str, bytes: &[u8]) {
        let file = self.file("model.safetensors");
        let end = 8 + u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
        let header: Value = serde_json::from_slice(&file[8..end]).expect("JSON");
        let at = end + header[name]["data_offsets"][0].as_u64().expect("there") as usize;
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[track_caller]
fn refused(name: &str, wanted: &[&str], damage: impl FnOnce(&mut Checkpoint)) {
    let mut checkpoint = Checkpoint::new(name);
    damage(&mut checkpoint);
    let plan = ConvertPlan::checkpoint(&CheckpointFolder::memory(checkpoint.0), &options());
    let message = match plan.map_err(ConvertError::from).and_then(|plan| plan.write(Vec::new())) {
        Err(ConvertError::Source(error)) => error.to_string(),
        Err(ConvertError::Output(error)) => panic!("{error}"),
        Ok(_) => panic!("not refused: {wanted:?}"),
    };
    assert!(wanted.iter().all(|wanted| message.contains(wanted)), "{wanted:?}: {message}");
    assert!(!message.contains(char::is_control) && (20..600).contains(&message.len()), "{message}");
}

const PACKED: &str = "b158-tiny-packed";
const MASTER: &str = "b158-tiny";
const SHARDED: &str = "falcon-tiny-sharded";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const SCALE: &str = "model.layers.0.mlp.down_proj.weight_scale";

#[test]
fn headers_that_lie_about_their_length_are_refused() {
    let model = "model.safetensors: header";
    refused(PACKED, &[model, "shorter than 8"], |c| c.file("model.safetensors").truncate(7));
    refused(PACKED, &[model, "bytes long"], |c| c.file("model.safetensors")[7] = 0xff);
    refused(PACKED, &[model, "bytes long"], |c| c.file("model.safetensors").truncate(100));
    refused(PACKED, &[model], |c| c.file("model.safetensors")[8] = b'[');
    refused(PACKED, &[model], |c| c.raw_header("{\"a\":{\"dtype\":7}}"));
    refused(PACKED, &[model], |c| c.raw_header(&"[".repeat(100_000)));
}

#[test]
fn tensors_that_do_not_cover_the_data_once_are_refused() {
    refused(PACKED, &["outside"], |c| {
        let file = c.file("model.safetensors");
        file.truncate(file.len() - 1);
    });
    refused(PACKED, &["data: ", "of which tensors have"], |c| c.file("model.safetensors").push(0));
    refused(PACKED, &[DOWN, "overlaps"], |c| {
        c.header(|h| h[DOWN]["data_offsets"] = json!([0, h[DOWN]["shape"][0].as_u64().expect("n") * 512]));
    });
    refused(PACKED, &["hole"], |c| c.header(|h| drop(h.as_object_mut().expect("an object").remove(DOWN))));
    refused(PACKED, &[DOWN, "comes twice"], |c| {
        let mut first = String::new();
        c.header(|h| first = h[DOWN].to_string());
        let file = c.file("model.safetensors");
        let end = 8 + u64::from_le_bytes(file[..8].try_into().expect("eight")) as usize;
        let header = String::from_utf8(file[8..end].to_vec()).expect("UTF-8");
        c.raw_header(&header.replacen('{', &format!("{{\"{DOWN}\":{first},"), 1));
    });
}

#[test]
fn types_and_shapes_that_disagree_are_refused() {
    refused(PACKED, &[DOWN, "does not take"], |c| c.header(|h| h[DOWN]["dtype"] = json!("F32")));
    refused(PACKED, &[DOWN, "not known"], |c| c.header(|h| h[DOWN]["dtype"] = json!("Q9\n")));
    refused(PACKED, &[DOWN, "does not take"], |c| c.header(|h| h[DOWN]["shape"] = json!([u64::MAX, 2])));
    refused(PACKED, &[DOWN, "does not take"], |c| c.header(|h| h[DOWN]["shape"] = json!(vec![1; 5000])));
    refused(PACKED, &[DOWN, "has shape [512, 64]"], |c| c.header(|h| h[DOWN]["shape"] = json!([512, 64])));
    refused(PACKED, &[DOWN, "I8"], |c| c.header(|h| h[DOWN]["dtype"] = json!("I8")));
    refused(PACKED, &["header", "tensor"], |c| c.header(|h| h[DOWN]["shape"] = json!([-1, 2])));
    refused(PACKED, &[DOWN, "outside"], |c| c.header(|h| h[DOWN]["data_offsets"] = json!([9, 3])));
}

#[test]
fn missing_and_unknown_tensors_are_refused_by_name() {
    let rename = |from: &'static str, to: &'static str| {
        move |c: &mut Checkpoint| {
            c.header(|h| {
                let entry = h.as_object_mut().expect("an object").remove(from).expect("there");
                h[to] = entry;
            });
        }
    };
    refused(PACKED, &[DOWN, "missing"], rename(DOWN, "x"));
    refused(PACKED, &[SCALE, "missing"], rename(SCALE, "x"));
    refused(PACKED, &["tensor model.layers.2", "missing"], |c| {
        c.json("config.json", |v| v["num_hidden_layers"] = json!(3));
    });
    refused(PACKED, &["model.layers.1", "not part of"], |c| {
        c.json("config.json", |v| v["num_hidden_layers"] = json!(1));
    });
    refused(SHARDED, &["lm_head.weight", "missing"], |c| {
        c.json("model.safetensors.index.json", |v| {
            drop(v["weight_map"].as_object_mut().expect("an object").remove("lm_head.weight"));
        });
    });
}

#[test]
fn scales_that_are_no_numbers_above_0_are_refused() {
    for scale in [0.0f32, -0.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        refused(PACKED, &[SCALE, "not a number above 0"], |c| c.tensor(SCALE, &scale.to_le_bytes()));
    }
    let divides = "model.layers.0.mlp.down_proj.weight_scale";
    // Its reciprocal is infinite.
    refused("llama-tiny-packed", &[divides, "above 0"], |c| c.tensor(divides, &[1, 0]));
}

#[test]
fn weights_that_are_not_numbers_or_not_ternary_are_refused() {
    refused(PACKED, &[DOWN, "code 3"], |c| c.tensor(DOWN, &[0xff]));
    refused(MASTER, &[DOWN, "row 0", "not a number"], |c| c.tensor(DOWN, &[0xc0, 0x7f]));
    refused(MASTER, &["embed_tokens", "row 0 column 0"], |c| {
        c.tensor("model.embed_tokens.weight", &[0x80, 0x7f]);
    });
}

#[test]
fn an_ordinary_model_is_refused_before_anything_is_written() {
    // Numbers that nothing says how to quantise.
    let mut ordinary = Checkpoint::new(MASTER);
    ordinary
        .json("config.json", |v| drop(v.as_object_mut().expect("an object").remove("quantization_config")));
    let plan = ConvertPlan::checkpoint(&CheckpointFolder::memory(ordinary.0), &options());
    let message = plan.expect_err("no BitNet model").to_string();
    assert!(message.contains("model.layers.0.") && message.contains("not ternary"), "{message}");
}

#[test]
fn an_index_leads_nowhere_outside_its_folder() {
    for name in
        ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "x\0.safetensors", "config.json", ""]
    {
        refused(SHARDED, &["model.safetensors.index.json", "no safetensors file of the folder"], |c| {
            c.json("model.safetensors.index.json", |v| v["weight_map"]["lm_head.weight"] = json!(name));
        });
    }
    refused(SHARDED, &["gone.safetensors", "missing"], |c| {
        c.json("model.safetensors.index.json", |v| {
            v["weight_map"]["lm_head.weight"] = json!("gone.safetensors")
        });
    });
    refused(SHARDED, &["lm_head.weight", "it is not"], |c| {
        let other = "model-00003-of-00003.safetensors";
        c.json("model.safetensors.index.json", |v| {
            let now = v["weight_map"]["lm_head.weight"].as_str() == Some(other);
            v["weight_map"]["lm_head.weight"] =
                json!(if now { "model-00001-of-00003.safetensors" } else { other });
        });
    });
    refused(SHARDED, &["model.safetensors", "no model.safetensors.index.json"], |c| {
        c.remove("model.safetensors.index.json");
    });
}

#[test]
fn numbers_of_the_configuration_that_make_no_model_are_refused() {
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(1u64 << 40)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(63)),
        ("head_dim", json!(1 << 23)),
        ("vocab_size", json!(1u64 << 60)),
        ("num_hidden_layers", json!(100_000)),
        ("rms_norm_eps", json!(-1e-5)),
        ("rope_theta", json!(0)),
        ("hidden_act", json!("gelu")),
        ("intermediate_size", json!("many")),
        ("architectures", json!(["Mamba\u{1b}[2J"])),
        ("architectures", json!([])),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
        ("rope_scaling", json!({"rope_type": "llama3", "low_freq_factor": 4.0, "high_freq_factor": 1.0})),
    ] {
        refused(PACKED, &["config.json", key], |c| c.json("config.json", |v| v[key] = value.clone()));
    }
    for (key, value) in
        [("quant_method", json!("gptq")), ("linear_class", json!("other")), ("use_rms_norm", json!(true))]
    {
        let place = format!("quantization_config.{key}");
        refused(PACKED, &["config.json", &place], |c| {
            c.json("config.json", |v| v["quantization_config"][key] = value.clone());
        });
    }
    refused(PACKED, &["config.json", "missing"], |c| c.remove("config.json"));
    refused(PACKED, &["config.json"], |c| c.file("config.json").truncate(30));
    // More than there are rows: refused before memory for it is allocated.
    refused(PACKED, &["embed_tokens"], |c| c.json("config.json", |v| v["vocab_size"] = json!(1 << 24)));
}

#[test]
fn vocabularies_that_do_not_fit_are_refused() {
    refused(PACKED, &["tokenizer.json", "missing", "no tokenizer.model"], |c| c.remove("tokenizer.json"));
    refused(PACKED, &["tokenizer.json: model.type", "Unigram"], |c| {
        c.json("tokenizer.json", |v| v["model"]["type"] = json!("Unigram"));
    });
    refused(PACKED, &["tokenizer.json: vocab", "id 2048"], |c| {
        c.json("tokenizer.json", |v| v["added_tokens"][0]["id"] = json!(2048));
    });
    refused(PACKED, &["tokenizer.json: model.merges"], |c| {
        c.json("tokenizer.json", |v| v["model"]["merges"][3] = json!("one"));
    });
    refused(PACKED, &["tokenizer.json: pre_tokenizer", "ByteLevel"], |c| {
        c.json("tokenizer.json", |v| v["pre_tokenizer"] = json!({"type": "ByteLevel", "use_regex": true}));
    });
    refused(PACKED, &["special tokens", "outside the vocabulary"], |c| {
        c.json("config.json", |v| v["eos_token_id"] = json!([1 << 20]));
        c.json("tokenizer_config.json", |v| v["eos_token"] = json!(null));
    });
    refused(PACKED, &["chat_template.jinja", "not UTF-8"], |c| {
        c.0.push(("chat_template.jinja".into(), vec![0xff]))
    });
}
