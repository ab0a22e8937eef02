//! The answer log: an append-only file of answers, written before they are published, and of inbox prompts, written
//! before they are acknowledged.
//!
//! One disk job runs at a time, on a blocking thread, and what is added meanwhile goes with the next job: a slow
//! card delays answers and blocks nothing. A disk that fails does not block them either: they are published
//! unsaved, the failure is logged, and the disk is retried. Deliberately knows nothing of the broker.

mod file;
pub mod folder;
mod open_records;
pub mod record;
#[cfg(test)]
mod tests;

use file::LogFile;
use open_records::OpenRecords;
use record::{LogContents, Record, SavedAnswer, SavedPrompt};
use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, spawn_blocking};

/// Time between two attempts with a disk that fails.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// Time between two checks whether the file is still where it was opened.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// A job that takes longer has failed: an SD card that erases blocks takes a second or two.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of the file in bytes, apart from the prompts, which take up to four times their own size in it: a
/// file may be twice its live records, and JSON escapes text.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// The file is rewritten when it is larger than twice its live records and this many bytes: so at most about three
/// times the answers' size is written.
const REWRITE_SLACK: u64 = 512 << 10;

/// The log of one device.
#[derive(Debug)]
pub struct AnswerLog {
    path: Option<PathBuf>,
    /// Maximum size of the file in bytes; reading it takes as much memory.
    largest: u64,
    disk: DiskWork,
    /// Lines to be written.
    pending_lines: Vec<u8>,
    /// Answers in these lines, which wait to be published.
    queued_answers: Vec<u64>,
    /// Prompts in these lines, which wait to be acknowledged.
    queued_prompts: Vec<u64>,
    /// Answers that the running job writes.
    answers_being_written: Vec<u64>,
    /// Prompts that the running job writes.
    prompts_being_written: Vec<u64>,
    /// Size of the file in bytes.
    file_bytes: u64,
    /// Bytes of live records when the file was opened or rewritten.
    live_bytes: u64,
    /// The file does not contain everything it should.
    needs_rewrite: bool,
    /// The contents found at the first opening were returned.
    is_loaded: bool,
    /// The file is no longer where it was opened: until everything is written anew, nothing is on disk.
    is_file_lost: bool,
    /// Prompts that need a `Done` record in the file.
    open_records: OpenRecords,
    /// The running job writes only `Done` records, into the space that was reserved for them.
    is_closing_records: bool,
    /// The reserved space is used up.
    is_reserve_empty: bool,
    /// When a disk that failed is tried again.
    retry_at: Instant,
    /// From then on a file that is lost is opened again at once.
    reopen_at_once_from: Instant,
    /// When the file's place is to be checked.
    next_check: Instant,
    /// What is wrong with the disk.
    problem: Option<String>,
    /// When the file was last lost, and what is reported of that.
    last_loss: Option<(Instant, String)>,
}

/// What the disk is doing.
#[derive(Debug)]
enum DiskWork {
    /// No state directory is configured.
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
    },
}

/// The file, where it is open, and the result of the job.
type JobResult = (Option<LogFile>, io::Result<DiskJob>);

/// What a job did.
#[derive(Debug)]
enum DiskJob {
    Check,
    Open(LogContents),
    Append(u64),
    Close(u64),
    Replace(u64),
}

/// What follows from the end of a job.
#[derive(Debug, Default)]
pub struct DiskOutcome {
    /// These answers may be published: they are saved, or cannot be.
    pub answers_saved: Vec<u64>,
    /// These prompts may be acknowledged: they are saved.
    pub prompts_saved: Vec<u64>,
    /// Prompts that were to be saved are not.
    pub are_prompts_lost: bool,
    /// The file is gone, and all that was saved with it.
    pub is_file_lost: bool,
    /// Everything that must be on disk was written anew.
    pub is_rewritten: bool,
    /// The contents of the file, when it was opened.
    pub contents: Option<LogContents>,
}

impl AnswerLog {
    /// A log in this file, to be opened at once; `None` saves nothing. `inbox`: maximum bytes of the saved prompts.
    pub fn new(path: Option<PathBuf>, inbox: usize, now: Instant) -> Self {
        let disk = match path {
            Some(_) => DiskWork::Failed { file: None },
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
            is_file_lost: false,
            open_records: OpenRecords::default(),
            is_closing_records: false,
            is_reserve_empty: false,
            retry_at: now,
            reopen_at_once_from: now,
            next_check: now + CHECK_INTERVAL,
            problem: None,
            last_loss: None,
        }
    }

    /// Whether what is saved now survives the process.
    pub fn is_durable(&self) -> bool {
        match &self.disk {
            DiskWork::Idle(_) => !self.is_file_lost,
            DiskWork::Busy { is_late, .. } => !is_late && self.problem.is_none(),
            DiskWork::Disabled | DiskWork::Failed { .. } => false,
        }
    }

    /// What to report as wrong with the disk. A file that was lost is reported for [`RETRY_INTERVAL`], also where it was
    /// written anew at once: whoever removes a folder under a running daemon is to see that.
    pub fn problem(&self, now: Instant) -> Option<&str> {
        let loss = self.last_loss.as_ref().filter(|(at, _)| now.duration_since(*at) < RETRY_INTERVAL);
        self.problem.as_deref().or(loss.map(|(_, text)| text.as_str()))
    }

    /// Whether something is being written, or waits for that.
    pub fn is_busy(&self) -> bool {
        matches!(self.disk, DiskWork::Busy { is_late: false, .. }) || !self.pending_lines.is_empty()
    }

    /// Makes [`AnswerLog::start_job`] check the file now, or try again a disk that failed.
    pub fn check_now(&mut self, now: Instant) {
        self.next_check = now;
        self.retry_at = now;
    }

    /// Saves an answer. `false`: it cannot be saved, and is to be published as it is.
    pub fn save_answer(&mut self, answer: SavedAnswer) -> bool {
        let is_durable = self.is_durable();
        if is_durable {
            answer.prompt.into_iter().for_each(|prompt| self.open_records.insert(prompt));
            self.queued_answers.push(answer.number);
            self.pending_lines.extend(Record::Answer(answer).line());
        }
        is_durable
    }

    /// Saves a prompt. `false`: it cannot be saved, and is not to be acknowledged before its answer is.
    pub fn save_prompt(&mut self, prompt: SavedPrompt) -> bool {
        let is_durable = self.is_durable();
        if is_durable {
            self.open_records.insert(prompt.number);
            self.queued_prompts.push(prompt.number);
            self.pending_lines.extend(Record::Prompt(prompt).line());
        }
        is_durable
    }

    /// Appends a record that nobody waits for.
    pub fn append_record(&mut self, record: &Record) {
        if self.is_durable() {
            self.pending_lines.extend(record.line());
        } else {
            // A rewrite that is running does not contain it.
            self.needs_rewrite = true;
        }
    }

    /// The prompt needs no answer any more; `is_saved`: it has a record of its own, apart from its answer's.
    pub fn close_prompt(&mut self, prompt: u64, is_saved: bool) {
        if !self.open_records.remove(prompt) && !is_saved {
            return;
        }
        if self.is_durable() {
            if is_saved {
                self.pending_lines.extend(Record::Done { prompt }.line());
            }
            self.open_records.push_in_lines(prompt);
        } else if !matches!(self.disk, DiskWork::Disabled | DiskWork::Failed { file: None }) {
            self.open_records.push_unwritten(prompt);
        }
    }

    /// Starts the next disk job, if there is something to do. `all` makes the lines of all live records.
    pub fn start_job(&mut self, now: Instant, all: impl FnOnce() -> Vec<u8>) {
        let is_long = self.file_bytes > 2 * self.live_bytes + REWRITE_SLACK;
        let job = match std::mem::replace(&mut self.disk, DiskWork::Disabled) {
            DiskWork::Failed { file: None } if now >= self.retry_at => self.open(),
            DiskWork::Failed { file: Some(file) } if now >= self.retry_at => self.replace(file, all()),
            DiskWork::Failed { file: Some(file) }
                if self.open_records.has_unwritten() && !self.is_reserve_empty =>
            {
                self.close_records(file)
            }
            DiskWork::Idle(file) if self.needs_rewrite || is_long => self.replace(file, all()),
            DiskWork::Idle(file) if !self.pending_lines.is_empty() || self.open_records.has_unwritten() => {
                self.append(file)
            }
            DiskWork::Idle(file) if now >= self.next_check => {
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
        let mut lines = std::mem::take(&mut self.pending_lines);
        lines.extend(self.open_records.unwritten_lines());
        self.begin_writing();
        let reserved = self.open_records.reserved_bytes();
        // What nobody waits for is not synced: the kernel writes it within half a minute.
        let sync = !self.answers_being_written.is_empty() || !self.prompts_being_written.is_empty();
        spawn_disk_job(move || {
            run_checked(file, |file| {
                file.append(&lines, sync, reserved).map(|()| DiskJob::Append(lines.len() as u64))
            })
        })
    }

    /// Writes only `Done` records, into the space that was reserved for them, while nothing else fits.
    fn close_records(&mut self, file: LogFile) -> JoinHandle<JobResult> {
        let lines = self.open_records.unwritten_lines();
        self.open_records.begin_writing();
        self.is_closing_records = true;
        spawn_disk_job(move || {
            run_checked(file, |file| {
                file.append_reserved(&lines).map(|()| DiskJob::Close(lines.len() as u64))
            })
        })
    }

    fn replace(&mut self, file: LogFile, lines: Vec<u8>) -> JoinHandle<JobResult> {
        self.pending_lines.clear();
        self.begin_writing();
        self.needs_rewrite = false;
        let reserved = self.open_records.reserved_bytes();
        spawn_disk_job(move || {
            run_checked(file, |file| {
                file.replace(&lines, reserved).map(|()| DiskJob::Replace(lines.len() as u64))
            })
        })
    }

    fn begin_writing(&mut self) {
        self.answers_being_written = std::mem::take(&mut self.queued_answers);
        self.prompts_being_written = std::mem::take(&mut self.queued_prompts);
        self.open_records.begin_writing();
    }

    /// Waits for the end of the running job. May be dropped and called again.
    pub async fn next(&mut self) -> DiskOutcome {
        let DiskWork::Busy { job, is_late, .. } = &mut self.disk else { return pending().await };
        let (file, done) = job.await.unwrap_or_else(|error| (None, Err(io::Error::other(error))));
        self.needs_rewrite |= *is_late;
        let now = Instant::now();
        self.next_check = now + CHECK_INTERVAL;
        match (file, done) {
            (Some(file), Ok(job)) => self.succeeded(file, job),
            (file, done) => {
                let text = done.err().map_or_else(String::new, |error| error.to_string());
                self.failed(file, &text, now)
            }
        }
    }

    fn succeeded(&mut self, file: LogFile, job: DiskJob) -> DiskOutcome {
        self.open_records.written();
        if let DiskJob::Close(bytes) = job {
            self.file_bytes += bytes;
            self.is_closing_records = false;
            self.disk = DiskWork::Failed { file: Some(file) };
            return DiskOutcome::default();
        }
        self.disk = DiskWork::Idle(file);
        let mut outcome = DiskOutcome::default();
        match job {
            DiskJob::Open(contents) => outcome.contents = self.opened(contents),
            DiskJob::Check | DiskJob::Close(_) => {}
            DiskJob::Append(bytes) => self.file_bytes += bytes,
            DiskJob::Replace(bytes) => {
                (self.file_bytes, self.live_bytes) = (bytes, bytes);
                self.is_file_lost = false;
                outcome.is_rewritten = true;
            }
        }
        if !self.is_file_lost && self.problem.take().is_some() {
            log::info!("{}: answers are saved again", self.display_path());
        }
        self.is_reserve_empty = false;
        outcome.answers_saved = std::mem::take(&mut self.answers_being_written);
        outcome.prompts_saved = std::mem::take(&mut self.prompts_being_written);
        outcome
    }

    /// Notes what the file contains, and returns it the first time.
    fn opened(&mut self, contents: LogContents) -> Option<LogContents> {
        // The size of the live records is known once the file is rewritten, which happens at once if it is long.
        (self.file_bytes, self.live_bytes) = (contents.bytes, 0);
        let (path, damaged) = (self.display_path(), contents.damaged);
        if damaged > 0 {
            log::warn!("{path}: {damaged} damaged records; it is set aside with the ending .corrupt");
        }
        // A new file needs its session record; a damaged file is not appended to.
        self.needs_rewrite |= damaged > 0 || contents.is_torn || contents.session.is_none();
        if std::mem::replace(&mut self.is_loaded, true) {
            return None;
        }
        contents.open_records().for_each(|prompt| self.open_records.insert(prompt));
        Some(contents)
    }

    fn failed(&mut self, file: Option<LogFile>, text: &str, now: Instant) -> DiskOutcome {
        let is_gone = file.is_none();
        self.disk = DiskWork::Failed { file };
        if std::mem::take(&mut self.is_closing_records) && !is_gone {
            self.open_records.failed();
            self.is_reserve_empty = true;
            return DiskOutcome::default();
        }
        self.retry_at = now + RETRY_INTERVAL;
        let was_lost = self.is_file_lost;
        // Everything that was saved is in a file that its owner has removed or replaced.
        self.is_file_lost |= is_gone && self.is_loaded;
        if self.is_file_lost && is_gone && now >= self.reopen_at_once_from {
            self.reopen_at_once_from = self.retry_at;
            self.retry_at = now;
        }
        let is_lost_now = self.is_file_lost && !was_lost;
        if is_lost_now {
            let text = format!(
                "{}: {text}; what it held is written anew; see device.state_dir",
                self.display_path()
            );
            self.last_loss = Some((now, text));
        }
        let outcome = DiskOutcome { is_file_lost: is_lost_now, ..self.fall_back_to_memory(text) };
        if is_gone {
            self.open_records.forget_unwritten();
        }
        outcome
    }

    /// The answers that wait are published unsaved, and the prompts that wait are not acknowledged.
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
        self.open_records.failed();
        let mut entries = std::mem::take(&mut self.answers_being_written);
        entries.append(&mut self.queued_answers);
        self.prompts_being_written.clear();
        self.queued_prompts.clear();
        DiskOutcome { answers_saved: entries, are_prompts_lost: true, ..DiskOutcome::default() }
    }

    /// When [`AnswerLog::start_job`] or [`AnswerLog::check_timeout`] has something to do next.
    pub fn due(&self) -> Option<Instant> {
        match &self.disk {
            DiskWork::Failed { .. } => Some(self.retry_at),
            DiskWork::Busy { since, is_late: false, .. } => Some(*since + DISK_TIMEOUT),
            DiskWork::Idle(_) => Some(self.next_check),
            _ => None,
        }
    }

    /// What follows where the running job has kept answers and prompts waiting for too long.
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

/// Runs a job if the file is where it was opened, and checks that again afterwards. Otherwise the file is closed,
/// and its lock with it, since the lock protects nothing any more; it is opened again later.
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
