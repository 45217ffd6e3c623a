//! Exchanges told as stories, over real sockets.

#![allow(clippy::unwrap_used)]

mod accounting;
mod early;
mod framing;
mod interim;
mod requests;
mod retries;
