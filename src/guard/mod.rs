//! The guard: what a client may ask, and how often. Each part is off until the configuration sets it.
//!
//! Pure: the time is passed in. Deliberately knows no queue, no transport and no engine.

mod client_id;
mod control_characters;
pub mod filter;
mod prompt_texts;
mod rate_limit;
#[cfg(test)]
mod tests;

pub use client_id::CLIENT_KEY_BYTES;

use crate::config::{self, ControlCharacters};
use crate::protocol::{Code, GuardReason, Refusal, Request};
use filter::{Filter, FilterMatch};
use prompt_texts::visit_texts;
use rate_limit::RequestWindows;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

/// A request that the guard refuses.
#[derive(Debug, Clone, PartialEq)]
pub struct Denied {
    /// Why, as it is counted.
    pub reason: GuardReason,
    /// What the client gets.
    pub refusal: Refusal,
    /// The line of the filter's file that it matches; the client does not learn it.
    pub filter_line: Option<usize>,
}

impl Denied {
    fn new(reason: GuardReason, code: Code, message: String) -> Self {
        Denied { reason, refusal: Refusal::new(code, message), filter_line: None }
    }

    /// The refusal of an answer that matches the filter.
    pub fn answer(found: FilterMatch) -> Self {
        let message = "the answer has text that is not allowed here; ask for something else";
        let denied = Denied::new(GuardReason::ResponseFiltered, Code::ResponseFiltered, message.into());
        Denied { filter_line: Some(found.line), ..denied }
    }

    fn prompt(found: FilterMatch) -> Self {
        let message = "the prompt has text that is not allowed here; ask without it";
        let denied = Denied::new(GuardReason::ContentFiltered, Code::ContentFiltered, message.into());
        Denied { filter_line: Some(found.line), ..denied }
    }
}

/// The guard with its settings, and what it remembers of the clients.
#[derive(Debug)]
pub struct Guard {
    settings: config::Guard,
    rate: RequestWindows,
    filter: Option<Arc<Filter>>,
    /// The key of the names that clients have in logs and reports.
    client_key: [u8; CLIENT_KEY_BYTES],
}

impl Guard {
    /// A guard that has seen no client yet; `now` is the beginning of its time.
    pub fn new(settings: config::Guard, client_key: [u8; CLIENT_KEY_BYTES], now: Instant) -> Self {
        Guard { settings, rate: RequestWindows::new(now), filter: None, client_key }
    }

    /// Adopts other settings. What the clients sent in the last minute still counts.
    pub fn adopt(&mut self, settings: config::Guard) {
        self.settings = settings;
    }

    /// Sets the key of the names that clients have in logs and reports.
    pub fn set_client_key(&mut self, key: [u8; CLIENT_KEY_BYTES]) {
        self.client_key = key;
    }

    /// The name of a client in logs and reports: 8 characters that follow from its key, or its own name where the owner
    /// wants that.
    pub fn shown_client(&self, client: &str, name: String) -> String {
        if self.settings.clear_ids { name } else { client_id::client_id(&self.client_key, client) }
    }

    /// Sets the filter of prompts and answers, from the next request on.
    pub fn set_filter(&mut self, filter: Option<Arc<Filter>>) {
        self.filter = filter.filter(|filter| !filter.is_empty());
    }

    /// The filter of answers.
    pub fn filter(&self) -> Option<Arc<Filter>> {
        self.filter.clone()
    }

    /// Checks a request of the client with this key, which no other client has, and limits what it may ask for.
    pub fn check(&mut self, client: &str, request: &mut Request, now: Instant) -> Result<(), Denied> {
        self.check_rate(client, now)?;
        self.check_bytes(request)?;
        self.check_characters(request)?;
        if let Some(filter) = &self.filter {
            visit_texts(request, |text| {
                filter.find(text).map_or(Ok(()), |found| Err(Denied::prompt(found)))
            })?;
        }
        if let Some(most) = self.settings.max_output_tokens {
            let most = u32::try_from(most).unwrap_or(u32::MAX);
            request.max_tokens = Some(request.max_tokens.map_or(most, |wanted| wanted.min(most)));
        }
        Ok(())
    }

    /// Checks a prompt of so many tokens.
    pub fn check_tokens(&self, tokens: usize) -> Result<(), Denied> {
        let Some(most) = self.settings.max_prompt_tokens.filter(|most| tokens > *most) else { return Ok(()) };
        let message =
            format!("the prompt has {tokens} tokens, and a client may send {most}; send a shorter one");
        Err(Denied::new(GuardReason::PromptTokens, Code::TooLarge, message))
    }

    fn check_rate(&mut self, client: &str, now: Instant) -> Result<(), Denied> {
        let Some(most) = self.settings.requests_per_minute else {
            self.rate.clear();
            return Ok(());
        };
        self.rate.admit(client, most, now).map_err(|wait| {
            let message =
                format!("this client may ask {most} times a minute, and has done so; ask again later");
            // Rounded up: a millisecond too early would be refused again.
            let ms = wait.as_nanos().div_ceil(1_000_000) as u64;
            let mut denied = Denied::new(GuardReason::RateLimited, Code::RateLimited, message);
            denied.refusal.retry_after_ms = Some(ms);
            denied
        })
    }

    fn check_bytes(&self, request: &mut Request) -> Result<(), Denied> {
        let Some(most) = self.settings.max_prompt_bytes else { return Ok(()) };
        let mut bytes = 0;
        let counted = visit_texts::<Infallible>(request, |text| {
            bytes += text.len();
            Ok(())
        });
        let Ok(()) = counted;
        if bytes <= most {
            return Ok(());
        }
        let message =
            format!("the prompt has {bytes} bytes, and a client may send {most}; send a shorter one");
        Err(Denied::new(GuardReason::PromptBytes, Code::TooLarge, message))
    }

    fn check_characters(&self, request: &mut Request) -> Result<(), Denied> {
        match self.settings.control_characters {
            ControlCharacters::Allow => Ok(()),
            ControlCharacters::Remove => visit_texts(request, |text| {
                control_characters::remove_controls(text);
                Ok(())
            }),
            ControlCharacters::Refuse => visit_texts(request, |text| {
                let Some((at, c)) = control_characters::first_control(text) else { return Ok(()) };
                let message = format!(
                    "the prompt has the control character U+{:04X} at byte {at} of a text; send it without",
                    u32::from(c)
                );
                Err(Denied::new(GuardReason::ControlCharacters, Code::InvalidRequest, message))
            }),
        }
    }
}
