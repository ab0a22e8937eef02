//! `options` of a call: how tokens are chosen, and settings of a runner that this is not.

use super::{invalid, whole_number};
use crate::protocol::Refusal;
use serde_json::{Map, Value};

/// Translates `options` to our `keys`. Returns how many of them are ignored.
///
/// `context`: the tokens of context that the model has.
pub(super) fn translate(
    options: Map<String, Value>,
    context: u32,
    keys: &mut Map<String, Value>,
) -> Result<u32, Refusal> {
    let mut ignored = 0;
    let mut penalties_are_off = false;
    for (name, value) in options.into_iter().filter(|(_, value)| !value.is_null()) {
        let key = format!("options.{name}");
        match name.as_str() {
            "temperature" | "top_p" | "min_p" | "presence_penalty" | "frequency_penalty" | "speculate" => {
                keys.insert(name, value);
            }
            "repeat_penalty" => drop(keys.insert("repetition_penalty".into(), value)),
            "stop" => drop(keys.insert(name, stop(value))),
            "seed" => drop(seed(&key, &value)?.map(|seed| keys.insert(name, seed.into()))),
            // Ollama's own numbers for "no limit" are -1 and -2; 0 has the same effect there.
            "num_predict" => match whole_number(&key, &value)? {
                ..=0 => {}
                limit => drop(keys.insert("max_tokens".into(), limit.into())),
            },
            "top_k" => drop(keys.insert(name, whole_number(&key, &value)?.max(0).into())),
            // The context is fixed when the model is loaded. Home Assistant always sends a number, so that one that is
            // too large cannot be an error; a prompt that is too long is one.
            "num_ctx" => ignored += u32::from(whole_number(&key, &value)? > i64::from(context)),
            // Our penalty is over all tokens, which is -1 there; 0 switches the penalties off.
            "repeat_last_n" => match whole_number(&key, &value)? {
                0 => penalties_are_off = true,
                -1 => {}
                _ => ignored += 1,
            },
            "mirostat" => refuse_sampler(&key, whole_number(&key, &value)? != 0)?,
            "tfs_z" | "typical_p" => {
                // Both are shares of probability: 1 keeps everything, and 0 switches them off.
                let is_on = value.as_f64().is_none_or(|share| share > 0.0 && share < 1.0);
                refuse_sampler(&key, is_on)?;
            }
            // What is left changes where and how fast a runner computes (num_gpu, num_thread, num_batch, use_mmap, …), has
            // no effect without what was refused before (mirostat_tau), or is ignored by Ollama itself since it does its
            // sampling in llama.cpp (penalize_newline, and every name that it does not know).
            _ => ignored += 1,
        }
    }
    if penalties_are_off {
        for key in ["repetition_penalty", "presence_penalty", "frequency_penalty"] {
            keys.remove(key);
        }
    }
    Ok(ignored)
}

/// Another sampler would choose other tokens: to ignore it would be to give another answer than the one asked for.
fn refuse_sampler(key: &str, is_on: bool) -> Result<(), Refusal> {
    match is_on {
        false => Ok(()),
        true => Err(invalid(format!(
            "{key}: there is no such sampler here; leave it out, and use top_p or min_p"
        ))),
    }
}

/// One stop text may come without a list.
fn stop(value: Value) -> Value {
    if value.is_string() { Value::Array(vec![value]) } else { value }
}

/// `None` for -1, which asks for a random seed.
fn seed(key: &str, value: &Value) -> Result<Option<u64>, Refusal> {
    match value.as_u64() {
        Some(seed) => Ok(Some(seed)),
        // Any other negative number is as good a seed as its bits.
        None => Ok(Some(whole_number(key, value)?).filter(|seed| *seed != -1).map(|seed| seed as u64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(options: Value) -> Result<(Value, u32), String> {
        let Value::Object(options) = options else { panic!("an object") };
        let mut keys = Map::new();
        let ignored = translate(options, 4096, &mut keys).map_err(|refusal| refusal.message)?;
        Ok((Value::Object(keys), ignored))
    }

    #[test]
    fn options_get_the_names_of_our_keys() {
        let options = json!({"num_predict": 7.0, "temperature": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.1,
            "seed": 3, "stop": ["a"], "repeat_penalty": 1.1, "presence_penalty": 1, "frequency_penalty": 0.5,
            "speculate": false});
        let expected = json!({"max_tokens": 7, "temperature": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.1, "seed": 3,
            "stop": ["a"], "repetition_penalty": 1.1, "presence_penalty": 1,
            "frequency_penalty": 0.5, "speculate": false});
        assert_eq!(read(options), Ok((expected, 0)));
    }

    #[test]
    fn numbers_that_mean_no_limit_and_null_leave_a_key_out() {
        for n in [json!(-1), json!(-2), json!(-1.0), json!(0), Value::Null] {
            assert_eq!(read(json!({"num_predict": n})), Ok((json!({}), 0)));
        }
        assert_eq!(read(json!({"top_k": -1})), Ok((json!({"top_k": 0}), 0)));
        assert_eq!(read(json!({"stop": "a"})), Ok((json!({"stop": ["a"]}), 0)));
    }

    #[test]
    fn a_seed_may_be_negative_and_minus_one_is_random() {
        assert_eq!(read(json!({"seed": -1})), Ok((json!({}), 0)));
        assert_eq!(read(json!({"seed": -1.0})), Ok((json!({}), 0)));
        assert_eq!(read(json!({"seed": -2})), Ok((json!({"seed": u64::MAX - 1}), 0)));
        assert_eq!(read(json!({"seed": u64::MAX})), Ok((json!({"seed": u64::MAX}), 0)));
        assert_eq!(read(json!({"seed": 42.0})), Ok((json!({"seed": 42}), 0)));
    }

    #[test]
    fn a_context_that_the_model_has_is_no_ignored_key() {
        assert_eq!(read(json!({"num_ctx": 4096.0})), Ok((json!({}), 0)));
        assert_eq!(read(json!({"num_ctx": 8192.0})), Ok((json!({}), 1)));
    }

    #[test]
    fn what_changes_no_answer_is_ignored_and_counted() {
        let options = json!({"num_gpu": 1, "num_thread": 2, "num_batch": 512, "use_mmap": true, "low_vram": false,
            "mirostat": 0, "mirostat_tau": 5.0, "tfs_z": 1.0, "typical_p": 1, "penalize_newline": true, "x": {}});
        assert_eq!(read(options), Ok((json!({}), 8)));
    }

    #[test]
    fn the_window_of_the_penalties_may_be_everything_or_nothing() {
        let with = |last: i64| json!({"repeat_last_n": last, "repeat_penalty": 1.2, "presence_penalty": 1});
        let kept = json!({"repetition_penalty": 1.2, "presence_penalty": 1});
        assert_eq!(read(with(-1)), Ok((kept.clone(), 0)));
        assert_eq!(read(with(64)), Ok((kept, 1)));
        assert_eq!(read(with(0)), Ok((json!({}), 0)));
    }

    #[test]
    fn other_samplers_and_broken_numbers_are_refused_by_name() {
        for (options, place) in [
            (json!({"mirostat": 2}), "options.mirostat: there is no such sampler"),
            (json!({"tfs_z": 0.5}), "options.tfs_z: there is no such sampler"),
            (json!({"typical_p": 0.7}), "options.typical_p: there is no such sampler"),
            (json!({"num_predict": 1.5}), "options.num_predict: 1.5 is no whole number"),
            (json!({"num_ctx": "8k"}), "options.num_ctx: \"8k\" is no whole number"),
            (json!({"seed": 1e300}), "options.seed: "),
            (json!({"top_k": []}), "options.top_k: [] is no whole number"),
        ] {
            let message = read(options).expect_err(place);
            assert!(message.starts_with(place), "{message}");
        }
    }
}
