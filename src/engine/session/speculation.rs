//! Lossless speculation: what probably comes next in an answer is looked up in its prompt, in the answer so far, and in the
//! answer that the client predicts (prompt look-up decoding), and is read in the same pass as the last token. Each of
//! these tokens counts only if it is the one that is chosen without it, so that an answer never depends on what was
//! proposed.
//!
//! Tokens are proposed where the chance that they are accepted exceeds what their rows of the pass cost. The chance is
//! learned during the answer from every look-up, also from those that proposed nothing, which costs no pass: where look-up
//! does not pay, nothing is proposed until it would have been right for a while.
//!
//! Deliberately knows no model and no sampler.

/// The most tokens that are proposed for one answer in one pass. With the token before them they are eight, which the
/// kernels take at a time.
pub(super) const MAX_PROPOSED: usize = 7;

/// The most rows of a pass in which tokens are proposed.
pub(super) const MAX_ROWS: usize = 16;

/// The fewest tokens that an earlier place must have in common with the end of the text.
const SHORTEST_MATCH: usize = 2;
/// Longer matches are as good as this one.
const LONGEST_MATCH: usize = 32;

/// From these lengths of a match on a chance of its own is learned.
const MATCH_CLASSES: [usize; 7] = [2, 3, 4, 5, 6, 8, 12];
/// The chances before anything is learned.
const FIRST_CHANCES: [f32; MATCH_CLASSES.len()] = [0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95];
/// How much one look-up counts in a chance.
const LEARNING_RATE: f32 = 0.125;
/// By how much more tokens for its cost a pass must promise before anything is proposed: chances are estimates.
const LEAST_GAIN: f32 = 1.03;

/// A place of a text behind which it agrees with the end of the answer so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    /// Where that text goes on behind it.
    pub next: usize,
    /// How many tokens agree, at most [`LONGEST_MATCH`].
    pub len: usize,
}

/// Finds the place of `source` that has the most in common with the end of `text`, and goes on behind it, at `first` or
/// later; of equal ones the last. `source` may be `text` itself.
pub(super) fn look_up(text: &[u32], source: &[u32], first: usize) -> Option<Match> {
    let (last, before) = text.split_last()?;
    let (_, places) = source.split_last()?;
    let begin = first.saturating_sub(1);
    let mut best: Option<Match> = None;
    let mut end = places.len();
    while let Some(at) = places[begin..end].iter().rposition(|token| token == last) {
        let at = begin + at;
        let pairs = places[..at].iter().rev().zip(before.iter().rev());
        let len = 1 + pairs.take(LONGEST_MATCH - 1).take_while(|(a, b)| a == b).count();
        if len > best.map_or(SHORTEST_MATCH - 1, |best| best.len) {
            best = Some(Match { next: at + 1, len });
        }
        if len == LONGEST_MATCH {
            break;
        }
        end = at;
    }
    best
}

/// The tokens that may come next in an answer, and what became of them.
#[derive(Debug)]
pub(super) struct Proposal {
    tokens: Vec<u32>, // [MAX_PROPOSED] at most
    /// How many of them the pass reads.
    read: usize,
    /// The length of the text before them.
    start: usize,
    /// How many tokens of the text agree with the place where they were found; `None` where they were not looked up.
    match_len: Option<usize>,
    /// Whether that place is in the predicted answer.
    is_predicted: bool,
    /// How many of them were compared with what was chosen, up to the first that differs.
    compared: usize,
}

impl Proposal {
    pub fn new() -> Self {
        let tokens = Vec::with_capacity(MAX_PROPOSED);
        Proposal { tokens, read: 0, start: 0, match_len: None, is_predicted: false, compared: 0 }
    }

    /// Nothing is proposed behind `text`.
    pub fn clear(&mut self, text: &[u32]) {
        self.tokens.clear();
        (self.read, self.start, self.compared) = (0, text.len(), 0);
        (self.match_len, self.is_predicted) = (None, false);
    }

    /// Takes tokens that come next behind `text` for certain, of which the pass reads at most `most`.
    pub fn take_known(&mut self, text: &[u32], tokens: impl Iterator<Item = u32>, most: usize) {
        self.clear(text);
        self.tokens.extend(tokens.take(MAX_PROPOSED.min(most)));
        self.read = self.tokens.len();
    }

    /// Looks up what may come next behind `text`, there and in the predicted answer; the latter goes before where it has as
    /// much in common. The pass reads of it what `worthwhile` says.
    pub fn look_up(
        &mut self,
        text: &[u32],
        predicted: &PredictedText,
        worthwhile: impl FnOnce(Match) -> usize,
    ) {
        self.clear(text);
        let PredictedText { tokens: predicted, start } = predicted;
        let (own, foreseen) = (look_up(text, text, 0), look_up(text, predicted, *start));
        self.is_predicted = foreseen.map(|found| found.len) >= own.map(|found| found.len);
        let Some(found) = (if self.is_predicted { foreseen } else { own }) else { return };
        if self.is_predicted {
            self.tokens.extend(predicted[found.next..].iter().take(MAX_PROPOSED));
        } else {
            // A match near the end goes on with what is proposed itself.
            for at in found.next..found.next + MAX_PROPOSED {
                let token = text.get(at).or_else(|| self.tokens.get(at - text.len())).copied();
                self.tokens.extend(token);
            }
        }
        self.match_len = Some(found.len);
        self.read = worthwhile(found).min(self.tokens.len());
    }

    /// The tokens that the pass reads.
    pub fn read(&self) -> &[u32] {
        &self.tokens[..self.read]
    }

    /// The length of the text before them.
    pub fn start(&self) -> usize {
        self.start
    }

    /// The tokens that the pass has read and that may still be accepted, after `text` was continued; `None` where it went on
    /// differently, or further.
    pub fn rest(&self, text: &[u32]) -> Option<&[u32]> {
        self.read().strip_prefix(text.get(self.start..)?)
    }

    /// How many tokens of `text` the pass has read: all before the proposal, and those of it that were chosen.
    pub fn valid_len(&self, text: &[u32]) -> usize {
        let new = text.get(self.start..).unwrap_or_default();
        self.start + new.iter().zip(self.read()).take_while(|(chosen, proposed)| chosen == proposed).count()
    }

    /// Compares the proposal with how `text` went on.
    pub fn compare(&mut self, text: &[u32], speculation: &mut Speculation) {
        let Some(match_len) = self.match_len else { return };
        while let Some((chosen, proposed)) =
            text.get(self.start + self.compared).zip(self.tokens.get(self.compared))
        {
            let is_right = chosen == proposed;
            speculation.learn(match_len + self.compared, is_right);
            if is_right && self.compared < self.read {
                speculation.count(self.is_predicted, |counts| counts.accepted += 1);
            }
            self.compared = if is_right { self.compared + 1 } else { self.tokens.len() };
        }
    }
}

/// What passes of several rows cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct PassCost {
    /// Rows of a pass and its cost as a multiple of that of one row; in between it rises evenly.
    measured: &'static [(f32, f32)],
}

/// With kernels that read the weights once for several tokens: `docs/performance.md` has the figures of a whole pass.
const SHARED_WEIGHTS: PassCost =
    PassCost { measured: &[(1.0, 1.0), (2.0, 1.5), (4.0, 1.75), (8.0, 2.9), (16.0, 5.0)] };
/// With the reference kernels, which take almost twice as long for two tokens.
const REFERENCE: PassCost = PassCost { measured: &[(1.0, 1.0), (16.0, 13.0)] };

impl PassCost {
    /// With the kernels of that name.
    pub fn of_kernels(name: &str) -> Self {
        if name == "scalar" { REFERENCE } else { SHARED_WEIGHTS }
    }

    /// The cost of a pass of so many rows.
    fn of(self, rows: usize) -> f32 {
        let rows = rows as f32;
        let mut pairs = self.measured.windows(2).map(|pair| (pair[0], pair[1]));
        let (from, to) =
            pairs.clone().find(|(_, to)| rows <= to.0).or(pairs.next_back()).expect("two at least");
        from.1 + (rows - from.0) * (to.1 - from.1) / (to.0 - from.0)
    }
}

/// Tokens that were looked up and read in a pass before it was known whether they would be chosen, and those of them that
/// were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpeculationCounts {
    /// All that were read.
    pub proposed: usize,
    /// Those that were chosen.
    pub accepted: usize,
}

/// The answer that the client predicts.
#[derive(Debug, Clone, Default)]
pub(super) struct PredictedText {
    /// The end of the prompt, by which the beginning of the answer is found, and the answer; empty where none is predicted.
    tokens: Vec<u32>,
    /// Where the answer begins.
    start: usize,
}

impl PredictedText {
    fn new(prompt: &[u32], prediction: &[u32]) -> Self {
        let end = &prompt[prompt.len().saturating_sub(LONGEST_MATCH)..];
        match prediction.is_empty() {
            true => PredictedText::default(),
            false => PredictedText { tokens: [end, prediction].concat(), start: end.len() },
        }
    }
}

/// The speculation of one answer.
#[derive(Debug, Clone)]
pub(super) struct Speculation {
    predicted: PredictedText,
    chances: [f32; MATCH_CLASSES.len()],
    counts: SpeculationCounts,
    predicted_counts: SpeculationCounts,
}

impl Speculation {
    pub fn new(prompt: &[u32], prediction: &[u32]) -> Self {
        let predicted = PredictedText::new(prompt, prediction);
        let none = SpeculationCounts::default();
        Speculation { predicted, chances: FIRST_CHANCES, counts: none, predicted_counts: none }
    }

    /// Proposes what may come next behind `text`. The parameters are those of [`Speculation::worthwhile`].
    pub fn propose(
        &mut self,
        proposal: &mut Proposal,
        text: &[u32],
        most: usize,
        answers: usize,
        cost: PassCost,
    ) {
        proposal.look_up(text, &self.predicted, |found| self.worthwhile(found, most, answers, cost));
        let read = proposal.read;
        self.count(proposal.is_predicted, |counts| counts.proposed += read);
    }

    fn count(&mut self, is_predicted: bool, add: impl Fn(&mut SpeculationCounts)) {
        add(&mut self.counts);
        if is_predicted {
            add(&mut self.predicted_counts);
        }
    }

    /// All counts, and those of tokens that were looked up in the predicted answer.
    pub fn counts(&self) -> (SpeculationCounts, SpeculationCounts) {
        (self.counts, self.predicted_counts)
    }

    /// How many tokens behind a match are to be proposed, of at most `most`, in a pass of so many answers: as many as give
    /// the most tokens for what the pass costs.
    pub fn worthwhile(&self, found: Match, most: usize, answers: usize, cost: PassCost) -> usize {
        let (mut chance, mut tokens) = (1.0, answers as f32);
        let mut best = (0, tokens / cost.of(answers) * LEAST_GAIN);
        for count in 1..=most.min(MAX_PROPOSED) {
            chance *= self.chances[class(found.len + count - 1)];
            tokens += chance;
            let gain = tokens / cost.of(answers + count);
            if gain > best.1 {
                best = (count, gain);
            }
        }
        best.0
    }

    /// Learns whether the token behind a match of `len` tokens was the right one.
    pub fn learn(&mut self, len: usize, is_right: bool) {
        let chance = &mut self.chances[class(len)];
        *chance += LEARNING_RATE * (f32::from(u8::from(is_right)) - *chance);
    }
}

/// The class of a match.
fn class(len: usize) -> usize {
    MATCH_CLASSES.iter().rposition(|shortest| len >= *shortest).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: PassCost = SHARED_WEIGHTS;

    #[test]
    fn the_longest_match_is_found_and_of_equal_ones_the_last() {
        let found = |tokens: &[u32]| look_up(tokens, tokens, 0).map(|found| (found.next, found.len));
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[1]), None);
        assert_eq!(found(&[1, 2, 3, 2]), None, "one token is no match");
        assert_eq!(found(&[1, 2, 3, 1, 2]), Some((2, 2)));
        assert_eq!(found(&[1, 2, 3, 1, 2, 4, 1, 2]), Some((5, 2)), "the last of two");
        assert_eq!(found(&[9, 1, 2, 3, 1, 2, 4, 9, 1, 2]), Some((3, 3)), "the longest of two");
        assert_eq!(found(&[5; 4]), Some((3, 3)), "a match may overlap the end");
        let long: Vec<u32> = (0..40).chain(0..40).collect();
        assert_eq!(found(&long), Some((40, LONGEST_MATCH)));
    }

    #[test]
    fn a_predicted_answer_is_followed_from_its_beginning_and_again_behind_a_difference() {
        let prompt: Vec<u32> = (100..150).collect();
        let predicted: Vec<u32> = (0..20).collect();
        let (mut speculation, mut proposal) = (Speculation::new(&prompt, &predicted), Proposal::new());
        let mut proposed = |text: &[u32]| {
            speculation.propose(&mut proposal, text, MAX_PROPOSED, 1, COST);
            let next = proposal.tokens.clone();
            proposal.compare(&[text, &next].concat(), &mut speculation);
            (next, speculation.counts().1)
        };
        let (next, counts) = proposed(&prompt);
        assert_eq!((next.as_slice(), counts.proposed), (&predicted[..7], 7), "nothing was answered yet");
        assert_eq!(counts.accepted, 7);
        let so_far = [&prompt, &predicted[..5], &[900, 901]].concat();
        assert!(proposed(&so_far).0.is_empty(), "it is answered otherwise");
        let back = [&so_far[..], &predicted[9..12]].concat();
        assert_eq!(proposed(&back).0, predicted[12..19]);
        let end = [&so_far[..], &predicted[9..18]].concat();
        let (next, counts) = proposed(&end);
        assert_eq!(next, predicted[18..], "no further than it goes");
        let of_prompt = proposed(&[&prompt[..], &[800], &prompt[30..35]].concat());
        assert_eq!((of_prompt.0[0], of_prompt.1), (135, counts), "the prompt is not what was predicted");
        // Where the answer repeats itself, and more of it, that goes before.
        let own: Vec<u32> = [&prompt[..], &[9, 10, 11, 12, 70, 71, 9, 10, 11, 12]].concat();
        assert_eq!(proposed(&own).0[0], 13, "as much in common");
        let own: Vec<u32> = [&prompt[..], &[60, 10, 11, 12, 70, 71, 60, 10, 11, 12]].concat();
        assert_eq!(proposed(&own).0[0], 70, "more in common");
    }

    #[test]
    fn proposals_grow_while_they_are_right_and_stop_while_they_are_wrong() {
        let found = Match { next: 5, len: 4 };
        let mut speculation = Speculation::new(&[], &[]);
        let first = speculation.worthwhile(found, 100, 1, COST);
        assert!((1..MAX_PROPOSED).contains(&first), "{first}");
        (0..400).for_each(|at| speculation.learn(4 + at % 12, true));
        assert_eq!(speculation.worthwhile(found, 100, 1, COST), MAX_PROPOSED);
        assert_eq!(speculation.worthwhile(found, 2, 1, COST), 2);
        (0..40).for_each(|_| speculation.learn(4, false));
        assert_eq!(speculation.worthwhile(found, 100, 1, COST), 0);
        (0..10).for_each(|_| speculation.learn(4, true));
        assert!(
            speculation.worthwhile(found, 100, 1, COST) > 0,
            "it is tried again when it would have been right"
        );
    }

    #[test]
    fn the_more_answers_share_a_pass_the_surer_a_proposal_must_be() {
        let found = Match { next: 1, len: 3 };
        let mut speculation = Speculation::new(&[], &[]);
        (0..8).for_each(|_| speculation.learn(3, true));
        (0..2).for_each(|_| speculation.learn(3, false));
        let worthwhile = [1, 8].map(|answers| speculation.worthwhile(found, 1, answers, COST));
        assert_eq!(worthwhile, [1, 0]);
    }

    #[test]
    fn the_cost_of_a_pass_rises_evenly_between_what_was_measured_and_behind_it() {
        let cost = PassCost { measured: &[(1.0, 1.0), (2.0, 1.5), (4.0, 2.0)] };
        assert_eq!([1, 2, 3, 4, 6].map(|rows| cost.of(rows)), [1.0, 1.5, 1.75, 2.0, 2.5]);
    }
}
