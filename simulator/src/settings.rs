//! How the systems behave. All of it can be changed while they run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{cloudstack, daemon, linstor, vma};

/// How the systems behave.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How long everything takes, against the real thing: 0 is at once.
    pub pace: f64,
    /// Where the OMA's devices show up as files; none: they do not, and virt-v2v has nothing to work on.
    pub device_dir: Option<PathBuf>,
    /// So long may a replica hang nowhere, in milliseconds of ours: then I1 is broken.
    pub most_adrift_ms: i64,
    /// CloudStack.
    pub cloudstack: cloudstack::Switches,
    /// The Volume Daemon.
    pub daemon: daemon::Switches,
    /// The VMware appliance.
    pub vma: vma::Switches,
    /// LINSTOR.
    pub linstor: linstor::Switches,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            pace: 0.01,
            device_dir: None,
            most_adrift_ms: 4 * 3_600_000,
            cloudstack: cloudstack::Switches::default(),
            daemon: daemon::Switches::default(),
            vma: vma::Switches::default(),
            linstor: linstor::Switches::default(),
        }
    }
}
