//! TLS of the mesh, made from an identity: 1.3 only, both ends with certificates, every handshake a full one.
//!
//! There are no session tickets: a resumed session would let a peer in on a certificate that has since expired, and
//! connections between sidecars live long enough for handshakes not to matter.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ConfigBuilder, ServerConfig, WantsVerifier};

use super::id::SpiffeId;
use super::material::Material;
use super::verify::{ExactService, MembersOnly, Trust, provider};

/// The protocol that a client wants to speak on a connection of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// HTTP/2.
    H2,
    /// HTTP/1.1.
    Http1,
}

impl Alpn {
    /// Its name in the handshake.
    pub const fn name(self) -> &'static [u8] {
        match self {
            Self::H2 => b"h2",
            Self::Http1 => b"http/1.1",
        }
    }
}

/// What to hand to a TLS connector of the mesh in place of a host name. It is neither sent nor checked:
/// peers are known by their SPIFFE IDs.
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

pub(super) fn server(material: &Material) -> ServerConfig {
    let verifier = MembersOnly {
        bundle: material.bundle().clone(),
        trust_domain: material.trust_domain().clone(),
    };
    let certificate = SingleCertAndKey::from(Arc::clone(material.certified()));
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites for TLS 1.3");
    let mut config = builder
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = [Alpn::H2, Alpn::Http1]
        .map(|alpn| alpn.name().to_vec())
        .to_vec();
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// For connections to `expected`, with our certificate.
pub(super) fn client(material: &Material, expected: &SpiffeId, alpn: Alpn) -> ClientConfig {
    let certificate = SingleCertAndKey::from(Arc::clone(material.certified()));
    let config = verified(ExactService {
        trust: Trust::Bundle(material.bundle().clone()),
        expected: expected.clone(),
    })
    .with_client_cert_resolver(Arc::new(certificate));
    finish(config, alpn)
}

/// For the first connection to the CA, when there is nothing yet but the hash of its root.
pub(super) fn stranger(root_sha256: [u8; 32], expected: &SpiffeId) -> ClientConfig {
    let config = verified(ExactService {
        trust: Trust::PinnedRoot(root_sha256),
        expected: expected.clone(),
    })
    .with_no_client_auth();
    finish(config, Alpn::H2)
}

fn verified(
    verifier: ExactService,
) -> ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let builder: ConfigBuilder<ClientConfig, WantsVerifier> =
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites for TLS 1.3");
    builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
}

fn finish(mut config: ClientConfig, alpn: Alpn) -> ClientConfig {
    config.alpn_protocols = vec![alpn.name().to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config
}
