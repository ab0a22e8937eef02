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

/// Why another model was not loaded.
pub(super) enum SwapFailure {
    /// The one before goes on; why.
    Kept(String),
    /// The daemon ends: it stops, or the one before cannot be loaded again either.
    Ended,
}

/// Loads the model of `config` in the place of the one with the plan `running`.
#[expect(clippy::disallowed_methods, reason = "one job at a reload; others only wait for it")]
pub(super) async fn swap_model(
    queue: Arc<Queue>,
    config: Config,
    serves: ServedOverTcp,
    running: MemoryPlan,
) -> Result<NewModel, SwapFailure> {
    let filter = queue.guard.filter();
    // The disk may be slow, and the transports are served by this thread.
    let planning = tokio::task::spawn_blocking(move || {
        model_setup::plan_successor(&config, serves, filter.as_deref(), &running)
    });
    let kept = SwapFailure::Kept;
    let planned = planning.await.map_err(|error| kept(format!("a fault of the daemon: {error}")))?;
    let model = planned.map_err(|error| kept(error.to_string()))?;
    let (settings, plan, card) = (model.settings.clone(), model.plan.clone(), model.card.clone());
    let description = model.description();
    info!("loading {description} in the place of the running model; {plan}");
    let (done, outcome) = oneshot::channel();
    queue.order_model(ModelOrder { model, done });
    let outcome = tokio::select! {
        outcome = outcome => outcome,
        never = systemd::loading_beside(&queue) => match never {},
    };
    let engine_info = outcome.map_err(|_| SwapFailure::Ended)?.map_err(kept)?;
    Ok(NewModel { settings, plan, card, engine_info })
}
