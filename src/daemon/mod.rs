//! The daemon: opens the doors, starts the worker, keeps them company, and closes in order.
//!
//! The only room that sees both the doors and the engine. Deliberately knows no arguments and no
//! exit codes: `cli` brings the settings and takes the failure.

mod admission;
mod budget;
mod cache;
mod health;
mod heap;
mod pressure;
mod queue;
mod report;
mod shutdown;
mod systemd;
mod worker;

pub use budget::{Allowed, Clients, Plan, TooLarge};

use crate::config::{Config, Head, I2sLayout, KvCache};
use crate::engine::error::LoadError;
use crate::engine::model::{CacheForm, HeadForm, Layout};
use crate::engine::{self, ModelFile, Source};
use crate::telemetry::Telemetry;
use crate::telemetry::sensors::Sensors;
use crate::transport::Inbound;
use crate::transport::mqtt::{self, LinkState};
use crate::transport::unix::{self, Latecomers};
use log::{error, info, warn};
use queue::Queue;
use report::{Reporter, info_payload, sample_power};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::{Facts, Worker};

/// Requests on their way from the doors to the queue, at least: where there are more, the socket
/// waits and the broker link refuses.
const INTAKE: usize = 32;
/// Time for the last replies to reach the broker on a stop.
const FLUSH: Duration = Duration::from_secs(3);
/// Between two looks at waiting requests that were cancelled or ran out of time.
const SWEEP_INTERVAL: Duration = Duration::from_millis(50);

/// Why the daemon did not start, or stopped.
#[derive(Debug)]
pub enum Failure {
    /// The model cannot be used.
    Model(LoadError),
    /// The model does not fit the budget.
    Budget(TooLarge),
    /// The socket cannot be opened.
    Socket(String),
    /// The system refused something else.
    Setup(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Model(error) => error.fmt(f),
            Failure::Budget(error) => error.fmt(f),
            Failure::Socket(said) | Failure::Setup(said) => said.fmt(f),
        }
    }
}

impl std::error::Error for Failure {}

/// Maps the configured model and plans its memory; nothing is loaded yet.
pub fn plan(config: &Config) -> Result<(ModelFile, Plan), Failure> {
    let source = config.model.path.clone().map_or(Source::BuiltIn, Source::File);
    let layout = config.model.i2s_layout.map(|layout| match layout {
        I2sLayout::Blocks128 => Layout::Blocks128,
        I2sLayout::Blocks64 => Layout::Blocks64,
        I2sLayout::Rows4 => Layout::Rows4,
    });
    let head = config.model.head.map(|head| match head {
        Head::F16 => HeadForm::File,
        Head::Q8 => HeadForm::Q8,
        Head::Q6K => HeadForm::Q6K,
        Head::Screened => HeadForm::Screened,
    });
    let cache = match config.model.kv_cache {
        KvCache::F16 => CacheForm::F16,
        KvCache::Int8 => CacheForm::Int8,
    };
    let file = ModelFile::open(&source, layout)
        .and_then(|file| file.with_head(head))
        .and_then(|file| file.with_cache(cache));
    let file = file.map_err(Failure::Model)?;
    let footprint = file.footprint();
    let (clients, allowed) = (Clients::of(config), Allowed::by(config));
    let plan = Plan::make(&footprint, file.shape().context, config.model.context, clients, allowed);
    plan.map_err(Failure::Budget).map(|plan| (file, plan))
}

/// Runs until `stop` is cancelled or a signal asks for it. `ready` hears when both doors are open
/// and the model is loaded.
pub async fn run(config: Config, stop: CancellationToken, ready: oneshot::Sender<()>) -> Result<(), Failure> {
    let (file, plan) = plan(&config)?;
    info!("{plan}");
    if plan.budget.is_kernels {
        warn!("the control group allows less than budget.memory_mb; the plan keeps to its limit");
    }
    unix::allow_files(config.socket.connections);
    let mut signals = shutdown::Signals::listen()
        .map_err(|error| Failure::Setup(format!("signals cannot be heard: {error}")))?;
    let telemetry = Arc::new(Telemetry::new(plan.budget.bytes as u64));
    let sensors = Arc::new(Mutex::new(Sensors::new(Path::new("/"))));
    let (listener, place) = socket(&config)?;
    let queue = Arc::new(Queue::new(&config.queue, &plan, Arc::clone(&telemetry)));
    let worker = Worker {
        queue: Arc::clone(&queue),
        telemetry: Arc::clone(&telemetry),
        sensors: Arc::clone(&sensors),
        context: plan.context,
        budget: config.budget.clone(),
    };
    let options = engine::Options {
        threads: config.budget.threads,
        pin: config.budget.pin,
        kernel: None,
        keep_in: config.model.keep_in.clone(),
    };
    let socket_name = local_name(&listener).unwrap_or_else(|| config.socket.path.display().to_string());
    let (worker::Thread { handle, ended }, facts) = tokio::select! {
        started = worker.start(file, options) => started?,
        signal = signals.next() => {
            info!("stopping on {signal}, before the model was loaded");
            return Ok(());
        }
    };
    queue.watch_memory(&plan);
    // A socket of systemd's outlives this process, and so do the clients in its backlog.
    let latecomers = if place.is_some() { Latecomers::Told } else { Latecomers::Kept };
    let close = CancellationToken::new();
    let daemon = Daemon { config, telemetry, sensors, queue, latecomers, draining: stop, close };
    facts.notes.iter().for_each(|note| info!("model: {note}"));
    info!(
        "ready: {} on {}, threads: {}, socket {}",
        facts.model, facts.kernel, daemon.config.budget.threads, socket_name
    );
    let outcome = daemon.serve(listener, signals, ended, &facts, &plan, ready).await;
    // The worker ends when its queue is closed and empty, which `serve` has seen to.
    if handle.join().is_err() {
        error!("the worker thread died");
    }
    drop(place);
    outcome
}

/// Where the socket is: under systemd its own word counts, not the configuration's.
fn local_name(listener: &tokio::net::UnixListener) -> Option<String> {
    Some(listener.local_addr().ok()?.as_pathname()?.display().to_string())
}

fn socket(config: &Config) -> Result<(tokio::net::UnixListener, Option<unix::Place>), Failure> {
    let setup = |error: &dyn fmt::Display| Failure::Socket(error.to_string());
    let (listener, place) = match systemd::listener().map_err(|error| setup(&error))? {
        Some(listener) => (listener, None),
        None => {
            let (listener, place) = unix::bind(&config.socket).map_err(|error| setup(&error))?;
            (listener, Some(place))
        }
    };
    let listener = unix::adopt(listener)
        .map_err(|error| setup(&format!("{}: {error}", config.socket.path.display())))?;
    Ok((listener, place))
}

struct Daemon {
    config: Config,
    telemetry: Arc<Telemetry>,
    sensors: Arc<Mutex<Sensors>>,
    queue: Arc<Queue>,
    latecomers: Latecomers,
    draining: CancellationToken,
    close: CancellationToken,
}

impl Daemon {
    async fn serve(
        &self,
        listener: tokio::net::UnixListener,
        signals: shutdown::Signals,
        worker: oneshot::Receiver<LoadError>,
        facts: &Facts,
        plan: &Plan,
        ready: oneshot::Sender<()>,
    ) -> Result<(), Failure> {
        // A broker hands over all that it has kept for us in one piece: what the queue has room for.
        let (intake, requests) = mpsc::channel(INTAKE.max(self.config.queue.depth + 1));
        let (reports, latest) = watch::channel(None);
        let mut doors = JoinSet::new();
        doors.spawn(unix::run(
            listener,
            self.latecomers,
            self.config.socket.connections,
            intake.clone(),
            Arc::clone(&self.telemetry),
            self.draining.clone(),
            self.close.clone(),
        ));
        let link = self.open_mqtt(&mut doors, intake, latest, facts, plan);
        let mut company = JoinSet::new();
        company.spawn(admit(requests, Arc::clone(&self.queue), Arc::clone(&self.telemetry)));
        company.spawn(sweep(Arc::clone(&self.queue)));
        company.spawn(sample_power(Arc::clone(&self.sensors), Arc::clone(&self.telemetry)));
        let reporter = Reporter { reports, link, queue: Arc::clone(&self.queue) };
        company.spawn(reporter.run(
            self.config.telemetry.interval,
            Arc::clone(&self.sensors),
            Arc::clone(&self.telemetry),
        ));
        company.spawn(systemd::feed_watchdog(Arc::clone(&self.queue)));
        systemd::ready(&facts.model);
        let _ = ready.send(()); // nobody has to listen
        let fault = self.wait_and_drain(signals, worker, &mut doors, &mut company).await;
        self.close.cancel();
        while let Some(ended) = doors.join_next().await {
            if let Err(error) = ended {
                error!("a door ended badly: {error}");
            }
        }
        info!("stopped");
        fault.map_or(Ok(()), |said| Err(Failure::Setup(said)))
    }

    fn open_mqtt(
        &self,
        doors: &mut JoinSet<()>,
        requests: mpsc::Sender<Inbound>,
        telemetry: watch::Receiver<Option<Arc<Vec<u8>>>>,
        facts: &Facts,
        plan: &Plan,
    ) -> Option<watch::Receiver<LinkState>> {
        let config = self.config.mqtt.clone()?;
        let (state, link) = watch::channel(LinkState::default());
        doors.spawn(mqtt::run(mqtt::Door {
            config,
            device: self.config.device.id.clone(),
            state_in: self.config.device.state_in.clone(),
            info: info_payload(&self.config, facts, plan),
            window: u16::try_from(self.config.queue.depth + 1).unwrap_or(u16::MAX),
            requests,
            telemetry,
            interval: self.config.telemetry.interval,
            state,
            counters: Arc::clone(&self.telemetry),
            draining: self.draining.clone(),
            close: self.close.clone(),
            flush: FLUSH,
        }));
        Some(link)
    }

    /// Waits for the word to stop, then for the requests at hand, then for the drain deadline. Says
    /// which part of the daemon failed, if that is why it stops: such a daemon answers nobody, and
    /// its exit code must tell systemd to start another.
    async fn wait_and_drain(
        &self,
        mut signals: shutdown::Signals,
        worker: oneshot::Receiver<LoadError>,
        doors: &mut JoinSet<()>,
        company: &mut JoinSet<()>,
    ) -> Option<String> {
        let fault = tokio::select! {
            () = self.draining.cancelled() => None,
            signal = signals.next() => {
                info!("stopping on {signal}");
                None
            }
            ended = worker => Some(match ended {
                Ok(error) => error.to_string(),
                Err(_) => "the worker thread died; standard error says where".into(),
            }),
            said = self.queue.stuck() => Some(said),
            Some(ended) = doors.join_next() => Some(format!("a door ended by itself: {ended:?}")),
            Some(ended) = company.join_next() => Some(format!("a task ended by itself: {ended:?}")),
        };
        systemd::stopping(self.config.queue.drain);
        self.draining.cancel();
        let deadline = Instant::now() + self.config.queue.drain;
        tokio::select! {
            () = self.queue.drained(deadline) => {}
            signal = signals.next() => warn!("{signal} again: not waiting for answers"),
        }
        self.queue.close();
        self.queue.drained(Instant::now() + FLUSH).await;
        fault
    }
}

/// Takes requests from the doors to the queue; ends with the last door.
async fn admit(mut requests: mpsc::Receiver<Inbound>, queue: Arc<Queue>, telemetry: Arc<Telemetry>) {
    while let Some(inbound) = requests.recv().await {
        telemetry.received();
        queue.offer(inbound);
    }
    // The doors end after the drain; until then this task is wanted.
    std::future::pending::<()>().await;
}

/// Tells waiting requests that were cancelled or ran out of time; looks only while some wait.
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
