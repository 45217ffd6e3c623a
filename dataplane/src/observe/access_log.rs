//! One line of JSON per exchange, without making any exchange wait.
//!
//! Each core fills a block of its own and hands it over when it has 32 KiB or when the core's clock says that a second
//! has passed ([`Lines::flush`]). The blocks go through a bounded channel to a thread that may block on a slow disk or a
//! full pipe; when it is behind by [`BLOCKS`], whole blocks are dropped and their lines counted, never waited for.
//!
//! Off by default: counters answer most questions, and a line per exchange is the one thing here that costs disk.

use std::cell::RefCell;
use std::fmt::Display;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use weft_runtime::config::{self, Problems};

use crate::reason::Reason;

/// Size at which a core hands its block over.
const BLOCK: usize = 32 * 1024;
/// Blocks on their way to the writer, for all cores together: 2 MiB.
pub const BLOCKS: usize = 64;
/// How much of a path or a host is written; the rest tells nobody anything.
const LONGEST: usize = 1_024;
/// How often the writer looks whether the file was moved away (log rotation).
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Where the access log goes: `access_log: off | stdout | { file: PATH }`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "AccessLog")]
pub enum AccessLogConfig {
    /// Nowhere.
    #[default]
    Off,
    /// To standard output, between the process's own log.
    Stdout,
    /// To this file, which is appended to; when it is moved away a new one is made.
    File(PathBuf),
}

impl AccessLogConfig {
    /// Makes its relative path relative to `base`.
    pub fn relative_to(&mut self, base: &std::path::Path) {
        if let Self::File(path) = self {
            *path = base.join(&*path);
        }
    }

    /// Checks that the file's directory is there. `at` is where this stands in the configuration.
    pub fn check(&self, at: &config::Path, problems: &mut Problems) {
        let Self::File(file) = self else {
            return;
        };
        let directory = file.parent().filter(|directory| *directory != "");
        if let Some(directory) = directory
            && !directory.is_dir()
        {
            problems.at(
                &at.key("file"),
                format!("`{}` is no directory", directory.display()),
                "make the directory, writable for this process, or name a file elsewhere",
            );
        }
    }
}

/// What is told of one exchange.
#[derive(Debug, Clone)]
pub struct Record<'a> {
    /// When its head had arrived.
    pub time: SystemTime,
    /// The listener that took it.
    pub listener: &'a str,
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2` or `TCP`.
    pub protocol: &'static str,
    /// The method.
    pub method: &'a str,
    /// The host that it was for.
    pub authority: &'a str,
    /// The path; a query is cut off here, since it is where secrets are.
    pub path: &'a str,
    /// The route that matched.
    pub route: Option<&'a str>,
    /// The service behind it.
    pub service: Option<&'a str>,
    /// The endpoint that answered, or the last one tried.
    pub endpoint: Option<SocketAddr>,
    /// The status sent; none when the client went away before that.
    pub status: Option<u16>,
    /// Why the answer is ours.
    pub reason: Option<Reason>,
    /// From the head's arrival to the end of the answer.
    pub duration: Duration,
    /// Attempts made, 0 when it was not forwarded.
    pub attempts: u32,
    /// What became of the session, where sessions are kept: `new`, `kept`, `moved` or `unreadable`.
    pub session: Option<&'a str>,
    /// Body bytes from the client.
    pub request_bytes: u64,
    /// Body bytes to the client.
    pub response_bytes: u64,
    /// Who called, as far as it was proven: an identity or a token's subject.
    pub source: Option<&'a str>,
    /// Where the connection came from.
    pub peer: Option<SocketAddr>,
    /// Who the client is, where a trusted proxy, or the app beside us, named somebody else than the peer.
    pub client: Option<IpAddr>,
    /// The TLS version, none for plaintext.
    pub tls: Option<&'static str>,
}

/// The access log of a process: hands out [`Lines`] to cores, and owns the thread that writes.
#[derive(Debug)]
pub struct AccessLog {
    blocks: Option<SyncSender<Block>>,
    dropped: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Block {
    text: Vec<u8>,
    lines: u64,
}

impl AccessLog {
    /// Opens the file and starts the writer. `dropped` is where lost lines are counted.
    pub fn start(config: &AccessLogConfig, dropped: Arc<AtomicU64>) -> std::io::Result<Self> {
        match config {
            AccessLogConfig::Off => Ok(Self {
                blocks: None,
                dropped,
                writer: None,
            }),
            AccessLogConfig::Stdout => Self::write_to(std::io::stdout(), dropped),
            AccessLogConfig::File(path) => Self::write_to(Rotated::open(path)?, dropped),
        }
    }

    /// Starts a writer to any sink.
    pub fn write_to(
        sink: impl Write + Send + 'static,
        dropped: Arc<AtomicU64>,
    ) -> std::io::Result<Self> {
        // Full: the block is dropped and its lines are counted, see `Lines::hand_over`.
        let (blocks, received) = sync_channel(BLOCKS);
        let counter = Arc::clone(&dropped);
        let writer = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_blocks(&received, sink, &counter))?;
        Ok(Self {
            blocks: Some(blocks),
            dropped,
            writer: Some(writer),
        })
    }

    /// Lines for one core; none when the log is off, so that nobody gathers what nobody writes.
    pub fn lines(&self) -> Option<Lines> {
        Some(Lines {
            blocks: self.blocks.clone()?,
            dropped: Arc::clone(&self.dropped),
            open: RefCell::default(),
        })
    }

    /// Lets the writer finish what it has, for as long as `at_most`. All [`Lines`] should be gone by now: their last
    /// block is handed over when they are dropped. Blocks the calling thread. Says whether the writer ended.
    pub fn finish(mut self, at_most: Duration) -> bool {
        self.blocks = None;
        let Some(writer) = self.writer.take() else {
            return true;
        };
        let deadline = Instant::now() + at_most;
        // A thread cannot be waited for with a time limit; this runs once in a process's life.
        while !writer.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        writer.is_finished()
    }
}

/// One core's lines. Stays on its core.
#[derive(Debug)]
pub struct Lines {
    blocks: SyncSender<Block>,
    dropped: Arc<AtomicU64>,
    // Borrowed only inside `record` and `flush`, which do not wait for anything.
    open: RefCell<Open>,
}

#[derive(Debug, Default)]
struct Open {
    text: Vec<u8>,
    lines: u64,
    /// The second of the last line and how it is spelled: most lines share it with the one before.
    second: (u64, String),
}

impl Lines {
    /// Writes one line.
    pub fn record(&self, record: &Record<'_>) {
        let mut open = self.open.borrow_mut();
        open.write(record);
        if open.text.len() >= BLOCK {
            self.hand_over(&mut open);
        }
    }

    /// Hands over what there is. The core calls this about once a second.
    pub fn flush(&self) {
        let mut open = self.open.borrow_mut();
        if open.lines > 0 {
            self.hand_over(&mut open);
        }
    }

    fn hand_over(&self, open: &mut Open) {
        let text = std::mem::take(&mut open.text);
        let lines = std::mem::take(&mut open.lines);
        if self.blocks.try_send(Block { text, lines }).is_err() {
            self.dropped.fetch_add(lines, Ordering::Relaxed);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Open {
    fn write(&mut self, record: &Record<'_>) {
        if self.text.capacity() == 0 {
            // Room for the line that crosses the mark.
            self.text.reserve(BLOCK + 4_096);
        }
        self.lines += 1;
        self.text.extend_from_slice(b"{\"time\":\"");
        self.time(record.time);
        self.text.push(b'"');
        let path = record.path.split('?').next().unwrap_or_default();
        self.string("listener", Some(record.listener));
        self.string("protocol", Some(record.protocol));
        self.string("method", Some(record.method));
        self.string("authority", Some(record.authority));
        self.string("path", Some(path));
        self.string("route", record.route);
        self.string("service", record.service);
        self.address("endpoint", record.endpoint);
        self.number("status", record.status.map(u64::from));
        self.string("reason", record.reason.map(Reason::code));
        let us = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX);
        let _ = write!(
            self.text,
            ",\"duration_ms\":{}.{:03}",
            us / 1_000,
            us % 1_000
        );
        self.number("attempts", Some(u64::from(record.attempts)));
        self.string("session", record.session);
        self.number("request_bytes", Some(record.request_bytes));
        self.number("response_bytes", Some(record.response_bytes));
        self.string("source", record.source);
        self.address("peer", record.peer);
        self.address("client", record.client);
        self.string("tls", record.tls);
        self.text.extend_from_slice(b"}\n");
    }

    /// RFC 3339 with milliseconds.
    fn time(&mut self, time: SystemTime) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second.0 != since.as_secs() || self.second.1.is_empty() {
            self.second = (since.as_secs(), spell(since.as_secs()));
        }
        self.text.extend_from_slice(self.second.1.as_bytes());
        let _ = write!(self.text, ".{:03}Z", since.subsec_millis());
    }

    fn name(&mut self, name: &str) {
        self.text.extend_from_slice(b",\"");
        self.text.extend_from_slice(name.as_bytes());
        self.text.extend_from_slice(b"\":");
    }

    fn string(&mut self, name: &str, value: Option<&str>) {
        let Some(value) = value else { return };
        self.name(name);
        let end = value.floor_char_boundary(LONGEST);
        // Writing a string to memory cannot fail.
        let _ = serde_json::to_writer(&mut self.text, &value[..end]);
    }

    fn number(&mut self, name: &str, value: Option<u64>) {
        let Some(value) = value else { return };
        self.name(name);
        let _ = write!(self.text, "{value}");
    }

    fn address(&mut self, name: &str, value: Option<impl Display>) {
        let Some(value) = value else { return };
        self.name(name);
        let _ = write!(self.text, "\"{value}\"");
    }
}

fn spell(second: u64) -> String {
    let time = i64::try_from(second)
        .ok()
        .and_then(|second| OffsetDateTime::from_unix_timestamp(second).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// Ends when the log and all its lines are gone and everything is written.
fn write_blocks(received: &Receiver<Block>, mut sink: impl Write, dropped: &AtomicU64) {
    let mut failing = false;
    for block in received {
        let written = sink.write_all(&block.text).and_then(|()| sink.flush());
        if let Err(error) = &written {
            dropped.fetch_add(block.lines, Ordering::Relaxed);
            if !failing {
                tracing::warn!(%error, "the access log cannot be written; its lines are dropped");
            }
        }
        failing = written.is_err();
    }
}

/// A file that is opened anew when its name no longer leads to it.
#[derive(Debug)]
struct Rotated {
    path: PathBuf,
    file: std::fs::File,
    looked: Instant,
}

impl Rotated {
    fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: append(path)?,
            looked: Instant::now(),
        })
    }

    fn follow(&mut self, now: Instant) -> std::io::Result<()> {
        if now.duration_since(self.looked) < LOOK_AGAIN {
            return Ok(());
        }
        self.looked = now;
        if !same_file(&self.path, &self.file) {
            self.file = append(&self.path)?;
        }
        Ok(())
    }
}

impl Write for Rotated {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        // Once a block, never within one: a line is not split over two files.
        self.follow(Instant::now())?;
        self.file.write_all(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn append(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
}

fn same_file(path: &Path, file: &std::fs::File) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (std::fs::metadata(path), file.metadata()) {
        (Ok(named), Ok(open)) => (named.dev(), named.ino()) == (open.dev(), open.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};
    use std::sync::{Condvar, Mutex};

    fn record() -> Record<'static> {
        Record {
            time: UNIX_EPOCH + Duration::from_millis(1_700_000_000_042),
            listener: "public",
            protocol: "HTTP/1.1",
            method: "GET",
            authority: "api.shop.example",
            path: "/orders/7?token=secret",
            route: Some("orders"),
            service: Some("orders"),
            endpoint: Some("127.0.1.1:15008".parse().unwrap()),
            status: Some(503),
            reason: Some(Reason::NoEndpoints),
            duration: Duration::from_micros(12_345),
            attempts: 2,
            session: Some("moved"),
            request_bytes: 1,
            response_bytes: 2,
            source: Some("spiffe://shop.internal/service/storefront"),
            peer: Some("127.0.0.1:1234".parse().unwrap()),
            client: Some("192.0.2.7".parse().unwrap()),
            tls: Some("TLSv1.3"),
        }
    }

    /// A sink that others can read, and whose door can be shut.
    #[derive(Clone, Default)]
    struct Sink(Arc<(Mutex<State>, Condvar)>);

    #[derive(Default)]
    struct State {
        text: Vec<u8>,
        shut: bool,
    }

    impl Sink {
        fn shut(&self, shut: bool) {
            self.0.0.lock().unwrap().shut = shut;
            self.0.1.notify_all();
        }

        fn lines(&self) -> Vec<String> {
            let text = self.0.0.lock().unwrap().text.clone();
            let text = String::from_utf8(text).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let guard = self.0.0.lock().unwrap();
            let mut open = self.0.1.wait_while(guard, |state| state.shut).unwrap();
            open.text.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(record: &Record<'_>) -> Value {
        let sink = Sink::default();
        let log = AccessLog::write_to(sink.clone(), Arc::default()).unwrap();
        let lines = log.lines().unwrap();
        lines.record(record);
        drop(lines);
        assert!(log.finish(Duration::from_secs(10)));
        serde_json::from_str(&sink.lines()[0]).unwrap()
    }

    #[test]
    fn a_line_tells_who_what_and_how_and_no_query() {
        let expected = json!({
            "time": "2023-11-14T22:13:20.042Z",
            "listener": "public",
            "protocol": "HTTP/1.1",
            "method": "GET",
            "authority": "api.shop.example",
            "path": "/orders/7",
            "route": "orders",
            "service": "orders",
            "endpoint": "127.0.1.1:15008",
            "status": 503,
            "reason": "no_endpoints",
            "duration_ms": 12.345,
            "attempts": 2,
            "session": "moved",
            "request_bytes": 1,
            "response_bytes": 2,
            "source": "spiffe://shop.internal/service/storefront",
            "peer": "127.0.0.1:1234",
            "client": "192.0.2.7",
            "tls": "TLSv1.3",
        });
        assert_eq!(written(&record()), expected);
    }

    #[test]
    fn nothing_a_client_sends_breaks_out_of_its_field() {
        let line = written(&Record {
            authority: "a\"b\\c",
            path: "/\u{0}\n\u{7f}\u{2028}é\",\"status\":200",
            status: None,
            reason: None,
            ..record()
        });
        assert_eq!(line["authority"], "a\"b\\c");
        assert_eq!(line["path"], "/\u{0}\n\u{7f}\u{2028}é\",\"status\":200");
        assert!(line.get("status").is_none());
        assert!(line.get("reason").is_none());
    }

    #[test]
    fn long_fields_are_cut_between_characters() {
        let path = format!("/{}", "é".repeat(4_000));
        let line = written(&Record {
            path: &path,
            ..record()
        });
        let cut = line["path"].as_str().unwrap();
        assert!(cut.len() <= LONGEST && cut.len() > LONGEST - 2);
        assert!(path.starts_with(cut));
    }

    #[test]
    fn a_writer_that_is_behind_costs_lines_and_nothing_else() {
        let sink = Sink::default();
        sink.shut(true);
        let dropped = Arc::new(AtomicU64::new(0));
        let log = AccessLog::write_to(sink.clone(), Arc::clone(&dropped)).unwrap();
        let lines = log.lines().unwrap();
        // Far more than the channel holds; nothing here waits, although the writer stands still.
        const WRITTEN: u64 = 20_000;
        for _ in 0..WRITTEN {
            lines.record(&record());
        }
        let lost = dropped.load(Ordering::Relaxed);
        assert!(lost > 0, "the bound was not reached");
        sink.shut(false);
        drop(lines);
        assert!(log.finish(Duration::from_secs(10)));
        let lost = dropped.load(Ordering::Relaxed);
        assert_eq!(sink.lines().len() as u64 + lost, WRITTEN);
        // What was kept is at most what the channel holds, the block being written and the last one.
        let kept: usize = sink.lines().iter().map(|line| line.len() + 1).sum();
        assert!(kept <= (BLOCKS + 2) * (BLOCK + 1_024), "{kept}");
    }

    #[test]
    fn a_flush_hands_over_a_block_that_is_not_full() {
        let sink = Sink::default();
        let log = AccessLog::write_to(sink.clone(), Arc::default()).unwrap();
        let lines = log.lines().unwrap();
        lines.record(&record());
        assert!(sink.lines().is_empty());
        lines.flush();
        let deadline = Instant::now() + Duration::from_secs(10);
        while sink.lines().is_empty() {
            assert!(Instant::now() < deadline, "nothing was written");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_rotated_file_is_left_for_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let mut file = Rotated::open(&path).unwrap();
        file.write_all(b"one\n").unwrap();
        std::fs::rename(&path, folder.path().join("access.log.1")).unwrap();
        let later = file.looked + LOOK_AGAIN;
        file.follow(later).unwrap();
        file.write_all(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
    }

    #[test]
    fn off_costs_nothing_and_writes_nothing() {
        let log = AccessLog::start(&AccessLogConfig::default(), Arc::default()).unwrap();
        assert!(log.lines().is_none());
        assert!(log.finish(Duration::ZERO));
    }

    #[test]
    fn the_configuration_has_three_forms() {
        for (value, expected) in [
            (json!("off"), AccessLogConfig::Off),
            (json!("stdout"), AccessLogConfig::Stdout),
            (
                json!({"file": "a.log"}),
                AccessLogConfig::File("a.log".into()),
            ),
        ] {
            let config: AccessLogConfig = serde_json::from_value(value).unwrap();
            assert_eq!(config, expected);
        }
    }
}
