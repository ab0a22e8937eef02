//! Functions that a model may call, and its calls.

use crate::external_text::JsonValue;
use serde::ser::{Serialize, SerializeStruct, Serializer};

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name, which no other of the request has.
    pub name: String,
    /// The whole entry of the request: `{"type":"function","function":{…}}`.
    pub definition: JsonValue,
}

impl Tool {
    /// The schema of its arguments.
    pub fn parameters(&self) -> Option<&JsonValue> {
        self.definition.get("function")?.get("parameters").filter(|schema| **schema != JsonValue::Null)
    }
}

/// Which of the functions the answer has to call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolChoice {
    /// Any of them, or none.
    #[default]
    Auto,
    /// None: they are not shown to the model.
    None,
    /// One at least.
    Required,
    /// This one, once.
    Named(String),
}

/// A call of a function.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Tells calls of one conversation apart.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its arguments, an object.
    pub arguments: JsonValue,
}

impl ToolCall {
    /// Memory of its texts in bytes.
    pub fn text_bytes(&self) -> usize {
        self.id.capacity() + self.name.capacity() + self.arguments.bytes() + size_of::<Self>()
    }
}

/// In OpenAI's form, but for the arguments, which are an object and no text.
impl Serialize for ToolCall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Function<'a> {
            name: &'a str,
            arguments: &'a JsonValue,
        }
        let mut call = serializer.serialize_struct("ToolCall", 3)?;
        call.serialize_field("id", &self.id)?;
        call.serialize_field("type", "function")?;
        call.serialize_field("function", &Function { name: &self.name, arguments: &self.arguments })?;
        call.end()
    }
}
