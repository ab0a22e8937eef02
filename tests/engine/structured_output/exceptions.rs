//! Cases of the official test suite that turn out otherwise here, each with its reason.

/// A case, or with an empty `test` a whole group whose schema is refused.
pub struct Exception {
    pub file: &'static str,
    pub group: &'static str,
    pub test: &'static str,
}

pub const EXCEPTIONS: &[Exception] = &[];
