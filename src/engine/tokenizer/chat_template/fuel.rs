//! What a rendering may cost.

use std::cell::Cell;

/// Bytes of text for one unit of fuel.
const BYTES: usize = 64;

/// Why a rendering failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RenderError {
    pub what: String,
    /// The line of the statement; 0 until it is known.
    pub line: usize,
}

pub(super) type Outcome<T> = Result<T, RenderError>;

pub(super) fn fail<T>(what: impl Into<String>) -> Outcome<T> {
    Err(RenderError { what: what.into(), line: 0 })
}

/// Units of work and memory that are left: about one for each step, each place of a list, and 64 bytes of text.
#[derive(Debug)]
pub(super) struct Fuel(Cell<u64>);

impl Fuel {
    pub fn new(units: u64) -> Self {
        Fuel(Cell::new(units))
    }

    /// Pays for work, before it is done.
    pub fn spend(&self, units: usize) -> Outcome<()> {
        let left = self.0.get().saturating_sub(units as u64);
        self.0.set(left);
        if left == 0 { fail("it takes too much time or memory") } else { Ok(()) }
    }

    /// Pays for texts of so many bytes.
    pub fn spend_bytes(&self, bytes: usize) -> Outcome<()> {
        self.spend(bytes.div_ceil(BYTES))
    }
}
