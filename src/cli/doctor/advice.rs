//! What would make a model faster or safer on this device, in the order of gain. Pure: facts go in, advice comes out.
//!
//! Each piece of advice applies only where a number says so, and names that number. Deliberately measures nothing.

use crate::protocol::Thermal;
use crate::telemetry::sensors::{FrequencyGovernor, HostTuning, MemoryLimit, SwapUse};
use serde::Serialize;

/// A gain below this factor is not worth a change.
const MIN_GAIN: f64 = 1.05;
/// From this temperature on a Raspberry Pi lowers its clock. Source: the documentation of `vcgencmd get_throttled` by
/// Raspberry Pi Ltd.
const HOT_C: f64 = 80.0;
/// Drivers that choose the frequency themselves, also under a governor that is called `powersave`. Source: the kernel's
/// Documentation/admin-guide/pm/intel_pstate.rst and amd-pstate.rst.
const OWN_GOVERNORS: [&str; 3] = ["intel_pstate", "amd-pstate", "amd_pstate"];
/// Below this share of the speed that the memory allows it is not the memory that limits decoding.
pub(super) const MEMORY_BOUND_SHARE: f64 = 0.5;
/// The part of the weights that a token may read from the disk again before memory counts as short.
const MAX_READ_AGAIN: f64 = 0.01;

/// One piece of advice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Advice {
    /// `threads`, `context`, `head`, `cooling`, `supply`, `memory`, `swap`, `memory_limit` or `governor`.
    pub topic: &'static str,
    /// What to do, and the number that it rests on.
    pub text: String,
    /// How many times as fast it may become, an estimate; `null` where no number tells it.
    pub estimated_gain: Option<f64>,
}

/// What advice is made of.
#[derive(Debug, Clone)]
pub(super) struct AdviceFacts<'f> {
    /// `budget.threads`, and the processors that suit computing.
    pub threads: usize,
    pub processors: usize,
    /// The threads that generated, of which there may be fewer than allowed, because that was quicker.
    pub active_threads: usize,
    /// Tokens a second, expected by the memory bandwidth and measured.
    pub expected: f64,
    pub measured: f64,
    /// Bytes of weights for each token.
    pub weight_bytes: usize,
    pub head: Option<HeadSizes>,
    pub context: ContextFacts,
    /// Bytes that were read from the disk for each generated token because memory is short; `None` where unknown.
    pub read_again: Option<u64>,
    /// Free memory of the host, in bytes.
    pub available: Option<u64>,
    pub thermal: &'f Thermal,
    /// The clock now and at most, in MHz.
    pub clock_mhz: Option<(f64, f64)>,
    pub tuning: &'f HostTuning,
    pub limit: MemoryLimit,
}

/// The output head where it is read whole and need not be: its bytes in the file, and those of the short codes.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadSizes {
    pub whole: usize,
    pub screened: usize,
}

/// The context of the memory plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct ContextFacts {
    pub planned: usize,
    pub wanted: usize,
    /// Bytes of the KV cache for each token of context.
    pub bytes_per_position: usize,
    /// Whether the KV cache has the smaller of its formats already.
    pub is_int8: bool,
}

/// All advice that applies, that with the largest gain first; what has no number for it comes last.
pub(super) fn advice(facts: &AdviceFacts<'_>) -> Vec<Advice> {
    let all = [
        threads(facts),
        head(facts),
        governor(facts),
        cooling(facts),
        reading_again(facts),
        full_context(facts),
        swap(facts),
        shortened_context(facts),
        supply(facts),
        memory_limit(facts),
    ];
    let mut all: Vec<Advice> = all.into_iter().flatten().collect();
    // The sort is stable, so that pieces without a gain stay in the order above.
    all.sort_by(|a, b| b.estimated_gain.unwrap_or(0.0).total_cmp(&a.estimated_gain.unwrap_or(0.0)));
    all
}

fn advise(topic: &'static str, gain: Option<f64>, text: String) -> Option<Advice> {
    if gain.is_some_and(|gain| gain.is_nan() || gain < MIN_GAIN) {
        return None;
    }
    let estimated_gain = gain.map(|gain| (gain * 100.0).round() / 100.0);
    let text = match estimated_gain {
        Some(gain) => format!("{text}: up to {gain:.2} times as fast (ESTIMATED)"),
        None => text,
    };
    Some(Advice { topic, text, estimated_gain })
}

fn mb(bytes: f64) -> String {
    format!("{:.0} MB", bytes / 1e6)
}

/// Where fewer threads than allowed were quicker, more do not help.
fn threads(facts: &AdviceFacts<'_>) -> Option<Advice> {
    let AdviceFacts { threads, processors, active_threads, .. } = *facts;
    if threads >= processors || active_threads < threads {
        return None;
    }
    let gain = processors as f64 / threads as f64;
    let text = format!(
        "allow {processors} threads (budget.threads, --threads), one a processor, instead of {threads}"
    );
    advise("threads", Some(gain), text)
}

fn head(facts: &AdviceFacts<'_>) -> Option<Advice> {
    let HeadSizes { whole, screened } = facts.head?;
    let now = facts.weight_bytes as f64;
    let then = (now - whole as f64 + screened as f64).max(1.0);
    let text = format!(
        "model.head = \"screened\" reads short codes of {} instead of the whole output head, which is {} of the {} that \
         a token reads",
        mb(screened as f64),
        mb(whole as f64),
        mb(now)
    );
    advise("head", Some(now / then), text)
}

fn governor(facts: &AdviceFacts<'_>) -> Option<Advice> {
    let FrequencyGovernor { name, driver } = facts.tuning.governor.as_ref()?;
    let chooses_itself =
        driver.as_deref().is_some_and(|driver| OWN_GOVERNORS.iter().any(|own| driver.starts_with(own)));
    if chooses_itself || !matches!(name.as_str(), "powersave" | "conservative" | "userspace") {
        return None;
    }
    let (clock, gain) = match facts.clock_mhz {
        Some((now, most)) if now > 0.0 => (format!(", {now:.0} of {most:.0} MHz now"), Some(most / now)),
        _ => (String::new(), None),
    };
    let text = format!(
        "the frequency governor is {name}{clock}; write ondemand or performance to \
         /sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
    );
    advise("governor", gain, text)
}

fn cooling(facts: &AdviceFacts<'_>) -> Option<Advice> {
    let celsius = facts.thermal.cpu.as_ref().map(|cpu| cpu.value);
    let at = celsius.map_or(String::new(), |celsius| format!(", {celsius:.1} °C"));
    let throttling = facts.thermal.throttling.as_ref();
    let is_held = |flags: crate::protocol::Throttled| {
        flags.throttled || flags.frequency_capped || flags.soft_temperature_limit
    };
    let remedy = "a heat sink or a fan, or [governor] target_c";
    let text = match throttling {
        Some(flags) if is_held(flags.now) => {
            format!("the firmware throttles the processor now{at}; {remedy}")
        }
        _ if celsius.is_some_and(|celsius| celsius >= HOT_C) => {
            format!("the processor is hot{at}; a Raspberry Pi throttles from {HOT_C:.0} °C; {remedy}")
        }
        Some(flags) if is_held(flags.since_boot) => {
            format!("the firmware has throttled the processor since the device was switched on{at}; {remedy}")
        }
        _ => return None,
    };
    advise("cooling", None, text)
}

fn reading_again(facts: &AdviceFacts<'_>) -> Option<Advice> {
    let read = facts.read_again? as f64;
    if read <= facts.weight_bytes as f64 * MAX_READ_AGAIN {
        return None;
    }
    let free =
        facts.available.map_or(String::new(), |bytes| format!("; {} MiB are free on the host", bytes >> 20));
    let text = format!(
        "memory is short: about {} of the {} that a token reads came from the disk again{free}; stop other programs, or use \
         a smaller model or a board with more memory",
        mb(read),
        mb(facts.weight_bytes as f64)
    );
    advise("memory", Some(facts.expected / facts.measured), text)
}

/// What a token reads once the context is full, where reading is what takes the time.
fn full_context(facts: &AdviceFacts<'_>) -> Option<Advice> {
    let ContextFacts { planned, bytes_per_position, is_int8, .. } = facts.context;
    let (weights, cache) = (facts.weight_bytes as f64, (planned * bytes_per_position) as f64);
    if is_int8 || facts.measured < facts.expected * MEMORY_BOUND_SHARE {
        return None;
    }
    let text = format!(
        "once its {planned} tokens of context are full, a token reads {} of KV cache besides {} of weights; \
         model.kv_cache = \"int8\" halves the first, or set a shorter model.context",
        mb(cache),
        mb(weights)
    );
    advise("context", Some((weights + cache) / (weights + cache / 2.0)), text)
}

fn swap(facts: &AdviceFacts<'_>) -> Option<Advice> {
    let SwapUse { used, process, total, is_compressed } = facts.tuning.swap.clone()?;
    if process < 1 << 20 {
        return None;
    }
    let kind = if is_compressed { "compressed memory (zram)" } else { "swap" };
    let text = format!(
        "{} MiB of this process are in {kind}, of which the host uses {} of {} MiB; memory is short: stop other programs, or \
         lower budget.memory_mb or model.context",
        process >> 20,
        used >> 20,
        total >> 20
    );
    advise("swap", None, text)
}

fn shortened_context(facts: &AdviceFacts<'_>) -> Option<Advice> {
    let ContextFacts { planned, wanted, is_int8, .. } = facts.context;
    let int8 = if is_int8 { "" } else { ", or set model.kv_cache = \"int8\"" };
    let text = format!(
        "the memory plan shortens the context from {wanted} to {planned} tokens; allow more in budget.memory_mb{int8}"
    );
    (planned < wanted).then(|| advise("context", None, text)).flatten()
}

fn supply(facts: &AdviceFacts<'_>) -> Option<Advice> {
    let flags = facts.thermal.throttling.as_ref();
    let now = facts.thermal.under_voltage.as_ref().is_some_and(|flag| flag.value);
    let when = match (now, flags.is_some_and(|flags| flags.since_boot.under_voltage)) {
        (true, _) => "now",
        (false, true) => "since the device was switched on",
        (false, false) => return None,
    };
    let text = format!(
        "under-voltage {when}: the firmware lowers the clock; use the supply that is made for the board, with a short cable"
    );
    advise("supply", None, text)
}

fn memory_limit(facts: &AdviceFacts<'_>) -> Option<Advice> {
    match facts.limit {
        MemoryLimit::NoController => advise("memory_limit", None, super::NO_CONTROLLER.to_owned()),
        MemoryLimit::At(_) | MemoryLimit::NotSet => None,
    }
}
