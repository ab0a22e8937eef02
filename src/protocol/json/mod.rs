//! Bytes to requests, events to bytes: the JSON form of the protocol, capped.
//!
//! Every message that is not valid is answered with one [`Refusal`], which names the key and the remedy. Deliberately
//! knows no transport: each transport decides which bytes make one message.

mod response_format;
mod sampling;
mod tools;

use super::text::Shown;
use super::{
    Code, Event, Health, Input, Message, Metadata, Priority, Refusal, ReloadReport, Report, Request,
    RequestId, ResponseFormat, Sampling, ToolChoice,
};
use crate::external_text::{JsonValue, duplicate_key, utf8, without_bom, wrong_head};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::time::Duration;

pub use sampling::{MAX_CHOICES, MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_TOP_LOGPROBS};
pub use tools::{MAX_TOOL_NAME, MAX_TOOLS};

/// Maximum length of a request in bytes: four times what a context of 4,096 tokens holds in English.
pub const MAX_REQUEST: usize = 64 * 1024;
/// Maximum length of an id in bytes: it is repeated in every event and may become a topic level.
pub const MAX_ID: usize = 128;
/// Maximum number of stop texts, and maximum length of one in bytes: text that may be part of one is held back while
/// streaming.
pub const MAX_STOP: (usize, usize) = (16, 256);

/// The key of metadata as it stands in a message.
const KEY: &[u8] = b"\"metadata\"";

/// The body of a call has at most one value for so many of the bytes that a body may have. A value takes about a hundred bytes
/// of memory, and lists of functions have one for each 20 bytes or more.
const BYTES_PER_VALUE: usize = 64;

/// A line on the socket, or a payload on a prompt topic.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// A prompt.
    Request(Box<Request>),
    /// `{"cancel":"id"}`, or a number: cancel the request of that id on the same connection.
    Cancel(RequestId),
    /// `{"telemetry":true}`: the report as it is now. This and the next may have an id, which the answer has too.
    Telemetry(Option<RequestId>),
    /// `{"metrics":true}`: the same for Prometheus.
    Metrics(Option<RequestId>),
    /// `{"health":true}`: the state of the daemon.
    Health(Option<RequestId>),
    /// `{"alerts":true}`: what is raised, and what was.
    Alerts(Option<RequestId>),
    /// `{"reload":true}`: read the configuration again.
    Reload(Option<RequestId>),
}

/// A payload of the cancel topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// `{"id":"…"}`: the requests of this id.
    Id(RequestId),
    /// `{"running":true}`: the one that is being answered, whoever asked it.
    Running,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestKeys {
    id: Option<RequestId>,
    prompt: Option<String>,
    messages: Option<Vec<MessageKeys>>,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    n: Option<u32>,
    seed: Option<u64>,
    stop: Option<Vec<String>>,
    stream: Option<bool>,
    timeout_ms: Option<u64>,
    response_format: Option<serde_json::Map<String, serde_json::Value>>,
    tools: Option<Vec<JsonValue>>,
    tool_choice: Option<JsonValue>,
    parallel_tool_calls: Option<bool>,
    priority: Option<PriorityKey>,
    cache: Option<bool>,
    speculate: Option<bool>,
    prediction: Option<String>,
    metadata: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(try_from = "JsonValue")]
struct MessageKeys(Message);

impl TryFrom<JsonValue> for MessageKeys {
    type Error = String;

    fn try_from(value: JsonValue) -> Result<Self, String> {
        tools::message(value).map(MessageKeys)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum PriorityKey {
    Low,
    Normal,
    High,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelKeys {
    /// Of the cancellation itself, which has no answer where it is sound.
    #[serde(default, rename = "id")]
    _id: Option<RequestId>,
    cancel: RequestId,
}

/// A question about the daemon, or a reload: one of the keys but the id.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuestionKeys {
    id: Option<RequestId>,
    telemetry: Option<bool>,
    metrics: Option<bool>,
    health: Option<bool>,
    alerts: Option<bool>,
    reload: Option<bool>,
}

impl QuestionKeys {
    /// `None` where it asks for nothing.
    fn incoming(self) -> Option<Result<Incoming, Refusal>> {
        let QuestionKeys { id, telemetry, metrics, health, alerts, reload } = self;
        let keys = [
            ("telemetry", telemetry),
            ("metrics", metrics),
            ("health", health),
            ("alerts", alerts),
            ("reload", reload),
        ];
        let mut named = keys.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let (key, value) = named.next()?;
        if let Some((other, _)) = named.next() {
            return Some(Err(invalid(format!("{key} and {other}: ask for one of them at a time"))));
        }
        let checked = check_id(id.as_ref()).and_then(|()| asked(key, value));
        Some(checked.map(|()| match key {
            "telemetry" => Incoming::Telemetry(id),
            "metrics" => Incoming::Metrics(id),
            "health" => Incoming::Health(id),
            "reload" => Incoming::Reload(id),
            _ => Incoming::Alerts(id),
        }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelTopicKeys {
    id: Option<RequestId>,
    running: Option<bool>,
}

/// Reads a request, `bytes` being one whole JSON object.
pub fn request(bytes: &[u8]) -> Result<Request, Refusal> {
    parse(bytes).and_then(checked)
}

/// Reads the body of a call of another API: one JSON object of at most `limit` bytes.
pub fn body(bytes: &[u8], limit: usize) -> Result<serde_json::Map<String, serde_json::Value>, Refusal> {
    check_size(bytes, limit)?;
    let (values, most) = (most_values(bytes), limit / BYTES_PER_VALUE);
    if values > most {
        let message = format!("{values} values in one body; a body has at most {most}");
        return Err(Refusal::new(Code::TooLarge, message));
    }
    parse_object(bytes)
}

/// No fewer than the values of a JSON text: all elements and entries but the first of a list or an object follow a comma.
fn most_values(bytes: &[u8]) -> usize {
    let (mut values, mut in_string, mut is_escaped) = (1, false, false);
    for byte in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_string,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => values += 1,
            _ => {}
        }
    }
    values
}

/// Reads a request whose keys were translated from another API's and whose length was checked before.
pub fn translated(keys: serde_json::Map<String, serde_json::Value>) -> Result<Request, Refusal> {
    deserialized(serde_json::Value::Object(keys)).and_then(checked)
}

fn checked(keys: RequestKeys) -> Result<Request, Refusal> {
    check_id(keys.id.as_ref())?;
    let choices = sampling::choices(keys.n)?;
    let logprobs = sampling::logprobs(keys.logprobs, keys.top_logprobs)?;
    let max_tokens = keys.max_tokens.map(|n| at_least_one("max_tokens", n)).transpose()?;
    let response_format = response_format::read(keys.response_format)?;
    let tools = tools::tools(keys.tools.unwrap_or_default())?;
    let tool_choice = tools::tool_choice(keys.tool_choice, &tools)?;
    let request = Request {
        input: input(keys.prompt, keys.messages)?,
        max_tokens: sampling::limit_logprobs(max_tokens, logprobs, choices)?,
        sampling: Sampling {
            temperature: within("temperature", keys.temperature, 0.0, 10.0)?,
            top_p: within("top_p", keys.top_p, 0.0, 1.0)?,
            top_k: keys.top_k,
            min_p: within("min_p", keys.min_p, 0.0, 1.0)?,
            repetition_penalty: within("repetition_penalty", keys.repetition_penalty, 0.1, 10.0)?,
            presence_penalty: within("presence_penalty", keys.presence_penalty, -2.0, 2.0)?,
            frequency_penalty: within("frequency_penalty", keys.frequency_penalty, -2.0, 2.0)?,
            logit_bias: sampling::logit_bias(keys.logit_bias.unwrap_or_default())?,
            seed: keys.seed,
        },
        choices,
        logprobs,
        stop: stop(keys.stop.unwrap_or_default())?,
        response_format,
        tools,
        tool_choice,
        parallel_tool_calls: keys.parallel_tool_calls.unwrap_or(true),
        stream: keys.stream.unwrap_or(false),
        timeout: keys.timeout_ms.map(timeout).transpose()?,
        priority: match keys.priority {
            Some(PriorityKey::Low) => Priority::Low,
            Some(PriorityKey::High) => Priority::High,
            Some(PriorityKey::Normal) | None => Priority::Normal,
        },
        cache: keys.cache.unwrap_or(true),
        speculate: keys.speculate,
        prediction: keys.prediction,
        metadata: keys.metadata.as_deref().map(Metadata::new).transpose()?,
        id: keys.id,
    };
    tools::check_format(&request)?;
    Ok(request)
}

/// Reads what may come on the socket: a request, a cancellation, a question about the daemon, a reload.
pub fn incoming(bytes: &[u8]) -> Result<Incoming, Refusal> {
    // Only an object whose first key is `cancel` is parsed as a cancellation, so that every other message gets the error
    // of a request. The same is true of the others.
    let body =
        without_bom(bytes).trim_ascii_start().strip_prefix(b"{").unwrap_or_default().trim_ascii_start();
    let is_cancel = body.starts_with(b"\"cancel\"");
    if is_cancel || body.starts_with(b"\"id\"") {
        match parse(bytes) {
            Ok(CancelKeys { cancel, .. }) => return Ok(Incoming::Cancel(cancel)),
            Err(refusal) if is_cancel => return Err(refusal),
            Err(_) => {}
        }
    }
    let questions: [&[u8]; 5] =
        [b"\"telemetry\"", b"\"metrics\"", b"\"health\"", b"\"alerts\"", b"\"reload\""];
    let is_question = questions.iter().any(|key| body.starts_with(key));
    if is_question || body.starts_with(b"\"id\"") {
        match parse(bytes).map(QuestionKeys::incoming) {
            Ok(Some(question)) => return question,
            Err(refusal) if is_question => return Err(refusal),
            // A request whose first key is its id.
            Ok(None) | Err(_) => {}
        }
    }
    request(bytes).map(|request| Incoming::Request(Box::new(request)))
}

/// The value of such a key is `true`: `false` would mean nothing.
fn asked(key: &str, value: bool) -> Result<(), Refusal> {
    if value { Ok(()) } else { Err(invalid(format!("{key}: false asks for nothing; send true"))) }
}

/// Reads a payload of a prompt topic: a request where it begins like a JSON object; an error where it is JSON of
/// another kind, which is a mistake and no sentence; else the prompt itself as plain text.
pub fn request_or_text(bytes: &[u8]) -> Result<Request, Refusal> {
    check_size(bytes, MAX_REQUEST)?;
    let body = without_bom(bytes).trim_ascii();
    if body.starts_with(b"{") {
        return request(bytes);
    }
    if is_json(body) {
        return Err(invalid("JSON, and no object; send {\"prompt\":\"hello\"}, or plain text"));
    }
    let text = utf8(bytes).map_err(invalid)?;
    Ok(Request {
        id: None,
        input: input(Some(text.to_owned()), None)?,
        max_tokens: None,
        sampling: Sampling::default(),
        choices: 1,
        logprobs: None,
        stop: Vec::new(),
        response_format: ResponseFormat::Text,
        tools: Vec::new(),
        tool_choice: ToolChoice::Auto,
        parallel_tool_calls: true,
        stream: false,
        timeout: None,
        priority: Priority::Normal,
        cache: true,
        speculate: None,
        prediction: None,
        metadata: None,
    })
}

/// Whether a payload that begins with no brace is JSON all the same: a whole value, or an array that breaks off. A
/// sentence may begin with a bracket or a quotation mark.
fn is_json(body: &[u8]) -> bool {
    let element = body.strip_prefix(b"[").unwrap_or_default().trim_ascii_start();
    let is_array_of_json = matches!(element.first(), Some(b'{' | b'[' | b'"'));
    is_array_of_json || serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok()
}

/// Reads a payload of the cancel topic.
pub fn cancel_topic(bytes: &[u8]) -> Result<Cancelled, Refusal> {
    match parse(bytes)? {
        CancelTopicKeys { id: Some(id), running: None } => Ok(Cancelled::Id(id)),
        CancelTopicKeys { id: None, running: Some(running) } => {
            asked("running", running).map(|()| Cancelled::Running)
        }
        _ => Err(invalid("id: give the request's id, or \"running\": true, and not both")),
    }
}

/// Reads a payload of the thread limit's topic: a whole number in digits, as `2` or `2.0`.
pub fn thread_limit(bytes: &[u8]) -> Result<usize, Refusal> {
    let text = std::str::from_utf8(without_bom(bytes).trim_ascii()).unwrap_or_default();
    let number = text
        .split_once('.')
        .map_or(text, |(whole, rest)| if rest.bytes().all(|digit| digit == b'0') { whole } else { "" });
    // `parse` would take a sign as well, and no machine has more than 999,999 threads.
    let is_number = !number.is_empty() && number.len() <= 6 && number.bytes().all(|b| b.is_ascii_digit());
    let error = || invalid("no number of threads; send one in digits, as 2");
    if is_number { number.parse().map_err(|_| error()) } else { Err(error()) }
}

/// Finds the id in a message that is no sound request, so that its refusal can carry it.
pub fn id_of(bytes: &[u8]) -> Option<RequestId> {
    #[derive(Deserialize)]
    struct OnlyId {
        id: RequestId,
    }
    check_size(bytes, MAX_REQUEST).ok()?;
    let id = serde_json::from_slice::<OnlyId>(without_bom(bytes)).ok()?.id;
    check_id(Some(&id)).is_ok().then_some(id)
}

/// Finds the metadata in a message that is no sound request, or in an event, so that its refusal can repeat them.
pub fn metadata_of(bytes: &[u8]) -> Option<Metadata> {
    #[derive(Deserialize)]
    struct OnlyMetadata {
        metadata: Box<RawValue>,
    }
    // Most messages have none, and need not be parsed for it.
    let is_named = bytes.windows(KEY.len()).any(|part| part == KEY);
    let only: OnlyMetadata = is_named.then(|| serde_json::from_slice(without_bom(bytes)).ok())??;
    Metadata::new(&only.metadata).ok()
}

/// Writes an event as one JSON object without a line break.
pub fn event(event: &Event) -> Vec<u8> {
    serde_json::to_vec(event).expect("an event holds only strings, numbers and booleans")
}

/// The report as one event: its own keys beside `"event":"telemetry"`.
pub fn telemetry(report: &Report, id: Option<&RequestId>) -> Vec<u8> {
    state_event("telemetry", id, report)
}

/// The health as one event: its own keys beside `"event":"health"`.
pub fn health(health: &Health, id: Option<&RequestId>) -> Vec<u8> {
    state_event("health", id, health)
}

/// A list of alerts as one event: its own keys beside `"event":"alerts"`.
pub fn alerts(list: &impl Serialize, id: Option<&RequestId>) -> Vec<u8> {
    state_event("alerts", id, list)
}

/// What became of a reload as one event: its own keys beside `"event":"reload"`.
pub fn reload(report: &ReloadReport, id: Option<&RequestId>) -> Vec<u8> {
    state_event("reload", id, report)
}

/// The answer to a question about the state: the keys of `state` beside the event's name and the id of the question.
fn state_event(event: &'static str, id: Option<&RequestId>, state: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    struct StateEvent<'a, T> {
        event: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RequestId>,
        #[serde(flatten)]
        state: &'a T,
    }
    serde_json::to_vec(&StateEvent { event, id, state }).expect("plain data")
}

/// Prometheus' text as one event.
pub fn metrics(text: &str, id: Option<&RequestId>) -> Vec<u8> {
    #[derive(Serialize)]
    struct MetricsEvent<'a> {
        event: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RequestId>,
        text: &'a str,
    }
    serde_json::to_vec(&MetricsEvent { event: "metrics", id, text }).expect("a string")
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Refusal> {
    check_size(bytes, MAX_REQUEST)?;
    parse_object(bytes)
}

fn parse_object<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Refusal> {
    wrong_head(bytes).map_or(Ok(()), |wrong| Err(invalid(wrong)))?;
    let bytes = without_bom(bytes);
    // An array would do for serde: its elements as the keys in order.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(invalid("not a JSON object; send one like {\"prompt\":\"hello\"}"));
    }
    if let Some(path) = duplicate_key(bytes) {
        return Err(invalid(format!("{}: given twice; give it once", Shown(&path))));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let read = deserialized(&mut reader)?;
    reader.end().map_err(|error| invalid(format!("after the object: {error}")))?;
    Ok(read)
}

/// An error begins with the path of the key that it is about.
fn deserialized<'a, T: Deserialize<'a>>(
    reader: impl serde::Deserializer<'a, Error = serde_json::Error>,
) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(reader).map_err(|error| {
        let (path, error) = (error.path().to_string(), error.inner());
        invalid(if path == "." { error.to_string() } else { format!("{path}: {error}") })
    })
}

fn check_size(bytes: &[u8], limit: usize) -> Result<(), Refusal> {
    if bytes.len() <= limit {
        return Ok(());
    }
    Err(too_large(bytes.len(), limit))
}

/// The refusal of a request of so many bytes, where `limit` are allowed.
pub fn too_large(bytes: usize, limit: usize) -> Refusal {
    Refusal::new(Code::TooLarge, format!("{bytes} bytes; a request has at most {limit}"))
}

pub(super) fn check_id(id: Option<&RequestId>) -> Result<(), Refusal> {
    match id.map(|id| &**id) {
        Some("") => Err(invalid("id: empty; leave it out and one is made")),
        Some(id) if id.len() > MAX_ID => Err(invalid(format!("id: longer than {MAX_ID} bytes"))),
        _ => Ok(()),
    }
}

fn input(prompt: Option<String>, messages: Option<Vec<MessageKeys>>) -> Result<Input, Refusal> {
    match (prompt, messages) {
        (Some(prompt), None) if prompt.trim().is_empty() => Err(invalid("prompt: empty")),
        (Some(prompt), None) => Ok(Input::Prompt(prompt)),
        (None, Some(messages)) if messages.is_empty() => Err(invalid("messages: empty")),
        (None, Some(messages)) => {
            Ok(Input::Messages(messages.into_iter().map(|message| message.0).collect()))
        }
        (Some(_), Some(_)) => Err(invalid("prompt and messages: give one of them")),
        (None, None) => Err(invalid("prompt: missing; give it or messages")),
    }
}

fn stop(texts: Vec<String>) -> Result<Vec<String>, Refusal> {
    let (max_texts, max_bytes) = MAX_STOP;
    if texts.len() > max_texts {
        return Err(invalid(format!("stop: {} texts; at most {max_texts}", texts.len())));
    }
    if texts.iter().any(|text| text.is_empty() || text.len() > max_bytes) {
        return Err(invalid(format!("stop: each text has 1 to {max_bytes} bytes")));
    }
    Ok(texts)
}

fn timeout(ms: u64) -> Result<Duration, Refusal> {
    const DAY_MS: u64 = 86_400_000;
    match ms {
        1..=DAY_MS => Ok(Duration::from_millis(ms)),
        _ => Err(invalid(format!("timeout_ms: {ms} is outside 1 to {DAY_MS}"))),
    }
}

fn at_least_one(key: &str, value: u32) -> Result<u32, Refusal> {
    if value == 0 { Err(invalid(format!("{key}: 0; at least 1"))) } else { Ok(value) }
}

fn within(key: &str, value: Option<f32>, low: f32, high: f32) -> Result<Option<f32>, Refusal> {
    match value {
        // A number too large for f32 arrives as infinity and is outside every range.
        Some(x) if !(low..=high).contains(&x) => {
            Err(invalid(format!("{key}: {x} is outside {low} to {high}")))
        }
        other => Ok(other),
    }
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::InvalidRequest, message)
}

#[cfg(test)]
mod tests;
