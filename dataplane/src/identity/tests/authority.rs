//! A certificate from a CA: got, renewed, kept through the CA's absence, and got again after it was lost.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinSet;
use weft_proto::ca::IssueResponse;
use weft_runtime::config::watched;

use super::fake_ca::FakeCa;
use crate::identity::client::{AskError, Authority};
use crate::identity::testing::{Ca, DOMAIN, lasting, service, uri};
use crate::identity::{Identity, Material, PeerProblem, Source, TokenSource};
use crate::testing::until;

const HOUR: Duration = Duration::from_secs(3600);

fn authority(address: &impl ToString, token: Option<TokenSource>) -> Authority {
    Authority::new(address.to_string(), DOMAIN.parse().unwrap())
        .unwrap()
        .token(token)
        .expect(service("orders"))
}

fn member(ca: &FakeCa) -> Authority {
    authority(&ca.address, Some(TokenSource::Given(ca.token())))
}

/// An identity that is being kept until this is dropped.
struct Kept {
    identity: Arc<Identity>,
    _stop: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

async fn keep(authority: Authority) -> Kept {
    let (stop, shutdown) = watch::channel(false);
    let source = Source::Authority(authority);
    let identity = source
        .obtain(shutdown.clone(), |problem| panic!("{problem}"))
        .await
        .unwrap();
    let kept = Arc::clone(&identity);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { source.keep(kept, shutdown).await });
    Kept {
        identity,
        _stop: stop,
        _tasks: tasks,
    }
}

#[tokio::test]
async fn joins_by_token_and_renews_by_certificate() {
    let ca = FakeCa::start(HOUR).await;
    let authority = member(&ca);
    let first = authority.join().await.unwrap();
    assert_eq!(**first.spiffe_id(), service("orders"));
    assert_eq!(*first.bundle(), ca.ca.bundle());
    let second = authority.renew(&first).await.unwrap();
    assert_ne!(first.serial(), second.serial());
    let key = |material: &Material| {
        let key = material.certified().key.public_key();
        key.unwrap().to_vec()
    };
    assert_ne!(
        key(&first),
        key(&second),
        "every certificate has a key of its own"
    );
}

#[tokio::test]
async fn finds_the_ca_by_name_and_tries_all_its_addresses() {
    let ca = FakeCa::start(HOUR).await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = vec![closed.local_addr().unwrap(), ca.address];
    drop(closed);
    let authority = authority(&"ca.mesh:15012", Some(TokenSource::Given(ca.token()))).lookup(
        Arc::new(move |name| {
            assert_eq!(name, "ca.mesh:15012");
            let addresses = addresses.clone();
            Box::pin(async move { Ok(addresses) })
        }),
    );
    assert!(authority.join().await.is_ok());
}

#[tokio::test]
async fn goes_where_the_ca_is_by_the_time_it_asks() {
    let ca = FakeCa::start(HOUR).await;
    let (publisher, address) = watched("127.0.0.1:1".to_owned());
    let authority = Authority::following(address, DOMAIN.parse().unwrap())
        .unwrap()
        .token(Some(TokenSource::Given(ca.token())));
    let nobody = authority.join().await.unwrap_err();
    assert!(nobody.to_string().contains("127.0.0.1:1"), "{nobody}");
    publisher.publish(ca.address.to_string());
    let material = authority.join().await.unwrap();
    assert_eq!(**material.spiffe_id(), service("orders"));
}

#[tokio::test]
async fn a_token_works_once_and_that_is_said() {
    let ca = FakeCa::start(HOUR).await;
    let (first, token) = (ca.token(), ca.token());
    let given = |token| authority(&ca.address, Some(TokenSource::Given(token)));
    given(first.clone()).join().await.unwrap();
    let error = given(first).join().await.unwrap_err();
    assert!(
        matches!(
            &error,
            AskError::Refused {
                code: tonic::Code::PermissionDenied,
                ..
            }
        ),
        "{error}"
    );
    let again = given(token);
    again.join().await.unwrap();
    let error = again.join().await.unwrap_err();
    assert!(matches!(&error, AskError::Proof(_)), "{error}");
    let error = authority(&ca.address, None).join().await.unwrap_err();
    assert!(
        error.to_string().contains("weft ca token create"),
        "{error}"
    );
}

#[tokio::test]
async fn an_impostor_gets_no_token() {
    let (ours, impostor) = (FakeCa::start(HOUR).await, FakeCa::start(HOUR).await);
    let authority = authority(&impostor.address, Some(TokenSource::Given(ours.token())));
    let assert_foreign = |error: AskError| {
        let problem = PeerProblem::ForeignRoot;
        let is_foreign = matches!(&error, AskError::Peer { problem: p, .. } if *p == problem);
        assert!(is_foreign, "{error}");
    };
    assert_foreign(authority.join().await.unwrap_err());
    // Nor does it get to renew.
    let first = member(&ours).join().await.unwrap();
    assert_foreign(authority.renew(&first).await.unwrap_err());
}

#[tokio::test]
async fn a_certificate_that_the_ca_does_not_trust_is_named() {
    let ca = FakeCa::start(HOUR).await;
    // It trusts our root, but its own clients are of another one.
    let stranger = Ca::new().material(&service("orders"));
    let stranger = stranger.with_bundle(ca.ca.bundle());
    let error = authority(&ca.address, None)
        .renew(&stranger)
        .await
        .unwrap_err();
    let AskError::Peer { problem, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(problem.kind().as_str().starts_with("refused_"), "{problem}");
}

#[tokio::test]
async fn useless_answers_are_refused() {
    type Spoil = fn(&mut rcgen::CertificateParams, &mut IssueResponse);
    let cases: &[(&str, Spoil, &str)] = &[
        (
            "another service",
            |p, _| p.subject_alt_names = vec![uri("spiffe://shop.internal/service/inventory")],
            "another service",
        ),
        (
            "another trust domain",
            |p, _| p.subject_alt_names = vec![uri("spiffe://other/service/orders")],
            "our trust domain is shop.internal",
        ),
        ("expired", |p, _| lasting(p, -60, -30), "expired"),
        ("early", |p, _| lasting(p, 30, 60), "clock"),
        ("nameless", |p, _| p.subject_alt_names.clear(), "no URI"),
        ("no bundle", |_, a| a.bundle = None, "no trust bundle"),
        (
            "empty bundle",
            |_, a| a.bundle.as_mut().unwrap().roots.clear(),
            "no root",
        ),
        (
            "bundle of another domain",
            |_, a| a.bundle.as_mut().unwrap().trust_domain = "other\n".to_owned(),
            "`other\\n`",
        ),
        (
            "junk in the bundle",
            |_, a| a.bundle.as_mut().unwrap().roots.push(vec![1, 2, 3]),
            "cannot be a root",
        ),
        (
            "a bundle without its own root",
            |_, a| a.bundle.as_mut().unwrap().roots = vec![Ca::new().root.to_vec()],
            "does not lead to a root",
        ),
    ];
    for (name, spoil, part) in cases {
        let ca = FakeCa::start(HOUR).await;
        ca.spoil(spoil);
        let error = member(&ca).join().await.unwrap_err();
        assert!(matches!(error, AskError::Answer(_)), "{name}: {error:?}");
        assert!(error.to_string().contains(part), "{name}: {error}");
    }
}

#[tokio::test]
async fn what_does_not_answer_does_not_hold_us_for_ever() {
    // It takes the connection and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ca = FakeCa::start(HOUR).await;
    let authority = authority(
        &silent.local_addr().unwrap(),
        Some(TokenSource::Given(ca.token())),
    );
    let error = authority.join().await.unwrap_err();
    assert!(matches!(error, AskError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn a_ca_that_is_away_changes_nothing_while_the_certificate_is_valid() {
    let mut ca = FakeCa::start(Duration::from_secs(8)).await;
    let kept = keep(member(&ca)).await;
    let identity = &kept.identity;
    ca.go().await;
    until("renewal failed twice", || {
        identity.status().renewal_failures >= 2
    })
    .await;
    let status = identity.status();
    assert!(identity.is_valid(SystemTime::now()));
    assert!(status.last_error.unwrap().contains("cannot be reached"));
    assert_eq!((status.renewals, identity.generation()), (0, 1));
    ca.come().await;
    until("it is renewed", || identity.status().renewals >= 1).await;
    let renewed = identity.current();
    assert!(SystemTime::now() < status.not_after, "in time");
    assert!(renewed.not_after() > status.not_after);
    assert_eq!(identity.status().last_error, None);
}

#[tokio::test]
async fn an_expired_identity_is_reported_and_healed_by_a_new_token() {
    let mut ca = FakeCa::start(Duration::from_secs(2)).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{}\n", ca.token().secret())).unwrap();
    let kept = keep(authority(
        &ca.address,
        Some(TokenSource::File(file.clone())),
    ))
    .await;
    let identity = &kept.identity;
    ca.go().await;
    until("it has expired", || !identity.is_valid(SystemTime::now())).await;
    until("that is said", || {
        let problem = identity.problem(SystemTime::now());
        problem.is_some_and(|text| text.contains("has been used"))
    })
    .await;
    ca.come().await;
    std::fs::write(&file, ca.token().secret()).unwrap();
    until("it is valid again", || identity.is_valid(SystemTime::now())).await;
    assert_eq!(identity.problem(SystemTime::now()), None);
}

#[tokio::test]
async fn the_trust_bundle_is_followed() {
    let ca = FakeCa::start(HOUR).await;
    let kept = keep(member(&ca)).await;
    let identity = &kept.identity;
    until("the bundle is followed", || ca.bundles_sent() == 1).await;
    let other = Ca::new();
    ca.publish(vec![ca.ca.root.to_vec(), other.root.to_vec()]);
    until("both roots are trusted", || {
        identity.current().bundle().roots().len() == 2
    })
    .await;
    assert_eq!(identity.generation(), 2);
    assert_eq!(identity.status().renewals, 0);
    // A useless bundle is passed over.
    ca.publish(Vec::new());
    until("it was sent", || ca.bundles_sent() == 3).await;
    ca.publish(vec![ca.ca.root.to_vec()]);
    until("the one root is trusted", || {
        identity.current().bundle().roots().len() == 1
    })
    .await;
    // When nobody is left to vouch for us, we ask at once and not at half of our life.
    ca.publish(vec![other.root.to_vec()]);
    until("a certificate is asked for", || {
        identity.status().renewal_failures >= 1
    })
    .await;
}
