//! What is wrong with a peer, in plain words and in a closed list.
//!
//! Both ends of a failed handshake can name the cause: the end that refused knows it all; the other end gets a TLS
//! alert, which is one byte. The alerts are chosen so that the byte says as much as it can, and [`Refusal`] reads it.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, InvalidMessage, OtherError, PeerIncompatible};

use super::id::{SpiffeId, TrustDomain};
use crate::error::Error;
use crate::foreign::Foreign;
use crate::reason::Reason;

/// Why a handshake with a peer failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerProblem {
    /// It is no member of the mesh, or has lost its identity.
    #[error("the peer sent no certificate; only members of the mesh are let in")]
    NoCertificate,
    /// Its certificate, or one that vouches for it, is past its time.
    #[error(
        "the peer's certificate expired {ago:?} ago; it could not renew it, or a clock is wrong"
    )]
    Expired {
        /// For how long, by our clock.
        ago: Duration,
    },
    /// Its certificate begins in the future.
    #[error(
        "the peer's certificate is not valid for another {ahead:?}; check the clocks of both hosts"
    )]
    NotYetValid {
        /// For how long yet, by our clock.
        ahead: Duration,
    },
    /// Its certificate leads to no root of our bundle.
    #[error("the peer's certificate was issued by a CA that is not in our trust bundle")]
    ForeignRoot,
    /// A root of ours vouches for it, but it belongs to others.
    #[error("the peer is {got}, which is not of the trust domain {want}")]
    TrustDomain {
        /// Who it proved to be.
        got: String,
        /// Where it should belong.
        want: String,
    },
    /// It is somebody of our mesh, but not whom we meant.
    #[error("the peer is {got}, but {want} was meant")]
    WrongService {
        /// Who it proved to be.
        got: SpiffeId,
        /// Whom we meant.
        want: SpiffeId,
    },
    /// Its certificate is no X.509-SVID.
    #[error("the peer's certificate is not an acceptable X.509-SVID: {0}")]
    BadSvid(String),
    /// It spoke something else where TLS has to begin.
    #[error("the peer does not speak TLS here; it is not in the mesh, or this is the wrong port")]
    Plaintext,
    /// It speaks TLS 1.2 or older only.
    #[error("the peer speaks no TLS 1.3")]
    OldTls,
    /// It went away in the middle of the handshake.
    #[error(
        "the peer closed the connection during the handshake; it may not speak TLS on this port"
    )]
    Hangup,
    /// It is the peer that refused us.
    #[error("the peer refused us: {0}")]
    Refused(Refusal),
    /// Another breach of the protocol.
    #[error("the TLS connection failed: {0}")]
    Tls(String),
}

/// What a peer's alert says about us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `certificate_required`.
    #[error("it wants a certificate and we sent none")]
    NoCertificate,
    /// `certificate_expired`, which stands for "not yet valid" as well.
    #[error("by its clock our certificate has expired or is not valid yet")]
    OutOfDate,
    /// `unknown_ca`.
    #[error("it does not trust the CA that issued our certificate")]
    ForeignRoot,
    /// `bad_certificate`: what Weft sends when the trust domain is another one.
    #[error("our certificate is of another trust domain than its own, or damaged")]
    TrustDomain,
    /// `certificate_unknown`: what Weft sends when it meant another service.
    #[error(
        "it meant another service than us, or does not accept our certificate as an X.509-SVID"
    )]
    Identity,
    /// `unsupported_certificate`.
    #[error("our certificate may not be used for this, by its extended key usage")]
    Purpose,
    /// `certificate_revoked`.
    #[error("our certificate is revoked")]
    Revoked,
    /// `access_denied`.
    #[error("our identity is not allowed there")]
    Denied,
    /// `decrypt_error`, `bad_record_mac`.
    #[error("a signature or the encryption of ours did not check out")]
    Crypto,
    /// `protocol_version`, `handshake_failure`, `insufficient_security`.
    #[error("it has no TLS version or cipher suite in common with us; we speak TLS 1.3 only")]
    Parameters,
    /// `no_application_protocol`.
    #[error("it speaks neither HTTP/2 nor HTTP/1.1 here")]
    Protocol,
    /// An answer in TLS to what was sent in plaintext.
    #[error("it speaks TLS and refused plaintext: is it a member of the mesh?")]
    Plaintext,
    /// Any other alert.
    #[error("TLS alert {0}")]
    Other(String),
}

impl PeerProblem {
    /// What it is called in log, metrics, pages and reports.
    pub fn kind(&self) -> Foreign {
        match self {
            Self::NoCertificate => Foreign::NoCertificate,
            Self::Expired { .. } => Foreign::Expired,
            Self::NotYetValid { .. } => Foreign::NotYetValid,
            Self::ForeignRoot => Foreign::UnknownAuthority,
            Self::TrustDomain { .. } => Foreign::TrustDomain,
            Self::WrongService { .. } => Foreign::WrongService,
            Self::BadSvid(_) => Foreign::NotAnIdentity,
            Self::Plaintext => Foreign::Plaintext,
            Self::OldTls => Foreign::Protocol,
            Self::Hangup => Foreign::Closed,
            Self::Refused(refusal) => refusal.kind(),
            Self::Tls(_) => Foreign::Other,
        }
    }

    /// The same of any failed handshake, also where TLS is not to blame.
    pub fn kind_of(problem: Option<&Self>, error: &io::Error) -> Foreign {
        match (problem, error.kind()) {
            (Some(problem), _) => problem.kind(),
            (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                Foreign::Closed
            }
            (None, _) => Foreign::Other,
        }
    }

    /// Whether the peer's proven identity is what is wrong, and not the connection or the time.
    pub fn is_identity(&self) -> bool {
        matches!(
            self,
            Self::TrustDomain { .. } | Self::WrongService { .. } | Self::BadSvid(_)
        )
    }

    /// The cause of a failed read, write or handshake, if TLS is to blame.
    pub fn from_io_error(error: &io::Error) -> Option<Self> {
        if let Some(inner) = error.get_ref() {
            if let Some(problem) = Self::from_error(inner) {
                return Some(problem);
            }
            // `h2` keeps no more than the text of an error that it hands to many streams.
            let text = inner.to_string();
            if let Some(alert) = text.strip_prefix(ALERT_TEXT) {
                return Some(Self::Refused(Refusal::from_name(alert)));
            }
            let plaintext = Self::Refused(Refusal::Plaintext);
            if text == plaintext.to_string() {
                return Some(plaintext);
            }
            // The only end of file that `tokio-rustls` makes itself.
            if error.kind() == io::ErrorKind::UnexpectedEof && text == "tls handshake eof" {
                return Some(Self::Hangup);
            }
        }
        None
    }

    /// The same for any error: looks through what caused it.
    pub fn from_error(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut next = Some(error);
        // Errors nest a few levels deep; the bound is against one that is its own cause.
        for _ in 0..16 {
            let error = next?;
            if let Some(problem) = error.downcast_ref::<Self>() {
                return Some(problem.clone());
            }
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return Some(Self::from_tls(tls));
            }
            let io = error.downcast_ref::<io::Error>();
            if let Some(problem) = io.and_then(Self::from_io_error) {
                return Some(problem);
            }
            if let Some(io) = error
                .downcast_ref::<h2::Error>()
                .and_then(h2::Error::get_io)
            {
                return Self::from_io_error(io);
            }
            next = error.source();
        }
        None
    }

    /// What an error of rustls means.
    pub fn from_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::InvalidCertificate(error) => Self::from_certificate(error),
            // Told apart by the first bytes, so text of any kind is recognised; what follows a good handshake is sealed.
            rustls::Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self::Plaintext,
            rustls::Error::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::ServerDoesNotSupportTls12Or13,
            ) => Self::OldTls,
            rustls::Error::AlertReceived(alert) => Self::Refused(Refusal::from_alert(*alert)),
            other => Self::Tls(other.to_string()),
        }
    }

    fn from_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::ExpiredContext { time, not_after } => Self::Expired {
                ago: between(*not_after, *time),
            },
            CertificateError::Expired => Self::Expired {
                ago: Duration::ZERO,
            },
            CertificateError::NotValidYetContext { time, not_before } => Self::NotYetValid {
                ahead: between(*time, *not_before),
            },
            CertificateError::NotValidYet => Self::NotYetValid {
                ahead: Duration::ZERO,
            },
            CertificateError::UnknownIssuer => Self::ForeignRoot,
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => Self::TrustDomain {
                got: presented.join(", "),
                want: expected.to_str().into_owned(),
            },
            CertificateError::Other(OtherError(inner)) => inner
                .downcast_ref::<Self>()
                .cloned()
                .unwrap_or_else(|| Self::BadSvid(inner.to_string())),
            CertificateError::BadSignature => {
                Self::BadSvid("its key did not sign the handshake".to_owned())
            }
            other => Self::BadSvid(other.to_string()),
        }
    }

    /// As an error that rustls carries to the caller and turns into the alert that says the most to the peer.
    pub(super) fn into_tls(self, now: UnixTime) -> rustls::Error {
        let seconds = now.as_secs();
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let error = match self {
            Self::NoCertificate => return rustls::Error::NoCertificatesPresented,
            Self::Expired { ago } => CertificateError::ExpiredContext {
                time: now,
                not_after: at(seconds.saturating_sub(ago.as_secs())),
            },
            Self::NotYetValid { ahead } => CertificateError::NotValidYetContext {
                time: now,
                not_before: at(seconds.saturating_add(ahead.as_secs())),
            },
            Self::ForeignRoot => CertificateError::UnknownIssuer,
            Self::TrustDomain { got, want } => match ServerName::try_from(want.clone()) {
                Ok(expected) => CertificateError::NotValidForNameContext {
                    expected,
                    presented: vec![got],
                },
                // A trust domain need not be a DNS name. The peer learns less then; we do not.
                Err(_) => other(Self::TrustDomain { got, want }),
            },
            problem => other(problem),
        };
        rustls::Error::InvalidCertificate(error)
    }

    pub(super) fn foreign_domain(got: &SpiffeId, want: &TrustDomain) -> Self {
        Self::TrustDomain {
            got: got.to_string(),
            want: want.to_string(),
        }
    }
}

/// How rustls begins the text of an alert from the peer; what follows is the alert's name.
const ALERT_TEXT: &str = "received fatal alert: ";

fn other(problem: PeerProblem) -> CertificateError {
    CertificateError::Other(OtherError(Arc::new(problem)))
}

fn between(early: UnixTime, late: UnixTime) -> Duration {
    Duration::from_secs(late.as_secs().saturating_sub(early.as_secs()))
}

impl Refusal {
    /// What it is called; each name begins with `refused_`, because it is the peer that found fault.
    pub fn kind(&self) -> Foreign {
        match self {
            Self::NoCertificate => Foreign::RefusedNoCertificate,
            Self::OutOfDate => Foreign::RefusedOutOfDate,
            Self::ForeignRoot => Foreign::RefusedUnknownAuthority,
            Self::TrustDomain => Foreign::RefusedTrustDomain,
            Self::Identity => Foreign::RefusedIdentity,
            Self::Purpose => Foreign::RefusedPurpose,
            Self::Revoked => Foreign::RefusedRevoked,
            Self::Denied => Foreign::RefusedDenied,
            Self::Crypto => Foreign::RefusedCrypto,
            Self::Parameters => Foreign::RefusedParameters,
            Self::Protocol => Foreign::RefusedProtocol,
            Self::Plaintext => Foreign::RefusedPlaintext,
            Self::Other(_) => Foreign::RefusedOther,
        }
    }

    /// What an answer that begins with these bytes says to who spoke in plaintext: a record of TLS, whatever is in it. No
    /// answer of HTTP begins so, and no frame of HTTP/2 is as large as it would be.
    pub(crate) fn of_plaintext(answer: &[u8]) -> Option<Self> {
        matches!(answer, [20..=23, 3, 0..=4, ..]).then_some(Self::Plaintext)
    }

    /// What it means to an exchange.
    pub(crate) fn failure(&self) -> Error {
        let detail = format!("the endpoint refused us: {self}");
        if self.is_before_requests() {
            Error::not_processed(Reason::TlsFailed, detail)
        } else {
            Error::maybe_processed(Reason::TlsFailed, detail)
        }
    }

    /// Whether we are refused before anything that we ask is read: for our certificate, or because we have none to show.
    fn is_before_requests(&self) -> bool {
        !matches!(
            self,
            // Of plaintext, only words of the kind that a server of TLS would use are known, and an app may use any.
            Self::Crypto | Self::Parameters | Self::Protocol | Self::Plaintext | Self::Other(_)
        )
    }

    fn from_alert(alert: AlertDescription) -> Self {
        ALERTS
            .iter()
            .find(|(known, _)| *known == alert)
            .map_or_else(
                || Self::Other(format!("{alert:?}")),
                |(_, means)| means.clone(),
            )
    }

    /// By the name that rustls prints, for errors of which only the text is left.
    fn from_name(name: &str) -> Self {
        ALERTS
            .iter()
            .find(|(known, _)| format!("{known:?}") == name)
            .map_or_else(
                || Self::Other(name.chars().take(64).collect()),
                |(_, means)| means.clone(),
            )
    }
}

const ALERTS: &[(AlertDescription, Refusal)] = &[
    (
        AlertDescription::CertificateRequired,
        Refusal::NoCertificate,
    ),
    (AlertDescription::CertificateExpired, Refusal::OutOfDate),
    (AlertDescription::UnknownCA, Refusal::ForeignRoot),
    (AlertDescription::BadCertificate, Refusal::TrustDomain),
    (AlertDescription::CertificateUnknown, Refusal::Identity),
    (AlertDescription::UnsupportedCertificate, Refusal::Purpose),
    (AlertDescription::CertificateRevoked, Refusal::Revoked),
    (AlertDescription::AccessDenied, Refusal::Denied),
    (AlertDescription::DecryptError, Refusal::Crypto),
    (AlertDescription::BadRecordMac, Refusal::Crypto),
    (AlertDescription::ProtocolVersion, Refusal::Parameters),
    (AlertDescription::HandshakeFailure, Refusal::Parameters),
    (AlertDescription::InsufficientSecurity, Refusal::Parameters),
    (AlertDescription::NoApplicationProtocol, Refusal::Protocol),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn survives_the_way_through_rustls() {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_000_000));
        let id = |text: &str| text.parse::<SpiffeId>().unwrap();
        let problems = [
            PeerProblem::NoCertificate,
            PeerProblem::Expired {
                ago: Duration::from_secs(7),
            },
            PeerProblem::NotYetValid {
                ahead: Duration::from_secs(9),
            },
            PeerProblem::ForeignRoot,
            PeerProblem::TrustDomain {
                got: "spiffe://evil/a".to_owned(),
                want: "shop.internal".to_owned(),
            },
            // No DNS name, so it goes another way.
            PeerProblem::TrustDomain {
                got: "spiffe://evil/a".to_owned(),
                want: "-.-".to_owned(),
            },
            PeerProblem::WrongService {
                got: id("spiffe://td/service/a"),
                want: id("spiffe://td/service/b"),
            },
            PeerProblem::BadSvid("two URI names".to_owned()),
        ];
        for problem in problems {
            let error = io::Error::new(io::ErrorKind::InvalidData, problem.clone().into_tls(now));
            assert_eq!(PeerProblem::from_io_error(&error), Some(problem.clone()));
            let nested = io::Error::other(error);
            assert_eq!(PeerProblem::from_io_error(&nested), Some(problem));
        }
    }

    #[test]
    fn an_alert_is_read_from_its_text_as_well() {
        for (alert, means) in ALERTS {
            let tls = rustls::Error::AlertReceived(*alert);
            let text = io::Error::new(io::ErrorKind::InvalidData, tls.to_string());
            let whole = io::Error::new(io::ErrorKind::InvalidData, tls);
            let expected = Some(PeerProblem::Refused(means.clone()));
            assert_eq!(PeerProblem::from_io_error(&text), expected, "{alert:?}");
            assert_eq!(PeerProblem::from_io_error(&whole), expected, "{alert:?}");
        }
    }

    #[test]
    fn tls_in_answer_to_plaintext_is_known_by_its_first_bytes() {
        let plaintext = PeerProblem::Refused(Refusal::Plaintext);
        for (answer, is_tls) in [
            (&b"\x15\x03\x03\x00\x02\x02\x32"[..], true),
            (b"\x15\x03\x01\x00\x02", true),
            (b"\x16\x03\x03\x00\x7a\x02", true),
            (b"\x15\x03", false),
            (b"\x15\x02\x03\x00\x02", false),
            (b"HTTP/1.1 200 OK\r\n", false),
            // SETTINGS of HTTP/2.
            (b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", false),
            (b"", false),
        ] {
            let expected = is_tls.then_some(Refusal::Plaintext);
            assert_eq!(Refusal::of_plaintext(answer), expected, "{answer:?}");
        }
        let whole = io::Error::other(plaintext.clone());
        let text = io::Error::other(plaintext.to_string());
        for error in [whole, text] {
            assert_eq!(PeerProblem::from_io_error(&error), Some(plaintext.clone()));
        }
        assert_eq!(plaintext.kind(), Foreign::RefusedPlaintext);
    }

    #[test]
    fn other_failures_are_not_blamed_on_tls() {
        let errors = [
            io::Error::from(io::ErrorKind::ConnectionReset),
            io::Error::from(io::ErrorKind::UnexpectedEof),
            io::Error::other("something else"),
            io::Error::from_raw_os_error(111),
        ];
        for error in errors {
            assert_eq!(PeerProblem::from_io_error(&error), None, "{error:?}");
        }
    }
}
