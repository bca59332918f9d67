#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]
//! The program as a process: what it prints, how it exits, what it leaves behind.

mod api;
mod canary;
mod colours;
mod config;
mod demo;
mod hostile;
mod logs;
mod node;
mod outage;
mod packaging;
mod pages;
mod policy;
mod remote;
mod restored;
mod roles;
mod rolling;
mod secrets;
mod served;
mod site;
mod slow;
mod support;
mod traces;
mod workflow;
