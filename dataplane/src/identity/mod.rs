//! Who we are and who the peer is: SPIFFE identities, our certificate and bundle.
//!
//! A process gets its identity from a [`Source`] before it is ready ([`Source::obtain`]), and [`Source::keep`] holds it
//! fresh: by asking the CA when half of the certificate's life is over ([`renew`]), or by following files ([`files`]).
//! Everybody else holds an [`Identity`] and asks it for what they need at the moment they need it: new connections use
//! what is current, old connections live on.

mod bundle;
mod claim;
pub mod client;
pub mod files;
mod id;
mod keys;
mod material;
mod ours;
mod problem;
pub mod renew;
mod source;
mod svid;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod token;
mod verify;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::{ClientConfig, ServerConfig};

use crate::foreign::Foreigners;

pub use bundle::{Bundle, MAX_ROOTS};
pub use claim::noting;
pub use files::Config;
pub use id::{IdError, MAX_ID_BYTES, MAX_TRUST_DOMAIN_BYTES, SpiffeId, TrustDomain};
pub use keys::Key;
pub use material::{Material, MaterialProblem, Part};
pub use ours::Ours;
pub use problem::{PeerProblem, Refusal};
pub use source::Source;
pub use svid::{Purpose, Svid, ends};
pub use tls::{Alpn, server_name};
pub use token::{JoinToken, TokenSource};
pub use verify::{peer_identity, provider};

/// How many services' client configurations are kept ready. With more, those kept are dropped and made anew as needed.
pub const MAX_CLIENT_CONFIGS: usize = 1024;

/// The identity of this process, shared by all its threads. Reading it takes no lock.
pub struct Identity {
    state: ArcSwap<State>,
    /// Held while one state is made from another, so that a renewal and a new bundle do not undo one another.
    changing: Mutex<()>,
    renewals: AtomicU64,
    renewal_failures: AtomicU64,
    last_error: ArcSwapOption<String>,
    /// Those who could not prove to us who they are, or we to them.
    foreigners: Arc<Foreigners>,
}

/// All that hangs on one generation, and goes with it.
struct State {
    material: Arc<Material>,
    server: Arc<ServerConfig>,
    /// Guards only the table; taken once per new connection, never per exchange.
    clients: Mutex<HashMap<SpiffeId, Clients>>,
}

#[derive(Default)]
struct Clients {
    h2: Option<Arc<ClientConfig>>,
    http1: Option<Arc<ClientConfig>>,
}

/// How an identity does, for the admin page and reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Who we are.
    pub spiffe_id: Arc<SpiffeId>,
    /// From when the certificate is valid.
    pub not_before: SystemTime,
    /// Until when the certificate is valid.
    pub not_after: SystemTime,
    /// The certificate's serial number.
    pub serial: String,
    /// Certificates taken after the first.
    pub renewals: u64,
    /// Attempts to get another that failed.
    pub renewal_failures: u64,
    /// Why the last attempt failed; nothing once one succeeds.
    pub last_error: Option<String>,
}

impl Identity {
    /// From the first certificate.
    pub fn new(material: Material) -> Arc<Self> {
        Arc::new(Self {
            state: ArcSwap::from_pointee(State::new(material.numbered(1))),
            changing: Mutex::new(()),
            renewals: AtomicU64::new(0),
            renewal_failures: AtomicU64::new(0),
            last_error: ArcSwapOption::empty(),
            foreigners: Arc::default(),
        })
    }

    /// Those who could not prove to us who they are, or we to them.
    pub fn foreigners(&self) -> &Arc<Foreigners> {
        &self.foreigners
    }

    /// What we are at the moment.
    pub fn current(&self) -> Arc<Material> {
        Arc::clone(&self.state.load().material)
    }

    /// Our name; a renewal never changes it.
    pub fn spiffe_id(&self) -> Arc<SpiffeId> {
        Arc::clone(self.state.load().material.spiffe_id())
    }

    /// Grows when the certificate or the bundle changes, so that pools can notice.
    pub fn generation(&self) -> u64 {
        self.state.load().material.generation()
    }

    /// Whether our certificate is valid at `now`. Without one, no connection of the mesh can succeed.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.state.load().material.is_valid(now)
    }

    /// To accept connections of the mesh with: HTTP/2 or HTTP/1.1, a member's certificate demanded.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.state.load().server)
    }

    /// To connect to `expected` with, and to nobody else.
    pub fn client_config(&self, expected: &SpiffeId, alpn: Alpn) -> Arc<ClientConfig> {
        self.state.load().client(expected, alpn)
    }

    /// Takes a renewed certificate. It must be for the same name: a process does not become another one.
    pub fn renew(&self, material: Material) -> Result<(), MaterialProblem> {
        let _changing = self.changing();
        let current = self.current();
        if material.spiffe_id() != current.spiffe_id() {
            return Err(MaterialProblem::new(
                Part::Certificate,
                format!(
                    "the new certificate is for {}, but we are {}",
                    material.spiffe_id(),
                    current.spiffe_id()
                ),
            ));
        }
        self.set(material, current.generation());
        self.renewals.fetch_add(1, Ordering::Relaxed);
        self.note_success();
        Ok(())
    }

    /// Takes another bundle; says whether it differs from the one that we have.
    pub fn trust(&self, bundle: Bundle) -> bool {
        let _changing = self.changing();
        let current = self.current();
        if *current.bundle() == bundle {
            return false;
        }
        self.set(current.with_bundle(bundle), current.generation());
        true
    }

    /// Notes that another certificate was not to be had.
    pub fn note_failure(&self, why: String) {
        self.renewal_failures.fetch_add(1, Ordering::Relaxed);
        self.last_error.store(Some(Arc::new(why)));
    }

    /// Notes that what we have is what we should have.
    pub(crate) fn note_success(&self) {
        self.last_error.store(None);
    }

    /// How it does.
    pub fn status(&self) -> Status {
        let material = self.current();
        Status {
            spiffe_id: Arc::clone(material.spiffe_id()),
            not_before: material.not_before(),
            not_after: material.not_after(),
            serial: material.serial().to_owned(),
            renewals: self.renewals.load(Ordering::Relaxed),
            renewal_failures: self.renewal_failures.load(Ordering::Relaxed),
            last_error: self.last_error.load().as_deref().cloned(),
        }
    }

    /// Why this process cannot take part in the mesh at `now`, for `/ready`.
    pub fn problem(&self, now: SystemTime) -> Option<String> {
        let material = self.current();
        if material.is_valid(now) {
            return None;
        }
        let mut text = match now.duration_since(material.not_after()) {
            Ok(ago) => format!("our certificate expired {} s ago", ago.as_secs()),
            Err(_) => "our certificate is not valid yet; check this host's clock".to_owned(),
        };
        if let Some(why) = self.last_error.load().as_deref() {
            text.push_str(", and it could not be renewed: ");
            text.push_str(why);
        }
        Some(text)
    }

    #[cfg(test)]
    fn known_services(&self) -> usize {
        self.state
            .load()
            .clients
            .lock()
            .expect("no test panics in it")
            .len()
    }

    fn set(&self, material: Material, last: u64) {
        let material = material.numbered(last + 1);
        self.state.store(Arc::new(State::new(material)));
    }

    fn changing(&self) -> std::sync::MutexGuard<'_, ()> {
        // It guards no data of its own, so a panic elsewhere cannot have left any half-changed.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity").field(&self.current()).finish()
    }
}

impl State {
    fn new(material: Material) -> Self {
        Self {
            server: Arc::new(tls::server(&material)),
            material: Arc::new(material),
            clients: Mutex::new(HashMap::new()),
        }
    }

    fn client(&self, expected: &SpiffeId, alpn: Alpn) -> Arc<ClientConfig> {
        // What the table holds is complete whenever the lock is free, even after a panic.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MAX_CLIENT_CONFIGS && !clients.contains_key(expected) {
            clients.clear();
        }
        let entry = clients.entry(expected.clone()).or_default();
        let slot = match alpn {
            Alpn::H2 => &mut entry.h2,
            Alpn::Http1 => &mut entry.http1,
        };
        Arc::clone(
            slot.get_or_insert_with(|| Arc::new(tls::client(&self.material, expected, alpn))),
        )
    }
}
