//! Join tokens: each good for one certificate of one service, for some minutes.
//!
//! A token is a file named by its id. To use it is to move that file away: the file system lets one of any number of
//! concurrent uses win, also while another process makes new tokens.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Admitted, Kind, Refusal};
use crate::authority::Root;
use crate::error::random;
use crate::store::{self, Directory};
use crate::token::{Token, from_hex, hex};
use crate::{Error, ServiceName};

/// How many tokens there may be that have not expired, used ones included.
const MOST: usize = 10_000;

/// What is kept of a token. Not the secret.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    service: String,
    /// In hex.
    secret_sha256: String,
    /// In seconds since 1970.
    expires: u64,
}

impl Record {
    fn expired(&self, now: SystemTime) -> bool {
        now >= UNIX_EPOCH + Duration::from_secs(self.expires)
    }

    fn fits(&self, token: &Token) -> bool {
        // Comparing hashes in a time that depends on them tells nothing about the secret, but it costs nothing either.
        from_hex(&self.secret_sha256).is_some_and(|expected| {
            aws_lc_rs::constant_time::verify_slices_are_equal(&expected, &token.secret_hash())
                .is_ok()
        })
    }
}

/// The tokens of one state.
#[derive(Debug)]
pub struct Tokens {
    open: Directory,
    used: Directory,
    most: usize,
}

impl Tokens {
    /// Opens their directories.
    pub fn open(state: &Directory) -> Result<Self, Error> {
        Ok(Self {
            open: state.inside(store::TOKENS)?,
            used: state.inside(store::TOKENS_USED)?,
            most: MOST,
        })
    }

    /// Makes one. Only for who holds the lock for making things.
    pub fn create(
        &self,
        service: &ServiceName,
        lifetime: Duration,
        root: &Root,
        now: SystemTime,
    ) -> Result<Token, Error> {
        if service.is_authority() {
            return Err(Error::Reserved);
        }
        self.sweep(now)?;
        let outstanding = self.open.names()?.len() + self.used.names()?.len();
        if outstanding >= self.most {
            return Err(Error::TooManyTokens(outstanding));
        }
        let token = Token::new(&random()?, root.fingerprint());
        let expires = (now + lifetime)
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let record = Record {
            service: service.as_str().to_owned(),
            secret_sha256: hex(&token.secret_hash()),
            expires: expires.as_secs(),
        };
        let bytes = serde_json::to_vec(&record).expect("strings and numbers become JSON");
        self.open.write(&token.id(), &bytes)?;
        Ok(token)
    }

    /// How long this token is still good for this service, if it is.
    pub fn left(
        &self,
        token: &Token,
        service: &ServiceName,
        now: SystemTime,
    ) -> Result<Option<Duration>, Error> {
        let record = read(&self.open, &token.id())?;
        let good = record.filter(|record| record.fits(token) && record.service == service.as_str());
        Ok(good.and_then(|record| {
            let ends = UNIX_EPOCH + Duration::from_secs(record.expires);
            ends.duration_since(now).ok().filter(|left| !left.is_zero())
        }))
    }

    /// Removes those that have expired.
    pub fn sweep(&self, now: SystemTime) -> Result<(), Error> {
        for directory in [&self.open, &self.used] {
            for id in directory.names()? {
                // A file that cannot be read as a token is left for somebody to look at; it counts against the bound.
                if let Ok(Some(record)) = read(directory, &id)
                    && record.expired(now)
                {
                    directory.remove(&id)?;
                }
            }
        }
        Ok(())
    }

    fn use_up(&self, token: &Token, now: SystemTime) -> Result<ServiceName, Refusal> {
        let id = token.id();
        let Some(record) = read(&self.open, &id).map_err(Refusal::Internal)? else {
            let used = read(&self.used, &id).map_err(Refusal::Internal)?;
            return Err(match used {
                Some(record) if record.fits(token) => Refusal::TokenUsed,
                _ => Refusal::TokenUnknown,
            });
        };
        if !record.fits(token) {
            return Err(Refusal::TokenUnknown);
        }
        if record.expired(now) {
            return Err(Refusal::TokenExpired);
        }
        let service = ServiceName::parse(&record.service).map_err(Refusal::Internal)?;
        // On disk before the answer: a crash must not make it good again.
        match self
            .open
            .hand_over(&id, &self.used)
            .map_err(Refusal::Internal)?
        {
            true => Ok(service),
            false => Err(Refusal::TokenUsed),
        }
    }
}

/// Checks and uses up the token in `text`.
pub(crate) fn redeem(
    text: &str,
    root: &Root,
    tokens: &Tokens,
    now: SystemTime,
) -> Result<Admitted, Refusal> {
    let token: Token = text.parse()?;
    if *token.fingerprint() != root.fingerprint() {
        return Err(Refusal::TokenForeign);
    }
    let service = tokens.use_up(&token, now)?;
    Ok(Admitted {
        service,
        kind: Kind::Token,
        evidence: token.id(),
    })
}

fn read(directory: &Directory, id: &str) -> Result<Option<Record>, Error> {
    let Some(bytes) = directory.read(id)? else {
        return Ok(None);
    };
    let record =
        serde_json::from_slice(&bytes).map_err(|error| damaged(&directory.path_of(id), &error))?;
    Ok(Some(record))
}

fn damaged(path: &Path, error: &serde_json::Error) -> Error {
    Error::State {
        path: path.to_owned(),
        what: format!("it is not the record of a join token: {error}"),
        cure: "remove it, and make a new token".into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::{Arc, Barrier};

    use super::*;
    use crate::tests::{State, at, name};

    const LIFETIME: Duration = Duration::from_secs(600);

    #[test]
    fn a_token_admits_its_service_once() {
        let state = State::new();
        let token = state
            .tokens
            .create(&name("orders"), LIFETIME, state.root(), at(0))
            .unwrap();
        let admitted = redeem(&token.to_string(), state.root(), &state.tokens, at(599)).unwrap();
        assert_eq!(
            (admitted.service.as_str(), admitted.kind),
            ("orders", Kind::Token)
        );
        assert_eq!(admitted.evidence, token.id());
        for _ in 0..2 {
            let again =
                redeem(&token.to_string(), state.root(), &state.tokens, at(599)).unwrap_err();
            assert!(matches!(again, Refusal::TokenUsed), "{again}");
        }
    }

    #[test]
    fn a_token_is_good_until_it_is_used_or_over() {
        let state = State::new();
        let tokens = &state.tokens;
        let token = tokens
            .create(&name("orders"), LIFETIME, state.root(), at(0))
            .unwrap();
        let left = |service: &str, now| tokens.left(&token, &name(service), at(now)).unwrap();
        assert_eq!(left("orders", 100), Some(Duration::from_secs(500)));
        assert_eq!(left("orders", 600), None);
        assert_eq!(left("inventory", 100), None);
        redeem(&token.to_string(), state.root(), tokens, at(100)).unwrap();
        assert_eq!(left("orders", 100), None);
    }

    #[test]
    fn of_fifty_concurrent_uses_one_wins() {
        let state = State::new();
        let token = state
            .tokens
            .create(&name("orders"), LIFETIME, state.root(), at(0))
            .unwrap()
            .to_string();
        let barrier = Arc::new(Barrier::new(50));
        let wins: Vec<bool> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..50)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        match redeem(&token, state.root(), &state.tokens, at(1)) {
                            Ok(_) => true,
                            Err(Refusal::TokenUsed) => false,
                            Err(other) => panic!("{other}"),
                        }
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(wins.iter().filter(|&&won| won).count(), 1);
    }

    #[test]
    fn every_other_token_is_refused_for_its_reason() {
        let state = State::new();
        let tokens = &state.tokens;
        let check = |text: &str, now, expected: fn(&Refusal) -> bool| {
            let refusal = redeem(text, state.root(), tokens, now).unwrap_err();
            assert!(expected(&refusal), "{text}: {refusal}");
        };
        let token = tokens
            .create(&name("orders"), LIFETIME, state.root(), at(0))
            .unwrap()
            .to_string();
        let parts: Vec<_> = token.split('.').collect();
        let with_secret = |secret: &str| [parts[0], parts[1], secret, parts[3]].join(".");
        check("orders", at(1), |r| matches!(r, Refusal::TokenMalformed(_)));
        check(&with_secret(&"A".repeat(32)), at(1), |r| {
            matches!(r, Refusal::TokenUnknown)
        });
        let other_id = [parts[0], &"A".repeat(12), parts[2], parts[3]].join(".");
        check(&other_id, at(1), |r| matches!(r, Refusal::TokenUnknown));
        let other_root = [parts[0], parts[1], parts[2], &"ab".repeat(32)].join(".");
        check(&other_root, at(1), |r| matches!(r, Refusal::TokenForeign));
        check(&token, at(600), |r| matches!(r, Refusal::TokenExpired));
        // None of these used it up.
        redeem(&token, state.root(), tokens, at(599)).unwrap();
        // Whoever does not know the secret does not learn that it was used.
        check(&with_secret(&"A".repeat(32)), at(1), |r| {
            matches!(r, Refusal::TokenUnknown)
        });
    }

    #[test]
    fn the_disk_knows_no_secret() {
        let state = State::new();
        let token = state
            .tokens
            .create(&name("orders"), LIFETIME, state.root(), at(0))
            .unwrap();
        let file = fs::read_to_string(state.tokens.open.path_of(&token.id())).unwrap();
        let text = token.to_string();
        let secret = text.split('.').nth(2).unwrap();
        assert!(!file.contains(secret) && file.contains("orders"), "{file}");
    }

    #[test]
    fn expired_tokens_are_swept_and_make_room() {
        let mut state = State::new();
        state.tokens.most = 3;
        let tokens = &state.tokens;
        let create = |now| tokens.create(&name("orders"), LIFETIME, state.root(), now);
        let first = create(at(0)).unwrap();
        create(at(100)).unwrap();
        create(at(100)).unwrap();
        redeem(&first.to_string(), state.root(), tokens, at(100)).unwrap();
        let error = create(at(100)).unwrap_err();
        assert!(
            matches!(error, Error::TooManyTokens(3)),
            "a used one counts until it expires: {error}"
        );
        create(at(600)).unwrap();
        tokens.sweep(at(10_000)).unwrap();
        assert_eq!(
            tokens.open.names().unwrap().len() + tokens.used.names().unwrap().len(),
            0
        );
    }

    #[test]
    fn no_token_is_made_for_the_authority() {
        let state = State::new();
        let error = state
            .tokens
            .create(&name("ca"), LIFETIME, state.root(), at(0))
            .unwrap_err();
        assert!(matches!(error, Error::Reserved), "{error}");
    }

    #[test]
    fn a_damaged_or_open_record_admits_nobody() {
        let state = State::new();
        let tokens = &state.tokens;
        let token = tokens
            .create(&name("orders"), LIFETIME, state.root(), at(0))
            .unwrap();
        let path = tokens.open.path_of(&token.id());
        let good = fs::read(&path).unwrap();
        let refused = || {
            matches!(
                redeem(&token.to_string(), state.root(), tokens, at(1)),
                Err(Refusal::Internal(_))
            )
        };
        for damage in [&good[..good.len() / 2], b"", b"{}", b"null"] {
            fs::write(&path, damage).unwrap();
            assert!(refused());
            tokens.sweep(at(100_000)).unwrap();
            assert!(path.exists(), "left for somebody to look at");
        }
        fs::write(&path, &good).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(refused());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        redeem(&token.to_string(), state.root(), tokens, at(1)).unwrap();
    }
}
