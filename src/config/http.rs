//! The checks of the section `[http]`.
//!
//! Deliberately opens no port and reads no token.

use super::Host;
use super::key_error::{KeyError, KeyResult, within};
use super::listen::address;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// The name of the token's credential in the systemd unit.
const TOKEN_CREDENTIAL: &str = "http-token";

/// The smallest limit of a body: as long as a request over the other interfaces may be.
const LEAST_BODY_KB: u64 = 64;

/// The HTTP interface. On the Unix socket it is always on; on TCP where `listen` or a `.socket` unit says so.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// The address to listen on; `None` opens no port.
    pub listen: Option<SocketAddr>,
    /// The file of the tokens, one a line, one of which a client on TCP has to send; `None` asks for none.
    pub token_file: Option<PathBuf>,
    /// systemd's folder of credentials, whose files only the daemon can read whatever their mode is.
    pub credentials: Option<PathBuf>,
    /// Names, besides those of this device, by which clients on TCP may address it without a token.
    pub hosts: Vec<String>,
    /// Origins of web pages, `https://example.org`, that may use the interface; `*` is any.
    pub origins: Vec<String>,
    /// Maximum length of a request's body in bytes.
    pub body_bytes: usize,
    /// The shortest limit that memory may enforce instead: the same where the owner set it.
    pub least_body_bytes: usize,
}

/// The settings of the HTTP interface.
pub(super) fn checked(
    listen: Option<&str>,
    token_file: Option<PathBuf>,
    hosts: Vec<String>,
    origins: Vec<String>,
    body_kb: Option<u64>,
    host: &Host,
) -> KeyResult<Http> {
    let listen = address("http", listen, 8080)?;
    let token_file = token_file.filter(|path| !path.as_os_str().is_empty());
    if let Some(path) = token_file.as_ref().filter(|path| path.is_relative()) {
        let reason = format!("{path:?} is no absolute path; begin it with /");
        return Err(KeyError("http", "token_file", reason));
    }
    let credential = host.credentials_dir.as_ref().map(|folder| folder.join(TOKEN_CREDENTIAL));
    let token_file = token_file.or_else(|| credential.filter(|credential| credential.is_file()));
    if let Some(listen) = listen.filter(|listen| !is_loopback(listen.ip()) && token_file.is_none()) {
        let reason = format!(
            "others can reach {listen}, so clients have to send a token: set token_file, or listen on 127.0.0.1"
        );
        return Err(KeyError("http", "listen", reason));
    }
    if let Some(bad) = hosts.iter().find(|name| name.is_empty() || name.contains([':', '/', ' ', '*'])) {
        let reason = format!("{bad:?} is no host name; give the name alone, as \"pi.example.org\"");
        return Err(KeyError("http", "hosts", reason));
    }
    if let Some(bad) = origins.iter().find(|origin| !is_origin(origin)) {
        let reason = format!(
            "{bad:?} is no origin; give scheme and host without a path, as \"https://pi.example.org\""
        );
        return Err(KeyError("http", "origins", reason));
    }
    let body_bytes = |kb: u64| Ok((within("http", "body_kb", kb, LEAST_BODY_KB..=1024)? as usize) << 10);
    let least_body_bytes = body_bytes(body_kb.unwrap_or(LEAST_BODY_KB))?;
    Ok(Http {
        listen,
        token_file,
        credentials: host.credentials_dir.clone(),
        hosts: hosts.iter().map(|name| name.to_ascii_lowercase()).collect(),
        origins,
        body_bytes: body_bytes(body_kb.unwrap_or(1024))?,
        least_body_bytes,
    })
}

/// Whether only this device can reach the address.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn is_origin(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    text == "*" || rest.is_some_and(|host| !host.is_empty() && !host.contains(['/', ' ', '*', '?']))
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{error, host};
    use crate::config::{Config, Http};

    fn http(keys: &str) -> Http {
        let text = format!("[http]\n{keys}");
        Config::parse(&text, "bitnetd.toml", &host()).expect(&text).http
    }

    #[test]
    fn no_port_is_open_by_default() {
        let settings = http("");
        assert_eq!((settings.listen, settings.token_file, settings.body_bytes), (None, None, 1 << 20));
    }

    #[test]
    fn an_address_that_others_can_reach_needs_a_token() {
        for address in ["0.0.0.0:8080", "[::]:8080", "192.168.1.2:80", "[::ffff:192.168.1.2]:80"] {
            let message = error(&format!("[http]\nlisten = \"{address}\""));
            assert!(
                message.contains("http.listen: others can reach") && message.contains("token_file"),
                "{message}"
            );
            http(&format!("listen = \"{address}\"\ntoken_file = \"/t\""));
        }
        for address in ["127.0.0.1:8080", "[::1]:8080", "127.1.2.3:1", "[::ffff:127.0.0.1]:80"] {
            assert!(http(&format!("listen = \"{address}\"")).listen.is_some());
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_way_out() {
        for (keys, expected) in [
            ("listen = \"8080\"", "http.listen: \"8080\" is no IP address with a port; write 127.0.0.1:8080"),
            ("listen = \"localhost:8080\"", "http.listen: "),
            ("token_file = \"t\"", "http.token_file: \"t\" is no absolute path"),
            ("hosts = [\"http://a\"]", "http.hosts: \"http://a\" is no host name"),
            ("origins = [\"https://a/b\"]", "http.origins: \"https://a/b\" is no origin"),
            ("origins = [\"a\"]", "http.origins: "),
            ("body_kb = 1", "http.body_kb: 1 is outside 64 to 1024"),
        ] {
            let message = error(&format!("[http]\n{keys}"));
            assert!(message.contains(expected), "{keys}: {message}");
        }
    }
}
