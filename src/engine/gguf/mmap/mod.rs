//! The bytes of a model file: memory-mapped, built in, or given. Nothing is copied.
//!
//! A file can be truncated or written to while it is mapped. A guarded map survives that and reports it; see
//! [`FileMap::damage`].
//!
//! Deliberately knows nothing of what is in the file.

mod sigbus;

use crate::engine::error::LoadError;
use sigbus::Guard;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Read-only bytes that are shared by all who hold them.
#[derive(Debug)]
pub struct FileMap(Backing);

#[derive(Debug)]
enum Backing {
    /// The guard comes first, so that it is dropped before the mapping that it guards.
    Guarded(Guard, memmap2::Mmap, FileIdentity),
    Mapped(memmap2::Mmap, File),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

/// The file behind a guarded map, as it was when it was mapped.
#[derive(Debug)]
struct FileIdentity {
    path: PathBuf,
    /// Kept open, because the name may belong to another file by now, which does not affect this map.
    file: File,
    length: u64,
    written: Option<SystemTime>,
}

impl FileMap {
    /// Maps a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = regular(path)?;
        Ok(FileMap(Backing::Mapped(map(&file)?, file)))
    }

    /// Maps a regular file and survives changes to it: a page that the file no longer has is read as zeros from
    /// then on instead of ending the process, and [`FileMap::damage`] reports it. Where no guard is free, this is
    /// the same as [`FileMap::open`].
    pub fn open_guarded(path: &Path) -> io::Result<Self> {
        Self::of_guarded(regular(path)?, path)
    }

    /// The same for a regular file that is already open; `path` names it in errors.
    pub fn of_guarded(file: File, path: &Path) -> io::Result<Self> {
        let about = file.metadata()?;
        let map = map(&file)?;
        let Some(guard) = Guard::over(&map) else { return Ok(FileMap(Backing::Mapped(map, file))) };
        let written = about.modified().ok();
        let origin = FileIdentity { path: path.to_owned(), file, length: about.len(), written };
        Ok(FileMap(Backing::Guarded(guard, map, origin)))
    }

    /// What happened to the file under a guarded map since it was mapped; `None` while it is unchanged. Asks the
    /// file system, which takes some microseconds.
    pub fn damage(&self) -> Option<LoadError> {
        let Backing::Guarded(guard, _, origin) = &self.0 else { return None };
        let message = match origin.file.metadata() {
            Ok(about) if about.len() != origin.length => {
                format!("had {} bytes when it was loaded, and has {} now", origin.length, about.len())
            }
            _ if guard.has_zeroed_pages() => {
                "cannot be read to its end any more; its disk may be failing".into()
            }
            Ok(about) if about.modified().ok() != origin.written => {
                "was written to while it was in use".into()
            }
            Ok(_) => return None,
            Err(error) => format!("cannot be looked at any more: {error}"),
        };
        let place = origin.path.display().to_string().replace(char::is_control, "?");
        Some(LoadError::new(place, format!("{message}; start again to load it as it is now")))
    }

    /// Whether zeros were read in place of the file's bytes; a check of memory only.
    pub fn has_zeroed_pages(&self) -> bool {
        matches!(&self.0, Backing::Guarded(guard, ..) if guard.has_zeroed_pages())
    }

    /// Bytes `range`, for random access. Bytes of a file are read into `buffer`, because reading them through the
    /// mapping loads what is around them, up to megabytes. Where the file does not deliver them they are read
    /// through the mapping, so that [`FileMap::damage`] reports what is wrong.
    ///
    /// # Panics
    /// When `range` does not lie in it, or `buffer` is shorter.
    pub fn read<'a>(&'a self, range: Range<usize>, buffer: &'a mut [u8]) -> &'a [u8] {
        let (mapped, buffer) = (&self[range.clone()], &mut buffer[..range.len()]);
        let file = match &self.0 {
            Backing::Guarded(.., FileIdentity { file, .. }) | Backing::Mapped(_, file) => file,
            Backing::Static(_) | Backing::Owned(_) => return mapped,
        };
        if file.read_exact_at(buffer, range.start as u64).is_ok() { buffer } else { mapped }
    }

    /// Releases the memory of pages that will not be read again; they stay in the file.
    pub fn release(&self, range: Range<usize>) {
        if let Backing::Mapped(map, _) | Backing::Guarded(_, map, _) = &self.0 {
            // SAFETY: the mapping is read-only and backed by the file: if a released page is read after all, it is
            // read from the file again, with the same bytes.
            let advised = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
            // A refusal costs memory that the kernel can reclaim by itself.
            let _ = advised;
        }
    }

    /// Bytes that are part of the program.
    pub fn from_static(bytes: &'static [u8]) -> Self {
        FileMap(Backing::Static(bytes))
    }
}

fn regular(path: &Path) -> io::Result<File> {
    // Checked before the file is opened: opening a pipe waits for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)
}

fn map(file: &File) -> io::Result<memmap2::Mmap> {
    // SAFETY: the mapping is read-only and private. Another process may still write to the file, which no mapping
    // can prevent: every use of its bytes accepts any value they may have. If the file is truncated, a guarded map
    // reads zeros, and an unguarded one ends the process.
    unsafe { memmap2::Mmap::map(file) }
}

impl From<Vec<u8>> for FileMap {
    fn from(bytes: Vec<u8>) -> Self {
        FileMap(Backing::Owned(bytes))
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Backing::Mapped(map, _) | Backing::Guarded(_, map, _) => map,
            Backing::Static(bytes) => bytes,
            Backing::Owned(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use tempfile::TempDir;

    /// Some pages of ones in a file of its own. One test at a time: there are so many guards in a process.
    struct Pages {
        path: PathBuf,
        _folder: TempDir,
        _turn: MutexGuard<'static, ()>,
    }

    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    const LENGTH: usize = 5 << 16;

    impl Pages {
        fn new() -> Self {
            let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
            let folder = TempDir::with_prefix("bitnetd-").expect("a temporary folder");
            let path = folder.path().join("pages");
            std::fs::write(&path, vec![1; LENGTH]).expect("a temporary folder");
            Pages { path, _folder: folder, _turn: turn }
        }

        fn truncate_to(&self, length: u64) {
            let file = File::options().write(true).open(&self.path).expect("it is there");
            file.set_len(length).expect("it can be cut");
        }
    }

    #[test]
    fn a_file_truncated_under_its_map_reads_as_zeros_and_is_reported() {
        let pages = Pages::new();
        let map = FileMap::open_guarded(&pages.path).expect("it is there");
        assert_eq!((map.damage(), map.has_zeroed_pages()), (None, false));
        pages.truncate_to(1 << 16);
        assert!(
            map.damage().is_some_and(|error| error.message.contains("has 65536 now")),
            "{:?}",
            map.damage()
        );
        assert!(!map.has_zeroed_pages(), "nothing was read yet");
        // From several threads at once, as a model is; not in the order of the file.
        let sums: Vec<usize> = std::thread::scope(|scope| {
            let sum = |from: usize| map[from..].iter().map(|byte| usize::from(*byte)).sum::<usize>();
            let readers = [LENGTH - 1, 3 << 16, 2 << 16, 0].map(|from| scope.spawn(move || sum(from)));
            readers.map(|reader| reader.join().expect("it lives")).into()
        });
        assert_eq!(sums, [0, 0, 0, 1 << 16]);
        let error = map.damage().expect("it was cut short");
        assert!(map.has_zeroed_pages() && error.place == pages.path.display().to_string(), "{error}");
        // Also the next one over the same place.
        drop(map);
        pages.truncate_to(LENGTH as u64);
        let again = FileMap::open_guarded(&pages.path).expect("it is there");
        assert_eq!((again[0], again.damage(), again.has_zeroed_pages()), (1, None, false));
    }

    #[test]
    fn random_reads_return_the_files_bytes_and_zeros_behind_its_end() {
        let pages = Pages::new();
        let bytes: Vec<u8> = (0..LENGTH).map(|at| (at % 251) as u8).collect();
        std::fs::write(&pages.path, &bytes).expect("it is there");
        let places = [0..1, 9..9, 4090..4100, LENGTH - 7..LENGTH];
        let (file, unguarded) = (FileMap::open_guarded(&pages.path), FileMap::open(&pages.path));
        let (file, unguarded) = (file.expect("it is there"), unguarded.expect("it is there"));
        let mut buffer = [0; 16];
        for map in [&file, &unguarded, &bytes.clone().into()] {
            for place in &places {
                assert_eq!(map.read(place.clone(), &mut buffer), &bytes[place.clone()]);
            }
        }
        pages.truncate_to(2 << 16);
        let across = (2 << 16) - 4..(2 << 16) + 4;
        assert_eq!(file.read(across.clone(), &mut buffer), [&bytes[across][..4], &[0; 4]].concat());
        assert!(file.has_zeroed_pages() && file.damage().is_some());
    }

    #[test]
    fn a_file_written_to_under_its_map_is_reported() {
        let pages = Pages::new();
        let map = FileMap::open_guarded(&pages.path).expect("it is there");
        let file = File::options().write(true).open(&pages.path).expect("it is there");
        file.set_modified(SystemTime::UNIX_EPOCH).expect("its owner may");
        assert!(map.damage().is_some_and(|error| error.message.contains("written to")), "{:?}", map.damage());
    }

    #[test]
    fn a_file_replaced_by_another_of_the_same_name_does_no_harm() {
        let pages = Pages::new();
        let map = FileMap::open_guarded(&pages.path).expect("it is there");
        let other = pages.path.with_extension("other");
        std::fs::write(&other, [2; 9]).expect("a temporary folder");
        std::fs::rename(&other, &pages.path).expect("one folder");
        assert_eq!((map.damage(), map[LENGTH - 1]), (None, 1));
    }

    #[test]
    fn maps_beyond_the_number_of_guards_work_unguarded() {
        let pages = Pages::new();
        let maps: Vec<FileMap> =
            (0..100).map(|_| FileMap::open_guarded(&pages.path).expect("it is there")).collect();
        assert!(maps.iter().all(|map| map[LENGTH - 1] == 1 && map.damage().is_none()));
        assert!(matches!(maps[99].0, Backing::Mapped(..)));
    }
}
