//! The pretend data centre that failovers are measured in: a process of its own, so that what it costs is told apart; and a
//! node beside it that does as it is told, line by line.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use backstay_activities::cloudstack::{CloudStack, CloudStackSettings};
use backstay_activities::daemon::{Daemon, DaemonSettings};
use backstay_activities::http::Origin;
use backstay_activities::linstor::{Linstor, LinstorSettings};
use backstay_activities::remote::SecretName;
use backstay_activities::secrets::{Said, Secret, SecretError, Secrets};
use backstay_activities::site::{Plainly, Site, SiteSettings, TEST_NETWORK_TAG, register};
use backstay_activities::vma::{Vma, VmaSettings};
use backstay_engine::{Registry, Span, async_trait};
use backstay_simulator::world::{State, estate};
use backstay_simulator::{Datacentre, Start};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::recovery::{Lines, say};

/// Tells a node where the data centre is, and how often it looks.
const CENTRE: &str = "BENCH_CENTRE";
const PAUSE: &str = "BENCH_PAUSE";
/// The worker that is the data centre.
pub(crate) const NAME: &str = "centre";

/// Where it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Addresses {
    cloudstack: String,
    daemon: String,
    vma: String,
    linstor: String,
    pub control: String,
}

/// So many Linux machines of one disk each; everything in it takes no time.
pub(crate) fn estate_of(machines: usize) -> State {
    let mut state = estate::of(machines, 1);
    // Drivers for Windows are a process each: that is another measurement.
    state.sources.retain(|_, source| !source.windows);
    let State { sources, volumes, .. } = &mut state;
    volumes.retain(|_, volume| volume.replica_of.as_ref().is_none_or(|of| sources.contains_key(&of.source)));
    for network in state.networks.values_mut().filter(|network| network.name.starts_with("test-")) {
        network.tags.insert(TEST_NETWORK_TAG.into(), "true".into());
    }
    state.settings.pace = 0.0;
    state
}

/// The name of a machine, counted from 1.
pub(crate) fn machine(n: usize) -> String {
    format!("linux-{n:03}")
}

/// The process that is the data centre, until it is killed.
pub(crate) async fn serve(machines: usize) -> anyhow::Result<()> {
    let centre = Datacentre::start(Start::with(estate_of(machines))).await?;
    let at = Addresses {
        cloudstack: centre.cloudstack_url(),
        daemon: centre.daemon_url(),
        vma: centre.vma_url(),
        linstor: centre.linstor_url(),
        control: centre.control_url(),
    };
    say(&serde_json::to_string(&at)?)?;
    std::future::pending::<()>().await;
    Ok(())
}

/// A process that is measured, and ends with us.
pub(crate) struct Worker {
    pub pid: String,
    child: Child,
    orders: ChildStdin,
    said: Lines,
}

impl Worker {
    pub(crate) fn start(
        scenario: &str,
        name: &str,
        url: &str,
        machines: usize,
        node: Option<(&Addresses, Span)>,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([scenario, "--worker", url, "--name", name, "--concurrency", &machines.to_string()]);
        if let Some((at, pause)) = node {
            command.env(CENTRE, serde_json::to_string(at)?).env(PAUSE, pause.to_string());
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let orders = child.stdin.take().context("no input")?;
        let said = BufReader::new(child.stdout.take().context("no output")?).lines();
        let pid = child.id().context("the worker is gone")?.to_string();
        Ok(Self { pid, child, orders, said })
    }

    /// Its next line.
    pub(crate) async fn says(&mut self) -> anyhow::Result<String> {
        let line = tokio::time::timeout(Duration::from_secs(120), self.said.next_line()).await?;
        line?.context("a worker ended early")
    }

    /// Tells it to do something, and waits until it says that it is under way.
    pub(crate) async fn does<T: Serialize>(&mut self, order: &T) -> anyhow::Result<()> {
        self.orders.write_all(format!("{}\n", serde_json::to_string(order)?).as_bytes()).await?;
        self.says().await.map(drop)
    }

    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        self.child.start_kill()?;
        self.child.wait().await?;
        Ok(())
    }
}

/// The orders that a worker is given, one after the other.
pub(crate) async fn orders<T: for<'de> Deserialize<'de>>(
    lines: &mut tokio::io::Lines<BufReader<tokio::io::Stdin>>,
) -> anyhow::Result<Option<T>> {
    let Some(line) = lines.next_line().await? else { return Ok(None) };
    Ok(Some(serde_json::from_str(&line)?))
}

/// The secrets of the pretend data centre: they open nothing else.
#[derive(Debug)]
struct Pretended {
    origins: Vec<Origin>,
    of_account: (String, String),
}

#[async_trait]
impl Secrets for Pretended {
    async fn open(&self, name: &str) -> Result<Secret, SecretError> {
        let text = match name {
            "key" => self.of_account.0.clone(),
            "secret" => self.of_account.1.clone(),
            _ => "pretend-vcenter-password".to_owned(),
        };
        let text = SecretString::from(text);
        Ok(Secret { text, origins: self.origins.clone(), programs: Vec::new(), said: Said::Settings })
    }
}

/// The activities of a node beside it, as it was told.
pub(crate) fn registry(state: &State) -> anyhow::Result<Registry> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let at: Addresses = serde_json::from_str(&std::env::var(CENTRE).context("where is the data centre?")?)?;
    let wrong = |text: String| anyhow::anyhow!(text);
    let account = state.accounts.iter().find(|one| one.root_admin).context("nobody administers it")?;
    let origins = [at.cloudstack.trim_end_matches("/client/api"), &at.vma];
    let origins = origins.map(|url| Origin::parse(url).map_err(|error| anyhow::anyhow!(error.to_string())));
    let secrets: Arc<dyn Secrets> = Arc::new(Pretended {
        origins: origins.into_iter().collect::<anyhow::Result<_>>()?,
        of_account: (account.key.clone(), account.secret.clone()),
    });
    let pause: Span =
        serde_json::from_value(json!(std::env::var(PAUSE).context("how often does it look?")?))?;
    let cloudstack = CloudStackSettings {
        url: at.cloudstack,
        api_key: SecretName::new("key"),
        secret_key: SecretName::new("secret"),
        poll_first: pause,
        poll_ceiling: Span::from(pause.0 * 10),
        ..CloudStackSettings::default()
    };
    let daemon =
        DaemonSettings { url: format!("{}/api/v1", at.daemon), poll: pause, ..DaemonSettings::default() };
    let vma = VmaSettings {
        url: format!("{}/api/v1", at.vma),
        power_poll: pause,
        progress_poll: pause,
        ..VmaSettings::default()
    };
    let linstor = LinstorSettings { url: at.linstor, ..LinstorSettings::default() };
    let site = Site {
        cloudstack: CloudStack::new(cloudstack, Arc::clone(&secrets)).map_err(wrong)?,
        daemon: Daemon::new(daemon, Arc::clone(&secrets)).map_err(wrong)?,
        vma: Vma::new(vma, Arc::clone(&secrets)).map_err(wrong)?,
        linstor: Some(Linstor::new(linstor, secrets).map_err(wrong)?),
        v2v: None,
        settings: SiteSettings {
            oma: state.oma.to_string(),
            look_twice: pause,
            root_admin: true,
            ..SiteSettings::default()
        },
    };
    Ok(register(Registry::new(), site, &Plainly))
}

/// A vCenter, for inputs.
pub(crate) fn vcenter() -> Value {
    json!({
        "host": "vcenter.example", "datacenter": "DatabanxDC", "username": "administrator@vsphere.local",
        "password": { "secret": "vcenter" },
    })
}

/// What is so in it.
pub(crate) struct Truth {
    pub state: State,
    /// How often each of its systems was called, all calls together.
    pub calls: u64,
}

/// Asks it. That an invariant was broken is an error.
pub(crate) async fn truth(at: &Addresses) -> anyhow::Result<Truth> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build()?;
    let get = async |path: &str| {
        let answer = http.get(format!("{}/{path}", at.control)).send().await?.error_for_status()?;
        anyhow::Ok(answer.text().await?)
    };
    let truth: Value = serde_json::from_str(&get("truth").await?)?;
    let state: State = serde_json::from_str(&get("state").await?)?;
    if let Some(broken) = state.violations.first() {
        anyhow::bail!(
            "{} invariants were broken, first {}: {}",
            state.violations.len(),
            broken.invariant,
            broken.what
        );
    }
    let calls = truth.get("calls").and_then(Value::as_object).context("it counts no calls")?;
    Ok(Truth { state, calls: calls.values().filter_map(Value::as_u64).sum() })
}

/// Changes how it behaves.
pub(crate) async fn behave(at: &Addresses, settings: &Value) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build()?;
    let asked = http.patch(format!("{}/settings", at.control)).header("content-type", "application/json");
    asked.body(settings.to_string()).send().await?.error_for_status()?;
    Ok(())
}
