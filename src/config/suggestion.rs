//! The key that somebody probably meant, for the error about one that there is not. Deliberately knows no key.

/// How alike two words have to be, from 0 to 1, as clap asks of commands.
const LEAST_LIKENESS: f64 = 0.7;

/// The message of the TOML reader about an unknown field, with the most similar of the fields that it lists.
pub(super) fn with_suggestion(message: &str) -> String {
    let found = message.strip_prefix("unknown field `").and_then(|rest| {
        let (unknown, rest) = rest.split_once('`')?;
        let expected = rest.split('`').skip(1).step_by(2);
        let alike = expected.map(|name| (strsim::jaro(unknown, name), name));
        alike.filter(|(likeness, _)| *likeness > LEAST_LIKENESS).max_by(|(a, _), (b, _)| a.total_cmp(b))
    });
    match found {
        Some((_, name)) => format!("{message}; did you mean `{name}`?"),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_nearly_right_is_suggested() {
        let of =
            |name: &str| format!("unknown field `{name}`, expected one of `path`, `context`, `i2s_layout`");
        assert_eq!(with_suggestion(&of("paht")), format!("{}; did you mean `path`?", of("paht")));
        assert_eq!(with_suggestion(&of("colour")), of("colour"));
        let single = "unknown field `levle`, expected `level`";
        assert_eq!(with_suggestion(single), format!("{single}; did you mean `level`?"));
        for other in ["", "unknown field `", "invalid type: string \"a\", expected u64"] {
            assert_eq!(with_suggestion(other), other);
        }
    }
}
