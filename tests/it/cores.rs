//! A process has one thread with a runtime of its own for each core that it may use, or as many as it is told.
#![allow(clippy::unwrap_used)]

use crate::alone::{Host, IDENTITY, Running};
use crate::harness::certs::Authority;

/// The names of a process's threads that carry exchanges, in order.
fn cores(running: &Running) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", running.id())).unwrap();
    // Others of its threads come and go.
    let names = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    let mut names: Vec<String> = names
        .map(|name| name.trim().to_owned())
        .filter(|name| name.starts_with("core-"))
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn there_is_a_runtime_for_each_core_or_as_many_as_are_asked_for() {
    let mesh = Authority::new();
    let host = Host::new();
    host.identify(&mesh, "orders");
    host.configure(&format!(
        "{IDENTITY}services:\n  orders: {{ port: {} }}\n",
        host.app().port()
    ));
    let sidecar = ["sidecar", "--service", "orders"];
    let mut three = host.start(&[&sidecar[..], &["--workers", "3"]].concat(), &[]);
    three.ready().await;
    assert_eq!(cores(&three), ["core-0", "core-1", "core-2"]);
    three.kill().await;
    let mut usual = host.start(&sidecar, &[]);
    usual.ready().await;
    // The test and the process may use the same ones.
    let machine = std::thread::available_parallelism().unwrap().get();
    assert_eq!(cores(&usual).len(), machine);
}
