//! What of the host's settings and state makes a model slow: the frequency governor, swap, and pages that are read from
//! the disk again. For `bitnetd doctor`; deliberately judges none of it.

use super::cpufreq::{self, FrequencyGovernor};
use super::sysfs::{Root, kilobytes};
use std::path::Path;

/// The settings and the state at one moment; what this machine does not tell is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostTuning {
    /// The name of the board, from its device tree.
    pub board: Option<String>,
    /// How the kernel chooses the frequency of the first processors.
    pub governor: Option<FrequencyGovernor>,
    /// `None` where there is no swap.
    pub swap: Option<SwapUse>,
    /// How often this process waited for a page from the disk, since its start.
    pub major_faults: Option<u64>,
}

/// How much of the swap is used, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapUse {
    /// Of the host.
    pub total: u64,
    /// Of the host, in use.
    pub used: u64,
    /// What of this process is there.
    pub process: u64,
    /// Whether it is memory in which pages are compressed (zram), and no disk.
    pub is_compressed: bool,
}

/// Reads all of it under `root`, which is `/` except in tests.
pub fn host_tuning(root: &Path) -> HostTuning {
    let root = Root::new(root);
    HostTuning {
        board: root.word("/proc/device-tree/model").map(|name| name.trim_end_matches('\0').to_owned()),
        governor: cpufreq::governor(&root),
        swap: swap(&root),
        major_faults: major_faults(&root),
    }
}

fn swap(root: &Root) -> Option<SwapUse> {
    let memory = root.text("/proc/meminfo")?;
    let total = kilobytes(&memory, "SwapTotal").filter(|total| *total > 0)?;
    let used = total.saturating_sub(kilobytes(&memory, "SwapFree")?);
    let process = kilobytes(&root.text("/proc/self/status").unwrap_or_default(), "VmSwap").unwrap_or(0);
    let areas = root.text("/proc/swaps").unwrap_or_default();
    let mut areas = areas.lines().skip(1).peekable();
    let is_compressed = areas.peek().is_some() && areas.all(|area| area.starts_with("/dev/zram"));
    Some(SwapUse { total, used, process, is_compressed })
}

/// Field 12 of `/proc/self/stat`. The name before the fields may contain anything, parentheses too. Source: proc(5).
fn major_faults(root: &Root) -> Option<u64> {
    let text = root.text("/proc/self/stat")?;
    let (_, fields) = text.rsplit_once(')')?;
    fields.split_whitespace().nth(9)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuning(board: &str) -> HostTuning {
        host_tuning(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/boards").join(board))
    }

    #[test]
    fn a_board_tells_its_governor_its_swap_and_its_name() {
        let zero = tuning("zero2");
        assert_eq!(zero.board.as_deref(), Some("Raspberry Pi Zero 2 W Rev 1.0"));
        let governor = zero.governor.expect("a file");
        assert_eq!((governor.name.as_str(), governor.driver.as_deref()), ("powersave", Some("cpufreq-dt")));
        let swap =
            SwapUse { total: 524_272 << 10, used: 401_000 << 10, process: 96_128 << 10, is_compressed: true };
        assert_eq!(zero.swap, Some(swap));
    }

    #[test]
    fn a_swap_file_is_no_compressed_memory() {
        let swap = tuning("pi4").swap.expect("the host has some");
        assert_eq!((swap.used, swap.process, swap.is_compressed), (0, 0, false));
        assert_eq!(tuning("pi4").major_faults, Some(2));
    }

    #[test]
    fn what_is_missing_or_nonsense_is_not_known() {
        assert_eq!(tuning("none"), HostTuning::default());
        let broken = tuning("broken");
        assert_eq!((broken.swap, broken.major_faults), (None, None));
    }
}
