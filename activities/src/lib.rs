//! The activities that make Backstay useful before any domain exists, and what the clients of domains stand on.
//!
//! ```text
//!   http      a call to a place that the configuration allows; its undo is another call
//!   command   a program that the configuration allows; off by default
//!   signal    tells another run what it waits for
//!   log       says something
//!   fail      fails as it is told, for drills
//!   secrets   named in plans, opened for one call, taken out of what comes back
//! ```
//!
//! And the clients of the real systems, which the activities of a domain are built on:
//!
//! ```text
//!   remote      what they have in common: one error, one way to call, one way to wait
//!   cloudstack  the cloud that machines are brought to
//!   daemon      the Volume Daemon, which attaches volumes and exports them
//!   vma         the appliance near vCenter: power, and copies of disks
//!   linstor     snapshots beneath the cloud
//!   v2v         the program that puts drivers into a guest
//!   decoders    what they read, fed with anything
//! ```
//!
//! `wait`, `approve` and `run` are no activities: the engine itself runs them.

pub mod cloudstack;
mod command;
pub mod daemon;
pub mod decoders;
mod fail;
pub mod http;
pub mod linstor;
mod log;
mod meaning;
mod reference;
pub mod remote;
pub mod secrets;
mod signal;
pub mod site;
pub mod v2v;
pub mod vma;

use std::sync::Arc;

use backstay_engine::Registry;

pub use command::{Command, CommandInput, CommandOutput, CommandSettings, Program};
pub use fail::{Fail, FailInput, FailOutput};
pub use http::HttpSettings;
pub use log::{Log, LogInput, LogOutput};
pub use meaning::Meaning;
pub use reference::{Text, secrets_named};
pub use secrets::Secrets;
pub use signal::{EngineSignals, SendError, Signal, SignalInput, SignalOutput, Signals};

/// What the activities are given by whoever registers them.
pub struct Builtin {
    /// Where `http` may call.
    pub http: HttpSettings,
    /// What `command` may run.
    pub command: CommandSettings,
    /// Where secrets are kept.
    pub secrets: Arc<dyn Secrets>,
    /// How `signal` reaches other runs.
    pub signals: Arc<dyn Signals>,
}

/// Adds them all. The error says what is wrong with the settings.
pub fn register(registry: &mut Registry, builtin: Builtin) -> Result<(), String> {
    let Builtin { http, command, secrets, signals } = builtin;
    let client = http::Client::new(http).map_err(|wrong| format!("http.origins: {wrong}"))?;
    *registry = std::mem::take(registry)
        .with(http::Http::new(client, Arc::clone(&secrets)))
        .with(Command::new(command, secrets)?)
        .with(Signal::new(signals))
        .with(Log)
        .with(Fail);
    Ok(())
}
