//! An event of the security record, and the line of JSON that it becomes.

use crate::protocol::text::shortened;
use crate::protocol::{ClientInterface, GuardReason};
use serde::Serialize;
use std::net::IpAddr;

/// Something that concerns the security of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecurityEvent<'a> {
    /// What happened.
    pub kind: SecurityEventKind,
    /// The client as logs show it; `None` where it is not known, as with a command over MQTT.
    pub client: Option<&'a str>,
    /// The id of the request.
    pub request_id: Option<&'a str>,
    /// The interface that it came over; `None` for a signal.
    pub interface: Option<ClientInterface>,
    /// The address of a caller that did not identify itself.
    pub address: Option<IpAddr>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityEventKind {
    /// The guard refused a request or its answer.
    Refused {
        /// Why.
        reason: GuardReason,
        /// The line of the filter's file that it matches, from 1.
        filter_line: Option<usize>,
    },
    /// A call over HTTP without a token, or with a wrong one.
    FailedToken(TokenFailure),
    /// A command that concerns others' requests.
    Command(RemoteCommand),
    /// The configuration was read again.
    Reload(ReloadOutcome),
}

/// What is wrong with the token of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFailure {
    /// There is none.
    Missing,
    /// It is not one of those that may call.
    Wrong,
}

/// A command, with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteCommand {
    /// So many requests of one id were cancelled.
    Cancel(usize),
    /// All running requests were cancelled, so many.
    CancelRunning(usize),
    /// At most so many threads may compute.
    ThreadLimit(usize),
}

/// What became of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// The configuration was applied.
    Applied,
    /// It was applied, and the filter stayed as it was, since its file has an error or needs too much memory.
    FilterKept,
    /// It was applied, and the model stayed as it was, since the new one cannot be used.
    ModelKept,
    /// Nothing has changed, since the configuration has an error.
    Refused,
}

impl ReloadOutcome {
    /// Its name in payloads.
    pub fn name(self) -> &'static str {
        match self {
            ReloadOutcome::Applied => "applied",
            ReloadOutcome::FilterKept => "filter_kept",
            ReloadOutcome::ModelKept => "model_kept",
            ReloadOutcome::Refused => "refused",
        }
    }
}

impl SecurityEventKind {
    /// The name of the event, and its reason.
    pub(super) fn names(self) -> (&'static str, &'static str) {
        match self {
            SecurityEventKind::Refused { reason, .. } => ("refused", reason.name()),
            SecurityEventKind::FailedToken(TokenFailure::Missing) => ("failed_token", "missing"),
            SecurityEventKind::FailedToken(TokenFailure::Wrong) => ("failed_token", "wrong"),
            SecurityEventKind::Command(RemoteCommand::Cancel(_)) => ("command", "cancel"),
            SecurityEventKind::Command(RemoteCommand::CancelRunning(_)) => ("command", "cancel_running"),
            SecurityEventKind::Command(RemoteCommand::ThreadLimit(_)) => ("command", "thread_limit"),
            SecurityEventKind::Reload(outcome) => ("reload", outcome.name()),
        }
    }
}

/// A line of the record. What is not known is null; what has no meaning for an event is left out.
#[derive(Debug, Serialize)]
pub(super) struct SecurityLine<'a> {
    pub time: String,
    pub event: &'a str,
    pub reason: &'a str,
    pub client: Option<String>,
    pub request_id: Option<&'a str>,
    pub interface: Option<&'static str>,
    pub address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter_line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Events like this one that have no line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<u64>,
}

impl SecurityEvent<'_> {
    /// A command over MQTT, which says nothing of its sender.
    pub fn command(command: RemoteCommand) -> Self {
        let kind = SecurityEventKind::Command(command);
        let interface = Some(ClientInterface::Mqtt);
        SecurityEvent { kind, client: None, request_id: None, interface, address: None }
    }

    /// A reload, which a signal or a client of the socket asked for.
    pub fn reload(outcome: ReloadOutcome) -> Self {
        let kind = SecurityEventKind::Reload(outcome);
        SecurityEvent { kind, client: None, request_id: None, interface: None, address: None }
    }

    /// The line of this event alone.
    pub(super) fn line(&self, time: String) -> SecurityLine<'_> {
        let (event, reason) = self.kind.names();
        let mut line = SecurityLine {
            time,
            event,
            reason,
            // A client may name itself anything.
            client: self.client.map(shortened),
            request_id: self.request_id,
            interface: self.interface.map(ClientInterface::name),
            address: self.address,
            filter_line: None,
            requests: None,
            threads: None,
            left_out: None,
        };
        match self.kind {
            SecurityEventKind::Refused { filter_line, .. } => line.filter_line = filter_line,
            SecurityEventKind::Command(
                RemoteCommand::Cancel(count) | RemoteCommand::CancelRunning(count),
            ) => {
                line.requests = Some(count);
            }
            SecurityEventKind::Command(RemoteCommand::ThreadLimit(threads)) => line.threads = Some(threads),
            SecurityEventKind::FailedToken(_) | SecurityEventKind::Reload(_) => {}
        }
        line
    }
}
