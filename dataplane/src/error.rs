//! What failed, on which side, and whether another attempt may help.
//!
//! Made where the failure happens; `http/answer.rs` is the only place that turns one into a response.

use std::borrow::Cow;
use std::time::Duration;

use crate::reason::Reason;

/// A failed exchange or attempt.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {detail}", reason.code())]
pub struct Error {
    /// Why, from the closed list.
    pub reason: Reason,
    /// The particulars, for people: values included, no secrets.
    pub detail: Cow<'static, str>,
    /// Whether the same exchange may be tried at another endpoint.
    pub retry: Retry,
    /// What the client is told to wait, where that is known.
    pub retry_after: Option<Duration>,
}

/// Whether a failed attempt may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It would fail again, or harm.
    Never,
    /// It was tried again already, or not for a reason that holds for everybody: nobody in front of us is to try it either.
    Settled,
    /// Provably not processed (connect failure, REFUSED_STREAM, beyond GOAWAY's last stream): any method may be repeated.
    NotProcessed,
    /// Not processed either: nothing at all answered at the endpoint's address, so there may be no way to addresses of its family.
    NoWay,
    /// Its connection ended in good order before it was processed (GOAWAY with NO_ERROR), or was gone again before anything
    /// was sent on it, whoever ended it: nothing has failed, and the attempt goes on over another connection. When that has
    /// been so too often, as [`Retry::NotProcessed`].
    Departed,
    /// It may have been processed: only idempotent requests may be repeated.
    IfIdempotent,
}

impl Error {
    /// A failure that is not to be tried again.
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            retry: Retry::Never,
            retry_after: None,
        }
    }

    /// The same, but the endpoint provably did not process the request.
    pub fn not_processed(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            retry: Retry::NotProcessed,
            ..Self::new(reason, detail)
        }
    }

    /// The same, and nothing has answered at its address.
    pub fn no_way(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            retry: Retry::NoWay,
            ..Self::new(reason, detail)
        }
    }

    /// The same, but all that happened is that its connection ended in good order.
    pub fn departed(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            retry: Retry::Departed,
            ..Self::new(reason, detail)
        }
    }

    /// The same, but the endpoint may have processed the request.
    pub fn maybe_processed(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            retry: Retry::IfIdempotent,
            ..Self::new(reason, detail)
        }
    }

    /// Whether it speaks against the endpoint.
    pub fn is_of_endpoint(&self) -> bool {
        self.retry != Retry::Departed && self.reason.is_of_endpoint()
    }

    /// Whether the endpoint provably did not process the request.
    pub fn is_not_processed(&self) -> bool {
        matches!(
            self.retry,
            Retry::NotProcessed | Retry::NoWay | Retry::Departed
        )
    }

    /// With a time after which the client may come back.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}
