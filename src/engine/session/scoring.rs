//! The probability that the model itself gives to an answer, without a grammar.

use super::Session;

impl Session<'_> {
    /// The natural logarithms of the probabilities of `answer`'s tokens, each given those before it, after
    /// `prompt`, which must be the one that was answered last. One pass over the answer, as for a prompt.
    pub fn log_probabilities(&mut self, prompt: &[u32], answer: &[u32]) -> Vec<f64> {
        let Some(last) = prompt.len().checked_sub(1).filter(|last| *last <= self.state.len()) else {
            return Vec::new();
        };
        self.state.truncate(last);
        let free = self.state.context() - last;
        let inputs: Vec<u32> =
            prompt[last..].iter().chain(answer).copied().take(answer.len().min(free)).collect();
        let mut log_probabilities = Vec::with_capacity(inputs.len());
        for batch in inputs.chunks(self.state.batch()) {
            self.model.forward(batch, &mut self.state);
            for row in 0..batch.len() {
                let Some(next) = answer.get(log_probabilities.len()) else { break };
                log_probabilities.push(-super::nll(self.model.logits(row, &mut self.state), *next));
            }
        }
        log_probabilities
    }
}
