//! Refuses new work when the process comes near its memory budget. Decisions only, with the numbers and the time
//! passed in. Deliberately reads no sensor.
//!
//! The memory plan is the most that the daemon should take. This guard covers what the plan cannot foresee: an
//! allocator that does not return memory, a leak, a limit of the kernel that is shared with other processes. New
//! work is refused before the kernel has to kill. Weights that are mapped from the file count as planned, even
//! while the kernel has evicted their pages: the next forward pass reads them again.

use std::time::{Duration, Instant};

/// The fixed part of the reserve, for the text of answers under way and for the kernel's counters of pages, which
/// lag by some dozens of pages per processor.
const BASE_RESERVE: u64 = 1 << 20;
/// The proportional part of the reserve is the budget divided by this.
const BUDGET_DIVISOR: u64 = 64;
/// The largest reserve.
const MAX_RESERVE: u64 = 6 << 20;
/// A daemon that is idle and short of memory for this long is restarted.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// The reserve that stays free of `budget`, both in bytes.
pub(super) fn reserve(budget: u64) -> u64 {
    (BASE_RESERVE + budget / BUDGET_DIVISOR).min(MAX_RESERVE)
}

/// Memory of the process at one moment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct MemoryUse {
    /// All resident memory.
    pub resident: u64,
    /// The file-backed part of it.
    pub file_backed: u64,
    /// The part of the KV cache that was planned and not written yet.
    pub reserved: u64,
}

/// What to do about the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryState {
    /// Enough is free; nothing to do.
    Free,
    /// Memory is short; admit no new work.
    Short,
    /// It has been short for a minute while idle; end the process.
    Stuck,
}

/// Watches the memory of the process.
#[derive(Debug)]
pub(super) struct MemoryGuard {
    budget: u64,
    /// Weights that are mapped from the file, in bytes.
    mapped: u64,
    is_short: bool,
    /// When it became short while idle.
    idle_since: Option<Instant>,
}

impl MemoryGuard {
    /// A guard for `budget` bytes, `mapped` of which are planned for weights that are mapped from a file.
    pub fn new(budget: u64, mapped: u64) -> Self {
        MemoryGuard { budget, mapped, is_short: false, idle_since: None }
    }

    /// Another model is loaded, with so many bytes of weights that are mapped from its file.
    pub fn set_mapped(&mut self, bytes: u64) {
        self.mapped = bytes;
    }

    /// Evaluates the memory in use. `was_freed`: what could be freed was freed just before, because it was becoming short.
    ///
    /// Then twice the reserve has to be free, or what is freed would have to be freed again at once. Once short, it stays so
    /// until a quarter more than the reserve is free. It is not more, because an idle daemon that keeps what the plan
    /// allows must find that enough: nothing would free the rest.
    pub fn update(&mut self, held: MemoryUse, is_busy: bool, was_freed: bool, now: Instant) -> MemoryState {
        let margin = reserve(self.budget);
        let needed = match (self.is_short, was_freed) {
            (true, _) => margin + margin / 4,
            (false, true) => 2 * margin,
            (false, false) => margin,
        };
        self.is_short = self.free(held) < needed;
        if !self.is_short || is_busy {
            self.idle_since = None;
            return if self.is_short { MemoryState::Short } else { MemoryState::Free };
        }
        let since = *self.idle_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= STUCK_AFTER {
            MemoryState::Stuck
        } else {
            MemoryState::Short
        }
    }

    /// Whether the next update would find that memory, which was enough, is short now.
    pub fn is_becoming_short(&self, held: MemoryUse) -> bool {
        !self.is_short && self.free(held) < reserve(self.budget)
    }

    /// Whether memory was short at the last update.
    pub fn is_short(&self) -> bool {
        self.is_short
    }

    /// The budget, in bytes.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    fn free(&self, held: MemoryUse) -> u64 {
        self.budget.saturating_sub(self.committed(held))
    }

    fn committed(&self, held: MemoryUse) -> u64 {
        let own = held.resident.saturating_sub(held.file_backed);
        held.resident.max(own + self.mapped) + held.reserved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn held(resident: u64, of_files: u64, yet_to_come: u64) -> MemoryUse {
        MemoryUse { resident: resident * MIB, file_backed: of_files * MIB, reserved: yet_to_come * MIB }
    }

    /// A budget of 64 MiB with a reserve of 2; the state after each amount.
    fn states(resident: &[u64]) -> Vec<MemoryState> {
        let mut pressure = MemoryGuard::new(64 * MIB, 0);
        let now = Instant::now();
        resident.iter().map(|mib| pressure.update(held(*mib, 0, 0), true, false, now)).collect()
    }

    #[test]
    fn near_the_budget_it_is_short_until_a_quarter_more_than_the_margin_is_free() {
        use MemoryState::{Free, Short};
        assert_eq!(
            states(&[0, 62, 63, 62, 61, 60, 62, 64, 99]),
            [Free, Free, Short, Short, Free, Free, Free, Short, Short]
        );
    }

    #[test]
    fn what_is_about_to_be_short_is_not_short_before_the_update() {
        let mut guard = MemoryGuard::new(64 * MIB, 0);
        let full = held(63, 0, 0);
        assert!(guard.is_becoming_short(full) && !guard.is_short());
        guard.update(full, true, false, Instant::now());
        assert!(guard.is_short() && !guard.is_becoming_short(full), "it became so already");
        assert!(!MemoryGuard::new(64 * MIB, 0).is_becoming_short(held(62, 0, 0)));
    }

    #[test]
    fn where_freeing_frees_little_memory_is_short() {
        let state =
            |resident| MemoryGuard::new(64 * MIB, 0).update(held(resident, 0, 0), true, true, Instant::now());
        assert_eq!((state(61), state(60)), (MemoryState::Short, MemoryState::Free));
    }

    #[test]
    fn a_cache_yet_to_be_written_counts_and_so_do_weights_taken_back() {
        let now = Instant::now();
        let look = |held| MemoryGuard::new(100 * MIB, 50 * MIB).update(held, true, false, now);
        assert_eq!(look(held(80, 60, 0)), MemoryState::Free);
        assert_eq!(look(held(80, 60, 18)), MemoryState::Short);
        assert_eq!(look(held(48, 0, 0)), MemoryState::Short, "48 held here, and 50 that come back");
        assert_eq!(look(held(47, 0, 0)), MemoryState::Free);
    }

    #[test]
    fn short_for_a_minute_with_nothing_to_do_is_stuck() {
        let (mut pressure, start) = (MemoryGuard::new(64 * MIB, 0), Instant::now());
        let mut look = |seconds, is_busy| {
            pressure.update(held(64, 0, 0), is_busy, false, start + Duration::from_secs(seconds))
        };
        assert_eq!(look(0, false), MemoryState::Short);
        assert_eq!(look(59, true), MemoryState::Short, "it may end something, and give back");
        assert_eq!(look(60, false), MemoryState::Short);
        assert_eq!(look(119, false), MemoryState::Short);
        assert_eq!(look(120, false), MemoryState::Stuck);
    }

    #[test]
    fn numbers_beyond_the_budget_do_not_wrap() {
        let mut pressure = MemoryGuard::new(MIB, u64::from(u32::MAX));
        assert_eq!(pressure.update(held(2, 3, 1), true, false, Instant::now()), MemoryState::Short);
    }
}
