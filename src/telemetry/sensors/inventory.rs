//! What `bitnetd doctor` says of the sensors: those that answer, and of the others why not and the way out.

use super::rpi_firmware::Access;
use super::{Root, Sensors, memory, throttle};
use crate::protocol::{Flag, Method, Reading, Throttling};
use std::io::ErrorKind;
use std::time::Instant;

/// A sensor that answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The quantity: `power`, `temperature`, `throttling`, `under-voltage`, `fan`, `frequency`, `load`, `memory` or
    /// `pressure`.
    pub name: &'static str,
    /// What it says now, for people; `None` where that is a mean over a time that has just begun.
    pub value: Option<String>,
    /// The file or device it is read from, and the chip or zone.
    pub source: String,
    /// How the reading comes about.
    pub method: Method,
    /// What it covers.
    pub scope: String,
}

impl Found {
    pub(super) fn of(name: &'static str, reading: Reading) -> Self {
        let digits = if reading.unit == "W" { 2 } else { usize::from(reading.unit == "°C") };
        let value = Some(format!("{:.digits$} {}", reading.value, reading.unit));
        Found { name, value, source: reading.source, method: reading.method, scope: reading.scope }
    }

    /// One that has nothing to say before its second reading.
    pub(super) fn later(name: &'static str, source: String, method: Method, scope: &str) -> Self {
        Found { name, value: None, source, method, scope: scope.into() }
    }

    fn throttling(flags: &Throttling) -> Self {
        let names = (throttle::names(flags.now), throttle::names(flags.since_boot));
        let value = format!("now {}, since boot {}", names.0, names.1);
        let (source, scope) = (flags.source.clone(), flags.scope.clone());
        Found { name: "throttling", value: Some(value), source, method: flags.method, scope }
    }

    fn under_voltage(flag: Flag) -> Self {
        let value = Some(if flag.value { "YES" } else { "no" }.to_owned());
        Found { name: "under-voltage", value, source: flag.source, method: flag.method, scope: flag.scope }
    }

    /// A file of the kernel that is no sensor of its own.
    fn file(name: &'static str, source: &str, scope: &str) -> Self {
        Found::later(name, source.into(), Method::Measured, scope)
    }
}

/// A sensor that is there, and whose reading is left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Unbelieved {
    /// The quantity, as in [`Found`].
    pub name: &'static str,
    /// The file it is read from, and the chip or zone.
    pub source: String,
    /// Why it is not believed.
    pub reason: String,
}

impl Unbelieved {
    pub(super) fn new(name: &'static str, source: String, reason: String) -> Self {
        Unbelieved { name, source, reason }
    }
}

/// Files that not every machine has, or not every unit shows.
const FILES: [(&str, &str, &str); 4] = [
    ("load", "/proc/stat", "host"),
    ("memory", "/proc/meminfo", "host"),
    ("pressure", "/proc/pressure/cpu", "host"),
    ("pressure", "/proc/pressure/memory", "host"),
];

impl Sensors {
    /// The sensors that answer, those of one quantity in the order of preference.
    pub fn found(&mut self, now: Instant) -> Vec<Found> {
        self.root.look(now);
        let mut found = self.power.found(&self.root, self.mailbox.opened(), now);
        found.extend(self.thermal.found(&self.root));
        let thermal = self.thermal(now);
        found.extend(thermal.throttling.as_ref().map(Found::throttling));
        found.extend(thermal.under_voltage.map(Found::under_voltage));
        found.extend(thermal.fan.map(|fan| Found::of("fan", fan)));
        found.extend(self.clocks.read(&self.root).map(|clock| Found::of("frequency", clock)));
        let files = FILES.iter().filter(|(_, path, _)| self.root.first_line(path).is_some());
        found.extend(files.map(|(name, path, scope)| Found::file(name, path, scope)));
        found
    }

    /// The sensors that are there and whose readings are not believed.
    pub fn unbelieved(&mut self, now: Instant) -> Vec<Unbelieved> {
        self.root.look(now);
        let mut unbelieved = self.power.unbelieved(&self.root);
        unbelieved.extend(self.thermal.unbelieved(&self.root));
        unbelieved
    }

    /// Of what is missing: why, and the way out, one line each.
    pub fn missing(&mut self, now: Instant) -> Vec<String> {
        let found = self.found(now);
        let has = |name: &str| found.iter().any(|found| found.name == name);
        let mut missing = self.power.problems(&self.root);
        let firmware = firmware_problem(&self.mailbox, is_raspberry_pi(&self.root), has("throttling"));
        let unbelieved = self.unbelieved(now);
        let doubted = |name: &str| unbelieved.iter().find(|found| found.name == name).map(in_words);
        let doubted_power = doubted("power").filter(|_| !has("power"));
        let is_doubted = doubted_power.is_some();
        missing.extend(doubted_power);
        if !has("power") && !is_doubted && missing.is_empty() && firmware.is_none() {
            missing.push(if self.power.has_battery() { POWERED } else { NO_POWER }.into());
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

fn in_words(found: &Unbelieved) -> String {
    let Unbelieved { name, source, reason } = found;
    format!("{name}: {source} is found but not believed, so it is null: {reason}")
}

const NO_POWER: &str = "power: nothing here measures it, so power and energy are null; wire in a monitor chip with a \
    kernel driver (INA219, INA226, INA260), or give telemetry.idle_watts and full_watts for an estimate";
const POWERED: &str = "power: only the battery measures it, and only while it feeds the machine, so power and energy are \
    null while it is on its charger; give telemetry.idle_watts and full_watts for an estimate then";
const NO_TEMPERATURE: &str = "temperature: no thermal zone or hwmon chip has the name of a processor's, so it is null; report their names";
const NO_LOAD: &str =
    "load: /proc/stat cannot be read, so the host's load is null; ProcSubset=pid in the unit hides it";
const NO_PRESSURE: &str = "pressure: the kernel does not tell it, so it is null; add psi=1 to the kernel's command \
    line, on a Raspberry Pi the one line of /boot/firmware/cmdline.txt, and restart the device";

/// Kernels that do not have the narrower device yet have this one alone.
const WIDE_DOOR: &str = "/dev/vcio";
const ROOT_ALONE: &str = "where that device is root's alone, as on some images, install a kernel that has \
    /dev/vcio_gencmd, or put KERNEL==\"vcio\", GROUP=\"video\", MODE=\"0660\" into \
    /etc/udev/rules.d/99-vcio.rules and restart the device";

/// Why the firmware of a Raspberry Pi is not asked.
fn firmware_problem(mailbox: &Access, is_raspberry_pi: bool, answers: bool) -> Option<String> {
    let without = "so throttling, and a Raspberry Pi 5's power, are null";
    let way_out = "install systemd/bitnetd-pi.conf as a drop-in of the service; outside of it, run as a user of the \
                   group video";
    match mailbox {
        Access::Open(_) if answers => None,
        Access::Open(mailbox) => Some(format!(
            "firmware: {} does not answer, {without}; update kernel and firmware, and report this",
            mailbox.throttled_source()
        )),
        Access::Refused(path, error) if *path == WIDE_DOOR && error.kind() == ErrorKind::PermissionDenied => {
            Some(format!("firmware: {path}: {error}, {without}; {way_out}; {ROOT_ALONE}"))
        }
        Access::Refused(path, error) => Some(format!("firmware: {path}: {error}, {without}; {way_out}")),
        Access::Absent if is_raspberry_pi => {
            Some(format!("firmware: neither /dev/vcio_gencmd nor /dev/vcio is here, {without}; {way_out}"))
        }
        Access::Absent => None,
    }
}

fn is_raspberry_pi(root: &Root) -> bool {
    let models = ["/proc/device-tree/model", "/sys/firmware/devicetree/base/model"];
    models.iter().any(|path| root.text(path).is_some_and(|model| model.starts_with("Raspberry Pi")))
}

impl memory::Memories {
    /// Whether a limit is enforced is said elsewhere; this is about what the group's files tell.
    fn problem(&self, root: &Root) -> Option<String> {
        let known = self.group_bytes(root).is_some();
        (!known).then(|| {
            "memory: the kernel does not count it for this control group, so memory.group_bytes and oom_kills are null"
                .into()
        })
    }
}
