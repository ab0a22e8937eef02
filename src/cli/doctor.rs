//! `bitnetd doctor`: what this device has, and what of it the daemon would use.

use super::serve::{block_on, load};
use super::{Failure, host, print};
use crate::config::{Config, Mqtt};
use crate::engine::kernels::{Kernels, cpu_features};
use crate::protocol::Method;
use crate::protocol::text::{json_line, one_line};
use crate::telemetry::sensors::{self, Found, MemoryLimit, Sensors, Unbelieved};
use crate::transport::mqtt;
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
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Longest wait for the broker.
const BROKER: Duration = Duration::from_secs(5);
/// Start of the self-test's numbers; any will do.
const SEED: u64 = 158;

#[derive(Serialize)]
struct Said {
    version: &'static str,
    architecture: &'static str,
    processors: usize,
    /// The fast ones among them: all, where they are alike.
    big_processors: usize,
    cpu_features: Vec<Feature>,
    kernel: &'static str,
    kernels: Vec<KernelTest>,
    sensors: Vec<Sensor>,
    /// Sensors that are there and whose readings are left out.
    not_believed: Vec<NotBelieved>,
    /// Of the readings that will be null: why, and the way out.
    missing: Vec<String>,
    memory: Memory,
    broker: Option<Broker>,
}

#[derive(Serialize)]
struct Feature {
    name: &'static str,
    present: bool,
}

#[derive(Serialize)]
struct KernelTest {
    name: &'static str,
    /// `ok`, or where it parts from the reference.
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
struct NotBelieved {
    name: &'static str,
    source: String,
    reason: String,
}

impl From<Unbelieved> for NotBelieved {
    fn from(found: Unbelieved) -> Self {
        let Unbelieved { name, source, reason } = found;
        NotBelieved { name, source, reason }
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

impl From<Found> for Sensor {
    fn from(found: Found) -> Self {
        let Found { name, value, source, method, scope } = found;
        Sensor { name, value, source, method, scope }
    }
}

#[derive(Serialize)]
struct Memory {
    usable_bytes: u64,
    limit_bytes: Option<u64>,
    memory_limit_enforced: bool,
    /// Why none is enforced, and the way out.
    limit_problem: Option<&'static str>,
    budget_bytes: u64,
}

#[derive(Serialize)]
struct Broker {
    address: String,
    reachable: bool,
    said: String,
}

pub(super) fn run(args: Doctor) -> Result<(), Failure> {
    let config = load(args.config.as_deref())?;
    let said = look(&config)?;
    match args.json {
        true => print(json_line(&said).as_bytes())?,
        false => print(table(&said).as_bytes())?,
    }
    // A kernel that computes wrongly is the one finding that must not pass for a healthy device.
    match said.kernels.iter().find(|kernel| kernel.self_test != "ok") {
        Some(kernel) => {
            Err(Failure::system(format!("{}; use another kernel and report this", kernel.self_test)))
        }
        None => Ok(()),
    }
}

fn look(config: &Config) -> Result<Said, Failure> {
    let root = Path::new("/");
    let limit = sensors::memory_limit(root);
    let processors = host::processors();
    let (mut sensors, now) = (Sensors::new(root).estimating(config.telemetry.board_watts), Instant::now());
    let test = |kernels: &Kernels| KernelTest {
        name: kernels.name(),
        self_test: kernels.self_test(SEED).err().unwrap_or_else(|| "ok".into()),
    };
    Ok(Said {
        version: env!("CARGO_PKG_VERSION"),
        architecture: std::env::consts::ARCH,
        processors: processors.big.len() + processors.little.len(),
        big_processors: processors.big.len(),
        cpu_features: cpu_features().into_iter().map(|(name, present)| Feature { name, present }).collect(),
        kernel: Kernels::detect().name(),
        kernels: Kernels::all().iter().map(test).collect(),
        sensors: sensors.found(now).into_iter().map(Sensor::from).collect(),
        not_believed: sensors.unbelieved(now).into_iter().map(NotBelieved::from).collect(),
        missing: sensors.missing(now),
        memory: Memory {
            usable_bytes: sensors::host_memory(root),
            limit_bytes: limit.bytes(),
            memory_limit_enforced: limit.bytes().is_some(),
            limit_problem: limit_problem(limit),
            budget_bytes: config.budget.memory_bytes,
        },
        broker: config.mqtt.as_ref().map(|broker| probe(broker, &config.device.id)).transpose()?,
    })
}

/// The daemon keeps to its budget by itself either way; this is for what no program can promise of itself.
fn limit_problem(limit: MemoryLimit) -> Option<&'static str> {
    match limit {
        MemoryLimit::At(_) => None,
        MemoryLimit::NotSet => Some("no limit is set; set MemoryMax= and MemorySwapMax=0 in the unit"),
        MemoryLimit::NoController => Some(
            "the kernel's memory controller is off, as Raspberry Pi OS ships it, and MemoryMax= does nothing; add \
             cgroup_enable=memory to the one line of /boot/firmware/cmdline.txt and restart the device",
        ),
    }
}

fn probe(config: &Mqtt, device: &str) -> Result<Broker, Failure> {
    let answer = block_on(mqtt::probe(config, device, BROKER))?;
    Ok(Broker {
        address: format!("{}:{}", config.host, config.port),
        reachable: answer.is_ok(),
        said: answer.map_or_else(|error| error, |report| describe(config, &report)),
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

fn table(said: &Said) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: &str| {
        writeln!(out, "{name:<14} {text}").expect("into a string");
    };
    line("bitnetd", &format!("{} on {}", said.version, said.architecture));
    let little = said.processors - said.big_processors;
    let kinds = match little {
        0 => String::new(),
        _ => format!(" ({} big, {little} little)", said.big_processors),
    };
    line("processors", &format!("{}{kinds}", said.processors));
    let features = |present: bool| {
        let names = said.cpu_features.iter().filter(|f| f.present == present).map(|f| f.name);
        names.collect::<Vec<_>>().join(" ")
    };
    line("cpu features", &format!("{} (not: {})", features(true), features(false)));
    for kernel in &said.kernels {
        let chosen = if kernel.name == said.kernel { ", chosen" } else { "" };
        line("kernel", &format!("{}: self-test {}{chosen}", kernel.name, kernel.self_test));
    }
    for sensor in &said.sensors {
        line("sensor", &one_line(&sensor.line()));
    }
    for NotBelieved { name, source, reason } in &said.not_believed {
        line("not believed", &one_line(&format!("{name}: from {source}: {reason}")));
    }
    for missing in &said.missing {
        line("missing", &one_line(missing));
    }
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    line(
        "memory",
        &format!("{} usable, budget {}", mib(said.memory.usable_bytes), mib(said.memory.budget_bytes)),
    );
    let limit = match (said.memory.limit_bytes, said.memory.limit_problem) {
        (Some(bytes), _) => format!("{} enforced by the control group", mib(bytes)),
        (None, why) => format!("NOT enforced: {}", why.unwrap_or("the kernel does not say why")),
    };
    line("memory limit", &limit);
    match &said.broker {
        None => line("broker", "none configured: set mqtt.host for a link"),
        Some(broker) => {
            let reachable = if broker.reachable { "reachable" } else { "NOT reachable" };
            line("broker", &format!("{} {reachable}: {}", broker.address, broker.said));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_without_the_memory_controller_is_told_the_way_out() {
        let board = |name| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/boards").join(name);
        let said = |name| limit_problem(sensors::memory_limit(&board(name)));
        assert!(said("pi5").is_some_and(|said| said.contains("cgroup_enable=memory")), "{:?}", said("pi5"));
        assert!(said("x86-rapl").is_some_and(|said| said.contains("MemoryMax=")), "{:?}", said("x86-rapl"));
        assert_eq!(said("pi4"), None);
    }
}
