//! Whether there is memory for more work: a decision only, the numbers and the time passed in.
//!
//! The plan says what the daemon takes at most. This is for what no plan knows: an allocator that does not give back,
//! a fault of ours, a kernel's limit shared with others. New work is refused before the kernel has to kill.
//! Weights that are read from the file are counted as the plan counts them, also while the kernel has taken them
//! back: the next pass brings them again, so that giving them up would gain nothing.

use std::time::{Duration, Instant};

/// What a process always keeps free for requests that are in already: their answers' text, and the kernel's own count
/// of pages, which is behind by some dozens for each processor.
const MARGIN: u64 = 1 << 20;
/// And this part of the budget: what is not foreseen grows with what there is.
const PART: u64 = 64;
/// But no more than this in all. The plan sets it aside, and leaves at least as much again to grow into.
const MOST: u64 = 6 << 20;
/// A daemon that is short of memory with nothing to do for so long does not get better by waiting.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is kept free of `budget`, both in bytes.
pub(super) fn margin(budget: u64) -> u64 {
    (MARGIN + budget / PART).min(MOST)
}

/// Memory of the process at one moment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Held {
    /// Resident, all of it.
    pub resident: u64,
    /// Of these, pages of files.
    pub of_files: u64,
    /// Of the KV cache, what was planned and never written to: it will be.
    pub yet_to_come: u64,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing.
    Room,
    /// Take no new work.
    Short,
    /// End: it has been short for a minute with nothing to do.
    Stuck,
}

/// Watches the memory of the process.
#[derive(Debug)]
pub(super) struct Pressure {
    budget: u64,
    /// Weights read from the file's own pages.
    mapped: u64,
    is_short: bool,
    /// Since when it is short with nothing to do.
    idle_since: Option<Instant>,
}

impl Pressure {
    /// Keeps to `budget`, `mapped` of which is planned for weights in the pages of a file.
    pub fn new(budget: u64, mapped: u64) -> Self {
        Pressure { budget, mapped, is_short: false, idle_since: None }
    }

    /// Looks at what is held now. Once short, it stays so until there is twice the margin.
    pub fn look(&mut self, held: Held, is_busy: bool, now: Instant) -> State {
        let margin = margin(self.budget);
        let free = self.budget.saturating_sub(self.reckoned(held));
        self.is_short = free < if self.is_short { 2 * margin } else { margin };
        if !self.is_short || is_busy {
            self.idle_since = None;
            return if self.is_short { State::Short } else { State::Room };
        }
        let since = *self.idle_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= PATIENCE { State::Stuck } else { State::Short }
    }

    /// Whether it was short when it was last looked at.
    pub fn is_short(&self) -> bool {
        self.is_short
    }

    /// The budget, in bytes.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    fn reckoned(&self, held: Held) -> u64 {
        let own = held.resident.saturating_sub(held.of_files);
        held.resident.max(own + self.mapped) + held.yet_to_come
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn held(resident: u64, of_files: u64, yet_to_come: u64) -> Held {
        Held { resident: resident * MIB, of_files: of_files * MIB, yet_to_come: yet_to_come * MIB }
    }

    /// 64 MiB with a margin of 2; what it says of each amount, one after the other.
    fn states(resident: &[u64]) -> Vec<State> {
        let mut pressure = Pressure::new(64 * MIB, 0);
        let now = Instant::now();
        resident.iter().map(|mib| pressure.look(held(*mib, 0, 0), true, now)).collect()
    }

    #[test]
    fn near_the_budget_it_is_short_until_twice_the_margin_is_free() {
        use State::{Room, Short};
        assert_eq!(
            states(&[0, 62, 63, 62, 61, 60, 62, 64, 99]),
            [Room, Room, Short, Short, Short, Room, Room, Short, Short]
        );
    }

    #[test]
    fn a_cache_yet_to_be_written_counts_and_so_do_weights_taken_back() {
        let now = Instant::now();
        let look = |held| Pressure::new(100 * MIB, 50 * MIB).look(held, true, now);
        assert_eq!(look(held(80, 60, 0)), State::Room);
        assert_eq!(look(held(80, 60, 18)), State::Short);
        assert_eq!(look(held(48, 0, 0)), State::Short, "48 of ours, and 50 that come back");
        assert_eq!(look(held(47, 0, 0)), State::Room);
    }

    #[test]
    fn short_for_a_minute_with_nothing_to_do_is_stuck() {
        let (mut pressure, start) = (Pressure::new(64 * MIB, 0), Instant::now());
        let mut look =
            |seconds, is_busy| pressure.look(held(64, 0, 0), is_busy, start + Duration::from_secs(seconds));
        assert_eq!(look(0, false), State::Short);
        assert_eq!(look(59, true), State::Short, "it may end something, and give back");
        assert_eq!(look(60, false), State::Short);
        assert_eq!(look(119, false), State::Short);
        assert_eq!(look(120, false), State::Stuck);
    }

    #[test]
    fn numbers_beyond_the_budget_do_not_wrap() {
        let mut pressure = Pressure::new(MIB, u64::from(u32::MAX));
        assert_eq!(pressure.look(held(2, 3, 1), true, Instant::now()), State::Short);
    }
}
