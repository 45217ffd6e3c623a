//! What the tests of several rooms share: a state in a temporary directory, times, names.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::admit::token::Tokens;
use crate::authority::{Authority, Root};
use crate::store::Directory;
use crate::{Lifetimes, ServiceName, TrustDomain};

/// Times of tests count from here: 2025-06-15.
const START: u64 = 1_750_000_000;

pub(crate) const DAY: u64 = 86_400;

/// Seconds after the state was made.
pub(crate) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(START + seconds)
}

pub(crate) fn name(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

pub(crate) fn domain(text: &str) -> TrustDomain {
    TrustDomain::parse(text).unwrap()
}

/// The defaults.
pub(crate) fn lifetimes() -> Lifetimes {
    let mut problems = weft_runtime::config::Problems::new();
    let at = weft_runtime::config::Path::root();
    crate::Config::default()
        .build(&at, &mut problems)
        .unwrap()
        .lifetimes
}

/// A fresh state of the trust domain `shop.internal`, made at second 0.
pub(crate) struct State {
    pub(crate) directory: Directory,
    pub(crate) authority: Authority,
    pub(crate) tokens: Tokens,
    pub(crate) _temp: tempfile::TempDir,
}

impl State {
    pub(crate) fn new() -> Self {
        Self::of("shop.internal")
    }

    pub(crate) fn of(trust_domain: &str) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path().join("state")).unwrap();
        let authority =
            Authority::open(&directory, &domain(trust_domain), &lifetimes(), at(0)).unwrap();
        let tokens = Tokens::open(&directory).unwrap();
        Self {
            directory,
            authority,
            tokens,
            _temp: temp,
        }
    }

    pub(crate) fn root(&self) -> &Root {
        self.authority.root()
    }
}
