//! Checks the addresses of TCP listeners, and suggests what to write instead.
//!
//! Deliberately opens nothing.

use super::key_error::{KeyError, KeyResult};
use std::net::{IpAddr, SocketAddr};

/// The address of the key `listen` of a section, such as `127.0.0.1:10400`; an empty one is none. `port`: the usual port,
/// for the suggestion.
pub(super) fn address(
    section: &'static str,
    value: Option<&str>,
    port: u16,
) -> KeyResult<Option<SocketAddr>> {
    let Some(text) = value.filter(|text| !text.is_empty()) else { return Ok(None) };
    let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
    address.map(Some).ok_or_else(|| {
        let suggestion = match text.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, port).to_string(),
            Err(_) => format!("127.0.0.1:{port} for this device alone, or 0.0.0.0:{port}"),
        };
        KeyError(
            section,
            "listen",
            format!("\"{}\" is no IP address with a port; write {suggestion}", text.escape_debug()),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port() {
        let read = |text| address("wyoming", Some(text), 10400);
        for text in ["127.0.0.1:10400", "0.0.0.0:1", "[::1]:10400", "[fe80::1%2]:10400"] {
            assert!(matches!(read(text), Ok(Some(_))), "{text}");
        }
        assert_eq!(address("wyoming", None, 10400), Ok(None));
        assert_eq!(read(""), Ok(None));
        for (text, suggestion) in [
            ("127.0.0.1", "write 127.0.0.1:10400"),
            ("::1", "write [::1]:10400"),
            ("[::]", "write [::]:10400"),
            ("localhost:10400", "write 127.0.0.1:10400 for"),
            ("10400", "write 127.0.0.1:10400 for"),
            ("127.0.0.1:0", "write 127.0.0.1:10400 for"),
            ("127.0.0.1:65536", "or 0.0.0.0:10400"),
            ("tcp://127.0.0.1:10400", "write 127.0.0.1:10400 for"),
        ] {
            let KeyError(section, key, message) = read(text).expect_err(text);
            assert_eq!((section, key), ("wyoming", "listen"));
            assert!(message.contains(suggestion) && message.contains(text), "{message}");
        }
    }
}
