//! Names of models in Ollama's form: lower case, no spaces, and a tag behind a colon.

use super::error_body;
use crate::protocol::api::{HttpRefusal, ModelCard};
use crate::protocol::text::Shown;

/// The tag of a name that has none.
const DEFAULT_TAG: &str = "latest";

/// The name under which a model is listed: `BitNet b1.58 2B` is `bitnet-b1.58-2b:latest`.
pub(super) fn listed(model: &ModelCard) -> String {
    let (base, tag) = split_tag(&model.name);
    let or_else = |text: String, other: &str| if text.is_empty() { other.to_owned() } else { text };
    let base = or_else(valid(base, true), "model");
    let tag = or_else(valid(tag.unwrap_or_default(), false), DEFAULT_TAG);
    format!("{base}:{tag}")
}

/// Checks that a call names the model that is loaded: in any case, with or without the tag `latest`, or as the daemon's
/// other interfaces show it.
pub(super) fn check(asked: &str, model: &ModelCard) -> Result<(), HttpRefusal> {
    let name = listed(model);
    let with_tag = match split_tag(asked) {
        (base, None | Some("")) => format!("{base}:{DEFAULT_TAG}"),
        _ => asked.to_owned(),
    };
    if with_tag.eq_ignore_ascii_case(&name) || asked.eq_ignore_ascii_case(&model.name) {
        return Ok(());
    }
    let message = format!(
        "model \"{}\" not found, only \"{name}\" is loaded; ask for that, or give another file as model.path in the \
         daemon's configuration",
        Shown(asked)
    );
    Err(HttpRefusal { status: 404, body: error_body(&message), retry_after_s: None })
}

/// A name, and its tag where it has one. A colon before a slash belongs to a registry's address.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((base, tag)) if !tag.contains('/') => (base, Some(tag)),
        _ => (name, None),
    }
}

/// The text with a hyphen for whatever a name may not contain, beginning and ending with a letter or a digit.
fn valid(text: &str, may_have_slash: bool) -> String {
    let mut name = String::with_capacity(text.len());
    for c in text.chars().map(|c| c.to_ascii_lowercase()) {
        let is_kept = c.is_ascii_alphanumeric() || matches!(c, '.' | '_') || (c == '/' && may_have_slash);
        match if is_kept { c } else { '-' } {
            '-' if name.ends_with('-') => {}
            '/' if name.ends_with('/') => {}
            c => name.push(c),
        }
    }
    name.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ollama::tests::card;

    fn named(name: &str) -> ModelCard {
        ModelCard { name: name.into(), ..card() }
    }

    #[test]
    fn listed_names_are_valid_and_have_a_tag() {
        for (name, expected) in [
            ("home-intents", "home-intents:latest"),
            ("BitNet b1.58 2B 4T", "bitnet-b1.58-2b-4t:latest"),
            ("microsoft/BitNet-b1.58", "microsoft/bitnet-b1.58:latest"),
            ("falcon3:1b", "falcon3:1b"),
            ("bitnet (random weights)", "bitnet-random-weights:latest"),
            ("Küche:", "k-che:latest"),
            ("厨房", "model:latest"),
            ("", "model:latest"),
        ] {
            assert_eq!(listed(&named(name)), expected);
        }
    }

    #[test]
    fn a_model_is_found_with_and_without_its_tag_and_in_any_case() {
        let model = named("BitNet 2B");
        for asked in ["bitnet-2b", "bitnet-2b:latest", "BitNet-2B:LATEST", "BitNet 2B", "bitnet-2b:"] {
            assert_eq!(check(asked, &model), Ok(()), "{asked}");
        }
        assert_eq!(check("falcon3:1b", &named("falcon3:1b")), Ok(()));
        for asked in ["bitnet", "bitnet-2b:1b", "llama3.2", "falcon3"] {
            let refused = check(asked, &model).expect_err(asked);
            assert_eq!(refused.status, 404);
            let text = String::from_utf8(refused.body).expect("JSON is text");
            assert!(text.contains(&format!(r#"model \"{asked}\" not found"#)), "{text}");
            assert!(text.contains("bitnet-2b:latest"), "{text}");
        }
    }
}
