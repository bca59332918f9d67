//! The engine on real Postgres.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod crashes;
mod processes;
mod runs;
mod tidiness;
