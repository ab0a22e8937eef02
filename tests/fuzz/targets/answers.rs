//! Whatever a disk makes of the answer log: it is read, what is read can be written and read again,
//! and rubbish costs no line but its own.

#![no_main]

use bitnetd::transport::mqtt::DedupKeys;
use bitnetd::transport::mqtt::record::{AnswerState, Record, SavedAnswer, parse_log};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let contents = parse_log(bytes);
    for answer in &contents.answers {
        for now_s in [0, answer.time_s, u64::MAX] {
            assert!(answer.age(now_s).is_none() || answer.left(now_s) == Some(None));
        }
    }
    let lines: Vec<u8> = contents.answers.iter().cloned().flat_map(|a| Record::Answer(a).line()).collect();
    let again = parse_log(&lines);
    assert_eq!((again.answers, again.damaged, again.is_torn), (contents.answers, 0, false));
    for prompt in &contents.prompts {
        assert!(prompt.remaining(u64::MAX) <= prompt.remaining(prompt.time_s) || prompt.left_ms.is_none());
    }
    let lines: Vec<u8> = contents.prompts.iter().cloned().flat_map(|p| Record::Prompt(p).line()).collect();
    assert_eq!(parse_log(&lines).prompts, contents.prompts);

    let sound = Record::Answer(answer()).line();
    let behind = parse_log(&[&sound, bytes].concat());
    assert_eq!(behind.answers.first().map(|a| &a.payload), Some(&answer().payload));
    let between = parse_log(&[&sound, bytes, b"\n", &sound].concat());
    assert_eq!(between.answers.last(), Some(&answer()));
});

fn answer() -> SavedAnswer {
    let state = AnswerState::Waiting { topic: "t".into(), correlation: Some(vec![0, 255]), left_ms: Some(1) };
    let keys = DedupKeys { name: Some(u128::MAX), delivery: None };
    SavedAnswer { number: u64::MAX, prompt: Some(1), keys, id: "a".into(), payload: "{}".into(), state, time_s: 1 }
}
