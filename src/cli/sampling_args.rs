//! The arguments that say how tokens are chosen, shared by `ask`, `generate` and `chat`. Deliberately knows no prompt.

use crate::engine::sampler::SamplingParams;
use serde_json::Value;
use std::ops::RangeInclusive;

/// How tokens are chosen; without them as the daemon's [defaults] say, and greedily in a process without a daemon
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub(super) struct SamplingArgs {
    /// 0 is greedy, at most 10
    #[arg(long, value_name = "T", value_parser = temperature, allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Choose among the most likely tokens up to this probability mass, 0 to 1
    #[arg(long, value_name = "P", value_parser = share, allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Choose among this many of the most likely tokens; 0 is all
    #[arg(long, value_name = "N")]
    pub top_k: Option<u32>,
    /// Choose among tokens with at least this share of the largest probability, 0 to 1
    #[arg(long, value_name = "P", value_parser = share, allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Makes tokens that occurred less likely, 0.1 to 10; 1 changes nothing
    #[arg(long, value_name = "R", value_parser = penalty, allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// Seed of the random numbers [default: random in the daemon, 0 without one]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Most tokens of the answer [default: what the context holds; 256 for generate]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
}

fn number(text: &str, range: RangeInclusive<f32>) -> Result<f32, String> {
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("a number from {} to {}", range.start(), range.end())),
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    number(text, 0.0..=10.0)
}

fn share(text: &str) -> Result<f32, String> {
    number(text, 0.0..=1.0)
}

fn penalty(text: &str) -> Result<f32, String> {
    number(text, 0.1..=10.0)
}

impl SamplingArgs {
    /// Adds the keys to a request to the daemon; what is left out there follows its configuration.
    pub fn add_to(&self, request: &mut Value) {
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                request[key] = value;
            }
        };
        set("temperature", self.temperature.map(Value::from));
        set("top_p", self.top_p.map(Value::from));
        set("top_k", self.top_k.map(Value::from));
        set("min_p", self.min_p.map(Value::from));
        set("repetition_penalty", self.repetition_penalty.map(Value::from));
        set("seed", self.seed.map(Value::from));
        set("max_tokens", self.max_tokens.map(Value::from));
    }

    /// The same for an engine in this process.
    pub fn params(&self) -> SamplingParams {
        let usual = SamplingParams::default();
        SamplingParams {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_p: self.top_p.unwrap_or(usual.top_p),
            top_k: self.top_k.map_or(usual.top_k, |most| most as usize),
            min_p: self.min_p.unwrap_or(usual.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(usual.repetition_penalty),
            seed: self.seed.unwrap_or(usual.seed),
            ..usual
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_those_of_a_request() {
        assert_eq!((temperature("0"), temperature("10")), (Ok(0.0), Ok(10.0)));
        assert_eq!(penalty("0.1"), Ok(0.1));
        for wrong in [temperature("-1"), temperature("NaN"), temperature("x"), share("1.1"), penalty("0")] {
            assert!(wrong.is_err());
        }
    }

    #[test]
    fn only_what_is_named_is_sent() {
        let mut request = serde_json::json!({ "prompt": "a" });
        SamplingArgs::default().add_to(&mut request);
        assert_eq!(request, serde_json::json!({ "prompt": "a" }));
        let all = SamplingArgs {
            temperature: Some(0.5),
            top_p: Some(0.25),
            top_k: Some(3),
            min_p: Some(0.125),
            repetition_penalty: Some(1.5),
            seed: Some(7),
            max_tokens: Some(9),
        };
        all.add_to(&mut request);
        let read = crate::protocol::json::request(format!("{request}\n").as_bytes()).expect("sound");
        assert_eq!((read.max_tokens, read.sampling.seed, read.sampling.top_k), (Some(9), Some(7), Some(3)));
        let params = all.params();
        assert_eq!((params.temperature, params.top_p, params.min_p), (0.5, 0.25, 0.125));
        assert_eq!((params.repetition_penalty, params.top_k, params.seed), (1.5, 3, 7));
    }
}
