//! GGUF files that were written are read back unchanged.

use crate::data;
use bitnetd::engine::gguf::{FileMap, Gguf, GgufDraft, MetadataValue, NewValue};
use bitnetd::engine::quant::TensorType;
use std::io::Write;

/// Copies a file, metadata and tensors, through the writer.
fn copied(file: &Gguf) -> Vec<u8> {
    let mut draft = GgufDraft::default();
    file.keys().for_each(|key| draft.copy(file, key));
    for tensor in file.tensors() {
        draft.tensor(&tensor.name, tensor.kind, &tensor.dims).expect("a shape that was read");
    }
    let mut writer = draft.begin(Vec::new()).expect("into memory");
    for tensor in file.tensors() {
        // In pieces, as a converter writes.
        file.data(tensor).chunks(1000).for_each(|piece| writer.write_all(piece).expect("into memory"));
        writer.end_tensor().expect("all of it was written");
    }
    let bytes = writer.finish().expect("all tensors were written");
    assert_eq!(bytes.len() as u64, draft.file_bytes());
    bytes
}

#[test]
fn a_copy_of_a_file_is_the_same_file_in_every_tensor_type() {
    for kind in ["i2_s", "tq1_0", "tq2_0", "f16"] {
        let bytes = std::fs::read(data(&format!("reference/b158-tiny.{kind}.gguf"))).expect("data");
        let file = Gguf::parse(FileMap::from(bytes.clone())).expect("sound");
        assert!(copied(&file) == bytes, "{kind}");
    }
}

#[test]
fn every_kind_of_value_is_read_as_it_was_written() {
    let scalars = [
        (NewValue::U8(200), MetadataValue::Unsigned(200)),
        (NewValue::I8(-100), MetadataValue::Signed(-100)),
        (NewValue::U16(60_000), MetadataValue::Unsigned(60_000)),
        (NewValue::I16(-30_000), MetadataValue::Signed(-30_000)),
        (NewValue::U32(u32::MAX), MetadataValue::Unsigned(u32::MAX.into())),
        (NewValue::I32(i32::MIN), MetadataValue::Signed(i32::MIN.into())),
        (NewValue::F32(0.25), MetadataValue::Float(0.25)),
        (NewValue::Bool(true), MetadataValue::Bool(true)),
        (NewValue::from("é"), MetadataValue::Text("é".into())),
        (NewValue::U64(u64::MAX), MetadataValue::Unsigned(u64::MAX)),
        (NewValue::I64(i64::MIN), MetadataValue::Signed(i64::MIN)),
        (NewValue::F64(1e300), MetadataValue::Float(1e300)),
    ];
    let mut draft = GgufDraft::default();
    for (at, (datum, _)) in scalars.iter().enumerate() {
        draft.set(&format!("k{at}"), datum.clone());
    }
    draft.set("texts", NewValue::Texts(vec!["a".into(), String::new(), "bc".into()]));
    draft.set("integers", NewValue::Integers(vec![-1, 2]));
    draft.set("floats", NewValue::Floats(vec![0.5; 3]));
    draft.set("shorts", NewValue::Array(2, 2, vec![1, 0, 2, 0]));
    let bytes = draft.begin(Vec::new()).and_then(|writer| writer.finish()).expect("into memory");
    let file = Gguf::parse(FileMap::from(bytes)).expect("sound");
    for (at, (_, value)) in scalars.iter().enumerate() {
        assert_eq!(file.value(&format!("k{at}")), Some(value));
    }
    assert_eq!(file.strings("texts").expect("texts").collect::<Vec<_>>(), [&b"a"[..], b"", b"bc"]);
    assert_eq!(file.integers("integers").expect("integers").expect("there").collect::<Vec<_>>(), [-1, 2]);
    for (key, kind, len) in [("floats", 6, 3), ("shorts", 2, 2)] {
        let Some(MetadataValue::Array(array)) = file.value(key) else { panic!("{key} is an array") };
        assert_eq!((array.kind, array.len), (kind, len));
    }
}

#[test]
fn a_value_that_is_set_again_keeps_its_position() {
    let mut draft = GgufDraft::default();
    draft.set("a", NewValue::U32(1));
    draft.set("b", NewValue::U32(2));
    draft.set("a", "now a text");
    draft.set("c", NewValue::U32(3));
    draft.remove("b");
    let file = Gguf::parse(FileMap::from(draft.header())).expect("sound");
    assert_eq!(file.keys().collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(file.text("a").expect("a text"), Some("now a text"));
}

#[test]
fn a_file_aligned_otherwise_is_copied_with_the_default_alignment() {
    let mut draft = GgufDraft::default();
    draft.set("general.alignment", NewValue::U32(64));
    draft.tensor("a", TensorType::F32, &[3]).expect("possible");
    draft.tensor("b", TensorType::F32, &[3]).expect("possible");
    let file = Gguf::parse(FileMap::from([draft.header(), vec![0; 64]].concat())).expect("sound");
    assert_eq!(file.tensors()[1].bytes.start - file.tensors()[0].bytes.start, 32);
    assert_eq!(draft.tensor_ranges()[1].start, file.tensors()[1].bytes.start as u64);
}

#[test]
fn data_that_does_not_keep_to_the_draft_is_an_error() {
    let mut draft = GgufDraft::default();
    draft.tensor("a", TensorType::F32, &[3]).expect("possible");
    let mut writer = draft.begin(Vec::new()).expect("into memory");
    assert!(writer.end_tensor().is_err(), "nothing was written");
    writer.write_all(&[0; 8]).expect("into memory");
    assert!(writer.end_tensor().is_err(), "4 bytes are missing");
    assert!(writer.write_all(&[0; 5]).is_err(), "one byte too many");
    writer.write_all(&[0; 4]).expect("into memory");
    writer.end_tensor().expect("complete");
    assert!(writer.write_all(&[0]).is_err(), "there is no second tensor");
    assert!(draft.begin(Vec::new()).and_then(|writer| writer.finish()).is_err(), "a is missing");
    for (kind, dims) in [(TensorType::I2S, &[64, 4][..]), (TensorType::F32, &[]), (TensorType::F32, &[3, 0])]
    {
        assert!(draft.tensor("b", kind, dims).is_err(), "{kind:?} {dims:?}");
    }
}
