//! One request from beginning to end. The order is the point: what costs nothing and changes nothing comes first, the
//! token is used up only for a request that can be granted, and nothing leaves before it is in the journal.

use std::time::SystemTime;

use rcgen::PublicKeyData;

use crate::admit::{self, Admitted, Proof, Refusal, token::Tokens};
use crate::authority::{Authority, rfc3339};
use crate::error::random;
use crate::issue::{self, Issued};
use crate::journal::{Entry, Journal};
use crate::profile::{Profile, Serial};
use crate::{Error, Lifetimes, ServiceName, csr};

/// Everything that a request needs.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) authority: Authority,
    pub(crate) tokens: Tokens,
    pub(crate) journal: Journal,
    pub(crate) lifetimes: Lifetimes,
}

/// A granted request.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) admitted: Admitted,
    pub(crate) issued: Issued,
}

impl Desk {
    /// Grants the request or says why not.
    pub(crate) fn issue(
        &self,
        csr: &[u8],
        proof: Proof<'_>,
        now: SystemTime,
    ) -> Result<Granted, Refusal> {
        let key = csr::public_key(csr)?;
        let admitted = admit::admit(proof, self.authority.root(), &self.tokens, now)?;
        let issued = self
            .sign(
                &key,
                &admitted.service,
                admitted.kind.as_str(),
                &admitted.evidence,
                now,
            )
            .map_err(Refusal::Internal)?;
        Ok(Granted { admitted, issued })
    }

    /// The certificate that the authority itself serves with.
    pub(crate) fn issue_own(
        &self,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Issued, Error> {
        self.sign(key, &ServiceName::authority(), "authority", "", now)
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        service: &ServiceName,
        proof: &str,
        evidence: &str,
        now: SystemTime,
    ) -> Result<Issued, Error> {
        let profile = Profile::leaf(self.authority.root().domain(), service, &self.lifetimes);
        let signer = self.authority.signer();
        let issued = issue::issue(&signer, key, &profile, now, Serial::new(random()?))?;
        self.journal.append(&Entry {
            time: rfc3339(now),
            serial: issued.serial.hex(),
            id: issued.uri.clone(),
            not_after: rfc3339(issued.validity.not_after),
            proof: proof.to_owned(),
            evidence: evidence.to_owned(),
        })?;
        Ok(issued)
    }
}

#[cfg(test)]
mod tests;
