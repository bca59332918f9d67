//! The program `backstay-simulator`: a pretend data centre until it is stopped.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use backstay_simulator::faults::Rule;
use backstay_simulator::world::estate;
use backstay_simulator::{Addresses, Datacentre, Start};
use clap::Parser;

/// A pretend data centre over real HTTP: CloudStack, the Volume Daemon, the VMware appliance and LINSTOR, with the truth
/// about them and with faults.
#[derive(Parser)]
#[command(name = "backstay-simulator", version)]
struct Options {
    /// Where CloudStack answers
    #[arg(long, default_value = "127.0.0.1:8080")]
    cloudstack: SocketAddr,
    /// Where the Volume Daemon answers
    #[arg(long, default_value = "127.0.0.1:8090")]
    daemon: SocketAddr,
    /// Where the VMware appliance answers
    #[arg(long, default_value = "127.0.0.1:9081")]
    vma: SocketAddr,
    /// Where LINSTOR answers
    #[arg(long, default_value = "127.0.0.1:3370")]
    linstor: SocketAddr,
    /// Where the truth is told, and the faults and the settings are changed
    #[arg(long, default_value = "127.0.0.1:8099")]
    control: SocketAddr,
    /// The seed of the estate and of the faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What there is, from a file; left out: a few dozen source VMs
    #[arg(long, value_name = "FILE")]
    estate: Option<PathBuf>,
    /// Where the OMA's devices show up as files, for the stand-in for virt-v2v-in-place
    #[arg(long, value_name = "DIR")]
    devices: Option<PathBuf>,
    /// Keeps the world in this file, and goes on with it when it is there
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// What goes wrong from the start: a JSON array of rules
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// How long everything takes against the real thing; 0 is at once
    #[arg(long, default_value_t = 0.05)]
    pace: f64,
    /// Writes what there would be to this file, to be changed by hand, and ends
    #[arg(long, value_name = "FILE")]
    write_estate: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .init();
    let options = Options::parse();
    let mut state = match &options.estate {
        Some(path) => estate::read(path)?,
        None => estate::new(options.seed),
    };
    state.settings.pace = options.pace;
    state.settings.device_dir = options.devices;
    if let Some(path) = &options.write_estate {
        return estate::write(&state, path);
    }
    let faults: Vec<Rule> = match &options.faults {
        Some(path) => {
            let text = std::fs::read(path)
                .with_context(|| format!("the faults {} cannot be read", path.display()))?;
            serde_json::from_slice(&text)
                .with_context(|| format!("{} does not hold rules", path.display()))?
        }
        None => Vec::new(),
    };
    let addresses = Addresses {
        cloudstack: options.cloudstack,
        daemon: options.daemon,
        vma: options.vma,
        linstor: options.linstor,
        control: options.control,
    };
    let site = Datacentre::start(Start { seed: options.seed, state, file: options.state, faults, addresses })
        .await?;
    println!("CloudStack       {}", site.cloudstack_url());
    println!("Volume Daemon    {}/api/v1", site.daemon_url());
    println!("VMA              {}/api/v1", site.vma_url());
    println!("LINSTOR          {}/v1", site.linstor_url());
    println!("truth, controls  {}/truth", site.control_url());
    // The keys open nothing but this: they are printed so that a client can be pointed at it.
    for account in site.world().look(|state| state.accounts.clone()) {
        println!("account          {}  apikey {}  secret {}", account.name, account.key, account.secret);
    }
    println!("ready");
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = term.recv() => (),
        ended = tokio::signal::ctrl_c() => ended?,
    }
    Ok(())
}
