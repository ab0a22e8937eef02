//! CPU load of host and process, threads of the process, load average and CPU pressure. Deliberately knows neither
//! clock nor temperature.

use super::cached::{self, Cached};
use super::psi;
use super::rolling_mean::{CpuTicks, RollingMean, TICKS_PER_SECOND};
use super::sysfs::Root;
use crate::protocol::{Cpu, Pressure};
use std::time::Instant;

/// CPU loads, each a mean over the last ten seconds.
#[derive(Debug)]
pub(super) struct CpuLoad {
    started: Instant,
    host: RollingMean,
    process: RollingMean,
    /// The kernel's own means: load average and pressure stall information.
    kernel_averages: Cached<(Option<f64>, Option<Pressure>)>,
}

impl CpuLoad {
    pub fn new(now: Instant) -> Self {
        CpuLoad {
            started: now,
            host: RollingMean::default(),
            process: RollingMean::default(),
            kernel_averages: Cached::new(cached::CACHE_FOR),
        }
    }

    /// Reads all but the clock of the processors.
    pub fn read(&mut self, root: &Root, now: Instant) -> Cpu {
        let stat = root.text("/proc/self/stat");
        let stat = stat.as_deref().and_then(ProcStat::parse);
        let means = || (load_average(root), psi::read(root, "/proc/pressure/cpu"));
        let (load_1m, pressure) = self.kernel_averages.get(now, means);
        Cpu {
            host_percent: self.host_percent(CpuTicks::read(root), now),
            process_percent: stat.as_ref().and_then(|stat| self.process_percent(stat.ticks, now)),
            threads: stat.map(|stat| stat.threads),
            load_1m,
            pressure,
            ..Cpu::default()
        }
    }

    /// The host's load; `None` where /proc/stat is hidden, as by ProcSubset=pid in the unit.
    fn host_percent(&mut self, ticks: Option<CpuTicks>, now: Instant) -> Option<f32> {
        let Some(ticks) = ticks else {
            self.host.clear();
            return None;
        };
        let share = self.host.add(now, ticks.busy as f64, ticks.all as f64)?;
        Some((100.0 * share).min(100.0) as f32)
    }

    fn process_percent(&mut self, ticks: u64, now: Instant) -> Option<f32> {
        let elapsed = now.saturating_duration_since(self.started).as_secs_f64();
        let share = self.process.add(now, ticks as f64 / TICKS_PER_SECOND, elapsed)?;
        Some((100.0 * share) as f32)
    }
}

/// The fields of `/proc/self/stat` that are used.
#[derive(Debug, PartialEq)]
struct ProcStat {
    /// User and system time of all threads, in ticks.
    ticks: u64,
    threads: usize,
}

impl ProcStat {
    /// The second field is the program's name in brackets, which may contain blanks and brackets itself, so fields
    /// are counted from its closing bracket; proc(5) numbers the next one as the third.
    fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let ticks = number(14)?.checked_add(number(15)?)?;
        // qemu-user fakes the file with zeros, and no process has 0 threads.
        let threads = usize::try_from(number(20)?).ok().filter(|&threads| threads > 0)?;
        Some(ProcStat { ticks, threads })
    }
}

fn load_average(root: &Root) -> Option<f64> {
    let first: f64 = root.text("/proc/loadavg")?.split_whitespace().next()?.parse().ok()?;
    (first.is_finite() && first >= 0.0).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::tests::board;
    use super::*;
    use std::path::Path;
    use std::time::Duration;

    #[test]
    fn the_load_of_the_process_is_its_time_over_the_time_that_went_by() {
        let start = Instant::now();
        let mut load = CpuLoad::new(start);
        let mut percent = |ticks, ms| load.process_percent(ticks, start + Duration::from_millis(ms));
        assert_eq!(percent(1000, 0), None, "one reading has no load");
        assert_eq!(percent(1300, 1000), Some(300.0));
        assert_eq!(percent(1300, 3000), Some(100.0), "the mean since the first");
        assert_eq!(percent(1300, 13_500), Some(0.0), "ten seconds later that is forgotten");
    }

    #[test]
    fn the_load_of_the_host_is_never_more_than_all_of_it_and_unknown_when_hidden() {
        let start = Instant::now();
        let mut load = CpuLoad::new(start);
        let mut percent =
            |busy, all, s| load.host_percent(Some(CpuTicks { busy, all }), start + Duration::from_secs(s));
        assert_eq!(percent(100, 1000, 0), None);
        assert_eq!(percent(300, 1400, 1), Some(50.0));
        assert_eq!(percent(900, 1500, 2), Some(100.0));
        assert_eq!(load.host_percent(None, start + Duration::from_secs(3)), None);
        let again =
            load.host_percent(Some(CpuTicks { busy: 1000, all: 1600 }), start + Duration::from_secs(4));
        assert_eq!(again, None, "what lay before was forgotten");
    }

    #[test]
    fn a_program_name_with_brackets_and_blanks_is_no_obstacle() {
        let root = board("pi5");
        let text = root.text("/proc/self/stat").expect("recorded");
        assert!(text.contains("(bitnetd (x) 1)"), "{text}");
        assert_eq!(ProcStat::parse(&text), Some(ProcStat { ticks: 91_250 + 1_130, threads: 6 }));
    }

    #[test]
    fn a_short_empty_or_made_up_stat_is_not_parsed() {
        let zeros = format!("1 (a){}", " 0".repeat(50));
        for text in [zeros.as_str(), "", "1 (a) R", "1 (a", "1 (a) R 1 1 1 1 1 1 1 1 1 1 -5 2 0 0 0 0 3 0"] {
            assert_eq!(ProcStat::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_running_machine_has_a_load_and_this_process_a_thread() {
        let (root, start) = (Root::new(Path::new("/")), Instant::now());
        let mut load = CpuLoad::new(start);
        assert_ne!(load.read(&root, start).threads, Some(0));
        let begun = Instant::now();
        // Work enough for some ticks of the clock: no time goes by for a machine that is not looked at.
        while begun.elapsed() < Duration::from_millis(120) {
            std::hint::spin_loop();
        }
        let cpu = load.read(&root, start + Duration::from_secs(1));
        assert!(cpu.host_percent.is_none_or(|percent| (0.0..=100.0).contains(&percent)), "{cpu:?}");
        assert_eq!(cpu.host_percent.is_some(), CpuTicks::read(&root).is_some(), "{cpu:?}");
    }
}
