//! The download of one file: attempts, what is checked of each answer, and pauses between them. Deliberately knows no model.

use super::client::{FileClient, FileReply, FromByte, ReplyHead, RequestError, without_query};
use super::part::{Part, PartNote};
use super::progress::DownloadProgress;
use super::source::RemoteFile;
use crate::cli::Failure;
use std::io::{self, Read as _};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

/// Attempts in a row that bring less than [`PROGRESS`].
const MAX_FAILURES: u32 = 6;
/// Bytes that show that the server does send.
const PROGRESS: u64 = 1 << 20;
/// The longest pause of our own between two attempts, in first pauses.
const MAX_PAUSE: u32 = 32;
/// The longest pause that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
const BUFFER: usize = 128 << 10;
/// Bytes after which the beginning is first looked at; then at twice as many each time.
const FIRST_LOOK: u64 = 1 << 20;
/// The longest beginning that is looked at: the metadata of the largest vocabularies have 20 MB.
const LAST_LOOK: u64 = 64 << 20;

/// What the caller decides while the file comes in.
pub(super) trait Checks {
    /// Before the first byte of a version: its length and checksum, as far as the server says. `Ok(false)`: it is not needed.
    fn before(
        &mut self,
        part: &Part,
        note: &PartNote,
        progress: &mut DownloadProgress,
    ) -> Result<bool, Failure>;

    /// Of the beginning of the file: whether to go on. Returns whether it has seen enough.
    fn beginning(&mut self, part: &Part, progress: &mut DownloadProgress) -> Result<bool, Failure>;
}

/// How a download ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DownloadEnd {
    Complete,
    /// [`Checks::before`] found that the file is not needed.
    NotNeeded,
}

/// The download of one file.
pub(super) struct Download<'a, C> {
    pub client: &'a FileClient,
    pub remote: &'a RemoteFile,
    pub checks: C,
    pub progress: DownloadProgress,
    /// The first pause between two attempts.
    pub pause: Duration,
    /// Bytes at which the beginning is looked at next; 0 once it was.
    pub next_look: u64,
}

impl<'a, C: Checks> Download<'a, C> {
    pub fn new(client: &'a FileClient, remote: &'a RemoteFile, checks: C, pause: Duration) -> Self {
        let progress = DownloadProgress::new(Instant::now());
        Download { client, remote, checks, progress, pause, next_look: FIRST_LOOK }
    }

    /// Downloads what is missing of `part`.
    pub fn run(&mut self, part: &mut Part) -> Result<DownloadEnd, Failure> {
        let (mut failures, mut mark, mut was_connected) = (0, part.length(), false);
        loop {
            let (message, retry_after) = match self.attempt(part) {
                Ok(end) => return Ok(end),
                Err(RequestError::Final(failure)) => return Err(failure),
                // A wrong address or no network: an error at once where nothing was ever reached.
                Err(RequestError::Passing { message, is_connected: false, .. }) if !was_connected => {
                    return Err(Failure::system(message));
                }
                Err(RequestError::Passing { message, retry_after, .. }) => (message, retry_after),
            };
            was_connected = true;
            part.sync().map_err(|error| unwritten(part, &error))?;
            if part.length() >= mark + PROGRESS {
                failures = 0;
            }
            // Also after a new beginning.
            mark = part.length();
            failures += 1;
            if failures == MAX_FAILURES {
                let tried =
                    format!("{message}, {MAX_FAILURES} times in a row; the same command goes on from there");
                return Err(Failure::system(tried));
            }
            self.rest(&message, failures, retry_after)?;
        }
    }

    /// Waits before the next attempt.
    fn rest(&mut self, message: &str, failures: u32, retry_after: Option<Duration>) -> Result<(), Failure> {
        let own = self.pause * (1 << (failures - 1)).min(MAX_PAUSE);
        let pause = own.max(retry_after.unwrap_or_default());
        if pause > MAX_RETRY_AFTER.max(own) {
            let message = format!(
                "{message}: it asks to be left alone for {} s; the same command goes on from there then",
                pause.as_secs()
            );
            return Err(Failure::system(message));
        }
        self.progress.line(&format!("{message}; trying again in {:.0} s", pause.as_secs_f64().ceil()));
        let until = Instant::now() + pause;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            park_timeout(left);
        }
        Ok(())
    }

    fn attempt(&mut self, part: &mut Part) -> Result<DownloadEnd, RequestError> {
        let start = part.length();
        if start > 0 && part.note().length == Some(start) {
            return Ok(DownloadEnd::Complete);
        }
        let from = FromByte { start, version: part.note().version.as_deref() };
        let reply = self.client.get(&self.remote.url, (start > 0).then_some(from))?;
        let note = self.note(&reply.head)?;
        match reply.head.status {
            416 if start == 0 => return Err(self.refused("HTTP 416 although the whole file was asked for")),
            // All of it came before the last attempt was cut.
            416 if reply.head.total == Some(start) && is_same(part.note(), &note) => {
                return Ok(DownloadEnd::Complete);
            }
            206 if start == 0 => {
                return Err(self.refused("a part of the file, although all of it was asked for"));
            }
            206 if reply.head.range.is_some_and(|(first, _)| first == start)
                && is_same(part.note(), &note) => {}
            206 | 416 => {
                part.restart(part.note().clone()).map_err(|error| self.unwritten(part, &error))?;
                return Err(self.passing("another version of the file than before; it begins anew"));
            }
            _ => {
                if start > 0 {
                    self.progress.line(
                        "the server has another version of the file, or sends no rest of one; it begins anew",
                    );
                }
                part.restart(note).map_err(|error| self.unwritten(part, &error))?;
            }
        }
        let is_needed =
            self.checks.before(part, part.note(), &mut self.progress).map_err(RequestError::Final)?;
        if !is_needed {
            return Ok(DownloadEnd::NotNeeded);
        }
        self.receive(reply, part)
    }

    /// What the answer says of the whole file; what contradicts itself or what is known is an error.
    fn note(&self, head: &ReplyHead) -> Result<PartNote, RequestError> {
        let of_body = match (head.status, head.range, head.content_length) {
            (200, ..) => head.content_length,
            (206, Some((first, last)), Some(length))
                if last.checked_sub(first).map(|span| span + 1) != Some(length) =>
            {
                return Err(self.refused("the range and the length of its answer contradict each other"));
            }
            _ => head.total,
        };
        let known = self.remote.length;
        for (other, whose) in [(head.linked_length, "it named itself"), (known, "are known of the model")] {
            if let Some((has, other)) = of_body.zip(other).filter(|(has, other)| has != other) {
                return Err(self.refused(&format!("its file has {has} bytes, and {other} {whose}")));
            }
        }
        let wanted = self.remote.sha256.as_ref();
        if let Some((wanted, linked)) =
            wanted.zip(head.linked_sha256.as_ref()).filter(|(wanted, linked)| wanted != linked)
        {
            return Err(self.refused(&format!("its file has the SHA-256 {linked}, and {wanted} is expected")));
        }
        Ok(PartNote {
            url: self.remote.url.clone(),
            version: head.version.clone(),
            sha256: wanted.or(head.linked_sha256.as_ref()).cloned(),
            length: of_body.or(head.linked_length).or(known),
            synced: 0,
        })
    }

    fn receive(&mut self, mut reply: FileReply, part: &mut Part) -> Result<DownloadEnd, RequestError> {
        let total = part.note().length;
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = match reply.body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(self.passing(&format!("cut off after {} bytes: {error}", part.length())));
                }
            };
            if total.is_some_and(|total| part.length() + read as u64 > total) {
                return Err(self.refused("it sends more bytes than it said"));
            }
            part.append(&buffer[..read]).map_err(|error| self.unwritten(part, &error))?;
            self.progress.show(part.length(), total, Instant::now());
            self.look(part).map_err(RequestError::Final)?;
        }
        match total {
            Some(total) if part.length() < total => {
                Err(self.passing(&format!("ended after {} of {total} bytes", part.length())))
            }
            _ => Ok(DownloadEnd::Complete),
        }
    }

    /// Has the beginning of the file looked at, as soon as there is enough of it.
    fn look(&mut self, part: &Part) -> Result<(), Failure> {
        if self.next_look == 0 || part.length() < self.next_look {
            return Ok(());
        }
        let is_enough = self.checks.beginning(part, &mut self.progress)?;
        let next = self.next_look * 2;
        self.next_look = if is_enough || next > LAST_LOOK { 0 } else { next };
        Ok(())
    }

    fn place(&self) -> &str {
        without_query(&self.remote.url)
    }

    fn refused(&self, why: &str) -> RequestError {
        RequestError::Final(Failure::system(format!("{}: {why}; it is not downloaded", self.place())))
    }

    fn passing(&self, why: &str) -> RequestError {
        RequestError::Passing {
            message: format!("{}: {why}", self.place()),
            retry_after: None,
            is_connected: true,
        }
    }

    fn unwritten(&self, part: &Part, error: &io::Error) -> RequestError {
        RequestError::Final(unwritten(part, error))
    }
}

fn unwritten(part: &Part, error: &io::Error) -> Failure {
    Failure::system(format!(
        "{}: cannot be written: {error}; the same command goes on from there",
        part.path().display()
    ))
}

/// Whether both are of one version of the file: nothing that both name differs.
fn is_same(before: &PartNote, now: &PartNote) -> bool {
    fn agree<T: PartialEq>(one: &Option<T>, other: &Option<T>) -> bool {
        one.as_ref().zip(other.as_ref()).is_none_or(|(one, other)| one == other)
    }
    agree(&before.version, &now.version)
        && agree(&before.sha256, &now.sha256)
        && agree(&before.length, &now.length)
}
