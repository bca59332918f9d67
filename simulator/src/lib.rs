//! A pretend data centre over real HTTP: CloudStack, the Volume Daemon, the VMware appliance and LINSTOR around one world,
//! with the truth about it, and with faults. For tests, benchmarks and the demo.
//!
//! It shares no code with what is tested against it, so that a wrong belief about the real systems shows as a failing test.

pub mod answer;
pub mod cloudstack;
pub mod conversion;
pub mod daemon;
pub mod devices;
pub mod faults;
pub mod linstor;
pub mod rest;
pub mod settings;
pub mod truth;
pub mod vma;
pub mod world;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use crate::answer::Server;
use crate::faults::{Faults, Rule};
use crate::truth::Truth;
use crate::world::{State, World};

/// What a data centre starts with.
pub struct Start {
    /// The seed of its faults.
    pub seed: u64,
    /// What there is, `settings` included. With a state file that is there, the file is what there is.
    pub state: State,
    /// Where it is kept, so that a killed program goes on where it was.
    pub file: Option<PathBuf>,
    /// What goes wrong from the start.
    pub faults: Vec<Rule>,
    /// Where the systems answer.
    pub addresses: Addresses,
}

/// Where the systems answer. Port 0 is any free one.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// CloudStack, at `/client/api`.
    pub cloudstack: SocketAddr,
    /// The Volume Daemon, at `/api/v1`.
    pub daemon: SocketAddr,
    /// The VMware appliance, at `/api/v1`.
    pub vma: SocketAddr,
    /// LINSTOR, at `/v1`.
    pub linstor: SocketAddr,
    /// The truth, the faults and the controls.
    pub control: SocketAddr,
}

impl Default for Addresses {
    fn default() -> Addresses {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Addresses { cloudstack: any, daemon: any, vma: any, linstor: any, control: any }
    }
}

impl Start {
    /// A data centre with this in it, anywhere on loopback, that forgets everything when it ends.
    pub fn with(state: State) -> Start {
        Start { seed: 0, state, file: None, faults: Vec::new(), addresses: Addresses::default() }
    }
}

/// A data centre that runs. It ends when it is dropped.
pub struct Datacentre {
    world: World,
    truth: Truth,
    control: Server,
}

/// The listeners, one for each system.
pub struct Servers {
    /// CloudStack.
    pub cloudstack: Server,
    /// The Volume Daemon.
    pub daemon: Server,
    /// The VMware appliance.
    pub vma: Server,
    /// LINSTOR.
    pub linstor: Server,
}

impl Datacentre {
    /// Starts it: when this returns, every system answers.
    pub async fn start(start: Start) -> anyhow::Result<Datacentre> {
        let Start { seed, state, file, faults: rules, addresses } = start;
        let faults = Faults::new(seed);
        for rule in rules {
            faults.rule(rule);
        }
        let world = World::new(state, faults, file)?;
        cloudstack::begin(&world);
        daemon::begin(&world);
        vma::begin(&world);
        linstor::begin(&world);
        let stopped = world.stopped();
        let servers = Arc::new(Servers {
            cloudstack: Server::start(
                addresses.cloudstack,
                cloudstack::router(world.clone()),
                stopped.clone(),
            )
            .await?,
            daemon: Server::start(addresses.daemon, daemon::router(world.clone()), stopped.clone()).await?,
            vma: Server::start(addresses.vma, vma::router(world.clone()), stopped.clone()).await?,
            linstor: Server::start(addresses.linstor, linstor::router(world.clone()), stopped.clone())
                .await?,
        });
        let truth = Truth::new(world.clone(), servers);
        let control = Server::start(addresses.control, truth::router(truth.clone()), stopped).await?;
        world.answers_at(control.address());
        Ok(Datacentre { world, truth, control })
    }

    /// The world itself.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// What is so, and the controls.
    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        self.world.faults()
    }

    /// Where CloudStack answers: `http://…/client/api`.
    pub fn cloudstack_url(&self) -> String {
        format!("{}/client/api", self.truth.servers().cloudstack.url())
    }

    /// Where the Volume Daemon answers, without `/api/v1`.
    pub fn daemon_url(&self) -> String {
        self.truth.servers().daemon.url()
    }

    /// Where the VMware appliance answers, without `/api/v1`.
    pub fn vma_url(&self) -> String {
        self.truth.servers().vma.url()
    }

    /// Where LINSTOR answers, without `/v1`.
    pub fn linstor_url(&self) -> String {
        self.truth.servers().linstor.url()
    }

    /// Where the truth is told over HTTP.
    pub fn control_url(&self) -> String {
        self.control.url()
    }
}

impl Drop for Datacentre {
    fn drop(&mut self) {
        self.world.stop();
    }
}
