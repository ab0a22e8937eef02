//! The keywords of JSON schemas: the official test suite for those that are supported, and a refusal by name for every
//! other.

use super::exceptions::EXCEPTIONS;
use super::{accepts, compile, engine, schema};
use crate::data;
use bitnetd::engine::Engine;
use bitnetd::engine::grammar::Constraint;
use serde_json::Value;

/// The most spellings of one value that are tried.
const MAX_SPELLINGS: usize = 200;

/// The texts of a value: keys in every order, since a grammar has them in the schema's, and whole numbers without a
/// fraction.
fn spellings(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => {
            let mut texts = vec![String::new()];
            for item in items {
                texts = join(&texts, &spellings(item));
            }
            texts.iter().map(|text| format!("[{text}]")).collect()
        }
        Value::Object(keys) => {
            let names: Vec<&String> = keys.keys().collect();
            let mut texts = Vec::new();
            // First as they come: of many keys not every order is tried.
            let orders = std::iter::once((0..names.len()).collect()).chain(permutations(names.len()));
            for order in orders {
                let mut objects = vec![String::new()];
                for at in order {
                    let key = serde_json::to_string(names[at]).expect("a string");
                    let members: Vec<String> =
                        spellings(&keys[names[at]]).iter().map(|text| format!("{key}:{text}")).collect();
                    objects = join(&objects, &members);
                }
                texts.extend(objects.iter().map(|text| format!("{{{text}}}")));
                texts.truncate(MAX_SPELLINGS);
            }
            texts
        }
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e18 => {
                vec![format!("{}", float as i64)]
            }
            _ => vec![number.to_string()],
        },
        other => vec![other.to_string()],
    }
}

fn join(before: &[String], next: &[String]) -> Vec<String> {
    let pairs = before.iter().flat_map(|before| next.iter().map(move |next| (before, next)));
    let joined = pairs.map(|(before, next)| match before.is_empty() {
        true => next.clone(),
        false => format!("{before},{next}"),
    });
    joined.take(MAX_SPELLINGS).collect()
}

/// Orders of `n` things; all of them where they are few.
fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for shorter in permutations(n - 1) {
        for at in 0..=shorter.len() {
            let mut longer = shorter.clone();
            longer.insert(at, n - 1);
            all.push(longer);
        }
        if all.len() > MAX_SPELLINGS {
            break;
        }
    }
    all
}

/// A case of the suite that turned out otherwise than the suite says.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Divergence {
    file: String,
    group: String,
    /// The test in the group; empty where the schema is refused.
    test: String,
    what: String,
}

fn divergences(engine: &Engine, file: &str) -> Vec<Divergence> {
    let text = std::fs::read_to_string(data("json-schema").join(file)).expect("a file of the suite");
    let groups: Vec<Value> = serde_json::from_str(&text).expect("a list of groups");
    let mut found = Vec::new();
    for group in &groups {
        let name = group["description"].as_str().expect("a name");
        let mut diverge = |test: &str, what: String| {
            found.push(Divergence { file: file.into(), group: name.into(), test: test.into(), what });
        };
        match compile(engine, &schema(&group["schema"].to_string())) {
            Ok(constraint) => {
                for test in group["tests"].as_array().expect("tests") {
                    let is_valid = test["valid"].as_bool().expect("a verdict");
                    if fits(engine, &constraint, &test["data"]) != is_valid {
                        let what = if is_valid { "not accepted" } else { "accepted" };
                        diverge(test["description"].as_str().expect("a name"), what.into());
                    }
                }
            }
            // Nothing fits it: that is said when it is compiled.
            Err(error) if error.to_string().contains("nsatisfiable") => {
                let is_valid = |test: &&Value| test["valid"] == true;
                if let Some(test) = group["tests"].as_array().expect("tests").iter().find(is_valid) {
                    diverge(test["description"].as_str().expect("a name"), error.to_string());
                }
            }
            Err(error) => diverge("", error.to_string()),
        }
    }
    found
}

fn fits(engine: &Engine, constraint: &Constraint, value: &Value) -> bool {
    spellings(value).iter().any(|text| accepts(engine, constraint, text))
}

#[test]
fn the_official_test_suite_passes_but_for_listed_exceptions() {
    let engine = engine();
    let mut files: Vec<String> = std::fs::read_dir(data("json-schema"))
        .expect("the suite")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"))
        .filter(|name| name.ends_with(".json"))
        .collect();
    files.sort();
    assert!(files.len() > 20);
    let mut unexpected = Vec::new();
    let mut expected: Vec<(&str, &str, &str)> = EXCEPTIONS
        .iter()
        .flat_map(|exception| exception.cases.iter().map(|(group, test)| (exception.file, *group, *test)))
        .collect();
    for divergence in files.iter().flat_map(|file| divergences(&engine, file)) {
        let Divergence { file, group, test, .. } = &divergence;
        let stem = file.trim_end_matches(".json");
        match expected.iter().position(|case| *case == (stem, group.as_str(), test.as_str())) {
            Some(at) => drop(expected.remove(at)),
            None => unexpected.push(divergence),
        }
    }
    for Divergence { file, group, test, what } in &unexpected {
        println!("{file} | {group} | {test} | {what}");
    }
    assert!(unexpected.is_empty(), "{} cases diverge", unexpected.len());
    assert!(expected.is_empty(), "no longer needed: {expected:?}");
    assert!(EXCEPTIONS.iter().all(|exception| !exception.reason.is_empty()));
}

#[test]
fn every_other_keyword_is_refused_by_name_and_place() {
    let engine = engine();
    let others = [
        "not",
        "if",
        "then",
        "else",
        "contains",
        "minContains",
        "maxContains",
        "uniqueItems",
        "propertyNames",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedItems",
        "unevaluatedProperties",
        "additionalItems",
        "$dynamicRef",
        "$dynamicAnchor",
        "$recursiveRef",
        "$anchor",
        "$vocabulary",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "nullable",
        "discriminator",
        "x-guidance",
        "x",
        "$id",
    ];
    for name in others {
        let source = format!(r#"{{"type":"object","properties":{{"a/b":{{"{name}":true}}}}}}"#);
        let error = compile(&engine, &schema(&source)).expect_err(name).to_string();
        assert_eq!(error, format!("#/properties/a~1b/{name}: this keyword is not supported; leave it out"));
    }
    // A property of that name is no keyword.
    for name in others {
        let source = format!(
            r#"{{"type":"object","properties":{{"{name}":{{"type":"null"}}}},"required":["{name}"]}}"#
        );
        compile(&engine, &schema(&source)).expect(name);
    }
    let error = compile(&engine, &schema(r#"{"format":"semver"}"#)).expect_err("unknown").to_string();
    assert_eq!(error, "#/format: this format is not supported; leave it out");
    let error = compile(&engine, &schema(r#"{"type":"colour"}"#)).expect_err("unknown").to_string();
    assert!(error.contains("colour"), "{error}");
    let error = compile(&engine, &schema(r#"{"$schema":"http://json-schema.org/draft-04/schema#"}"#));
    assert!(error.expect_err("old").to_string().starts_with("#/$schema: "));
}
