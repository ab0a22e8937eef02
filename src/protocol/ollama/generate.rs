//! `POST /api/generate`: one prompt.

use super::answer::CallKind;
use super::conversation::check_no_images;
use super::settings::{CallKeys, Settings};
use super::{invalid, refused};
use crate::protocol::Refusal;
use crate::protocol::api::{Call, CallContext, HttpRefusal};
use serde_json::{Value, json};

/// What a call of `/api/generate` asks for.
pub fn generate(body: &[u8], context: &CallContext) -> Result<Call, HttpRefusal> {
    let mut call = CallKeys::read(body, context.max_body).map_err(|refusal| refused(&refusal))?;
    let settings = Settings::read(&mut call, context)?;
    prompt_of(call, settings, context).map_err(|refusal| refused(&refusal))
}

fn prompt_of(mut call: CallKeys, mut settings: Settings, context: &CallContext) -> Result<Call, Refusal> {
    check_unsupported(&mut call)?;
    let prompt = call.text("prompt")?;
    let system = call.text("system")?;
    if prompt.is_empty() {
        return Ok(settings.loaded(CallKind::Generate, context));
    }
    if system.is_empty() {
        settings.keys.insert("prompt".into(), prompt.into());
    } else {
        let messages = json!([{"role": "system", "content": system}, {"role": "user", "content": prompt}]);
        settings.keys.insert("messages".into(), messages);
    }
    settings.ask(CallKind::Generate, call, context)
}

/// What would change the answer and does not exist here.
fn check_unsupported(call: &mut CallKeys) -> Result<(), Refusal> {
    check_no_images("images", call.take("images"))?;
    if !call.text("suffix")?.is_empty() {
        return Err(invalid("suffix: the model cannot fill a gap; leave it out"));
    }
    if !call.text("template")?.is_empty() {
        return Err(invalid("template: the model's own one is always used; leave it out"));
    }
    if call.flag("raw", false)? {
        return Err(invalid("raw: the model's chat template is always used; leave it out"));
    }
    match call.take("context") {
        None => Ok(()),
        Some(Value::Array(tokens)) if tokens.is_empty() => Ok(()),
        // No answer from here has one. To ignore it would be to forget the conversation that it stands for.
        Some(_) => {
            Err(invalid("context: not supported; send the conversation as messages to /api/chat instead"))
        }
    }
}
