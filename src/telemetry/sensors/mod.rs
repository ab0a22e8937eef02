//! What the host says of itself: power, temperature, load and memory, read from `/sys` and `/proc`
//! under a given root, so that recorded boards test it.
//!
//! A file that is missing, unreadable or malformed is `None`, never a panic and never a made-up
//! number. Deliberately knows nothing of the daemon, of thresholds, or of what the numbers are for.

mod cpu;
mod files;
mod memory;
mod power;
mod processors;
mod rapl;
mod thermal;

pub use memory::{MemoryLimit, host_memory, memory_limit, peak_memory, resident_memory};
pub use processors::{Processors, processors};

use crate::protocol::{Cpu, Memory, Method, Reading, Thermal};
use files::Root;
use std::path::Path;
use std::time::Instant;

/// The host at one moment; what this machine cannot tell is `None`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Power, in watts.
    pub power: Option<Reading>,
    /// Temperature, in degrees Celsius.
    pub thermal: Thermal,
    /// Load of host and process.
    pub cpu: Cpu,
    /// Memory of host and process; the budget is 0 here, the daemon knows it.
    pub memory: Memory,
}

/// A sensor that answers, for `bitnetd doctor`.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The quantity: `power` or `temperature`.
    pub name: &'static str,
    /// The file it is read from, and the chip or zone.
    pub source: String,
    /// How the reading comes about.
    pub method: Method,
    /// What it covers.
    pub scope: String,
}

impl Found {
    fn of(name: &'static str, reading: Reading) -> Self {
        Found { name, source: reading.source, method: reading.method, scope: reading.scope }
    }
}

/// The sensors of this machine. Which there are is looked up once: their numbers change between
/// boots, not between readings.
#[derive(Debug)]
pub struct Sensors {
    root: Root,
    power: power::Power,
    thermal: thermal::Thermometers,
    load: cpu::Load,
}

impl Sensors {
    /// Looks for sensors under `root`, which is `/` but in tests.
    pub fn new(root: &Path) -> Self {
        let root = Root::new(root);
        Sensors {
            power: power::Power::find(&root),
            thermal: thermal::Thermometers::find(&root),
            load: cpu::Load::new(&root),
            root,
        }
    }

    /// Reads everything. Loads, and power derived from energy, are means since the reading before,
    /// so the first has none.
    pub fn read(&mut self, now: Instant) -> Snapshot {
        Snapshot {
            power: self.power(now),
            thermal: Thermal { cpu: self.thermal.read(&self.root), ..Thermal::default() },
            cpu: self.load.read(&self.root, now),
            memory: memory::read(&self.root),
        }
    }

    /// Reads power alone: a few small files, cheap enough to do around each request.
    pub fn power(&mut self, now: Instant) -> Option<Reading> {
        self.power.read(&self.root, now)
    }

    /// The sensors that answer, those of one quantity in the order of preference.
    pub fn found(&self) -> Vec<Found> {
        let mut found = self.power.found(&self.root);
        found.extend(self.thermal.found(&self.root));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::time::Duration;

    fn board(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/boards").join(name)
    }

    /// The second reading of two, a second apart.
    fn second_reading(name: &str) -> Snapshot {
        let (mut sensors, now) = (Sensors::new(&board(name)), Instant::now());
        sensors.read(now);
        sensors.read(now + Duration::from_secs(1))
    }

    #[test]
    fn a_pi_5_tells_its_temperature_and_no_power() {
        let snapshot = second_reading("pi5");
        let cpu = snapshot.thermal.cpu.expect("a temperature");
        assert_eq!((cpu.value, cpu.unit, cpu.method), (56.2, "°C", Method::Measured));
        assert_eq!(cpu.source, "/sys/class/thermal/thermal_zone0/temp (cpu-thermal)");
        assert_eq!(cpu.scope, "cpu");
        assert_eq!(snapshot.power, None);
        assert_eq!(snapshot.memory.process_bytes, Some(1_250_304 << 10));
        assert!(!snapshot.memory.memory_limit_enforced);
        assert_eq!(snapshot.cpu.threads, Some(6));
    }

    #[test]
    fn a_pi_with_a_monitor_chip_tells_the_power_as_wired() {
        let power = second_reading("ina219").power.expect("a power");
        assert_eq!((power.value, power.unit, power.method), (4.86, "W", Method::Measured));
        assert_eq!(power.source, "/sys/class/hwmon/hwmon2/power1_input (ina219)");
        assert_eq!(power.scope, "as wired");
    }

    #[test]
    fn a_laptop_on_its_battery_tells_the_power_of_the_board() {
        let power = second_reading("laptop-battery").power.expect("a power");
        assert!((power.value - 11.4 * 1.25).abs() < 1e-9, "{}", power.value);
        assert_eq!((power.method, power.scope.as_str()), (Method::Derived, "board"));
        assert_eq!(power.source, "/sys/class/power_supply/BAT0/voltage_now, current_now");
    }

    #[test]
    fn a_board_without_sensors_tells_nothing_and_makes_nothing_up() {
        assert_eq!(second_reading("none"), Snapshot::default());
        assert_eq!(Sensors::new(&board("none")).found(), []);
        assert_eq!(second_reading("no such board"), Snapshot::default());
    }

    #[test]
    fn malformed_files_are_as_good_as_missing_ones() {
        assert_eq!(second_reading("broken"), Snapshot::default());
        assert_eq!(Sensors::new(&board("broken")).found(), []);
    }

    #[test]
    fn what_was_found_is_listed_in_the_order_of_preference() {
        let found = Sensors::new(&board("x86-rapl")).found();
        let listed: Vec<_> = found.iter().map(|f| (f.name, f.scope.as_str(), f.method)).collect();
        let expected = [
            ("power", "package", Method::Derived),
            ("temperature", "cpu", Method::Measured),
            ("temperature", "cpu", Method::Measured),
        ];
        assert_eq!(listed, expected);
        assert!(found[1].source.contains("x86_pkg_temp"), "{:?}", found[1]);
        assert!(found[2].source.contains("coretemp"), "{:?}", found[2]);
    }

    #[test]
    fn the_live_machine_can_be_read() {
        let (mut sensors, now) = (Sensors::new(Path::new("/")), Instant::now());
        assert_eq!(sensors.read(now).cpu.host_percent, None, "one reading has no load");
        let memory = sensors.read(now).memory;
        assert!(memory.process_bytes > Some(100 << 10), "{memory:?}");
        assert!(memory.host_available_bytes <= memory.host_total_bytes, "{memory:?}");
    }
}
