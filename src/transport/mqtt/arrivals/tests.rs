//! What comes, in any order, and what is said of it.

use super::*;

const PLAIN: Arrival = Arrival {
    packet: Some(1),
    redelivered: false,
    client: "-",
    id: None,
    correlation: None,
    payload: b"hello",
};

const NAMED: Arrival = Arrival { id: Some("a"), ..PLAIN };

fn serial(verdict: Verdict) -> Serial {
    match verdict {
        Verdict::New(serial) => serial,
        other => panic!("not new but {other:?}"),
    }
}

/// What a prompt that was answered before gets now, and under which number.
fn again(verdict: Verdict) -> (Serial, Given) {
    match verdict {
        Verdict::Again(serial, given) => (serial, given),
        other => panic!("not again but {other:?}"),
    }
}

fn arrivals() -> Arrivals {
    Arrivals::new(1)
}

fn outcome(number: u64) -> Outcome {
    Outcome { number, id: "a".into(), payload: b"{}".to_vec(), is_delivered: true }
}

/// The broker has the answer, whose row has the number of the prompt.
fn settle(arrivals: &mut Arrivals, serial: Serial, now: Instant) {
    arrivals.settled(serial, outcome(serial), now);
}

/// Every acknowledgement that is due, taken.
fn acks(arrivals: &mut Arrivals) -> Vec<u16> {
    let mut all = Vec::new();
    while let Some(packet) = arrivals.next_ack() {
        arrivals.acknowledged();
        all.push(packet);
    }
    all
}

#[test]
fn a_prompt_is_acknowledged_only_when_it_is_settled() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&NAMED, now));
    assert!(acks(&mut arrivals).is_empty());
    settle(&mut arrivals, first, now);
    assert_eq!(acks(&mut arrivals), [1]);
}

#[test]
fn acknowledgements_keep_the_order_of_arrival() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let one = serial(arrivals.arrive(&NAMED, now));
    let two = serial(arrivals.arrive(&Arrival { packet: Some(2), id: Some("b"), ..PLAIN }, now));
    arrivals.pass(Some(3));
    settle(&mut arrivals, two, now);
    assert!(acks(&mut arrivals).is_empty());
    settle(&mut arrivals, one, now);
    assert_eq!(acks(&mut arrivals), [1, 2, 3]);
}

#[test]
fn a_copy_of_a_running_prompt_is_acknowledged_with_it() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&NAMED, now));
    let copy = Arrival { packet: Some(2), ..NAMED };
    assert_eq!(arrivals.arrive(&copy, now), Verdict::Duplicate);
    assert!(acks(&mut arrivals).is_empty());
    settle(&mut arrivals, first, now);
    assert_eq!(acks(&mut arrivals), [1, 2]);
    assert_eq!(arrivals.duplicates(), 1);
}

#[test]
fn a_redelivery_takes_over_the_acknowledgement() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&NAMED, now));
    arrivals.disconnected();
    let again = Arrival { redelivered: true, ..NAMED };
    assert_eq!(arrivals.arrive(&again, now), Verdict::Duplicate);
    settle(&mut arrivals, first, now);
    assert_eq!(acks(&mut arrivals), [1]);
}

#[test]
fn nothing_of_an_earlier_connection_is_acknowledged() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&NAMED, now));
    arrivals.disconnected();
    settle(&mut arrivals, first, now);
    assert!(acks(&mut arrivals).is_empty());
}

#[test]
fn a_prompt_that_is_left_is_never_acknowledged_nor_what_came_after_it() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let one = serial(arrivals.arrive(&NAMED, now));
    let left = serial(arrivals.arrive(&Arrival { packet: Some(2), id: Some("b"), ..PLAIN }, now));
    let three = serial(arrivals.arrive(&Arrival { packet: Some(3), id: Some("c"), ..PLAIN }, now));
    assert!(arrivals.leave(left));
    settle(&mut arrivals, three, now);
    settle(&mut arrivals, one, now);
    assert_eq!(acks(&mut arrivals), [1]);
    assert!(arrivals.has_left());
    arrivals.disconnected();
    assert!(!arrivals.has_left());
    let again = Arrival { packet: Some(2), redelivered: true, id: Some("b"), ..PLAIN };
    serial(arrivals.arrive(&again, now));
}

#[test]
fn a_prompt_that_nobody_delivers_again_cannot_be_left() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let unsure = serial(arrivals.arrive(&Arrival { packet: None, ..NAMED }, now));
    assert!(!arrivals.leave(unsure));
}

#[test]
fn a_copy_of_an_answered_prompt_is_acknowledged_at_once() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&NAMED, now));
    settle(&mut arrivals, first, now);
    acks(&mut arrivals);
    let copy = Arrival { packet: Some(9), ..NAMED };
    assert_eq!(arrivals.arrive(&copy, now), Verdict::Duplicate);
    assert_eq!(acks(&mut arrivals), [9]);
}

#[test]
fn a_refused_prompt_may_be_asked_again_but_its_redelivery_is_the_same() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&NAMED, now));
    arrivals.refused(first);
    settle(&mut arrivals, first, now);
    let redelivery = Arrival { redelivered: true, ..NAMED };
    assert_eq!(arrivals.arrive(&redelivery, now), Verdict::Duplicate);
    serial(arrivals.arrive(&NAMED, now));
}

#[test]
fn the_same_id_of_another_client_is_another_prompt() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    arrivals.arrive(&NAMED, now);
    serial(arrivals.arrive(&Arrival { client: "hall", ..NAMED }, now));
}

#[test]
fn correlation_data_names_a_prompt_without_an_id() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = Arrival { correlation: Some(b"\0x"), ..PLAIN };
    serial(arrivals.arrive(&first, now));
    let copy = Arrival { packet: Some(2), ..first };
    assert_eq!(arrivals.arrive(&copy, now), Verdict::Duplicate);
    serial(arrivals.arrive(&Arrival { correlation: Some(b"y"), ..copy }, now));
}

#[test]
fn a_text_sent_twice_on_purpose_is_answered_twice() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&PLAIN, now));
    settle(&mut arrivals, first, now);
    serial(arrivals.arrive(&PLAIN, now));
}

#[test]
fn a_redelivered_text_without_any_name_is_recognised() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&PLAIN, now));
    arrivals.disconnected();
    let again = Arrival { redelivered: true, ..PLAIN };
    assert_eq!(arrivals.arrive(&again, now), Verdict::Duplicate);
    settle(&mut arrivals, first, now);
    assert_eq!(arrivals.arrive(&again, now), Verdict::Duplicate);
}

#[test]
fn a_redelivery_on_a_later_connection_gets_the_same_answer_again() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&PLAIN, now));
    settle(&mut arrivals, first, now);
    arrivals.disconnected();
    let redelivery = Arrival { redelivered: true, ..PLAIN };
    let (second, given) = again(arrivals.arrive(&redelivery, now));
    assert_eq!((given.number, given.payload.as_slice()), (first, b"{}".as_slice()));
    assert!(arrivals.durable(second).is_none(), "it was kept before");
    assert!(acks(&mut arrivals).is_empty(), "it is still to reach the broker");
    assert_eq!(arrivals.arrive(&redelivery, now), Verdict::Duplicate, "it is under way");
    settle(&mut arrivals, second, now);
    assert_eq!(acks(&mut arrivals), [1, 1]);
    assert_eq!(arrivals.arrive(&redelivery, now), Verdict::Duplicate);
    assert_eq!(arrivals.answered(now).count(), 1);
}

#[test]
fn a_refusal_that_is_given_again_is_still_not_known_by_its_name() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&NAMED, now));
    arrivals.refused(first);
    settle(&mut arrivals, first, now);
    arrivals.disconnected();
    let (second, _) = again(arrivals.arrive(&Arrival { redelivered: true, ..NAMED }, now));
    settle(&mut arrivals, second, now);
    serial(arrivals.arrive(&NAMED, now));
}

#[test]
fn the_same_id_with_another_text_is_another_prompt() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&NAMED, now));
    settle(&mut arrivals, first, now);
    serial(arrivals.arrive(&Arrival { payload: b"good night", ..NAMED }, now));
}

#[test]
fn an_answer_that_was_not_delivered_in_time_is_given_to_a_copy() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&NAMED, now));
    arrivals.settled(first, Outcome { is_delivered: false, ..outcome(first) }, now);
    again(arrivals.arrive(&NAMED, now));
}

#[test]
fn only_what_comes_again_is_worth_keeping() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let sure = serial(arrivals.arrive(&NAMED, now));
    let unsure = serial(arrivals.arrive(&Arrival { packet: None, id: Some("b"), ..NAMED }, now));
    assert!(arrivals.durable(sure).is_some() && arrivals.durable(unsure).is_none());
}

#[test]
fn keys_mean_the_same_in_another_process() {
    let now = Instant::now();
    let mut first = arrivals();
    let one = serial(first.arrive(&NAMED, now));
    let keys = first.durable(one).expect("at QoS 1");
    let mut second = arrivals();
    let resumed = second.resume(keys);
    assert_eq!(second.arrive(&Arrival { redelivered: true, ..NAMED }, now), Verdict::Duplicate);
    settle(&mut second, resumed, now);
    assert_eq!(acks(&mut second), [1]);
}

#[test]
fn a_redelivered_text_under_a_used_packet_id_is_new() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&PLAIN, now));
    settle(&mut arrivals, first, now);
    let other = Arrival { redelivered: true, payload: b"good night", ..PLAIN };
    serial(arrivals.arrive(&other, now));
}

#[test]
fn packet_ids_of_a_lost_session_mean_nothing() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&PLAIN, now));
    settle(&mut arrivals, first, now);
    arrivals.set_session(2);
    serial(arrivals.arrive(&Arrival { redelivered: true, ..PLAIN }, now));
}

#[test]
fn an_id_used_again_later_is_a_new_prompt_unless_the_broker_repeats_it() {
    let now = Instant::now();
    let later = now + Duration::from_secs(600);
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&NAMED, now));
    settle(&mut arrivals, first, now);
    let again = Arrival { redelivered: true, ..NAMED };
    assert_eq!(arrivals.arrive(&again, later), Verdict::Duplicate);
    serial(arrivals.arrive(&NAMED, later));
}

#[test]
fn a_prompt_at_qos_0_is_never_acknowledged_but_answered_once() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let unsure = Arrival { packet: None, ..NAMED };
    let first = serial(arrivals.arrive(&unsure, now));
    assert_eq!(arrivals.arrive(&unsure, now), Verdict::Duplicate);
    settle(&mut arrivals, first, now);
    assert!(acks(&mut arrivals).is_empty());
}

#[test]
fn a_copy_at_qos_1_makes_a_prompt_at_qos_0_outlive_us() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let first = serial(arrivals.arrive(&Arrival { packet: None, ..NAMED }, now));
    assert!(arrivals.durable(first).is_none());
    assert_eq!(arrivals.arrive(&NAMED, now), Verdict::Duplicate);
    assert!(arrivals.durable(first).is_some());
    assert!(arrivals.leave(first), "the broker delivers the copy again");
}

#[test]
fn the_same_text_for_another_asker_under_a_used_packet_id_is_new() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    let asked = |data: &'static [u8]| Arrival { correlation: Some(data), ..PLAIN };
    let first = serial(arrivals.arrive(&asked(b"A"), now));
    settle(&mut arrivals, first, now);
    arrivals.disconnected();
    serial(arrivals.arrive(&Arrival { redelivered: true, ..asked(b"B") }, now));
}

#[test]
fn memory_of_answered_prompts_is_bounded() {
    let now = Instant::now();
    let mut arrivals = arrivals();
    for n in 0..2_000_u32 {
        let id = n.to_string();
        let one = serial(arrivals.arrive(&Arrival { id: Some(&id), ..PLAIN }, now));
        settle(&mut arrivals, one, now);
        arrivals.acknowledged();
    }
    assert_eq!(arrivals.answered(now).count(), 512);
    assert!(arrivals.running.is_empty() && arrivals.unacknowledged.is_empty());
}
