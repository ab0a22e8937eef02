//! Checks a JSON schema before it is compiled: every keyword is one that is enforced, or says nothing about values.
//!
//! The library ignores some keywords, and takes its time over others. Here each is refused by name and place; so are
//! references that lead back to themselves, and schemas that are too large.

use super::GrammarError;
use serde_json::{Map, Value};

/// How deep subschemas may be nested.
const MAX_DEPTH: usize = 32;
/// Subschemas of a schema.
const MAX_SUBSCHEMAS: usize = 2_000;
/// Values in all of `enum` and `const`, those inside lists and objects included.
const MAX_VALUES: usize = 2_000;
/// Alternatives of `anyOf`, `oneOf`, `allOf` in all.
const MAX_BRANCHES: usize = 200;
/// Bytes of one `pattern`.
const MAX_PATTERN_BYTES: usize = 1_000;
/// The largest of the numbers that limit lengths and counts.
const MAX_COUNT: u64 = 10_000;
/// The largest number of items, each of which the grammar writes out.
const MAX_ITEMS: u64 = 1_000;

/// Combinations of alternatives of subschemas that all have to fit: the library writes out each.
const MAX_COMBINATIONS: usize = 500;
/// References that are followed one behind the other to count these.
const MAX_FOLLOWED: usize = 16;

/// What the value of a keyword is.
enum Keyword {
    /// One subschema.
    Schema,
    /// A list of subschemas, all of which are about the same value.
    Branches,
    /// A list of subschemas.
    List,
    /// An object of subschemas.
    Map,
    /// Values.
    Values,
    /// A whole number.
    Count(u64),
    /// A regular expression.
    Pattern,
    /// A reference.
    Reference,
    /// The name of a format.
    Format,
    /// Something else that the library checks.
    Other,
    /// Only for readers; anything goes.
    Annotation,
}

/// The keywords that are enforced, and those for readers.
fn keyword(name: &str) -> Option<Keyword> {
    Some(match name {
        "items" | "additionalProperties" => Keyword::Schema,
        "allOf" | "anyOf" | "oneOf" => Keyword::Branches,
        "prefixItems" => Keyword::List,
        "properties" | "patternProperties" | "$defs" | "definitions" => Keyword::Map,
        "const" | "enum" => Keyword::Values,
        "minLength" | "maxLength" | "minProperties" | "maxProperties" => Keyword::Count(MAX_COUNT),
        "minItems" | "maxItems" => Keyword::Count(MAX_ITEMS),
        "pattern" => Keyword::Pattern,
        "$ref" => Keyword::Reference,
        "format" => Keyword::Format,
        "type" | "required" | "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum"
        | "multipleOf" => Keyword::Other,
        "title" | "description" | "default" | "examples" | "$comment" | "deprecated" | "readOnly"
        | "writeOnly" => Keyword::Annotation,
        _ => return None,
    })
}

/// The formats that are enforced.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// The drafts in which the supported keywords mean what they mean here.
const DRAFTS: [&str; 3] = [
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
];

/// Checks a whole schema.
pub(super) fn check(schema: &Value) -> Result<(), GrammarError> {
    let mut walk = Walk { root: schema, subschemas: 0, values: 0, branches: 0 };
    walk.schema(schema, &Place::Root, 0)
}

/// A place in the schema, as a list of keys from the innermost outwards.
enum Place<'p> {
    Root,
    Key(&'p Place<'p>, &'p str),
    Index(&'p Place<'p>, usize),
}

impl Place<'_> {
    fn write(&self, out: &mut String) {
        match self {
            Place::Root => out.push('#'),
            Place::Key(outer, key) => {
                outer.write(out);
                let key = key.replace('~', "~0").replace('/', "~1");
                out.push('/');
                out.push_str(&crate::engine::error::escaped(&key));
            }
            Place::Index(outer, index) => {
                outer.write(out);
                out.push_str(&format!("/{index}"));
            }
        }
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, GrammarError> {
        let mut place = String::new();
        self.write(&mut place);
        Err(GrammarError::new(place, message))
    }
}

struct Walk<'s> {
    root: &'s Value,
    subschemas: usize,
    values: usize,
    branches: usize,
}

impl<'s> Walk<'s> {
    fn schema(&mut self, schema: &'s Value, place: &Place<'_>, depth: usize) -> Result<(), GrammarError> {
        self.subschemas += 1;
        if self.subschemas > MAX_SUBSCHEMAS {
            return place.error(format!("more than {MAX_SUBSCHEMAS} subschemas"));
        }
        if depth > MAX_DEPTH {
            return place.error(format!("more than {MAX_DEPTH} subschemas inside one another"));
        }
        let keys = match schema {
            Value::Object(keys) => keys,
            Value::Bool(_) => return Ok(()),
            _ => return place.error("a schema is an object, true or false"),
        };
        for (name, value) in keys {
            let here = Place::Key(place, name);
            match keyword(name) {
                Some(kind) => self.value(kind, value, &here, depth)?,
                None if matches!(place, Place::Root) && ["$schema", "$id"].contains(&name.as_str()) => {
                    check_root_key(name, value, &here)?;
                }
                None => return here.error("this keyword is not supported; leave it out"),
            }
        }
        check_order(keys, place)?;
        self.check_reference(schema, place)?;
        if keys.contains_key("allOf") && self.combinations(schema, 0) > MAX_COMBINATIONS {
            return Place::Key(place, "allOf")
                .error(format!("more than {MAX_COMBINATIONS} combinations of alternatives"));
        }
        Ok(())
    }

    /// How many alternatives a schema has once all that must fit together is written out, or more than are allowed.
    fn combinations(&self, schema: &Value, followed: usize) -> usize {
        let each = |name: &str| schema.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let mut product = each("enum").len().max(1);
        for branches in ["anyOf", "oneOf"].map(each).into_iter().filter(|branches| !branches.is_empty()) {
            let mut sum = 0usize;
            for branch in branches {
                sum = sum.saturating_add(self.combinations(branch, followed));
                if sum > MAX_COMBINATIONS {
                    return sum;
                }
            }
            product = product.saturating_mul(sum.max(1));
        }
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|target| self.resolve(target));
        let target = target.filter(|_| followed < MAX_FOLLOWED);
        for part in each("allOf").iter().chain(target) {
            if product > MAX_COMBINATIONS {
                break;
            }
            product = product.saturating_mul(self.combinations(part, followed + 1));
        }
        product
    }

    fn value(
        &mut self,
        kind: Keyword,
        value: &'s Value,
        place: &Place<'_>,
        depth: usize,
    ) -> Result<(), GrammarError> {
        match kind {
            Keyword::Schema if value.is_array() => place.error("a list; use prefixItems"),
            Keyword::Schema => self.schema(value, place, depth + 1),
            Keyword::Branches | Keyword::List => {
                let Some(schemas) = value.as_array() else { return place.error("no list of schemas") };
                if matches!(kind, Keyword::Branches) {
                    self.branches += schemas.len();
                }
                if self.branches > MAX_BRANCHES {
                    return place.error(format!("more than {MAX_BRANCHES} alternatives in all"));
                }
                (0..)
                    .zip(schemas)
                    .try_for_each(|(at, schema)| self.schema(schema, &Place::Index(place, at), depth + 1))
            }
            Keyword::Map => {
                let Some(schemas) = value.as_object() else { return place.error("no object of schemas") };
                schemas
                    .iter()
                    .try_for_each(|(key, schema)| self.schema(schema, &Place::Key(place, key), depth + 1))
            }
            Keyword::Values => self.count_values(value, place),
            Keyword::Count(most) => match count(value) {
                Some(count) if count <= most => Ok(()),
                Some(_) => place.error(format!("at most {most}")),
                None => place.error("no whole number of at least 0"),
            },
            Keyword::Pattern => match value.as_str() {
                Some(pattern) if pattern.len() <= MAX_PATTERN_BYTES => Ok(()),
                Some(_) => place.error(format!("at most {MAX_PATTERN_BYTES} bytes")),
                None => place.error("no string"),
            },
            Keyword::Format => match value.as_str() {
                Some(name) if FORMATS.contains(&name) => Ok(()),
                _ => place.error("this format is not supported; leave it out"),
            },
            Keyword::Reference => match value.as_str() {
                // The library reads no escapes.
                Some(target) if target.contains(['~', '%']) => {
                    place.error("escapes in a reference are not supported; give the definition a plain name")
                }
                Some(target) if target == "#" || target.starts_with("#/") => Ok(()),
                _ => place.error("only references into this schema are supported, as #/$defs/name"),
            },
            Keyword::Other | Keyword::Annotation => Ok(()),
        }
    }

    fn count_values(&mut self, value: &Value, place: &Place<'_>) -> Result<(), GrammarError> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return place.error(format!("more than {MAX_VALUES} values in all"));
        }
        match value {
            Value::Array(values) => values.iter().try_for_each(|value| self.count_values(value, place)),
            Value::Object(values) => values.values().try_for_each(|value| self.count_values(value, place)),
            _ => Ok(()),
        }
    }

    /// Refuses a schema that is about itself: by references and alternatives alone one comes back to it.
    fn check_reference(&self, schema: &'s Value, place: &Place<'_>) -> Result<(), GrammarError> {
        if schema.get("$ref").is_none() {
            return Ok(());
        }
        let mut seen: Vec<&Value> = Vec::new();
        let mut open = vec![schema];
        while let Some(next) = open.pop() {
            if seen.iter().any(|seen| std::ptr::eq(*seen, next)) {
                continue;
            }
            seen.push(next);
            let branches = ["allOf", "anyOf", "oneOf"].iter().filter_map(|name| next.get(name)?.as_array());
            open.extend(branches.flatten());
            if let Some(target) = next.get("$ref").and_then(Value::as_str) {
                let Some(target) = self.resolve(target) else {
                    return Place::Key(place, "$ref").error("leads nowhere in this schema");
                };
                open.push(target);
            }
            if open.iter().any(|open| std::ptr::eq(*open, schema)) {
                return Place::Key(place, "$ref").error("leads back to itself");
            }
        }
        Ok(())
    }

    fn resolve(&self, reference: &str) -> Option<&'s Value> {
        self.root.pointer(reference.strip_prefix('#')?)
    }
}

/// A count; 2.0 is one.
fn count(value: &Value) -> Option<u64> {
    let float = value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..1e15).contains(number));
    value.as_u64().or(float.map(|number| number as u64))
}

fn check_root_key(name: &str, value: &Value, place: &Place<'_>) -> Result<(), GrammarError> {
    let text = value.as_str().unwrap_or_default();
    match name {
        "$schema" if !DRAFTS.contains(&text.trim_end_matches('#')) => {
            place.error("this draft is not supported; use 2020-12")
        }
        _ => Ok(()),
    }
}

/// Refuses a least that is above its most: the library would panic over some.
fn check_order(keys: &Map<String, Value>, place: &Place<'_>) -> Result<(), GrammarError> {
    let pairs = [("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties")];
    let number = |name: &str| keys.get(name).and_then(count);
    for (least, most) in pairs {
        if let (Some(low), Some(high)) = (number(least), number(most))
            && low > high
        {
            return Place::Key(place, least).error(format!("{low} is above {most}, {high}"));
        }
    }
    Ok(())
}

/// Writes every whole number without a fraction, as the library wants counts: 2.0 means 2.
pub(super) fn write_integers(value: &mut Value) {
    /// Up to here every whole number is a float of its own.
    const LARGEST: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Array(values) => values.iter_mut().for_each(write_integers),
        Value::Object(values) => values.values_mut().for_each(write_integers),
        Value::Number(number) if number.is_f64() => {
            let whole = number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() <= LARGEST);
            if let Some(whole) = whole {
                *value = Value::from(whole as i64);
            }
        }
        _ => {}
    }
}
