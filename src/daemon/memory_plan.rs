//! The memory plan: what model and clients take of the budget, computed before anything is loaded. Deliberately
//! knows nothing of the memory that is in use.

use super::memory_guard;
use super::reload_places::ReloadPlaces;
use crate::config::Config;
use crate::engine::Footprint;
use crate::engine::model::KV_BLOCK;
use crate::guard::filter::Filter;
use crate::home;
use crate::protocol::json;
use crate::telemetry::{history, sensors};
use crate::transport::{http, mqtt, unix, wyoming};
use std::fmt;
use std::path::Path;

/// The daemon without model and clients: code, runtime, allocator slack. `tests/system` checks the whole process
/// against the plan.
const DAEMON_BYTES: usize = 14 << 20;

/// A waiting request without its text: its entries in the queue and in its transport, and its reply channel.
const REQUEST_BYTES: usize = 4 << 10;

/// The most that the texts of all waiting requests may take together: 64 of the longest, or ten thousand short
/// ones.
pub(super) const MAX_WAITING_TEXTS: usize = 64 * json::MAX_REQUEST;

/// The most prompts of the broker link that wait besides those of the socket: enough to keep the worker busy, while
/// the link keeps the others in turn.
const MAX_MQTT_WINDOW: usize = 64;

/// Clients that take more than this are named when the plan does not fit; by default they take 10 MiB.
const CLIENTS_WORTH_NAMING: usize = 16 << 20;

/// The shortest context that a plan is shortened to; a question and its answer still fit.
const MIN_CONTEXT: usize = 256;

/// The most requests that are answered at the same time where the owner names no number. More give little more in all, and
/// each of them becomes slower.
const DEFAULT_PARALLEL: usize = 4;

/// The parts of the memory plan, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What the model takes.
    pub footprint: Footprint,
    /// Tokens of context, shortened where memory requires it.
    pub context: usize,
    /// The configured context, or the model's own.
    pub wanted_context: usize,
    /// How many requests are answered at the same time.
    pub parallel: usize,
    /// The most memory that clients can make the daemon use.
    pub clients: ClientMemory,
    /// The budget.
    pub budget: MemoryBudget,
}

/// The most memory that clients can make the daemon use, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientMemory {
    /// All connections of the socket, of HTTP and of Wyoming, each with an unfinished request.
    pub connections: usize,
    /// The bodies of calls over HTTP, as long as one may be.
    pub http: usize,
    /// The same with the shortest limit of a body that memory may enforce.
    pub http_least: usize,
    /// A full queue, with the prompts of the broker link in it.
    pub queue: usize,
    /// The broker link with its buffers; 0 without one.
    pub link: usize,
    /// The names of the home; 0 without them.
    pub home: usize,
    /// The history and a report of it; 0 without one.
    pub history: usize,
    /// The cache of answers.
    pub answers: usize,
    /// The guard's filter, and another one that a reload reads beside it, up to twice as large; 0 without one.
    pub filter: usize,
}

/// The interfaces that are served over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServedOverTcp {
    /// HTTP.
    pub http: bool,
    /// The Wyoming protocol.
    pub wyoming: bool,
}

impl ServedOverTcp {
    /// What the configuration names.
    pub fn of(config: &Config) -> Self {
        ServedOverTcp { http: config.http.listen.is_some(), wyoming: config.wyoming.listen.is_some() }
    }
}

/// The memory that the process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryBudget {
    /// The limit, in bytes.
    pub bytes: usize,
    /// Whether it is the control group's limit, because that is lower than the configured budget.
    pub is_cgroup_limit: bool,
}

impl ClientMemory {
    /// The memory for the clients of a daemon with these settings.
    pub fn of(config: &Config, serves: ServedOverTcp) -> Self {
        let link = config.mqtt.as_ref().map(|_| mqtt::LINK_BYTES + config.queue.inbox_bytes);
        let connections = [
            (config.socket.connections, unix::CONNECTION_BYTES),
            (if serves.wyoming { wyoming::MAX_CONNECTIONS } else { 0 }, wyoming::CONNECTION_BYTES),
            (if serves.http { http::MAX_CONNECTIONS } else { 0 }, http::CONNECTION_BYTES),
        ];
        let clients = Self::estimate(config.queue.depth, &connections, link);
        ClientMemory {
            home: if config.home.is_enabled { home::HOME_BYTES } else { 0 },
            history: if config.history.is_enabled { history::HISTORY_BYTES } else { 0 },
            answers: config.cache.answers_bytes,
            http: http::BODY_FACTOR * config.http.body_bytes,
            http_least: http::BODY_FACTOR * config.http.least_body_bytes,
            ..clients
        }
    }

    /// `connections`: how many there may be of each kind, and the bytes of one. `link`: bytes of the broker link; `None`
    /// without one.
    fn estimate(depth: usize, connections: &[(usize, usize)], link: Option<usize>) -> Self {
        let count: usize = connections.iter().map(|(count, _)| count).sum();
        // The first request of each connection may wait besides the others; its text counts towards the common
        // limit.
        let queue =
            (depth + count) * REQUEST_BYTES + MAX_WAITING_TEXTS.min((depth + count) * json::MAX_REQUEST);
        let handed_over = link.map_or(0, |_| mqtt_window(depth) * (REQUEST_BYTES + json::MAX_REQUEST));
        ClientMemory {
            connections: connections.iter().map(|(count, bytes)| count * bytes).sum(),
            queue: queue + handed_over,
            link: link.unwrap_or(0),
            http: 0,
            http_least: 0,
            home: 0,
            history: 0,
            answers: 0,
            filter: 0,
        }
    }

    /// The same with a filter of answers. While a reload reads another one, both are in memory; that one may be twice as large,
    /// so that patterns can be added without a restart.
    pub fn with_filter(self, filter: Option<&Filter>, config: &Config) -> Self {
        ClientMemory {
            filter: filter.map_or(0, |filter| 3 * filter_bytes(filter, config.budget.parallel)),
            ..self
        }
    }

    fn total(&self) -> usize {
        let Self { connections, http, http_least: _, queue, link, home, history, answers, filter } = self;
        connections + http + queue + link + home + history + answers + filter
    }
}

/// The most bytes that a filter takes: with a stream for each answer, one for an answer that is suspended, and one for a
/// search in a whole text.
/// `parallel`: the answers at the same time that are configured.
pub(super) fn filter_bytes(filter: &Filter, parallel: Option<usize>) -> usize {
    filter.bytes(parallel.unwrap_or(DEFAULT_PARALLEL) + 2)
}

/// How many prompts of the broker link may wait in the queue besides the `depth` of the socket.
pub(super) fn mqtt_window(depth: usize) -> usize {
    depth.min(MAX_MQTT_WINDOW)
}

impl MemoryBudget {
    /// The configured budget, or the limit of the control group where that is lower.
    pub fn of_config(config: &Config) -> Self {
        let configured = config.budget.memory_bytes;
        match sensors::memory_limit(Path::new("/")).bytes().filter(|limit| *limit < configured) {
            Some(limit) => MemoryBudget { bytes: limit as usize, is_cgroup_limit: true },
            None => MemoryBudget { bytes: configured as usize, is_cgroup_limit: false },
        }
    }
}

/// A model that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLarge {
    /// The smallest plan.
    pub plan: MemoryPlan,
    /// Whether the context is configured, and so may not be shortened.
    pub is_context_configured: bool,
}

impl MemoryPlan {
    /// Plans `footprint` and `clients` within `budget`. A `configured` context is never shortened; without one the
    /// model's own is shortened until it fits. Without a number of requests at the same time, `parallel`, there are as many
    /// as fit then, up to four.
    pub fn make(
        footprint: &Footprint,
        models_own: usize,
        configured: Option<usize>,
        parallel: Option<usize>,
        clients: ClientMemory,
        budget: MemoryBudget,
    ) -> Result<Self, Box<TooLarge>> {
        let wanted = configured.unwrap_or(models_own);
        let least = if configured.is_some() { wanted } else { wanted.min(MIN_CONTEXT) };
        let most_http = clients.http;
        let clients = ClientMemory { http: clients.http_least, ..clients };
        let mut plan = MemoryPlan {
            footprint: *footprint,
            context: least,
            wanted_context: wanted,
            parallel: parallel.unwrap_or(1),
            clients,
            budget,
        };
        if plan.total() > budget.bytes {
            return Err(Box::new(TooLarge { plan, is_context_configured: configured.is_some() }));
        }
        // Structured output and long bodies of calls come before a longer context, but not before the model itself.
        let left = budget.bytes - plan.total();
        let left = left.checked_sub(plan.structured_output()).unwrap_or(left);
        plan.clients.http += left.min(most_http - plan.clients.http);
        let left = left - (plan.clients.http - clients.http_least);
        let more = left / footprint.cache_per_token.saturating_mul(plan.parallel).max(1);
        plan.context = wanted.min((least + more) / KV_BLOCK * KV_BLOCK).max(least);
        if parallel.is_none() {
            plan.add_sequences();
        }
        Ok(plan)
    }

    /// Plans as many requests at the same time as fit.
    fn add_sequences(&mut self) {
        while self.parallel < DEFAULT_PARALLEL {
            let more = MemoryPlan { parallel: self.parallel + 1, ..self.clone() };
            if more.total_with_structured_output() > self.budget.bytes {
                return;
            }
            *self = more;
        }
    }

    /// The most grammars at work at the same time: one for each answer, and one for a request that is prepared or was
    /// suspended, of which the worker keeps one at most.
    pub fn grammars(&self) -> usize {
        self.parallel + 1
    }

    /// What structured output takes where all answers have a grammar.
    pub fn structured_output(&self) -> usize {
        self.footprint.structured_output(self.grammars())
    }

    fn total_with_structured_output(&self) -> usize {
        self.total().saturating_add(self.structured_output())
    }

    /// Tokens of the KV cache, for all requests that are answered at the same time.
    pub(super) fn cache_tokens(&self) -> usize {
        self.context.next_multiple_of(KV_BLOCK) * self.parallel
    }

    /// Maximum length of a call's body over HTTP: the configured one, shortened where memory requires it.
    pub fn body_bytes(&self) -> usize {
        self.clients.http / http::BODY_FACTOR
    }

    /// What a reload may give to the parts of the plan whose size it changes.
    pub(super) fn reload_places(&self) -> ReloadPlaces {
        let most = match self.unplanned_grammar() {
            None => self.total_with_structured_output(),
            Some(_) => self.total(),
        };
        let spare = self.budget.bytes.saturating_sub(most);
        ReloadPlaces { answers: self.clients.answers, filters: self.clients.filter, spare }
    }

    /// All of the plan, the reserve included.
    pub fn total(&self) -> usize {
        self.used().saturating_add(self.reserve())
    }

    /// Why structured output is refused: with its memory the plan exceeds the budget. `None` where it fits.
    pub fn unplanned_grammar(&self) -> Option<String> {
        let total = self.total_with_structured_output();
        (total > self.budget.bytes).then(|| {
            format!(
                "structured output takes {} MiB more, with which the memory plan has {} of {} MiB; allow more \
                 in budget.memory_mb, or a shorter model.context, or a smaller budget.parallel",
                Mebibytes(self.structured_output()),
                Mebibytes(total),
                Mebibytes(self.budget.bytes)
            )
        })
    }

    /// All of the plan without the reserve.
    pub(super) fn used(&self) -> usize {
        (DAEMON_BYTES + self.clients.total())
            .saturating_add(self.footprint.total(self.context, self.parallel))
    }

    /// The reserve: with less free memory no work is admitted.
    pub(super) fn reserve(&self) -> usize {
        memory_guard::reserve(self.budget.bytes as u64) as usize
    }

    /// The smallest budget in MiB that this plan fits. It is searched, since a larger budget has a larger reserve.
    fn min_budget_mb(&self) -> usize {
        let fits = |mb: &usize| {
            (mb << 20).saturating_sub(memory_guard::reserve((*mb as u64) << 20) as usize) >= self.used()
        };
        let about = self.used().div_ceil(1 << 20);
        (about..).find(fits).unwrap_or(about)
    }
}

/// Bytes shown as MiB with one decimal.
struct Mebibytes(usize);

impl fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}", self.0 as f64 / f64::from(1 << 20))
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Footprint { mapped, copied, scratch, tokenizer, per_sequence, .. } = self.footprint;
        let together = if self.parallel == 1 { String::new() } else { format!("{} times ", self.parallel) };
        write!(
            f,
            "memory plan: weights {} + repacked {} + KV cache {} ({together}{} tokens) + scratch {} + tokenizer {} + \
             connections {} + HTTP {} + queue {} + broker link {} + home {} + history {} + \
             answers {} + filter {} + daemon {} + reserve {} = {} of {} MiB",
            Mebibytes(mapped),
            Mebibytes(copied),
            Mebibytes(self.footprint.cache_bytes(self.context).saturating_mul(self.parallel)),
            self.context,
            Mebibytes(scratch.saturating_add(per_sequence.saturating_mul(self.parallel))),
            Mebibytes(tokenizer),
            Mebibytes(self.clients.connections),
            Mebibytes(self.clients.http),
            Mebibytes(self.clients.queue),
            Mebibytes(self.clients.link),
            Mebibytes(self.clients.home),
            Mebibytes(self.clients.history),
            Mebibytes(self.clients.answers),
            Mebibytes(self.clients.filter),
            Mebibytes(DAEMON_BYTES),
            Mebibytes(self.reserve()),
            Mebibytes(self.total()),
            Mebibytes(self.budget.bytes)
        )?;
        let structured_output = Mebibytes(self.structured_output());
        match self.unplanned_grammar() {
            None => write!(f, "; structured output {structured_output} more")?,
            Some(_) => write!(f, "; no structured output, which takes {structured_output} more")?,
        }
        if self.context < self.wanted_context {
            write!(f, "; context shortened from {}", self.wanted_context)?;
        }
        Ok(())
    }
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needed = self.plan.min_budget_mb();
        // Where the control group's limit is the lower one, a larger configured budget would not help.
        let place = if self.plan.budget.is_cgroup_limit {
            "the control group's memory limit"
        } else {
            "budget.memory_mb"
        };
        write!(f, "{place}: the model does not fit: {}; allow {needed}", self.plan)?;
        if self.plan.clients.total() > CLIENTS_WORTH_NAMING {
            write!(f, ", or a smaller queue.depth or socket.connections")?;
        }
        if self.is_context_configured {
            write!(f, ", or a shorter model.context")
        } else {
            write!(f, ", or use a smaller model")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Host;
    use std::path::PathBuf;

    const MODEL: Footprint = Footprint {
        mapped: 100 << 20,
        copied: 0,
        cache_per_token: 1 << 20,
        scratch: 1 << 20,
        per_sequence: 0,
        tokenizer: 1 << 20,
        token_trie: 0,
        per_grammar: 0,
    };

    const CLIENTS: ClientMemory = ClientMemory {
        connections: 3 << 20,
        queue: 1 << 20,
        link: 2 << 20,
        http: 0,
        http_least: 0,
        home: 0,
        history: 0,
        answers: 0,
        filter: 0,
    };

    fn plan(model: &Footprint, configured: Option<usize>, bytes: usize) -> Result<MemoryPlan, Box<TooLarge>> {
        MemoryPlan::make(
            model,
            1024,
            configured,
            Some(1),
            CLIENTS,
            MemoryBudget { bytes, is_cgroup_limit: false },
        )
    }

    #[test]
    fn the_limit_of_a_body_is_shortened_before_a_model_is_refused() {
        let clients = ClientMemory {
            http: http::BODY_FACTOR << 20,
            http_least: http::BODY_FACTOR << 16,
            ..ClientMemory::default()
        };
        let body = |mb: usize| {
            let budget = MemoryBudget { bytes: mb << 20, is_cgroup_limit: false };
            MemoryPlan::make(&MODEL, 2048, Some(256), None, clients, budget).map(|plan| plan.body_bytes())
        };
        let least = (1..4096).find(|mb| body(*mb).is_ok()).expect("some budget is enough");
        assert!((64 << 10..256 << 10).contains(&body(least).expect("fits")));
        assert_eq!(body(least + 64), Ok(1 << 20));
    }

    #[test]
    fn a_long_queue_is_planned_and_named_where_it_does_not_fit() {
        let sockets = [(64, unix::CONNECTION_BYTES)];
        let few = ClientMemory::estimate(16, &sockets, None);
        let many = ClientMemory::estimate(10_000, &sockets, None);
        assert_eq!(few.queue, 80 * REQUEST_BYTES + MAX_WAITING_TEXTS);
        assert_eq!(many.queue, 10_064 * REQUEST_BYTES + MAX_WAITING_TEXTS);
        let linked = ClientMemory::estimate(16, &sockets, Some(5));
        assert_eq!(linked.queue, few.queue + 16 * (REQUEST_BYTES + json::MAX_REQUEST));
        assert_eq!((few.connections, few.link), (many.connections, 0));
        let allowed = MemoryBudget { bytes: 203 << 20, is_cgroup_limit: true };
        let refused =
            MemoryPlan::make(&MODEL, 1, None, None, many, allowed).expect_err("does not fit").to_string();
        assert!(refused.contains("queue 43.3") && refused.contains("queue.depth"), "{refused}");
        assert!(refused.starts_with("the control group's memory limit: "), "{refused}");
        assert!(MemoryPlan::make(&MODEL, 1, None, None, few, allowed).is_ok());
    }

    #[test]
    fn clients_over_tcp_are_planned_where_they_are_served() {
        let unix = (64, unix::CONNECTION_BYTES);
        let without = ClientMemory::estimate(16, &[unix, (0, wyoming::CONNECTION_BYTES)], None);
        let with = ClientMemory::estimate(16, &[unix, (16, wyoming::CONNECTION_BYTES)], None);
        assert_eq!(without, ClientMemory::estimate(16, &[unix], None));
        assert_eq!(with.connections - without.connections, 16 * wyoming::CONNECTION_BYTES);
        assert_eq!(with.queue - without.queue, 16 * REQUEST_BYTES, "the texts have one limit");
    }

    #[test]
    fn a_filter_is_planned_with_its_successor_and_another_may_take_what_is_left_of_the_budget() {
        let filter = Filter::parse("some words\n/[0-9]{8}/\n").expect("sound");
        let config = Config::defaults(&Host {
            name: "cellar".into(),
            memory_bytes: 1 << 30,
            processors: 4,
            big: vec![],
            runtime_dir: PathBuf::new(),
            cache_dir: PathBuf::new(),
            state_dir: PathBuf::new(),
            credentials_dir: None,
        });
        let takes = filter_bytes(&filter, config.budget.parallel);
        assert!((512 << 10..4 << 20).contains(&takes), "{takes}");
        let clients = CLIENTS.with_filter(Some(&filter), &config);
        assert_eq!((clients.filter, CLIENTS.with_filter(None, &config).filter), (3 * takes, 0));
        let budget = |mb: usize| MemoryBudget { bytes: mb << 20, is_cgroup_limit: false };
        let planned =
            |clients, mb| MemoryPlan::make(&MODEL, 64, Some(64), Some(1), clients, budget(mb)).expect("fits");
        let (with, without) = (planned(clients, 1000), planned(CLIENTS, 1000));
        assert_eq!(with.total() - without.total(), 3 * takes);
        assert_eq!(
            with.reload_places().most_filters(0),
            without.reload_places().most_filters(0),
            "all that is left"
        );
        assert_eq!(with.reload_places().most_filters(0) - 3 * takes, (1000 << 20) - with.total());
        // In a full plan there is the place for another filter, and without a filter none.
        let least = (1..1000)
            .find(|mb| MemoryPlan::make(&MODEL, 64, Some(64), Some(1), clients, budget(*mb)).is_ok());
        let least = planned(clients, least.expect("some budget is enough"));
        assert!(
            (3 * takes..3 * takes + (1 << 20)).contains(&least.reload_places().most_filters(0)),
            "{least}"
        );
    }

    #[test]
    fn a_context_left_out_is_shortened_until_it_fits() {
        let whole = plan(&MODEL, None, 2 << 30).expect("fits");
        assert_eq!(whole.context, 1024);
        let short = plan(&MODEL, None, 500 << 20).expect("fits when shortened");
        // 6 MiB for the clients, and 6 for the reserve.
        // In whole blocks.
        assert_eq!(short.context, (500 - 102 - 6 - 6 - (DAEMON_BYTES >> 20)) / KV_BLOCK * KV_BLOCK);
        assert!(short.total() <= 500 << 20);
        assert!(short.to_string().contains("shortened from 1024"), "{short}");
    }

    #[test]
    fn as_many_requests_at_the_same_time_are_planned_as_fit_up_to_four() {
        let budget = |mb: usize| MemoryBudget { bytes: mb << 20, is_cgroup_limit: false };
        let planned = |parallel, mb| MemoryPlan::make(&MODEL, 64, None, parallel, CLIENTS, budget(mb));
        let count = |mb| planned(None, mb).expect("fits").parallel;
        assert_eq!([220, 300, 360, 420, 4000].map(count), [1, 2, 3, 4, 4]);
        // A number of the owner's is planned, or refused.
        assert_eq!(planned(Some(16), 2000).expect("fits").parallel, 16);
        assert!(planned(Some(16), 1000).is_err());
        let text = planned(Some(3), 2000).expect("fits").to_string();
        assert!(text.contains("KV cache 192.0 (3 times 64 tokens)"), "{text}");
    }

    #[test]
    fn structured_output_is_planned_with_a_grammar_for_each_answer_and_one_more() {
        let model = Footprint { token_trie: 20 << 20, per_grammar: 4 << 20, ..MODEL };
        let budget = |mb: usize| MemoryBudget { bytes: mb << 20, is_cgroup_limit: false };
        let planned = |parallel, mb| MemoryPlan::make(&model, 64, Some(64), parallel, CLIENTS, budget(mb));
        for parallel in [1, 4, 16] {
            // The smallest budget with structured output has it for all answers at the same time.
            let unplanned = |mb| planned(Some(parallel), mb).map(|plan| plan.unplanned_grammar());
            let least = (1..4000).find(|mb| unplanned(*mb) == Ok(None)).expect("some budget is enough");
            let plan = planned(Some(parallel), least).expect("it fits");
            assert_eq!(plan.structured_output(), (20 + 4 * (parallel + 1)) << 20);
            assert!(plan.total() + plan.structured_output() <= least << 20, "{plan}");
            let refusal = unplanned(least - 1).expect("the model fits").expect("structured output does not");
            let takes = format!("structured output takes {}.0 MiB more", 20 + 4 * (parallel + 1));
            assert!(refusal.starts_with(&takes) && refusal.contains("budget.parallel"), "{refusal}");
        }
        // By default there are no more answers at the same time than structured output has place for.
        let plans: Vec<_> = (1..2000).flat_map(|mb| planned(None, mb)).collect();
        assert_eq!(plans.last().map(|plan| plan.parallel), Some(4));
        assert!(plans.iter().all(|plan| plan.parallel == 1 || plan.unplanned_grammar().is_none()));
    }

    #[test]
    fn a_configured_context_is_never_shortened() {
        let refused = plan(&MODEL, Some(512), 500 << 20).expect_err("does not fit");
        assert!(refused.is_context_configured);
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
