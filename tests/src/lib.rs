#![allow(missing_docs, clippy::panic, reason = "this is test code")]
//! A laboratory for the engine: a fresh database, a world with ground truth, nodes that can be made to die.

mod around;
pub mod decoders;
mod facts;
mod lab;
pub mod meter;
pub mod plans;
mod wire;
mod world;

pub use around::{Around, Twice, With};
pub use facts::{Become, GiveBack};
pub use lab::{Deaths, Lab};
pub use meter::Meter;
pub use wire::{Cut, Wire};
pub use world::{Make, Thing, Unmake, World};
