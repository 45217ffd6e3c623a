//! The join token: what a new instance holds before it has an identity.
//!
//! `weft1.<id>.<secret>.<fingerprint>`. The id finds the record on the authority's disk, the secret proves that the
//! bearer was given the token (the disk holds only its hash), and the fingerprint is the SHA-256 of the root
//! certificate: so a client that holds nothing but a token knows which root to trust when it first calls.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The version of the format, in front.
const PREFIX: &str = "weft1";

/// How many bytes the id has. Nine make twelve characters.
const ID: usize = 9;

/// How many bytes the secret has: beyond guessing.
const SECRET: usize = 24;

/// The longest text that is looked at; a token has 128 characters or so.
const LONGEST: usize = 256;

/// A join token. Its `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: [u8; ID],
    secret: [u8; SECRET],
    root: [u8; 32],
}

/// Why a text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a join token: it reads `weft1.<id>.<secret>.<fingerprint of the root>`, as `weft ca token create` prints it"
)]
pub struct Malformed;

impl Token {
    /// From `random` bytes, for the authority whose root has this `fingerprint`.
    pub(crate) fn new(random: &[u8; ID + SECRET], fingerprint: [u8; 32]) -> Self {
        let (mut id, mut secret) = ([0; ID], [0; SECRET]);
        id.copy_from_slice(&random[..ID]);
        secret.copy_from_slice(&random[ID..]);
        Self {
            id,
            secret,
            root: fingerprint,
        }
    }

    /// Names the record; safe as the name of a file.
    pub fn id(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.id)
    }

    /// SHA-256 of the root certificate's DER.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.root
    }

    /// SHA-256 of the secret, which is what the authority keeps.
    pub(crate) fn secret_hash(&self) -> [u8; 32] {
        sha256(&self.secret)
    }
}

impl FromStr for Token {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() > LONGEST {
            return Err(Malformed);
        }
        let mut parts = text.split('.');
        let (Some(PREFIX), Some(id), Some(secret), Some(root), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(Malformed);
        };
        Ok(Self {
            id: base64url(id)?,
            secret: base64url(secret)?,
            root: from_hex(root).ok_or(Malformed)?,
        })
    }
}

impl fmt::Display for Token {
    /// The whole token, secret included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = URL_SAFE_NO_PAD.encode(self.secret);
        write!(f, "{PREFIX}.{}.{secret}.{}", self.id(), hex(&self.root))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, secret elided)", self.id())
    }
}

fn base64url<const N: usize>(text: &str) -> Result<[u8; N], Malformed> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Malformed)?;
    bytes.try_into().map_err(|_| Malformed)
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).into()
}

/// In lower case.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Exactly 32 bytes in lower case; one value has one spelling.
pub(crate) fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != 32 || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_token_reads_as_it_was_written() {
        let mut random = [0; 33];
        for (i, byte) in random.iter_mut().enumerate() {
            *byte = i as u8 * 7;
        }
        let token = Token::new(&random, sha256(b"root"));
        let text = token.to_string();
        assert_eq!(text.parse::<Token>().unwrap(), token);
        let parts: Vec<_> = text.split('.').collect();
        assert_eq!(parts.len(), 4);
        assert_eq!(
            (parts[0], parts[1].len(), parts[2].len(), parts[3].len()),
            ("weft1", 12, 32, 64)
        );
        assert!(
            !format!("{token:?}").contains(parts[2]),
            "Debug shows no secret"
        );
    }

    #[test]
    fn a_token_has_one_spelling_only() {
        let good = Token::new(&[7; 33], [0xab; 32]).to_string();
        let parts: Vec<_> = good.split('.').collect();
        let with = |index: usize, part: &str| {
            let mut parts = parts.clone();
            parts[index] = part;
            parts.join(".")
        };
        let cases = [
            String::new(),
            "weft1".into(),
            "weft1...".into(),
            format!("{good}."),
            format!("{good}.x"),
            format!(" {good}"),
            format!("{good}\n"),
            with(0, "weft2"),
            with(0, "WEFT1"),
            with(1, "../../../etc"),
            with(1, "AAAAAAAAAAA"),
            with(1, "AAAAAAAAAAAA="),
            with(1, "AAAAAAAAAAA/"),
            with(2, ""),
            with(2, &parts[2][1..]),
            with(3, &"AB".repeat(32)),
            with(3, &"ab".repeat(31)),
            with(3, &"zz".repeat(32)),
            with(3, &"é".repeat(32)),
            with(2, &"A".repeat(100_000)),
        ];
        for bad in cases {
            assert_eq!(bad.parse::<Token>(), Err(Malformed), "{bad}");
        }
    }
}
