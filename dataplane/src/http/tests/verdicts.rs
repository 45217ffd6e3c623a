//! What answers say of the endpoints that gave them.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};

use crate::cluster::Speaks;
use crate::endpoint::Totals;
use crate::testing::{collect, request, scene, story, until};

fn call() -> Request<()> {
    let mut request = request("POST", "/shop.v1.Orders/Get");
    let grpc = HeaderValue::from_static("application/grpc");
    request.headers_mut().insert("content-type", grpc);
    request
}

fn status(code: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", HeaderValue::from_static(code));
    headers
}

/// What is counted at the endpoint of a call that is answered so.
async fn totals(message: bool, trailers: Option<HeaderMap>) -> Totals {
    let (origin, stage) = scene(Speaks::Http2).await;
    let mut client = stage.h2_client().await;
    let (answer, _) = client.send(call(), true).await;
    let mut endpoint = origin.accept_h2().await;
    let (_, mut respond) = endpoint.request().await;
    let _running = endpoint.run();
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    let body = answer.await.unwrap().into_body();
    let of_endpoint = || stage.cluster.members.load().endpoints()[0].totals();
    // The head alone says nothing.
    assert_eq!(of_endpoint().successes + of_endpoint().remote_failures, 0);
    if message {
        stream
            .send_data(Bytes::from_static(b"\0\0\0\0\0"), false)
            .unwrap();
    }
    match trailers {
        Some(trailers) => stream.send_trailers(trailers).unwrap(),
        None => stream.send_reset(h2::Reason::INTERNAL_ERROR),
    }
    let _: Result<_, _> = collect(body).await;
    until("the exchange has ended", || stage.in_flight() == 0).await;
    of_endpoint()
}

#[test]
fn a_call_is_judged_by_its_trailers_or_its_first_message() {
    story(async {
        let ended = totals(false, Some(status("0"))).await;
        assert_eq!((ended.successes, ended.remote_failures), (1, 0));
        let failed = totals(false, Some(status("14"))).await;
        assert_eq!((failed.successes, failed.remote_failures), (0, 1));
        let busy = totals(false, Some(status("8"))).await;
        assert_eq!((busy.successes, busy.pushbacks), (0, 1));
        let silent = totals(false, Some(HeaderMap::new())).await;
        assert_eq!((silent.successes, silent.remote_failures), (0, 1));
        let broken = totals(false, None).await;
        assert_eq!((broken.successes, broken.local_failures), (0, 1));
        // It works, whatever becomes of the rest.
        let began = totals(true, Some(status("14"))).await;
        assert_eq!((began.successes, began.remote_failures), (1, 0));
    });
}
