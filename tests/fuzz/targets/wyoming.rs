//! Whatever bytes a Wyoming client sends, cut anyhow: no panic, the same events, bounded memory, and answers that a reader
//! of the protocol reads back.

#![no_main]

use bitnetd::protocol::Input;
use bitnetd::protocol::json;
use bitnetd::protocol::wyoming::{
    AnswerKind, EventReader, MAX_DATA, RecognizedIntent, WyomingCall, WyomingEvent, failed, handled,
    not_recognized, pong, recognized,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (cut, bytes) =
        bytes.split_first().map_or((1, bytes), |(first, rest)| (usize::from(*first) + 1, rest));
    let whole = read(std::iter::once(bytes));
    assert_eq!(read(bytes.chunks(cut)), whole);
    for event in &whole.0 {
        for kind in [AnswerKind::HomeIntents, AnswerKind::Intents, AnswerKind::Text] {
            match WyomingCall::of(event, kind) {
                Ok(WyomingCall::Transcript(transcript)) => {
                    let Input::Prompt(text) = &transcript.request.input else { panic!("a prompt") };
                    assert!(!text.is_empty() && text.len() <= json::MAX_REQUEST);
                    let context = transcript.context.returned.as_ref();
                    sound(&handled(text, context), "handled");
                    sound(&not_recognized(text, context), "not-recognized");
                    if let Some(intent) = RecognizedIntent::parse(text) {
                        sound(&recognized(&intent, Some("Done"), context), "intent");
                    }
                }
                Ok(WyomingCall::Ping(text)) => sound(&pong(text.as_deref()), "pong"),
                Ok(WyomingCall::Describe | WyomingCall::Ignored) => {}
                Err(refusal) => sound(&failed(&refusal), "error"),
            }
        }
    }
    if let Some(message) = whole.1 {
        assert!(message.len() < 1000 && !message.contains('\n'), "{message}");
    }
});

/// The events in the pieces, and the message of what ended them.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<WyomingEvent>, Option<String>) {
    let mut reader = EventReader::default();
    let mut events = Vec::new();
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.next_event() {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(refusal) => return (events, Some(refusal.message)),
            }
        }
        assert!(reader.has_space() || piece.len() >= MAX_DATA);
    }
    (events, None)
}

/// The first event is of this type, and nothing is left over.
fn sound(bytes: &[u8], kind: &str) {
    let (events, error) = read(std::iter::once(bytes));
    assert!(error.is_none() && events.first().is_some_and(|event| event.kind == kind), "{events:?}");
}
