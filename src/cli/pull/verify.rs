//! Whether a downloaded file is a model that this engine runs, and whether it fits the memory budget: of the whole file, or of
//! its beginning while the rest is still on its way.

use crate::cli::Failure;
use crate::config::Config;
use crate::daemon::{self, DaemonError, ServedOverTcp};
use crate::engine::ModelFile;
use crate::engine::gguf::{FileMap, Gguf};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// What the beginning of a file says.
#[derive(Debug)]
pub(super) enum Beginning {
    /// The metadata are not all there yet.
    TooShort,
    /// A model that runs and fits.
    Fits,
    /// A model that does not fit the memory budget.
    TooLarge(Failure),
}

/// The first bytes of a file; an error where they are not those of a GGUF file.
pub(super) fn check_magic(first: &[u8], place: &str) -> Result<(), Failure> {
    if first.starts_with(b"GGUF") || first.len() < 4 {
        return Ok(());
    }
    let what = match first {
        [b'<', ..] => "an HTML page",
        b"vers" => "a pointer of git-LFS",
        [b'P', b'K', ..] => "a ZIP archive",
        _ => "something else",
    };
    Err(Failure {
        code: 3,
        message: format!("{place}: no GGUF file but {what}; give the address of the model itself"),
    })
}

/// Reads the metadata in the first bytes of a file that will have `total` bytes, and plans its memory.
pub(super) fn of_beginning(
    part: &Path,
    length: u64,
    total: u64,
    place: &str,
    config: &Config,
) -> Result<Beginning, Failure> {
    // In memory, with a hole for the weights, which are not looked at.
    let whole = with_hole(part, length, total);
    let Ok(whole) = whole else { return Ok(Beginning::TooShort) };
    let path = PathBuf::from(format!("/proc/self/fd/{}", whole.as_raw_fd()));
    let map = || FileMap::open(&path);
    if map().map(Gguf::parse).is_ok_and(|parsed| parsed.is_ok()) {
        let map = map().map_err(|error| Failure::system(format!("{place}: {error}")))?;
        ModelFile::parse(map, place, None)?;
        return Ok(too_large(&path, config).map_or(Beginning::Fits, Beginning::TooLarge));
    }
    Ok(Beginning::TooShort)
}

fn with_hole(part: &Path, length: u64, total: u64) -> io::Result<File> {
    let mut whole = File::from(memfd_create("bitnetd-pull", MemfdFlags::CLOEXEC)?);
    io::copy(&mut File::open(part)?.take(length), &mut whole)?;
    whole.set_len(total)?;
    Ok(whole)
}

/// Reads a whole file as the daemon will.
pub(super) fn of_whole(path: &Path, place: &str) -> Result<(), Failure> {
    let map = FileMap::open(path).map_err(|error| Failure::system(format!("{place}: {error}")))?;
    // The error names the file by the name that it gets.
    ModelFile::parse(map, place, None)?.tokenizer()?;
    Ok(())
}

/// Why a model does not fit the memory budget of a configuration; `None` where it does. What else the configuration says of
/// models is about another one.
pub(super) fn too_large(path: &Path, config: &Config) -> Option<Failure> {
    let mut config = config.clone();
    config.model.path = Some(path.to_owned());
    match daemon::plan(&config, ServedOverTcp::of(&config), None) {
        Err(error @ DaemonError::Budget(_)) => Some(error.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Vec<u8> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/reference/b158-tiny.i2_s.gguf");
        std::fs::read(path).expect("test data")
    }

    fn beginning(bytes: &[u8], length: u64, total: u64) -> Result<Beginning, Failure> {
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let path = folder.path().join("m.part");
        std::fs::write(&path, bytes).expect("a temporary folder");
        of_beginning(&path, length, total, "m.gguf", &Config::defaults(&crate::cli::host::host()))
    }

    #[test]
    fn the_metadata_alone_say_whether_a_model_runs() {
        let model = model();
        let total = model.len() as u64;
        assert!(matches!(beginning(&model, 1000, total), Ok(Beginning::TooShort)));
        assert!(matches!(beginning(&model, total / 2, total), Ok(Beginning::Fits)));
    }

    #[test]
    fn a_model_of_another_kind_is_refused_by_its_beginning() {
        let name = b"bitnet-b1.58";
        let mut model = model();
        let places: Vec<usize> =
            model.windows(name.len()).enumerate().filter(|(_, at)| at == name).map(|(at, _)| at).collect();
        for at in places {
            model[at..at + name.len()].copy_from_slice(b"mamba2-b1.58");
        }
        let refused =
            beginning(&model, model.len() as u64 / 2, model.len() as u64).expect_err("another architecture");
        assert_eq!(refused.code, 3);
        assert!(refused.message.starts_with("m.gguf: "), "{}", refused.message);
    }

    #[test]
    fn what_is_no_gguf_file_is_seen_at_its_first_bytes() {
        assert_eq!(check_magic(b"GGUF", "m"), Ok(()));
        for (first, name) in
            [(b"<!do", "HTML"), (b"vers", "git-LFS"), (b"PK\x03\x04", "ZIP"), (b"\0\0\0\0", "something")]
        {
            let failure = check_magic(first, "m").expect_err("no model");
            assert!(failure.code == 3 && failure.message.contains(name), "{failure:?}");
        }
    }
}
