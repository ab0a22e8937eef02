//! Which processors are big and which are little (Arm big.LITTLE). Deliberately does not decide where anything
//! runs.

use super::sysfs::Root;
use std::path::Path;

/// A big processor has at least this share of the greatest capacity, in percent. Cortex-A55 beside A76 has about
/// 40. The faster and slower cores of one kind have 80 to 90, and all count as big.
const BIG_PERCENT: i64 = 70;

/// The processors that a process may run on, by their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processors {
    /// The fast ones; all, where they are alike or the kernel does not distinguish them.
    pub big: Vec<usize>,
    /// The slow ones.
    pub little: Vec<usize>,
}

/// Sorts the `allowed` processors by the kernel's figures: their capacity (on Arm, from the device tree or measured
/// at boot), otherwise their highest frequency. Source: the kernel's
/// Documentation/ABI/testing/sysfs-devices-system-cpu.
pub fn processors(root: &Path, allowed: &[usize]) -> Processors {
    let root = Root::new(root);
    let figures = figures(&root, allowed, "cpu_capacity")
        .or_else(|| figures(&root, allowed, "cpufreq/cpuinfo_max_freq"))
        .unwrap_or_default();
    let least = figures.iter().max().map_or(0, |most| most.saturating_mul(BIG_PERCENT) / 100);
    let is_little = |place: usize| figures.get(place).is_some_and(|figure| *figure < least);
    let some = |little: bool| {
        let some = allowed.iter().enumerate().filter(|(place, _)| is_little(*place) == little);
        some.map(|(_, cpu)| *cpu).collect()
    };
    Processors { big: some(false), little: some(true) }
}

/// One number for each processor, above 0; `None` where one of them has none, since the others could not be
/// compared with it.
fn figures(root: &Root, allowed: &[usize], name: &str) -> Option<Vec<i64>> {
    let figure = |cpu: &usize| root.number(&format!("/sys/devices/system/cpu/cpu{cpu}/{name}"));
    allowed.iter().map(|cpu| figure(cpu).filter(|figure| *figure > 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(name: &str, allowed: impl IntoIterator<Item = usize>) -> Processors {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/boards").join(name);
        processors(&root, &Vec::from_iter(allowed))
    }

    #[test]
    fn four_big_and_four_little_cores_are_distinguished_by_their_capacity() {
        let reported = Processors { big: vec![4, 5, 6, 7], little: vec![0, 1, 2, 3] };
        assert_eq!(board("big-little", 0..8), reported);
    }

    #[test]
    fn only_processors_that_may_be_used_are_compared() {
        assert_eq!(board("big-little", [2, 3, 6]), Processors { big: vec![6], little: vec![2, 3] });
        assert_eq!(board("big-little", 0..4), Processors { big: vec![0, 1, 2, 3], little: vec![] });
    }

    #[test]
    fn without_capacities_the_highest_frequency_decides() {
        assert_eq!(
            board("big-little-by-frequency", 0..4),
            Processors { big: vec![1, 3], little: vec![0, 2] }
        );
    }

    #[test]
    fn cores_are_alike_where_the_figure_of_one_is_missing_or_invalid() {
        for name in ["pi5", "none", "broken"] {
            assert_eq!(board(name, 0..4), Processors { big: vec![0, 1, 2, 3], little: vec![] }, "{name}");
        }
    }
}
