//! The clock frequency of the processors, from cpufreq.
//!
//! Many drivers, such as the Raspberry Pi's, report the frequency that the kernel requested last; what the firmware
//! makes of it when hot or at under-voltage is in the throttle flags. Deliberately knows no load. Source: the
//! kernel's Documentation/admin-guide/pm/cpufreq.rst.

use super::sysfs::Root;
use crate::protocol::{Method, Reading};

const PROCESSORS: &str = "/sys/devices/system/cpu";

/// Plausible frequencies, in kHz; some virtual machines report 0.
const SANE_KHZ: std::ops::RangeInclusive<i64> = 1..=20_000_000;

/// The frequencies of this machine, one for each cpufreq policy.
#[derive(Debug)]
pub(super) struct CpuFrequencies {
    files: Vec<String>,
    /// The maximum in MHz, which does not change while the machine runs.
    max_mhz: Option<f64>,
}

impl CpuFrequencies {
    pub fn find(root: &Root) -> Self {
        let policies = folders(root);
        let most =
            policies.iter().filter_map(|folder| khz(root, &format!("{folder}/cpuinfo_max_freq"))).max();
        let current = policies.iter().map(|folder| format!("{folder}/scaling_cur_freq"));
        CpuFrequencies {
            files: current.filter(|file| khz(root, file).is_some()).collect(),
            max_mhz: most.map(|khz| khz as f64 / 1e3),
        }
    }

    /// The highest frequency now.
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

    /// The maximum of the hardware, in MHz.
    pub fn max_mhz(&self) -> Option<f64> {
        self.max_mhz
    }
}

/// How the kernel chooses the frequency of processors. Source: Documentation/admin-guide/pm/cpufreq.rst of Linux.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrequencyGovernor {
    /// `performance`, `powersave`, `ondemand`, `schedutil` and others.
    pub name: String,
    /// The driver of the frequency; some choose it themselves under each of these names.
    pub driver: Option<String>,
}

/// How the frequency of the first processors is chosen.
pub(super) fn governor(root: &Root) -> Option<FrequencyGovernor> {
    let folder = folders(root).into_iter().next()?;
    Some(FrequencyGovernor {
        name: root.word(&format!("{folder}/scaling_governor"))?,
        driver: root.word(&format!("{folder}/scaling_driver")),
    })
}

/// The folder of each policy; older kernels have one for each processor only.
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
    fn the_highest_of_several_frequencies_is_reported() {
        let root = board("jetson");
        let clocks = CpuFrequencies::find(&root);
        assert_eq!(clocks.files.len(), 2);
        let reading = clocks.read(&root).expect("a clock");
        assert_eq!((reading.value, reading.unit), (1510.4, "MHz"));
        assert!(reading.source.ends_with("policy4/scaling_cur_freq"), "{reading:?}");
        assert_eq!(clocks.max_mhz(), Some(1510.4));
    }

    #[test]
    fn processors_are_asked_where_the_kernel_has_no_policies() {
        assert_eq!(CpuFrequencies::find(&board("big-little-by-frequency")).max_mhz(), Some(2208.0));
        assert_eq!(CpuFrequencies::find(&board("big-little-by-frequency")).read(&board("pi5")), None);
    }

    #[test]
    fn a_clock_that_stands_still_or_runs_backwards_is_none() {
        let clocks = CpuFrequencies::find(&board("broken"));
        assert_eq!((clocks.files.len(), clocks.max_mhz()), (0, None));
    }
}
