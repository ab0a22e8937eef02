//! Log-probabilities of tokens under a model's own distribution: the softmax of its logits.
//!
//! Deliberately knows nothing of sampling: biases, penalties and the temperature come later and change none of these.

/// A token with its log-probability, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IdLogprob {
    /// The token.
    pub id: u32,
    /// `ln p`; not finite only where the logits of a damaged model are not.
    pub logprob: f32,
}

/// The log-probabilities at one position of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct PositionLogprobs {
    /// The token that was chosen.
    pub chosen: IdLogprob,
    /// The most likely tokens, whether one of them was chosen or not, the likeliest first.
    pub top: Vec<IdLogprob>,
}

impl PositionLogprobs {
    /// The chosen token and the `top` most likely ones; `logits`: `[vocab]`.
    pub fn new(logits: &[f32], chosen: u32, top: usize) -> Self {
        let log_total = log_sum_exp(logits);
        let of = |id: u32| IdLogprob { id, logprob: (f64::from(logits[id as usize]) - log_total) as f32 };
        PositionLogprobs { chosen: of(chosen), top: largest(logits, top).into_iter().map(of).collect() }
    }
}

/// `-ln p(token)`, where p is the softmax of `logits`; in f64, because many of them are added up.
pub fn nll(logits: &[f32], token: u32) -> f64 {
    log_sum_exp(logits) - f64::from(logits[token as usize])
}

/// `ln` of the sum of all `e^logit`.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |a, x| a.max(*x));
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    sum.ln() + f64::from(largest)
}

/// The places of the `count` largest numbers, the largest first and of equal ones the first; NaN is ignored.
fn largest(x: &[f32], count: usize) -> Vec<u32> {
    let mut found: Vec<u32> = Vec::with_capacity(count + 1);
    if count == 0 {
        return found;
    }
    for (id, number) in (0..).zip(x) {
        let is_full = found.len() == count;
        if number.is_nan() || is_full && *number <= x[found[count - 1] as usize] {
            continue;
        }
        let at = found.partition_point(|other| x[*other as usize] >= *number);
        found.insert(at, id);
        found.truncate(count);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_of_all_tokens_add_up_to_one_and_are_sorted() {
        let logits: Vec<f32> = (0..100).map(|i| (i * 37 % 101) as f32 / 7.0).collect();
        let all = PositionLogprobs::new(&logits, 3, 100);
        let total: f64 = all.top.iter().map(|token| f64::from(token.logprob).exp()).sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
        assert!(all.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
        assert_eq!(all.top.iter().find(|token| token.id == 3), Some(&all.chosen));
        assert!((nll(&logits, 3) + f64::from(all.chosen.logprob)).abs() < 1e-6);
    }

    #[test]
    fn the_first_of_equal_ones_comes_first_and_nan_never() {
        assert_eq!(largest(&[1.0, f32::NAN, 3.0, 1.0, 3.0, 0.0], 3), [2, 4, 0]);
        assert_eq!(largest(&[1.0, 2.0], 5), [1, 0]);
        assert_eq!(largest(&[1.0, 2.0], 0), [0u32; 0]);
        assert_eq!(largest(&[f32::NAN; 2], 2), [0u32; 0]);
    }
}
