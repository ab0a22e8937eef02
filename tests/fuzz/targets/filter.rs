//! The guard's filter: a file of patterns, then the pieces of a text, with a zero byte before each. Whatever the patterns
//! are, the pieces end as the whole text does, and what is given out is a beginning of it.

#![no_main]

use bitnetd::guard::filter::{Filter, FilterStream};
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let filter = match Filter::parse(file) {
        Ok(filter) => Arc::new(filter),
        Err(error) => {
            assert!(!error.to_string().contains('\n'));
            assert!(error.line.is_none_or(|line| (1..=file.lines().count()).contains(&line)));
            return;
        }
    };
    let (mut stream, mut given, mut whole) =
        (FilterStream::new(Arc::clone(&filter)), String::new(), String::new());
    let mut is_found = false;
    for piece in parts {
        whole.push_str(piece);
        if !is_found {
            match stream.push(piece) {
                Ok(text) => given.push_str(&text),
                Err(_) => is_found = true,
            }
        }
    }
    match stream.finish() {
        Ok(rest) => assert_eq!(given + &rest, whole),
        Err(_) => {
            is_found = true;
            assert!(whole.starts_with(&given));
        }
    }
    assert_eq!(is_found, filter.find(&whole).is_some());
});
