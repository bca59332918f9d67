#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]
//! Failovers against the pretend data centre: whatever goes wrong, they end as was asked or say truly how they ended.

mod breaks;
mod commit;
mod judge;
mod play;
mod rotation;
mod stage;
mod storm;
mod sweep;
mod twice;
mod undos;
mod way_back;
mod whole;
