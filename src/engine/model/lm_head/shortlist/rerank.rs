//! The search for the best rows: every row by its coarse codes, some by their fine ones too, a few by the head itself.
//!
//! Whatever does not fit ends it with `None`: rows that turn out to be further off than seven standard deviations, or
//! than five and a half where many were read, or that are too many. The whole head is read then.

use super::format::PART;
use super::{GROUP, Screen, groups};
use crate::engine::kernels::{Loops, fetch, fetch_one};
use crate::engine::model::lm_head::logits::Exact;
use crate::engine::model::{Model, State};
use crate::engine::ops::{self, Quantized};
use crate::engine::quant::{Outline, SCREEN_Q, packed_row};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Standard deviations that a row's rough logit may be off.
const DOUBT: f32 = 7.0;
/// Deviations that the rows which were read may show. Of so many normal numbers as ever are, [`MOST_FINE`], one is
/// beyond in 600 times.
const TRUSTED: f32 = 5.5;
/// Most rows that are read for one token in their fine codes; more, and the whole head is read.
pub(in crate::engine::model) const MOST_FINE: usize = 32_768;
/// And in the head itself.
pub(in crate::engine::model) const MOST_ROWS: usize = 2048;
/// Integer sums of one call.
const TILE: usize = 2048;
/// Groups that one thread looks through at least, and rows of fine codes that it reads: about ten microseconds of work.
const GROUPS_EACH: usize = 256;
const FINE_EACH: usize = 64;
/// Groups whose rows' outlines are on their way at the same time.
const TOGETHER: usize = 16;
/// Rows of fine codes that are asked for ahead, and rows whose outlines are: they lie here and there.
const FINE_AHEAD: usize = 8;
const OUTLINES_AHEAD: usize = 16;

/// The hidden vector as a screen takes it.
struct Query<'a> {
    q: &'a [i8], // [dim], padded to whole blocks
    made: Quantized,
    /// What the strongest two columns may add for each unit of a row's peak. They are taken as they may be at the
    /// worst: a hidden vector may be little else.
    strong: f32,
    /// Standard deviation of what the other columns add for each unit of a row's error, and of its length.
    spread: [f32; 2],
}

impl<'a> Query<'a> {
    /// `x`: the hidden vector, each number times the size of its column; `q`: room for its codes.
    fn new(x: &[f32], q: &'a mut [i8]) -> Self {
        let made = ops::quantize_within(SCREEN_Q, x, q);
        let mut strongest = [0.0f32; 2];
        let mut squares = 0.0;
        for x in x.iter().map(|x| x.abs()) {
            squares += x * x;
            strongest =
                if x > strongest[0] { [x, strongest[0]] } else { [strongest[0], strongest[1].max(x)] };
        }
        let others = (squares - strongest.iter().map(|x| x * x).sum::<f32>()).max(0.0).sqrt();
        let error =
            x.iter().zip(&*q).map(|(x, q)| x - f32::from(*q) / made.scale).map(|e| e * e).sum::<f32>();
        // A sum of products of random signs is as large as one of them times the root of their number.
        let root = (x.len() as f32).sqrt();
        Query { q, made, strong: strongest.iter().sum(), spread: [others / root, error.sqrt() / root] }
    }

    /// How far a row's logit may be off by its coarse codes, or what its fine ones add, at so many standard
    /// deviations.
    fn doubt(&self, row: &Outline, deviations: f32) -> f32 {
        row.peak * self.strong + deviations * (row.error * self.spread[0] + row.length * self.spread[1])
    }

    /// What a row's codes say its logit is, or that of what its coarse ones leave over; `dot`: the sum of products of
    /// codes less one.
    fn logit(&self, dot: i32, scale: f32) -> f32 {
        (2 * dot - self.made.sum) as f32 * (scale / self.made.scale)
    }
}

/// What both codes of a row say.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::engine::model) struct Near {
    logit: f32,
    /// What the head's own logit may be at most.
    most: f32,
}

/// Which logits of a group reach `bar` with `doubt` added: a bit for each, the first the lowest.
struct Reaching<'a> {
    logits: &'a [f32], // [GROUP] at most
    doubt: f32,
    bar: f32,
}

impl Loops for Reaching<'_> {
    type Made = u64;

    #[inline(always)]
    fn run(self) -> u64 {
        let Self { logits, doubt, bar } = self;
        let bit = |(at, logit): (usize, &f32)| u64::from(logit + doubt >= bar) << at;
        logits.iter().enumerate().map(bit).fold(0, |all, bit| all | bit)
    }
}

/// Where the bits of a word are one, the lowest first.
fn ones(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(at)
    })
}

/// One search.
struct Search<'a> {
    model: &'a Model,
    screen: &'a Screen,
    query: Query<'a>,
    /// The hidden vector.
    x: &'a [f32],
    reach: f32,
    lowered: Option<&'a [bool]>,
}

/// What searches write into; made once.
#[derive(Debug, Default)]
pub(in crate::engine::model) struct Room {
    tops: Vec<f32>,  // [groups], the largest logit of each
    masks: Vec<u64>, // [groups] up to whole [`TOGETHER`], a bit for each row that may be the best
    rows: Vec<u32>,  // [MOST_FINE] at most: those rows, then those of them that still may be
    near: Vec<Near>, // [MOST_FINE] at most: what is known of those
}

impl Room {
    /// For a vocabulary of `vocab`.
    pub fn new(vocab: usize) -> Self {
        Room {
            tops: vec![0.0; groups(vocab)],
            masks: vec![0; groups(vocab).next_multiple_of(TOGETHER)],
            rows: Vec::with_capacity(MOST_FINE),
            near: Vec::with_capacity(MOST_FINE),
        }
    }
}

impl Model {
    /// Makes the logits of the hidden vector `state.last` through the screen; `false` where it cannot be trusted with
    /// this token. `reach`, `lowered`: see [`Model::near_logits`].
    pub(in crate::engine::model) fn screen(
        &self,
        screen: &Screen,
        state: &mut State,
        reach: f32,
        lowered: Option<&[bool]>,
    ) -> bool {
        let State { last: x, screened, logits, room, quantized, exact, screening, .. } = state;
        screened.iter_mut().zip(x.iter().zip(&screen.columns)).for_each(|(to, (x, size))| *to = x * size);
        let query = Query::new(screened, &mut quantized.q[..packed_row(x.len()) * 4]);
        let search = Search { model: self, screen, query, x, reach, lowered };
        search.estimate(logits, &mut room.tops);
        room.rows.clear();
        let refined = search.refine(logits, room, exact);
        screening.fine += room.rows.len() as u64;
        let settled = refined.and_then(|bar| search.settle(bar, logits, room, exact));
        screening.rows += settled.map_or(0, |()| room.rows.len() as u64);
        settled.is_some()
    }
}

impl Search<'_> {
    /// The logit of every row as its coarse codes have it, and the largest of each group.
    fn estimate(&self, logits: &mut [f32], tops: &mut [f32]) {
        let Search { model, screen, query, .. } = self;
        let vocab = logits.len();
        model.pool.stripes(logits, vocab, model.grain(vocab, self.x.len()), |mut stripe| {
            let mut dots = [0i32; TILE];
            let Range { mut start, end } = stripe.cols();
            let mut logits = stripe.row(0);
            while start < end {
                let rows = start..(start + TILE).min(end).min((start / PART + 1) * PART);
                let dots = &mut dots[..rows.len()];
                model.kernels.ternary(screen.coarse_rows(rows.clone()), query.q, &[query.made.sum], dots);
                let these = logits.split_off_mut(..rows.len()).expect("as many as rows");
                for ((logit, dot), scale) in these.iter_mut().zip(dots).zip(&screen.scales[rows.clone()]) {
                    *logit = query.logit(*dot, *scale);
                }
                start = rows.end;
            }
        });
        let logits = &*logits;
        model.pool.pieces(tops, 1, GROUPS_EACH, |group, top| {
            top[0] = ops::largest(group_of(logits, group));
        });
    }

    /// Adds to the logits that may matter what their fine codes say, and notes their rows; gives what a logit must reach
    /// as far as that is known.
    fn refine(&self, logits: &mut [f32], room: &mut Room, exact: &mut Exact) -> Option<f32> {
        let best = match self.lowered {
            Some(_) => ops::argmax(logits, self.lowered),
            None => {
                let group = ops::argmax(&room.tops, None);
                group * GROUP + ops::argmax(group_of(logits, group), None)
            }
        };
        let bar = self.bar(best as u32, exact)?;
        self.collect(logits, bar, room)?;
        let Room { rows, near, .. } = room;
        // The row that set the bar reaches it, unless it is further off than any may be.
        rows.binary_search(&(best as u32)).ok()?;
        near.clear();
        near.resize(rows.len(), Near::default());
        let is_trusted = self.read_fine(logits, rows, near);
        rows.iter().zip(near).for_each(|(row, near)| logits[*row as usize] = near.logit);
        is_trusted.then_some(bar)
    }

    /// Puts the head's own logits in the place of those that still may matter, of which `room.rows` is left.
    fn settle(&self, bar: f32, logits: &mut [f32], room: &mut Room, exact: &mut Exact) -> Option<()> {
        let Room { rows, near, .. } = room;
        let is_free = |row: u32| !self.lowered.is_some_and(|lowered| lowered[row as usize]);
        let of_rows = rows.iter().copied().zip(&*near).filter(|(row, _)| is_free(*row));
        let better = |best: (u32, f32), row: (u32, f32)| if row.1 > best.1 { row } else { best };
        let (best, _) = of_rows.map(|(row, near)| (row, near.logit)).reduce(better)?;
        let bar = bar.max(self.bar(best, exact)?);
        let mut most = near.iter().map(|near| near.most);
        rows.retain(|_| most.next().is_some_and(|most| most >= bar));
        rows.binary_search(&best).ok()?;
        if rows.len() > MOST_ROWS {
            return None;
        }
        self.model.read_rows(rows, self.x, exact);
        let mut is_trusted = true;
        for (row, exact) in rows.iter().zip(&exact.logits) {
            let logit = &mut logits[*row as usize];
            is_trusted &= (*exact - *logit).abs() <= self.fine_doubt(*row as usize, TRUSTED);
            *logit = *exact;
        }
        is_trusted.then_some(())
    }

    /// What a logit must reach if that of `row` is the best.
    fn bar(&self, row: u32, exact: &mut Exact) -> Option<f32> {
        self.model.read_rows(&[row], self.x, exact);
        Some(exact.logits[0] - self.reach).filter(|bar| bar.is_finite())
    }

    /// Notes the rows that may reach `bar` by their coarse codes.
    fn collect(&self, logits: &[f32], bar: f32, room: &mut Room) -> Option<()> {
        let Room { tops, masks, rows, .. } = room;
        // What a group's own doubt lets through is asked for; when the last of some groups has been, it is there.
        self.model.pool.pieces(masks, TOGETHER, GROUPS_EACH / TOGETHER, |index, masks| {
            let groups = (index * TOGETHER..).zip(masks.iter_mut()).take(tops.len() - index * TOGETHER);
            groups.for_each(|(group, mask)| *mask = self.perhaps_reaching(logits, tops, group, bar));
            let groups = (index * TOGETHER..).zip(masks);
            groups.for_each(|(group, mask)| *mask = self.reaching(*mask, logits, group, bar));
        });
        for (group, mask) in masks.iter().enumerate() {
            (rows.len() + mask.count_ones() as usize <= MOST_FINE).then_some(())?;
            rows.extend(ones(*mask).map(|at| (group * GROUP + at) as u32));
        }
        Some(())
    }

    /// Which rows of a group may reach `bar` if all were as far off as any of them may be; asks for their outlines.
    fn perhaps_reaching(&self, logits: &[f32], tops: &[f32], group: usize, bar: f32) -> u64 {
        let doubt = self.query.doubt(&self.screen.groups[group], DOUBT);
        if tops[group] + doubt < bar {
            return 0;
        }
        let mask = self.model.kernels.wide(Reaching { logits: group_of(logits, group), doubt, bar });
        let outlines = group_of(&self.screen.coarse, group);
        ones(mask).for_each(|at| fetch_one(&outlines[at]));
        mask
    }

    /// Which of some rows of a group may reach `bar`; asks for their fine outlines.
    fn reaching(&self, mask: u64, logits: &[f32], group: usize, bar: f32) -> u64 {
        ones(mask).fold(0, |mask, at| {
            let row = group * GROUP + at;
            let may_reach = logits[row] + self.query.doubt(&self.screen.coarse[row], DOUBT) >= bar;
            if may_reach {
                fetch_one(&self.screen.fine[row]);
            }
            mask | u64::from(may_reach) << at
        })
    }

    /// What is known of some rows with their fine codes; `false` where one of them is further off than any may be.
    fn read_fine(&self, logits: &[f32], rows: &[u32], near: &mut [Near]) -> bool {
        let Search { model, screen, query, .. } = self;
        let is_trusted = AtomicBool::new(true);
        model.pool.pieces(near, 1, FINE_EACH, |index, near| {
            let row = rows[index] as usize;
            if let Some(next) = rows.get(index + FINE_AHEAD) {
                fetch(screen.fine_row(*next as usize));
            }
            if let Some(next) = rows.get(index + OUTLINES_AHEAD) {
                fetch_one(&screen.fine[*next as usize]);
            }
            let mut dot = [0];
            model.kernels.ternary(screen.fine_row(row), query.q, &[query.made.sum], &mut dot);
            let left = query.logit(dot[0], screen.fine[row].scale);
            let doubts = [&screen.coarse[row], &screen.fine[row]].map(|row| query.doubt(row, TRUSTED));
            // Not so either where it is no number.
            let is_near = left.abs() <= doubts.iter().sum();
            if !is_near {
                is_trusted.store(false, Ordering::Relaxed);
            }
            let logit = logits[row] + left;
            near[0] = Near { logit, most: logit + self.fine_doubt(row, DOUBT) };
        });
        is_trusted.into_inner()
    }

    /// How far a row's logit may be off by both of its codes.
    fn fine_doubt(&self, row: usize, deviations: f32) -> f32 {
        let (coarse, fine) = (&self.screen.coarse[row], &self.screen.fine[row]);
        self.query.doubt(fine, deviations) + deviations * coarse.length * self.query.spread[1]
    }
}

/// Those of a group.
fn group_of<T>(all: &[T], group: usize) -> &[T] {
    &all[group * GROUP..((group + 1) * GROUP).min(all.len())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernels::Kernels;

    #[test]
    fn bits_stand_for_the_logits_that_reach_in_their_order_and_for_no_nan() {
        let mut logits: Vec<f32> = (0..GROUP).map(|at| (at * 37 % 64) as f32).collect();
        logits[11] = f32::NAN;
        for (kernels, len) in
            Kernels::all().into_iter().flat_map(|table| [1, 40, GROUP].map(|len| (table, len)))
        {
            let logits = &logits[..len];
            let mask = kernels.wide(Reaching { logits, doubt: 2.5, bar: 42.5 });
            let wanted: Vec<usize> = (0..len).filter(|at| logits[*at] >= 40.0).collect();
            assert_eq!(ones(mask).collect::<Vec<_>>(), wanted, "{}", kernels.name());
        }
    }
}
