//! The keys of a call: each is taken out and translated to our own, and what is left over is ignored and counted.

use crate::protocol::api::CallContext;
use crate::protocol::{Code, Refusal, Request, json};
use serde_json::{Map, Value};

/// Keys that mean here what they mean there, or that are our own.
const SAME: &[&str] = &[
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "stream",
    "priority",
    "cache",
    "speculate",
];
/// The same of those whose values are whole numbers.
const SAME_WHOLE: &[&str] = &["top_k", "timeout_ms"];

/// The keys of one call. A key whose value is `null` counts as left out.
#[derive(Debug)]
pub(super) struct OpenAiKeys {
    given: Map<String, Value>,
    ours: Map<String, Value>,
    names: KeyNames,
    /// How many keys are ignored.
    pub ignored: u32,
}

/// Our names of keys, and the caller's where they are others.
#[derive(Debug, Clone, Default)]
pub(super) struct KeyNames(Vec<(&'static str, &'static str)>);

/// A request, and what its call and its answer have besides.
pub(super) struct CheckedCall {
    pub request: Request,
    /// How many keys were ignored.
    pub ignored_keys: u32,
    pub names: KeyNames,
}

impl OpenAiKeys {
    /// Reads the body, and translates what is the same in all calls.
    pub fn read(body: &[u8], context: &CallContext) -> Result<Self, Refusal> {
        let given = json::body(body, context.max_body)?;
        let given = given.into_iter().filter(|(_, value)| !value.is_null()).collect();
        let mut keys = OpenAiKeys { given, ours: Map::new(), names: KeyNames::default(), ignored: 0 };
        // One model is loaded, and it answers whatever name is given, as llama.cpp's server does.
        if keys.take("model").is_some_and(|model| !model.is_string()) {
            return Err(invalid("model: not a string; give any name"));
        }
        for key in SAME {
            keys.pass(key, key, |value| value);
        }
        for key in SAME_WHOLE {
            keys.pass(key, key, whole);
        }
        keys.pass("seed", "seed", seed);
        keys.pass("stop", "stop", |stop| if stop.is_string() { Value::Array(vec![stop]) } else { stop });
        Ok(keys)
    }

    /// Takes a key out of the call.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.given.remove(key)
    }

    /// The value of a key, also of one that was passed on under the same name.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.given.get(key).or_else(|| self.ours.get(key))
    }

    /// Sets a key of our own, which the caller knows by the name `theirs`.
    pub fn set(&mut self, theirs: &'static str, ours: &'static str, value: Value) {
        self.ours.insert(ours.to_owned(), value);
        if theirs != ours {
            self.names.add(ours, theirs);
        }
    }

    /// Translates a key where the call has it.
    pub fn pass(&mut self, theirs: &'static str, ours: &'static str, change: impl FnOnce(Value) -> Value) {
        if let Some(value) = self.take(theirs) {
            self.set(theirs, ours, change(value));
        }
    }

    /// Takes `true` or `false`.
    pub fn flag(&mut self, key: &str) -> Result<Option<bool>, Refusal> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(invalid(format!("{key}: give true or false"))),
        }
    }

    /// Passes on whether the answer may have several calls.
    pub fn parallel_tool_calls(&mut self) -> Result<(), Refusal> {
        if let Some(flag) = self.flag("parallel_tool_calls")? {
            self.set("parallel_tool_calls", "parallel_tool_calls", Value::Bool(flag));
        }
        Ok(())
    }

    /// Refuses keys that would change the answer. An empty value changes nothing: it is ignored.
    pub fn refuse(&self, keys: &[(&str, &str)]) -> Result<(), Refusal> {
        match keys.iter().find(|(key, _)| self.given.get(*key).is_some_and(|value| !is_empty(value))) {
            Some((key, remedy)) => Err(invalid(format!("{key}: not supported; {remedy}"))),
            None => Ok(()),
        }
    }

    /// Whether a streamed answer ends with the token counts, by `stream_options`.
    pub fn include_usage(&mut self) -> Result<bool, Refusal> {
        match self.take("stream_options") {
            None => Ok(false),
            Some(Value::Object(options)) => {
                let others = options.keys().filter(|key| *key != "include_usage").count();
                self.ignored += others as u32;
                match options.get("include_usage") {
                    None | Some(Value::Null) => Ok(false),
                    Some(Value::Bool(wanted)) => Ok(*wanted),
                    Some(_) => Err(invalid("stream_options.include_usage: give true or false")),
                }
            }
            Some(_) => Err(invalid("stream_options: not an object; give {\"include_usage\": true}")),
        }
    }

    /// Calls the prompt, as our refusals name it, by the caller's key.
    pub fn name_prompt(&mut self, theirs: &'static str) {
        self.names.add("prompt", theirs);
        if theirs != "messages" {
            self.names.add("messages", theirs);
        }
    }

    /// Checks the translated keys.
    pub fn request(mut self, context: &CallContext) -> Result<CheckedCall, Refusal> {
        let ignored_keys = self.ignored + self.given.len() as u32;
        self.ours.insert("id".into(), Value::String(context.id.clone()));
        let request = json::translated(self.ours).map_err(|refusal| self.names.in_callers_words(refusal))?;
        Ok(CheckedCall { request, ignored_keys, names: self.names })
    }
}

impl KeyNames {
    fn add(&mut self, ours: &'static str, theirs: &'static str) {
        if ours != theirs {
            self.0.push((ours, theirs));
        }
    }

    /// The refusal with the caller's name of the key at its head.
    pub fn in_callers_words(&self, refusal: Refusal) -> Refusal {
        let message = self.0.iter().find_map(|(ours, theirs)| {
            let rest = refusal.message.strip_prefix(ours)?;
            (!rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')).then(|| format!("{theirs}{rest}"))
        });
        Refusal { message: message.unwrap_or(refusal.message), ..refusal }
    }
}

/// A number such as 8192.0 as the whole number that it is: some clients have no others.
pub(super) fn whole(value: Value) -> Value {
    /// Every whole number up to here is a float of its own.
    const LARGEST: f64 = 9_007_199_254_740_992.0;
    match value.as_f64() {
        Some(number) if value.is_f64() && number.fract() == 0.0 && number.abs() <= LARGEST => {
            Value::from(number as i64)
        }
        _ => value,
    }
}

/// A seed may be negative there: its bits are the seed here.
fn seed(value: Value) -> Value {
    let value = whole(value);
    match value.as_i64() {
        Some(seed) => Value::from(seed as u64),
        None => value,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(_) | Value::Bool(true) | Value::Number(_) => false,
    }
}

pub(super) fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::InvalidRequest, message)
}
