//! `bitnetd doctor`: examines what this device has, and what of it the daemon would use. Deliberately loads no
//! model, except the one that `--model` names.

mod advice;
mod model_judgement;
#[cfg(test)]
mod tests;

use super::serve::{block_on, load};
use super::{Failure, host, print};
use crate::cli::activity::Activity;
use crate::config::{Config, Mqtt};
use crate::engine::kernels::{Kernels, cpu_features};
use crate::protocol::Method;
use crate::protocol::text::{json_line, one_line};
use crate::telemetry::sensors::{self, FoundSensor, MemoryLimit, RejectedSensor, Sensors};
use crate::transport::mqtt;
use model_judgement::ModelJudgement;
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Say what this device has, and what of it the daemon would use
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Doctor {
    /// The configuration, for the broker [default: as with serve]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Load this GGUF file, or built-in, generate some tokens, and judge: which board has the memory for it, how fast it
    /// should be and is here, and what would help
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Longest wait for the broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// Why no memory limit can be set, and the remedy.
const NO_CONTROLLER: &str = "the kernel's memory controller is off, as Raspberry Pi OS ships it, and MemoryMax= does nothing; add \
     cgroup_enable=memory to the one line of /boot/firmware/cmdline.txt and restart the device";
/// Seed of the self-test; any number will do.
const SEED: u64 = 158;

#[derive(Serialize)]
struct DoctorReport {
    version: &'static str,
    architecture: &'static str,
    processors: usize,
    /// The number of big ones; all, where they are alike.
    big_processors: usize,
    cpu_features: Vec<Feature>,
    kernel: &'static str,
    kernels: Vec<KernelTest>,
    sensors: Vec<Sensor>,
    /// Sensors that exist and whose readings are rejected.
    not_believed: Vec<RejectedReading>,
    /// For each reading that will be null, the reason and a remedy.
    missing: Vec<String>,
    memory: MemoryLimits,
    broker: Option<BrokerCheck>,
    /// `null` without `--model`.
    model: Option<ModelJudgement>,
}

#[derive(Serialize)]
struct Feature {
    name: &'static str,
    present: bool,
}

#[derive(Serialize)]
struct KernelTest {
    name: &'static str,
    /// `ok`, or where it differs from the scalar reference.
    self_test: String,
}

#[derive(Serialize)]
struct Sensor {
    name: &'static str,
    value: Option<String>,
    source: String,
    method: Method,
    scope: String,
}

#[derive(Serialize)]
struct RejectedReading {
    name: &'static str,
    source: String,
    reason: String,
}

impl From<RejectedSensor> for RejectedReading {
    fn from(found: RejectedSensor) -> Self {
        let RejectedSensor { name, source, reason } = found;
        RejectedReading { name, source, reason }
    }
}

impl Sensor {
    fn line(&self) -> String {
        let Sensor { name, value, source, method, scope } = self;
        let value = value.as_deref().map_or(String::new(), |value| format!("{value}, "));
        let method = match method {
            Method::Measured => "measured",
            Method::Derived => "derived",
            Method::Estimated => "ESTIMATED",
        };
        format!("{name}: {value}{method}, scope {scope}, from {source}")
    }
}

impl From<FoundSensor> for Sensor {
    fn from(found: FoundSensor) -> Self {
        let FoundSensor { name, value, source, method, scope } = found;
        Sensor { name, value, source, method, scope }
    }
}

#[derive(Serialize)]
struct MemoryLimits {
    usable_bytes: u64,
    limit_bytes: Option<u64>,
    memory_limit_enforced: bool,
    /// Why none is enforced, and a remedy.
    limit_problem: Option<&'static str>,
    budget_bytes: u64,
}

#[derive(Serialize)]
struct BrokerCheck {
    address: String,
    reachable: bool,
    #[serde(rename = "said")]
    answer: String,
}

pub(super) fn run(args: Doctor) -> Result<(), Failure> {
    let config = load(args.config.as_deref())?;
    let mut report = examine(&config)?;
    report.model = args.model.as_deref().map(|model| ModelJudgement::new(&config, model)).transpose()?;
    match args.json {
        true => print(json_line(&report).as_bytes())?,
        false => print(table(&report).as_bytes())?,
    }
    // A kernel that computes wrongly, and a model that does not fit, are the only findings that make the command fail.
    match report.kernels.iter().find(|kernel| kernel.self_test != "ok") {
        Some(kernel) => {
            Err(Failure::system(format!("{}; use another kernel and report this", kernel.self_test)))
        }
        None => report.model.as_ref().and_then(ModelJudgement::failure).map_or(Ok(()), Err),
    }
}

fn examine(config: &Config) -> Result<DoctorReport, Failure> {
    let root = Path::new("/");
    let limit = sensors::memory_limit(root);
    let processors = host::processors();
    let (mut sensors, now) = (Sensors::new(root).estimating(config.telemetry.board_watts), Instant::now());
    let test = |kernels: &Kernels| KernelTest {
        name: kernels.name(),
        self_test: kernels.self_test(SEED).err().unwrap_or_else(|| "ok".into()),
    };
    Ok(DoctorReport {
        version: env!("CARGO_PKG_VERSION"),
        architecture: std::env::consts::ARCH,
        processors: processors.big.len() + processors.little.len(),
        big_processors: processors.big.len(),
        cpu_features: cpu_features().into_iter().map(|(name, present)| Feature { name, present }).collect(),
        kernel: Kernels::detect().name(),
        kernels: Kernels::all().iter().map(test).collect(),
        sensors: sensors.found(now).into_iter().map(Sensor::from).collect(),
        not_believed: sensors.rejected(now).into_iter().map(RejectedReading::from).collect(),
        missing: sensors.missing(now),
        memory: MemoryLimits {
            usable_bytes: sensors::host_memory(root),
            limit_bytes: limit.bytes(),
            memory_limit_enforced: limit.bytes().is_some(),
            limit_problem: limit_problem(limit),
            budget_bytes: config.budget.memory_bytes,
        },
        broker: config.mqtt.as_ref().map(|broker| probe(broker, &config.device.id)).transpose()?,
        model: None,
    })
}

/// The daemon keeps to its budget by itself; a limit of the kernel also covers faults of the daemon.
fn limit_problem(limit: MemoryLimit) -> Option<&'static str> {
    match limit {
        MemoryLimit::At(_) => None,
        MemoryLimit::NotSet => Some("no limit is set; set MemoryMax= and MemorySwapMax=0 in the unit"),
        MemoryLimit::NoController => Some(NO_CONTROLLER),
    }
}

fn probe(config: &Mqtt, device: &str) -> Result<BrokerCheck, Failure> {
    let _activity = Activity::begin("asking the broker");
    let answer = block_on(mqtt::probe(config, device, BROKER_TIMEOUT))?;
    Ok(BrokerCheck {
        address: format!("{}:{}", config.host, config.port),
        reachable: answer.is_ok(),
        answer: answer.map_or_else(|error| error, |report| describe(config, &report)),
    })
}

fn describe(config: &Mqtt, report: &mqtt::ProbeReport) -> String {
    let how = if config.tls.is_some() { "encrypted" } else { "not encrypted" };
    let took = format!("answered in {:.0} ms, {how}", report.took.as_secs_f64() * 1000.0);
    let Some(limits) = &report.limits else {
        return format!("{took}; MQTT 3.1.1, which does not tell its limits");
    };
    let yes = |has: bool| if has { "yes" } else { "no" };
    let largest = limits.max_packet_size.map_or("any size".into(), |bytes| format!("{bytes} bytes"));
    format!(
        "{took}; QoS {}, retain {}, shared subscriptions {}, packets up to {largest}",
        limits.max_qos,
        yes(limits.retained_messages),
        yes(limits.shared_subscriptions),
    )
}

fn table(report: &DoctorReport) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: &str| {
        writeln!(out, "{name:<14} {text}").expect("into a string");
    };
    line("bitnetd", &format!("{} on {}", report.version, report.architecture));
    let little = report.processors - report.big_processors;
    let kinds = match little {
        0 => String::new(),
        _ => format!(" ({} big, {little} little)", report.big_processors),
    };
    line("processors", &format!("{}{kinds}", report.processors));
    let features = |present: bool| {
        let names = report.cpu_features.iter().filter(|f| f.present == present).map(|f| f.name);
        names.collect::<Vec<_>>().join(" ")
    };
    line("cpu features", &format!("{} (not: {})", features(true), features(false)));
    for kernel in &report.kernels {
        let chosen = if kernel.name == report.kernel { ", chosen" } else { "" };
        line("kernel", &format!("{}: self-test {}{chosen}", kernel.name, kernel.self_test));
    }
    for sensor in &report.sensors {
        line("sensor", &one_line(&sensor.line()));
    }
    for RejectedReading { name, source, reason } in &report.not_believed {
        line("not believed", &one_line(&format!("{name}: from {source}: {reason}")));
    }
    for missing in &report.missing {
        line("missing", &one_line(missing));
    }
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    line(
        "memory",
        &format!("{} usable, budget {}", mib(report.memory.usable_bytes), mib(report.memory.budget_bytes)),
    );
    let limit = match (report.memory.limit_bytes, report.memory.limit_problem) {
        (Some(bytes), _) => format!("{} enforced by the control group", mib(bytes)),
        (None, why) => format!("NOT enforced: {}", why.unwrap_or("the kernel does not say why")),
    };
    line("memory limit", &limit);
    match &report.broker {
        None => line("broker", "none configured: set mqtt.host for a link"),
        Some(broker) => {
            let reachable = if broker.reachable { "reachable" } else { "NOT reachable" };
            line("broker", &format!("{} {reachable}: {}", broker.address, broker.answer));
        }
    }
    let judged = report.model.as_ref().map(ModelJudgement::lines).unwrap_or_default();
    judged.iter().for_each(|(name, text)| line(name, text));
    out
}
