//! Load of the host through `sysinfo`, load and threads of this process from its own file.

use super::files::Root;
use crate::protocol::Cpu;
use std::time::{Duration, Instant};
use sysinfo::System;

/// Unit of processor time in `/proc`: `USER_HZ`, 100 a second in every Linux that programs see on
/// Arm and x86, whatever the kernel's own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// A load over less time would be made of a few ticks of 10 ms. Also twice what sysinfo asks for
/// (0.2 s), as its clock starts a little after ours.
const SHORTEST: Duration = Duration::from_millis(400);

/// Loads, each a mean since the reading before.
#[derive(Debug)]
pub(super) struct Load {
    /// sysinfo reads the running machine only; under another root nothing is known of the host.
    host: Option<Host>,
    process: Option<Mark>,
    /// The last load of the process, given again to who asks too soon.
    percent: Option<f32>,
}

/// Processor time of the process up to a moment.
#[derive(Debug)]
struct Mark {
    at: Instant,
    ticks: u64,
}

impl Load {
    pub fn new(root: &Root) -> Self {
        let host = if root.is_live() { Host::new() } else { None };
        Load { host, process: None, percent: None }
    }

    pub fn read(&mut self, root: &Root, now: Instant) -> Cpu {
        let stat = root.text("/proc/self/stat");
        let stat = stat.as_deref().and_then(Stat::parse);
        Cpu {
            host_percent: self.host.as_mut().and_then(|host| host.percent(now)),
            process_percent: stat.as_ref().and_then(|stat| self.process_percent(stat.ticks, now)),
            threads: stat.map(|stat| stat.threads),
            load_1m: load_average(root),
            ..Cpu::default()
        }
    }

    fn process_percent(&mut self, ticks: u64, now: Instant) -> Option<f32> {
        let before = self.process.get_or_insert(Mark { at: now, ticks });
        let elapsed = now.saturating_duration_since(before.at);
        if elapsed >= SHORTEST {
            let used = ticks.saturating_sub(before.ticks) as f64 / TICKS_PER_SECOND;
            self.percent = Some((100.0 * used / elapsed.as_secs_f64()) as f32);
            self.process = Some(Mark { at: now, ticks });
        }
        self.percent
    }
}

/// What this needs of `/proc/self/stat`.
#[derive(Debug, PartialEq)]
struct Stat {
    /// User and system time of all threads.
    ticks: u64,
    threads: usize,
}

impl Stat {
    /// The second field is the program's name in brackets and may hold blanks and brackets itself,
    /// so fields are counted from its end; proc(5) calls the next one the third.
    fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let ticks = number(14)?.checked_add(number(15)?)?;
        // No process is without a thread: qemu-user makes the file up, with zeros.
        let threads = usize::try_from(number(20)?).ok().filter(|&threads| threads > 0)?;
        Some(Stat { ticks, threads })
    }
}

/// Load of the running machine.
#[derive(Debug)]
struct Host {
    system: System,
    first: Option<Instant>,
}

impl Host {
    fn new() -> Option<Self> {
        Some(Host { system: System::new().ok()?, first: None })
    }

    fn percent(&mut self, now: Instant) -> Option<f32> {
        self.system.refresh_cpu_usage();
        let first = *self.first.get_or_insert(now);
        // A unit with ProcSubset=pid hides /proc/stat: then there are no processors, and 0 % is not so.
        let known = !self.system.cpus().is_empty();
        let ready = known && now.saturating_duration_since(first) >= SHORTEST;
        ready.then(|| self.system.global_cpu_usage())
    }
}

/// Read here, as sysinfo says 0 where the file is hidden.
fn load_average(root: &Root) -> Option<f64> {
    root.text("/proc/loadavg")?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::board;
    use super::*;
    use std::path::Path;

    #[test]
    fn the_load_of_the_process_is_its_time_over_the_time_between_readings() {
        let start = Instant::now();
        let mut load = Load::new(&board("pi5"));
        let mut percent = |ticks, ms| load.process_percent(ticks, start + Duration::from_millis(ms));
        assert_eq!(percent(1000, 0), None, "one reading has no load");
        assert_eq!(percent(1300, 1000), Some(300.0));
        assert_eq!(percent(1310, 1100), Some(300.0), "too soon for another");
        assert_eq!(percent(1300, 3000), Some(0.0));
    }

    #[test]
    fn a_program_name_with_brackets_and_blanks_is_no_obstacle() {
        let root = board("pi5");
        let text = root.text("/proc/self/stat").expect("recorded");
        assert!(text.contains("(bitnetd (x) 1)"), "{text}");
        assert_eq!(Stat::parse(&text), Some(Stat { ticks: 91_250 + 1_130, threads: 6 }));
    }

    #[test]
    fn a_short_empty_or_made_up_stat_is_not_parsed() {
        let zeros = format!("1 (a){}", " 0".repeat(50));
        for text in [zeros.as_str(), "", "1 (a) R", "1 (a", "1 (a) R 1 1 1 1 1 1 1 1 1 1 -5 2 0 0 0 0 3 0"] {
            assert_eq!(Stat::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_recorded_board_is_not_given_the_load_of_this_machine() {
        let cpu = Load::new(&board("pi5")).read(&board("pi5"), Instant::now());
        assert_eq!((cpu.host_percent, cpu.load_1m), (None, Some(3.92)));
    }

    #[test]
    fn the_running_machine_has_a_load_and_this_process_a_thread_if_it_tells() {
        let (root, start) = (Root::new(Path::new("/")), Instant::now());
        let mut load = Load::new(&root);
        assert_ne!(load.read(&root, start).threads, Some(0));
        let cpu = load.read(&root, start + SHORTEST);
        assert!((0.0..=100.0).contains(&cpu.host_percent.expect("two readings")), "{cpu:?}");
    }
}
