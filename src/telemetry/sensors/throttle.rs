//! Throttling: the flags of a Raspberry Pi's firmware, and the alarm for its supply voltage.
//!
//! The flags come from the mailbox. The file `soc:firmware/get_throttled` has them too, but it is deprecated, and
//! each read of it writes a warning and a stack trace to the kernel's log. Deliberately knows no alert.

use super::rpi_firmware::Mailbox;
use super::sysfs::Root;
use crate::protocol::{Flag, Method, Throttled, Throttling};
use std::time::Instant;

const HWMON: &str = "/sys/class/hwmon";

/// The hwmon chip by which the kernel shows the firmware's under-voltage flag, and its alarm file. Source:
/// drivers/hwmon/raspberrypi-hwmon.c of Linux.
const VOLTAGE: &str = "rpi_volt";
const ALARM: &str = "in0_lcrit_alarm";

/// The flags since boot are the present ones, shifted by this many bits.
const SINCE_BOOT: u32 = 16;

const SCOPE: &str = "board";

/// The alarm for under-voltage.
#[derive(Debug)]
pub(super) struct SupplyVoltage {
    alarm: Option<String>,
}

impl SupplyVoltage {
    pub fn find(root: &Root) -> Self {
        let chips = root.list(HWMON, "hwmon").into_iter();
        let mut folders = chips.map(|chip| format!("{HWMON}/{chip}"));
        let folder =
            folders.find(|folder| root.word(&format!("{folder}/name")).is_some_and(|name| name == VOLTAGE));
        SupplyVoltage { alarm: folder.map(|folder| format!("{folder}/{ALARM}")) }
    }

    /// Whether the voltage is too low now, from the kernel's alarm, otherwise from the firmware's flag.
    pub fn under_voltage(&self, root: &Root, throttling: Option<&Throttling>) -> Option<Flag> {
        self.alarm(root).or_else(|| {
            let throttling = throttling?;
            Some(flag(throttling.now.under_voltage, throttling.source.clone()))
        })
    }

    fn alarm(&self, root: &Root) -> Option<Flag> {
        let path = self.alarm.as_deref()?;
        let value = match root.number(path)? {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(flag(value, format!("{path} ({VOLTAGE})")))
    }
}

/// The flags of the firmware.
pub(super) fn throttling(mailbox: &mut Mailbox, now: Instant) -> Option<Throttling> {
    let flags = mailbox.throttled(now)?;
    Some(Throttling {
        now: throttled(flags),
        since_boot: throttled(flags >> SINCE_BOOT),
        method: Method::Measured,
        source: mailbox.throttled_source(),
        scope: SCOPE.into(),
    })
}

/// Bits 0 to 3. Source: the documentation of `vcgencmd get_throttled` by Raspberry Pi Ltd.
fn throttled(flags: u32) -> Throttled {
    let is_set = |bit: u32| flags >> bit & 1 == 1;
    Throttled {
        under_voltage: is_set(0),
        frequency_capped: is_set(1),
        throttled: is_set(2),
        soft_temperature_limit: is_set(3),
    }
}

/// The flags by name, for people.
pub(super) fn names(flags: Throttled) -> String {
    let Throttled { under_voltage, frequency_capped, throttled, soft_temperature_limit } = flags;
    let all = [
        (under_voltage, "under-voltage"),
        (frequency_capped, "frequency capped"),
        (throttled, "throttled"),
        (soft_temperature_limit, "soft temperature limit"),
    ];
    let names: Vec<_> = all.into_iter().filter_map(|(is_set, name)| is_set.then_some(name)).collect();
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

fn flag(value: bool, source: String) -> Flag {
    Flag { value, method: Method::Measured, source, scope: SCOPE.into() }
}

#[cfg(test)]
mod tests {
    use super::super::rpi_firmware::tests::{Firmware, mailbox};
    use super::super::sysfs::tests::board;
    use super::*;

    fn message(flags: &'static str) -> Throttling {
        let (mut mailbox, _) = mailbox(Firmware::Says(flags, ""));
        throttling(&mut mailbox, Instant::now()).expect("flags")
    }

    #[test]
    fn each_bit_is_the_documented_flag_now_and_since_boot() {
        type Read = fn(&Throttled) -> bool;
        let flags: [(&str, &str, Read); 4] = [
            ("throttled=0x1", "throttled=0x10000", |t| t.under_voltage),
            ("throttled=0x2", "throttled=0x20000", |t| t.frequency_capped),
            ("throttled=0x4", "throttled=0x40000", |t| t.throttled),
            ("throttled=0x8", "throttled=0x80000", |t| t.soft_temperature_limit),
        ];
        for (now, since_boot, read) in flags {
            let (now, since_boot) = (message(now), message(since_boot));
            assert!(read(&now.now) && !now.since_boot.any(), "{now:?}");
            assert!(read(&since_boot.since_boot) && !since_boot.now.any(), "{since_boot:?}");
            assert_eq!(names(now.now), names(since_boot.since_boot));
        }
        assert!(!message("throttled=0xfff0fff0").now.any(), "other bits are not ours");
        assert_eq!(names(message("throttled=0x0").now), "nothing");
    }

    #[test]
    fn the_alarm_of_the_kernel_is_preferred_to_the_flag() {
        let throttling = message("throttled=0x1");
        let (quiet, low, none) = (board("pi5"), board("zero2"), board("jetson"));
        let flag = SupplyVoltage::find(&quiet).under_voltage(&quiet, Some(&throttling)).expect("an alarm");
        assert_eq!(
            (flag.value, flag.source.as_str()),
            (false, "/sys/class/hwmon/hwmon3/in0_lcrit_alarm (rpi_volt)")
        );
        assert!(SupplyVoltage::find(&low).under_voltage(&low, None).expect("an alarm").value);
        let flag = SupplyVoltage::find(&none).under_voltage(&none, Some(&throttling)).expect("a flag");
        assert_eq!((flag.value, flag.source.as_str()), (true, "/dev/vcio_gencmd get_throttled"));
        assert_eq!(SupplyVoltage::find(&none).under_voltage(&none, None), None);
    }

    #[test]
    fn an_alarm_that_is_neither_on_nor_off_is_not_believed() {
        let root = board("broken");
        let supply = SupplyVoltage::find(&root);
        assert!(supply.alarm.is_some());
        assert_eq!(supply.under_voltage(&root, None), None);
    }
}
