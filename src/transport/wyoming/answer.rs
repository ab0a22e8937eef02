//! What is sent of the end of a request: an intent, a sentence, or why there is no answer.
//!
//! Home Assistant speaks the raw error of an intent that it cannot execute. Intents that it is known to refuse are
//! therefore answered with a sentence. Deliberately does no I/O.

use crate::home::{IntentCheck, check_intent};
use crate::protocol::wyoming::{
    self, AnswerKind, NO_TARGET, NO_TIMER_DEVICE, NOT_UNDERSTOOD, RecognizedIntent, TranscriptContext,
};
use crate::protocol::{Code, Done, Event, FinishReason, Refusal};
use jiff::ZonedDateTime;

/// The answer to a sentence.
#[derive(Debug, PartialEq)]
pub(super) enum SentenceAnswer {
    /// The bytes to send; the connection goes on.
    Reply(Vec<u8>),
    /// There is none.
    Failed(Refusal),
}

/// The answer to a sentence, where `event` ended its request.
pub(super) fn of(
    event: &Event,
    kind: AnswerKind,
    context: &TranscriptContext,
    now: &ZonedDateTime,
) -> SentenceAnswer {
    match event {
        Event::Error { refusal, .. } => SentenceAnswer::Failed(refusal.clone()),
        Event::Token { .. } => {
            SentenceAnswer::Failed(Refusal::new(Code::Internal, "a piece instead of an answer"))
        }
        Event::Done(done) => match unfinished(done, kind) {
            Some(refusal) => SentenceAnswer::Failed(refusal),
            None if kind == AnswerKind::Text => {
                SentenceAnswer::Reply(wyoming::handled(done.text.trim(), context.returned.as_ref()))
            }
            None => SentenceAnswer::Reply(intent(&done.text, context, now)),
        },
    }
}

/// Why an answer is none that can be used. The beginning of a text is better than nothing.
fn unfinished(done: &Done, kind: AnswerKind) -> Option<Refusal> {
    let has_text = kind == AnswerKind::Text && !done.text.trim().is_empty();
    match done.finish_reason {
        FinishReason::Cancelled => Some(Refusal::new(Code::Cancelled, "The answer was cancelled.")),
        FinishReason::Timeout if !has_text => {
            Some(Refusal::new(Code::Timeout, "There was no time left for an answer."))
        }
        _ => None,
    }
}

fn intent(text: &str, context: &TranscriptContext, now: &ZonedDateTime) -> Vec<u8> {
    let returned = context.returned.as_ref();
    let Some(intent) = RecognizedIntent::parse(text) else {
        return wyoming::not_recognized(NOT_UNDERSTOOD, returned);
    };
    match objection(&intent, context) {
        Some(sentence) => wyoming::not_recognized(sentence, returned),
        None => {
            let spoken = wyoming::spoken(&intent, context.renders_templates, now);
            wyoming::recognized(&intent, spoken.as_deref(), returned)
        }
    }
}

/// The sentence instead of an intent that Home Assistant would refuse.
fn objection(intent: &RecognizedIntent, context: &TranscriptContext) -> Option<&'static str> {
    match check_intent(&intent.name, |key| intent.has(key)) {
        IntentCheck::NoCommand => return Some(NOT_UNDERSTOOD),
        IntentCheck::Incomplete => return Some(NO_TARGET),
        IntentCheck::Complete => {}
    }
    // `all` is a name that Home Assistant knows, but no area and no floor.
    if intent.is_slot("area", "all") || intent.is_slot("floor", "all") {
        return Some(NO_TARGET);
    }
    let is_timer = intent.name == "HassStartTimer" && !intent.has("conversation_command");
    (is_timer && !context.has_device).then_some(NO_TIMER_DEVICE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::external_text::JsonValue;
    use crate::protocol::wyoming::EventReader;
    use crate::protocol::{AnswerDetails, Timings, Usage};

    fn done(text: &str, finish_reason: FinishReason) -> Event {
        Event::Done(Box::new(Done {
            id: "w1".into(),
            text: text.into(),
            finish_reason,
            usage: Usage::default(),
            timings: Timings::default(),
            energy: None,
            cached: false,
            model: "m".into(),
            details: AnswerDetails::default(),
        }))
    }

    fn answer(event: &Event, kind: AnswerKind, context: &TranscriptContext) -> SentenceAnswer {
        of(event, kind, context, &"2026-11-28T09:05:00[UTC]".parse().expect("a time"))
    }

    /// The type and the text of the reply.
    fn reply(event: &Event, kind: AnswerKind, context: &TranscriptContext) -> (String, Option<String>) {
        let SentenceAnswer::Reply(bytes) = answer(event, kind, context) else { panic!("no reply") };
        let mut reader = EventReader::default();
        reader.push(&bytes);
        let event = reader.next_event().expect("sound").expect("whole");
        let text = event.get("text").and_then(JsonValue::as_text).map(str::to_owned);
        (event.kind, text)
    }

    /// The same for an intent.
    fn intent_reply(intent: &str, slots: &str, context: &TranscriptContext) -> (String, String) {
        let text = format!(r#"{{"intent":"{intent}","slots":{{{slots}}}}}"#);
        let (kind, text) = reply(&done(&text, FinishReason::Stop), AnswerKind::Intents, context);
        (kind, text.expect("a text"))
    }

    #[test]
    fn an_intent_is_passed_on_with_a_text_to_speak() {
        let typed = TranscriptContext::default();
        let light = r#""area":"kitchen","domain":"light""#;
        assert_eq!(intent_reply("HassTurnOn", light, &typed), ("intent".into(), "Done".into()));
        let all = r#""name":"all","domain":"light""#;
        assert_eq!(intent_reply("HassTurnOff", all, &typed).0, "intent");
        assert_eq!(intent_reply("HassCancelTimer", "", &typed).0, "intent");
    }

    #[test]
    fn what_home_assistant_would_refuse_is_answered_with_a_sentence() {
        let typed = TranscriptContext::default();
        for (intent, slots, sentence) in [
            ("none", "", NOT_UNDERSTOOD),
            ("HassNevermind", "", NOT_UNDERSTOOD),
            ("HassExplode", r#""name":"tv""#, NOT_UNDERSTOOD),
            ("HassTurnOn", "", NO_TARGET),
            ("HassTurnOn", r#""area":"all""#, NO_TARGET),
            ("HassTurnOn", r#""domain":"light","floor":"All""#, NO_TARGET),
            ("HassStartTimer", r#""minutes":5"#, NO_TIMER_DEVICE),
        ] {
            let expected = ("not-recognized".to_owned(), sentence.to_owned());
            assert_eq!(intent_reply(intent, slots, &typed), expected, "{intent} {slots}");
        }
        let (kind, text) = reply(&done("Hello!", FinishReason::Stop), AnswerKind::HomeIntents, &typed);
        assert_eq!((kind.as_str(), text.as_deref()), ("not-recognized", Some(NOT_UNDERSTOOD)));
    }

    #[test]
    fn a_timer_is_started_from_a_voice_device_or_with_a_command() {
        let spoken = TranscriptContext { has_device: true, ..TranscriptContext::default() };
        assert_eq!(intent_reply("HassStartTimer", r#""minutes":5"#, &spoken).0, "intent");
        let command = r#""minutes":5,"conversation_command":"turn off the light""#;
        assert_eq!(intent_reply("HassStartTimer", command, &TranscriptContext::default()).0, "intent");
    }

    #[test]
    fn a_chat_model_s_text_is_spoken_as_far_as_it_goes() {
        let typed = TranscriptContext::default();
        for reason in [FinishReason::Stop, FinishReason::Length, FinishReason::Timeout] {
            let spoken = reply(&done(" Hello. ", reason), AnswerKind::Text, &typed);
            assert_eq!(spoken, ("handled".into(), Some("Hello.".into())));
        }
    }

    #[test]
    fn a_request_without_an_answer_fails_with_its_reason() {
        let typed = TranscriptContext::default();
        let refusal = Refusal::new(Code::QueueFull, "ask again");
        let event = Event::error(None, refusal.clone());
        assert_eq!(answer(&event, AnswerKind::Text, &typed), SentenceAnswer::Failed(refusal));
        for (event, kind, code) in [
            (done("Hello", FinishReason::Cancelled), AnswerKind::Text, Code::Cancelled),
            (done(" ", FinishReason::Timeout), AnswerKind::Text, Code::Timeout),
            (done("{\"intent\":", FinishReason::Timeout), AnswerKind::Intents, Code::Timeout),
        ] {
            let SentenceAnswer::Failed(refusal) = answer(&event, kind, &typed) else { panic!("{event:?}") };
            assert_eq!(refusal.code, code);
        }
    }
}
