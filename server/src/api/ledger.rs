//! Refused attempts on their way into the audit trail. Many that come at the same time share one commit, so that whoever
//! tries a thousand tokens a second costs the database a few writes.

use backstay_engine::{Store, StoreError};
use tokio::sync::{mpsc, oneshot};

/// Lines in one commit.
const AT_ONCE: usize = 200;

pub(super) struct Ledger {
    lines: mpsc::Sender<(String, oneshot::Sender<()>)>,
}

/// It could not be written down.
pub(super) struct Unwritten;

impl Ledger {
    pub(super) fn open(store: Store) -> Self {
        let (lines, inbox) = mpsc::channel(AT_ONCE * 5);
        tokio::spawn(keep(store, inbox));
        Self { lines }
    }

    /// Returns once the line is durable.
    pub(super) async fn write(&self, line: String) -> Result<(), Unwritten> {
        let (written, done) = oneshot::channel();
        // Whoever comes while a thousand wait is slowed down, and so is whoever tries tokens.
        self.lines.send((line, written)).await.map_err(|_| Unwritten)?;
        done.await.map_err(|_| Unwritten)
    }
}

async fn keep(store: Store, mut inbox: mpsc::Receiver<(String, oneshot::Sender<()>)>) {
    let mut batch = Vec::new();
    while inbox.recv_many(&mut batch, AT_ONCE).await > 0 {
        let (lines, waiting): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        match store.audit(&lines).await {
            Ok(()) => waiting.into_iter().for_each(|one| {
                // Whoever asked may have hung up.
                let _ = one.send(());
            }),
            // Those who wait are told by what is dropped.
            Err(error) => complain(&error),
        }
    }
}

fn complain(error: &StoreError) {
    tracing::warn!(error = error as &dyn std::error::Error, "the audit trail could not be written");
}
