//! `weft run` starts the app when the sidecar is ready and not before, passes signals on, keeps the way out open until the app
//! has ended, and ends as the app did; also as the first process of a container.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;

use rustix::process::Signal;
use tokio::sync::Notify;

use crate::harness::process::run;
use crate::harness::told::{is_root, left_out};
use crate::harness::{Behaviour, Mesh, Origin, Process, Service, Wire, eventually, soon};

/// What the scripts here begin with: `call PATH` asks `orders` by the sidecar, `idle` waits for signals.
const TOOLS: &str = r#"
call() {
    local at=${http_proxy#http://}
    exec 3<>"/dev/tcp/${at%:*}/${at##*:}" || { echo "app: no sidecar"; return; }
    printf 'GET %s HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n' "$1" >&3
    read -r line <&3 && echo "app: $1 ${line%$'\r'}"
    exec 3<&-
}
idle() { while :; do sleep 0.05; done; }
"#;

/// `orders` with a sidecar, and a service `shop` that tests start by `weft run`.
async fn shop() -> Mesh {
    Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("shop").replicas(0))
        .route("/shop/*", "shop")
        .with("drain: { delay: 0s, timeout: 20s }")
        .start()
        .await
}

/// `weft run FLAGS -- bash -c SCRIPT`.
async fn bash(mesh: &Mesh, flags: &[&str], script: &str) -> Process {
    let script = format!("{TOOLS}{script}");
    let words = [flags, &["--", "bash", "-c", &script]].concat();
    mesh.run(&[], "shop", &words).await
}

#[tokio::test(flavor = "multi_thread")]
async fn its_exit_code_is_the_apps() {
    let mesh = shop().await;
    for (command, code) in [
        (&["true"][..], 0),
        (&["bash", "-c", "exit 7"], 7),
        (&["bash", "-c", "kill -KILL $$"], 137),
        (&["bash", "-c", "kill -TERM $$"], 143),
        (&["weft-surely-not-there"], 127),
        (&["/etc/passwd"], 126),
    ] {
        let words = [&["--"], command].concat();
        let ended = mesh.run(&[], "shop", &words).await.end().await;
        assert_eq!(ended.code(), Some(code), "{command:?}: {ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_does_without_huge_pages_and_the_app_need_not() {
    let ours = std::fs::read_to_string("/proc/self/status").unwrap();
    if !ours.contains("THP_enabled:\t1") {
        left_out("this kernel has no huge pages, or they were forbidden");
        return;
    }
    let mesh = shop().await;
    let script = r#"
        huge() { grep -q "THP_enabled:.*$1" "/proc/$2/status"; }
        huge 1 $$ && echo 'app: may have them'
        until huge 0 $PPID; do sleep 0.05; done
    "#;
    let mut process = bash(&mesh, &[], script).await;
    assert!(process.end().await.success());
    process.says(&["app: may have them"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_app_starts_when_there_is_an_identity_and_its_first_call_is_answered() {
    let mut mesh = Mesh::new()
        .service(Service::new("orders"))
        .service(Service::new("shop").replicas(0))
        .ca("")
        .without_ingress()
        .start()
        .await;
    mesh.ca.as_mut().unwrap().kill();
    let script = r#"echo "app: token ${WEFT_JOIN_TOKEN-none} for $NAME"; call /first"#;
    // What the app is given is what we were given, but for what is ours.
    let mut process = mesh
        .run(
            &["env", "NAME=shop"],
            "shop",
            &[
                "--http-proxy",
                "--",
                "bash",
                "-c",
                &format!("{TOOLS}{script}"),
            ],
        )
        .await;
    process.says(&["no certificate yet"]).await;
    let admin = SocketAddr::new(mesh.run_host("shop"), mesh.ports.admin()).to_string();
    let (status, _, errors) = run(&["health", "--address", &admin]).await;
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains("no certificate yet"), "{errors}");
    let (status, output, _) = run(&["health", "--live", "--address", &admin]).await;
    assert!(status.success() && output.contains("live"), "{output}");
    assert!(!process.log().contains("app:"), "{}", process.log());
    mesh.start_ca().await;
    assert!(process.end().await.success());
    process.says(&["app: token none for shop"]).await;
    process.says(&["app: /first HTTP/1.1 200"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_not_ready_in_time_starts_no_app_and_says_why() {
    let mut mesh = Mesh::new()
        .service(Service::new("shop").replicas(0))
        .ca("")
        .without_ingress()
        .start()
        .await;
    mesh.ca.as_mut().unwrap().kill();
    let mut process = bash(&mesh, &["--ready-timeout", "300ms"], "echo app: started").await;
    assert_eq!(process.end().await.code(), Some(125));
    process
        .says(&[
            "not ready",
            "identity: no certificate yet",
            "--ready-timeout",
        ])
        .await;
    assert!(!process.log().contains("app:"), "{}", process.log());
    // A port that is taken is no matter of time.
    let taken = SocketAddr::new(mesh.run_host("shop"), mesh.ports.outbound());
    let _taken = std::net::TcpListener::bind(taken).unwrap();
    mesh.start_ca().await;
    let mut process = bash(&mesh, &[], "echo app: started").await;
    assert_eq!(process.end().await.code(), Some(125));
    assert!(!process.log().contains("app:"), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_the_app() {
    let mesh = shop().await;
    let script = "for s in HUP QUIT USR1 USR2 WINCH; do trap \"echo app: got $s\" $s; done
        trap 'echo app: got INT; exit 9' INT; echo app: up; idle";
    let mut process = bash(&mesh, &[], script).await;
    process.says(&["app: up"]).await;
    for (signal, name) in [
        (Signal::HUP, "HUP"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::WINCH, "WINCH"),
    ] {
        process.signal(signal);
        process.says(&[&format!("app: got {name}")]).await;
    }
    process.signal(Signal::INT);
    assert_eq!(process.end().await.code(), Some(9));
    process.says(&["app: got INT"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_in_ends_before_the_app_is_told_and_the_way_out_after_it() {
    let mesh = shop().await;
    let host = mesh.run_host("shop");
    let origin = Origin::start("shop", SocketAddr::new(host, mesh.ports.app())).await;
    let go_on = Arc::new(Notify::new());
    let notify = Arc::clone(&go_on);
    origin.does(Behaviour::script(move |mut wire| {
        let go_on = Arc::clone(&notify);
        async move {
            while let Some(head) = wire.head().await {
                wire.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
                    .await;
                if head.word(1) == "/shop/slow" {
                    go_on.notified().await;
                }
                wire.write("-last").await;
            }
        }
    }));
    // Its work on the way out takes two calls, one after the other, each on a connection of its own.
    let script = "trap 'echo app: told; call /one; call /two; exit 3' TERM; echo app: up; idle";
    let mut process = bash(&mesh, &["--http-proxy"], script).await;
    process.says(&["app: up"]).await;
    eventually("the ingress knows where it is", async || {
        (mesh.get("/shop/fast").await.code() == 200).then_some(())
    })
    .await;
    let mut client = Wire::connect(mesh.public()).await;
    client
        .write("GET /shop/slow HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await;
    assert_eq!(soon("a head", client.head()).await.unwrap().status(), 200);

    process.terminate();
    process.says(&["draining", "SIGTERM"]).await;
    let inbound = SocketAddr::new(host, mesh.ports.inbound());
    eventually("the way in is closed", async || {
        tokio::net::TcpStream::connect(inbound).await.err()
    })
    .await;
    assert!(!process.log().contains("app: told"), "{}", process.log());
    go_on.notify_one();
    soon("the rest", async {
        while !client.read.ends_with(b"first-last") {
            assert!(client.more().await.unwrap(), "{:?}", client.read);
        }
    })
    .await;
    assert_eq!(process.end().await.code(), Some(3));
    for line in [
        "app: told",
        "app: /one HTTP/1.1 200",
        "app: /two HTTP/1.1 200",
    ] {
        process.says(&[line]).await;
    }
    assert_eq!(mesh.origin("orders", 0).count("GET"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_does_not_listen_is_killed_after_the_grace() {
    let mesh = shop().await;
    let script = "trap '' TERM; echo app: up; idle";
    let mut process = bash(&mesh, &["--grace", "300ms"], script).await;
    process.says(&["app: up"]).await;
    process.terminate();
    assert_eq!(process.end().await.code(), Some(137));
    process.says(&["did not end in time", "killed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_both_at_once() {
    let mesh = shop().await;
    let script = "trap '' TERM INT; echo app: up $$; idle";
    let mut process = bash(&mesh, &["--grace", "1h"], script).await;
    let line = process.says(&["app: up"]).await;
    let pid: i32 = line.rsplit(' ').next().unwrap().parse().unwrap();
    process.terminate();
    process.says(&["draining", "SIGTERM"]).await;
    process.signal(Signal::INT);
    assert_eq!(process.end().await.code(), Some(130));
    eventually("the app is gone", async || {
        (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    })
    .await;
}

/// The first process of a namespace of its own, as in a container.
const CONTAINER: [&str; 4] = ["unshare", "--pid", "--fork", "--mount-proc"];

#[tokio::test(flavor = "multi_thread")]
async fn the_first_process_buries_orphans_and_takes_the_rest_with_it() {
    if !is_root("a namespace of processes") {
        return;
    }
    let mesh = shop().await;
    // Twenty orphans that end, of whom no corpse is left, and one that would stay.
    let stays = format!("1{}", mesh.ports.spare());
    let script = format!(
        "test $PPID = 1 || exit 20
        (sleep {stays} &)
        for i in $(seq 20); do (sleep 0.05 &); done
        until [ $(pgrep -c -x sleep) = 1 ] && ! grep -l '^State:.Z' /proc/[0-9]*/status; do
            [ $((n += 1)) -lt 200 ] || exit 21
            read -rt 0.05 _ <> <(:)
        done 2>/dev/null
        exit 5"
    );
    let words = ["--", "bash", "-c", &script];
    let mut process = mesh.run(&CONTAINER, "shop", &words).await;
    let ended = process.end().await;
    assert_eq!(ended.code(), Some(5), "{ended}: {}", process.log());
    assert!(
        !runs(&["sleep", &stays]),
        "a job that ends, ends everything"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_process_is_told_to_stop_by_a_signal() {
    if !is_root("a namespace of processes") {
        return;
    }
    let mesh = shop().await;
    let script = "trap 'exit 4' TERM; echo app: up; while :; do sleep 0.05; done";
    let words = ["--", "bash", "-c", script];
    let mut process = mesh.run(&CONTAINER, "shop", &words).await;
    process.says(&["app: up"]).await;
    let children = format!("/proc/{0}/task/{0}/children", process.id());
    let first = std::fs::read_to_string(children).unwrap();
    let first = rustix::process::Pid::from_raw(first.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(first, Signal::TERM).unwrap();
    let ended = process.end().await;
    assert_eq!((ended.code(), ended.signal()), (Some(4), None));
}

/// Whether a process with these words is running on this machine.
fn runs(words: &[&str]) -> bool {
    let wanted: String = words.iter().map(|word| format!("{word}\0")).collect();
    std::fs::read_dir("/proc").unwrap().any(|entry| {
        let file = entry.unwrap().path().join("cmdline");
        std::fs::read(file).is_ok_and(|line| line == wanted.as_bytes())
    })
}
