//! The records of prompts and answers: one line each, with a checksum.
//!
//! Pure. Whatever a power cut or a failing card leaves of a file, every intact line is read, and nothing else is
//! trusted. An embedded database (redb 4.6) was tried instead: it wrote 32 KiB for an answer of 600 bytes, refused
//! the whole file when its end was missing, and panicked over single flipped bits, or did not notice them.
//! Deliberately knows nothing of files. The names of variants and fields are the file's format.

use crate::protocol::RequestId;
use crate::transport::mqtt::delivery::dedup_keys::DedupKeys;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::time::Duration;

/// Clocks jump on devices without a battery for them: a longer span is not trusted. The broker's session does not
/// live longer either.
const MAX_PLAUSIBLE_SPAN: Duration = Duration::from_secs(7 * 24 * 3600);
/// Length of a checksum in hexadecimal digits, and the space after it.
const CHECKSUM_LEN: usize = 17;

/// Maximum length of a `Done` record in bytes, and a little more.
pub const DONE_BYTES: u64 = 64;

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// From here on packet identifiers belong to this session.
    Session(u64),
    /// A prompt that was acknowledged before it is answered.
    Prompt(SavedPrompt),
    /// The prompt of this number needs no answer any more.
    Done {
        /// As in [`SavedPrompt::number`].
        prompt: u64,
    },
    /// A final answer.
    Answer(SavedAnswer),
    /// The broker has the answer of this number, or nobody wants it any more.
    Given {
        /// As in [`SavedAnswer::number`].
        number: u64,
        /// When it was written.
        time_s: u64,
    },
}

/// A prompt that waits for its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPrompt {
    /// Identifies the prompt.
    pub number: u64,
    /// The keys it is recognised by.
    pub keys: DedupKeys,
    /// The client, for the fair queue.
    pub client: String,
    /// The id of its events.
    pub id: RequestId,
    /// The topic of its events.
    pub topic: String,
    /// Its Correlation Data.
    pub correlation: Option<Vec<u8>>,
    /// Milliseconds for which its answer was still wanted when this was written; `None` is for ever.
    pub left_ms: Option<u64>,
    /// What is to be done.
    pub work: Work,
    /// The wall clock when this was written: seconds since 1970, possibly wrong.
    pub time_s: u64,
}

/// What is to be done for a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// This payload is to be answered.
    Ask(String),
    /// The prompt is refused: this event, as JSON, is to be published.
    Refuse(String),
}

impl SavedPrompt {
    /// How long its answer is still wanted: `None` for ever, zero no longer.
    pub fn remaining(&self, now_s: u64) -> Option<Duration> {
        let left = Duration::from_millis(self.left_ms?);
        Some(left.saturating_sub(elapsed(self.time_s, now_s)))
    }
}

/// A final answer to a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedAnswer {
    /// Identifies the answer.
    pub number: u64,
    /// The number of its prompt; `None` in files of earlier versions.
    #[serde(default)]
    pub prompt: Option<u64>,
    /// The keys of its prompt.
    pub keys: DedupKeys,
    /// The request's id.
    pub id: RequestId,
    /// The event, as JSON.
    pub payload: String,
    /// Whether the broker has it.
    pub state: AnswerState,
    /// The wall clock when this was written: seconds since 1970, possibly wrong.
    pub time_s: u64,
}

/// Whether the broker has an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnswerState {
    /// The broker does not have it yet.
    Waiting {
        /// The topic it is published on.
        topic: String,
        /// The prompt's Correlation Data.
        correlation: Option<Vec<u8>>,
        /// Milliseconds for which it was still wanted when this was written; `None` is for ever.
        left_ms: Option<u64>,
    },
    /// The broker has it; it is kept in case its prompt is received again.
    Given {
        /// Seconds for which the broker had it when this was written.
        age_s: u64,
    },
}

/// The contents of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LogContents {
    /// The latest session.
    pub session: Option<u64>,
    /// Prompts without an answer, in the order in which they were written.
    pub prompts: Vec<SavedPrompt>,
    /// Answers in the order in which they were written.
    pub answers: Vec<SavedAnswer>,
    /// Bytes of the file.
    pub bytes: u64,
    /// The last line is incomplete, because the power failed. Nothing is lost, since it was not yet reported as saved.
    pub is_torn: bool,
    /// The number of other unreadable lines: the disk is failing.
    pub damaged: usize,
}

impl Record {
    /// The line, including its end.
    pub fn line(&self) -> Vec<u8> {
        let body = serde_json::to_vec(self).expect("numbers and texts");
        let mut line = format!("{:016x} ", checksum(&body)).into_bytes();
        line.extend(body);
        line.push(b'\n');
        line
    }
}

impl LogContents {
    /// The prompts whose records are closed by a `Done` record later.
    pub fn open_records(&self) -> impl Iterator<Item = u64> {
        let answers = self.answers.iter().filter(|answer| answer.is_waiting());
        self.prompts.iter().map(|prompt| prompt.number).chain(answers.filter_map(|answer| answer.prompt))
    }

    /// Bytes to be reserved for those `Done` records.
    pub fn reserved_bytes(&self) -> u64 {
        DONE_BYTES * self.open_records().count() as u64
    }
}

impl SavedAnswer {
    /// Whether the broker does not have it yet.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, AnswerState::Waiting { .. })
    }

    /// How long it is still wanted: `Some(None)` for ever, `None` no longer.
    pub fn left(&self, now_s: u64) -> Option<Option<Duration>> {
        match &self.state {
            AnswerState::Waiting { left_ms: Some(left), .. } => {
                let left = Duration::from_millis(*left).checked_sub(elapsed(self.time_s, now_s))?;
                (!left.is_zero()).then_some(Some(left))
            }
            _ => Some(None),
        }
    }

    /// How long the broker has had it.
    pub fn age(&self, now_s: u64) -> Option<Duration> {
        match self.state {
            AnswerState::Waiting { .. } => None,
            AnswerState::Given { age_s } => {
                Some(Duration::from_secs(age_s).saturating_add(elapsed(self.time_s, now_s)))
            }
        }
    }
}

/// Time between two readings of a clock that may have been set meanwhile.
fn elapsed(then_s: u64, now_s: u64) -> Duration {
    let span = Duration::from_secs(now_s.saturating_sub(then_s));
    if span > MAX_PLAUSIBLE_SPAN { Duration::ZERO } else { span }
}

/// Reads the contents of a whole file.
pub fn parse_log(bytes: &[u8]) -> LogContents {
    let mut contents = LogContents { bytes: bytes.len() as u64, ..LogContents::default() };
    // Unreadable lines since the last readable one.
    let mut unread = 0;
    let mut found_any = false;
    let mut done = HashSet::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(record) = parse(line) else {
            unread += 1;
            continue;
        };
        contents.damaged += std::mem::take(&mut unread);
        found_any = true;
        apply(record, &mut contents, &mut done);
    }
    contents.prompts.retain(|prompt| !done.contains(&prompt.number));
    // A power cut leaves arbitrary bytes after the synced ones. A file without a valid line is not a torn log but damaged.
    if found_any {
        contents.is_torn = unread > 0;
    } else {
        contents.damaged += unread;
    }
    contents
}

/// Applies one record. `done`: the prompts that need no answer any more; one that has an answer is done.
fn apply(record: Record, contents: &mut LogContents, done: &mut HashSet<u64>) {
    match record {
        Record::Session(session) => contents.session = Some(session),
        Record::Prompt(prompt) => contents.prompts.push(prompt),
        Record::Done { prompt } => {
            done.insert(prompt);
            // On a full disk this is all that could be written of an answer that the broker has.
            let answered = contents.answers.iter_mut().rev().find(|answer| answer.prompt == Some(prompt));
            if let Some(answer) = answered.filter(|answer| answer.is_waiting()) {
                answer.state = AnswerState::Given { age_s: 0 };
            }
        }
        Record::Answer(answer) => {
            done.extend(answer.prompt);
            contents.answers.push(answer);
        }
        Record::Given { number, time_s } => {
            // Most often one of the latest.
            if let Some(answer) = contents.answers.iter_mut().rev().find(|answer| answer.number == number) {
                answer.state = AnswerState::Given { age_s: 0 };
                answer.time_s = time_s;
            }
        }
    }
}

/// One line with its end; `None` where anything is wrong with it.
fn parse(line: &[u8]) -> Option<Record> {
    let line = line.strip_suffix(b"\n")?;
    let (sum, body) = line.split_at_checked(CHECKSUM_LEN)?;
    let sum = std::str::from_utf8(sum.strip_suffix(b" ")?).ok()?;
    if sum != format!("{:016x}", checksum(body)) {
        return None;
    }
    serde_json::from_slice(body).ok()
}

/// Of SHA-256, which is in the program anyway: a checksum of eight bytes.
fn checksum(body: &[u8]) -> u64 {
    let digest = Sha256::digest(body);
    u64::from_be_bytes(digest[..8].try_into().expect("eight of thirty-two bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn waiting(number: u64, payload: &str, left_ms: Option<u64>) -> SavedAnswer {
        let topic = "bitnetd/cellar/reply/a".to_owned();
        SavedAnswer {
            number,
            prompt: Some(number + 100),
            keys: DedupKeys { name: Some(u128::MAX - u128::from(number)), delivery: Some(7) },
            id: "a".into(),
            payload: payload.into(),
            state: AnswerState::Waiting { topic, correlation: Some(vec![0, 255, 10]), left_ms },
            time_s: 1_000,
        }
    }

    fn file(records: &[Record]) -> Vec<u8> {
        records.iter().flat_map(Record::line).collect()
    }

    /// A session, three answers of which the first is given.
    fn usual() -> (Vec<Record>, Vec<u8>) {
        let answer = |n| Record::Answer(waiting(n, "{\"text\":\"ü\\n\"}", None));
        let given = Record::Given { number: 1, time_s: 1_500 };
        let records = vec![Record::Session(9), answer(1), answer(2), given, answer(3)];
        let bytes = file(&records);
        (records, bytes)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (_, bytes) = usual();
        let contents = parse_log(&bytes);
        assert_eq!(contents.session, Some(9));
        assert_eq!(contents.answers.iter().map(|a| a.number).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(contents.answers[0].state, AnswerState::Given { age_s: 0 });
        assert_eq!(contents.answers[0].time_s, 1_500);
        assert_eq!(contents.answers[1], waiting(2, "{\"text\":\"ü\\n\"}", None));
        assert_eq!((contents.is_torn, contents.damaged), (false, 0));
    }

    #[test]
    fn an_id_that_is_a_number_is_written_as_one_and_read_again() {
        let id = RequestId::from_json("1732.0").expect("a number");
        let line = Record::Answer(SavedAnswer { id, ..waiting(1, "{}", None) }).line();
        assert!(String::from_utf8_lossy(&line).contains(r#""id":1732.0,"#));
        let contents = parse_log(&line);
        assert_eq!(serde_json::to_string(&contents.answers[0].id).expect("an id"), "1732.0");
    }

    #[test]
    fn a_file_cut_at_any_byte_gives_every_whole_line_before_the_cut() {
        let (records, bytes) = usual();
        for cut in 0..bytes.len() {
            let contents = parse_log(&bytes[..cut]);
            let whole = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
            let mut wanted = parse_log(&file(&records[..whole]));
            let ends_inside = cut > 0 && bytes[cut - 1] != b'\n';
            wanted.bytes = cut as u64;
            wanted.is_torn = ends_inside && whole > 0;
            wanted.damaged = usize::from(ends_inside && whole == 0);
            assert_eq!(contents, wanted, "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_costs_no_line_but_its_own_and_is_never_believed() {
        let (_, bytes) = usual();
        let sound = parse_log(&bytes);
        let lines: Vec<_> =
            bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at).collect();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                let contents = parse_log(&bad);
                assert!(contents.is_torn || contents.damaged > 0, "{at} {bit}");
                // A line's end belongs to two lines.
                let hurt = lines.iter().position(|end| at <= *end).expect("a line");
                let spared = |number: u64| {
                    hurt != number as usize && (hurt + 1 != number as usize || at != lines[hurt])
                };
                for (number, line) in [(2_u64, 2_u64), (3, 4)] {
                    let found = contents.answers.iter().find(|answer| answer.number == number);
                    if spared(line) {
                        assert_eq!(found, sound.answers.iter().find(|a| a.number == number), "{at} {bit}");
                    }
                }
            }
        }
    }

    #[test]
    fn zeros_and_other_lines_behind_a_cut_are_cut_off_too() {
        let (_, bytes) = usual();
        for tail in [vec![0; 4096], b"\n\n\n".to_vec(), b"0123456789abcdef {}\n{\"x\"".to_vec()] {
            let contents = parse_log(&[bytes.as_slice(), &tail].concat());
            assert!(contents.is_torn && contents.damaged == 0 && contents.answers.len() == 3);
        }
    }

    #[test]
    fn a_file_without_a_sound_line_is_damaged_and_an_empty_one_is_not() {
        assert_eq!(parse_log(b"hello\n").damaged, 1);
        assert_eq!(parse_log(b""), LogContents::default());
    }

    #[test]
    fn a_deadline_counts_on_over_a_restart() {
        let answer = waiting(1, "{}", Some(60_000));
        assert_eq!(answer.left(1_020), Some(Some(Duration::from_secs(40))));
        assert_eq!(answer.left(1_060), None);
        assert_eq!(waiting(1, "{}", None).left(u64::MAX), Some(None));
    }

    #[test]
    fn a_clock_that_jumped_does_not_end_a_deadline() {
        let answer = waiting(1, "{}", Some(60_000));
        for now_s in [0, 999, 1_000 + 8 * 24 * 3600, u64::MAX] {
            assert_eq!(answer.left(now_s), Some(Some(Duration::from_secs(60))), "{now_s}");
        }
    }

    #[test]
    fn the_age_of_a_given_answer_grows() {
        let answer = SavedAnswer { state: AnswerState::Given { age_s: 5 }, ..waiting(1, "{}", None) };
        assert_eq!(answer.age(1_100), Some(Duration::from_secs(105)));
        assert_eq!(answer.left(1_100), Some(None));
    }
}
