//! The engine on real Postgres.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod access;
mod cluster;
mod crashes;
mod decoders;
mod facts;
mod failing;
mod families;
mod faults;
mod frozen;
mod insight;
mod late;
mod lines;
mod pools;
mod processes;
mod restarts;
mod retention;
mod runs;
mod silence;
mod spoken;
mod spoken_crashes;
mod stated;
mod tidiness;
mod unheard;
mod verbs;
mod watching;

use std::time::{Duration, Instant};

/// Looks again and again, until it is so.
pub(crate) async fn until(
    what: &str,
    mut holds: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds().await? {
        assert!(Instant::now() < deadline, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
