//! What comes, in any order, and what is made of it.

use super::*;

const PLAIN: Delivery = Delivery {
    packet: Some(1),
    redelivered: false,
    topic: b"bitnetd/cellar/prompt",
    client: "-",
    id: None,
    response_topic: None,
    correlation: None,
    payload: b"hello",
};

const NAMED: Delivery = Delivery { id: Some("a"), ..PLAIN };

fn dedup() -> Deduplicator {
    Deduplicator::new(1, 0)
}

/// The number of a prompt that is new.
fn new(dedup: &mut Deduplicator, delivery: &Delivery) -> PromptId {
    match dedup.receive(delivery) {
        Verdict::New(prompt) => prompt,
        Verdict::Duplicate => panic!("not new"),
    }
}

fn again<'a>(delivery: &Delivery<'a>) -> Delivery<'a> {
    Delivery { redelivered: true, ..*delivery }
}

fn outcome(number: u64) -> DeliveryOutcome {
    DeliveryOutcome { number, id: "a".into(), payload: b"{}".to_vec(), is_delivered: true }
}

/// The broker has the answer, whose number is that of the prompt.
fn settle(dedup: &mut Deduplicator, prompt: PromptId) {
    dedup.settle(prompt, outcome(prompt), Instant::now());
}

fn stored(dedup: &mut Deduplicator, prompt: PromptId) -> Option<u64> {
    dedup.stored_answer(prompt, Instant::now()).map(|answer| answer.number)
}

/// Every acknowledgement that is due, taken.
fn acks(dedup: &mut Deduplicator) -> Vec<u16> {
    let mut all = Vec::new();
    while let Some(packet) = dedup.next_ack() {
        dedup.acknowledged();
        all.push(packet);
    }
    all
}

#[test]
fn a_prompt_is_acknowledged_only_when_it_is_settled() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &NAMED);
    assert!(acks(&mut dedup).is_empty());
    settle(&mut dedup, first);
    assert_eq!(acks(&mut dedup), [1]);
}

#[test]
fn acknowledgements_keep_the_order_of_arrival() {
    let mut dedup = dedup();
    let one = new(&mut dedup, &NAMED);
    let two = new(&mut dedup, &Delivery { packet: Some(2), id: Some("b"), ..PLAIN });
    dedup.ack_only(Some(3));
    settle(&mut dedup, two);
    assert!(acks(&mut dedup).is_empty());
    settle(&mut dedup, one);
    assert_eq!(acks(&mut dedup), [1, 2, 3]);
}

#[test]
fn the_same_message_without_the_dup_flag_is_a_prompt_of_its_own() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &NAMED);
    let second = new(&mut dedup, &Delivery { packet: Some(2), ..NAMED });
    settle(&mut dedup, first);
    settle(&mut dedup, second);
    assert_eq!(acks(&mut dedup), [1, 2]);
    assert_eq!(dedup.duplicates(), 0);
}

#[test]
fn what_a_client_sends_again_gets_the_stored_answer() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &NAMED);
    settle(&mut dedup, first);
    for packet in 2..5 {
        let copy = new(&mut dedup, &Delivery { packet: Some(packet), ..NAMED });
        assert_eq!(stored(&mut dedup, copy), Some(first), "copy {packet}");
        settle(&mut dedup, copy);
    }
}

#[test]
fn a_prompt_of_the_same_name_as_an_open_one_waits_for_its_answer() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &NAMED);
    let second = new(&mut dedup, &Delivery { packet: Some(2), ..NAMED });
    let other = new(&mut dedup, &Delivery { packet: Some(3), ..PLAIN });
    let leaders = [first, second, other].map(|prompt| dedup.leader(prompt));
    assert_eq!(leaders, [None, Some(first), None]);
    settle(&mut dedup, first);
    assert_eq!((dedup.leader(second), stored(&mut dedup, second)), (None, Some(first)));
}

#[test]
fn without_id_and_correlation_data_each_prompt_is_computed() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &PLAIN);
    settle(&mut dedup, first);
    let second = new(&mut dedup, &Delivery { packet: Some(2), ..PLAIN });
    assert_eq!(stored(&mut dedup, second), None);
    let data = Delivery { packet: Some(3), correlation: Some(b"\0x"), ..PLAIN };
    let third = new(&mut dedup, &data);
    settle(&mut dedup, third);
    let fourth = new(&mut dedup, &Delivery { packet: Some(4), ..data });
    assert_eq!(stored(&mut dedup, fourth), Some(third));
}

#[test]
fn another_text_topic_or_reply_route_is_another_prompt() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &NAMED);
    settle(&mut dedup, first);
    for other in [
        Delivery { topic: b"bitnetd/cellar/prompt/hall", ..NAMED },
        Delivery { client: "hall", ..NAMED },
        Delivery { payload: b"hullo", ..NAMED },
        Delivery { id: Some("b"), ..NAMED },
        Delivery { response_topic: Some("home/b"), ..NAMED },
        Delivery { correlation: Some(b""), ..NAMED },
    ] {
        let prompt = new(&mut dedup, &other);
        assert_eq!(stored(&mut dedup, prompt), None, "{other:?}");
        dedup.drop_prompt(prompt);
        // The id is part of the payload, which a redelivery repeats.
        if other.id == NAMED.id {
            assert!(matches!(dedup.receive(&again(&other)), Verdict::New(_)), "no redelivery: {other:?}");
        }
    }
}

#[test]
fn a_redelivery_takes_over_the_acknowledgement() {
    for delivery in [NAMED, PLAIN] {
        let mut dedup = dedup();
        let first = new(&mut dedup, &delivery);
        dedup.disconnected(false);
        assert_eq!(dedup.receive(&again(&delivery)), Verdict::Duplicate);
        assert!(acks(&mut dedup).is_empty());
        settle(&mut dedup, first);
        assert_eq!((acks(&mut dedup), dedup.duplicates()), (vec![1], 1));
    }
}

#[test]
fn nothing_of_an_earlier_connection_is_acknowledged() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &NAMED);
    dedup.disconnected(false);
    settle(&mut dedup, first);
    assert!(acks(&mut dedup).is_empty());
}

#[test]
fn a_redelivery_after_our_own_disconnect_is_not_answered_again() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &NAMED);
    settle(&mut dedup, first);
    dedup.disconnected(true);
    assert_eq!(dedup.receive(&again(&NAMED)), Verdict::Duplicate);
    assert_eq!(acks(&mut dedup), [1]);
}

#[test]
fn after_a_connection_that_broke_the_broker_may_have_lost_the_answer() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &PLAIN);
    settle(&mut dedup, first);
    dedup.disconnected(false);
    let copy = new(&mut dedup, &again(&PLAIN));
    assert_eq!(stored(&mut dedup, copy), Some(first));
    settle(&mut dedup, copy);
    assert_eq!(dedup.receive(&again(&PLAIN)), Verdict::Duplicate, "on this connection it arrived");
}

#[test]
fn a_redelivery_is_known_after_thousands_of_other_answers() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &NAMED);
    settle(&mut dedup, first);
    for number in 2..4_000_u16 {
        let text = number.to_string();
        let other = new(&mut dedup, &Delivery { packet: Some(number), id: Some(&text), ..PLAIN });
        settle(&mut dedup, other);
    }
    dedup.disconnected(false);
    assert_eq!(dedup.receive(&again(&NAMED)), Verdict::Duplicate, "its answer is no longer stored");
    assert_eq!(acks(&mut dedup), [1]);
}

#[test]
fn a_packet_identifier_that_is_used_again_is_another_message() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &PLAIN);
    settle(&mut dedup, first);
    let second = new(&mut dedup, &PLAIN);
    assert_ne!(first, second);
    assert_eq!(dedup.receive(&again(&PLAIN)), Verdict::Duplicate);
    settle(&mut dedup, second);
    assert_eq!(acks(&mut dedup), [1, 1, 1]);
}

#[test]
fn packet_identifiers_of_a_session_that_is_gone_mean_nothing() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &PLAIN);
    settle(&mut dedup, first);
    dedup.disconnected(false);
    dedup.set_session(2);
    assert!(matches!(dedup.receive(&again(&PLAIN)), Verdict::New(_)));
}

#[test]
fn a_prompt_that_is_on_disk_is_acknowledged_before_its_answer() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &NAMED);
    let second = new(&mut dedup, &Delivery { packet: Some(2), id: Some("b"), ..PLAIN });
    assert_eq!((dedup.awaiting_answer(), dedup.unsaved().len()), (2, 2));
    dedup.mark_writing(first);
    assert_eq!(dedup.unsaved().iter().map(|(prompt, _)| *prompt).collect::<Vec<_>>(), [second]);
    dedup.mark_saved(first);
    assert_eq!(acks(&mut dedup), [1]);
    assert_eq!(dedup.saved_prompts().map(|(prompt, _)| prompt).collect::<Vec<_>>(), [first]);
    dedup.disconnected(false);
    assert_eq!(dedup.receive(&again(&NAMED)), Verdict::Duplicate);
    assert_eq!(acks(&mut dedup), [1], "at once, however long its answer takes");
}

#[test]
fn what_did_not_get_to_the_disk_waits_for_its_answer() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &NAMED);
    dedup.mark_writing(first);
    dedup.mark_unsaved();
    assert_eq!(dedup.unsaved().len(), 1);
    assert!(acks(&mut dedup).is_empty() && dedup.saved_prompts().next().is_none());
}

#[test]
fn a_prompt_that_is_postponed_is_never_acknowledged_nor_what_came_after_it() {
    let mut dedup = dedup();
    let one = new(&mut dedup, &NAMED);
    let postponed = Delivery { packet: Some(2), id: Some("b"), ..PLAIN };
    let two = new(&mut dedup, &postponed);
    let three = new(&mut dedup, &Delivery { packet: Some(3), id: Some("c"), ..PLAIN });
    assert!(dedup.defer(two) && dedup.has_deferred());
    settle(&mut dedup, three);
    settle(&mut dedup, one);
    assert_eq!(acks(&mut dedup), [1]);
    dedup.disconnected(true);
    assert!(matches!(dedup.receive(&again(&postponed)), Verdict::New(_)), "now it is answered");
}

#[test]
fn a_prompt_on_disk_is_postponed_to_the_next_process_and_acknowledged() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &NAMED);
    dedup.mark_saved(first);
    assert!(dedup.defer(first) && !dedup.has_deferred());
    assert_eq!(acks(&mut dedup), [1]);
}

#[test]
fn a_prompt_that_is_postponed_to_the_next_process_is_in_a_file_that_is_written_anew() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &NAMED);
    dedup.mark_saved(first);
    assert!(dedup.defer(first));
    assert_eq!(dedup.saved_prompts().map(|(prompt, _)| prompt).collect::<Vec<_>>(), [first]);
}

#[test]
fn a_prompt_whose_file_is_gone_is_not_postponed_until_it_is_on_disk_again() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &NAMED);
    dedup.mark_saved(first);
    assert_eq!(acks(&mut dedup), [1]);
    dedup.mark_lost();
    assert!(dedup.is_lost(first) && !dedup.is_saved(first) && !dedup.defer(first));
    assert_eq!(dedup.saved_prompts().map(|(prompt, _)| prompt).collect::<Vec<_>>(), [first]);
    assert!(dedup.unsaved().is_empty(), "what waits unacknowledged is left to the broker");
    dedup.mark_rewritten();
    assert!(dedup.lost_prompts().is_empty() && dedup.defer(first));
}

#[test]
fn at_qos_0_nothing_is_postponed_saved_or_outlives_the_process() {
    let mut dedup = dedup();
    let unsure = new(&mut dedup, &Delivery { packet: None, ..NAMED });
    assert!(!dedup.defer(unsure) && dedup.durable_keys(unsure).is_none() && dedup.unsaved().is_empty());
    dedup.drop_prompt(unsure);
    assert_eq!(dedup.receive(&again(&NAMED)), Verdict::New(unsure + 1));
}

#[test]
fn a_refused_request_is_tried_again_and_its_redelivery_is_not() {
    let mut dedup = dedup();
    let first = new(&mut dedup, &NAMED);
    dedup.mark_refused(first);
    settle(&mut dedup, first);
    let second = new(&mut dedup, &Delivery { packet: Some(2), ..NAMED });
    assert_eq!(stored(&mut dedup, second), None);
    assert_eq!(dedup.receive(&again(&NAMED)), Verdict::Duplicate);
}

#[test]
fn prompts_of_an_earlier_process_keep_their_numbers() {
    let mut dedup = dedup();
    let keys = DedupKeys { name: None, delivery: Some(7) };
    dedup.resume(40, keys, true);
    assert!(dedup.is_open(keys) && dedup.is_saved(40));
    assert_eq!(new(&mut dedup, &NAMED), 41);
    assert!(dedup.settle(40, outcome(1), Instant::now()), "it is on disk, and to be marked as done there");
}
