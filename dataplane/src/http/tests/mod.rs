//! Exchanges told as stories, over real sockets.

#![allow(clippy::unwrap_used)]

mod accounting;
mod drain;
mod early;
mod framing;
mod idle;
mod interim;
mod leaving;
mod peers;
mod plans;
mod pressure;
mod requests;
mod retries;
mod reuse;
mod tunnel;
mod unread;
mod verdicts;
