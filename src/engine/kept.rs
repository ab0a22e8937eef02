//! What was worked out of a model file and is kept for the next start: its layout, another form of its head.
//!
//! One folder for a model file, named by the file's fingerprint, in a folder of the caller's. All of it
//! can be thrown away at any time. What does not fit is made anew; the folder belongs to whoever runs the engine, as
//! the model files do. Deliberately knows no model.

use super::gguf::Map;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Begins each image; what follows it is padded to [`HEADER`].
const MAGIC: &[u8] = b"bitnetd image 1\n";
/// Bytes before an image's own: a line of the processor's cache.
const HEADER: usize = 64;
/// Bytes of a model file that its fingerprint is made of: all of its metadata but a large vocabulary.
const LOOKED_AT: u64 = 1 << 20;
/// Model files whose folders stay when another is added.
const MODELS: usize = 4;
/// After this nobody writes a part any more: the slowest card takes minutes.
const LONG_AGO: Duration = Duration::from_secs(3600);
/// Most bytes of a kept text.
const TEXT: u64 = 256;

/// The folder of one model file, or nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept(Option<PathBuf>);

/// Bytes that were kept, or were made now.
#[derive(Debug)]
pub struct Image {
    /// They begin at `start`.
    pub map: Arc<Map>,
    /// Where they begin.
    pub start: usize,
    /// Why they are made anew at each start: a sentence. `None` where they are kept.
    pub why_not_kept: Option<String>,
}

impl Kept {
    /// Keeps nothing.
    pub fn nowhere() -> Self {
        Kept(None)
    }

    /// What is kept of the model file `model` under `root`. Nothing where the file cannot be looked at.
    pub fn of(root: &Path, model: &Path) -> Self {
        Kept(fingerprint(model).ok().map(|name| root.join(name)))
    }

    /// A short text kept under `name`.
    pub fn text(&self, name: &str) -> Option<String> {
        let mut text = String::new();
        File::open(self.0.as_ref()?.join(name)).ok()?.take(TEXT).read_to_string(&mut text).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// Keeps a short text; that it cannot costs the next start some time, nothing else.
    pub fn keep_text(&self, name: &str, text: &str) {
        let Some(folder) = &self.0 else { return };
        let _ = make(folder).and_then(|()| write_whole(folder, name, |out| writeln!(out, "{text}")));
    }

    /// The image of `bytes` bytes kept under `name`, if `is_sound` says so of it; else `write` makes it.
    /// An error is one of `write`'s own, or of the memory for it.
    pub fn image(
        &self,
        name: &str,
        bytes: usize,
        is_sound: impl Fn(&[u8]) -> bool,
        mut write: impl FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<Image> {
        let why_not_kept = match &self.0 {
            None => None,
            Some(folder) => {
                if let Some(map) = read(&folder.join(name), bytes).filter(|map| is_sound(&map[HEADER..])) {
                    // Marks it as used; else it would be the first to go.
                    let _ = File::open(folder).and_then(|folder| folder.set_modified(SystemTime::now()));
                    return Ok(Image { map: Arc::new(map), start: HEADER, why_not_kept: None });
                }
                let made = make(folder).and_then(|()| {
                    write_whole(folder, name, |out| {
                        out.write_all(&header(bytes))?;
                        write(out)
                    })
                });
                match made.and_then(|()| Map::open_guarded(&folder.join(name))) {
                    Ok(map) if map.len() == HEADER + bytes => {
                        return Ok(Image { map: Arc::new(map), start: HEADER, why_not_kept: None });
                    }
                    Ok(map) => Some(format!("{} has {} bytes", folder.join(name).display(), map.len())),
                    Err(error) => Some(format!("{}: {error}", folder.join(name).display())),
                }
            }
        };
        let mut image = Vec::new();
        image.try_reserve_exact(bytes)?;
        write(&mut image)?;
        Ok(Image { map: Arc::new(Map::from(image)), start: 0, why_not_kept })
    }
}

fn header(bytes: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..MAGIC.len()].copy_from_slice(MAGIC);
    header[HEADER - 8..].copy_from_slice(&(bytes as u64).to_le_bytes());
    header
}

fn read(path: &Path, bytes: usize) -> Option<Map> {
    let map = Map::open_guarded(path).ok()?;
    (map.len() == HEADER + bytes && map[..HEADER] == header(bytes)).then_some(map)
}

/// Writes beside the file first and puts it in place when all of it is on the disk.
fn write_whole(
    folder: &Path,
    name: &str,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    // Of its own for each writer, also for processes that do not see each other.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let part = folder.join(format!("{name}.{}-{now}.part", std::process::id()));
    let written = File::create_new(&part).and_then(|file| {
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    });
    let placed = written.and_then(|()| fs::rename(&part, folder.join(name)));
    if placed.is_err() {
        let _ = fs::remove_file(&part);
    }
    placed
}

/// Makes the folder of a model, and room for it: those used longest ago go, with what an interrupted
/// start left in this one.
fn make(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let is_part = |path: &Path| path.extension().is_some_and(|end| end == "part");
    for entry in fs::read_dir(folder)?.flatten() {
        if is_part(&entry.path()) && is_old(&entry) {
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
    let extra = (models.len() + 1).saturating_sub(MODELS);
    models[..extra].iter().for_each(|(_, path)| drop(fs::remove_dir_all(path)));
    Ok(())
}

/// Whether a part can be no longer in the making.
fn is_old(part: &fs::DirEntry) -> bool {
    let written = part.metadata().and_then(|about| about.modified());
    written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age > LONG_AGO))
}

/// Names a model file by where and when it was written, how long it is and how it begins.
fn fingerprint(model: &Path) -> io::Result<String> {
    let file = File::open(model)?;
    let about = file.metadata()?;
    let mut sum = Sha256::new();
    for number in [about.len(), about.dev(), about.ino(), about.mtime() as u64, about.mtime_nsec() as u64] {
        sum.update(number.to_le_bytes());
    }
    let mut begin = Vec::new();
    file.take(LOOKED_AT).read_to_end(&mut begin)?;
    sum.update(&begin);
    Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn is_fingerprint(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}
