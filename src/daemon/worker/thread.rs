//! The worker's thread: it loads a model and answers requests with it, then with those that are ordered in its place.
//!
//! Deliberately knows no request.

use super::Worker;
use super::scheduler::Scheduler;
use crate::config;
use crate::daemon::memory_plan::MemoryPlan;
use crate::daemon::model_order::ModelOrder;
use crate::daemon::model_setup::{self, EngineInfo, PlannedModel};
use crate::daemon::queue::Queue;
use crate::daemon::{DaemonError, health, malloc_trim};
use crate::engine::error::LoadError;
use crate::engine::session::GenerateOptions;
use crate::engine::thread_pool;
use crate::engine::thread_tuner::{PREFILL_TOKENS, ThreadCounts};
use crate::engine::{self, Engine};
use crate::protocol::api::ModelCard;
use log::error;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The stack of the worker: grammars are compiled by recursion. Only what is used of it takes memory.
const STACK_BYTES: usize = 8 << 20;

/// How long computing before the first request may take: long enough to find the numbers of threads on a small board.
const WARM_UP_LIMIT: Duration = Duration::from_secs(2);
/// Tokens of an answer before the first request.
const WARM_UP_TOKENS: usize = 8;

/// The running worker.
pub(in crate::daemon) struct WorkerThread {
    pub handle: JoinHandle<()>,
    /// Resolves when the thread ends: with the reason, where the model can no longer be used.
    pub ended: oneshot::Receiver<LoadError>,
}

/// What the worker knows of the model that is loaded, so that it can be loaded again.
#[derive(Clone)]
pub(in crate::daemon) struct WorkerModel {
    pub settings: config::Model,
    pub plan: MemoryPlan,
    /// What clients see of it.
    pub card: ModelCard,
    /// Why structured output is refused, where the memory plan has no place for it.
    pub unplanned_grammar: Option<String>,
}

impl WorkerModel {
    pub fn new(settings: config::Model, plan: MemoryPlan, card: ModelCard) -> Self {
        let unplanned_grammar = plan.unplanned_grammar();
        WorkerModel { settings, plan, card, unplanned_grammar }
    }
}

impl Worker {
    /// Starts the thread, which loads the model; returns when it is ready for requests.
    pub async fn start(self, model: PlannedModel) -> Result<(WorkerThread, EngineInfo), DaemonError> {
        let (loaded, outcome) = oneshot::channel();
        let (alive, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("compute-0".into())
            .stack_size(STACK_BYTES)
            .spawn(move || self.run(model, loaded, alive))
            .map_err(|error| DaemonError::Setup(format!("the worker cannot be started: {error}")))?;
        match outcome.await {
            Ok(Ok(engine_info)) => Ok((WorkerThread { handle: thread, ended }, engine_info)),
            Ok(Err(error)) => Err(DaemonError::Model(error)),
            Err(_) => Err(DaemonError::Setup("the worker died while it loaded the model".into())),
        }
    }

    /// Loads the model and answers requests with it, then with those that are ordered in its place, until the queue is closed.
    /// The kernels are tested before they are used.
    fn run(
        mut self,
        model: PlannedModel,
        loaded: oneshot::Sender<Result<EngineInfo, LoadError>>,
        alive: oneshot::Sender<LoadError>,
    ) {
        health::run_self_test(&self.telemetry);
        let mut engine = match self.load(model) {
            Ok(engine) => engine,
            Err(error) => return drop(loaded.send(Err(error))),
        };
        drop(loaded.send(Ok(EngineInfo::of(&engine))));
        let queue = Arc::clone(&self.queue);
        let _end = WorkerEndGuard(&queue);
        loop {
            let fixed = self.fixed_threads();
            let answered = Scheduler::new(&self, &engine, fixed).run();
            let loaded = answered.and_then(|()| match queue.take_model_order() {
                None => Ok(None),
                Some(order) => {
                    drop(engine);
                    self.swap(order).map(Some)
                }
            });
            match loaded {
                Ok(Some(other)) => engine = other,
                Ok(None) => return,
                // Nobody listens once the daemon stops.
                Err(error) => return drop(alive.send(error)),
            }
        }
    }

    /// Loads a model, after the one before was freed. Where it cannot be loaded, the one before is loaded again. Where that fails
    /// too, the log says why the first did, and the error is the second's.
    fn swap(&mut self, order: ModelOrder) -> Result<Engine, LoadError> {
        let ModelOrder { model, done } = order;
        let description = model.description();
        malloc_trim::malloc_trim();
        self.queue.set_loading(Some(description.clone()));
        let WorkerModel { settings, plan, card, .. } = self.model.clone();
        let (engine, outcome) = match self.load(model) {
            Ok(engine) => {
                let engine_info = EngineInfo::of(&engine);
                (Ok(engine), Ok(engine_info))
            }
            Err(error) => {
                error!("{description} cannot be loaded, the model before is loaded again: {error}");
                malloc_trim::malloc_trim();
                let previous = model_setup::open(&settings);
                let previous = previous.map(|file| PlannedModel { settings, file, plan, card });
                (previous.and_then(|model| self.load(model)), Err(error.to_string()))
            }
        };
        self.queue.set_loading(None);
        let engine = engine?;
        drop(done.send(outcome));
        Ok(engine)
    }

    /// Loads a model on this thread, which is bound to the processors for computing, and so are the threads that it starts.
    fn load(&mut self, model: PlannedModel) -> Result<Engine, LoadError> {
        let PlannedModel { settings, file, plan, card } = model;
        self.queue.adopt_plan(&plan);
        self.intents.is_built_in = settings.path.is_none();
        thread_pool::pin_to(&self.budget.allowed_cpus);
        let options = engine::EngineOptions {
            threads: self.budget.threads,
            pin: self.budget.pin,
            kernel: None,
            cache_dir: settings.cache_dir.clone(),
        };
        let engine = file.load(&options)?.tuned(self.fixed_threads());
        if settings.warm_up {
            warm_up(&engine, plan.context);
        }
        self.model = WorkerModel::new(settings, plan, card);
        Ok(engine)
    }

    /// The numbers of threads that the configuration names.
    fn fixed_threads(&self) -> ThreadCounts {
        ThreadCounts { decode: self.budget.decode_threads, prefill: self.budget.prefill_threads }
    }
}

/// Tells the queue that the worker has ended, also after a panic.
struct WorkerEndGuard<'q>(&'q Queue);

impl Drop for WorkerEndGuard<'_> {
    fn drop(&mut self) {
        self.0.worker_ended();
    }
}

/// Computes some tokens, so that the weights and the code are in memory and the numbers of threads are known before the first
/// request: at least one answer, and at most [`WARM_UP_LIMIT`].
fn warm_up(engine: &Engine, context: usize) {
    let prompt_len = PREFILL_TOKENS.min(context / 2).max(1);
    let mut session = engine.session(context.min(prompt_len + WARM_UP_TOKENS));
    let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::default() };
    let deadline = Instant::now() + WARM_UP_LIMIT;
    loop {
        // The first token of every vocabulary is as good as any.
        let answer = session.generate(&vec![0; prompt_len], &options, |_| match Instant::now() < deadline {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        });
        let is_cut = answer.is_err() || Instant::now() >= deadline;
        if is_cut || engine.model().threads().is_settled() {
            return;
        }
    }
}
