//! Memory of our control group as the kernel charges it, page cache included. Deliberately knows no limit: that is
//! in `memory`.

use super::sysfs::Root;

/// The files of our control group; each may be missing, in older kernels or where the memory controller is off.
#[derive(Debug, Default)]
pub(super) struct Cgroup {
    current: Option<String>,
    peak: Option<String>,
    events: Option<String>,
}

/// File names of each cgroup version: current use, peak, and the file with a line `oom_kill N`.
const V2_FILES: [&str; 3] = ["memory.current", "memory.peak", "memory.events"];
const V1_FILES: [&str; 3] = ["memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"];

impl Cgroup {
    /// Finds the control group of this process, which does not change while it runs.
    pub fn find(root: &Root) -> Self {
        let groups = root.text("/proc/self/cgroup").unwrap_or_default();
        let folders = groups.lines().filter_map(folders_of);
        let mut found = folders.flat_map(|(places, names)| places.map(|place| (place, names)));
        let group = found.find(|(place, names)| root.number(&format!("{place}/{}", names[0])).is_some());
        group.map_or_else(Cgroup::default, |(place, names)| {
            let file = |name: &str| Some(format!("{place}/{name}")).filter(|path| root.has(path));
            Cgroup { current: file(names[0]), peak: file(names[1]), events: file(names[2]) }
        })
    }

    pub fn bytes(&self, root: &Root) -> Option<u64> {
        bytes(root, self.current.as_deref()?)
    }

    /// The peak since the group was created, in bytes; with version 2 it needs kernel 5.19.
    pub fn peak_bytes(&self, root: &Root) -> Option<u64> {
        bytes(root, self.peak.as_deref()?)
    }

    /// Processes in the group that the OOM killer ended.
    pub fn oom_kills(&self, root: &Root) -> Option<u64> {
        let text = root.text(self.events.as_deref()?)?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    }
}

/// The folders in which the group of one line of `/proc/self/cgroup`, `id:controllers:path`, may be found, and its
/// file names. In a container the path may be that of the host, of which only the mount itself is visible.
fn folders_of(line: &str) -> Option<([String; 2], [&'static str; 3])> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (mount, names) = match controllers {
        "" => ("/sys/fs/cgroup", V2_FILES),
        _ if controllers.split(',').any(|name| name == "memory") => ("/sys/fs/cgroup/memory", V1_FILES),
        _ => return None,
    };
    let path = if path.contains("..") { "" } else { path.trim_end_matches('/') };
    Some(([format!("{mount}{path}"), mount.into()], names))
}

fn bytes(root: &Root, path: &str) -> Option<u64> {
    u64::try_from(root.number(path)?).ok()
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::tests::board;
    use super::*;

    fn reported(name: &str) -> (Option<u64>, Option<u64>, Option<u64>) {
        let root = board(name);
        let group = Cgroup::find(&root);
        (group.bytes(&root), group.peak_bytes(&root), group.oom_kills(&root))
    }

    #[test]
    fn the_group_of_a_service_is_read() {
        assert_eq!(reported("pi4"), (Some(738_197_504), Some(790_626_304), Some(0)));
    }

    #[test]
    fn without_a_peak_file_the_other_values_are_read() {
        assert_eq!(reported("ina219"), (Some(301_989_888), None, Some(2)));
    }

    #[test]
    fn a_version_1_group_is_found_at_the_mount_of_a_container() {
        assert_eq!(reported("laptop-battery"), (Some(912_261_120), Some(1_073_741_824), Some(1)));
    }

    #[test]
    fn without_a_memory_controller_nothing_is_known() {
        for name in ["pi5", "none", "broken", "x86-rapl"] {
            assert_eq!(reported(name), (None, None, None), "{name}");
        }
    }
}
