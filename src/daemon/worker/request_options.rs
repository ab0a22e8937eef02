//! From a request to what the engine and the answer cache take. Deliberately knows no session.

use crate::daemon::answer_cache::{CacheKey, CachedAnswer};
use crate::engine::Engine;
use crate::engine::error::PromptError;
use crate::engine::sampler::SamplingParams;
use crate::engine::session::{Answer, GenerateOptions, StopReason};
use crate::engine::tokenizer::{ChatRole, Turn};
use crate::protocol::{self, Input, Request, Sampling};
use sha2::{Digest, Sha256};

/// The tokens of a prompt, chat template included.
pub(super) fn tokenize(engine: &Engine, input: &Input) -> Result<Vec<u32>, PromptError> {
    match input {
        Input::Prompt(text) => engine.tokenizer().prompt_chat(&[Turn { role: ChatRole::User, text }]),
        Input::Messages(messages) => {
            let turns: Vec<Turn<'_>> = messages
                .iter()
                .map(|message| Turn { role: role(message.role), text: &message.content })
                .collect();
            engine.tokenizer().prompt_chat(&turns)
        }
    }
}

/// The author of a message, as the engine names it.
pub(super) fn role(role: protocol::Role) -> ChatRole {
    match role {
        protocol::Role::System => ChatRole::System,
        protocol::Role::User => ChatRole::User,
        protocol::Role::Assistant => ChatRole::Assistant,
        protocol::Role::Tool => ChatRole::Tool,
    }
}

/// How the engine is to answer a request.
pub(super) fn generate_options(request: &Request) -> GenerateOptions {
    let asked = &request.sampling;
    let default = SamplingParams::default();
    GenerateOptions {
        sampling: SamplingParams {
            temperature: asked.temperature.unwrap_or(default.temperature),
            top_k: asked.top_k.map_or(default.top_k, |k| k as usize),
            top_p: asked.top_p.unwrap_or(default.top_p),
            min_p: asked.min_p.unwrap_or(default.min_p),
            repetition_penalty: asked.repetition_penalty.unwrap_or(default.repetition_penalty),
            presence_penalty: asked.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: asked.frequency_penalty.unwrap_or(default.frequency_penalty),
            logit_bias: asked.logit_bias.clone(),
            // Without a seed each answer is sampled differently.
            seed: asked.seed.unwrap_or_else(clock_seed),
        },
        max_tokens: request.max_tokens.map(|n| n as usize),
        stop: request.stop.clone(),
        logprobs: request.logprobs.map(|top| top as usize),
        ..GenerateOptions::default()
    }
}

fn clock_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// The key of the answer in the cache; `None` where it may not be cached: it is sampled at random, the client disabled
/// the cache, or it has more than a text.
///
/// `home_version`: the version of the home whose names the answer may have.
pub(super) fn cache_key(
    request: &Request,
    client: Option<String>,
    prompt: &[u32],
    home_version: Option<u64>,
) -> Option<CacheKey> {
    let Sampling { temperature, repetition_penalty, presence_penalty, frequency_penalty, .. } =
        request.sampling;
    let greedy = temperature.unwrap_or(0.0) <= 0.0;
    let is_text_only = request.choices == 1 && request.logprobs.is_none() && request.tools.is_empty();
    let penalties = [
        repetition_penalty.unwrap_or(1.0),
        presence_penalty.unwrap_or(0.0),
        frequency_penalty.unwrap_or(0.0),
    ];
    (request.cache && greedy && is_text_only).then(|| CacheKey {
        client,
        prompt: prompt.to_vec(),
        max_tokens: request.max_tokens.map(|n| n as usize),
        stop: request.stop.clone(),
        format: request.response_format.clone(),
        home_version,
        penalties: penalties.map(f32::to_bits),
        logit_bias: request.sampling.logit_bias.iter().map(|(id, bias)| (*id, bias.to_bits())).collect(),
    })
}

/// The number under which the beginnings of a client's prompts are found, from its key. It is the same after a restart, and
/// no other client can choose a key that gives it.
pub(super) fn prefix_scope(client: &str) -> u128 {
    let digest = Sha256::digest(client);
    u128::from_le_bytes(std::array::from_fn(|at| digest[at]))
}

/// What the cache keeps of an answer.
pub(super) fn cacheable(answer: &Answer) -> CachedAnswer {
    CachedAnswer {
        text: answer.text.clone(),
        completion_tokens: answer.tokens.len() as u32,
        stopped: answer.end == StopReason::Stop,
    }
}
