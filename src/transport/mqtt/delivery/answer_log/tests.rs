//! The store with a real file, and with a disk that is not there.

use super::*;
use crate::transport::mqtt::delivery::dedup_keys::DedupKeys;
use record::AnswerState;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Folder(TempDir::with_prefix("bitnetd-").expect("a temporary folder"))
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("state/answers")
    }

    fn store(&self, now: Instant) -> AnswerLog {
        AnswerLog::new(Some(self.file()), 1 << 20, now)
    }
}

fn answer(number: u64) -> SavedAnswer {
    let keys = DedupKeys { name: None, delivery: Some(u128::from(number)) };
    let state = AnswerState::Waiting { topic: "t".into(), correlation: None, left_ms: None };
    SavedAnswer { number, prompt: None, keys, id: "a".into(), payload: "{}".into(), state, time_s: 1 }
}

/// Lines of a session and these answers.
fn lines(numbers: &[u64]) -> Vec<u8> {
    let mut lines = Record::Session(1).line();
    numbers.iter().for_each(|number| lines.extend(Record::Answer(answer(*number)).line()));
    lines
}

/// The numbers in the file.
fn saved(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).expect("there");
    record::parse_log(&bytes).answers.iter().map(|answer| answer.number).collect()
}

/// Runs all disk jobs that are due, from `now` on, which may lie in the future. Returns the answers that may be
/// published.
async fn work(log: &mut AnswerLog, now: Instant, all: &[u64]) -> Vec<u64> {
    let mut entries = Vec::new();
    log.start_job(now, || lines(all));
    while log.is_busy() {
        entries.extend(log.next().await.answers_saved);
        log.start_job(Instant::now(), || lines(all));
    }
    entries
}

#[tokio::test]
async fn answers_are_released_once_they_are_on_disk_and_all_at_once() {
    let folder = Folder::new();
    let now = Instant::now();
    let mut store = folder.store(now);
    assert!(work(&mut store, now, &[]).await.is_empty());
    assert!(store.save_answer(answer(1)));
    store.start_job(now, Vec::new);
    assert!(store.save_answer(answer(2)) && store.save_answer(answer(3)), "while the disk is busy");
    assert_eq!(store.next().await.answers_saved, [1]);
    store.start_job(now, Vec::new);
    assert_eq!(store.next().await.answers_saved, [2, 3]);
    assert_eq!(saved(&folder.file()), [1, 2, 3]);
    assert!(store.is_durable() && store.problem(Instant::now()).is_none());
}

#[tokio::test]
async fn the_contents_of_the_file_are_returned_once() {
    let folder = Folder::new();
    let now = Instant::now();
    let mut store = folder.store(now);
    work(&mut store, now, &[7]).await;
    drop(store);
    let mut store = folder.store(now);
    store.start_job(now, Vec::new);
    let contents = store.next().await.contents.expect("opened");
    assert_eq!((contents.session, contents.answers), (Some(1), vec![answer(7)]));
}

#[tokio::test]
async fn a_torn_file_is_written_anew_before_anything_is_added() {
    let folder = Folder::new();
    let now = Instant::now();
    work(&mut folder.store(now), now, &[7]).await;
    let whole = fs::read(folder.file()).expect("there");
    fs::write(folder.file(), &whole[..whole.len() - 3]).expect("room");
    let mut store = folder.store(now);
    work(&mut store, now, &[]).await;
    store.save_answer(answer(8));
    assert_eq!(work(&mut store, now, &[]).await, [8]);
    assert_eq!(saved(&folder.file()), [8]);
}

#[tokio::test]
async fn without_a_disk_answers_are_released_and_the_disk_is_retried() {
    let folder = Folder::new();
    let blocked = folder.0.path().join("state");
    fs::write(&blocked, "a file where the folder should be").expect("room");
    let now = Instant::now();
    let mut store = folder.store(now);
    store.start_job(now, Vec::new);
    assert!(store.save_answer(answer(1)), "nobody knows yet");
    assert_eq!(store.next().await.answers_saved, [1]);
    assert!(!store.is_durable() && !store.save_answer(answer(2)) && !store.is_busy());
    assert!(store.problem(Instant::now()).is_some_and(|text| text.contains("device.state_dir")));
    fs::remove_file(&blocked).expect("ours");
    store.start_job(now, Vec::new);
    assert!(!store.is_busy(), "not before its time");
    let later = store.due().expect("a next try");
    work(&mut store, later, &[1, 2]).await;
    assert!(store.is_durable() && store.problem(Instant::now()).is_none());
    assert_eq!(saved(&folder.file()), [1, 2], "what came meanwhile is saved now");
}

#[tokio::test]
async fn a_disk_that_hangs_does_not_block_answers() {
    let folder = Folder::new();
    let now = Instant::now();
    let mut store = folder.store(now);
    work(&mut store, now, &[]).await;
    store.save_answer(answer(1));
    store.start_job(now, Vec::new);
    store.save_answer(answer(2));
    assert!(store.check_timeout(now).is_none());
    let late = store.due().expect("a limit");
    let late_rows = store.check_timeout(late).expect("it is late");
    assert_eq!((late_rows.answers_saved, late_rows.are_prompts_lost), (vec![1, 2], true));
    assert!(!store.is_durable() && !store.save_answer(answer(3)));
    assert!(store.check_timeout(late).is_none());
    store.next().await;
    assert!(store.is_durable(), "it was only slow");
    work(&mut store, late, &[1, 2, 3]).await;
    assert_eq!(saved(&folder.file()), [1, 2, 3]);
}

#[tokio::test]
async fn the_file_is_written_anew_when_most_of_it_no_longer_counts() {
    let folder = Folder::new();
    let now = Instant::now();
    let mut store = folder.store(now);
    let large = |number| SavedAnswer { payload: "x".repeat(100_000), ..answer(number) };
    for number in 0..20 {
        store.save_answer(large(number));
        work(&mut store, now, &[number]).await;
        let length = fs::metadata(folder.file()).expect("there").len();
        assert!(length <= REWRITE_SLACK + 200_000, "{length}");
    }
    assert!(saved(&folder.file()).ends_with(&[19]));
}

#[tokio::test]
async fn the_file_does_not_grow_over_starts() {
    let folder = Folder::new();
    let now = Instant::now();
    for number in 0..12 {
        let mut store = folder.store(now);
        work(&mut store, now, &[]).await;
        store.save_answer(SavedAnswer { payload: "x".repeat(200_000), ..answer(number) });
        work(&mut store, now, &[number]).await;
        let length = fs::metadata(folder.file()).expect("there").len();
        assert!(length <= REWRITE_SLACK + 300_000, "{length} at start {number}");
    }
}

#[tokio::test]
async fn nothing_is_saved_without_a_state_directory() {
    let mut log = AnswerLog::new(None, 0, Instant::now());
    log.start_job(Instant::now(), Vec::new);
    assert!(!log.save_answer(answer(1)) && !log.is_busy() && !log.is_durable());
    assert!(log.due().is_none() && log.problem(Instant::now()).is_none());
}

fn prompt(number: u64) -> SavedPrompt {
    SavedPrompt {
        number,
        keys: DedupKeys { name: None, delivery: Some(u128::from(number)) },
        client: "-".into(),
        id: "a".into(),
        topic: "t".into(),
        correlation: None,
        left_ms: None,
        work: record::Work::Ask("hello".into()),
        time_s: 1,
    }
}

#[tokio::test]
async fn prompts_may_be_acknowledged_once_they_are_on_disk() {
    let folder = Folder::new();
    let now = Instant::now();
    let mut store = folder.store(now);
    work(&mut store, now, &[]).await;
    assert!(store.save_prompt(prompt(1)) && store.save_prompt(prompt(2)));
    store.start_job(now, Vec::new);
    assert_eq!(store.next().await.prompts_saved, [1, 2]);
    store.append_record(&Record::Done { prompt: 1 });
    store.start_job(now, Vec::new);
    store.next().await;
    let contents = record::parse_log(&fs::read(folder.file()).expect("there"));
    assert_eq!(contents.prompts, [prompt(2)]);
}

#[tokio::test]
async fn without_a_disk_prompts_are_not_acknowledged() {
    let folder = Folder::new();
    let now = Instant::now();
    fs::write(folder.0.path().join("state"), "").expect("a temporary folder");
    let mut store = folder.store(now);
    store.start_job(now, Vec::new);
    assert!(store.save_prompt(prompt(1)), "the disk is not known to fail yet");
    let finished = store.next().await;
    assert!(finished.prompts_saved.is_empty() && finished.are_prompts_lost);
    assert!(!store.save_prompt(prompt(2)));
}

#[tokio::test]
async fn a_directory_removed_while_idle_is_noticed_and_created_again() {
    let folder = Folder::new();
    let now = Instant::now();
    let mut store = folder.store(now);
    work(&mut store, now, &[]).await;
    fs::remove_dir_all(folder.0.path().join("state")).expect("ours");
    let look = store.due().expect("a next look");
    store.start_job(look, Vec::new);
    store.next().await;
    assert!(!store.is_durable() && !store.save_answer(answer(1)));
    assert!(
        store.problem(Instant::now()).is_some_and(|text| text.contains("was removed")),
        "{:?}",
        store.problem(Instant::now())
    );
    let later = store.due().expect("a next try");
    store.start_job(later, || lines(&[1]));
    store.next().await;
    work(&mut store, Instant::now(), &[1]).await;
    assert!(store.is_durable() && store.problem(Instant::now()).is_some(), "who removed it is to see that");
    assert!(store.problem(Instant::now() + RETRY_INTERVAL).is_none());
    assert_eq!(saved(&folder.file()), [1]);
}

#[tokio::test]
async fn an_answer_is_not_called_saved_in_a_folder_that_was_replaced() {
    let folder = Folder::new();
    let now = Instant::now();
    let mut store = folder.store(now);
    work(&mut store, now, &[]).await;
    fs::rename(folder.0.path().join("state"), folder.0.path().join("away")).expect("ours");
    fs::create_dir(folder.0.path().join("state")).expect("a new name");
    assert!(store.save_answer(answer(1)), "nobody knows yet");
    store.start_job(now, Vec::new);
    assert_eq!(store.next().await.answers_saved, [1], "it is published all the same");
    assert!(!store.is_durable());
    assert!(!folder.file().exists(), "nothing is written where no lock is held");
}

#[tokio::test]
async fn a_file_that_is_lost_is_written_anew_at_once_and_only_then_durable() {
    let folder = Folder::new();
    let now = Instant::now();
    let mut store = folder.store(now);
    work(&mut store, now, &[]).await;
    assert!(store.save_prompt(prompt(1)));
    store.start_job(now, Vec::new);
    assert_eq!(store.next().await.prompts_saved, [1]);
    fs::rename(folder.0.path().join("state"), folder.0.path().join("away")).expect("ours");
    fs::create_dir(folder.0.path().join("state")).expect("a new name");
    store.check_now(Instant::now());
    store.start_job(Instant::now(), Vec::new);
    assert!(store.next().await.is_file_lost);
    assert!(!store.is_durable() && !store.save_prompt(prompt(2)));
    store.start_job(Instant::now(), || lines(&[]));
    let opened = store.next().await;
    assert!(!opened.is_rewritten && opened.contents.is_none() && !store.is_durable(), "it is empty");
    store.start_job(Instant::now(), || [lines(&[]), Record::Prompt(prompt(1)).line()].concat());
    // A prompt that is settled while the file is rewritten must not be answered by the next process.
    store.close_prompt(1, true);
    assert!(store.next().await.is_rewritten && store.is_durable());
    assert!(store.problem(Instant::now() + RETRY_INTERVAL).is_none());
    work(&mut store, Instant::now(), &[]).await;
    assert!(record::parse_log(&fs::read(folder.file()).expect("there")).prompts.is_empty());
}

#[tokio::test]
async fn a_folder_that_is_lost_again_and_again_is_opened_once_a_minute() {
    let folder = Folder::new();
    let now = Instant::now();
    let mut store = folder.store(now);
    work(&mut store, now, &[]).await;
    let mut attempts = 0;
    for _ in 0..5 {
        let _ = fs::remove_dir_all(folder.0.path().join("state"));
        store.next_check = Instant::now();
        store.start_job(Instant::now(), || lines(&[]));
        while store.is_busy() {
            attempts += usize::from(store.next().await.is_rewritten);
            store.start_job(Instant::now(), || lines(&[]));
        }
    }
    assert_eq!(attempts, 1);
    assert!(!store.is_durable() && store.due() > Some(Instant::now() + RETRY_INTERVAL / 2));
}

/// A file system of a few pages below the folder, unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where nothing may be mounted.
    fn mount(folder: &Folder) -> Option<Self> {
        let place = folder.0.path().join("state");
        fs::create_dir_all(&place).expect("a temporary folder");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=32k", "none"]).arg(&place);
        mount.output().is_ok_and(|ended| ended.status.success()).then_some(SmallDisk(place))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[tokio::test]
async fn on_a_full_disk_settled_prompts_are_still_closed_and_none_is_answered_again() {
    let folder = Folder::new();
    let Some(_disk) = SmallDisk::mount(&folder) else {
        return println!("skipped: no file system can be mounted here");
    };
    let now = Instant::now();
    let mut store = folder.store(now);
    work(&mut store, now, &[]).await;
    let mut saved_prompts = Vec::new();
    for number in 0..500 {
        if !store.save_prompt(prompt(number)) {
            break;
        }
        store.start_job(now, Vec::new);
        saved_prompts.extend(store.next().await.prompts_saved);
    }
    assert!(!store.is_durable() && saved_prompts.len() > 50, "{}", saved_prompts.len());
    let contents = |path: &Path| record::parse_log(&fs::read(path).expect("there"));
    let found: Vec<u64> = contents(&folder.file()).prompts.iter().map(|prompt| prompt.number).collect();
    assert_eq!(found, saved_prompts, "what was not reported as saved is not found");
    // A rewrite that does not fit leaves the file as it is.
    store.check_now(now);
    store.start_job(now, || vec![b'x'; 32 << 10]);
    store.next().await;
    assert_eq!(contents(&folder.file()).prompts.len(), saved_prompts.len());
    let (open, settled) = saved_prompts.split_last().expect("some");
    for number in settled {
        store.close_prompt(*number, true);
        store.start_job(Instant::now(), Vec::new);
        store.next().await;
    }
    assert!(!store.is_durable(), "it is as full as before");
    let left = contents(&folder.file());
    assert_eq!(left.prompts.iter().map(|prompt| prompt.number).collect::<Vec<_>>(), [*open]);
    assert_eq!((left.damaged, left.is_torn), (0, false));
}

#[test]
fn a_done_record_alone_shows_that_the_broker_has_the_answer() {
    let waiting = SavedAnswer { prompt: Some(7), ..answer(1) };
    let bytes = [lines(&[]), Record::Answer(waiting).line(), Record::Done { prompt: 7 }.line()].concat();
    let contents = record::parse_log(&bytes);
    assert_eq!(contents.answers[0].state, AnswerState::Given { age_s: 0 });
    assert_eq!(contents.open_records().count(), 0);
}
