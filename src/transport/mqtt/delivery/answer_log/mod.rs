//! Answers on disk, so that they outlive the process: written before they are published. And prompts of the inbox:
//! written before they are acknowledged.
//!
//! One thing is done on disk at a time, on the thread that may block, and what comes meanwhile goes
//! with the next: a slow card delays answers and stops nothing. A disk that fails does not stop
//! them either; they are published unsaved, it is said, and the disk is tried again. Knows nothing
//! of the broker.

mod file;
pub mod folder;
pub mod record;
#[cfg(test)]
mod tests;

use file::File;
use record::{Answer, Contents, Record, SavedPrompt};
use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, spawn_blocking};

/// Between two tries of a disk that fails.
const RETRY: Duration = Duration::from_secs(60);
/// Between two looks whether the file is still where it was opened.
const CHECK: Duration = Duration::from_secs(5);
/// A disk that takes longer fails: an SD card that tidies up takes one second or two.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of the file beside those of prompts, which take up to four times their own in it: twice what counts, and text
/// that JSON escapes.
const LARGEST: u64 = 16 << 20;
/// The file is written anew when it is larger than twice what still counts, and this: so what is
/// written is never more than some three times what is said.
const SLACK: u64 = 512 << 10;

/// The store of one device's answers.
#[derive(Debug)]
pub struct Store {
    path: Option<PathBuf>,
    /// No file of ours has more bytes; reading it takes as much memory.
    largest: u64,
    disk: Disk,
    /// Lines for the disk, of which these rows wait to be published.
    lines: Vec<u8>,
    rows: Vec<u64>,
    /// Prompts in these lines, which wait to be acknowledged.
    prompts: Vec<u64>,
    /// Rows that the disk is writing.
    under_way: Vec<u64>,
    /// Prompts that the disk is writing.
    prompts_under_way: Vec<u64>,
    /// Bytes in the file, and those that counted when it was opened or replaced.
    length: u64,
    live: u64,
    /// The file does not hold what it should.
    is_stale: bool,
    /// What it held at first was told.
    is_told: bool,
    /// When the place of the file was last looked at.
    checked: Instant,
    problem: Option<String>,
}

#[derive(Debug)]
enum Disk {
    /// The owner wants nothing kept.
    Unwanted,
    Idle(File),
    Busy {
        job: JoinHandle<Done>,
        since: Instant,
        is_late: bool,
    },
    /// Failed, or not yet opened.
    Down {
        file: Option<File>,
        until: Instant,
    },
}

/// The file, where there is one, and what came of the job.
type Done = (Option<File>, io::Result<Job>);

/// What was done on disk.
#[derive(Debug)]
enum Job {
    Check,
    Open(Contents),
    Append(u64),
    Replace(u64),
}

/// What follows from a job's end.
#[derive(Debug, Default)]
pub struct Finished {
    /// These rows may be published: they are saved, or cannot be.
    pub rows: Vec<u64>,
    /// These prompts may be acknowledged: they are saved.
    pub prompts: Vec<u64>,
    /// Prompts that were to be saved are not.
    pub prompts_failed: bool,
    /// What the file said when it was opened.
    pub contents: Option<Contents>,
}

impl Store {
    /// A store in this file, to be opened at once; `None` keeps nothing. `inbox`: bytes of prompts that will be kept.
    pub fn new(path: Option<PathBuf>, inbox: usize, now: Instant) -> Self {
        let disk = match path {
            Some(_) => Disk::Down { file: None, until: now },
            None => Disk::Unwanted,
        };
        Store {
            path,
            largest: LARGEST + 4 * inbox as u64,
            disk,
            lines: Vec::new(),
            rows: Vec::new(),
            prompts: Vec::new(),
            under_way: Vec::new(),
            prompts_under_way: Vec::new(),
            length: 0,
            live: 0,
            is_stale: false,
            is_told: false,
            checked: now,
            problem: None,
        }
    }

    /// Whether what is kept now outlives the process.
    pub fn is_durable(&self) -> bool {
        match &self.disk {
            Disk::Idle(_) => true,
            Disk::Busy { is_late, .. } => !is_late && self.problem.is_none(),
            Disk::Unwanted | Disk::Down { .. } => false,
        }
    }

    /// What is wrong with the disk.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Whether something is on its way to the disk, or waits for it.
    pub fn is_busy(&self) -> bool {
        matches!(self.disk, Disk::Busy { is_late: false, .. }) || !self.lines.is_empty()
    }

    /// Keeps the answer of a row. `false`: it cannot be kept, and the row is to be published as it is.
    pub fn keep(&mut self, answer: Answer) -> bool {
        let is_durable = self.is_durable();
        if is_durable {
            self.rows.push(answer.number);
            self.lines.extend(Record::Answer(answer).line());
        }
        is_durable
    }

    /// Keeps a prompt. `false`: it cannot be kept, and is not to be acknowledged before its answer is.
    pub fn keep_prompt(&mut self, prompt: SavedPrompt) -> bool {
        let is_durable = self.is_durable();
        if is_durable {
            self.prompts.push(prompt.number);
            self.lines.extend(Record::Prompt(prompt).line());
        }
        is_durable
    }

    /// Keeps what nobody waits for.
    pub fn note(&mut self, record: &Record) {
        if self.is_durable() {
            self.lines.extend(record.line());
        }
    }

    /// Begins what is to be done on disk, if anything; `all` makes the lines of everything that
    /// counts.
    pub fn begin(&mut self, now: Instant, all: impl FnOnce() -> Vec<u8>) {
        let is_long = self.length > 2 * self.live + SLACK;
        let job = match std::mem::replace(&mut self.disk, Disk::Unwanted) {
            Disk::Down { file: None, until } if now >= until => self.open(),
            Disk::Down { file: Some(file), until } if now >= until => self.replace(file, all()),
            Disk::Idle(file) if self.is_stale || is_long => self.replace(file, all()),
            Disk::Idle(file) if !self.lines.is_empty() => self.append(file),
            Disk::Idle(file) if now >= self.checked + CHECK => {
                on_disk(move || checked(file, |_| Ok(Job::Check)))
            }
            other => {
                self.disk = other;
                return;
            }
        };
        self.disk = Disk::Busy { job, since: now, is_late: false };
    }

    fn open(&self) -> JoinHandle<Done> {
        let path = self.path.clone().expect("a store without a file is never down");
        let largest = self.largest;
        on_disk(move || match File::open(&path, largest) {
            Ok((file, contents)) => (Some(file), Ok(Job::Open(contents))),
            Err(error) => (None, Err(error)),
        })
    }

    fn append(&mut self, file: File) -> JoinHandle<Done> {
        let lines = std::mem::take(&mut self.lines);
        self.take_under_way();
        // What nobody waits for reaches the disk within the kernel's half minute.
        let sync = !self.under_way.is_empty() || !self.prompts_under_way.is_empty();
        on_disk(move || {
            checked(file, |file| file.append(&lines, sync).map(|()| Job::Append(lines.len() as u64)))
        })
    }

    fn replace(&mut self, file: File, lines: Vec<u8>) -> JoinHandle<Done> {
        self.lines.clear();
        self.take_under_way();
        self.is_stale = false;
        on_disk(move || checked(file, |file| file.replace(&lines).map(|()| Job::Replace(lines.len() as u64))))
    }

    fn take_under_way(&mut self) {
        self.under_way = std::mem::take(&mut self.rows);
        self.prompts_under_way = std::mem::take(&mut self.prompts);
    }

    /// Waits for the disk. May be dropped and called again.
    pub async fn next(&mut self) -> Finished {
        let Disk::Busy { job, is_late, .. } = &mut self.disk else { return pending().await };
        let (file, done) = job.await.unwrap_or_else(|error| (None, Err(io::Error::other(error))));
        self.is_stale |= *is_late;
        let now = Instant::now();
        self.checked = now;
        match (file, done) {
            (Some(file), Ok(job)) => self.succeeded(file, job),
            (file, done) => {
                let said = done.err().map_or_else(String::new, |error| error.to_string());
                self.failed(file, &said, now)
            }
        }
    }

    fn succeeded(&mut self, file: File, job: Job) -> Finished {
        self.disk = Disk::Idle(file);
        let contents = match job {
            Job::Open(contents) => {
                // What of it counts is known when it is written anew, which a long one is at once.
                (self.length, self.live) = (contents.bytes, 0);
                let (path, damaged) = (self.place(), contents.damaged);
                if damaged > 0 {
                    log::warn!("{path}: {damaged} damaged records; it is set aside with the ending .corrupt");
                }
                // A new file gets its session; what cannot be read is not appended to.
                self.is_stale |= damaged > 0 || contents.is_torn || contents.session.is_none();
                (!std::mem::replace(&mut self.is_told, true)).then_some(contents)
            }
            Job::Check => None,
            Job::Append(bytes) => {
                self.length += bytes;
                None
            }
            Job::Replace(bytes) => {
                (self.length, self.live) = (bytes, bytes);
                None
            }
        };
        if self.problem.take().is_some() {
            log::info!("{}: answers are saved again", self.place());
        }
        let (rows, prompts) =
            (std::mem::take(&mut self.under_way), std::mem::take(&mut self.prompts_under_way));
        Finished { rows, prompts, prompts_failed: false, contents }
    }

    fn failed(&mut self, file: Option<File>, said: &str, now: Instant) -> Finished {
        self.disk = Disk::Down { file, until: now + RETRY };
        self.give_way(said)
    }

    /// The rows that wait are published unsaved, and the prompts that wait are not acknowledged.
    fn give_way(&mut self, said: &str) -> Finished {
        let said = format!(
            "{}: {said}; answers are not saved, and a prompt that comes again after a crash is computed again; \
             see device.state_dir",
            self.place()
        );
        if self.problem.is_none() {
            log::error!("{said}");
        }
        self.problem = Some(said);
        self.is_stale = true;
        self.lines.clear();
        let mut rows = std::mem::take(&mut self.under_way);
        rows.append(&mut self.rows);
        self.prompts_under_way.clear();
        self.prompts.clear();
        Finished { rows, prompts_failed: true, ..Finished::default() }
    }

    /// When [`Store::begin`] or [`Store::overdue`] has something to do next.
    pub fn due(&self) -> Option<Instant> {
        match &self.disk {
            Disk::Down { until, .. } => Some(*until),
            Disk::Busy { since, is_late: false, .. } => Some(*since + PATIENCE),
            Disk::Idle(_) => Some(self.checked + CHECK),
            _ => None,
        }
    }

    /// What follows where the disk has kept rows and prompts waiting for too long.
    pub fn overdue(&mut self, now: Instant) -> Option<Finished> {
        match &mut self.disk {
            Disk::Busy { since, is_late, .. } if !*is_late && now >= *since + PATIENCE => {
                *is_late = true;
                Some(self.give_way("the disk does not answer"))
            }
            _ => None,
        }
    }

    fn place(&self) -> String {
        self.path.as_ref().map_or_else(String::new, |path| path.display().to_string())
    }
}

/// Does a job in the file's own place, and looks afterwards that it still is that. Otherwise the file is closed, and its
/// lock with it: it guards nothing any more, and is opened anew.
fn checked(mut file: File, job: impl FnOnce(&mut File) -> io::Result<Job>) -> Done {
    if let Err(error) = file.check() {
        return (None, Err(error));
    }
    match job(&mut file) {
        Ok(done) => match file.check() {
            Ok(()) => (Some(file), Ok(done)),
            Err(error) => (None, Err(error)),
        },
        Err(error) => (Some(file), Err(error)),
    }
}

#[expect(clippy::disallowed_methods, reason = "one job at a time, so name look-ups only wait for it")]
fn on_disk(job: impl FnOnce() -> Done + Send + 'static) -> JoinHandle<Done> {
    spawn_blocking(job)
}
