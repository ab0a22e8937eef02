//! Tensors with wrong offsets, types or contents.

use super::{error_of, refused, refused_blocks};
use crate::data;
use crate::fixtures::{self, number};
use bitnetd::engine::gguf::{FileMap, Gguf};

const Q: &str = "blk.0.attn_q.weight";

#[test]
fn a_tensor_that_comes_twice_is_refused() {
    refused("tensor blk.0.attn_norm.weight: comes twice", |file| {
        let again = file.tensor("blk.0.attn_norm.weight").clone();
        file.tensors.push(again);
    });
}

#[test]
fn numbers_of_dimensions_that_ggml_does_not_have_are_refused() {
    for count in [0, 5, 1000] {
        let wanted = format!("tensor {Q}: byte ");
        refused(&wanted, |file| file.tensor(Q).dims = vec![1; count]);
    }
}

#[test]
fn shapes_without_elements_or_with_too_many_are_refused() {
    for dims in [&[0, 8][..], &[8, 0], &[1 << 40, 1 << 40], &[1 << 32, 1 << 32], &[1 << 62, 2], &[u64::MAX]] {
        refused(&format!("tensor {Q}: shape ["), |file| file.tensor(Q).dims = dims.to_vec());
    }
    refused_blocks("is impossible for I2_S", |file| file.tensor(Q).dims = vec![64, 256]);
}

#[test]
fn rows_that_are_no_whole_blocks_are_refused() {
    for (kind, name, dims) in [
        (2, "Q4_0", [16, 256]),
        (8, "Q8_0", [48, 32]),
        (12, "Q4_K", [128, 128]),
        (14, "Q6_K", [128, 128]),
        (34, "TQ1_0", [128, 128]),
    ] {
        for tensor in [Q, "token_embd.weight", "blk.0.attn_norm.weight"] {
            let wanted = format!("tensor {tensor}: shape {dims:?} is impossible for {name}");
            refused_blocks(&wanted, |file| {
                let tensor = file.tensor(tensor);
                (tensor.kind, tensor.dims) = (kind, dims.to_vec());
            });
        }
    }
}

#[test]
fn blocks_that_lie_outside_the_file_are_refused() {
    for (kind, row) in [(2, 4 * 18), (8, 4 * 34)] {
        // 2^44 rows of 128: no file, and no plan, has them.
        let wanted = format!("and {} bytes lie outside the file", (row as u64) << 44);
        refused_blocks(&wanted, |file| {
            (file.tensor(Q).kind, file.tensor(Q).dims) = (kind, vec![128, 1 << 44])
        });
    }
}

#[test]
fn data_outside_the_file_is_refused() {
    for offset in [1 << 20, 1 << 40, 1 << 63, u64::MAX - 31] {
        let wanted = format!("tensor {Q}: offset {offset} and 128 bytes lie outside the file");
        refused(&wanted, |file| file.tensor(Q).said_offset = Some(offset));
    }
}

#[test]
fn data_off_its_alignment_is_refused() {
    for offset in [1, 16, u64::MAX] {
        let wanted = format!("tensor {Q}: offset {offset} is not aligned to 32");
        refused(&wanted, |file| file.tensor(Q).said_offset = Some(offset));
    }
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    refused("its data overlaps that of ", |file| file.tensor(Q).said_offset = Some(0));
    refused("its data overlaps that of ", |file| file.tensor("token_embd.weight").said_offset = Some(32));
}

#[test]
fn types_of_other_engines_are_named_with_the_way_out() {
    for (kind, wanted) in [
        (38, "TL1 is tiled for one machine; use the model's I2_S file"),
        (39, "TL2 is tiled for one machine; use the model's I2_S file"),
        (3, "tensor type 3 (Q4_1) is not read by this version; use a file with I2_S"),
        (13, "tensor type 13 (Q5_K) is not read by this version; use a file with I2_S"),
        (99, "tensor type 99 (unknown) is not read by this version; use a file with I2_S"),
        (u32::MAX, "tensor type 4294967295 (unknown)"),
    ] {
        refused(&format!("tensor {Q}: {wanted}"), |file| file.tensor(Q).kind = kind);
    }
}

#[test]
fn each_tensor_that_is_missing_is_named() {
    for gone in fixtures::small().tensors {
        let wanted = format!("tensor {}: missing", String::from_utf8_lossy(&gone.name));
        refused(&wanted, |file| file.tensors.retain(|tensor| tensor.name != gone.name));
    }
}

#[test]
fn each_tensor_of_another_shape_is_named() {
    for other in fixtures::small().tensors {
        let name = String::from_utf8_lossy(&other.name).into_owned();
        // As many elements, one dimension more.
        refused(&format!("tensor {name}: has shape ["), |file| file.tensor(&name).dims.push(1));
    }
    refused(
        "tensor blk.0.attn_k.weight: has shape [4, 8], where the model's numbers ask for [8, 4]",
        |file| {
            file.tensor("blk.0.attn_k.weight").dims = vec![4, 8];
        },
    );
}

#[test]
fn a_tensor_that_no_part_of_the_model_uses_is_refused() {
    for name in ["blk.0.attn_q.bias", "blk.1.attn_q.weight", "x"] {
        let wanted = format!("tensor {name}: is not part of this architecture");
        refused(&wanted, |file| file.add(name, 0, &[8], vec![0; 32]));
    }
}

#[test]
fn tables_and_vectors_of_ternary_blocks_are_refused() {
    let wanted = "tensor token_embd.weight: is I2_S, where F32, F16, BF16, Q8_0, Q6_K, Q4_K or Q4_0 is read";
    refused_blocks(wanted, |file| {
        let embedding = file.tensor("token_embd.weight");
        (embedding.kind, embedding.data) = (36, vec![0x55; 128 * fixtures::VOCAB / 4 + 32]);
    });
}

#[test]
fn an_undefined_code_is_found_and_its_tensor_named() {
    for at in [0, 77, 4095] {
        let wanted = format!("tensor {Q}: byte {at}: holds the undefined code 3");
        refused_blocks(&wanted, |file| file.tensor(Q).data[at] = 0b00_11_00_00);
    }
}

#[test]
fn a_scale_that_is_no_number_is_refused() {
    for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let wanted = format!("tensor {Q}: its scale is not a number");
        refused_blocks(&wanted, |file| file.tensor(Q).data[4096..4100].copy_from_slice(&scale.to_le_bytes()));
        let wanted = "tensor blk.0.attn_q.scale: element 0 is not a number";
        refused(wanted, |file| file.add("blk.0.attn_q.scale", 0, &[1], scale.to_le_bytes().to_vec()));
    }
}

#[test]
fn a_scale_lost_by_the_quantiser_is_refused() {
    refused_blocks(&format!("tensor {Q}: its scale is 0"), |file| file.tensor(Q).data[4096..4100].fill(0));
}

#[test]
fn a_norm_that_is_no_number_is_refused() {
    for (at, x) in [(0, f32::NAN), (3, f32::INFINITY), (7, f32::NEG_INFINITY)] {
        let wanted = format!("tensor blk.0.ffn_norm.weight: element {at} is not a number");
        refused(&wanted, |file| {
            file.tensor("blk.0.ffn_norm.weight").data[4 * at..4 * at + 4].copy_from_slice(&x.to_le_bytes());
        });
    }
}

#[test]
fn a_rotation_factor_that_cannot_divide_is_refused() {
    for (factor, message) in [(0.0f32, "0"), (-1.0, "-1"), (1e-40, "0.0"), (f32::NAN, "not a number")] {
        let wanted = format!("tensor rope_freqs.weight: element 0 is {message}");
        refused(&wanted, |file| {
            file.add(
                "rope_freqs.weight",
                0,
                &[2],
                [factor, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect(),
            );
        });
    }
}

#[test]
fn plain_weights_that_are_not_ternary_are_refused() {
    for x in [0.25, 1e-7, f32::NAN, f32::INFINITY] {
        let wanted = format!("tensor {Q}: row 7: is not ternary");
        refused(&wanted, |file| {
            file.tensor(Q).data[126..].copy_from_slice(&half::f16::from_f32(x).to_le_bytes());
        });
    }
}

#[test]
fn blocks_of_a_ternary_matrix_that_stop_being_ternary_are_refused() {
    // A scale of 1/2; for Q4_0 codes -8, 0 and 7, the last being what is left of 8.
    let q8_0 = [&[0x00, 0x38][..], &[127, 0, 129, 0].repeat(8)].concat();
    let q4_0 = [&[0x00, 0x38][..], &[0x80, 0xf8].repeat(8)].concat();
    for (kind, block) in [(8, q8_0), (2, q4_0)] {
        let with = |file: &mut fixtures::File, at: usize, byte: u8| {
            let tensor = file.tensor(Q);
            (tensor.kind, tensor.data) = (kind, block.repeat(128 * 4));
            tensor.data[at] = byte;
        };
        let mut sound = fixtures::blocks();
        with(&mut sound, 2, block[2]);
        super::load(sound.bytes()).expect("sound");
        let last = block.len() * 128 * 4 - 1;
        for (at, byte) in [(last, 0x35), (last + 2 - block.len(), 0x3c)] {
            refused_blocks(&format!("tensor {Q}: row 127: is not ternary"), |file| with(file, at, byte));
        }
    }
}

#[test]
fn damaged_blocks_of_tq1_and_tq2_are_refused() {
    for (file, at, byte, wanted) in [
        ("b158-tiny.tq2_0.gguf", 0, 0xff, "block 0: holds the undefined code 3"),
        ("b158-tiny.tq2_0.gguf", 65, 0x7c, "block 0: its scale is not a number"),
        ("b158-tiny.tq2_0.gguf", 2 * 66 - 1, 0x01, "block 1: its scale "),
        ("b158-tiny.tq1_0.gguf", 53, 0x7e, "block 0: its scale is not a number"),
        ("b158-tiny.tq1_0.gguf", 2 * 54 - 1, 0x01, "block 1: its scale "),
    ] {
        let mut bytes = std::fs::read(data(&format!("reference/{file}"))).expect("reference data");
        let parsed = Gguf::parse(FileMap::from(bytes.clone())).expect("sound");
        bytes[parsed.tensor(Q).expect("every model has it").bytes.start + at] = byte;
        let message = error_of(bytes);
        assert!(message.contains(&format!("tensor {Q}: {wanted}")), "{message}");
    }
}

#[test]
fn a_model_of_more_layers_than_the_file_has_is_refused_by_the_first_missing_tensor() {
    refused("tensor blk.1.attn_norm.weight: missing", |file| file.set("bitnet-b1.58.block_count", number(2)));
}
