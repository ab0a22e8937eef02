//! The section `[defaults]`. Deliberately knows no request.

/// What holds for requests that do not say it.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// The system text of conversations that have none.
    pub system: Option<String>,
    /// The temperature; greedy where there is none.
    pub temperature: Option<f32>,
    /// The share of the probability that the likeliest tokens keep.
    pub top_p: Option<f32>,
    /// How many of the likeliest tokens are kept.
    pub top_k: Option<u32>,
    /// The least probability of a token, as a share of the likeliest one's.
    pub min_p: Option<f32>,
    /// What divides the logits of tokens that were there before.
    pub repetition_penalty: Option<f32>,
    /// Tokens of an answer at most; `None` is the rest of the context.
    pub max_tokens: Option<u32>,
    /// Whether several tokens are verified in one pass where it is probable what comes next.
    pub speculate: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Defaults {
            system: None,
            temperature: None,
            top_p: None,
            top_k: None,
            min_p: None,
            repetition_penalty: None,
            max_tokens: None,
            speculate: true,
        }
    }
}
