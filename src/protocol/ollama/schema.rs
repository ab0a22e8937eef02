//! `format` as a JSON schema, in the sense that Ollama gives it.
//!
//! A schema that does not mention `additionalProperties` allows any other property. Ollama's servers allow none then, and
//! its clients count on it: the schemas that pydantic and zod write leave the key out, and a small model that may add
//! properties of its own adds them without end. So the key is added here. A schema that has it means what it says.

use serde_json::{Map, Value};

/// Keys of a schema that hold schemas by names of their own.
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
/// Keys of a schema that hold one schema, or a list of them.
const NESTED: [&str; 5] = ["items", "prefixItems", "additionalProperties", "anyOf", "oneOf"];
/// Keys that add to what an object may contain, or say it themselves.
const OTHER_SOURCES: [&str; 6] =
    ["additionalProperties", "unevaluatedProperties", "patternProperties", "anyOf", "oneOf", "$ref"];

/// The schema without properties that it does not list.
pub(super) fn closed(mut schema: Map<String, Value>) -> Map<String, Value> {
    // The parts of an `allOf` each list some of the properties, and none may forbid those of the others.
    if !combines(&schema) {
        close(&mut schema);
    }
    schema
}

/// Whether an object has to fit several schemas at once anywhere in this one.
fn combines(schema: &Map<String, Value>) -> bool {
    schema.iter().any(|(key, value)| {
        key == "allOf" && value.as_array().is_none_or(|all| all.len() > 1) || {
            let parts: Vec<&Value> = match value {
                Value::Object(_) => vec![value],
                Value::Array(list) => list.iter().collect(),
                _ => Vec::new(),
            };
            parts.into_iter().filter_map(Value::as_object).any(combines)
        }
    })
}

fn close(schema: &mut Map<String, Value>) {
    let lists_properties = schema.get("properties").is_some_and(Value::is_object);
    for (key, value) in schema.iter_mut() {
        match value {
            Value::Object(schemas) if NAMED.contains(&key.as_str()) => {
                schemas.values_mut().filter_map(Value::as_object_mut).for_each(close);
            }
            // An alternative beside `properties` adds to them.
            _ if lists_properties && matches!(key.as_str(), "anyOf" | "oneOf") => {}
            Value::Object(nested) if NESTED.contains(&key.as_str()) => close(nested),
            Value::Array(list) if NESTED.contains(&key.as_str()) || key == "allOf" => {
                list.iter_mut().filter_map(Value::as_object_mut).for_each(close);
            }
            _ => {}
        }
    }
    let is_complete =
        !OTHER_SOURCES.iter().any(|key| schema.contains_key(*key)) && !schema.contains_key("allOf");
    if lists_properties && is_complete {
        schema.insert("additionalProperties".into(), false.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn closed_of(schema: Value) -> Value {
        let Value::Object(schema) = schema else { panic!("an object") };
        Value::Object(closed(schema))
    }

    #[test]
    fn objects_get_no_other_properties_at_any_depth() {
        let open = json!({"type": "object", "properties": {
            "properties": {"type": "object", "properties": {"a": {"type": "string"}}},
            "list": {"type": "array", "items": {"type": "object", "properties": {}}},
            "either": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"b": {}}}]},
            "one": {"allOf": [{"$ref": "#/$defs/D"}]}},
            "$defs": {"D": {"type": "object", "properties": {"c": {"type": "object"}}}}});
        let expected = json!({"type": "object", "properties": {
            "properties": {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": false},
            "list": {"type": "array", "items": {"type": "object", "properties": {}, "additionalProperties": false}},
            "either": {"anyOf": [{"type": "null"},
                {"type": "object", "properties": {"b": {}}, "additionalProperties": false}]},
            "one": {"allOf": [{"$ref": "#/$defs/D"}]}},
            "$defs": {"D": {"type": "object", "properties": {"c": {"type": "object"}}, "additionalProperties": false}},
            "additionalProperties": false});
        assert_eq!(closed_of(open), expected);
    }

    #[test]
    fn what_has_other_sources_of_properties_stays_as_it_is() {
        for schema in [
            json!({"type": "object"}),
            json!({"type": "string"}),
            json!({"properties": {"a": {}}, "additionalProperties": true}),
            json!({"properties": {"a": {}}, "additionalProperties": {"type": "string"}}),
            json!({"properties": {"a": {}}, "patternProperties": {"^x": {}}}),
            json!({"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}, {"required": ["a"]}]}),
            json!({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}),
            json!({"items": {"allOf": [{"$ref": "#/$defs/D"}, {"properties": {"b": {}}}]},
                "$defs": {"D": {"properties": {"a": {}}}}}),
            json!({"enum": [{"properties": {"a": 1}}], "const": {"properties": {}}}),
        ] {
            assert_eq!(closed_of(schema.clone()), schema);
        }
    }
}
