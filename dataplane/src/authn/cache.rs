//! Tokens that were good, so that a signature is checked once and not for every request.
//!
//! One cache for each thread, without locks. An entry counts only for the authenticator and the keys that found the
//! token good, and only while the token is valid; the whole token is compared, the hash alone decides nothing.
//! Failures are not kept: they would let anybody fill it.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::SystemTime;

use foldhash::quality::RandomState;
use indexmap::IndexMap;

use super::jwt::Verified;
use crate::principal::Claims;

/// The most tokens of a thread …
const MOST_TOKENS: usize = 4_096;

/// … and of all of them together, the most bytes.
const MOST_BYTES: usize = 4 << 20;

/// Which authenticator, and which generation of its keys.
pub(super) type Version = (u64, u64);

thread_local! {
    static VERIFIED: RefCell<Cache> = RefCell::default();
}

/// What the good `token` says, if it is remembered.
pub(super) fn find(token: &str, version: Version, now: SystemTime) -> Option<Arc<Claims>> {
    VERIFIED.with_borrow_mut(|cache| cache.find(token, version, now))
}

/// Remembers a good `token`.
pub(super) fn insert(token: &str, version: Version, verified: Verified) {
    VERIFIED.with_borrow_mut(|cache| cache.insert(token, version, verified));
}

#[derive(Debug, Default)]
struct Cache {
    /// By hash of token and authenticator, keyed so that nobody outside can say what falls together.
    entries: IndexMap<u64, Entry, foldhash::fast::FixedState>,
    hash: RandomState,
    /// Of all tokens together.
    bytes: usize,
    /// Where the next search for an entry to forget begins.
    hand: usize,
}

#[derive(Debug)]
struct Entry {
    token: Box<str>,
    version: Version,
    verified: Verified,
    /// Since the hand last came by.
    used: bool,
}

impl Cache {
    fn find(&mut self, token: &str, version: Version, now: SystemTime) -> Option<Arc<Claims>> {
        let hash = self.key(token, version);
        let entry = self.entries.get_mut(&hash)?;
        // How long this comparison takes tells nothing: without the right hash, which is secret, it is not made.
        if *entry.token != *token {
            return None;
        }
        let Verified { from, until, .. } = entry.verified;
        if entry.version != version || now >= until {
            self.bytes -= entry.token.len();
            self.entries.swap_remove(&hash);
            return None;
        }
        // The clock went back; it may come again.
        if now < from {
            return None;
        }
        entry.used = true;
        Some(Arc::clone(&entry.verified.claims))
    }

    fn insert(&mut self, token: &str, version: Version, verified: Verified) {
        let hash = self.key(token, version);
        while !self.entries.is_empty()
            && (self.entries.len() >= MOST_TOKENS || self.bytes + token.len() > MOST_BYTES)
        {
            self.forget_one();
        }
        let entry = Entry {
            token: token.into(),
            version,
            verified,
            used: false,
        };
        self.bytes += token.len();
        if let Some(old) = self.entries.insert(hash, entry) {
            self.bytes -= old.token.len();
        }
    }

    /// Forgets an entry that was not used since the last time round (the "clock" algorithm): at most two rounds, and on
    /// average one step for each use.
    fn forget_one(&mut self) {
        loop {
            self.hand %= self.entries.len().max(1);
            match self.entries.get_index_mut(self.hand) {
                Some((_, entry)) if entry.used => {
                    entry.used = false;
                    self.hand += 1;
                }
                _ => break,
            }
        }
        if let Some((_, entry)) = self.entries.swap_remove_index(self.hand) {
            self.bytes -= entry.token.len();
        }
    }

    fn key(&self, token: &str, (authenticator, _): Version) -> u64 {
        use std::hash::{BuildHasher, Hasher};
        let mut hasher = self.hash.build_hasher();
        hasher.write_u64(authenticator);
        hasher.write(token.as_bytes());
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn verified(subject: &str, from: u64, until: u64) -> Verified {
        Verified {
            claims: Arc::new(Claims {
                issuer: String::new(),
                subject: subject.to_owned(),
                expires: at(until),
                all: serde_json::Map::new(),
            }),
            from: at(from),
            until: at(until),
        }
    }

    fn subject(cache: &mut Cache, token: &str, version: Version, now: u64) -> Option<String> {
        cache
            .find(token, version, at(now))
            .map(|claims| claims.subject.clone())
    }

    #[test]
    fn an_entry_counts_for_its_token_authenticator_keys_and_time_only() {
        let mut cache = Cache::default();
        cache.insert("a.b.c", (1, 7), verified("ann", 100, 200));
        let ann = Some("ann".to_owned());
        assert_eq!(subject(&mut cache, "a.b.c", (1, 7), 100), ann);
        assert_eq!(subject(&mut cache, "a.b.c", (1, 7), 199), ann);
        assert_eq!(subject(&mut cache, "a.b.d", (1, 7), 150), None);
        assert_eq!(subject(&mut cache, "a.b.c", (2, 7), 150), None);
        // Before its time, and then again in it.
        assert_eq!(subject(&mut cache, "a.b.c", (1, 7), 99), None);
        assert_eq!(subject(&mut cache, "a.b.c", (1, 7), 150), ann);
        // Expired, and gone for good.
        assert_eq!(subject(&mut cache, "a.b.c", (1, 7), 200), None);
        assert_eq!((cache.entries.len(), cache.bytes), (0, 0));
        // New keys.
        cache.insert("a.b.c", (1, 7), verified("ann", 100, 200));
        assert_eq!(subject(&mut cache, "a.b.c", (1, 8), 150), None);
        assert_eq!((cache.entries.len(), cache.bytes), (0, 0));
    }

    #[test]
    fn the_bounds_hold_and_what_is_used_stays() {
        let mut cache = Cache::default();
        cache.insert("popular", (0, 0), verified("ann", 0, 200));
        for index in 0..20_000 {
            cache.insert(&format!("token {index}"), (0, 0), verified("x", 0, 200));
            assert!(
                subject(&mut cache, "popular", (0, 0), 1).is_some(),
                "after {index}"
            );
        }
        assert_eq!(cache.entries.len(), MOST_TOKENS);
        let long = "x".repeat(8_000);
        for index in 0..2_000 {
            cache.insert(&format!("{long} {index}"), (0, 0), verified("x", 0, 200));
        }
        assert!(cache.bytes <= MOST_BYTES, "{} bytes", cache.bytes);
        assert!(cache.entries.len() > 400);
        let bytes: usize = cache.entries.values().map(|entry| entry.token.len()).sum();
        assert_eq!(cache.bytes, bytes);
    }

    #[test]
    fn the_same_token_again_takes_the_place_of_the_old() {
        let mut cache = Cache::default();
        cache.insert("a", (0, 0), verified("ann", 0, 200));
        cache.insert("a", (0, 1), verified("bob", 0, 200));
        assert_eq!(subject(&mut cache, "a", (0, 1), 1), Some("bob".to_owned()));
        assert_eq!((cache.entries.len(), cache.bytes), (1, 1));
    }
}
