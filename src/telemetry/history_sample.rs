//! Fills the history from what is counted and observed.
//!
//! Deliberately computes nothing: the history does.

use super::history::{History, HistoryCounts, HistorySample, HistorySteps};
use super::{Telemetry, locked};
use crate::protocol::Throttled;
use std::time::{Instant, SystemTime};

impl Telemetry {
    /// Begins the history, behind what is known of earlier daemons.
    pub fn begin_history(&self, earlier: HistorySteps) {
        *locked(&self.history) = Some(History::new(earlier));
    }

    /// Adds what was recorded until now to the history, where there is one; to be called about once a second.
    pub fn record_history(&self, now: Instant, wall: SystemTime) {
        if let Some(history) = locked(&self.history).as_mut() {
            let sample = self.history_sample();
            history.observe(now, wall, &sample, locked(&self.request_stats).latencies_since_start());
        }
    }

    /// The history as it is now; `None` where there is none.
    pub fn history(&self) -> Option<HistorySteps> {
        let history = locked(&self.history);
        let steps = history.as_ref()?.steps(locked(&self.request_stats).latencies_since_start());
        Some(steps)
    }

    fn history_sample(&self) -> HistorySample {
        let counts = self.history_counts();
        // One lock after the other: the report takes these two the other way round.
        let alert_bits = locked(&self.alerts).raised_bits();
        let seen = locked(&self.last_observed);
        let thermal = &seen.host.thermal;
        let flags = thermal.throttling.as_ref().map(|throttling| throttling.now);
        HistorySample {
            power_w: seen.host.power.as_ref().map(|power| power.value),
            temperature_c: thermal.cpu.as_ref().map(|cpu| cpu.value),
            throttled: flags.map(|flags| Throttled { under_voltage: false, ..flags }.any()),
            under_voltage: thermal
                .under_voltage
                .as_ref()
                .map(|flag| flag.value)
                .or(flags.map(|flags| flags.under_voltage)),
            cpu_percent: seen.host.cpu.host_percent.map(f64::from),
            queued: self.waiting.total(),
            running: self.running.get(),
            memory_bytes: seen.host.memory.process_bytes,
            budget_bytes: self.budget_bytes,
            alert_bits,
            counts,
        }
    }

    fn history_counts(&self) -> HistoryCounts {
        let joules = locked(&self.meter).joules();
        let answers = locked(&self.request_stats);
        let (throughput, (decoded_tokens, decode_s)) = (answers.throughput(), answers.decoded());
        HistoryCounts {
            completed: self.completed.get(),
            failed: self.failed.get(),
            refused: self.refused.get(),
            cancelled: self.cancelled.get(),
            cache_hits: self.cache_hits.get(),
            cache_misses: self.cache_misses.get(),
            prompt_tokens: throughput.prompt_tokens,
            completion_tokens: throughput.completion_tokens,
            decoded_tokens,
            decode_s,
            joules,
            request_joules: answers.joules(),
            request_tokens: answers.energy_tokens(),
            alerts_raised: self.alerts_raised.get(),
        }
    }
}
