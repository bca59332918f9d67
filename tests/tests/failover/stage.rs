//! A pretend data centre, a database, and nodes that move machines.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstay_activities::cloudstack::{CloudStack, CloudStackSettings};
use backstay_activities::daemon::{Daemon, DaemonSettings};
use backstay_activities::http::Origin;
use backstay_activities::linstor::{Linstor, LinstorSettings};
use backstay_activities::remote::{Looks, SecretName, Word};
use backstay_activities::secrets::{Said, Secret, SecretError, Secrets};
use backstay_activities::site::{Adds, Plainly, Site, SiteSettings, register};
use backstay_activities::v2v::{V2v, V2vSettings};
use backstay_activities::vma::{NbdTarget, Replicate, VCenter, Vma, VmaSettings};
use backstay_engine::machine::{Action, Fate, RollBack, Verb};
use backstay_engine::{
    Answer, Engine, Node, NodeConfig, Plan, Registry, RunId, Span, Status, Store, SubmitOptions,
};
use backstay_simulator::world::{Cause, State, estate};
use backstay_simulator::{Datacentre, Start};
use backstay_tests::Lab;
use backstay_workflows::Workflow;
use backstay_workflows::failover::FailoverWorkflow;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::play::hurry;

/// All of it.
pub struct Stage {
    pub lab: Lab,
    pub centre: Datacentre,
    pub secrets: Arc<Told>,
    pub dir: tempfile::TempDir,
    /// After so many failed reverts a disk is left to people.
    pub reverts: u32,
    /// After so long it is looked again whether something that is off stays so.
    pub look_twice: Span,
    /// How long an operation of the daemon may take.
    pub daemon_deadline: Span,
    /// How long a job of CloudStack may take.
    pub job_deadline: Span,
    /// What the site takes for the appliance, where that is not it.
    pub wrong_oma: Option<String>,
    /// How calls that only look are made again.
    pub looks: Looks,
    /// The key is a root administrator's, and the site says so.
    pub root_admin: bool,
}

/// Secrets that a test can change.
#[derive(Debug, Default)]
pub struct Told {
    texts: std::sync::Mutex<BTreeMap<String, String>>,
    origins: Vec<Origin>,
}

impl Told {
    pub fn tell(&self, name: &str, text: &str) {
        self.texts.lock().unwrap().insert(name.into(), text.into());
    }
}

#[async_trait]
impl Secrets for Told {
    async fn open(&self, name: &str) -> Result<Secret, SecretError> {
        let text = self.texts.lock().unwrap().get(name).cloned();
        let text = text.ok_or_else(|| SecretError::Refused(format!("there is no secret {name}")))?;
        let origins = self.origins.clone();
        Ok(Secret { text: SecretString::from(text), origins, programs: Vec::new(), said: Said::Settings })
    }
}

pub fn ms(millis: u64) -> Span {
    Span::from(Duration::from_millis(millis))
}

/// Who owns the estate is no root administrator; the daemon signs for one of its own.
pub fn give_to_an_ordinary_account(state: &mut State) {
    let mut admin = state.accounts.first().cloned().expect("an estate has an administrator");
    state.accounts.first_mut().expect("as before").root_admin = false;
    admin.name = "dr-administrators".into();
    admin.id = estate::id("account", &admin.name);
    admin.user = estate::id("user", &admin.name);
    admin.key = format!("pretend-key-of-{}", admin.name);
    admin.secret = format!("pretend-secret-of-{}", admin.name);
    // The daemon takes the first.
    state.accounts.insert(0, admin);
}

impl Stage {
    /// With a small estate.
    pub async fn new() -> anyhow::Result<Self> {
        Self::with(estate::small()).await
    }

    /// The same, by the key of an ordinary account: so the product is set if nobody says otherwise.
    pub async fn ordinary() -> anyhow::Result<Self> {
        let mut state = estate::small();
        give_to_an_ordinary_account(&mut state);
        // Without this its machines are destroyed, and there until CloudStack expunges them.
        state.configurations.insert("allow.user.expunge.recover.vm".into(), "true".into());
        Self::with(state).await
    }

    pub async fn with(mut state: State) -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir()?;
        state.settings.pace = 0.002;
        // All that a failover does takes seconds here, and the patience of its undos two minutes.
        state.settings.most_adrift_ms = 180_000;
        state.settings.device_dir = Some(dir.path().join("devices"));
        for name in ["test-lan", "test-dmz", "test-db", "test-l2"] {
            if let Some(network) = state.networks.get_mut(&estate::id("network", name)) {
                network.tags.insert("backstay-test-network".into(), "true".into());
            }
        }
        let centre = Datacentre::start(Start::with(state)).await?;
        let cloudstack = centre.cloudstack_url();
        let origins = [cloudstack.trim_end_matches("/client/api"), &centre.vma_url()]
            .map(|url| Origin::parse(url).map_err(|wrong| anyhow::anyhow!(wrong.to_string())));
        let origins = origins.into_iter().collect::<anyhow::Result<_>>()?;
        let secrets = Arc::new(Told { texts: std::sync::Mutex::default(), origins });
        // The appliance's own: it owns the volumes and the networks.
        let account = centre.world().look(|state| {
            let owner = &state.vms[&state.oma].account;
            state.accounts.iter().find(|one| one.name == *owner).cloned()
        });
        let account = account.expect("the appliance has an owner");
        secrets.tell("cloudstack-key", &account.key);
        secrets.tell("cloudstack-secret", &account.secret);
        secrets.tell("vcenter", "pretend-vcenter-password");
        Ok(Self {
            lab: Lab::new().await?,
            centre,
            secrets,
            dir,
            reverts: SiteSettings::default().reverts,
            look_twice: ms(20),
            daemon_deadline: Span::secs(5),
            job_deadline: Span::secs(20),
            wrong_oma: None,
            looks: Looks { tries: 4, first: ms(5), ceiling: ms(50) },
            root_admin: account.root_admin,
        })
    }

    /// The activities, as a node in this process has them.
    pub fn registry(&self) -> anyhow::Result<Registry> {
        self.registry_of(&Plainly)
    }

    /// The same, in a way of the test's.
    pub fn registry_of(&self, how: &impl Adds) -> anyhow::Result<Registry> {
        let secrets = || Arc::clone(&self.secrets) as Arc<dyn Secrets>;
        let wrong = |text: String| anyhow::anyhow!(text);
        let cloudstack = CloudStackSettings {
            url: self.centre.cloudstack_url(),
            api_key: SecretName::new("cloudstack-key"),
            secret_key: SecretName::new("cloudstack-secret"),
            poll_first: ms(10),
            poll_ceiling: ms(100),
            answer_timeout: ms(2_000),
            timeout: ms(4_000),
            job_deadline: self.job_deadline,
            snapshot_deadline: self.job_deadline,
            looks: self.looks,
            ..CloudStackSettings::default()
        };
        let daemon = DaemonSettings {
            url: format!("{}/api/v1", self.centre.daemon_url()),
            poll: ms(10),
            answer_timeout: ms(2_000),
            timeout: ms(4_000),
            attach_deadline: self.daemon_deadline,
            detach_deadline: self.daemon_deadline,
            looks: self.looks,
            ..DaemonSettings::default()
        };
        let linstor = LinstorSettings {
            url: self.centre.linstor_url(),
            looks: self.looks,
            ..LinstorSettings::default()
        };
        let v2v = V2vSettings {
            program: env!("CARGO_BIN_EXE_pretend-v2v").into(),
            dir: self.dir.path().join("v2v"),
            devices: self.dir.path().join("devices"),
            tmp: self.dir.path().to_owned(),
            deadline: Span::secs(20),
            ..V2vSettings::default()
        };
        let site = Site {
            cloudstack: CloudStack::new(cloudstack, secrets()).map_err(wrong)?,
            daemon: Daemon::new(daemon, secrets()).map_err(wrong)?,
            vma: self.vma()?,
            linstor: Some(Linstor::new(linstor, secrets()).map_err(wrong)?),
            v2v: Some(V2v::new(v2v).map_err(wrong)?),
            settings: SiteSettings {
                oma: self
                    .wrong_oma
                    .clone()
                    .unwrap_or_else(|| self.centre.world().look(|state| state.oma).to_string()),
                settle: ms(1_000),
                longest_delay: ms(100),
                look_twice: self.look_twice,
                root_admin: self.root_admin,
                reverts: self.reverts,
                ..SiteSettings::default()
            },
        };
        Ok(register(Registry::new(), site, how))
    }

    /// The client of the VMA.
    pub fn vma(&self) -> anyhow::Result<Vma> {
        let settings = VmaSettings {
            url: format!("{}/api/v1", self.centre.vma_url()),
            power_poll: ms(10),
            progress_poll: ms(10),
            progress_grace: ms(200),
            progress_stall: ms(1_500),
            power_off_wait: Span::secs(2),
            power_on_wait: Span::secs(5),
            power_timeout: Span::secs(3),
            replicate_timeout: Span::secs(3),
            progress_timeout: Span::secs(3),
            looks: self.looks,
            ..VmaSettings::default()
        };
        Vma::new(settings, Arc::clone(&self.secrets) as Arc<dyn Secrets>)
            .map_err(|wrong| anyhow::anyhow!(wrong))
    }

    /// Somebody else, replication, has the VMA copy `web-01`: `nightly`.
    pub async fn copy_of_somebody_else(&self) -> anyhow::Result<()> {
        let order = Replicate {
            job: "nightly".into(),
            vm_paths: vec!["/DatabanxDC/vm/web-01".into()],
            oma_url: "http://127.0.0.1:8082".into(),
            targets: vec![NbdTarget {
                device_path: format!(
                    "nbd://127.0.0.1:10809/migration-vol-{}",
                    estate::replica("web-01", 2000)
                ),
                vm_disk_id: 2000,
                vmware_disk_key: "2000".into(),
            }],
        };
        let vcenter = VCenter {
            host: "vcenter.example".into(),
            datacenter: "DatabanxDC".into(),
            username: Word::Plain("administrator@vsphere.local".into()),
            password: SecretName::new("vcenter"),
        };
        self.vma()?.replicate(&order, &vcenter).await.map_err(|trouble| anyhow::anyhow!("{trouble}"))?;
        Ok(())
    }

    pub fn config(name: &str) -> NodeConfig {
        // A lease that is lost on a busy machine counts as a death, too, beside those that a test plays. That a run which kills
        // nodes is put aside is shown elsewhere.
        NodeConfig { progress_every: Duration::from_millis(50), max_crashes: i16::MAX, ..Lab::config(name) }
    }

    /// A node on an engine of its own.
    pub async fn node(&self, config: NodeConfig) -> anyhow::Result<(Engine, Node)> {
        let engine = Engine::open(Store::connect(&self.lab.url).await?, self.registry()?).await?;
        let node = engine.start_node(config).await?;
        Ok((engine, node))
    }

    /// The same, whose activities are added in a way of the test's.
    pub async fn node_of(&self, config: NodeConfig, how: &impl Adds) -> anyhow::Result<(Engine, Node)> {
        let engine = Engine::open(Store::connect(&self.lab.url).await?, self.registry_of(how)?).await?;
        let node = engine.start_node(config).await?;
        Ok((engine, node))
    }

    /// The input of the workflow for a machine of the estate.
    pub fn input(&self, name: &str, mode: &str) -> Value {
        let source = self.centre.world().look(|state| state.sources[&estate::source(name)].clone());
        let network = if mode == "test" { "test-lan" } else { "prod-lan" };
        let of = |kind: &str, name: &str| estate::id(kind, name).to_string();
        let disks: Vec<_> = source
            .disks
            .iter()
            .map(|disk| json!({ "key": disk.key, "volume": disk.replica.to_string(), "size": disk.size }))
            .collect();
        json!({
            "context": name, "mode": mode,
            "source": {
                "id": source.id, "name": source.name, "path": source.path, "windows": source.windows,
                "boot_type": if source.firmware == "efi" { "UEFI" } else { "BIOS" },
                "cpus": source.cpus, "memory_mb": source.memory_mb, "disks": disks,
                "vcenter": {
                    "host": "vcenter.example", "datacenter": "DatabanxDC", "username": "administrator@vsphere.local",
                    "password": { "secret": "vcenter" },
                },
            },
            "destination": {
                "zone": of("zone", "zone-1"), "offering": of("service-offering", "custom"),
                "template": of("template", "tiny"), "nics": [{ "network": of("network", network) }],
            },
            "force_after": "1s", "sync_within": "10s", "test_for": "1h", "steady": "50ms", "boot_within": "5s",
        })
    }

    /// Submits a failover.
    pub async fn submit(&self, engine: &Engine, input: &Value) -> anyhow::Result<RunId> {
        let prepared = FailoverWorkflow.prepare(input).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        let plan = FailoverWorkflow
            .checked(input, engine.registry())
            .map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        let options = SubmitOptions { exclusive: prepared.exclusive, ..SubmitOptions::default() };
        Ok(engine.submit(&plan, options).await?.run)
    }

    /// The same, with short waits between so many attempts of each step and of each undo.
    pub async fn submit_in_a_hurry(
        &self,
        engine: &Engine,
        input: &Value,
        attempts: (u32, u32),
    ) -> anyhow::Result<RunId> {
        let prepared = FailoverWorkflow.prepare(input).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        let mut plan = serde_json::to_value(&prepared.plan)?;
        hurry(&mut plan, attempts);
        let plan = Plan::check_json(&plan.to_string(), engine.registry())?;
        let options = SubmitOptions { exclusive: prepared.exclusive, ..SubmitOptions::default() };
        Ok(engine.submit(&plan, options).await?.run)
    }

    /// Has a run rolled back.
    pub async fn roll_back(&self, engine: &Engine, run: RunId) -> anyhow::Result<()> {
        match self.act(engine, run, Verb::RollBack(RollBack::default())).await {
            // Somebody was cut off right after asking for it.
            Err(error) if error.to_string().contains("it is rolling back already") => Ok(()),
            done => done,
        }
    }

    /// What people do at the hypervisor when CloudStack has lost sight of a volume: it says that it is detached, and it is
    /// not, so every attach is refused.
    pub fn unplug_what_cloudstack_lost(&self) {
        self.centre.world().change(Cause::new("people", "virsh detach-disk", ""), |state| {
            for volume in state.volumes.values_mut().filter(|volume| volume.attached.is_none()) {
                volume.plugged.clear();
            }
        });
    }

    /// Gives up the way back.
    pub async fn commit(&self, engine: &Engine, run: RunId, name: &str) -> anyhow::Result<()> {
        self.centre.truth().commit(&estate::source(name));
        match self.act(engine, run, Verb::Commit).await {
            // Somebody was cut off right after asking for it.
            Err(error) if error.to_string().contains("it is being committed already") => Ok(()),
            done => done,
        }
    }

    /// What an operator does.
    pub async fn act(&self, engine: &Engine, run: RunId, verb: Verb) -> anyhow::Result<()> {
        let id = uuid::Uuid::new_v4();
        let action = Action { id, who: "anna".into(), why: "enough".into(), seen: None, via: None, verb };
        let answer = engine.act(run, &action).await?;
        anyhow::ensure!(!matches!(answer, Answer::Refused { .. }), "{answer:?}");
        Ok(())
    }

    /// An engine that drives nothing.
    pub async fn beside(&self) -> anyhow::Result<Engine> {
        Ok(Engine::open(Store::connect(&self.lab.url).await?, self.registry()?).await?)
    }

    /// Waits until a run is not any more what it was.
    pub async fn moves_on(&self, engine: &Engine, run: RunId, from: Status) -> anyhow::Result<()> {
        for _ in 0..2_000 {
            if engine.get(run).await?.status != from {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::bail!("it stays {}:\n{}", from.as_str(), self.lab.story(run).await?)
    }

    /// All is undone, but for snapshots that CloudStack would not delete: people remove those that the record names, and say so.
    pub async fn account_for_what_is_left(&self, engine: &Engine, run: RunId) -> anyhow::Result<()> {
        for one in engine.state(run).await?.resources().filter(|one| one.fate == Fate::Unproven) {
            self.centre.world().change(Cause::new("people", "remove", &one.name), |state| {
                let is_it = |name: &str, of| format!("{name} of {of}") == one.name;
                for snapshot in state.snapshots.values_mut().filter(|it| is_it(&it.name, it.volume)) {
                    (snapshot.removed, snapshot.state) = (Some(chrono::Utc::now()), "Destroyed".into());
                }
            });
            let (step, kind, name) = (one.step.to_string(), one.kind.clone(), one.name.clone());
            self.act(engine, run, Verb::Account { step, kind, name, became: Fate::Gone }).await?;
        }
        Ok(())
    }

    /// The undos that failed for good.
    pub async fn stuck(&self, engine: &Engine, run: RunId) -> anyhow::Result<Vec<String>> {
        let rows = engine.journal(run).await?;
        let mut failed = std::collections::BTreeSet::new();
        for row in &rows {
            let (Some(step), true) = (&row.step, row.undo) else { continue };
            let body = row.body.as_ref().map(|body| body.value()).unwrap_or_default();
            match row.kind {
                "failed" if body.get("retry_at").is_none_or(Value::is_null) => {
                    failed.insert(step.to_string())
                }
                "succeeded" | "retried" => failed.remove(&**step),
                _ => false,
            };
        }
        Ok(failed.into_iter().collect())
    }

    /// Waits until a run is over, waits for people, or has succeeded.
    pub async fn settled(&self, engine: &Engine, run: RunId) -> anyhow::Result<Status> {
        // Every attempt there and every attempt back, with the runbook's own waits between them, takes five minutes.
        let waiting = engine.watch(run).ended();
        match tokio::time::timeout(Duration::from_mins(10), waiting).await {
            Ok(status) => Ok(status?),
            Err(_) => anyhow::bail!("run {run} does not end:\n{}", self.lab.story(run).await?),
        }
    }

    /// What nobody may ever see.
    pub fn is_sound(&self) -> anyhow::Result<()> {
        let violations = self.centre.truth().violations();
        anyhow::ensure!(violations.is_empty(), "invariants were broken: {violations:#?}");
        Ok(())
    }
}
