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

use file::LogFile;
use record::{LogContents, Record, SavedAnswer, SavedPrompt};
use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, spawn_blocking};

/// Between two tries of a disk that fails.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// Between two looks whether the file is still where it was opened.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// A disk that takes longer fails: an SD card that tidies up takes one second or two.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the file beside those of prompts, which take up to four times their own in it: twice what counts, and text
/// that JSON escapes.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// The file is written anew when it is larger than twice what still counts, and this: so what is
/// written is never more than some three times what is said.
const REWRITE_SLACK: u64 = 512 << 10;

/// The store of one device's answers.
#[derive(Debug)]
pub struct AnswerLog {
    path: Option<PathBuf>,
    /// No file of ours has more bytes; reading it takes as much memory.
    largest: u64,
    disk: DiskWork,
    /// Lines for the disk, of which these rows wait to be published.
    pending_lines: Vec<u8>,
    queued_answers: Vec<u64>,
    /// Prompts in these lines, which wait to be acknowledged.
    queued_prompts: Vec<u64>,
    /// Rows that the disk is writing.
    answers_being_written: Vec<u64>,
    /// Prompts that the disk is writing.
    prompts_being_written: Vec<u64>,
    /// Bytes in the file, and those that counted when it was opened or replaced.
    file_bytes: u64,
    live_bytes: u64,
    /// The file does not hold what it should.
    needs_rewrite: bool,
    /// What it held at first was told.
    is_loaded: bool,
    /// When the place of the file was last looked at.
    last_checked: Instant,
    problem: Option<String>,
}

#[derive(Debug)]
enum DiskWork {
    /// The owner wants nothing kept.
    Disabled,
    Idle(LogFile),
    Busy {
        job: JoinHandle<JobResult>,
        since: Instant,
        is_late: bool,
    },
    /// Failed, or not yet opened.
    Failed {
        file: Option<LogFile>,
        until: Instant,
    },
}

/// The file, where there is one, and what came of the job.
type JobResult = (Option<LogFile>, io::Result<DiskJob>);

/// What was done on disk.
#[derive(Debug)]
enum DiskJob {
    Check,
    Open(LogContents),
    Append(u64),
    Replace(u64),
}

/// What follows from a job's end.
#[derive(Debug, Default)]
pub struct DiskOutcome {
    /// These rows may be published: they are saved, or cannot be.
    pub answers_saved: Vec<u64>,
    /// These prompts may be acknowledged: they are saved.
    pub prompts_saved: Vec<u64>,
    /// Prompts that were to be saved are not.
    pub are_prompts_lost: bool,
    /// What the file said when it was opened.
    pub contents: Option<LogContents>,
}

impl AnswerLog {
    /// A store in this file, to be opened at once; `None` keeps nothing. `inbox`: bytes of prompts that will be kept.
    pub fn new(path: Option<PathBuf>, inbox: usize, now: Instant) -> Self {
        let disk = match path {
            Some(_) => DiskWork::Failed { file: None, until: now },
            None => DiskWork::Disabled,
        };
        AnswerLog {
            path,
            largest: MAX_FILE_BYTES + 4 * inbox as u64,
            disk,
            pending_lines: Vec::new(),
            queued_answers: Vec::new(),
            queued_prompts: Vec::new(),
            answers_being_written: Vec::new(),
            prompts_being_written: Vec::new(),
            file_bytes: 0,
            live_bytes: 0,
            needs_rewrite: false,
            is_loaded: false,
            last_checked: now,
            problem: None,
        }
    }

    /// Whether what is kept now outlives the process.
    pub fn is_durable(&self) -> bool {
        match &self.disk {
            DiskWork::Idle(_) => true,
            DiskWork::Busy { is_late, .. } => !is_late && self.problem.is_none(),
            DiskWork::Disabled | DiskWork::Failed { .. } => false,
        }
    }

    /// What is wrong with the disk.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Whether something is on its way to the disk, or waits for it.
    pub fn is_busy(&self) -> bool {
        matches!(self.disk, DiskWork::Busy { is_late: false, .. }) || !self.pending_lines.is_empty()
    }

    /// Keeps the answer of a row. `false`: it cannot be kept, and the row is to be published as it is.
    pub fn save_answer(&mut self, answer: SavedAnswer) -> bool {
        let is_durable = self.is_durable();
        if is_durable {
            self.queued_answers.push(answer.number);
            self.pending_lines.extend(Record::Answer(answer).line());
        }
        is_durable
    }

    /// Keeps a prompt. `false`: it cannot be kept, and is not to be acknowledged before its answer is.
    pub fn save_prompt(&mut self, prompt: SavedPrompt) -> bool {
        let is_durable = self.is_durable();
        if is_durable {
            self.queued_prompts.push(prompt.number);
            self.pending_lines.extend(Record::Prompt(prompt).line());
        }
        is_durable
    }

    /// Keeps what nobody waits for.
    pub fn append_record(&mut self, record: &Record) {
        if self.is_durable() {
            self.pending_lines.extend(record.line());
        }
    }

    /// Begins what is to be done on disk, if anything; `all` makes the lines of everything that
    /// counts.
    pub fn start_job(&mut self, now: Instant, all: impl FnOnce() -> Vec<u8>) {
        let is_long = self.file_bytes > 2 * self.live_bytes + REWRITE_SLACK;
        let job = match std::mem::replace(&mut self.disk, DiskWork::Disabled) {
            DiskWork::Failed { file: None, until } if now >= until => self.open(),
            DiskWork::Failed { file: Some(file), until } if now >= until => self.replace(file, all()),
            DiskWork::Idle(file) if self.needs_rewrite || is_long => self.replace(file, all()),
            DiskWork::Idle(file) if !self.pending_lines.is_empty() => self.append(file),
            DiskWork::Idle(file) if now >= self.last_checked + CHECK_INTERVAL => {
                spawn_disk_job(move || run_checked(file, |_| Ok(DiskJob::Check)))
            }
            other => {
                self.disk = other;
                return;
            }
        };
        self.disk = DiskWork::Busy { job, since: now, is_late: false };
    }

    fn open(&self) -> JoinHandle<JobResult> {
        let path = self.path.clone().expect("a store without a file is never down");
        let largest = self.largest;
        spawn_disk_job(move || match LogFile::open(&path, largest) {
            Ok((file, contents)) => (Some(file), Ok(DiskJob::Open(contents))),
            Err(error) => (None, Err(error)),
        })
    }

    fn append(&mut self, file: LogFile) -> JoinHandle<JobResult> {
        let lines = std::mem::take(&mut self.pending_lines);
        self.begin_writing();
        // What nobody waits for reaches the disk within the kernel's half minute.
        let sync = !self.answers_being_written.is_empty() || !self.prompts_being_written.is_empty();
        spawn_disk_job(move || {
            run_checked(file, |file| file.append(&lines, sync).map(|()| DiskJob::Append(lines.len() as u64)))
        })
    }

    fn replace(&mut self, file: LogFile, lines: Vec<u8>) -> JoinHandle<JobResult> {
        self.pending_lines.clear();
        self.begin_writing();
        self.needs_rewrite = false;
        spawn_disk_job(move || {
            run_checked(file, |file| file.replace(&lines).map(|()| DiskJob::Replace(lines.len() as u64)))
        })
    }

    fn begin_writing(&mut self) {
        self.answers_being_written = std::mem::take(&mut self.queued_answers);
        self.prompts_being_written = std::mem::take(&mut self.queued_prompts);
    }

    /// Waits for the disk. May be dropped and called again.
    pub async fn next(&mut self) -> DiskOutcome {
        let DiskWork::Busy { job, is_late, .. } = &mut self.disk else { return pending().await };
        let (file, done) = job.await.unwrap_or_else(|error| (None, Err(io::Error::other(error))));
        self.needs_rewrite |= *is_late;
        let now = Instant::now();
        self.last_checked = now;
        match (file, done) {
            (Some(file), Ok(job)) => self.succeeded(file, job),
            (file, done) => {
                let text = done.err().map_or_else(String::new, |error| error.to_string());
                self.failed(file, &text, now)
            }
        }
    }

    fn succeeded(&mut self, file: LogFile, job: DiskJob) -> DiskOutcome {
        self.disk = DiskWork::Idle(file);
        let contents = match job {
            DiskJob::Open(contents) => {
                // What of it counts is known when it is written anew, which a long one is at once.
                (self.file_bytes, self.live_bytes) = (contents.bytes, 0);
                let (path, damaged) = (self.display_path(), contents.damaged);
                if damaged > 0 {
                    log::warn!("{path}: {damaged} damaged records; it is set aside with the ending .corrupt");
                }
                // A new file gets its session; what cannot be read is not appended to.
                self.needs_rewrite |= damaged > 0 || contents.is_torn || contents.session.is_none();
                (!std::mem::replace(&mut self.is_loaded, true)).then_some(contents)
            }
            DiskJob::Check => None,
            DiskJob::Append(bytes) => {
                self.file_bytes += bytes;
                None
            }
            DiskJob::Replace(bytes) => {
                (self.file_bytes, self.live_bytes) = (bytes, bytes);
                None
            }
        };
        if self.problem.take().is_some() {
            log::info!("{}: answers are saved again", self.display_path());
        }
        let (entries, prompts) = (
            std::mem::take(&mut self.answers_being_written),
            std::mem::take(&mut self.prompts_being_written),
        );
        DiskOutcome { answers_saved: entries, prompts_saved: prompts, are_prompts_lost: false, contents }
    }

    fn failed(&mut self, file: Option<LogFile>, text: &str, now: Instant) -> DiskOutcome {
        self.disk = DiskWork::Failed { file, until: now + RETRY_INTERVAL };
        self.fall_back_to_memory(text)
    }

    /// The rows that wait are published unsaved, and the prompts that wait are not acknowledged.
    fn fall_back_to_memory(&mut self, text: &str) -> DiskOutcome {
        let text = format!(
            "{}: {text}; answers are not saved, and a prompt that comes again after a crash is computed again; \
             see device.state_dir",
            self.display_path()
        );
        if self.problem.is_none() {
            log::error!("{text}");
        }
        self.problem = Some(text);
        self.needs_rewrite = true;
        self.pending_lines.clear();
        let mut entries = std::mem::take(&mut self.answers_being_written);
        entries.append(&mut self.queued_answers);
        self.prompts_being_written.clear();
        self.queued_prompts.clear();
        DiskOutcome { answers_saved: entries, are_prompts_lost: true, ..DiskOutcome::default() }
    }

    /// When [`Store::begin`] or [`Store::overdue`] has something to do next.
    pub fn due(&self) -> Option<Instant> {
        match &self.disk {
            DiskWork::Failed { until, .. } => Some(*until),
            DiskWork::Busy { since, is_late: false, .. } => Some(*since + DISK_TIMEOUT),
            DiskWork::Idle(_) => Some(self.last_checked + CHECK_INTERVAL),
            _ => None,
        }
    }

    /// What follows where the disk has kept rows and prompts waiting for too long.
    pub fn check_timeout(&mut self, now: Instant) -> Option<DiskOutcome> {
        match &mut self.disk {
            DiskWork::Busy { since, is_late, .. } if !*is_late && now >= *since + DISK_TIMEOUT => {
                *is_late = true;
                Some(self.fall_back_to_memory("the disk does not answer"))
            }
            _ => None,
        }
    }

    fn display_path(&self) -> String {
        self.path.as_ref().map_or_else(String::new, |path| path.display().to_string())
    }
}

/// Does a job in the file's own place, and looks afterwards that it still is that. Otherwise the file is closed, and its
/// lock with it: it guards nothing any more, and is opened anew.
fn run_checked(mut file: LogFile, job: impl FnOnce(&mut LogFile) -> io::Result<DiskJob>) -> JobResult {
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
fn spawn_disk_job(job: impl FnOnce() -> JobResult + Send + 'static) -> JoinHandle<JobResult> {
    spawn_blocking(job)
}
