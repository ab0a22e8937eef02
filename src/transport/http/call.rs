//! One call: checked, translated, sent on its way, answered.
//!
//! Deliberately writes no byte: hyper does.

use super::HttpContext;
use super::access::{Access, AccessDenied, AccessRules};
use super::answer_body::{AnswerBody, CallGuard, EventBody};
use super::request_body::UnreadBody;
use super::response::{self, HttpResponse, JSON, TEXT};
use super::routes::{self, HttpRoute};
use super::slots::TakenSlots;
use crate::protocol::api::{Call, CallContext, HttpRefusal, TranslatedRequest};
use crate::protocol::{ClientInterface, Code, Event, Refusal, ollama, openai};
use crate::telemetry::history::{self, ReportRequest, ReportSubject};
use crate::telemetry::{DaemonPhase, HttpApi, SecurityEvent, SecurityEventKind, TokenFailure, prometheus};
use crate::transport::in_flight::InFlight;
use crate::transport::{Inbound, Reply, WhenFull};
use hyper::Method;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use jiff::tz::TimeZone;
use serde::Serialize;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use tokio::sync::mpsc;

/// Capacity of the event channel of one request: about ten seconds of tokens on a small device. A client that reads more
/// slowly has its request cancelled.
const EVENTS: usize = 256;

/// The client of a connection.
#[derive(Debug, Clone)]
pub struct HttpPeer {
    /// Who it is, as the log shows it.
    pub client: String,
    /// The key under which its requests wait for their turn.
    pub queue_key: String,
    /// Its address, where it came over TCP: there, host names and tokens are checked. `None` on the Unix socket.
    pub address: Option<IpAddr>,
}

impl HttpPeer {
    /// Whether it came over TCP.
    pub(super) fn is_tcp(&self) -> bool {
        self.address.is_some()
    }

    fn interface(&self) -> ClientInterface {
        if self.is_tcp() { ClientInterface::Http } else { ClientInterface::Unix }
    }
}

/// The client of a connection, and what its calls need.
pub(super) struct Caller {
    pub peer: HttpPeer,
    pub rules: AccessRules,
    pub in_flight: Arc<InFlight>,
    pub context: HttpContext,
}

impl Caller {
    /// Answers a call.
    pub async fn answer(&self, request: hyper::Request<Incoming>) -> Result<HttpResponse, Infallible> {
        let received = Instant::now();
        self.in_flight.record_activity(true);
        let call = CallGuard::begin(self.context.new_id(), &self.in_flight);
        let id = call.request.id.as_str().to_owned();
        let (head, body) = request.into_parts();
        let body = UnreadBody::new(&head.headers, body);
        let api = routes::api(head.uri.path());
        self.context.0.telemetry.http.called(api);
        let route = routes::route(&head.method, head.uri.path());
        let is_public = route.as_ref().is_ok_and(HttpRoute::is_public);
        let Access { origin, token_name } = match self.check(&head, is_public) {
            Ok(access) => access,
            Err(denied) => {
                self.record_failed_token(&denied, &id);
                let reason = format!("HTTP {}", denied.status);
                self.context.0.telemetry.refused(Some(&self.peer.client), &reason, &denied.message);
                self.context.0.telemetry.http.denied();
                return Ok(response::finish(response::denied(api, &denied), api, &id, None));
            }
        };
        if head.method == Method::OPTIONS && origin.is_some() {
            return Ok(response::finish(response::preflight(), api, &id, origin));
        }
        let response = match route {
            Ok(HttpRoute::Health) => self.health(self.is_trusted(&head, &id)),
            Ok(route) => {
                let call = CallGuard { token_name, ..call };
                self.dispatch(api, route, head.uri.query(), body, call, received).await
            }
            Err(reason) => response::no_route(api, reason),
        };
        Ok(response::finish(response, api, &id, origin))
    }

    /// Checks whether the call may be made, see [`AccessRules::check`].
    fn check(&self, head: &Parts, is_public: bool) -> Result<Access, AccessDenied> {
        // A browser asks before it sends a token along.
        let needs_token = self.peer.is_tcp() && !is_public && head.method != Method::OPTIONS;
        let tokens = if needs_token { self.context.tokens()? } else { None };
        self.rules.check(&head.uri, &head.headers, tokens.as_deref())
    }

    /// Whether the caller of a page that everybody may see may see all of it. A wrong token does not refuse the call, and is
    /// recorded as on any other page: otherwise tokens could be guessed here unseen.
    fn is_trusted(&self, head: &Parts, id: &str) -> bool {
        match self.check(head, false) {
            Ok(_) => true,
            Err(denied) => {
                if denied.token == Some(TokenFailure::Wrong) {
                    self.record_failed_token(&denied, id);
                }
                false
            }
        }
    }

    fn record_failed_token(&self, denied: &AccessDenied, id: &str) {
        let Some(failure) = denied.token else { return };
        let security = &self.context.0.telemetry.security;
        security.record(&SecurityEvent {
            kind: SecurityEventKind::FailedToken(failure),
            client: security.client_name(&self.peer.client).as_deref(),
            request_id: Some(id),
            interface: Some(self.peer.interface()),
            address: self.peer.address,
        });
    }

    async fn dispatch(
        &self,
        api: HttpApi,
        route: HttpRoute,
        query: Option<&str>,
        body: UnreadBody,
        call: CallGuard,
        received: Instant,
    ) -> HttpResponse {
        let shared = &self.context.0;
        let model = &self.context.model();
        match route {
            HttpRoute::Metrics => {
                let text = prometheus::render(&shared.telemetry, SystemTime::now());
                response::response(200, prometheus::CONTENT_TYPE, text.into_bytes())
            }
            HttpRoute::Report => self.report(query.unwrap_or_default()).await,
            HttpRoute::Root => response::response(200, TEXT, b"bitnetd is running\n".to_vec()),
            HttpRoute::Models => response::response(200, JSON, openai::models(model)),
            HttpRoute::Model(name) => known(openai::model(model, &name)),
            HttpRoute::OllamaTags => response::response(200, JSON, ollama::tags(model)),
            HttpRoute::OllamaPs => response::response(200, JSON, ollama::ps(model, SystemTime::now())),
            HttpRoute::OllamaVersion => response::response(200, JSON, ollama::version()),
            route if route.is_asking() => {
                self.ask(api, &route, body, call, received).await.unwrap_or_else(response::refused)
            }
            route => match shared.bodies.read(&self.peer.queue_key, body).await {
                Ok(body) if route == HttpRoute::OllamaShow => known(ollama::show(&body.bytes, model)),
                Ok(body) => match ollama::pull(&body.bytes, model) {
                    Ok(Call::Answer { content_type, body }) => response::response(200, content_type, body),
                    Ok(Call::Ask(_)) => response::error(api, 500, "internal", "a fault of the daemon"),
                    Err(refused) => response::refused(refused),
                },
                Err(refusal) => response::refusal(api, &refusal),
            },
        }
    }

    /// The state of the daemon: 503 while it takes no requests, so that a proxy or a supervisor sees it without reading.
    /// `is_trusted`: whether the caller may see more than the state and its reasons.
    fn health(&self, is_trusted: bool) -> HttpResponse {
        #[derive(Serialize)]
        struct HealthPage<T> {
            /// For those who knew the page before it had a state.
            status: &'static str,
            #[serde(flatten)]
            health: T,
        }
        let shared = &self.context.0;
        let phase = DaemonPhase::of(shared.loaded.is_cancelled(), shared.draining.is_cancelled());
        let (code, status) = match phase {
            DaemonPhase::Serving => (200, "ok"),
            DaemonPhase::Loading => (503, "loading"),
            DaemonPhase::Draining => (503, "shutting_down"),
        };
        let body = match is_trusted {
            true => {
                let health = shared.telemetry.health(phase, SystemTime::now());
                serde_json::to_string(&HealthPage { status, health })
            }
            false => {
                let health = shared.telemetry.health_summary(phase);
                serde_json::to_string(&HealthPage { status, health })
            }
        };
        let body = body.expect("plain data");
        response::response(code, JSON, format!("{body}\n").into_bytes())
    }

    /// The report of the history. One at a time is in memory, until its client has read it or a write has waited too long.
    async fn report(&self, query: &str) -> HttpResponse {
        let shared = &self.context.0;
        let request = match ReportRequest::parse(query) {
            Ok(request) => request,
            Err(message) => return response::error(HttpApi::Own, 400, "invalid_request", &message),
        };
        let place = Arc::clone(&shared.report_place).acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        let Some(steps) = shared.telemetry.history() else {
            let message = "there is no history: history.enabled is false, or memory has no place for it";
            return response::error(HttpApi::Own, 503, "unavailable", message);
        };
        let model = self.context.model();
        let subject = ReportSubject { device: &shared.device, model: &model.name };
        let report = history::render(&steps, subject, &request, SystemTime::now(), &TimeZone::system());
        response::report(request.form, AnswerBody::holding(report, place))
    }

    /// Answers a call that the model answers.
    async fn ask(
        &self,
        api: HttpApi,
        route: &HttpRoute,
        body: UnreadBody,
        mut guard: CallGuard,
        received: Instant,
    ) -> Result<HttpResponse, HttpRefusal> {
        let refuse = |refusal: Refusal| match api {
            HttpApi::OpenAi => openai::refused(&refusal),
            HttpApi::Ollama | HttpApi::Own => ollama::refused(&refusal),
        };
        let read = self.read_call(route, body, &mut guard, refuse).await;
        // What is refused from here on is counted by the queue.
        let log_refused = |refused: &HttpRefusal| {
            let (reason, body) = (format!("HTTP {}", refused.status), String::from_utf8_lossy(&refused.body));
            self.context.0.telemetry.refused(Some(&self.peer.client), &reason, &body);
        };
        match read.inspect_err(log_refused)? {
            Call::Ask(ask) => {
                self.context.0.telemetry.http.ignored_keys(ask.ignored_keys);
                self.send(*ask, guard, received, refuse).await
            }
            Call::Answer { content_type, body } => Ok(response::response(200, content_type, body)),
        }
    }

    /// Reads the body, waits for a slot, and translates the body. A slot is taken last, so that no call holds one whose body is
    /// still on its way.
    async fn read_call(
        &self,
        route: &HttpRoute,
        body: UnreadBody,
        guard: &mut CallGuard,
        refuse: impl Fn(Refusal) -> HttpRefusal,
    ) -> Result<Call, HttpRefusal> {
        self.wait_for_model().await.map_err(&refuse)?;
        let body = self.context.0.bodies.read(&self.peer.queue_key, body).await.map_err(&refuse)?;
        guard.slot = Some(self.wait_for_slot().await.map_err(&refuse)?);
        let context = CallContext {
            model: self.context.model(),
            id: guard.request.id.as_str().to_owned(),
            now: SystemTime::now(),
            max_body: self.context.0.settings.body_bytes,
        };
        let bytes = &body.bytes;
        match route {
            HttpRoute::ChatCompletions => openai::chat_completions(bytes, &context).map_err(refuse),
            HttpRoute::Completions => openai::completions(bytes, &context).map_err(refuse),
            HttpRoute::Responses => openai::responses(bytes, &context).map_err(refuse),
            HttpRoute::OllamaGenerate => ollama::generate(bytes, &context),
            _ => ollama::chat(bytes, &context),
        }
    }

    /// Waits until the model is loaded: until then, nothing is read.
    async fn wait_for_model(&self) -> Result<(), Refusal> {
        let shared = &self.context.0;
        tokio::select! {
            biased;
            () = shared.draining.cancelled() => Err(Refusal::shutting_down()),
            () = shared.loaded.cancelled() => Ok(()),
        }
    }

    /// Waits until a slot is free.
    async fn wait_for_slot(&self) -> Result<TakenSlots, Refusal> {
        let shared = &self.context.0;
        tokio::select! {
            biased;
            () = shared.draining.cancelled() => Err(Refusal::shutting_down()),
            slot = shared.slots.take(&self.peer.queue_key, 1) => Ok(slot),
        }
    }

    async fn send(
        &self,
        ask: TranslatedRequest,
        guard: CallGuard,
        received: Instant,
        refuse: impl Fn(Refusal) -> HttpRefusal,
    ) -> Result<HttpResponse, HttpRefusal> {
        let TranslatedRequest { request, mut encoder, .. } = ask;
        let (sender, mut events) = mpsc::channel(EVENTS);
        let (id, cancel) = (guard.request.id.clone(), guard.request.cancel.clone());
        let reply = Reply::new(&id, &sender).expect("the channel is new");
        drop(sender);
        // Behind a proxy many clients have one address; the name of a token tells them apart.
        let holder = guard.token_name.as_ref().map(|name| format!("token:{name}"));
        let client = holder.as_ref().unwrap_or(&self.peer.client);
        let inbound = Inbound {
            request,
            id,
            interface: self.peer.interface(),
            client: client.clone(),
            cache_key: client.clone(),
            queue_key: holder.as_ref().unwrap_or(&self.peer.queue_key).clone(),
            limit_key: client.clone(),
            when_full: WhenFull::Refuse,
            received,
            reply,
            cancel,
        };
        if let Err(mpsc::error::SendError(inbound)) = self.context.0.inbound.send(inbound).await {
            inbound.reply.refuse(Refusal::shutting_down());
        }
        let lost = || Refusal::new(Code::Internal, "the daemon lost this request; ask again");
        let Some(content_type) = encoder.stream_type() else {
            return loop {
                match events.recv().await {
                    Some(Event::Done(done)) => break Ok(response::response(200, JSON, encoder.whole(&done))),
                    Some(Event::Error { refusal, .. }) => {
                        break Err(refuse(encoder.in_callers_words(refusal)));
                    }
                    Some(Event::Token { .. }) => {}
                    None => break Err(refuse(lost())),
                }
            };
        };
        let first = match events.recv().await {
            Some(Event::Error { refusal, .. }) => return Err(refuse(encoder.in_callers_words(refusal))),
            Some(event) => event,
            None => return Err(refuse(lost())),
        };
        let mut head = encoder.begin();
        head.extend(encoder.event(&first));
        let body = EventBody { head, events, encoder, is_ended: first.is_last(), _call: guard };
        Ok(response::streamed(content_type, AnswerBody::Events(Box::new(body))))
    }
}

/// A page about the model.
fn known(page: Result<Vec<u8>, HttpRefusal>) -> HttpResponse {
    match page {
        Ok(body) => response::response(200, JSON, body),
        Err(refused) => response::refused(refused),
    }
}
