//! gRPC's own Python library and the library `websockets`, as clients and servers of two sidecars.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::harness::tools::{Foreign, python, says};
use crate::harness::{Mesh, Service};

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/foreign")
        .join(name)
}

/// An app of this script in the mesh, and a shop that calls it.
async fn scene(python: &Path, app: Service, name: &str) -> (Mesh, Foreign, tempfile::TempDir) {
    let mesh = Mesh::new()
        .service(app.without_apps())
        .service(Service::new("shop"))
        .route("/chat", "app")
        .route("/test.App/*", "app")
        .tls()
        .start()
        .await;
    let directory = tempfile::tempdir().unwrap();
    let at = SocketAddr::new(mesh.replica("app", 0).host, mesh.ports.app());
    let arguments = [script(name).display().to_string(), at.to_string()];
    let server = Foreign::start(directory.path(), python, &arguments)
        .listens(at)
        .await;
    (mesh, server, directory)
}

/// Runs a script that makes its own assertions, and ends with a word when they hold.
async fn holds(python: &Path, name: &str, arguments: &[String]) {
    let script = script(name).display().to_string();
    let words = [&[script], arguments].concat();
    assert_eq!(says(python, &words, "").await, "good\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_calls_grpcio_in_all_four_kinds_by_a_sidecar_and_by_the_gateway() {
    let Some(python) = python("grpc") else {
        return;
    };
    let app = Service::new("app").with("protocol: grpc");
    let (mesh, _server, _directory) = scene(&python, app, "grpc_server.py").await;
    let roots = mesh.directory("roots.pem");
    std::fs::write(&roots, mesh.authority.bundle()).unwrap();
    for (door, name, roots) in [
        (mesh.outbound("shop", 0), "app", None),
        (mesh.public(), "shop", None),
        (mesh.secure(), "edge.test", Some(roots)),
    ] {
        let mut words = vec![door.to_string(), name.to_owned()];
        words.extend(roots.map(|roots| roots.display().to_string()));
        holds(&python, "grpc_client.py", &words).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_talks_to_websockets_by_a_sidecar_and_by_the_gateway() {
    let Some(python) = python("websockets") else {
        return;
    };
    let (mesh, _server, _directory) =
        scene(&python, Service::new("app"), "websocket_server.py").await;
    for (door, host) in [(mesh.outbound("shop", 0), "app"), (mesh.public(), "shop")] {
        holds(
            &python,
            "websocket_client.py",
            &[door.to_string(), host.to_owned()],
        )
        .await;
    }
}
