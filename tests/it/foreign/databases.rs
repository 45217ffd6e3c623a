//! Redis, a MariaDB that speaks first and then turns to TLS, and a PostgreSQL that is asked whether it does, as bytes that
//! nobody looks at.

use std::net::SocketAddr;
use std::path::Path;

use crate::harness::mesh::Builder;
use crate::harness::tools::{Foreign, file, output, program, says};
use crate::harness::{Mesh, Service, eventually};

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

/// PostgreSQL's programs do not run as root: then they are run, and their directory is owned, by nobody.
struct Postgres {
    wrapper: Vec<String>,
    directory: tempfile::TempDir,
}

impl Postgres {
    /// `nobody` in Debian, and everywhere else.
    const NOBODY: u32 = 65_534;

    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut wrapper = Vec::new();
        if rustix::process::geteuid().is_root() {
            let own = Some(Self::NOBODY);
            std::os::unix::fs::chown(directory.path(), own, own).unwrap();
            let as_nobody = format!("--reuid {0} --regid {0} --clear-groups", Self::NOBODY);
            wrapper = words(&as_nobody);
        }
        // Who changes who he is forgets that he is to end with us; and he may not be let into where the tests are run.
        wrapper.extend(words("--pdeathsig KILL -- env -C"));
        wrapper.push(directory.path().display().to_string());
        Self { wrapper, directory }
    }

    fn at(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// A file that only they read.
    fn write(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let file = self.directory.path().join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&file, Some(Self::NOBODY), Some(Self::NOBODY)).unwrap();
        }
    }

    /// The words for `setpriv` that run one of them.
    fn words(&self, program: &Path, arguments: &str) -> Vec<String> {
        let mut all = self.wrapper.clone();
        all.push(program.display().to_string());
        all.extend(words(arguments));
        all
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_asked_for_tls_and_turns_to_it() {
    let package = "Debian's package postgresql";
    let part = |name: &str| file(["/usr/lib/postgresql", name], package);
    let all = ["initdb", "postgres", "pg_ctl", "pg_isready", "psql"];
    let all: Option<Vec<_>> = all
        .iter()
        .map(|name| part(&format!("bin/{name}")))
        .collect();
    let setpriv = program("setpriv", "Debian's package util-linux");
    let (Some(all), Some(setpriv)) = (all, setpriv) else {
        return;
    };
    let [initdb, server, control, ready, client] = &all[..] else {
        unreachable!("five were asked for")
    };
    let mesh = shop().start().await;
    let postgres = Postgres::new();
    let data = postgres.at("data");
    postgres.write("password", "secret\n");
    let made = format!(
        "-D {data} -U shop --auth=scram-sha-256 --pwfile={} --no-locale --encoding=UTF8 --no-sync",
        postgres.at("password")
    );
    output(&setpriv, &postgres.words(initdb, &made), b"").await;
    let leaf = mesh.authority.website("db");
    postgres.write("cert.pem", &leaf.chain_pem());
    postgres.write("key.pem", &leaf.key_pem());
    // By TLS or not at all.
    postgres.write("hba.conf", "hostssl all all all scram-sha-256\n");
    let at = app(&mesh);
    let arguments = format!(
        "-D {data} -h {} -p {} -k -c fsync=off -c ssl=on -c ssl_cert_file={} -c ssl_key_file={} -c hba_file={}",
        at.ip(),
        at.port(),
        postgres.at("cert.pem"),
        postgres.at("key.pem"),
        postgres.at("hba.conf")
    );
    let mut arguments = postgres.words(server, &arguments);
    // No socket in the file system: an empty word.
    let place = arguments.iter().position(|word| word == "-k").unwrap();
    arguments.insert(place + 1, String::new());
    let directory = postgres.directory.path();
    let _server = Foreign::start(directory, &setpriv, &arguments)
        .listens(at)
        .await;

    let roots = directory.join("ca.pem");
    std::fs::write(&roots, mesh.authority.bundle()).unwrap();
    let door = mesh.listen("shop", 0);
    let login = |tls: &str| {
        format!(
            "host=db hostaddr={} port={} user=shop password=secret dbname=postgres sslmode={tls} sslrootcert={}",
            door.ip(),
            door.port(),
            roots.display()
        )
    };
    let ask = async |sql: &str| {
        let mut arguments = words("-X -q -t -A -v ON_ERROR_STOP=1 -d");
        arguments.push(login("verify-full"));
        says(client, &arguments, sql).await
    };
    // It takes connections before it takes logins.
    eventually("the database is there", async || {
        let arguments = ["-d", &login("verify-full")];
        let asked = tokio::process::Command::new(ready).args(arguments).output();
        asked.await.unwrap().status.success().then_some(())
    })
    .await;
    let mine = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid();";
    assert_eq!(ask(mine).await, "t|TLSv1.3\n");
    let large = "x".repeat(1 << 20);
    let sql = format!(
        "CREATE TABLE orders (id INT PRIMARY KEY, text TEXT); INSERT INTO orders VALUES (1, '{large}'); \
         SELECT id, length(text) FROM orders;"
    );
    assert_eq!(ask(&sql).await, "1|1048576\n");
    let text = ask("SELECT text FROM orders;").await;
    assert!(text.trim_end() == large, "{} bytes", text.len());
    // In bulk, and the other way round.
    let rows: String = (2..20_002)
        .map(|id| format!("{id}\torder {id}\n"))
        .collect();
    let copied = ask(&format!(
        "COPY orders FROM STDIN;\n{rows}\\.\nSELECT count(*) FROM orders;\n"
    ))
    .await;
    assert_eq!(copied, "20001\n");
    let back = ask("COPY (SELECT * FROM orders WHERE id > 1 ORDER BY id) TO STDOUT;").await;
    assert!(back == rows, "{} bytes, not {}", back.len(), rows.len());
    carried(&mesh, 1e6).await;

    // Killed, it would leave its shared memory to the host.
    let stop = format!("-D {data} -m immediate stop");
    output(&setpriv, &postgres.words(control, &stop), b"").await;
}
