//! Prompts between the broker and the worker: a message becomes an [`Inbound`], its events come
//! back here and find their topic.
//!
//! Knows nothing of the broker link: a prompt runs on while the link is down.

use super::client::Message;
use super::outbox::{Packet, Serial};
use super::topics::Topics;
use crate::protocol::{Code, Event, FinishReason, Refusal, Request};
use crate::transport::{Cancel, Inbound, Reply, WhenFull};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Events of one prompt between worker and door: some seconds of tokens. The worker cancels a
/// prompt whose channel is full, and only a door that hangs lets it fill up.
const EVENTS: usize = 256;
/// A reply expires with its prompt, but not before the client had a moment to fetch it: an answer
/// that the deadline cut off comes just after it.
const MOMENT: Duration = Duration::from_secs(5);

/// Most Correlation Data, in bytes: it is kept with the prompt and repeated in every event.
const LONGEST_CORRELATION: usize = 1024;

/// Most prompts that wait at the door itself. A broker delivers again after a reconnect whatever it had on
/// its way, also more than our window (mosquitto: 20 to a client of MQTT 3.1.1, or of a smaller window).
const HELD: usize = 64;

/// Where the events of a prompt go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    pub id: String,
    topic: String,
    correlation: Option<Vec<u8>>,
    deadline: Option<Instant>,
}

impl Way {
    /// The way back to the sender of `message`, and what is wrong with the one it asked for; an
    /// answer to that goes to the reply topic.
    pub fn new(message: &Message, id: String, topics: &Topics, now: Instant) -> (Self, Result<(), Refusal>) {
        let wanted = message.response_topic.as_deref();
        let checked = wanted.map_or(Ok(()), |topic| topics.check_response(topic, &message.topic));
        let topic = match (wanted, &checked) {
            (Some(topic), Ok(())) => topic.to_owned(),
            _ => topics.reply(&message.topic, &id),
        };
        let deadline = message.expiry.map(|expiry| now + expiry);
        let length = message.correlation.as_ref().map_or(0, Vec::len);
        let checked = checked.and_then(|()| match length {
            0..=LONGEST_CORRELATION => Ok(()),
            _ => Err(format!("the Correlation Data has {length} bytes; the most is {LONGEST_CORRELATION}")),
        });
        let correlation = message.correlation.clone().filter(|_| length <= LONGEST_CORRELATION);
        let way = Way { id, topic, correlation, deadline };
        (way, checked.map_err(|said| Refusal::new(Code::InvalidRequest, said)))
    }

    /// A reply on this way.
    pub fn packet(&self, payload: Vec<u8>, now: Instant) -> Packet {
        Packet {
            correlation: self.correlation.clone(),
            expires: self.deadline.map(|deadline| deadline.max(now + MOMENT)),
            ..Packet::json(self.topic.clone(), payload)
        }
    }
}

/// Ids for requests that came without one.
#[derive(Debug)]
pub(super) struct Ids {
    /// Random, so that no id comes again after a restart, on a device without a clock either.
    process: u64,
    count: u64,
}

impl Ids {
    pub fn new() -> Self {
        Ids { process: RandomState::new().hash_one(std::process::id()), count: 0 }
    }

    pub fn make(&mut self) -> String {
        self.count += 1;
        format!("{:016x}-{}", self.process, self.count)
    }
}

#[derive(Debug)]
struct Running {
    way: Way,
    events: mpsc::Receiver<Event>,
    cancel: Cancel,
}

/// What the worker says of a prompt.
#[derive(Debug)]
pub(super) struct Said {
    pub serial: Serial,
    pub way: Way,
    pub event: Event,
    /// It ends the prompt only because the daemon stops.
    pub cut_off: bool,
}

/// The prompts that await events, oldest first.
#[derive(Debug)]
pub(super) struct Prompts {
    requests: mpsc::Sender<Inbound>,
    /// Prompts that may be on their way to the worker: the queue has room for so many.
    window: usize,
    running: BTreeMap<Serial, Running>,
    /// Those of them that wait here, oldest first.
    held: VecDeque<Inbound>,
}

impl Prompts {
    pub fn new(requests: mpsc::Sender<Inbound>, window: u16) -> Self {
        let window = usize::from(window.max(1));
        Prompts { requests, window, running: BTreeMap::new(), held: VecDeque::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Whether one more can wait here.
    pub fn has_room(&self) -> bool {
        self.held.len() < HELD
    }

    /// Whether one more would be handed on at once.
    pub fn has_turn(&self) -> bool {
        self.running.len() < self.window
    }

    /// Hands a request on, when its turn comes. Where nobody takes it, its refusal comes as its event.
    pub fn start(&mut self, serial: Serial, mut request: Request, client: &str, way: Way) {
        let received = Instant::now();
        let wanted = way.deadline.map(|deadline| deadline.saturating_duration_since(received));
        request.timeout = request.timeout.into_iter().chain(wanted).min();
        let (sender, events) = mpsc::channel(EVENTS);
        let reply = Reply::new(&way.id, &sender).expect("a new channel has room");
        let cancel = Cancel::default();
        let inbound = Inbound {
            request,
            id: way.id.clone(),
            client: format!("mqtt:{client}"),
            turn: format!("mqtt:{client}"),
            when_full: WhenFull::Wait,
            received,
            reply,
            cancel: cancel.clone(),
        };
        self.running.insert(serial, Running { way, events, cancel });
        self.held.push_back(inbound);
        self.offer();
        if self.held.len() > HELD
            && let Some(inbound) = self.held.pop_back()
        {
            inbound.reply.refuse(queue_full());
        }
    }

    /// Hands on what has its turn.
    fn offer(&mut self) {
        while self.running.len() - self.held.len() < self.window
            && let Some(inbound) = self.held.pop_front()
        {
            match self.requests.try_send(inbound) {
                Ok(()) => {}
                Err(TrySendError::Full(inbound)) => inbound.reply.refuse(queue_full()),
                Err(TrySendError::Closed(inbound)) => inbound.reply.refuse(Refusal::shutting_down()),
            }
        }
    }

    /// The daemon stops: what waits here is not begun.
    pub fn stop(&mut self) {
        self.held.drain(..).for_each(|inbound| inbound.reply.refuse(Refusal::shutting_down()));
    }

    /// Stops the prompts of this id. Clients may share an id, and a cancellation does not say
    /// whose prompt it means: all of them are stopped.
    pub fn cancel(&self, id: &str) {
        for running in self.running.values().filter(|running| running.way.id == id) {
            running.cancel.raise();
        }
    }

    /// Waits for the next event. May be dropped and called again.
    pub async fn next(&mut self) -> Said {
        let (serial, event) = poll_fn(|context| {
            for (serial, running) in &mut self.running {
                if let Poll::Ready(event) = running.events.poll_recv(context) {
                    return Poll::Ready((*serial, event));
                }
            }
            Poll::Pending
        })
        .await;
        let running = &self.running[&serial];
        let way = running.way.clone();
        // A reply says `internal` when it is dropped; a channel closed without that is the same.
        let event = event.unwrap_or_else(|| {
            let refusal = Refusal::new(Code::Internal, "the daemon lost this request; ask again");
            Event::Error { id: Some(way.id.clone()), refusal }
        });
        let cut_off = is_cut_off(&event, &running.cancel);
        if event.is_last() {
            self.running.remove(&serial);
            self.offer();
        }
        Said { serial, way, event, cut_off }
    }
}

/// Whether a prompt was ended by the daemon's stop, and neither by its own end nor by its client.
fn is_cut_off(event: &Event, cancel: &Cancel) -> bool {
    match event {
        Event::Token { .. } => false,
        Event::Done(done) => done.finish_reason == FinishReason::Cancelled && !cancel.is_raised(),
        Event::Error { refusal, .. } => refusal.code == Code::ShuttingDown,
    }
}

/// Too much waits; a second later there may be room.
pub(super) fn queue_full() -> Refusal {
    let said = "too many requests wait; ask again later";
    Refusal { retry_after_ms: Some(1_000), ..Refusal::new(Code::QueueFull, said) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Done, Timings, Usage, json};

    fn message() -> Message {
        Message {
            topic: b"bitnetd/cellar/prompt".to_vec(),
            payload: b"hello".to_vec(),
            packet: Some(1),
            redelivered: false,
            retained: false,
            response_topic: None,
            correlation: None,
            client: None,
            expiry: None,
        }
    }

    fn way(message: &Message, now: Instant) -> (Way, Result<(), Refusal>) {
        Way::new(message, "a".into(), &Topics::new("bitnetd", "cellar"), now)
    }

    fn request() -> Request {
        json::request_or_text(b"hello").expect("sound")
    }

    #[test]
    fn without_a_response_topic_the_id_names_the_way_back() {
        let now = Instant::now();
        let packet = way(&message(), now).0.packet(vec![], now);
        assert_eq!((packet.topic.as_str(), packet.expires), ("bitnetd/cellar/reply/a", None));
    }

    #[test]
    fn a_refused_response_topic_is_answered_on_the_reply_topic() {
        let asked = Message { response_topic: Some("bitnetd/cellar/prompt".into()), ..message() };
        let (way, checked) = way(&asked, Instant::now());
        assert_eq!(way.topic, "bitnetd/cellar/reply/a");
        assert_eq!(checked.expect_err("a loop").code, Code::InvalidRequest);
    }

    #[test]
    fn a_reply_expires_with_its_prompt_but_can_be_fetched_at_the_deadline() {
        let now = Instant::now();
        let asked = Message { expiry: Some(Duration::from_secs(60)), ..message() };
        let (way, _) = way(&asked, now);
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(way.packet(vec![], at(10)).expires, Some(at(60)));
        assert_eq!(way.packet(vec![], at(60)).expires, Some(at(65)));
    }

    #[test]
    fn the_message_expiry_is_a_deadline_of_the_request() {
        let (sender, mut requests) = mpsc::channel(2);
        let mut prompts = Prompts::new(sender, 9);
        let asked = Message { expiry: Some(Duration::from_secs(2)), ..message() };
        for timeout in [None, Some(Duration::from_secs(1))] {
            let way = way(&asked, Instant::now()).0;
            prompts.start(1, Request { timeout, ..request() }, "-", way);
            let given = requests.try_recv().expect("handed on").request.timeout;
            assert!(given.expect("a deadline") <= timeout.unwrap_or(Duration::from_secs(2)));
        }
    }

    #[tokio::test]
    async fn a_request_that_nobody_takes_is_refused() {
        let (sender, requests) = mpsc::channel(1);
        let mut prompts = Prompts::new(sender, 9);
        let mut refused = async |serial| {
            prompts.start(serial, request(), "-", way(&message(), Instant::now()).0);
            match prompts.next().await.event {
                Event::Error { refusal, .. } => refusal.code,
                other => panic!("{other:?}"),
            }
        };
        let first = tokio::time::timeout(Duration::from_millis(20), refused(1)).await;
        assert!(first.is_err(), "it waits for the worker");
        assert_eq!(refused(2).await, Code::QueueFull);
        drop(requests);
        assert_eq!(refused(3).await, Code::Internal, "the first, lost with the worker");
    }

    #[tokio::test]
    async fn more_prompts_than_the_window_wait_for_their_turn() {
        let (sender, mut requests) = mpsc::channel(9);
        let mut prompts = Prompts::new(sender, 2);
        for serial in 0..4 {
            prompts.start(serial, request(), "-", way(&message(), Instant::now()).0);
        }
        let first = requests.try_recv().expect("its turn");
        let second = requests.try_recv().expect("its turn");
        assert!(requests.try_recv().is_err(), "two at a time");
        first.reply.refuse(Refusal::new(Code::Timeout, "late"));
        prompts.next().await;
        let _third = requests.try_recv().expect("its turn");
        prompts.stop();
        let said = prompts.next().await;
        assert!(said.cut_off && said.serial == 3, "{said:?}");
        drop(second);
    }

    #[test]
    fn a_broker_that_delivers_without_end_is_told_so() {
        let (sender, _requests) = mpsc::channel(9);
        let mut prompts = Prompts::new(sender, 1);
        for serial in 0..1000 {
            prompts.start(serial, request(), "-", way(&message(), Instant::now()).0);
        }
        assert_eq!(prompts.held.len(), HELD);
    }

    #[test]
    fn a_cancellation_reaches_every_prompt_of_its_id_and_no_other() {
        let (sender, mut requests) = mpsc::channel(3);
        let mut prompts = Prompts::new(sender, 9);
        for (serial, id) in [(1, "a"), (2, "b"), (3, "a")] {
            let way = Way { id: id.into(), ..way(&message(), Instant::now()).0 };
            prompts.start(serial, request(), "-", way);
        }
        prompts.cancel("a");
        let raised: Vec<_> =
            (0..3).map(|_| requests.try_recv().expect("handed on").cancel.is_raised()).collect();
        assert_eq!(raised, [true, false, true]);
    }

    #[tokio::test]
    async fn only_the_daemon_s_own_stop_cuts_a_prompt_off() {
        let (sender, mut requests) = mpsc::channel(1);
        let mut prompts = Prompts::new(sender, 9);
        for (finish_reason, raised, cut_off) in [
            (FinishReason::Cancelled, false, true),
            (FinishReason::Cancelled, true, false),
            (FinishReason::Stop, false, false),
        ] {
            prompts.start(1, request(), "-", way(&message(), Instant::now()).0);
            let inbound = requests.try_recv().expect("handed on");
            if raised {
                inbound.cancel.raise();
            }
            inbound.reply.finish(Event::Done(Box::new(done(finish_reason))));
            assert_eq!(prompts.next().await.cut_off, cut_off, "{finish_reason:?}, raised: {raised}");
        }
        prompts.start(1, request(), "-", way(&message(), Instant::now()).0);
        requests.try_recv().expect("handed on").reply.refuse(Refusal::shutting_down());
        assert!(prompts.next().await.cut_off);
    }

    fn done(finish_reason: FinishReason) -> Done {
        Done {
            id: "a".into(),
            text: String::new(),
            finish_reason,
            usage: Usage::default(),
            timings: Timings::default(),
            energy: None,
            cached: false,
        }
    }

    #[test]
    fn made_ids_differ_within_and_across_processes() {
        let (mut one, mut other) = (Ids::new(), Ids::new());
        assert_ne!(one.make(), one.make());
        assert_ne!(one.process, other.process);
        assert!(other.make().len() <= json::MAX_ID);
    }
}
