//! The one `weft.yaml` of the demo's mesh: every process reads this file, and a reader may keep it as an example.

use std::path::Path;
use std::time::Duration;

use super::ground::{CA, DEMO, Ground, INGRESS};
use super::issuer::{AUDIENCE, ISSUER};
use super::services::{INGRESS_NAME, SERVICES, Service, TRUST_DOMAIN};

/// What one caller (one `sub`) may send per second; and at once. The steady load stays well below it.
pub(super) const RATE_PER_SECOND: u32 = 25;
/// See [`RATE_PER_SECOND`].
pub(super) const BURST: u32 = 30;

/// The text of `weft.yaml`.
pub(super) fn weft_yaml(ground: &Ground, directory: &Path, leaf_lifetime: Duration) -> String {
    let at = |host: u8, port: u16| format!("{}:{port}", ground.block.host(host));
    let ports = &ground.ports;
    let ca = at(CA, ports.ca);
    let collector = at(INGRESS, ports.collector);
    let dns = at(DEMO, ports.dns);
    // A JSON string is a YAML string, whatever the path holds.
    let quoted = |path: &Path| serde_json::Value::from(path.display().to_string()).to_string();
    let state = quoted(&directory.join("ca-state"));
    let keys = quoted(&directory.join("keys.json"));
    let leaf_seconds = leaf_lifetime.as_secs();
    let (admin, outbound, inbound, public) =
        (ports.admin, ports.outbound, ports.inbound, ports.public);
    let services: String = SERVICES
        .iter()
        .map(|service| service_yaml(service, ports.app))
        .collect();
    let entry = SERVICES[0].name;
    let path = SERVICES[0].path;
    format!(
        r#"# Written by `weft demo` for its own mesh. Every process reads this one file; `--host` says which host it is.
trust_domain: {TRUST_DOMAIN}
ca: {{ address: "{ca}", state: {state}, leaf_lifetime: {leaf_seconds}s }}
collector: {{ address: "{collector}", interval: 500ms }}
admin: {{ address: "127.0.0.1:{admin}" }}
resolver: {{ servers: ["{dns}"] }}

defaults:
  # Shorter than usual, so that a replica that recovers is back while somebody watches.
  outlier: {{ ejection: 3s, max_ejection: 6s, jitter: 10% }}

services:
{services}
sidecar:
  outbound: {{ address: "127.0.0.1:{outbound}" }}
  inbound: {{ address: "127.0.0.1:{inbound}" }}
  app: {{ host: "127.0.0.1" }}

ingress:
  listeners: [ {{ name: public, address: "127.0.0.1:{public}" }} ]
  authn:
    users: {{ jwt: {{ issuer: "{ISSUER}", audience: [{AUDIENCE}], jwks: {{ file: {keys} }} }} }}
  limits:
    per_user: {{ key: claims.sub, rate: {RATE_PER_SECOND}/s, burst: {BURST} }}
  routes:
    - match: {{ path: {path}/*, methods: [GET] }}
      authn: users
      limits: [per_user]
      to: {entry}
"#
    )
}

fn service_yaml(service: &Service, port: u16) -> String {
    let caller = SERVICES
        .iter()
        .find(|other| other.calls == Some(service.name))
        .map_or(INGRESS_NAME, |other| other.name);
    let Service { name, path, .. } = service;
    format!(
        "  {name}:\n    dns: {name}\n    port: {port}\n    protocol: http\n    \
         allow: [ {{ from: [{caller}], methods: [GET], paths: [{path}/*] }} ]\n"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    use weft_runtime::config::units::Period;
    use weft_runtime::config::{Document, Problems};

    fn text() -> (Ground, String) {
        let ground = Ground::claim(&mut fastrand::Rng::with_seed(21)).unwrap();
        let directory = PathBuf::from("/tmp/with space/\"quoted\"");
        let text = weft_yaml(&ground, &directory, Duration::from_secs(20));
        (ground, text)
    }

    #[test]
    fn every_service_admits_its_one_caller() {
        let (_, text) = text();
        for line in [
            "allow: [ { from: [ingress], methods: [GET], paths: [/checkout/*] } ]",
            "allow: [ { from: [storefront], methods: [GET], paths: [/orders/*] } ]",
            "allow: [ { from: [orders], methods: [GET], paths: [/stock/*] } ]",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn addresses_are_of_the_block() {
        let (ground, text) = text();
        for (host, port) in [
            (CA, ground.ports.ca),
            (INGRESS, ground.ports.collector),
            (DEMO, ground.ports.dns),
        ] {
            let address = format!("\"{}:{port}\"", ground.block.host(host));
            assert!(text.contains(&address), "{address} is not in:\n{text}");
        }
    }

    /// The parts whose keys are strict; what is around them is the whole file's, whose check is `weft check`'s.
    #[derive(serde::Deserialize)]
    struct Parts {
        ca: weft_ca::Config,
        resolver: weft_dataplane::discovery::Config,
        defaults: Defaults,
        services: BTreeMap<String, ServicePart>,
        ingress: IngressPart,
    }

    #[derive(serde::Deserialize)]
    struct Defaults {
        outlier: weft_dataplane::health::outlier::Config,
    }

    #[derive(serde::Deserialize)]
    struct ServicePart {
        allow: Vec<weft_dataplane::authz::Config>,
    }

    #[derive(serde::Deserialize)]
    struct IngressPart {
        limits: BTreeMap<String, weft_dataplane::limit::Config>,
        routes: Vec<RoutePart>,
    }

    #[derive(serde::Deserialize)]
    struct RoutePart {
        r#match: weft_dataplane::route::Match,
    }

    #[test]
    fn the_file_says_what_we_mean() {
        let (ground, text) = text();
        let document = Document::parse("weft.yaml", &text).expect("valid YAML");
        let mut problems = Problems::new();
        let parts: Option<Parts> = document.decode(&mut problems);
        problems.locate(&document);
        assert!(problems.is_empty(), "{}", problems.render());
        let parts = parts.unwrap();
        assert_eq!(
            parts.ca.state,
            PathBuf::from("/tmp/with space/\"quoted\"/ca-state")
        );
        assert_eq!(parts.ca.leaf_lifetime, Period::seconds(20));
        assert_eq!(parts.resolver.servers.len(), 1);
        assert_eq!(parts.defaults.outlier.ejection, Period::seconds(3));
        assert_eq!(parts.services["orders"].allow[0].from, ["storefront"]);
        assert_eq!(parts.ingress.limits["per_user"].burst, Some(BURST));
        assert_eq!(
            parts.ingress.routes[0].r#match.path.as_deref(),
            Some("/checkout/*")
        );
        assert_eq!(
            parts.ca.address,
            format!("{}:{}", ground.block.host(CA), ground.ports.ca)
        );
    }
}
