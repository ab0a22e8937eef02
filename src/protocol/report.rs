//! The telemetry report, as it goes to `P/D/telemetry`.

use super::{Method, Security};
use serde::Serialize;

/// One telemetry report. What is not known is null, never a made-up number.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// RFC 3339, UTC.
    pub time: String,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Power now, in watts.
    pub power: Option<Reading>,
    /// Temperature, and what is done against it.
    pub thermal: Thermal,
    /// Load and clock.
    pub cpu: Cpu,
    /// Memory of process and host.
    pub memory: Memory,
    /// Percentiles since start, of the last minute and of the last hour.
    pub latency: Latency,
    /// Speed.
    pub throughput: Throughput,
    /// Counters since start.
    pub requests: Requests,
    /// Energy since start.
    pub energy: Option<Energy>,
    /// Answers given again.
    pub cache: CacheCounts,
    /// Answers that had to fit a `response_format`.
    pub structured_output: StructuredOutput,
    /// Requests that are answered together.
    pub decoding: Decoding,
    /// What the governor allows; null where it is off.
    pub governor: Option<GovernorState>,
    /// How long the requests of each client waited: of the 16 busiest, then the sum of all others.
    pub waiting: Vec<ClientWaiting>,
    /// Calls over HTTP.
    pub http: HttpCalls,
    /// What the guard refused.
    pub security: Security,
    /// The broker link; null where none is configured.
    pub mqtt: Option<MqttLink>,
    /// Names of the alerts now raised.
    pub alerts: Vec<String>,
    /// The log.
    pub log: LogLines,
}

/// How much the governor lets the daemon compute.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GovernorState {
    /// Threads that compute.
    pub threads: usize,
    /// The part of the time in which they do, in percent.
    pub percent: u8,
    /// Why it is no more.
    pub reason: GovernorReason,
    /// The temperature in degrees Celsius that is to be kept; null without one.
    pub target_c: Option<f64>,
    /// The power in watts that is to be kept; null without one.
    pub limit_watts: Option<f64>,
}

/// What limits how much is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GovernorReason {
    /// Nothing does.
    None,
    /// The temperature of the processor.
    Temperature,
    /// The power of the board.
    Power,
    /// The time of day.
    QuietHours,
    /// The machine runs on its battery.
    Battery,
}

impl GovernorReason {
    /// All of them.
    pub const ALL: [GovernorReason; 5] = [
        GovernorReason::None,
        GovernorReason::Temperature,
        GovernorReason::Power,
        GovernorReason::QuietHours,
        GovernorReason::Battery,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            GovernorReason::None => "none",
            GovernorReason::Temperature => "temperature",
            GovernorReason::Power => "power",
            GovernorReason::QuietHours => "quiet_hours",
            GovernorReason::Battery => "battery",
        }
    }
}

/// What happened to log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct LogLines {
    /// Lines not written since start, because the log was not read, or was written too fast.
    pub dropped: u64,
}

/// A number with where it came from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reading {
    /// In `unit`.
    pub value: f64,
    /// `W`, `°C`, `MHz`, `1/min`.
    pub unit: &'static str,
    /// How it came about.
    pub method: Method,
    /// The file or device it was read from.
    pub source: String,
    /// What it covers: `board`, `module` (a Jetson's, without its carrier), `package` (the processor's), `pmic_rails`
    /// (what lies behind the power chip of a Raspberry Pi 5), `as wired` (whatever hangs behind a monitor chip), `cpu`,
    /// `fan`.
    pub scope: String,
}

/// Heat, and what is done against it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Thermal {
    /// The processor's temperature, in degrees Celsius.
    pub cpu: Option<Reading>,
    /// What the firmware holds the processor back for.
    pub throttling: Option<Throttling>,
    /// Whether the supply's voltage is too low.
    pub under_voltage: Option<Flag>,
    /// Turns a minute of the fan.
    pub fan: Option<Reading>,
}

/// A yes or no with where it came from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Flag {
    /// Whether it is so.
    pub value: bool,
    /// How it is known.
    pub method: Method,
    /// The file or device it was read from.
    pub source: String,
    /// What it covers.
    pub scope: String,
}

/// The Raspberry Pi firmware's throttle flags.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Throttling {
    /// At this moment.
    pub now: Throttled,
    /// At any time since the board was switched on.
    pub since_boot: Throttled,
    /// How it is known.
    pub method: Method,
    /// The device it was read from.
    pub source: String,
    /// What it covers.
    pub scope: String,
}

/// Why a Raspberry Pi may run slower than it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Throttled {
    /// The supply's voltage is too low.
    pub under_voltage: bool,
    /// The clock of the processor is held down.
    pub frequency_capped: bool,
    /// The processor is throttled.
    pub throttled: bool,
    /// The soft temperature limit is reached.
    pub soft_temperature_limit: bool,
}

impl Throttled {
    /// Whether the processor is held back for any reason.
    pub fn any(self) -> bool {
        let Throttled { under_voltage, frequency_capped, throttled, soft_temperature_limit } = self;
        under_voltage || frequency_capped || throttled || soft_temperature_limit
    }
}

/// How much of the time tasks waited for a resource, in percent: the kernel's pressure stall information (PSI).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Pressure {
    /// Some task waited, mean of the last 10 s.
    pub some_10s: f64,
    /// Some task waited, mean of the last 60 s.
    pub some_60s: f64,
    /// All tasks waited, mean of the last 10 s; null where the kernel does not tell.
    pub full_10s: Option<f64>,
}

/// Processor load.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Cpu {
    /// All processors, 0 to 100: the mean of the last 10 s, or since the reading before where that is longer ago.
    pub host_percent: Option<f32>,
    /// This process, 100 a processor: a mean over the same time.
    pub process_percent: Option<f32>,
    /// Operating-system threads of this process.
    pub threads: Option<usize>,
    /// Threads that may compute now, by the owner's last command: at most `budget.threads`.
    pub thread_limit: Option<usize>,
    /// One-minute load average.
    pub load_1m: Option<f64>,
    /// Clock of the fastest processor now, in MHz, as the kernel requests it. `throttling` shows where the firmware
    /// lowers it, because of heat or low voltage.
    pub frequency: Option<Reading>,
    /// What that clock may be at most, in MHz.
    pub frequency_max_mhz: Option<f64>,
    /// Waiting for a processor, on the whole host; null where the kernel does not tell, as on a stock Raspberry Pi OS.
    pub pressure: Option<Pressure>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Memory {
    /// Resident memory of this process.
    pub process_bytes: Option<u64>,
    /// What the budget allows it.
    pub budget_bytes: u64,
    /// Of the host.
    pub host_total_bytes: Option<u64>,
    /// Of the host, free for use.
    pub host_available_bytes: Option<u64>,
    /// Whether the kernel holds this process to a limit; false on a stock Raspberry Pi OS.
    pub memory_limit_enforced: bool,
    /// Of the control group, pages of files included.
    pub group_bytes: Option<u64>,
    /// The most that the control group ever had.
    pub group_peak_bytes: Option<u64>,
    /// Processes of the control group that the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Waiting for memory, on the whole host; null where the kernel does not tell.
    pub pressure: Option<Pressure>,
}

/// Percentiles of one quantity, in milliseconds; null before the first request.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Percentiles {
    /// Median.
    pub p50: Option<f64>,
    /// 95th percentile.
    pub p95: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
    /// How many values.
    pub count: u64,
}

/// Percentiles since start, of the last minute and of the last hour.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct LatencyWindows {
    /// Since start.
    #[serde(flatten)]
    pub all: Percentiles,
    /// Of the last 60 seconds, and of 2 more at most.
    pub last_minute: Percentiles,
    /// Of the last 60 minutes, and of one more at most.
    pub last_hour: Percentiles,
}

/// Latencies of answered requests, in milliseconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Latency {
    /// Waiting for the worker.
    pub queue_ms: LatencyWindows,
    /// From arrival to the first token.
    pub ttft_ms: LatencyWindows,
    /// Between tokens after the first: one mean for each request.
    pub token_ms: LatencyWindows,
    /// From arrival to the last token.
    pub total_ms: LatencyWindows,
}

/// Tokens and their speed.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Throughput {
    /// Prompt tokens read since start.
    pub prompt_tokens: u64,
    /// Tokens generated since start.
    pub completion_tokens: u64,
    /// Prompt tokens a second while reading prompts.
    pub prompt_tokens_per_second: Option<f64>,
    /// Tokens a second while generating.
    pub tokens_per_second: Option<f64>,
    /// How well screening the head works; null where it is read whole.
    pub screen: Option<ShortlistCounts>,
}

/// Counts of the LM head's shortlist since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ShortlistCounts {
    /// Tokens that were chosen through it.
    pub tokens: u64,
    /// Rows of the LM head that were read for them.
    pub rows: u64,
    /// Times that the whole LM head was read because the shortlist could not be trusted.
    pub scans: u64,
    /// Times that its result was compared with the whole LM head.
    pub checks: u64,
    /// Comparisons with another best token; after the first the shortlist is disabled.
    pub misses: u64,
}

/// Requests by what became of them.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Requests {
    /// Received and submitted to the queue, over every transport.
    pub received: u64,
    /// Ended with a `done` event, including answers that were cut off.
    pub completed: u64,
    /// Given an `error` event; what could not be read as a request counts too.
    pub refused: u64,
    /// Of these, for want of memory.
    pub budget_exceeded: u64,
    /// Cancelled by their client.
    pub cancelled: u64,
    /// Out of time.
    pub timed_out: u64,
    /// Waiting now.
    pub queued: u64,
    /// Being answered now, those included that gave up their slot and will go on.
    pub running: u64,
    /// How many succeeded, how often they came and how long they took, since start.
    #[serde(flatten)]
    pub rates: RequestRates,
    /// The same of the last 60 minutes, and of one more at most.
    pub last_hour: RequestRates,
}

/// How many requests succeeded, how often they came, and how long they took.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct RequestRates {
    /// Ended with a whole answer: `done` with `stop` or `length`.
    pub succeeded: u64,
    /// Ended without one for a reason that lies with the daemon: it was out of time, had no place or no memory for it, or had
    /// a fault.
    pub failed: u64,
    /// The first by both together: what clients caused counts for neither.
    pub success_ratio: Option<f64>,
    /// Requests that ended in a minute, however they did.
    pub per_minute: Option<f64>,
    /// The mean time from arrival to the last event of those that succeeded, in seconds; those answered from the cache count
    /// too.
    pub mean_s: Option<f64>,
}

/// Energy since start.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Energy {
    /// Joules in all, also while nothing was asked.
    pub joules: f64,
    /// Of these, what was drawn beyond the idle power while requests were computed, of the requests for which that
    /// is known; null before the first.
    pub joules_above_idle: Option<f64>,
    /// Joules drawn while requests were computed, of the requests whose energy is known.
    pub requests_joules: f64,
    /// Joules for each generated token, of the requests whose energy is known.
    pub joules_per_token: Option<f64>,
    /// The same beyond the idle power.
    pub joules_per_token_above_idle: Option<f64>,
    /// The power while nothing runs, in watts: of an estimate as the owner says, else as it was seen (the median of the
    /// last ten idle minutes); null before ten idle seconds.
    pub idle_watts: Option<f64>,
    /// How the power behind it was known.
    pub method: Method,
    /// Where that power was read last.
    pub source: String,
    /// What that power covers.
    pub scope: String,
}

/// The cache of answers.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct CacheCounts {
    /// How often an answer was found there since start.
    #[serde(flatten)]
    pub rates: CacheRates,
    /// Requests that looked and found nothing.
    pub misses: u64,
    /// Answers that are stored now.
    pub entries: u64,
    /// Bytes of memory that these take with their requests.
    pub bytes: u64,
    /// How often an answer was found in the last 60 minutes, and in one more at most.
    pub last_hour: CacheRates,
}

/// How often an answer was found in the cache.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct CacheRates {
    /// Requests that looked.
    pub lookups: u64,
    /// Requests answered from it.
    pub hits: u64,
    /// The second by the first.
    pub hit_ratio: Option<f64>,
}

/// Answers that had to fit a `response_format`, since start.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct StructuredOutput {
    /// Answers that were computed under a grammar.
    pub requests: u64,
    /// Tokens of these answers that the grammar forced, so that they were not sampled.
    pub forced_tokens: u64,
    /// Requests that were refused because of their `response_format`.
    pub refused: u64,
    /// Answers that no intent of the home fits the sentence.
    pub nothing_fits: u64,
}

/// Requests that are answered together, since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Decoding {
    /// Passes over the weights.
    pub steps: u64,
    /// The sum over all passes of the requests that took part: divided by `steps` it is the mean batch size.
    pub step_requests: u64,
    /// Answers whose prompt began like an earlier one, so that its beginning was not computed again.
    pub prefix_hits: u64,
    /// The tokens of these beginnings.
    pub prefix_tokens: u64,
    /// How often a request of low priority gave up its slot for one of high priority, to go on later.
    pub suspensions: u64,
    /// Tokens that were looked up and read in a pass before it was known whether they would be chosen.
    pub proposed_tokens: u64,
    /// Those of them that were chosen, each of which saved a pass.
    pub accepted_tokens: u64,
}

/// The waiting of one client's requests, or of those of all that are not named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientWaiting {
    /// The client, as the log names it; null is the sum of all others.
    pub client: Option<String>,
    /// Requests that were begun since start.
    pub begun: u64,
    /// How long these waited until then, all together, in milliseconds.
    pub waited_ms: u64,
    /// Requests that wait now.
    pub waiting: u64,
}

/// Calls over HTTP since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct HttpCalls {
    /// Calls of OpenAI's API.
    pub openai: u64,
    /// Calls of Ollama's API.
    pub ollama: u64,
    /// Calls of the daemon's own pages.
    pub own: u64,
    /// Of all, those that were not allowed: their host, their origin or their token.
    pub denied: u64,
    /// Keys of calls that are not known here and were ignored.
    pub ignored_keys: u64,
}

/// State of the broker link. The transport publishes it, and the report contains it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct MqttLink {
    /// Whether the broker is connected.
    pub connected: bool,
    /// Whether the broker granted the subscriptions to the daemon's own topics. Not part of the report.
    #[serde(skip)]
    pub subscribed: bool,
    /// Connections made since start.
    pub connects: u64,
    /// Connections after the first on which the broker no longer knew our session.
    pub sessions_lost: u64,
    /// Replies not yet acknowledged by the broker.
    pub outbox: u64,
    /// Prompts of the broker that have no answer yet.
    pub waiting: u64,
    /// Whether prompts do not reach the daemon, although the broker is connected.
    pub deaf: bool,
    /// How often a subscription was found missing and asked for again.
    pub subscriptions_lost: u64,
    /// Prompts that the broker delivered again, which were not computed again.
    pub duplicates: u64,
    /// Prompts that were answered with a stored answer.
    pub resent: u64,
    /// Whether answers survive a crash of the daemon.
    pub durable: bool,
    /// Why they do not, where they should.
    pub storage_problem: Option<String>,
    /// Replies given up, and prompts at QoS 0 dropped in a flood.
    pub dropped: u64,
    /// The present or last problem of the link.
    pub problem: Option<String>,
}
