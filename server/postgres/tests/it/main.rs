//! Real servers, real kills. Each test has a folder of its own in the system's temporary folder.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod crash;
mod fetch;
mod life;
mod search;
mod support;
