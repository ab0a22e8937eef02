//! The cases of `bitnetd eval`: what is asked, and which answers are right.
//!
//! Deliberately knows no model.

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Bytes of a compiled regular expression.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// One line of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Line {
    name: Option<String>,
    system: Option<String>,
    prompt: String,
    max_tokens: Option<u32>,
    schema: Option<Value>,
    exact: Option<String>,
    contains: Option<OneOrMore>,
    regex: Option<String>,
    json: Option<Value>,
    choices: Option<Vec<String>>,
    answer: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text or a list of texts")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// How an answer is judged.
#[derive(Debug)]
pub(super) enum Judge {
    /// The answer is this text, white space at both ends aside.
    Exact(String),
    /// All of these texts occur in it.
    Contains(Vec<String>),
    /// The regular expression matches a part of it.
    Regex(Box<Regex>),
    /// It is JSON that equals this value.
    Json(Value),
    /// Of these texts, the one with this index has the highest probability.
    Choice(Vec<String>, usize),
}

/// The kinds of cases, for the figures of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum JudgeKind {
    Exact,
    Contains,
    Regex,
    Json,
    Choice,
}

impl Judge {
    pub fn kind(&self) -> JudgeKind {
        match self {
            Judge::Exact(_) => JudgeKind::Exact,
            Judge::Contains(_) => JudgeKind::Contains,
            Judge::Regex(_) => JudgeKind::Regex,
            Judge::Json(_) => JudgeKind::Json,
            Judge::Choice(..) => JudgeKind::Choice,
        }
    }

    /// Whether a generated answer is right. A choice is judged by probabilities, not by a text.
    pub fn accepts(&self, answer: &str) -> bool {
        match self {
            Judge::Exact(wanted) => answer.trim() == wanted.trim(),
            Judge::Contains(all) => all.iter().all(|part| answer.contains(part.as_str())),
            Judge::Regex(regex) => regex.is_match(answer),
            Judge::Json(wanted) => {
                serde_json::from_str::<Value>(answer.trim()).is_ok_and(|value| is_same(&value, wanted))
            }
            Judge::Choice(..) => false,
        }
    }
}

/// Whether two JSON values are equal; 2 and 2.0 are the same number.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| a == b)
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| is_same(a, b)))
        }
        _ => a == b,
    }
}

/// A question and how its answer is judged.
#[derive(Debug)]
pub(super) struct Case {
    /// The line of the file, from 1.
    pub line: usize,
    pub name: Option<String>,
    pub system: Option<String>,
    pub prompt: String,
    pub max_tokens: Option<u32>,
    pub schema: Option<Value>,
    pub judge: Judge,
}

/// Reads all cases; empty lines are skipped. The error names the line.
pub(super) fn parse(text: &str) -> Result<Vec<Case>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| case(index + 1, line).map_err(|why| format!("line {}: {why}", index + 1)))
        .collect()
}

fn case(line: usize, text: &str) -> Result<Case, String> {
    let given: Line = serde_json::from_str(text).map_err(|error| {
        // The library counts lines of this one line.
        let message = error.to_string();
        message.split(" at line ").next().unwrap_or(&message).to_owned()
    })?;
    let Line { name, system, prompt, max_tokens, schema, exact, contains, regex, json, choices, answer } =
        given;
    if prompt.trim().is_empty() {
        return Err("prompt: missing or empty".into());
    }
    if max_tokens == Some(0) {
        return Err("max_tokens: 0 tokens are no answer; give 1 or more".into());
    }
    if choices.is_none() && answer.is_some() {
        return Err("answer: the index of one of choices, which are missing".into());
    }
    let contains = contains.map(|parts| match parts {
        OneOrMore::One(part) => vec![part],
        OneOrMore::More(parts) => parts,
    });
    let mut judges = Vec::new();
    judges.extend(exact.map(|text| Ok(Judge::Exact(text))));
    judges.extend(contains.map(|parts| match parts.is_empty() {
        true => Err("contains: an empty list is in every answer".to_owned()),
        false => Ok(Judge::Contains(parts)),
    }));
    judges.extend(regex.map(|pattern| {
        let made = RegexBuilder::new(&pattern).size_limit(MAX_REGEX_BYTES).build();
        let last = |error: regex::Error| error.to_string().lines().last().unwrap_or_default().to_owned();
        made.map(|regex| Judge::Regex(regex.into())).map_err(|error| format!("regex: {}", last(error)))
    }));
    judges.extend(json.map(|value| Ok(Judge::Json(value))));
    judges.extend(choices.map(|choices| choice(choices, answer)));
    let judge = match judges.len() {
        1 => judges.remove(0)?,
        _ => return Err("one of exact, contains, regex, json or choices says which answer is right".into()),
    };
    if schema.is_some() && matches!(judge, Judge::Choice(..)) {
        return Err("schema: choices are compared by their probabilities, and nothing is generated".into());
    }
    Ok(Case { line, name, system, prompt, max_tokens, schema, judge })
}

fn choice(choices: Vec<String>, answer: Option<usize>) -> Result<Judge, String> {
    let count = choices.len();
    if count < 2 || choices.iter().any(String::is_empty) {
        return Err("choices: give two texts or more, none of them empty".into());
    }
    match answer.filter(|answer| *answer < count) {
        Some(answer) => Ok(Judge::Choice(choices, answer)),
        None => Err(format!("answer: give the index of the right one of choices, 0 to {}", count - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Case {
        parse(text).expect("sound").remove(0)
    }

    fn accepts(judge: &str, answer: &str) -> bool {
        one(&format!("{{\"prompt\":\"p\",{judge}}}")).judge.accepts(answer)
    }

    #[test]
    fn answers_are_judged_as_the_case_says() {
        assert!(accepts(r#""exact":"on""#, " on\n") && !accepts(r#""exact":"on""#, "On"));
        assert!(
            accepts(r#""contains":"lamp""#, "the lamp is on")
                && !accepts(r#""contains":["lamp","off"]"#, "the lamp is on")
        );
        assert!(accepts(r#""regex":"^\\d+ °C$""#, "21 °C") && !accepts(r#""regex":"^\\d+$""#, "21 °C"));
        assert!(accepts(r#""json":{"a":[1,2.0]}"#, " {\"a\" : [1.0, 2]}"));
        assert!(!accepts(r#""json":{"a":1}"#, r#"{"a":1,"b":2}"#) && !accepts(r#""json":{"a":1}"#, "a"));
    }

    #[test]
    fn what_is_no_case_is_refused_with_its_line() {
        let wrong = [
            ("{", "EOF"),
            (r#"{"exact":"a"}"#, "prompt: missing"),
            (r#"{"prompt":"a"}"#, "one of exact"),
            (r#"{"prompt":"a","exact":"a","json":1}"#, "one of exact"),
            (r#"{"prompt":"a","exact":"a","temprature":1}"#, "unknown field `temprature`"),
            (r#"{"prompt":"a","regex":"("}"#, "regex: "),
            (r#"{"prompt":"a","regex":"(\\w{500}){500}"}"#, "regex: "),
            (r#"{"prompt":"a","contains":[]}"#, "contains: "),
            (r#"{"prompt":"a","choices":["a"],"answer":0}"#, "choices: "),
            (r#"{"prompt":"a","choices":["a","b"],"answer":2}"#, "0 to 1"),
            (r#"{"prompt":"a","exact":"a","answer":2}"#, "answer: "),
            (r#"{"prompt":"a","exact":"a","max_tokens":0}"#, "max_tokens: "),
            (r#"{"prompt":"a","choices":["a","b"],"answer":1,"schema":{}}"#, "schema: "),
        ];
        for (line, why) in wrong {
            let error = parse(&format!("\n{{\"prompt\":\"p\",\"exact\":\"a\"}}\n{line}\n")).expect_err(line);
            assert!(error.starts_with("line 3: ") && error.contains(why), "{line}: {error}");
        }
        let lines: Vec<usize> = parse("\n\n{\"prompt\":\"p\",\"exact\":\"a\"}")
            .expect("sound")
            .iter()
            .map(|case| case.line)
            .collect();
        assert_eq!(lines, [3]);
    }
}
