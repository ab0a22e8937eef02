//! Power, from whatever on this machine measures it.
//!
//! Preferred first: a monitor chip somebody wired in, the processor's energy counters, the battery.
//! They cover different things, so they are never added up, and each says what it covers.

use super::Found;
use super::files::Root;
use super::rapl::Rapl;
use crate::protocol::{Method, Reading};
use std::time::Instant;

const HWMON: &str = "/sys/class/hwmon";
const SUPPLIES: &str = "/sys/class/power_supply";

/// Chips that measure a graphics card: the model runs on the processor, so they say nothing of it.
const GRAPHICS: [&str; 5] = ["amdgpu", "i915", "nouveau", "radeon", "xe"];

/// What a machine this runs on can draw, in microwatts. Beyond it is a driver's error value, or a
/// chip whose shunt is not the one the driver was told of.
const SANE_UW: std::ops::RangeInclusive<i64> = 0..=2_000_000_000;

/// The power sensors of this machine, by preference.
#[derive(Debug)]
pub(super) struct Power {
    monitors: Vec<Monitor>,
    rapl: Option<Rapl>,
    batteries: Vec<Battery>,
}

impl Power {
    pub fn find(root: &Root) -> Self {
        let chips = root.list(HWMON, "hwmon").into_iter();
        let supplies = root.list(SUPPLIES, "").into_iter();
        Power {
            monitors: chips.filter_map(|chip| Monitor::find(root, &chip)).collect(),
            rapl: Rapl::find(root),
            batteries: supplies.filter_map(|supply| Battery::find(root, &supply)).collect(),
        }
    }

    /// The power now from the best sensor that answers. The counters are read each time, wanted or
    /// not: after a long pause they could not be compared.
    pub fn read(&mut self, root: &Root, now: Instant) -> Option<Reading> {
        let package = self.package(root, now);
        let monitor = self.monitors.iter().find_map(|monitor| monitor.read(root));
        let battery = || self.batteries.iter().find_map(|battery| battery.read(root));
        monitor.or(package).or_else(battery)
    }

    /// The sensors that answer; a battery answers while it feeds the machine.
    pub fn found(&self, root: &Root) -> Vec<Found> {
        let monitors = self.monitors.iter().filter_map(|monitor| monitor.read(root));
        let rapl = self.rapl.iter().filter(|rapl| rapl.answers(root));
        let packages = rapl.map(|rapl| watts(0.0, Method::Derived, rapl.source(), "package"));
        let batteries = self.batteries.iter().filter_map(|battery| battery.read(root));
        let readings = monitors.chain(packages).chain(batteries);
        readings.map(|reading| Found::of("power", reading)).collect()
    }

    fn package(&mut self, root: &Root, now: Instant) -> Option<Reading> {
        let rapl = self.rapl.as_mut()?;
        let value = rapl.watts(root, now)?;
        Some(watts(value, Method::Derived, rapl.source(), "package"))
    }
}

/// A hwmon chip with a power reading, such as the INA219 of many a Raspberry Pi HAT. Where there
/// are several the first is read: one may lie behind another, and a sum would count twice.
#[derive(Debug)]
struct Monitor {
    path: String,
    chip: String,
}

impl Monitor {
    fn find(root: &Root, folder: &str) -> Option<Self> {
        let chip = root.word(&format!("{HWMON}/{folder}/name"))?;
        let path = format!("{HWMON}/{folder}/power1_input");
        let wanted = !GRAPHICS.contains(&chip.as_str()) && root.number(&path).is_some();
        wanted.then_some(Monitor { path, chip })
    }

    fn read(&self, root: &Root) -> Option<Reading> {
        let microwatts = root.number(&self.path).filter(|uw| SANE_UW.contains(uw))?;
        let source = format!("{} ({})", self.path, self.chip);
        Some(watts(microwatts as f64 / 1e6, Method::Measured, source, self.scope()))
    }

    /// The processor's own meter covers its package; what any other chip covers only its wiring
    /// says.
    fn scope(&self) -> &'static str {
        if self.chip == "fam15h_power" { "package" } else { "as wired" }
    }
}

/// A battery that feeds the machine.
#[derive(Debug)]
struct Battery {
    folder: String,
}

impl Battery {
    /// Mice and the like have batteries too; theirs have the scope `Device`.
    fn find(root: &Root, supply: &str) -> Option<Self> {
        let folder = format!("{SUPPLIES}/{supply}");
        let kind = root.word(&format!("{folder}/type"))?;
        let scope = root.word(&format!("{folder}/scope"));
        let feeds = matches!(kind.as_str(), "Battery" | "UPS") && scope.as_deref() != Some("Device");
        feeds.then_some(Battery { folder })
    }

    /// While charging, the battery's power is not the machine's.
    fn read(&self, root: &Root) -> Option<Reading> {
        let status = root.word(&format!("{}/status", self.folder))?;
        if status != "Discharging" {
            return None;
        }
        self.measured(root).or_else(|| self.derived(root))
    }

    fn measured(&self, root: &Root) -> Option<Reading> {
        let path = format!("{}/power_now", self.folder);
        let value = sane_watts(i128::from(root.number(&path)?))?;
        Some(watts(value, Method::Measured, path, "board"))
    }

    fn derived(&self, root: &Root) -> Option<Reading> {
        let number = |name: &str| root.number(&format!("{}/{name}", self.folder)).map(i128::from);
        // Microvolts times microamperes.
        let value = sane_watts(number("voltage_now")? * number("current_now")? / 1_000_000)?;
        let source = format!("{}/voltage_now, current_now", self.folder);
        Some(watts(value, Method::Derived, source, "board"))
    }
}

/// Watts from a battery's microwatts. Some drivers count what flows out as negative; one that says
/// 0 while discharging does not measure.
fn sane_watts(microwatts: i128) -> Option<f64> {
    let microwatts = i64::try_from(microwatts.abs()).ok()?;
    let sane = microwatts > 0 && SANE_UW.contains(&microwatts);
    sane.then_some(microwatts as f64 / 1e6)
}

fn watts(value: f64, method: Method, source: String, scope: &str) -> Reading {
    Reading { value, unit: "W", method, source, scope: scope.into() }
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::board;
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_pi_alone_measures_no_power() {
        for name in ["pi4", "pi5"] {
            let root = board(name);
            assert_eq!(Power::find(&root).read(&root, Instant::now()), None);
        }
    }

    #[test]
    fn a_graphics_card_is_not_the_power_of_the_processor() {
        let root = board("laptop-battery");
        assert_eq!(root.word("/sys/class/hwmon/hwmon1/name").as_deref(), Some("amdgpu"));
        assert!(root.number("/sys/class/hwmon/hwmon1/power1_input").is_some());
        assert!(Power::find(&root).monitors.is_empty());
    }

    #[test]
    fn the_battery_of_a_mouse_is_not_the_machines() {
        let root = board("laptop-battery");
        let scope = root.word("/sys/class/power_supply/hidpp_battery_0/scope");
        assert_eq!(scope.as_deref(), Some("Device"));
        assert_eq!(Power::find(&root).batteries.len(), 1);
    }

    #[test]
    fn a_battery_that_is_being_charged_says_nothing_and_is_not_listed() {
        let root = board("x86-rapl");
        let power = Power::find(&root);
        assert_eq!((power.batteries.len(), power.batteries[0].read(&root)), (1, None));
        assert_eq!(power.found(&root).len(), 1);
    }

    #[test]
    fn the_counters_are_followed_and_give_the_power_of_the_package() {
        let (early, late, start) = (board("x86-rapl"), board("x86-rapl-later"), Instant::now());
        let mut power = Power::find(&early);
        assert_eq!(power.read(&early, start), None);
        let reading = power.read(&late, start + Duration::from_secs(3)).expect("two readings");
        assert!((reading.value - 5.0).abs() < 1e-9, "{reading:?}");
        assert_eq!((reading.method, reading.scope.as_str()), (Method::Derived, "package"));
    }

    #[test]
    fn a_battery_that_reports_power_itself_is_measured() {
        let root = board("x86-rapl-later");
        let battery = Battery::find(&root, "BAT0").expect("a battery");
        let reading = battery.read(&root).expect("it discharges");
        assert_eq!((reading.value, reading.method), (7.3, Method::Measured));
    }

    #[test]
    fn a_battery_that_says_nothing_flows_or_a_lightning_bolt_does_is_not_believed() {
        assert_eq!(sane_watts(0), None);
        assert_eq!(sane_watts(i128::from(i64::MAX) * 7), None);
        assert_eq!(sane_watts(i128::MIN + 1), None);
        assert_eq!(sane_watts(-7_300_000), Some(7.3));
    }
}
