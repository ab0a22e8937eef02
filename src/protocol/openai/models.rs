//! `GET /v1/models` and `GET /v1/models/{name}`: the one model that is loaded.

use super::answer::{bytes, unix_seconds};
use super::errors::object;
use crate::protocol::api::{ModelCard, Refused};
use crate::protocol::text::Shown;
use serde_json::{Value, json};

/// The answer to `GET /v1/models`.
pub fn models(model: &ModelCard) -> Vec<u8> {
    bytes(&json!({ "object": "list", "data": [card(model)] }))
}

/// The answer to `GET /v1/models/{name}`. The name is also found where it is percent-encoded.
///
/// # Errors
/// A name that is not that of the model.
pub fn model(model: &ModelCard, name: &str) -> Result<Vec<u8>, Refused> {
    if name == model.name || percent_decoded(name) == model.name.as_bytes() {
        return Ok(bytes(&card(model)));
    }
    let message = format!("model: no {} here; {} is the one that is loaded", Shown(name), model.name);
    let error = object("invalid_request_error", Some("model_not_found"), Some("model"), &message);
    Err(Refused { status: 404, body: bytes(&error), retry_after_s: None })
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

fn percent_decoded(text: &str) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, _, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}
