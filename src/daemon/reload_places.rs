//! What a reload may give to the parts of the memory plan whose size it changes: they share what the plan leaves, and none of it is
//! given twice. Deliberately knows no plan.

/// The parts of a plan whose size a reload may change, in bytes, and what they share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReloadPlaces {
    /// Planned for the cache of answers.
    pub answers: usize,
    /// Planned for the filter and its successor together.
    pub filters: usize,
    /// What no part of the plan needs.
    pub spare: usize,
}

impl ReloadPlaces {
    /// The most that the cache of answers may take beside a filter of so many bytes.
    pub fn most_answers(&self, filter: usize) -> usize {
        self.answers + self.spare.saturating_sub(filter.saturating_sub(self.filters))
    }

    /// The most that filters may take together beside a cache of answers of so many bytes.
    pub fn most_filters(&self, answers: usize) -> usize {
        self.filters + self.spare.saturating_sub(answers.saturating_sub(self.answers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spare_is_given_to_one_part_only() {
        let places = ReloadPlaces { answers: 10, filters: 20, spare: 100 };
        assert_eq!((places.most_answers(0), places.most_filters(0)), (110, 120), "nothing takes it");
        assert_eq!(
            (places.most_answers(20), places.most_filters(10)),
            (110, 120),
            "what is planned takes none of it"
        );
        for filter in [20, 50, 120] {
            let answers = places.most_answers(filter);
            assert_eq!(
                (answers + filter, places.most_filters(answers)),
                (130, filter),
                "the plan and what is spare"
            );
        }
        assert_eq!((places.most_answers(999), places.most_filters(999)), (10, 20));
    }
}
