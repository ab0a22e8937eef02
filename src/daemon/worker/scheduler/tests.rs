//! Steps of the scheduler one by one: panics, suspended requests, and floods.

use super::*;
use crate::config::{Config, Host};
use crate::daemon::ServedOverTcp;
use crate::daemon::home_intent::HomeIntents;
use crate::daemon::model_setup::{self, PlannedModel};
use crate::daemon::queue::Queue;
use crate::daemon::worker::WorkerModel;
use crate::engine::{EngineOptions, ModelFile, Source};
use crate::protocol::{ClientInterface, Event, json};
use crate::telemetry::Telemetry;
use crate::telemetry::sensors::Sensors;
use crate::transport::{Cancel, Inbound, Reply, WhenFull};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// A worker whose answers end at `max_tokens` alone: with greedy decoding its model never generates its end token.
fn worker(parallel: usize) -> (Worker, Engine) {
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
    config.queue.depth = 1100;
    config.guard.clear_ids = true;
    let chosen = model_setup::choose(&config, ServedOverTcp::default(), None);
    let (PlannedModel { mut plan, card, .. }, _) = chosen.expect("the built-in model fits");
    (plan.context, plan.parallel) = (2048, parallel);
    let telemetry = Arc::new(Telemetry::new(0));
    let queue = Arc::new(Queue::new(&config, &plan, Arc::clone(&telemetry)));
    let sensors = Sensors::new(Path::new("tests/data/boards/none"));
    let worker = Worker {
        intents: HomeIntents { home: None, is_built_in: false },
        queue,
        telemetry,
        sensors: Arc::new(Mutex::new(sensors)),
        budget: config.budget,
        disk_bytes: 0,
        model: WorkerModel { settings: config.model, plan, card, unplanned_grammar: None },
    };
    let file = ModelFile::open(&Source::File("tests/data/reference/b158-tiny.i2_s.gguf".into()), None);
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    (worker, file.and_then(|file| file.load(&options)).expect("sound"))
}

/// The events of one request.
struct Events(mpsc::Receiver<Event>);

impl Events {
    /// The last event, once it is there. Nothing follows it.
    fn end(&mut self) -> Option<Event> {
        let end = std::iter::from_fn(|| self.0.try_recv().ok()).find(Event::is_last);
        assert!(end.is_none() || self.0.try_recv().is_err(), "an event behind the last one");
        end
    }

    fn expect_text(&mut self) -> String {
        match self.end() {
            Some(Event::Done(done)) => done.text,
            other => panic!("not done: {other:?}"),
        }
    }

    fn expect_code(&mut self) -> Code {
        match self.end() {
            Some(Event::Error { refusal, .. }) => refusal.code,
            other => panic!("no error: {other:?}"),
        }
    }
}

/// Queues a request of a client.
fn offer(worker: &Worker, client: &str, request: &str) -> Events {
    let (sender, events) = mpsc::channel(4096);
    let (id, client) = ("1".into(), client.to_owned());
    worker.queue.offer(Inbound {
        request: json::request(request.as_bytes()).expect("sound"),
        reply: Reply::new(&id, &sender).expect("a new channel is empty"),
        id,
        interface: ClientInterface::Unix,
        cache_key: client.clone(),
        queue_key: client.clone(),
        limit_key: client.clone(),
        client,
        when_full: WhenFull::Refuse,
        received: Instant::now(),
        cancel: Cancel::default(),
    });
    Events(events)
}

fn steps(scheduler: &mut Scheduler<'_>, count: usize) {
    for _ in 0..count {
        assert!(scheduler.guarded_step().expect("the model's file is unchanged").is_continue());
    }
}

fn is_idle(scheduler: &Scheduler<'_>) -> bool {
    scheduler.suspended.is_empty() && scheduler.active.iter().all(Option::is_none)
}

fn run_to_idle(scheduler: &mut Scheduler<'_>) {
    while !is_idle(scheduler) || scheduler.worker.queue.level().0 > 0 {
        steps(scheduler, 1);
    }
}

/// Steps until a request is answered, so many times at most.
fn assert_ended_within(most: usize, scheduler: &mut Scheduler<'_>, request: &mut Events) {
    for _ in 0..most {
        if !request.0.is_empty() {
            break;
        }
        steps(scheduler, 1);
    }
    request.expect_text();
}

/// Ends all requests, as the daemon's stop does.
fn stop(scheduler: &mut Scheduler<'_>) {
    scheduler.worker.queue.close();
    while scheduler.guarded_step().expect("the model's file is unchanged").is_continue() {}
}

/// Begins the request that waits ahead of others in a slot, and makes it panic at its first token.
fn begin_faulty(scheduler: &mut Scheduler<'_>, slot: usize) {
    let queued = scheduler.worker.queue.try_next_ahead().expect("it waits");
    let mut prepared = scheduler.prepare(queued).expect("the model's file is unchanged").expect("sound");
    prepared.options.script = vec![u32::MAX; 2]; // no such token
    scheduler.begin(slot, prepared);
}

/// Steps until all slots are taken.
fn fill(scheduler: &mut Scheduler<'_>) {
    while scheduler.active.iter().any(Option::is_none) {
        steps(scheduler, 1);
    }
}

/// How many requests of a client were begun so far.
fn begun(worker: &Worker, client: &str) -> u64 {
    let counts = worker.telemetry.waiting.counts();
    counts.iter().find(|count| count.client.as_deref() == Some(client)).map_or(0, |count| count.begun)
}

const LOW: &str = r#"{"prompt":"a story","priority":"low","cache":false,"speculate":false,"max_tokens":60,
    "stream":true}"#;
const NORMAL: &str = r#"{"prompt":"go","cache":false,"speculate":false,"max_tokens":500}"#;
const SHORT: &str = r#"{"prompt":"lamp","cache":false,"max_tokens":2}"#;
const HIGH: &str = r#"{"prompt":"now","priority":"high","cache":false,"max_tokens":2}"#;

#[test]
fn a_panic_fails_what_runs_and_what_is_suspended_or_waits_is_answered() {
    let (worker, engine) = worker(2);
    let mut scheduler = Scheduler::new(&worker, &engine, ThreadCounts::default());
    let mut alone = offer(&worker, "a", LOW);
    run_to_idle(&mut scheduler);
    let expected = alone.expect_text();
    for before in [0, 1, 30] {
        let (mut low, mut beside) = (offer(&worker, "a", LOW), offer(&worker, "a", NORMAL));
        fill(&mut scheduler);
        steps(&mut scheduler, before);
        let mut faulty = offer(&worker, "b", HIGH);
        let slot = scheduler.slot_to_take().expect("the low one");
        scheduler.suspend(slot);
        begin_faulty(&mut scheduler, slot);
        let mut waits = offer(&worker, "c", SHORT);
        run_to_idle(&mut scheduler);
        for failed in [&mut faulty, &mut beside] {
            assert_eq!(failed.expect_code(), Code::Internal);
        }
        assert_eq!(low.expect_text(), expected, "suspended after {before} steps");
        waits.expect_text();
        assert_eq!(worker.queue.level(), (0, 0), "none is left running");
    }
}

#[test]
fn a_suspended_request_that_is_cancelled_after_a_panic_ends_with_what_it_has() {
    let (worker, engine) = worker(1);
    let mut scheduler = Scheduler::new(&worker, &engine, ThreadCounts::default());
    let mut low = offer(&worker, "a", LOW);
    steps(&mut scheduler, 30);
    let mut faulty = offer(&worker, "b", HIGH);
    scheduler.suspend(0);
    begin_faulty(&mut scheduler, 0);
    steps(&mut scheduler, 1);
    assert_eq!((faulty.expect_code(), scheduler.suspended.len()), (Code::Internal, 1));
    scheduler.suspended[0].request.answer.queued.inbound.cancel.raise();
    let mut next = offer(&worker, "c", SHORT);
    run_to_idle(&mut scheduler);
    assert!(!low.expect_text().is_empty());
    next.expect_text();
}

#[test]
fn a_request_that_panics_when_it_goes_on_fails_alone() {
    let (worker, engine) = worker(1);
    let mut scheduler = Scheduler::new(&worker, &engine, ThreadCounts::default());
    let mut faulty = offer(&worker, "a", HIGH);
    begin_faulty(&mut scheduler, 0);
    scheduler.suspend(0);
    let mut other = offer(&worker, "b", HIGH);
    run_to_idle(&mut scheduler);
    assert_eq!(faulty.expect_code(), Code::Internal);
    other.expect_text();
}

#[test]
fn a_flood_of_one_client_keeps_no_other_from_the_next_free_slot() {
    let (worker, engine) = worker(4);
    let mut scheduler = Scheduler::new(&worker, &engine, ThreadCounts::default());
    let ask = |at: usize| {
        // Of different lengths, so that the slots are not free all at once.
        let request = format!(r#"{{"prompt":"go {at}","cache":false,"max_tokens":{}}}"#, 20 + at % 7);
        offer(&worker, "flood", &request)
    };
    let mut flood: Vec<Events> = (0..1000).map(ask).collect();
    steps(&mut scheduler, 30);
    for round in 0..20 {
        let before = begun(&worker, "flood");
        let mut other = offer(&worker, "other", SHORT);
        let mut of_flood = before;
        for step in 0.. {
            assert!(step < 1000, "it is never begun, in round {round}");
            of_flood = begun(&worker, "flood");
            steps(&mut scheduler, 1);
            if begun(&worker, "other") > round {
                break;
            }
        }
        // One, where it was the turn of the flood.
        assert!(of_flood <= before + 1, "{of_flood} after {before} of the flood, in round {round}");
        // Its own prompt and two tokens, and a part of the prompts that begin with it.
        assert_ended_within(8, &mut scheduler, &mut other);
    }
    assert!(worker.queue.level().0 > 500, "the flood is not over");
    stop(&mut scheduler);
    assert!(flood.iter_mut().all(|one| one.end().is_some()));
}

#[test]
fn a_flood_that_is_answered_from_the_cache_lets_another_join_at_once_where_a_slot_is_free() {
    let (worker, engine) = worker(2);
    let mut scheduler = Scheduler::new(&worker, &engine, ThreadCounts::default());
    let cached = r#"{"prompt":"lamp","max_tokens":2}"#;
    let mut first = offer(&worker, "flood", cached);
    run_to_idle(&mut scheduler);
    first.expect_text();
    let mut long = offer(&worker, "flood", NORMAL);
    steps(&mut scheduler, 1);
    let mut flood: Vec<Events> = (0..1000).map(|_| offer(&worker, "flood", cached)).collect();
    let mut other = offer(&worker, "other", SHORT);
    // One step in which the flood may have the first turn and use all the time for preparations, and its own.
    assert_ended_within(6, &mut scheduler, &mut other);
    stop(&mut scheduler);
    assert!(flood.iter_mut().chain([&mut long]).all(|one| one.end().is_some()));
}
