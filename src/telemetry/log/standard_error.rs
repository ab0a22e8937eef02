//! Standard error, written without blocking, since its reader may have stopped reading.
//!
//! Its open file description is shared with other processes, so it is never made non-blocking itself. A pipe or a
//! terminal is opened again, a socket gets a flag with each message, and otherwise `poll` is asked first whether it
//! is writable. Deliberately knows nothing of what a line says.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

/// A pipe that polls as writable takes at least this many bytes (`PIPE_BUF`); lines are shorter.
const MAX_POLLED_WRITE: usize = 4096;

/// Writes lines without blocking.
#[derive(Debug)]
pub struct StderrWriter {
    mode: WriteMode,
    /// The rest of a line that was only written in part.
    rest: Mutex<Vec<u8>>,
}

#[derive(Debug)]
enum WriteMode {
    /// A separate open file description, which is non-blocking.
    Own(File),
    /// A stream socket, written with `MSG_DONTWAIT`.
    Socket,
    /// A regular file, which never blocks for a reader.
    Plain,
    /// Anything else: polled before each write.
    Polled,
}

impl StderrWriter {
    /// A writer for the standard error of this process.
    pub fn standard_error() -> Self {
        Self::of(io::stderr().as_fd())
    }

    fn of(fd: BorrowedFd<'_>) -> Self {
        let kind = rustix::fs::fstat(fd).map(|found| FileType::from_raw_mode(found.st_mode));
        let way = match kind {
            Ok(FileType::RegularFile) => WriteMode::Plain,
            Ok(FileType::Socket) => WriteMode::Socket,
            Ok(FileType::Fifo | FileType::CharacterDevice) => {
                open_again(fd).map_or(WriteMode::Polled, WriteMode::Own)
            }
            _ => WriteMode::Polled,
        };
        StderrWriter { mode: way, rest: Mutex::default() }
    }

    /// Writes a line, or fails at once without writing any of it.
    pub fn write(&self, line: &[u8]) -> io::Result<()> {
        self.write_to(io::stderr().as_fd(), line)
    }

    fn write_to(&self, fd: BorrowedFd<'_>, line: &[u8]) -> io::Result<()> {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        while !rest.is_empty() {
            let written = self.piece(fd, &rest)?;
            rest.drain(..written);
        }
        let written = self.piece(fd, line)?;
        rest.extend(&line[written..]);
        Ok(())
    }

    /// Writes as much as fits; an error where nothing does.
    fn piece(&self, fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        let written = match &self.mode {
            WriteMode::Own(file) => rustix::io::write(file, bytes)?,
            WriteMode::Plain => rustix::io::write(fd, bytes)?,
            WriteMode::Socket => rustix::net::send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?,
            WriteMode::Polled => {
                let mut asked = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
                poll(&mut asked, Some(&Timespec::default()))?;
                if !asked[0].revents().contains(PollFlags::OUT) {
                    return Err(Errno::AGAIN.into());
                }
                rustix::io::write(fd, &bytes[..bytes.len().min(MAX_POLLED_WRITE)])?
            }
        };
        if written == 0 && !bytes.is_empty() { Err(Errno::AGAIN.into()) } else { Ok(written) }
    }
}

/// Opens the same pipe or terminal again, as a description that no other process shares.
fn open_again(fd: BorrowedFd<'_>) -> Option<File> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok().map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    /// Fills it until a line is refused, reads it empty, and sees that it takes lines again, none of them torn.
    fn fills_and_flows_again(
        writer: &StderrWriter,
        fd: BorrowedFd<'_>,
        mut read: impl FnMut(&mut [u8]) -> usize,
    ) {
        let line = [[b'x'; 999].as_slice(), b"\n"].concat();
        let begun = Instant::now();
        let sent = (0..10_000).take_while(|_| writer.write_to(fd, &line).is_ok()).count();
        assert!(sent > 0 && sent < 10_000, "{sent}");
        assert!(begun.elapsed() < Duration::from_secs(10), "nobody waits");
        let (mut all, mut buffer) = (Vec::new(), [0; 65_536]);
        while all.len() < 60_000 {
            let length = read(&mut buffer);
            all.extend(&buffer[..length]);
        }
        writer.write_to(fd, b"again\n").expect("there is room");
        while !all.ends_with(b"again\n") {
            let length = read(&mut buffer);
            all.extend(&buffer[..length]);
        }
        let whole = all.strip_suffix(b"again\n").expect("the last line");
        assert_eq!(whole.len(), sent * line.len(), "no line is torn");
        assert!(whole.chunks(line.len()).all(|found| found == line));
    }

    #[test]
    fn a_pipe_that_nobody_reads_does_not_block() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let own = StderrWriter::of(writer.as_fd());
        assert!(matches!(own.mode, WriteMode::Own(_)), "{own:?}");
        fills_and_flows_again(&own, writer.as_fd(), |to| reader.read(to).expect("open"));
        let polled = StderrWriter { mode: WriteMode::Polled, rest: Mutex::default() };
        fills_and_flows_again(&polled, writer.as_fd(), |to| reader.read(to).expect("open"));
        let flags = rustix::fs::fcntl_getfl(&writer).expect("open");
        assert!(!flags.contains(OFlags::NONBLOCK), "others who have the pipe see no difference");
    }

    #[test]
    fn a_socket_that_nobody_reads_does_not_block() {
        let (mut reader, writer) = UnixStream::pair().expect("a pair");
        let socket = StderrWriter::of(writer.as_fd());
        assert!(matches!(socket.mode, WriteMode::Socket), "{socket:?}");
        fills_and_flows_again(&socket, writer.as_fd(), |to| reader.read(to).expect("open"));
    }
}
