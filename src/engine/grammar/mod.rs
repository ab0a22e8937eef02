//! Structured output: a JSON schema, a regular expression or a grammar becomes a constraint, which says before each
//! token which tokens may come next, and which must.
//!
//! ```text
//! Tokenizer ── new ──> GrammarCompiler ── compile(GrammarSource) ──> Constraint ── next ──> Forced | Choice | End
//!            (token trie, once)                                    (one an answer)
//! ```
//!
//! The parsing is `llguidance`'s: an Earley parser over lexemes that are derivatives of regular expressions, and a
//! trie of the vocabulary. This folder is its only user. What it does not do is done here: every keyword of a schema
//! that it does not enforce is refused by name, and the size of all sources is bounded before they are compiled.
//!
//! Deliberately knows no model and no sampling: token ids go in, and sets of token ids come out.

mod constraint;
mod lark_check;
mod schema_check;
mod token_env;
mod tool_calls;

pub use constraint::{Constraint, NextTokens};
pub use tool_calls::{Callable, OtherAnswer, arguments_schema, tool_grammar};

use super::tokenizer::Tokenizer;
use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{InferenceCapabilities, SimpleVob};
use llguidance::{JsonCompileOptions, ParserFactory};
use serde_json::Value;
use std::fmt;
use std::sync::Arc;
use token_env::TrieTokenizer;

/// Bytes that the source of a grammar may have: as many as a whole request.
pub const MAX_SOURCE_BYTES: usize = 64 << 10;
/// Bytes that a regular expression may have.
pub const MAX_REGEX_BYTES: usize = 4 << 10;

/// What an answer is to fit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GrammarSource {
    /// Any JSON object.
    JsonObject,
    /// A JSON schema, as JSON.
    JsonSchema(String),
    /// A regular expression that matches the whole answer, in the syntax of Rust's `regex`.
    Regex(String),
    /// A context-free grammar in llguidance's form of Lark; the answer is derived from its rule `start`.
    Lark(String),
}

/// Why a grammar cannot be used. Its text is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrammarError {
    /// Where in the source: a JSON pointer in a schema, a line and column in a grammar; empty for the whole.
    pub place: String,
    /// What is wrong there.
    pub message: String,
}

impl GrammarError {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        GrammarError { place: place.into(), message: message.into() }
    }

    /// The error of the library as one line: it shows the source around the place, and may show a backtrace.
    fn of_library(message: &str) -> Self {
        /// The longest message; longer ones repeat the source.
        const MAX_CHARS: usize = 200;
        const TOO_COMPLEX: [&str; 4] = ["oo many ", "too large", "too complex", "TooComplex"];
        let (place, rest) = split_place(message);
        if TOO_COMPLEX.iter().any(|words| rest.contains(words)) {
            return GrammarError::new(place, "too complex; make it smaller");
        }
        if rest.contains("NoExtension") {
            return GrammarError::new(place, constraint::DEAD_END);
        }
        if rest.contains("oneOf constraints") {
            return GrammarError::new(place, "oneOf: its alternatives may overlap; use anyOf");
        }
        // An expression is shown with a mark below the place, and the reason in the last line.
        let reason = rest.lines().find_map(|line| line.strip_prefix("error: "));
        let line = match reason {
            Some(reason) => format!("no regular expression: {reason}"),
            None => rest.lines().next().unwrap_or_default().trim().to_owned(),
        };
        let line = line.replace("Unsatisfiable schema", "unsatisfiable");
        let shown: String = line.chars().filter(|c| !c.is_control()).take(MAX_CHARS).collect();
        GrammarError::new(place, if shown.is_empty() { "cannot be compiled".to_owned() } else { shown })
    }
}

/// Splits off the place before a message of the library: `at 3(14): …` and `3(14): …`.
fn split_place(message: &str) -> (String, &str) {
    let place = || {
        let (place, rest) = message.strip_prefix("at ").unwrap_or(message).split_once("): ")?;
        let (line, column) = place.split_once('(')?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        (is_number(line) && is_number(column)).then(|| (format!("line {line}, column {column}"), rest))
    };
    place().unwrap_or((String::new(), message))
}

impl fmt::Display for GrammarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place.as_str() {
            "" => f.write_str(&self.message),
            place => write!(f, "{place}: {}", self.message),
        }
    }
}

impl std::error::Error for GrammarError {}

/// Limits of what a client may ask for: compiling takes some 10 ms, the hardest sources up to 100 ms, and the automata that a constraint builds while it runs take [`CONSTRAINT_BYTES`] at most.
const CLIENT_LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2_000,
    initial_lexer_fuel: 400_000,
    step_lexer_fuel: 100_000,
    step_max_items: 20_000,
    max_lexer_states: 2_500,
    max_grammar_size: 50_000,
    precompute_large_lexemes: false,
    verbose_errors: false,
};

/// Limits of grammars that the program makes itself, of thousands of names.
const OWN_LIMITS: ParserLimits = ParserLimits {
    initial_lexer_fuel: 4_000_000,
    step_lexer_fuel: 400_000,
    step_max_items: 50_000,
    max_lexer_states: 20_000,
    max_grammar_size: 500_000,
    ..CLIENT_LIMITS
};

/// The memory that one constraint takes at most while it runs, in bytes, as measured with hostile grammars.
pub const CONSTRAINT_BYTES: usize = 4 << 20;

/// Compiles grammars for one vocabulary. Holds the trie of its tokens, and is made once for a model.
pub struct GrammarCompiler {
    factory: ParserFactory,
    /// Tokens that are text, and the end tokens: no other may ever be produced.
    producible: Arc<SimpleVob>,
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").field("vocab", &self.producible.len()).finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// Makes the trie of a vocabulary: some tenths of a second and [`GrammarCompiler::trie_bytes`] for a large one.
    ///
    /// # Errors
    /// When the library rejects the vocabulary.
    pub fn new(tokenizer: &Arc<Tokenizer>) -> Result<Self, GrammarError> {
        let env = TrieTokenizer::new(tokenizer);
        let producible = Arc::new(env.producible());
        let env: llguidance::toktrie::TokEnv = Arc::new(env);
        let inference = InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() };
        let mut factory = ParserFactory::new(&env, inference, token_env::SLICES)
            .map_err(|error| GrammarError::of_library(&error.to_string()))?;
        factory.quiet();
        Ok(GrammarCompiler { factory, producible })
    }

    /// The memory of the trie for a vocabulary of `tokens` tokens with `text_bytes` bytes of text, while it is made.
    pub fn trie_bytes(tokens: usize, text_bytes: usize) -> usize {
        token_env::planned_bytes(tokens, text_bytes)
    }

    /// Compiles what a client sent.
    ///
    /// # Errors
    /// A source that is malformed, too large, or asks for what is not enforced; the error names the place.
    pub fn compile(&self, source: &GrammarSource) -> Result<Constraint, GrammarError> {
        let grammar = match source {
            GrammarSource::JsonObject => json_grammar(serde_json::json!({ "type": "object" })),
            GrammarSource::JsonSchema(text) => json_grammar(parsed_schema(text)?),
            GrammarSource::Regex(regex) => {
                within(regex.len(), MAX_REGEX_BYTES)?;
                GrammarWithLexer::from_regex(regex)
            }
            GrammarSource::Lark(text) => {
                within(text.len(), MAX_SOURCE_BYTES)?;
                lark_check::check(text)?;
                GrammarWithLexer::from_lark(text.clone())
            }
        };
        let compiled = self.constraint(grammar, CLIENT_LIMITS);
        match source {
            // Its place would be that in a grammar made of it.
            GrammarSource::Regex(_) => compiled.map_err(|error| GrammarError::new("", error.message)),
            _ => compiled,
        }
    }

    /// Compiles a grammar that this program made of many names, in the same form of Lark, under wider limits. See
    /// [`quoted`] for texts in it.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn compile_own(&self, lark: &str) -> Result<Constraint, GrammarError> {
        self.constraint(GrammarWithLexer::from_lark(lark.to_owned()), OWN_LIMITS)
    }

    fn constraint(
        &self,
        grammar: GrammarWithLexer,
        limits: ParserLimits,
    ) -> Result<Constraint, GrammarError> {
        let grammar = TopLevelGrammar::from_grammar(grammar);
        let init = llguidance::api::GrammarInit::Serialized(grammar);
        let inference = InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() };
        let parser =
            self.factory.create_parser_from_init_ext(init, llguidance::Logger::new(0, 0), inference, limits);
        let parser = parser.map_err(|error| GrammarError::of_library(&error.to_string()))?;
        Constraint::new(parser, &self.producible)
    }
}

/// A text as a literal of the grammar language.
pub fn quoted(text: &str) -> String {
    // The form of a JSON string; but for the control characters, which the language has only in regular expressions.
    serde_json::to_string(text).expect("a string is JSON")
}

/// Checks a JSON schema without compiling it.
///
/// # Errors
/// What is no schema, is too large, or has a keyword that is not enforced; the error names the place.
pub fn check_schema(text: &str) -> Result<(), GrammarError> {
    parsed_schema(text).map(|_| ())
}

fn within(bytes: usize, most: usize) -> Result<(), GrammarError> {
    if bytes <= most {
        return Ok(());
    }
    Err(GrammarError::new("", format!("{bytes} bytes; at most {most}")))
}

fn parsed_schema(text: &str) -> Result<Value, GrammarError> {
    within(text.len(), MAX_SOURCE_BYTES)?;
    let mut schema: Value =
        serde_json::from_str(text).map_err(|error| GrammarError::new("", format!("not JSON: {error}")))?;
    schema_check::check(&schema)?;
    schema_check::write_integers(&mut schema);
    Ok(schema)
}

/// The grammar of a schema that was checked. Answers are compact JSON: no white space between its tokens.
fn json_grammar(mut schema: Value) -> GrammarWithLexer {
    set_compact(&mut schema);
    GrammarWithLexer::from_json_schema(schema)
}

/// The key of a schema by which the library takes [`compact_options`].
const OPTIONS_KEY: &str = "x-guidance";

fn compact_options() -> JsonCompileOptions {
    JsonCompileOptions { whitespace_flexible: false, ..JsonCompileOptions::default() }
}

/// Makes a schema one of JSON without white space between its tokens.
fn set_compact(schema: &mut Value) {
    if !schema.is_object() {
        *schema = serde_json::json!({ "allOf": [schema.take()] });
    }
    if let Some(keys) = schema.as_object_mut() {
        // All are read as the newest draft: what the supported keywords mean has not changed.
        keys.remove("$schema");
    }
    compact_options().apply_to(schema);
}

/// Takes out what [`set_compact`] has set.
fn unset_compact(schema: &mut Value) {
    let mut set = Value::Object(serde_json::Map::new());
    compact_options().apply_to(&mut set);
    if let Some(keys) = schema.as_object_mut().filter(|keys| keys.get(OPTIONS_KEY) == set.get(OPTIONS_KEY)) {
        keys.remove(OPTIONS_KEY);
    }
}
