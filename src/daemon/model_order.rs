//! The order to load another model, which the queue passes to the worker. Plain data; deliberately knows neither.

use super::model_setup::{EngineInfo, PlannedModel};
use tokio::sync::oneshot;

/// The order to load a model in the place of the running one.
pub(super) struct ModelOrder {
    pub model: PlannedModel,
    /// What became of it. An error says why the old model was loaded again.
    pub done: oneshot::Sender<Result<EngineInfo, String>>,
}
