//! Counters of requests that are answered together.

use super::Counter;
use crate::protocol::Decoding;

/// The counters since start.
#[derive(Debug, Default)]
pub struct DecodingCounters {
    steps: Counter,
    step_requests: Counter,
    prefix_hits: Counter,
    prefix_tokens: Counter,
    suspensions: Counter,
    proposed_tokens: Counter,
    accepted_tokens: Counter,
}

impl DecodingCounters {
    /// One pass over the weights was made for so many requests.
    pub fn record_step(&self, requests: usize) {
        self.steps.add();
        self.step_requests.set(self.step_requests.get() + requests as u64);
    }

    /// So many tokens of a prompt were computed for an earlier one already.
    pub fn found_prefix(&self, tokens: usize) {
        if tokens > 0 {
            self.prefix_hits.add();
            self.prefix_tokens.set(self.prefix_tokens.get() + tokens as u64);
        }
    }

    /// A request gave up its slot for one of high priority.
    pub fn record_suspension(&self) {
        self.suspensions.add();
    }

    /// Of an answer so many tokens were proposed, and so many of these were accepted.
    pub fn speculated(&self, proposed: usize, accepted: usize) {
        self.proposed_tokens.set(self.proposed_tokens.get() + proposed as u64);
        self.accepted_tokens.set(self.accepted_tokens.get() + accepted as u64);
    }

    /// The counts now.
    pub fn counts(&self) -> Decoding {
        Decoding {
            steps: self.steps.get(),
            step_requests: self.step_requests.get(),
            prefix_hits: self.prefix_hits.get(),
            prefix_tokens: self.prefix_tokens.get(),
            suspensions: self.suspensions.get(),
            proposed_tokens: self.proposed_tokens.get(),
            accepted_tokens: self.accepted_tokens.get(),
        }
    }
}
