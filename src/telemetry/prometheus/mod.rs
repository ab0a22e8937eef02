//! Renders the report and the histograms in Prometheus' text format (version 0.0.4).
//!
//! Names: OpenTelemetry's `gen_ai.server.*` with underscores and the unit, its attributes as labels; all others
//! begin with `bitnetd_` and are in base units. An unknown sample is left out, and so is a family without samples.
//! Deliberately knows no transport: the caller gets a string.

mod exposition;
#[cfg(test)]
mod tests;

use super::{Distribution, ErrorType, Quantity, Telemetry};
use crate::protocol::{
    CacheCounts, ClientWaiting, Cpu, Decoding, Energy, Flag, GovernorReason, GovernorState, GuardReason,
    HttpCalls, Memory, Method, MqttLink, Pressure, Reading, Report, Requests, Security, ShortlistCounts,
    StructuredOutput, Thermal, Throttled, Throughput, json,
};
use exposition::{Exposition, Label, MetricFamily};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// The media type of the text, for a `Content-Type` header.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The longest name in a label, in bytes: the model's is repeated in most lines of the histograms.
const LONGEST_NAME: usize = 32;

/// Bytes that are left free of those that the text may have as JSON, for the event around it too.
const SPARE_BYTES: usize = 1100;

/// Renders all metrics at `now`. The text is below 64 KiB, also as a JSON string, whatever failed and whatever the
/// model's name is.
pub fn render(telemetry: &Telemetry, now: SystemTime) -> String {
    let report = telemetry.report(now);
    let about = telemetry.about();
    let model = about.as_ref().map(|about| name(&about.model));
    let mut text = Exposition::default();
    if let (Some(about), Some(model)) = (&about, &model) {
        let labels = [("version", env!("CARGO_PKG_VERSION")), ("model", model), ("kernel", &about.kernel)];
        text.gauge("bitnetd_build_info", "What runs here.").sample(&labels, Some(1.0));
    }
    text.gauge("bitnetd_uptime_seconds", "Since the daemon started.").count(report.uptime_s);
    latencies(&mut text, &telemetry.distributions(), model.as_deref());
    report_metrics(&mut text, &report);
    // Last, since it takes only the space that all totals leave.
    waiting(&mut text, &report.waiting);
    text.finish()
}

/// A name without characters that need escaping, since a model's file or a client may name itself anything.
fn name(name: &str) -> String {
    let plain = |c: char| if c.is_control() || matches!(c, '"' | '\\') { '?' } else { c };
    name[..name.floor_char_boundary(LONGEST_NAME)].chars().map(plain).collect()
}

fn report_metrics(text: &mut Exposition, report: &Report) {
    requests(text, &report.requests, &report.cache);
    structured_output(text, &report.structured_output);
    decoding(text, &report.decoding);
    http(text, &report.http);
    security(text, &report.security);
    throughput(text, &report.throughput);
    power(text, report.power.as_ref(), report.energy.as_ref());
    thermal(text, &report.thermal);
    cpu(text, &report.cpu);
    governor(text, report.governor.as_ref());
    memory(text, &report.memory);
    pressure(text, &report.cpu, &report.memory);
    if let Some(link) = &report.mqtt {
        mqtt(text, link);
    }
    alerts(text, &report.alerts);
    text.counter("bitnetd_log_lines_dropped_total", "Log lines dropped.").count(report.log.dropped);
}

fn latencies(text: &mut Exposition, all: &[Distribution], model: Option<&str>) {
    for (quantity, name, help) in [
        (
            Quantity::RequestDuration,
            "gen_ai_server_request_duration_seconds",
            "From a request's arrival to its last event.",
        ),
        (
            Quantity::TimeToFirstToken,
            "gen_ai_server_time_to_first_token_seconds",
            "From arrival to the first token, the queue included.",
        ),
        (
            Quantity::TimePerOutputToken,
            "gen_ai_server_time_per_output_token_seconds",
            "Between tokens after the first: a mean per request.",
        ),
        (Quantity::QueueTime, "bitnetd_queue_duration_seconds", "Waiting for the worker."),
    ] {
        let mut family = text.histogram(name, help);
        for found in all.iter().filter(|found| found.quantity == quantity) {
            let error = found.error.map(error_type);
            let mut labels = vec![("gen_ai_operation_name", "chat"), ("gen_ai_provider_name", "bitnetd")];
            // The model is the same for all; failures have a series for each type of error.
            labels.extend(match &error {
                Some(error) => Some(("error_type", error.as_str())),
                None => model.map(|model| ("gen_ai_request_model", model)),
            });
            family = family.distribution(&labels, found);
        }
    }
}

/// An error code as the protocol serialises it, or OpenTelemetry's value for all others.
fn error_type(error: ErrorType) -> String {
    let ErrorType::Code(code) = error else { return "_OTHER".into() };
    let json = serde_json::to_value(code).expect("a plain name");
    json.as_str().map(str::to_owned).unwrap_or_default()
}

fn requests(text: &mut Exposition, requests: &Requests, cache: &CacheCounts) {
    let Requests {
        received, completed, refused, budget_exceeded, cancelled, timed_out, queued, running, ..
    } = *requests;
    text.counter("bitnetd_requests_received_total", "Requests received.").count(received);
    text.counter("bitnetd_requests_completed_total", "Answered, whole or in part.").count(completed);
    text.counter("bitnetd_requests_refused_total", "Given an error.").count(refused);
    text.counter("bitnetd_requests_budget_exceeded_total", "Of the refused, for want of memory.")
        .count(budget_exceeded);
    text.counter("bitnetd_requests_cancelled_total", "Of both, cancelled.").count(cancelled);
    text.counter("bitnetd_requests_timed_out_total", "Of both, out of time.").count(timed_out);
    text.gauge("bitnetd_requests_queued", "Waiting now.").count(queued);
    text.gauge("bitnetd_requests_running", "Being answered now.").count(running);
    text.counter("bitnetd_requests_succeeded_total", "Answered whole.").count(requests.rates.succeeded);
    text.counter("bitnetd_requests_failed_total", "Failed here.").count(requests.rates.failed);
    text.counter("bitnetd_cache_hits_total", "Answers given again.").count(cache.rates.hits);
    text.counter("bitnetd_cache_misses_total", "Looked for and not found.").count(cache.misses);
    text.gauge("bitnetd_cache_entries", "Stored answers.").count(cache.entries);
    text.gauge("bitnetd_cache_bytes", "Their memory.").count(cache.bytes);
}

fn structured_output(text: &mut Exposition, counts: &StructuredOutput) {
    let StructuredOutput { requests, forced_tokens, refused, nothing_fits } = *counts;
    text.counter("bitnetd_structured_requests_total", "Answered under a grammar.").count(requests);
    text.counter("bitnetd_structured_forced_tokens_total", "Tokens that a grammar forced.")
        .count(forced_tokens);
    text.counter("bitnetd_structured_refused_total", "Refused for their format.").count(refused);
    text.counter("bitnetd_structured_nothing_fits_total", "Sentences that fit no intent.")
        .count(nothing_fits);
}

fn decoding(text: &mut Exposition, counts: &Decoding) {
    let Decoding {
        steps,
        step_requests,
        prefix_hits,
        prefix_tokens,
        suspensions,
        proposed_tokens,
        accepted_tokens,
    } = *counts;
    text.counter("bitnetd_decoding_steps_total", "Passes over the weights.").count(steps);
    text.counter("bitnetd_decoding_step_requests_total", "Requests in them.").count(step_requests);
    text.counter("bitnetd_prefix_hits_total", "Prompts found in part.").count(prefix_hits);
    text.counter("bitnetd_prefix_tokens_total", "Prompt tokens found.").count(prefix_tokens);
    text.counter("bitnetd_suspensions_total", "Slots given up.").count(suspensions);
    text.counter("bitnetd_proposed_tokens_total", "Tokens looked up.").count(proposed_tokens);
    text.counter("bitnetd_accepted_tokens_total", "Of these, accepted.").count(accepted_tokens);
}

/// Bytes that the text may have in addition. Alerts and counts of many digits need some more.
fn space(text: &Exposition) -> usize {
    (json::MAX_REQUEST - SPARE_BYTES).saturating_sub(text.json_len())
}

/// The waiting of as many of the clients as the text has space for.
fn waiting(text: &mut Exposition, clients: &[ClientWaiting]) {
    let space = space(text);
    let with = |named: usize| {
        let mut part = Exposition::default();
        waiting_of(&mut part, &clients[..named.min(clients.len())], &clients[named.min(clients.len())..]);
        part
    };
    let parts = [16, 8, 4, 2, 1, 0].into_iter().map(with);
    if let Some(part) = parts.into_iter().find(|part| part.json_len() < space) {
        text.append(part);
    }
}

/// A sample of each kind for each client that is named, those whose names begin alike as one, and for all `others` as
/// `client=""`.
fn waiting_of(text: &mut Exposition, named: &[ClientWaiting], others: &[ClientWaiting]) {
    let mut rows: BTreeMap<String, [f64; 3]> = BTreeMap::new();
    let names = named.iter().map(|row| name(row.client.as_deref().unwrap_or_default()));
    for (name, row) in names.chain(others.iter().map(|_| String::new())).zip(named.iter().chain(others)) {
        let sums = rows.entry(name).or_default();
        let counts = [row.begun as f64, row.waited_ms as f64 / 1000.0, row.waiting as f64];
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    let samples = |family: MetricFamily<'_>, at: usize| {
        rows.iter().fold(family, |family, (name, sums)| family.sample(&[("client", name)], Some(sums[at])));
    };
    samples(text.counter("bitnetd_client_begun_total", "Requests begun, by client."), 0);
    samples(text.counter("bitnetd_client_waited_seconds_total", "How long they waited."), 1);
    samples(text.gauge("bitnetd_client_waiting", "Waiting now, by client."), 2);
}

fn http(text: &mut Exposition, calls: &HttpCalls) {
    let HttpCalls { openai, ollama, own, denied, ignored_keys } = *calls;
    text.counter("bitnetd_http_calls_total", "Calls over HTTP, by API.")
        .sample(&[("api", "openai")], Some(openai as f64))
        .sample(&[("api", "ollama")], Some(ollama as f64))
        .sample(&[("api", "own")], Some(own as f64));
    text.counter("bitnetd_http_denied_total", "Of these, not allowed.").count(denied);
    text.counter("bitnetd_http_ignored_keys_total", "Unknown keys of calls.").count(ignored_keys);
}

/// The totals of the security record; its clients are in the report alone.
fn security(text: &mut Exposition, counts: &Security) {
    let mut refused = counts.refused;
    let mut family = text.counter("bitnetd_guard_refused_total", "Refused by the guard.");
    for reason in GuardReason::ALL {
        family = family.sample(&[("reason", reason.name())], Some(*refused.of(reason) as f64));
    }
    text.counter("bitnetd_failed_tokens_total", "Calls without a right token.").count(counts.failed_tokens);
    text.counter("bitnetd_commands_total", "Commands over MQTT.").count(counts.commands);
    text.counter("bitnetd_reloads_total", "Times the configuration was read again.").count(counts.reloads);
    text.counter("bitnetd_reloads_refused_total", "Of these, with an error.").count(counts.reloads_refused);
}

fn throughput(text: &mut Exposition, throughput: &Throughput) {
    text.counter("bitnetd_tokens_total", "Tokens read and generated.")
        .sample(&[("type", "input")], Some(throughput.prompt_tokens as f64))
        .sample(&[("type", "output")], Some(throughput.completion_tokens as f64));
    text.gauge("bitnetd_prompt_tokens_per_second", "While reading prompts, since start.")
        .unlabelled(throughput.prompt_tokens_per_second);
    text.gauge("bitnetd_tokens_per_second", "While generating, since start.")
        .unlabelled(throughput.tokens_per_second);
    let Some(ShortlistCounts { tokens, rows, scans, checks, misses }) = throughput.screen else { return };
    text.counter("bitnetd_screen_tokens_total", "Tokens chosen by screening.").count(tokens);
    text.counter("bitnetd_screen_rows_total", "Rows of the head read for them.").count(rows);
    text.counter("bitnetd_screen_scans_total", "Times the whole head was read.").count(scans);
    text.counter("bitnetd_screen_checks_total", "Comparisons with the whole head.").count(checks);
    text.counter("bitnetd_screen_misses_total", "Of these, with another token.").count(misses);
}

/// The labels for method, source and scope of a reading.
fn origin<'a>(source: &'a str, method: &'a str, scope: &'a str) -> [Label<'a>; 3] {
    [("source", source), ("method", method), ("scope", scope)]
}

fn method(method: Method) -> &'static str {
    match method {
        Method::Measured => "measured",
        Method::Derived => "derived",
        Method::Estimated => "estimated",
    }
}

/// A gauge of one reading, each of its units worth `scale` base units.
fn reading(
    text: &mut Exposition,
    name: &'static str,
    help: &'static str,
    reading: Option<&Reading>,
    scale: f64,
) {
    if let Some(found) = reading {
        let labels = origin(&found.source, method(found.method), &found.scope);
        text.gauge(name, help).sample(&labels, Some(found.value * scale));
    }
}

fn power(text: &mut Exposition, power: Option<&Reading>, energy: Option<&Energy>) {
    reading(text, "bitnetd_power_watts", "Power now.", power, 1.0);
    let Some(energy) = energy else { return };
    let labels = origin(&energy.source, method(energy.method), &energy.scope);
    text.counter("bitnetd_energy_joules_total", "Energy in all.").sample(&labels, Some(energy.joules));
    text.counter("bitnetd_energy_above_idle_joules_total", "Of it, beyond the idle power.")
        .sample(&labels, energy.joules_above_idle);
    text.counter("bitnetd_requests_energy_joules_total", "Of it, during requests.")
        .sample(&labels, Some(energy.requests_joules));
    text.gauge("bitnetd_energy_joules_per_token", "Energy per generated token.")
        .sample(&labels, energy.joules_per_token);
    text.gauge("bitnetd_energy_above_idle_joules_per_token", "The same beyond the idle power.")
        .sample(&labels, energy.joules_per_token_above_idle);
    text.gauge("bitnetd_idle_power_watts", "The power while nothing runs.").unlabelled(energy.idle_watts);
}

fn thermal(text: &mut Exposition, thermal: &Thermal) {
    reading(text, "bitnetd_temperature_celsius", "Of the processor.", thermal.cpu.as_ref(), 1.0);
    reading(text, "bitnetd_fan_rpm", "Turns a minute.", thermal.fan.as_ref(), 1.0);
    if let Some(Flag { value, method: how, source, scope }) = &thermal.under_voltage {
        text.gauge("bitnetd_under_voltage", "Whether the voltage is too low.")
            .sample(&origin(source, method(*how), scope), Some(f64::from(u8::from(*value))));
    }
    let Some(found) = &thermal.throttling else { return };
    reasons(text, "bitnetd_throttled", "Why the processor is held back now.", found.now);
    let help = "Why it was held back since the board was switched on.";
    reasons(text, "bitnetd_throttled_since_boot", help, found.since_boot);
}

fn reasons(text: &mut Exposition, name: &'static str, help: &'static str, found: Throttled) {
    let Throttled { under_voltage, frequency_capped, throttled, soft_temperature_limit } = found;
    let mut family = text.gauge(name, help);
    for (reason, is_so) in [
        ("under_voltage", under_voltage),
        ("frequency_capped", frequency_capped),
        ("throttled", throttled),
        ("soft_temperature_limit", soft_temperature_limit),
    ] {
        family = family.sample(&[("reason", reason)], Some(f64::from(u8::from(is_so))));
    }
}

fn cpu(text: &mut Exposition, cpu: &Cpu) {
    let ratio = |percent: Option<f32>| percent.map(|percent| f64::from(percent) / 100.0);
    text.gauge("bitnetd_host_cpu_ratio", "Load of all processors; 1 is all.")
        .unlabelled(ratio(cpu.host_percent));
    text.gauge("bitnetd_process_cpu_ratio", "By this process; 1 is one processor.")
        .unlabelled(ratio(cpu.process_percent));
    text.gauge("bitnetd_threads", "Threads of this process.")
        .unlabelled(cpu.threads.map(|threads| threads as f64));
    text.gauge("bitnetd_thread_limit", "Threads that may compute.")
        .unlabelled(cpu.thread_limit.map(|threads| threads as f64));
    text.gauge("bitnetd_load1", "One-minute load average of the host.").unlabelled(cpu.load_1m);
    reading(
        text,
        "bitnetd_cpu_frequency_hertz",
        "Of the fastest processor now.",
        cpu.frequency.as_ref(),
        1e6,
    );
    text.gauge("bitnetd_cpu_frequency_max_hertz", "What that may be at most.")
        .unlabelled(cpu.frequency_max_mhz.map(|mhz| mhz * 1e6));
}

/// What the governor allows, where it is on.
fn governor(text: &mut Exposition, state: Option<&GovernorState>) {
    let Some(GovernorState { threads, percent, reason, target_c, limit_watts }) = state else { return };
    text.gauge("bitnetd_governor_threads", "Threads that the governor allows.").count(*threads as u64);
    text.gauge("bitnetd_governor_pause_ratio", "Share of the time that they pause.")
        .unlabelled(Some(f64::from(100 - percent.min(&100)) / 100.0));
    let mut family = text.gauge("bitnetd_governor_reason", "Why it allows no more.");
    for known in GovernorReason::ALL {
        family = family.sample(&[("reason", known.name())], Some(f64::from(u8::from(known == *reason))));
    }
    text.gauge("bitnetd_governor_target_celsius", "The temperature that it keeps.").unlabelled(*target_c);
    text.gauge("bitnetd_governor_limit_watts", "The power that it keeps.").unlabelled(*limit_watts);
}

fn memory(text: &mut Exposition, memory: &Memory) {
    let bytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64);
    text.gauge("bitnetd_memory_process_bytes", "Resident memory of this process.")
        .unlabelled(bytes(memory.process_bytes));
    text.gauge("bitnetd_memory_budget_bytes", "What the budget allows it.").count(memory.budget_bytes);
    text.gauge("bitnetd_memory_host_total_bytes", "Of the host.").unlabelled(bytes(memory.host_total_bytes));
    text.gauge("bitnetd_memory_host_available_bytes", "Of the host, free for use.")
        .unlabelled(bytes(memory.host_available_bytes));
    text.gauge("bitnetd_memory_limit_enforced", "Whether the kernel limits it.")
        .count(memory.memory_limit_enforced.into());
    text.gauge("bitnetd_memory_group_bytes", "Of the control group, with files.")
        .unlabelled(bytes(memory.group_bytes));
    text.gauge("bitnetd_memory_group_peak_bytes", "The most that the group had.")
        .unlabelled(bytes(memory.group_peak_bytes));
    text.counter("bitnetd_memory_oom_kills_total", "Of the group, killed for memory.")
        .unlabelled(bytes(memory.oom_kills));
}

fn pressure(text: &mut Exposition, cpu: &Cpu, memory: &Memory) {
    let mut family = text.gauge("bitnetd_pressure_ratio", "Share of time that tasks waited.");
    for (resource, found) in [("cpu", cpu.pressure), ("memory", memory.pressure)] {
        let Some(Pressure { some_10s, some_60s, full_10s }) = found else { continue };
        let labels = |kind, window| [("resource", resource), ("kind", kind), ("window", window)];
        family = family
            .sample(&labels("some", "10s"), Some(some_10s / 100.0))
            .sample(&labels("some", "60s"), Some(some_60s / 100.0))
            .sample(&labels("full", "10s"), full_10s.map(|percent| percent / 100.0));
    }
}

fn mqtt(text: &mut Exposition, link: &MqttLink) {
    text.gauge("bitnetd_mqtt_connected", "Whether the broker is connected.").count(link.connected.into());
    text.counter("bitnetd_mqtt_connects_total", "Connections made.").count(link.connects);
    text.counter("bitnetd_mqtt_sessions_lost_total", "Connections without a session.")
        .count(link.sessions_lost);
    text.gauge("bitnetd_mqtt_outbox", "Replies not acknowledged yet.").count(link.outbox);
    text.gauge("bitnetd_mqtt_waiting", "Prompts of the broker without an answer.").count(link.waiting);
    text.counter("bitnetd_mqtt_subscriptions_lost_total", "Subscriptions that were missing.")
        .count(link.subscriptions_lost);
    text.counter("bitnetd_mqtt_duplicates_total", "Prompts delivered again.").count(link.duplicates);
    text.counter("bitnetd_mqtt_resent_total", "Prompts given a stored answer.").count(link.resent);
    text.counter("bitnetd_mqtt_dropped_total", "Replies given up, prompts ignored.").count(link.dropped);
    text.gauge("bitnetd_mqtt_durable", "Whether answers outlive a crash.").count(link.durable.into());
}

fn alerts(text: &mut Exposition, raised: &[String]) {
    text.gauge("bitnetd_alerts", "Alerts raised now.").count(raised.len() as u64);
    let mut family = text.gauge("bitnetd_alert", "1 for each alert that is raised now.");
    for name in raised {
        family = family.sample(&[("name", name)], Some(1.0));
    }
}
