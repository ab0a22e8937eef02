//! Writes GGUF version 3 to any writer. The file is planned first, so that every size and offset is known before
//! the first byte; tensor data is streamed after the header.
//!
//! ```text
//! GgufDraft ── set, copy, tensor ──> GgufDraft ── begin ──> TensorWriter ── write, end_tensor ──> finish
//! ```

use super::Gguf;
use super::parse::{ALIGNMENT, ARRAY, STRING};
use crate::engine::error::LoadError;
use crate::engine::quant::TensorType;
use std::io::{self, Write};
use std::ops::Range;

/// A metadata value to be written; the variants are GGUF's value types.
#[derive(Debug, Clone, PartialEq)]
pub enum NewValue {
    /// One byte.
    U8(u8),
    /// One byte.
    I8(i8),
    /// Two bytes.
    U16(u16),
    /// Two bytes.
    I16(i16),
    /// Four bytes.
    U32(u32),
    /// Four bytes.
    I32(i32),
    /// Four bytes.
    F32(f32),
    /// One byte, 0 or 1.
    Bool(bool),
    /// UTF-8 with its length before it.
    Text(String),
    /// Eight bytes.
    U64(u64),
    /// Eight bytes.
    I64(i64),
    /// Eight bytes.
    F64(f64),
    /// An array of texts.
    Texts(Vec<String>),
    /// An array of signed numbers.
    Integers(Vec<i32>),
    /// An array of floats.
    Floats(Vec<f32>),
    /// An array of any other kind: GGUF's number of the element type, how many, and their bytes.
    Array(u32, u64, Vec<u8>),
}

impl From<&str> for NewValue {
    fn from(text: &str) -> Self {
        NewValue::Text(text.to_owned())
    }
}

impl NewValue {
    /// The value as a file holds it: the number of its type, then its bytes.
    fn bytes(&self) -> Vec<u8> {
        let plain = |kind: u32, bytes: &[u8]| [&kind.to_le_bytes()[..], bytes].concat();
        match self {
            NewValue::U8(n) => plain(0, &[*n]),
            NewValue::I8(n) => plain(1, &n.to_le_bytes()),
            NewValue::U16(n) => plain(2, &n.to_le_bytes()),
            NewValue::I16(n) => plain(3, &n.to_le_bytes()),
            NewValue::U32(n) => plain(4, &n.to_le_bytes()),
            NewValue::I32(n) => plain(5, &n.to_le_bytes()),
            NewValue::F32(x) => plain(6, &x.to_le_bytes()),
            NewValue::Bool(flag) => plain(7, &[u8::from(*flag)]),
            NewValue::Text(text) => plain(STRING, &string(text)),
            NewValue::U64(n) => plain(10, &n.to_le_bytes()),
            NewValue::I64(n) => plain(11, &n.to_le_bytes()),
            NewValue::F64(x) => plain(12, &x.to_le_bytes()),
            NewValue::Texts(texts) => array(
                STRING,
                texts.len() as u64,
                &texts.iter().flat_map(|text| string(text)).collect::<Vec<_>>(),
            ),
            NewValue::Integers(numbers) => {
                array(5, numbers.len() as u64, &flat(numbers, |n| n.to_le_bytes()))
            }
            NewValue::Floats(numbers) => array(6, numbers.len() as u64, &flat(numbers, |x| x.to_le_bytes())),
            NewValue::Array(kind, len, bytes) => array(*kind, *len, bytes),
        }
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn array(kind: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&ARRAY.to_le_bytes()[..], &kind.to_le_bytes(), &len.to_le_bytes(), elements].concat()
}

fn flat<T: Copy>(numbers: &[T], bytes: impl Fn(T) -> [u8; 4]) -> Vec<u8> {
    numbers.iter().flat_map(|n| bytes(*n)).collect()
}

/// The plan of a file: its metadata, and the name, type and shape of each tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufDraft {
    /// Key, and value as the file holds it.
    metadata: Vec<(String, Vec<u8>)>,
    tensors: Vec<PlannedTensor>,
}

/// A tensor of a draft.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedTensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: TensorType,
    /// Columns first, as ggml counts.
    pub dims: Vec<usize>,
    /// Bytes of its data, without padding.
    pub bytes: u64,
    /// The offset of its data from the start of all tensor data; a multiple of 32.
    offset: u64,
}

impl GgufDraft {
    /// Sets the value of `key`, at its present position or at the end.
    pub fn set(&mut self, key: &str, value: impl Into<NewValue>) {
        self.set_bytes(key, value.into().bytes());
    }

    /// Copies a value of another file, of whatever type; does nothing where there is none.
    pub fn copy(&mut self, from: &Gguf, key: &str) {
        if let Some(bytes) = from.value_bytes(key) {
            self.set_bytes(key, bytes.to_vec());
        }
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &str) {
        self.metadata.retain(|(name, _)| name != key);
    }

    fn set_bytes(&mut self, key: &str, mut bytes: Vec<u8>) {
        if key == ALIGNMENT {
            // A copied file may have had another alignment.
            bytes = NewValue::U32(BOUNDARY as u32).bytes();
        }
        match self.metadata.iter_mut().find(|(name, _)| name == key) {
            Some((_, value)) => *value = bytes,
            None => self.metadata.push((key.to_owned(), bytes)),
        }
    }

    /// Adds a tensor of `dims`, columns first. It is an error if the type cannot have that shape.
    pub fn tensor(&mut self, name: &str, kind: TensorType, dims: &[usize]) -> Result<(), LoadError> {
        let to_u64 = |dim: &usize| *dim as u64;
        let elements = dims.iter().try_fold(1u64, |n, dim| n.checked_mul(to_u64(dim)));
        let elements = elements.filter(|n| *n > 0 && !dims.is_empty());
        let bytes = elements.and_then(|n| kind.bytes(n, dims.first().map_or(1, to_u64)));
        let bytes = bytes.ok_or_else(|| {
            let message = format!("shape {dims:?} is impossible for {}", kind.name());
            LoadError::tensor(name, message)
        })?;
        let offset = self.data_bytes();
        self.tensors.push(PlannedTensor { name: name.to_owned(), kind, dims: dims.to_vec(), bytes, offset });
        Ok(())
    }

    /// The same metadata without any tensor.
    pub fn metadata(&self) -> GgufDraft {
        GgufDraft { metadata: self.metadata.clone(), tensors: Vec::new() }
    }

    /// Its tensors, in the order their data is written.
    pub fn tensors(&self) -> &[PlannedTensor] {
        &self.tensors
    }

    /// Everything before the tensor data, padded to where that begins.
    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend(string(key));
            out.extend(value);
        }
        for tensor in &self.tensors {
            out.extend(string(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend((*dim as u64).to_le_bytes()));
            out.extend(id(tensor.kind).to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out.resize(padded(out.len() as u64) as usize, 0);
        out
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.header().len() as u64 + self.data_bytes()
    }

    /// Where each tensor's data lies in the file, without padding.
    pub fn tensor_ranges(&self) -> Vec<Range<u64>> {
        let data = self.header().len() as u64;
        let place = |tensor: &PlannedTensor| data + tensor.offset..data + tensor.offset + tensor.bytes;
        self.tensors.iter().map(place).collect()
    }

    /// Bytes of all tensor data, each tensor padded.
    fn data_bytes(&self) -> u64 {
        self.tensors.last().map_or(0, |last| padded(last.offset + last.bytes))
    }

    /// Writes the header; the tensors' data follows, in order.
    pub fn begin<W: Write>(&self, mut out: W) -> io::Result<TensorWriter<'_, W>> {
        out.write_all(&self.header())?;
        Ok(self.resume(out, 0))
    }

    /// A writer for a file in which the header and the first `done` tensors are already written.
    pub fn resume<W: Write>(&self, out: W, done: usize) -> TensorWriter<'_, W> {
        TensorWriter { draft: self, out, next: done, written: 0 }
    }
}

/// The alignment of tensor data: GGUF's default, so that no key has to name it.
const BOUNDARY: u64 = 32;

fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(BOUNDARY)
}

/// ggml's number of a type, the inverse of [`TensorType::from_id`].
fn id(kind: TensorType) -> u32 {
    (0..).find(|id| TensorType::from_id(*id) == Ok(kind)).expect("each type is read under some number")
}

/// A file being written, past its header. What is written to it is the data of one tensor after the other.
#[derive(Debug)]
pub struct TensorWriter<'a, W> {
    draft: &'a GgufDraft,
    out: W,
    /// The tensor being written.
    next: usize,
    /// Bytes of that tensor that are written.
    written: u64,
}

impl<W: Write> TensorWriter<'_, W> {
    /// Ends the current tensor with its padding. It is an error if its data was too short.
    pub fn end_tensor(&mut self) -> io::Result<()> {
        let missing = self.left();
        if missing > 0 || self.next == self.draft.tensors.len() {
            return Err(wrong(format!("{missing} bytes are missing")));
        }
        let padding = padded(self.written) - self.written;
        self.out.write_all(&[0; BOUNDARY as usize][..padding as usize])?;
        self.next += 1;
        self.written = 0;
        Ok(())
    }

    /// The underlying writer.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// The underlying writer, flushed. It is an error if tensors are missing.
    pub fn finish(mut self) -> io::Result<W> {
        if self.next < self.draft.tensors.len() {
            return Err(wrong(format!("{} is missing", self.draft.tensors[self.next].name)));
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn left(&self) -> u64 {
        self.draft.tensors.get(self.next).map_or(0, |tensor| tensor.bytes - self.written)
    }
}

/// The error of a caller that does not follow its plan.
fn wrong(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("tensor data: {message}"))
}

impl<W: Write> Write for TensorWriter<'_, W> {
    /// Writes data of the current tensor. More data than it has is an error.
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.len() as u64 > self.left() {
            return Err(wrong(format!("{} bytes where {} are left", data.len(), self.left())));
        }
        let written = self.out.write(data)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
