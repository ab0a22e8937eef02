//! `POST /v1/responses` in its text form. Nothing is stored: each call brings its whole conversation.

mod answer;
mod items;

use super::call_keys::{CheckedCall, KeyNames, OpenAiKeys, invalid, whole};
use super::chat::{check_tool_choice, without_nulls};
use super::content::only;
use crate::protocol::Refusal;
use crate::protocol::api::{Call, CallContext, TranslatedRequest};
use crate::protocol::text::Shown;
use answer::{Echo, ResponseEncoder};
use items::Conversation;
use serde_json::{Map, Value, json};

const STATELESS: &str = "nothing is stored here; send the whole conversation as input";

/// Keys that would change the answer, and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    ("background", "the answer is the response to this call"),
    ("conversation", STATELESS),
    ("moderation", "leave it out"),
    ("previous_response_id", STATELESS),
    ("prompt", "give the text as input or instructions"),
];

/// Reads a call of `POST /v1/responses`.
///
/// # Errors
/// A call that is not of the documented form, or that asks for what is not supported.
pub fn responses(body: &[u8], context: &CallContext) -> Result<Call, Refusal> {
    let mut keys = OpenAiKeys::read(body, context)?;
    keys.refuse(REFUSED)?;
    let mut echo = Echo::new(&keys);
    let mut ignored = 0;
    let conversation = Conversation::read(keys.take("instructions"), keys.take("input"), &mut ignored)?;
    keys.set("input", "messages", Value::Array(conversation.messages));
    keys.name_prompt("input");
    keys.pass("max_output_tokens", "max_tokens", whole);
    text_format(&mut keys, &mut ignored)?;
    tools(&mut keys, &mut ignored)?;
    logprobs(&mut keys, &mut ignored);
    keys.parallel_tool_calls()?;
    keys.ignored += ignored;
    let places = conversation.places;
    let CheckedCall { request, ignored_keys, names } =
        keys.request(context).map_err(|refusal| in_words_of_responses(refusal, &places))?;
    echo.parallel_tool_calls = request.parallel_tool_calls;
    let words = CallersWords { names, places };
    let encoder = ResponseEncoder::new(context, &request, echo, words);
    Ok(Call::Ask(Box::new(TranslatedRequest { request, encoder: Box::new(encoder), ignored_keys })))
}

/// `text.format`, whose keys lie one level higher than in `response_format`.
fn text_format(keys: &mut OpenAiKeys, ignored: &mut u32) -> Result<(), Refusal> {
    let format = match keys.take("text") {
        None => return Ok(()),
        Some(Value::Object(mut text)) => {
            let format = text.remove("format");
            *ignored += text.len() as u32;
            format.filter(|format| !format.is_null())
        }
        Some(_) => return Err(invalid("text: not an object; give {\"format\": …}")),
    };
    let Some(format) = format.map(without_nulls) else { return Ok(()) };
    let Value::Object(mut format) = format else {
        return Err(invalid("text.format: not an object; give {\"type\":\"text\"}"));
    };
    if format.get("type").is_some_and(|kind| kind == "json_schema") {
        format.remove("type");
        format =
            Map::from_iter([("type".into(), json!("json_schema")), ("json_schema".into(), format.into())]);
    }
    keys.set("text.format", "response_format", format.into());
    Ok(())
}

/// Functions, whose keys lie one level higher than in chat completions.
fn tools(keys: &mut OpenAiKeys, ignored: &mut u32) -> Result<(), Refusal> {
    if let Some(Value::Array(tools)) = keys.get("tools") {
        let kind = |tool: &Value| tool.get("type").and_then(Value::as_str).map(str::to_owned);
        let mut kinds = tools.iter().map(kind).enumerate();
        if let Some((index, Some(kind))) = kinds.find(|(_, kind)| kind.as_deref() != Some("function")) {
            let message = format!(
                "tools[{index}].type: {} is not supported; functions are the only tools",
                Shown(&kind)
            );
            return Err(invalid(message));
        }
    }
    keys.pass("tools", "tools", |tools| match tools {
        Value::Array(tools) => tools.into_iter().map(|tool| nested(tool, ignored)).collect(),
        other => other,
    });
    if let Some(choice) = keys.take("tool_choice") {
        check_tool_choice(&choice)?;
        let choice = if choice.is_object() { nested(choice, ignored) } else { choice };
        keys.set("tool_choice", "tool_choice", choice);
    }
    Ok(())
}

/// `{"type":"function","name":…}` as `{"type":"function","function":{"name":…}}`.
fn nested(flat: Value, ignored: &mut u32) -> Value {
    if !flat.is_object() {
        return flat;
    }
    let kind = flat.get("type").cloned().unwrap_or_default();
    let function = only(flat, &["type", "name", "description", "parameters", "strict"], ignored);
    let Value::Object(function) = function else { return function };
    let function: Map<String, Value> = function.into_iter().filter(|(key, _)| key != "type").collect();
    json!({ "type": kind, "function": function })
}

/// Log-probabilities are asked for by `include`; whatever else it names is of tools that are not here.
fn logprobs(keys: &mut OpenAiKeys, ignored: &mut u32) {
    const LOGPROBS: &str = "message.output_text.logprobs";
    let include = keys.take("include");
    let named = include.as_ref().and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is_wanted = named.iter().any(|name| name == LOGPROBS);
    *ignored += u32::from(include.is_some() && !is_wanted);
    let top = keys.take("top_logprobs").map(whole);
    if is_wanted || top.as_ref().is_some_and(|top| *top != 0) {
        keys.set("top_logprobs", "logprobs", Value::Bool(true));
    }
    if let Some(top) = top {
        keys.set("top_logprobs", "top_logprobs", top);
    }
}

/// The caller's names of the keys and of the messages.
#[derive(Debug)]
struct CallersWords {
    names: KeyNames,
    /// The number of the input item that each message came from; `None` for the instructions.
    places: Vec<Option<usize>>,
}

impl CallersWords {
    fn of(&self, refusal: Refusal) -> Refusal {
        in_words_of_responses(self.names.in_callers_words(refusal), &self.places)
    }
}

/// A message about a translated message or function names the item or the key that it came from.
fn in_words_of_responses(refusal: Refusal, places: &[Option<usize>]) -> Refusal {
    let text = refusal.message.as_str();
    let message = if let Some((index, rest)) = index_at_head(text, "input[") {
        match places.get(index) {
            Some(Some(item)) => format!("input[{item}{rest}"),
            _ => format!("instructions{}", rest.trim_start_matches(']')),
        }
    } else if text.starts_with("tools[") || text.starts_with("tool_choice.") {
        text.replacen(".function", "", 1)
    } else if let Some(rest) = text.strip_prefix("text.format.json_schema") {
        format!("text.format{rest}")
    } else {
        return refusal;
    };
    Refusal { message, ..refusal }
}

fn index_at_head<'t>(text: &'t str, head: &str) -> Option<(usize, &'t str)> {
    let rest = text.strip_prefix(head)?;
    let digits = rest.find(']')?;
    Some((rest[..digits].parse().ok()?, &rest[digits..]))
}
