//! The hand-over of requests from the async transports to the worker thread: waiting and waking behind one lock.
//!
//! [`Admission`] decides; what else the two sides share has a file each here: the worker's
//! controls and the watch over the memory. Deliberately knows no model.

mod memory_watch;
#[cfg(test)]
mod tests;
mod worker_controls;

use super::admission::{Admission, QueuedRequest, Refused};
use super::answer_cache::SharedAnswers;
use super::locked;
use super::memory_guard::MemoryGuard;
use super::memory_plan::{MemoryPlan, filter_bytes};
use super::model_order::ModelOrder;
use super::reload_places::ReloadPlaces;
use super::request_defaults::SharedDefaults;
use super::running::RunningRequests;
use super::shared_guard::SharedGuard;
use crate::config::Config;
use crate::guard::Denied;
use crate::protocol::{Code, Refusal};
use crate::telemetry::{SecurityEvent, SecurityEventKind, Telemetry};
use crate::transport::Inbound;
use log::{debug, info};
use memory_watch::MemoryWatch;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
pub(super) use worker_controls::WorkerControls;

/// Time between two checks whether the queue has drained.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);

/// Requests between the transports and the worker. The lock is held only while a request is moved, never while an
/// answer is computed or an event is sent.
pub(super) struct Queue {
    admission: Arc<Mutex<Admission>>,
    telemetry: Arc<Telemetry>,
    /// Wakes the worker.
    offered: Condvar,
    /// Wakes the task that removes requests whose deadline has passed.
    occupied: Notify,
    /// The timeout of requests that name none, in milliseconds.
    timeout_ms: AtomicU64,
    /// What clients may ask.
    pub guard: Arc<SharedGuard>,
    /// What holds for requests that do not say it.
    pub defaults: SharedDefaults,
    /// What a reload may give to the answers and to the filter, and the configured answers at the same time.
    places: Mutex<ReloadPlaces>,
    parallel: Option<usize>,
    /// The requests that the worker answers.
    pub running: Arc<RunningRequests>,
    /// Whether the process is short of memory.
    pub memory: MemoryWatch,
    /// Answers of earlier requests.
    pub answers: Arc<SharedAnswers>,
    /// What the worker is to do, and its progress.
    pub worker: WorkerControls,
    /// The model that the worker is to load in the place of the running one. Set under the lock of `admission`.
    model_order: Mutex<Option<ModelOrder>>,
    /// What the worker is loading in the place of the running model, while it does.
    loading: Mutex<Option<String>>,
}

impl Queue {
    /// An empty queue with these settings.
    pub fn new(config: &Config, plan: &MemoryPlan, telemetry: Arc<Telemetry>) -> Self {
        let guard = MemoryGuard::new(plan.budget.bytes as u64, plan.footprint.mapped as u64);
        let admission = Arc::new(Mutex::new(Admission::new(&config.queue, guard)));
        let size = Arc::clone(&telemetry.answer_cache);
        let answers = Arc::new(SharedAnswers::new(size));
        let running = Arc::new(RunningRequests::new(Arc::clone(&telemetry)));
        let memory =
            MemoryWatch::new(plan, Arc::clone(&admission), Arc::clone(&answers), Arc::clone(&running));
        let queue = Queue {
            admission,
            telemetry,
            guard: Arc::new(SharedGuard::new(&config.guard)),
            places: Mutex::new(plan.reload_places()),
            parallel: config.budget.parallel,
            defaults: SharedDefaults::default(),
            offered: Condvar::new(),
            occupied: Notify::new(),
            timeout_ms: AtomicU64::default(),
            running,
            memory,
            answers,
            worker: WorkerControls::default(),
            model_order: Mutex::default(),
            loading: Mutex::default(),
        };
        queue.adopt(config);
        queue
    }

    /// Adopts the settings that a reload may change.
    pub fn adopt(&self, config: &Config) {
        let ms = u64::try_from(config.queue.timeout.as_millis()).unwrap_or(u64::MAX);
        self.timeout_ms.store(ms, Ordering::Relaxed);
        let filter = self.guard.filter().map_or(0, |filter| filter_bytes(&filter, self.parallel));
        self.answers.adopt(&config.cache, locked(&self.places).most_answers(filter));
        self.defaults.adopt(&config.defaults);
        self.guard.adopt(&config.guard);
        locked(&self.admission).set_client_percent(config.queue.client_percent);
    }

    /// Reads the filter's file of a reload. An error says why the filter stays as it was.
    pub fn reload_filter(&self, wanted: &Config) -> Result<(), String> {
        let place = locked(&self.places).most_filters(self.answers.limit());
        self.guard.reload_filter(&wanted.guard, place, |filter| filter_bytes(filter, self.parallel))
    }

    /// Admits a request, or refuses it.
    pub fn offer(&self, mut inbound: Inbound) {
        // Before the guard, which may allow less.
        self.defaults.limit_tokens(&mut inbound.request);
        if let Err(denied) = self.guard.check(&mut inbound) {
            return self.deny(inbound, denied);
        }
        self.memory.check();
        let default = Duration::from_millis(self.timeout_ms.load(Ordering::Relaxed));
        let timeout = inbound.request.timeout.unwrap_or(default);
        match self.admit(inbound, timeout) {
            Ok(replaced) => {
                self.offered.notify_one();
                self.occupied.notify_one();
                replaced.into_iter().for_each(|(request, refusal)| self.refuse(request.inbound, refusal));
            }
            Err(refused) => self.refuse(refused.0, refused.1),
        }
    }

    /// Under the lock throughout, so that the worker does not take the request before it is counted.
    fn admit(&self, inbound: Inbound, timeout: Duration) -> Result<Option<Refused>, Box<(Inbound, Refusal)>> {
        let client = inbound.client.clone();
        let mut admission = locked(&self.admission);
        let replaced = admission.offer(inbound, timeout)?;
        self.telemetry.waiting.joined(&client);
        replaced.iter().for_each(|(request, _)| self.note_left(request));
        Ok(replaced)
    }

    /// Counts a request that no longer waits.
    fn note_left(&self, request: &QueuedRequest) {
        self.telemetry.waiting.left(&request.inbound.client);
    }

    /// Refuses waiting requests that were cancelled or exceeded their deadline.
    pub fn sweep(&self, now: Instant) {
        let swept = locked(&self.admission).sweep(now);
        self.refuse_waiting(swept);
    }

    /// Waits until some request waits.
    pub async fn occupied(&self) {
        while locked(&self.admission).waiting() == 0 {
            self.occupied.notified().await;
        }
    }

    /// Waits until no request waits or runs, or until `deadline`.
    pub async fn drained(&self, deadline: Instant) {
        while self.level() != (0, 0) && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_INTERVAL).await;
        }
    }

    /// Cuts off the running answer, refuses what waits, and admits nothing any more; the worker ends.
    pub fn close(&self) {
        self.worker.cut_off();
        let left = locked(&self.admission).close();
        self.offered.notify_all();
        self.refuse_waiting(left);
    }

    /// The numbers of requests that wait and that run.
    pub fn level(&self) -> (usize, usize) {
        let admission = locked(&self.admission);
        (admission.waiting(), self.running.count())
    }

    /// Cancels the requests that are being answered; how many there were.
    pub fn cancel_running(&self) -> usize {
        // Under the queue's lock, so that the next request does not become a running one in between.
        let _lock = locked(&self.admission);
        self.running.cancel()
    }

    /// Records how long an answer took.
    pub fn record_duration(&self, took: Duration) {
        locked(&self.admission).record_duration(took);
    }

    /// The worker has ended: no request that waits will run.
    pub fn worker_ended(&self) {
        self.close();
    }

    /// Waits for a request; `None` when the queue is closed, or another model is to be loaded.
    pub fn next(&self) -> Option<QueuedRequest> {
        let mut admission = locked(&self.admission);
        loop {
            if let Some(request) = self.pop(&mut admission) {
                return Some(request);
            }
            if admission.is_closed() || self.is_model_ordered() {
                return None;
            }
            admission = self.offered.wait(admission).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next request, if one waits.
    pub fn try_next(&self) -> Option<QueuedRequest> {
        self.pop(&mut locked(&self.admission))
    }

    /// The next request that may take the place of a running one of low priority, if one waits.
    pub fn try_next_ahead(&self) -> Option<QueuedRequest> {
        let mut admission = locked(&self.admission);
        if self.is_model_ordered() {
            return None;
        }
        let request = admission.next_ahead(Instant::now())?;
        Some(self.begin(request))
    }

    /// The priority of the request that waits for the next free slot, its age counted in.
    pub fn next_priority(&self) -> Option<usize> {
        let admission = locked(&self.admission);
        if self.is_model_ordered() { None } else { admission.next_priority(Instant::now()) }
    }

    /// The worker has used a free slot for a request that was begun before.
    pub fn note_resumed(&self) {
        locked(&self.admission).set_idle(false);
    }

    /// Whether no more requests come.
    pub fn is_closed(&self) -> bool {
        locked(&self.admission).is_closed()
    }

    fn pop(&self, admission: &mut Admission) -> Option<QueuedRequest> {
        if self.is_model_ordered() {
            return None;
        }
        admission.set_idle(true);
        let request = admission.next(Instant::now())?;
        Some(self.begin(request))
    }

    /// From now on the worker begins no request; it ends those that it has begun, and loads this model.
    pub fn order_model(&self, order: ModelOrder) {
        let _lock = locked(&self.admission);
        *locked(&self.model_order) = Some(order);
        self.offered.notify_all();
    }

    /// Whether another model is to be loaded.
    pub fn is_model_ordered(&self) -> bool {
        locked(&self.model_order).is_some()
    }

    /// The model to load, unless the queue is closed; the worker loads it now.
    pub fn take_model_order(&self) -> Option<ModelOrder> {
        let order = locked(&self.model_order).take();
        order.filter(|_| !self.is_closed())
    }

    /// Whether the worker is loading another model.
    pub fn is_loading(&self) -> bool {
        locked(&self.loading).is_some()
    }

    /// What the worker is loading in the place of the running model.
    pub fn loading(&self) -> Option<String> {
        locked(&self.loading).clone()
    }

    /// Says what the worker is loading; `None` once it has.
    pub fn set_loading(&self, description: Option<String>) {
        *locked(&self.loading) = description;
    }

    /// Adopts the plan of another model, which has none of the answers of the one before.
    pub fn adopt_plan(&self, plan: &MemoryPlan) {
        self.answers.clear();
        *locked(&self.places) = plan.reload_places();
        locked(&self.admission).set_mapped(plan.footprint.mapped as u64);
        self.memory.adopt_plan(plan);
    }

    /// A request counts as running before it no longer counts as waiting, so that no report is without it.
    fn begin(&self, mut request: QueuedRequest) -> QueuedRequest {
        request.running = Some(self.running.begin(&request.inbound.cancel));
        self.note_left(&request);
        request
    }

    /// Refuses a request that the guard does not allow.
    pub fn deny(&self, inbound: Inbound, denied: Denied) {
        let Denied { reason, filter_line, refusal } = denied;
        self.telemetry.security.record(&SecurityEvent {
            kind: SecurityEventKind::Refused { reason, filter_line },
            client: Some(&inbound.client),
            request_id: Some(inbound.id.as_str()),
            interface: Some(inbound.interface),
            address: None,
        });
        self.refuse(inbound, refusal);
    }

    /// Refuses requests that waited until now.
    fn refuse_waiting(&self, refused: Vec<Refused>) {
        for (request, refusal) in refused {
            self.note_left(&request);
            self.refuse(request.inbound, refusal);
        }
    }

    /// Sends a client the reason why its request gets no answer.
    pub fn refuse(&self, inbound: Inbound, refusal: Refusal) {
        self.telemetry.failed(refusal.code, inbound.received.elapsed());
        // The message about a wrong request may repeat a part of it, which is nothing for the log.
        let reason = match refusal.code {
            Code::InvalidRequest => refusal.code.name(),
            _ => &refusal.message,
        };
        info!(CLIENT = inbound.client.as_str(), REQUEST_ID = inbound.id.as_str(); "refused: {reason}");
        debug!("refused: {}", refusal.message);
        inbound.reply.refuse(refusal);
    }
}
