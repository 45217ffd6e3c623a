//! Every metric of traffic: its name, its labels, and what it means. Nothing else spells such a name (what a process
//! tells about itself, its log and its configuration, is the `runtime` crate's).
//!
//! Units are base units (seconds, bytes), counters end in `_total`, a label is on every series of a metric. Label
//! values are names from the configuration, verified identities or words of closed lists, never what a client sent.
//!
//! Counters and levels go through the `metrics` crate ([`Registry::publish`]); latencies, endpoints and certificates
//! are written by [`Registry::render`], for the reasons that [`super::exposition`] gives. Both are called when the
//! page is asked for, and cost nothing in between.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use metrics::{Label, counter, describe_counter, describe_gauge, gauge};

use super::cells::{CLASSES, Detected, HandshakeFailure, Redirected, Totals};
use super::exposition::{Kind, Page};
use super::registry::{EdgeKey, Registry, RouteKey, RouteTotals};
use super::rows::ServiceRow;
use crate::reason::Reason;

macro_rules! names {
    ($($kind:ident $name:ident = $text:literal, $help:literal;)+) => {
        $(#[doc = $help] pub const $name: &str = $text;)+

        /// Every metric: whether it is a `counter`, `gauge` or `histogram`, its name, and what it means.
        pub const ALL: &[(&str, &str, &str)] = &[$((stringify!($kind), $text, $help),)+];
    };
}

names! {
    counter REQUESTS = "weft_requests_total", "Exchanges by source, destination, direction (who counted), class of status and mtls.";
    histogram REQUEST_DURATION = "weft_request_duration_seconds", "Time from the request's head to the end of the answer.";
    gauge REQUESTS_IN_FLIGHT = "weft_requests_in_flight", "Exchanges that have begun and not ended.";
    counter RETRIES = "weft_retries_total", "Attempts that were repeated at another endpoint.";
    counter REQUEST_BYTES = "weft_request_bytes_total", "Body bytes received from callers.";
    counter RESPONSE_BYTES = "weft_response_bytes_total", "Body bytes sent to callers.";
    counter EDGE_ANSWERS = "weft_edge_answers_total", "Answers that this proxy made itself, by edge and reason.";
    counter GATEWAY_REQUESTS = "weft_gateway_requests_total", "Exchanges of the gateway by listener, route, service and class of status.";
    histogram GATEWAY_REQUEST_DURATION = "weft_gateway_request_duration_seconds", "Time from the request's head to the end of the answer, by route.";
    gauge GATEWAY_REQUESTS_IN_FLIGHT = "weft_gateway_requests_in_flight", "Exchanges of the gateway that have begun and not ended.";
    counter GATEWAY_REQUEST_BYTES = "weft_gateway_request_bytes_total", "Body bytes received from clients, by route.";
    counter GATEWAY_RESPONSE_BYTES = "weft_gateway_response_bytes_total", "Body bytes sent to clients, by route.";
    counter GATEWAY_ANSWERS = "weft_gateway_answers_total", "Answers that the gateway made itself, by route and reason.";
    counter ANSWERS = "weft_answers_total", "Every answer that this process made itself, by reason (docs/reasons.md).";
    counter CONNECTIONS_ACCEPTED = "weft_connections_accepted_total", "Connections taken, by listener.";
    gauge CONNECTIONS_ACTIVE = "weft_connections_active", "Connections open now, by listener.";
    counter CONNECTIONS_REFUSED = "weft_connections_refused_total", "Connections closed at once because a limit was reached, by listener.";
    counter HANDSHAKE_FAILURES = "weft_tls_handshake_failures_total", "Failed TLS handshakes of clients, by listener and cause.";
    counter FOREIGN_PEERS = "weft_foreign_peers_total", "Peers that are not of the mesh, that could not prove it, or that refused us, by service, direction (who went to whom) and kind; `plaintext_permitted` is for those that are let in for now.";
    counter FOREIGN_PEERS_LEFT_OUT = "weft_foreign_peers_left_out_total", "Foreign peers that /peers shows no longer, because there was no room.";
    counter DETECTED = "weft_detected_connections_total", "Connections to ports that take anything, by listener and what they were found to speak; `timeout` is for those that said nothing.";
    counter REDIRECTED = "weft_redirected_connections_total", "Connections that were redirected to us, by listener and what became of them.";
    counter PASSED_ON_BYTES = "weft_passed_on_bytes_total", "Bytes of redirected connections that are none of ours to understand, by listener and direction: out of or into who made them.";
    gauge PLAINTEXT_PERMITTED = "weft_plaintext_permitted_seconds", "Seconds until plaintext is no longer let in on a port of the app; negative after that.";
    counter PARSE_ERRORS = "weft_parse_errors_total", "Connections ended because what came on them was not valid HTTP, by listener.";
    counter UNREAD = "weft_readers_given_up_total", "Answers, tunnels and connections given up because their reader did not take what waited for it, by listener.";
    gauge ENDPOINT_STATE = "weft_endpoint_state", "1 for the state that an endpoint is in: healthy, ejected, probing, draining or unhealthy.";
    gauge ENDPOINT_IN_FLIGHT = "weft_endpoint_in_flight", "Exchanges of ours in flight at an endpoint.";
    counter ENDPOINT_EJECTIONS = "weft_endpoint_ejections_total", "How often an endpoint was ejected.";
    gauge SERVICE_IN_FLIGHT = "weft_service_in_flight", "Exchanges of ours in flight with a service, which its limit is on.";
    gauge SERVICE_WAITING = "weft_service_waiting", "Exchanges that wait because a service has as many in flight as it may.";
    gauge BREAKER_STATE = "weft_breaker_state", "1 for the state that a service's breaker is in: closed, open or half_open.";
    counter BREAKER_OPENINGS = "weft_breaker_openings_total", "How often a service's breaker has opened.";
    gauge SERVICE_AVAILABLE = "weft_service_endpoints_available", "Endpoints of a service that are neither ejected nor unhealthy nor draining.";
    gauge SERVICE_PANIC = "weft_service_panic", "1 while under half of a service's endpoints are available, so that all are used.";
    counter SERVICE_PANICS = "weft_service_panics_total", "How often it came to that.";
    counter SERVICE_PANIC_PICKS = "weft_service_panic_picks_total", "Exchanges that were given to any endpoint for that reason.";
    counter SESSIONS = "weft_sessions_total", "Answers of services that keep sessions, by what became of the session: new, kept, moved (its endpoint takes no exchanges or is gone) or unreadable (a cookie that was refused).";
    counter HEALTH_PROBES = "weft_health_probes_total", "Probes of endpoints by service and result: passed or failed.";
    gauge DISCOVERY_ENDPOINTS = "weft_discovery_endpoints", "Endpoints of a service that its source (DNS, a file, the configuration) names.";
    gauge DISCOVERY_FAILING = "weft_discovery_failing", "1 while a service's source cannot be asked, or not be understood; what it said last stays in use.";
    gauge CERTIFICATE_EXPIRY = "weft_certificate_expiry_seconds", "Seconds until our certificate ends; negative after that.";
    counter CERTIFICATE_RENEWALS = "weft_certificate_renewals_total", "Renewals of our certificate.";
    counter CERTIFICATE_RENEWAL_FAILURES = "weft_certificate_renewal_failures_total", "Renewals of our certificate that failed and will be tried again.";
    gauge LISTENER_CERTIFICATE_EXPIRY = "weft_listener_certificate_expiry_seconds", "Seconds until the certificate that a listener shows to the public ends; negative after that.";
    gauge LISTENER_CERTIFICATE_FAILING = "weft_listener_certificate_failing", "1 while a listener's certificate and key files cannot be used as they are; what they held last is shown on.";
    gauge KEY_SET_KEYS = "weft_key_set_keys", "Keys of a token issuer that are in use, by authn.";
    gauge KEY_SET_FAILURES = "weft_key_set_failures", "Attempts in a row to have a token issuer's keys that failed, by authn; the keys had last stay in use.";
    gauge KEY_SET_AGE = "weft_key_set_age_seconds", "Seconds since a token issuer's keys were had or confirmed last, by authn.";
    gauge LIMIT_KEYS = "weft_limit_keys", "Keys that a rate limit remembers.";
    counter LIMIT_KEYS_FORGOTTEN = "weft_limit_keys_forgotten_total", "Keys that a rate limit has forgotten because there were more than `max_keys`.";
    counter ACCESS_LOG_DROPPED = "weft_access_log_dropped_total", "Lines of the access log that were dropped because the writer was behind.";
    counter REPORTS = "weft_reports_total", "Reports to the collector, by result: taken or failed.";
    counter MESH_REQUESTS = "weft_mesh_requests_total", "Exchanges in the whole mesh, as the sidecars report them.";
    histogram MESH_REQUEST_DURATION = "weft_mesh_request_duration_seconds", "Latencies in the whole mesh, as the sidecars report them.";
    counter MESH_RETRIES = "weft_mesh_retries_total", "Repeated attempts in the whole mesh.";
    counter MESH_REQUEST_BYTES = "weft_mesh_request_bytes_total", "Body bytes from callers in the whole mesh.";
    counter MESH_RESPONSE_BYTES = "weft_mesh_response_bytes_total", "Body bytes to callers in the whole mesh.";
    counter MESH_ANSWERS = "weft_mesh_answers_total", "Answers that the sidecars made themselves, by edge and reason.";
    counter MESH_FOREIGN_PEERS = "weft_mesh_foreign_peers_total", "Foreign peers in the whole mesh by source and destination (`unknown` for who came), direction and kind, as the sidecars report them.";
    gauge MESH_ENDPOINT_STATE = "weft_mesh_endpoint_state", "Reporters that see an endpoint in a state: healthy, ejected, probing, draining or unhealthy.";
    gauge MESH_ENDPOINT_EJECTIONS = "weft_mesh_endpoint_ejections", "Ejections of an endpoint, as the reporters that are there now count them together.";
    gauge MESH_CERTIFICATE_EXPIRY = "weft_mesh_certificate_expiry_seconds", "Seconds until a reporter's certificate ends; negative after that.";
    gauge MESH_REPORTERS = "weft_mesh_reporters", "Sidecars that reported in the last minutes, by service.";
    counter COLLECTOR_REPORTS = "weft_collector_reports_total", "Reports by what became of them: taken, stale or refused.";
    counter COLLECTOR_REFUSED_COUNTS = "weft_collector_refused_counts_total", "Counts in reports, of edges and of foreign peers, for which the reporter may not speak, or that do not say at which end they were counted.";
    counter COLLECTOR_EDGES_LEFT_OUT = "weft_collector_edges_left_out_total", "Edges in reports that were not taken, because there was no room.";
    counter COLLECTOR_ENDPOINTS_LEFT_OUT = "weft_collector_endpoints_left_out_total", "Endpoints in reports that were not taken, because there was no room.";
    counter COLLECTOR_FOREIGN_LEFT_OUT = "weft_collector_foreign_left_out_total", "Foreign peers in reports that were not taken, because there was no room.";
    counter COLLECTOR_CONNECTIONS_REFUSED = "weft_collector_connections_refused_total", "Connections to the collector that were not taken, by cause.";
    gauge COLLECTOR_CONNECTIONS = "weft_collector_connections", "Connections to the collector now.";
}

/// `true` or `false`, as a label.
pub const fn flag(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// The names under which the counters of exchanges are published: an edge's, a route's or the mesh's.
#[derive(Debug, Clone, Copy)]
pub struct ExchangeNames {
    /// By class.
    pub requests: &'static str,
    /// Where it applies.
    pub retries: Option<&'static str>,
    /// Level; not known of the mesh.
    pub in_flight: Option<&'static str>,
    /// Bytes from callers.
    pub request_bytes: &'static str,
    /// Bytes to callers.
    pub response_bytes: &'static str,
    /// By reason.
    pub answers: &'static str,
}

/// The edges of this process.
pub const EDGE_NAMES: ExchangeNames = ExchangeNames {
    requests: REQUESTS,
    retries: Some(RETRIES),
    in_flight: Some(REQUESTS_IN_FLIGHT),
    request_bytes: REQUEST_BYTES,
    response_bytes: RESPONSE_BYTES,
    answers: EDGE_ANSWERS,
};

/// The routes of the gateway.
pub const ROUTE_NAMES: ExchangeNames = ExchangeNames {
    requests: GATEWAY_REQUESTS,
    retries: None,
    in_flight: Some(GATEWAY_REQUESTS_IN_FLIGHT),
    request_bytes: GATEWAY_REQUEST_BYTES,
    response_bytes: GATEWAY_RESPONSE_BYTES,
    answers: GATEWAY_ANSWERS,
};

/// The edges of the mesh.
pub const MESH_NAMES: ExchangeNames = ExchangeNames {
    requests: MESH_REQUESTS,
    retries: Some(MESH_RETRIES),
    in_flight: None,
    request_bytes: MESH_REQUEST_BYTES,
    response_bytes: MESH_RESPONSE_BYTES,
    answers: MESH_ANSWERS,
};

/// The labels of an edge for the `metrics` crate.
pub fn edge_metric_labels(key: &EdgeKey) -> Vec<Label> {
    vec![
        Label::new("source", Arc::clone(&key.source)),
        Label::new("destination", Arc::clone(&key.destination)),
        Label::new("direction", key.direction.as_str()),
        Label::new("mtls", flag(key.mtls)),
    ]
}

fn route_metric_labels(key: &RouteKey) -> Vec<Label> {
    vec![
        Label::new("listener", Arc::clone(&key.listener)),
        Label::new("route", Arc::clone(&key.route)),
        Label::new("service", Arc::clone(&key.service)),
    ]
}

/// Publishes the counters of one edge or route. Classes are there from the first exchange on, all of them, so that the
/// first error already is an increase.
pub fn publish_exchanges(names: ExchangeNames, labels: &[Label], totals: &Totals) {
    let with = |name: &'static str, value: &'static str| {
        let mut labels = labels.to_vec();
        labels.push(Label::new(name, value));
        labels
    };
    for (class, count) in CLASSES.iter().zip(totals.by_class) {
        counter!(names.requests, with("class", class)).absolute(count);
    }
    if let Some(name) = names.retries {
        counter!(name, labels.to_vec()).absolute(totals.retries);
    }
    if let Some(name) = names.in_flight {
        gauge!(name, labels.to_vec()).set(totals.in_flight as f64);
    }
    counter!(names.request_bytes, labels.to_vec()).absolute(totals.request_bytes);
    counter!(names.response_bytes, labels.to_vec()).absolute(totals.response_bytes);
    let reasons = Reason::ALL.iter().map(|reason| reason.code());
    for (reason, count) in reasons.chain(["unknown"]).zip(totals.reasons) {
        if count > 0 {
            counter!(names.answers, with("reason", reason)).absolute(count);
        }
    }
}

/// Tells the `metrics` crate what each metric means.
pub fn describe() {
    for (kind, name, help) in ALL {
        match *kind {
            "counter" => describe_counter!(*name, *help),
            "gauge" => describe_gauge!(*name, *help),
            _ => {}
        }
    }
}

/// What a metric means, for the page.
pub fn help(name: &str) -> &'static str {
    let entry = ALL.iter().find(|entry| entry.1 == name);
    entry.map_or("", |entry| entry.2)
}

impl Registry {
    /// Copies counters and levels into the `metrics` crate. Called just before the page is made.
    pub fn publish(&self) {
        describe();
        for edge in self.totals() {
            publish_exchanges(EDGE_NAMES, &edge_metric_labels(&edge.key), &edge.totals);
        }
        for route in self.route_totals() {
            publish_exchanges(ROUTE_NAMES, &route_metric_labels(&route.key), &route.totals);
        }
        for (reason, count) in Reason::ALL.iter().zip(self.answer_totals()) {
            if count > 0 {
                counter!(ANSWERS, "reason" => reason.code()).absolute(count);
            }
        }
        self.publish_connections();
        self.publish_foreign();
        counter!(ACCESS_LOG_DROPPED).absolute(self.access_log_dropped.load(Ordering::Relaxed));
        if let Some(certificate) = self.certificate() {
            counter!(CERTIFICATE_RENEWALS).absolute(certificate.renewals);
            counter!(CERTIFICATE_RENEWAL_FAILURES).absolute(certificate.renewal_failures);
        }
    }

    fn publish_foreign(&self) {
        let foreign = self.foreign();
        for count in &foreign.counts {
            let labels = vec![
                Label::new("service", Arc::clone(&count.service)),
                Label::new("direction", count.end.as_str()),
                Label::new("kind", count.kind.as_str()),
            ];
            counter!(FOREIGN_PEERS, labels).absolute(count.count);
        }
        counter!(FOREIGN_PEERS_LEFT_OUT).absolute(foreign.left_out);
    }

    fn publish_connections(&self) {
        for (listener, totals) in self.connection_totals() {
            let labels = || vec![Label::new("listener", Arc::clone(&listener))];
            counter!(CONNECTIONS_ACCEPTED, labels()).absolute(totals.accepted);
            gauge!(CONNECTIONS_ACTIVE, labels()).set(totals.active as f64);
            counter!(CONNECTIONS_REFUSED, labels()).absolute(totals.refused);
            counter!(PARSE_ERRORS, labels()).absolute(totals.parse_errors);
            counter!(UNREAD, labels()).absolute(totals.unread);
            for (cause, count) in HandshakeFailure::ALL.iter().zip(totals.handshakes) {
                if count > 0 {
                    let mut labels = labels();
                    labels.push(Label::new("cause", cause.as_str()));
                    counter!(HANDSHAKE_FAILURES, labels).absolute(count);
                }
            }
            for (detected, count) in Detected::ALL.iter().zip(totals.detected) {
                if count > 0 {
                    let mut labels = labels();
                    labels.push(Label::new("protocol", detected.as_str()));
                    counter!(DETECTED, labels).absolute(count);
                }
            }
            for (outcome, count) in Redirected::ALL.iter().zip(totals.redirected) {
                if count > 0 {
                    let mut labels = labels();
                    labels.push(Label::new("outcome", outcome.as_str()));
                    counter!(REDIRECTED, labels).absolute(count);
                }
            }
            for (direction, bytes) in [("out", totals.passed_up), ("in", totals.passed_down)] {
                if bytes > 0 {
                    let mut labels = labels();
                    labels.push(Label::new("direction", direction));
                    counter!(PASSED_ON_BYTES, labels).absolute(bytes);
                }
            }
        }
    }

    /// Writes latencies, endpoints and our certificate onto the page, after what the exporter made of the rest.
    pub fn render(&self, out: &mut String, now: SystemTime) {
        let mut page = Page::new(out);
        page.family(REQUEST_DURATION, Kind::Histogram, help(REQUEST_DURATION));
        for edge in self.totals() {
            edge_latency(&mut page, REQUEST_DURATION, &edge.key, &edge.totals);
        }
        let routes = self.route_totals();
        if !routes.is_empty() {
            let name = GATEWAY_REQUEST_DURATION;
            page.family(name, Kind::Histogram, help(name));
            for RouteTotals { key, totals } in &routes {
                let labels = [
                    ("listener", &*key.listener),
                    ("route", &*key.route),
                    ("service", &*key.service),
                ];
                page.latency(name, &labels, totals);
            }
        }
        self.render_endpoints(&mut page);
        self.render_services(&mut page);
        self.render_permits(&mut page, now);
        if let Some(certificate) = self.certificate() {
            page.family(CERTIFICATE_EXPIRY, Kind::Gauge, help(CERTIFICATE_EXPIRY));
            let left = seconds_until(certificate.not_after, now);
            page.sample(CERTIFICATE_EXPIRY, &[], left);
        }
        self.render_listener_certificates(&mut page, now);
        self.render_key_sets(&mut page);
        self.render_limits(&mut page);
    }

    fn render_listener_certificates(&self, page: &mut Page<'_>, now: SystemTime) {
        let rows = self.listener_certificates();
        if rows.is_empty() {
            return;
        }
        let name = LISTENER_CERTIFICATE_EXPIRY;
        page.family(name, Kind::Gauge, help(name));
        for row in &rows {
            if let Some(not_after) = row.not_after {
                let left = seconds_until(not_after, now);
                page.sample(name, &[("listener", &*row.listener)], left);
            }
        }
        let name = LISTENER_CERTIFICATE_FAILING;
        page.family(name, Kind::Gauge, help(name));
        for row in &rows {
            let failing = u8::from(row.problem.is_some());
            page.sample(name, &[("listener", &*row.listener)], failing);
        }
    }

    fn render_key_sets(&self, page: &mut Page<'_>) {
        let rows = self.key_sets();
        if rows.is_empty() {
            return;
        }
        page.family(KEY_SET_KEYS, Kind::Gauge, help(KEY_SET_KEYS));
        for row in &rows {
            page.sample(KEY_SET_KEYS, &[("authn", &*row.authn)], row.keys);
        }
        page.family(KEY_SET_FAILURES, Kind::Gauge, help(KEY_SET_FAILURES));
        for row in &rows {
            page.sample(KEY_SET_FAILURES, &[("authn", &*row.authn)], row.failures);
        }
        page.family(KEY_SET_AGE, Kind::Gauge, help(KEY_SET_AGE));
        for row in &rows {
            if let Some(age) = row.age {
                page.sample(KEY_SET_AGE, &[("authn", &*row.authn)], age.as_secs());
            }
        }
    }

    fn render_limits(&self, page: &mut Page<'_>) {
        let rows = self.limits();
        if rows.is_empty() {
            return;
        }
        page.family(LIMIT_KEYS, Kind::Gauge, help(LIMIT_KEYS));
        for row in &rows {
            page.sample(LIMIT_KEYS, &[("limit", &*row.limit)], row.keys);
        }
        let name = LIMIT_KEYS_FORGOTTEN;
        page.family(name, Kind::Counter, help(name));
        for row in &rows {
            page.sample(name, &[("limit", &*row.limit)], row.forgotten);
        }
    }

    fn render_services(&self, page: &mut Page<'_>) {
        let rows = self.services();
        if rows.is_empty() {
            return;
        }
        let mut family = |name: &str, kind, value: fn(&ServiceRow) -> u64| {
            page.family(name, kind, help(name));
            for row in &rows {
                page.sample(name, &[("service", &*row.service)], value(row));
            }
        };
        family(SERVICE_AVAILABLE, Kind::Gauge, |row| row.available as u64);
        family(SERVICE_PANIC, Kind::Gauge, |row| row.panicking.into());
        family(SERVICE_PANICS, Kind::Counter, |row| row.panics);
        family(SERVICE_PANIC_PICKS, Kind::Counter, |row| row.panic_picks);
        family(SERVICE_IN_FLIGHT, Kind::Gauge, |row| row.in_flight);
        family(SERVICE_WAITING, Kind::Gauge, |row| row.waiting);
        let breakers: Vec<_> = rows
            .iter()
            .filter_map(|row| row.breaker.map(|breaker| (&*row.service, breaker)))
            .collect();
        if !breakers.is_empty() {
            page.family(BREAKER_STATE, Kind::Gauge, help(BREAKER_STATE));
            for (service, (state, _)) in &breakers {
                page.sample(BREAKER_STATE, &[("service", service), ("state", state)], 1);
            }
            page.family(BREAKER_OPENINGS, Kind::Counter, help(BREAKER_OPENINGS));
            for (service, (_, openings)) in &breakers {
                page.sample(BREAKER_OPENINGS, &[("service", service)], openings);
            }
        }
        if rows.iter().any(|row| row.sessions.is_some()) {
            page.family(SESSIONS, Kind::Counter, help(SESSIONS));
            for row in &rows {
                for (outcome, count) in row.sessions.iter().flatten() {
                    let labels = [("service", &*row.service), ("outcome", outcome)];
                    page.sample(SESSIONS, &labels, count);
                }
            }
        }
        page.family(HEALTH_PROBES, Kind::Counter, help(HEALTH_PROBES));
        for row in rows.iter().filter(|row| row.is_probed) {
            for (result, count) in [("passed", row.probes_passed), ("failed", row.probes_failed)] {
                let labels = [("service", &*row.service), ("result", result)];
                page.sample(HEALTH_PROBES, &labels, count);
            }
        }
    }

    fn render_permits(&self, page: &mut Page<'_>, now: SystemTime) {
        let permits = self.permits();
        if permits.is_empty() {
            return;
        }
        page.family(PLAINTEXT_PERMITTED, Kind::Gauge, help(PLAINTEXT_PERMITTED));
        for permit in permits {
            let port = permit.port.to_string();
            let left = seconds_until(permit.until, now);
            page.sample(PLAINTEXT_PERMITTED, &[("port", port.as_str())], left);
        }
    }

    fn render_endpoints(&self, page: &mut Page<'_>) {
        let rows: Vec<_> = self
            .endpoints()
            .into_iter()
            .map(|row| (row.address.to_string(), row))
            .collect();
        page.family(ENDPOINT_STATE, Kind::Gauge, help(ENDPOINT_STATE));
        for (address, row) in &rows {
            let labels = [
                ("service", &*row.service),
                ("endpoint", address.as_str()),
                ("state", row.state.as_str()),
            ];
            page.sample(ENDPOINT_STATE, &labels, 1);
        }
        page.family(ENDPOINT_IN_FLIGHT, Kind::Gauge, help(ENDPOINT_IN_FLIGHT));
        for (address, row) in &rows {
            let labels = [("service", &*row.service), ("endpoint", address.as_str())];
            page.sample(ENDPOINT_IN_FLIGHT, &labels, row.in_flight);
        }
        page.family(ENDPOINT_EJECTIONS, Kind::Counter, help(ENDPOINT_EJECTIONS));
        for (address, row) in &rows {
            let labels = [("service", &*row.service), ("endpoint", address.as_str())];
            page.sample(ENDPOINT_EJECTIONS, &labels, row.ejections);
        }
        let sources = self.sources();
        page.family(DISCOVERY_ENDPOINTS, Kind::Gauge, help(DISCOVERY_ENDPOINTS));
        for row in &sources {
            page.sample(
                DISCOVERY_ENDPOINTS,
                &[("service", &row.service)],
                row.endpoints,
            );
        }
        page.family(DISCOVERY_FAILING, Kind::Gauge, help(DISCOVERY_FAILING));
        for row in &sources {
            let failing = u8::from(row.stale || row.error.is_some());
            page.sample(DISCOVERY_FAILING, &[("service", &row.service)], failing);
        }
    }
}

/// One edge's latencies, under the name of this process's or the mesh's metric.
pub fn edge_latency(page: &mut Page<'_>, name: &str, key: &EdgeKey, totals: &Totals) {
    let labels = [
        ("source", &*key.source),
        ("destination", &*key.destination),
        ("direction", key.direction.as_str()),
        ("mtls", flag(key.mtls)),
    ];
    page.latency(name, &labels, totals);
}

/// Seconds until `then`, negative when it has passed.
pub fn seconds_until(then: SystemTime, now: SystemTime) -> f64 {
    match then.duration_since(now) {
        Ok(left) => left.as_secs_f64(),
        Err(past) => -past.duration().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::foreign::{End, Foreign, Foreigners, MAX_PEERS, Peer, Sighting};
    use crate::observe::{
        CertificateRow, Direction, EndpointRow, EndpointState, HandshakeFailure, KeySetRow,
        LimitRow, ListenerCertificateRow,
    };
    use metrics_exporter_prometheus::PrometheusBuilder;
    use std::time::Duration;

    /// The page as Prometheus sees it.
    fn page(registry: &Registry, now: SystemTime) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || registry.publish());
        let mut page = recorder.handle().render();
        registry.render(&mut page, now);
        page
    }

    fn busy() -> Arc<Registry> {
        let registry = Registry::new();
        let edge = registry.edge(EdgeKey {
            source: Arc::from("storefront"),
            destination: Arc::from("orders"),
            direction: Direction::Outbound,
            mtls: true,
        });
        edge.record(Some(200), Duration::from_millis(3));
        edge.record(Some(503), Duration::from_millis(30));
        edge.answered(Reason::NoEndpoints);
        edge.retried();
        edge.add_bytes(10, 20);
        let route = registry.route(RouteKey {
            listener: Arc::from("public"),
            route: Arc::from("orders"),
            service: Arc::from("orders"),
        });
        route.record(Some(401), Duration::from_micros(50));
        registry.answers().answered(Reason::TokenMissing);
        let connections = registry.connections(&Arc::from("public"));
        connections.handshake_failed(HandshakeFailure::Expired);
        connections.parse_error();
        connections.unread();
        drop(connections.accepted());
        registry.endpoints_from(Box::new(|| {
            vec![EndpointRow {
                service: Arc::from("orders"),
                address: "127.0.1.1:15008".parse().unwrap(),
                state: EndpointState::Ejected,
                health: Some("failing"),
                failure: Some(Arc::from("answered 500")),
                ejections: 3,
                in_flight: 2,
            }]
        }));
        registry.services_from(Box::new(|| {
            let row = |service: &str, is_probed| ServiceRow {
                service: Arc::from(service),
                endpoints: 3,
                available: 1,
                panicking: true,
                panics: 2,
                panic_picks: 7,
                is_probed,
                probes_passed: 5,
                probes_failed: 6,
                sessions: is_probed.then_some([
                    ("new", 7),
                    ("kept", 8),
                    ("moved", 9),
                    ("unreadable", 10),
                ]),
                in_flight: 3,
                waiting: 1,
                breaker: is_probed.then_some(("open", 2)),
            };
            vec![row("orders", true), row("stock", false)]
        }));
        registry.certificate_from(Box::new(|| {
            Some(CertificateRow {
                spiffe_id: Arc::from("spiffe://shop.internal/service/storefront"),
                not_before: SystemTime::UNIX_EPOCH,
                not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(3_600),
                serial: Arc::from("01"),
                renewals: 4,
                renewal_failures: 1,
            })
        }));
        registry.key_sets_from(Box::new(|| {
            let row = |authn: &str, age| KeySetRow {
                authn: Arc::from(authn),
                keys: 2,
                failures: 3,
                age,
            };
            let age = Duration::from_millis(90_500);
            vec![row("users", Some(age)), row("away", None)]
        }));
        registry.limits_from(Box::new(|| {
            vec![LimitRow {
                limit: Arc::from("few"),
                keys: 5,
                forgotten: 6,
            }]
        }));
        registry.listener_certificates_from(Box::new(|| {
            vec![ListenerCertificateRow {
                listener: Arc::from("public"),
                not_after: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(700)),
                problem: Some(Arc::from("site.key is gone")),
            }]
        }));
        registry
    }

    #[test]
    fn foreign_peers_are_counted_by_service_direction_and_kind() {
        let registry = Registry::new();
        let foreigners = Arc::new(Foreigners::default());
        let shown = Arc::clone(&foreigners);
        registry.foreign_from(Box::new(move || shown.snapshot()));
        let service = Arc::from("orders");
        for n in 0..MAX_PEERS + 7 {
            let address = std::net::Ipv4Addr::from_bits(n as u32);
            let sighting = Sighting {
                end: End::Inbound,
                kind: Foreign::Expired,
                service: &service,
                peer: Peer::from_address(address.into()),
                address: Some(address.into()),
                port: Some(15_008),
                identity: Some("spiffe://x"),
                until: None,
            };
            foreigners.saw(&sighting, SystemTime::UNIX_EPOCH);
        }
        let page = page(&registry, SystemTime::UNIX_EPOCH);
        let lines: Vec<_> = page
            .lines()
            .filter(|line| line.starts_with("weft_foreign"))
            .collect();
        let count = MAX_PEERS + 7;
        let series = format!(
            "weft_foreign_peers_total{{service=\"orders\",direction=\"inbound\",kind=\"expired\"}} {count}"
        );
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines.contains(&series.as_str()), "{lines:?}");
        assert!(lines.contains(&"weft_foreign_peers_left_out_total 7"));
    }

    #[test]
    fn everything_counted_is_on_the_page() {
        let page = page(&busy(), SystemTime::UNIX_EPOCH + Duration::from_secs(600));
        let edge =
            "source=\"storefront\",destination=\"orders\",direction=\"outbound\",mtls=\"true\"";
        let route = "listener=\"public\",route=\"orders\",service=\"orders\"";
        let endpoint = "service=\"orders\",endpoint=\"127.0.1.1:15008\"";
        for line in [
            format!("weft_requests_total{{{edge},class=\"2xx\"}} 1"),
            format!("weft_requests_total{{{edge},class=\"5xx\"}} 1"),
            format!("weft_requests_total{{{edge},class=\"none\"}} 0"),
            format!("weft_retries_total{{{edge}}} 1"),
            format!("weft_request_bytes_total{{{edge}}} 10"),
            format!("weft_response_bytes_total{{{edge}}} 20"),
            format!("weft_requests_in_flight{{{edge}}} 0"),
            format!("weft_edge_answers_total{{{edge},reason=\"no_endpoints\"}} 1"),
            format!("weft_request_duration_seconds_bucket{{{edge},le=\"0.0025\"}} 0"),
            format!("weft_request_duration_seconds_bucket{{{edge},le=\"0.005\"}} 1"),
            format!("weft_request_duration_seconds_sum{{{edge}}} 0.033"),
            format!("weft_request_duration_seconds_count{{{edge}}} 2"),
            format!("weft_gateway_requests_total{{{route},class=\"4xx\"}} 1"),
            format!("weft_gateway_request_duration_seconds_count{{{route}}} 1"),
            "weft_answers_total{reason=\"token_missing\"} 1".into(),
            "weft_connections_accepted_total{listener=\"public\"} 1".into(),
            "weft_connections_active{listener=\"public\"} 0".into(),
            "weft_parse_errors_total{listener=\"public\"} 1".into(),
            "weft_readers_given_up_total{listener=\"public\"} 1".into(),
            "weft_tls_handshake_failures_total{listener=\"public\",cause=\"expired\"} 1".into(),
            format!("weft_endpoint_state{{{endpoint},state=\"ejected\"}} 1"),
            format!("weft_endpoint_ejections_total{{{endpoint}}} 3"),
            format!("weft_endpoint_in_flight{{{endpoint}}} 2"),
            "weft_service_endpoints_available{service=\"orders\"} 1".into(),
            "weft_service_panic{service=\"orders\"} 1".into(),
            "weft_service_panics_total{service=\"stock\"} 2".into(),
            "weft_service_panic_picks_total{service=\"stock\"} 7".into(),
            "weft_sessions_total{service=\"orders\",outcome=\"moved\"} 9".into(),
            "weft_health_probes_total{service=\"orders\",result=\"passed\"} 5".into(),
            "weft_health_probes_total{service=\"orders\",result=\"failed\"} 6".into(),
            "weft_certificate_expiry_seconds 3000".into(),
            "weft_certificate_renewals_total 4".into(),
            "weft_certificate_renewal_failures_total 1".into(),
            "weft_access_log_dropped_total 0".into(),
            "weft_key_set_keys{authn=\"users\"} 2".into(),
            "weft_key_set_failures{authn=\"away\"} 3".into(),
            "weft_key_set_age_seconds{authn=\"users\"} 90".into(),
            "weft_limit_keys{limit=\"few\"} 5".into(),
            "weft_limit_keys_forgotten_total{limit=\"few\"} 6".into(),
            "weft_listener_certificate_expiry_seconds{listener=\"public\"} 100".into(),
            "weft_listener_certificate_failing{listener=\"public\"} 1".into(),
        ] {
            assert!(
                page.lines().any(|have| have == line),
                "no {line} in\n{page}"
            );
        }
    }

    #[test]
    fn each_family_is_there_once_and_is_described() {
        let page = page(&busy(), SystemTime::UNIX_EPOCH);
        let mut seen = std::collections::HashSet::new();
        for line in page.lines().filter(|line| line.starts_with("# TYPE ")) {
            let mut words = line.split(' ').skip(2);
            let (name, kind) = (words.next().unwrap(), words.next().unwrap());
            assert!(seen.insert(name.to_owned()), "{name} twice");
            let entry = ALL.iter().find(|entry| entry.1 == name);
            assert_eq!(entry.map(|entry| entry.0), Some(kind), "{name}");
            let help = format!("# HELP {name} ");
            assert!(page.contains(&help), "no help for {name}");
        }
        assert!(seen.len() > 20, "{seen:?}");
    }

    #[test]
    fn names_follow_their_kind() {
        for (kind, name, help) in ALL {
            assert!(name.starts_with("weft_"), "{name}");
            assert_eq!(*kind == "counter", name.ends_with("_total"), "{name}");
            assert!(help.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn an_ended_certificate_has_a_negative_rest() {
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(10);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(25);
        assert_eq!(seconds_until(then, now), -15.0);
    }
}
