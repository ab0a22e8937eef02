//! Reloads of the configuration, which wait for the worker where another model is to be loaded. Requests are served meanwhile.
//!
//! Deliberately knows neither the settings nor how a model is loaded: `reload` and `model_swap` do.

use super::model_setup::EngineInfo;
use super::model_swap::{LoadedModel, NewModel, SwapFailure, swap_model};
use super::reload::{AppliedReload, LiveSettings};
use super::reporter::info_payload;
use super::{Daemon, systemd};
use crate::telemetry::About;
use crate::transport::ReloadRequest;
use crate::transport::mqtt::PublishedModel;
use log::{info, warn};
use std::pin::Pin;
use std::sync::Arc;

/// A reload that waits until another model is loaded.
pub(super) struct PendingReload {
    swap: Pin<Box<dyn Future<Output = Result<NewModel, SwapFailure>>>>,
    applied: AppliedReload,
    /// Where what became of it is sent; `None` where a signal asked for it.
    reply: Option<ReloadRequest>,
}

impl Daemon {
    /// Reads the configuration again. The reload is pending while another model is loaded, and requests are served.
    pub(super) fn begin_reload(&mut self, reply: Option<ReloadRequest>) -> Option<PendingReload> {
        systemd::reloading();
        let applied = self.settings.reload();
        let Some(config) = applied.wanted.as_ref().map(|wanted| self.settings.with_model_of(wanted)) else {
            self.end_reload(applied, reply);
            return None;
        };
        let running = self.settings.loaded.plan.clone();
        let swap = Box::pin(swap_model(Arc::clone(&self.queue), config, self.serves, running));
        Some(PendingReload { swap, applied, reply })
    }

    /// The other model is loaded, or the one before goes on.
    pub(super) fn end_swap(&mut self, pending: PendingReload, outcome: Result<NewModel, SwapFailure>) {
        let PendingReload { mut applied, reply, .. } = pending;
        match (outcome, &applied.wanted) {
            (Ok(NewModel { settings, plan, card, engine_info }), Some(wanted)) => {
                self.settings.running.adopt_model(wanted);
                self.telemetry.set_planned_memory(plan.used(), plan.reserve());
                self.served.replace(card, &settings, &self.settings.running);
                self.settings.loaded = LoadedModel { plan, is_fallback: false };
                self.describe(&engine_info);
                info!("{} answers now, on {}", engine_info.model, engine_info.kernel);
            }
            (Ok(_), None) => {}
            (Err(SwapFailure::Kept(reason)), _) => applied.model_kept(&reason),
            // The daemon says itself why it ends; a client that waits for the reload learns that it does.
            (Err(SwapFailure::Ended), _) => return systemd::reloaded(),
        }
        // By the plan of the model that answers now.
        self.queue.adopt(&self.settings.running);
        self.end_reload(applied, reply);
    }

    fn end_reload(&self, applied: AppliedReload, reply: Option<ReloadRequest>) {
        systemd::reloaded();
        if let Some(shortage) = self.queue.answers.shortage(self.settings.running.cache.answers_bytes) {
            warn!("{shortage}");
        }
        let report = applied.finish(&self.telemetry);
        if let Some(reply) = reply {
            let _ = reply.send(report); // its client may be gone
        }
    }

    /// Shows the model that is loaded in telemetry and at the broker, and logs the notes about it.
    pub(super) fn describe(&self, engine_info: &EngineInfo) {
        let LiveSettings { running, loaded, .. } = &self.settings;
        self.telemetry.describe(About {
            model: engine_info.model.clone(),
            kernel: engine_info.kernel.into(),
            is_fallback: loaded.is_fallback,
        });
        let info = info_payload(running, engine_info, &loaded.plan);
        self.served.published.send_replace(PublishedModel { name: engine_info.model.clone(), info });
        log_notes(engine_info);
    }
}

/// Waits until the model of a pending reload is loaded; for ever where none is pending.
pub(super) async fn swapped(reload: &mut Option<PendingReload>) -> Result<NewModel, SwapFailure> {
    match reload {
        Some(pending) => pending.swap.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Logs the notes about the model.
fn log_notes(engine_info: &EngineInfo) {
    for note in &engine_info.notes {
        match note.contains("chat template") {
            true => warn!("model: {note}"),
            false => info!("model: {note}"),
        }
    }
}
