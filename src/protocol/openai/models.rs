//! `GET /v1/models` and `GET /v1/models/{name}`: the one model that is loaded.

use super::answer::{bytes, unix_seconds};
use super::errors::object;
use crate::protocol::api::{HttpRefusal, ModelCard};
use crate::protocol::text::Shown;
use serde_json::{Value, json};

/// The answer to `GET /v1/models`.
pub fn models(model: &ModelCard) -> Vec<u8> {
    bytes(&json!({ "object": "list", "data": [card(model)] }))
}

/// The answer to `GET /v1/models/{name}`.
///
/// # Errors
/// A name that is not that of the model.
pub fn model(model: &ModelCard, name: &str) -> Result<Vec<u8>, HttpRefusal> {
    if name == model.name {
        return Ok(bytes(&card(model)));
    }
    let message = format!("model: no {} here; {} is the one that is loaded", Shown(name), model.name);
    let error = object("invalid_request_error", Some("model_not_found"), Some("model"), &message);
    Err(HttpRefusal { status: 404, body: bytes(&error), retry_after_s: None })
}

fn card(model: &ModelCard) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": unix_seconds(model.modified),
        "owned_by": "bitnetd",
        "bitnetd": {
            "architecture": model.architecture,
            "parameters": model.parameters,
            "quantization": model.quantization,
            "bytes": model.bytes,
            "context": model.context,
        },
    })
}
