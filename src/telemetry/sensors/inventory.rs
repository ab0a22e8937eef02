//! The inventory of sensors for `bitnetd doctor`: those that answer, and for the others the reason and a remedy.
//! Deliberately knows no output format.

use super::rpi_firmware::MailboxAccess;
use super::{Root, Sensors, memory, throttle};
use crate::protocol::{Flag, Method, Reading, Throttling};
use std::io::ErrorKind;
use std::time::Instant;

/// A sensor that answers.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundSensor {
    /// The quantity: `power`, `temperature`, `throttling`, `under-voltage`, `fan`, `frequency`, `load`, `memory` or
    /// `pressure`.
    pub name: &'static str,
    /// The reading as text; `None` where it is a mean over time, which needs a second reading.
    pub value: Option<String>,
    /// The file or device that it is read from, and the chip or zone.
    pub source: String,
    /// Whether it is measured, derived or estimated.
    pub method: Method,
    /// What it covers, such as `board` or `package`.
    pub scope: String,
}

impl FoundSensor {
    pub(super) fn of(name: &'static str, reading: Reading) -> Self {
        let digits = if reading.unit == "W" { 2 } else { usize::from(reading.unit == "°C") };
        let value = Some(format!("{:.digits$} {}", reading.value, reading.unit));
        FoundSensor { name, value, source: reading.source, method: reading.method, scope: reading.scope }
    }

    /// A sensor that needs a second reading for its value.
    pub(super) fn without_value(name: &'static str, source: String, method: Method, scope: &str) -> Self {
        FoundSensor { name, value: None, source, method, scope: scope.into() }
    }

    fn throttling(flags: &Throttling) -> Self {
        let names = (throttle::names(flags.now), throttle::names(flags.since_boot));
        let value = format!("now {}, since boot {}", names.0, names.1);
        let (source, scope) = (flags.source.clone(), flags.scope.clone());
        FoundSensor { name: "throttling", value: Some(value), source, method: flags.method, scope }
    }

    fn under_voltage(flag: Flag) -> Self {
        let value = Some(if flag.value { "YES" } else { "no" }.to_owned());
        FoundSensor {
            name: "under-voltage",
            value,
            source: flag.source,
            method: flag.method,
            scope: flag.scope,
        }
    }

    /// A file of the kernel whose values are reported as other quantities.
    fn file(name: &'static str, source: &str, scope: &str) -> Self {
        FoundSensor::without_value(name, source.into(), Method::Measured, scope)
    }
}

/// A sensor that exists, and whose reading is rejected as implausible.
#[derive(Debug, Clone, PartialEq)]
pub struct RejectedSensor {
    /// The quantity, as in [`FoundSensor`].
    pub name: &'static str,
    /// The file that it is read from, and the chip or zone.
    pub source: String,
    /// Why the reading is rejected.
    pub reason: String,
}

impl RejectedSensor {
    pub(super) fn new(name: &'static str, source: String, reason: String) -> Self {
        RejectedSensor { name, source, reason }
    }
}

/// Files that a machine may lack, or a systemd unit may hide.
const FILES: [(&str, &str, &str); 4] = [
    ("load", "/proc/stat", "host"),
    ("memory", "/proc/meminfo", "host"),
    ("pressure", "/proc/pressure/cpu", "host"),
    ("pressure", "/proc/pressure/memory", "host"),
];

impl Sensors {
    /// The sensors that answer; those of one quantity are in the order of preference.
    pub fn found(&mut self, now: Instant) -> Vec<FoundSensor> {
        self.root.begin_reading(now);
        let mut found = self.power.found(&self.root, self.firmware.opened(), now);
        found.extend(self.thermal.found(&self.root));
        let thermal = self.thermal(now);
        found.extend(thermal.throttling.as_ref().map(FoundSensor::throttling));
        found.extend(thermal.under_voltage.map(FoundSensor::under_voltage));
        found.extend(thermal.fan.map(|fan| FoundSensor::of("fan", fan)));
        found.extend(self.cpu_frequencies.read(&self.root).map(|clock| FoundSensor::of("frequency", clock)));
        let files = FILES.iter().filter(|(_, path, _)| self.root.first_line(path).is_some());
        found.extend(files.map(|(name, path, scope)| FoundSensor::file(name, path, scope)));
        found
    }

    /// The sensors that exist and whose readings are rejected.
    pub fn rejected(&mut self, now: Instant) -> Vec<RejectedSensor> {
        self.root.begin_reading(now);
        let mut unbelieved = self.power.rejected(&self.root);
        unbelieved.extend(self.thermal.rejected(&self.root));
        unbelieved
    }

    /// For each missing quantity one line with the reason and a remedy.
    pub fn missing(&mut self, now: Instant) -> Vec<String> {
        let found = self.found(now);
        let has = |name: &str| found.iter().any(|found| found.name == name);
        let mut missing = self.power.problems(&self.root);
        let firmware = firmware_problem(&self.firmware, is_raspberry_pi(&self.root), has("throttling"));
        let unbelieved = self.rejected(now);
        let doubted = |name: &str| unbelieved.iter().find(|found| found.name == name).map(describe_rejected);
        let doubted_power = doubted("power").filter(|_| !has("power"));
        let is_doubted = doubted_power.is_some();
        missing.extend(doubted_power);
        if !has("power") && !is_doubted && missing.is_empty() && firmware.is_none() {
            missing.push(if self.power.has_battery() { BATTERY_CHARGING } else { NO_POWER }.into());
        }
        missing.extend(firmware);
        missing.extend(
            (!has("temperature")).then(|| doubted("temperature").unwrap_or_else(|| NO_TEMPERATURE.into())),
        );
        missing.extend((!has("load")).then(|| NO_LOAD.into()));
        missing.extend((!has("pressure")).then(|| NO_PRESSURE.into()));
        missing.extend(self.memory.problem(&self.root));
        missing
    }
}

fn describe_rejected(found: &RejectedSensor) -> String {
    let RejectedSensor { name, source, reason } = found;
    format!("{name}: {source} is found but not believed, so it is null: {reason}")
}

const NO_POWER: &str = "power: nothing here measures it, so power and energy are null; wire in a monitor chip with a \
    kernel driver (INA219, INA226, INA260), or give telemetry.idle_watts and full_watts for an estimate";
const BATTERY_CHARGING: &str = "power: only the battery measures it, and only while it feeds the machine, so power and energy are \
    null while it is on its charger; give telemetry.idle_watts and full_watts for an estimate then";
const NO_TEMPERATURE: &str = "temperature: no thermal zone or hwmon chip has the name of a processor's, so it is null; report their names";
const NO_LOAD: &str =
    "load: /proc/stat cannot be read, so the host's load is null; ProcSubset=pid in the unit hides it";
const NO_PRESSURE: &str = "pressure: the kernel does not tell it, so it is null; add psi=1 to the kernel's command \
    line, on a Raspberry Pi the one line of /boot/firmware/cmdline.txt, and restart the device";

/// Older kernels have this device only, which passes any message to the firmware.
const UNRESTRICTED_DEVICE: &str = "/dev/vcio";
const UDEV_HINT: &str = "where that device is root's alone, as on some images, install a kernel that has \
    /dev/vcio_gencmd, or put KERNEL==\"vcio\", GROUP=\"video\", MODE=\"0660\" into \
    /etc/udev/rules.d/99-vcio.rules and restart the device";

/// Why the firmware of a Raspberry Pi cannot be queried.
fn firmware_problem(mailbox: &MailboxAccess, is_raspberry_pi: bool, answers: bool) -> Option<String> {
    let without = "so throttling, and a Raspberry Pi 5's power, are null";
    let way_out = "install systemd/bitnetd-pi.conf as a drop-in of the service; outside of it, run as a user of the \
                   group video";
    match mailbox {
        MailboxAccess::Open(_) if answers => None,
        MailboxAccess::Open(mailbox) => Some(format!(
            "firmware: {} does not answer, {without}; update kernel and firmware, and report this",
            mailbox.throttled_source()
        )),
        MailboxAccess::Refused(path, error)
            if *path == UNRESTRICTED_DEVICE && error.kind() == ErrorKind::PermissionDenied =>
        {
            Some(format!("firmware: {path}: {error}, {without}; {way_out}; {UDEV_HINT}"))
        }
        MailboxAccess::Refused(path, error) => {
            Some(format!("firmware: {path}: {error}, {without}; {way_out}"))
        }
        MailboxAccess::Absent if is_raspberry_pi => {
            Some(format!("firmware: neither /dev/vcio_gencmd nor /dev/vcio is here, {without}; {way_out}"))
        }
        MailboxAccess::Absent => None,
    }
}

fn is_raspberry_pi(root: &Root) -> bool {
    let models = ["/proc/device-tree/model", "/sys/firmware/devicetree/base/model"];
    models.iter().any(|path| root.text(path).is_some_and(|model| model.starts_with("Raspberry Pi")))
}

impl memory::MemorySensors {
    /// Why memory of the control group is unknown; whether a limit is enforced is reported elsewhere.
    fn problem(&self, root: &Root) -> Option<String> {
        let known = self.group_bytes(root).is_some();
        (!known).then(|| {
            "memory: the kernel does not count it for this control group, so memory.group_bytes and oom_kills are null"
                .into()
        })
    }
}
