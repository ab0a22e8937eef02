//! The header of a GGUF file: magic, version, counts, keys and values.

use super::{error_of, load, refused};
use crate::data;
use crate::fixtures::{self, array, flag, float, number, text, value};

#[test]
fn every_cut_of_a_small_file_is_an_error() {
    let whole = fixtures::small().bytes();
    for len in 0..whole.len() {
        error_of(whole[..len].to_vec());
    }
}

#[test]
fn cuts_all_over_a_real_file_are_errors() {
    let whole = std::fs::read(data("reference/b158-tiny.i2_s.gguf")).expect("reference data");
    // No multiple of any alignment, so that cuts fall on all kinds of places.
    for len in (0..whole.len()).step_by(9973) {
        error_of(whole[..len].to_vec());
    }
}

#[test]
fn a_cut_file_is_called_truncated_wherever_the_cut_is() {
    let whole = fixtures::small().bytes();
    let place = |text: &str| {
        whole.windows(text.len()).position(|bytes| bytes == text.as_bytes()).expect("a text of the file")
    };
    for (cut, wanted) in [
        (10, "byte 8: "),
        (place("general.architecture") + 5, "byte 32: "),
        (place("bitnet-b1.58") + 5, "metadata key general.architecture: byte "),
        (place("llama-bpe") + 30, "byte "),
        (place("blk.0.attn_q.weight") + 25, "tensor blk.0.attn_q.weight: byte "),
        (whole.len() - 1, "tensor blk.0.ffn_down.weight: "),
    ] {
        let message = error_of(whole[..cut].to_vec());
        assert!(message.contains(wanted) && message.contains("truncated"), "{message}");
    }
}

#[test]
fn a_file_that_is_not_gguf_is_identified() {
    refused("byte 0: no GGUF file", |file| file.magic = *b"GGML");
    assert!(error_of(b"<html>Not found</html>".to_vec()).contains("byte 0: no GGUF file"));
    assert!(error_of(Vec::new()).contains("byte 0: no GGUF file"));
}

#[test]
fn a_big_endian_file_is_told_apart_from_an_unknown_version() {
    refused("byte 4: a big-endian file", |file| file.version = 3u32.swap_bytes());
    refused("byte 4: a big-endian file", |file| file.version = 2u32.swap_bytes());
}

#[test]
fn versions_2_and_3_are_read_and_no_others() {
    for version in [0, 1, 4, 99, u32::MAX] {
        let wanted = format!("byte 4: GGUF version {version}; this engine reads 2 and 3");
        refused(&wanted, |file| file.version = version);
    }
    let mut file = fixtures::small();
    file.version = 2;
    load(file.bytes()).expect("the same bytes in both versions");
}

#[test]
fn counts_beyond_the_file_are_refused() {
    for count in [u64::MAX, 1 << 63, 1 << 32, 16_385] {
        refused(&format!("byte 16: {count} metadata keys"), |file| file.said_keys = Some(count));
        refused(&format!("byte 8: {count} tensors"), |file| file.said_tensors = Some(count));
    }
    refused("byte ", |file| file.said_keys = Some(16_384));
    refused("byte ", |file| file.said_tensors = Some(16_384));
}

#[test]
fn counts_that_are_one_off_are_refused() {
    let (keys, tensors) = (fixtures::small().metadata.len() as u64, fixtures::small().tensors.len() as u64);
    refused("byte ", |file| file.said_keys = Some(keys + 1));
    refused("", |file| file.said_keys = Some(keys - 1));
    refused("", |file| file.said_tensors = Some(tensors + 1));
    refused("", |file| file.said_tensors = Some(tensors - 1));
}

#[test]
fn a_string_longer_than_the_file_is_refused() {
    for len in [u64::MAX, 1 << 63, 1 << 31, 20_000] {
        let wanted = "metadata key general.name: byte ";
        refused(wanted, |file| file.set("general.name", value(8, &len.to_le_bytes())));
        refused(wanted, |file| file.set("general.name", array(8, 1, &len.to_le_bytes())));
    }
}

#[test]
fn a_text_that_is_a_file_of_its_own_is_refused() {
    refused("a text of 1048577 bytes", |file| file.set("general.name", text(&"x".repeat((1 << 20) + 1))));
}

#[test]
fn an_array_longer_than_the_file_is_refused_whatever_its_size_comes_to() {
    for kind in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12] {
        // The last three overflow when they are multiplied by the size of an element.
        for len in [20_000, 1 << 40, 1 << 61, 1 << 62, u64::MAX] {
            refused("metadata key a: byte ", |file| file.set("a", array(kind, len, &[])));
        }
    }
}

#[test]
fn arrays_of_arrays_and_unknown_types_are_refused() {
    refused("metadata key a: byte ", |file| file.set("a", array(9, 1, &array(4, 0, &[]))));
    refused("array of arrays", |file| file.set("a", array(9, 1 << 60, &[])));
    refused("an array of the unknown type 77", |file| file.set("a", array(77, 1, &[0; 8])));
    refused("unknown value type 13", |file| file.set("a", value(13, &[0; 8])));
}

#[test]
fn a_key_that_comes_twice_is_refused() {
    refused("metadata key general.architecture: comes twice", |file| {
        file.metadata.push((b"general.architecture".to_vec(), text("llama")));
    });
}

#[test]
fn texts_that_are_not_utf8_are_refused() {
    refused("text that is not UTF-8", |file| file.metadata[0].0[3] = 0xff);
    refused("text that is not UTF-8", |file| *file.metadata[0].1.last_mut().expect("a byte") = 0xff);
    refused("text that is not UTF-8", |file| file.tensors[0].name[0] = 0xff);
}

#[test]
fn an_alignment_that_is_no_power_of_two_in_range_is_refused() {
    let wanted = "metadata key general.alignment: is ";
    for n in [0, 3, 4, 33, 1 << 17, 1 << 31, u32::MAX] {
        refused(wanted, |file| file.set("general.alignment", number(n)));
    }
    for wrong in
        [text("32"), float(32.0), flag(true), array(4, 1, &[32, 0, 0, 0]), value(5, &(-32i32).to_le_bytes())]
    {
        refused(wanted, |file| file.set("general.alignment", wrong));
    }
    let mut file = fixtures::small();
    file.alignment = 4096;
    file.set("general.alignment", number(4096));
    load(file.bytes()).expect("an alignment as good as any");
}

#[test]
fn text_from_a_file_cannot_break_the_line_of_an_error_or_flood_the_terminal() {
    let name = format!("\u{1b}[2J\r\nok\u{202e}\"{}", "x".repeat(5000));
    let twice =
        |file: &mut fixtures::File| (0..2).for_each(|_| file.metadata.push((name.clone().into(), number(1))));
    refused("comes twice", twice);
    refused("metadata key \\u{1b}[2J", |file| file.set(&name, array(9, 1, &[])));
    refused("general.architecture: \"\\u{1b}", |file| file.set("general.architecture", text(&name)));
    refused("tokenizer.ggml.pre: \"\\u{1b}", |file| file.set("tokenizer.ggml.pre", text(&name)));
    refused("rope.scaling.type: \"\\u{1b}", |file| file.set("bitnet-b1.58.rope.scaling.type", text(&name)));
    refused("is the text \"\\u{1b}", |file| file.set("bitnet-b1.58.block_count", text(&name)));
    refused("tensor \\u{1b}", |file| file.add(&name, 0, &[1], vec![0; 4]));
    refused("tensor \\u{1b}", |file| file.add(&name, 12, &[1], vec![0; 4]));
    refused("tensor \\u{1b}", |file| file.add(&name, 0, &[], vec![0; 4]));
}
