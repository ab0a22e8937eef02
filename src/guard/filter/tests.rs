use super::*;
use crate::random::Lcg;
use regex_automata::{Anchored, meta};
use std::sync::Arc;

fn filter(text: &str) -> Arc<Filter> {
    Arc::new(Filter::parse(text).unwrap_or_else(|error| panic!("{text:?}{error}")))
}

fn error(text: &str) -> String {
    Filter::parse(text).expect_err(text).to_string()
}

/// What the search in these pieces gives out of each, and how it ends.
fn streamed(filter: &Arc<Filter>, pieces: &[&str]) -> (Vec<String>, Result<String, FilterMatch>) {
    let mut stream = FilterStream::new(Arc::clone(filter));
    let mut given = Vec::new();
    for piece in pieces {
        match stream.push(piece) {
            Ok(text) => given.push(text),
            Err(found) => return (given, Err(found)),
        }
    }
    (given, stream.finish())
}

#[test]
fn a_line_is_a_text_or_a_regular_expression() {
    let filter = filter("# words\n\n  bad word \n/[0-9]{4}/\r\n/secret/i\n/Case/\n//etc/passwd/\na+b\n");
    for (text, line) in [
        ("a BAD Word here", Some(3)),
        ("badword", None),
        ("in 2024 it", Some(4)),
        ("SECRET", Some(5)),
        ("Case", Some(6)),
        ("case", None),
        ("cat /etc/passwd", Some(7)),
        ("a+b", Some(8)),
        ("aab", None),
    ] {
        assert_eq!(filter.find(text).map(|found| found.line), line, "{text}");
    }
    assert_eq!(filter.len(), 6);
}

#[test]
fn a_line_that_cannot_be_meant_is_an_error_with_its_number() {
    for (text, expected) in [
        ("ok\n/a(/\n", ":2: is no regular expression: unclosed group"),
        ("/a*/", ":1: matches the empty text"),
        ("\n\n/\\b/", ":3: matches the empty text"),
        ("//", ":1: matches the empty text"),
        ("/[^\\s\\S]/", ":1: can match no text"),
        ("/etc/passwd", ":1: begins with / and is a regular expression"),
        ("/\\w{4000}/", ":1: is too large"),
        ("/(a{1000}){1000}/", ":1: is too large"),
        ("/(?-u:\\xff)/", ":1: is no regular expression: "),
    ] {
        let message = error(text);
        assert!(message.starts_with(expected), "{text}: {message}");
        assert!(!message.contains('\n') && message.len() < 200, "{message}");
    }
    let nested = format!("ok\n/{}a{}/", "(".repeat(100), ")".repeat(100));
    assert!(error(&nested).starts_with(":2: is no regular expression: "), "{}", error(&nested));
    let many = "a\n".repeat(MAX_PATTERNS + 1);
    assert!(error(&many).starts_with(":4097: is one more than"));
    let large: String = (0..40).map(|n| format!("/{n}\\w{{20}}/\n")).collect();
    assert_eq!(error(&large), ": all patterns together are too large; take some out");
    assert!(Filter::parse("# nothing\n").expect("sound").is_empty());
}

#[test]
fn what_can_still_become_a_match_is_held_back_and_nothing_else() {
    let filter = filter("foobar\n/x.z/");
    let (given, end) = streamed(&filter, &["a fo", "of", "oo", " x", "yy", "fooba"]);
    assert_eq!(given, ["a ", "foo", "", "foo ", "xyy", ""]);
    assert_eq!(end, Ok("fooba".into()), "the text is over");
    let (given, end) = streamed(&filter, &["a", " f", "OOb", "a", "r!"]);
    assert_eq!((given.concat().as_str(), end), ("a ", Err(FilterMatch { line: 1 })));
}

#[test]
fn the_end_of_a_word_is_known_with_the_next_character_or_at_the_end() {
    let filter = filter("/\\bhell\\b/");
    assert_eq!(
        streamed(&filter, &["oh hell", "o there"]),
        (vec!["oh ".into(), "hello there".into()], Ok("".into()))
    );
    assert_eq!(streamed(&filter, &["shell", " is"]), (vec!["shell".into(), " is".into()], Ok("".into())));
    assert_eq!(streamed(&filter, &["oh hell", "."]).1, Err(FilterMatch { line: 1 }));
    assert_eq!(streamed(&filter, &["oh hell"]).1, Err(FilterMatch { line: 1 }));
    let end = self::filter("/end$/");
    assert_eq!(streamed(&end, &["the end", " of"]), (vec!["the ".into(), "end of".into()], Ok("".into())));
    assert_eq!(streamed(&end, &["the end"]).1, Err(FilterMatch { line: 1 }));
}

#[test]
fn what_leads_to_no_match_is_not_held_back() {
    let filter = filter("/a(?:b[^\\s\\S]|c)/");
    let (given, _) = streamed(&filter, &["ab", "a", "d"]);
    assert_eq!(given, ["ab", "", "ad"]);
}

/// Patterns whose matches overlap, begin alike, need what comes after them, or are of characters of several bytes.
const PATTERNS: &[&str] = &[
    "abab\n/b+a{2}c/",
    "/\\ba\\b/\n/^c/\n/bb$/",
    "/a.*c/",
    "/(?m)^b+$/\n/\\Bcc\\B/",
    "/é[^é]é/\n/(?i)Éb/",
    "/[a-c]{3,5}\\n/\n/c\\s+a/\nbé",
    "/(a|ab)(c|bcd)/\n/(?:b|\\bc)+é/",
    "/\\b{start}ab/\n/bc\\b{end}/\n/\\b{start-half}é/",
];

const ALPHABET: [char; 9] = ['a', 'a', 'b', 'b', 'c', 'é', ' ', '\n', 'É'];

fn random_text(numbers: &mut Lcg) -> String {
    let length = numbers.next_u32() as usize % 14;
    (0..length).map(|_| ALPHABET[numbers.next_u32() as usize % ALPHABET.len()]).collect()
}

/// The text cut anyhow between its characters.
fn cut<'t>(text: &'t str, numbers: &mut Lcg) -> Vec<&'t str> {
    let mut pieces = vec![""];
    let mut begin = 0;
    for (at, _) in text.char_indices() {
        if numbers.next_u32().is_multiple_of(3) {
            pieces.push(&text[begin..at]);
            begin = at;
        }
    }
    pieces.push(&text[begin..]);
    pieces
}

/// The same patterns in another engine.
fn reference(patterns: &str) -> meta::Regex {
    let patterns = file::patterns(patterns).expect("sound");
    let regexes: Vec<&str> = patterns.iter().map(|pattern| pattern.regex.as_str()).collect();
    meta::Regex::new_many(&regexes).expect("sound")
}

/// Whether a match of the text begins at this place.
fn matches_from(reference: &meta::Regex, text: &str, start: usize) -> bool {
    reference.is_match(Input::new(text).span(start..text.len()).anchored(Anchored::Yes))
}

#[test]
fn where_the_dfa_gives_up_the_text_is_searched_all_the_same_and_memory_is_as_planned() {
    let words: String = (0..1000).map(|word| format!("word {word} of {}\n", word * 7919)).collect();
    let filter = filter(&words);
    let mut numbers = Lcg::new(1);
    // Beginnings of many patterns, none of which is completed.
    let text: String = (0..4000)
        .map(|_| format!("word {} of x{} ", numbers.next_u32() % 1000, numbers.next_u32()))
        .collect();
    assert_eq!(filter.find(&text), None);
    assert!(filter.search(&text).is_err(), "it gave up");
    assert_eq!(filter.find(&format!("{text} word 999 OF 7911081")).map(|found| found.line), Some(1000));
    let cached = filter.cache.lock().expect("no panic").memory_usage();
    // It is cleared once it is full, so it may be a state beyond.
    assert!(cached <= filter.cache_bytes + DFA_BYTES, "{cached} of {}", filter.cache_bytes);
    assert!(filter.bytes(0) < 16 << 20, "{}", filter.bytes(0));
}

#[test]
fn any_split_of_a_text_ends_as_the_whole_does_and_gives_out_no_part_of_a_match() {
    let (mut numbers, mut matched) = (Lcg::new(42), 0);
    for patterns in PATTERNS {
        let (filter, reference) = (filter(patterns), reference(patterns));
        for _ in 0..4000 {
            let text = random_text(&mut numbers);
            let pieces = cut(&text, &mut numbers);
            let (given, end) = streamed(&filter, &pieces);
            let whole = filter.find(&text);
            assert_eq!(reference.is_match(&text), whole.is_some(), "{patterns:?}: {text:?}");
            assert_eq!(end.is_err(), whole.is_some(), "{patterns:?}: {pieces:?}: {end:?} {whole:?}");
            let given = given.concat();
            if let Ok(rest) = end {
                assert_eq!(given + &rest, text, "{pieces:?}");
                continue;
            }
            matched += 1;
            assert!(text.starts_with(&given));
            let begun = (0..given.len()).filter(|at| text.is_char_boundary(*at));
            let begun = begun.filter(|at| matches_from(&reference, &text, *at)).count();
            assert_eq!(begun, 0, "{patterns:?}: {pieces:?}: {given:?} is part of a match");
        }
    }
    assert!((3_000..29_000).contains(&matched), "{matched}: both outcomes are common");
}

#[test]
fn for_whatever_is_held_back_there_is_a_text_that_completes_a_match_from_its_first_character_on() {
    let mut numbers = Lcg::new(7);
    let mut suffixes = vec![String::new()];
    let characters = ['a', 'b', 'c', 'd', 'é', ' ', '\n', 'É'];
    for from in 0..characters.len().pow(2) + characters.len() + 1 {
        let Some(shorter) = suffixes.get(from).cloned() else { break };
        suffixes.extend(characters.iter().map(|c| format!("{shorter}{c}")));
    }
    let mut held = 0;
    for patterns in PATTERNS {
        let (filter, reference) = (filter(patterns), reference(patterns));
        for _ in 0..60 {
            let mut stream = FilterStream::new(Arc::clone(&filter));
            let (mut text, mut given) = (String::new(), String::new());
            for c in random_text(&mut numbers).chars() {
                let Ok(more) = stream.push(c.encode_utf8(&mut [0; 4])) else { break };
                text.push(c);
                given.push_str(&more);
                if !stream.is_holding() {
                    assert_eq!(given, text);
                    continue;
                }
                held += 1;
                let completed =
                    |suffix: &String| matches_from(&reference, &format!("{text}{suffix}"), given.len());
                assert!(suffixes.iter().any(completed), "{patterns:?}: {text:?} after {given:?}");
            }
        }
    }
    assert!(held > 200, "{held}");
}

#[test]
fn a_long_text_that_is_held_back_for_long_takes_time_in_proportion() {
    let filter = filter("/a.*b/\n/(a|aa)+c/\n/(?:a?){30}a{30}d/");
    let mut stream = FilterStream::new(filter);
    for _ in 0..20_000 {
        assert_eq!(stream.push("a"), Ok(String::new()));
    }
    assert_eq!(stream.push("\n").map(|text| text.len()), Ok(20_001));
}
