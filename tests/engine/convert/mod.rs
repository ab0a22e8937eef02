//! From other forms of a model to a file of this engine's own.

mod writer;
