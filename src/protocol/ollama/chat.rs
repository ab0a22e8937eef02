//! `POST /api/chat`: a conversation.

use super::answer::CallKind;
use super::settings::{CallKeys, Settings, insert_list};
use super::{conversation, refused};
use crate::protocol::Refusal;
use crate::protocol::api::{Call, CallContext, HttpRefusal};

/// What a call of `/api/chat` asks for.
pub fn chat(body: &[u8], context: &CallContext) -> Result<Call, HttpRefusal> {
    let mut call = CallKeys::read(body, context.max_body).map_err(|refusal| refused(&refusal))?;
    let settings = Settings::read(&mut call, context)?;
    conversation_of(call, settings, context).map_err(|refusal| refused(&refusal))
}

fn conversation_of(
    mut call: CallKeys,
    mut settings: Settings,
    context: &CallContext,
) -> Result<Call, Refusal> {
    let messages = call.list("messages")?;
    if messages.is_empty() {
        return Ok(settings.loaded(CallKind::Chat, context));
    }
    insert_list("messages", conversation::messages(messages)?, &mut call, &mut settings);
    let tools = conversation::tools(call.list("tools")?);
    insert_list("tools", tools, &mut call, &mut settings);
    settings.ask(CallKind::Chat, call, context)
}
