#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]
//! Failovers against the pretend data centre: whatever goes wrong, they end as was asked or say truly how they ended.

mod again;
mod alone;
mod breaks;
mod commit;
mod context;
mod guards;
mod guests;
mod hosts;
mod judge;
mod late;
mod looks;
mod ordinary;
mod play;
mod providers;
mod rotation;
mod source;
mod stage;
mod steps;
mod storm;
mod sweep;
mod twice;
mod undos;
mod way_back;
mod whole;
