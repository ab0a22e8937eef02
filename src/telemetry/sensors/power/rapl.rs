//! Power of x86 processor packages, from the energy counters of RAPL.
//!
//! All packages are added up. Their parts (`core`, `uncore`, and `dram`, which is beside the package on some
//! servers) are not, and neither is `psys`, which covers the whole board: what it counts depends on how its maker
//! set it up, and without that it is constant or meaningless. Deliberately knows no other sensor. Source: the
//! kernel's Documentation/power/powercap/powercap.rst.

use crate::telemetry::energy::MIN_DERIVED_INTERVAL;
use crate::telemetry::sensors::sysfs::Root;
use std::time::{Duration, Instant};

const CLASS: &str = "/sys/class/powercap";

pub(super) const SCOPE: &str = "package";

/// The longest interval that is used. The counters wrap around after 65 kJ or 262 kJ on most processors, and 65 kJ
/// are 200 s at 328 W; after a longer pause they may have wrapped more than once.
const MAX_INTERVAL: Duration = Duration::from_secs(200);

/// The energy counters of all packages, and the power they give.
#[derive(Debug)]
pub(super) struct Rapl {
    packages: Vec<Package>,
    before: Option<(Instant, Vec<u64>)>,
    /// Returned again when asked too soon.
    watts: Option<f64>,
}

#[derive(Debug)]
struct Package {
    /// The file of its counter, in microjoules. Since Linux 5.10 only root may read it (CVE-2020-8694), unless the
    /// owner allows more.
    energy: String,
    /// The value at which the counter wraps around.
    range: Option<u64>,
}

impl Rapl {
    /// The packages whose counters can be read; `None` without any. `intel-rapl` is the name on AMD
    /// too; `intel-rapl-mmio` has the same packages a second time.
    pub fn find(root: &Root) -> Option<Self> {
        let zones = root.list(CLASS, "intel-rapl:").into_iter();
        let packages: Vec<_> = zones.filter_map(|zone| Package::find(root, &zone)).collect();
        (!packages.is_empty()).then_some(Rapl { packages, before: None, watts: None })
    }

    /// The files of all packages.
    pub fn source(&self) -> String {
        let files: Vec<_> = self.packages.iter().map(|package| package.energy.as_str()).collect();
        files.join(", ")
    }

    /// Whether the counters still answer.
    pub fn answers(&self, root: &Root) -> bool {
        self.counters(root).is_some()
    }

    /// Mean power of all packages together since the last reading, in watts.
    pub fn watts(&mut self, root: &Root, now: Instant) -> Option<f64> {
        let Some(counters) = self.counters(root) else {
            (self.before, self.watts) = (None, None);
            return None;
        };
        let elapsed = self.before.as_ref().map(|(then, _)| now.saturating_duration_since(*then));
        if elapsed.is_none_or(|elapsed| elapsed >= MIN_DERIVED_INTERVAL) {
            self.watts = elapsed.and_then(|elapsed| self.mean(&counters, elapsed));
            self.before = Some((now, counters));
        }
        self.watts
    }

    fn mean(&self, after: &[u64], elapsed: Duration) -> Option<f64> {
        let (_, before) = self.before.as_ref().filter(|_| elapsed <= MAX_INTERVAL)?;
        let each = self.packages.iter().zip(before.iter().zip(after));
        let used = each.map(|(package, (&before, &after))| difference(before, after, package.range));
        let microjoules: u64 = used.sum::<Option<u64>>()?;
        Some(microjoules as f64 / 1e6 / elapsed.as_secs_f64())
    }

    fn counters(&self, root: &Root) -> Option<Vec<u64>> {
        self.packages.iter().map(|package| counter(root, &package.energy)).collect()
    }
}

impl Package {
    fn find(root: &Root, zone: &str) -> Option<Self> {
        let energy = format!("{CLASS}/{zone}/energy_uj");
        let sound = is_package(root, zone) && counter(root, &energy).is_some();
        let range = counter(root, &format!("{CLASS}/{zone}/max_energy_range_uj"));
        sound.then_some(Package { energy, range })
    }
}

/// Whole packages only: cores and memory (`intel-rapl:0:0`) are parts of them.
fn is_package(root: &Root, zone: &str) -> bool {
    root.word(&format!("{CLASS}/{zone}/name")).is_some_and(|name| name.starts_with("package-"))
}

/// Why existing counters cannot be used, and a remedy.
pub(super) fn problem(root: &Root) -> Option<String> {
    let zones = root.list(CLASS, "intel-rapl:");
    let closed = |zone: &&String| {
        is_package(root, zone) && counter(root, &format!("{CLASS}/{zone}/energy_uj")).is_none()
    };
    let zone = zones.iter().find(closed)?;
    Some(format!(
        "power: {CLASS}/{zone}/energy_uj cannot be read: Linux lets only root read it (CVE-2020-8694); to let the service, \
         put `z {CLASS}/intel-rapl:*/energy_uj 0440 root bitnetd` in /etc/tmpfiles.d/bitnetd-rapl.conf and run \
         systemd-tmpfiles --create"
    ))
}

fn counter(root: &Root, path: &str) -> Option<u64> {
    root.number(path).and_then(|number| u64::try_from(number).ok())
}

/// The energy between two values of a counter that wraps to 0 after `range`.
fn difference(before: u64, after: u64, range: Option<u64>) -> Option<u64> {
    match after.checked_sub(before) {
        Some(used) => Some(used),
        None => range?.checked_sub(before)?.checked_add(after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::sensors::sysfs::tests::board;

    /// The counter a second and the wrap-around later is 15 J further.
    fn pair() -> (Rapl, Root, Root, Instant) {
        let (early, late) = (board("x86-rapl"), board("x86-rapl-later"));
        let mut rapl = Rapl::find(&early).expect("a package");
        let start = Instant::now();
        assert_eq!(rapl.watts(&early, start), None, "one reading has no power");
        (rapl, early, late, start)
    }

    #[test]
    fn power_is_the_energy_between_readings_over_their_time_across_the_wrap_around() {
        let (mut rapl, _, late, start) = pair();
        let watts = rapl.watts(&late, start + Duration::from_secs(1)).expect("two readings");
        assert!((watts - 15.0).abs() < 1e-9, "{watts}");
    }

    #[test]
    fn asked_too_soon_it_returns_the_last_power() {
        let (mut rapl, early, late, start) = pair();
        assert_eq!(rapl.watts(&late, start + Duration::from_millis(9)), None);
        let watts = rapl.watts(&late, start + Duration::from_secs(1));
        assert_eq!(rapl.watts(&early, start + Duration::from_millis(1009)), watts);
    }

    #[test]
    fn a_pause_that_may_hide_a_wrap_around_has_no_power() {
        let (mut rapl, _, late, start) = pair();
        assert_eq!(rapl.watts(&late, start + Duration::from_secs(3600)), None);
    }

    #[test]
    fn counters_that_cannot_be_read_any_more_are_not_compared_with_old_ones() {
        let (mut rapl, early, late, start) = pair();
        assert_eq!(rapl.watts(&board("none"), start + Duration::from_secs(1)), None);
        assert_eq!(rapl.watts(&late, start + Duration::from_secs(2)), None);
        assert!(rapl.answers(&early) && !rapl.answers(&board("none")));
    }

    #[test]
    fn a_counter_that_falls_without_a_known_range_has_no_reading() {
        assert_eq!(difference(10, 5, None), None);
        assert_eq!(difference(10, 5, Some(8)), None);
        assert_eq!(difference(10, 5, Some(12)), Some(7));
        assert_eq!(difference(5, 10, None), Some(5));
    }

    #[test]
    fn parts_of_a_package_are_not_counted_twice() {
        let rapl = Rapl::find(&board("x86-rapl")).expect("a package");
        assert_eq!(rapl.source(), "/sys/class/powercap/intel-rapl:0/energy_uj");
    }

    #[test]
    fn two_packages_are_added_and_the_board_around_them_is_not() {
        let (early, late) = (board("x86-two-packages"), board("x86-two-packages-later"));
        let mut rapl = Rapl::find(&early).expect("two packages");
        let start = Instant::now();
        assert_eq!(rapl.watts(&early, start), None);
        let watts = rapl.watts(&late, start + Duration::from_secs(2)).expect("two readings");
        // 90 J and, across its wrap-around, 60 J in 2 s; psys says 200 J, the two memories 10 J each.
        assert!((watts - 75.0).abs() < 1e-9, "{watts}");
        assert_eq!(
            rapl.source(),
            "/sys/class/powercap/intel-rapl:0/energy_uj, /sys/class/powercap/intel-rapl:1/energy_uj"
        );
    }

    #[test]
    fn counters_that_may_not_be_read_are_a_problem_with_a_way_out() {
        let problem = problem(&board("broken")).expect("a package without a counter");
        assert!(problem.contains("intel-rapl:0/energy_uj") && problem.contains("tmpfiles.d"), "{problem}");
        assert!(!problem.contains('\n') && !problem.contains("  "), "{problem}");
        assert_eq!(super::problem(&board("x86-rapl")), None);
        assert_eq!(super::problem(&board("pi5")), None);
    }
}
