//! Perplexity: how well a model predicts a text, as the exponential of its mean loss a token.
//!
//! Windows of the session's context overlap by half, and every token counts once: those of the first window, then
//! those of the second half of each. So each token, except at the start of the text, has at least half a window
//! before it. llama.cpp scores the second halves of windows side by side instead; on a long text the two results
//! agree within their error.

use super::error::PromptError;
use super::session::Session;

/// The result over the part of a text that was read so far.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Perplexity {
    /// Tokens that were scored.
    pub tokens: usize,
    nats: f64,
    squares: f64,
}

impl Perplexity {
    /// The perplexity: random guessing among n tokens has n, a perfect prediction 1.
    pub fn value(&self) -> f64 {
        (self.nats / self.tokens as f64).exp()
    }

    /// Its standard error, as if the tokens were independent; infinite for fewer than two.
    pub fn error(&self) -> f64 {
        let count = self.tokens as f64;
        let mean = self.nats / count;
        let variance = (self.squares / count - mean * mean).max(0.0) / (count - 1.0);
        if self.tokens < 2 { f64::INFINITY } else { variance.sqrt() * self.value() }
    }

    /// Scores `tokens`, with each window begun by `bos` where there is one; `each` gets the result so far after
    /// every window.
    ///
    /// # Panics
    /// When the session holds fewer than four tokens.
    pub fn of(
        session: &mut Session<'_>,
        bos: Option<u32>,
        tokens: &[u32],
        mut each: impl FnMut(&Perplexity),
    ) -> Result<Perplexity, PromptError> {
        let lead = usize::from(bos.is_some());
        let size = session.context() - lead;
        let half = size / 2;
        assert!(half > 0, "a window of four tokens at least");
        let mut result = Perplexity::default();
        let mut window: Vec<u32> = Vec::with_capacity(size + lead);
        let mut counted = 0;
        while counted < tokens.len() {
            let start = if counted == 0 { 0 } else { counted - half };
            let end = tokens.len().min(start + size);
            window.clear();
            window.extend(bos.iter().chain(&tokens[start..end]));
            session.token_nll(&window, lead + counted - start, |nats| result.add(nats))?;
            each(&result);
            counted = end;
        }
        Ok(result)
    }

    fn add(&mut self, nats: f64) {
        self.tokens += 1;
        self.nats += nats;
        self.squares += nats * nats;
    }
}
