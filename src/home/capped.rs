//! JSON arrays and objects of which only a limited number of elements is kept.
//!
//! A retained payload has up to 1 MiB, and an array of 300,000 empty objects would take a hundred times its bytes once
//! it is parsed. Deliberately knows nothing of what the elements are.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// At most `MAX` elements of an array, or values of an object; the rest is skipped.
#[derive(Debug)]
pub struct Capped<T, const MAX: usize>(pub Vec<T>);

impl<T, const MAX: usize> Default for Capped<T, MAX> {
    fn default() -> Self {
        Capped(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Capped<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Elements::<T, MAX>(PhantomData))
    }
}

struct Elements<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Elements<T, MAX> {
    type Value = Capped<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array or an object")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Capped::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < MAX {
            match elements.next_element()? {
                Some(element) => kept.push(element),
                None => return Ok(Capped(kept)),
            }
        }
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Capped(kept))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < MAX {
            match elements.next_entry::<IgnoredAny, T>()? {
                Some((_, element)) => kept.push(element),
                None => return Ok(Capped(kept)),
            }
        }
        while elements.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Capped(kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_beyond_the_limit_are_skipped_but_must_be_json() {
        let read = |text: &str| serde_json::from_str::<Capped<u8, 2>>(text).map(|capped| capped.0);
        assert_eq!(read("[1,2,3,4]").expect("sound"), [1, 2]);
        assert_eq!(read(r#"{"a":1,"b":2,"c":"x"}"#).expect("sound"), [1, 2]);
        assert!(read("null").expect("sound").is_empty());
        assert!(read("[1,2,3,").is_err() && read("7").is_err());
    }
}
