//! What the clients of all the real systems have in common.
//!
//! ```text
//!   trouble   the one error: what the system said, and what the engine should make of it
//!   line      the way to one system: one call, with bounds, with its secrets, and without them in what comes back
//!   pace      waiting for something over there, and looking again: backoff, jitter, a deadline, an end on request
//!   loose     JSON as such systems write it: numbers as texts, null as an empty list
//! ```
//!
//! None of them repeats a call that changes something: the engine decides that, and journals it. A call that only looks is
//! made again a few times, while the whole call's time lasts ([`Looks`]).

mod line;
pub(crate) mod loose;
mod pace;
mod trouble;

pub(crate) use line::{Ask, Body, Line, Reach, Said, TOO_LARGE, decode};
pub use line::{SecretName, Word};
pub use pace::{Looks, Pace, wait};
pub use trouble::{Kind, Nature, Shape, Trouble};
