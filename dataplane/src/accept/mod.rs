//! Listeners: sockets in, connections with a known protocol and peer out.

mod captured;
mod detect;
mod io;
mod listener;
mod misplaced;
mod name;
mod original;
pub(crate) mod permitted;

pub use detect::OPAQUE_PORTS;
pub use io::Io;
pub(crate) use listener::{Listening, bind, listen};
