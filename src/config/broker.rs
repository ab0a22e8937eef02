//! Checks the values of `mqtt.host` and `mqtt.reply_topics`, and suggests what to write instead.
//!
//! An error completes `mqtt.KEY: …`. Deliberately knows nothing of the other keys.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Bytes of the longest host name, and of the longest topic filter.
const MAX_NAME: usize = 253;
const MAX_FILTER: usize = 512;
/// Most filters, since each is compared with the Response Topic of every prompt.
const MAX_FILTERS: usize = 64;

/// A value parsed like a URL.
#[derive(Debug, PartialEq, Eq)]
struct UrlParts<'a> {
    scheme: Option<&'a str>,
    user: Option<&'a str>,
    host: &'a str,
    port: Option<&'a str>,
    has_path: bool,
}

impl<'a> UrlParts<'a> {
    fn of(text: &'a str) -> Self {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, text),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, has_path) = (&rest[..end], end < rest.len());
        let (login, place) = match authority.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, authority),
        };
        let user = login.map(|login| login.split_once(':').map_or(login, |(user, _)| user));
        let (host, port) = split_port(place);
        UrlParts { scheme, user, host, port, has_path }
    }

    fn is_host_alone(&self) -> bool {
        self.scheme.is_none() && self.user.is_none() && self.port.is_none() && !self.has_path
    }

    /// The keys to write instead.
    fn keys(&self) -> Vec<String> {
        let mut keys = vec![format!("host = {:?}", self.host)];
        let is_web = matches!(self.scheme, Some("ws" | "wss"));
        let is_encrypted = matches!(self.scheme, Some("mqtts" | "ssl" | "tls" | "wss" | "https"));
        match self.port.map(str::parse::<u16>) {
            _ if is_web => {
                keys.push("port = the broker's own for MQTT, for WebSockets are not spoken".into())
            }
            Some(Ok(port)) if port > 0 => keys.push(format!("port = {port}")),
            Some(_) => keys.push("port = a number from 1 to 65535".into()),
            None => {}
        }
        if is_encrypted {
            keys.push("tls = true".into());
        }
        if let Some(user) = self.user {
            keys.push(format!("username = {user:?}"));
            keys.push("password_file = a file that holds the password".into());
        }
        keys
    }
}

/// The port behind a name, or behind an address in brackets; an address without brackets has none.
fn split_port(place: &str) -> (&str, Option<&str>) {
    let bracketed = place.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    match bracketed {
        Some((address, "")) => (address, None),
        Some((address, rest)) if rest.starts_with(':') => (address, Some(&rest[1..])),
        Some(_) => (place, None),
        None if place.matches(':').count() == 1 => {
            place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port)))
        }
        None => (place, None),
    }
}

/// The broker's name or address, without the brackets that an IPv6 address may have.
pub(super) fn address(text: &str) -> Result<String, String> {
    let parts = UrlParts::of(text.trim());
    if !is_address(parts.host) {
        // The part before an @ may be a password.
        let text = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
        return Err(format!(
            "{:?} is no name or address of a broker; write its name, such as \"broker.home\", or its address alone",
            text
        ));
    }
    if !parts.is_host_alone() {
        return Err(format!(
            "only the broker's name or address belongs here; write {}",
            parts.keys().join(", ")
        ));
    }
    if text.trim() != text {
        return Err(format!("has spaces around it; write host = {:?}", parts.host));
    }
    Ok(parts.host.to_owned())
}

fn is_address(host: &str) -> bool {
    if host.contains(':') {
        // A link-local address names its network interface.
        let (address, zone) =
            host.split_once('%').map_or((host, None), |(address, zone)| (address, Some(zone)));
        return address.parse::<Ipv6Addr>().is_ok() && zone.is_none_or(is_name);
    }
    let is_numeric = host.chars().all(|c| c.is_ascii_digit() || c == '.');
    if is_numeric { host.parse::<Ipv4Addr>().is_ok() } else { is_name(host) }
}

fn is_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(is_plain)
}

/// Checks the topic filters for Response Topics.
pub(super) fn reply_topics(filters: Vec<String>) -> Result<Vec<String>, String> {
    if filters.len() > MAX_FILTERS {
        return Err(format!("{} patterns; the most is {MAX_FILTERS}", filters.len()));
    }
    match filters.iter().find_map(|filter| wrong_filter(filter).map(|wrong| (filter, wrong))) {
        Some((filter, wrong)) => Err(format!("{filter:?} {wrong}")),
        None => Ok(filters),
    }
}

fn wrong_filter(filter: &str) -> Option<&'static str> {
    let levels: Vec<&str> = filter.split('/').collect();
    let is_half_a_wildcard = |level: &&str| level.contains(['+', '#']) && level.len() > 1;
    if filter.is_empty() || filter.len() > MAX_FILTER || filter.chars().any(char::is_control) {
        Some("is no topic filter; use 1 to 512 bytes without control characters, or take it out")
    } else if filter.starts_with("$share/") {
        Some("is a shared subscription, and nothing can be published there; write the topic alone")
    } else if levels.iter().any(is_half_a_wildcard) {
        Some("has a wildcard beside other characters; + and # stand alone between slashes")
    } else if levels.iter().rev().skip(1).any(|level| *level == "#") {
        Some("has # before its end, where it must be last")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_taken_as_they_are() {
        for host in
            ["localhost", "broker.home", "10.0.0.1", "::1", "fe80::1%eth0", "my_broker", "bröker.home"]
        {
            assert_eq!(address(host).as_deref(), Ok(host));
        }
        assert_eq!(address("[::1]").as_deref(), Ok("::1"));
        assert_eq!(address("[fe80::1%eth0]").as_deref(), Ok("fe80::1%eth0"));
    }

    #[test]
    fn what_belongs_to_other_keys_is_refused_with_them() {
        for (host, expected) in [
            ("mqtt://localhost:1883", "write host = \"localhost\", port = 1883"),
            ("localhost:1883", "write host = \"localhost\", port = 1883"),
            ("tcp://10.0.0.1", "write host = \"10.0.0.1\""),
            ("ssl://b:8883", "write host = \"b\", port = 8883, tls = true"),
            ("mqtts://b", "write host = \"b\", tls = true"),
            ("ws://b:9001/mqtt", "write host = \"b\", port = the broker's own"),
            ("wss://b", "tls = true"),
            ("[::1]:1883", "write host = \"::1\", port = 1883"),
            ("mqtt://[fe80::1]/", "write host = \"fe80::1\""),
            ("broker.home/", "write host = \"broker.home\""),
            ("b/mqtt?x#y", "write host = \"b\""),
            (" localhost", "write host = \"localhost\""),
            ("localhost\n", "write host = \"localhost\""),
            ("b:", "port = a number"),
            ("b:0", "port = a number"),
            ("b:mqtt", "port = a number"),
            ("guest@b", "username = \"guest\""),
        ] {
            let message = address(host).expect_err(host);
            assert!(message.contains(expected) && !message.contains('\n'), "{host}: {message}");
        }
    }

    #[test]
    fn a_password_is_never_repeated() {
        for host in [
            "user:s3cret@b",
            "mqtt://user:s3cret@b:1",
            "mqtt://user:s3cret@b b",
            "user:s3c@s3cret@b",
            "s3cret@",
        ] {
            let message = address(host).expect_err(host);
            assert!(!message.contains("s3c") || host == "s3cret@", "{message}");
        }
    }

    #[test]
    fn what_can_be_no_host_is_refused() {
        let long = "a".repeat(254);
        for host in [
            "a b",
            "1883",
            "10.0.0.256",
            "10.0.0.1.1",
            "::g",
            "[localhost",
            "a,b",
            "a\u{1b}[2J",
            "://",
            "[]",
            &long,
        ] {
            let message = address(host).expect_err(host);
            assert!(
                message.contains("no name or address") && !message.contains('\u{1b}'),
                "{host}: {message}"
            );
            assert!(message.len() < 400, "{message}");
        }
    }

    #[test]
    fn only_filters_that_could_match_are_taken() {
        let one = |filter: &str| reply_topics(vec![filter.into()]);
        for filter in ["a", "a/+/b", "#", "a/#", "+", "$aws/#", "a//b"] {
            assert!(one(filter).is_ok(), "{filter}");
        }
        for filter in ["", "a+", "a/#/b", "#a", "a\n", "$share/g/a", &"a".repeat(513)] {
            assert!(one(filter).is_err(), "{filter}");
        }
        assert!(reply_topics(vec!["a".into(); 65]).is_err());
    }
}
