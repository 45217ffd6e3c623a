//! nginx on both sides of the mesh: as an app that calls another by its sidecar, and as the one that is called.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use http::Request;

use crate::harness::client::whole;
use crate::harness::tools::{Foreign, program};
use crate::harness::{Client, Mesh, Service, eventually, soon};

/// A server of one process that leaves nothing outside of its directory.
fn configuration(directory: &Path, listen: SocketAddr, more: &str, server: &str) -> String {
    let place = directory.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {place}/{name};\n"))
        .collect();
    format!(
        "daemon off;\nmaster_process off;\npid {place}/pid;\nerror_log stderr;\nevents {{ }}\nhttp {{\n{temporary}\
         log_format seen '$connection $request_method $status $http_host';\naccess_log {place}/access.log seen;\n\
         client_max_body_size 8m;\n{more}\nserver {{\nlisten {listen};\n{server}\n}}\n}}\n"
    )
}

async fn start(
    nginx: &Path,
    directory: &Path,
    listen: SocketAddr,
    more: &str,
    server: &str,
) -> Foreign {
    let file = directory.join("nginx.conf");
    std::fs::write(&file, configuration(directory, listen, more, server)).unwrap();
    let arguments = [
        "-e".to_owned(),
        "stderr".to_owned(),
        "-p".to_owned(),
        directory.display().to_string(),
        "-c".to_owned(),
        file.display().to_string(),
    ];
    Foreign::start(directory, nginx, &arguments)
        .listens(listen)
        .await
}

/// The connections on which requests came, and how many came.
fn seen(directory: &Path) -> (usize, usize) {
    let log = std::fs::read_to_string(directory.join("access.log")).unwrap();
    let connections: BTreeSet<_> = log
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    (connections.len(), log.lines().count())
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_calls_nginx_by_two_sidecars_on_connections_that_are_kept() {
    let Some(nginx) = program("nginx", "Debian's package nginx-light") else {
        return;
    };
    let mesh = Mesh::new()
        .service(Service::new("orders").without_apps())
        .service(Service::new("storefront").without_apps())
        .route("/orders/*", "storefront")
        .start()
        .await;
    let files = tempfile::tempdir().unwrap();
    let [behind, front] = ["behind", "front"].map(|name| {
        let directory = files.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        directory
    });
    let text = "a line of text that is worth to be made smaller\n".repeat(4_000);
    std::fs::create_dir(behind.join("orders")).unwrap();
    std::fs::write(behind.join("orders/list"), &text).unwrap();
    let app = |service: &str| SocketAddr::new(mesh.replica(service, 0).host, mesh.ports.app());
    // Compressed, an answer has no length that is known before: it comes in chunks.
    let server = format!(
        "root {};\ndefault_type text/plain;\ngzip on;\ngzip_proxied any;\ngzip_types text/plain;\n\
         location = /orders/echo {{ client_body_buffer_size 4m; return 200 \"$request_method $http_host\"; }}",
        behind.display()
    );
    let _behind = start(&nginx, &behind, app("orders"), "", &server).await;
    let upstream = format!(
        "upstream mesh {{ server {}; keepalive 4; }}",
        mesh.outbound("storefront", 0)
    );
    let server = "location / { proxy_pass http://mesh; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
                  proxy_set_header Host orders; proxy_request_buffering off; }";
    let _front = start(&nginx, &front, app("storefront"), &upstream, server).await;

    let client = Client::http1(mesh.public()).await;
    let ask = async |method: &str, path: &str, encoding: &str, body: Vec<u8>| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "shop")
            .header("accept-encoding", encoding)
            .body(whole(body))
            .unwrap();
        soon("an answer of nginx", client.send(request)).await
    };
    for _ in 0..50 {
        let plain = ask("GET", "/orders/list", "identity", vec![]).await;
        assert_eq!((plain.code(), plain.text() == text), (200, true));
        assert_eq!(
            plain.header("content-length"),
            Some(text.len().to_string().as_str())
        );
        let small = ask("GET", "/orders/list", "gzip", vec![]).await;
        assert_eq!(small.header("content-encoding"), Some("gzip"));
        assert_eq!(small.header("content-length"), None);
        assert!(small.body.starts_with(&[0x1f, 0x8b]) && small.body.len() < text.len() / 4);
    }
    let head = ask("HEAD", "/orders/list", "identity", vec![]).await;
    assert_eq!(
        head.header("content-length"),
        Some(text.len().to_string().as_str())
    );
    assert!(head.body.is_empty());
    // nginx answers before it has read a body.
    let echo = ask("POST", "/orders/echo", "identity", vec![b'x'; 2 << 20]).await;
    assert_eq!(echo.text(), "POST orders");
    let absent = ask("GET", "/orders/none", "identity", vec![]).await;
    assert_eq!((absent.code(), absent.reason()), (404, None));
    let range = Request::get("/orders/list")
        .header("host", "shop")
        .header("range", "bytes=2-5")
        .body(whole(""))
        .unwrap();
    let range = client.send(range).await;
    assert_eq!((range.code(), range.text().as_str()), (206, "line"));
    for directory in [&front, &behind] {
        // A request whose body it has not read is logged when its connection has ended.
        let connections = eventually("nginx has logged all requests", async || {
            let (connections, requests) = seen(directory);
            assert!(requests <= 104, "{requests} requests");
            (requests == 104).then_some(connections)
        })
        .await;
        // A few, because a core has its own and an unread body may cost one.
        assert!(connections <= 6, "{connections} connections");
    }
}
