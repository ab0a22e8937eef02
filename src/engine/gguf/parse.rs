//! Parses GGUF versions 2 and 3 from bytes, without I/O.
//!
//! Every length is checked against what is left of the file before anything is allocated or skipped; all arithmetic
//! on sizes is checked. Source of the layout: the GGUF specification in the ggml project.

use super::wrong_file::identify_non_gguf;
use crate::engine::error::{LoadError, escaped};
use crate::engine::quant::TensorType;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

/// The alignment of tensor data where the file names none.
const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's own limit.
const MAX_DIMENSIONS: u32 = 4;
/// The most metadata keys, and the most tensors. The largest model in use has some hundreds; each takes several
/// times its bytes in the file once it is read, and is looked up one by one.
const MAX_ENTRIES: u64 = 1 << 14;
/// The longest text that is read into memory; the longest in use are chat templates of some 20 KB.
const MAX_TEXT: u64 = 1 << 20;

/// All that stands in a file before its tensor data.
#[derive(Debug, Default)]
pub struct Header {
    /// Key and value, in file order.
    pub metadata: Vec<(String, MetadataValue)>,
    /// Where each of these values lies in the file, with the number of its type before it.
    pub value_bytes: Vec<Range<usize>>,
    /// Tensors, in file order.
    pub tensors: Vec<TensorInfo>,
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum MetadataValue {
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
    /// Many values of one type, left in the file.
    Array(ArrayInfo),
}

impl fmt::Display for MetadataValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetadataValue::Unsigned(n) => write!(f, "the number {n}"),
            MetadataValue::Signed(n) => write!(f, "the number {n}"),
            MetadataValue::Float(x) => write!(f, "the float {x:?}"),
            MetadataValue::Bool(flag) => write!(f, "the bool {flag}"),
            MetadataValue::Text(text) => write!(f, "the text \"{}\"", escaped(text)),
            MetadataValue::Array(array) => write!(f, "an array of type {}", array.kind),
        }
    }
}

/// Where an array lies in the file; its strings have been checked to lie in it.
#[derive(Debug, Clone, PartialEq)]
pub struct ArrayInfo {
    /// GGUF's number of the element type.
    pub kind: u32,
    /// How many.
    pub len: usize,
    /// Their bytes, from the start of the file.
    pub bytes: Range<usize>,
}

/// A tensor's name, type and shape, and where its data lies in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
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
pub const STRING: u32 = 8;
/// GGUF's number of the array type.
pub(super) const ARRAY: u32 = 9;
/// The key of the alignment of tensor data.
pub(super) const ALIGNMENT: &str = "general.alignment";

/// The key of the number of files into which a model was split.
const SPLIT_COUNT: &str = "split.count";

/// Reads the header of `file` and checks that every tensor lies in it and overlaps no other.
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
    check_not_split(&header.metadata)?;
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
    check_no_overlap(&header.tensors)?;
    Ok(header)
}

/// Refuses one part of a model that was split into several files.
fn check_not_split(metadata: &[(String, MetadataValue)]) -> Result<(), LoadError> {
    let number = |name: &str| {
        metadata.iter().find(|(key, _)| key == name).and_then(|(_, value)| match value {
            MetadataValue::Unsigned(n) => Some(*n),
            MetadataValue::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        })
    };
    match number(SPLIT_COUNT) {
        None | Some(0 | 1) => Ok(()),
        Some(count) => {
            // Counted from 0 in the file, and from 1 in its name.
            let part =
                number("split.no").map_or("one".into(), |part| format!("part {}", part.saturating_add(1)));
            let message =
                format!("{part} of {count} parts of a split file; join them: llama-gguf-split --merge");
            Err(LoadError::key(SPLIT_COUNT, message))
        }
    }
}

fn alignment(metadata: &[(String, MetadataValue)]) -> Result<u64, LoadError> {
    match metadata.iter().find(|(key, _)| key == ALIGNMENT) {
        None => Ok(DEFAULT_ALIGNMENT),
        // A larger alignment than a page of 64 KiB has no use, and huge values only overflow.
        Some((_, MetadataValue::Unsigned(n))) if n.is_power_of_two() && (8..=65536).contains(n) => Ok(*n),
        Some((key, value)) => {
            Err(LoadError::key(key, format!("is {value}, not a power of two between 8 and 65536")))
        }
    }
}

fn check_no_overlap(tensors: &[TensorInfo]) -> Result<(), LoadError> {
    let mut by_start: Vec<&TensorInfo> = tensors.iter().collect();
    by_start.sort_by_key(|tensor| tensor.bytes.start);
    for pair in by_start.windows(2) {
        if pair[0].bytes.end > pair[1].bytes.start {
            let message =
                format!("its data overlaps that of {}; the file is damaged", escaped(&pair[0].name));
            return Err(LoadError::tensor(&pair[1].name, message));
        }
    }
    Ok(())
}

/// A tensor's entry before its data has been located.
struct RawTensor {
    name: String,
    kind: u32,
    dims: Vec<u64>,
    offset: u64,
}

impl RawTensor {
    fn place(self, data: u64, alignment: u64, file: usize) -> Result<TensorInfo, LoadError> {
        let fail = |message: String| LoadError::tensor(&self.name, message);
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
            Some(end) if end <= file as u64 => Ok(TensorInfo {
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
        let message = format!("{what}; the file is truncated or damaged");
        Err(LoadError::new(format!("byte {}", self.at), message))
    }

    /// Reads magic and version; returns the numbers of tensors and of metadata keys.
    fn start(&mut self) -> Result<(u64, u64), LoadError> {
        if self.file.get(..4) != Some(b"GGUF") {
            return Err(LoadError::new("byte 0", format!("no GGUF file: {}", identify_non_gguf(self.file))));
        }
        self.at = 4;
        match self.u32()? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 2 | 3) => {
                return Err(LoadError::new("byte 4", "a big-endian file; use the little-endian one"));
            }
            version => {
                let message = format!("GGUF version {version}; this engine reads 2 and 3");
                return Err(LoadError::new("byte 4", message));
            }
        }
        Ok((self.count("tensors")?, self.count("metadata keys")?))
    }

    fn count(&mut self, what: &str) -> Result<u64, LoadError> {
        let at = self.at;
        match self.u64()? {
            count if count <= MAX_ENTRIES => Ok(count),
            count => {
                let message = format!("{count} {what}, where {MAX_ENTRIES} are allowed; the file is damaged");
                Err(LoadError::new(format!("byte {at}"), message))
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
        let fail = |message: String| Err(LoadError::new(format!("byte {at}"), message));
        if len > MAX_TEXT {
            return fail(format!("a text of {len} bytes, where {MAX_TEXT} are allowed"));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => fail("text that is not UTF-8; the file is damaged".into()),
        }
    }

    /// A key, its value, and where the value lies.
    fn entry(&mut self) -> Result<(String, MetadataValue, Range<usize>), LoadError> {
        let key = self.text()?;
        let start = self.at;
        let value = self.value().map_err(|error| error.within(format!("metadata key {}", escaped(&key))))?;
        Ok((key, value, start..self.at))
    }

    fn value(&mut self) -> Result<MetadataValue, LoadError> {
        Ok(match self.u32()? {
            0 => MetadataValue::Unsigned(u8::from_le_bytes(self.bytes()?).into()),
            1 => MetadataValue::Signed(i8::from_le_bytes(self.bytes()?).into()),
            2 => MetadataValue::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => MetadataValue::Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => MetadataValue::Unsigned(self.u32()?.into()),
            5 => MetadataValue::Signed(i32::from_le_bytes(self.bytes()?).into()),
            6 => MetadataValue::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => MetadataValue::Bool(self.bytes::<1>()? != [0]),
            STRING => MetadataValue::Text(self.text()?),
            ARRAY => MetadataValue::Array(self.array()?),
            10 => MetadataValue::Unsigned(self.u64()?),
            11 => MetadataValue::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => MetadataValue::Float(f64::from_le_bytes(self.bytes()?)),
            other => return self.fail(&format!("unknown value type {other}")),
        })
    }

    fn array(&mut self) -> Result<ArrayInfo, LoadError> {
        let kind = self.u32()?;
        let len = self.u64()?;
        let start = self.at;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            // Each string takes at least the 8 bytes of its length, so that the loop ends with the file.
            STRING => 0,
            ARRAY => return self.fail("an array of arrays, which no model has"),
            other => return self.fail(&format!("an array of the unknown type {other}")),
        };
        if kind == STRING {
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
        Ok(ArrayInfo { kind, len: len as usize, bytes: start..self.at })
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
            rest(self).map_err(|error| error.within(format!("tensor {}", escaped(&name))))?;
        Ok(RawTensor { name, kind, dims, offset })
    }
}
