//! One request over HTTP: redirects, the token, and which failures pass by themselves. Deliberately knows no file and never
//! tries again.

use super::source::{origin, redirected};
use super::tls;
use crate::cli::Failure;
use crate::protocol::text::{one_line, shortened};
use crate::transport::named_file;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;
use ureq::http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap,
    IF_RANGE, LAST_MODIFIED, LOCATION, RANGE, RETRY_AFTER,
};
use ureq::{Agent, Body, BodyReader, Error};

/// Redirects that are followed; Hugging Face needs two.
const MAX_REDIRECTS: usize = 10;
/// The longest list of a repository's files that is read.
const MAX_LIST: u64 = 4 << 20;
/// What the checksum of a file has as its ETag at Hugging Face, and its length.
const LINKED_ETAG: &str = "x-linked-etag";
const LINKED_SIZE: &str = "x-linked-size";

/// Why a request got no answer that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RequestError {
    /// It would fail again.
    Final(Failure),
    /// It may succeed later.
    Passing {
        message: String,
        /// How long the server wants to be left alone.
        retry_after: Option<Duration>,
        /// Whether a connection came about.
        is_connected: bool,
    },
}

/// The part of a file that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FromByte<'a> {
    pub start: u64,
    /// The version of the file that the bytes before it belong to, as `If-Range` takes it.
    pub version: Option<&'a str>,
}

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ReplyHead {
    pub status: u16,
    /// Bytes of this body.
    pub content_length: Option<u64>,
    /// First byte, last byte and length of the file, as `Content-Range` has them; of a 416 only the length.
    pub range: Option<(u64, u64)>,
    pub total: Option<u64>,
    /// A strong ETag, else the date of the last change: what `If-Range` takes.
    pub version: Option<String>,
    /// Checksum and length that the first server named for the file.
    pub linked_sha256: Option<String>,
    pub linked_length: Option<u64>,
}

pub(super) struct FileReply {
    pub head: ReplyHead,
    pub body: BodyReader<'static>,
}

/// Sends requests.
pub(super) struct FileClient {
    agent: Agent,
    token: Option<String>,
}

impl FileClient {
    /// `stall`: the longest wait for a connection, and for the next byte.
    pub fn new(ca_file: Option<&Path>, token_file: Option<&Path>, stall: Duration) -> Result<Self, Failure> {
        let config = Agent::config_builder()
            .tls_config(tls::config(ca_file)?)
            .http_status_as_error(false)
            // Followed here, since a redirect may neither take the token along nor leave TLS.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("bitnetd/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(stall))
            .timeout_connect(Some(stall))
            .timeout_per_read(Some(stall))
            .timeout_per_write(Some(stall))
            .build();
        Ok(FileClient { agent: config.new_agent(), token: token_file.map(token).transpose()? })
    }

    /// Asks for a file, or for its rest.
    pub fn get(&self, url: &str, from: Option<FromByte<'_>>) -> Result<FileReply, RequestError> {
        let mut place = url.to_owned();
        let mut first: Option<HeaderMap> = None;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(url, &place, from)?;
            let (parts, body) = response.into_parts();
            let status = parts.status.as_u16();
            let linked = first.get_or_insert_with(|| parts.headers.clone());
            match status {
                301 | 302 | 303 | 307 | 308 => place = next_place(&place, &parts.headers)?,
                200 | 206 | 416 => {
                    let head = head(status, &parts.headers, linked);
                    if header(&parts.headers, CONTENT_ENCODING.as_str())
                        .is_some_and(|coding| coding != "identity")
                    {
                        return Err(last(
                            &place,
                            "the server compresses the file, although it was asked not to",
                        ));
                    }
                    return Ok(FileReply { head, body: body.into_with_config().limit(u64::MAX).reader() });
                }
                status => return Err(refused(&place, status, &parts.headers, self.token.is_some())),
            }
        }
        Err(last(&place, "more than 10 redirects; the address leads in a circle"))
    }

    /// Reads a short text.
    pub fn text(&self, url: &str) -> Result<String, RequestError> {
        let mut reply = self.get(url, None)?;
        let mut text = String::new();
        match reply.body.by_ref().take(MAX_LIST).read_to_string(&mut text) {
            Ok(_) => Ok(text),
            Err(error) => Err(passing(url, &error.to_string(), true)),
        }
    }

    fn send(
        &self,
        url: &str,
        place: &str,
        from: Option<FromByte<'_>>,
    ) -> Result<ureq::http::Response<Body>, RequestError> {
        let mut request = self.agent.get(place).header(ACCEPT_ENCODING, "identity");
        if let Some(from) = from {
            request = request.header(RANGE, format!("bytes={}-", from.start));
            if let Some(version) = from.version {
                request = request.header(IF_RANGE, version);
            }
        }
        // The token is for the host that the command line names, over TLS.
        if let Some(token) = self.token.as_ref().filter(|_| origin(url) == origin(place)) {
            if !place.starts_with("https://") {
                return Err(last(place, "a token is sent over https:// only"));
            }
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request.call().map_err(|error| of_library(place, error))
    }
}

/// Reads the token; only its owner may be able to.
fn token(path: &Path) -> Result<String, Failure> {
    let failed = |why: &str| Failure::usage(format!("--token-file {}: {why}", path.display()));
    let bytes = named_file::read_secret(path, None).map_err(|why| failed(&why))?;
    match std::str::from_utf8(&bytes).map(str::trim) {
        Ok(token) if !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Ok(token.to_owned())
        }
        _ => Err(failed("it holds no token, which is one word of printable ASCII")),
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn head(status: u16, headers: &HeaderMap, first: &HeaderMap) -> ReplyHead {
    let (range, total) = header(headers, CONTENT_RANGE.as_str()).map_or((None, None), content_range);
    let strong = header(headers, ETAG.as_str()).filter(|etag| !etag.starts_with("W/") && !etag.is_empty());
    let linked = header(first, LINKED_ETAG).map(|etag| etag.trim_matches('"').to_ascii_lowercase());
    ReplyHead {
        status,
        content_length: header(headers, CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok()),
        range,
        total,
        version: strong.or_else(|| header(headers, LAST_MODIFIED.as_str())).map(str::to_owned),
        linked_sha256: linked.filter(|text| is_sha256(text)),
        linked_length: header(first, LINKED_SIZE).and_then(|length| length.parse().ok()),
    }
}

/// Whether it is a SHA-256 in hexadecimal.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `bytes 5-9/10`, `bytes 5-9/*` or `bytes */10`.
fn content_range(text: &str) -> (Option<(u64, u64)>, Option<u64>) {
    let Some((range, total)) = text.strip_prefix("bytes ").and_then(|text| text.split_once('/')) else {
        return (None, None);
    };
    let range =
        range.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    (range, total.parse().ok())
}

fn next_place(place: &str, headers: &HeaderMap) -> Result<String, RequestError> {
    let location = header(headers, LOCATION.as_str()).unwrap_or_default();
    let Some(next) = redirected(place, location) else {
        let shown = shortened(location);
        return Err(last(place, &format!("redirects to {shown:?}, which is no address that can be asked")));
    };
    if place.starts_with("https://") && !next.starts_with("https://") {
        return Err(last(
            place,
            &format!("redirects from https to {}, which is not followed", without_query(&next)),
        ));
    }
    Ok(next)
}

/// An address for a message: what comes after `?` may be a signature that opens the file to anybody.
pub(super) fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

fn last(place: &str, why: &str) -> RequestError {
    RequestError::Final(Failure::system(one_line(&format!("{}: {why}", without_query(place)))))
}

fn passing(place: &str, why: &str, is_connected: bool) -> RequestError {
    let message = one_line(&format!("{}: {why}", without_query(place)));
    RequestError::Passing { message, retry_after: None, is_connected }
}

/// The error of a status.
fn refused(place: &str, status: u16, headers: &HeaderMap, has_token: bool) -> RequestError {
    match status {
        401 | 403 if has_token => last(
            place,
            &format!(
                "HTTP {status}: this token does not open it; accept the model's terms in a \
                                               browser, or use a token that may read it"
            ),
        ),
        401 | 403 => last(
            place,
            &format!(
                "HTTP {status}: not open to everybody, or no such file; for a private one name a token with --token-file"
            ),
        ),
        404 | 410 => last(place, &format!("HTTP {status}: no such file there; check the name")),
        407 => last(place, "HTTP 407: the proxy wants a password; put it into HTTPS_PROXY"),
        408 | 429 | 500 | 502 | 503 | 504 => RequestError::Passing {
            message: one_line(&format!("{}: HTTP {status}", without_query(place))),
            // Only as seconds: the other form, a date, needs two clocks that agree.
            retry_after: header(headers, RETRY_AFTER.as_str())
                .and_then(|text| text.parse().ok())
                .map(Duration::from_secs),
            is_connected: true,
        },
        status => last(place, &format!("HTTP {status}")),
    }
}

/// The error of the library.
fn of_library(place: &str, error: Error) -> RequestError {
    match error {
        Error::Rustls(error) => last(place, &tls::explain(&error)),
        Error::Io(error) => match tls::explain_inner(&error) {
            Some(why) => last(place, &why),
            None => {
                use std::io::ErrorKind as Kind;
                // Of a connection that there was. A name that is not known is an I/O error too.
                let is_connected = matches!(
                    error.kind(),
                    Kind::ConnectionReset
                        | Kind::ConnectionAborted
                        | Kind::BrokenPipe
                        | Kind::UnexpectedEof
                        | Kind::NotConnected
                        | Kind::TimedOut
                        | Kind::WouldBlock
                        | Kind::InvalidData
                );
                let hint = if is_connected { "" } else { "; behind a proxy set HTTPS_PROXY" };
                passing(place, &format!("{error}{hint}"), is_connected)
            }
        },
        Error::HostNotFound => {
            passing(place, "no such host, or no network; behind a proxy set HTTPS_PROXY", false)
        }
        Error::ConnectionFailed => passing(place, "no connection; behind a proxy set HTTPS_PROXY", false),
        Error::Timeout(timeout) => passing(place, &format!("no answer in time ({timeout})"), true),
        Error::BadUri(_) | Error::Http(_) | Error::InvalidProxyUrl => {
            RequestError::Final(Failure::usage(one_line(&format!("{}: {error}", without_query(place)))))
        }
        // A server that speaks something else, or a connection that was cut within a header.
        error => passing(place, &error.to_string(), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
            .collect()
    }

    #[test]
    fn a_content_range_may_leave_out_either_half() {
        assert_eq!(content_range("bytes 5-9/10"), (Some((5, 9)), Some(10)));
        assert_eq!(content_range("bytes 5-9/*"), (Some((5, 9)), None));
        assert_eq!(content_range("bytes */10"), (None, Some(10)));
        for wrong in ["", "5-9/10", "bytes 5/10 ", "bytes -/x", "items 1-2/3"] {
            assert_eq!(content_range(wrong).0, None, "{wrong}");
        }
    }

    #[test]
    fn only_a_strong_etag_or_a_date_names_a_version() {
        let version = |list: &[_]| head(200, &headers(list), &HeaderMap::new()).version;
        assert_eq!(version(&[("etag", "\"a\"")]).as_deref(), Some("\"a\""));
        assert_eq!(version(&[("etag", "W/\"a\"")]), None);
        let date = "Sun, 29 Nov 2026 10:00:00 GMT";
        assert_eq!(version(&[("etag", "W/\"a\""), ("last-modified", date)]).as_deref(), Some(date));
    }

    #[test]
    fn the_checksum_comes_from_the_first_server_and_must_look_like_one() {
        let sum = "AB".repeat(32);
        let mut first = headers(&[("x-linked-size", "7")]);
        first.insert(LINKED_ETAG, format!("\"{sum}\"").parse().expect("a value"));
        let read = head(200, &HeaderMap::new(), &first);
        assert_eq!((read.linked_sha256, read.linked_length), (Some(sum.to_lowercase()), Some(7)));
        let of_git = headers(&[("x-linked-etag", "\"0123456789012345678901234567890123456789\"")]);
        assert_eq!(head(200, &HeaderMap::new(), &of_git).linked_sha256, None);
    }

    #[test]
    fn a_redirect_never_leaves_tls() {
        let to = |place, location| next_place(place, &headers(&[("location", location)]));
        assert!(matches!(to("https://a.example/x", "http://a.example/x"), Err(RequestError::Final(_))));
        assert_eq!(to("http://a.example/x", "https://b.example/y"), Ok("https://b.example/y".into()));
        let RequestError::Final(failure) =
            to("https://a.example/x?key=1", "ftp://b.example").expect_err("ftp")
        else {
            panic!()
        };
        assert!(!failure.message.contains("key=1"), "{}", failure.message);
    }

    #[test]
    fn a_server_that_is_busy_may_say_for_how_long() {
        let busy = refused("https://a.example", 429, &headers(&[("retry-after", "7")]), false);
        assert!(
            matches!(busy, RequestError::Passing { retry_after: Some(wait), .. } if wait == Duration::from_secs(7))
        );
        let dated = refused(
            "https://a.example",
            503,
            &headers(&[("retry-after", "Sun, 29 Nov 2026 10:00:00 GMT")]),
            false,
        );
        assert!(matches!(dated, RequestError::Passing { retry_after: None, .. }));
        assert!(matches!(
            refused("https://a.example", 404, &HeaderMap::new(), false),
            RequestError::Final(_)
        ));
    }
}
