//! Tokens: the good ones, and every way to be bad that we could think of, each with its reason.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use weft_runtime::config::{Path, Problems};

use super::testing::{Signer, ec_key, ed_key, encode, other_rsa_key, rsa_key};
use super::{Authenticator, Config, challenge};
use crate::principal::Claims;
use crate::reason::Reason;

/// The time of all tests, in seconds since 1970.
const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://id.example";

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

/// An authenticator whose key set is `keys`, and the directory that holds it.
fn with_keys(keys: &[Value], more: &str) -> (Authenticator, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.json");
    std::fs::write(&file, json!({ "keys": keys }).to_string()).unwrap();
    let config = format!(
        r#"{{"jwt": {{"issuer": "{ISSUER}", "audience": ["shop", "admin"], "jwks": {{"file": {file:?}}}{more}}}}}"#
    );
    let config: Config = serde_json::from_str(&config).unwrap();
    let mut problems = Problems::new();
    let built = Authenticator::build(&Path::root(), &config, &mut problems);
    (built.unwrap_or_else(|| panic!("{problems:?}")), directory)
}

fn three_keys() -> (Authenticator, tempfile::TempDir) {
    with_keys(
        &[rsa_key().jwk("r"), ec_key().jwk("e"), ed_key().jwk("d")],
        "",
    )
}

fn good_claims() -> Value {
    json!({"iss": ISSUER, "sub": "ann", "aud": "shop", "exp": NOW + 300, "iat": NOW - 10})
}

fn claims_with(name: &str, value: Value) -> String {
    let mut claims = good_claims();
    claims[name] = value;
    claims.to_string()
}

fn claims_without(name: &str) -> String {
    let mut claims = good_claims();
    claims.as_object_mut().unwrap().remove(name);
    claims.to_string()
}

fn header(key: &Signer, id: &str) -> String {
    json!({"alg": key.algorithm(), "kid": id, "typ": "JWT"}).to_string()
}

fn good_token(key: &Signer, id: &str) -> String {
    key.token(&header(key, id), &good_claims().to_string())
}

fn fields(values: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(
            AUTHORIZATION,
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    headers
}

fn identify(authenticator: &Authenticator, token: &str) -> Result<Arc<Claims>, Reason> {
    identify_at(authenticator, token, now())
}

fn identify_at(
    authenticator: &Authenticator,
    token: &str,
    now: SystemTime,
) -> Result<Arc<Claims>, Reason> {
    let headers = fields(&[&format!("Bearer {token}")]);
    authenticator
        .identify(&headers, now)
        .map_err(|error| error.reason)
}

#[test]
fn good_tokens_of_every_algorithm_say_who_calls() {
    let (authenticator, _directory) = three_keys();
    for (key, id) in [(rsa_key(), "r"), (ec_key(), "e"), (ed_key(), "d")] {
        let token = good_token(key, id);
        // The second time from the cache: the same claims, not equal ones.
        let claims = identify(&authenticator, &token).unwrap();
        let again = identify(&authenticator, &token).unwrap();
        assert!(Arc::ptr_eq(&claims, &again));
        assert_eq!(
            (claims.issuer.as_str(), claims.subject.as_str()),
            (ISSUER, "ann")
        );
        assert_eq!(claims.expires, now() + Duration::from_secs(300));
        assert_eq!(Value::Object(claims.all.clone()), good_claims());
    }
}

#[test]
fn tokens_may_be_written_in_more_ways_than_one() {
    let (authenticator, _directory) = three_keys();
    let key = ed_key();
    let accepts = |header: &str, claims: &str| {
        let token = key.token(header, claims);
        let result = identify(&authenticator, &token);
        assert!(result.is_ok(), "{header} {claims}: {result:?}");
    };
    let plain = header(key, "d");
    for claims in [
        claims_with("aud", json!(["other", "admin"])),
        claims_with("exp", json!(NOW as f64 + 0.5)),
        claims_with("exp", json!(253_402_300_799_u64)),
        claims_with("nbf", json!(0)),
        claims_with("nbf", json!(NOW)),
        claims_without("sub"),
        claims_without("iat"),
        claims_with("nested", json!({"a": [{"b": 1}]})),
        // Within the skew of 60 s.
        claims_with("exp", json!(NOW - 59)),
        claims_with("nbf", json!(NOW + 60)),
    ] {
        accepts(&plain, &claims);
    }
    let good = good_claims().to_string();
    // Without `kid`: the only key of the algorithm.
    accepts(r#"{"alg": "EdDSA"}"#, &good);
    accepts(r#"{"alg": "EdDSA", "typ": "application/AT+jwt"}"#, &good);
    // Keys that a token brings along are not looked at.
    accepts(
        r#"{"alg": "EdDSA", "jku": "https://evil.test/", "jwk": {"kty": "oct"}, "x5u": "x"}"#,
        &good,
    );
    for scheme in ["bearer", "BEARER", "Bearer "] {
        let value = format!("{scheme} {}", good_token(key, "d"));
        assert!(
            authenticator.identify(&fields(&[&value]), now()).is_ok(),
            "{scheme}"
        );
    }
}

#[test]
fn bad_tokens_are_refused_each_with_its_reason() {
    let (authenticator, _directory) = three_keys();
    let (r, e, d) = (rsa_key(), ec_key(), ed_key());
    let good = good_claims().to_string();
    let refuses = |what: &str, token: &str, reason: Reason| {
        let result = identify(&authenticator, token).map(|claims| claims.subject.clone());
        assert_eq!(result, Err(reason), "{what}");
        assert!(challenge(reason).is_some(), "{what}");
    };

    // Algorithms.
    let unsigned =
        |header: &str| format!("{}.{}.", encode(header.as_bytes()), encode(good.as_bytes()));
    refuses(
        "none",
        &unsigned(r#"{"alg":"none"}"#),
        Reason::TokenAlgorithm,
    );
    refuses(
        "None",
        &unsigned(r#"{"alg":"None"}"#),
        Reason::TokenAlgorithm,
    );
    refuses(
        "NONE with kid",
        &unsigned(r#"{"alg":"NONE","kid":"r"}"#),
        Reason::TokenAlgorithm,
    );
    refuses(
        "empty alg",
        &unsigned(r#"{"alg":""}"#),
        Reason::TokenAlgorithm,
    );
    refuses("no alg", &unsigned("{}"), Reason::TokenMalformed);
    refuses(
        "alg of another type",
        &unsigned(r#"{"alg":["RS256"]}"#),
        Reason::TokenMalformed,
    );
    for public in [
        r.jwk("r").to_string(),
        r.jwk("r")["n"].as_str().unwrap().to_owned(),
    ] {
        let signed = format!(
            "{}.{}",
            encode(br#"{"alg":"HS256","kid":"r"}"#),
            encode(good.as_bytes())
        );
        let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, public.as_bytes());
        let tag = aws_lc_rs::hmac::sign(&secret, signed.as_bytes());
        let token = format!("{signed}.{}", encode(tag.as_ref()));
        refuses(
            "HS256 with the public key as secret",
            &token,
            Reason::TokenAlgorithm,
        );
    }
    for alg in ["RS512", "PS256", "ES384", "rs256", "HS512", "Ed25519"] {
        let header = format!(r#"{{"alg":"{alg}","kid":"r"}}"#);
        refuses(alg, &r.token(&header, &good), Reason::TokenAlgorithm);
    }
    refuses(
        "alg of another key",
        &r.token(r#"{"alg":"RS256","kid":"e"}"#, &good),
        Reason::TokenAlgorithm,
    );
    refuses(
        "kid of another key",
        &e.token(r#"{"alg":"ES256","kid":"r"}"#, &good),
        Reason::TokenAlgorithm,
    );
    refuses(
        "EdDSA by the RSA key",
        &d.token(r#"{"alg":"EdDSA","kid":"r"}"#, &good),
        Reason::TokenAlgorithm,
    );

    // Keys and signatures.
    refuses(
        "unknown kid",
        &r.token(&header(r, "x"), &good),
        Reason::TokenKeyUnknown,
    );
    refuses(
        "empty kid",
        &r.token(&header(r, ""), &good),
        Reason::TokenKeyUnknown,
    );
    refuses(
        "kid that looks like a path",
        &r.token(&header(r, "../r"), &good),
        Reason::TokenKeyUnknown,
    );
    refuses(
        "kid of another type",
        &r.token(r#"{"alg":"RS256","kid":1}"#, &good),
        Reason::TokenMalformed,
    );
    refuses(
        "kid null",
        &r.token(r#"{"alg":"RS256","kid":null}"#, &good),
        Reason::TokenMalformed,
    );
    refuses(
        "wrong key",
        &good_token(other_rsa_key(), "r"),
        Reason::TokenSignature,
    );
    refuses(
        "wrong key without kid",
        &other_rsa_key().token(r#"{"alg":"RS256"}"#, &good),
        Reason::TokenSignature,
    );
    let token = good_token(r, "r");
    let parts: Vec<&str> = token.split('.').collect();
    let bob = encode(claims_with("sub", json!("bob")).as_bytes());
    refuses(
        "claims exchanged",
        &format!("{}.{bob}.{}", parts[0], parts[2]),
        Reason::TokenSignature,
    );
    let other_header = encode(r#"{"alg":"RS256","kid":"r"}"#.as_bytes());
    refuses(
        "header exchanged",
        &format!("{other_header}.{}.{}", parts[1], parts[2]),
        Reason::TokenSignature,
    );
    refuses(
        "no signature",
        &format!("{}.{}.", parts[0], parts[1]),
        Reason::TokenSignature,
    );
    refuses(
        "short signature",
        &format!("{}.{}.AAAA", parts[0], parts[1]),
        Reason::TokenSignature,
    );
    let zeros = |key: &Signer, id: &str, length| {
        let signed = good_token(key, id);
        let (signed, _) = signed.rsplit_once('.').unwrap();
        format!("{signed}.{}", encode(&vec![0; length]))
    };
    refuses(
        "all zeros, RS256",
        &zeros(r, "r", 256),
        Reason::TokenSignature,
    );
    refuses(
        "all zeros, ES256",
        &zeros(e, "e", 64),
        Reason::TokenSignature,
    );
    refuses(
        "all zeros, EdDSA",
        &zeros(d, "d", 64),
        Reason::TokenSignature,
    );
    refuses(
        "DER instead of r and s",
        &zeros(e, "e", 70),
        Reason::TokenSignature,
    );

    // Headers.
    for more in [
        r#""crit":["exp"]"#,
        r#""crit":[]"#,
        r#""b64":false"#,
        r#""zip":"DEF""#,
        r#""enc":"A128GCM""#,
    ] {
        let header = format!(r#"{{"alg":"EdDSA","kid":"d",{more}}}"#);
        refuses(more, &d.token(&header, &good), Reason::TokenMalformed);
    }
    for header in [
        r#"{"alg":"EdDSA","alg":"EdDSA","kid":"d"}"#,
        r#"{"alg":"none","alg":"EdDSA","kid":"d"}"#,
        r#"{"alg":"EdDSA","kid":"d","kid":"d"}"#,
        r#"{"alg":"EdDSA","kid":"d","typ":"logout+jwt"}"#,
        r#"{"alg":"EdDSA","kid":"d","typ":1}"#,
        r#"["EdDSA"]"#,
        "EdDSA",
        "",
    ] {
        refuses(header, &d.token(header, &good), Reason::TokenMalformed);
    }

    // Claims.
    let plain = header(d, "d");
    let malformed = [
        claims_without("exp"),
        claims_with("exp", json!(0)),
        claims_with("exp", json!(0.0)),
        claims_with("exp", json!(-1)),
        claims_with("exp", json!((NOW + 300).to_string())),
        claims_with("exp", json!(null)),
        claims_with("exp", json!(true)),
        claims_with("exp", json!([NOW + 300])),
        claims_with("exp", json!(1e300)),
        claims_with("exp", json!(253_402_300_800_u64)),
        claims_with("exp", json!(u64::MAX)),
        good.replace(&format!("{}", NOW + 300), "1e999"),
        claims_with("nbf", json!("0")),
        claims_with("nbf", json!(-5)),
        claims_with("nbf", json!(null)),
        claims_with("iat", json!("yesterday")),
        claims_with("iat", json!(-1)),
        claims_with("sub", json!(7)),
        claims_with("iss", json!([ISSUER])),
        claims_with("jti", json!(7)),
        claims_with("aud", json!(7)),
        claims_with("aud", json!(null)),
        claims_with("aud", json!({"shop": true})),
        claims_with("aud", json!(["shop", 7])),
        good.replace(r#""sub""#, r#""sub":"bob","sub""#),
        good.replace(r#""sub""#, r#""exp":9999999999,"sub""#),
        good.replace(r#""sub""#, r#""s\u0075b":"bob","sub""#),
        good.replace(r#""sub""#, r#""x":{"a":1,"a":2},"sub""#),
        format!("{good} {good}"),
        "[]".to_owned(),
        "\"ann\"".to_owned(),
        String::new(),
    ];
    for claims in &malformed {
        refuses(claims, &d.token(&plain, claims), Reason::TokenMalformed);
    }
    for (claims, reason) in [
        (claims_with("exp", json!(NOW - 60)), Reason::TokenExpired),
        (claims_with("exp", json!(1)), Reason::TokenExpired),
        (
            claims_with("nbf", json!(NOW + 61)),
            Reason::TokenNotYetValid,
        ),
        (
            claims_with("nbf", json!(253_402_300_799_u64)),
            Reason::TokenNotYetValid,
        ),
        (
            claims_with("iss", json!("https://id.example/")),
            Reason::TokenIssuer,
        ),
        (
            claims_with("iss", json!("HTTPS://ID.EXAMPLE")),
            Reason::TokenIssuer,
        ),
        (claims_without("iss"), Reason::TokenIssuer),
        (claims_with("aud", json!("other")), Reason::TokenAudience),
        (
            claims_with("aud", json!("shop,admin")),
            Reason::TokenAudience,
        ),
        (claims_with("aud", json!("Shop")), Reason::TokenAudience),
        (claims_with("aud", json!(["other"])), Reason::TokenAudience),
        (claims_with("aud", json!([])), Reason::TokenAudience),
        (claims_without("aud"), Reason::TokenAudience),
    ] {
        refuses(&claims, &d.token(&plain, &claims), reason);
    }
    // A token that is bad in more than one way tells nothing before its signature is right.
    let forged = other_rsa_key().token(&header(r, "r"), &claims_with("exp", json!(1)));
    refuses("forged and expired", &forged, Reason::TokenSignature);

    // Spellings.
    let token = good_token(d, "d");
    let parts: Vec<&str> = token.split('.').collect();
    let (head, claims, signature) = (parts[0], parts[1], parts[2]);
    // The last character of 64 bytes has four bits that say nothing.
    let last = signature.chars().last().unwrap();
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let next = ALPHABET
        .chars()
        .nth(ALPHABET.find(last).unwrap() + 1)
        .unwrap();
    let stray = format!("{}{next}", &signature[..signature.len() - 1]);
    for token in [
        "x".to_owned(),
        ".".to_owned(),
        "..".to_owned(),
        "garbage.garbage.garbage".to_owned(),
        format!("{head}.{claims}"),
        format!("{token}."),
        format!(".{token}"),
        format!("{token}.{claims}.{signature}"),
        format!("{head}=.{claims}.{signature}"),
        format!("{head}.{claims}.{signature}=="),
        format!("{head}.{claims}.{stray}"),
        format!("{head}.{claims}.{signature} x"),
        format!("{head}. {claims}.{signature}"),
        format!(
            "{head}.{claims}.{}",
            signature.replace(['-', '_'], "+") + "+/"
        ),
        format!("{head}.{claims}.{signature}\u{e9}"),
        format!("\"{token}\""),
        format!("{token},{token}"),
        format!("{token}, Bearer {token}"),
        d.token(&plain, &claims_with("big", json!("x".repeat(8_192)))),
        "a".repeat(8_193),
    ] {
        refuses(&token, &token, Reason::TokenMalformed);
    }
}

#[test]
fn a_token_counts_in_one_authorization_field_only() {
    let (authenticator, _directory) = three_keys();
    let token = good_token(ed_key(), "d");
    let bearer = format!("Bearer {token}");
    let check = |values: &[&str], reason: Reason| {
        let result = authenticator.identify(&fields(values), now());
        assert_eq!(result.unwrap_err().reason, reason, "{values:?}");
    };
    check(&[], Reason::TokenMissing);
    check(&["Basic YW5uOnNlY3JldA=="], Reason::TokenMissing);
    check(&[&format!("Basic {token}")], Reason::TokenMissing);
    check(&[&format!("Bearerx {token}")], Reason::TokenMissing);
    check(&[&token], Reason::TokenMissing);
    check(&[""], Reason::TokenMissing);
    check(&["Bearer"], Reason::TokenMalformed);
    check(&["Bearer "], Reason::TokenMalformed);
    check(&["Bearer   "], Reason::TokenMalformed);
    check(&[&bearer, &bearer], Reason::TokenMalformed);
    check(&[&bearer, "Basic x"], Reason::TokenMalformed);
    check(&["Basic x", &bearer], Reason::TokenMalformed);
    check(&[&bearer, ""], Reason::TokenMalformed);
    check(&["Bearer \u{e9}"], Reason::TokenMalformed);
    let mut elsewhere = HeaderMap::new();
    elsewhere.insert("proxy-authorization", bearer.parse().unwrap());
    elsewhere.insert("x-access-token", token.parse().unwrap());
    elsewhere.insert("cookie", format!("access_token={token}").parse().unwrap());
    let error = authenticator.identify(&elsewhere, now()).unwrap_err();
    assert_eq!(error.reason, Reason::TokenMissing);
}

#[test]
fn a_remembered_token_is_refused_when_its_time_is_over() {
    let (authenticator, _directory) = three_keys();
    let token = good_token(ed_key(), "d");
    let at = |seconds: u64| {
        let now = now() + Duration::from_secs(seconds);
        identify_at(&authenticator, &token, now).map(|_| ())
    };
    assert_eq!(at(0), Ok(()));
    assert_eq!(at(359), Ok(()));
    assert_eq!(at(360), Err(Reason::TokenExpired));
    assert_eq!(at(10_000), Err(Reason::TokenExpired));
}

#[test]
fn a_token_remembered_for_one_authenticator_means_nothing_to_another() {
    let keys = [ed_key().jwk("d")];
    let (shop, _one) = with_keys(&keys, "");
    let (strict, _two) = with_keys(&keys, r#", "algorithms": ["ES256"]"#);
    let token = good_token(ed_key(), "d");
    assert!(identify(&shop, &token).is_ok());
    assert_eq!(
        identify(&strict, &token).unwrap_err(),
        Reason::TokenAlgorithm
    );
    assert!(identify(&shop, &token).is_ok());
}

#[test]
fn without_a_kid_only_one_key_may_fit() {
    let (authenticator, _directory) = with_keys(
        &[
            rsa_key().jwk("r"),
            other_rsa_key().jwk("o"),
            ed_key().jwk("d"),
        ],
        "",
    );
    let good = good_claims().to_string();
    let token = rsa_key().token(r#"{"alg":"RS256"}"#, &good);
    assert_eq!(
        identify(&authenticator, &token).unwrap_err(),
        Reason::TokenKeyUnknown
    );
    assert!(identify(&authenticator, &good_token(rsa_key(), "r")).is_ok());
    assert!(identify(&authenticator, &good_token(other_rsa_key(), "o")).is_ok());
    // One `kid` for two keys decides nothing, unless their kinds differ.
    let (authenticator, _directory) = with_keys(
        &[
            rsa_key().jwk("k"),
            other_rsa_key().jwk("k"),
            ed_key().jwk("k"),
        ],
        "",
    );
    let token = good_token(rsa_key(), "k");
    assert_eq!(
        identify(&authenticator, &token).unwrap_err(),
        Reason::TokenKeyUnknown
    );
    assert!(identify(&authenticator, &good_token(ed_key(), "k")).is_ok());
}

#[test]
fn an_audience_is_demanded_only_where_the_configuration_names_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.json");
    std::fs::write(&file, json!({"keys": [ed_key().jwk("d")]}).to_string()).unwrap();
    let config = json!({"jwt": {"issuer": ISSUER, "jwks": {"file": file}}});
    let config: Config = serde_json::from_value(config).unwrap();
    let mut problems = Problems::new();
    let authenticator = Authenticator::build(&Path::root(), &config, &mut problems).unwrap();
    let token = |claims: &str| ed_key().token(&header(ed_key(), "d"), claims);
    assert!(identify(&authenticator, &token(&claims_without("aud"))).is_ok());
    assert!(identify(&authenticator, &token(&claims_with("aud", json!("any")))).is_ok());
    // Its type counts all the same.
    let wrong = token(&claims_with("aud", json!(7)));
    assert_eq!(
        identify(&authenticator, &wrong).unwrap_err(),
        Reason::TokenMalformed
    );
}

#[test]
fn details_are_escaped_and_short_and_hold_no_token() {
    let (authenticator, _directory) = three_keys();
    let kid = format!("\u{1b}[31m\n{}", "k".repeat(500));
    let token = ed_key().token(
        &json!({"alg": "EdDSA", "kid": kid}).to_string(),
        &good_claims().to_string(),
    );
    let error = authenticator
        .identify(&fields(&[&format!("Bearer {token}")]), now())
        .unwrap_err();
    assert_eq!(error.reason, Reason::TokenKeyUnknown);
    assert!(error.detail.len() < 150, "{error}");
    assert!(!error.detail.contains(['\u{1b}', '\n']), "{error}");
    assert!(!error.detail.contains(&token[..20]), "{error}");
}

#[test]
fn random_changes_of_a_good_token_are_never_taken() {
    let (authenticator, _directory) = three_keys();
    let token = good_token(ed_key(), "d").into_bytes();
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..3_000 {
        let mut changed = token.clone();
        for _ in 0..random.usize(1..4) {
            let index = random.usize(..changed.len());
            match random.u8(..3) {
                0 => changed[index] = random.u8(0x21..0x7F),
                1 => drop(changed.remove(index)),
                _ => changed.insert(index, random.u8(0x21..0x7F)),
            }
        }
        if changed != token {
            let changed = String::from_utf8(changed).unwrap();
            assert!(identify(&authenticator, &changed).is_err(), "{changed}");
        }
    }
}

#[test]
fn a_challenge_goes_with_reasons_about_tokens_only() {
    for reason in Reason::ALL {
        let about_tokens = reason.code().starts_with("token_");
        assert_eq!(challenge(*reason).is_some(), about_tokens, "{reason:?}");
    }
    let value = challenge(Reason::TokenMissing).unwrap();
    assert_eq!(value, r#"Bearer realm="weft""#);
    let value = challenge(Reason::TokenExpired).unwrap();
    assert_eq!(
        value,
        r#"Bearer realm="weft", error="invalid_token", error_description="the token has expired""#
    );
}

#[test]
fn a_configuration_that_can_take_no_token_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = file(
        "good.json",
        &json!({"keys": [ed_key().jwk("d")]}).to_string(),
    );
    let empty = file("empty.json", r#"{"keys": []}"#);
    let secret = file("secret.json", r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#);
    let big = file("big.json", &" ".repeat((1 << 20) + 1));
    let missing = directory
        .path()
        .join("missing.json")
        .to_str()
        .unwrap()
        .to_owned();
    let check = |jwt: Value, expected: &[&str]| {
        let config: Config = serde_json::from_value(json!({ "jwt": jwt })).unwrap();
        let mut problems = Problems::new();
        let place = Path::root().key("authn").key("users");
        let built = Authenticator::build(&place, &config, &mut problems);
        assert!(built.is_none(), "{config:?}");
        let said: Vec<_> = problems
            .iter()
            .map(|problem| format!("{}: {} | {}", problem.path, problem.what, problem.cure))
            .collect();
        assert_eq!(said.len(), expected.len(), "{said:#?}");
        for (said, expected) in said.iter().zip(expected) {
            assert!(said.contains(expected), "{said} should say {expected}");
        }
    };
    let jwt = |name: &str, value: Value| {
        let mut jwt = json!({"issuer": ISSUER, "jwks": {"file": good}});
        jwt[name] = value;
        jwt
    };
    check(
        jwt("issuer", json!("")),
        &["authn.users.jwt.issuer: the issuer is empty"],
    );
    check(
        jwt("audience", json!([])),
        &["jwt.audience: the list of audiences is empty"],
    );
    check(
        jwt("audience", json!(["a", "a", ""])),
        &["audience[1]: ", "audience[2]: "],
    );
    check(jwt("algorithms", json!([])), &["jwt.algorithms: "]);
    check(jwt("clock_skew", json!("1h")), &["jwt.clock_skew: "]);
    let jwks = |value: Value| jwt("jwks", value);
    check(jwks(json!({})), &["jwt.jwks: a key set has neither"]);
    check(
        jwks(json!({"file": good, "url": "https://x/"})),
        &["jwt.jwks: a key set has both"],
    );
    check(
        jwks(json!({"file": missing})),
        &["jwks.file: the key set `"],
    );
    check(jwks(json!({"file": empty})), &["no usable key among 0"]);
    check(jwks(json!({"file": secret})), &["`oct`"]);
    check(jwks(json!({"file": big})), &["larger than 1 MiB"]);
    check(
        jwks(json!({"file": good, "ca": good})),
        &["jwks.ca: `ca` has no meaning"],
    );
    check(
        jwks(json!({"url": "id.example/keys"})),
        &["jwks.url: `id.example/keys` "],
    );
    check(
        jwks(json!({"url": "ftp://id.example/"})),
        &["does not begin with"],
    );
    check(
        jwks(json!({"url": "https://user@id.example/"})),
        &["has a user"],
    );
    check(jwks(json!({"url": "https://id.example/#x"})), &["fragment"]);
    check(
        jwks(json!({"url": "http://id.example/", "ca": good})),
        &["jwks.ca: `ca` has no meaning"],
    );
    check(
        jwks(json!({"url": "https://id.example/", "ca": missing})),
        &["jwks.ca: `"],
    );
    check(
        jwks(json!({"url": "https://id.example/", "ca": good})),
        &["has no certificate"],
    );
    for unknown in [
        json!({"jwt": {"issuer": "x", "jwks": {"file": "x"}, "secret": "y"}}),
        json!({"jwt": {"issuer": "x", "jwks": {"uri": "x"}}}),
        json!({"jwt": {"issuer": "x", "jwks": {"file": "x"}}, "basic": {}}),
        json!({"jwt": {"issuer": "x", "jwks": {"file": "x"}, "algorithms": ["HS256"]}}),
        json!({"jwt": {"issuer": "x"}}),
    ] {
        assert!(
            serde_json::from_value::<Config>(unknown.clone()).is_err(),
            "{unknown}"
        );
    }
}
