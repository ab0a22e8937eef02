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
mod model_order;
mod model_setup;
mod model_swap;
mod pending_reload;
mod queue;
mod reload;
mod reload_places;
mod report_schedule;
mod reporter;
mod request_defaults;
mod running;
mod served_model;
mod shared_guard;
mod signals;
mod structured;
mod systemd;
mod textfile_exporter;
mod worker;

pub use memory_plan::{ClientMemory, MemoryBudget, MemoryPlan, ServedOverTcp, TooLarge};
pub use model_setup::{open_model, plan};
pub use reload::ReadConfig;

use crate::config::Config;
use crate::engine::error::LoadError;
use crate::protocol::MqttLink;
use crate::telemetry::Telemetry;
use crate::telemetry::alerts::{Alert, Kind};
use crate::telemetry::sensors::Sensors;
use crate::transport::mqtt;
use crate::transport::{Command, Heartbeat, Inbound, ReloadRequest};
use crate::transport::{http, unix, wyoming};
use health::FaultDetector;
use history_keeper::HistoryKeeper;
use home_intent::HomeIntents;
use listeners::Listeners;
use local_interfaces::{LocalInterfaces, StopTokens};
use log::{error, info, warn};
use memory_plan::mqtt_window;
use model_setup::{EngineInfo, PlannedModel};
use model_swap::LoadedModel;
use pending_reload::{PendingReload, swapped};
use queue::Queue;
use reload::LiveSettings;
use reporter::{HostSampler, Reporter};
use served_model::ServedModel;
use signals::{SignalRequest, Signals};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use textfile_exporter::TextfileExporter;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::{Worker, WorkerModel, WorkerThread};

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
    let (model, is_fallback) = model_setup::choose(&config, serves, filter.as_ref())?;
    let plan = model.plan.clone();
    info!("{plan}");
    if plan.budget.is_cgroup_limit {
        warn!("the control group allows less than budget.memory_mb; the plan keeps to its limit");
    }
    unix::allow_files(config.socket.connections + http::MAX_CONNECTIONS + wyoming::MAX_CONNECTIONS);
    let mut signals = Signals::listen()
        .map_err(|error| DaemonError::Setup(format!("signal handlers cannot be installed: {error}")))?;
    let telemetry = Arc::new(configured_telemetry(&config, &plan));
    let history = begin_history(&config, &plan, &telemetry);
    let stop = StopTokens { draining: stop, close: CancellationToken::new() };
    let served = ServedModel::new(model.card.clone(), &model.settings, &config);
    let listeners = Listeners::open(passed, &config)?;
    let interfaces =
        LocalInterfaces::start(listeners, &config, plan.body_bytes(), &served, &telemetry, &stop);
    let sensors = Sensors::new(Path::new("/")).estimating(config.telemetry.board_watts);
    let sensors = Arc::new(Mutex::new(sensors));
    let home = home::configured(&config).map_err(DaemonError::Setup)?;
    let queue = Arc::new(Queue::new(&config, &plan, Arc::clone(&telemetry)));
    queue.guard.use_stored_key(config.device.state_dir.as_deref());
    let guard = Arc::clone(&queue.guard);
    telemetry.security.name_clients(move |client| guard.shown_client(client));
    queue.guard.set_filter(filter);
    let worker = Worker {
        intents: HomeIntents { home: home.clone(), is_built_in: model.settings.path.is_none() },
        queue: Arc::clone(&queue),
        telemetry: Arc::clone(&telemetry),
        sensors: Arc::clone(&sensors),
        budget: config.budget.clone(),
        disk_bytes: config.cache.disk_bytes,
        model: WorkerModel::new(model.settings.clone(), plan.clone(), model.card.clone()),
    };
    let loads = model.description();
    let first = LoadedModel { plan, is_fallback };
    let StartedWorker { thread, engine_info, loaded } = tokio::select! {
        started = start_worker(worker, model, first, &config, serves, &served) => started?,
        signal = signals.stop() => {
            info!("stopping on {signal}, before the model was loaded");
            interfaces.close(&stop).await;
            return Ok(());
        }
        never = systemd::loading(&loads) => match never {},
    };
    queue.memory.start(&loaded.plan);
    telemetry.set_thread_limit(config.budget.threads);
    let settings = LiveSettings::new(config, reread, Arc::clone(&queue), Arc::clone(&telemetry), loaded);
    let settings = LiveSettings { home, ..settings };
    let heartbeat = Heartbeat::default();
    let mut daemon = Daemon { settings, telemetry, sensors, queue, history, stop, heartbeat, served, serves };
    daemon.describe(&engine_info);
    let EngineInfo { model, kernel, .. } = &engine_info;
    let threads = daemon.settings.running.budget.threads;
    info!("ready: {model} on {kernel}, threads: {threads}, {}", interfaces.addresses);
    let outcome = daemon.serve(interfaces, signals, thread.ended, ready).await;
    outcome.and(join_worker(thread.handle, &daemon.queue).await)
}

/// The worker with a model that is loaded.
struct StartedWorker {
    thread: WorkerThread,
    engine_info: EngineInfo,
    loaded: LoadedModel,
}

/// Starts the worker with a model, or with the fallback where that one cannot be loaded although it could be opened.
async fn start_worker(
    worker: Worker,
    model: PlannedModel,
    loaded: LoadedModel,
    config: &Config,
    serves: ServedOverTcp,
    served: &ServedModel,
) -> Result<StartedWorker, DaemonError> {
    let error = match worker.clone().start(model).await {
        Ok((thread, engine_info)) => return Ok(StartedWorker { thread, engine_info, loaded }),
        Err(error @ DaemonError::Model(_)) if !loaded.is_fallback => error,
        Err(error) => return Err(error),
    };
    let filter = worker.queue.guard.filter();
    let model = model_setup::fallback_beside(config, serves, filter.as_deref(), &loaded.plan, error)?;
    served.replace(model.card.clone(), &model.settings, config);
    let plan = model.plan.clone();
    info!("{plan}");
    worker.telemetry.set_planned_memory(plan.used(), plan.reserve());
    let (thread, engine_info) = worker.start(model).await?;
    Ok(StartedWorker { thread, engine_info, loaded: LoadedModel { plan, is_fallback: true } })
}

/// The history, where the owner wants one and the memory plan has a place for it.
fn begin_history(
    config: &Config,
    plan: &MemoryPlan,
    telemetry: &Arc<Telemetry>,
) -> Option<Arc<HistoryKeeper>> {
    if config.history.is_enabled && plan.clients.history == 0 {
        warn!(
            "no history is kept: with it the memory plan exceeds the budget; allow more in budget.memory_mb"
        );
        return None;
    }
    HistoryKeeper::begin(config, telemetry)
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

/// Waits for the worker thread, whose queue is closed and empty now.
async fn join_worker(worker: std::thread::JoinHandle<()>, queue: &Queue) -> Result<(), DaemonError> {
    let deadline = Instant::now() + WORKER_STOP_TIMEOUT;
    while !worker.is_finished() {
        // What it loads is of no use any more, and ends with the process.
        if queue.is_loading() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let message =
                format!("the worker did not end its step in {WORKER_STOP_TIMEOUT:?}; stopped without it");
            return Err(DaemonError::Setup(message));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    worker.join().map_err(|_| DaemonError::Setup("the worker thread died; standard error says where".into()))
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
    served: ServedModel,
    serves: ServedOverTcp,
}

impl Daemon {
    async fn serve(
        &mut self,
        interfaces: LocalInterfaces,
        signals: Signals,
        worker: oneshot::Receiver<LoadError>,
        ready: oneshot::Sender<()>,
    ) -> Result<(), DaemonError> {
        // The broker link has a channel of its own with a place for each prompt that it may hand over, so it is
        // never full.
        let (prompts, prompt_rx) = mpsc::channel(mqtt_window(self.settings.running.queue.depth));
        let (reports, report_rx) = watch::channel(None);
        // The file of the socket is removed at the end of this function, after the last client.
        let LocalInterfaces {
            tasks: mut transports,
            requests,
            reload_requests,
            loaded,
            addresses,
            socket_file: _socket_file,
        } = interfaces;
        let (controls, command_rx) = mpsc::channel(CONTROLS);
        let (alerts, alert_rx) = mpsc::channel(ALERTS);
        let link = self.spawn_mqtt(&mut transports, (prompts, controls), report_rx, alert_rx);
        let alerts = link.is_some().then_some(alerts);
        let report_now = Arc::new(Notify::new());
        let mut background = self.spawn_background(requests, reports, &report_now, link, alerts, &addresses);
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
        systemd::ready(&self.served.published.borrow().name, &addresses);
        let _ = ready.send(()); // the receiver may be gone
        let events = DaemonEvents { signals, reload_requests, worker };
        let fault = self.wait_and_drain(events, &mut transports, &mut background).await;
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
        addresses: &str,
    ) -> JoinSet<()> {
        let (queue, telemetry) = (&self.queue, &self.telemetry);
        let watched = link.is_some().then(|| self.heartbeat.clone());
        let observer = systemd::StatusReporter {
            queue: queue.clone(),
            telemetry: telemetry.clone(),
            link: link.clone(),
            addresses: addresses.to_owned(),
        };
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
    ) -> Option<watch::Receiver<MqttLink>> {
        let running = &self.settings.running;
        let config = running.mqtt.clone()?;
        let (state, link) = watch::channel(MqttLink::default());
        transports.spawn(mqtt::run(mqtt::MqttContext {
            config,
            device: running.device.id.clone(),
            state_dir: running.device.state_dir.clone(),
            model: self.served.published.subscribe(),
            max_active: u16::try_from(mqtt_window(running.queue.depth))
                .expect("no more than a small constant"),
            parallel: self.settings.loaded.plan.parallel,
            inbox_bytes: running.queue.inbox_bytes,
            requests,
            commands: controls,
            has_homeassistant: true,
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
        mut events: DaemonEvents,
        transports: &mut JoinSet<()>,
        background: &mut JoinSet<()>,
    ) -> Option<String> {
        let fault = self.wait_for_stop(&mut events, transports, background).await;
        systemd::stopping(&self.queue);
        self.stop.draining.cancel();
        let deadline = Instant::now() + self.settings.running.queue.drain;
        tokio::select! {
            () = self.queue.drained(deadline) => {}
            signal = events.signals.stop() => warn!("{signal} again: not waiting for answers"),
            never = systemd::drain(&self.queue) => match never {},
        }
        systemd::closing_connections();
        self.queue.close();
        self.queue.drained(Instant::now() + FLUSH_TIMEOUT).await;
        fault
    }

    async fn wait_for_stop(
        &mut self,
        events: &mut DaemonEvents,
        transports: &mut JoinSet<()>,
        background: &mut JoinSet<()>,
    ) -> Option<String> {
        let mut reload: Option<PendingReload> = None;
        loop {
            let may_reload = reload.is_none();
            tokio::select! {
                biased;
                // Before the transports, which end by themselves once draining begins.
                () = self.stop.draining.cancelled() => return None,
                asked = events.signals.next(may_reload) => match asked {
                    SignalRequest::Reload => reload = self.begin_reload(None),
                    SignalRequest::Stop(signal) => {
                        info!("stopping on {signal}");
                        return None;
                    }
                },
                Some(reply) = events.reload_requests.recv(), if may_reload => reload = self.begin_reload(Some(reply)),
                outcome = swapped(&mut reload) => {
                    if let Some(pending) = reload.take() {
                        self.end_swap(pending, outcome);
                    }
                }
                ended = &mut events.worker => return Some(match ended {
                    Ok(error) => error.to_string(),
                    Err(_) => "the worker thread died; standard error says where".into(),
                }),
                message = self.queue.memory.stuck() => return Some(message),
                Some(ended) = transports.join_next() => return Some(format!("a transport ended by itself: {ended:?}")),
                Some(ended) = background.join_next() => return Some(format!("a task ended by itself: {ended:?}")),
            }
        }
    }
}

/// What the daemon waits for besides its tasks.
struct DaemonEvents {
    signals: Signals,
    reload_requests: mpsc::Receiver<ReloadRequest>,
    worker: oneshot::Receiver<LoadError>,
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
        let serves = ServedOverTcp::default();
        let (model, _) = model_setup::choose(&running, serves, None).expect("the built-in model fits");
        let served = ServedModel::new(model.card.clone(), &model.settings, &running);
        let queue = Arc::new(Queue::new(&running, &model.plan, telemetry.clone()));
        let loaded = LoadedModel { plan: model.plan, is_fallback: false };
        let reread = Box::new(|| Err("nothing to read".into()));
        Daemon {
            settings: LiveSettings::new(running, reread, queue.clone(), telemetry.clone(), loaded),
            telemetry,
            sensors: Arc::new(Mutex::new(Sensors::new(Path::new("tests/data/boards/none")))),
            queue,
            history: None,
            stop: StopTokens { draining: CancellationToken::new(), close: CancellationToken::new() },
            heartbeat: Heartbeat::default(),
            served,
            serves,
        }
    }

    /// The failure of a daemon that nobody asked to stop.
    async fn fault(worker: oneshot::Receiver<LoadError>, mut transports: JoinSet<()>) -> String {
        let mut daemon = daemon();
        let signals = Signals::listen().expect("the handlers are installed");
        let events = DaemonEvents { signals, reload_requests: mpsc::channel(1).1, worker };
        let fault = daemon.wait_and_drain(events, &mut transports, &mut JoinSet::new()).await;
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
