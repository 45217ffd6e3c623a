//! From a request to an answer; no sockets here.

use std::net::IpAddr;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use serde_json::json;

use super::Admin;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// With the version of the format, as Prometheus asks for it.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Page, and what the list of pages says about it.
const BUILT_IN: [(&str, &str); 5] = [
    ("/live", "200 as long as the process runs"),
    (
        "/ready",
        "200 when traffic may come, else 503 and what is missing",
    ),
    ("/metrics", "metrics in the format of Prometheus"),
    (
        "/config",
        "the configuration in force, and whether the file is it",
    ),
    ("/drain", "POST: finish what runs, then end"),
];

impl Admin {
    /// Answers a request without a body. `local` says that only this host may ask.
    pub(super) fn answer(&self, request: &Parts, local: bool) -> Response<String> {
        if local && !is_local_name(&request.headers) {
            return text(
                StatusCode::FORBIDDEN,
                "the Host must be an IP address or localhost: other names may be another website's\n",
            );
        }
        let path = request.uri.path();
        let wanted = if path == "/drain" {
            Method::POST
        } else {
            Method::GET
        };
        let is_head = request.method == Method::HEAD && wanted == Method::GET;
        if request.method != wanted && !is_head {
            let mut answer = text(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{path} wants {wanted}\n"),
            );
            if let Ok(allow) = HeaderValue::from_str(wanted.as_str()) {
                answer.headers_mut().insert(header::ALLOW, allow);
            }
            return answer;
        }
        match path {
            "/" => text(StatusCode::OK, self.list()),
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" => self.ready(),
            "/metrics" => page(StatusCode::OK, METRICS, self.metrics.render()),
            "/config" => self.configuration(),
            "/drain" => self.begin_drain(&request.headers),
            _ => match self.pages.get(path) {
                Some((_, write)) => {
                    let (content_type, text) = write();
                    page(StatusCode::OK, content_type, text)
                }
                None => text(
                    StatusCode::NOT_FOUND,
                    format!("no such page; these are:\n\n{}", self.list()),
                ),
            },
        }
    }

    fn list(&self) -> String {
        let built_in = BUILT_IN.map(|(path, about)| (path, about));
        let own = self
            .pages
            .iter()
            .map(|(path, (about, _))| (path.as_str(), about.as_str()));
        built_in
            .into_iter()
            .chain(own)
            .map(|(path, about)| format!("{path:<12} {about}\n"))
            .collect()
    }

    fn ready(&self) -> Response<String> {
        let missing = self.readiness.missing();
        let ready = missing.is_empty();
        let status = if ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let draining = self.watch.is_draining();
        let body = json!({ "ready": ready, "missing": missing, "draining": draining });
        page(status, JSON, format!("{body}\n"))
    }

    fn configuration(&self) -> Response<String> {
        let Some(status) = &self.config else {
            return text(StatusCode::NOT_FOUND, "no configuration was read\n");
        };
        page(StatusCode::OK, TEXT, status.render())
    }

    fn begin_drain(&self, headers: &HeaderMap) -> Response<String> {
        // A form on any website can send a POST here; its browser says so.
        if headers.contains_key(ORIGIN) {
            return text(StatusCode::FORBIDDEN, "not from a web page\n");
        }
        self.drain.ask();
        text(StatusCode::ACCEPTED, "draining\n")
    }
}

/// Whether the `Host` is something that only this host can be called by.
fn is_local_name(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let Some(authority) = host
        .to_str()
        .ok()
        .and_then(|host| host.parse::<http::uri::Authority>().ok())
    else {
        return false;
    };
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

pub(super) fn text(status: StatusCode, text: impl Into<String>) -> Response<String> {
    page(status, TEXT, text.into())
}

fn page(status: StatusCode, content_type: &'static str, text: String) -> Response<String> {
    let mut answer = Response::new(text);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    answer
}
