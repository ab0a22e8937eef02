//! The hyperparameters of a model: missing, of the wrong type, impossible, or far too large.

use super::refused;
use crate::fixtures::{self, array, double, flag, float, number, text, value};

const NEEDED: &[&str] =
    &["context_length", "embedding_length", "block_count", "attention.head_count", "feed_forward_length"];

fn key(name: &str) -> String {
    format!("bitnet-b1.58.{name}")
}

fn named(name: &str) -> String {
    format!("metadata key bitnet-b1.58.{name}: ")
}

#[test]
fn each_number_that_is_missing_is_named() {
    for name in NEEDED {
        refused(&format!("{}missing", named(name)), |file| file.remove(&key(name)));
    }
    refused("metadata key general.architecture: missing", |file| file.remove("general.architecture"));
}

#[test]
fn values_of_another_type_are_named_with_what_they_are() {
    for name in
        NEEDED.iter().chain(&["attention.head_count_kv", "attention.key_length", "rope.dimension_count"])
    {
        for (wrong, message) in [
            (flag(true), "is the bool true, not a number"),
            (text("8"), "is the text \"8\", not a number"),
            (float(8.0), "is the float 8.0, not a number"),
            (array(4, 1, &[8, 0, 0, 0]), "is an array of type 4, not a number"),
            (value(5, &(-8i32).to_le_bytes()), "is the number -8, not a number"),
        ] {
            refused(&format!("{}{message}", named(name)), |file| file.set(&key(name), wrong));
        }
    }
    for name in ["attention.layer_norm_rms_epsilon", "rope.freq_base"] {
        let wanted = format!("{}is the number 1, not a finite float", named(name));
        refused(&wanted, |file| file.set(&key(name), number(1)));
    }
    for name in ["general.architecture", "general.name", "tokenizer.ggml.model", "tokenizer.ggml.pre"] {
        let wanted = format!("metadata key {name}: is the number 1, not a text");
        refused(&wanted, |file| file.set(name, number(1)));
    }
}

#[test]
fn zeros_are_refused() {
    for name in NEEDED.iter().chain(&["attention.head_count_kv", "attention.key_length"]) {
        refused(&format!("{}is 0", named(name)), |file| file.set(&key(name), number(0)));
    }
}

#[test]
fn numbers_beyond_all_measure_are_refused_without_memory_for_them() {
    for name in NEEDED.iter().chain(&["attention.key_length"]) {
        for n in [u32::MAX, 1 << 31, 1 << 25] {
            refused(&format!("{}is {n}, where", named(name)), |file| file.set(&key(name), number(n)));
        }
    }
    for n in [u64::MAX, 1 << 32] {
        let wanted = format!("{}is the number {n}", named("block_count"));
        refused(&wanted, |file| file.set(&key("block_count"), value(10, &n.to_le_bytes())));
    }
    refused(&named("rope.dimension_count"), |file| {
        file.set(&key("rope.dimension_count"), number(u32::MAX - 1))
    });
    refused(&named("attention.head_count_kv"), |file| {
        file.set(&key("attention.head_count_kv"), number(u32::MAX))
    });
}

#[test]
fn numbers_within_measure_that_the_tensors_do_not_have_are_refused() {
    for name in ["embedding_length", "feed_forward_length", "attention.key_length"] {
        // As much as the widest tensor, the embedding, would allow.
        refused("where the model's numbers ask for", |file| file.set(&key(name), number(128)));
    }
    let wanted = format!("{}16 heads do not divide a width of 8", named("attention.head_count"));
    refused(&wanted, |file| file.set(&key("attention.head_count"), number(16)));
}

#[test]
fn keys_and_values_of_different_widths_are_refused() {
    refused(&named("attention.value_length"), |file| {
        file.set(&key("attention.value_length"), number(8));
    });
}

#[test]
fn heads_that_cannot_share_their_keys_are_refused() {
    let wanted = format!("{}3 does not divide 2 heads", named("attention.head_count_kv"));
    refused(&wanted, |file| file.set(&key("attention.head_count_kv"), number(3)));
}

#[test]
fn a_rotation_that_is_odd_or_wider_than_a_head_is_refused() {
    for n in [3, 6] {
        let wanted = format!("{}{n} is odd or above the 4 of a head", named("rope.dimension_count"));
        refused(&wanted, |file| file.set(&key("rope.dimension_count"), number(n)));
    }
}

#[test]
fn floats_that_would_make_every_number_nan_are_refused() {
    for name in ["attention.layer_norm_rms_epsilon", "rope.freq_base"] {
        // The last is finite only until it is an f32.
        let beyond = [double(f64::NAN), double(f64::INFINITY), float(f32::NAN), double(1e300)];
        let wanted = format!("{}is the float ", named(name));
        beyond.into_iter().for_each(|x| refused(&wanted, |file| file.set(&key(name), x)));
        for x in [float(0.0), float(-1.0), double(1e-300)] {
            refused(&named(name), |file| file.set(&key(name), x));
        }
    }
}

#[test]
fn architectures_and_scalings_that_are_not_known_are_named() {
    refused("general.architecture: \"mamba\" is not supported; use bitnet-b1.58", |file| {
        file.set("general.architecture", text("mamba"));
    });
    for embedding in ["qwen3", "gemma3", "gemma-embedding"] {
        let wanted = format!("\"{embedding}\", as the BitNet-embedding models have it, is not supported yet");
        refused(&wanted, |file| file.set("general.architecture", text(embedding)));
    }
    refused(&format!("{}\"yarn\" is not supported", named("rope.scaling.type")), |file| {
        file.set(&key("rope.scaling.type"), text("yarn"));
    });
}

#[test]
fn positions_are_stretched_as_the_file_says() {
    let scaled = |kind: &str, factor: Option<f32>| {
        let mut file = fixtures::small();
        file.set(&key("rope.scaling.type"), text(kind));
        if let Some(factor) = factor {
            file.set(&key("rope.scaling.factor"), float(factor));
        }
        file
    };
    // llama.cpp's converter writes `linear` by 1 into every `bitnet` file.
    for (kind, factor) in [("none", None), ("linear", None), ("linear", Some(1.0)), ("linear", Some(0.0))] {
        super::load(scaled(kind, factor).bytes()).expect(kind);
    }
    super::load(scaled("linear", Some(4.0)).bytes()).expect("a stretched context");
    let message = super::error_of(scaled("linear", Some(0.5)).bytes());
    assert!(message.contains("rope.scaling.factor: 0.5 is below 1"), "{message}");
}

#[test]
fn activations_are_those_the_file_names() {
    for name in ["silu", "relu2"] {
        let mut file = fixtures::small();
        file.set(&key("hidden_activation"), text(name));
        super::load(file.bytes()).expect(name);
    }
    refused("hidden_activation: \"gelu\" is not supported", |file| {
        file.set(&key("hidden_activation"), text("gelu"));
    });
}
