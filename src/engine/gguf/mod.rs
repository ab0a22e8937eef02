//! GGUF files: mapping them, parsing the header, typed access to metadata and tensors, and writing new files.
//!
//! Deliberately knows no architecture: which keys and tensors a model needs is known to `model` and `tokenizer`.

mod mmap;
mod parse;
mod write;
mod wrong_file;

pub use mmap::FileMap;
pub use parse::{ArrayInfo, Header, MetadataValue, STRING, TensorInfo};
pub use write::{GgufDraft, NewValue, PlannedTensor, TensorWriter};
pub use wrong_file::{identify, with_name_hint};

use super::error::LoadError;
use std::ops::Range;
use std::sync::Arc;

/// A parsed file with its bytes.
#[derive(Debug)]
pub struct Gguf {
    map: Arc<FileMap>,
    header: Header,
}

/// A slice of a file that keeps the file alive.
#[derive(Debug, Clone)]
pub struct FileSlice {
    map: Arc<FileMap>,
    range: Range<usize>,
}

impl FileSlice {
    /// A part of a file.
    ///
    /// # Panics
    /// When `range` does not lie in it.
    pub fn of(map: &Arc<FileMap>, range: Range<usize>) -> FileSlice {
        assert!(range.start <= range.end && range.end <= map.len());
        FileSlice { map: Arc::clone(map), range }
    }

    /// A part of the slice.
    ///
    /// # Panics
    /// When the part does not lie in it.
    pub fn part(&self, part: Range<usize>) -> FileSlice {
        assert!(part.start <= part.end && part.end <= self.len());
        let range = self.range.start + part.start..self.range.start + part.end;
        FileSlice { map: Arc::clone(&self.map), range }
    }

    /// Bytes `range` of the slice, for random access; see [`FileMap::read`].
    ///
    /// # Panics
    /// When the range does not lie in it, or `buffer` is shorter.
    pub fn read<'a>(&'a self, range: Range<usize>, buffer: &'a mut [u8]) -> &'a [u8] {
        assert!(range.start <= range.end && range.end <= self.len());
        self.map.read(self.range.start + range.start..self.range.start + range.end, buffer)
    }

    /// Releases the memory of its pages; reading them again reads the file again.
    pub fn release(&self) {
        self.map.release(self.range.clone());
    }
}

impl std::ops::Deref for FileSlice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

impl Gguf {
    /// Parses a file's header. Tensor data is only checked to be there.
    pub fn parse(map: FileMap) -> Result<Self, LoadError> {
        let header = parse::parse(&map)?;
        Ok(Gguf { map: Arc::new(map), header })
    }

    /// The bytes of the file.
    pub fn map(&self) -> &Arc<FileMap> {
        &self.map
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// A tensor's bytes.
    pub fn data(&self, tensor: &TensorInfo) -> FileSlice {
        FileSlice { map: Arc::clone(&self.map), range: tensor.bytes.clone() }
    }

    /// Releases the memory of all that stands before the tensors: a vocabulary takes megabytes and is read once.
    /// Reading it again reads the file again.
    pub fn release_header(&self) {
        let end = self.tensors().iter().map(|tensor| tensor.bytes.start).min();
        self.map.release(0..end.unwrap_or(0));
    }

    /// Bytes of the whole file.
    pub fn byte_len(&self) -> usize {
        self.map.len()
    }

    /// All keys and values, in file order.
    pub fn metadata(&self) -> &[(String, MetadataValue)] {
        &self.header.metadata
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&MetadataValue> {
        self.header.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// All keys, in file order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.header.metadata.iter().map(|(key, _)| key.as_str())
    }

    /// A key's value as it stands in the file, with the number of its type before it.
    pub fn value_bytes(&self, key: &str) -> Option<&[u8]> {
        let at = self.header.metadata.iter().position(|(name, _)| name == key)?;
        Some(&self.map[self.header.value_bytes[at].clone()])
    }

    /// A required number.
    pub fn number(&self, key: &str) -> Result<usize, LoadError> {
        self.number_or_none(key)?.ok_or_else(|| missing(key))
    }

    /// An optional number.
    pub fn number_or_none(&self, key: &str) -> Result<Option<usize>, LoadError> {
        match self.value(key) {
            None => Ok(None),
            // Every such key holds a u32; this limit also keeps later products far from overflow.
            Some(MetadataValue::Unsigned(n)) if *n <= u32::MAX.into() => Ok(Some(*n as usize)),
            Some(MetadataValue::Signed(n)) if (0..=u32::MAX.into()).contains(n) => Ok(Some(*n as usize)),
            Some(other) => Err(wrong(key, "a number from 0 to 4294967295", other)),
        }
    }

    /// An optional finite float.
    pub fn float_or(&self, key: &str, default: f32) -> Result<f32, LoadError> {
        match self.value(key) {
            None => Ok(default),
            // Finite as f32: a double may be larger.
            Some(MetadataValue::Float(x)) if (*x as f32).is_finite() => Ok(*x as f32),
            Some(other) => Err(wrong(key, "a finite float", other)),
        }
    }

    /// An optional text.
    pub fn text(&self, key: &str) -> Result<Option<&str>, LoadError> {
        match self.value(key) {
            None => Ok(None),
            Some(MetadataValue::Text(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(key, "a text", other)),
        }
    }

    /// The byte strings of a required array.
    pub fn strings(&self, key: &str) -> Result<Strings<'_>, LoadError> {
        match self.value(key) {
            Some(MetadataValue::Array(array)) if array.kind == STRING => {
                Ok(Strings { bytes: &self.map[array.bytes.clone()], left: array.len })
            }
            Some(other) => Err(wrong(key, "an array of texts", other)),
            None => Err(missing(key)),
        }
    }

    /// An optional bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        match self.value(key) {
            None => Ok(None),
            Some(MetadataValue::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(wrong(key, "a bool", other)),
        }
    }

    /// The numbers of a required array of 32-bit floats.
    pub fn floats(&self, key: &str) -> Result<impl ExactSizeIterator<Item = f32>, LoadError> {
        const F32: u32 = 6;
        match self.value(key) {
            Some(MetadataValue::Array(array)) if array.kind == F32 => {
                let numbers = self.map[array.bytes.clone()].as_chunks::<4>().0;
                Ok(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)))
            }
            Some(other) => Err(wrong(key, "an array of 32-bit floats", other)),
            None => Err(missing(key)),
        }
    }

    /// The integers of an optional array of 32-bit integers.
    pub fn integers(&self, key: &str) -> Result<Option<impl ExactSizeIterator<Item = i64>>, LoadError> {
        const U32: u32 = 4;
        const I32: u32 = 5;
        match self.value(key) {
            None => Ok(None),
            Some(MetadataValue::Array(array)) if matches!(array.kind, U32 | I32) => {
                let signed = array.kind == I32;
                let bytes = self.map[array.bytes.clone()].as_chunks::<4>().0;
                Ok(Some(bytes.iter().map(move |b| match signed {
                    true => i32::from_le_bytes(*b).into(),
                    false => u32::from_le_bytes(*b).into(),
                })))
            }
            Some(other) => Err(wrong(key, "an array of integers", other)),
        }
    }
}

/// Iterator over the strings of an array, as bytes.
#[derive(Debug, Clone)]
pub struct Strings<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl Strings<'_> {
    /// Bytes that the remaining strings take in the file.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let (len, rest) = self.bytes.split_first_chunk::<8>().expect("checked when parsed");
        let (text, rest) = rest.split_at(u64::from_le_bytes(*len) as usize);
        self.bytes = rest;
        Some(text)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}

fn missing(key: &str) -> LoadError {
    LoadError::key(key, "missing; the file is no complete model")
}

fn wrong(key: &str, want: &str, value: &MetadataValue) -> LoadError {
    LoadError::key(key, format!("is {value}, not {want}"))
}
