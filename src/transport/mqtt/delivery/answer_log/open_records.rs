//! The prompts with a record in the file that is closed by a `Done` record later, and the `Done` records that are not
//! in the file yet.
//!
//! Pure. Space in the file is reserved for all of them, so that a full disk does not make the next process answer a
//! prompt again. Deliberately knows nothing of files.

use super::record::{DONE_BYTES, Record};
use std::collections::HashSet;

/// The open records of one file.
#[derive(Debug, Default)]
pub struct OpenRecords {
    /// Prompts whose own record or whose waiting answer is in the file, or on its way there.
    open: HashSet<u64>,
    /// Settled prompts whose `Done` record has to be written.
    unwritten: Vec<u64>,
    /// Settled prompts whose closing record is among the lines that wait for the next job.
    in_lines: Vec<u64>,
    /// Settled prompts whose closing record the running job writes.
    being_written: Vec<u64>,
}

impl OpenRecords {
    /// A record of this prompt goes to the file.
    pub fn insert(&mut self, prompt: u64) {
        self.open.insert(prompt);
    }

    /// The prompt needs no answer any more. Returns whether it had a record.
    pub fn remove(&mut self, prompt: u64) -> bool {
        self.open.remove(&prompt)
    }

    /// The closing record of this prompt is among the lines that wait for the next job.
    pub fn push_in_lines(&mut self, prompt: u64) {
        self.in_lines.push(prompt);
    }

    /// The `Done` record of this prompt is to be written when that is possible again.
    pub fn push_unwritten(&mut self, prompt: u64) {
        self.unwritten.push(prompt);
    }

    /// Whether `Done` records have to be written.
    pub fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// The lines of those records.
    pub fn unwritten_lines(&self) -> Vec<u8> {
        self.unwritten.iter().flat_map(|prompt| Record::Done { prompt: *prompt }.line()).collect()
    }

    /// A job begins that writes everything, or makes it unnecessary.
    pub fn begin_writing(&mut self) {
        self.being_written.append(&mut self.in_lines);
        self.being_written.append(&mut self.unwritten);
    }

    /// The job has succeeded.
    pub fn written(&mut self) {
        self.being_written.clear();
    }

    /// The job has failed, and the lines that wait are discarded.
    pub fn failed(&mut self) {
        self.unwritten.append(&mut self.being_written);
        self.unwritten.append(&mut self.in_lines);
    }

    /// There is no file any more: what was to be closed in it is gone with it.
    pub fn forget_unwritten(&mut self) {
        self.unwritten.clear();
    }

    /// Bytes to be reserved behind the end of the file.
    pub fn reserved_bytes(&self) -> u64 {
        DONE_BYTES * (self.open.len() + self.unwritten.len() + self.being_written.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserved_space_is_enough_for_the_longest_record() {
        assert!(Record::Done { prompt: u64::MAX }.line().len() as u64 <= DONE_BYTES);
    }

    #[test]
    fn what_a_failed_job_should_have_written_is_written_by_the_next() {
        let mut records = OpenRecords::default();
        records.insert(1);
        records.insert(2);
        assert!(records.remove(1) && !records.remove(1));
        records.push_in_lines(1);
        records.begin_writing();
        assert!(!records.has_unwritten());
        records.failed();
        assert_eq!(records.unwritten_lines(), Record::Done { prompt: 1 }.line());
        assert_eq!(records.reserved_bytes(), 2 * DONE_BYTES);
        records.begin_writing();
        records.written();
        assert!(!records.has_unwritten() && records.reserved_bytes() == DONE_BYTES);
    }
}
