//! The command line: one file a command.
//!
//! Deliberately knows no exit by itself: a command returns, and `main` says how it went.

pub mod ask;

/// Why a command failed, in one line, and the exit code that says so to programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// 2 wrong usage or configuration, 3 the model cannot be used, 4 no daemon answers, 5 refused.
    pub code: u8,
    /// One line: the place, and the way out.
    pub message: String,
}
