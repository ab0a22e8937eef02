//! Entries of the outbox, with brokers that accept them and brokers that do not.

use super::*;
use std::time::Duration;

const WIDE: PublishLimits = PublishLimits { packet: usize::MAX, window: MAX_IN_FLIGHT };

fn packet(bytes: usize) -> OutgoingMessage {
    OutgoingMessage::json("t".into(), vec![b'x'; bytes])
}

/// The prompts that were settled.
fn settled(outbox: &mut Outbox) -> Vec<PromptId> {
    outbox.take_settled().into_iter().map(|(prompt, _)| prompt).collect()
}

/// Publishes all that may be published; the numbers of their entries.
fn publish(outbox: &mut Outbox, limits: PublishLimits) -> Vec<u64> {
    let mut sent = Vec::new();
    while let Some((number, _)) = outbox.next(Instant::now(), limits) {
        outbox.mark_sent(number);
        sent.push(number);
    }
    sent
}

#[test]
fn a_prompt_is_settled_when_its_last_event_is_acknowledged() {
    let mut outbox = Outbox::default();
    outbox.push_token(7, packet(1));
    outbox.push_last(7, "a", packet(1));
    let sent = publish(&mut outbox, WIDE);
    outbox.acknowledged(sent[0], true);
    assert!(outbox.take_settled().is_empty());
    outbox.acknowledged(sent[1], true);
    let outcome = DeliveryOutcome { number: 1, id: "a".into(), payload: b"x".to_vec(), is_delivered: true };
    assert_eq!(outbox.take_settled(), [(7, outcome)]);
    assert!(outbox.is_empty());
}

#[test]
fn at_most_a_window_is_in_flight() {
    let mut outbox = Outbox::default();
    (0..40).for_each(|n| _ = outbox.push_last(n, "a", packet(1)));
    let sent = publish(&mut outbox, WIDE);
    assert_eq!(sent.len(), MAX_IN_FLIGHT);
    outbox.acknowledged(sent[3], true);
    assert_eq!(publish(&mut outbox, WIDE), [16]);
    let narrow = PublishLimits { window: 2, ..WIDE };
    assert!(publish(&mut outbox, narrow).is_empty());
}

#[test]
fn what_was_not_acknowledged_is_published_again_in_order() {
    let mut outbox = Outbox::default();
    (0..3).for_each(|n| _ = outbox.push_last(n, "a", packet(1)));
    let sent = publish(&mut outbox, WIDE);
    outbox.acknowledged(sent[1], true);
    outbox.disconnected(true);
    assert_eq!(publish(&mut outbox, WIDE), [sent[0], sent[2]]);
}

#[test]
fn tokens_are_dropped_for_answers_and_leave_a_prefix() {
    let mut outbox = Outbox::default();
    (0..10).for_each(|_| outbox.push_token(1, packet(100_000)));
    outbox.push_last(2, "b", packet(300_000));
    outbox.push_token(1, packet(1));
    let kinds: Vec<_> = outbox.entries.iter().map(|entry| entry.kind.clone()).collect();
    let mut wanted = vec![EntryKind::Token(1); 7];
    wanted.push(EntryKind::Last(2, "b".into()));
    assert_eq!(kinds, wanted);
}

#[test]
fn tokens_without_end_stay_within_bounds() {
    let mut outbox = Outbox::default();
    (0..10_000).for_each(|_| outbox.push_token(1, packet(10)));
    (0..10_000).for_each(|n| outbox.push_token(n, packet(10_000)));
    assert!(outbox.len() <= MAX_ENTRIES && outbox.bytes <= MAX_BYTES);
}

#[test]
fn a_token_in_flight_is_not_dropped() {
    let mut outbox = Outbox::default();
    outbox.push_token(1, packet(MAX_BYTES / 2));
    let sent = publish(&mut outbox, WIDE);
    outbox.push_last(1, "a", packet(MAX_BYTES / 2));
    assert_eq!(outbox.len(), 2);
    outbox.acknowledged(sent[0], true);
    assert_eq!(outbox.len(), 1);
}

#[test]
fn many_waiting_answers_mean_no_new_prompt() {
    let mut outbox = Outbox::default();
    (0..MAX_ANSWERS as u64 - 1).for_each(|n| _ = outbox.push_last(n, "a", packet(1)));
    assert!(!outbox.is_full());
    outbox.push_last(99, "a", packet(1));
    assert!(outbox.is_full());
}

#[test]
fn large_waiting_answers_mean_no_new_prompt() {
    let mut outbox = Outbox::default();
    outbox.push_last(1, "a", packet(MAX_BYTES / 2));
    assert!(outbox.is_full());
}

#[test]
fn an_answer_larger_than_the_broker_takes_becomes_an_error() {
    let mut outbox = Outbox::default();
    outbox.push_last(1, "mine", packet(5_000));
    let limits = PublishLimits { packet: 1_000, ..WIDE };
    let (_, sent) = outbox.next(Instant::now(), limits).expect("the error");
    let text = String::from_utf8_lossy(&sent.payload).into_owned();
    assert!(text.contains(r#""id":"mine","code":"too_large""#), "{text}");
}

#[test]
fn an_answer_whose_error_is_too_large_as_well_is_given_up_and_settled() {
    let mut outbox = Outbox::default();
    outbox.push_last(1, "a", packet(5_000));
    outbox.push_token(2, packet(5_000));
    assert!(publish(&mut outbox, PublishLimits { packet: 90, ..WIDE }).is_empty());
    assert_eq!(outbox.given_up(), 1);
    let outcome = DeliveryOutcome { number: 0, id: "a".into(), payload: vec![], is_delivered: false };
    assert_eq!(outbox.take_settled(), [(1, outcome)]);
    assert!(outbox.is_empty() && outbox.bytes == 0);
}

#[test]
fn an_expired_answer_is_settled_unsent() {
    let now = Instant::now();
    let mut outbox = Outbox::default();
    outbox.push_last(1, "a", OutgoingMessage { expires: Some(now), ..packet(1) });
    assert_eq!(outbox.next(now, WIDE), None);
    let (prompt, outcome) = outbox.take_settled().remove(0);
    assert_eq!((prompt, outcome.is_delivered), (1, false));
}

#[test]
fn an_entry_is_not_published_before_it_is_saved_and_delays_no_other() {
    let mut outbox = Outbox::default();
    let entry = outbox.push_last(1, "a", packet(1));
    outbox.hold_until_saved(entry);
    outbox.push_last(2, "b", packet(1));
    assert_eq!(publish(&mut outbox, WIDE), [1]);
    outbox.disconnected(true);
    assert_eq!(publish(&mut outbox, WIDE), [1]);
    outbox.release_saved(entry);
    assert_eq!(publish(&mut outbox, WIDE), [0]);
}

#[test]
fn an_answer_of_an_earlier_process_keeps_its_number() {
    let mut outbox = Outbox::numbered_from(100);
    outbox.restore(7, 1, "a", packet(1));
    assert_eq!(outbox.push_last(2, "b", packet(1)), 101);
    assert_eq!(publish(&mut outbox, WIDE), [7, 101]);
    let waiting: Vec<_> =
        outbox.pending_answers().map(|one| (one.number, one.prompt, one.id.as_str())).collect();
    assert_eq!(waiting, [(7, 1, "a"), (101, 2, "b")]);
    outbox.acknowledged(7, true);
    assert_eq!(settled(&mut outbox), [1]);
}

#[test]
fn a_broker_that_takes_less_than_before_gets_an_error_in_the_answer_s_place() {
    let mut outbox = Outbox::default();
    outbox.push_last(1, "a", packet(5_000));
    publish(&mut outbox, WIDE);
    outbox.disconnected(true);
    let (_, sent) = outbox.next(Instant::now(), PublishLimits { packet: 1_000, ..WIDE }).expect("the error");
    assert!(sent.payload.starts_with(br#"{"event":"error","id":"a","code":"too_large""#));
}

#[test]
fn the_seconds_left_are_rounded_up_and_never_zero() {
    let now = Instant::now();
    let wanted = |ms| OutgoingMessage { expires: Some(now + Duration::from_millis(ms)), ..packet(1) };
    assert_eq!(wanted(1_500).expiry(now), Some(2));
    assert_eq!(wanted(0).expiry(now), Some(1));
    assert_eq!(packet(1).expiry(now), None);
}

#[test]
fn status_messages_go_first_in_order_and_are_dropped_with_the_connection() {
    let mut outbox = Outbox::default();
    outbox.push_last(1, "a", packet(1));
    outbox.push_status(OutgoingMessage::word("availability".into(), "online"));
    outbox.push_status(OutgoingMessage::word("info".into(), "{}"));
    assert_eq!(publish(&mut outbox, WIDE), [1, 2, 0]);
    outbox.disconnected(true);
    assert!(!outbox.has_status());
    assert_eq!(publish(&mut outbox, WIDE), [0]);
}

#[test]
fn an_entry_that_ends_every_connection_is_sent_alone_then_as_an_error_and_is_given_up() {
    let mut outbox = Outbox::default();
    (0..3).for_each(|n| _ = outbox.push_last(n, "a", packet(1)));
    let mut sent = Vec::new();
    while !outbox.is_empty() && sent.len() < 50 {
        let error = outbox.pending_answers().next().is_some_and(|one| one.packet.payload.len() > 1);
        sent.push((publish(&mut outbox, WIDE), error));
        outbox.disconnected(true);
    }
    let all = (vec![0, 1, 2], false);
    assert_eq!(sent[..5], [all.clone(), all, (vec![0], false), (vec![0], false), (vec![0], false)]);
    assert!(sent[5].1, "an error has its place: {sent:?}");
    assert_eq!(settled(&mut outbox), [0, 1, 2]);
    assert_eq!(outbox.given_up(), 3);
}

#[test]
fn connections_that_end_for_other_reasons_cost_no_answer() {
    let mut outbox = Outbox::default();
    outbox.push_last(1, "a", packet(1));
    for _ in 0..50 {
        assert_eq!(publish(&mut outbox, WIDE), [0]);
        outbox.disconnected(false);
    }
    assert_eq!(outbox.pending_answers().next().expect("waits").packet, &packet(1));
}

#[test]
fn a_publish_that_the_broker_refuses_is_settled_and_not_delivered() {
    let mut outbox = Outbox::default();
    outbox.push_last(1, "a", packet(1));
    publish(&mut outbox, WIDE);
    outbox.acknowledged(0, false);
    let settled = outbox.take_settled();
    assert!(!settled[0].1.is_delivered && !settled[0].1.payload.is_empty());
}

#[test]
fn a_token_that_is_not_sent_ends_the_stream_of_its_prompt() {
    let mut outbox = Outbox::default();
    outbox.push_token(1, packet(5_000));
    assert!(publish(&mut outbox, PublishLimits { packet: 1_000, ..WIDE }).is_empty());
    outbox.push_token(1, packet(1));
    assert!(outbox.is_empty(), "there would be a hole");
}

#[test]
fn the_neighbour_of_such_an_entry_is_delivered() {
    let mut outbox = Outbox::default();
    (0..2).for_each(|n| _ = outbox.push_last(n, "a", packet(1)));
    (0..2).for_each(|_| {
        publish(&mut outbox, WIDE);
        outbox.disconnected(true);
    });
    assert_eq!(publish(&mut outbox, WIDE), [0]);
    outbox.acknowledged(0, true);
    assert_eq!(publish(&mut outbox, WIDE), [1]);
}
