//! Recognises files that are not models: what failed downloads and other programs leave in a model's place.

use crate::engine::error::LoadError;
use std::path::Path;

/// What the first bytes of a file show it to be, and what to do about it; `None` for other files.
pub fn identify(bytes: &[u8]) -> Option<&'static str> {
    const DOWNLOAD: &str = "an HTML page, as a failed download leaves it; download the file itself";
    let begins = |magic: &[u8]| bytes.starts_with(magic);
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let tag =
        |name: &str| text.get(..name.len()).is_some_and(|head| head.eq_ignore_ascii_case(name.as_bytes()));
    if begins(b"version https://git-lfs") || begins(b"version https://hawser") {
        return Some("a git-LFS pointer, not the file itself; run git lfs pull, or download it");
    }
    if tag("<!doctype") || tag("<html") || tag("<?xml") {
        return Some(DOWNLOAD);
    }
    // A safetensors file may have a header whose length reads like gzip's magic.
    if begins(b"\x1f\x8b") && bytes.get(8) != Some(&b'{') {
        return Some("compressed with gzip; unpack it with gunzip");
    }
    if begins(b"PK\x03\x04") {
        let is_torch = bytes[..bytes.len().min(256)].windows(8).any(|name| name == b"data.pkl");
        return Some(match is_torch {
            true => "PyTorch weights; get the model as safetensors or GGUF",
            false => "a zip archive; unpack it with unzip",
        });
    }
    let archives: [(&[u8], &str); 5] = [
        (b"\xfd7zXZ\0", "compressed with xz; unpack it with unxz"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it with unzstd"),
        (b"BZh", "compressed with bzip2; unpack it with bunzip2"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
        (b"Rar!\x1a\x07", "a RAR archive; unpack it"),
    ];
    if let Some((_, what)) = archives.iter().find(|(magic, _)| begins(magic)) {
        return Some(what);
    }
    (bytes.get(257..262) == Some(b"ustar")).then_some("a tar archive; unpack it with tar")
}

/// What a file is that should be a GGUF file, judged by its first bytes.
pub(super) fn identify_non_gguf(bytes: &[u8]) -> &'static str {
    if let Some(what) = identify(bytes) {
        return what;
    }
    let begin = &bytes[..bytes.len().min(64)];
    match begin {
        [] => "empty; download it again",
        _ if begin.iter().all(|byte| *byte == 0) => {
            "it begins with zeros: half-downloaded; download it again"
        }
        _ if begin.get(8) == Some(&b'{') && begin.get(4..8) == Some(&[0; 4]) => {
            "a safetensors file; convert the folder it belongs to: bitnetd convert FOLDER OUT.gguf"
        }
        _ if [b"lmgg", b"tjgg", b"fmgg", b"ggml", b"GGML"].iter().any(|magic| begin.starts_with(*magic)) => {
            "a file of the time before GGUF; get the model as GGUF"
        }
        [0x80, 2..=5, ..] => "PyTorch weights; get the model as safetensors or GGUF",
        [b'{' | b'[', ..] => "JSON; give the model itself",
        _ => "give a GGUF model; a part of a split file or an incomplete download is not one",
    }
}

/// Which part of how many files a name indicates, as `model-00002-of-00003.gguf` does, or that a download was not
/// finished. Only for messages, because names prove nothing.
fn name_hint(name: &str) -> Option<String> {
    let unfinished = [".part", ".partial", ".crdownload", ".incomplete", ".aria2", ".download", ".tmp"];
    if unfinished.iter().any(|end| name.ends_with(end)) {
        return Some("its name is that of an unfinished download".into());
    }
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    name.match_indices("-of-").find_map(|(at, _)| {
        let before = &name[..at];
        let (start, count) = (before.trim_end_matches(|c: char| c.is_ascii_digit()).len(), &name[at + 4..]);
        let (part, count) =
            (before[start..].parse::<u32>().ok()?, count[..digits(count)].parse::<u32>().ok()?);
        Some(format!("its name is that of part {part} of {count} of a split file"))
    })
}

/// Adds to the error of a file that cannot be read what its name indicates.
pub fn with_name_hint(error: LoadError, path: &Path) -> LoadError {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match name_hint(&name) {
        None => error,
        Some(part) => LoadError { message: format!("{}; {part}", error.message), ..error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_models_are_identified() {
        let mut tar = vec![b'x'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, word) in [
            (&b"version https://git-lfs.github.com/spec/v1\n"[..], "LFS"),
            (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip"),
            (b"PK\x03\x04\x14\0", "zip"),
            (b"PK\x03\x04\0\0\0\0archive/data.pkl", "PyTorch"),
            (b"\x80\x02}q\0", "PyTorch"),
            (b"\xfd7zXZ\0\0", "xz"),
            (b"\x28\xb5\x2f\xfd\0", "zstd"),
            (b"BZh91AY", "bzip2"),
            (b"\n <!DOCTYPE html>", "HTML"),
            (b"<HTML><body>", "HTML"),
            (b"", "empty"),
            (&[0; 100], "half-downloaded"),
            (b"\x88\x01\0\0\0\0\0\0{\"a\":", "safetensors"),
            (b"tjgg\x03\0\0\0", "before GGUF"),
            (b"{\"a\":1}", "JSON"),
            (&tar, "tar"),
            (b"noise", "incomplete download"),
        ] {
            assert!(identify_non_gguf(bytes).contains(word), "{word}");
        }
        // A safetensors header of 559,903 bytes.
        assert_eq!(identify(b"\x1f\x8b\x08\0\0\0\0\0{\"a\""), None);
    }

    #[test]
    fn a_part_of_a_split_file_is_recognised_by_its_name() {
        let part = |name| name_hint(name).unwrap_or_default();
        assert!(part("model-00002-of-00003.gguf").contains("part 2 of 3"));
        assert!(part("m.gguf.crdownload").contains("unfinished"));
        for other in ["model.gguf", "best-of-breed.gguf", "x-1-of-.gguf", "-of-", "state-of-99"] {
            assert_eq!(name_hint(other), None, "{other}");
        }
    }
}
