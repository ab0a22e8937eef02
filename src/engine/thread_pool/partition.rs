//! How the work of a job is split into parts.
//!
//! Each thread gets half of its share in one part, then a quarter, then two eighths. A thread that is held up
//! leaves the rest of its share to the others, none waits longer than an eighth of a share for the last part, and
//! there are few parts, each of which begins with a wait for memory. On two threads, four equal parts for each were
//! 5 % faster than two where memory is the limit, and eight were no faster than four.

use std::ops::Range;

/// Where the parts of each thread begin, and how large they are, in eighths of its share.
const SHARES: [(usize, usize); 4] = [(0, 4), (4, 2), (6, 1), (7, 1)];

/// Units of work that several threads compute.
#[derive(Debug, Clone, Copy)]
pub(super) struct Partition {
    units: usize,
    threads: usize,
}

impl Partition {
    pub fn new(units: usize, threads: usize) -> Self {
        Partition { units, threads }
    }

    /// The number of parts.
    pub fn parts(self) -> usize {
        match self.threads {
            1 => self.units.min(1),
            _ if self.is_small() => self.units,
            threads => SHARES.len() * threads,
        }
    }

    /// The units of a part.
    pub fn part(self, part: usize) -> Range<usize> {
        self.start(part)..self.start(part + 1)
    }

    /// Whether an eighth of a thread's share is less than a unit; each unit is a part then.
    fn is_small(self) -> bool {
        self.units < 8 * self.threads
    }

    fn start(self, part: usize) -> usize {
        let Partition { units, threads } = self;
        if part >= self.parts() {
            return units;
        }
        if self.is_small() {
            return part;
        }
        let (from, share) = SHARES[part / threads];
        units * (from * threads + share * (part % threads)) / (8 * threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_all_units_once_and_none_is_empty() {
        for threads in [1, 2, 3, 4, 7, 64] {
            for units in (0..300).chain([4321]) {
                let cuts = Partition::new(units, threads);
                let parts: Vec<_> = (0..cuts.parts()).map(|part| cuts.part(part)).collect();
                assert!(parts.iter().all(|part| !part.is_empty()), "{units}, {threads}: {parts:?}");
                assert!(parts.into_iter().flatten().eq(0..units), "{units}, {threads}");
            }
        }
    }

    #[test]
    fn parts_become_smaller_to_the_end() {
        let cuts = Partition::new(160, 2);
        let sizes: Vec<usize> = (0..cuts.parts()).map(|part| cuts.part(part).len()).collect();
        assert_eq!(sizes, [40, 40, 20, 20, 10, 10, 10, 10]);
    }

    #[test]
    fn one_thread_has_one_part() {
        assert_eq!((Partition::new(160, 1).parts(), Partition::new(0, 1).parts()), (1, 0));
    }
}
