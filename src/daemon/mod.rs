//! The daemon: opens the doors, starts the worker, keeps them company, and closes in order.
//!
//! The only room that sees both the doors and the engine. Deliberately knows no arguments and no
//! exit codes: `cli` brings the settings and takes the failure.

mod admission;
mod answer_cache;
mod commands;
mod malloc_trim;
mod memory_guard;
mod memory_plan;
mod queue;
mod reload;
mod report_schedule;
mod reporter;
mod shares;
mod signals;
mod systemd;
mod textfile_exporter;
mod worker;

pub use memory_plan::{Allowed, Clients, Plan, TooLarge};
pub use reload::Reread;

use crate::config::{Config, Head, I2sLayout, KvCache};
use crate::engine::error::LoadError;
use crate::engine::model::{CacheForm, HeadForm, Layout};
use crate::engine::tokenizer::ChatTemplate;
use crate::engine::{self, ModelFile, Source};
use crate::telemetry::alerts::{Alert, Kind};
use crate::telemetry::sensors::Sensors;
use crate::telemetry::{About, Telemetry};
use crate::transport::mqtt::{self, Home, LinkState};
use crate::transport::unix::{self, Latecomers};
use crate::transport::{Control, Inbound, Pulse};
use log::{error, info, warn};
use memory_plan::window;
use queue::Queue;
use reload::Settings;
use reporter::{Reporter, Sampler, info_payload};
use signals::{Asked, Signals};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use textfile_exporter::Exporter;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::{Facts, Worker};

/// Requests on their way from the socket to the queue: where there are more, their connections wait.
const INTAKE: usize = 32;
/// Controls on their way from the broker link to whom they concern, which takes each at once.
const CONTROLS: usize = 8;
/// Alerts on their way to the broker link, which takes each at once: two of every kind.
const ALERTS: usize = 2 * Kind::ALL.len();
/// Time for the last replies to reach the broker on a stop.
const FLUSH: Duration = Duration::from_secs(3);
/// Longest wait for the worker on a stop: its longest step is to read a piece of a prompt.
const LAST_STEP: Duration = Duration::from_secs(30);
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
    let template = config.model.chat_template.as_deref().map(ChatTemplate::of_setting).transpose();
    let file = file.and_then(|file| Ok(file.with_template(template?.unwrap_or_default())));
    let file = file.map_err(Failure::Model)?;
    let footprint = file.footprint();
    let (clients, allowed) = (Clients::of(config), Allowed::by(config));
    let plan = Plan::make(&footprint, file.shape().context, config.model.context, clients, allowed);
    plan.map_err(Failure::Budget).map(|plan| (file, plan))
}

/// Runs until `stop` is cancelled or a signal asks for it. `ready` hears when both doors are open
/// and the model is loaded; `reread` is called when a signal asks for another configuration.
pub async fn run(
    config: Config,
    reread: Reread,
    stop: CancellationToken,
    ready: oneshot::Sender<()>,
) -> Result<(), Failure> {
    let (file, plan) = plan(&config)?;
    info!("{plan}");
    if plan.budget.is_kernels {
        warn!("the control group allows less than budget.memory_mb; the plan keeps to its limit");
    }
    unix::allow_files(config.socket.connections);
    let mut signals =
        Signals::listen().map_err(|error| Failure::Setup(format!("signals cannot be heard: {error}")))?;
    let telemetry = Arc::new(Telemetry::new(plan.budget.bytes as u64));
    telemetry.set_alert_rules(config.alerts.clone());
    telemetry.set_planned(plan.held(), plan.reserve());
    telemetry.set_idle_watts(config.telemetry.board_watts.map(|board| board.idle));
    let sensors = Sensors::new(Path::new("/")).estimating(config.telemetry.board_watts);
    let sensors = Arc::new(Mutex::new(sensors));
    let (listener, place) = socket(&config)?;
    let queue = Arc::new(Queue::new(&config, &plan, Arc::clone(&telemetry)));
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
    let loads = what_loads(&config, &plan);
    let (worker::Thread { handle, ended }, facts) = tokio::select! {
        started = worker.start(file, options) => started?,
        signal = signals.stop() => {
            info!("stopping on {signal}, before the model was loaded");
            return Ok(());
        }
        never = systemd::loading(&loads) => match never {},
    };
    queue.watch_memory(&plan);
    // A socket of systemd's outlives this process, and so do the clients in its backlog.
    let latecomers = if place.is_some() { Latecomers::Told } else { Latecomers::Kept };
    telemetry.describe(About { model: facts.model.clone(), kernel: facts.kernel.into() });
    telemetry.set_thread_limit(config.budget.threads);
    let socket_mode = config.socket.mode;
    let settings = Settings::new(config, reread, Arc::clone(&queue), Arc::clone(&telemetry));
    let (draining, close, pulse) = (stop, CancellationToken::new(), Pulse::default());
    let mut daemon = Daemon { settings, telemetry, sensors, queue, latecomers, draining, close, pulse };
    for note in &facts.notes {
        match note.contains("chat template") {
            true => warn!("model: {note}"),
            false => info!("model: {note}"),
        }
    }
    info!(
        "ready: {} on {}, threads: {}, socket {}",
        facts.model, facts.kernel, daemon.settings.running.budget.threads, socket_name
    );
    let place = place.map(|place| Arc::new(Mutex::new(place)));
    let listening = match &place {
        Some(place) => unix::Listening::from(listener).keeping(Arc::clone(place), socket_mode),
        None => listener.into(),
    };
    let outcome = daemon.serve(listening, signals, ended, &facts, &plan, ready).await;
    drop(place);
    outcome.and(last_step(handle).await)
}

/// Waits for the worker, which ends when its queue is closed and empty, as it is now.
async fn last_step(worker: std::thread::JoinHandle<()>) -> Result<(), Failure> {
    let deadline = Instant::now() + LAST_STEP;
    while !worker.is_finished() {
        if Instant::now() >= deadline {
            let said = format!("the worker did not end its step in {LAST_STEP:?}; stopped without it");
            return Err(Failure::Setup(said));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    worker.join().map_err(|_| Failure::Setup("the worker thread died; standard error says where".into()))
}

/// What systemd is told while the worker is busy with it.
fn what_loads(config: &Config, plan: &Plan) -> String {
    let model =
        config.model.path.as_ref().map_or("the built-in model".into(), |path| path.display().to_string());
    format!("{model} ({} MiB)", plan.footprint.mapped.div_ceil(1 << 20))
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
    settings: Settings,
    telemetry: Arc<Telemetry>,
    sensors: Arc<Mutex<Sensors>>,
    queue: Arc<Queue>,
    latecomers: Latecomers,
    draining: CancellationToken,
    close: CancellationToken,
    /// Of the broker link's loop.
    pulse: Pulse,
}

impl Daemon {
    async fn serve(
        &mut self,
        listener: unix::Listening,
        signals: Signals,
        worker: oneshot::Receiver<LoadError>,
        facts: &Facts,
        plan: &Plan,
        ready: oneshot::Sender<()>,
    ) -> Result<(), Failure> {
        let (intake, requests) = mpsc::channel(INTAKE);
        // One of its own for the broker link, with a place for each prompt that it may hand over: it never finds it full.
        let (prompts, handed_over) = mpsc::channel(window(self.settings.running.queue.depth));
        let (reports, latest) = watch::channel(None);
        let mut doors = JoinSet::new();
        doors.spawn(unix::run(
            listener,
            self.latecomers,
            self.settings.running.socket.connections,
            intake,
            Arc::clone(&self.telemetry),
            self.draining.clone(),
            self.close.clone(),
        ));
        let (controls, asked) = mpsc::channel(CONTROLS);
        let (alerts, raised) = mpsc::channel(ALERTS);
        let link = self.open_mqtt(&mut doors, (prompts, controls), latest, raised, facts, plan);
        let alerts = link.is_some().then_some(alerts);
        let hurry = Arc::new(Notify::new());
        let mut company = self.keep_company(requests, reports, &hurry, link, alerts, &facts.model);
        company.spawn(commands::obey(asked, Arc::clone(&self.queue), Arc::clone(&self.telemetry), hurry));
        company.spawn(admit(handed_over, Arc::clone(&self.queue), Arc::clone(&self.telemetry)));
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

    /// The tasks that run beside the doors.
    fn keep_company(
        &self,
        requests: mpsc::Receiver<Inbound>,
        reports: watch::Sender<Option<Arc<Vec<u8>>>>,
        hurry: &Arc<Notify>,
        link: Option<watch::Receiver<LinkState>>,
        alerts: Option<mpsc::Sender<Alert>>,
        model: &str,
    ) -> JoinSet<()> {
        let (queue, telemetry) = (&self.queue, &self.telemetry);
        let watched = link.is_some().then(|| self.pulse.clone());
        let (model, seen) = (model.to_owned(), link.clone());
        let observer =
            systemd::Observer { model, queue: queue.clone(), telemetry: telemetry.clone(), link: seen };
        let sampler = Arc::new(Sampler {
            sensors: self.sensors.clone(),
            telemetry: telemetry.clone(),
            queue: queue.clone(),
            link,
            alerts,
            hurry: Arc::clone(hurry),
            depth: self.settings.running.queue.depth,
        });
        let exporter = Exporter::new(self.settings.textfile.subscribe());
        let interval = self.settings.interval.subscribe();
        let reporter = Reporter { reports, sampler: Arc::clone(&sampler), interval, exporter };
        let mut company = JoinSet::new();
        company.spawn(admit(requests, queue.clone(), telemetry.clone()));
        company.spawn(sweep(queue.clone()));
        company.spawn(sampler.run());
        company.spawn(reporter.run());
        company.spawn(systemd::feed_watchdog(queue.clone(), watched));
        company.spawn(observer.run(self.draining.clone()));
        company
    }

    fn open_mqtt(
        &self,
        doors: &mut JoinSet<()>,
        (requests, controls): (mpsc::Sender<Inbound>, mpsc::Sender<Control>),
        telemetry: watch::Receiver<Option<Arc<Vec<u8>>>>,
        alerts: mpsc::Receiver<Alert>,
        facts: &Facts,
        plan: &Plan,
    ) -> Option<watch::Receiver<LinkState>> {
        let running = &self.settings.running;
        let config = running.mqtt.clone()?;
        let (state, link) = watch::channel(LinkState::default());
        doors.spawn(mqtt::run(mqtt::Door {
            config,
            device: running.device.id.clone(),
            state_in: running.device.state_in.clone(),
            info: info_payload(running, facts, plan),
            window: u16::try_from(window(running.queue.depth)).expect("no more than a small constant"),
            inbox_bytes: running.queue.inbox_bytes,
            requests,
            controls,
            home: Some(Home { model: facts.model.clone() }),
            threads: running.budget.threads,
            telemetry,
            alerts,
            interval: self.settings.interval.subscribe(),
            state,
            counters: Arc::clone(&self.telemetry),
            draining: self.draining.clone(),
            close: self.close.clone(),
            flush: FLUSH,
            pulse: self.pulse.clone(),
            turn: systemd::turn(),
        }));
        Some(link)
    }

    /// Waits for the word to stop, then for the requests at hand, then for the drain deadline. Says
    /// which part of the daemon failed, if that is why it stops: such a daemon answers nobody, and
    /// its exit code must tell systemd to start another.
    async fn wait_and_drain(
        &mut self,
        mut signals: Signals,
        worker: oneshot::Receiver<LoadError>,
        doors: &mut JoinSet<()>,
        company: &mut JoinSet<()>,
    ) -> Option<String> {
        let fault = self.word_to_stop(&mut signals, worker, doors, company).await;
        systemd::stopping(&self.queue);
        self.draining.cancel();
        let deadline = Instant::now() + self.settings.running.queue.drain;
        tokio::select! {
            () = self.queue.drained(deadline) => {}
            signal = signals.stop() => warn!("{signal} again: not waiting for answers"),
            never = systemd::drain(&self.queue) => match never {},
        }
        systemd::closing();
        self.queue.close();
        self.queue.drained(Instant::now() + FLUSH).await;
        fault
    }

    async fn word_to_stop(
        &mut self,
        signals: &mut Signals,
        mut worker: oneshot::Receiver<LoadError>,
        doors: &mut JoinSet<()>,
        company: &mut JoinSet<()>,
    ) -> Option<String> {
        loop {
            tokio::select! {
                biased;
                // Before the doors, which end by themselves once it is said.
                () = self.draining.cancelled() => return None,
                asked = signals.next() => match asked {
                    Asked::Reload => self.reload(),
                    Asked::Stop(signal) => {
                        info!("stopping on {signal}");
                        return None;
                    }
                },
                ended = &mut worker => return Some(match ended {
                    Ok(error) => error.to_string(),
                    Err(_) => "the worker thread died; standard error says where".into(),
                }),
                said = self.queue.stuck() => return Some(said),
                Some(ended) = doors.join_next() => return Some(format!("a door ended by itself: {ended:?}")),
                Some(ended) = company.join_next() => return Some(format!("a task ended by itself: {ended:?}")),
            }
        }
    }

    fn reload(&mut self) {
        systemd::reloading();
        self.settings.reload();
        systemd::reloaded();
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
        let (_, plan) = plan(&running).expect("the built-in model fits");
        let queue = Arc::new(Queue::new(&running, &plan, telemetry.clone()));
        let reread = Box::new(|| Err("nothing to read".into()));
        Daemon {
            settings: Settings::new(running, reread, queue.clone(), telemetry.clone()),
            telemetry,
            sensors: Arc::new(Mutex::new(Sensors::new(Path::new("tests/data/boards/none")))),
            queue,
            latecomers: Latecomers::Told,
            draining: CancellationToken::new(),
            close: CancellationToken::new(),
            pulse: Pulse::default(),
        }
    }

    /// What a daemon says that is stopped by none of its owners.
    async fn fault(worker: oneshot::Receiver<LoadError>, mut doors: JoinSet<()>) -> String {
        let mut daemon = daemon();
        let signals = Signals::listen().expect("signals can be heard");
        let fault = daemon.wait_and_drain(signals, worker, &mut doors, &mut JoinSet::new()).await;
        assert!(daemon.draining.is_cancelled(), "the other doors are closed in order");
        fault.expect("nobody asked for a stop")
    }

    #[tokio::test]
    async fn a_dead_worker_is_a_fault_that_ends_the_daemon() {
        let (alive, worker) = oneshot::channel();
        drop(alive);
        assert_eq!(fault(worker, JoinSet::new()).await, "the worker thread died; standard error says where");
    }

    #[tokio::test]
    async fn a_door_that_panics_is_a_fault_that_ends_the_daemon() {
        let (_alive, worker) = oneshot::channel();
        let mut doors = JoinSet::new();
        doors.spawn(async { panic!("a fault of ours") });
        let said = fault(worker, doors).await;
        assert!(said.starts_with("a door ended by itself: ") && said.contains("a fault of ours"), "{said}");
    }
}
