//! Power monitor chips in a supply line, as the kernel's hwmon class shows them.
//!
//! Of several chips the first is read: one may be behind another, and a sum would count twice. For the same reason
//! the channels of one chip are never added up: on a Jetson two of them are parts of the third. Deliberately knows
//! no other sensor of power. Source: the kernel's Documentation/hwmon/{sysfs-interface,ina2xx,ina3221}.rst.

use super::{SANE_UW, watts};
use crate::protocol::{Method, Reading};
use crate::telemetry::sensors::RejectedSensor;
use crate::telemetry::sensors::sysfs::Root;

const HWMON: &str = "/sys/class/hwmon";

/// Chips that only measure a supply line. On others `power1_input` is something else: a graphics card's power, the
/// light of a network module, or the current into a battery.
const MONITORS: [&str; 19] = [
    "ina209", "ina219", "ina220", "ina226", "ina228", "ina230", "ina231", "ina232", "ina233", "ina237",
    "ina238", "ina260", "ina700", "ina780", "ina3221", "sy24655", "isl28022", "ltc2945", "ltc4151",
];

/// The processor's own meter, which covers its package: AMD before Zen.
const PACKAGE: &str = "fam15h_power";

/// Labels of the channel that supplies the whole board, on NVIDIA's Jetson modules; the carrier board's own power
/// is not in it.
const INPUTS: [&str; 2] = ["VDD_IN", "POM_5V_IN"];

/// Channels of one chip that have both a voltage and a current. The INA3221 has three; its `in4_input` and the like
/// are voltages over shunts, and its `curr4_input` is a sum.
const CHANNELS: std::ops::RangeInclusive<u32> = 1..=3;

/// One supply line that is measured.
#[derive(Debug)]
pub(super) struct Monitor {
    files: Files,
    /// The chip, and the channel's label if it has one.
    name: String,
    scope: &'static str,
}

#[derive(Debug)]
enum Files {
    /// Files of the power in microwatts and of the current, whose sign tells the direction: the power register has
    /// none.
    Power(String, String),
    /// Files of millivolts and milliamperes.
    Product(String, String),
}

/// The monitor chips of this machine.
#[derive(Debug, Default)]
pub(super) struct Monitors {
    pub found: Vec<Monitor>,
    /// Chips with several channels of which none is labelled as the board's input.
    pub unclear: Vec<String>,
}

impl Monitors {
    pub fn find(root: &Root) -> Self {
        let mut monitors = Monitors::default();
        for folder in root.list(HWMON, "hwmon") {
            let folder = format!("{HWMON}/{folder}");
            let Some(chip) = root.word(&format!("{folder}/name")) else { continue };
            if chip == PACKAGE || MONITORS.contains(&chip.as_str()) {
                monitors.add(root, &folder, &chip);
            }
        }
        monitors
    }

    /// The reading of the first that answers.
    pub fn read(&self, root: &Root) -> Option<Reading> {
        self.found.iter().find_map(|monitor| monitor.read(root))
    }

    fn add(&mut self, root: &Root, folder: &str, chip: &str) {
        let power = format!("{folder}/power1_input");
        if root.number(&power).is_some() {
            let scope = if chip == PACKAGE { "package" } else { "as wired" };
            self.found.push(Monitor {
                files: Files::Power(power, format!("{folder}/curr1_input")),
                name: chip.into(),
                scope,
            });
            return;
        }
        let mut channels: Vec<_> = CHANNELS.filter_map(|n| Channel::find(root, folder, n)).collect();
        let input = channels.iter().position(Channel::is_input);
        match (input, channels.len()) {
            (Some(at), _) => self.found.push(channels.swap_remove(at).monitor(chip, "module")),
            (None, 0) => {}
            (None, 1) => self.found.push(channels.swap_remove(0).monitor(chip, "as wired")),
            (None, _) => self.unclear.push(format!("{folder} ({chip})")),
        }
    }
}

/// Voltage and current of the same line. A disabled channel cannot be read.
struct Channel {
    volts: String,
    amperes: String,
    label: Option<String>,
}

impl Channel {
    fn find(root: &Root, folder: &str, number: u32) -> Option<Self> {
        let (volts, amperes) = (format!("{folder}/in{number}_input"), format!("{folder}/curr{number}_input"));
        let sound = root.number(&volts).is_some() && root.number(&amperes).is_some();
        let label = root.word(&format!("{folder}/in{number}_label"));
        sound.then_some(Channel { volts, amperes, label })
    }

    fn is_input(&self) -> bool {
        self.label.as_deref().is_some_and(|label| INPUTS.contains(&label))
    }

    fn monitor(self, chip: &str, scope: &'static str) -> Monitor {
        let name = self.label.map_or(chip.into(), |label| format!("{chip} {label}"));
        Monitor { files: Files::Product(self.volts, self.amperes), name, scope }
    }
}

impl Monitor {
    pub fn read(&self, root: &Root) -> Option<Reading> {
        let microwatts = self.microwatts(root).ok()?;
        Some(watts(microwatts as f64 / 1e6, Method::Measured, self.source(), self.scope))
    }

    /// Why its reading is rejected; `None` where it is accepted.
    pub fn rejected(&self, root: &Root) -> Option<RejectedSensor> {
        let reason = self.microwatts(root).err()?;
        Some(RejectedSensor::new("power", self.source(), reason))
    }

    fn source(&self) -> String {
        let files = match &self.files {
            Files::Power(power, _) => power.clone(),
            Files::Product(volts, amperes) => {
                format!("{volts}, {}", amperes.rsplit('/').next().unwrap_or_default())
            }
        };
        format!("{files} ({})", self.name)
    }

    /// The power in microwatts, or why there is none.
    fn microwatts(&self, root: &Root) -> Result<i64, String> {
        let number =
            |path: &str| root.number(path).ok_or_else(|| format!("{path} cannot be read as a number"));
        let (microwatts, current) = match &self.files {
            Files::Power(power, amperes) => (number(power)?, root.number(amperes)),
            Files::Product(volts, amperes) => {
                let current = number(amperes)?;
                let product = number(volts)?.checked_mul(current);
                (product.ok_or("voltage times current is beyond all numbers")?, Some(current))
            }
        };
        match current {
            Some(current) if current < 0 => Err(format!(
                "its current is negative ({current} mA): it flows the other way, as into a battery, or the chip is wired \
                 the wrong way round; it is not what the device draws"
            )),
            _ if !SANE_UW.contains(&microwatts) => Err(format!(
                "it says {microwatts} microwatts, which no such line carries; check the shunt's value"
            )),
            _ => Ok(microwatts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::sensors::sysfs::tests::board;

    fn found(name: &str) -> Monitors {
        Monitors::find(&board(name))
    }

    #[test]
    fn only_chips_that_measure_a_supply_line_are_monitors() {
        let root = board("laptop-battery");
        for (chip, name) in [("hwmon1", "amdgpu"), ("hwmon2", "BAT0"), ("hwmon3", "eth0")] {
            assert_eq!(root.word(&format!("{HWMON}/{chip}/name")).as_deref(), Some(name));
            assert!(root.number(&format!("{HWMON}/{chip}/power1_input")).is_some(), "{name} has a power");
        }
        assert!(Monitors::find(&root).found.is_empty());
    }

    #[test]
    fn of_three_channels_the_boards_input_is_read_and_its_parts_are_not_added() {
        let (root, monitors) = (board("jetson"), found("jetson"));
        assert_eq!((monitors.found.len(), monitors.unclear.len()), (1, 0));
        let reading = monitors.read(&root).expect("the input answers");
        assert!((reading.value - 5.0 * 1.48).abs() < 1e-9, "{reading:?}");
    }

    #[test]
    fn of_several_channels_without_such_a_name_none_is_read() {
        let monitors = found("rails-unnamed");
        assert!(monitors.found.is_empty());
        assert_eq!(monitors.unclear, ["/sys/class/hwmon/hwmon0 (ina3221)"]);
    }

    #[test]
    fn a_single_channel_is_read_as_it_is_wired() {
        let reading = found("ina3221-hat").read(&board("ina3221-hat")).expect("one channel");
        assert_eq!((reading.method, reading.scope.as_str()), (Method::Measured, "as wired"));
    }

    #[test]
    fn a_chip_with_an_implausible_value_is_found_and_rejected() {
        let root = board("broken");
        let monitors = Monitors::find(&root);
        assert_eq!((monitors.found.len(), monitors.read(&root)), (2, None));
    }

    #[test]
    fn a_negative_current_is_not_what_the_device_draws() {
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let chip = folder.path().join("sys/class/hwmon/hwmon0");
        std::fs::create_dir_all(&chip).expect("a temporary folder");
        let put = |name: &str, text: &str| std::fs::write(chip.join(name), text).expect("room");
        put("name", "ina219\n");
        put("in1_input", "5100\n");
        put("curr1_input", "-900\n");
        let root = Root::new(folder.path());
        for has_power in [true, false] {
            let power = chip.join("power1_input");
            if has_power {
                put("power1_input", "4590000\n")
            } else {
                std::fs::remove_file(power).expect("ours")
            }
            let monitors = Monitors::find(&root);
            assert_eq!(monitors.read(&root), None);
            let unbelieved = monitors.found[0].rejected(&root).expect("a reason");
            assert!(unbelieved.reason.contains("negative (-900 mA)"), "{unbelieved:?}");
        }
        put("curr1_input", "900\n");
        let monitors = Monitors::find(&root);
        assert_eq!(monitors.read(&root).map(|reading| reading.value), Some(4.59));
        assert_eq!(monitors.found[0].rejected(&root), None);
    }
}
