//! Loads another model in the place of the running one, while the daemon runs.
//!
//! The new model is mapped and planned first; where that fails, nothing has changed. Then the worker ends the answers that it
//! has begun, frees the old model and loads the new one, since a small board cannot hold both. Requests wait meanwhile.
//! Deliberately knows no signal and no configuration file.

use super::memory_plan::{MemoryPlan, ServedOverTcp};
use super::model_order::ModelOrder;
use super::model_setup::{self, EngineInfo};
use super::queue::Queue;
use super::systemd;
use crate::config::{self, Config};
use crate::protocol::api::ModelCard;
use log::info;
use std::sync::Arc;
use tokio::sync::oneshot;

/// The model that is loaded, as far as the next swap needs to know it.
#[derive(Debug, Clone)]
pub(super) struct LoadedModel {
    pub plan: MemoryPlan,
    /// Whether it is the fallback, because the configured one cannot be used.
    pub is_fallback: bool,
}

/// A model that was loaded in the place of another.
pub(super) struct NewModel {
    pub settings: config::Model,
    pub plan: MemoryPlan,
    pub card: ModelCard,
    pub engine_info: EngineInfo,
}

/// Loads the model of `config` in the place of the one with the plan `running`. The error says why that one goes on.
pub(super) async fn swap_model(
    queue: Arc<Queue>,
    config: Config,
    serves: ServedOverTcp,
    running: MemoryPlan,
) -> Result<NewModel, String> {
    let filter = queue.guard.filter();
    // The disk may be slow, and the transports are served by this thread.
    let planning = tokio::task::spawn_blocking(move || {
        let model = model_setup::plan_successor(&config, serves, filter.as_deref(), &running)?;
        model.card().map(|card| (model, card))
    });
    let planned = planning.await.map_err(|error| format!("a fault of the daemon: {error}"))?;
    let (model, card) = planned.map_err(|error| error.to_string())?;
    let (settings, plan, description) = (model.settings.clone(), model.plan.clone(), model.description());
    info!("loading {description} in the place of the running model; {plan}");
    let (done, outcome) = oneshot::channel();
    queue.order_model(ModelOrder { model, done });
    let outcome = tokio::select! {
        outcome = outcome => outcome,
        never = systemd::loading_beside(&queue, &description) => match never {},
    };
    // The sender is dropped where the daemon stops, or where neither model can be loaded, which ends it.
    let engine_info = outcome.map_err(|_| "the daemon stops".to_owned())??;
    Ok(NewModel { settings, plan, card, engine_info })
}
