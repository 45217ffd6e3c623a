//! Listeners: sockets in, connections with a known protocol and peer out.

mod detect;
mod io;
mod listener;

pub use detect::OPAQUE_PORTS;
pub use io::Io;
pub(crate) use listener::{Listening, bind, listen};
