//! What is said stays what it is, whatever a template does with it.
