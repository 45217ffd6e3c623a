//! Renewal: a certificate of ours that still holds is the proof for the next one, of the same service.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Admitted, Kind, Refusal};
use crate::authority::{Root, only_uri, rfc3339};
use crate::token::hex;

/// How many certificates a client may send. Ours are two; path building has little to try.
const LONGEST_CHAIN: usize = 5;

/// Checks chain, time, purpose and names of the certificates (leaf first) that the client connected with.
pub(crate) fn verify(
    certificates: &[CertificateDer<'static>],
    root: &Root,
    now: SystemTime,
) -> Result<Admitted, Refusal> {
    let refuse = |why: &str| Refusal::Certificate(why.to_owned());
    let Some((leaf, intermediates)) = certificates.split_first() else {
        return Err(Refusal::NoProof);
    };
    if certificates.len() > LONGEST_CHAIN {
        return Err(refuse("its chain is longer than five certificates"));
    }
    chain(leaf, intermediates, root, now)?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| refuse("it is damaged"))?;
    let signs_others = parsed
        .key_usage()
        .ok()
        .flatten()
        .is_some_and(|usage| usage.value.key_cert_sign());
    if parsed.is_ca() || signs_others {
        return Err(refuse("it may sign others, so it is no service's"));
    }
    let uri = only_uri(&parsed).ok_or_else(|| refuse("it has not exactly one URI name"))?;
    let service = root.domain().service_of(&uri).ok_or_else(|| {
        Refusal::Certificate(format!(
            "its name {uri:?} is not a service of the trust domain `{}`",
            root.domain()
        ))
    })?;
    Ok(Admitted {
        service,
        kind: Kind::Renewal,
        evidence: hex(parsed.raw_serial()),
    })
}

/// Whether the chain leads to our root at this time, for a client.
fn chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    root: &Root,
    now: SystemTime,
) -> Result<(), Refusal> {
    let anchors = [anchor_from_trusted_cert(root.certificate())
        .map_err(|error| Refusal::Certificate(describe(&error)))?];
    let time = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    let leaf =
        EndEntityCert::try_from(leaf).map_err(|error| Refusal::Certificate(describe(&error)))?;
    let verified = leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        intermediates,
        time,
        KeyUsage::client_auth(),
        None,
        None,
    );
    verified
        .map(|_| ())
        .map_err(|error| Refusal::Certificate(describe(&error)))
}

/// In words for whoever runs the client.
fn describe(error: &webpki::Error) -> String {
    let date = |time: &UnixTime| rfc3339(UNIX_EPOCH + Duration::from_secs(time.as_secs()));
    match error {
        webpki::Error::CertExpired { not_after, .. } => format!(
            "it, or one in its chain, expired at {}; join again with a token of `weft ca token create`",
            date(not_after)
        ),
        webpki::Error::CertNotValidYet { not_before, .. } => {
            format!(
                "it, or one in its chain, begins at {}; check the clocks",
                date(not_before)
            )
        }
        webpki::Error::UnknownIssuer => {
            "this authority did not issue it; join with a token of `weft ca token create`".into()
        }
        other => format!("{other:?}"),
    }
}
