//! stub
use super::Refusal;
use super::api::{Call, CallContext, ModelCard, Refused};
#[allow(missing_docs)]
pub fn chat_completions(body: &[u8], context: &CallContext) -> Result<Call, Refusal> {
    todo!("{body:?}{context:?}")
}
#[allow(missing_docs)]
pub fn completions(body: &[u8], context: &CallContext) -> Result<Call, Refusal> {
    todo!("{body:?}{context:?}")
}
#[allow(missing_docs)]
pub fn responses(body: &[u8], context: &CallContext) -> Result<Call, Refusal> {
    todo!("{body:?}{context:?}")
}
#[allow(missing_docs)]
pub fn models(model: &ModelCard) -> Vec<u8> {
    todo!("{model:?}")
}
#[allow(missing_docs)]
pub fn model(model: &ModelCard, name: &str) -> Result<Vec<u8>, Refused> {
    todo!("{model:?}{name}")
}
#[allow(missing_docs)]
pub fn refused(refusal: &Refusal) -> Refused {
    todo!("{refusal:?}")
}
#[allow(missing_docs)]
pub fn error_body(status: u16, kind: &str, message: &str) -> Vec<u8> {
    todo!("{status}{kind}{message}")
}
