//! HTTPS at the gateway: what it speaks, whom it listens to for how long, and which host a request is for.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ALL_VERSIONS, ProtocolVersion};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::alone::{Host, Origin, PATIENCE, Running, Way, get, until};
use crate::harness::certs::{Authority, lasting, nobody};

async fn gateway(host: &Host) -> (Running, Origin) {
    Authority::new()
        .website("gateway.example")
        .write(host.directory(), "public");
    let app = Origin::fine(host.app()).await;
    host.configure(&format!(
        "services:\n  plain: {{ mesh: false, endpoints: [\"{}\"] }}\n\
         ingress:
  listeners: [ {{ name: secure, address: \"{}\", tls: {{ cert: public.pem, key: public.key }} }} ]
  routes:
    - {{ match: {{ host: api.example }}, to: plain }}
    - {{ match: {{ host: \"*.wild.example\" }}, to: plain }}
",
        host.app(),
        host.secure(),
    ));
    (host.ingress().await, app)
}

/// Shakes hands under this server name.
async fn shake(
    host: &Host,
    name: &'static str,
    versions: &[&'static rustls::SupportedProtocolVersion],
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(nobody(versions, alpn));
    let stream = TcpStream::connect(host.secure()).await?;
    connector
        .connect(ServerName::try_from(name).unwrap(), stream)
        .await
}

#[tokio::test]
async fn tls_1_2_and_1_3_with_http_2_and_1_1_whatever_the_server_name() {
    let host = Host::new();
    let (mut ingress, app) = gateway(&host).await;
    let mut asked = 0;
    for (name, versions, version) in [
        ("api.example", ALL_VERSIONS, ProtocolVersion::TLSv1_3),
        ("elsewhere.example", &[&TLS13][..], ProtocolVersion::TLSv1_3),
        ("api.example", &[&TLS12][..], ProtocolVersion::TLSv1_2),
        ("127.0.0.1", ALL_VERSIONS, ProtocolVersion::TLSv1_3),
    ] {
        for (offered, chosen) in [
            (&["h2", "http/1.1"][..], Some("h2")),
            (&["http/1.1", "h2"], Some("h2")),
            (&["http/1.1"], Some("http/1.1")),
            (&["http/1.0", "http/1.1"], Some("http/1.1")),
            (&[], None),
        ] {
            let stream = shake(&host, name, versions, offered).await.unwrap();
            let (_, session) = stream.get_ref();
            assert_eq!(session.protocol_version(), Some(version));
            assert_eq!(
                session.alpn_protocol(),
                chosen.map(str::as_bytes),
                "{offered:?}"
            );
            if chosen == Some("h2") {
                assert_eq!(http2(stream, "https://api.example/a").await, 200);
            } else {
                let way = Way::Tls(host.secure(), nobody(versions, offered));
                let reply = way.ask("GET /a", &[("host", "api.example")], "").await;
                assert_eq!(reply.status, 200);
            }
            asked += 1;
            assert_eq!(app.last().fields("x-forwarded-proto"), ["https"]);
            assert_eq!(app.last().fields("host"), ["api.example"]);
        }
    }
    assert_eq!(app.requests().len(), asked);
    ingress.assert_alive().await;
}

async fn http2(stream: TlsStream<TcpStream>, uri: &str) -> u16 {
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let driven = tokio::spawn(async move {
        let _: Result<(), h2::Error> = connection.await;
    });
    let request = http::Request::get(uri).body(()).unwrap();
    let (answer, _) = sender.send_request(request, true).unwrap();
    let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
    driven.abort();
    answer.status().as_u16()
}

#[tokio::test]
async fn what_is_no_tls_and_what_never_ends_its_handshake_is_cut() {
    let host = Host::new();
    let (mut ingress, app) = gateway(&host).await;
    // Silent from its first byte, and begun but never finished: both at once, because each takes the whole time.
    let began = Instant::now();
    let silent = Way::Plain(host.secure());
    let half = silent.clone();
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.extend([7; 100]);
    let waiting = tokio::join!(silent.send(b""), half.send(&hello));
    assert!(waiting.0.unwrap_or_default().is_empty());
    assert!(waiting.1.unwrap_or_default().is_empty());
    assert!(began.elapsed().as_secs() >= 4, "they were given time");
    until("both in the metric", async || {
        (failures(&ingress, "timeout").await >= 2.0).then_some(())
    })
    .await;

    let plain = Way::Plain(host.secure());
    for bytes in [
        &b"GET / HTTP/1.1\r\nhost: api.example\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",
        b"\0\0\0\0\0\0\0\0\0\0\0\0",
    ] {
        let answer = plain.send(bytes).await.unwrap_or_default();
        assert!(
            !answer.starts_with(b"HTTP"),
            "{bytes:?} was answered: {answer:?}"
        );
    }
    until("plaintext in the metric", async || {
        (failures(&ingress, "plaintext").await >= 2.0).then_some(())
    })
    .await;
    for (versions, alpn) in [(ALL_VERSIONS, &["spdy/3"][..]), (&[&TLS12], &["h3"])] {
        assert!(
            shake(&host, "api.example", versions, alpn).await.is_err(),
            "{alpn:?}"
        );
    }
    assert_eq!(app.bytes(), 0);
    let stream = shake(&host, "api.example", ALL_VERSIONS, &["h2"])
        .await
        .unwrap();
    assert_eq!(http2(stream, "https://api.example/").await, 200);
    ingress.assert_alive().await;
}

async fn failures(ingress: &Running, cause: &str) -> f64 {
    let labels = [("listener", "secure"), ("cause", cause)];
    ingress
        .metric("weft_tls_handshake_failures_total", &labels)
        .await
}

/// One host for routing, for policy and for the endpoint: the authority of the request, whatever else names one.
#[tokio::test]
async fn the_host_is_one_and_the_authority_wins() {
    let host = Host::new();
    let (mut ingress, app) = gateway(&host).await;
    let h1 = Way::Tls(host.secure(), nobody(ALL_VERSIONS, &["http/1.1"]));
    for (line, name, seen) in [
        ("GET /", "api.example", "api.example"),
        ("GET /", "API.Example", "API.Example"),
        ("GET /", "api.example:8443", "api.example:8443"),
        ("GET /", "a.wild.example", "a.wild.example"),
        // RFC 9112 §3.2.2: the absolute form replaces the field.
        ("GET https://api.example/x", "other.example", "api.example"),
        ("GET http://api.example/x", "other.example", "api.example"),
    ] {
        let reply = h1.ask(line, &[("host", name)], "").await;
        assert_eq!(reply.status, 200, "{line} {name}");
        assert_eq!(app.last().fields("host"), [seen], "{line} {name}");
    }
    let bytes = app.bytes();
    for (line, name) in [
        ("GET /", "other.example"),
        ("GET /", "wild.example"),
        ("GET /", "api.example.evil"),
        ("GET https://other.example/x", "api.example"),
    ] {
        h1.ask(line, &[("host", name)], "")
            .await
            .refused(404, "no_route");
    }
    for hosts in [
        vec![],
        vec![("host", "api.example"), ("host", "api.example")],
        vec![("host", "api.example"), ("Host", "other.example")],
        vec![("host", "user@api.example")],
        vec![("host", "api.example/x")],
        vec![("host", "api.example:x")],
        vec![("host", "api.example, other.example")],
        vec![("host", "")],
    ] {
        h1.ask("GET /", &hosts, "")
            .await
            .refused(400, "malformed_request");
    }
    assert_eq!(app.bytes(), bytes, "something got through");

    let ask = async |authority: &str, host_field: Option<&str>| {
        let stream = shake(&host, "api.example", ALL_VERSIONS, &["h2"])
            .await
            .unwrap();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        let driven = tokio::spawn(async move {
            let _: Result<(), h2::Error> = connection.await;
        });
        let mut request =
            http::Request::get(format!("https://{authority}/")).version(http::Version::HTTP_2);
        if let Some(field) = host_field {
            request = request.header("host", field);
        }
        let (answer, _) = sender
            .send_request(request.body(()).unwrap(), true)
            .unwrap();
        let mut answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        while let Some(Ok(piece)) = answer.body_mut().data().await {
            body.extend_from_slice(&piece);
        }
        driven.abort();
        (status, String::from_utf8(body).unwrap())
    };
    assert_eq!(ask("api.example", None).await.0, 200);
    assert_eq!(ask("api.example", Some("api.example")).await.0, 200);
    assert_eq!(ask("api.example", Some("API.example")).await.0, 200);
    assert_eq!(ask("other.example", None).await.0, 404);
    let bytes = app.bytes();
    for (authority, field) in [
        ("api.example", Some("other.example")),
        ("other.example", Some("api.example")),
        ("api.example", Some("api.example:443")),
        ("user@api.example", None),
    ] {
        let (status, body) = ask(authority, field).await;
        assert_eq!(status, 400, "{authority} {field:?}");
        assert!(body.contains("\"reason\":\"malformed_request\""), "{body}");
    }
    assert_eq!(app.bytes(), bytes, "something got through");
    ingress.assert_alive().await;
}

/// The certificate that the gateway shows now.
async fn shown(host: &Host) -> Vec<u8> {
    let stream = shake(host, "api.example", ALL_VERSIONS, &["h2"])
        .await
        .unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

const LISTENER: [(&str, &str); 1] = [("listener", "secure")];

/// A certificate that was renewed on disk is shown to the next client, without a restart, a reload or a signal.
#[tokio::test]
async fn a_certificate_that_is_renewed_on_disk_is_shown_and_open_connections_live_on() {
    let host = Host::new();
    let (mut ingress, _app) = gateway(&host).await;
    let open = shake(&host, "api.example", ALL_VERSIONS, &["h2"])
        .await
        .unwrap();
    let first = shown(&host).await;
    let left = ingress
        .metric("weft_listener_certificate_expiry_seconds", &LISTENER)
        .await;
    assert!((3_000.0..=3_600.0).contains(&left), "{left}");
    Authority::new()
        .leaf_with("spiffe://unused/unused", |parameters| {
            lasting(parameters, -60, 86_400);
        })
        .write(host.directory(), "public");
    until("the new certificate", async || {
        (shown(&host).await != first).then_some(())
    })
    .await;
    let left = ingress
        .metric("weft_listener_certificate_expiry_seconds", &LISTENER)
        .await;
    assert!(left > 80_000.0, "{left}");
    assert_eq!(http2(open, "https://api.example/").await, 200);
    assert!(!ingress.log_text().contains("the new configuration"));
    ingress.assert_alive().await;
}

/// What cannot be used changes nothing: the last good certificate is shown on, and log, page and metric say why.
#[tokio::test]
async fn a_certificate_whose_files_are_broken_or_gone_is_shown_on_and_that_is_said() {
    let host = Host::new();
    let (mut ingress, _app) = gateway(&host).await;
    let first = shown(&host).await;
    let failing = async |ingress: &Running| {
        ingress
            .metric("weft_listener_certificate_failing", &LISTENER)
            .await
    };
    assert_eq!(failing(&ingress).await, 0.0);
    let key = std::fs::read_to_string(host.directory().join("public.key")).unwrap();
    let other = Authority::new().website("gateway.example").key_pem();
    for (broken, words) in [
        (Some(other.as_str()), "do not go together"),
        (Some("-----BEGIN"), "public.key"),
        (None, "No such file"),
    ] {
        match broken {
            Some(text) => host.write("public.key", text),
            None => std::fs::remove_file(host.directory().join("public.key")).unwrap(),
        }
        ingress
            .logged(&[
                ("level", "WARN"),
                ("problem", words),
                ("listener", "secure"),
            ])
            .await;
        assert_eq!(failing(&ingress).await, 1.0, "{words}");
        let page = get(host.admin(), "/certs").await.unwrap().text();
        assert!(page.contains(words), "{page}");
        assert_eq!(shown(&host).await, first, "{words}");
    }
    // A reload that needs the file is refused, and says which.
    let text = std::fs::read_to_string(host.directory().join("weft.yaml")).unwrap();
    host.write("weft.yaml", &format!("{text}# changed\n"));
    until("the refusal", async || {
        let refused = ingress.metric("weft_config_refused", &[]).await;
        (refused > 0.5).then_some(())
    })
    .await;
    let page = get(host.admin(), "/config").await.unwrap().text();
    assert!(page.contains("public.key cannot be read"), "{page}");
    assert_eq!(shown(&host).await, first);

    host.write("public.key", &key);
    until("all is well again", async || {
        (failing(&ingress).await < 0.5).then_some(())
    })
    .await;
    // And what was refused for it is taken, though nobody has touched it since.
    until("the new configuration", async || {
        let refused = ingress.metric("weft_config_refused", &[]).await;
        (refused < 0.5).then_some(())
    })
    .await;
    assert_eq!(ingress.metric("weft_config_generation", &[]).await, 2.0);
    assert_eq!(shown(&host).await, first);
    ingress.assert_alive().await;
}
