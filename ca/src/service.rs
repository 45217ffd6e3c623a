//! gRPC in, chain out. Takes messages apart, bounds how much is done at a time, and decides nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{Semaphore, TryAcquireError};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status};
use weft_proto::ca::certificate_authority_server::CertificateAuthority;
use weft_proto::ca::{Bundle, FollowBundleRequest, IssueRequest, IssueResponse};

use crate::admit::{Proof, Refusal};
use crate::authority::rfc3339;
use crate::bundle::Publisher;
use crate::connection::Peer;
use crate::desk::{Desk, Granted};
use crate::telemetry;

/// Requests that are worked on or wait; one more is told to come back. Each is at most a 64 KiB message.
const WAITING: usize = 512;

/// Requests that are worked on at the same time: each is a thread that forces files to disk.
const WORKING: usize = 16;

/// Streams of the bundle at the same time.
const FOLLOWERS: usize = 4096;

/// What tells the time; tests have their own.
pub(crate) type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The service that tonic calls.
#[derive(Clone)]
pub(crate) struct Service {
    desk: Arc<Desk>,
    bundle: Arc<Publisher>,
    waiting: Arc<Semaphore>,
    working: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    clock: Clock,
}

impl Service {
    pub(crate) fn new(desk: Arc<Desk>, bundle: Arc<Publisher>, clock: Clock) -> Self {
        Self {
            desk,
            bundle,
            waiting: Arc::new(Semaphore::new(WAITING)),
            working: Arc::new(Semaphore::new(WORKING)),
            followers: Arc::new(Semaphore::new(FOLLOWERS)),
            clock,
        }
    }

    /// From now on nothing is issued: the state may be another process's at any moment.
    pub(crate) fn close(&self) {
        self.waiting.close();
        self.working.close();
    }

    async fn grant(&self, request: IssueRequest, peer: Peer) -> Result<Granted, Refusal> {
        let waiting = Arc::clone(&self.waiting).try_acquire_owned();
        let waiting = waiting.map_err(|error| match error {
            TryAcquireError::NoPermits => Refusal::Busy,
            TryAcquireError::Closed => Refusal::Closing,
        })?;
        let working = Arc::clone(&self.working)
            .acquire_owned()
            .await
            .map_err(|_| Refusal::Closing)?;
        let (desk, clock) = (Arc::clone(&self.desk), Arc::clone(&self.clock));
        // Once begun it goes on to its end, also when the client is gone by then: a token is not left half used. The
        // permits go with it.
        let work = tokio::task::spawn_blocking(move || {
            let _permits = (waiting, working);
            let proof = Proof {
                join_token: &request.join_token,
                certificates: &peer.certificates,
            };
            desk.issue(&request.csr, proof, clock())
        });
        work.await
            .map_err(|error| Refusal::Internal(error.into()))?
    }
}

#[tonic::async_trait]
impl CertificateAuthority for Service {
    async fn issue(
        &self,
        request: Request<IssueRequest>,
    ) -> Result<Response<IssueResponse>, Status> {
        let peer = peer(&request)?;
        let _call = peer.seat.call();
        match self.grant(request.into_inner(), peer.clone()).await {
            Ok(granted) => {
                let Granted { admitted, issued } = granted;
                telemetry::issued(admitted.kind);
                tracing::info!(
                    service = %admitted.service,
                    proof = admitted.kind.as_str(),
                    evidence = admitted.evidence,
                    serial = issued.serial.hex(),
                    not_after = %rfc3339(issued.validity.not_after),
                    "issued a certificate"
                );
                Ok(Response::new(IssueResponse {
                    chain: issued
                        .chain
                        .iter()
                        .map(|certificate| certificate.to_vec())
                        .collect(),
                    bundle: self.bundle.current(),
                }))
            }
            Err(refusal) => {
                telemetry::refused(&refusal);
                match &refusal {
                    Refusal::Internal(cause) => {
                        tracing::error!(%cause, "could not issue a certificate");
                    }
                    refusal => {
                        tracing::warn!(reason = %refusal, "refused a request for a certificate");
                    }
                }
                Err(status(&refusal))
            }
        }
    }

    type FollowBundleStream = Pin<Box<dyn Stream<Item = Result<Bundle, Status>> + Send>>;

    async fn follow_bundle(
        &self,
        request: Request<FollowBundleRequest>,
    ) -> Result<Response<Self::FollowBundleStream>, Status> {
        // The bundle is no secret: everybody who is to check a certificate needs it.
        let call = peer(&request)?.seat.call();
        let permit = Arc::clone(&self.followers)
            .try_acquire_owned()
            .map_err(|_| status(&Refusal::Busy))?;
        let stream = self.bundle.follow().map(move |bundle| {
            // Held as long as the stream is.
            let _held = (&call, &permit);
            Ok(bundle)
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

/// Who is on the other end.
fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = request.extensions().get::<Peer>();
    peer.cloned()
        .ok_or_else(|| Status::internal("the connection is not known"))
}

/// The one place where a refusal becomes a gRPC status.
fn status(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::NoProof | Refusal::Certificate(_) => Code::Unauthenticated,
        Refusal::TokenMalformed(_) | Refusal::Request(_) => Code::InvalidArgument,
        Refusal::TokenForeign
        | Refusal::TokenUnknown
        | Refusal::TokenUsed
        | Refusal::TokenExpired
        | Refusal::Reserved => Code::PermissionDenied,
        Refusal::Busy => Code::ResourceExhausted,
        Refusal::Closing => Code::Unavailable,
        Refusal::Internal(_) => Code::Internal,
    };
    Status::new(code, refusal.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::time::Instant;

    use super::*;
    use crate::connection::{Bounds, Seats};
    use crate::journal::Journal;
    use crate::tests::{State, at, lifetimes};

    fn service() -> (Service, tempfile::TempDir) {
        let state = State::new();
        let desk = Desk {
            journal: Journal::open(state.directory.inside("journal").unwrap()).unwrap(),
            authority: state.authority,
            tokens: state.tokens,
            lifetimes: lifetimes(),
        };
        let bundle = Publisher::new("shop.internal", vec![vec![1]]);
        let service = Service::new(Arc::new(desk), Arc::new(bundle), Arc::new(|| at(0)));
        (service, state._temp)
    }

    fn request<T>(message: T) -> Request<T> {
        let seats = Seats::new(Bounds::default());
        let seat = seats
            .take("10.0.0.1".parse().unwrap(), Instant::now())
            .unwrap();
        let mut request = Request::new(message);
        let certificates = [].into();
        request.extensions_mut().insert(Peer { seat, certificates });
        request
    }

    async fn code(service: &Service) -> Code {
        let request = request(IssueRequest::default());
        service.issue(request).await.unwrap_err().code()
    }

    #[tokio::test]
    async fn one_request_beyond_the_bound_is_told_to_come_back() {
        let (service, _temp) = service();
        let others = service
            .waiting
            .acquire_many(WAITING as u32 - 1)
            .await
            .unwrap();
        assert_eq!(
            code(&service).await,
            Code::InvalidArgument,
            "it was looked at"
        );
        let last = service.waiting.acquire().await.unwrap();
        assert_eq!(code(&service).await, Code::ResourceExhausted);
        drop((others, last));
        assert_eq!(code(&service).await, Code::InvalidArgument);
    }

    #[tokio::test]
    async fn nothing_is_issued_after_the_end() {
        let (service, _temp) = service();
        service.close();
        assert_eq!(code(&service).await, Code::Unavailable);
    }

    #[tokio::test]
    async fn followers_are_bounded_and_make_room_when_they_go() {
        let (service, _temp) = service();
        let follow = || service.follow_bundle(request(FollowBundleRequest {}));
        let _others = service
            .followers
            .acquire_many(FOLLOWERS as u32 - 1)
            .await
            .unwrap();
        let last = follow().await.unwrap();
        let refused = follow().await.map(|_| ()).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        drop(last);
        follow().await.map(|_| ()).unwrap();
    }
}
