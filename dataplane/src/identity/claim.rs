//! Who a peer that was refused said that it is.
//!
//! The verifier has the certificate and the caller of the handshake has the error, and rustls carries no more than the
//! error from one to the other: for most of them without room for a name. So whoever waits for a handshake holds a place
//! for it, and the verifier, which runs inside of that wait, writes the name there. Nothing of it is proven.

use std::cell::Cell;

use rustls::pki_types::CertificateDer;

use crate::foreign::clean;

tokio::task_local! {
    static CLAIM: Cell<Option<String>>;
}

/// Runs a handshake, and gives the name on the certificate that was refused in it, if one was.
pub fn noting<F: Future>(handshake: F) -> impl Future<Output = (F::Output, Option<String>)> {
    // Boxed, because it is large: the room for it would be a part of its connection's task to the end.
    let mut held = Box::pin(CLAIM.scope(Cell::new(None), handshake));
    async move {
        let output = held.as_mut().await;
        let claim = held.as_mut().take_value().and_then(Cell::into_inner);
        (output, claim)
    }
}

/// This certificate is refused. Where nobody has asked who showed it, nothing is noted.
pub(super) fn refused(leaf: &CertificateDer<'_>) {
    let _: Result<(), _> = CLAIM.try_with(|claim| claim.set(name(leaf)));
}

/// Its first URI name, read by the same parser that has read the certificate already.
fn name(leaf: &CertificateDer<'_>) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(leaf).ok()?;
    certificate.valid_uri_names().next().map(clean)
}
