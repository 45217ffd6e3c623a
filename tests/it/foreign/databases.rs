//! Redis, and a MariaDB that speaks first and then turns to TLS, as bytes that nobody looks at.

use std::net::SocketAddr;

use crate::harness::mesh::Builder;
use crate::harness::tools::{Foreign, output, program, says};
use crate::harness::{Mesh, Service};

/// A database that is not there yet, and a shop that uses it.
fn shop() -> Builder {
    Mesh::new()
        .service(Service::new("db").tcp().without_apps())
        .service(Service::new("shop"))
        .without_ingress()
}

fn app(mesh: &Mesh) -> SocketAddr {
    SocketAddr::new(mesh.replica("db", 0).host, mesh.ports.app())
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// What went through both sidecars, in bytes, of at least so many.
async fn carried(mesh: &Mesh, least: f64) {
    let host = mesh.replica("shop", 0).host;
    let edge = ["source=\"shop\"", "destination=\"db\"", "mtls=\"true\""];
    mesh.metric_reaches(host, "weft_request_bytes_total", &edge, least)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_asked_one_by_one_and_in_bulk() {
    let package = "Debian's package redis-server";
    let (Some(server), Some(client)) = (
        program("redis-server", package),
        program("redis-cli", package),
    ) else {
        return;
    };
    let mesh = shop().start().await;
    let directory = tempfile::tempdir().unwrap();
    let at = app(&mesh);
    let arguments = format!(
        "--bind {} --port {} --save --appendonly no",
        at.ip(),
        at.port()
    );
    let mut arguments = words(&arguments);
    // An empty word: never.
    arguments.insert(5, String::new());
    let _redis = Foreign::start(directory.path(), &server, &arguments)
        .listens(at)
        .await;
    let door = mesh.listen("shop", 0);
    let redis = |command: &str| words(&format!("-h {} -p {} {command}", door.ip(), door.port()));
    assert_eq!(says(&client, &redis("PING"), "").await, "PONG\n");
    let large = "0123456789abcdef".repeat(1 << 16);
    assert_eq!(says(&client, &redis("-x SET large"), &large).await, "OK\n");
    let back = says(&client, &redis("GET large"), "").await;
    assert!(back.trim_end() == large, "{} bytes", back.len());
    let bulk: String = (0..5_000)
        .map(|at| format!("INCRBY sum {at}\r\n"))
        .collect();
    let piped = says(&client, &redis("--pipe"), &bulk).await;
    assert!(piped.contains("errors: 0, replies: 5000"), "{piped}");
    assert_eq!(says(&client, &redis("GET sum"), "").await, "12497500\n");
    carried(&mesh, 1e6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_speaks_first_and_turns_to_tls() {
    let (Some(server), Some(install), Some(client)) = (
        program("mariadbd", "Debian's package mariadb-server-core"),
        program("mariadb-install-db", "Debian's package mariadb-server-core"),
        program("mariadb", "Debian's package mariadb-client-core"),
    ) else {
        return;
    };
    let mesh = shop().start().await;
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().display().to_string();
    let data = format!("{place}/data");
    let own = if rustix::process::geteuid().is_root() {
        "--user=root"
    } else {
        "--user="
    };
    let made = format!(
        "--no-defaults --datadir={data} {own} --skip-test-db --auth-root-authentication-method=normal"
    );
    output(&install, &words(&made), b"").await;
    let leaf = mesh.authority.website("db");
    for (file, text) in [
        ("cert.pem", &leaf.chain_pem()),
        ("key.pem", &leaf.key_pem()),
        ("ca.pem", &mesh.authority.bundle()),
        (
            "users.sql",
            &"CREATE DATABASE shop; CREATE USER shop@'%' IDENTIFIED BY 'secret' REQUIRE SSL; \
              GRANT ALL ON shop.* TO shop@'%';\n"
                .replace("; ", ";\n"),
        ),
    ] {
        std::fs::write(directory.path().join(file), text).unwrap();
    }
    let at = app(&mesh);
    let arguments = format!(
        "--no-defaults --datadir={data} {own} --bind-address={} --port={} --socket={place}/socket --pid-file={place}/pid \
         --init-file={place}/users.sql --ssl-cert={place}/cert.pem --ssl-key={place}/key.pem --skip-name-resolve \
         --innodb-buffer-pool-size=16M --max-allowed-packet=16M",
        at.ip(),
        at.port()
    );
    let _mariadb = Foreign::start(directory.path(), &server, &words(&arguments))
        .listens(at)
        .await;
    let door = mesh.listen("shop", 0);
    let login = format!(
        "--no-defaults -h {} -P {} --protocol=tcp -u shop -psecret --batch --skip-column-names shop",
        door.ip(),
        door.port()
    );
    // By one who insists on TLS. Whom the certificate is for is the database's business: it is reached by an address.
    let ask = async |sql: &str| {
        let arguments = words(&format!("{login} --ssl --ssl-ca={place}/ca.pem"));
        says(&client, &arguments, sql).await
    };
    let cipher = ask("SHOW SESSION STATUS LIKE 'Ssl_cipher';").await;
    assert!(
        cipher.trim_end().len() > "Ssl_cipher\t".len(),
        "no TLS: {cipher}"
    );
    let large = "x".repeat(1 << 20);
    let sql = format!(
        "CREATE TABLE orders (id INT PRIMARY KEY, text LONGTEXT); INSERT INTO orders VALUES (1, '{large}'); \
         SELECT id, LENGTH(text) FROM orders;"
    );
    assert_eq!(ask(&sql).await, "1\t1048576\n");
    let text = ask("SELECT text FROM orders;").await;
    assert!(text.trim_end() == large, "{} bytes", text.len());
    carried(&mesh, 1e6).await;
}
