//! The memory plan: what a model takes under the budget, computed before anything is loaded.

use crate::engine::Footprint;
use std::fmt;

/// The daemon without a model: code, runtime, allocator slack, and 7 MiB for the worst its clients do:
/// as many unfinished requests as there may be connections, and a queue full of long ones.
/// `tests/system` holds the whole process to the plan made with it.
const DAEMON: usize = 20 << 20;

/// Shortest context a plan shortens to: a question and its answer still fit.
const SHORTEST: usize = 256;

/// What takes how much, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What the model takes.
    pub footprint: Footprint,
    /// Tokens of context, shortened where need be.
    pub context: usize,
    /// The model's own context, or the configured one.
    pub wanted: usize,
    /// What is allowed.
    pub budget: usize,
}

/// A model that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLarge {
    /// The smallest plan there is.
    pub plan: Plan,
    /// Whether the configuration forbids a shorter context.
    pub fixed: bool,
}

impl Plan {
    /// Plans `footprint` within `budget`. A `configured` context is kept as it is; without one the
    /// model's own is shortened until it fits.
    pub fn make(
        footprint: &Footprint,
        models_own: usize,
        configured: Option<usize>,
        budget: usize,
    ) -> Result<Self, TooLarge> {
        let wanted = configured.unwrap_or(models_own);
        let least = if configured.is_some() { wanted } else { wanted.min(SHORTEST) };
        let mut plan = Plan { footprint: *footprint, context: least, wanted, budget };
        if plan.total() > budget {
            return Err(TooLarge { plan, fixed: configured.is_some() });
        }
        let left = budget - plan.total();
        let more = left / footprint.cache_per_token.max(1);
        plan.context = wanted.min(least + more);
        Ok(plan)
    }

    /// All of it.
    pub fn total(&self) -> usize {
        DAEMON.saturating_add(self.footprint.total(self.context))
    }
}

/// Megabytes with one decimal; MiB, as the configuration counts.
struct Mb(usize);

impl fmt::Display for Mb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}", self.0 as f64 / f64::from(1 << 20))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Footprint { mapped, copied, cache_per_token, scratch, tokenizer } = self.footprint;
        write!(
            f,
            "memory plan: weights {} + repacked {} + KV cache {} ({} tokens) + scratch {} + tokenizer {} + daemon {} \
             = {} of {} MiB",
            Mb(mapped),
            Mb(copied),
            Mb(cache_per_token.saturating_mul(self.context)),
            self.context,
            Mb(scratch),
            Mb(tokenizer),
            Mb(DAEMON),
            Mb(self.total()),
            Mb(self.budget)
        )?;
        if self.context < self.wanted {
            write!(f, "; context shortened from {}", self.wanted)?;
        }
        Ok(())
    }
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needed = self.plan.total().div_ceil(1 << 20);
        write!(f, "budget.memory_mb: the model does not fit: {}; allow {needed}", self.plan)?;
        if self.fixed {
            write!(f, ", or a shorter model.context")
        } else {
            write!(f, ", or use a smaller model")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: Footprint = Footprint {
        mapped: 100 << 20,
        copied: 0,
        cache_per_token: 1 << 20,
        scratch: 1 << 20,
        tokenizer: 1 << 20,
    };

    #[test]
    fn a_context_left_out_is_shortened_until_it_fits() {
        let whole = Plan::make(&MODEL, 1024, None, 2 << 30).expect("fits");
        assert_eq!(whole.context, 1024);
        let short = Plan::make(&MODEL, 1024, None, 500 << 20).expect("fits when shortened");
        assert_eq!(short.context, 500 - 102 - (DAEMON >> 20));
        assert!(short.total() <= 500 << 20);
        assert!(short.to_string().contains("shortened from 1024"), "{short}");
    }

    #[test]
    fn a_configured_context_is_never_shortened() {
        let refused = Plan::make(&MODEL, 1024, Some(512), 500 << 20).expect_err("does not fit");
        assert!(refused.fixed);
        assert!(refused.to_string().contains("allow 634"), "{refused}");
    }

    #[test]
    fn a_model_that_fits_with_no_context_is_refused_with_the_numbers() {
        let refused = Plan::make(&MODEL, 1024, None, 120 << 20).expect_err("does not fit");
        assert!(refused.to_string().contains("weights 100.0"), "{refused}");
    }

    #[test]
    fn absurd_numbers_from_a_file_are_refused_not_wrapped() {
        let hostile = Footprint { cache_per_token: usize::MAX / 2, ..MODEL };
        assert!(Plan::make(&hostile, usize::MAX, None, 1 << 30).is_err());
    }
}
