//! The output head (`lm_head`): from the last hidden vector to a logit for each token of the vocabulary.
//!
//! [`forms`] says in which format the head is read and writes it in that format. [`logits`] computes logits, either
//! with the whole head or with the [`shortlist`]: two-bit codes of all rows choose the few rows that can win, and only
//! those are read exactly.
//! [`single_rows`] computes them where only some tokens may be chosen.
//!
//! Deliberately knows nothing of how a token is chosen from the logits, nor of the layers below.

mod allowed;
mod forms;
mod logits;
mod shortlist;
mod single_rows;

pub use allowed::AllowedTokens;
pub use forms::HeadFormat;
pub use logits::{LogitsRequest, ShortlistStats};
pub(super) use logits::{RescoreBuffers, SCAN_ROWS};
pub(super) use shortlist::{MAX_RESCORED_ROWS, Shortlist, ShortlistScratch};
pub(super) use single_rows::SingleRows;
