//! The fuel of a rendering, which bounds its work and memory, and the error of a rendering.

use std::cell::Cell;

/// Bytes of text for one unit of fuel.
const BYTES: usize = 64;

/// The error of a rendering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RenderError {
    /// What is wrong.
    pub message: String,
    /// The line of the statement; 0 until it is known.
    pub line: usize,
}

pub(super) type RenderResult<T> = Result<T, RenderError>;

pub(super) fn fail<T>(message: impl Into<String>) -> RenderResult<T> {
    Err(RenderError { message: message.into(), line: 0 })
}

/// Units of work and memory that are left: about one for each step, each place of a list, and 64 bytes of text.
#[derive(Debug)]
pub(super) struct Fuel(Cell<u64>);

impl Fuel {
    pub fn new(units: u64) -> Self {
        Fuel(Cell::new(units))
    }

    /// Pays for work, before it is done.
    pub fn spend(&self, units: usize) -> RenderResult<()> {
        let left = self.0.get().saturating_sub(units as u64);
        self.0.set(left);
        if left == 0 { fail("it takes too much time or memory") } else { Ok(()) }
    }

    /// Pays for texts of so many bytes.
    pub fn spend_bytes(&self, bytes: usize) -> RenderResult<()> {
        self.spend(bytes.div_ceil(BYTES))
    }
}
