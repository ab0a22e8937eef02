//! A rolling mean of a ratio over the last seconds, and the CPU ticks that most are made of. Deliberately knows no
//! clock: the time is passed in.

use super::sysfs::Root;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Ticks per second in `/proc`: `USER_HZ`, which is 100 on Arm and x86 whatever the kernel's own tick rate is.
pub(super) const TICKS_PER_SECOND: f64 = 100.0;

/// How far back a mean reaches: long enough to be smooth, short enough to show that an answer begins. Where
/// readings are further apart, the mean covers the time since the last one.
const WINDOW: Duration = Duration::from_secs(10);

/// A load over less time would consist of a few ticks of 10 ms.
const MIN_INTERVAL: Duration = Duration::from_millis(400);

/// Time between two stored samples. With the window it bounds their number to 22.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// The ratio of the growth of two counters, such as busy ticks to all ticks, over the last seconds.
#[derive(Debug, Default)]
pub(super) struct RollingMean(VecDeque<Sample>);

/// The two counters at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    part: f64,
    whole: f64,
}

impl RollingMean {
    /// Adds the counters at `now` and returns the ratio over the last seconds; `None` while the interval is too
    /// short.
    pub fn add(&mut self, now: Instant, part: f64, whole: f64) -> Option<f64> {
        let last = self.0.back().map(|mark| now.saturating_duration_since(mark.at));
        // The newest sample that is older than the window is the one to compare with.
        while self.0.get(1).is_some_and(|mark| now.saturating_duration_since(mark.at) >= WINDOW) {
            self.0.pop_front();
        }
        let share = self.0.front().and_then(|first| first.share(now, part, whole));
        if last.is_none_or(|last| last >= SAMPLE_INTERVAL) {
            self.0.push_back(Sample { at: now, part, whole });
        }
        share
    }

    /// Drops all samples, since they cannot be compared with what follows.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl Sample {
    fn share(&self, now: Instant, part: f64, whole: f64) -> Option<f64> {
        let enough = now.saturating_duration_since(self.at) >= MIN_INTERVAL && whole > self.whole;
        // The time spent waiting for disks may decrease a little, as proc(5) says.
        enough.then(|| ((part - self.part) / (whole - self.whole)).max(0.0))
    }
}

/// CPU ticks of all processors since boot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CpuTicks {
    /// Ticks in which something ran.
    pub busy: u64,
    pub all: u64,
}

impl CpuTicks {
    pub fn read(root: &Root) -> Option<Self> {
        CpuTicks::parse(&root.first_line("/proc/stat")?)
    }

    /// The line `cpu  user nice system idle iowait irq softirq steal …` of proc(5). Time of guests follows, and is
    /// in `user` already.
    fn parse(line: &str) -> Option<Self> {
        let fields = line.strip_prefix("cpu ")?.split_whitespace().take(8);
        let ticks = fields.map(|field| field.parse().ok()).collect::<Option<Vec<u64>>>()?;
        let all = ticks.iter().try_fold(0_u64, |sum, ticks| sum.checked_add(*ticks))?;
        let idle = ticks.get(3)?.checked_add(*ticks.get(4)?)?;
        // qemu-user fakes the file with zeros.
        (all > 0).then_some(CpuTicks { busy: all - idle, all })
    }

    /// The load since `before`, 0 to 1; `None` if no time has passed.
    pub fn load_since(self, before: CpuTicks) -> Option<f64> {
        let all = self.all.checked_sub(before.all).filter(|all| *all > 0)?;
        Some((self.busy.saturating_sub(before.busy) as f64 / all as f64).min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    /// The mean after `seconds` of full load that follow ten minutes of none, read every `every_ms`.
    fn after_a_change(seconds: u64, every_ms: u64) -> f64 {
        let (mut mean, start, change) = (RollingMean::default(), Instant::now(), 600_000);
        let mut message = None;
        for at in (0..=change + seconds * 1000).step_by(every_ms as usize) {
            let busy = at.saturating_sub(change) as f64;
            message = mean.add(ms(start, at), busy, at as f64);
            assert!(mean.0.len() <= 22, "{} marks", mean.0.len());
        }
        message.expect("read often enough")
    }

    #[test]
    fn a_mean_reaches_ten_seconds_back_however_often_it_is_read() {
        for every_ms in [10, 100, 500, 1000, 2500, 5000] {
            assert!((after_a_change(10, every_ms) - 1.0).abs() < 0.06, "{every_ms} ms");
            assert!((after_a_change(5, every_ms) - 0.5).abs() < 0.06, "{every_ms} ms");
        }
    }

    #[test]
    fn readings_further_apart_give_the_mean_since_the_one_before() {
        let (mut mean, start) = (RollingMean::default(), Instant::now());
        assert_eq!(mean.add(start, 0.0, 0.0), None, "one reading has no load");
        assert_eq!(mean.add(ms(start, 30_000), 15.0, 30.0), Some(0.5));
        assert_eq!(mean.add(ms(start, 60_000), 45.0, 60.0), Some(1.0));
    }

    #[test]
    fn a_mean_of_too_little_time_is_none() {
        let (mut mean, start) = (RollingMean::default(), Instant::now());
        assert_eq!(mean.add(start, 0.0, 0.0), None);
        assert_eq!(mean.add(ms(start, 399), 1.0, 1.0), None);
        assert_eq!(mean.add(ms(start, 400), 1.0, 1.0), Some(1.0));
        assert_eq!(mean.add(start, 1.0, 1.0), None, "a moment before the first");
        mean.clear();
        assert_eq!(mean.add(ms(start, 900), 1.0, 1.0), None);
    }

    #[test]
    fn counts_that_stand_still_or_fall_make_no_load_below_nothing() {
        let (mut mean, start) = (RollingMean::default(), Instant::now());
        mean.add(start, 5.0, 10.0);
        assert_eq!(mean.add(ms(start, 1000), 5.0, 10.0), None);
        assert_eq!(mean.add(ms(start, 2000), 4.0, 20.0), Some(0.0));
    }

    #[test]
    fn ticks_are_busy_but_for_those_idle_or_waiting_for_disks() {
        let parsed = CpuTicks::parse("cpu  10 1 5 80 4 2 3 1 7 7");
        assert_eq!(parsed, Some(CpuTicks { busy: 22, all: 106 }));
        let later = CpuTicks { busy: 72, all: 206 };
        assert_eq!(later.load_since(CpuTicks { busy: 22, all: 106 }), Some(0.5));
        assert_eq!(later.load_since(later), None);
        assert_eq!(CpuTicks { busy: 0, all: 300 }.load_since(later), Some(0.0));
    }

    #[test]
    fn the_ticks_of_the_running_machine_are_those_that_sysinfo_makes_a_load_of() {
        let root = Root::new(std::path::Path::new("/"));
        let mut system = sysinfo::System::new().expect("Linux is supported");
        let Some(before) = CpuTicks::read(&root) else { return };
        system.refresh_cpu_usage();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(1500) {
            std::hint::spin_loop();
        }
        system.refresh_cpu_usage();
        let ours =
            CpuTicks::read(&root).and_then(|ticks| ticks.load_since(before)).expect("time went by") * 100.0;
        let theirs = f64::from(system.global_cpu_usage());
        assert!((ours - theirs).abs() < 20.0, "{ours} and {theirs}");
    }

    #[test]
    fn a_line_that_is_not_of_all_processors_has_no_ticks() {
        let most = format!("cpu  {0} {0} 0 0 0 0 0 0", u64::MAX);
        let lines = [
            "",
            "cpu",
            "cpu ",
            "cpu  1 2",
            "cpu0 1 2 3 4 5 6 7 8",
            "cpu  1 2 x 4 5",
            "cpu  0 0 0 0 0",
            &most,
        ];
        for line in lines {
            assert_eq!(CpuTicks::parse(line), None, "{line}");
        }
    }
}
