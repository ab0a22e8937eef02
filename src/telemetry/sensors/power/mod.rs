//! Power of the machine, from the best sensor that it has.
//!
//! In order of preference: a power monitor chip in the supply line (hwmon), the rails behind the PMIC of a
//! Raspberry Pi 5, the processor's energy counters (RAPL), the battery, and an estimate from the load. They cover
//! different scopes, so they are never added up, and each reading names its scope. Deliberately knows no energy.

mod battery;
mod estimate;
mod hwmon;
mod rapl;
mod rpi5_pmic;

use super::rpi_firmware::Mailbox;
use super::sysfs::Root;
use super::{FoundSensor, RejectedSensor};
use crate::config::BoardWatts;
use crate::protocol::{Method, Reading};
use battery::Battery;
use estimate::LoadEstimate;
use hwmon::Monitors;
use rapl::Rapl;
use std::time::Instant;

/// Plausible power, in microwatts. Anything else is a driver's error value, or a chip whose shunt resistor differs
/// from the configured one.
const SANE_UW: std::ops::RangeInclusive<i64> = 0..=2_000_000_000;

/// The power sensors of this machine, by preference.
#[derive(Debug)]
pub(super) struct PowerSensors {
    monitors: Monitors,
    rapl: Option<Rapl>,
    batteries: Vec<Battery>,
    estimate: Option<LoadEstimate>,
}

impl PowerSensors {
    pub fn find(root: &Root) -> Self {
        PowerSensors {
            monitors: Monitors::find(root),
            rapl: Rapl::find(root),
            batteries: battery::find(root),
            estimate: None,
        }
    }

    /// Sets the estimate that is used where nothing measures power; `None` for none.
    pub fn estimate(&mut self, watts: Option<BoardWatts>) {
        self.estimate = watts.map(LoadEstimate::new);
    }

    /// The power now, from the best sensor that answers. Energy counters are read each time, since after a long
    /// pause their difference would be ambiguous.
    pub fn read(&mut self, root: &Root, mailbox: Option<&mut Mailbox>, now: Instant) -> Option<Reading> {
        let package = self.package(root, now);
        let estimate = self.estimate.as_mut().and_then(|estimate| estimate.read(root, now));
        let measured = self.monitors.read(root).or_else(|| rpi5_pmic::read(mailbox?, now)).or(package);
        measured.or_else(|| self.batteries.iter().find_map(|battery| battery.read(root))).or(estimate)
    }

    /// The sensors that answer; a battery answers while it is discharging.
    pub fn found(&mut self, root: &Root, mailbox: Option<&mut Mailbox>, now: Instant) -> Vec<FoundSensor> {
        let monitors = self.monitors.found.iter().filter_map(|monitor| monitor.read(root));
        let rails = mailbox.and_then(|mailbox| rpi5_pmic::read(mailbox, now));
        let mut found: Vec<_> =
            monitors.chain(rails).map(|reading| FoundSensor::of("power", reading)).collect();
        // A mean over time is not known at the first reading.
        let rapl = self.rapl.iter().filter(|rapl| rapl.answers(root));
        found.extend(
            rapl.map(|rapl| FoundSensor::without_value("power", rapl.source(), Method::Derived, rapl::SCOPE)),
        );
        let batteries = self.batteries.iter().filter_map(|battery| battery.read(root));
        found.extend(batteries.map(|reading| FoundSensor::of("power", reading)));
        let estimate = self.estimate.iter().filter(|_| LoadEstimate::can_read(root));
        found.extend(estimate.map(|_| {
            FoundSensor::without_value("power", estimate::SOURCE.into(), Method::Estimated, estimate::SCOPE)
        }));
        found
    }

    /// Whether a battery supplies the machine now.
    pub fn is_on_battery(&self, root: &Root) -> bool {
        self.batteries.iter().any(|battery| battery.is_discharging(root))
    }

    /// Whether there is a battery, discharging or not.
    pub fn has_battery(&self) -> bool {
        !self.batteries.is_empty()
    }

    /// The monitor chips whose readings are rejected.
    pub fn rejected(&self, root: &Root) -> Vec<RejectedSensor> {
        self.monitors.found.iter().filter_map(|monitor| monitor.rejected(root)).collect()
    }

    /// Why a sensor that exists is not used, and a remedy.
    pub fn problems(&self, root: &Root) -> Vec<String> {
        let unclear = self.monitors.unclear.iter().map(|chip| {
            format!("{chip} measures several lines and names none of them VDD_IN, so none is taken for the board's")
        });
        unclear.chain(rapl::problem(root)).collect()
    }

    fn package(&mut self, root: &Root, now: Instant) -> Option<Reading> {
        let rapl = self.rapl.as_mut()?;
        let value = rapl.watts(root, now)?;
        Some(watts(value, Method::Derived, rapl.source(), rapl::SCOPE))
    }
}

fn watts(value: f64, method: Method, source: String, scope: &str) -> Reading {
    Reading { value, unit: "W", method, source, scope: scope.into() }
}

#[cfg(test)]
mod tests {
    use super::super::rpi_firmware::tests::{Firmware, RAILS, mailbox};
    use super::super::sysfs::tests::board;
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_pi_without_its_firmware_measures_no_power() {
        for name in ["pi4", "pi5", "zero2"] {
            let root = board(name);
            assert_eq!(PowerSensors::find(&root).read(&root, None, Instant::now()), None);
        }
    }

    #[test]
    fn the_counters_are_followed_and_give_the_power_of_the_package() {
        let (early, late, start) = (board("x86-rapl"), board("x86-rapl-later"), Instant::now());
        let mut power = PowerSensors::find(&early);
        assert_eq!(power.read(&early, None, start), None);
        let reading = power.read(&late, None, start + Duration::from_secs(3)).expect("two readings");
        assert!((reading.value - 5.0).abs() < 1e-9, "{reading:?}");
        assert_eq!((reading.method, reading.scope.as_str()), (Method::Derived, "package"));
    }

    #[test]
    fn a_monitor_chip_is_preferred_to_the_rails_and_the_firmware_is_left_alone() {
        let (root, now) = (board("ina219"), Instant::now());
        let (mut firmware, (_, asked)) = mailbox(Firmware::Says("throttled=0x0", RAILS));
        let mut power = PowerSensors::find(&root);
        let reading = power.read(&root, Some(&mut firmware), now).expect("a chip");
        assert_eq!(reading.scope, "as wired");
        assert!(asked.lock().expect("one thread").is_empty());
        let scopes: Vec<_> =
            power.found(&root, Some(&mut firmware), now).into_iter().map(|f| f.scope).collect();
        assert_eq!(scopes, ["as wired", "pmic_rails"]);
    }

    #[test]
    fn an_estimate_is_made_only_where_the_owner_asks_and_nothing_measures() {
        let (root, later, start) = (board("pi4"), board("pi4-later"), Instant::now());
        let second = start + Duration::from_secs(1);
        let mut power = PowerSensors::find(&root);
        power.estimate(Some(BoardWatts { idle: 2.7, full: 6.7 }));
        assert_eq!(power.read(&root, None, start), None, "one reading has no load");
        let reading = power.read(&later, None, second).expect("two readings");
        assert!((reading.value - 5.7).abs() < 1e-9, "three processors of four were busy: {reading:?}");
        assert_eq!((reading.method, reading.scope.as_str()), (Method::Estimated, "board"));
        let (mut firmware, _) = mailbox(Firmware::Says("throttled=0x0", RAILS));
        let measured = power.read(&root, Some(&mut firmware), second).expect("the rails answer");
        assert_eq!((measured.method, measured.scope.as_str()), (Method::Measured, "pmic_rails"));
        power.estimate(None);
        assert_eq!(power.read(&root, None, second), None);
    }
}
