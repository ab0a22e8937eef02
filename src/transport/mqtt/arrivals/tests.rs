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
        Verdict::Duplicate => panic!("not new"),
    }
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
    let mut arrivals = Arrivals::default();
    let first = serial(arrivals.arrive(&NAMED, now));
    assert!(acks(&mut arrivals).is_empty());
    arrivals.settled(first, now);
    assert_eq!(acks(&mut arrivals), [1]);
}

#[test]
fn acknowledgements_keep_the_order_of_arrival() {
    let now = Instant::now();
    let mut arrivals = Arrivals::default();
    let one = serial(arrivals.arrive(&NAMED, now));
    let two = serial(arrivals.arrive(&Arrival { packet: Some(2), id: Some("b"), ..PLAIN }, now));
    arrivals.pass(Some(3));
    arrivals.settled(two, now);
    assert!(acks(&mut arrivals).is_empty());
    arrivals.settled(one, now);
    assert_eq!(acks(&mut arrivals), [1, 2, 3]);
}

#[test]
fn a_copy_of_a_running_prompt_is_acknowledged_with_it() {
    let now = Instant::now();
    let mut arrivals = Arrivals::default();
    let first = serial(arrivals.arrive(&NAMED, now));
    let copy = Arrival { packet: Some(2), ..NAMED };
    assert_eq!(arrivals.arrive(&copy, now), Verdict::Duplicate);
    assert!(acks(&mut arrivals).is_empty());
    arrivals.settled(first, now);
    assert_eq!(acks(&mut arrivals), [1, 2]);
    assert_eq!(arrivals.duplicates(), 1);
}

#[test]
fn a_redelivery_takes_over_the_acknowledgement() {
    let now = Instant::now();
    let mut arrivals = Arrivals::default();
    let first = serial(arrivals.arrive(&NAMED, now));
    arrivals.disconnected();
    let again = Arrival { redelivered: true, ..NAMED };
    assert_eq!(arrivals.arrive(&again, now), Verdict::Duplicate);
    arrivals.settled(first, now);
    assert_eq!(acks(&mut arrivals), [1]);
}

#[test]
fn nothing_of_an_earlier_connection_is_acknowledged() {
    let now = Instant::now();
    let mut arrivals = Arrivals::default();
    let first = serial(arrivals.arrive(&NAMED, now));
    arrivals.disconnected();
    arrivals.settled(first, now);
    assert!(acks(&mut arrivals).is_empty());
}

#[test]
fn a_copy_of_an_answered_prompt_is_acknowledged_at_once() {
    let now = Instant::now();
    let mut arrivals = Arrivals::default();
    let first = serial(arrivals.arrive(&NAMED, now));
    arrivals.settled(first, now);
    acks(&mut arrivals);
    let copy = Arrival { packet: Some(9), ..NAMED };
    assert_eq!(arrivals.arrive(&copy, now), Verdict::Duplicate);
    assert_eq!(acks(&mut arrivals), [9]);
}

#[test]
fn a_refused_prompt_may_be_asked_again_but_its_redelivery_is_the_same() {
    let now = Instant::now();
    let mut arrivals = Arrivals::default();
    let first = serial(arrivals.arrive(&NAMED, now));
    arrivals.refused(first);
    arrivals.settled(first, now);
    let redelivery = Arrival { redelivered: true, ..NAMED };
    assert_eq!(arrivals.arrive(&redelivery, now), Verdict::Duplicate);
    serial(arrivals.arrive(&NAMED, now));
}

#[test]
fn the_same_id_of_another_client_is_another_prompt() {
    let now = Instant::now();
    let mut arrivals = Arrivals::default();
    arrivals.arrive(&NAMED, now);
    serial(arrivals.arrive(&Arrival { client: "hall", ..NAMED }, now));
}

#[test]
fn correlation_data_names_a_prompt_without_an_id() {
    let now = Instant::now();
    let mut arrivals = Arrivals::default();
    let first = Arrival { correlation: Some(b"\0x"), ..PLAIN };
    serial(arrivals.arrive(&first, now));
    let copy = Arrival { packet: Some(2), ..first };
    assert_eq!(arrivals.arrive(&copy, now), Verdict::Duplicate);
    serial(arrivals.arrive(&Arrival { correlation: Some(b"y"), ..copy }, now));
}

#[test]
fn a_text_sent_twice_on_purpose_is_answered_twice() {
    let now = Instant::now();
    let mut arrivals = Arrivals::default();
    let first = serial(arrivals.arrive(&PLAIN, now));
    arrivals.settled(first, now);
    serial(arrivals.arrive(&PLAIN, now));
}

#[test]
fn a_redelivered_text_without_any_name_is_recognised() {
    let now = Instant::now();
    let mut arrivals = Arrivals::default();
    let first = serial(arrivals.arrive(&PLAIN, now));
    arrivals.disconnected();
    let again = Arrival { redelivered: true, ..PLAIN };
    assert_eq!(arrivals.arrive(&again, now), Verdict::Duplicate);
    arrivals.settled(first, now);
    arrivals.disconnected();
    assert_eq!(arrivals.arrive(&again, now), Verdict::Duplicate);
}

#[test]
fn a_redelivered_text_under_a_used_packet_id_is_new() {
    let now = Instant::now();
    let mut arrivals = Arrivals::default();
    let first = serial(arrivals.arrive(&PLAIN, now));
    arrivals.settled(first, now);
    let other = Arrival { redelivered: true, payload: b"good night", ..PLAIN };
    serial(arrivals.arrive(&other, now));
}

#[test]
fn packet_ids_of_a_lost_session_mean_nothing() {
    let now = Instant::now();
    let mut arrivals = Arrivals::default();
    let first = serial(arrivals.arrive(&PLAIN, now));
    arrivals.settled(first, now);
    arrivals.session_lost();
    serial(arrivals.arrive(&Arrival { redelivered: true, ..PLAIN }, now));
}

#[test]
fn an_id_used_again_later_is_a_new_prompt_unless_the_broker_repeats_it() {
    let now = Instant::now();
    let later = now + RECENT;
    let mut arrivals = Arrivals::default();
    let first = serial(arrivals.arrive(&NAMED, now));
    arrivals.settled(first, now);
    let again = Arrival { redelivered: true, ..NAMED };
    assert_eq!(arrivals.arrive(&again, later), Verdict::Duplicate);
    serial(arrivals.arrive(&NAMED, later));
}

#[test]
fn a_prompt_at_qos_0_is_never_acknowledged_but_answered_once() {
    let now = Instant::now();
    let mut arrivals = Arrivals::default();
    let unsure = Arrival { packet: None, ..NAMED };
    let first = serial(arrivals.arrive(&unsure, now));
    assert_eq!(arrivals.arrive(&unsure, now), Verdict::Duplicate);
    arrivals.settled(first, now);
    assert!(acks(&mut arrivals).is_empty());
}

#[test]
fn memory_of_answered_prompts_is_bounded() {
    let now = Instant::now();
    let mut arrivals = Arrivals::default();
    for n in 0..10_000_u32 {
        let id = n.to_string();
        let one = serial(arrivals.arrive(&Arrival { id: Some(&id), ..PLAIN }, now));
        arrivals.settled(one, now);
        arrivals.acknowledged();
    }
    assert_eq!(arrivals.recent.len(), REMEMBERED);
    assert!(arrivals.running.is_empty() && arrivals.unacknowledged.is_empty());
}
