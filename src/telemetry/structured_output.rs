//! Counters of answers that had to fit a `response_format`.

use super::Counter;
use crate::protocol::StructuredOutput;

/// The counters since start.
#[derive(Debug, Default)]
pub struct StructuredOutputCounters {
    requests: Counter,
    forced_tokens: Counter,
    refused: Counter,
    nothing_fits: Counter,
}

impl StructuredOutputCounters {
    /// An answer was computed under a grammar, which forced so many of its tokens.
    pub fn answered(&self, forced_tokens: usize) {
        self.requests.add();
        self.forced_tokens.set(self.forced_tokens.get() + forced_tokens as u64);
    }

    /// A request was refused because of its `response_format`.
    pub fn refused(&self) {
        self.refused.add();
    }

    /// So many answers were that no intent of the home fits the sentence.
    pub fn nothing_fits(&self, answers: usize) {
        self.nothing_fits.set(self.nothing_fits.get() + answers as u64);
    }

    /// The counts now.
    pub fn counts(&self) -> StructuredOutput {
        StructuredOutput {
            requests: self.requests.get(),
            forced_tokens: self.forced_tokens.get(),
            refused: self.refused.get(),
            nothing_fits: self.nothing_fits.get(),
        }
    }
}
