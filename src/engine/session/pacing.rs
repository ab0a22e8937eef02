//! How many tokens of prompts one pass reads while other answers are decoded: as many as let these answers wait not much
//! longer than usual for their next token. Fewer would read the prompt slowly.
//!
//! The number is found by measuring, since it depends on the kernels and on how fast memory is. No token depends on it.
//! Deliberately knows no slots and no model.

use std::time::Duration;

/// The fewest, and the number before anything was measured. Fewer would hardly make a pass shorter.
const FEWEST_TOKENS: usize = 8;
const MOST_TOKENS: usize = 48;
/// By how many it changes at a time.
const STEP: usize = 4;

/// A pass may take so many times the usual one; beyond that fewer tokens are read, well below it more. Three times is what
/// users of the other answers are promised.
const MOST_TIMES: f64 = 2.75;
const FEWEST_TIMES: f64 = 2.35;
/// How much one pass counts in the usual time.
const NEWEST_WEIGHT: f64 = 0.2;

/// What was learned from the passes so far.
#[derive(Debug)]
pub(super) struct PromptPacing {
    tokens: usize,
    /// Seconds of a pass that decodes answers and reads no prompt.
    usual: Option<f64>,
}

impl PromptPacing {
    pub fn new() -> Self {
        PromptPacing { tokens: FEWEST_TOKENS, usual: None }
    }

    /// Tokens of prompts that the next pass reads at most where it decodes answers too.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Learns from a pass with so many answers, and so many tokens of prompts beside them.
    pub fn record(&mut self, answers: usize, prompt_tokens: usize, took: Duration) {
        let took = took.as_secs_f64();
        match (answers, prompt_tokens, self.usual) {
            (0, ..) => {}
            (_, 0, None) => self.usual = Some(took),
            (_, 0, Some(usual)) => self.usual = Some(usual + NEWEST_WEIGHT * (took - usual)),
            // The rest of a prompt tells nothing of a full share.
            (_, _, Some(usual)) if prompt_tokens == self.tokens => {
                let times = took / usual;
                let change = if times > MOST_TIMES { -1 } else { isize::from(times < FEWEST_TIMES) };
                let tokens = self.tokens.saturating_add_signed(change * STEP as isize);
                self.tokens = tokens.clamp(FEWEST_TOKENS, MOST_TOKENS);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of tokens after a while where each takes so many thousandths of a pass of answers alone.
    fn settled(thousandths: u64) -> usize {
        let mut pacing = PromptPacing::new();
        for _ in 0..100 {
            pacing.record(3, 0, Duration::from_millis(1_000));
            let tokens = pacing.tokens();
            pacing.record(3, tokens, Duration::from_millis(1_000 + tokens as u64 * thousandths));
        }
        pacing.tokens()
    }

    #[test]
    fn as_many_tokens_are_read_as_keep_a_pass_below_three_times_the_usual_one() {
        for thousandths in [40, 80, 150] {
            let times = 1.0 + settled(thousandths) as f64 * thousandths as f64 / 1_000.0;
            assert!((2.0..3.0).contains(&times), "{thousandths}: {times}");
        }
        assert_eq!((settled(0), settled(10_000)), (48, 8), "between bounds");
    }

    #[test]
    fn only_full_shares_beside_answers_change_the_number() {
        let mut pacing = PromptPacing::new();
        pacing.record(1, 8, Duration::from_secs(9));
        assert_eq!(pacing.tokens(), 8, "nothing to compare with");
        pacing.record(1, 0, Duration::from_secs(1));
        pacing.record(0, 8, Duration::from_secs(9));
        pacing.record(1, 5, Duration::from_secs(9));
        assert_eq!(pacing.tokens(), 8);
        pacing.record(1, 8, Duration::from_secs(2));
        assert_eq!(pacing.tokens(), 12);
        pacing.record(1, 12, Duration::from_secs(3));
        assert_eq!(pacing.tokens(), 8);
    }
}
