//! A cache of data derived from a model file, for the next start: the detected layout, and the head in another
//! format.
//!
//! Each model file has a folder of its own, named by the file's fingerprint, inside a folder of the caller's
//! choice. All of it can be deleted at any time: what is missing, or does not have the checksum it was written
//! with, is made again. The folder belongs to whoever runs the engine, as the model files do.
//!
//! Deliberately knows nothing of models: it stores texts and bytes under names.

use super::gguf::FileMap;
use crc32fast::Hasher;
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The first bytes of each image. They are padded to [`HEADER_BYTES`], which end with the image's checksum and its
/// length.
const MAGIC: &[u8] = b"bitnetd image 2\n";
/// Bytes before an image's own: one cache line.
const HEADER_BYTES: usize = 64;
/// Bytes of a model file that go into its fingerprint: all of its metadata except a large vocabulary.
const FINGERPRINT_BYTES: u64 = 1 << 20;
/// Model files whose folders are kept when another is added.
const MAX_MODELS: usize = 4;
/// A temporary file of this age is abandoned: the slowest SD card takes minutes.
const STALE_AFTER: Duration = Duration::from_secs(3600);
/// The most bytes of a stored text.
const MAX_TEXT: u64 = 256;

/// The folder of one model file, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DerivedCache(Option<PathBuf>);

/// Bytes that were loaded from the cache, or made now.
#[derive(Debug)]
pub struct CachedImage {
    /// The bytes begin at `start`.
    pub map: Arc<FileMap>,
    /// Where they begin.
    pub start: usize,
    /// Why they could not be stored and are made again at each start: a sentence. `None` where they are stored.
    pub not_cached_because: Option<String>,
}

impl DerivedCache {
    /// A cache that stores nothing.
    pub fn disabled() -> Self {
        DerivedCache(None)
    }

    /// The cache of the model file `model` under `root`. It stores nothing where the file cannot be read.
    pub fn for_model(root: &Path, model: &Path) -> Self {
        DerivedCache(fingerprint(model).ok().map(|name| root.join(name)))
    }

    /// The folder of the model file.
    pub fn folder(&self) -> Option<&Path> {
        self.0.as_deref()
    }

    /// The short text stored under `name`.
    pub fn text(&self, name: &str) -> Option<String> {
        let mut text = String::new();
        open(&self.0.as_ref()?.join(name)).ok()?.take(MAX_TEXT).read_to_string(&mut text).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// Stores a short text. A failure is ignored, because it only costs the next start some time.
    pub fn store_text(&self, name: &str, text: &str) {
        let Some(folder) = &self.0 else { return };
        let _ = prepare_folder(folder)
            .and_then(|()| write_atomically(folder, name, |out| writeln!(out, "{text}")));
    }

    /// The image of `bytes` bytes stored under `name`, if `is_sound` accepts it; otherwise `write` makes it. An
    /// error is one of `write`, or of allocating memory for the image.
    pub fn load_or_create(
        &self,
        name: &str,
        bytes: usize,
        is_sound: impl Fn(&[u8]) -> bool,
        mut write: impl FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<CachedImage> {
        let not_cached_because = match &self.0 {
            None => None,
            Some(folder) => {
                let path = folder.join(name);
                let seed = checksum_seed(folder, name);
                if let Some(map) = read(&path, bytes, &seed).filter(|map| is_sound(&map[HEADER_BYTES..])) {
                    // Marks the folder as used; otherwise it would be the first to be removed.
                    let _ = File::open(folder).and_then(|folder| folder.set_modified(SystemTime::now()));
                    return Ok(CachedImage {
                        map: Arc::new(map),
                        start: HEADER_BYTES,
                        not_cached_because: None,
                    });
                }
                let written =
                    prepare_folder(folder).and_then(|()| write_image(folder, name, &seed, &mut write));
                // Read back and checked, as the next start will do.
                match written.map(|()| read(&path, bytes, &seed)) {
                    Ok(Some(map)) => {
                        return Ok(CachedImage {
                            map: Arc::new(map),
                            start: HEADER_BYTES,
                            not_cached_because: None,
                        });
                    }
                    Ok(None) => Some(format!("{} is not read back as it was written", path.display())),
                    Err(error) => Some(format!("{}: {error}", path.display())),
                }
            }
        };
        let mut image = Vec::new();
        image.try_reserve_exact(bytes)?;
        write(&mut image)?;
        Ok(CachedImage { map: Arc::new(FileMap::from(image)), start: 0, not_cached_because })
    }
}

fn header(bytes: u64, checksum: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..MAGIC.len()].copy_from_slice(MAGIC);
    header[HEADER_BYTES - 16..HEADER_BYTES - 8].copy_from_slice(&u64::from(checksum).to_le_bytes());
    header[HEADER_BYTES - 8..].copy_from_slice(&bytes.to_le_bytes());
    header
}

/// The start of an image's checksum: the model file and the name, so that an image in the place of another is
/// recognised.
fn checksum_seed(folder: &Path, name: &str) -> Hasher {
    let mut seed = Hasher::new();
    seed.update(folder.file_name().unwrap_or_default().as_encoded_bytes());
    seed.update(name.as_bytes());
    seed
}

/// Maps an image if it is exactly as it was written. Reads it once: 168 MB take 40 ms where they are in memory.
fn read(path: &Path, bytes: usize, seed: &Hasher) -> Option<FileMap> {
    let map = FileMap::of_guarded(open(path).ok()?, path).ok()?;
    if map.len() != HEADER_BYTES + bytes {
        return None;
    }
    let mut checksum = seed.clone();
    checksum.update(&map[HEADER_BYTES..]);
    (map[..HEADER_BYTES] == header(bytes as u64, checksum.finalize())).then_some(map)
}

/// Opens a regular file of the cache. No link is followed, and a pipe is not waited for.
fn open(path: &Path) -> io::Result<File> {
    check_folder(path.parent().unwrap_or(Path::new(".")))?;
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

fn check_folder(folder: &Path) -> io::Result<()> {
    match fs::symlink_metadata(folder)?.is_dir() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "its folder is a link; remove it")),
    }
}

/// Writes an image with its header, which is completed last.
fn write_image(
    folder: &Path,
    name: &str,
    seed: &Hasher,
    write: &mut impl FnMut(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    write_atomically(folder, name, |file| {
        file.write_all(&[0; HEADER_BYTES])?;
        let out = BufWriter::new(file.try_clone()?);
        let mut out = ChecksumWriter { out, checksum: seed.clone(), bytes: 0 };
        write(&mut out)?;
        out.flush()?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header(out.bytes, out.checksum.finalize()))
    })
}

/// A writer that passes bytes on, and keeps their checksum and number.
struct ChecksumWriter<W> {
    out: W,
    checksum: Hasher,
    bytes: u64,
}

impl<W: Write> Write for ChecksumWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.checksum.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a temporary file beside the final one and renames it when all of it is on the disk.
fn write_atomically(
    folder: &Path,
    name: &str,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    // A name of its own for each writer, also for processes that do not see each other.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let part = folder.join(format!("{name}.{}-{now}.part", std::process::id()));
    let written = File::create_new(&part).and_then(|mut file| {
        write(&mut file)?;
        file.sync_all()
    });
    let placed = written.and_then(|()| fs::rename(&part, folder.join(name)));
    if placed.is_err() {
        let _ = fs::remove_file(&part);
    }
    placed
}

/// Creates the folder of a model, and makes space for it: removes the folders that were used longest ago, and what
/// an interrupted start left in this one.
fn prepare_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    check_folder(folder)?;
    let is_part = |path: &Path| path.extension().is_some_and(|end| end == "part");
    for entry in fs::read_dir(folder)?.flatten() {
        if is_part(&entry.path()) && is_stale(&entry) {
            let _ = fs::remove_file(entry.path());
        }
    }
    let Some(root) = folder.parent() else { return Ok(()) };
    let mut models: Vec<(SystemTime, PathBuf)> = fs::read_dir(root)?
        .flatten()
        .filter(|entry| is_fingerprint(&entry.file_name().to_string_lossy()) && entry.path() != folder)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    models.sort();
    let extra = (models.len() + 1).saturating_sub(MAX_MODELS);
    models[..extra].iter().for_each(|(_, path)| drop(fs::remove_dir_all(path)));
    Ok(())
}

/// Whether a temporary file is so old that nobody writes it any more.
fn is_stale(part: &fs::DirEntry) -> bool {
    let written = part.metadata().and_then(|about| about.modified());
    written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age > STALE_AFTER))
}

/// Names a model file by its inode and modification time, its length and its first bytes.
fn fingerprint(model: &Path) -> io::Result<String> {
    let file = File::open(model)?;
    let about = file.metadata()?;
    let mut sum = Sha256::new();
    for number in [about.len(), about.dev(), about.ino(), about.mtime() as u64, about.mtime_nsec() as u64] {
        sum.update(number.to_le_bytes());
    }
    let mut begin = Vec::new();
    file.take(FINGERPRINT_BYTES).read_to_end(&mut begin)?;
    sum.update(&begin);
    Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn is_fingerprint(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}
