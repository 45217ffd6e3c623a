//! Follows a file: notices when its content changes, whoever changed it and however.
//!
//! By looking, once a second, and not by asking the system for events: those are lost on network file systems, on bind mounts and when a symbolic link is
//! swapped as Kubernetes does it, and a file of some kilobytes costs nothing to read. SIGHUP makes it look at once.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::{Interval, MissedTickBehavior};

use super::{Status, file};
use crate::signal::Hangups;

/// How often a file is looked at, unless somebody knows better.
pub const EVERY: Duration = Duration::from_secs(1);

/// A file that is being written is read again after so long, until two readings agree: half a file may be valid and mean something else.
const SETTLE: Duration = Duration::from_millis(50);
/// A file that never comes to rest is taken as it is after so many readings.
const SETTLE_LIMIT: usize = 20;
/// A file that was refused is taken up again after so many looks without a change: what is wrong may be a file that it names.
const AGAIN: u32 = 5;

/// News of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The whole new content; after SIGHUP also when it is the old one, since what it refers to may have changed.
    Content(String),
    /// It cannot be read, and why. Told once for each reason.
    Unreadable(String),
}

/// Tells `on_change` of every change of the file at `path`, beginning with what differs from `current`, the content that the caller has
/// read. Never ends; dropping it stops it.
pub async fn follow(
    path: PathBuf,
    current: &str,
    every: Duration,
    mut on_change: impl FnMut(Change),
) {
    let mut looks = Looks::new(path, current, every, hangups());
    loop {
        let (change, _) = looks.next(|| false).await;
        on_change(change);
    }
}

fn hangups() -> Option<Hangups> {
    Hangups::listen()
        .inspect_err(
            |error| tracing::warn!(%error, "cannot catch SIGHUP, only looking at the file"),
        )
        .ok()
}

/// Follows the configuration file at `path`: each new content goes to `apply`, which hands it on, and says so to `status`, or says why
/// not. When it is refused, or cannot be read, `status` and the log tell that, and what is in force stays; it is tried again every few
/// looks. There is no look while `apply` works. Never ends; dropping it stops it.
pub async fn reload<F>(
    path: PathBuf,
    current: &str,
    every: Duration,
    status: Status,
    mut apply: impl FnMut(String) -> F,
) where
    F: Future<Output = Result<(), String>>,
{
    let name = path.display().to_string();
    let mut looks = Looks::new(path, current, every, hangups());
    loop {
        let (change, again) = looks.next(|| status.refusal().is_some()).await;
        attempt(change, again, &name, &status, &mut apply, SystemTime::now()).await;
    }
}

/// `again` says that the file is as it was when it was refused: that is not said again, but for another reason.
async fn attempt<F>(
    change: Change,
    again: bool,
    name: &str,
    status: &Status,
    apply: &mut impl FnMut(String) -> F,
    now: SystemTime,
) where
    F: Future<Output = Result<(), String>>,
{
    let applied = match change {
        Change::Content(text) => apply(text).await,
        Change::Unreadable(why) => Err(format!("{name}: {why}")),
    };
    if let Err(why) = applied {
        if again && status.refusal().as_deref() == Some(&why) {
            return;
        }
        tracing::error!(problems = %why, "the configuration file cannot be used; the last good one stays in force");
        status.refused(now, why);
    }
}

/// Looks at a file again and again.
struct Looks {
    path: PathBuf,
    ticks: Interval,
    hangups: Option<Hangups>,
    seen: u64,
    /// Looks in a row that saw what was seen before.
    quiet: u32,
}

impl Looks {
    /// At the file that held `current` when it was read before.
    fn new(path: PathBuf, current: &str, every: Duration, hangups: Option<Hangups>) -> Self {
        let mut ticks = tokio::time::interval(every.max(SETTLE));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            path,
            ticks,
            hangups,
            seen: fingerprint(&Ok(current.to_owned())),
            quiet: 0,
        }
    }

    /// The next change. While the content is refused, that counts as one every few looks, and the flag says so.
    async fn next(&mut self, is_refused: impl Fn() -> bool) -> (Change, bool) {
        loop {
            let asked = tokio::select! {
                _ = self.ticks.tick() => false,
                () = hangup(self.hangups.as_mut()) => true,
            };
            let mut content = read(&self.path).await;
            if !asked && fingerprint(&content) == self.seen {
                self.quiet += 1;
                if self.quiet >= AGAIN && is_refused() {
                    self.quiet = 0;
                    if let Ok(text) = content {
                        return (Change::Content(text), true);
                    }
                }
                continue;
            }
            self.quiet = 0;
            content = settled(&self.path, content).await;
            let now = fingerprint(&content);
            if asked || now != self.seen {
                self.seen = now;
                let change = match content {
                    Ok(text) => Change::Content(text),
                    Err(why) => Change::Unreadable(why),
                };
                return (change, false);
            }
        }
    }
}

async fn hangup(hangups: Option<&mut Hangups>) {
    match hangups {
        Some(hangups) => hangups.next().await,
        None => std::future::pending().await,
    }
}

async fn settled(path: &Path, mut content: Result<String, String>) -> Result<String, String> {
    for _ in 0..SETTLE_LIMIT {
        tokio::time::sleep(SETTLE).await;
        let again = read(path).await;
        if again == content {
            break;
        }
        content = again;
    }
    content
}

async fn read(path: &Path) -> Result<String, String> {
    let path = path.to_path_buf();
    let reading = tokio::task::spawn_blocking(move || file::read(&path));
    match reading.await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Kept instead of the content, which may be megabytes.
fn fingerprint(content: &Result<String, String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use rustix::process::{Signal, getpid, kill_process};
    use std::fs;
    use tokio::sync::mpsc;

    struct Story {
        path: PathBuf,
        changes: mpsc::Receiver<Change>,
        _directory: tempfile::TempDir,
    }

    impl Story {
        /// A file that holds `content` now, and `current` when it was read before.
        fn begin(current: &'static str, content: &str) -> Self {
            Self::with(None, current, content)
        }

        fn with(hangups: Option<Hangups>, current: &'static str, content: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("weft.yaml");
            fs::write(&path, content).unwrap();
            let (sender, changes) = mpsc::channel(16);
            let followed = path.clone();
            let group = crate::task::Group::new();
            group.spawn("follow", async move {
                let mut looks = Looks::new(followed, current, EVERY, hangups);
                loop {
                    let (change, _) = looks.next(|| false).await;
                    if sender.try_send(change).is_err() {
                        return Err("nobody listens".to_owned());
                    }
                }
            });
            Self {
                path,
                changes,
                _directory: directory,
            }
        }

        async fn next(&mut self) -> Change {
            self.changes.recv().await.unwrap()
        }
    }

    fn content(text: &str) -> Change {
        Change::Content(text.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_told_once() {
        let mut story = Story::begin("a: 1", "a: 1");
        tokio::time::sleep(EVERY * 3).await;
        fs::write(&story.path, "a: 2").unwrap();
        assert_eq!(story.next().await, content("a: 2"));
        tokio::time::sleep(EVERY * 3).await;
        assert!(story.changes.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_before_following_is_told_too() {
        let mut story = Story::begin("a: 1", "a: 2");
        assert_eq!(story.next().await, content("a: 2"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_swapped_link_is_a_change() {
        let mut story = Story::begin("a: 1", "a: 1");
        let directory = story.path.parent().unwrap().to_path_buf();
        fs::write(directory.join("next"), "a: 3").unwrap();
        std::os::unix::fs::symlink(directory.join("next"), directory.join("link")).unwrap();
        fs::rename(directory.join("link"), &story.path).unwrap();
        assert_eq!(story.next().await, content("a: 3"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_went_away_is_told_once_and_its_return_too() {
        let mut story = Story::begin("a: 1", "a: 1");
        fs::remove_file(&story.path).unwrap();
        assert!(
            matches!(story.next().await, Change::Unreadable(why) if why.contains("No such file"))
        );
        tokio::time::sleep(EVERY * 3).await;
        assert!(story.changes.try_recv().is_err());
        fs::write(&story.path, "a: 1").unwrap();
        assert_eq!(story.next().await, content("a: 1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_beyond_the_limit_is_not_read() {
        let mut story = Story::begin("a: 1", "a: 1");
        let limit = usize::try_from(file::SIZE_LIMIT).unwrap();
        fs::write(&story.path, "#".repeat(limit + 1)).unwrap();
        assert_eq!(
            story.next().await,
            Change::Unreadable("larger than 4 MiB".to_owned())
        );
    }

    #[tokio::test]
    async fn a_refused_configuration_leaves_the_old_one_in_force() {
        let now = SystemTime::UNIX_EPOCH;
        let status = Status::new(Path::new("weft.yaml"), "good", now);
        let in_force = std::cell::RefCell::new(String::from("good"));
        let mut apply = |text: String| {
            let (status, in_force) = (&status, &in_force);
            async move {
                if text == "bad" {
                    return Err("weft.yaml:1:1: bad".to_owned());
                }
                in_force.replace(text.clone());
                status.handed(text, Vec::new(), || {});
                status.taking();
                status.loaded(now);
                Ok(())
            }
        };
        let mut attempt =
            async |change| attempt(change, false, "weft.yaml", &status, &mut apply, now).await;
        attempt(content("bad")).await;
        assert_eq!(status.refusal().as_deref(), Some("weft.yaml:1:1: bad"));
        attempt(content("better")).await;
        assert_eq!((status.generation(), status.refusal()), (2, None));
        let gone = Change::Unreadable("No such file".to_owned());
        attempt(gone).await;
        let refusal = status.refusal();
        assert_eq!(refusal.as_deref(), Some("weft.yaml: No such file"));
        assert_eq!(status.generation(), 2);
        assert_eq!(*in_force.borrow(), "better");
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_was_refused_for_what_it_names_is_taken_when_that_is_mended() {
        let directory = tempfile::tempdir().unwrap();
        let (path, named) = (
            directory.path().join("weft.yaml"),
            directory.path().join("key"),
        );
        fs::write(&path, "a: 2").unwrap();
        let status = Status::new(&path, "a: 1", SystemTime::UNIX_EPOCH);
        let (told, mut tries) = mpsc::channel(64);
        let (said, seen) = (status.clone(), named.clone());
        let group = crate::task::Group::new();
        group.spawn("reload", async move {
            let (told, said, seen) = (&told, &said, &seen);
            reload(path, "a: 1", EVERY, said.clone(), |text| async move {
                told.try_send(()).unwrap();
                if !seen.exists() {
                    return Err("the key is gone".to_owned());
                }
                said.handed(text, Vec::new(), || {});
                said.taking();
                said.loaded(SystemTime::UNIX_EPOCH);
                Ok(())
            })
            .await;
            Ok::<_, String>(())
        });
        for _ in 0..3 {
            tries.recv().await.unwrap();
            assert_eq!(status.refusal().as_deref(), Some("the key is gone"));
        }
        fs::write(&named, "").unwrap();
        tries.recv().await.unwrap();
        assert_eq!((status.generation(), status.refusal()), (2, None));
        // And that was it.
        tokio::time::sleep(EVERY * AGAIN * 3).await;
        assert!(tries.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_hangup_tells_even_what_has_not_changed() {
        let mut story = Story::with(Hangups::listen().ok(), "same", "same");
        kill_process(getpid(), Signal::HUP).unwrap();
        assert_eq!(story.next().await, content("same"));
    }
}
