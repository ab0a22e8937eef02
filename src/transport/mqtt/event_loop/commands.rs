//! Cancellations and thread limits: checked, and passed on to the daemon.

use super::EventLoop;
use crate::protocol::json::{self, Cancelled};
use crate::telemetry::{RemoteCommand, SecurityEvent};
use crate::transport::Command;
use crate::transport::mqtt::message::IncomingMessage;

impl EventLoop {
    /// Handles a message on the cancel topic.
    pub(super) fn on_cancel(&mut self, message: &IncomingMessage) {
        if is_ignored_command(message) {
            return;
        }
        match json::cancel_topic(&message.payload) {
            Ok(Cancelled::Id(id)) => {
                let command = RemoteCommand::Cancel(self.cancel(&id));
                let event = SecurityEvent { request_id: Some(&id), ..SecurityEvent::command(command) };
                self.context.local_telemetry.security.record(&event);
            }
            Ok(Cancelled::Running) => self.send_command(message, Command::CancelRunning),
            // The payload is not logged: it may be a prompt that was published to the wrong topic.
            Err(_) => {
                let topic = self.topics.cancel();
                log::warn!(
                    "{topic}: not understood; send an object with the request's id, or \"running\": true"
                );
            }
        }
    }

    /// Handles a message on the topic of the thread limit.
    pub(super) fn on_thread_limit(&self, message: &IncomingMessage) {
        if is_ignored_command(message) {
            return;
        }
        let (topic, most) = (self.topics.threads(), self.context.threads);
        match json::thread_limit(&message.payload) {
            Ok(threads) if (1..=most).contains(&threads) => {
                self.send_command(message, Command::Threads(threads));
            }
            Ok(threads) => log::warn!("{topic}: {threads} is outside 1 to {most}, which is budget.threads"),
            Err(refusal) => log::warn!("{topic}: {}", refusal.message),
        }
    }

    fn send_command(&self, message: &IncomingMessage, command: Command) {
        if self.context.commands.try_send(command).is_err() {
            let topic = String::from_utf8_lossy(&message.topic);
            log::warn!("{topic}: ignored, too many came at once; send it again");
        }
    }
}

/// Whether a message is not to be obeyed. An empty one only removes a retained message. A retained one is from another
/// day, and would be delivered again at each start; it is ignored with a warning.
fn is_ignored_command(message: &IncomingMessage) -> bool {
    if message.payload.is_empty() {
        return true;
    }
    if message.retained {
        let topic = String::from_utf8_lossy(&message.topic);
        log::warn!("{topic}: ignored, it is retained; publish it without retain");
    }
    message.retained
}
