//! One GET of a small document over HTTP/1.1, with or without TLS: how key sets are had.
//!
//! Off the path of any request, a connection each time, because it happens every ten minutes. The certificates to trust
//! are read each time too: they are renewed like others, and a key set outlives the reloads that do not change it.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use weft_runtime::config::{Path, Problems, redact_query};

use crate::dial;

/// Larger documents are refused.
pub(super) const MOST_BYTES: usize = 1 << 20;

/// All of it together, from the name to the last byte.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where a document is, checked.
pub(super) struct Fetcher {
    target: Uri,
    authority: String,
    host: String,
    port: u16,
    tls: Option<Tls>,
}

struct Tls {
    name: ServerName<'static>,
    /// A PEM file with the certificates to trust, instead of the system's.
    ca: Option<PathBuf>,
    /// With those that were read last and could be.
    config: ArcSwap<ClientConfig>,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fetcher({}, {})", self.authority, self.target.path())
    }
}

/// A URL that can be asked.
pub(super) struct Url {
    uri: Uri,
    secure: bool,
    host: String,
    name: ServerName<'static>,
}

impl Url {
    /// Checks `text`, which stands under `url` at `place`, maybe beside a `ca`. Reads no file.
    pub(super) fn check(
        place: &Path,
        text: &str,
        has_ca: bool,
        problems: &mut Problems,
    ) -> Option<Self> {
        let at = place.key("url");
        let authority = text.split_once("://").map_or(text, |(_, rest)| rest);
        let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
        // A password is repeated nowhere.
        if authority.contains('@') || text.contains('#') {
            problems.at(
                &at,
                "the URL has a user or a fragment, which are not sent",
                "write it without, such as `https://id.example/jwks.json`",
            );
            return None;
        }
        let mut wrong = |what: &str| {
            problems.at(
                &at,
                format!("`{}` {what}", redact_query(text)),
                "write a whole URL, such as `https://id.example/jwks.json`",
            );
            None
        };
        let Ok(uri) = text.parse::<Uri>() else {
            return wrong("is not a URL");
        };
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return wrong("does not begin with `https://` or `http://`"),
        };
        let host = uri.host().unwrap_or_default();
        let host = host.trim_matches(['[', ']']).to_owned();
        let Ok(name) = ServerName::try_from(host.clone()) else {
            return wrong("has a host that is neither a name nor an address");
        };
        if has_ca && !secure {
            problems.at(
                &place.key("ca"),
                "`ca` has no meaning for an `http://` URL",
                "write `https://`, or remove `ca`",
            );
            return None;
        }
        Some(Self {
            uri,
            secure,
            host,
            name,
        })
    }
}

impl Fetcher {
    /// Reads `ca`, which stands with the checked `url` at `place`. Without it, the system's certificates count.
    pub(super) fn build(
        place: &Path,
        url: &Url,
        ca: Option<&std::path::Path>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let authority = url.uri.authority()?;
        let tls = match url.secure {
            true => {
                let roots = match roots(ca) {
                    Ok(roots) => roots,
                    Err(what) => {
                        problems.at(
                            &place.key("ca"),
                            what,
                            "write under `ca` the path of a PEM file with the certificates to trust",
                        );
                        return None;
                    }
                };
                Some(Tls {
                    name: url.name.clone(),
                    ca: ca.map(PathBuf::from),
                    config: ArcSwap::from_pointee(client_config(roots)),
                })
            }
            false => None,
        };
        let path = url.uri.path_and_query().map_or("/", |path| path.as_str());
        Some(Self {
            target: path.parse().ok()?,
            authority: authority.to_string(),
            port: authority
                .port_u16()
                .unwrap_or(if url.secure { 443 } else { 80 }),
            host: url.host.clone(),
            tls,
        })
    }

    /// The document. Dropping the future closes the connection.
    pub(super) async fn get(&self) -> Result<Bytes, String> {
        let seconds = TIMEOUT.as_secs();
        if let Some(tls) = &self.tls {
            tls.read_again().await;
        }
        tokio::time::timeout(TIMEOUT, self.connect_and_get())
            .await
            .unwrap_or_else(|_| Err(format!("no answer from {} in {seconds} s", self.authority)))
    }

    async fn connect_and_get(&self) -> Result<Bytes, String> {
        let failed = |error| format!("cannot connect to {}: {error}", self.authority);
        let found = tokio::net::lookup_host((self.host.as_str(), self.port));
        let addresses = dial::interleave(found.await.map_err(failed)?);
        let (tcp, _) = dial::connect(&addresses).await.map_err(failed)?;
        match &self.tls {
            None => self.exchange(tcp).await,
            Some(tls) => {
                let tls = TlsConnector::from(tls.config.load_full())
                    .connect(tls.name.clone(), tcp)
                    .await
                    .map_err(|error| format!("TLS with {}: {error}", self.authority))?;
                self.exchange(tls).await
            }
        }
    }

    async fn exchange<S: AsyncRead + AsyncWrite + Unpin + 'static>(
        &self,
        stream: S,
    ) -> Result<Bytes, String> {
        let failed = |error: hyper::Error| format!("HTTP with {}: {error}", self.authority);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        let exchange = async {
            let request = Request::get(self.target.clone())
                .header(header::HOST, &self.authority)
                .header(header::ACCEPT, "application/jwk-set+json, application/json")
                .header(header::CONNECTION, "close")
                .body(Empty::<Bytes>::new())
                .map_err(|error| error.to_string())?;
            let response = sender.send_request(request).await.map_err(failed)?;
            // A redirection is not followed: who may say where the keys are is the configuration alone.
            if response.status() != StatusCode::OK {
                return Err(format!("{} answered {}", self.authority, response.status()));
            }
            let body = Limited::new(response.into_body(), MOST_BYTES);
            let body = body
                .collect()
                .await
                .map_err(|error| format!("the answer of {}: {error}", self.authority))?;
            Ok(body.to_bytes())
        };
        // Both in this task: a connection makes no progress unless it is polled, and may end before the exchange is
        // done with what came over it.
        match select(pin!(exchange), pin!(connection)).await {
            Either::Left((done, _)) => done,
            Either::Right((_, exchange)) => exchange.await,
        }
    }
}

impl Tls {
    /// Takes the certificates that are to be trusted now. Those of last time stay where that fails.
    async fn read_again(&self) {
        let ca = self.ca.clone();
        // A file may be on a disk that hangs.
        let read = tokio::task::spawn_blocking(move || roots(ca.as_deref()));
        match read.await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(roots) => self.config.store(Arc::new(client_config(roots))),
            Err(problem) => {
                tracing::warn!(ca = ?self.ca, problem, "certificates to trust for a key set cannot be read; those of before stay");
            }
        }
    }
}

fn client_config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has what the default versions need")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// The certificates of this file, or else of the system.
fn roots(ca: Option<&std::path::Path>) -> Result<RootCertStore, String> {
    let certificates: Vec<CertificateDer<'static>> = match ca {
        None => rustls_native_certs::load_native_certs().certs,
        Some(file) => CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect)
            .map_err(|error| format!("`{}` cannot be read: {error}", file.display()))?,
    };
    let mut roots = RootCertStore::empty();
    match (roots.add_parsable_certificates(certificates), ca) {
        ((0, _), Some(file)) => Err(format!("`{}` has no certificate", file.display())),
        ((0, _), None) => Err("the system has no certificates to trust".to_owned()),
        _ => Ok(roots),
    }
}
