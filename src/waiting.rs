//! What a running process does not take from a new file: keys that are read at the start only. It says which of them have
//! changed, so that nobody believes them in force.

use std::net::SocketAddr;

use weft_runtime::config::{Document, Path, Problems};

use crate::config::{File, Reader};

/// Who runs, for as long as it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// The certificate authority.
    Ca,
    /// The sidecar of this service.
    Sidecar(String),
    /// The gateway.
    Ingress,
    /// Nobody: the file is only looked at.
    Check,
}

impl Role {
    pub(crate) fn reader(&self) -> Reader<'_> {
        match self {
            Self::Ca => Reader::Ca,
            Self::Sidecar(service) => Reader::Sidecar { service },
            Self::Ingress => Reader::Ingress,
            Self::Check => Reader::Check,
        }
    }
}

impl From<Reader<'_>> for Role {
    fn from(reader: Reader<'_>) -> Self {
        match reader {
            Reader::Check => Self::Check,
            Reader::Ca => Self::Ca,
            Reader::Sidecar { service } => Self::Sidecar(service.to_owned()),
            Reader::Ingress => Self::Ingress,
        }
    }
}

type Differs = fn(&File, &File) -> bool;

/// Read at the start by every role.
const BY_ALL: &[(&str, Differs)] = &[
    ("admin", |begun, now| begun.admin != now.admin),
    ("log", |begun, now| begun.log != now.log),
];

/// Read at the start by the CA, which has no other part.
const BY_THE_CA: &[(&str, Differs)] = &[("ca", |begun, now| begun.ca != now.ca)];

/// Read at the start by proxies. Of `ca` they read the address, each time that they ask; where it is not needed any more,
/// or for the first time, another source of certificates would be needed.
const BY_PROXIES: &[(&str, Differs)] = &[
    ("access_log", |begun, now| {
        begun.access_log != now.access_log
    }),
    ("ca", |begun, now| begun.ca.is_some() != now.ca.is_some()),
    ("collector", |begun, now| begun.collector != now.collector),
    ("identity", |begun, now| begun.identity != now.identity),
    ("resolver", |begun, now| begun.resolver != now.resolver),
];

/// The keys of which a process that began with one file does not take what another says.
pub(crate) fn keys(begun: &File, now: &File, role: &Role) -> Vec<String> {
    let of_role = match role {
        Role::Ca => BY_THE_CA,
        Role::Sidecar(_) | Role::Ingress => BY_PROXIES,
        Role::Check => return Vec::new(),
    };
    let table = BY_ALL.iter().chain(of_role);
    let mut keys: Vec<_> = table
        .filter(|(_, differs)| differs(begun, now))
        .map(|(key, _)| (*key).to_owned())
        .collect();
    if let Role::Sidecar(service) = role {
        // A process does not become another one.
        let own = |file: &File| {
            let service = file.services.get(service);
            service.and_then(|service| service.identity.clone())
        };
        if own(begun) != own(now) {
            keys.push(format!("services.{service}.identity"));
        }
    }
    keys.sort();
    keys
}

/// The key of the app's way out, where a new file moves it and the app was told once where it is: it stays there.
pub(crate) fn way_out(
    told: Option<SocketAddr>,
    design: Option<&mut weft_sidecar::Design>,
) -> Option<String> {
    let (told, design) = (told?, design?);
    if design.outbound_address() == told {
        return None;
    }
    design.keep_outbound(told);
    Some("sidecar.outbound.address".to_owned())
}

/// A process of one trust domain would meet nobody in another: the new file is refused as a whole, and not taken by half.
pub(crate) fn same_mesh(begun: &File, now: &File, name: &str, text: &str) -> Result<(), String> {
    let (before, after) = (&begun.trust_domain, &now.trust_domain);
    if before == after {
        return Ok(());
    }
    let mut problems = Problems::new();
    problems.at(
        &Path::root().key("trust_domain"),
        format!("this process is of the trust domain `{before}` as long as it runs, and not of `{after}`"),
        format!("restart it, or write `{before}` again"),
    );
    if let Ok(document) = Document::parse(name, text) {
        problems.locate(&document);
    }
    Err(problems.render())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const FILE: &str = "\
trust_domain: shop.internal
ca: { address: \"ca:15012\", state: ca }
collector: { address: \"ingress:15010\" }
services:
  orders: { port: 8080 }
";

    fn file(text: &str) -> File {
        let document = Document::parse("weft.yaml", text).unwrap();
        let mut problems = Problems::new();
        let file = document.decode(&mut problems);
        assert!(problems.is_empty(), "{}", problems.render());
        file.unwrap()
    }

    fn roles() -> [Role; 3] {
        [Role::Ca, Role::Sidecar("orders".to_owned()), Role::Ingress]
    }

    /// What each of the CA, a sidecar and the ingress says that it does not take, when one of these lines is added or replaced.
    const TABLE: &[(&str, &str, [&[&str]; 3])] = &[
        ("", "", [&[], &[], &[]]),
        (
            "",
            "admin: { address: \"127.0.0.1:1\" }",
            [&["admin"], &["admin"], &["admin"]],
        ),
        ("", "log: { level: debug }", [&["log"], &["log"], &["log"]]),
        (
            "",
            "access_log: stdout",
            [&[], &["access_log"], &["access_log"]],
        ),
        (
            "",
            "resolver: { timeout: 1s }",
            [&[], &["resolver"], &["resolver"]],
        ),
        ("", "drain: { timeout: 1s }", [&[], &[], &[]]),
        ("", "zone: a", [&[], &[], &[]]),
        ("", "defaults: { timeout: 1s }", [&[], &[], &[]]),
        (
            "",
            "sidecar: { inbound: { address: \"0.0.0.0:1\" } }",
            [&[], &[], &[]],
        ),
        ("", "ingress: { listeners: [] }", [&[], &[], &[]]),
        (
            "",
            "identity: { cert: a, key: b, bundle: c }",
            [&[], &["identity"], &["identity"]],
        ),
        (
            "collector: { address: \"ingress:15010\" }\n",
            "",
            [&[], &["collector"], &["collector"]],
        ),
        (
            "ca: { address: \"ca:15012\", state: ca }\n",
            "ca: { address: \"elsewhere:15012\", state: ca }",
            [&["ca"], &[], &[]],
        ),
        (
            "ca: { address: \"ca:15012\", state: ca }\n",
            "",
            [&["ca"], &["ca"], &["ca"]],
        ),
        (
            "  orders: { port: 8080 }\n",
            "  orders: { port: 8080, identity: \"spiffe://shop.internal/service/x\" }",
            [&[], &["services.orders.identity"], &[]],
        ),
        (
            "  orders: { port: 8080 }\n",
            "  orders: { port: 8080, timeout: 1s }\n  stock: {}",
            [&[], &[], &[]],
        ),
    ];

    #[test]
    fn each_role_says_of_each_key_whether_it_waits_for_a_restart() {
        let begun = file(FILE);
        for (old, new, expected) in TABLE {
            assert!(FILE.contains(old), "{old}");
            let mut text = match *old {
                "" => FILE.to_owned(),
                old => FILE.replace(old, &format!("{new}\n")),
            };
            if old.is_empty() {
                text.push_str(new);
            }
            let now = file(&text);
            for (role, expected) in roles().iter().zip(expected) {
                assert_eq!(keys(&begun, &now, role), *expected, "{role:?}: {text}");
                // And nothing waits once it is the file that it began with.
                assert!(keys(&now, &now, role).is_empty());
            }
        }
    }

    #[test]
    fn the_table_leaves_no_key_of_the_file_out() {
        let schema = schemars::schema_for!(File);
        let known = schema.as_value()["properties"].as_object().unwrap();
        let said: String = TABLE
            .iter()
            .map(|(old, new, _)| format!("\n{old}\n{new}"))
            .collect();
        for key in known
            .keys()
            .filter(|key| !["trust_domain", "services"].contains(&key.as_str()))
        {
            assert!(
                said.contains(&format!("\n{key}:")),
                "nobody says what becomes of `{key}`"
            );
        }
    }

    #[test]
    fn the_way_out_stays_where_the_app_was_told_that_it_is() {
        let design = |port: &str| {
            let text =
                format!("{FILE}sidecar: {{ outbound: {{ address: \"127.0.0.1:{port}\" }} }}\n");
            let base = std::path::Path::new(".");
            let reader = Reader::Sidecar { service: "orders" };
            let checked = crate::config::check("weft.yaml", &text, base, None, reader).unwrap();
            checked.sidecar.unwrap()
        };
        let begun = design("15001").outbound_address();
        let mut moved = design("15101");
        assert_eq!(way_out(None, Some(&mut moved)), None, "nobody was told");
        assert_eq!(moved.outbound_address().port(), 15_101);
        let key = way_out(Some(begun), Some(&mut moved));
        assert_eq!(key.as_deref(), Some("sidecar.outbound.address"));
        assert_eq!(moved.outbound_address(), begun);
        assert_eq!(way_out(Some(begun), Some(&mut design("15001"))), None);
    }

    #[test]
    fn another_trust_domain_is_refused_with_its_place() {
        let (begun, text) = (file(FILE), FILE.replace("shop.internal", "bank.internal"));
        let problem = same_mesh(&begun, &file(&text), "weft.yaml", &text).unwrap_err();
        assert!(
            problem.starts_with("weft.yaml:1:15: this process is of"),
            "{problem}"
        );
        assert!(problem.contains("restart it"), "{problem}");
        assert_eq!(same_mesh(&begun, &file(FILE), "weft.yaml", FILE), Ok(()));
    }
}
