//! What each interface shows of the model that answers. A reload may load another one.
//!
//! Deliberately knows no engine: what is shown is passed in.

use crate::config::{self, Config};
use crate::protocol::api::ModelCard;
use crate::protocol::wyoming::{AnswerKind, ProgramInfo};
use crate::transport::mqtt::PublishedModel;
use std::sync::Arc;
use tokio::sync::watch;

/// The senders of what the interfaces show.
pub(super) struct ServedModel {
    /// For HTTP.
    pub card: watch::Sender<Arc<ModelCard>>,
    /// For the Wyoming protocol.
    pub program: watch::Sender<ProgramInfo>,
    /// For the broker. Empty until the model is loaded, which is before the broker link begins.
    pub published: watch::Sender<PublishedModel>,
}

impl ServedModel {
    /// What is shown while the model of these settings is loaded.
    pub fn new(card: ModelCard, settings: &config::Model, config: &Config) -> Self {
        ServedModel {
            card: watch::Sender::new(Arc::new(card)),
            program: watch::Sender::new(wyoming_program(settings, config)),
            published: watch::Sender::new(PublishedModel { name: String::new(), info: Vec::new() }),
        }
    }

    /// Shows another model.
    pub fn replace(&self, card: ModelCard, settings: &config::Model, config: &Config) {
        self.card.send_replace(Arc::new(card));
        self.program.send_replace(wyoming_program(settings, config));
    }
}

/// What the daemon says of itself to Wyoming clients, also before the model is loaded.
fn wyoming_program(settings: &config::Model, config: &Config) -> ProgramInfo {
    let (model, answers) = match &settings.path {
        Some(path) => (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), AnswerKind::Text),
        None if config.home.is_enabled => ("home-intents".into(), AnswerKind::HomeIntents),
        None => ("home-intents".into(), AnswerKind::Intents),
    };
    ProgramInfo { model, answers }
}
