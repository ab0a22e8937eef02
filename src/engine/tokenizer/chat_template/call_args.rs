//! The arguments of a call, and how they are bound to the names of the parameters.

use super::fuel::{RenderResult, fail};
use super::value::Value;

/// Arguments of a call.
#[derive(Debug, Default)]
pub(super) struct CallArgs {
    pub positional: Vec<Value>,
    pub named: Vec<(String, Value)>,
}

impl CallArgs {
    /// The arguments by the names of the parameters.
    pub fn bind<const N: usize>(self, what: &str, names: [&str; N]) -> RenderResult<[Option<Value>; N]> {
        let mut bound = [const { None }; N];
        if self.positional.len() > N {
            return fail(format!("{what} takes at most {N} arguments"));
        }
        for (at, value) in self.positional.into_iter().enumerate() {
            bound[at] = Some(value);
        }
        for (name, value) in self.named {
            match names.iter().position(|known| *known == name) {
                Some(at) if bound[at].is_none() => bound[at] = Some(value),
                _ => return fail(format!("{what} has no argument {name}, or has it twice")),
            }
        }
        Ok(bound)
    }
}
