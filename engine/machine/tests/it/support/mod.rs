//! A run without a database, a clock or a task.
//!
//! ```text
//!   plans   small plans, and a catalog of activities that take anything
//!   sim     carries out commands one atomic move at a time, can be cut anywhere and go on under a new owner
//!   world   what the effects of a run came to
//!   people  ask for things, and look at what came of it
//!   oracle  reads a journal and says what was not allowed, without a line of `state`
//!   dice    all choices of a test, one after the other, or by chance
//! ```

pub mod dice;
pub mod oracle;
pub mod people;
pub mod plans;
pub mod sim;
pub mod world;

pub use dice::Dice;
pub use plans::*;
pub use sim::{End, Sim};
