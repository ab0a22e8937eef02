//! The clock of the processors, from cpufreq.
//!
//! Many drivers, the Raspberry Pi's among them, tell the clock that the kernel asked for last: what the firmware makes
//! of it in want of volts or when hot, the throttle flags tell.
//! Source: the kernel's Documentation/admin-guide/pm/cpufreq.rst.

use super::sysfs::Root;
use crate::protocol::{Method, Reading};

const PROCESSORS: &str = "/sys/devices/system/cpu";

/// A clock that a processor can have, in kHz; some virtual machines say 0.
const SANE_KHZ: std::ops::RangeInclusive<i64> = 1..=20_000_000;

/// The clocks of this machine: one for each group of processors that share one.
#[derive(Debug)]
pub(super) struct Clocks {
    files: Vec<String>,
    /// In MHz; it does not change while the machine runs.
    most_mhz: Option<f64>,
}

impl Clocks {
    pub fn find(root: &Root) -> Self {
        let policies = folders(root);
        let most =
            policies.iter().filter_map(|folder| khz(root, &format!("{folder}/cpuinfo_max_freq"))).max();
        let current = policies.iter().map(|folder| format!("{folder}/scaling_cur_freq"));
        Clocks {
            files: current.filter(|file| khz(root, file).is_some()).collect(),
            most_mhz: most.map(|khz| khz as f64 / 1e3),
        }
    }

    /// The fastest clock now.
    pub fn read(&self, root: &Root) -> Option<Reading> {
        let clocks = self.files.iter().filter_map(|file| Some((khz(root, file)?, file)));
        let (khz, file) = clocks.max_by_key(|(khz, _)| *khz)?;
        Some(Reading {
            value: khz as f64 / 1e3,
            unit: "MHz",
            method: Method::Measured,
            source: file.clone(),
            scope: "cpu".into(),
        })
    }

    /// The most that the hardware can do, in MHz.
    pub fn most_mhz(&self) -> Option<f64> {
        self.most_mhz
    }
}

/// A folder for each clock; older kernels have one for each processor only.
fn folders(root: &Root) -> Vec<String> {
    let policies = root.list(&format!("{PROCESSORS}/cpufreq"), "policy").into_iter();
    let policies: Vec<_> = policies.map(|name| format!("{PROCESSORS}/cpufreq/{name}")).collect();
    if !policies.is_empty() {
        return policies;
    }
    let processors = root.list(PROCESSORS, "cpu").into_iter();
    processors.map(|name| format!("{PROCESSORS}/{name}/cpufreq")).collect()
}

fn khz(root: &Root, path: &str) -> Option<i64> {
    root.number(path).filter(|khz| SANE_KHZ.contains(khz))
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::tests::board;
    use super::*;

    #[test]
    fn the_fastest_of_several_clocks_is_told() {
        let root = board("jetson");
        let clocks = Clocks::find(&root);
        assert_eq!(clocks.files.len(), 2);
        let reading = clocks.read(&root).expect("a clock");
        assert_eq!((reading.value, reading.unit), (1510.4, "MHz"));
        assert!(reading.source.ends_with("policy4/scaling_cur_freq"), "{reading:?}");
        assert_eq!(clocks.most_mhz(), Some(1510.4));
    }

    #[test]
    fn processors_are_asked_where_the_kernel_has_no_policies() {
        assert_eq!(Clocks::find(&board("big-little-by-frequency")).most_mhz(), Some(2208.0));
        assert_eq!(Clocks::find(&board("big-little-by-frequency")).read(&board("pi5")), None);
    }

    #[test]
    fn a_clock_that_stands_still_or_runs_backwards_is_none() {
        let clocks = Clocks::find(&board("broken"));
        assert_eq!((clocks.files.len(), clocks.most_mhz()), (0, None));
    }
}
