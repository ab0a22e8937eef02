//! Templates of model families and generated ones: their text is Jinja2's, or they are refused.
//!
//! The expected texts are frozen by `tests/support/jinja-cases`.

use super::{read, turn};
use bitnetd::engine::tokenizer::{ChatRole, Tokenizer, Turn};
use serde_json::Value;
use std::collections::BTreeMap;

pub(super) fn cases(name: &str) -> Vec<Value> {
    let path = format!("{}/tests/data/templates/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn turns(talk: &Value) -> Vec<Turn<'_>> {
    let turns = talk.as_array().expect("turns").iter().map(|one| {
        let role = match one[0].as_str().expect("a role") {
            "system" => ChatRole::System,
            "user" => ChatRole::User,
            _ => ChatRole::Assistant,
        };
        turn(role, one[1].as_str().expect("a content"))
    });
    turns.collect()
}

/// The prompt as text, or why there is none.
fn rendered(chat: &Result<Tokenizer, String>, talk: &Value) -> Result<String, String> {
    let chat = chat.as_ref().map_err(Clone::clone)?;
    let ids = chat.prompt_chat(&turns(talk)).map_err(|error| error.to_string())?;
    let bytes: Vec<u8> = ids.iter().flat_map(|id| chat.bytes(*id)).copied().collect();
    Ok(String::from_utf8(bytes).expect("whole characters"))
}

#[test]
fn templates_of_all_model_families_give_the_text_that_jinja2_gives() {
    let families = cases("families");
    assert!(families.len() >= 30, "{}", families.len());
    for family in &families {
        let name = &family["name"];
        let chat = read(family["template"].as_str().expect("a template"));
        for case in family["cases"].as_array().expect("cases") {
            let ours = rendered(&chat, &case[0]);
            match case[1].as_str() {
                Some(wanted) => assert_eq!(ours.as_deref(), Ok(wanted), "{name}"),
                None => assert!(ours.is_err(), "{name}: {ours:?}"),
            }
        }
    }
}

/// What is refused though Jinja2 renders it: parts of the reason, and how many of the generated cases.
const REFUSED: &[(&str, usize)] = &[
    // One whose text does not hang on the contents of the samples that are tried at load.
    ("leaves out what the user says", 1),
];

#[test]
fn generated_templates_give_the_text_that_jinja2_gives_or_are_refused() {
    let templates = cases("generated");
    assert!(templates.len() >= 2000, "{}", templates.len());
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let (mut same, mut beyond, mut wrong) = (0, 0, Vec::new());
    for one in &templates {
        let template = one["template"].as_str().expect("a template");
        let chat = read(template);
        for case in one["cases"].as_array().expect("cases") {
            match (rendered(&chat, &case[0]), case[1].as_str()) {
                (Ok(ours), Some(wanted)) if ours == wanted => same += 1,
                (Ok(ours), Some(wanted)) => {
                    wrong.push(format!("{template:?}\n ours {ours:?}\n not  {wanted:?}"))
                }
                (Ok(_), None) => beyond += 1,
                (Err(why), Some(_)) => {
                    let known = REFUSED.iter().find(|(reason, _)| why.contains(reason));
                    *refused.entry(known.map_or(why, |(reason, _)| (*reason).to_owned())).or_default() += 1;
                }
                (Err(_), None) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ, such as\n{}", wrong.len(), wrong[..wrong.len().min(12)].join("\n"));
    let expected: BTreeMap<_, _> =
        REFUSED.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
    assert_eq!(refused, expected, "{same} are the same, {beyond} are rendered where Jinja2 fails");
}
