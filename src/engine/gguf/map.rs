//! The bytes of a model file: mapped, built in, or given. Nothing is copied.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// Read-only bytes that live as long as someone holds them.
#[derive(Debug)]
pub struct Map(Bytes);

#[derive(Debug)]
enum Bytes {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

impl Map {
    /// Maps a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Asked before it is opened: opening a pipe waits for someone to write to it.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = File::open(path)?;
        // SAFETY: the mapping is read-only and private. Another process that writes to or truncates
        // the file under us is outside what a mapping can guard against; the model directory
        // belongs to the administrator, as the README says.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Map(Bytes::Mapped(map)))
    }

    /// Gives back the memory of pages that will not be read again; they stay in the file.
    pub fn release(&self, range: std::ops::Range<usize>) {
        if let Bytes::Mapped(map) = &self.0 {
            // SAFETY: the mapping is read-only and backed by the file: a released page that is read
            // after all is read from the file again, with the same bytes.
            let advised = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
            // A refusal costs memory that the kernel can take back by itself.
            let _ = advised;
        }
    }

    /// Bytes that are part of the program.
    pub fn from_static(bytes: &'static [u8]) -> Self {
        Map(Bytes::Static(bytes))
    }
}

impl From<Vec<u8>> for Map {
    fn from(bytes: Vec<u8>) -> Self {
        Map(Bytes::Owned(bytes))
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
            Bytes::Owned(bytes) => bytes,
        }
    }
}
