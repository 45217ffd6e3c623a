//! The join token: what a new instance proves itself with, and by which it knows the CA.
//!
//! `weft1.<id>.<secret>.<SHA-256 of the CA's root certificate>`. The hash makes the first connection as safe as all
//! later ones: nobody between the instance and the CA can pose as the CA.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const PREFIX: &str = "weft1";
/// Far above what the CA makes.
const MAX_TOKEN_BYTES: usize = 512;

/// A token of `weft ca token create`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    text: String,
    id: String,
    root_sha256: [u8; 32],
}

impl JoinToken {
    /// The whole token, as the CA wants it. A secret.
    pub fn secret(&self) -> &str {
        &self.text
    }

    /// Its public part, for logs.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The SHA-256 of the CA's root certificate.
    pub fn root_sha256(&self) -> [u8; 32] {
        self.root_sha256
    }
}

impl FromStr for JoinToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Never the text itself: what was mistyped may be most of a secret.
        let wrong = |what: &str| {
            format!("that is no join token: {what}; make one with `weft ca token create`")
        };
        let text = text.trim();
        if text.len() > MAX_TOKEN_BYTES {
            return Err(wrong("it is too long"));
        }
        let parts: Vec<&str> = text.split('.').collect();
        let [prefix, id, secret, root] = parts[..] else {
            return Err(wrong("it has not four parts"));
        };
        if prefix != PREFIX {
            return Err(wrong("it does not begin with `weft1.`"));
        }
        let plain = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        if !plain(id) || !plain(secret) {
            return Err(wrong(
                "its id or secret is empty or has other characters than letters, digits, `-` and `_`",
            ));
        }
        Ok(Self {
            id: id.to_owned(),
            root_sha256: sha256(root)
                .ok_or_else(|| wrong("its last part is not 64 lower-case hexadecimal digits"))?,
            text: text.to_owned(),
        })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, redacted)", self.id)
    }
}

/// Where a join token comes from.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// Handed over at start.
    Given(JoinToken),
    /// Read whenever one is needed, so that a file that is written anew heals an instance that lost its identity.
    File(PathBuf),
}

impl TokenSource {
    /// The token as it is now.
    pub async fn read(&self) -> Result<JoinToken, String> {
        match self {
            Self::Given(token) => Ok(token.clone()),
            Self::File(path) => read_file(path).await,
        }
    }
}

async fn read_file(path: &Path) -> Result<JoinToken, String> {
    let shown = path.display();
    let text = super::files::read_small(path)
        .await
        .map_err(|error| format!("the token file {shown} cannot be read: {error}"))?;
    let text =
        std::str::from_utf8(&text).map_err(|_| format!("the token file {shown} is no text"))?;
    text.parse()
        .map_err(|error| format!("the token file {shown}: {error}"))
}

fn sha256(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut out = [0; 32];
    if text.len() != out.len() * 2 {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_what_the_ca_makes_and_nothing_else() {
        let hash = "0123456789abcdef".repeat(4);
        let good = format!("weft1.a1B2.s-e_c.{hash}");
        let cases = [
            (good.clone(), None),
            (format!(" {good}\n"), None),
            (String::new(), Some("four parts")),
            ("weft1".to_owned(), Some("four parts")),
            (format!("{good}.x"), Some("four parts")),
            (format!("weft2.a.s.{hash}"), Some("begin")),
            (format!("weft1..s.{hash}"), Some("id or secret")),
            (format!("weft1.a..{hash}"), Some("id or secret")),
            (format!("weft1.a b.s.{hash}"), Some("id or secret")),
            (format!("weft1.a.s.{}", &hash[1..]), Some("64")),
            (format!("weft1.a.s.{hash}0"), Some("64")),
            (format!("weft1.a.s.{}", hash.to_uppercase()), Some("64")),
            (format!("weft1.a.s.{}", hash.replace('0', "g")), Some("64")),
            (format!("weft1.a.s.{}", "\u{e4}".repeat(32)), Some("64")),
            (format!("weft1.a.{}.{hash}", "s".repeat(512)), Some("long")),
        ];
        for (text, expected) in cases {
            let got = text.parse::<JoinToken>();
            match (got, expected) {
                (Ok(token), None) => assert_eq!(token.secret(), good),
                (Err(error), Some(part)) => assert!(error.contains(part), "{text:?}: {error}"),
                (got, _) => panic!("{text:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn never_shows_its_secret() {
        let token: JoinToken = format!("weft1.id7.hush.{}", "ab".repeat(32))
            .parse()
            .unwrap();
        let shown = format!("{token:?} {:?}", TokenSource::Given(token.clone()));
        assert!(shown.contains("id7") && !shown.contains("hush"), "{shown}");
        assert_eq!(token.root_sha256(), [0xab; 32]);
    }
}
