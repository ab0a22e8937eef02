//! The files of a checkpoint folder, on disk or in memory.

use crate::engine::error::{LoadError, escaped};
use crate::engine::gguf::{FileMap, identify};
use crate::external_text::{duplicate_key, without_bom, wrong_head};
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The most bytes of a JSON file that is read into memory. The largest in use are vocabularies of 256 thousand
/// tokens, some 35 MB.
const MAX_JSON: usize = 128 << 20;

/// A checkpoint folder.
#[derive(Debug)]
pub struct CheckpointFolder {
    storage: Storage,
    /// The names of the files that were requested, including those that do not exist.
    requested: RefCell<BTreeSet<String>>,
}

#[derive(Debug)]
enum Storage {
    Disk(PathBuf),
    Memory(BTreeMap<String, Vec<u8>>),
}

impl CheckpointFolder {
    /// A folder on disk.
    pub fn open(path: &Path) -> Self {
        CheckpointFolder { storage: Storage::Disk(path.to_owned()), requested: RefCell::default() }
    }

    /// Files by name, in memory.
    pub fn memory(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        CheckpointFolder {
            storage: Storage::Memory(files.into_iter().collect()),
            requested: RefCell::default(),
        }
    }

    /// The paths of the files that a plan has requested, existing or not, for a folder on disk: exactly what the
    /// plan depends on.
    pub fn requested(&self) -> Vec<PathBuf> {
        match &self.storage {
            Storage::Disk(folder) => self.requested.borrow().iter().map(|name| folder.join(name)).collect(),
            Storage::Memory(_) => Vec::new(),
        }
    }

    /// The folder's own name, for a folder on disk.
    pub fn name(&self) -> Option<String> {
        match &self.storage {
            Storage::Disk(folder) => {
                // Resolves `.`; a folder that cannot be resolved has no name.
                let folder = folder.canonicalize().ok()?;
                Some(folder.file_name()?.to_string_lossy().into_owned())
            }
            Storage::Memory(_) => None,
        }
    }

    /// Reads a file by name; `None` where there is none. `name` is a constant, or has been checked to stay in the
    /// folder.
    pub fn read(&self, name: &str) -> Result<Option<FileMap>, LoadError> {
        self.requested.borrow_mut().insert(name.to_owned());
        let read = match &self.storage {
            Storage::Memory(files) => files.get(name).cloned().map(FileMap::from),
            Storage::Disk(folder) => match FileMap::open(&folder.join(name)) {
                Ok(map) => Some(map),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(LoadError::new(escaped(name), format!("cannot be read: {error}"))),
            },
        };
        match read.as_ref().and_then(|bytes| identify(bytes)) {
            Some(what) => Err(LoadError::new(escaped(name), format!("is {what}"))),
            None => Ok(read),
        }
    }

    /// Names of its files, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = match &self.storage {
            Storage::Memory(files) => files.keys().cloned().collect(),
            Storage::Disk(folder) => {
                let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
                entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
            }
        };
        names.sort();
        names
    }

    /// Reads a file that must exist.
    pub fn read_required(&self, name: &str, way_out: &str) -> Result<FileMap, LoadError> {
        self.read(name)?.ok_or_else(|| LoadError::new(escaped(name), format!("missing; {way_out}")))
    }

    /// Reads and deserialises a JSON file; `None` where there is no such file.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, LoadError> {
        self.read(name)?.map(|bytes| json(name, &bytes)).transpose()
    }
}

fn json<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, LoadError> {
    if bytes.len() > MAX_JSON {
        let message = format!("{} bytes, where {MAX_JSON} are allowed", bytes.len());
        return Err(LoadError::new(name, message));
    }
    if let Some(wrong) = wrong_head(bytes) {
        return Err(LoadError::new(name, wrong));
    }
    let bytes = without_bom(bytes);
    if bytes.trim_ascii().is_empty() {
        return Err(LoadError::new(name, "empty: half-downloaded; download it again"));
    }
    if let Some(path) = duplicate_key(bytes) {
        return Err(LoadError::new(
            format!("{name}: {}", escaped(&path)),
            "given twice; the file is damaged",
        ));
    }
    // The path to the value is more helpful than a line number in a file of one line.
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let key = format!("{name}: {}", escaped(&error.path().to_string()));
        let ended =
            if error.inner().is_eof() { ": half-downloaded or damaged; download it again" } else { "" };
        LoadError::new(key, format!("{}{ended}", escaped(&error.inner().to_string())))
    })
}
