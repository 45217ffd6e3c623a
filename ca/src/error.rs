//! Why the authority cannot start or go on. (Why it refuses a request is [`admit::Refusal`](crate::admit::Refusal).)

use std::net::SocketAddr;
use std::path::PathBuf;

/// What failed, with the way out where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A trust domain or a service with a name that cannot be.
    #[error("{0}")]
    Name(String),
    /// The configuration that was handed in has problems.
    #[error("the configuration of the authority has problems: {0}")]
    Config(String),
    /// A file of the state is not as it must be.
    #[error("{path}: {what}; {cure}", path = path.display())]
    State {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        cure: String,
    },
    /// Another process serves this state.
    #[error("{path}: another `weft ca serve` uses this state; stop it first, two authorities must not share one", path = .0.display())]
    InUse(PathBuf),
    /// The file system said no.
    #[error("{path}: cannot {action}: {source}", path = path.display())]
    Io {
        /// Verb and object.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The trust domain of the state is not the one that was asked for.
    #[error("the state in {path} belongs to the trust domain `{found}`, not `{wanted}`; use another `state` directory for `{wanted}`", path = path.display())]
    TrustDomain {
        /// The state directory.
        path: PathBuf,
        /// Which one it is.
        found: String,
        /// Which one was asked for.
        wanted: String,
    },
    /// There is no state, and nothing from which to make one.
    #[error("{path}: no authority lives here; start `weft ca serve` once, or name the configuration with `--config`", path = .0.display())]
    NoState(PathBuf),
    /// A token for the authority itself.
    #[error("`ca` is the authority's own name; no token is made for it")]
    Reserved,
    /// More tokens than the bound.
    #[error(
        "{0} join tokens are open, which is the most; wait until some expire, or give them shorter lives with `token_lifetime`"
    )]
    TooManyTokens(usize),
    /// The cryptographic library said no.
    #[error("cannot {action}: {source}")]
    Sign {
        /// Verb and object.
        action: &'static str,
        /// What it said.
        source: rcgen::Error,
    },
    /// The certificate that signs is over, or not yet valid.
    #[error("the certificate that signs leaves is not valid now; check the clock of this machine")]
    IssuerOver,
    /// No random numbers.
    #[error("the system gave no random numbers")]
    Random,
    /// TLS could not be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The gRPC server ended.
    #[error("the gRPC server ended: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// A blocking task was cancelled or panicked.
    #[error("a task of the authority ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Error {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn sign(action: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |source| Self::Sign { action, source }
    }
}

/// Fresh random bytes from the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}
