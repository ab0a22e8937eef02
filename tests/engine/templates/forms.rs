//! The forms of the families.
