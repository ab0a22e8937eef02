//! The socket file: owned by one daemon at a time, and removed at the end.
//!
//! Deliberately knows nothing of connections, and does not change the umask: it belongs to the whole process, and a
//! thread that creates a file meanwhile would be affected.

use crate::config::Socket;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Clients that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// Why the socket could not be created.
#[derive(Debug)]
pub enum BindError {
    /// Its directory does not exist.
    NoDirectory(PathBuf),
    /// Another process listens there, or is about to.
    Taken(PathBuf),
    /// The path is occupied by something other than a socket, which is not removed.
    NotASocket(PathBuf),
    /// A system call failed.
    Io {
        /// The path concerned.
        path: PathBuf,
        /// What could not be done: `cannot be …`.
        failed: &'static str,
        /// The system's error.
        error: io::Error,
    },
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BindError::NoDirectory(path) => {
                write!(f, "{}: no such directory; create it or change socket.path", path.display())
            }
            BindError::Taken(path) => {
                let path = path.display();
                write!(f, "{path}: a daemon is listening there; stop it or change socket.path")
            }
            BindError::NotASocket(path) => {
                let path = path.display();
                write!(f, "{path}: is no socket; move it away or change socket.path")
            }
            BindError::Io { path, failed, error } => {
                write!(f, "{}: {failed}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BindError::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// Owns the socket's path for this process. Dropping it removes the file that it created.
#[derive(Debug)]
pub struct SocketFile {
    /// The path of the socket.
    path: PathBuf,
    /// Device and inode of the socket file, so that a successor's file is never removed.
    file: (u64, u64),
    /// Released after the socket file is gone.
    lock: Lock,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if device_and_inode(&self.path).is_ok_and(|file| file == self.file) {
            // If the removal fails, the next daemon finds the file stale.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl SocketFile {
    /// Creates the socket file again where it was removed; `None` where it still exists. The error says who owns
    /// the path now, or why the file cannot be created.
    pub fn restore(&mut self, mode: u32) -> Result<Option<UnixListener>, BindError> {
        if device_and_inode(&self.path).is_ok_and(|file| file == self.file) {
            return Ok(None);
        }
        if !self.lock.is_in_place() {
            // Without its file the lock does not exclude other daemons.
            self.lock = Lock::take(&self.path)?;
        }
        remove_stale_socket(&self.path)?;
        let (listener, file) = listen(&self.path, mode)?;
        self.file = file;
        Ok(Some(listener))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Takes the configured path and listens there; the file has the configured mode from the first moment.
///
/// A socket file that nobody listens on is replaced.
///
/// # Errors
/// See [`BindError`].
pub fn bind(settings: &Socket) -> Result<(UnixListener, SocketFile), BindError> {
    let path = &settings.path;
    let lock = Lock::take(path)?;
    remove_stale_socket(path)?;
    let (listener, file) = listen(path, settings.mode)?;
    Ok((listener, SocketFile { path: path.clone(), file, lock }))
}

/// Listens on a free path. Returns the device and inode of the new file.
fn listen(path: &Path, mode: u32) -> Result<(UnixListener, (u64, u64)), BindError> {
    let socket = create(path, mode)?;
    let file = device_and_inode(path).map_err(io_error(path, "cannot be looked at"))?;
    // Sets the bits that the umask removed.
    let set = std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(io_error(path, "its mode cannot be set"))
        .and_then(|()| {
            rustix::net::listen(&socket, BACKLOG).map_err(io_error(path, "cannot be listened on"))
        });
    if set.is_err() {
        let _ = std::fs::remove_file(path);
    }
    set.map(|()| (UnixListener::from(socket), file))
}

/// A socket bound to `path`, never with more permissions than `mode`: Linux gives the file the mode that the
/// unbound socket has, less the umask (`unix_bind` in net/unix/af_unix.c).
fn create(path: &Path, mode: u32) -> Result<OwnedFd, BindError> {
    let socket = stream_socket().map_err(io_error(path, "cannot be created"))?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(mode))
        .map_err(io_error(path, "its mode cannot be set"))?;
    let address = SocketAddrUnix::new(path).map_err(io_error(path, "cannot be a socket"))?;
    rustix::net::bind(&socket, &address).map_err(io_error(path, "cannot be created"))?;
    Ok(socket)
}

fn stream_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Removes a socket file that nobody listens on; anything else at the path is an error.
fn remove_stale_socket(path: &Path) -> Result<(), BindError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(path, "cannot be looked at")(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    if is_listened_on(path)? {
        return Err(BindError::Taken(path.to_owned()));
    }
    std::fs::remove_file(path).map_err(io_error(path, "is stale and cannot be removed"))
}

fn is_listened_on(path: &Path) -> Result<bool, BindError> {
    let socket = stream_socket().map_err(io_error(path, "cannot be tried"))?;
    let address = SocketAddrUnix::new(path).map_err(io_error(path, "cannot be a socket"))?;
    match rustix::net::connect(&socket, &address) {
        // A process listens there, has a full backlog, or uses a socket of another type.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(io_error(path, "cannot be tried")(error)),
    }
}

fn device_and_inode(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

fn io_error<E: Into<io::Error>>(path: &Path, failed: &'static str) -> impl Fn(E) -> BindError {
    let path = path.to_owned();
    move |error| BindError::Io { path: path.clone(), failed, error: error.into() }
}

/// A locked file beside the socket, held as long as the daemon runs. Of two daemons that start at once both may
/// find the socket stale, but only one obtains the lock.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    fn take(socket: &Path) -> Result<Self, BindError> {
        let mut path = OsString::from(socket);
        path.push(".lock");
        let path = PathBuf::from(path);
        loop {
            let file = open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(BindError::Taken(socket.to_owned())),
                Err(TryLockError::Error(error)) => {
                    return Err(io_error(&path, "cannot be locked")(error));
                }
            }
            // Its former holder may have removed it between the two calls; then the lock excludes nobody.
            if is_same_file(&path, &file) {
                return Ok(Lock { path, file });
            }
        }
    }

    /// Whether the lock file's name still refers to it.
    fn is_in_place(&self) -> bool {
        is_same_file(&self.path, &self.file)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked, so no other daemon can own this file.
        if self.is_in_place() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn is_same_file(path: &Path, file: &File) -> bool {
    let open = file.metadata().map(|found| (found.dev(), found.ino()));
    open.is_ok_and(|open| device_and_inode(path).is_ok_and(|found| found == open))
}

/// Opens the lock file without following a link, so that no other user can hold it.
fn open(path: &Path) -> Result<File, BindError> {
    let no_links = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(no_links);
    options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            BindError::NoDirectory(parent.unwrap_or(Path::new(".")).to_owned())
        }
        _ => io_error(path, "cannot be created")(error),
    })
}
