#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "this is test code")]
//! Failovers against the pretend data centre: whatever goes wrong, they end as was asked or say truly how they ended.

mod context;
mod judge;
mod stage;
mod storm;
mod sweep;
mod twice;
mod whole;
