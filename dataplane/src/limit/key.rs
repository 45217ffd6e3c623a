//! Whose bucket a request takes from.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::{HeaderMap, HeaderName};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Visitor};
use serde_json::Value;

use crate::principal::Principal;

/// What requests are counted by. A request that lacks it (no such claim or header, no proven caller) is counted by the
/// client's address: leaving a header out must not be a way around a limit, nor throw all who do into one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// `route`: all requests of a route together.
    Route,
    /// `client_address`: the address of the client; of IPv6 its /64, which is what one client has.
    ClientAddress,
    /// `principal`: the proven caller: a workload's identity, or a token's issuer and subject.
    Principal,
    /// `claims.NAME`: a claim of the token that is text, a number or a truth value. Each issuer counts for itself.
    Claim(Box<str>),
    /// `header.NAME`: a field of the request, its first line.
    Header(HeaderName),
}

/// Who asks, as far as a limit may look.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Which route; the place in the plan or a name.
    pub route: &'a str,
    /// The client's address.
    pub client: IpAddr,
    /// The proven caller.
    pub principal: &'a Principal,
    /// The fields of the request.
    pub headers: &'a HeaderMap,
}

impl By {
    /// Hands `act` the parts of which the key consists. The first tells the kinds of keys apart, so that no header value can
    /// be another's address.
    pub(super) fn parts<R>(&self, subject: &Subject<'_>, act: impl Fn(&[&[u8]]) -> R) -> R {
        let given = match (self, subject.principal) {
            (Self::Route, _) => Some(act(&[b"route", subject.route.as_bytes()])),
            (Self::Principal, Principal::Workload(id)) => {
                Some(act(&[b"workload", id.as_str().as_bytes()]))
            }
            (Self::Principal, Principal::Bearer(claims)) if !claims.subject.is_empty() => {
                Some(act(&[
                    b"bearer",
                    claims.issuer.as_bytes(),
                    claims.subject.as_bytes(),
                ]))
            }
            (Self::Claim(name), Principal::Bearer(claims)) => {
                let issuer = claims.issuer.as_bytes();
                match claims.all.get(&**name) {
                    Some(Value::String(text)) => Some(act(&[b"claim", issuer, text.as_bytes()])),
                    Some(value @ (Value::Number(_) | Value::Bool(_))) => {
                        Some(act(&[b"claim", issuer, value.to_string().as_bytes()]))
                    }
                    _ => None,
                }
            }
            (Self::Header(name), _) => subject
                .headers
                .get(name)
                .map(|value| act(&[b"header", value.as_bytes()])),
            _ => None,
        };
        given.unwrap_or_else(|| match subject.client.to_canonical() {
            IpAddr::V4(address) => act(&[b"address", &address.octets()]),
            IpAddr::V6(address) => act(&[b"address", &address.octets()[..8]]),
        })
    }
}

impl FromStr for By {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is nothing to count by; write `route`, `client_address`, `principal`, `claims.NAME` or \
                 `header.NAME`"
            )
        };
        match text {
            "route" => Ok(Self::Route),
            "client_address" => Ok(Self::ClientAddress),
            "principal" => Ok(Self::Principal),
            _ => match text.split_once('.') {
                Some(("claims", name)) if !name.is_empty() => Ok(Self::Claim(name.into())),
                Some(("header", name)) => match HeaderName::from_str(name) {
                    Ok(name) if name == http::header::HOST => Err(
                        "`header.host` is never there; give each host its own route, and count by `route`".to_owned(),
                    ),
                    Ok(name) => Ok(Self::Header(name)),
                    Err(_) => Err(wrong()),
                },
                _ => Err(wrong()),
            },
        }
    }
}

impl JsonSchema for By {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "By".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^(route|client_address|principal|claims\..+|header\..+)$",
        })
    }
}

impl<'de> Deserialize<'de> for By {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FromText;
        impl Visitor<'_> for FromText {
            type Value = By;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("what to count by, such as `client_address` or `claims.sub`")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<By, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(FromText)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::time::SystemTime;

    use serde_json::json;

    use super::*;
    use crate::principal::Claims;

    fn bearer(issuer: &str, claims: &Value) -> Principal {
        let all = claims.as_object().unwrap().clone();
        Principal::Bearer(Arc::new(Claims {
            issuer: issuer.to_owned(),
            subject: all
                .get("sub")
                .and_then(Value::as_str)
                .unwrap_or("")
                .to_owned(),
            expires: SystemTime::UNIX_EPOCH,
            all,
        }))
    }

    fn key(by: &str, client: &str, principal: &Principal, headers: &HeaderMap) -> String {
        let subject = Subject {
            route: "shop",
            client: client.parse().unwrap(),
            principal,
            headers,
        };
        let by: By = by.parse().unwrap();
        by.parts(&subject, |parts| {
            let texts = parts.iter().map(|part| match std::str::from_utf8(part) {
                Ok(text) if text.chars().all(|c| c.is_ascii_graphic()) => text.to_owned(),
                _ => format!("{part:?}"),
            });
            texts.collect::<Vec<_>>().join(" ")
        })
    }

    #[test]
    fn each_kind_counts_by_what_it_says() {
        let nobody = Principal::Anonymous;
        let ann = bearer(
            "https://id",
            &json!({"sub": "ann", "plan": 7, "beta": true, "roles": ["a"]}),
        );
        let mut headers = HeaderMap::new();
        headers.append("x-key", "k1".parse().unwrap());
        headers.append("x-key", "k2".parse().unwrap());
        let none = HeaderMap::new();
        let address = "address [192, 0, 2, 1]";
        let check =
            |by: &str, client: &str, principal: &Principal, headers: &HeaderMap, expected: &str| {
                assert_eq!(key(by, client, principal, headers), expected, "{by}");
            };
        check("route", "192.0.2.1", &nobody, &none, "route shop");
        check("client_address", "192.0.2.1", &ann, &none, address);
        check(
            "client_address",
            "::ffff:192.0.2.1",
            &nobody,
            &none,
            address,
        );
        check(
            "principal",
            "192.0.2.1",
            &ann,
            &none,
            "bearer https://id ann",
        );
        check(
            "claims.sub",
            "192.0.2.1",
            &ann,
            &none,
            "claim https://id ann",
        );
        check(
            "claims.plan",
            "192.0.2.1",
            &ann,
            &none,
            "claim https://id 7",
        );
        check(
            "claims.beta",
            "192.0.2.1",
            &ann,
            &none,
            "claim https://id true",
        );
        check("header.X-Key", "192.0.2.1", &nobody, &headers, "header k1");
        // What is not there falls back to the address.
        check("principal", "192.0.2.1", &nobody, &none, address);
        check(
            "principal",
            "192.0.2.1",
            &bearer("i", &json!({})),
            &none,
            address,
        );
        check("claims.sub", "192.0.2.1", &nobody, &none, address);
        check("claims.other", "192.0.2.1", &ann, &none, address);
        check("claims.roles", "192.0.2.1", &ann, &none, address);
        check("header.x-other", "192.0.2.1", &nobody, &headers, address);
    }

    #[test]
    fn an_ipv6_client_is_its_64() {
        let of = |client: &str| {
            key(
                "client_address",
                client,
                &Principal::Anonymous,
                &HeaderMap::new(),
            )
        };
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    }

    #[test]
    fn what_is_no_key_is_refused_with_a_way_out() {
        for text in [
            "",
            "ip",
            "Route",
            "claims",
            "claims.",
            "header.",
            "header.a b",
            "claim.sub",
            "headers.x",
        ] {
            let error = text.parse::<By>().unwrap_err();
            assert!(error.contains("`claims.NAME`"), "{text}: {error}");
        }
        let error = "header.host".parse::<By>().unwrap_err();
        assert!(error.contains("own route"), "{error}");
        assert_eq!("claims.a.b".parse(), Ok(By::Claim("a.b".into())));
    }
}
