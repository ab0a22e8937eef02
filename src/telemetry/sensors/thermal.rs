//! The processor's temperature, from thermal zones or hwmon chips, and its fan. They are identified by their names,
//! since their numbers change between boots. Deliberately knows no threshold.

use super::sysfs::Root;
use super::{FoundSensor, RejectedSensor};
use crate::protocol::text::Shown;
use crate::protocol::{Method, Reading};

/// Thermal zones of the processor, the best first; case is ignored, and `_` and `-` are the same. Other zones are
/// not used: no temperature is better than that of the battery or the case.
const ZONES: [&str; 12] = [
    "cpu-thermal",      // Raspberry Pi from Zero to 5, Jetson of today, most Arm boards
    "CPU-therm",        // Jetson with NVIDIA's own kernel
    "x86-pkg-temp",     // Intel
    "bcm2835-thermal",  // Raspberry Pi, older kernels
    "cpu0-thermal",     // Arm boards with a sensor a cluster
    "bigcore0-thermal", // Rockchip
    "package-thermal",  // Rockchip
    "soc-thermal",      // Rockchip, Amlogic
    "soc",
    "tj-thermal", // Jetson: the maximum over the chip
    "tj-therm",
    "imx-thermal-zone", // NXP
];

/// hwmon chips of the processor, used after the zones. Their first temperature is that of the whole package.
const CHIPS: [&str; 3] = ["cpu_thermal", "k10temp", "coretemp"];

/// Plausible temperatures of a working processor, in millidegrees: industrial parts start at -40 °C, and none works
/// at 150 °C. Drivers report -273 °C or 85000 °C where the sensor does not answer.
const SANE_MC: std::ops::RangeInclusive<i64> = -40_000..=150_000;

/// Rejected values near 0 °C, in millidegrees: 0 is a sensor that does not answer, and 45 one that reports whole
/// degrees.
const NEAR_ZERO_MC: std::ops::RangeInclusive<i64> = -150..=150;

/// The temperature sensors of the processor, the best first.
#[derive(Debug)]
pub(super) struct Thermometers(Vec<SensorFile>);

/// The file of a sensor, and the name of its chip or zone.
#[derive(Debug)]
struct SensorFile {
    path: String,
    name: String,
}

impl Thermometers {
    pub fn find_by_name(root: &Root) -> Self {
        let zones = find(root, "/sys/class/thermal", "thermal_zone", ("type", "temp"), &ZONES);
        let chips = find(root, HWMON, "hwmon", ("name", "temp1_input"), &CHIPS);
        Thermometers(zones.into_iter().chain(chips).collect())
    }

    /// The reading of the first that answers.
    pub fn read(&self, root: &Root) -> Option<Reading> {
        self.0.iter().find_map(|thermometer| thermometer.read(root))
    }

    /// Those whose readings are rejected, each with the reason.
    pub fn rejected(&self, root: &Root) -> Vec<RejectedSensor> {
        let why = |place: &SensorFile| {
            let reason = rejection_reason(root, &place.path)?;
            Some(RejectedSensor::new("temperature", place.source(), reason))
        };
        self.0.iter().filter_map(why).collect()
    }

    /// All sensors that answer.
    pub fn found(&self, root: &Root) -> Vec<FoundSensor> {
        let readings = self.0.iter().filter_map(|thermometer| thermometer.read(root));
        readings.map(|reading| FoundSensor::of("temperature", reading)).collect()
    }
}

/// The sensors whose name file contains one of `wanted`, in the order of that list.
fn find(
    root: &Root,
    class: &str,
    prefix: &str,
    (name_file, value_file): (&str, &str),
    wanted: &[&str],
) -> Vec<SensorFile> {
    let plain = |name: &str| name.replace('_', "-").to_ascii_lowercase();
    let rank = |name: &str| wanted.iter().position(|w| plain(w) == plain(name));
    let folders = root.list(class, prefix).into_iter();
    let mut ranked: Vec<_> = folders
        .filter_map(|folder| {
            let name = root.word(&format!("{class}/{folder}/{name_file}"))?;
            Some((rank(&name)?, SensorFile { path: format!("{class}/{folder}/{value_file}"), name }))
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank); // stable: equal ones stay in the order of their numbers
    ranked.into_iter().map(|(_, thermometer)| thermometer).collect()
}

/// Why the reading of a sensor is rejected; `None` where it is accepted.
fn rejection_reason(root: &Root, path: &str) -> Option<String> {
    let Some(text) = root.word(path) else { return Some("it cannot be read, or is empty".into()) };
    let Some(number) = root.number(path) else {
        return Some(format!("it says {}, which is no number", Shown(&text)));
    };
    match number {
        _ if NEAR_ZERO_MC.contains(&number) => Some(format!(
            "it says {number}, in thousandths of a degree; that is a sensor without an answer, or one that tells whole degrees"
        )),
        _ if !SANE_MC.contains(&number) => {
            let side = if number < *SANE_MC.start() { "below -40 °C" } else { "above 150 °C" };
            Some(format!(
                "it says something {side}, which no working processor has: the sensor does not answer"
            ))
        }
        _ => None,
    }
}

impl SensorFile {
    fn source(&self) -> String {
        format!("{} ({})", self.path, self.name)
    }

    fn read(&self, root: &Root) -> Option<Reading> {
        let is_sane = |mc: &i64| SANE_MC.contains(mc) && !NEAR_ZERO_MC.contains(mc);
        let millidegrees = root.number(&self.path).filter(is_sane)?;
        Some(Reading {
            value: millidegrees as f64 / 1000.0,
            unit: "°C",
            method: Method::Measured,
            source: self.source(),
            scope: "cpu".into(),
        })
    }
}

const HWMON: &str = "/sys/class/hwmon";

/// hwmon chips of the processor's fan: the Raspberry Pi's, by its two names, and one on a GPIO pin.
const FANS: [&str; 3] = ["pwmfan", "cooling_fan", "pwm_fan"];

/// Plausible revolutions per minute.
const SANE_RPM: std::ops::RangeInclusive<i64> = 0..=50_000;

/// The fans that report their speed.
#[derive(Debug)]
pub(super) struct Fans(Vec<SensorFile>);

impl Fans {
    pub fn find(root: &Root) -> Self {
        Fans(find(root, HWMON, "hwmon", ("name", "fan1_input"), &FANS))
    }

    /// The reading of the first that answers; a stopped fan reads 0.
    pub fn read(&self, root: &Root) -> Option<Reading> {
        self.0.iter().find_map(|fan| {
            let turns = root.number(&fan.path).filter(|turns| SANE_RPM.contains(turns))?;
            Some(Reading {
                value: turns as f64,
                unit: "1/min",
                method: Method::Measured,
                source: format!("{} ({})", fan.path, fan.name),
                scope: "fan".into(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::tests::board;
    use super::*;

    fn names(board_name: &str) -> Vec<String> {
        Thermometers::find_by_name(&board(board_name)).0.into_iter().map(|t| t.name).collect()
    }

    #[test]
    fn the_processor_is_found_by_name_among_other_zones_and_chips() {
        assert_eq!(names("pi5"), ["cpu-thermal", "cpu_thermal"]);
        assert_eq!(names("x86-rapl"), ["x86_pkg_temp", "coretemp"]);
        assert_eq!(names("laptop-battery"), ["k10temp"]);
        assert_eq!(names("jetson"), ["cpu-thermal", "tj-thermal"]);
        assert_eq!(names("jetson-nvidia"), ["CPU-therm"]);
        assert_eq!(names("zero2"), ["cpu-thermal", "cpu_thermal"]);
    }

    #[test]
    fn a_fan_is_found_by_name_and_may_stand_still() {
        let fan = Fans::find(&board("pi5")).read(&board("pi5")).expect("a fan");
        assert_eq!((fan.value, fan.unit), (3054.0, "1/min"));
        assert_eq!(fan.source, "/sys/class/hwmon/hwmon2/fan1_input (pwmfan)");
        assert_eq!(Fans::find(&board("ups-hat")).read(&board("ups-hat")).map(|fan| fan.value), Some(0.0));
        assert_eq!(Fans::find(&board("broken")).read(&board("broken")), None);
    }

    #[test]
    fn a_temperature_that_no_processor_has_is_passed_over() {
        let root = board("pi4");
        let thermometers = Thermometers::find_by_name(&root);
        assert_eq!(root.number(&thermometers.0[0].path), Some(-273_200));
        let reading = thermometers.read(&root).expect("the second one answers");
        assert_eq!(reading.value, 61.341);
        assert!(reading.source.ends_with("(cpu_thermal)"), "{reading:?}");
    }

    #[test]
    fn the_limits_leave_out_what_drivers_say_when_they_know_nothing() {
        for nonsense in [-273_200, -274_000, 85_000_000, i64::MAX] {
            assert!(!SANE_MC.contains(&nonsense));
        }
        assert!(SANE_MC.contains(&-5_000) && SANE_MC.contains(&110_000));
    }

    #[test]
    fn error_values_of_drivers_are_rejected_with_a_reason() {
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let zone = folder.path().join("sys/class/thermal/thermal_zone0");
        std::fs::create_dir_all(&zone).expect("a temporary folder");
        std::fs::write(zone.join("type"), "cpu-thermal\n").expect("room");
        let root = Root::new(folder.path());
        for (text, part) in [
            ("45", "whole degrees"),
            ("0", "without an answer"),
            ("-273150", "no working processor"),
            ("85000000", "no working processor"),
            ("N/A", "N/A, which is no number"),
            ("", "cannot be read"),
        ] {
            std::fs::write(zone.join("temp"), text).expect("room");
            let thermometers = Thermometers::find_by_name(&root);
            assert_eq!(thermometers.read(&root), None, "{text}");
            let unbelieved = thermometers.rejected(&root);
            assert_eq!(unbelieved.len(), 1, "{text}");
            assert!(unbelieved[0].reason.contains(part), "{unbelieved:?}");
        }
        std::fs::write(zone.join("temp"), "-5000\n").expect("room");
        let thermometers = Thermometers::find_by_name(&root);
        assert_eq!(thermometers.read(&root).map(|reading| reading.value), Some(-5.0));
        assert!(thermometers.rejected(&root).is_empty());
    }
}
