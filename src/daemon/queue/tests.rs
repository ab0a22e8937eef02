//! What the telemetry says of the requests that wait and run, at any moment.

use super::*;
use crate::config::Host;
use crate::daemon::{ServedOverTcp, plan};
use crate::protocol::{ClientInterface, Code, Event, Priority, Report, json};
use crate::transport::{Cancel, Reply, WhenFull};
use std::path::PathBuf;
use std::time::SystemTime;
use tokio::sync::mpsc;

/// A queue with a place for two requests.
fn queue(telemetry: &Arc<Telemetry>) -> Queue {
    let host = Host {
        name: "cellar".into(),
        memory_bytes: 1 << 30,
        processors: 1,
        big: vec![],
        runtime_dir: PathBuf::new(),
        cache_dir: PathBuf::new(),
        state_dir: PathBuf::new(),
        credentials_dir: None,
    };
    let mut config = Config::defaults(&host);
    config.queue.depth = 2;
    config.guard.clear_ids = true;
    let (_, plan) = plan(&config, ServedOverTcp::default(), None).expect("the built-in model fits");
    Queue::new(&config, &plan, Arc::clone(telemetry))
}

/// Offers a request of `client`, and returns its cancel flag.
fn offer(queue: &Queue, client: &str, priority: Priority, events: &mpsc::Sender<Event>) -> Cancel {
    let mut request = json::request(br#"{"prompt":"a"}"#).expect("sound");
    request.priority = priority;
    let cancel = Cancel::default();
    queue.offer(Inbound {
        request,
        id: "a".into(),
        interface: ClientInterface::Unix,
        client: client.into(),
        cache_key: client.into(),
        queue_key: client.into(),
        limit_key: client.into(),
        when_full: WhenFull::Refuse,
        received: Instant::now(),
        reply: Reply::new(&"a".into(), events).expect("the channel has space"),
        cancel: cancel.clone(),
    });
    cancel
}

/// How many requests wait and run, and how many of each of these clients wait.
fn counts(telemetry: &Telemetry, clients: [&str; 2]) -> ((u64, u64), [u64; 2]) {
    let Report { requests, waiting, .. } = telemetry.report(SystemTime::UNIX_EPOCH);
    let of = |client: &str| {
        waiting.iter().find(|row| row.client.as_deref() == Some(client)).map_or(0, |row| row.waiting)
    };
    ((requests.queued, requests.running), clients.map(of))
}

#[test]
fn a_report_has_the_requests_of_this_moment_although_nothing_was_sampled() {
    let telemetry = Arc::new(Telemetry::new(0));
    let queue = queue(&telemetry);
    let (events, _receiver) = mpsc::channel(16);
    let now = || counts(&telemetry, ["a", "b"]);
    assert_eq!(now(), ((0, 0), [0, 0]));
    offer(&queue, "a", Priority::Normal, &events);
    offer(&queue, "a", Priority::Low, &events);
    let cancel = offer(&queue, "b", Priority::Low, &events);
    assert_eq!(now(), ((3, 0), [2, 1]), "one more than its depth, since the worker is idle");
    let first = queue.try_next().expect("one waits");
    assert_eq!(now(), ((2, 1), [1, 1]));
    cancel.raise();
    queue.sweep(Instant::now());
    assert_eq!(now(), ((1, 1), [1, 0]));
    offer(&queue, "b", Priority::High, &events);
    let ahead = queue.try_next_ahead().expect("one of high priority waits");
    assert_eq!((ahead.inbound.client.as_str(), now()), ("b", ((1, 2), [1, 0])));
    drop((first, ahead));
    assert_eq!(now(), ((1, 0), [1, 0]));
    queue.close();
    assert_eq!(now(), ((0, 0), [0, 0]));
}

#[test]
fn a_request_that_is_refused_does_not_wait_nor_does_the_one_whose_place_another_takes() {
    let telemetry = Arc::new(Telemetry::new(0));
    let queue = queue(&telemetry);
    let (events, mut receiver) = mpsc::channel(16);
    (0..3).for_each(|_| drop(offer(&queue, "a", Priority::Normal, &events)));
    offer(&queue, "a", Priority::Normal, &events);
    let mut refusal = || match receiver.try_recv() {
        Ok(Event::Error { refusal, .. }) => Some(refusal.code),
        _ => None,
    };
    assert_eq!((refusal(), refusal()), (Some(Code::QueueFull), None));
    assert_eq!(counts(&telemetry, ["a", "b"]), ((3, 0), [3, 0]));
    // All places are taken, by more than the share of one client.
    offer(&queue, "b", Priority::Normal, &events);
    assert_eq!((refusal(), refusal()), (Some(Code::QueueFull), None));
    assert_eq!(counts(&telemetry, ["a", "b"]), ((3, 0), [2, 1]));
}
