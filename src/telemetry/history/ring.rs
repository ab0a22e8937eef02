//! The steps of one length, in the order of their time: as many as there is memory for.
//!
//! The clock may jump. A step that was seen before is merged with what is there; an earlier one is put where it belongs;
//! steps that lie in the future, because the clock was wrong once, are the first to go when there is no place left and the
//! clock is known to be right. So no jump removes what is sound. Deliberately knows no clock.

use super::record::StepRecord;
use std::collections::VecDeque;

/// The steps of one length.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRing {
    /// Minutes of one step.
    length: u32,
    capacity: usize,
    /// Their minutes are multiples of `length` and rise.
    steps: VecDeque<StepRecord>,
}

impl StepRing {
    /// A ring of up to `capacity` steps of `length` minutes, whose memory is reserved at once.
    pub fn new(length: u32, capacity: usize) -> Self {
        StepRing { length, capacity, steps: VecDeque::with_capacity(capacity) }
    }

    /// Minutes of one step.
    pub fn length(&self) -> u32 {
        self.length
    }

    /// The most steps.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The steps, the oldest first.
    pub fn steps(&self) -> &VecDeque<StepRecord> {
        &self.steps
    }

    /// Adds a step. `future_from`: steps later than this minute lie in the future, so that a wrong clock made them; `None`
    /// while it is not known whether the clock is right.
    pub fn add(&mut self, step: StepRecord, future_from: Option<u32>) {
        debug_assert_eq!(step.minute % self.length, 0);
        let at = match self.steps.binary_search_by_key(&step.minute, |known| known.minute) {
            Ok(at) => {
                self.steps[at] = StepRecord::merged(step.minute, &[&self.steps[at], &step]);
                return;
            }
            Err(at) => at,
        };
        if self.steps.len() < self.capacity {
            self.steps.insert(at, step);
            return;
        }
        let last_is_wrong =
            || self.steps.back().zip(future_from).is_some_and(|(last, from)| last.minute > from);
        if at < self.steps.len() && last_is_wrong() {
            self.steps.pop_back();
            self.steps.insert(at, step);
        } else if at > 0 {
            self.steps.pop_front();
            self.steps.insert(at - 1, step);
        }
        // Else it is older than everything in a full ring, and not worth a place.
    }

    /// The steps that began from minute `from` on and before `to`.
    pub fn between(&self, from: u32, to: u32) -> impl Iterator<Item = &StepRecord> {
        let first = self.steps.partition_point(|step| step.minute < from);
        self.steps.range(first..).take_while(move |step| step.minute < to)
    }
}

#[cfg(test)]
mod tests {
    use super::super::column::StepColumn::{Completed, ObservedS};
    use super::super::record::tests::step;
    use super::*;
    use crate::random::Lcg;

    fn ring(minutes: &[u32]) -> StepRing {
        let mut ring = StepRing::new(1, 4);
        minutes.iter().for_each(|minute| ring.add(StepRecord::new(*minute), None));
        ring
    }

    fn minutes(ring: &StepRing) -> Vec<u32> {
        ring.steps().iter().map(|step| step.minute).collect()
    }

    #[test]
    fn the_newest_steps_stay() {
        let ring = ring(&[1, 2, 3, 7, 8, 9]);
        assert_eq!(minutes(&ring), [3, 7, 8, 9]);
        assert_eq!(ring.between(4, 9).map(|step| step.minute).collect::<Vec<_>>(), [7, 8]);
    }

    #[test]
    fn a_step_that_comes_again_is_merged() {
        let mut ring = StepRing::new(15, 4);
        for _ in 0..2 {
            ring.add(step(30, &[(Completed, 3.0), (ObservedS, 100.0)]), Some(31));
        }
        assert_eq!((minutes(&ring), ring.steps()[0].get(Completed)), (vec![30], Some(6.0)));
    }

    #[test]
    fn steps_of_a_clock_that_was_in_the_future_make_place_once_the_clock_is_right() {
        let mut ring = ring(&[9_000, 9_001, 9_002, 9_003]);
        ring.add(StepRecord::new(12), None);
        assert_eq!(minutes(&ring), [9_000, 9_001, 9_002, 9_003], "it may be this clock that is wrong");
        for minute in 13..=18 {
            ring.add(StepRecord::new(minute), Some(minute));
        }
        assert_eq!(minutes(&ring), [15, 16, 17, 18]);
    }

    #[test]
    fn a_clock_that_starts_in_the_past_pushes_nothing_newer_out() {
        let mut ring = ring(&[100, 101, 102, 103]);
        ring.add(StepRecord::new(1), None);
        assert_eq!(minutes(&ring), [100, 101, 102, 103]);
        let mut ring = self::ring(&[90, 100, 101, 102]);
        ring.add(StepRecord::new(95), None);
        assert_eq!(minutes(&ring), [95, 100, 101, 102]);
    }

    #[test]
    fn whatever_the_clock_does_the_steps_are_in_order_and_not_too_many() {
        let mut random = Lcg::new(5);
        let mut ring = StepRing::new(15, 30);
        let mut now = 1_000_000u32;
        for turn in 0..20_000 {
            now = match random.next_u31() % 40 {
                0 => random.next_u31(),
                1 => now.saturating_sub(random.next_u31() % 100_000),
                2 => now.saturating_add(random.next_u31() % 100_000),
                _ => now.saturating_add(7),
            };
            ring.add(StepRecord::new(now / 15 * 15), (turn % 3 == 0).then_some(now));
            assert!(ring.steps().len() <= 30);
            assert!(minutes(&ring).windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
