//! The guard: what a client may ask, and how often. Each part is off until the configuration sets it.
//!
//! Pure: the time is passed in. Deliberately knows no queue, no transport and no engine.

mod control_characters;
mod prompt_texts;
mod rate_limit;
#[cfg(test)]
mod tests;

use crate::config::{self, ControlCharacters};
use crate::protocol::{Code, GuardReason, Refusal, Request};
use prompt_texts::visit_texts;
use rate_limit::RateLimiter;
use std::convert::Infallible;
use std::time::Instant;

/// A request that the guard refuses.
#[derive(Debug, Clone, PartialEq)]
pub struct Denied {
    /// Why, as it is counted.
    pub reason: GuardReason,
    /// What the client gets.
    pub refusal: Refusal,
}

impl Denied {
    fn new(reason: GuardReason, code: Code, message: String) -> Self {
        Denied { reason, refusal: Refusal::new(code, message) }
    }
}

/// The guard with its settings, and what it remembers of the clients.
#[derive(Debug)]
pub struct Guard {
    settings: config::Guard,
    rate: RateLimiter,
}

impl Guard {
    /// A guard that has seen no client yet; `now` is the beginning of its time.
    pub fn new(settings: config::Guard, now: Instant) -> Self {
        Guard { settings, rate: RateLimiter::new(now) }
    }

    /// Adopts other settings. What the clients sent in the last minute still counts.
    pub fn adopt(&mut self, settings: config::Guard) {
        self.settings = settings;
    }

    /// Checks a request of the client with this key, which no other client has, and limits what it may ask for.
    pub fn check(&mut self, client: &str, request: &mut Request, now: Instant) -> Result<(), Denied> {
        self.check_rate(client, now)?;
        self.check_bytes(request)?;
        self.check_characters(request)?;
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
