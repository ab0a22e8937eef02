//! Who may call over HTTP: the names by which a client addresses this device, the origins of web pages, and tokens.
//!
//! A web page can make a browser send requests to any address, and with a name of its own that points here (DNS rebinding)
//! it could read the answers. So the name in `Host` must be one of this device, and a page of another origin is refused.
//! Deliberately opens no file and no socket.

use crate::config;
use crate::telemetry::TokenFailure;
use hyper::Uri;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue, ORIGIN};
use std::net::IpAddr;

/// The header by which browsers tell how a request came about (Fetch Metadata).
const FETCH_SITE: &str = "sec-fetch-site";

/// The rules of one connection.
#[derive(Debug, Clone)]
pub(super) struct AccessRules {
    /// Names in lower case that `Host` may have besides IP addresses; `None` allows any, as on the Unix socket, which no
    /// browser can reach by itself.
    pub hosts: Option<Vec<String>>,
    /// Origins of web pages that are allowed; `*` is any.
    pub origins: Vec<String>,
}

/// A call that may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Access {
    /// The origin of the web page that makes it, if one does, which the browser wants to see confirmed.
    pub origin: Option<HeaderValue>,
    /// The name of its token, where that has one.
    pub token_name: Option<String>,
}

/// A token of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AccessToken {
    /// What the file calls its holder.
    pub name: Option<String>,
    secret: String,
}

/// A call that may not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AccessDenied {
    /// 400, 401 or 403.
    pub status: u16,
    /// What is wrong, and what to do about it.
    pub message: String,
    /// What is wrong with its token, where it is that.
    pub token: Option<TokenFailure>,
}

impl AccessDenied {
    pub(super) fn new(status: u16, message: impl Into<String>) -> Self {
        AccessDenied { status, message: message.into(), token: None }
    }

    fn failed_token(failure: TokenFailure) -> Self {
        let message = match failure {
            TokenFailure::Missing => {
                "no token; send the header Authorization: Bearer TOKEN, where http.token_file has the token"
            }
            TokenFailure::Wrong => "the token is not one of http.token_file",
        };
        AccessDenied { token: Some(failure), ..AccessDenied::new(401, message) }
    }
}

/// The names of this device: `localhost`, the host name, that with `.local`, and the configured ones.
pub(super) fn own_hosts(device: &str, settings: &config::Http) -> Vec<String> {
    let device = device.to_ascii_lowercase();
    let local = format!("{device}.local");
    ["localhost".to_owned(), device, local].into_iter().chain(settings.hosts.iter().cloned()).collect()
}

impl AccessRules {
    /// Checks a call.
    ///
    /// `tokens`: the call has to have one of these; `None` asks for none.
    pub fn check(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        tokens: Option<&[AccessToken]>,
    ) -> Result<Access, AccessDenied> {
        let host = host(uri, headers)?;
        let origin = self.allowed_origin(&host, headers)?;
        let token_name = match tokens {
            Some(tokens) => check_token(tokens, headers)?.name.clone(),
            None => None,
        };
        match &self.hosts {
            Some(hosts) if tokens.is_none() && !is_own_host(&host, hosts) => Err(AccessDenied::new(
                403,
                format!(
                    "{:?} is no name of this device; address it by its IP address, or add the name to http.hosts",
                    shortened(&host)
                ),
            )),
            _ => Ok(Access { origin, token_name }),
        }
    }

    fn allowed_origin(&self, host: &str, headers: &HeaderMap) -> Result<Option<HeaderValue>, AccessDenied> {
        let denied = |origin: &str| {
            let message = format!(
                "web pages of {:?} may not use this interface; add the origin to http.origins",
                shortened(origin)
            );
            AccessDenied::new(403, message)
        };
        let Some(origin) = headers.get(ORIGIN) else {
            // Images and scripts of a page come without an origin.
            let is_foreign = headers.get(FETCH_SITE).is_some_and(|site| site == "cross-site");
            let is_any_allowed = self.origins.iter().any(|allowed| allowed == "*");
            return if is_foreign && !is_any_allowed { Err(denied("another site")) } else { Ok(None) };
        };
        let text = origin.to_str().unwrap_or_default();
        let is_listed =
            self.origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(text));
        let authority = text.split_once("://").map_or("", |(_, authority)| authority);
        let is_own = !host.is_empty() && authority.eq_ignore_ascii_case(host);
        if is_listed || is_own { Ok(Some(origin.clone())) } else { Err(denied(text)) }
    }
}

/// The host that the client addresses, with its port: a whole URI counts before the header (RFC 9112, section 3.2.2).
fn host(uri: &Uri, headers: &HeaderMap) -> Result<String, AccessDenied> {
    let mut named = headers.get_all(HOST).iter();
    let (first, second) = (named.next(), named.next());
    if second.is_some() {
        return Err(AccessDenied::new(400, "the header Host is given twice"));
    }
    let text = match uri.authority() {
        Some(authority) => authority.as_str(),
        None => first
            .map_or(Ok(""), HeaderValue::to_str)
            .map_err(|_| AccessDenied::new(400, "the header Host is no text"))?,
    };
    Ok(text.to_owned())
}

fn is_own_host(host: &str, names: &[String]) -> bool {
    let name = without_port(host);
    let is_address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    is_address || names.iter().any(|own| own.eq_ignore_ascii_case(name.trim_end_matches('.')))
}

/// `name` of `name:port`, and `[::1]` of `[::1]:port`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    }
}

fn check_token<'t>(tokens: &'t [AccessToken], headers: &HeaderMap) -> Result<&'t AccessToken, AccessDenied> {
    let Some(given) = headers.get(AUTHORIZATION) else {
        return Err(AccessDenied::failed_token(TokenFailure::Missing));
    };
    let given = given.as_bytes();
    let is_bearer = given.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
    let given = if is_bearer { given[7..].trim_ascii() } else { b"" };
    // All are compared, so that the time does not tell which of them it was.
    let same = tokens.iter().fold(None, |found, token| match is_same(token.secret.as_bytes(), given) {
        true => Some(token),
        false => found,
    });
    same.ok_or_else(|| AccessDenied::failed_token(TokenFailure::Wrong))
}

/// Whether two texts are the same, in a time that tells nothing of where they differ.
fn is_same(ours: &[u8], given: &[u8]) -> bool {
    let difference = ours.iter().zip(given).fold(0, |sum, (a, b)| sum | (a ^ b));
    ours.len() == given.len() && std::hint::black_box(difference) == 0
}

/// The tokens of a file: one a line, without the spaces around it, after the name of its holder and a space where it has
/// one; empty lines and comments (`#`) are none. No token that a client can send has a space in it (RFC 6750).
pub(super) fn tokens(text: &str) -> Vec<AccessToken> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let token = |line: &str| match line.split_once(char::is_whitespace) {
        Some((name, secret)) => {
            AccessToken { name: Some(name.to_owned()), secret: secret.trim_start().to_owned() }
        }
        None => AccessToken { name: None, secret: line.to_owned() },
    };
    lines.map(token).collect()
}

fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> AccessRules {
        AccessRules {
            hosts: Some(vec!["localhost".into(), "pi".into(), "pi.local".into()]),
            origins: vec!["https://ui.example.org".into()],
        }
    }

    fn check(rules: &AccessRules, headers: &[(&'static str, &str)]) -> Result<Option<String>, u16> {
        check_with(rules, None, headers)
    }

    fn check_with(
        rules: &AccessRules,
        tokens: Option<&[AccessToken]>,
        headers: &[(&'static str, &str)],
    ) -> Result<Option<String>, u16> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).expect("visible characters"));
        }
        rules
            .check(&Uri::from_static("/v1/models"), &map, tokens)
            .map(|access| access.origin.map(|origin| origin.to_str().expect("text").to_owned()))
            .map_err(|denied| denied.status)
    }

    #[test]
    fn a_name_that_is_not_this_device_s_is_refused() {
        for host in
            ["localhost", "LOCALHOST:8080", "pi.local:80", "pi.", "127.0.0.1:8080", "[::1]:8080", "10.0.0.7"]
        {
            assert_eq!(check(&rules(), &[("host", host)]), Ok(None), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "evil.example:8080", "", ":80", "127.0.0.1.nip.io"]
        {
            assert_eq!(check(&rules(), &[("host", host)]), Err(403), "{host}");
        }
        assert_eq!(check(&rules(), &[]), Err(403), "no name is none of this device");
        assert_eq!(check(&rules(), &[("host", "pi"), ("host", "pi")]), Err(400));
        assert_eq!(check(&AccessRules { hosts: None, ..rules() }, &[("host", "anything")]), Ok(None));
    }

    #[test]
    fn the_host_of_a_whole_uri_counts() {
        let mut map = HeaderMap::new();
        map.append("host", HeaderValue::from_static("localhost"));
        let uri = Uri::from_static("http://evil.example/v1/models");
        let denied = rules().check(&uri, &map, None).expect_err("another host");
        assert!(denied.message.contains("evil.example") && denied.message.contains("http.hosts"));
    }

    #[test]
    fn web_pages_of_other_origins_are_refused() {
        let with = |origin| check(&rules(), &[("host", "pi:8080"), ("origin", origin)]);
        assert_eq!(with("http://pi:8080"), Ok(Some("http://pi:8080".into())), "its own page");
        assert_eq!(with("https://ui.example.org"), Ok(Some("https://ui.example.org".into())));
        for origin in
            ["https://evil.example", "null", "http://pi:8081", "", "http://localhost:8080", "file://"]
        {
            assert_eq!(with(origin), Err(403), "{origin}");
        }
        assert_eq!(check(&rules(), &[("host", "pi"), ("sec-fetch-site", "cross-site")]), Err(403));
        assert_eq!(check(&rules(), &[("host", "pi"), ("sec-fetch-site", "none")]), Ok(None));
        let any = AccessRules { origins: vec!["*".into()], ..rules() };
        assert_eq!(check(&any, &[("host", "pi"), ("origin", "null")]), Ok(Some("null".into())));
    }

    #[test]
    fn a_token_is_asked_for_where_there_are_some() {
        let tokens = tokens("s3cret\nother");
        let check = |headers: &[_]| check_with(&rules(), Some(&tokens), headers);
        let with = |value| check(&[("host", "pi"), ("authorization", value)]);
        assert_eq!((with("Bearer s3cret"), with("bearer  other ")), (Ok(None), Ok(None)));
        for value in ["Bearer s3cre", "Bearer s3cret2", "Bearer ", "s3cret", "Basic s3cret", ""] {
            assert_eq!(with(value), Err(401), "{value}");
        }
        assert_eq!(check(&[("host", "pi")]), Err(401));
        let elsewhere = [("host", "proxy.example"), ("authorization", "Bearer s3cret")];
        assert_eq!(check(&elsewhere), Ok(None), "a token is worth more than a name");
        let empty = [("host", "pi"), ("authorization", "Bearer ")];
        assert_eq!(check_with(&rules(), Some(&[]), &empty), Err(401));
    }

    #[test]
    fn tokens_are_lines() {
        let token = |name: Option<&str>, secret: &str| AccessToken {
            name: name.map(str::to_owned),
            secret: secret.to_owned(),
        };
        assert_eq!(
            tokens("# for the tablet\n a \n\nb\r\nkitchen tablet3\n hall \t c=d \n"),
            [
                token(None, "a"),
                token(None, "b"),
                token(Some("kitchen"), "tablet3"),
                token(Some("hall"), "c=d")
            ]
        );
    }

    #[test]
    fn a_call_is_known_by_the_name_of_its_token() {
        let tokens = tokens("s3cret\nkitchen k1tchen");
        let name = |value: &str| {
            let mut map = HeaderMap::new();
            map.append("host", HeaderValue::from_static("pi"));
            map.append("authorization", HeaderValue::from_str(value).expect("visible characters"));
            let access = rules().check(&Uri::from_static("/v1/models"), &map, Some(&tokens));
            access.map(|access| access.token_name).map_err(|denied| denied.status)
        };
        assert_eq!((name("Bearer k1tchen"), name("Bearer s3cret")), (Ok(Some("kitchen".into())), Ok(None)));
        assert_eq!((name("Bearer kitchen"), name("Bearer kitchen k1tchen")), (Err(401), Err(401)));
    }
}
