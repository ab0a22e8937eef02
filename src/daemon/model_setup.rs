//! Which model answers, and whether it fits: it is mapped and its memory is planned before anything of it is loaded.
//!
//! Deliberately knows no queue and no thread; `model_swap` and the worker load what is planned here.

use super::DaemonError;
use super::memory_plan::{ClientMemory, MemoryBudget, MemoryPlan, ServedOverTcp};
use crate::config::{self, Config, Head, I2sLayout, KvCachePrecision, Profile};
use crate::engine::description::ModelDescription;
use crate::engine::error::LoadError;
use crate::engine::model::{HeadFormat, KvCacheFormat, Layout};
use crate::engine::tokenizer::{ChatTemplate, LocalClock};
use crate::engine::{Engine, ModelFile, Source};
use crate::guard::filter::Filter;
use crate::protocol::api::ModelCard;
use log::error;
use std::time::SystemTime;

/// A model that is mapped and planned. Nothing of it is loaded yet.
pub(super) struct PlannedModel {
    /// The settings that it was opened with.
    pub settings: config::Model,
    pub file: ModelFile,
    pub plan: MemoryPlan,
    /// What clients see of it.
    pub card: ModelCard,
}

impl PlannedModel {
    /// Its place and size, for systemd's status while it loads.
    pub fn description(&self) -> String {
        let mebibytes = self.plan.footprint.mapped.div_ceil(1 << 20);
        format!("{} ({mebibytes} MiB)", self.settings.place())
    }
}

/// What is known of the engine once the model is loaded.
#[derive(Debug, Clone)]
pub(super) struct EngineInfo {
    pub model: String,
    pub architecture: String,
    pub kernel: &'static str,
    /// Defects of the model's file, and how they were worked around.
    pub notes: Vec<String>,
}

impl EngineInfo {
    pub fn of(engine: &Engine) -> Self {
        EngineInfo {
            model: engine.name().to_owned(),
            architecture: engine.model().shape().arch.clone(),
            kernel: engine.model().kernels().name(),
            notes: engine.notes().to_vec(),
        }
    }
}

/// Maps the configured model; nothing is loaded yet.
pub fn open_model(config: &Config) -> Result<ModelFile, DaemonError> {
    open(&config.model).map_err(DaemonError::Model)
}

/// Maps the model of these settings.
pub(super) fn open(settings: &config::Model) -> Result<ModelFile, LoadError> {
    let source = settings.path.clone().map_or(Source::BuiltIn, Source::File);
    let layout = settings.i2s_layout.map(|layout| match layout {
        I2sLayout::Blocks128 => Layout::Blocks128,
        I2sLayout::Blocks64 => Layout::Blocks64,
        I2sLayout::Rows4 => Layout::Rows4,
    });
    let head = settings.head.map(|head| match head {
        Head::F16 => HeadFormat::File,
        Head::Q8 => HeadFormat::Q8,
        Head::Q6K => HeadFormat::Q6K,
        Head::Shortlist => HeadFormat::Shortlist,
    });
    let cache = match settings.kv_cache {
        KvCachePrecision::F16 => KvCacheFormat::F16,
        KvCachePrecision::Int8 => KvCacheFormat::Int8,
    };
    let file = ModelFile::open(&source, layout)
        .and_then(|file| file.with_head(head))
        .and_then(|file| file.with_cache(cache))?;
    let template = settings.chat_template.as_deref().map(ChatTemplate::of_setting).transpose()?;
    Ok(file.with_template(template.unwrap_or_default()).with_clock(LocalClock::new(jiff::ZonedDateTime::now)))
}

/// Maps the configured model and plans its memory; nothing is loaded yet. `serves`: which clients there
/// will be besides those of the socket; `filter`: that of prompts and answers.
pub fn plan(
    config: &Config,
    serves: ServedOverTcp,
    filter: Option<&Filter>,
) -> Result<(ModelFile, MemoryPlan), DaemonError> {
    let clients = ClientMemory::of(config, serves).with_filter(filter, config);
    at_start(clients, |clients| plan_beside(config, clients))
}

/// Plans with the history, or without it where only that makes the model fit: answers come before a record of them.
fn at_start<T>(
    clients: ClientMemory,
    plan: impl Fn(ClientMemory) -> Result<T, DaemonError>,
) -> Result<T, DaemonError> {
    plan(clients).or_else(|error| match &error {
        DaemonError::Budget(_) if clients.history > 0 => {
            plan(ClientMemory { history: 0, ..clients }).map_err(|_| error)
        }
        _ => Err(error),
    })
}

/// The same beside these clients.
fn plan_beside(config: &Config, clients: ClientMemory) -> Result<(ModelFile, MemoryPlan), DaemonError> {
    let file = open_model(config)?;
    let footprint = file.footprint();
    let allowed = MemoryBudget::of_config(config);
    let most_context = config.profile.map_or(usize::MAX, Profile::most_context);
    let most_parallel = config.profile.map_or(usize::MAX, Profile::most_parallel);
    let plan = |parallel| {
        let own_context = file.shape().context.min(most_context);
        MemoryPlan::make(&footprint, own_context, config.model.context, parallel, clients, allowed)
    };
    let plan = plan(config.budget.parallel).and_then(|automatic| {
        let is_too_many = config.budget.parallel.is_none() && automatic.parallel > most_parallel;
        if is_too_many { plan(Some(most_parallel)) } else { Ok(automatic) }
    });
    plan.map_err(DaemonError::Budget).map(|plan| (file, plan))
}

/// The configured model beside these clients, ready to be loaded.
fn planned(config: &Config, clients: ClientMemory) -> Result<PlannedModel, DaemonError> {
    let (file, plan) = plan_beside(config, clients)?;
    let card = card(&file, plan.context).map_err(DaemonError::Model)?;
    Ok(PlannedModel { settings: config.model.clone(), file, plan, card })
}

/// What clients see of a model.
fn card(file: &ModelFile, context: usize) -> Result<ModelCard, LoadError> {
    let ModelDescription { name, architecture, parameters, weight_type, bytes, digest, template, .. } =
        file.description()?;
    let changed = file.path().and_then(|path| path.metadata().ok()?.modified().ok());
    Ok(ModelCard {
        name,
        architecture,
        parameters,
        quantization: weight_type.to_owned(),
        bytes,
        digest,
        modified: changed.unwrap_or_else(SystemTime::now),
        context: context as u32,
        template,
    })
}

/// The model of a start, and whether it is the fallback. The error is that of the configured model, where the fallback cannot be
/// used either.
pub(super) fn choose(
    config: &Config,
    serves: ServedOverTcp,
    filter: Option<&Filter>,
) -> Result<(PlannedModel, bool), DaemonError> {
    let clients = ClientMemory::of(config, serves).with_filter(filter, config);
    at_start(clients, |clients| planned(config, clients)).map(|model| (model, false)).or_else(|error| {
        let plan = |config: &Config| at_start(clients, |clients| planned(config, clients));
        fallback(config, error, plan).map(|model| (model, true))
    })
}

/// The fallback, after the configured model could not be used because of `error`, which is returned where there is none.
fn fallback(
    config: &Config,
    error: DaemonError,
    plan: impl Fn(&Config) -> Result<PlannedModel, DaemonError>,
) -> Result<PlannedModel, DaemonError> {
    let Some(settings) = config.model.fallback() else { return Err(error) };
    let place = settings.place();
    let config = Config { model: settings, ..config.clone() };
    match plan(&config) {
        Ok(model) => {
            error!("model.path cannot be used: {error}; answering with model.fallback, {place}");
            Ok(model)
        }
        Err(second) => {
            error!("model.fallback, {place}, cannot be used either: {second}");
            Err(error)
        }
    }
}

/// The fallback of a model that could be opened and planned, but not loaded because of `error`.
pub(super) fn fallback_beside(
    config: &Config,
    serves: ServedOverTcp,
    filter: Option<&Filter>,
    running: &MemoryPlan,
    error: DaemonError,
) -> Result<PlannedModel, DaemonError> {
    fallback(config, error, |config| planned(config, clients_of_running(config, serves, filter, running)))
}

/// The configured model, to be loaded in the place of a running one.
pub(super) fn plan_successor(
    config: &Config,
    serves: ServedOverTcp,
    filter: Option<&Filter>,
    running: &MemoryPlan,
) -> Result<PlannedModel, DaemonError> {
    planned(config, clients_of_running(config, serves, filter, running))
}

/// The clients of a daemon that serves them already, by the `running` plan: the longest body of a call over HTTP cannot change
/// while calls are read, and the history is kept or not from the start on.
fn clients_of_running(
    config: &Config,
    serves: ServedOverTcp,
    filter: Option<&Filter>,
    running: &MemoryPlan,
) -> ClientMemory {
    let ClientMemory { http, history, .. } = running.clients;
    let clients = ClientMemory::of(config, serves).with_filter(filter, config);
    ClientMemory { http, http_least: http, history, ..clients }
}
