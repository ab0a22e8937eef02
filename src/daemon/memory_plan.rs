//! The memory plan: what a model takes under the budget, computed before anything is loaded.

use super::memory_guard;
use crate::config::Config;
use crate::engine::Footprint;
use crate::protocol::json;
use crate::telemetry::sensors;
use crate::transport::{mqtt, unix};
use std::fmt;
use std::path::Path;

/// The daemon without model and clients: code, runtime, allocator slack. `tests/system` holds the whole process
/// to the plan made with it.
const DAEMON: usize = 14 << 20;

/// A waiting request beside its own text: its places in the queue, at its door and in the way back.
const WAITING: usize = 4 << 10;

/// Most that the texts of all waiting requests may hold together. A queue of any depth takes this many long ones
/// (64 of the longest there are); ten thousand short ones fit as well.
pub(super) const WAITING_TEXTS: usize = 64 * json::MAX_REQUEST;

/// Most prompts of the broker link that wait beside those of the socket: whatever the depth, the worker is never short of
/// work with these, and the link keeps the others in turn.
const HANDED_OVER: usize = 64;

/// Clients that take more than this are worth a word when the plan does not fit; by default they take 10 MiB.
const MANY_CLIENTS: usize = 16 << 20;

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
    /// The most that clients can make the daemon hold.
    pub clients: Clients,
    /// What is allowed.
    pub budget: Allowed,
}

/// What clients can make the daemon hold, whatever they do, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Clients {
    /// As many connections of the socket as there may be, each with an unfinished request.
    pub connections: usize,
    /// A full queue, with what the broker link hands over to it.
    pub queue: usize,
    /// The broker link, with all that waits for the broker; 0 without one.
    pub link: usize,
}

/// The memory that may be used, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// How much.
    pub bytes: usize,
    /// Whether the kernel's limit allows it, which is lower than the configuration's.
    pub is_kernels: bool,
}

impl Clients {
    /// The most that the clients of a daemon with these settings can do.
    pub fn of(config: &Config) -> Self {
        let link = config.mqtt.as_ref().map(|_| mqtt::LINK_BYTES + config.queue.inbox_bytes);
        Self::reckon(config.queue.depth, config.socket.connections, link)
    }

    /// `link`: bytes of the broker link; `None` without one.
    fn reckon(depth: usize, connections: usize, link: Option<usize>) -> Self {
        // A connection's first request may wait beside the others, its text within the bound of all.
        let queue =
            (depth + connections) * WAITING + WAITING_TEXTS.min((depth + connections) * json::MAX_REQUEST);
        let handed_over = link.map_or(0, |_| window(depth) * (WAITING + json::MAX_REQUEST));
        Clients {
            connections: connections * unix::CONNECTION_BYTES,
            queue: queue + handed_over,
            link: link.unwrap_or(0),
        }
    }

    fn total(&self) -> usize {
        self.connections + self.queue + self.link
    }
}

/// Prompts that the broker link may hand over at a time, beside the `depth` of the socket.
pub(super) fn window(depth: usize) -> usize {
    depth.min(HANDED_OVER)
}

impl Allowed {
    /// The configured budget, or the limit of the control group where that is lower.
    pub fn by(config: &Config) -> Self {
        let configured = config.budget.memory_bytes;
        match sensors::memory_limit(Path::new("/")).bytes().filter(|limit| *limit < configured) {
            Some(limit) => Allowed { bytes: limit as usize, is_kernels: true },
            None => Allowed { bytes: configured as usize, is_kernels: false },
        }
    }
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
    /// Plans `footprint` and `clients` within `budget`. A `configured` context is kept as it is; without one the
    /// model's own is shortened until it fits.
    pub fn make(
        footprint: &Footprint,
        models_own: usize,
        configured: Option<usize>,
        clients: Clients,
        budget: Allowed,
    ) -> Result<Self, TooLarge> {
        let wanted = configured.unwrap_or(models_own);
        let least = if configured.is_some() { wanted } else { wanted.min(SHORTEST) };
        let mut plan = Plan { footprint: *footprint, context: least, wanted, clients, budget };
        if plan.total() > budget.bytes {
            return Err(TooLarge { plan, fixed: configured.is_some() });
        }
        let left = budget.bytes - plan.total();
        let more = left / footprint.cache_per_token.max(1);
        plan.context = wanted.min(least + more);
        Ok(plan)
    }

    /// All of it, what is kept free included.
    pub fn total(&self) -> usize {
        self.held().saturating_add(self.reserve())
    }

    /// All of it but what is kept free.
    pub(super) fn held(&self) -> usize {
        (DAEMON + self.clients.total()).saturating_add(self.footprint.total(self.context))
    }

    /// Below this much free memory no work is taken.
    pub(super) fn reserve(&self) -> usize {
        memory_guard::margin(self.budget.bytes as u64) as usize
    }

    /// The least budget, in MiB, that this plan fits: a larger one has a larger reserve.
    fn least_mb(&self) -> usize {
        let fits = |mb: &usize| {
            (mb << 20).saturating_sub(memory_guard::margin((*mb as u64) << 20) as usize) >= self.held()
        };
        let about = self.held().div_ceil(1 << 20);
        (about..).find(fits).unwrap_or(about)
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
            "memory plan: weights {} + repacked {} + KV cache {} ({} tokens) + scratch {} + tokenizer {} + \
             connections {} + queue {} + broker link {} + daemon {} + reserve {} = {} of {} MiB",
            Mb(mapped),
            Mb(copied),
            Mb(cache_per_token.saturating_mul(self.context)),
            self.context,
            Mb(scratch),
            Mb(tokenizer),
            Mb(self.clients.connections),
            Mb(self.clients.queue),
            Mb(self.clients.link),
            Mb(DAEMON),
            Mb(self.reserve()),
            Mb(self.total()),
            Mb(self.budget.bytes)
        )?;
        if self.context < self.wanted {
            write!(f, "; context shortened from {}", self.wanted)?;
        }
        Ok(())
    }
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needed = self.plan.least_mb();
        // Where the kernel's limit is in the way, a larger number in the configuration would not help.
        let place =
            if self.plan.budget.is_kernels { "the control group's memory limit" } else { "budget.memory_mb" };
        write!(f, "{place}: the model does not fit: {}; allow {needed}", self.plan)?;
        if self.plan.clients.total() > MANY_CLIENTS {
            write!(f, ", or a smaller queue.depth or socket.connections")?;
        }
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

    const CLIENTS: Clients = Clients { connections: 3 << 20, queue: 1 << 20, link: 2 << 20 };

    fn plan(model: &Footprint, configured: Option<usize>, bytes: usize) -> Result<Plan, TooLarge> {
        Plan::make(model, 1024, configured, CLIENTS, Allowed { bytes, is_kernels: false })
    }

    #[test]
    fn a_long_queue_is_planned_and_named_where_it_does_not_fit() {
        let (few, many) = (Clients::reckon(16, 64, None), Clients::reckon(10_000, 64, None));
        assert_eq!(few.queue, 80 * WAITING + WAITING_TEXTS);
        assert_eq!(many.queue, 10_064 * WAITING + WAITING_TEXTS);
        let linked = Clients::reckon(16, 64, Some(5));
        assert_eq!(linked.queue, few.queue + 16 * (WAITING + json::MAX_REQUEST));
        assert_eq!((few.connections, few.link), (many.connections, 0));
        let allowed = Allowed { bytes: 140 << 20, is_kernels: true };
        let refused = Plan::make(&MODEL, 1, None, many, allowed).expect_err("does not fit").to_string();
        assert!(refused.contains("queue 43.3") && refused.contains("queue.depth"), "{refused}");
        assert!(refused.starts_with("the control group's memory limit: "), "{refused}");
        assert!(Plan::make(&MODEL, 1, None, few, allowed).is_ok());
    }

    #[test]
    fn a_context_left_out_is_shortened_until_it_fits() {
        let whole = plan(&MODEL, None, 2 << 30).expect("fits");
        assert_eq!(whole.context, 1024);
        let short = plan(&MODEL, None, 500 << 20).expect("fits when shortened");
        // 6 MiB for the clients, and 6 as the reserve.
        assert_eq!(short.context, 500 - 102 - 6 - 6 - (DAEMON >> 20));
        assert!(short.total() <= 500 << 20);
        assert!(short.to_string().contains("shortened from 1024"), "{short}");
    }

    #[test]
    fn a_configured_context_is_never_shortened() {
        let refused = plan(&MODEL, Some(512), 500 << 20).expect_err("does not fit");
        assert!(refused.fixed);
        assert!(refused.to_string().contains("allow 640"), "{refused}");
    }

    #[test]
    fn a_model_that_fits_with_no_context_is_refused_with_the_numbers() {
        let refused = plan(&MODEL, None, 120 << 20).expect_err("does not fit");
        assert!(refused.to_string().contains("weights 100.0"), "{refused}");
    }

    #[test]
    fn absurd_numbers_from_a_file_are_refused_not_wrapped() {
        let hostile = Footprint { cache_per_token: usize::MAX / 2, ..MODEL };
        assert!(plan(&hostile, None, 1 << 30).is_err());
    }
}
