//! Socket activation: the listening sockets that systemd passes to the process, chosen by `FileDescriptorName=`.
//!
//! Deliberately knows nothing of who serves them, and accepts nothing.

use listenfd::ListenFd;
use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

/// The listening sockets that systemd passed to the process; all are empty without socket activation.
#[derive(Debug, Default)]
pub(in crate::daemon) struct PassedSockets {
    /// That of bitnetd.socket.
    pub unix: Option<UnixListener>,
    /// Those of bitnetd-http.socket, which may have several addresses.
    pub http: Vec<TcpListener>,
    /// Those of bitnetd-wyoming.socket, which may have several addresses.
    pub wyoming: Vec<TcpListener>,
}

/// What a passed socket is served with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interface {
    Unix,
    Http,
    Wyoming,
}

impl Interface {
    /// By the value of `FileDescriptorName=`.
    fn named(name: &str) -> Option<Self> {
        match name {
            "unix" => Some(Interface::Unix),
            "http" => Some(Interface::Http),
            "wyoming" => Some(Interface::Wyoming),
            _ => None,
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Interface::Unix => "bitnetd.socket",
            Interface::Http => "bitnetd-http.socket",
            Interface::Wyoming => "bitnetd-wyoming.socket",
        }
    }
}

/// Takes the sockets that systemd passed to the process. They are removed from the environment, so that a second call
/// finds none.
///
/// # Errors
/// For each socket that nobody would serve, since its clients would wait for ever: one of an unknown name, of the wrong
/// kind, or a second Unix socket.
pub(in crate::daemon) fn passed_sockets() -> io::Result<PassedSockets> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = ListenFd::from_env();
    let interfaces = interfaces(passed.len(), &names).map_err(io::Error::other)?;
    let mut sockets = PassedSockets::default();
    for (index, interface) in interfaces.into_iter().enumerate() {
        let unusable = |error: io::Error| unusable(interface, &error);
        match interface {
            Interface::Unix => {
                sockets.unix = listening(passed.take_unix_listener(index)).map_err(unusable)?;
            }
            Interface::Http => {
                sockets.http.extend(listening(passed.take_tcp_listener(index)).map_err(unusable)?);
            }
            Interface::Wyoming => {
                sockets.wyoming.extend(listening(passed.take_tcp_listener(index)).map_err(unusable)?);
            }
        }
    }
    Ok(sockets)
}

/// The socket, if it accepts connections: with `Accept=yes` systemd passes a connection instead.
fn listening<S: AsFd>(socket: io::Result<Option<S>>) -> io::Result<Option<S>> {
    let socket = socket?;
    match &socket {
        Some(socket) if !rustix::net::sockopt::socket_acceptconn(socket)? => {
            Err(io::Error::other("it does not listen; leave Accept= at no"))
        }
        _ => Ok(socket),
    }
}

/// The error for a socket to which no client can connect.
fn unusable(interface: Interface, error: &dyn fmt::Display) -> io::Error {
    let unit = interface.unit();
    io::Error::other(match interface {
        Interface::Unix => format!(
            "the socket that systemd hands over is no Unix stream socket ({error}); give {unit} ListenStream= with a \
             path, and neither a port nor ListenDatagram="
        ),
        Interface::Http | Interface::Wyoming => format!(
            "the socket that systemd hands over for {unit} is no TCP socket ({error}); give {unit} ListenStream= with \
             an address and a port"
        ),
    })
}

/// The interface of each of `count` sockets, by their names, which are as in `LISTEN_FDNAMES`.
///
/// A single socket of an unknown name is the Unix socket: systemd names it after its unit where the unit has no
/// `FileDescriptorName=`.
fn interfaces(count: usize, names: &str) -> Result<Vec<Interface>, String> {
    let mut names: Vec<&str> = names.split(':').collect();
    names.resize(count, "");
    if let [name] = names[..] {
        return Ok(vec![Interface::named(name).unwrap_or(Interface::Unix)]);
    }
    let interfaces = names.iter().map(|name| Interface::named(name).ok_or_else(|| unknown_name(name)));
    let interfaces = interfaces.collect::<Result<Vec<_>, _>>()?;
    match interfaces.iter().filter(|interface| **interface == Interface::Unix).count() {
        0 | 1 => Ok(interfaces),
        several => Err(format!(
            "systemd hands over {several} sockets named unix ({} in all), and the daemon serves one; leave one \
             ListenStream= in bitnetd.socket, and no other .socket unit with FileDescriptorName=unix",
            names.len()
        )),
    }
}

/// The error for one of several sockets whose name says nothing.
fn unknown_name(name: &str) -> String {
    let shown = if name.is_empty() { "no name" } else { name };
    format!(
        "systemd hands over a socket named {shown}, which the daemon does not serve; give its .socket unit \
         FileDescriptorName=unix, http or wyoming, or remove Service=bitnetd.service from it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use Interface::{Http, Unix, Wyoming};

    #[test]
    fn a_socket_of_another_kind_is_refused_by_the_key_to_write() {
        for interface in [Unix, Http, Wyoming] {
            let message = unusable(interface, &"a datagram socket").to_string();
            for part in ["ListenStream=", "a datagram socket", interface.unit()] {
                assert!(message.contains(part), "{message}");
            }
        }
    }

    #[test]
    fn sockets_are_chosen_by_their_names() {
        let chosen = interfaces(4, "http:unix:wyoming:http").expect("all are known");
        assert_eq!(chosen, [Http, Unix, Wyoming, Http]);
        assert_eq!(interfaces(1, "wyoming"), Ok(vec![Wyoming]));
        assert_eq!(interfaces(2, "wyoming:http"), Ok(vec![Wyoming, Http]), "the Unix socket may be our own");
    }

    #[test]
    fn a_single_socket_without_a_known_name_is_the_unix_socket() {
        assert_eq!(interfaces(0, ""), Ok(vec![]));
        for name in ["", "requests", "bitnetd.socket", "unknown"] {
            assert_eq!(interfaces(1, name), Ok(vec![Unix]), "{name}");
        }
    }

    #[test]
    fn of_several_sockets_none_is_left_unserved() {
        let message = interfaces(2, "unix:bitnetd-web.socket").expect_err("one is not served");
        assert!(
            message.contains("named bitnetd-web.socket") && message.contains("http or wyoming"),
            "{message}"
        );
        let message = interfaces(2, "unix").expect_err("one has no name");
        assert!(message.contains("no name"), "{message}");
        let message = interfaces(3, "unix:http:unix").expect_err("one is not served");
        assert!(message.contains("2 sockets named unix"), "{message}");
    }

    #[test]
    fn a_connection_is_not_taken_for_a_listening_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        assert!(matches!(listening(Ok(Some(listener))), Ok(Some(_))));
        assert!(listening(Ok(Some(client))).expect_err("it listens not").to_string().contains("Accept="));
    }
}
