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

/// The kernel would share the port between all who ask for that, of one user, without a word.
#[tokio::test]
async fn a_second_process_gets_no_part_of_the_connections_of_the_first() {
    let host = Host::new();
    let listener = format!("{{ name: public, address: \"{}\" }}", host.public());
    let file = format!("ingress: {{ listeners: [ {listener} ] }}\n");
    host.configure(&file);
    let gateway = ["ingress", "--workers", "2"];
    let mut first = host.start(&gateway, &[]);
    first.ready().await;
    let beside = host.beside();
    beside.configure(&file);
    let mut second = beside.start(&gateway, &[]);
    assert_eq!(second.ended().await.code(), Some(1));
    let said = second.log_text();
    assert!(
        said.contains(&host.public().to_string()) && said.contains("Address already in use"),
        "{said}"
    );
    first.assert_alive().await;
    // One that has drained is out of the way.
    first.terminate();
    assert_eq!(first.ended().await.code(), Some(0));
    let mut next = beside.start(&gateway, &[]);
    next.ready().await;
}
