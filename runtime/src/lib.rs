//! What every long-running process of Weft needs that has nothing to do with proxying.
//!
//! A process begins by reading its [`config`], raising its [`descriptors`] and starting its [`telemetry`]. Then everything it does
//! is a named task of one [`task::Group`], so that nothing fails unseen. What must be there before traffic may come holds a guard
//! of [`ready::Readiness`]; the [`admin`] pages tell the rest of the world. A [`signal`] begins the [`drain`]: what runs holds a
//! guard of it and may finish, and the process ends when the last guard is dropped or the time is up.

pub mod admin;
pub mod backoff;
pub mod config;
pub mod descriptors;
pub mod drain;
pub mod ready;
pub mod signal;
pub mod task;
pub mod telemetry;
