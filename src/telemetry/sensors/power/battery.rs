//! Batteries of the machine, and those of UPS boards with a kernel driver. Deliberately knows no other sensor.
//!
//! Source: the kernel's Documentation/ABI/testing/sysfs-class-power.

use super::{SANE_UW, watts};
use crate::protocol::{Method, Reading};
use crate::telemetry::sensors::sysfs::Root;

const SUPPLIES: &str = "/sys/class/power_supply";

/// The batteries of this machine.
pub(super) fn find(root: &Root) -> Vec<Battery> {
    let supplies = root.list(SUPPLIES, "").into_iter();
    supplies.filter_map(|supply| Battery::find(root, &supply)).collect()
}

/// A battery that supplies the machine.
#[derive(Debug)]
pub(super) struct Battery {
    folder: String,
}

impl Battery {
    /// Finds a battery that supplies the machine; those of mice and the like have the scope `Device`.
    fn find(root: &Root, supply: &str) -> Option<Self> {
        let folder = format!("{SUPPLIES}/{supply}");
        let kind = root.word(&format!("{folder}/type"))?;
        let scope = root.word(&format!("{folder}/scope"));
        let feeds = matches!(kind.as_str(), "Battery" | "UPS") && scope.as_deref() != Some("Device");
        feeds.then_some(Battery { folder })
    }

    /// The power while discharging: while charging, the battery's power is not the machine's.
    pub fn read(&self, root: &Root) -> Option<Reading> {
        if !self.is_discharging(root) {
            return None;
        }
        self.power(root).or_else(|| self.product(root))
    }

    /// Whether the battery supplies the machine now.
    pub fn is_discharging(&self, root: &Root) -> bool {
        root.word(&format!("{}/status", self.folder)).is_some_and(|status| status == "Discharging")
    }

    fn power(&self, root: &Root) -> Option<Reading> {
        let path = format!("{}/power_now", self.folder);
        let value = sane_watts(i128::from(root.number(&path)?))?;
        Some(watts(value, Method::Measured, path, "board"))
    }

    fn product(&self, root: &Root) -> Option<Reading> {
        let number = |name: &str| root.number(&format!("{}/{name}", self.folder)).map(i128::from);
        // Microvolts times microamperes.
        let value = sane_watts(number("voltage_now")? * number("current_now")? / 1_000_000)?;
        let source = format!("{}/voltage_now, current_now", self.folder);
        Some(watts(value, Method::Measured, source, "board"))
    }
}

/// Watts from a battery's microwatts. Some drivers report discharging as negative; 0 while discharging means that
/// the driver does not measure.
fn sane_watts(microwatts: i128) -> Option<f64> {
    let microwatts = i64::try_from(microwatts.abs()).ok()?;
    let sane = microwatts > 0 && SANE_UW.contains(&microwatts);
    sane.then_some(microwatts as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::sensors::sysfs::tests::board;

    #[test]
    fn a_battery_that_is_charging_has_no_reading() {
        let root = board("x86-rapl");
        let batteries = find(&root);
        assert_eq!((batteries.len(), batteries[0].read(&root)), (1, None));
    }

    #[test]
    fn the_battery_of_a_mouse_is_not_the_machines() {
        let root = board("laptop-battery");
        let scope = root.word("/sys/class/power_supply/hidpp_battery_0/scope");
        assert_eq!(scope.as_deref(), Some("Device"));
        assert_eq!(find(&root).len(), 1);
    }

    #[test]
    fn a_battery_that_reports_power_itself_is_measured() {
        let root = board("x86-rapl-later");
        let battery = Battery::find(&root, "BAT0").expect("a battery");
        let reading = battery.read(&root).expect("it discharges");
        assert_eq!((reading.value, reading.method), (7.3, Method::Measured));
    }

    #[test]
    fn an_implausible_battery_power_is_rejected() {
        assert_eq!(sane_watts(0), None);
        assert_eq!(sane_watts(i128::from(i64::MAX) * 7), None);
        assert_eq!(sane_watts(i128::MIN + 1), None);
        assert_eq!(sane_watts(-7_300_000), Some(7.3));
    }
}
