//! What concerns the security of the daemon, as it is counted and reported.

use serde::Serialize;

/// Why the guard refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardReason {
    /// The client asks too often.
    RateLimited,
    /// The prompt has too many bytes.
    PromptBytes,
    /// The prompt has too many tokens.
    PromptTokens,
    /// The prompt has control characters.
    ControlCharacters,
    /// The prompt matches the filter.
    ContentFiltered,
    /// The answer matches the filter.
    ResponseFiltered,
}

impl GuardReason {
    /// All of them, in the order in which they are checked.
    pub const ALL: [GuardReason; 6] = [
        GuardReason::RateLimited,
        GuardReason::PromptBytes,
        GuardReason::PromptTokens,
        GuardReason::ControlCharacters,
        GuardReason::ContentFiltered,
        GuardReason::ResponseFiltered,
    ];

    /// Its name in reports: that of the field of [`GuardRefusals`].
    pub fn name(self) -> &'static str {
        match self {
            GuardReason::RateLimited => "rate_limited",
            GuardReason::PromptBytes => "prompt_bytes",
            GuardReason::PromptTokens => "prompt_tokens",
            GuardReason::ControlCharacters => "control_characters",
            GuardReason::ContentFiltered => "content_filtered",
            GuardReason::ResponseFiltered => "response_filtered",
        }
    }
}

/// An interface, as the security record names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientInterface {
    /// The Unix socket, also where HTTP is spoken on it.
    Unix,
    /// HTTP over TCP.
    Http,
    /// The broker.
    Mqtt,
    /// The Wyoming protocol.
    Wyoming,
}

impl ClientInterface {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            ClientInterface::Unix => "unix",
            ClientInterface::Http => "http",
            ClientInterface::Mqtt => "mqtt",
            ClientInterface::Wyoming => "wyoming",
        }
    }
}

/// How many requests the guard refused, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
pub struct GuardRefusals {
    /// The client asked too often.
    pub rate_limited: u64,
    /// The prompt had too many bytes.
    pub prompt_bytes: u64,
    /// The prompt had too many tokens.
    pub prompt_tokens: u64,
    /// The prompt had control characters.
    pub control_characters: u64,
    /// The prompt matched the filter.
    pub content_filtered: u64,
    /// The answer matched the filter.
    pub response_filtered: u64,
}

impl GuardRefusals {
    /// The count of one reason.
    pub fn of(&mut self, reason: GuardReason) -> &mut u64 {
        match reason {
            GuardReason::RateLimited => &mut self.rate_limited,
            GuardReason::PromptBytes => &mut self.prompt_bytes,
            GuardReason::PromptTokens => &mut self.prompt_tokens,
            GuardReason::ControlCharacters => &mut self.control_characters,
            GuardReason::ContentFiltered => &mut self.content_filtered,
            GuardReason::ResponseFiltered => &mut self.response_filtered,
        }
    }

    /// The sum of all reasons.
    pub fn sum(&self) -> u64 {
        let mut counts = *self;
        GuardReason::ALL.into_iter().map(|reason| *counts.of(reason)).sum()
    }

    /// Adds other counts.
    pub fn add(&mut self, mut other: GuardRefusals) {
        for reason in GuardReason::ALL {
            *self.of(reason) += *other.of(reason);
        }
    }
}

/// What concerns the security of the daemon, since start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Security {
    /// Requests that the guard refused.
    pub refused: GuardRefusals,
    /// The same of the 16 clients with the most, then of all others together, where there are any.
    pub clients: Vec<ClientRefusals>,
    /// Calls over HTTP without a token that is needed, or with a wrong one.
    pub failed_tokens: u64,
    /// Commands that concern others' requests: cancellations over MQTT, limits on threads.
    pub commands: u64,
    /// How often the configuration was read again, whatever came of it.
    pub reloads: u64,
    /// Of these, those of which something was not applied, since it has an error.
    pub reloads_refused: u64,
}

/// The refusals of one client, or of all that are not named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientRefusals {
    /// The client; null for all others together.
    pub client: Option<String>,
    /// Its refused requests.
    pub refused: GuardRefusals,
}
