//! Prompts from their message to their last event: distinguished from redeliveries, put into the backlog, submitted
//! to the worker, and settled when the broker has the answer.

use super::EventLoop;
use crate::protocol::partial::id_of_truncated;
use crate::protocol::{Code, Event, FinishReason, Priority, Refusal, Request, RequestId, json};
use crate::transport::mqtt::delivery::answer_log::record::{Record, Work};
use crate::transport::mqtt::delivery::backlog::BacklogPrompt;
use crate::transport::mqtt::delivery::clock::Clock;
use crate::transport::mqtt::delivery::dedup::{Delivery, Verdict};
use crate::transport::mqtt::delivery::outbox::PromptId;
use crate::transport::mqtt::delivery::persistence::{self};
use crate::transport::mqtt::delivery::requests::{PromptEvent, ReplyRoute, qos_0_overload};
use crate::transport::mqtt::message::IncomingMessage;
use crate::transport::mqtt::message::OutgoingMessage;
use crate::transport::mqtt::prompt_client::PromptClient;
use std::time::Instant;

/// Prompts that may wait without an acknowledgement: the usual few are not written to disk. Where more wait, they
/// are written and acknowledged, so that the broker delivers those after them. Less than half of what mosquitto has
/// in flight at a time, which is 20.
const UNSAVED_PROMPTS: usize = 8;
/// With more entries in the outbox than this, prompts at QoS 0 are dropped instead of refused.
const OUTBOX_LEN_FOR_REFUSALS: usize = 32;

/// Whether it was checked, after a stop was asked for, that the saved prompts are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopCheck {
    NotBegun,
    Running,
    Finished,
}

impl EventLoop {
    /// Settles the prompts whose answer the broker has.
    pub(super) fn settle_delivered(&mut self, now: Instant) {
        for (prompt, outcome) in self.outbox.take_settled() {
            if self.dedup.durable_keys(prompt).is_some() {
                let time_s = Clock::read().time_s;
                self.answer_log.append_record(&Record::Given { number: outcome.number, time_s });
            }
            let is_saved = self.dedup.settle(prompt, outcome, now);
            self.answer_log.close_prompt(prompt, is_saved);
            self.backlog.release(prompt);
        }
    }

    /// Where more prompts wait than the broker has in flight at a time, writes them to disk. They are acknowledged
    /// once they are saved.
    pub(super) fn save_unacknowledged(&mut self) {
        if self.dedup.awaiting_answer() <= UNSAVED_PROMPTS
            || !self.answer_log.is_durable()
            || !self.backlog.inbox_has_space()
        {
            return;
        }
        let clock = Clock::read();
        for (prompt, keys) in self.dedup.unsaved() {
            let record = self.backlog.record(prompt, keys, clock);
            if record.is_some_and(|record| self.answer_log.save_prompt(record)) {
                self.dedup.mark_writing(prompt);
            }
        }
    }

    pub(super) fn on_prompt(&mut self, message: &IncomingMessage, client: PromptClient, now: Instant) {
        let is_own = self.subscription_check.receive(&message.payload, now);
        if is_own || self.retained_prompts.is_known_retained(message) {
            return self.dedup.ack_only(message.packet);
        }
        let read = match message.skipped_bytes {
            0 => json::request_or_text(&message.payload),
            skipped => Err(json::too_large(message.payload.len() + skipped, json::MAX_REQUEST)),
        };
        let id = match &read {
            Ok(request) => request.id.clone(),
            Err(_) => json::id_of(&message.payload).or_else(|| id_of_truncated(&message.payload)),
        };
        let Verdict::New(prompt) = self.receive(message, &client.cache_key(), id.as_ref()) else { return };
        let is_qos_1 = message.packet.is_some();
        if self.is_stopping() && self.dedup.defer(prompt) {
            return;
        }
        let stored_id = || self.dedup.stored_answer(prompt, now).map(|answer| answer.id);
        let id = id.or_else(stored_id).unwrap_or_else(|| self.ids.next_id());
        let (route, checked) = ReplyRoute::new(message, id, &self.topics, now);
        let has_space = self.backlog.has_space(is_qos_1);
        let priority = read.as_ref().map_or(Priority::Normal, |request| request.priority);
        let work = match checked.and_then(|()| self.admit(message, read)) {
            Ok(_) if !has_space && !is_qos_1 => return self.refuse_at_qos_0(prompt, &route),
            Ok(_) => Work::Ask(String::from_utf8_lossy(&message.payload).into_owned()),
            Err(refusal) => {
                let limit_key = format!("mqtt:{}", client.turn_key());
                let Refusal { code, message, .. } = &refusal;
                self.context.local_telemetry.refused(Some(&limit_key), code.name(), message);
                let event = route.error(refusal);
                Work::Refuse(String::from_utf8_lossy(&json::event(&event)).into_owned())
            }
        };
        if !has_space {
            if !self.dedup.defer(prompt) {
                self.drop_at_qos_0(prompt);
            }
            return;
        }
        self.backlog.push(prompt, BacklogPrompt { client, route, work, priority, received: now, is_qos_1 });
        self.start_requests(now);
    }

    /// More prompts are received at QoS 0 than are answered. The sender gets a refusal, as long as the broker
    /// accepts the refusals.
    fn refuse_at_qos_0(&mut self, prompt: PromptId, route: &ReplyRoute) {
        if self.outbox.len() >= OUTBOX_LEN_FOR_REFUSALS {
            return self.drop_at_qos_0(prompt);
        }
        let refusal = qos_0_overload();
        self.context.local_telemetry.refused(None, refusal.code.name(), &refusal.message);
        let event = route.error(refusal);
        self.send_event(prompt, route, event);
    }

    fn drop_at_qos_0(&mut self, prompt: PromptId) {
        self.status.dropped += 1;
        self.dedup.drop_prompt(prompt);
    }

    fn receive(&mut self, message: &IncomingMessage, client_key: &str, id: Option<&RequestId>) -> Verdict {
        self.dedup.receive(&Delivery {
            packet: message.packet,
            redelivered: message.redelivered,
            topic: &message.topic,
            client: client_key,
            id: id.map(|id| &**id),
            response_topic: message.response_topic.as_deref(),
            correlation: message.correlation.as_deref(),
            payload: &message.payload,
        })
    }

    fn admit(&self, message: &IncomingMessage, read: Result<Request, Refusal>) -> Result<Request, Refusal> {
        if message.retained {
            let text = "a retained prompt would be asked again at every connect; publish it without retain";
            return Err(Refusal::new(Code::InvalidRequest, text));
        }
        let request = read?;
        if self.is_stopping() { Err(Refusal::shutting_down()) } else { Ok(request) }
    }

    /// Submits the next prompts while the worker has a free slot and the broker accepts answers.
    pub(super) fn start_requests(&mut self, now: Instant) {
        if self.is_stopping() && !self.defer_waiting(now) {
            return;
        }
        while self.active_requests.has_free_slot() && !self.outbox.is_full() {
            let EventLoop { backlog, active_requests: prompts, .. } = self;
            let next = backlog.next(now, |client| prompts.client_has_free_slot(client));
            // A high priority is worth nothing behind what its client has with the worker already.
            let next =
                next.or_else(|| backlog.next_high(now, |client| prompts.client_has_slot_for_high(client)));
            let Some(prompt) = next else { return };
            self.start_request(prompt, now);
        }
    }

    /// Starts one prompt: publishes a stored answer or a refusal, or submits the request.
    fn start_request(&mut self, number: PromptId, now: Instant) {
        let Some(BacklogPrompt { client, route, work, received, .. }) = self.backlog.get(number) else {
            return;
        };
        let route = route.clone();
        if let Some(answer) = self.dedup.stored_answer(number, now) {
            self.status.resent += 1;
            let packet = route.packet(answer.payload, now);
            let copy = self.retained_copy(&packet, now);
            let entry = self.outbox.push_last(number, route.id.clone(), packet);
            copy.into_iter().for_each(|copy| self.outbox.push_copy(entry, copy));
            return self.backlog.remove(number);
        }
        if let Some(leader) = self.dedup.leader(number) {
            return self.backlog.follow(leader, number);
        }
        let request = match work {
            Work::Refuse(event) => {
                let packet = route.packet(event.clone().into_bytes(), now);
                self.dedup.mark_refused(number);
                return self.send_last_event(number, &route, packet);
            }
            Work::Ask(text) => json::request_or_text(text.as_bytes()),
        };
        match request {
            Ok(_) if route.is_expired(now) => {
                let refusal = Refusal::new(Code::Timeout, "the message expired while it waited for its turn");
                self.send_event(number, &route, route.error(refusal));
            }
            Ok(request) => {
                let label = self.topics.client_label(client);
                self.active_requests.start(number, request, (client, &label), route, *received);
            }
            // It was parsed before; only another version of the daemon may parse it differently.
            Err(refusal) => self.send_event(number, &route, route.error(refusal)),
        }
    }

    /// Whether it is known, since the stop was asked for, if the saved prompts are still on disk.
    fn is_disk_checked(&mut self, now: Instant) -> bool {
        if self.stop_check == StopCheck::NotBegun {
            self.answer_log.check_now(now);
            self.stop_check = StopCheck::Running;
        }
        if self.stop_check == StopCheck::Running {
            self.save();
            if !self.answer_log.is_busy() {
                self.stop_check = StopCheck::Finished;
            }
        }
        self.stop_check == StopCheck::Finished
    }

    /// The daemon stops: waiting prompts are left to the broker, or to the next process. Those that were acknowledged
    /// and are no longer on disk stay in the queue, to be answered within the drain time. Returns whether there may be
    /// such prompts.
    fn defer_waiting(&mut self, now: Instant) -> bool {
        if !self.is_disk_checked(now) {
            return false;
        }
        let is_closing = self.flush_deadline.is_some();
        for prompt in self.backlog.take_all_waiting() {
            if self.dedup.is_lost(prompt) && !is_closing {
                self.backlog.requeue(prompt);
            } else if !self.dedup.defer(prompt) {
                self.refuse_at_stop(prompt);
            }
        }
        if is_closing {
            // Those that were deferred before the file was lost.
            self.dedup.lost_prompts().into_iter().for_each(|prompt| self.refuse_at_stop(prompt));
        }
        !is_closing
    }

    /// The stop ends a prompt that neither the broker nor the disk keeps.
    fn refuse_at_stop(&mut self, prompt: PromptId) {
        if self.active_requests.contains(prompt) {
            return;
        }
        if let Some(route) = self.backlog.get(prompt).map(|prompt| prompt.route.clone()) {
            self.lost_at_stop += u64::from(self.dedup.is_lost(prompt));
            let refusal = Refusal::shutting_down();
            self.send_event(prompt, &route, route.error(refusal));
        }
    }

    /// Logs how many prompts the stop has left without an answer.
    pub(super) fn log_lost_prompts(&self) {
        if self.lost_at_stop > 0 {
            log::error!(
                "{}: {} acknowledged prompts were not answered before the stop and got shutting_down, since the state \
                 folder does not keep them; see device.state_dir",
                self.broker_address(),
                self.lost_at_stop
            );
        }
    }

    /// Cancels the prompts of this id, waiting and running ones, and returns how many there were.
    pub(super) fn cancel(&mut self, id: &RequestId) -> usize {
        let active = self.active_requests.cancel(id);
        let waiting = self.backlog.take_waiting(id);
        let count = active + waiting.len();
        for prompt in waiting {
            let Some(route) = self.backlog.get(prompt).map(|prompt| prompt.route.clone()) else { continue };
            let refusal = Refusal::new(Code::Cancelled, "cancelled before it was begun");
            self.send_event(prompt, &route, route.error(refusal));
        }
        count
    }

    /// A prompt that the shutdown ended is not answered with an error: the broker, or the disk, keeps it for the
    /// next start.
    pub(super) fn on_prompt_event(&mut self, event: PromptEvent) {
        let PromptEvent { prompt, route, event, is_ended_by_shutdown: cut_off } = event;
        if cut_off && self.dedup.defer(prompt) {
            if !self.dedup.is_saved(prompt) {
                self.backlog.remove(prompt);
            }
            log::info!(REQUEST_ID = route.id.as_str(); "left for the next start");
        } else {
            self.lost_at_stop += u64::from(cut_off && self.dedup.is_lost(prompt));
            self.send_event(prompt, &route, event);
        }
    }

    fn send_event(&mut self, prompt: PromptId, route: &ReplyRoute, event: Event) {
        let packet = route.packet(json::event(&event), Instant::now());
        if !event.is_last() {
            return self.outbox.push_token(prompt, packet);
        }
        if !is_answer(&event) {
            self.dedup.mark_refused(prompt);
        }
        self.send_last_event(prompt, route, packet);
    }

    /// Publishes the last event of a prompt, once it is on disk.
    fn send_last_event(&mut self, prompt: PromptId, route: &ReplyRoute, packet: OutgoingMessage) {
        self.backlog.remove(prompt);
        let copy = self.retained_copy(&packet, Instant::now());
        let entry = self.outbox.push_last(prompt, route.id.clone(), packet);
        let waiting = self.outbox.pending_answers().find(|waiting| waiting.number == entry);
        let answer =
            waiting.and_then(|waiting| persistence::answer_record(waiting, &self.dedup, Clock::read()));
        if answer.is_some_and(|answer| self.answer_log.save_answer(answer)) {
            self.outbox.hold_until_saved(entry);
        }
        copy.into_iter().for_each(|copy| self.outbox.push_copy(entry, copy));
    }
}

/// Whether the same request again is to get the same answer: not after a refusal, and not what was cut off by a
/// time limit or a cancellation.
fn is_answer(event: &Event) -> bool {
    match event {
        Event::Done(done) => !matches!(done.finish_reason, FinishReason::Cancelled | FinishReason::Timeout),
        Event::Token { .. } | Event::Error { .. } => false,
    }
}
