//! Prompts that are with the worker: each is submitted as an [`Inbound`], and its events are received here.
//!
//! Deliberately knows nothing of the broker link: a request continues while the link is down.

use super::outbox::PromptId;
use crate::protocol::{
    ClientInterface, Code, Event, FinishReason, Metadata, Refusal, Request, RequestId, json,
};
use crate::transport::mqtt::message::IncomingMessage;
use crate::transport::mqtt::message::OutgoingMessage;
use crate::transport::mqtt::prompt_client::PromptClient;
use crate::transport::mqtt::topics::Topics;
use crate::transport::{Cancel, Inbound, Reply, WhenFull};
use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Capacity of one request's event channel: some seconds of tokens. The worker cancels a request whose channel is
/// full, which only happens when the event loop hangs.
const EVENT_CHANNEL_CAPACITY: usize = 256;
/// A reply expires with its prompt, but not before the client had a moment to receive it: an answer that was cut
/// off by the deadline is published just after it.
const EXPIRY_GRACE: Duration = Duration::from_secs(5);

/// Maximum length of the Correlation Data in bytes: it is kept with the prompt and repeated in every event.
const MAX_CORRELATION_BYTES: usize = 1024;

/// The least maximum of one client's requests with the worker: one that is answered and the next one.
const LEAST_PER_CLIENT: usize = 2;

/// Where the events of a prompt are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyRoute {
    pub id: RequestId,
    /// The topic of the replies.
    topic: String,
    /// The prompt's Correlation Data.
    correlation: Option<Vec<u8>>,
    deadline: Option<Instant>,
    /// What every event repeats of the request.
    pub metadata: Option<Metadata>,
}

impl ReplyRoute {
    /// The route to the sender of `message`, and what is wrong with the Response Topic it named; the refusal of it
    /// is published on the reply topic.
    pub fn new(
        message: &IncomingMessage,
        id: RequestId,
        topics: &Topics,
        now: Instant,
    ) -> (Self, Result<(), Refusal>) {
        let wanted = message.response_topic.as_deref();
        let checked = wanted.map_or(Ok(()), |topic| topics.check_response(topic, &message.topic));
        let topic = match (wanted, &checked) {
            (Some(topic), Ok(())) => topic.to_owned(),
            _ => topics.reply(&message.topic, &id),
        };
        let deadline = message.expiry.map(|expiry| now + expiry);
        let length = message.correlation.as_ref().map_or(0, Vec::len);
        let checked = checked.and_then(|()| match length {
            0..=MAX_CORRELATION_BYTES => Ok(()),
            _ => Err(format!("the Correlation Data has {length} bytes; the most is {MAX_CORRELATION_BYTES}")),
        });
        let correlation = message.correlation.clone().filter(|_| length <= MAX_CORRELATION_BYTES);
        let metadata = json::metadata_of(&message.payload);
        let route = ReplyRoute { id, topic, correlation, deadline, metadata };
        (route, checked.map_err(|text| Refusal::new(Code::InvalidRequest, text)))
    }

    /// The route of a prompt that was read from disk.
    pub fn restored(
        id: RequestId,
        topic: String,
        correlation: Option<Vec<u8>>,
        deadline: Option<Instant>,
        metadata: Option<Metadata>,
    ) -> Self {
        ReplyRoute { id, topic, correlation, deadline, metadata }
    }

    /// The event that refuses the prompt.
    pub fn error(&self, refusal: Refusal) -> Event {
        Event::Error { id: Some(self.id.clone()), refusal, metadata: self.metadata.clone() }
    }

    /// The topic of the replies.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The prompt's Correlation Data.
    pub fn correlation(&self) -> Option<&[u8]> {
        self.correlation.as_deref()
    }

    /// Milliseconds for which an answer is still wanted; `None` is for ever.
    pub fn remaining_ms(&self, now: Instant) -> Option<u64> {
        let left = self.deadline?.saturating_duration_since(now);
        Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
    }

    /// Whether nobody wants an answer any more.
    pub fn is_expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// Memory of its texts in bytes.
    pub fn bytes(&self) -> usize {
        let metadata = self.metadata.as_ref().map_or(0, Metadata::bytes);
        self.id.len() + self.topic.len() + self.correlation.as_ref().map_or(0, Vec::len) + metadata
    }

    /// A reply on this route.
    pub fn packet(&self, payload: Vec<u8>, now: Instant) -> OutgoingMessage {
        OutgoingMessage {
            correlation: self.correlation.clone(),
            expires: self.deadline.map(|deadline| deadline.max(now + EXPIRY_GRACE)),
            ..OutgoingMessage::json(self.topic.clone(), payload)
        }
    }
}

/// Makes ids for requests without one.
#[derive(Debug)]
pub struct IdGenerator {
    /// Random, so that no id is made again after a restart, also on a device without a clock.
    process: u64,
    count: u64,
}

impl IdGenerator {
    pub fn new() -> Self {
        IdGenerator { process: RandomState::new().hash_one(std::process::id()), count: 0 }
    }

    pub fn next_id(&mut self) -> RequestId {
        self.count += 1;
        format!("{:016x}-{}", self.process, self.count).into()
    }
}

#[derive(Debug)]
struct ActiveRequest {
    /// The turn key of its client.
    client: String,
    route: ReplyRoute,
    events: mpsc::Receiver<Event>,
    cancel: Cancel,
}

/// An event of a prompt that is with the worker.
#[derive(Debug)]
pub struct PromptEvent {
    pub prompt: PromptId,
    pub route: ReplyRoute,
    pub event: Event,
    /// The prompt ended only because the daemon stops.
    pub is_ended_by_shutdown: bool,
}

/// The requests that are with the worker, or in its queue.
#[derive(Debug)]
pub struct ActiveRequests {
    requests: mpsc::Sender<Inbound>,
    /// Maximum number of requests that may be submitted at a time: the worker's queue has as many slots.
    window: usize,
    /// Maximum number of them of one client: as many as are answered at the same time, so that a client that is alone can
    /// have all slots, but no more than half of the window, so that the worker's queue is fair between clients too,
    /// whoever sent more prompts.
    of_one_client: usize,
    active: BTreeMap<PromptId, ActiveRequest>,
    /// The number of them of each client, by turn key.
    per_client: HashMap<String, usize>,
}

impl ActiveRequests {
    /// `window`: maximum number of requests at a time; `parallel`: how many the worker answers at the same time.
    pub fn new(requests: mpsc::Sender<Inbound>, window: u16, parallel: usize) -> Self {
        let window = usize::from(window.max(1));
        let of_one_client = parallel.min(window / 2).max(LEAST_PER_CLIENT);
        let (active, per_client) = (BTreeMap::new(), HashMap::new());
        ActiveRequests { requests, window, of_one_client, active, per_client }
    }

    pub fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// Whether the request of this prompt was submitted and has not ended.
    pub fn contains(&self, prompt: PromptId) -> bool {
        self.active.contains_key(&prompt)
    }

    /// Whether one more request may be submitted now.
    pub fn has_free_slot(&self) -> bool {
        self.active.len() < self.window && (self.requests.capacity() > 0 || self.requests.is_closed())
    }

    /// Whether one more request of the client with this turn key may be submitted now.
    pub fn client_has_free_slot(&self, client: &str) -> bool {
        self.count_of(client) < self.of_one_client
    }

    /// Whether a prompt of high priority of this client may be submitted now: one more than of others.
    pub fn client_has_slot_for_high(&self, client: &str) -> bool {
        self.count_of(client) <= self.of_one_client
    }

    fn count_of(&self, client: &str) -> usize {
        self.per_client.get(client).copied().unwrap_or_default()
    }

    /// Submits a request that was `received` then; the log shows its client as `label`.
    pub fn start(
        &mut self,
        prompt: PromptId,
        request: Request,
        (client, label): (&PromptClient, &str),
        route: ReplyRoute,
        received: Instant,
    ) {
        let mut request = request;
        let wanted = route.deadline.map(|deadline| deadline.saturating_duration_since(received));
        request.timeout = request.timeout.into_iter().chain(wanted).min();
        let (sender, events) = mpsc::channel(EVENT_CHANNEL_CAPACITY);
        let reply = Reply::new(&route.id, &sender).expect("a new channel is empty");
        let reply = reply.with_metadata(request.metadata.as_ref());
        let cancel = Cancel::default();
        let turn_key = client.turn_key();
        let inbound = Inbound {
            request,
            id: route.id.clone(),
            interface: ClientInterface::Mqtt,
            client: format!("mqtt:{label}"),
            cache_key: format!("mqtt:{}", client.cache_key()),
            queue_key: format!("mqtt:{turn_key}"),
            limit_key: format!("mqtt:{turn_key}"),
            when_full: WhenFull::Wait,
            received,
            reply,
            cancel: cancel.clone(),
        };
        *self.per_client.entry(turn_key.clone()).or_default() += 1;
        self.active.insert(prompt, ActiveRequest { client: turn_key, route, events, cancel });
        match self.requests.try_send(inbound) {
            Ok(()) => {}
            // Impossible after `has_free_slot`. The dropped reply sends an error to the client.
            Err(TrySendError::Full(_)) => {
                log::error!("mqtt: a prompt was submitted although the queue is full")
            }
            Err(TrySendError::Closed(inbound)) => inbound.reply.refuse(Refusal::shutting_down()),
        }
    }

    /// Cancels the requests of this id. Clients may share an id, and a cancellation does not say whose prompt it means:
    /// all of them are cancelled. Returns how many there were.
    pub fn cancel(&self, id: &RequestId) -> usize {
        let with_id = self.active.values().filter(|running| running.route.id == *id);
        with_id.inspect(|running| running.cancel.raise()).count()
    }

    fn remove(&mut self, prompt: PromptId) {
        let Some(ActiveRequest { client, .. }) = self.active.remove(&prompt) else { return };
        if let Some(count) = self.per_client.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.per_client.remove(&client);
            }
        }
    }

    /// Waits for the next event. May be dropped and called again.
    pub async fn next(&mut self) -> PromptEvent {
        let (prompt, event) = poll_fn(|context| {
            for (prompt, running) in &mut self.active {
                if let Poll::Ready(event) = running.events.poll_recv(context) {
                    return Poll::Ready((*prompt, event));
                }
            }
            Poll::Pending
        })
        .await;
        let running = &self.active[&prompt];
        let route = running.route.clone();
        // A dropped reply sends `internal`; a channel closed without it is treated the same.
        let event = event.unwrap_or_else(|| {
            let refusal = Refusal::new(Code::Internal, "the daemon lost this request; ask again");
            route.error(refusal)
        });
        let cut_off = is_ended_by_shutdown(&event, &running.cancel);
        if event.is_last() {
            self.remove(prompt);
        }
        PromptEvent { prompt, route, event, is_ended_by_shutdown: cut_off }
    }
}

/// Whether a prompt was ended by the daemon's stop, and neither by its own end nor by its client.
fn is_ended_by_shutdown(event: &Event, cancel: &Cancel) -> bool {
    match event {
        Event::Token { .. } => false,
        Event::Done(done) => done.finish_reason == FinishReason::Cancelled && !cancel.is_raised(),
        Event::Error { refusal, .. } => refusal.code == Code::ShuttingDown,
    }
}

/// The refusal of a prompt at QoS 0 where more are received than answered; a second later there may be space.
pub fn qos_0_overload() -> Refusal {
    let text =
        "more prompts come at QoS 0 than are answered; publish them at QoS 1, where they wait, or less often";
    Refusal { retry_after_ms: Some(1_000), ..Refusal::new(Code::RateLimited, text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::AnswerDetails;
    use crate::protocol::{Done, Timings, Usage, json};

    fn message() -> IncomingMessage {
        IncomingMessage {
            packet: Some(1),
            ..IncomingMessage::new(b"bitnetd/cellar/prompt".to_vec(), b"hello".to_vec())
        }
    }

    fn way(message: &IncomingMessage, now: Instant) -> (ReplyRoute, Result<(), Refusal>) {
        ReplyRoute::new(message, "a".into(), &Topics::new("bitnetd", "cellar"), now)
    }

    fn start(prompts: &mut ActiveRequests, number: PromptId, client: &str) {
        let now = Instant::now();
        prompts.start(number, request(), (&of_cellar(client), client), way(&message(), now).0, now);
    }

    fn of_cellar(client: &str) -> PromptClient {
        PromptClient::of_topic("bitnetd/cellar", client)
    }

    fn has_free_slot(prompts: &ActiveRequests, client: &str) -> bool {
        prompts.client_has_free_slot(&of_cellar(client).turn_key())
    }

    fn request() -> Request {
        json::request_or_text(b"hello").expect("sound")
    }

    #[test]
    fn without_a_response_topic_the_id_names_the_reply_topic() {
        let now = Instant::now();
        let packet = way(&message(), now).0.packet(vec![], now);
        assert_eq!((packet.topic.as_str(), packet.expires), ("bitnetd/cellar/reply/a", None));
    }

    #[test]
    fn a_refused_response_topic_is_answered_on_the_reply_topic() {
        let asked = IncomingMessage { response_topic: Some("bitnetd/cellar/prompt".into()), ..message() };
        let (route, checked) = way(&asked, Instant::now());
        assert_eq!(route.topic, "bitnetd/cellar/reply/a");
        assert_eq!(checked.expect_err("a loop").code, Code::InvalidRequest);
    }

    #[test]
    fn a_reply_expires_with_its_prompt_but_can_be_fetched_at_the_deadline() {
        let now = Instant::now();
        let asked = IncomingMessage { expiry: Some(Duration::from_secs(60)), ..message() };
        let (route, _) = way(&asked, now);
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(route.packet(vec![], at(10)).expires, Some(at(60)));
        assert_eq!(route.packet(vec![], at(60)).expires, Some(at(65)));
    }

    #[test]
    fn the_message_expiry_is_a_deadline_of_the_request() {
        let (sender, mut requests) = mpsc::channel(2);
        let mut prompts = ActiveRequests::new(sender, 9, 1);
        let asked = IncomingMessage { expiry: Some(Duration::from_secs(2)), ..message() };
        for timeout in [None, Some(Duration::from_secs(1))] {
            let route = way(&asked, Instant::now()).0;
            let request = Request { timeout, ..request() };
            prompts.start(1, request, (&of_cellar("-"), "-"), route, Instant::now());
            let given = requests.try_recv().expect("handed on").request.timeout;
            assert!(given.expect("a deadline") <= timeout.unwrap_or(Duration::from_secs(2)));
        }
    }

    #[tokio::test]
    async fn a_request_whose_receiver_is_gone_ends_with_an_error() {
        let (sender, requests) = mpsc::channel(1);
        let mut prompts = ActiveRequests::new(sender, 9, 1);
        start(&mut prompts, 1, "-");
        assert!(!prompts.has_free_slot(), "the worker has not come for the first");
        drop(requests);
        let lost = prompts.next().await;
        assert!(matches!(lost.event, Event::Error { refusal, .. } if refusal.code == Code::Internal));
        start(&mut prompts, 2, "-");
        assert!(prompts.next().await.is_ended_by_shutdown, "the daemon is stopping");
    }

    #[tokio::test]
    async fn a_client_has_two_prompts_with_the_worker_and_the_others_have_free_slots() {
        let (sender, mut requests) = mpsc::channel(9);
        let mut prompts = ActiveRequests::new(sender, 3, 1);
        start(&mut prompts, 1, "a");
        assert!(has_free_slot(&prompts, "a"));
        start(&mut prompts, 2, "a");
        assert!(!has_free_slot(&prompts, "a") && has_free_slot(&prompts, "b") && prompts.has_free_slot());
        start(&mut prompts, 3, "b");
        assert!(!prompts.has_free_slot(), "three at a time");
        requests.try_recv().expect("handed on").reply.refuse(Refusal::new(Code::Timeout, "late"));
        prompts.next().await;
        assert!(has_free_slot(&prompts, "a") && prompts.has_free_slot());
    }

    #[test]
    fn a_client_may_fill_all_slots_of_the_worker_but_no_more_than_half_of_the_window() {
        for (window, parallel, most) in
            [(16, 1, 2), (16, 2, 2), (16, 4, 4), (16, 16, 8), (64, 16, 16), (1, 4, 2)]
        {
            let (sender, _requests) = mpsc::channel(64);
            let mut prompts = ActiveRequests::new(sender, window, parallel);
            for count in 0..most {
                assert!(has_free_slot(&prompts, "a"), "{window} {parallel}: {count}");
                start(&mut prompts, count, "a");
            }
            assert!(!has_free_slot(&prompts, "a") && has_free_slot(&prompts, "b"), "{window} {parallel}");
            // One more of high priority.
            let slot_for_high =
                |prompts: &ActiveRequests| prompts.client_has_slot_for_high(&of_cellar("a").turn_key());
            assert!(slot_for_high(&prompts));
            start(&mut prompts, most, "a");
            assert!(!slot_for_high(&prompts), "{window} {parallel}");
        }
    }

    #[test]
    fn a_cancellation_reaches_every_prompt_of_its_id_and_no_other() {
        let (sender, mut requests) = mpsc::channel(3);
        let mut prompts = ActiveRequests::new(sender, 9, 1);
        for (number, id) in [(1, "a"), (2, "b"), (3, "a")] {
            let route = ReplyRoute { id: id.into(), ..way(&message(), Instant::now()).0 };
            prompts.start(number, request(), (&of_cellar("-"), "-"), route, Instant::now());
        }
        prompts.cancel(&"a".into());
        let raised: Vec<_> =
            (0..3).map(|_| requests.try_recv().expect("handed on").cancel.is_raised()).collect();
        assert_eq!(raised, [true, false, true]);
    }

    #[tokio::test]
    async fn only_a_shutdown_counts_as_ended_by_shutdown() {
        let (sender, mut requests) = mpsc::channel(1);
        let mut prompts = ActiveRequests::new(sender, 9, 1);
        for (finish_reason, raised, cut_off) in [
            (FinishReason::Cancelled, false, true),
            (FinishReason::Cancelled, true, false),
            (FinishReason::Stop, false, false),
        ] {
            start(&mut prompts, 1, "-");
            let inbound = requests.try_recv().expect("handed on");
            if raised {
                inbound.cancel.raise();
            }
            inbound.reply.finish(Event::Done(Box::new(done(finish_reason))));
            assert_eq!(
                prompts.next().await.is_ended_by_shutdown,
                cut_off,
                "{finish_reason:?}, raised: {raised}"
            );
        }
        start(&mut prompts, 1, "-");
        requests.try_recv().expect("handed on").reply.refuse(Refusal::shutting_down());
        assert!(prompts.next().await.is_ended_by_shutdown);
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
            model: "m".into(),
            details: AnswerDetails::default(),
        }
    }

    #[test]
    fn generated_ids_differ_within_and_across_processes() {
        let (mut one, mut other) = (IdGenerator::new(), IdGenerator::new());
        assert_ne!(one.next_id(), one.next_id());
        assert_ne!(one.process, other.process);
        assert!(other.next_id().len() <= json::MAX_ID);
    }
}
