//! The socket of a running daemon, and the errors when it does not answer; shared by the commands that connect to
//! it.
//!
//! Deliberately knows no request and no event.

use super::Failure;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The socket of the system's daemon.
const SYSTEM_SOCKET: &str = "/run/bitnetd/bitnetd.sock";

/// The socket when none is named.
pub(super) fn default_socket() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    socket_of(rustix::process::geteuid().is_root(), runtime.as_deref(), |path| path.exists())
}

/// The user's own daemon; where it has none, the system's.
fn socket_of(root: bool, runtime: Option<&Path>, exists: impl Fn(&Path) -> bool) -> PathBuf {
    let system = PathBuf::from(SYSTEM_SOCKET);
    match runtime.map(|folder| folder.join("bitnetd.sock")) {
        Some(own) if !root && (exists(&own) || !exists(&system)) => own,
        _ => system,
    }
}

/// The error when the socket cannot be connected to.
pub(super) fn no_daemon(path: &Path, error: &io::Error) -> Failure {
    let reason = match error.kind() {
        ErrorKind::NotFound => {
            "no daemon listens there; start one with `bitnetd serve`, or name its socket with --socket"
        }
        ErrorKind::ConnectionRefused => {
            "the daemon that listened there is gone; start it again, or name another with --socket"
        }
        ErrorKind::PermissionDenied => {
            "permission denied; become a member of the group that owns it, or ask as its user"
        }
        _ => return Failure { code: 4, message: format!("{}: {error}", path.display()) },
    };
    Failure { code: 4, message: format!("{}: {reason}", path.display()) }
}

/// The error when the daemon closed the connection.
pub(super) fn connection_lost(path: &Path) -> Failure {
    let reason = "the daemon closed the connection before its answer was whole; see its log";
    Failure { code: 4, message: format!("{}: {reason}", path.display()) }
}

/// The error when something else listens on the socket.
pub(super) fn not_bitnetd(path: &Path) -> Failure {
    let reason = "what answers there is no bitnetd of this version; name its socket with --socket";
    Failure { code: 4, message: format!("{}: {reason}", path.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_own_daemon_is_asked_before_the_systems() {
        let (own, system) = (Path::new("/run/user/7/bitnetd.sock"), Path::new(SYSTEM_SOCKET));
        let runtime = Some(Path::new("/run/user/7"));
        assert_eq!(socket_of(false, runtime, |_| true), own);
        assert_eq!(socket_of(false, runtime, |path| path == system), system);
        assert_eq!(socket_of(false, runtime, |_| false), own);
        assert_eq!(socket_of(false, None, |_| false), system);
        assert_eq!(socket_of(true, runtime, |_| true), system);
    }
}
