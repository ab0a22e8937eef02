//! What is asked about models: the list, the loaded ones, one in detail, and the download that is not needed.

use super::settings::CallKeys;
use super::timestamp::rfc3339;
use super::{JSON, NDJSON, line, model_name, refused, written};
use crate::protocol::api::{Call, HttpRefusal, ModelCard};
use crate::protocol::json::MAX_REQUEST;
use serde::Serialize;
use serde_json::{Map, Value};
use std::time::{Duration, SystemTime};

/// What the model can do: answer, and call functions.
const CAPABILITIES: [&str; 2] = ["completion", "tools"];
/// When the model would be unloaded: never, for which Ollama too gives a time that nobody lives to see.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

#[derive(Serialize)]
struct ModelList<T> {
    models: [T; 1],
}

#[derive(Serialize)]
struct ListedModel<'a> {
    name: &'a str,
    model: &'a str,
    modified_at: String,
    size: u64,
    digest: &'a str,
    details: Details<'a>,
    capabilities: [&'static str; 2],
}

#[derive(Serialize)]
struct RunningModel<'a> {
    name: &'a str,
    model: &'a str,
    size: u64,
    digest: &'a str,
    details: Details<'a>,
    expires_at: String,
    /// No part of it is in the memory of a graphics card.
    size_vram: u64,
    context_length: u32,
}

#[derive(Serialize)]
struct ShownModel<'a> {
    license: &'a str,
    modelfile: String,
    parameters: &'a str,
    template: &'a str,
    details: Details<'a>,
    model_info: Map<String, Value>,
    capabilities: [&'static str; 2],
    modified_at: String,
}

#[derive(Serialize)]
struct Details<'a> {
    parent_model: &'a str,
    format: &'static str,
    family: &'a str,
    families: [&'a str; 1],
    parameter_size: String,
    quantization_level: &'a str,
}

#[derive(Serialize)]
struct PullStatus {
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<u64>,
}

/// `GET /api/tags`: the models that can be asked.
pub fn tags(model: &ModelCard) -> Vec<u8> {
    let name = model_name::listed(model);
    let listed = ListedModel {
        name: &name,
        model: &name,
        modified_at: rfc3339(model.modified),
        size: model.bytes,
        digest: &model.digest,
        details: details(model),
        capabilities: CAPABILITIES,
    };
    written(&ModelList { models: [listed] })
}

/// `GET /api/ps`: the models that are loaded.
pub fn ps(model: &ModelCard, now: SystemTime) -> Vec<u8> {
    let name = model_name::listed(model);
    let running = RunningModel {
        name: &name,
        model: &name,
        size: model.bytes,
        digest: &model.digest,
        details: details(model),
        expires_at: rfc3339(now.checked_add(FOREVER).unwrap_or(now)),
        size_vram: 0,
        context_length: model.context,
    };
    written(&ModelList { models: [running] })
}

/// `POST /api/show`: one model in detail.
pub fn show(body: &[u8], model: &ModelCard) -> Result<Vec<u8>, HttpRefusal> {
    called_model(body, model)?;
    let name = model_name::listed(model);
    let architecture = model.architecture.as_str();
    let model_info = [
        ("general.architecture".to_owned(), Value::from(architecture)),
        ("general.name".to_owned(), model.name.as_str().into()),
        ("general.parameter_count".to_owned(), model.parameters.into()),
        (format!("{architecture}.context_length"), model.context.into()),
    ];
    Ok(written(&ShownModel {
        license: "",
        modelfile: format!("FROM {name}\n"),
        parameters: "",
        template: &model.template,
        details: details(model),
        model_info: model_info.into_iter().collect(),
        capabilities: CAPABILITIES,
        modified_at: rfc3339(model.modified),
    }))
}

/// `POST /api/pull`: the model that is loaded is there already, and no other is downloaded.
pub fn pull(body: &[u8], model: &ModelCard) -> Result<Call, HttpRefusal> {
    let mut call = called_model(body, model)?;
    let is_streamed = call.flag("stream", true).map_err(|refusal| refused(&refusal))?;
    let success = PullStatus::new("success");
    if !is_streamed {
        return Ok(Call::Answer { content_type: JSON, body: written(&success) });
    }
    let (digest, size) = (&model.digest, model.bytes);
    let there = PullStatus {
        digest: Some(format!("sha256:{digest}")),
        total: Some(size),
        completed: Some(size),
        ..PullStatus::new(format!("pulling {}", digest.get(..12).unwrap_or(digest)))
    };
    let lines = [PullStatus::new("pulling manifest"), there, success];
    Ok(Call::Answer { content_type: NDJSON, body: lines.iter().flat_map(line).collect() })
}

/// The keys of a call, once it is clear that it is about the model that is loaded.
fn called_model(body: &[u8], model: &ModelCard) -> Result<CallKeys, HttpRefusal> {
    let mut call = CallKeys::read(body, MAX_REQUEST).map_err(|refusal| refused(&refusal))?;
    let asked = call.model().map_err(|refusal| refused(&refusal))?;
    model_name::check(&asked, model)?;
    Ok(call)
}

fn details(model: &ModelCard) -> Details<'_> {
    Details {
        parent_model: "",
        format: "gguf",
        family: &model.architecture,
        families: [&model.architecture],
        parameter_size: parameter_size(model.parameters),
        quantization_level: &model.quantization,
    }
}

/// `2.4B`, `9.4M`, `512K`.
fn parameter_size(count: u64) -> String {
    let units = [(1e9, "B"), (1e6, "M"), (1e3, "K")];
    let count = count as f64;
    match units.into_iter().find(|(unit, _)| count >= *unit) {
        Some((unit, "K")) => format!("{:.0}K", count / unit),
        Some((unit, name)) => format!("{:.1}{name}", count / unit),
        None => count.to_string(),
    }
}

impl PullStatus {
    fn new(status: impl Into<String>) -> Self {
        PullStatus { status: status.into(), digest: None, total: None, completed: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ollama::tests::{body_of, card, json, now};

    #[test]
    fn the_loaded_model_is_the_only_one_in_both_lists() {
        let tags = json(&tags(&card()));
        assert_eq!(tags["models"].as_array().map(Vec::len), Some(1));
        let model = &tags["models"][0];
        assert_eq!(
            (&model["name"], &model["model"]),
            (&"bitnet-2b:latest".into(), &"bitnet-2b:latest".into())
        );
        assert_eq!(model["size"], 1_187_801_280_u64);
        assert_eq!(model["modified_at"], "2026-01-01T00:00:00.000000000Z");
        assert_eq!(model["capabilities"], serde_json::json!(["completion", "tools"]));
        let details = serde_json::json!({"parent_model": "", "format": "gguf", "family": "bitnet-b1.58",
            "families": ["bitnet-b1.58"], "parameter_size": "2.4B", "quantization_level": "I2_S"});
        assert_eq!(model["details"], details);

        let running = &json(&ps(&card(), now()))["models"][0];
        assert_eq!((&running["size_vram"], &running["context_length"]), (&0.into(), &4096.into()));
        assert_eq!(running["digest"], model["digest"]);
        assert!(running["expires_at"].as_str().is_some_and(|time| time.starts_with("2125-")), "{running}");
    }

    #[test]
    fn a_model_is_shown_by_its_name_or_the_old_key() {
        for body in [r#"{"model":"bitnet-2b"}"#, r#"{"name":"BitNet-2B:latest","verbose":true}"#] {
            let shown = json(&show(body.as_bytes(), &card()).expect("the loaded model"));
            assert_eq!(shown["model_info"]["general.architecture"], "bitnet-b1.58");
            assert_eq!(shown["model_info"]["general.parameter_count"], 2_412_820_480_u64);
            assert_eq!(shown["model_info"]["bitnet-b1.58.context_length"], 4096);
            assert_eq!(shown["template"], "{{ messages }}");
            assert_eq!(shown["modelfile"], "FROM bitnet-2b:latest\n");
        }
        assert_eq!(show(br#"{"model":"llama3.2"}"#, &card()).expect_err("not loaded").status, 404);
        let refused = show(b"{}", &card()).expect_err("no name");
        assert_eq!(refused.status, 400);
        assert!(json(&refused.body)["error"].as_str().is_some_and(|e| e.starts_with("model: missing")));
        assert_eq!(show(b"", &card()).expect_err("no body").status, 400);
    }

    #[test]
    fn a_pull_of_the_loaded_model_succeeds_and_of_another_says_what_to_do() {
        let (kind, body) = body_of(pull(br#"{"model":"bitnet-2b"}"#, &card()).expect("the loaded model"));
        assert_eq!(kind, "application/x-ndjson");
        let lines: Vec<Value> = body.split_inclusive(|byte| *byte == b'\n').map(json).collect();
        assert_eq!(lines.first().map(|line| &line["status"]), Some(&"pulling manifest".into()));
        assert_eq!(lines[1]["total"], lines[1]["completed"]);
        assert_eq!(lines.last(), Some(&serde_json::json!({"status": "success"})));

        let once =
            pull(br#"{"model":"bitnet-2b:latest","stream":false}"#, &card()).expect("the loaded model");
        assert_eq!(body_of(once), ("application/json", br#"{"status":"success"}"#.to_vec()));

        let refused = pull(br#"{"model":"llama3.2"}"#, &card()).expect_err("not loaded");
        assert_eq!(refused.status, 404);
        assert!(json(&refused.body)["error"].as_str().is_some_and(|e| e.contains("model.path")));
        let wrong = pull(br#"{"model":"bitnet-2b","stream":"no"}"#, &card()).expect_err("no flag");
        assert_eq!(wrong.status, 400);
    }

    #[test]
    fn sizes_are_short() {
        for (count, expected) in [
            (7, "7"),
            (9_400_000, "9.4M"),
            (512_000, "512K"),
            (2_412_820_480, "2.4B"),
            (8_030_000_000, "8.0B"),
        ] {
            assert_eq!(parameter_size(count), expected);
        }
    }
}
