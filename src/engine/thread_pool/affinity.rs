//! CPU affinity: which CPUs the threads of this process may run on.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Pins the current thread, and those it starts from now on, to these CPUs; with none named it stays where it is. A
/// refusal is not an error, because it costs only speed.
pub fn pin_to(cpus: &[usize]) {
    if cpus.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| set.set(*cpu));
    let _ = sched_setaffinity(None, &set);
}

/// The CPUs that the current thread may run on, in order.
pub fn processors() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => vec![0],
    }
}
