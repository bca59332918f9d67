//! The activities, as the engine calls them: against servers on this machine, and with real processes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod addresses;
mod answers;
mod bounds;
mod cloudstack;
mod command;
mod daemon;
mod decoders;
mod documents;
mod http;
mod linstor;
mod looks;
mod secrets;
mod small;
mod support;
mod trace;
mod v2v;
mod vma;
