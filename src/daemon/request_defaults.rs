//! What holds for requests that do not say it, as a reload and the worker share it.
//!
//! A request keeps what it says itself. Deliberately knows no engine.

use super::locked;
use crate::config::Defaults;
use crate::protocol::{Input, Message, Request, Role, Sampling};
use std::sync::{Arc, Mutex};

/// The section `[defaults]` of the configuration as it is now.
#[derive(Debug, Default)]
pub(super) struct SharedDefaults(Mutex<Arc<Defaults>>);

impl SharedDefaults {
    /// Adopts the settings of a start or of a reload, from the next request on.
    pub fn adopt(&self, defaults: &Defaults) {
        *locked(&self.0) = Arc::new(defaults.clone());
    }

    fn now(&self) -> Arc<Defaults> {
        Arc::clone(&locked(&self.0))
    }

    /// Limits the length of an answer whose request does not.
    pub fn limit_tokens(&self, request: &mut Request) {
        request.max_tokens = request.max_tokens.or(self.now().max_tokens);
    }

    /// How an answer is sampled whose request leaves that open.
    pub fn set_sampling(&self, sampling: &mut Sampling) {
        let defaults = self.now();
        let Sampling { temperature, top_p, top_k, min_p, repetition_penalty, .. } = sampling;
        *temperature = temperature.or(defaults.temperature);
        *top_p = top_p.or(defaults.top_p);
        *top_k = top_k.or(defaults.top_k);
        *min_p = min_p.or(defaults.min_p);
        *repetition_penalty = repetition_penalty.or(defaults.repetition_penalty);
    }

    /// Begins a conversation that has no system text with the default one, and returns that.
    pub fn add_system(&self, request: &mut Request) -> Option<String> {
        let text = self.now().system.clone()?;
        let message =
            |role, content: String| Message { role, content, tool_calls: Vec::new(), tool_call_id: None };
        let system = message(Role::System, text.clone());
        match &mut request.input {
            Input::Prompt(prompt) => {
                let prompt = message(Role::User, std::mem::take(prompt));
                request.input = Input::Messages(vec![system, prompt]);
            }
            Input::Messages(messages) if messages.iter().any(|message| message.role == Role::System) => {
                return None;
            }
            Input::Messages(messages) => messages.insert(0, system),
        }
        Some(text)
    }

    /// Whether an answer is generated with speculation.
    pub fn speculates(&self, request: &Request) -> bool {
        request.speculate.unwrap_or_else(|| self.now().speculate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::json;

    fn defaults() -> SharedDefaults {
        let shared = SharedDefaults::default();
        shared.adopt(&Defaults {
            system: Some("Be brief.".into()),
            temperature: Some(0.7),
            top_p: Some(0.9),
            top_k: Some(40),
            min_p: Some(0.05),
            repetition_penalty: Some(1.1),
            max_tokens: Some(100),
            speculate: false,
        });
        shared
    }

    fn filled(text: &str) -> Request {
        let (defaults, mut request) = (defaults(), json::request(text.as_bytes()).expect("sound"));
        defaults.limit_tokens(&mut request);
        defaults.set_sampling(&mut request.sampling);
        defaults.add_system(&mut request);
        request.speculate = Some(defaults.speculates(&request));
        request
    }

    #[test]
    fn what_a_request_leaves_open_is_filled() {
        let bare = filled(r#"{"prompt":"hello"}"#);
        let explicit = filled(
            r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"hello"}],"max_tokens":100,
                "temperature":0.7,"top_p":0.9,"top_k":40,"min_p":0.05,"repetition_penalty":1.1,"speculate":false}"#,
        );
        assert_eq!(bare, explicit);
        let continued = filled(r#"{"messages":[{"role":"user","content":"hello"}]}"#);
        assert_eq!(continued, explicit);
    }

    #[test]
    fn what_a_request_says_is_kept() {
        let text = r#"{"messages":[{"role":"system","content":""},{"role":"user","content":"hello"}],"max_tokens":7,
            "temperature":0,"top_p":1,"top_k":0,"min_p":0,"repetition_penalty":1,"speculate":true}"#;
        assert_eq!(filled(text), json::request(text.as_bytes()).expect("sound"));
    }

    #[test]
    fn without_defaults_nothing_changes() {
        let (nothing, mut request) =
            (SharedDefaults::default(), json::request(br#"{"prompt":"a"}"#).expect("sound"));
        let before = request.clone();
        nothing.limit_tokens(&mut request);
        nothing.set_sampling(&mut request.sampling);
        nothing.add_system(&mut request);
        assert_eq!((request, nothing.speculates(&before)), (before.clone(), true));
    }
}
