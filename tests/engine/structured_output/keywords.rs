//! The keywords of JSON schemas.
