//! Named tasks in a group. The first one that fails or panics ends the group, because a process that has lost a part of itself
//! and goes on is worse than one that is started anew.
//!
//! Nothing else spawns (connections of a core are tasks of its own local set), so the callers of this file are the list
//! of all that runs. A task that is done returns `Ok`; one that must run as long as the process returns an error when it
//! cannot.

use std::borrow::Cow;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long the tasks of a group that has ended may take to notice.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Tasks that belong together. Cheap to clone: a clone is the same group.
#[derive(Clone)]
pub struct Group {
    tracker: TaskTracker,
    stop: CancellationToken,
    /// Bound 16: only the first failure counts, so those that find it full are only logged.
    failed: mpsc::Sender<Failure>,
    /// Held by the one who runs the group.
    failures: Arc<Mutex<mpsc::Receiver<Failure>>>,
}

/// A task that failed, and so the whole group.
#[derive(Debug, thiserror::Error)]
#[error("{task} failed: {cause}")]
pub struct Failure {
    /// The name of the task.
    pub task: Cow<'static, str>,
    /// What it said, or its panic.
    pub cause: String,
}

impl Default for Group {
    fn default() -> Self {
        Self::new()
    }
}

impl Group {
    /// Without tasks.
    pub fn new() -> Self {
        let (failed, failures) = mpsc::channel(16);
        Self {
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            failed,
            failures: Arc::new(Mutex::new(failures)),
        }
    }

    /// Starts a task on the current runtime. It is dropped at its next await when the group ends.
    pub fn spawn<F, E>(&self, name: impl Into<Cow<'static, str>>, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        let name = name.into();
        let (stop, failed) = (self.stop.clone(), self.failed.clone());
        let task = self.tracker.track_future(async move {
            let mut future = Box::pin(future);
            // A panic of the task is the task's; the state it leaves behind goes with the process.
            let caught = poll_fn(|context| {
                match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
                    Ok(poll) => poll.map(|result| result.map_err(|error| error.to_string())),
                    Err(panic) => Err(format!("panicked: {}", words(&*panic))).into(),
                }
            });
            tokio::select! {
                () = stop.cancelled() => {}
                result = caught => tell(&failed, name, result),
            }
        });
        start(task);
    }

    /// Starts a thread of the group, which ends it like a task does. Nobody can stop a thread: it has to watch the drain itself.
    pub fn thread<E>(
        &self,
        name: impl Into<String>,
        body: impl FnOnce() -> Result<(), E> + Send + 'static,
    ) -> io::Result<()>
    where
        E: fmt::Display,
    {
        let name = name.into();
        let failed = self.failed.clone();
        let token = self.tracker.token();
        std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let result = match catch_unwind(AssertUnwindSafe(body)) {
                    Ok(result) => result.map_err(|error| error.to_string()),
                    Err(panic) => Err(format!("panicked: {}", words(&*panic))),
                };
                tell(&failed, name.into(), result);
                drop(token);
            })
            .map(drop)
    }

    /// Runs `until` while the tasks run. Ends with its result, or with the first failure of a task if that comes earlier; all tasks
    /// are stopped then. Threads are waited for, but no longer than 5 s.
    pub async fn run_until<T>(&self, until: impl Future<Output = T>) -> Result<T, Failure> {
        let mut failures = self.failures.lock().await;
        let result = tokio::select! {
            // A failure explains an end at the same moment.
            biased;
            Some(failure) = failures.recv() => Err(failure),
            value = until => Ok(value),
        };
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(STOP_LIMIT, self.tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!(tasks = self.tracker.len(), "tasks did not stop in time");
        }
        result
    }

    /// How many tasks and threads run.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether nothing runs.
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "this is the one place that spawns"
)]
fn start(task: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(task));
}

fn tell(failed: &mpsc::Sender<Failure>, task: Cow<'static, str>, result: Result<(), String>) {
    match result {
        Ok(()) => tracing::debug!(%task, "task done"),
        Err(cause) => {
            tracing::error!(%task, %cause, "task failed");
            let _ = failed.try_send(Failure { task, cause });
        }
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "without words"
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("len", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::convert::Infallible;
    use std::future::pending;

    #[tokio::test]
    async fn the_first_failure_ends_the_group() {
        let group = Group::new();
        group.spawn("patient", pending::<Result<(), Infallible>>());
        group.spawn("resolver", async { Err("no servers") });
        let failure = group.run_until(pending::<()>()).await.unwrap_err();
        assert_eq!(failure.to_string(), "resolver failed: no servers");
        assert!(group.is_empty(), "the others are stopped");
    }

    #[tokio::test]
    async fn a_panic_is_a_failure() {
        let group = Group::new();
        group.spawn("careless", async {
            if std::process::id() > 0 {
                panic!("index {}", 7);
            }
            Ok::<_, Infallible>(())
        });
        let failure = group.run_until(pending::<()>()).await.unwrap_err();
        assert_eq!(failure.to_string(), "careless failed: panicked: index 7");
    }

    #[tokio::test]
    async fn a_task_that_is_done_disturbs_nobody() {
        let group = Group::new();
        let (done, seen) = tokio::sync::oneshot::channel();
        group.spawn("once", async move {
            done.send(()).unwrap();
            Ok::<_, Infallible>(())
        });
        let value = group
            .run_until(async {
                seen.await.unwrap();
                42
            })
            .await;
        assert_eq!(value.unwrap(), 42);
    }

    #[tokio::test]
    async fn a_task_may_start_others() {
        let group = Group::new();
        let inner = group.clone();
        group.spawn("outer", async move {
            inner.spawn("inner", async { Err("deep inside") });
            Ok::<_, Infallible>(())
        });
        let failure = group.run_until(pending::<()>()).await.unwrap_err();
        assert_eq!(failure.task, "inner");
    }

    #[tokio::test]
    async fn threads_fail_and_are_waited_for_like_tasks() {
        let group = Group::new();
        let (stop, stopped) = std::sync::mpsc::sync_channel::<()>(1);
        group
            .thread("core-0", move || {
                // Ends when the sender below is dropped.
                let _ = stopped.recv();
                Ok::<_, Infallible>(())
            })
            .unwrap();
        group
            .thread("core-1", || Err("address already in use"))
            .unwrap();
        let failure = group
            .run_until(async {
                pending::<()>().await;
                drop(stop);
            })
            .await
            .unwrap_err();
        assert_eq!(failure.to_string(), "core-1 failed: address already in use");
        assert!(group.is_empty());
    }

    #[tokio::test]
    async fn many_failures_at_once_are_one() {
        let group = Group::new();
        for number in 0..64 {
            group.spawn(format!("task {number}"), async { Err("all of us") });
        }
        let failure = group.run_until(pending::<()>()).await.unwrap_err();
        assert_eq!(failure.cause, "all of us");
        assert!(group.is_empty());
    }
}
