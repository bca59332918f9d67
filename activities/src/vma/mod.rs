//! The client of the VMA, the appliance near vCenter: it powers machines off and on, and copies their disks.
//!
//! It has no credentials of its own: vCenter's go along with each call, in the body, and for two of them in the query. They
//! are opened for that call and nowhere repeated. That it says "success" is not the effect: a machine is off when its
//! power state says so, and a copy is done when its progress says so.

mod objects;

use std::path::PathBuf;
use std::sync::Arc;

use backstay_engine::Span;
use reqwest::Method;
use schemars::JsonSchema;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use objects::{
    CbtStatus, Copying, Disk, DiskProgress, JobStatus, NicInfo, Power, PowerAnswer, PowerState, Progress,
    SpecChanges, Started, VmInfo,
};
pub use objects::{
    cbt_status, health, job_status, machines, power_answer, power_state, progress, spec_changes, started,
};

use crate::http::Origin;
use crate::remote::{
    Ask, Kind, Line, Looks, Nature, Pace, Reach, Said, SecretName, Shape, Trouble, Word, wait,
};
use crate::secrets::{Scrub, Secrets};

/// The name of the system in errors.
pub(crate) const SYSTEM: &str = "VMA";

/// Where the VMA is, and how it is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmaSettings {
    /// Its address, with the path of its API.
    pub url: String,
    /// A file with the certificates (PEM) that it is trusted by, in place of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// How long a connection may take.
    pub connect_timeout: Span,
    /// How long a call about power may take; the VMA is told not to take longer either.
    pub power_timeout: Span,
    /// How long it may take to look machines up.
    pub discover_timeout: Span,
    /// How long it may take to begin a copy.
    pub replicate_timeout: Span,
    /// How long it may take to say how far a copy is.
    pub progress_timeout: Span,
    /// The largest answer that is read, in bytes.
    pub max_answer: usize,
    /// How calls that only look are repeated.
    pub looks: Looks,
    /// The pause between looks at a power state.
    pub power_poll: Span,
    /// How long a machine may take to be off.
    pub power_off_wait: Span,
    /// How long a machine may take to be on.
    pub power_on_wait: Span,
    /// The pause between looks at a copy.
    pub progress_poll: Span,
    /// How long after its beginning a copy may be unknown. And how long a copy of several disks has to be called completed, if
    /// the VMA does not list them: it may say so after each.
    pub progress_grace: Span,
    /// A copy that has not moved for so long counts as failed. Less than one wait of a rollback (25 minutes), or a rollback
    /// never sees it: it waits again from the beginning.
    pub progress_stall: Span,
}

impl Default for VmaSettings {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:9081/api/v1".into(),
            ca: None,
            connect_timeout: Span::secs(10),
            power_timeout: Span::secs(60),
            discover_timeout: Span::secs(60),
            replicate_timeout: Span::secs(30),
            progress_timeout: Span::secs(10),
            max_answer: 8 << 20,
            looks: Looks::default(),
            power_poll: Span::secs(5),
            power_off_wait: Span::secs(120),
            power_on_wait: Span::secs(180),
            progress_poll: Span::secs(5),
            progress_grace: Span::secs(30),
            progress_stall: Span::secs(1200),
        }
    }
}

/// A vCenter, and the credentials for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VCenter {
    /// Its host.
    pub host: String,
    /// The data centre in it.
    pub datacenter: String,
    /// Who calls.
    pub username: Word,
    /// The name of the secret that is the password.
    pub password: SecretName,
}

/// A copy to be begun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replicate {
    /// Its id: chosen by the caller.
    pub job: String,
    /// The machines' paths in vCenter.
    pub vm_paths: Vec<String>,
    /// Where the VMA reports to.
    pub oma_url: String,
    /// Which disk goes where.
    pub targets: Vec<NbdTarget>,
}

/// Where a disk is copied to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NbdTarget {
    /// `nbd://host:port/export`.
    pub device_path: String,
    /// The disk's id over here.
    pub vm_disk_id: i64,
    /// The disk's key in VMware, such as 2000.
    pub vmware_disk_key: String,
}

/// The client. Cheap to clone.
#[derive(Clone)]
pub struct Vma {
    line: Line,
    settings: Arc<VmaSettings>,
}

impl std::fmt::Debug for Vma {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VMA at {}", self.line.origin())
    }
}

impl Vma {
    /// The error says what is wrong with the settings.
    pub fn new(settings: VmaSettings, secrets: Arc<dyn Secrets>) -> Result<Self, String> {
        let all = [
            settings.power_timeout,
            settings.discover_timeout,
            settings.replicate_timeout,
            settings.progress_timeout,
        ];
        let longest = all.into_iter().max_by_key(|span| span.0).unwrap_or(settings.power_timeout);
        let reach = Reach {
            url: &settings.url,
            ca: settings.ca.as_deref(),
            connect_timeout: settings.connect_timeout,
            // It says nothing before it is done, so the head may take as long as the call.
            answer_timeout: longest,
            timeout: longest,
            max_answer: settings.max_answer,
            looks: settings.looks,
            refused,
        };
        let line = Line::new(SYSTEM, &reach, secrets)?;
        Ok(Self { line, settings: Arc::new(settings) })
    }

    /// What it was made with.
    pub fn settings(&self) -> &VmaSettings {
        &self.settings
    }

    /// Where it calls.
    pub fn origin(&self) -> &Origin {
        self.line.origin()
    }

    /// The machines of a vCenter, or those whose name fits the filter: look for the exact one among them.
    pub async fn discover(&self, vcenter: &VCenter, filter: Option<&str>) -> Result<Vec<VmInfo>, Trouble> {
        let mut more = Map::from_iter([("datacenter".to_owned(), vcenter.datacenter.as_str().into())]);
        if let Some(filter) = filter {
            more.insert("filter".into(), filter.into());
        }
        let timeout = self.settings.discover_timeout;
        self.post(Nature::Looks, &["discover"], vcenter, more, timeout)
            .await?
            .read(objects::machines, refused)
    }

    /// Begins to power a machine off: in a clean way, or by force. The answer comes before the machine is off.
    pub async fn power_off(&self, vm: &str, vcenter: &VCenter, force: bool) -> Result<PowerAnswer, Trouble> {
        let more = [
            ("force".to_owned(), force.into()),
            ("timeout".to_owned(), self.settings.power_timeout.0.as_secs().into()),
            ("wait_for_shutdown".to_owned(), true.into()),
        ];
        self.power(vm, "power-off", vcenter, Map::from_iter(more)).await
    }

    /// Begins to power a machine on, without waiting for its tools.
    pub async fn power_on(&self, vm: &str, vcenter: &VCenter) -> Result<PowerAnswer, Trouble> {
        let more = [
            ("timeout".to_owned(), self.settings.power_timeout.0.as_secs().into()),
            ("wait_for_tools".to_owned(), false.into()),
        ];
        self.power(vm, "power-on", vcenter, Map::from_iter(more)).await
    }

    async fn power(
        &self,
        vm: &str,
        verb: &str,
        vcenter: &VCenter,
        mut more: Map<String, Value>,
    ) -> Result<PowerAnswer, Trouble> {
        more.insert("vm_id".into(), vm.into());
        let timeout = self.settings.power_timeout;
        let said = self.post(Nature::Changes, &["vm", vm, verb], vcenter, more, timeout).await?;
        let answer = said.read(objects::power_answer, refused)?;
        if !answer.success {
            let text = answer.message.unwrap_or_else(|| "it says that it did not succeed".into());
            return Err(Trouble::new(SYSTEM, Kind::Look, text).status(said.status));
        }
        Ok(answer)
    }

    /// Whether a machine is on, by the id of its instance.
    pub async fn power_state(&self, vm: &str, vcenter: &VCenter) -> Result<PowerState, Trouble> {
        let (path, timeout) = (["vm", vm, "power-state"], self.settings.power_timeout);
        self.get(&path, vcenter, timeout).await?.read(objects::power_state, refused)
    }

    /// Waits until a machine is as wanted, for as long as the settings say.
    pub async fn wait_for_power(
        &self,
        vm: &str,
        vcenter: &VCenter,
        wanted: Power,
        stop: impl Future<Output = ()>,
    ) -> Result<PowerState, Trouble> {
        let deadline = match wanted {
            Power::Off => self.settings.power_off_wait,
            _ => self.settings.power_on_wait,
        };
        let pace = Pace { first: self.settings.power_poll, ceiling: self.settings.power_poll, deadline };
        let what = format!("while the machine {vm} was to become {wanted:?}");
        let found = wait(SYSTEM, &what, pace, stop, || async {
            let state = self.power_state(vm, vcenter).await?;
            Ok((state.power_state == wanted).then_some(state))
        });
        // A look that fails has no effect, but what is waited for may have.
        found.await.map_err(Trouble::maybe_applied)
    }

    /// Begins a copy.
    pub async fn replicate(&self, copy: &Replicate, vcenter: &VCenter) -> Result<Started, Trouble> {
        let targets = copy.targets.iter().map(|target| {
            json!({
                "device_path": target.device_path, "vm_disk_id": target.vm_disk_id,
                "vmware_disk_key": target.vmware_disk_key,
            })
        });
        let more = [
            ("job_id".to_owned(), copy.job.as_str().into()),
            ("vm_paths".to_owned(), copy.vm_paths.clone().into()),
            ("oma_url".to_owned(), copy.oma_url.as_str().into()),
            ("nbd_targets".to_owned(), targets.collect::<Vec<_>>().into()),
        ];
        let timeout = self.settings.replicate_timeout;
        let said = self.post(Nature::Changes, &["replicate"], vcenter, Map::from_iter(more), timeout).await?;
        let started = said.read(objects::started, refused)?;
        if started.job_id != copy.job {
            return Err(said.unknown(&Shape::new("is about another job")));
        }
        Ok(started)
    }

    /// Begins the copy of a machine's last changes by the call that was designed for it. `None`: this VMA does not serve it,
    /// as none does that we know of; nothing was begun, and [`Vma::replicate`] is the way.
    pub async fn final_sync(
        &self,
        job: &str,
        vm: &str,
        vcenter: &VCenter,
    ) -> Result<Option<Started>, Trouble> {
        let more = [("job_id".to_owned(), job.into()), ("vm_id".to_owned(), vm.into())];
        let timeout = self.settings.replicate_timeout;
        let said =
            self.post(Nature::Changes, &["sync", "final"], vcenter, Map::from_iter(more), timeout).await?;
        let no_such_path = said.status == 404 && !says_not_found(&said.body);
        if no_such_path || matches!(said.status, 405 | 501) {
            return Ok(None);
        }
        let started = said.read(objects::started, refused)?;
        if started.job_id != job {
            return Err(said.unknown(&Shape::new("is about another job")));
        }
        Ok(Some(started))
    }

    /// How far a copy is. `None`: the VMA does not know it (any more), as after each of its restarts; that is no end.
    pub async fn progress(&self, job: &str) -> Result<Option<Progress>, Trouble> {
        self.of_job(&["progress", job], objects::progress).await
    }

    /// How a job is. It rarely says anything but "running": read [`Vma::progress`].
    pub async fn job_status(&self, job: &str) -> Result<Option<JobStatus>, Trouble> {
        self.of_job(&["status", job], objects::job_status).await
    }

    /// Whether changes of a machine's blocks are tracked.
    pub async fn cbt_status(&self, vm_path: &str, vcenter: &VCenter) -> Result<CbtStatus, Trouble> {
        let (path, timeout) = (["vms", vm_path, "cbt-status"], self.settings.discover_timeout);
        self.get(&path, vcenter, timeout).await?.read(objects::cbt_status, refused)
    }

    /// What has changed about a machine since it was looked at.
    pub async fn spec_changes(
        &self,
        vm_path: &str,
        stored: &VmInfo,
        vcenter: &VCenter,
    ) -> Result<SpecChanges, Trouble> {
        let stored = serde_json::to_value(stored).map_err(|error| {
            Trouble::new(SYSTEM, Kind::Refused, format!("what is known of the machine: {error}"))
                .not_applied()
        })?;
        let more = [
            ("datacenter".to_owned(), vcenter.datacenter.as_str().into()),
            ("vm_path".to_owned(), vm_path.into()),
            ("stored_vm_info".to_owned(), stored),
        ];
        let timeout = self.settings.discover_timeout;
        let said =
            self.post(Nature::Looks, &["vm-spec-changes"], vcenter, Map::from_iter(more), timeout).await?;
        let changes = said.read(objects::spec_changes, refused)?;
        // Its errors come with the status 200.
        match changes.error() {
            None => Ok(changes),
            Some(text) => Err(Trouble::new(SYSTEM, Kind::Internal, text).status(said.status).not_applied()),
        }
    }

    /// Whether it is there and answers.
    pub async fn health(&self) -> Result<(), Trouble> {
        let ask = Ask::get(&["health"], self.settings.progress_timeout);
        self.line.ask(ask, &Scrub::default()).await?.read(objects::health, refused)
    }

    async fn of_job<T>(
        &self,
        path: &[&str],
        decode: impl FnOnce(&[u8]) -> Result<T, Shape>,
    ) -> Result<Option<T>, Trouble> {
        let said = self.line.ask(Ask::get(path, self.settings.progress_timeout), &Scrub::default()).await?;
        // Older ones say it with the status 200.
        let in_so_many_words = said.body.trim_ascii().eq_ignore_ascii_case(b"job not found");
        if said.status == 404 && says_not_found(&said.body) || said.status == 200 && in_so_many_words {
            return Ok(None);
        }
        said.read(decode, refused).map(Some)
    }

    async fn get(&self, path: &[&str], vcenter: &VCenter, timeout: Span) -> Result<Said, Trouble> {
        let mut scrub = Scrub::default();
        let (username, password) = self.credentials(vcenter, &mut scrub).await?;
        let query = vec![("vcenter", vcenter.host.clone()), ("username", username), ("password", password)];
        self.line.ask(Ask::get(path, timeout).query(query), &scrub).await
    }

    async fn post(
        &self,
        nature: Nature,
        path: &[&str],
        vcenter: &VCenter,
        mut body: Map<String, Value>,
        timeout: Span,
    ) -> Result<Said, Trouble> {
        let mut scrub = Scrub::default();
        let (username, password) = self.credentials(vcenter, &mut scrub).await?;
        body.insert("vcenter".into(), vcenter.host.as_str().into());
        body.insert("username".into(), username.into());
        body.insert("password".into(), password.into());
        let ask = Ask::new(nature, Method::POST, path, timeout).json(Value::Object(body));
        self.line.ask(ask, &scrub).await
    }

    async fn credentials(&self, vcenter: &VCenter, scrub: &mut Scrub) -> Result<(String, String), Trouble> {
        let username = self.line.word(&vcenter.username, scrub).await?;
        let password = self.line.secret(&vcenter.password, scrub).await?;
        Ok((username.expose_secret().to_owned(), password.expose_secret().to_owned()))
    }
}

/// In its own words. Another 404 may come from a path that is wrong.
fn says_not_found(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body).to_ascii_lowercase();
    text.contains("not found") && !text.contains("page not found") && !text.trim_start().starts_with('<')
}

/// Its errors are texts.
fn refused(said: &Said) -> Trouble {
    if said.status == 404 && !says_not_found(&said.body) {
        let text = format!("there is no such path: {}", said.excerpt());
        return Trouble::new(SYSTEM, Kind::Unknown, text)
            .status(said.status)
            .of(said.nature)
            .hint("is its url right?");
    }
    // The VMA hands on what vCenter says, as one text for all that can go wrong. These are for people to mend, and no patience
    // helps before they have.
    let text = said.excerpt();
    if said.status == 500
        && ["Cannot complete login", "Permission to perform this operation"]
            .iter()
            .any(|no| text.contains(no))
    {
        return Trouble::new(SYSTEM, Kind::Operator, text).status(said.status).not_applied();
    }
    said.by_status(text)
}
