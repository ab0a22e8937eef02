//! Detects the layout of I2_S weights, by how well the model predicts a text.
//!
//! Three layouts of I2_S share one type number, and nothing in a file says which one it has. Each is a permutation
//! of the others, so that no statistics of the codes tell them apart; a text does. A model that is read in the
//! right layout predicts the next word; in a wrong one it guesses at random.
//!
//! Deliberately decides nothing for models that were never trained: no layout makes those predict anything.

use super::error::LoadError;
use super::gguf::Gguf;
use super::model::{EMBEDDING, KvCacheFormat, Layout, Model};
use super::quant::{RowFormat, TensorType};
use super::session::Session;
use super::tokenizer::{ChatRole, Tokenizer, Turn};

/// Any English prose: every model that was trained on some predicts much of it.
const PROSE: &str =
    "The old man sat by the window and looked out at the sea, as he had done every evening for many years.";
/// Tokens of the prose that are read but not scored, because too little comes before them.
const CONTEXT_TOKENS: usize = 8;

/// A model that was trained on answers alone, such as the built-in one, cannot predict prose, but it predicts this.
const QUESTION: &str = "turn on the kitchen lights";
const ANSWER: &str = r#"{"intent":"HassTurnOn","slots":{"domain":"light","area":"kitchen"}}"#;

/// Up to this share of the loss of random guessing, a text counts as predicted. Trained models have about a third,
/// wrong layouts about one: `bitnetd inspect --check`.
const MAX_CHANCE_SHARE: f64 = 0.8;
/// By how many nats a token the best layout must lead the next: 1 is a factor of 2.7 in perplexity.
const MIN_LEAD_NATS: f64 = 1.0;

/// Rows of the embedding that are examined.
const ROWS: usize = 256;
/// By how much more than by chance the lengths of the embedding's rows must differ if the weights were trained.
/// Random rows have 1.0 (the reference models), the built-in model 3.7.
const MIN_LENGTH_SPREAD: f64 = 2.0;

/// The loss of a model on the built-in texts when it is read in one layout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayoutScore {
    /// The layout.
    pub layout: Layout,
    /// Mean negative log-likelihood in nats a token, on the better of the texts.
    pub nats: f64,
}

impl LayoutScore {
    /// The same as a perplexity.
    pub fn perplexity(&self) -> f64 {
        self.nats.exp()
    }
}

/// The loss of random guessing among `vocab` tokens, in nats a token.
fn chance_nats(vocab: usize) -> f64 {
    (vocab as f64).ln()
}

/// Whether a score shows that the model predicts text.
fn predicts_text(figure: &LayoutScore, vocab: usize) -> bool {
    figure.nats < MAX_CHANCE_SHARE * chance_nats(vocab)
}

/// The layout in which to read a file, given the scores so far, the official layout's first: the official one if it
/// predicts text, otherwise one that does and is clearly better than all others.
pub fn choose_layout(figures: &[LayoutScore], vocab: usize) -> Option<Layout> {
    if let Some(official) = figures.first().filter(|figure| predicts_text(figure, vocab)) {
        return Some(official.layout);
    }
    let mut sorted: Vec<&LayoutScore> = figures.iter().filter(|figure| figure.nats.is_finite()).collect();
    sorted.sort_by(|a, b| a.nats.total_cmp(&b.nats));
    let first = sorted.first().filter(|figure| predicts_text(figure, vocab))?;
    let ahead = sorted.get(1).is_none_or(|second| second.nats - first.nats >= MIN_LEAD_NATS);
    ahead.then_some(first.layout)
}

/// The scores in a few words.
pub(super) fn summary(figures: &[LayoutScore], vocab: usize) -> String {
    let each = figures.iter().map(|f| format!("{}: {:.0}, ", f.layout.name(), f.perplexity()));
    format!("{}chance level {vocab}", each.collect::<String>())
}

/// The error of a trained model that predicts text in no layout.
pub(super) fn damaged_error(figures: &[LayoutScore], vocab: usize) -> LoadError {
    let message = summary(figures, vocab);
    LoadError::new(
        "I2_S weights",
        format!(
            "this file looks damaged or has an unknown layout: the perplexity of a short text is at chance level \
             ({message}); fetch it again, or name the layout by hand to use it all the same"
        ),
    )
}

/// Scores the built-in texts: the prose, and if that is not predicted also the exchange.
pub(super) fn score_layout(model: &Model, tokenizer: &Tokenizer, layout: Layout) -> LayoutScore {
    let mut prose: Vec<u32> = tokenizer.bos_of_text().into_iter().collect();
    prose.extend(tokenizer.encode(PROSE));
    let figure = LayoutScore { layout, nats: mean_nll(model, tokenizer, &prose, CONTEXT_TOKENS) };
    if predicts_text(&figure, model.shape().vocab) {
        return figure;
    }
    let turn = Turn { role: ChatRole::User, text: QUESTION };
    let Ok(mut exchange) = tokenizer.prompt_chat(&[turn]) else { return figure };
    let answer = exchange.len();
    exchange.extend(tokenizer.encode(ANSWER));
    LayoutScore { layout, nats: figure.nats.min(mean_nll(model, tokenizer, &exchange, answer)) }
}

/// The mean loss on a text; infinite where the model cannot take the text at all.
fn mean_nll(model: &Model, tokenizer: &Tokenizer, tokens: &[u32], from: usize) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    let each = |nats: f64| {
        sum += nats;
        count += 1;
    };
    let outcome =
        Session::new(model, tokenizer, tokens.len(), KvCacheFormat::F16).token_nll(tokens, from, each);
    if outcome.is_ok() && count > 0 { sum / f64::from(count) } else { f64::INFINITY }
}

/// Whether the weights were trained. In a trained model the rows of the embedding differ in length, those of common
/// words from those of rare ones, and the last norm is no longer constant.
pub(super) fn is_trained(file: &Gguf) -> bool {
    let Some(table) = file.tensor(EMBEDDING) else { return true };
    let (Some(kind), [cols, rows]) = (RowFormat::of(table.kind), &table.dims[..]) else { return true };
    let Some(width) = kind.row_bytes(*cols) else { return true };
    let numbers = file.data(table);
    let (mut buffer, mut row) = (vec![0; width], vec![0.0; *cols]);
    let sample = (0..numbers.len() / width).step_by(rows.div_ceil(ROWS));
    let length = |at: usize| {
        kind.read(numbers.read(at * width..(at + 1) * width, &mut buffer), &mut row);
        row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt()
    };
    let lengths: Vec<f64> = sample.map(length).collect();
    let count = lengths.len() as f64;
    let average = lengths.iter().sum::<f64>() / count;
    let squares = lengths.iter().map(|length| length * length).sum::<f64>();
    let spread = (squares / count - average * average).max(0.0).sqrt() / average;
    // The relative spread of the length of a vector of normally distributed numbers.
    let by_chance = (2.0 * *cols as f64).sqrt().recip();
    spread > MIN_LENGTH_SPREAD * by_chance && !is_constant(file, "output_norm.weight")
}

/// Whether a tensor repeats one number, as a norm does before training.
fn is_constant(file: &Gguf, name: &str) -> bool {
    let Some(tensor) = file.tensor(name) else { return false };
    let bytes = file.data(tensor);
    let size = bytes.len() / tensor.dims.iter().product::<usize>().max(1);
    size > 0 && bytes.chunks(size).all(|number| number == &bytes[..size])
}

/// Whether any matrix of a layer is I2_S, and therefore has a layout to detect.
pub(super) fn has_layout(file: &Gguf) -> bool {
    file.tensors().iter().any(|tensor| tensor.kind == TensorType::I2S)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(nats: [f64; 3]) -> Vec<LayoutScore> {
        Layout::ALL.into_iter().zip(nats).map(|(layout, nats)| LayoutScore { layout, nats }).collect()
    }

    #[test]
    fn another_layout_is_chosen_only_if_it_predicts_text_and_clearly_leads() {
        let vocab = 2048; // chance: 7.6 nats
        assert_eq!(
            choose_layout(&figures([2.0, 1.0, 8.0]), vocab),
            Some(Layout::Blocks128),
            "the official one predicts the text"
        );
        assert_eq!(choose_layout(&figures([9.0, 2.0, 8.0]), vocab), Some(Layout::Blocks64));
        assert_eq!(choose_layout(&figures([9.0, 7.5, 8.9]), vocab), None, "best, but at chance level");
        assert_eq!(
            choose_layout(&figures([6.5, 5.9, 9.0]), vocab),
            None,
            "it predicts the text, but hardly better than the other"
        );
        assert_eq!(choose_layout(&figures([9.0, f64::NAN, 1.0]), vocab), Some(Layout::Rows4));
        assert_eq!(choose_layout(&figures([f64::NAN; 3]), vocab), None);
    }
}
