//! What the model itself thinks of given tokens: logits, losses and log-probabilities, without choosing any.

use super::Session;
use crate::engine::error::PromptError;
use crate::engine::logprobs::nll;
use crate::engine::model::Segment;

impl Session<'_> {
    /// Runs `tokens` through the model from an empty state; `each` gets every position and its logits, `[vocab]`.
    ///
    /// # Errors
    /// Tokens that are too many or unknown.
    pub fn logits(&mut self, tokens: &[u32], mut each: impl FnMut(usize, &[f32])) -> Result<(), PromptError> {
        self.check(tokens, 0)?;
        self.release(0);
        for batch in tokens.chunks(self.state.batch()) {
            let before = self.state.len();
            self.forward(0, batch);
            for row in 0..batch.len() {
                each(before + row, self.model.logits(row, &mut self.state));
            }
        }
        Ok(())
    }

    /// Runs `tokens` through the model from an empty state; `each` gets the negative log-likelihood, in nats, of
    /// every token from index `from` on, except the first token, which nothing precedes.
    ///
    /// # Errors
    /// Tokens that are too many or unknown.
    pub fn token_nll(
        &mut self,
        tokens: &[u32],
        from: usize,
        mut each: impl FnMut(f64),
    ) -> Result<(), PromptError> {
        self.check(tokens, 0)?;
        self.release(0);
        let mut next = 1;
        for batch in tokens.chunks(self.state.batch()) {
            self.forward(0, batch);
            for row in 0..batch.len() {
                // Logits take most of the time of a small model; only those that are needed are computed.
                if let Some(token) = tokens.get(next).filter(|_| next >= from) {
                    each(nll(self.model.logits(row, &mut self.state), *token));
                }
                next += 1;
            }
        }
        Ok(())
    }

    /// The natural logarithms of the probabilities of `answer`'s tokens, each given those before it, after the prompt that
    /// was answered last. One pass over the answer, as for a prompt.
    pub fn log_probabilities(&mut self, answer: &[u32]) -> Vec<f64> {
        self.log_probabilities_of(0, answer)
    }

    /// The same after the prompt of any slot.
    pub fn log_probabilities_of(&mut self, slot: usize, answer: &[u32]) -> Vec<f64> {
        let prompt = self.slots[slot].prompt();
        let Some(last) = prompt.last().copied().filter(|_| self.state.len_of(slot) + 1 >= prompt.len())
        else {
            return Vec::new(); // it was not read whole
        };
        self.rewind(slot);
        self.read_prompt_again(slot);
        let free = self.state.context() - self.state.len_of(slot);
        let inputs: Vec<u32> =
            std::iter::once(last).chain(answer.iter().copied()).take(answer.len().min(free)).collect();
        let mut log_probabilities = Vec::with_capacity(inputs.len());
        for batch in inputs.chunks(self.state.batch()) {
            self.forward(slot, batch);
            for row in 0..batch.len() {
                let Some(next) = answer.get(log_probabilities.len()) else { break };
                log_probabilities.push(-nll(self.model.logits(row, &mut self.state), *next));
            }
        }
        self.rewind(slot);
        log_probabilities
    }

    /// Reads all of a slot's prompt but its last token, where it is not in the KV cache any more.
    fn read_prompt_again(&mut self, slot: usize) {
        while self.find_prefix(slot) {}
        let prompt = self.slots[slot].prompt();
        let missing = prompt[self.state.len_of(slot)..prompt.len() - 1].to_vec();
        missing.chunks(self.state.batch()).for_each(|batch| self.forward(slot, batch));
    }

    /// One pass over tokens of a slot, all of whose logits may be asked for.
    fn forward(&mut self, slot: usize, tokens: &[u32]) {
        self.allocate_blocks(slot, tokens.len());
        let segment = Segment { sequence: slot, tokens, wanted: tokens.len() };
        self.model.forward_segments(&[segment], &mut self.state);
    }
}
