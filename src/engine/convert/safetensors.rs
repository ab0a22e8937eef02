//! Safetensors files: a JSON header with each tensor's type, shape and offsets, then the data.
//!
//! Parsed here and not with the `safetensors` crate, which silently keeps the last of two tensors of one name, and
//! most of whose errors do not say which tensor is meant. Source of the format: the README of the safetensors
//! project.

use super::checkpoint_files::CheckpointFolder;
use crate::engine::error::{LoadError, escaped};
use crate::engine::gguf::{FileMap, FileSlice};
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// The most bytes of a header. Some ten thousand tensors take one million.
const MAX_HEADER: u64 = 16 << 20;
/// The most tensors of a file, and files of a checkpoint: several times what the largest have.
const MAX_TENSORS: usize = 1 << 16;
const MAX_FILES: usize = 1 << 10;

/// A tensor of a checkpoint.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// Its name.
    pub name: String,
    /// Its type, as the format names it.
    pub dtype: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub data: FileSlice,
}

/// All tensors of a checkpoint, by name.
#[derive(Debug)]
pub struct Tensors(BTreeMap<String, StoredTensor>);

/// `model.safetensors.index.json`: which file holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl Tensors {
    /// Reads the headers of a folder's single file, or of all files that its index names. Where it has both, the
    /// single file is used, as transformers does.
    pub fn read(folder: &CheckpointFolder) -> Result<Self, LoadError> {
        if let Some(file) = folder.read(SINGLE)? {
            return Ok(Tensors(file_tensors(SINGLE, file)?));
        }
        let index = folder.json::<Index>(INDEX)?.ok_or_else(|| {
            LoadError::new(
                SINGLE,
                format!("missing, and no {INDEX}; {}", explain_missing_weights(&folder.names())),
            )
        })?;
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        if names.len() > MAX_FILES {
            let message = format!("{} files, where {MAX_FILES} are allowed", names.len());
            return Err(LoadError::new(INDEX, message));
        }
        let mut files = BTreeMap::new();
        for name in names {
            check_name(name).map_err(|message| LoadError::new(INDEX, message))?;
            let file = folder.read_required(name, "download all files that the index names")?;
            files.insert(name.clone(), file_tensors(name, file)?);
        }
        let mut tensors = BTreeMap::new();
        for (name, file) in index.weight_map {
            let tensor = files[&file].get(&name).cloned().ok_or_else(|| {
                let message = format!("the index says it is in {}, and it is not", escaped(&file));
                LoadError::tensor(&name, message)
            })?;
            tensors.insert(name, tensor);
        }
        Ok(Tensors(tensors))
    }

    /// The tensor of a name.
    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.0.get(name)
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// Describes what a folder without safetensors weights has, and what to do.
fn explain_missing_weights(names: &[String]) -> String {
    let with = |end: &str| names.iter().find(|name| name.ends_with(end));
    let part = names.iter().find(|name| name.ends_with(".safetensors") && name.contains("-of-"));
    if let Some(part) = part {
        return format!(
            "{} is a part of a split checkpoint; download its index and all parts",
            escaped(part)
        );
    }
    if let Some(torch) = with(".bin").or_else(|| with(".pth")).or_else(|| with(".pt")) {
        return format!("{} holds PyTorch weights, which are not read; get safetensors", escaped(torch));
    }
    if let Some(file) = with(".gguf") {
        return format!("{} is a model file already; give that file", escaped(file));
    }
    "give a folder with safetensors weights".into()
}

/// A name from the index must be a file of the folder itself.
fn check_name(name: &str) -> Result<(), String> {
    let plain = !name.contains(['/', '\\', '\0']) && name.ends_with(".safetensors");
    match plain {
        true => Ok(()),
        false => {
            Err(format!("names the file \"{}\", which is no safetensors file of the folder", escaped(name)))
        }
    }
}

fn file_tensors(file: &str, map: FileMap) -> Result<BTreeMap<String, StoredTensor>, LoadError> {
    let map = Arc::new(map);
    parse(&map).map_err(|error| error.within(escaped(file)))
}

/// The tensors of one file. Every length is checked against the file before it is used.
fn parse(map: &Arc<FileMap>) -> Result<BTreeMap<String, StoredTensor>, LoadError> {
    let fail =
        |message: String| LoadError::new("header", format!("{message}; the file is truncated or damaged"));
    let (len, rest) = map.split_first_chunk::<8>().ok_or_else(|| fail("shorter than 8 bytes".into()))?;
    let len = u64::from_le_bytes(*len);
    if len > MAX_HEADER || len > rest.len() as u64 {
        return Err(fail(format!("{len} bytes long in a file of {}, limit {MAX_HEADER}", map.len())));
    }
    let (header, data) = rest.split_at(len as usize);
    let Entries(entries) = serde_json::from_slice(header)
        .map_err(|error| LoadError::new("header", one_line(&error.to_string())))?;
    let start = map.len() - data.len();
    let mut tensors = BTreeMap::new();
    let mut ranges = Vec::new();
    for (name, entry) in entries {
        let range = entry.byte_range(data.len()).map_err(|message| LoadError::tensor(&name, message))?;
        ranges.push((range.clone(), name.clone()));
        let stored = StoredTensor {
            data: FileSlice::of(map, start + range.start..start + range.end),
            shape: entry.shape,
            dtype: entry.dtype,
            name: name.clone(),
        };
        if tensors.insert(name.clone(), stored).is_some() {
            return Err(LoadError::tensor(&name, "comes twice; the file is damaged"));
        }
    }
    check_coverage(ranges, data.len())?;
    Ok(tensors)
}

/// The format requires that the data has no holes, and that each byte belongs to one tensor.
fn check_coverage(mut ranges: Vec<(std::ops::Range<usize>, String)>, data: usize) -> Result<(), LoadError> {
    ranges.sort_by_key(|(range, _)| (range.start, range.end));
    let mut end = 0;
    for (range, name) in ranges {
        if range.start != end {
            let message =
                if range.start < end { "overlaps the one before it" } else { "leaves a hole before it" };
            return Err(LoadError::tensor(&name, format!("its data {message}; the file is damaged")));
        }
        end = range.end;
    }
    if end != data {
        let message = format!("{} bytes of data, of which tensors have {end}; the file is damaged", data);
        return Err(LoadError::new("data", message));
    }
    Ok(())
}

/// A library's message on one line, longer than names may be.
fn one_line(message: &str) -> String {
    message.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// The header's entry of a tensor.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl Entry {
    /// Its bytes, from the start of the data, after checking them against type and shape.
    fn byte_range(&self, data: usize) -> Result<std::ops::Range<usize>, String> {
        const SIZES: &[(&str, usize)] = &[
            ("F64", 8),
            ("F32", 4),
            ("F16", 2),
            ("BF16", 2),
            ("I64", 8),
            ("I32", 4),
            ("I16", 2),
            ("I8", 1),
            ("U64", 8),
            ("U32", 4),
            ("U16", 2),
            ("U8", 1),
            ("BOOL", 1),
            ("F8_E4M3", 1),
            ("F8_E5M2", 1),
        ];
        let size = SIZES.iter().find(|(name, _)| *name == self.dtype).map(|(_, size)| *size);
        let size = size.ok_or_else(|| format!("its type \"{}\" is not known", escaped(&self.dtype)))?;
        // More dimensions than any model has would only make errors long.
        let shape = self.shape.get(..self.shape.len().min(8)).unwrap_or_default();
        let bytes = self.shape.iter().try_fold(size, |n, dim| n.checked_mul(*dim));
        let [start, end] = self.data_offsets;
        let len = end.checked_sub(start).filter(|_| end <= data);
        let Some(len) = len else {
            return Err(format!(
                "its data at {start} to {end} lies outside the {data} bytes of the file; it is half-downloaded or damaged: download it again"
            ));
        };
        match bytes == Some(len) && self.shape.len() <= 8 {
            true => Ok(start..end),
            false => Err(format!("{} of shape {shape:?} does not take {len} bytes", self.dtype)),
        }
    }
}

/// The header's tensors in file order. Names that occur twice are kept, so that they can be refused by name.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else if entries.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            } else {
                let entry = map
                    .next_value()
                    .map_err(|error| A::Error::custom(format!("tensor {}: {error}", escaped(&name))))?;
                entries.push((name, entry));
            }
        }
        Ok(Entries(entries))
    }
}
