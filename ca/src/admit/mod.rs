//! Who may ask for which name. One proof a file: a join token, or the certificate that is to be renewed.
//!
//! A token comes first when both are there: whoever brings one wants what it was made for, and the certificate beside
//! it may be the expired one that made a new token necessary.

pub(crate) mod renewal;
pub mod token;

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use crate::ServiceName;
use crate::authority::Root;
use crate::csr;
use token::Tokens;

/// What a client shows.
// No `Debug`: a token that was not accepted may still be good.
#[derive(Clone, Copy)]
pub struct Proof<'a> {
    /// A join token, or nothing.
    pub join_token: &'a str,
    /// The certificates of the TLS client, leaf first, or nothing. Its possession of the leaf's key was proven in the
    /// handshake; everything else about them is checked here, each time anew.
    pub certificates: &'a [CertificateDer<'static>],
}

/// Which kind of proof it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A join token.
    Token,
    /// A certificate of ours.
    Renewal,
}

impl Kind {
    /// As the journal and the metrics write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Renewal => "renewal",
        }
    }
}

/// A client that may have a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// For this service.
    pub service: ServiceName,
    /// By this kind of proof.
    pub kind: Kind,
    /// Which one: the token's id, or the certificate's serial number.
    pub evidence: String,
}

/// Why a client gets no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Nothing was shown.
    #[error(
        "no proof of identity: send a join token (`weft ca token create`), or connect with a certificate of this authority to renew it"
    )]
    NoProof,
    /// The token is no token.
    #[error("{0}")]
    TokenMalformed(#[from] crate::token::Malformed),
    /// The token's root is another one.
    #[error("the join token was made by another certificate authority")]
    TokenForeign,
    /// No such token, or the secret is wrong; which of the two is not said.
    #[error(
        "the join token is not known here; it may have expired a while ago: make a new one with `weft ca token create`"
    )]
    TokenUnknown,
    /// The second use.
    #[error(
        "the join token was already used; a token is good for one start: make a new one with `weft ca token create`"
    )]
    TokenUsed,
    /// Too late.
    #[error("the join token expired; make a new one with `weft ca token create`")]
    TokenExpired,
    /// The client certificate does not hold.
    #[error("the client certificate cannot be renewed: {0}")]
    Certificate(String),
    /// The name is the authority's own.
    #[error("`ca` is the authority's own name; nobody else gets a certificate for it")]
    Reserved,
    /// The signing request is not right.
    #[error("the certificate signing request is not accepted: {0}")]
    Request(#[from] csr::Fault),
    /// Too many are waiting.
    #[error("the certificate authority has too many requests to do; try again in a moment")]
    Busy,
    /// It is on its way out.
    #[error("the certificate authority is shutting down; try again in a moment")]
    Closing,
    /// Our own fault; the cause is for our log, not for the client.
    #[error("the certificate authority could not do it; its log says why")]
    Internal(#[source] crate::Error),
}

/// Decides. Uses the token up, so it comes last of all checks.
pub(crate) fn admit(
    proof: Proof<'_>,
    root: &Root,
    tokens: &Tokens,
    now: SystemTime,
) -> Result<Admitted, Refusal> {
    let admitted = if !proof.join_token.is_empty() {
        token::redeem(proof.join_token, root, tokens, now)?
    } else if !proof.certificates.is_empty() {
        renewal::verify(proof.certificates, root, now)?
    } else {
        return Err(Refusal::NoProof);
    };
    if admitted.service.is_authority() {
        return Err(Refusal::Reserved);
    }
    Ok(admitted)
}
