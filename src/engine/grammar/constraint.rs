//! The constraint of one answer: which tokens may come next, and which must.

use super::GrammarError;
use llguidance::api::StopReason;
use llguidance::toktrie::SimpleVob;
use llguidance::{Matcher, TokenParser};
use std::fmt;
use std::sync::Arc;

pub(super) const DEAD_END: &str = "no answer can fit: nothing of this vocabulary can follow";

/// The state of a grammar after the tokens so far. A clone goes on from the same place.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    producible: Arc<SimpleVob>,
    /// The tokens that may come next, as bits; of the last call of [`Constraint::next_tokens`].
    mask: SimpleVob,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

/// What may follow.
#[derive(Debug, PartialEq, Eq)]
pub enum NextTokens<'m> {
    /// These tokens and no others. They count as consumed.
    Forced(Vec<u32>),
    /// One of a set of tokens, to be consumed with [`Constraint::consume`]. The end tokens are in the set where the
    /// answer may end here.
    Choice {
        /// The set: bit `id % 32` of word `id / 32`.
        mask: &'m [u32],
        /// How many tokens it has: two at least.
        count: usize,
    },
    /// Nothing: the answer is complete.
    End,
}

impl Constraint {
    /// The start of a grammar.
    pub(super) fn new(parser: TokenParser, producible: &Arc<SimpleVob>) -> Result<Self, GrammarError> {
        let matcher = Matcher::new(Ok(parser));
        let mut constraint =
            Constraint { matcher, producible: Arc::clone(producible), mask: SimpleVob::new() };
        // A grammar from which nothing can be derived, or whose first step is too complex, shows it here.
        constraint.clone().next_tokens()?;
        constraint.mask = SimpleVob::new();
        Ok(constraint)
    }

    /// What may follow the tokens so far.
    ///
    /// # Errors
    /// When nothing may follow and the answer is not complete, or when finding it out takes too much work.
    pub fn next_tokens(&mut self) -> Result<NextTokens<'_>, GrammarError> {
        if self.matcher.is_stopped() {
            return self.stopped();
        }
        let forced = self.matcher.compute_ff_tokens();
        if !forced.is_empty() {
            return self.force(forced);
        }
        self.mask = match self.matcher.compute_mask() {
            Ok(mask) => mask,
            Err(_) if self.matcher.is_stopped() => return self.stopped(),
            Err(error) => return Err(GrammarError::of_library(&error.to_string())),
        };
        self.mask.and(&self.producible);
        match self.mask.num_set() {
            0 => Err(GrammarError::new("", DEAD_END)),
            1 => {
                let id = self.mask.first_bit_set().unwrap_or_default() as u32;
                // An end token alone: nothing else may follow.
                match self.is_end(id) {
                    true => Ok(NextTokens::End),
                    false => self.force(vec![id]),
                }
            }
            count => Ok(NextTokens::Choice { mask: self.mask.as_slice(), count }),
        }
    }

    /// The set of tokens of the last choice, as [`NextTokens::Choice`] has it.
    pub fn mask(&self) -> &[u32] {
        self.mask.as_slice()
    }

    /// Goes on with a token of the last choice that is no end token.
    ///
    /// # Errors
    /// When the token may not come here.
    pub fn consume(&mut self, id: u32) -> Result<(), GrammarError> {
        self.matcher.consume_token(id).map_err(|error| self.failure(&error.to_string()))
    }

    fn force(&mut self, ids: Vec<u32>) -> Result<NextTokens<'_>, GrammarError> {
        if ids.iter().any(|id| !self.producible.is_allowed(*id)) {
            return Err(GrammarError::new("", DEAD_END));
        }
        self.matcher.consume_tokens(&ids).map_err(|error| self.failure(&error.to_string()))?;
        Ok(NextTokens::Forced(ids))
    }

    fn is_end(&self, id: u32) -> bool {
        self.matcher.tok_env().is_ok_and(|env| env.tok_trie().eos_tokens().contains(&id))
    }

    fn stopped(&mut self) -> Result<NextTokens<'_>, GrammarError> {
        match self.matcher.stop_reason() {
            // Also where no token of the vocabulary can follow, which is an end only where one is allowed.
            StopReason::NoExtensionBias if !self.matcher.is_accepting().unwrap_or(false) => {
                Err(GrammarError::new("", DEAD_END))
            }
            reason if reason.is_ok() => Ok(NextTokens::End),
            _ => Err(self.failure(&self.matcher.get_error().unwrap_or_default())),
        }
    }

    fn failure(&self, message: &str) -> GrammarError {
        match self.matcher.stop_reason() {
            StopReason::LexerTooComplex | StopReason::ParserTooComplex => {
                GrammarError::new("", "too complex: the next token takes too much work to determine")
            }
            _ => GrammarError::of_library(message),
        }
    }
}
