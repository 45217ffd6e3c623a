//! Which addresses a service has.
//!
//! A [`Source`] says where that stands; [`follow`] watches it and publishes the addresses whenever they change, until the
//! process stops. It runs beside the data path, which never waits for it.
//!
//! To add a source: a file here, a variant of [`Source`] and an arm in [`follow`].

use std::path::PathBuf;

use tokio::sync::watch;

use crate::endpoint::place::Place;

pub mod belief;
pub mod dns;
mod file;
pub mod list;
pub mod resolver;
mod status;

pub use resolver::{Config, Resolver};
pub use status::{Report, Status};

/// Where the places of a service stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In the configuration.
    Fixed(Vec<Place>),
    /// In DNS, under one name or several: A, AAAA and SRV records.
    Dns(Vec<dns::Target>),
    /// In a file of their own.
    File(PathBuf),
}

/// Watches `source` and hands its addresses to `publish`, first when they are known and then when they change, until
/// `shutdown` says so or its sender is gone. Nothing is lost when the future is dropped.
///
/// An empty list is published only when it is believed: when the name resolves to nothing for good, never because the
/// resolver is away.
pub async fn follow(
    source: &Source,
    resolver: &Resolver,
    status: &Status,
    publish: impl Fn(Vec<Place>) + Send + Sync,
    mut shutdown: watch::Receiver<bool>,
) {
    let watching = async {
        match source {
            Source::Fixed(places) => {
                publish(places.clone());
                status.settled(places.len());
                std::future::pending::<()>().await;
            }
            Source::Dns(targets) => dns::follow(targets, resolver, status, &publish).await,
            Source::File(path) => file::follow(path, status, &publish).await,
        }
    };
    tokio::select! {
        () = watching => {}
        // An error means that the sender is gone, and with it whoever wanted the addresses.
        _ = shutdown.wait_for(|stop| *stop) => {}
    }
}

#[cfg(test)]
mod tests;
