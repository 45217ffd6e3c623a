//! Our HTTP/1.1: strict heads (httparse inside, `http` types outside) and framing rules, without I/O.

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod differ;
pub mod encode;
pub mod frame;
#[doc(hidden)]
pub mod fuzz;
pub mod parse;
