//! Who is not of the mesh, and yet on its connections: a closed list of what can be wrong with a peer, and a bounded
//! table of the peers with whom it was.
//!
//! Log, metric, admin page and report all use these words, at both ends of a connection: the one that found fault with
//! the other, and the one that learns from an alert that fault was found with it. The table is written where a handshake
//! has failed or plaintext came. One lock for all cores is good enough for that: it is once for a connection, and where
//! every exchange may find the same (an app that speaks TLS and is spoken to in plaintext) once a second for an endpoint.

mod table;

pub use table::{Count, Foreigners, MAX_COUNTS, MAX_PEERS, OTHER, Row, Sighting, Snapshot};

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Bytes of a name that somebody else has chosen.
pub const MAX_NAME: usize = 256;

/// At which end of the connection we stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// The peer came to us.
    Inbound,
    /// We went to the peer.
    Outbound,
}

impl End {
    /// The label, and the word in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident = $word:literal,)+) => {
        /// What is wrong with a peer: a closed list, since it becomes a label.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Foreign {
            $($(#[doc = $doc])+ $kind,)+
        }

        impl Foreign {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind,)+];

            /// The label, and the word in log and reports.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $word,)+
                }
            }
        }
    };
}

kinds! {
    /// It spoke something else where TLS has to begin.
    Plaintext = "plaintext",
    /// It spoke TLS where plaintext is spoken.
    UnexpectedTls = "unexpected_tls",
    /// It came in plaintext to a port of the app, and was refused.
    PlaintextRefused = "plaintext_refused",
    /// It came in plaintext to a port of the app, and was let in, because that is permitted for a time.
    PlaintextPermitted = "plaintext_permitted",
    /// It showed no certificate.
    NoCertificate = "no_certificate",
    /// Its certificate is from nobody whom we trust.
    UnknownAuthority = "unknown_authority",
    /// It is of another trust domain.
    TrustDomain = "trust_domain",
    /// It is of our mesh, but not whom we meant.
    WrongService = "wrong_service",
    /// Its certificate has ended.
    Expired = "expired",
    /// Its certificate has not begun.
    NotYetValid = "not_yet_valid",
    /// Its certificate is no proper X.509-SVID.
    NotAnIdentity = "not_an_identity",
    /// It has no version of TLS in common with us.
    Protocol = "protocol",
    /// It went away during the handshake.
    Closed = "closed",
    /// Anything else; the log has it.
    Other = "other",
    /// It wants a certificate of us and got none.
    RefusedNoCertificate = "refused_no_certificate",
    /// By its clock our certificate has ended or not begun.
    RefusedOutOfDate = "refused_out_of_date",
    /// It does not trust who issued our certificate.
    RefusedUnknownAuthority = "refused_unknown_authority",
    /// Our certificate is of another trust domain than its own.
    RefusedTrustDomain = "refused_trust_domain",
    /// It meant another service than us.
    RefusedIdentity = "refused_identity",
    /// Our certificate is for something else.
    RefusedPurpose = "refused_purpose",
    /// Our certificate is revoked.
    RefusedRevoked = "refused_revoked",
    /// We are not allowed there.
    RefusedDenied = "refused_denied",
    /// What we signed or encrypted did not check out there.
    RefusedCrypto = "refused_crypto",
    /// It has no version of TLS or cipher suite in common with us.
    RefusedParameters = "refused_parameters",
    /// It speaks no protocol of ours.
    RefusedProtocol = "refused_protocol",
    /// It speaks TLS, and we spoke plaintext.
    RefusedPlaintext = "refused_plaintext",
    /// It refused us for another reason.
    RefusedOther = "refused_other",
}

impl Foreign {
    /// The kind of this name; [`Foreign::Other`] for one that only newer versions know.
    pub fn from_name(name: &str) -> Self {
        let known = Self::ALL.iter().find(|kind| kind.as_str() == name);
        known.copied().unwrap_or(Self::Other)
    }
}

/// Which peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// One that came to us: its address or, of IPv6, the /64 around it, because whoever has one address of it has all.
    /// Not the port, which is another one each time.
    Network(IpAddr),
    /// One that we went to.
    Endpoint(SocketAddr),
}

impl Peer {
    /// Who came from this address.
    pub fn from_address(address: IpAddr) -> Self {
        Self::Network(match address.to_canonical() {
            IpAddr::V6(ip) => {
                let network = ip.to_bits() & !u128::from(u64::MAX);
                IpAddr::V6(Ipv6Addr::from_bits(network))
            }
            ip @ IpAddr::V4(_) => ip,
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Network(IpAddr::V6(ip)) => write!(f, "{ip}/64"),
            Self::Endpoint(address) => address.fmt(f),
        }
    }
}

/// A name that somebody else has chosen, as it may be shown anywhere: printable ASCII without quotes and brackets, and
/// not too long.
pub fn clean(name: &str) -> String {
    let shown = |c: char| match c {
        '"' | '\'' | '`' | '<' | '>' | '&' | '\\' => '?',
        c if c.is_ascii_graphic() => c,
        _ => '?',
    };
    name.chars().take(MAX_NAME).map(shown).collect()
}

#[cfg(test)]
mod tests;
