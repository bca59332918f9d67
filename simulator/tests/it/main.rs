//! The simulator is what it says: over real HTTP, against clients that nobody here wrote, killed and started again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod client;
mod conditions;
mod faults;
mod guests;
mod invariants;
mod jobs;
mod late;
mod program;
mod python;
mod requests;
mod rules;
mod speed;
mod storage;
mod systems;
mod touched;
