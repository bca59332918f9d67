//! The ground under the API: sockets, TLS, and what every request goes through.
//!
//! ```text
//!   listen   the accept loop: who may connect, how many, and how long one may keep us waiting
//!   socket   a connection that knows what goes on in it, and when it has been enough
//!   tls      certificates, read again when they change
//!   validity from when to when a certificate is good
//!   layers   what every request goes through: id, span, figures, headers, compression
//!   systemd  what the service manager is told
//! ```

mod layers;
mod listen;
mod socket;
pub mod systemd;
#[cfg(test)]
mod tests;
mod tls;
mod validity;

pub(crate) use layers::inbound_id;
pub use layers::layered;
pub use listen::{Limits, serve};
pub use tls::Tls;
