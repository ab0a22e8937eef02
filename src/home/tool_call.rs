//! Intents as calls of functions that a client offers under the intents' names, and the sentence after such a call.
//!
//! Slots become arguments as the function's own JSON schema wants them. A slot for which the schema has no property
//! prevents the call, since without it more would be switched than was asked for; except that `domain` and
//! `device_class` are left out beside a `name`, which says alone what is meant. Deliberately knows no model.

use super::grammar::is_nothing;
use super::intents::INTENTS;
use crate::external_text::JsonValue;
use crate::protocol::wyoming::NOT_UNDERSTOOD;

/// The answer where the command has no function, or one that does not take its slots.
pub const NOT_POSSIBLE: &str = "I cannot do that.";
/// The answer after a call that succeeded.
const DONE: &str = "Done.";
/// Why a call failed for which Home Assistant found nothing.
const NO_MATCH: &str = "there is no such device or area";
/// The answer after a call that failed for an unknown reason.
const FAILED: &str = "That did not work.";

/// Bytes of a text from a function's result that are repeated in an answer.
const MAX_RESULT_TEXT: usize = 500;

/// Schemas inside each other up to which a value is looked for.
const MAX_DEPTH: usize = 8;

/// Slots that only describe the device further where its name is given.
const BESIDE_NAME: &[&str] = &["domain", "device_class"];

/// Intents that are another one with the name of the shopping list, for clients that offer the other one only.
const SHOPPING_LIST: &[(&str, &str)] = &[
    ("HassShoppingListAddItem", "HassListAddItem"),
    ("HassShoppingListCompleteItem", "HassListCompleteItem"),
];

/// A function that a client offers.
#[derive(Debug, Clone, PartialEq)]
pub struct OfferedFunction {
    /// Its name.
    pub name: String,
    /// The schema of its arguments; `None` where it takes none.
    pub parameters: Option<JsonValue>,
}

/// What is answered to a sentence.
#[derive(Debug, Clone, PartialEq)]
pub enum FunctionAnswer {
    /// A call of a function.
    Call {
        /// The function.
        name: String,
        /// An object.
        arguments: JsonValue,
    },
    /// No call, but a sentence.
    Sentence(&'static str),
}

/// Whether a function has the name of an intent that does something.
pub fn is_intent(function: &str) -> bool {
    !is_nothing(function) && INTENTS.iter().any(|intent| intent.name == function)
}

/// The call that carries out an intent, given as JSON.
pub fn function_answer(intent: &str, functions: &[OfferedFunction]) -> FunctionAnswer {
    let parsed = JsonValue::parse(intent).ok();
    let name = parsed.as_ref().and_then(|value| value.get("intent")).and_then(JsonValue::as_text);
    let Some(name) = name.filter(|name| is_intent(name)) else {
        return FunctionAnswer::Sentence(NOT_UNDERSTOOD);
    };
    let slots = match parsed.as_ref().and_then(|value| value.get("slots")) {
        Some(JsonValue::Object(slots)) => slots.clone(),
        _ => Vec::new(),
    };
    match call(name, slots, functions) {
        Some((name, arguments)) => FunctionAnswer::Call { name, arguments },
        None => FunctionAnswer::Sentence(NOT_POSSIBLE),
    }
}

fn call(
    intent: &str,
    mut slots: Vec<(String, JsonValue)>,
    functions: &[OfferedFunction],
) -> Option<(String, JsonValue)> {
    let offered = |name: &str| functions.iter().find(|function| function.name == name);
    let function = offered(intent).or_else(|| {
        let (_, other) = SHOPPING_LIST.iter().find(|(name, _)| *name == intent)?;
        slots.push(("name".into(), JsonValue::Text("shopping list".into())));
        offered(other)
    })?;
    Some((function.name.clone(), arguments(function.parameters.as_ref(), &slots)?))
}

/// The arguments of a function with this schema; `None` where the slots do not fit it.
fn arguments(parameters: Option<&JsonValue>, slots: &[(String, JsonValue)]) -> Option<JsonValue> {
    let properties = parameters.and_then(|schema| schema.get("properties"));
    let has_name = slots.iter().any(|(key, _)| key == "name");
    let mut arguments = Vec::new();
    for (key, value) in slots {
        match properties.and_then(|properties| properties.get(key)) {
            Some(schema) => arguments.push((key.clone(), fitted(schema, value, MAX_DEPTH)?)),
            None if has_name && BESIDE_NAME.contains(&key.as_str()) => {}
            None => return None,
        }
    }
    let is_there = |key: &JsonValue| arguments.iter().any(|(name, _)| key.as_text() == Some(name));
    let is_complete = match parameters.and_then(|schema| schema.get("required")) {
        Some(JsonValue::List(required)) => required.iter().all(is_there),
        _ => true,
    };
    is_complete.then_some(JsonValue::Object(arguments))
}

/// A value as this schema wants it; `None` where it cannot be made so.
fn fitted(schema: &JsonValue, value: &JsonValue, depth: usize) -> Option<JsonValue> {
    let depth = depth.checked_sub(1)?;
    for key in ["anyOf", "oneOf"] {
        if let Some(JsonValue::List(branches)) = schema.get(key) {
            return branches.iter().find_map(|branch| fitted(branch, value, depth));
        }
    }
    let converted = match schema.get("type") {
        Some(JsonValue::Text(kind)) => of_type(kind, schema, value, depth),
        Some(JsonValue::List(kinds)) => {
            kinds.iter().find_map(|kind| of_type(kind.as_text()?, schema, value, depth))
        }
        Some(_) => None,
        None if schema.get("$ref").is_some() => None,
        None => Some(value.clone()),
    };
    listed(schema, converted?)
}

fn of_type(kind: &str, schema: &JsonValue, value: &JsonValue, depth: usize) -> Option<JsonValue> {
    match (kind, value) {
        ("string", JsonValue::Text(_)) => Some(value.clone()),
        ("string", JsonValue::Int(_) | JsonValue::Float(_)) => Some(JsonValue::Text(value.to_string())),
        ("integer" | "number", _) => {
            number(kind == "integer", value).filter(|number| in_range(schema, number))
        }
        ("array", _) => {
            let item = match schema.get("items") {
                Some(items) => fitted(items, value, depth)?,
                None => value.clone(),
            };
            Some(JsonValue::List(vec![item]))
        }
        _ => None,
    }
}

fn number(is_whole: bool, value: &JsonValue) -> Option<JsonValue> {
    let value = match value {
        JsonValue::Text(text) => JsonValue::parse(text.trim()).ok()?,
        value => value.clone(),
    };
    match value {
        JsonValue::Int(_) => Some(value),
        JsonValue::Float(number) if is_whole => {
            // Larger ones are no setting of any device.
            (number.fract() == 0.0 && number.abs() < 1e9).then_some(JsonValue::Int(number as i128))
        }
        JsonValue::Float(number) => number.is_finite().then_some(JsonValue::Float(number)),
        _ => None,
    }
}

fn in_range(schema: &JsonValue, number: &JsonValue) -> bool {
    let as_float = |value: &JsonValue| match value {
        JsonValue::Int(number) => Some(*number as f64),
        JsonValue::Float(number) => Some(*number),
        _ => None,
    };
    let Some(number) = as_float(number) else { return false };
    let limit = |key: &str| schema.get(key).and_then(as_float);
    limit("minimum").is_none_or(|least| number >= least) && limit("maximum").is_none_or(|most| number <= most)
}

/// The value, if it is one of those that the schema lists; a text as it is written there, whatever its case.
fn listed(schema: &JsonValue, value: JsonValue) -> Option<JsonValue> {
    let Some(JsonValue::List(values)) = schema.get("enum") else { return Some(value) };
    if values.contains(&value) {
        return Some(value);
    }
    let text = value.as_text()?.to_lowercase();
    values.iter().find(|listed| listed.as_text().is_some_and(|listed| listed.to_lowercase() == text)).cloned()
}

/// The sentence after calls with these results: what Home Assistant says, that they are done, or the error.
pub fn sentence_after<'r>(results: impl Iterator<Item = &'r str>) -> String {
    let outcomes: Vec<Result<String, String>> = results.map(outcome).collect();
    let failed = outcomes.iter().find_map(|outcome| outcome.as_ref().err());
    let mut spoken = outcomes.iter().rev().filter_map(|outcome| outcome.as_ref().ok());
    failed.or(spoken.next()).cloned().unwrap_or_else(|| DONE.into())
}

/// The sentence after one call.
fn outcome(result: &str) -> Result<String, String> {
    let Some(value @ JsonValue::Object(_)) = JsonValue::parse(result).ok() else {
        let is_error = result.trim_start().get(..5).is_some_and(|start| start.eq_ignore_ascii_case("error"));
        return if is_error { Err(failure(Some(result))) } else { Ok(DONE.into()) };
    };
    let text = |keys: &[&str]| {
        let mut at = &value;
        for key in keys {
            at = at.get(key)?;
        }
        at.as_text().filter(|text| !text.trim().is_empty())
    };
    let spoken = text(&["speech", "plain", "speech"]);
    // Home Assistant gives the Python value of a failed match, and the names of exceptions, which are no sentences.
    let is_sentence = |text: &&str| text.contains(' ') && !text.contains('<');
    let reason = match text(&["error"]) {
        Some("MatchFailedError" | "NoStatesMatchedError") => Some(NO_MATCH),
        error => [text(&["error_text"]), text(&["error", "message"]), error, spoken, text(&["message"])]
            .into_iter()
            .flatten()
            .find(is_sentence),
    };
    let is_error = !matches!(value.get("error"), None | Some(JsonValue::Null | JsonValue::Bool(false)))
        || value.get("success") == Some(&JsonValue::Bool(false))
        || text(&["response_type"]) == Some("error");
    if is_error {
        return Err(failure(reason));
    }
    let count = |key: &str| match value.get("data").and_then(|data| data.get(key)) {
        Some(JsonValue::List(targets)) => targets.len(),
        _ => 0,
    };
    if count("failed") > 0 && count("success") == 0 {
        return Err(failure(spoken));
    }
    Ok(spoken.map_or_else(|| DONE.into(), shortened))
}

fn failure(reason: Option<&str>) -> String {
    match reason.map(|reason| shortened(reason).trim_end_matches('.').to_owned()) {
        Some(reason) => format!("{} {reason}.", FAILED.replace('.', ":")),
        None => FAILED.into(),
    }
}

fn shortened(text: &str) -> String {
    let text = text.trim();
    text[..text.floor_char_boundary(MAX_RESULT_TEXT)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, properties: &str, required: &str) -> OfferedFunction {
        let parameters =
            format!(r#"{{"type":"object","properties":{{{properties}}},"required":[{required}]}}"#);
        OfferedFunction { name: name.into(), parameters: JsonValue::parse(&parameters).ok() }
    }

    /// The functions of Home Assistant 2026.2, and two that differ.
    fn functions() -> Vec<OfferedFunction> {
        let target = r#""name":{"type":"string"},"area":{"type":"string"},
            "domain":{"type":"array","items":{"type":"string"}}"#;
        let class = r#""device_class":{"type":"array","items":{"type":"string","enum":["blind","curtain"]}}"#;
        vec![
            function("HassTurnOn", &format!("{target},{class}"), ""),
            function("HassTurnOff", r#""name":{"type":"string"},"area":{"type":"string"}"#, ""),
            function(
                "HassLightSet",
                &format!(r#"{target},"brightness":{{"type":"integer","minimum":0,"maximum":100}}"#),
                "",
            ),
            function(
                "HassListAddItem",
                r#""item":{"type":"string"},"name":{"type":"string"}"#,
                r#""item","name""#,
            ),
            function(
                "HassSetVolumeRelative",
                r#""volume_step":{"anyOf":[{"type":"string","enum":["Up","Down"]},{"type":"integer"}]}"#,
                "",
            ),
            function(
                "HassClimateSetTemperature",
                r#""temperature":{"type":["null","number"]}"#,
                r#""temperature""#,
            ),
            OfferedFunction { name: "HassGetCurrentTime".into(), parameters: None },
        ]
    }

    /// The arguments of the call as JSON, or the sentence.
    fn answer(intent: &str, slots: &str) -> String {
        let intent = format!(r#"{{"intent":"{intent}","slots":{{{slots}}}}}"#);
        match function_answer(&intent, &functions()) {
            FunctionAnswer::Call { name, arguments } => format!("{name} {arguments}"),
            FunctionAnswer::Sentence(sentence) => sentence.into(),
        }
    }

    #[test]
    fn slots_become_what_the_schema_wants() {
        for (intent, slots, expected) in [
            (
                "HassTurnOn",
                r#""domain":"light","area":"kitchen""#,
                r#"HassTurnOn {"domain":["light"],"area":"kitchen"}"#,
            ),
            (
                "HassTurnOn",
                r#""area":"hall","device_class":"Blind""#,
                r#"HassTurnOn {"area":"hall","device_class":["blind"]}"#,
            ),
            (
                "HassLightSet",
                r#""name":"lamp","brightness":"50""#,
                r#"HassLightSet {"name":"lamp","brightness":50}"#,
            ),
            (
                "HassLightSet",
                r#""area":"hall","brightness":50.0"#,
                r#"HassLightSet {"area":"hall","brightness":50}"#,
            ),
            (
                "HassSetVolumeRelative",
                r#""volume_step":"up""#,
                r#"HassSetVolumeRelative {"volume_step":"Up"}"#,
            ),
            ("HassSetVolumeRelative", r#""volume_step":-10"#, r#"HassSetVolumeRelative {"volume_step":-10}"#),
            (
                "HassClimateSetTemperature",
                r#""temperature":"21.5""#,
                r#"HassClimateSetTemperature {"temperature":21.5}"#,
            ),
            (
                "HassListAddItem",
                r#""item":"7","name":"list""#,
                r#"HassListAddItem {"item":"7","name":"list"}"#,
            ),
            ("HassListAddItem", r#""item":7,"name":"list""#, r#"HassListAddItem {"item":"7","name":"list"}"#),
            ("HassGetCurrentTime", "", "HassGetCurrentTime {}"),
        ] {
            assert_eq!(answer(intent, slots), expected);
        }
    }

    #[test]
    fn what_does_not_fit_the_function_is_no_call() {
        for (intent, slots) in [
            ("HassTurnOn", r#""area":"hall","device_class":"gate""#),
            ("HassTurnOn", r#""area":"hall","floor":"cellar""#),
            ("HassTurnOff", r#""area":"hall","domain":"light""#),
            ("HassLightSet", r#""area":"hall","brightness":101"#),
            ("HassLightSet", r#""area":"hall","brightness":50.5"#),
            ("HassLightSet", r#""area":"hall","brightness":"half""#),
            ("HassListAddItem", r#""item":"milk""#),
            ("HassClimateSetTemperature", ""),
            ("HassVacuumStart", ""),
            ("HassGetCurrentTime", r#""area":"hall""#),
        ] {
            assert_eq!(answer(intent, slots), NOT_POSSIBLE, "{intent} {slots}");
        }
        for intent in ["none", "HassNevermind", "HassExplode"] {
            assert_eq!(answer(intent, ""), NOT_UNDERSTOOD);
        }
        for text in ["", "Hello!", "{\"intent\":", "[]", "{}"] {
            let sentence = FunctionAnswer::Sentence(NOT_UNDERSTOOD);
            assert_eq!(function_answer(text, &functions()), sentence, "{text}");
        }
    }

    #[test]
    fn a_kind_of_device_may_be_left_out_beside_its_name() {
        let slots = r#""name":"lamp","domain":"light""#;
        assert_eq!(answer("HassTurnOff", slots), r#"HassTurnOff {"name":"lamp"}"#);
    }

    #[test]
    fn the_shopping_list_is_a_list_where_it_has_no_function_of_its_own() {
        let expected = r#"HassListAddItem {"item":"milk","name":"shopping list"}"#;
        assert_eq!(answer("HassShoppingListAddItem", r#""item":"milk""#), expected);
        assert_eq!(answer("HassShoppingListCompleteItem", r#""item":"milk""#), NOT_POSSIBLE);
    }

    #[test]
    fn a_result_becomes_a_sentence() {
        let deep = format!(r#"{{"error":"ö {}"}}"#, "ä".repeat(1000));
        for (result, expected) in [
            (
                r#"{"speech":{},"response_type":"action_done","data":{"targets":[],"success":[{"id":"a"}],"failed":[]}}"#,
                DONE,
            ),
            (
                r#"{"speech":{"plain":{"speech":"It is 9:05."}},"response_type":"query_answer"}"#,
                "It is 9:05.",
            ),
            (r#"{"success":true,"result":"Live Context"}"#, DONE),
            (r#"{"data":{"success":[],"failed":[{"id":"a"}]}}"#, FAILED),
            (
                r#"{"error":"HomeAssistantError","error_text":"No light in the attic."}"#,
                "That did not work: No light in the attic.",
            ),
            (
                r#"{"error":"MatchFailedError","error_text":"<MatchFailedError result=…>"}"#,
                "That did not work: there is no such device or area.",
            ),
            (r#"{"error":"Timeout"}"#, FAILED),
            (r#"{"error":{"message":"it is off"}}"#, "That did not work: it is off."),
            (r#"{"success":false}"#, FAILED),
            (r#"{"error":null,"data":{}}"#, DONE),
            ("Error: no such light", "That did not work: Error: no such light."),
            ("ok", DONE),
            ("", DONE),
        ] {
            assert_eq!(sentence_after([result].into_iter()), expected, "{result}");
        }
        assert!(sentence_after([deep.as_str()].into_iter()).len() < 600);
        assert_eq!(sentence_after(["ok", r#"{"success":false}"#, "ok"].into_iter()), FAILED);
    }
}
