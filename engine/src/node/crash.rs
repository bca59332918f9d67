//! Named places where a node can be made to die, for tests. Not in release builds.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

/// A place.
pub type CrashPoint = &'static str;

/// All of them, in the order that a run meets them.
pub const POINTS: [CrashPoint; 10] = [
    "lease.begun",
    "claim.committed",
    "claim.read",
    "mail.read",
    "append.before",
    "append.committed",
    "call.before",
    "call.after",
    "drain.released",
    "purge.mid",
];

/// Those of whoever speaks to a run, who need not be a node.
pub const TELL_POINTS: [CrashPoint; 2] = ["tell.before", "tell.committed"];

/// Decides at each point whether the node dies there.
pub type Hook = Arc<dyn Fn(CrashPoint) -> bool + Send + Sync>;

/// Where a node looks whether it has to die.
#[derive(Clone, Default)]
pub(crate) struct Crash {
    pub hook: Option<Hook>,
    pub dead: CancellationToken,
}

impl Crash {
    /// Dies here, if it is time. A node of a test process dies by never going on: everything it has is dropped
    /// when `dead` is noticed. With `BACKSTAY_CRASH_AT=point#n` the whole process is killed.
    pub(crate) async fn point(&self, name: CrashPoint) {
        debug_assert!(POINTS.contains(&name), "{name} is missing in POINTS");
        kill_process_at(name);
        if self.hook.as_ref().is_some_and(|hook| hook(name)) {
            self.dead.cancel();
        }
        if self.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }
}

pub(crate) fn kill_process_at(name: CrashPoint) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static AT: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
        let text = std::env::var("BACKSTAY_CRASH_AT").ok()?;
        let (point, nth) = text.split_once('#').unwrap_or((&text, "1"));
        Some((point.to_owned(), nth.parse().ok()?))
    });
    static HITS: AtomicU64 = AtomicU64::new(0);
    let Some((point, nth)) = AT.as_ref() else { return };
    if point == name && HITS.fetch_add(1, Ordering::SeqCst) + 1 == *nth {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
