//! From a request to what the engine and the answer cache take. Deliberately knows no session.

use crate::daemon::answer_cache::{CacheKey, CachedAnswer, SeededSampling};
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
    GenerateOptions {
        sampling: sampling(&request.sampling),
        max_tokens: request.max_tokens.map(|n| n as usize),
        stop: request.stop.clone(),
        logprobs: request.logprobs.map(|top| top as usize),
        ..GenerateOptions::default()
    }
}

/// How tokens are sampled: what was asked for, else the engine's own.
fn sampling(asked: &Sampling) -> SamplingParams {
    let default = SamplingParams::default();
    SamplingParams {
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
    }
}

fn clock_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// The key of the answer in the cache; `None` where it may not be cached: it is sampled without a seed, the client disabled
/// the cache, or it has more than a text.
///
/// `home_version`: the version of the home whose names the answer may have.
pub(super) fn cache_key(
    request: &Request,
    client: Option<String>,
    prompt: &[u32],
    home_version: Option<u64>,
) -> Option<CacheKey> {
    let is_text_only = request.choices == 1 && request.logprobs.is_none() && request.tools.is_empty();
    if !request.cache || !is_text_only {
        return None;
    }
    let sampling = sampling(&request.sampling);
    let penalties = [sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty];
    let is_greedy = sampling.temperature <= 0.0;
    if !is_greedy && request.sampling.seed.is_none() {
        return None;
    }
    let seeded = (!is_greedy).then(|| SeededSampling {
        seed: sampling.seed,
        temperature: sampling.temperature.to_bits(),
        top_k: sampling.top_k,
        top_p: sampling.top_p.to_bits(),
        min_p: sampling.min_p.to_bits(),
    });
    Some(CacheKey {
        client,
        prompt: prompt.to_vec(),
        max_tokens: request.max_tokens.map(|n| n as usize),
        stop: request.stop.clone(),
        seeded,
        format: request.response_format.clone(),
        home_version,
        penalties: penalties.map(f32::to_bits),
        logit_bias: sampling.logit_bias.iter().map(|(id, bias)| (*id, bias.to_bits())).collect(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn request(sampling: Sampling) -> Request {
        let plain = protocol::json::request(br#"{"prompt":"a"}"#).expect("sound");
        Request { sampling, ..plain }
    }

    fn key(sampling: Sampling) -> Option<CacheKey> {
        cache_key(&request(sampling), None, &[1, 2], None)
    }

    fn sampled(seed: Option<u64>) -> Sampling {
        Sampling { temperature: Some(0.8), seed, ..Sampling::default() }
    }

    #[test]
    fn what_is_sampled_without_a_seed_is_never_cached() {
        assert_eq!(key(sampled(None)), None);
        assert!(key(sampled(Some(1))).is_some());
        assert!(key(Sampling::default()).is_some());
    }

    #[test]
    fn each_setting_that_changes_a_sampled_answer_changes_its_key() {
        let same = sampled(Some(1));
        assert_eq!(key(same.clone()), key(same.clone()));
        let others = [
            sampled(Some(2)),
            Sampling { temperature: Some(0.9), ..same.clone() },
            Sampling { temperature: None, ..same.clone() },
            Sampling { top_p: Some(0.5), ..same.clone() },
            Sampling { top_k: Some(3), ..same.clone() },
            Sampling { min_p: Some(0.5), ..same.clone() },
            Sampling { repetition_penalty: Some(1.5), ..same.clone() },
            Sampling { presence_penalty: Some(0.5), ..same.clone() },
            Sampling { frequency_penalty: Some(0.5), ..same.clone() },
            Sampling { logit_bias: vec![(1, 1.0)], ..same.clone() },
        ];
        for other in others {
            assert_ne!(key(other.clone()), key(same.clone()), "{other:?}");
        }
    }

    #[test]
    fn a_default_that_is_written_out_and_the_seed_of_a_greedy_answer_change_no_key() {
        let default = SamplingParams::default();
        let written = Sampling { top_p: Some(default.top_p), min_p: Some(default.min_p), ..sampled(Some(1)) };
        assert_eq!(key(written), key(sampled(Some(1))));
        let greedy = Sampling { temperature: Some(0.0), seed: Some(7), ..Sampling::default() };
        assert_eq!(key(greedy), key(Sampling::default()));
    }

    #[test]
    fn an_answer_with_more_than_a_text_is_not_cached() {
        let plain = request(sampled(Some(1)));
        let others = [
            Request { choices: 2, ..plain.clone() },
            Request { logprobs: Some(0), ..plain.clone() },
            Request { cache: false, ..plain.clone() },
        ];
        assert!(cache_key(&plain, None, &[1], None).is_some());
        assert!(others.iter().all(|request| cache_key(request, None, &[1], None).is_none()));
    }
}
