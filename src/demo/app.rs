//! The demo's services: one small program that is storefront, orders or inventory, as its flags say.
//!
//! It knows nothing of Weft beyond the address of the sidecar beside it: it calls the next service by name, over
//! plain HTTP/1.1, through that address. A second port takes the orders to misbehave; in a real mesh nobody has it.

use std::future::Future;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::http as client;

/// The most connections at once; the one caller, a sidecar, needs a handful.
const MAX_CONNECTIONS: usize = 1_024;
/// How long a call to the next service may take; the mesh's own timeout is shorter.
const CALL_DEADLINE: Duration = Duration::from_secs(20);
/// How long `hang` holds a request before the connection is given up.
const HANG: Duration = Duration::from_secs(60);
/// The longest delay that can be asked for.
const MAX_DELAY: Duration = Duration::from_secs(30);

/// The `error` of an answer that fails because the demo wants it to.
pub(super) const TOLD_TO_FAIL: &str = "told to fail";

/// `weft demo-app`: started by `weft demo`, not by people.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Which service this is.
    #[arg(long)]
    service: String,
    /// Where the app listens.
    #[arg(long)]
    address: SocketAddr,
    /// Where it takes orders to misbehave.
    #[arg(long)]
    control: SocketAddr,
    /// The sidecar's outbound address.
    #[arg(long)]
    outbound: Option<SocketAddr>,
    /// The service to call for each request, by name.
    #[arg(long)]
    calls: Option<String>,
    /// What to ask it for: this path and the id of the request.
    #[arg(long, default_value = "/items")]
    asks: String,
}

/// Runs until the standard input ends: the demo holds the other end, so an app never outlives it.
pub(crate) fn run(args: &Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error),
    };
    match runtime.block_on(serve(args, input_ended())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error),
    }
}

fn complain(error: &std::io::Error) -> ExitCode {
    eprintln!("demo-app: {error}");
    ExitCode::FAILURE
}

/// A thread of its own, because reading the standard input blocks and cannot be called off.
async fn input_ended() {
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let mut ignored = [0; 64];
        while matches!(std::io::stdin().read(&mut ignored), Ok(n) if n > 0) {}
        drop(tell);
    });
    // The sender says nothing, it goes away.
    let _ = told.await;
}

async fn serve(args: &Args, ended: impl Future<Output = ()>) -> std::io::Result<()> {
    let app = Arc::new(App::new(args));
    let public = TcpListener::bind(args.address).await?;
    let control = TcpListener::bind(args.control).await?;
    let answer = {
        let app = app.clone();
        move |request| {
            let app = app.clone();
            async move { app.answer(request).await }
        }
    };
    let steer = move |request| {
        let app = app.clone();
        async move { app.steer(&request) }
    };
    tokio::select! {
        result = accept(public, answer) => result,
        result = accept(control, steer) => result,
        () = ended => Ok(()),
    }
}

/// Serves each connection in a task of its own; all of them end with this future.
async fn accept<F, R>(listener: TcpListener, handler: F) -> std::io::Result<()>
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: it passes, and spinning would not help.
                eprintln!("demo-app: accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Answers are small and each is awaited.
        let _ = stream.set_nodelay(true);
        let handler = handler.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, std::convert::Infallible>(answer.await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
            // A caller that goes away is its own affair.
            drop(served);
        });
    }
}

/// How the app misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// It does not.
    Ok,
    /// Answers 500.
    #[serde(rename = "500")]
    Fail,
    /// Does not answer.
    Hang,
}

#[derive(Debug, Clone, Copy)]
struct Behaviour {
    mode: Mode,
    /// How many of a hundred requests the mode is for.
    percent: u64,
    delay: Duration,
}

/// What an app says of itself on its control port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stats {
    /// Requests that arrived, since the start.
    pub(super) seen: u64,
    /// Requests that have arrived and are not answered.
    pub(super) in_flight: u64,
}

struct App {
    service: String,
    replica: IpAddr,
    next: Option<Next>,
    behaviour: watch::Sender<Behaviour>,
    seen: AtomicU64,
    in_flight: AtomicU64,
}

/// The service that this one calls.
struct Next {
    client: client::Client,
    sidecar: SocketAddr,
    service: String,
    asks: String,
}

impl App {
    fn new(args: &Args) -> Self {
        let next = args.outbound.zip(args.calls.clone());
        Self {
            service: args.service.clone(),
            replica: args.address.ip(),
            next: next.map(|(sidecar, service)| Next {
                client: client::client(),
                sidecar,
                service,
                asks: args.asks.clone(),
            }),
            behaviour: watch::Sender::new(Behaviour {
                mode: Mode::Ok,
                percent: 100,
                delay: Duration::ZERO,
            }),
            seen: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let number = self.seen.fetch_add(1, Ordering::Relaxed);
        let _present = Present::enter(&self.in_flight);
        let behaviour = *self.behaviour.borrow();
        if !behaviour.delay.is_zero() {
            tokio::time::sleep(behaviour.delay).await;
        }
        if number % 100 < behaviour.percent {
            match behaviour.mode {
                Mode::Ok => {}
                Mode::Fail => return self.fail(TOLD_TO_FAIL),
                Mode::Hang => {
                    self.hang().await;
                    return self.fail("hung");
                }
            }
        }
        let id = request.uri().path().rsplit('/').next().unwrap_or_default();
        self.compose(id, caller(request.headers())).await
    }

    /// Until the mode changes: a replica that recovers answers what it held.
    async fn hang(&self) {
        let mut changes = self.behaviour.subscribe();
        let over = changes.wait_for(|behaviour| behaviour.mode != Mode::Hang);
        // Either way the request is answered with an error.
        let _ = tokio::time::timeout(HANG, over).await;
    }

    /// Our own part of the answer, and inside it the next service's.
    async fn compose(&self, id: &str, called_by: Option<&str>) -> Response<Full<Bytes>> {
        let mut page = json!({ "service": self.service, "replica": self.replica, "id": id });
        if let Some(who) = called_by {
            page["called_by"] = who.into();
        }
        let Some(next) = &self.next else {
            return reply(StatusCode::OK, &page);
        };
        let (status, inner) = next.call(id).await;
        if !status.is_success() {
            page["error"] = next.complaint(status, &inner).into();
        }
        page[&next.service] = inner;
        let ours = if status.is_success() {
            StatusCode::OK
        } else {
            StatusCode::BAD_GATEWAY
        };
        reply(ours, &page)
    }

    fn fail(&self, why: &str) -> Response<Full<Bytes>> {
        let page = json!({ "service": self.service, "replica": self.replica, "error": why });
        reply(StatusCode::INTERNAL_SERVER_ERROR, &page)
    }

    /// `/stats`, `/fail?mode=ok|500|hang&percent=N` and `/slow?ms=N`.
    fn steer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let query = request.uri().query().unwrap_or_default();
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/stats") => {
                let stats = Stats {
                    seen: self.seen.load(Ordering::Relaxed),
                    in_flight: self.in_flight.load(Ordering::Relaxed),
                };
                reply(StatusCode::OK, &json!(stats))
            }
            (&Method::POST, "/fail") => {
                let Some(mode) = parameter(query, "mode").and_then(mode) else {
                    return reply(StatusCode::BAD_REQUEST, &json!("mode is ok, 500 or hang"));
                };
                let percent = number(query, "percent").unwrap_or(100).min(100);
                self.change(|behaviour| (behaviour.mode, behaviour.percent) = (mode, percent))
            }
            (&Method::POST, "/slow") => {
                let Some(millis) = number(query, "ms") else {
                    return reply(StatusCode::BAD_REQUEST, &json!("ms is a number"));
                };
                let delay = Duration::from_millis(millis).min(MAX_DELAY);
                self.change(|behaviour| behaviour.delay = delay)
            }
            _ => reply(StatusCode::NOT_FOUND, &json!("/stats, /fail, /slow")),
        }
    }

    fn change(&self, apply: impl FnOnce(&mut Behaviour)) -> Response<Full<Bytes>> {
        self.behaviour.send_modify(apply);
        reply(StatusCode::OK, &json!("done"))
    }
}

impl Next {
    async fn call(&self, id: &str) -> (StatusCode, Value) {
        let request = Request::get(format!("http://{}{}/{id}", self.sidecar, self.asks))
            // The sidecar goes by the name, not by the address of the connection.
            .header(header::HOST, &self.service)
            .body(Full::default());
        let Ok(request) = request else {
            return (StatusCode::BAD_REQUEST, json!("no such path"));
        };
        match client::exchange(&self.client, request, CALL_DEADLINE).await {
            Ok(answer) => {
                let page = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
                (answer.status, page)
            }
            Err(error) => (
                StatusCode::BAD_GATEWAY,
                json!({ "error": error.to_string() }),
            ),
        }
    }

    /// What went wrong there: the sidecar says a `reason`, the app an `error`.
    fn complaint(&self, status: StatusCode, page: &Value) -> String {
        let why = page["reason"].as_str().or(page["error"].as_str());
        let (service, status) = (&self.service, status.as_u16());
        format!(
            "{service} answered {status}: {}",
            why.unwrap_or("no reason given")
        )
    }
}

/// Counts a request as in flight for as long as it lives, however it ends.
struct Present<'a>(&'a AtomicU64);

impl<'a> Present<'a> {
    fn enter(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who called, as our own sidecar proved it: the `URI` of `x-forwarded-client-cert`.
fn caller(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get("x-forwarded-client-cert")?.to_str().ok()?;
    value
        .split([';', ','])
        .find_map(|part| part.trim().strip_prefix("URI="))
        .map(|uri| uri.trim_matches('"'))
}

fn mode(text: &str) -> Option<Mode> {
    serde_json::from_value(text.into()).ok()
}

fn number(query: &str, name: &str) -> Option<u64> {
    parameter(query, name)?.parse().ok()
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}

fn reply(status: StatusCode, page: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(page.to_string()));
    *response.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn free_address() -> SocketAddr {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        probe.local_addr().unwrap()
    }

    struct Running {
        args: Args,
        client: client::Client,
        _tasks: JoinSet<std::io::Result<()>>,
    }

    impl Running {
        /// An app whose "sidecar" is whatever listens at `next`.
        async fn start(service: &str, next: Option<(SocketAddr, &str)>) -> Self {
            let args = Args {
                service: service.to_owned(),
                address: free_address(),
                control: free_address(),
                outbound: next.map(|(address, _)| address),
                calls: next.map(|(_, service)| service.to_owned()),
                asks: "/stock".to_owned(),
            };
            let mut tasks = JoinSet::new();
            let task_args = args.clone();
            tasks.spawn(async move { serve(&task_args, std::future::pending()).await });
            let client = client::client();
            let running = Self {
                args,
                client,
                _tasks: tasks,
            };
            // Ready when the control port, which is bound last, answers.
            let until = tokio::time::Instant::now() + SOON;
            while running.try_stats().await.is_none() {
                assert!(
                    tokio::time::Instant::now() < until,
                    "the app never listened"
                );
                tokio::task::yield_now().await;
            }
            running
        }

        async fn try_stats(&self) -> Option<Stats> {
            let url = format!("http://{}/stats", self.args.control);
            let answer = client::get(&self.client, &url, SOON).await.ok()?;
            serde_json::from_slice(&answer.body).ok()
        }

        async fn steer(&self, what: &str) -> StatusCode {
            let request = Request::post(format!("http://{}{what}", self.args.control))
                .body(Full::default())
                .unwrap();
            let answer = client::exchange(&self.client, request, SOON).await;
            answer.unwrap().status
        }

        async fn get(&self, path: &str) -> (StatusCode, Value) {
            let url = format!("http://{}{path}", self.args.address);
            let answer = client::get(&self.client, &url, SOON).await.unwrap();
            (answer.status, serde_json::from_slice(&answer.body).unwrap())
        }
    }

    #[tokio::test]
    async fn an_answer_names_the_replica_and_holds_the_next_services_answer() {
        let inventory = Running::start("inventory", None).await;
        let orders = Running::start("orders", Some((inventory.args.address, "inventory"))).await;
        let (status, page) = orders.get("/orders/42").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(page["service"], "orders");
        assert_eq!(page["replica"], "127.0.0.1");
        assert_eq!(page["inventory"]["service"], "inventory");
        assert_eq!(page["inventory"]["id"], "42");
    }

    #[tokio::test]
    async fn a_failing_service_is_passed_on_with_its_reason() {
        let inventory = Running::start("inventory", None).await;
        let orders = Running::start("orders", Some((inventory.args.address, "inventory"))).await;
        assert_eq!(inventory.steer("/fail?mode=500").await, StatusCode::OK);
        let (status, page) = orders.get("/orders/1").await;
        assert_eq!(status, StatusCode::BAD_GATEWAY);
        assert_eq!(page["error"], "inventory answered 500: told to fail");
        assert_eq!(page["inventory"]["error"], "told to fail");

        inventory.steer("/fail?mode=ok").await;
        assert_eq!(orders.get("/orders/2").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn only_the_asked_share_of_requests_fails() {
        let app = Running::start("orders", None).await;
        app.steer("/fail?mode=500&percent=30").await;
        let mut failed = 0;
        for _ in 0..100 {
            failed += u32::from(app.get("/orders/1").await.0.is_server_error());
        }
        assert_eq!(failed, 30);
    }

    #[tokio::test]
    async fn a_hanging_request_is_in_flight_until_the_replica_recovers() {
        let app = Arc::new(Running::start("orders", None).await);
        app.steer("/fail?mode=hang").await;
        let mut held = JoinSet::new();
        let asker = app.clone();
        held.spawn(async move { asker.get("/orders/1").await.0 });
        while app.try_stats().await.unwrap().in_flight == 0 {
            tokio::task::yield_now().await;
        }
        app.steer("/fail?mode=ok").await;
        let status = held.join_next().await.unwrap().unwrap();
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(
            app.try_stats().await.unwrap(),
            Stats {
                seen: 1,
                in_flight: 0
            }
        );
    }

    #[tokio::test]
    async fn strange_orders_are_refused() {
        let app = Running::start("orders", None).await;
        for what in ["/fail", "/fail?mode=maybe", "/slow", "/slow?ms=soon"] {
            assert_eq!(app.steer(what).await, StatusCode::BAD_REQUEST, "{what}");
        }
        assert_eq!(app.steer("/elsewhere").await, StatusCode::NOT_FOUND);
    }

    #[test]
    fn the_caller_is_read_from_the_forwarded_certificate() {
        for (value, expected) in [
            (
                "By=spiffe://a/service/b;Hash=00;URI=spiffe://a/service/c",
                Some("spiffe://a/service/c"),
            ),
            ("URI=\"spiffe://a/service/c\"", Some("spiffe://a/service/c")),
            ("Hash=00", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-client-cert", value.parse().unwrap());
            assert_eq!(caller(&headers), expected, "{value}");
        }
    }
}
