//! The Wyoming protocol, over which Home Assistant sends what was spoken: its events to [`Request`]s, and answers to its
//! events.
//!
//! Source: the PyPI package `wyoming` 1.10, and Home Assistant's integration `wyoming`. Deliberately does no I/O, and
//! knows neither the queue nor the names of the home.

mod calls;
mod event_reader;
mod info;
mod intent;
mod replies;
mod speech;

pub use calls::{MAX_CONTEXT, Transcript, TranscriptContext, WyomingCall};
pub use event_reader::{EventReader, MAX_DATA, MAX_HEADER, MAX_PAYLOAD, WyomingEvent};
pub use info::ProgramInfo;
pub use intent::RecognizedIntent;
pub use replies::{failed, handled, not_recognized, pong, recognized};
pub use speech::spoken;

#[cfg(doc)]
use super::Request;

/// What the answers of the model are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// Intents with the names of the home.
    HomeIntents,
    /// Intents in the words of the sentence.
    Intents,
    /// Texts to be spoken.
    Text,
}

/// The sentence for what is no command that the model knows.
pub const NOT_UNDERSTOOD: &str = "Sorry, I did not understand that.";
/// The sentence where it is not clear what a command is for.
pub const NO_TARGET: &str = "Please say which device or which area you mean.";
/// The sentence where a timer cannot be started: Home Assistant starts timers on voice devices only.
pub const NO_TIMER_DEVICE: &str = "Timers can only be started from a voice device.";
