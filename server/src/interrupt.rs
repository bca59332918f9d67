//! SIGINT and SIGTERM: the first asks for an orderly end, the second ends the process where it stands.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::trouble::Trouble;

/// Whether the program was asked to end. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    asked: CancellationToken,
    code: Arc<AtomicU8>,
}

impl Interrupt {
    /// Listens from now on.
    pub(crate) fn listen() -> Result<Self, Trouble> {
        let no_handler = |error| Trouble::failed(format!("Listening for signals failed: {error}."));
        let mut int = signal(SignalKind::interrupt()).map_err(no_handler)?;
        let mut term = signal(SignalKind::terminate()).map_err(no_handler)?;
        let this = Self { asked: CancellationToken::new(), code: Arc::default() };
        let told = this.clone();
        tokio::spawn(async move {
            loop {
                let code = tokio::select! {
                    _ = int.recv() => 130,
                    _ = term.recv() => 143,
                };
                if told.asked.is_cancelled() {
                    // The kernel closes what we hold, and the guard of the database sees to the rest.
                    std::process::exit(code.into());
                }
                told.code.store(code, Ordering::SeqCst);
                told.asked.cancel();
            }
        });
        Ok(this)
    }

    /// Ends when the program was asked to.
    pub(crate) async fn asked(&self) -> Trouble {
        self.asked.cancelled().await;
        self.trouble()
    }

    fn trouble(&self) -> Trouble {
        Trouble::interrupted(self.code.load(Ordering::SeqCst))
    }

    /// Does this, unless the program is asked to end before it is done.
    pub(crate) async fn or<T>(&self, work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
        tokio::select! {
            biased;
            trouble = self.asked() => Err(trouble),
            done = work => done,
        }
    }
}
