//! Names as the authority writes them into certificates: trust domains and services.
//!
//! The grammar is narrower than SPIFFE's own on purpose: a service is one DNS label, because the same word is its
//! SPIFFE path, its DNS name in the certificate and its key in `services:`.

use std::fmt;

use crate::Error;

/// What stands before the trust domain.
const SCHEME: &str = "spiffe://";

/// What stands between the trust domain and the service.
const SERVICE: &str = "/service/";

/// The name under which the authority itself serves. No token is made for it and no renewal is granted: whoever held
/// such a certificate could stand in for the authority.
pub const AUTHORITY: &str = "ca";

/// A trust domain such as `shop.internal`: lower-case letters, digits, `.`, `-` and `_`, at most 255 of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Checks the grammar.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > 255 || !text.bytes().all(allowed) {
            return Err(Error::Name(format!(
                "{text:?} is not a trust domain: 1 to 255 lower-case letters, digits, `.`, `-` and `_`, such as `shop.internal`"
            )));
        }
        Ok(Self(text.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself, which stands in the authority's own certificates.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }

    /// The SPIFFE ID of a service.
    pub fn service_uri(&self, service: &ServiceName) -> String {
        format!("{SCHEME}{}{SERVICE}{service}", self.0)
    }

    /// Which service of this trust domain `uri` names; `None` for every other URI.
    pub fn service_of(&self, uri: &str) -> Option<ServiceName> {
        let rest = uri.strip_prefix(SCHEME)?.strip_prefix(self.0.as_str())?;
        ServiceName::parse(rest.strip_prefix(SERVICE)?).ok()
    }

    /// Which trust domain the URI in an authority's certificate names.
    pub(crate) fn of_authority(uri: &str) -> Option<Self> {
        Self::parse(uri.strip_prefix(SCHEME)?).ok()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a service: one DNS label in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceName(String);

impl ServiceName {
    /// Checks the grammar.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if text.is_empty()
            || text.len() > 63
            || !text.bytes().all(allowed)
            || text.starts_with('-')
            || text.ends_with('-')
        {
            return Err(Error::Name(format!(
                "{text:?} is not a service name: 1 to 63 lower-case letters, digits and `-`, with a letter or digit at both ends"
            )));
        }
        Ok(Self(text.to_owned()))
    }

    /// The authority's own name.
    pub(crate) fn authority() -> Self {
        Self(AUTHORITY.to_owned())
    }

    /// Whether this is the authority's own name.
    pub fn is_authority(&self) -> bool {
        self.0 == AUTHORITY
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_service_name_is_one_dns_label_in_lower_case() {
        let longest = "a".repeat(63);
        for good in ["a", "orders", "orders-2", "0", "x--y", longest.as_str()] {
            assert!(ServiceName::parse(good).is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in [
            "",
            "-",
            "-a",
            "a-",
            "Orders",
            "a.b",
            "a_b",
            "a/b",
            "../a",
            "a b",
            "ä",
            "a\0",
            "a%41",
            "*",
            too_long.as_str(),
        ] {
            assert!(ServiceName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_trust_domain_has_the_letters_of_spiffe() {
        let longest = "a".repeat(255);
        for good in ["shop.internal", "a_b", "a-b", "1", longest.as_str()] {
            assert!(TrustDomain::parse(good).is_ok(), "{good}");
        }
        let too_long = "a".repeat(256);
        for bad in [
            "",
            "Shop",
            "a/b",
            "a:1",
            "a b",
            "a@b",
            "ä",
            "a?b",
            "a%2e",
            too_long.as_str(),
        ] {
            assert!(TrustDomain::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_the_exact_form_names_a_service_of_ours() {
        let domain = TrustDomain::parse("shop.internal").unwrap();
        let orders = ServiceName::parse("orders").unwrap();
        assert_eq!(
            domain.service_of(&domain.service_uri(&orders)),
            Some(orders)
        );
        for foreign in [
            "spiffe://shop.internal",
            "spiffe://shop.internal/service/",
            "spiffe://shop.internal/service/orders/",
            "spiffe://shop.internal/service/orders?x",
            "spiffe://shop.internal/service/orders#x",
            "spiffe://shop.internal/service/../service/orders",
            "spiffe://shop.internal//service/orders",
            "spiffe://shop.internal:1/service/orders",
            "spiffe://shop.internal.evil/service/orders",
            "spiffe://xshop.internal/service/orders",
            "spiffe://shop/service/orders",
            "SPIFFE://shop.internal/service/orders",
            "https://shop.internal/service/orders",
            "spiffe://shop.internal/workload/orders",
            "",
        ] {
            assert_eq!(domain.service_of(foreign), None, "{foreign}");
        }
    }
}
