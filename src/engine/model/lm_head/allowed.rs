//! The set of tokens that a grammar allows.

/// The tokens that may come next.
#[derive(Debug, Clone, Copy)]
pub struct AllowedTokens<'m> {
    /// Bit `id % 32` of word `id / 32` is set for each.
    pub mask: &'m [u32],
    /// How many there are.
    pub count: usize,
}

impl AllowedTokens<'_> {
    /// Whether a token is one of them.
    pub fn contains(&self, id: usize) -> bool {
        self.mask.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// The tokens, in order, of the first `vocab`.
    pub(super) fn ids(&self, vocab: usize) -> impl Iterator<Item = u32> {
        let bits = |(at, word): (usize, &u32)| {
            let mut word = *word;
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| word.trailing_zeros())?;
                word &= word - 1;
                Some(at as u32 * 32 + bit)
            })
        };
        self.mask.iter().enumerate().flat_map(bits).take_while(move |id| (*id as usize) < vocab)
    }

    /// Strikes out the logits of all other tokens; `logits` begins with that of token `first`, a multiple of 32.
    pub fn apply(&self, first: usize, logits: &mut [f32]) {
        let words =
            self.mask.get(first / 32..).unwrap_or_default().iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(32).zip(words) {
            if word != u32::MAX {
                let mut bits = word;
                for logit in logits {
                    *logit = if bits & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                    bits >>= 1;
                }
            }
        }
    }
}
