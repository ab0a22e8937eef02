//! From a request's `response_format` to the constraint of its answer. Deliberately knows no queue and no clients.

use crate::engine::Engine;
use crate::engine::grammar::{Constraint, GrammarSource};
use crate::protocol::{Code, Refusal, ResponseFormat};

/// The constraint of an answer; `None` where any text will do. `unplanned`: why the memory plan has no place for a
/// grammar, where it has none.
pub(super) fn constraint(
    engine: &Engine,
    format: &ResponseFormat,
    unplanned: Option<&str>,
) -> Result<Option<Constraint>, Refusal> {
    let source = match format {
        // What fits a home is compiled in `home_intent`.
        ResponseFormat::Text | ResponseFormat::HomeIntent => return Ok(None),
        ResponseFormat::JsonObject => GrammarSource::JsonObject,
        ResponseFormat::JsonSchema(schema) => GrammarSource::JsonSchema(schema.clone()),
        ResponseFormat::Regex(regex) => GrammarSource::Regex(regex.clone()),
        ResponseFormat::Grammar(grammar) => GrammarSource::Lark(grammar.clone()),
    };
    if let Some(why) = unplanned {
        return Err(Refusal::new(Code::BudgetExceeded, format!("response_format: {why}")));
    }
    let invalid = |error| Refusal::new(Code::InvalidRequest, format!("{}: {error}", format.key()));
    let grammars = engine.grammars().map_err(invalid)?;
    grammars.compile(&source).map(Some).map_err(invalid)
}
