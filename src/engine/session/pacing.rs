//! How many tokens of prompts one pass reads while other answers are decoded: as many as let these answers wait at most
//! three times as long as usual for their next token. Fewer would read the prompt slowly.
//!
//! The number is found by measuring, since it depends on the kernels and on how fast memory is. No token depends on it.
//! Deliberately knows no slots and no model.

use std::time::Duration;

/// The number before anything was measured.
const FIRST_TOKENS: usize = 8;
/// Fewer hardly make a pass shorter. More give little, since what each token costs exceeds what all have in common.
const FEWEST_TOKENS: usize = 4;
const MOST_TOKENS: usize = 12;

/// So many times the usual pass is what a pass may take. It is less than three, since not every pass takes the same time.
const MOST_TIMES: f64 = 2.7;

/// How much one pass counts.
const NEWEST_WEIGHT: f64 = 0.125;
/// A pass that the machine interrupted counts as this many times what was expected.
const LONGEST: f64 = 2.0;

/// What was learned from the passes so far.
#[derive(Debug, Default)]
pub(super) struct PromptPacing {
    /// Seconds of a pass that decodes answers and reads no prompt.
    usual: Option<f64>,
    /// Seconds that each token of a prompt adds to such a pass.
    token: Option<f64>,
}

impl PromptPacing {
    /// Tokens of prompts that the next pass reads at most where it decodes answers too.
    pub fn tokens(&self) -> usize {
        let Some((usual, token)) = self.usual.zip(self.token) else { return FIRST_TOKENS };
        // A quotient beyond all integers becomes the largest one.
        (((MOST_TIMES - 1.0) * usual / token) as usize).clamp(FEWEST_TOKENS, MOST_TOKENS)
    }

    /// Learns from a pass with so many answers, and so many tokens of prompts beside them.
    pub fn record(&mut self, answers: usize, prompt_tokens: usize, took: Duration) {
        let took = took.as_secs_f64();
        match (answers, prompt_tokens, self.usual) {
            (0, ..) => {}
            (_, 0, _) => learn(&mut self.usual, took),
            (_, tokens, Some(usual)) => learn(&mut self.token, (took - usual).max(0.0) / tokens as f64),
            (.., None) => {}
        }
    }
}

fn learn(known: &mut Option<f64>, newest: f64) {
    let before = known.unwrap_or(newest);
    // Nothing would ever be learned behind a zero.
    let newest = if before > 0.0 { newest.min(LONGEST * before) } else { newest };
    *known = Some(before + NEWEST_WEIGHT * (newest - before));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is learned where each token takes so many thousandths of a pass of answers alone.
    fn settled(thousandths: u64) -> PromptPacing {
        let mut pacing = PromptPacing::default();
        for _ in 0..100 {
            pacing.record(3, 0, Duration::from_millis(1_000));
            let tokens = pacing.tokens();
            pacing.record(3, tokens, Duration::from_millis(1_000 + tokens as u64 * thousandths));
        }
        pacing
    }

    #[test]
    fn as_many_tokens_are_read_as_keep_a_pass_below_three_times_the_usual_one() {
        for thousandths in [150, 200, 400] {
            let times = 1.0 + settled(thousandths).tokens() as f64 * thousandths as f64 / 1_000.0;
            assert!((2.0..3.0).contains(&times), "{thousandths}: {times}");
        }
        assert_eq!([0, 10_000].map(|each| settled(each).tokens()), [MOST_TOKENS, FEWEST_TOKENS]);
    }

    #[test]
    fn passes_without_answers_or_without_anything_to_compare_with_teach_nothing() {
        let mut pacing = PromptPacing::default();
        pacing.record(1, 8, Duration::from_secs(9));
        pacing.record(0, 8, Duration::from_secs(9));
        pacing.record(1, 0, Duration::from_secs(1));
        pacing.record(0, 8, Duration::from_secs(9));
        assert_eq!(pacing.tokens(), FIRST_TOKENS);
        pacing.record(1, 5, Duration::from_secs(2));
        assert_eq!(pacing.tokens(), 8, "a fifth of the usual pass each, of which 1.7 may be added");
    }

    #[test]
    fn one_interrupted_pass_changes_little() {
        let mut pacing = settled(200);
        pacing.record(3, pacing.tokens(), Duration::from_secs(1_000));
        assert_eq!(pacing.tokens(), 7);
        let mut pacing = settled(200);
        pacing.record(3, 0, Duration::from_secs(1_000));
        assert_eq!(pacing.tokens(), 9);
    }
}
