//! Where a model comes from: a name of the table, a repository on Hugging Face, or an address. Pure:
//! what only the server knows is asked elsewhere.

use super::catalogue::{self, KnownLength, KnownModel};
use crate::cli::Failure;
use std::fmt::Write as _;

/// The site of the models, and the form of its addresses, which mirrors share.
const HUB: &str = "https://huggingface.co";

/// What the command line names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ModelSource {
    /// One file at an address.
    File(RemoteFile),
    /// A repository, whose only model file is meant.
    Repository { hub: String, name: String },
}

/// One file at an address, and what is known of it beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFile {
    pub url: String,
    /// Its name here.
    pub saved_as: String,
    pub sha256: Option<String>,
    /// Length in bytes; another one is an error.
    pub length: Option<u64>,
    /// The model of the table.
    pub known: Option<&'static KnownModel>,
}

impl ModelSource {
    /// Reads `NAME`, `URL` or `hf:OWNER/REPO[:FILE]`. `mirror` stands in for Hugging Face; `is_named` says that the command line
    /// names it, so that it has to be of use.
    pub fn parse(text: &str, mirror: Option<&str>, is_named: bool) -> Result<Self, Failure> {
        let hub = mirror.map_or(HUB, |mirror| mirror.trim_end_matches('/'));
        if !is_web(hub) {
            return Err(Failure::usage(format!(
                "--from {hub}: no address; one begins with https:// or http://"
            )));
        }
        if is_web(text) {
            if is_named {
                return Err(Failure::usage(
                    "--from stands in for Hugging Face, and an address is none of its names; leave it out",
                ));
            }
            return Ok(ModelSource::File(RemoteFile::at(text)?));
        }
        if let Some(place) = text.strip_prefix("hf:") {
            return Self::of_repository(place, hub);
        }
        match catalogue::named(text) {
            Some(known) => Ok(ModelSource::File(RemoteFile::of_known(known, hub))),
            None => Err(Failure::usage(format!(
                "{text}: no name of a model; known are {}; or give hf:OWNER/REPO or an address",
                catalogue::names()
            ))),
        }
    }

    fn of_repository(place: &str, hub: &str) -> Result<Self, Failure> {
        let (name, file) = place.split_once(':').map_or((place, None), |(name, file)| (name, Some(file)));
        let is_word = |word: &str| {
            !word.is_empty()
                && !word.starts_with('.')
                && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        };
        if !name.split_once('/').is_some_and(|(owner, repository)| is_word(owner) && is_word(repository)) {
            return Err(Failure::usage(format!(
                "hf:{place}: no repository; write hf:OWNER/REPO or hf:OWNER/REPO:FILE"
            )));
        }
        match file {
            None => Ok(ModelSource::Repository { hub: hub.to_owned(), name: name.to_owned() }),
            Some(file) => RemoteFile::in_repository(hub, name, file).map(ModelSource::File),
        }
    }
}

impl RemoteFile {
    /// A file of a repository.
    pub fn in_repository(hub: &str, repository: &str, file: &str) -> Result<Self, Failure> {
        let parts: Vec<&str> = file.split('/').collect();
        let last = *parts.last().unwrap_or(&"");
        if parts.iter().any(|part| part.is_empty() || *part == "." || *part == "..") || !is_file_name(last) {
            return Err(Failure::usage(format!("hf:{repository}:{file}: no path of a file in a repository")));
        }
        // Most repositories name their file ggml-model-i2_s.gguf; with the repository's name before it two of them can lie
        // in one folder.
        let of_any_model = last.starts_with("ggml-model");
        let short = repository.rsplit('/').next().unwrap_or(repository);
        Ok(RemoteFile {
            url: format!("{hub}/{repository}/resolve/main/{}", encoded(file)),
            saved_as: if of_any_model { format!("{short}.{last}") } else { last.to_owned() },
            sha256: None,
            length: None,
            known: None,
        })
    }

    fn of_known(known: &'static KnownModel, hub: &str) -> Self {
        let KnownModel { repository, revision, file, .. } = known;
        RemoteFile {
            url: format!("{hub}/{repository}/resolve/{revision}/{file}"),
            saved_as: known.saved_as.to_owned(),
            sha256: known.sha256.map(str::to_owned),
            length: match known.length {
                KnownLength::Exact(bytes) => Some(bytes),
                KnownLength::About(_) => None,
            },
            known: Some(known),
        }
    }

    fn at(url: &str) -> Result<Self, Failure> {
        let refused = |why: &str| Failure::usage(format!("{url}: {why}"));
        if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(refused("an address has neither spaces nor control characters; write them as %20"));
        }
        let (_, after) = url.split_once("://").expect("it was just checked");
        if after.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@')) {
            return Err(refused("an address with a password in it shows it to others; use --token-file"));
        }
        let path = after.split(['?', '#']).next().unwrap_or_default();
        let last = path
            .split_once('/')
            .and_then(|(_, path)| path.rsplit('/').next())
            .map(decoded)
            .unwrap_or_default();
        if !is_file_name(&last) {
            return Err(refused("names no file; the address of a model ends in its file name"));
        }
        Ok(RemoteFile { url: url.to_owned(), saved_as: last, sha256: None, length: None, known: None })
    }
}

/// Whether it is an address that can be asked.
pub(super) fn is_web(text: &str) -> bool {
    let after = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    after.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
}

/// Whether a file may be given this name: one component of a path, not hidden, and plain text.
fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        // Names of unfinished files.
        && !name.ends_with(".part")
        && !name.ends_with(".part.json")
        && !name.chars().any(|c| c == '/' || crate::protocol::text::is_unsafe(c))
}

/// A path as it stands in an address.
fn encoded(path: &str) -> String {
    let mut encoded = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(byte.into())
            }
            _ => write!(encoded, "%{byte:02X}").expect("a String takes everything"),
        }
    }
    encoded
}

/// The same backwards; what is no UTF-8 becomes U+FFFD.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let code = rest.strip_prefix('%').and_then(|code| code.get(..2));
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => (bytes.push(byte), rest = &rest[3..]).1,
            None => {
                let first = rest.chars().next().map_or(1, char::len_utf8);
                bytes.extend_from_slice(&rest.as_bytes()[..first]);
                rest = &rest[first..];
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The address that a `Location` header means, as RFC 3986 resolves it.
pub(super) fn redirected(from: &str, location: &str) -> Option<String> {
    if is_web(location) {
        return Some(location.to_owned());
    }
    let (scheme, after) = from.split_once("://")?;
    let authority = after.split(['/', '?', '#']).next()?;
    if let Some(other) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{other}")).filter(|url| is_web(url));
    }
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    // Another scheme, such as ftp: or file:.
    let is_scheme = location.split(['/', '?']).next().is_some_and(|first| first.contains(':'));
    if location.is_empty() || is_scheme {
        return None;
    }
    let path = after[authority.len()..].split(['?', '#']).next().unwrap_or_default();
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    Some(format!("{scheme}://{authority}{folder}/{location}"))
}

/// Scheme, host and port of an address: what a token may be sent to.
pub(super) fn origin(url: &str) -> String {
    let (scheme, after) = url.split_once("://").unwrap_or(("", url));
    let authority = after.split(['/', '?', '#']).next().unwrap_or_default().to_ascii_lowercase();
    let default = if scheme == "https" { ":443" } else { ":80" };
    format!("{scheme}://{}", authority.strip_suffix(default).unwrap_or(&authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> RemoteFile {
        match ModelSource::parse(text, None, false) {
            Ok(ModelSource::File(file)) => file,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_name_of_the_table_brings_its_checksum() {
        let file = file("bitnet-2b");
        assert!(
            file.url.starts_with("https://huggingface.co/microsoft/bitnet-b1.58-2B-4T-gguf/resolve/a1f2")
        );
        assert_eq!(file.length, Some(1_187_801_280));
        assert!(file.sha256.is_some());
        let error = ModelSource::parse("bitnet", None, false).expect_err("no such name");
        assert!(error.code == 2 && error.message.contains("bitnet-2b"), "{error:?}");
    }

    #[test]
    fn a_repository_may_name_its_file() {
        let file = file("hf:tiiuae/Falcon-E-1B:sub folder/ggml-model-i2_s.gguf");
        assert_eq!(
            (file.url.as_str(), file.saved_as.as_str()),
            (
                "https://huggingface.co/tiiuae/Falcon-E-1B/resolve/main/sub%20folder/ggml-model-i2_s.gguf",
                "Falcon-E-1B.ggml-model-i2_s.gguf"
            )
        );
        for wrong in [
            "hf:",
            "hf:a",
            "hf:a/b/c",
            "hf:../b",
            "hf:a/b:",
            "hf:a/b:../x",
            "hf:a/b:x/",
            "hf:a b/c",
            "hf:a/b:.x",
        ] {
            assert_eq!(ModelSource::parse(wrong, None, false).expect_err(wrong).code, 2);
        }
        let name = "a/b".into();
        assert_eq!(
            ModelSource::parse("hf:a/b", None, false),
            Ok(ModelSource::Repository { hub: HUB.into(), name })
        );
    }

    #[test]
    fn a_mirror_stands_in_for_the_site() {
        let Ok(ModelSource::File(file)) =
            ModelSource::parse("bitnet-2b", Some("http://mirror.lan/hf/"), true)
        else {
            panic!()
        };
        assert!(file.url.starts_with("http://mirror.lan/hf/microsoft/"), "{}", file.url);
        assert!(ModelSource::parse("bitnet-2b", Some("mirror.lan"), true).is_err());
        assert!(ModelSource::parse("https://a.example/m.gguf", Some("https://b.example"), true).is_err());
        assert!(ModelSource::parse("https://a.example/m.gguf", Some("https://b.example"), false).is_ok());
    }

    #[test]
    fn an_address_ends_in_a_file_name() {
        assert_eq!(file("https://a.example/x/my%20model.gguf?download=true").saved_as, "my model.gguf");
        for wrong in [
            "https://a.example",
            "https://a.example/",
            "https://a.example/%2e%2e",
            "https://a.example/a%2fb",
            "https://a.example/a%00b",
            "https://a.example/.x",
            "https://a:b@c.example/m.gguf",
            "https://a.example/a b",
        ] {
            assert_eq!(ModelSource::parse(wrong, None, false).expect_err(wrong).code, 2);
        }
    }

    #[test]
    fn a_redirect_is_resolved_against_the_address_it_came_from() {
        let from = "https://a.example:8443/x/y?z";
        let to = |location| redirected(from, location);
        assert_eq!(to("https://b.example/m").as_deref(), Some("https://b.example/m"));
        assert_eq!(to("//b.example/m").as_deref(), Some("https://b.example/m"));
        assert_eq!(to("/m").as_deref(), Some("https://a.example:8443/m"));
        assert_eq!(to("m?n=/o").as_deref(), Some("https://a.example:8443/x/m?n=/o"));
        assert_eq!(redirected("https://a.example", "m").as_deref(), Some("https://a.example/m"));
        for wrong in ["", "file:///etc/passwd", "ftp://a.example/m", "https:///m"] {
            assert_eq!(to(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(origin("https://A.example:443/x"), origin("https://a.example/y?z"));
        assert_ne!(origin("https://a.example/x"), origin("http://a.example/x"));
        assert_ne!(origin("https://a.example/x"), origin("https://a.example:8443/x"));
        assert_ne!(origin("https://a.example/x"), origin("https://a.example.evil/x"));
    }
}
