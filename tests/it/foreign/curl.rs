//! curl in both versions of HTTP, by the gateway and by a sidecar.

use std::path::Path;

use crate::harness::tools::{output, program, says};
use crate::harness::{Behaviour, Mesh, Service};

const PACKAGE: &str = "Debian's package curl";
const VERSIONS: [(&str, &str); 2] = [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")];

async fn mesh() -> Mesh {
    Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("storefront"))
        .route("/orders/*", "orders")
        .tls()
        .start()
        .await
}

/// The doors, each as a URL and the host that it stands for.
fn doors(mesh: &Mesh) -> [(String, &'static str); 2] {
    [
        (mesh.url("/orders/1"), "host: shop"),
        (
            format!("http://{}/orders/1", mesh.outbound("storefront", 0)),
            "host: orders",
        ),
    ]
}

/// Where curl puts no words of its own among an answer's, and how long it may take.
const QUIET: [&str; 4] = ["-sS", "--max-time", "30", "-H"];

#[tokio::test(flavor = "multi_thread")]
async fn curl_asks_uploads_and_waits_for_100_in_both_versions_at_both_doors() {
    let Some(curl) = program("curl", PACKAGE) else {
        return;
    };
    let mesh = mesh().await;
    let upload: Vec<u8> = (0..700_000_u32).map(|at| (at % 251) as u8).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &upload).unwrap();
    let file = file.path().to_str().unwrap();
    for (url, host) in doors(&mesh) {
        for (flag, version) in VERSIONS {
            let what = format!("{url} {flag}");
            let words = |more: &[&str]| -> Vec<String> {
                let all = [&QUIET[..], &[host, flag, &url], more].concat();
                all.into_iter().map(str::to_owned).collect()
            };
            mesh.origin("orders", 0).does(Behaviour::Answer);
            let told = ["-w", "\n%{http_code} %{http_version}"];
            let said = says(&curl, &words(&told), "").await;
            assert_eq!(said, format!("orders-0\n200 {version}"), "{what}");
            let head = says(&curl, &words(&["-I"]), "").await;
            assert!(
                head.to_lowercase().contains("content-length: 8"),
                "{what}: {head}"
            );

            mesh.origin("orders", 0).does(Behaviour::Echo);
            let put = output(&curl, &words(&["-T", file]), b"").await;
            assert!(put == upload, "{what}: PUT brought {} bytes", put.len());
            // Of unknown length.
            let piped = output(&curl, &words(&["-X", "POST", "-T", "-"]), &upload).await;
            assert!(
                piped == upload,
                "{what}: POST brought {} bytes",
                piped.len()
            );
            // It would wait for longer than it may take.
            let data = format!("@{file}");
            let expect = ["-H", "Expect: 100-continue", "--expect100-timeout", "60"];
            let expect = [&expect[..], &["--data-binary", &data]].concat();
            let posted = output(&curl, &words(&expect), b"").await;
            assert!(
                posted == upload,
                "{what}: Expect brought {} bytes",
                posted.len()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_takes_the_sidecar_for_its_proxy_and_the_gateway_for_a_site() {
    let Some(curl) = program("curl", PACKAGE) else {
        return;
    };
    let mesh = mesh().await;
    let proxy = format!("http://{}", mesh.outbound("storefront", 0));
    let arguments = [
        "-sS",
        "--max-time",
        "30",
        "--proxy",
        &proxy,
        "http://orders/orders/1",
    ];
    assert_eq!(says(&curl, &arguments, "").await, "orders-0");

    let bundle = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(bundle.path(), mesh.authority.bundle()).unwrap();
    let site = mesh.secure();
    let resolve = format!("edge.test:{}:{}", site.port(), site.ip());
    let url = format!("https://edge.test:{}/orders/1", site.port());
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let arguments = [
            "-sS",
            "--max-time",
            "30",
            "--cacert",
            path(bundle.path()),
            "--resolve",
            &resolve,
            flag,
            &url,
            "-w",
            " %{http_version}",
        ];
        let said = says(&curl, &arguments, "").await;
        assert_eq!(said, format!("orders-0 {version}"));
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
