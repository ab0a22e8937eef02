//! What an answer has to fit, as a request says it.

/// The form of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum ResponseFormat {
    /// Any text.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that fits a schema, which is here as JSON.
    JsonSchema(String),
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// Text that a grammar derives, in llguidance's form of Lark.
    Grammar(String),
    /// An intent of Home Assistant with names of this home.
    HomeIntent,
}

impl ResponseFormat {
    /// Bytes of its source.
    pub fn text_bytes(&self) -> usize {
        match self {
            ResponseFormat::Text | ResponseFormat::JsonObject | ResponseFormat::HomeIntent => 0,
            ResponseFormat::JsonSchema(text)
            | ResponseFormat::Regex(text)
            | ResponseFormat::Grammar(text) => text.capacity(),
        }
    }

    /// The key of a request that holds its source.
    pub fn key(&self) -> &'static str {
        match self {
            ResponseFormat::Text | ResponseFormat::JsonObject | ResponseFormat::HomeIntent => {
                "response_format"
            }
            ResponseFormat::JsonSchema(_) => "response_format.json_schema.schema",
            ResponseFormat::Regex(_) => "response_format.regex",
            ResponseFormat::Grammar(_) => "response_format.grammar",
        }
    }
}
