//! Memory of the process and the host, and the limit that the kernel enforces on the process.
//!
//! Sizes are read from lines in kB where possible, since the page size differs: a Raspberry Pi 5 has pages of 16
//! KiB. Deliberately knows no budget.

use super::cached::{self, Cached};
use super::cgroup::Cgroup;
use super::psi;
use super::sysfs::{Root, kilobytes};
use crate::protocol::Memory;
use std::path::Path;
use std::time::{Duration, Instant};
use sysinfo::{MemoryRefreshKind, System};

/// Assumed where the host's memory is unknown: the smallest board that is supported.
const MIN_HOST_BYTES: u64 = 512 << 20;

/// The limit that the kernel enforces on the memory of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryLimit {
    /// The lowest limit of its control group and the groups around it, in bytes.
    At(u64),
    /// No limit is set, or one above the host's memory.
    NotSet,
    /// No limit can be set: the kernel's memory controller is disabled, as on a stock Raspberry Pi OS, whose
    /// firmware adds `cgroup_disable=memory` to the kernel's command line.
    NoController,
}

impl MemoryLimit {
    /// The limit, if there is one.
    pub fn bytes(self) -> Option<u64> {
        match self {
            MemoryLimit::At(bytes) => Some(bytes),
            MemoryLimit::NotSet | MemoryLimit::NoController => None,
        }
    }
}

/// How long the result of looking for a limit is reused: it needs a dozen files, which change only when an owner
/// runs `systemctl set-property`.
const LIMIT_CACHE_FOR: Duration = Duration::from_secs(60);

/// The sensors for memory of process, control group and host.
#[derive(Debug)]
pub(super) struct MemorySensors {
    cgroup: Cgroup,
    enforced: Cached<bool>,
    /// All but the memory of the process.
    around: Cached<Memory>,
    host: HostMemory,
}

impl MemorySensors {
    /// Memory of the control group in bytes, if the kernel counts it.
    pub fn group_bytes(&self, root: &Root) -> Option<u64> {
        self.cgroup.bytes(root)
    }

    pub fn find(root: &Root) -> Self {
        let (enforced, around) = (Cached::new(LIMIT_CACHE_FOR), Cached::new(cached::CACHE_FOR));
        MemorySensors { cgroup: Cgroup::find(root), enforced, around, host: HostMemory::find(root) }
    }

    pub fn read(&mut self, root: &Root, now: Instant) -> Memory {
        let MemorySensors { cgroup: group, enforced, around, host } = self;
        let process = root.text("/proc/self/status").unwrap_or_default();
        let around = around.get(now, || {
            let (host_total_bytes, host_available_bytes) = host.read(root);
            Memory {
                process_bytes: None,
                budget_bytes: 0,
                host_total_bytes,
                host_available_bytes,
                memory_limit_enforced: enforced.get(now, || matches!(limit(root), MemoryLimit::At(_))),
                group_bytes: group.bytes(root),
                group_peak_bytes: group.peak_bytes(root),
                oom_kills: group.oom_kills(root),
                pressure: psi::read(root, "/proc/pressure/memory"),
            }
        });
        Memory { process_bytes: kilobytes(&process, "VmRSS"), ..around }
    }
}

/// sysinfo reads the running machine only; under another root `/proc/meminfo` is read.
#[derive(Debug)]
struct HostMemory(Option<System>);

impl HostMemory {
    fn find(root: &Root) -> Self {
        HostMemory(if root.is_live() { System::new().ok() } else { None })
    }

    /// Total and available memory of the host, in bytes.
    fn read(&mut self, root: &Root) -> (Option<u64>, Option<u64>) {
        let HostMemory(Some(system)) = self else {
            let text = root.text("/proc/meminfo").unwrap_or_default();
            return (kilobytes(&text, "MemTotal"), kilobytes(&text, "MemAvailable"));
        };
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        // It returns 0 where the file is hidden.
        let total = Some(system.total_memory()).filter(|bytes| *bytes > 0);
        (total, total.map(|_| system.available_memory()))
    }
}

/// Memory that this process may use, in bytes: the host's, or its control group's limit where that is lower.
pub fn host_memory(root: &Path) -> u64 {
    let root = Root::new(root);
    limit(&root).bytes().or_else(|| total(&root)).unwrap_or(MIN_HOST_BYTES)
}

/// Resident memory of this process and the file-backed part of it, in bytes. It reads one small file, so it is
/// cheap enough for every request. `page` is the page size in bytes: 16 KiB on a Raspberry Pi 5.
pub fn resident_memory(root: &Path, page: usize) -> Option<(u64, u64)> {
    let text = Root::new(root).text("/proc/self/statm")?;
    let mut pages = text.split_whitespace().skip(1).map(|pages| pages.parse::<u64>().ok());
    let mut next = || pages.next()??.checked_mul(page as u64);
    Some((next()?, next()?))
}

/// The peak of the resident memory of this process, in bytes; mapped files count as far as they were read.
pub fn peak_memory(root: &Path) -> Option<u64> {
    kilobytes(&Root::new(root).text("/proc/self/status")?, "VmHWM")
}

/// The memory limit that the kernel enforces on this process.
pub fn memory_limit(root: &Path) -> MemoryLimit {
    limit(&Root::new(root))
}

fn limit(root: &Root) -> MemoryLimit {
    let groups = root.text("/proc/self/cgroup").unwrap_or_default();
    let lowest = groups.lines().filter_map(|line| group_limit(root, line)).min();
    // Version 1 writes "no limit" as a number near 2^63, so limits above the host's memory are ignored.
    match lowest.filter(|lowest| *lowest < total(root).unwrap_or(1 << 60)) {
        Some(lowest) => MemoryLimit::At(lowest),
        None if has_controller(root, &groups) => MemoryLimit::NotSet,
        None => MemoryLimit::NoController,
    }
}

/// Whether the memory controller is enabled, in version 1 or 2. With `cgroup_disable=memory` neither lists it.
fn has_controller(root: &Root, groups: &str) -> bool {
    let first = groups.lines().filter_map(|line| line.split(':').nth(1)).any(|names| has_memory(names, ','));
    let second =
        || root.text("/sys/fs/cgroup/cgroup.controllers").is_some_and(|names| has_memory(&names, ' '));
    first || second()
}

fn has_memory(names: &str, between: char) -> bool {
    names.trim().split(between).any(|name| name == "memory")
}

fn total(root: &Root) -> Option<u64> {
    kilobytes(&root.text("/proc/meminfo")?, "MemTotal")
}

/// The lowest limit of one line of `/proc/self/cgroup`, `id:controllers:path`.
fn group_limit(root: &Root, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (_id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    // Above `memory.high` a process is throttled, so it counts as a limit as well.
    let (mount, files) = match controllers {
        "" => ("/sys/fs/cgroup", &["memory.max", "memory.high"][..]),
        _ if has_memory(controllers, ',') => ("/sys/fs/cgroup/memory", &["memory.limit_in_bytes"][..]),
        _ => return None,
    };
    let limit = |group, file| root.word(&format!("{mount}{group}/{file}"))?.parse().ok();
    ancestors(path).flat_map(|group| files.iter().filter_map(move |file| limit(group, file))).min()
}

/// A group and all its ancestors, down to the mount. In a container the path may be that of the host, of which only
/// the mount itself is visible; a path that leads out of the mount is not followed.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let path = if path.contains("..") { "" } else { path.trim_end_matches('/') };
    std::iter::successors(Some(path), |path| path.rfind('/').map(|end| &path[..end]))
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::tests::board;
    use super::*;
    use std::path::PathBuf;

    fn place(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/boards").join(name)
    }

    fn read(root: &Root) -> Memory {
        MemorySensors::find(root).read(root, Instant::now())
    }

    #[test]
    fn whether_a_limit_is_enforced_is_looked_up_once_a_minute() {
        let (mut memories, now) = (MemorySensors::find(&board("pi4")), Instant::now());
        assert!(memories.read(&board("pi4"), now).memory_limit_enforced);
        let almost = now + LIMIT_CACHE_FOR - Duration::from_millis(1);
        assert!(memories.read(&board("pi5"), almost).memory_limit_enforced);
        assert!(
            !memories.read(&board("pi5"), now + LIMIT_CACHE_FOR + cached::CACHE_FOR).memory_limit_enforced
        );
    }

    #[test]
    fn memory_of_host_and_process_is_read_in_bytes() {
        let memory = read(&board("pi4"));
        assert_eq!(memory.host_total_bytes, Some(3_884_660 << 10));
        assert_eq!(memory.host_available_bytes, Some(2_904_512 << 10));
        assert_eq!(memory.process_bytes, Some(702_464 << 10));
    }

    #[test]
    fn a_stock_raspberry_pi_os_enforces_no_limit() {
        assert_eq!(memory_limit(&place("pi5")), MemoryLimit::NoController);
        assert!(!read(&board("pi5")).memory_limit_enforced);
        assert_eq!(host_memory(&place("pi5")), 8_255_968 << 10);
    }

    #[test]
    fn the_limit_of_a_group_around_ours_counts_when_it_is_the_lower_one() {
        assert_eq!(memory_limit(&place("pi4")), MemoryLimit::At(1 << 30));
        assert_eq!(host_memory(&place("pi4")), 1 << 30);
        assert!(read(&board("pi4")).memory_limit_enforced);
    }

    #[test]
    fn resident_memory_is_counted_in_the_pages_of_the_machine() {
        assert_eq!(resident_memory(&place("pi5"), 16 << 10), Some((78_144 << 14, 74_236 << 14)));
        assert_eq!(resident_memory(&place("none"), 1), None);
        assert_eq!(resident_memory(&place("broken"), 1), None);
        let live = resident_memory(Path::new("/"), rustix::param::page_size()).expect("Linux tells");
        assert!(live.0 > 100 << 10 && live.1 <= live.0, "{live:?}");
    }

    #[test]
    fn a_version_1_limit_is_found_at_the_mount_of_a_container() {
        assert_eq!(memory_limit(&place("laptop-battery")), MemoryLimit::At(2 << 30));
    }

    #[test]
    fn a_limit_past_which_the_kernel_slows_us_down_counts_as_well() {
        assert_eq!(memory_limit(&place("ina219")), MemoryLimit::At(400 << 20));
    }

    #[test]
    fn a_limit_above_the_memory_of_the_host_is_none() {
        assert_eq!(memory_limit(&place("x86-rapl")), MemoryLimit::NotSet);
    }

    #[test]
    fn a_host_of_unknown_memory_counts_as_the_smallest_board() {
        assert_eq!(host_memory(&place("none")), MIN_HOST_BYTES);
        assert_eq!(memory_limit(&place("broken")).bytes(), None);
    }

    #[test]
    fn all_groups_around_ours_are_asked() {
        assert_eq!(ancestors("/a/b").collect::<Vec<_>>(), ["/a/b", "/a", ""]);
        assert_eq!(ancestors("/").collect::<Vec<_>>(), [""]);
        assert_eq!(ancestors("/../x").collect::<Vec<_>>(), [""]);
    }

    #[test]
    fn sysinfo_agrees_with_proc_meminfo() {
        let root = Root::new(Path::new("/"));
        let memory = read(&root);
        assert!(total(&root).is_some());
        assert_eq!(memory.host_total_bytes, total(&root));
        assert!(
            memory.host_available_bytes > Some(0) && memory.host_available_bytes < memory.host_total_bytes
        );
    }
}
