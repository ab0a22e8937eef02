//! What `chat` and `generate` have in common: the model's name, `options`, `format`, `think`, `keep_alive`, `stream` and
//! log-probabilities.

use super::answer::{CallKind, OllamaEncoder};
use super::{JSON, conversation, invalid, keep_alive, line, model_name, options, refused, schema};
use crate::protocol::api::{Call, CallContext, HttpRefusal, TranslatedRequest};
use crate::protocol::text::Shown;
use crate::protocol::{Refusal, json};
use serde_json::{Map, Value};

/// The keys of a call, which are taken out one by one: what is left at the end is ignored.
#[derive(Debug)]
pub(super) struct CallKeys {
    keys: Map<String, Value>,
    /// The keys in what was taken that are ignored.
    pub ignored: u32,
}

impl CallKeys {
    /// Reads a call's body of at most `limit` bytes.
    pub fn read(body: &[u8], limit: usize) -> Result<Self, Refusal> {
        Ok(CallKeys { keys: json::body(body, limit)?, ignored: 0 })
    }

    /// A value; `null` is the same as none.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.keys.remove(key).filter(|value| !value.is_null())
    }

    /// A text; empty where there is none.
    pub fn text(&mut self, key: &str) -> Result<String, Refusal> {
        match self.take(key) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(invalid(format!("{key}: no string"))),
        }
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &str, left_out: bool) -> Result<bool, Refusal> {
        match self.take(key) {
            None => Ok(left_out),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(invalid(format!("{key}: give true or false"))),
        }
    }

    /// A list; empty where there is none.
    pub fn list(&mut self, key: &str) -> Result<Vec<Value>, Refusal> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => Ok(list),
            Some(_) => Err(invalid(format!("{key}: no list"))),
        }
    }

    /// The model that is asked for. `name` is the old name of the key.
    pub fn model(&mut self) -> Result<String, Refusal> {
        let name = self.text("name")?;
        let model = self.text("model")?;
        match if model.is_empty() { name } else { model } {
            model if model.is_empty() => {
                Err(invalid("model: missing; give one of the names that /api/tags lists"))
            }
            model => Ok(model),
        }
    }
}

/// A call whose common keys are translated.
#[derive(Debug)]
pub(super) struct Settings {
    /// The model as the caller named it, which the answer repeats.
    model: String,
    stream: bool,
    /// Whether `keep_alive` is zero: with no prompt, the call asks to unload the model.
    unload: bool,
    /// Our keys.
    pub keys: Map<String, Value>,
}

impl Settings {
    /// Translates the keys that both calls have.
    pub fn read(call: &mut CallKeys, context: &CallContext) -> Result<Self, HttpRefusal> {
        let model = call.model().map_err(|refusal| refused(&refusal))?;
        model_name::check(&model, &context.model)?;
        Self::of_model(model, call, context).map_err(|refusal| refused(&refusal))
    }

    fn of_model(model: String, call: &mut CallKeys, context: &CallContext) -> Result<Self, Refusal> {
        let mut keys = Map::new();
        keys.insert("id".into(), context.id.as_str().into());
        let stream = call.flag("stream", true)?;
        keys.insert("stream".into(), stream.into());
        check_think(&model, call.take("think"))?;
        let unload = call.take("keep_alive").map(|value| keep_alive::is_zero(&value)).transpose()?;
        if let Some(format) = call.take("format") {
            insert_format(format, &mut keys)?;
        }
        match call.take("options") {
            None => {}
            Some(Value::Object(map)) => {
                call.ignored += options::translate(map, context.model.context, &mut keys)?;
            }
            Some(_) => return Err(invalid("options: no object")),
        }
        insert_logprobs(call, &mut keys)?;
        Ok(Settings { model, stream, unload: unload.unwrap_or(false), keys })
    }

    /// The answer to a call without a prompt, which loads the model in Ollama. Here the model is loaded already and
    /// stays so: what asks to unload it gets the answer that it expects, and nothing happens.
    pub fn loaded(self, kind: CallKind, context: &CallContext) -> Call {
        let reason = if self.unload { "unload" } else { "load" };
        let encoder = OllamaEncoder::new(kind, self.model, context.now, false);
        Call::Answer { content_type: JSON, body: line(&encoder.empty(reason)) }
    }

    /// The request of the translated keys.
    pub fn ask(self, kind: CallKind, call: CallKeys, context: &CallContext) -> Result<Call, Refusal> {
        let request = json::translated(self.keys)?;
        let encoder = Box::new(OllamaEncoder::new(kind, self.model, context.now, self.stream));
        let ignored_keys = call.ignored + call.keys.len() as u32;
        Ok(Call::Ask(Box::new(TranslatedRequest { request, encoder, ignored_keys })))
    }
}

/// No model here thinks before it answers. Ollama refuses it in these words too, which some clients look for.
fn check_think(model: &str, think: Option<Value>) -> Result<(), Refusal> {
    match think {
        None | Some(Value::Bool(false)) => Ok(()),
        Some(Value::Bool(true)) => Err(no_thinking(model)),
        Some(Value::String(level)) if matches!(level.as_str(), "low" | "medium" | "high" | "max") => {
            Err(no_thinking(model))
        }
        Some(_) => Err(invalid("think: give false, or leave it out")),
    }
}

fn no_thinking(model: &str) -> Refusal {
    invalid(format!("\"{}\" does not support thinking; give \"think\": false, or leave it out", Shown(model)))
}

fn insert_format(format: Value, keys: &mut Map<String, Value>) -> Result<(), Refusal> {
    let format = match format {
        Value::String(name) if name.is_empty() => return Ok(()),
        Value::String(name) if name == "json" => serde_json::json!({"type": "json_object"}),
        Value::Object(schema) => {
            serde_json::json!({"type": "json_schema", "json_schema": {"schema": schema::closed(schema)}})
        }
        other => {
            let shown = other.to_string();
            return Err(invalid(format!("format: {} is neither \"json\" nor a JSON schema", Shown(&shown))));
        }
    };
    keys.insert("response_format".into(), format);
    Ok(())
}

fn insert_logprobs(call: &mut CallKeys, keys: &mut Map<String, Value>) -> Result<(), Refusal> {
    let logprobs = call.flag("logprobs", false)?;
    let top = call.take("top_logprobs").map(|top| super::whole_number("top_logprobs", &top)).transpose()?;
    // Without `logprobs` it has no effect in Ollama.
    if logprobs {
        keys.insert("logprobs".into(), true.into());
        keys.insert("top_logprobs".into(), top.unwrap_or(0).into());
    }
    Ok(())
}

/// Puts a translated list among our keys, unless it is empty.
pub(super) fn insert_list(
    key: &str,
    list: conversation::TranslatedList,
    call: &mut CallKeys,
    settings: &mut Settings,
) {
    call.ignored += list.ignored;
    if !list.items.is_empty() {
        settings.keys.insert(key.into(), list.items.into());
    }
}
