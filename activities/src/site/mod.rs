//! The activities that move a machine between two sites: from VMware to CloudStack, and back.
//!
//! ```text
//!   change      the protocol of every change: look, adopt what is at work, call, wait, look again
//!   tags        notes on things over there
//!   guard       what is asked right before a call, whatever the plan says
//!   source      the machine at VMware: off, and on again
//!   sync        its last changes, copied once it is off
//!   pairing     which disk is which volume, as far as anybody can tell
//!   copies      what the VMA says of copies, and what of it can be believed
//!   exports     the way by which replication writes
//!   volumes     from the appliance to the machine, and home
//!   snapshots   the way back, for all disks of a machine or for none; revert
//!   virtio      drivers for Windows
//!   machine     the machine at CloudStack: made, and unmade
//!   blank       the blank disk that it is born with, thrown away
//!   nics        its cards, for plans of your own
//!   power       it starts and stops; whether it came up
//!   validate    everything that can be known before anything is touched
//!   context     whether a machine can be failed over: a fact that every run goes by
//! ```
//!
//! Each reads the state of the world before it claims success: that a command was answered is not its effect. Volumes go
//! through the Volume Daemon, which keeps devices and exports, but where a volume is only CloudStack says.

mod blank;
mod change;
mod context;
mod copies;
mod exports;
mod guard;
mod machine;
mod nics;
mod pairing;
mod power;
mod snapshots;
mod source;
mod sync;
mod tags;
mod validate;
mod virtio;
mod volumes;

use std::sync::Arc;

use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Registry, Span};
use serde::{Deserialize, Serialize};

use crate::cloudstack::CloudStack;
use crate::daemon::Daemon;
use crate::linstor::Linstor;
use crate::v2v::V2v;
use crate::vma::Vma;

/// The tag that everything which a run makes carries; its value is the run.
pub const RUN_TAG: &str = "backstay-run";
/// The tag of a volume that was written by others than replication, and could not be put back.
pub const DIRTY_TAG: &str = "backstay-dirty";
/// The tag of the volume that a guest starts from: how far the conversion is.
const VIRTIO_TAG: &str = "backstay-virtio";
/// The tag of a network in which rehearsals may take place.
pub const TEST_NETWORK_TAG: &str = "backstay-test-network";

/// The pools in which calls take their turns, one for each system.
pub const CLOUDSTACK_POOL: &str = "cloudstack";
/// See [`CLOUDSTACK_POOL`].
pub const DAEMON_POOL: &str = "volume-daemon";
/// See [`CLOUDSTACK_POOL`].
pub const VMA_POOL: &str = "vma";
/// See [`CLOUDSTACK_POOL`].
pub const V2V_POOL: &str = "virt-v2v";

/// How the activities go about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SiteSettings {
    /// The appliance, by the id of its machine at CloudStack.
    pub oma: String,
    /// After a call was answered, its effect may take so long to show.
    pub settle: Span,
    /// After a call was lost, its effect may still come for so long.
    pub longest_delay: Span,
    /// A machine that is off, the source or its copy, is looked at again after so long: it may have been started again.
    pub look_twice: Span,
    /// A copy of somebody else's into the same volumes is waited for so long before their exports are closed.
    pub others_within: Span,
    /// So many copies of the last changes are begun, if they fail.
    pub copies: u32,
    /// A revert that failed so often is left to people; the volume comes home all the same.
    pub reverts: u32,
    /// A template of more bytes is no blank disk: the machine's first disk would have to be as large, and it is thrown away.
    pub largest_template: i64,
    /// A machine whose disks lie on several storages is refused: between those of different clusters CloudStack copies them.
    pub one_storage: bool,
    /// The key may choose the ids of what it makes: it is a root administrator's.
    pub root_admin: bool,
    /// Where the appliance takes what the VMA copies, as the VMA reaches it.
    pub nbd_host: String,
    /// The appliance's own address, as the VMA reaches it.
    pub oma_url: String,
}

impl Default for SiteSettings {
    fn default() -> Self {
        Self {
            oma: String::new(),
            settle: Span::secs(60),
            longest_delay: Span::secs(30),
            look_twice: Span::secs(5),
            others_within: Span::secs(20 * 60),
            copies: 5,
            reverts: 5,
            largest_template: 2 << 30,
            one_storage: true,
            root_admin: false,
            nbd_host: "127.0.0.1:10809".into(),
            oma_url: "http://127.0.0.1:8082".into(),
        }
    }
}

/// Both ends, and what is in between.
pub struct Site {
    /// Where machines go.
    pub cloudstack: CloudStack,
    /// Who moves volumes.
    pub daemon: Daemon,
    /// Where machines come from.
    pub vma: Vma,
    /// The storage below, where it takes the snapshots.
    pub linstor: Option<Linstor>,
    /// The conversion, where this process runs on the appliance.
    pub v2v: Option<V2v>,
    /// How.
    pub settings: SiteSettings,
}

impl Site {
    /// What is known of the effect of most: it can be looked at, and a call that was lost may have it for a while yet.
    fn effect(&self) -> Effect {
        Effect { probed: true, longest_delay: self.settings.longest_delay, ..Effect::default() }
    }
}

/// How activities are added: a test may have each attempt run twice.
pub trait Adds {
    /// Adds one.
    fn add<A>(&self, registry: Registry, activity: A) -> Registry
    where
        A: Activity,
        A::Input: Clone + Sync;
}

/// As they are.
#[derive(Clone, Copy, Debug)]
pub struct Plainly;

impl Adds for Plainly {
    fn add<A>(&self, registry: Registry, activity: A) -> Registry
    where
        A: Activity,
        A::Input: Clone + Sync,
    {
        registry.with(activity)
    }
}

/// Adds all of them.
pub fn register(registry: Registry, site: Site, how: &impl Adds) -> Registry {
    let site = Arc::new(site);
    let of = || Arc::clone(&site);
    let registry = how.add(registry, validate::Validate(of()));
    let registry = how.add(registry, context::ClaimContext);
    let registry = how.add(registry, context::ReleaseContext);
    let registry = how.add(registry, context::RecordFailedOver);
    let registry = how.add(registry, context::WithdrawFailedOver);
    let registry = how.add(registry, context::SettleContext);
    let registry = how.add(registry, source::PowerOffSource(of()));
    let registry = how.add(registry, source::PowerOnSource(of()));
    let registry = how.add(registry, sync::FinalSync(of()));
    let registry = how.add(registry, sync::AwaitCopy(of()));
    let registry = how.add(registry, exports::CloseExports(of()));
    let registry = how.add(registry, exports::OpenExports(of()));
    let registry = how.add(registry, volumes::TakeFromOma(of()));
    let registry = how.add(registry, volumes::ReturnToOma(of()));
    let registry = how.add(registry, volumes::AttachVolume(of()));
    let registry = how.add(registry, volumes::DetachVolume(of()));
    let registry = how.add(registry, snapshots::TakeSnapshots(of()));
    let registry = how.add(registry, snapshots::RevertSnapshots(of()));
    let registry = how.add(registry, snapshots::DropSnapshots(of()));
    let registry = how.add(registry, virtio::InjectDrivers(of()));
    let registry = how.add(registry, machine::CreateVm(of()));
    let registry = how.add(registry, machine::DestroyVm(of()));
    let registry = how.add(registry, blank::DropBlankRoot(of()));
    let registry = how.add(registry, blank::RemoveBlankDisk(of()));
    let registry = how.add(registry, nics::SetNics(of()));
    let registry = how.add(registry, power::StartVm(of()));
    let registry = how.add(registry, power::StopVm(of()));
    how.add(registry, power::CheckBoot(of()))
}
