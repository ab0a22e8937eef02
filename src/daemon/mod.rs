//! The daemon: opens the transports, starts the worker, runs the background tasks, and shuts down in order.
//!
//! The only module that sees both the transports and the engine. Deliberately knows no arguments and no exit codes:
//! `cli` passes in the settings and handles the error.

mod admission;
mod answer_cache;
mod client_key;
mod client_shares;
mod commands;
mod governor;
mod health;
mod history_keeper;
mod home;
mod home_intent;
mod listeners;
mod local_interfaces;
mod malloc_trim;
mod memory_guard;
mod memory_plan;
mod queue;
mod reload;
mod reload_places;
mod report_schedule;
mod reporter;
mod request_defaults;
mod running;
mod shared_guard;
mod signals;
mod structured;
mod systemd;
mod textfile_exporter;
mod worker;

pub use memory_plan::{ClientMemory, MemoryBudget, MemoryPlan, ServedOverTcp, TooLarge};
pub use reload::ReadConfig;

use crate::config::{Config, Head, I2sLayout, KvCachePrecision, Profile};
use crate::engine::description::ModelDescription;
use crate::engine::error::LoadError;
use crate::engine::model::{HeadFormat, KvCacheFormat, Layout};
use crate::engine::tokenizer::{ChatTemplate, LocalClock};
use crate::engine::{self, ModelFile, Source};
use crate::guard::filter::Filter;
use crate::protocol::MqttLink;
use crate::protocol::api::ModelCard;
use crate::telemetry::alerts::{Alert, Kind};
use crate::telemetry::sensors::Sensors;
use crate::telemetry::{About, Telemetry};
use crate::transport::mqtt::{self, HomeAssistantInfo};
use crate::transport::{Command, Heartbeat, Inbound};
use crate::transport::{http, unix, wyoming};
use health::FaultDetector;
use history_keeper::HistoryKeeper;
use home_intent::HomeIntents;
use listeners::Listeners;
use local_interfaces::{LocalInterfaces, StopTokens};
use log::{error, info, warn};
use memory_plan::mqtt_window;
use queue::Queue;
use reload::LiveSettings;
use reporter::{HostSampler, Reporter, info_payload};
use signals::{SignalRequest, Signals};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use textfile_exporter::TextfileExporter;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::{EngineInfo, Worker};

/// Capacity of the channel for requests of the socket; when it is full, connections wait.
const INTAKE: usize = 32;
/// Capacity of the channel for commands of the broker link, which are executed at once.
const CONTROLS: usize = 8;
/// Capacity of the channel for alerts to the broker link, which takes each at once: two of every kind.
const ALERTS: usize = 2 * Kind::ALL.len();
/// Time for the last replies to reach the broker on a stop.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for the worker on a stop; its longest step is one batch of prefill.
const WORKER_STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between two searches for waiting requests that were cancelled or exceeded their deadline.
const SWEEP_INTERVAL: Duration = Duration::from_millis(50);

/// Why the daemon did not start, or stopped.
#[derive(Debug)]
pub enum DaemonError {
    /// The model cannot be used.
    Model(LoadError),
    /// The model does not fit the budget.
    Budget(Box<TooLarge>),
    /// The socket cannot be opened.
    Socket(String),
    /// The system refused something else.
    Setup(String),
}

impl fmt::Display for DaemonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DaemonError::Model(error) => error.fmt(f),
            DaemonError::Budget(error) => error.fmt(f),
            DaemonError::Socket(message) | DaemonError::Setup(message) => message.fmt(f),
        }
    }
}

impl std::error::Error for DaemonError {}

/// Maps the configured model; nothing is loaded yet.
pub fn open_model(config: &Config) -> Result<ModelFile, DaemonError> {
    let source = config.model.path.clone().map_or(Source::BuiltIn, Source::File);
    let layout = config.model.i2s_layout.map(|layout| match layout {
        I2sLayout::Blocks128 => Layout::Blocks128,
        I2sLayout::Blocks64 => Layout::Blocks64,
        I2sLayout::Rows4 => Layout::Rows4,
    });
    let head = config.model.head.map(|head| match head {
        Head::F16 => HeadFormat::File,
        Head::Q8 => HeadFormat::Q8,
        Head::Q6K => HeadFormat::Q6K,
        Head::Shortlist => HeadFormat::Shortlist,
    });
    let cache = match config.model.kv_cache {
        KvCachePrecision::F16 => KvCacheFormat::F16,
        KvCachePrecision::Int8 => KvCacheFormat::Int8,
    };
    let file = ModelFile::open(&source, layout)
        .and_then(|file| file.with_head(head))
        .and_then(|file| file.with_cache(cache));
    let template = config.model.chat_template.as_deref().map(ChatTemplate::of_setting).transpose();
    let file = file.and_then(|file| {
        Ok(file
            .with_template(template?.unwrap_or_default())
            .with_clock(LocalClock::new(jiff::ZonedDateTime::now)))
    });
    file.map_err(DaemonError::Model)
}

/// Maps the configured model and plans its memory; nothing is loaded yet. `serves`: which clients there
/// will be besides those of the socket; `filter`: that of prompts and answers.
pub fn plan(
    config: &Config,
    serves: ServedOverTcp,
    filter: Option<&Filter>,
) -> Result<(ModelFile, MemoryPlan), DaemonError> {
    let file = open_model(config)?;
    let footprint = file.footprint();
    let (clients, allowed) =
        (ClientMemory::of(config, serves).with_filter(filter, config), MemoryBudget::of_config(config));
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

/// Runs until `stop` is cancelled or a signal requests a stop. `ready` is sent when the transports are listening
/// and the model is loaded; `reread` is called when a signal requests a reload.
pub async fn run(
    config: Config,
    reread: ReadConfig,
    stop: CancellationToken,
    ready: oneshot::Sender<()>,
) -> Result<(), DaemonError> {
    let passed = systemd::passed_sockets().map_err(|error| DaemonError::Socket(error.to_string()))?;
    let configured = ServedOverTcp::of(&config);
    let serves = ServedOverTcp {
        http: configured.http || !passed.http.is_empty(),
        wyoming: configured.wyoming || !passed.wyoming.is_empty(),
    };
    let filter = shared_guard::load_filter(&config.guard).map_err(DaemonError::Setup)?;
    let (file, plan) = plan(&config, serves, filter.as_ref())?;
    info!("{plan}");
    if plan.budget.is_cgroup_limit {
        warn!("the control group allows less than budget.memory_mb; the plan keeps to its limit");
    }
    unix::allow_files(config.socket.connections + http::MAX_CONNECTIONS + wyoming::MAX_CONNECTIONS);
    let mut signals = Signals::listen()
        .map_err(|error| DaemonError::Setup(format!("signal handlers cannot be installed: {error}")))?;
    let telemetry = Arc::new(configured_telemetry(&config, &plan));
    let history = HistoryKeeper::begin(&config, &telemetry);
    let stop = StopTokens { draining: stop, close: CancellationToken::new() };
    let card = model_card(&file, plan.context).map_err(DaemonError::Model)?;
    let listeners = Listeners::open(passed, &config)?;
    let interfaces = LocalInterfaces::start(listeners, &config, plan.body_bytes(), card, &telemetry, &stop);
    let sensors = Sensors::new(Path::new("/")).estimating(config.telemetry.board_watts);
    let sensors = Arc::new(Mutex::new(sensors));
    let home = home::configured(&config).map_err(DaemonError::Setup)?;
    let queue = Arc::new(Queue::new(&config, &plan, Arc::clone(&telemetry)));
    queue.guard.use_stored_key(config.device.state_dir.as_deref());
    let guard = Arc::clone(&queue.guard);
    telemetry.security.name_clients(move |client| guard.shown_client(client));
    queue.guard.set_filter(filter);
    let worker = Worker {
        intents: HomeIntents { home: home.clone(), is_built_in: config.model.path.is_none() },
        queue: Arc::clone(&queue),
        telemetry: Arc::clone(&telemetry),
        sensors: Arc::clone(&sensors),
        context: plan.context,
        parallel: plan.parallel,
        warms_up: config.model.warm_up,
        budget: config.budget.clone(),
        disk_bytes: config.cache.disk_bytes,
        unplanned_grammar: plan.unplanned_grammar(),
    };
    let options = engine::EngineOptions {
        threads: config.budget.threads,
        pin: config.budget.pin,
        kernel: None,
        cache_dir: config.model.cache_dir.clone(),
    };
    let loads = load_description(&config, &plan);
    let (worker::WorkerThread { handle, ended }, engine_info) = tokio::select! {
        started = worker.start(file, options) => started?,
        signal = signals.stop() => {
            info!("stopping on {signal}, before the model was loaded");
            interfaces.close(&stop).await;
            return Ok(());
        }
        never = systemd::loading(&loads) => match never {},
    };
    queue.memory.start(&plan);
    telemetry.describe(About { model: engine_info.model.clone(), kernel: engine_info.kernel.into() });
    telemetry.set_thread_limit(config.budget.threads);
    let settings = LiveSettings::new(config, reread, Arc::clone(&queue), Arc::clone(&telemetry));
    let settings = LiveSettings { home, ..settings };
    let heartbeat = Heartbeat::default();
    let mut daemon = Daemon { settings, telemetry, sensors, queue, history, stop, heartbeat };
    log_ready(&engine_info, daemon.settings.running.budget.threads, &interfaces.addresses);
    let outcome = daemon.serve(interfaces, signals, ended, &engine_info, &plan, ready).await;
    outcome.and(join_worker(handle).await)
}

/// What clients see of the model.
fn model_card(file: &ModelFile, context: usize) -> Result<ModelCard, LoadError> {
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

/// Telemetry with the settings and the memory plan of a start.
fn configured_telemetry(config: &Config, plan: &MemoryPlan) -> Telemetry {
    let telemetry = Telemetry::new(plan.budget.bytes as u64);
    telemetry.set_alert_rules(config.alerts.clone());
    telemetry.set_planned_memory(plan.used(), plan.reserve());
    telemetry.health.set_queue_depth(config.queue.depth);
    telemetry.set_configured_idle_watts(config.telemetry.board_watts.map(|board| board.idle));
    telemetry
}

/// Logs the notes about the model, and that the daemon is ready.
fn log_ready(engine_info: &EngineInfo, threads: usize, addresses: &str) {
    for note in &engine_info.notes {
        match note.contains("chat template") {
            true => warn!("model: {note}"),
            false => info!("model: {note}"),
        }
    }
    info!("ready: {} on {}, threads: {threads}, {addresses}", engine_info.model, engine_info.kernel);
}

/// Waits for the worker thread, whose queue is closed and empty now.
async fn join_worker(worker: std::thread::JoinHandle<()>) -> Result<(), DaemonError> {
    let deadline = Instant::now() + WORKER_STOP_TIMEOUT;
    while !worker.is_finished() {
        if Instant::now() >= deadline {
            let message =
                format!("the worker did not end its step in {WORKER_STOP_TIMEOUT:?}; stopped without it");
            return Err(DaemonError::Setup(message));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    worker.join().map_err(|_| DaemonError::Setup("the worker thread died; standard error says where".into()))
}

/// The description of the model for systemd's status while it loads.
fn load_description(config: &Config, plan: &MemoryPlan) -> String {
    let model =
        config.model.path.as_ref().map_or("the built-in model".into(), |path| path.display().to_string());
    format!("{model} ({} MiB)", plan.footprint.mapped.div_ceil(1 << 20))
}

struct Daemon {
    settings: LiveSettings,
    telemetry: Arc<Telemetry>,
    sensors: Arc<Mutex<Sensors>>,
    queue: Arc<Queue>,
    /// `None` where no history is stored.
    history: Option<Arc<HistoryKeeper>>,
    stop: StopTokens,
    /// The heartbeat of the broker link's event loop.
    heartbeat: Heartbeat,
}

impl Daemon {
    async fn serve(
        &mut self,
        interfaces: LocalInterfaces,
        signals: Signals,
        worker: oneshot::Receiver<LoadError>,
        engine_info: &EngineInfo,
        plan: &MemoryPlan,
        ready: oneshot::Sender<()>,
    ) -> Result<(), DaemonError> {
        // The broker link has a channel of its own with a place for each prompt that it may hand over, so it is
        // never full.
        let (prompts, prompt_rx) = mpsc::channel(mqtt_window(self.settings.running.queue.depth));
        let (reports, report_rx) = watch::channel(None);
        // The file of the socket is removed at the end of this function, after the last client.
        let LocalInterfaces { tasks: mut transports, requests, loaded, socket_file: _socket_file, .. } =
            interfaces;
        let (controls, command_rx) = mpsc::channel(CONTROLS);
        let (alerts, alert_rx) = mpsc::channel(ALERTS);
        let link =
            self.spawn_mqtt(&mut transports, (prompts, controls), report_rx, alert_rx, engine_info, plan);
        let alerts = link.is_some().then_some(alerts);
        let report_now = Arc::new(Notify::new());
        let mut background =
            self.spawn_background(requests, reports, &report_now, link, alerts, &engine_info.model);
        background.spawn(commands::run_commands(
            command_rx,
            Arc::clone(&self.queue),
            Arc::clone(&self.telemetry),
            report_now,
        ));
        background.spawn(admit(prompt_rx, Arc::clone(&self.queue), Arc::clone(&self.telemetry)));
        if let Some(history) = &self.history {
            background.spawn(Arc::clone(history).run());
        }
        loaded.cancel();
        systemd::ready(&engine_info.model);
        let _ = ready.send(()); // the receiver may be gone
        let fault = self.wait_and_drain(signals, worker, &mut transports, &mut background).await;
        self.stop.close.cancel();
        while let Some(ended) = transports.join_next().await {
            if let Err(error) = ended {
                error!("a transport failed: {error}");
            }
        }
        if let Some(history) = &self.history {
            history.finish().await;
        }
        self.telemetry.security.finish();
        info!("stopped");
        fault.map_or(Ok(()), |message| Err(DaemonError::Setup(message)))
    }

    /// Starts the background tasks.
    fn spawn_background(
        &self,
        requests: mpsc::Receiver<Inbound>,
        reports: watch::Sender<Option<Arc<Vec<u8>>>>,
        report_now: &Arc<Notify>,
        link: Option<watch::Receiver<MqttLink>>,
        alerts: Option<mpsc::Sender<Alert>>,
        model: &str,
    ) -> JoinSet<()> {
        let (queue, telemetry) = (&self.queue, &self.telemetry);
        let watched = link.is_some().then(|| self.heartbeat.clone());
        let (model, seen) = (model.to_owned(), link.clone());
        let observer =
            systemd::StatusReporter { model, queue: queue.clone(), telemetry: telemetry.clone(), link: seen };
        let sampler = Arc::new(HostSampler {
            sensors: self.sensors.clone(),
            telemetry: telemetry.clone(),
            queue: queue.clone(),
            link,
            alerts,
            report_now: Arc::clone(report_now),
            queue_depth: self.settings.running.queue.depth,
            governor: Arc::clone(&self.settings.governor),
            faults: Mutex::new(FaultDetector::new(Instant::now())),
        });
        let exporter = TextfileExporter::new(self.settings.textfile.subscribe());
        let interval = self.settings.interval.subscribe();
        let reporter = Reporter { reports, sampler: Arc::clone(&sampler), interval, exporter };
        let mut background = JoinSet::new();
        background.spawn(admit(requests, queue.clone(), telemetry.clone()));
        background.spawn(sweep(queue.clone()));
        background.spawn(sampler.run());
        background.spawn(reporter.run());
        background.spawn(systemd::feed_watchdog(queue.clone(), watched));
        background.spawn(observer.run(self.stop.draining.clone()));
        background
    }

    fn spawn_mqtt(
        &self,
        transports: &mut JoinSet<()>,
        (requests, controls): (mpsc::Sender<Inbound>, mpsc::Sender<Command>),
        telemetry: watch::Receiver<Option<Arc<Vec<u8>>>>,
        alerts: mpsc::Receiver<Alert>,
        engine_info: &EngineInfo,
        plan: &MemoryPlan,
    ) -> Option<watch::Receiver<MqttLink>> {
        let running = &self.settings.running;
        let config = running.mqtt.clone()?;
        let (state, link) = watch::channel(MqttLink::default());
        transports.spawn(mqtt::run(mqtt::MqttContext {
            config,
            device: running.device.id.clone(),
            state_dir: running.device.state_dir.clone(),
            info: info_payload(running, engine_info, plan),
            max_active: u16::try_from(mqtt_window(running.queue.depth))
                .expect("no more than a small constant"),
            parallel: plan.parallel,
            inbox_bytes: running.queue.inbox_bytes,
            requests,
            commands: controls,
            homeassistant: Some(HomeAssistantInfo { model: engine_info.model.clone() }),
            home: self.settings.home.clone(),
            threads: running.budget.threads,
            reports: telemetry,
            answering: self.queue.running.subscribe(),
            alerts,
            report_interval: self.settings.interval.subscribe(),
            status: state,
            local_telemetry: Arc::clone(&self.telemetry),
            draining: self.stop.draining.clone(),
            close: self.stop.close.clone(),
            flush_timeout: FLUSH_TIMEOUT,
            heartbeat: self.heartbeat.clone(),
            max_idle: systemd::max_loop_interval(),
        }));
        Some(link)
    }

    /// Waits for the request to stop, then for the requests under way or the drain deadline. Returns which part of
    /// the daemon failed, if that is why it stops: its exit code must tell systemd to start it again.
    async fn wait_and_drain(
        &mut self,
        mut signals: Signals,
        worker: oneshot::Receiver<LoadError>,
        transports: &mut JoinSet<()>,
        background: &mut JoinSet<()>,
    ) -> Option<String> {
        let fault = self.wait_for_stop(&mut signals, worker, transports, background).await;
        systemd::stopping(&self.queue);
        self.stop.draining.cancel();
        let deadline = Instant::now() + self.settings.running.queue.drain;
        tokio::select! {
            () = self.queue.drained(deadline) => {}
            signal = signals.stop() => warn!("{signal} again: not waiting for answers"),
            never = systemd::drain(&self.queue) => match never {},
        }
        systemd::closing_connections();
        self.queue.close();
        self.queue.drained(Instant::now() + FLUSH_TIMEOUT).await;
        fault
    }

    async fn wait_for_stop(
        &mut self,
        signals: &mut Signals,
        mut worker: oneshot::Receiver<LoadError>,
        transports: &mut JoinSet<()>,
        background: &mut JoinSet<()>,
    ) -> Option<String> {
        loop {
            tokio::select! {
                biased;
                // Before the transports, which end by themselves once draining begins.
                () = self.stop.draining.cancelled() => return None,
                asked = signals.next() => match asked {
                    SignalRequest::Reload => self.reload(),
                    SignalRequest::Stop(signal) => {
                        info!("stopping on {signal}");
                        return None;
                    }
                },
                ended = &mut worker => return Some(match ended {
                    Ok(error) => error.to_string(),
                    Err(_) => "the worker thread died; standard error says where".into(),
                }),
                message = self.queue.memory.stuck() => return Some(message),
                Some(ended) = transports.join_next() => return Some(format!("a transport ended by itself: {ended:?}")),
                Some(ended) = background.join_next() => return Some(format!("a task ended by itself: {ended:?}")),
            }
        }
    }

    fn reload(&mut self) {
        systemd::reloading();
        self.settings.reload();
        systemd::reloaded();
    }
}

/// Passes requests from a transport to the queue.
async fn admit(mut requests: mpsc::Receiver<Inbound>, queue: Arc<Queue>, telemetry: Arc<Telemetry>) {
    while let Some(inbound) = requests.recv().await {
        telemetry.received();
        queue.offer(inbound);
    }
    // Transports end after the drain; until then the end of this task would count as a failure.
    std::future::pending::<()>().await;
}

/// Refuses waiting requests that were cancelled or exceeded their deadline; it runs only while some wait.
async fn sweep(queue: Arc<Queue>) {
    loop {
        queue.occupied().await;
        queue.sweep(Instant::now());
        tokio::time::sleep(SWEEP_INTERVAL).await;
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Host;
    use std::path::PathBuf;

    fn daemon() -> Daemon {
        let host = Host {
            name: "cellar".into(),
            memory_bytes: 1 << 30,
            processors: 1,
            big: vec![],
            runtime_dir: PathBuf::new(),
            cache_dir: PathBuf::new(),
            state_dir: PathBuf::new(),
            credentials_dir: None,
        };
        let running = Config::defaults(&host);
        let telemetry = Arc::new(Telemetry::new(0));
        let (_, plan) = plan(&running, ServedOverTcp::default(), None).expect("the built-in model fits");
        let queue = Arc::new(Queue::new(&running, &plan, telemetry.clone()));
        let reread = Box::new(|| Err("nothing to read".into()));
        Daemon {
            settings: LiveSettings::new(running, reread, queue.clone(), telemetry.clone()),
            telemetry,
            sensors: Arc::new(Mutex::new(Sensors::new(Path::new("tests/data/boards/none")))),
            queue,
            history: None,
            stop: StopTokens { draining: CancellationToken::new(), close: CancellationToken::new() },
            heartbeat: Heartbeat::default(),
        }
    }

    /// The failure of a daemon that nobody asked to stop.
    async fn fault(worker: oneshot::Receiver<LoadError>, mut transports: JoinSet<()>) -> String {
        let mut daemon = daemon();
        let signals = Signals::listen().expect("the handlers are installed");
        let fault = daemon.wait_and_drain(signals, worker, &mut transports, &mut JoinSet::new()).await;
        assert!(daemon.stop.draining.is_cancelled(), "the other transports are closed in order");
        fault.expect("nobody asked for a stop")
    }

    #[tokio::test]
    async fn a_dead_worker_is_a_fault_that_ends_the_daemon() {
        let (alive, worker) = oneshot::channel();
        drop(alive);
        assert_eq!(fault(worker, JoinSet::new()).await, "the worker thread died; standard error says where");
    }

    #[tokio::test]
    async fn a_transport_that_panics_is_a_fault_that_ends_the_daemon() {
        let (_alive, worker) = oneshot::channel();
        let mut transports = JoinSet::new();
        transports.spawn(async { panic!("an internal fault") });
        let message = fault(worker, transports).await;
        assert!(
            message.starts_with("a transport ended by itself: ") && message.contains("an internal fault"),
            "{message}"
        );
    }
}
