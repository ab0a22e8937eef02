//! GGUF version 2 and 3 out of bytes: pure, and bounded by the bytes given.
//!
//! Every length is checked against what is left of the file before anything is allocated or
//! skipped; all arithmetic on sizes is checked. Source of the layout: the GGUF specification in the
//! ggml project.

use super::foreign::instead_of_gguf;
use crate::engine::error::{LoadError, shown};
use crate::engine::quant::TensorType;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

/// Alignment of tensor data where the file names none.
const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's own limit.
const MAX_DIMENSIONS: u32 = 4;
/// Entries of either kind. The largest model in use has some hundreds; each takes several times its
/// bytes in the file once it is read and is looked for one by one, so a file must not have any number.
const MAX_ENTRIES: u64 = 1 << 14;
/// Bytes of a text that is read into memory; the longest in use are chat templates of some 20 KB.
const MAX_TEXT: u64 = 1 << 20;

/// What a file says before its tensor data.
#[derive(Debug, Default)]
pub struct Header {
    /// Key and value, in file order.
    pub metadata: Vec<(String, Value)>,
    /// Where each of these values lies in the file, the number of its type before it.
    pub value_bytes: Vec<Range<usize>>,
    /// Tensors, in file order.
    pub tensors: Vec<Tensor>,
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Either float.
    Float(f64),
    /// One byte, 0 or 1.
    Bool(bool),
    /// Text.
    Text(String),
    /// Many of one kind, left in the file.
    Array(Array),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Unsigned(n) => write!(f, "the number {n}"),
            Value::Signed(n) => write!(f, "the number {n}"),
            Value::Float(x) => write!(f, "the float {x:?}"),
            Value::Bool(flag) => write!(f, "the bool {flag}"),
            Value::Text(text) => write!(f, "the text \"{}\"", shown(text)),
            Value::Array(array) => write!(f, "an array of type {}", array.kind),
        }
    }
}

/// An array's place in the file; its strings have been checked to lie in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// GGUF's number of the element type.
    pub kind: u32,
    /// How many.
    pub len: usize,
    /// Their bytes, from the start of the file.
    pub bytes: Range<usize>,
}

/// A tensor's place in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: TensorType,
    /// Columns first, as ggml counts.
    pub dims: Vec<usize>,
    /// Its bytes, from the start of the file.
    pub bytes: Range<usize>,
}

/// GGUF's number of the string type.
pub const TEXT: u32 = 8;
/// GGUF's number of the array type.
pub(super) const ARRAY: u32 = 9;
/// The key that names another alignment of tensor data.
pub(super) const ALIGNMENT: &str = "general.alignment";

/// The key that tells of how many files a model was made.
const SPLIT_COUNT: &str = "split.count";

/// Reads the header of `file` and checks that every tensor lies in it, apart from the others.
pub fn parse(file: &[u8]) -> Result<Header, LoadError> {
    let mut reader = Reader { file, at: 0 };
    let (tensors, keys) = reader.start()?;
    let mut header = Header::default();
    let mut names = HashSet::new();
    for _ in 0..keys {
        let (key, value, bytes) = reader.entry()?;
        if !names.insert(key.clone()) {
            return Err(LoadError::key(&key, "comes twice; the file is damaged"));
        }
        header.metadata.push((key, value));
        header.value_bytes.push(bytes);
    }
    check_whole(&header.metadata)?;
    let alignment = alignment(&header.metadata)?;
    let mut raw = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..tensors {
        let tensor = reader.tensor()?;
        if !names.insert(tensor.name.clone()) {
            return Err(LoadError::tensor(&tensor.name, "comes twice; the file is damaged"));
        }
        raw.push(tensor);
    }
    let data = (reader.at as u64).next_multiple_of(alignment);
    for tensor in raw {
        header.tensors.push(tensor.place(data, alignment, file.len())?);
    }
    check_apart(&header.tensors)?;
    Ok(header)
}

/// A part of a model that was split into several files is no model.
fn check_whole(metadata: &[(String, Value)]) -> Result<(), LoadError> {
    let number = |name: &str| {
        metadata.iter().find(|(key, _)| key == name).and_then(|(_, value)| match value {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        })
    };
    match number(SPLIT_COUNT) {
        None | Some(0 | 1) => Ok(()),
        Some(count) => {
            // Counted from 0 in the file, and from 1 in its name.
            let part =
                number("split.no").map_or("one".into(), |part| format!("part {}", part.saturating_add(1)));
            let said =
                format!("{part} of {count} parts of a split file; join them: llama-gguf-split --merge");
            Err(LoadError::key(SPLIT_COUNT, said))
        }
    }
}

fn alignment(metadata: &[(String, Value)]) -> Result<u64, LoadError> {
    match metadata.iter().find(|(key, _)| key == ALIGNMENT) {
        None => Ok(DEFAULT_ALIGNMENT),
        // Beyond a page of 64 KiB alignment buys nothing, and huge values only overflow.
        Some((_, Value::Unsigned(n))) if n.is_power_of_two() && (8..=65536).contains(n) => Ok(*n),
        Some((key, value)) => {
            Err(LoadError::key(key, format!("is {value}, not a power of two between 8 and 65536")))
        }
    }
}

fn check_apart(tensors: &[Tensor]) -> Result<(), LoadError> {
    let mut by_place: Vec<&Tensor> = tensors.iter().collect();
    by_place.sort_by_key(|tensor| tensor.bytes.start);
    for pair in by_place.windows(2) {
        if pair[0].bytes.end > pair[1].bytes.start {
            let said = format!("its data overlaps that of {}; the file is damaged", shown(&pair[0].name));
            return Err(LoadError::tensor(&pair[1].name, said));
        }
    }
    Ok(())
}

/// A tensor's entry before its data is placed.
struct RawTensor {
    name: String,
    kind: u32,
    dims: Vec<u64>,
    offset: u64,
}

impl RawTensor {
    fn place(self, data: u64, alignment: u64, file: usize) -> Result<Tensor, LoadError> {
        let fail = |said: String| LoadError::tensor(&self.name, said);
        let kind = TensorType::from_id(self.kind).map_err(fail)?;
        let elements = self.dims.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim));
        let size = elements
            .filter(|n| *n > 0)
            .and_then(|n| kind.bytes(n, self.dims[0]))
            .ok_or_else(|| fail(format!("shape {:?} is impossible for {}", self.dims, kind.name())))?;
        if !self.offset.is_multiple_of(alignment) {
            return Err(fail(format!("offset {} is not aligned to {alignment}", self.offset)));
        }
        let end = data.checked_add(self.offset).and_then(|start| start.checked_add(size));
        match end {
            Some(end) if end <= file as u64 => Ok(Tensor {
                kind,
                // Each dimension is at most the number of elements, whose bytes lie in the file.
                dims: self.dims.iter().map(|dim| *dim as usize).collect(),
                bytes: (end - size) as usize..end as usize,
                name: self.name,
            }),
            _ => Err(fail(format!(
                "offset {} and {size} bytes lie outside the file of {file} bytes; it is half-downloaded, truncated or damaged: download it again",
                self.offset
            ))),
        }
    }
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn fail<T>(&self, what: &str) -> Result<T, LoadError> {
        let said = format!("{what}; the file is truncated or damaged");
        Err(LoadError::new(format!("byte {}", self.at), said))
    }

    /// Magic, version, and the numbers of tensors and metadata keys.
    fn start(&mut self) -> Result<(u64, u64), LoadError> {
        if self.file.get(..4) != Some(b"GGUF") {
            return Err(LoadError::new("byte 0", format!("no GGUF file: {}", instead_of_gguf(self.file))));
        }
        self.at = 4;
        match self.u32()? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 2 | 3) => {
                return Err(LoadError::new("byte 4", "a big-endian file; use the little-endian one"));
            }
            version => {
                let said = format!("GGUF version {version}; this engine reads 2 and 3");
                return Err(LoadError::new("byte 4", said));
            }
        }
        Ok((self.count("tensors")?, self.count("metadata keys")?))
    }

    fn count(&mut self, what: &str) -> Result<u64, LoadError> {
        let at = self.at;
        match self.u64()? {
            count if count <= MAX_ENTRIES => Ok(count),
            count => {
                let said = format!("{count} {what}, where {MAX_ENTRIES} are allowed; the file is damaged");
                Err(LoadError::new(format!("byte {at}"), said))
            }
        }
    }

    fn take(&mut self, len: u64) -> Result<&[u8], LoadError> {
        let left = self.file.len() - self.at;
        if len > left as u64 {
            return self.fail(&format!("{len} bytes wanted, {left} left"));
        }
        let start = self.at;
        self.at += len as usize;
        Ok(&self.file[start..self.at])
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        Ok(self.take(N as u64)?.try_into().expect("take gives the length asked for"))
    }

    fn u32(&mut self) -> Result<u32, LoadError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, LoadError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, LoadError> {
        let len = self.u64()?;
        let at = self.at;
        let bytes = self.take(len)?;
        let fail = |said: String| Err(LoadError::new(format!("byte {at}"), said));
        if len > MAX_TEXT {
            return fail(format!("a text of {len} bytes, where {MAX_TEXT} are allowed"));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => fail("text that is not UTF-8; the file is damaged".into()),
        }
    }

    /// A key, its value, and where that lies.
    fn entry(&mut self) -> Result<(String, Value, Range<usize>), LoadError> {
        let key = self.text()?;
        let start = self.at;
        let value = self.value().map_err(|error| error.within(format!("metadata key {}", shown(&key))))?;
        Ok((key, value, start..self.at))
    }

    fn value(&mut self) -> Result<Value, LoadError> {
        Ok(match self.u32()? {
            0 => Value::Unsigned(u8::from_le_bytes(self.bytes()?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Value::Bool(self.bytes::<1>()? != [0]),
            TEXT => Value::Text(self.text()?),
            ARRAY => Value::Array(self.array()?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => return self.fail(&format!("unknown value type {other}")),
        })
    }

    fn array(&mut self) -> Result<Array, LoadError> {
        let kind = self.u32()?;
        let len = self.u64()?;
        let start = self.at;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            // Each string takes at least the 8 bytes of its length, so the loop ends with the file.
            TEXT => 0,
            ARRAY => return self.fail("an array of arrays, which no model has"),
            other => return self.fail(&format!("an array of the unknown type {other}")),
        };
        if kind == TEXT {
            for _ in 0..len {
                let bytes = self.u64()?;
                self.take(bytes)?;
            }
        } else {
            match len.checked_mul(size) {
                Some(bytes) => self.take(bytes)?,
                None => return self.fail(&format!("an array of {len} elements")),
            };
        }
        // Bounded by the file: each element took at least one byte of it.
        Ok(Array { kind, len: len as usize, bytes: start..self.at })
    }

    fn tensor(&mut self) -> Result<RawTensor, LoadError> {
        let name = self.text()?;
        let rest = |reader: &mut Self| {
            let count = reader.u32()?;
            if !(1..=MAX_DIMENSIONS).contains(&count) {
                return reader.fail(&format!("{count} dimensions"));
            }
            let dims = (0..count).map(|_| reader.u64()).collect::<Result<_, _>>()?;
            Ok((dims, reader.u32()?, reader.u64()?))
        };
        let (dims, kind, offset) =
            rest(self).map_err(|error| error.within(format!("tensor {}", shown(&name))))?;
        Ok(RawTensor { name, kind, dims, offset })
    }
}
