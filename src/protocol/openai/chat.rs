//! `POST /v1/chat/completions`: the call.

use super::call_keys::{CheckedCall, OpenAiKeys, invalid, whole};
use super::chat_answer::ChatForm;
use super::choice_encoder::ChoiceEncoder;
use super::content;
use crate::protocol::Refusal;
use crate::protocol::api::{Call, CallContext, TranslatedRequest};
use crate::protocol::text::Shown;
use serde_json::Value;

/// Keys that would change the answer, and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    ("audio", "answers are text only"),
    ("functions", "give the functions as tools"),
    ("moderation", "leave it out"),
    ("web_search_options", "the model does not search the web"),
];

/// Reads a call of `POST /v1/chat/completions`.
///
/// # Errors
/// A call that is not of the documented form, or that asks for what is not supported.
pub fn chat_completions(body: &[u8], context: &CallContext) -> Result<Call, Refusal> {
    let mut keys = OpenAiKeys::read(body, context)?;
    keys.refuse(REFUSED)?;
    only_text(&keys)?;
    function_call(&keys)?;
    let mut ignored = 0;
    let Some(messages) = keys.take("messages") else {
        return Err(invalid("messages: missing; give [{\"role\":\"user\",\"content\":\"…\"}]"));
    };
    keys.set("messages", "messages", content::messages(messages, &mut ignored)?);
    keys.name_prompt("messages");
    max_tokens(&mut keys)?;
    keys.pass("n", "n", whole);
    keys.pass("logprobs", "logprobs", |value| value);
    keys.pass("top_logprobs", "top_logprobs", whole);
    keys.pass("response_format", "response_format", without_nulls);
    keys.pass("tools", "tools", |tools| content::tools(tools, &mut ignored));
    if let Some(prediction) = keys.take("prediction") {
        keys.set("prediction", "prediction", predicted_text(prediction, &mut ignored)?);
    }
    if let Some(choice) = keys.take("tool_choice") {
        check_tool_choice(&choice)?;
        keys.set("tool_choice", "tool_choice", choice);
    }
    keys.parallel_tool_calls()?;
    let include_usage = keys.include_usage()?;
    keys.ignored += ignored;
    let CheckedCall { request, ignored_keys, names } = keys.request(context)?;
    let form = ChatForm::new(&request);
    let encoder = ChoiceEncoder::new(context, &request, names, include_usage, form);
    Ok(Call::Ask(Box::new(TranslatedRequest { request, encoder: Box::new(encoder), ignored_keys })))
}

/// `modalities` may be `["text"]`.
fn only_text(keys: &OpenAiKeys) -> Result<(), Refusal> {
    match keys.get("modalities") {
        None => Ok(()),
        Some(Value::Array(kinds)) if kinds.iter().all(|kind| kind == "text") => Ok(()),
        Some(_) => Err(invalid("modalities: [\"text\"] is the only one; answers are text only")),
    }
}

/// The older form of `tool_choice` matters only where it names a function.
fn function_call(keys: &OpenAiKeys) -> Result<(), Refusal> {
    match keys.get("function_call").map(Value::as_str) {
        None | Some(Some("none" | "auto")) => Ok(()),
        Some(_) => Err(invalid("function_call: not supported; give the functions as tools, and tool_choice")),
    }
}

/// The text of a predicted answer.
fn predicted_text(prediction: Value, ignored: &mut u32) -> Result<Value, Refusal> {
    let form = || invalid("prediction: give {\"type\":\"content\",\"content\":\"…\"}");
    let Value::Object(mut keys) = prediction else { return Err(form()) };
    let (kind, content) = (keys.remove("type"), keys.remove("content"));
    *ignored += keys.len() as u32;
    match (kind.as_ref().and_then(Value::as_str), content) {
        (Some("content"), Some(content @ (Value::String(_) | Value::Array(_)))) => {
            content::text(content, "prediction.content", ignored)
        }
        _ => Err(form()),
    }
}

fn max_tokens(keys: &mut OpenAiKeys) -> Result<(), Refusal> {
    let older = keys.take("max_tokens").map(whole);
    let newer = keys.take("max_completion_tokens").map(whole);
    match (older, newer) {
        (Some(older), Some(newer)) if older != newer => {
            return Err(invalid("max_tokens: another number than max_completion_tokens; give one of them"));
        }
        (_, Some(limit)) => keys.set("max_completion_tokens", "max_tokens", limit),
        (Some(limit), None) => keys.set("max_tokens", "max_tokens", limit),
        (None, None) => {}
    }
    Ok(())
}

/// A choice of another type than a function is refused by its type.
pub(super) fn check_tool_choice(choice: &Value) -> Result<(), Refusal> {
    match choice.get("type").and_then(Value::as_str) {
        None | Some("function") => Ok(()),
        Some("allowed_tools") => {
            Err(invalid("tool_choice: allowed_tools is not supported; give only these functions as tools"))
        }
        Some(kind) => Err(invalid(format!(
            "tool_choice: type {} is not supported; give auto, none, required or a function",
            Shown(kind)
        ))),
    }
}

/// Keys of an object, and of the objects in it, that are not `null`.
pub(super) fn without_nulls(value: Value) -> Value {
    let Value::Object(keys) = value else { return value };
    let keys = keys.into_iter().filter(|(_, value)| !value.is_null());
    // The names and values of a schema are its own.
    keys.map(|(key, value)| {
        let value = if key == "json_schema" { without_nulls(value) } else { value };
        (key, value)
    })
    .collect()
}
