//! End-to-end tests.
mod check;
