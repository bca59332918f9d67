//! The client of CloudStack.
//!
//! ```text
//!   sign       how a call is signed
//!   envelope   what is answered, and how a job is
//!   errors     what an error means
//!   objects    zones, machines, volumes, as lists show them
//!   commands   what can be asked for
//! ```
//!
//! Each try is signed anew, with the credentials of that moment, and expires a little later: CloudStack does again whatever
//! it receives again in that time. Commands that take long answer with a job; [`CloudStack::finish`] waits for it. A job that
//! failed, or that nobody knows any more, is no proof that nothing happened: what is there has to be looked at.

mod commands;
pub mod envelope;
mod errors;
mod objects;
pub mod sign;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backstay_engine::Span;
use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use reqwest::header::DATE;
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::Instant;
use uuid::Uuid;

pub use commands::{AttachVolume, CreateVmSnapshot, CreateVolume, DeployVm, ListVms, ListVolumes};
pub use envelope::{ApiError, Job, Started};
pub use objects::{
    Account, Api, ApiParam, Capabilities, Configuration, DiskOffering, Network, Nic, PendingJob,
    ServiceOffering, Snapshot, Tag, Template, Vm, VmSnapshot, Volume, Zone,
};

use crate::http::Origin;
use crate::remote::{Ask, Body, Kind, Line, Looks, Nature, Pace, Reach, SecretName, Shape, Trouble, wait};
use crate::secrets::{Scrub, Secrets};
use envelope::Said;
use errors::trouble;
use sign::Params;

/// The name of the system in errors.
pub(crate) const SYSTEM: &str = "CloudStack";

/// Where CloudStack is, and how it is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CloudStackSettings {
    /// Its address, such as `https://cloud.example`; `/client/api` is put behind it where it is missing.
    pub url: String,
    /// A file with the certificates (PEM) that it is trusted by, in place of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The API key.
    pub api_key: SecretName,
    /// The secret key that calls are signed with.
    pub secret_key: SecretName,
    /// How long a signed call can be used.
    pub expires: Span,
    /// Jobs are given ids of ours (`customjobid`), so that one whose id was lost on the way is found again.
    pub custom_job_ids: bool,
    /// How long a connection may take.
    pub connect_timeout: Span,
    /// How long it may take to the head of an answer, and from one piece to the next.
    pub answer_timeout: Span,
    /// How long a call may take in all.
    pub timeout: Span,
    /// The largest answer that is read, in bytes.
    pub max_answer: usize,
    /// How calls that only look are repeated.
    pub looks: Looks,
    /// How many things a page of a list has; the server has a limit (500, unless it is configured otherwise).
    pub page: u32,
    /// The longest list that is read.
    pub longest_list: u32,
    /// The first pause between looks at a job.
    pub poll_first: Span,
    /// The longest pause between looks at a job.
    pub poll_ceiling: Span,
    /// How long a job is waited for, unless the caller says otherwise.
    pub job_deadline: Span,
    /// How long a snapshot of a volume may take: it is copied to the secondary storage, all of it.
    pub snapshot_deadline: Span,
    /// A server that has no room for a machine is asked again after so long: room does not come back in a moment.
    pub no_room_rest: Span,
}

impl Default for CloudStackSettings {
    fn default() -> Self {
        Self {
            url: String::new(),
            ca: None,
            api_key: SecretName::new("cloudstack-api-key"),
            secret_key: SecretName::new("cloudstack-secret-key"),
            expires: Span::secs(600),
            custom_job_ids: true,
            connect_timeout: Span::secs(10),
            answer_timeout: Span::secs(60),
            timeout: Span::secs(90),
            max_answer: 16 << 20,
            looks: Looks::default(),
            page: 500,
            longest_list: 20_000,
            poll_first: Span::secs(1),
            poll_ceiling: Span::secs(10),
            job_deadline: Span::secs(300),
            snapshot_deadline: Span::secs(3 * 3600),
            no_room_rest: Span::secs(60),
        }
    }
}

/// The client. Cheap to clone.
#[derive(Clone)]
pub struct CloudStack {
    line: Line,
    settings: Arc<CloudStackSettings>,
}

impl std::fmt::Debug for CloudStack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CloudStack at {}", self.line.origin())
    }
}

/// What stands behind the host, unless the settings say something else that ends like it.
const PATH: &str = "/client/api";
/// The server refuses a call that can be used for longer, where it is configured to be strict.
const LONGEST_EXPIRY: Duration = Duration::from_secs(900);
/// From this on, our clock is not right, or theirs.
const SKEW: TimeDelta = TimeDelta::seconds(30);
/// As `expires` is written: with a zone in digits.
const EXPIRES: &str = "%Y-%m-%dT%H:%M:%S%z";

impl CloudStack {
    /// The error says what is wrong with the settings.
    pub fn new(settings: CloudStackSettings, secrets: Arc<dyn Secrets>) -> Result<Self, String> {
        if settings.expires.0 > LONGEST_EXPIRY || settings.expires.0.is_zero() {
            return Err("cloudstack.expires is at most 15 minutes, as the server refuses more".into());
        }
        if settings.page == 0 {
            return Err("cloudstack.page is at least 1".into());
        }
        let reach = Reach {
            url: &settings.url,
            ca: settings.ca.as_deref(),
            connect_timeout: settings.connect_timeout,
            answer_timeout: settings.answer_timeout,
            timeout: settings.timeout,
            max_answer: settings.max_answer,
            looks: settings.looks,
            refused,
        };
        let line = Line::new(SYSTEM, &reach, secrets)?;
        let path = url::Url::parse(&settings.url).map(|url| url.path().trim_end_matches('/').to_owned());
        let path = path.unwrap_or_default();
        let line = if path.ends_with(PATH) { line.at(&path) } else { line.at(&format!("{path}{PATH}")) };
        Ok(Self { line, settings: Arc::new(settings) })
    }

    /// What it was made with.
    pub fn settings(&self) -> &CloudStackSettings {
        &self.settings
    }

    /// Where it calls.
    pub fn origin(&self) -> &Origin {
        self.line.origin()
    }

    /// How a job is. `None`: nobody knows it (any more), which says nothing about what it did.
    pub async fn job(&self, id: &str) -> Result<Option<Job>, Trouble> {
        let params = Command::new("queryAsyncJobResult").with("jobid", id);
        match self.call(Nature::Looks, params).await {
            Ok(content) => envelope::job(&content).map(Some).map_err(|shape| unknown(&shape, Nature::Looks)),
            Err(trouble) if trouble.code() == Some(errors::PARAMETER) => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// Waits for the end of a job, and gives its result, which may be null although it succeeded.
    ///
    /// A job that nobody knows is [`Kind::Look`] with the reason `job_unknown`; one that failed is what its error is. In both
    /// cases the effect may be there.
    pub async fn finish(
        &self,
        job: &str,
        deadline: Option<Span>,
        stop: impl Future<Output = ()>,
    ) -> Result<Value, Trouble> {
        let pace = Pace {
            first: self.settings.poll_first,
            ceiling: self.settings.poll_ceiling,
            deadline: deadline.unwrap_or(self.settings.job_deadline),
        };
        let what = format!("while its job {job} went on");
        let looking = wait(SYSTEM, &what, pace, stop, || async {
            match self.job(job).await? {
                Some(Job::Pending) => Ok(None),
                Some(Job::Succeeded(result)) => Ok(Some(Ok(result))),
                Some(Job::Failed(error)) => Ok(Some(Err(self.trouble(&error, Nature::Changes)))),
                None => {
                    let text =
                        format!("it does not know the job {job}, which says nothing about what it did");
                    let trouble = Trouble::new(SYSTEM, Kind::Look, text).because("job_unknown");
                    Ok(Some(Err(trouble.code_of(errors::PARAMETER, None))))
                }
            }
        });
        // A look that fails has no effect, but what is waited for may have.
        looking.await.map_err(Trouble::maybe_applied)?
    }

    /// Makes a call: what stands under the only key of the answer. One that only looks is made again where that may help.
    async fn call(&self, nature: Nature, command: Command) -> Result<Map<String, Value>, Trouble> {
        let timeout = self.settings.timeout.0;
        if nature == Nature::Changes {
            return self.known(nature, &command, timeout).await;
        }
        let mut tries = self.settings.looks.until(Instant::now() + timeout);
        loop {
            match self.known(nature, &command, tries.left()).await {
                Err(trouble) => tries.again(trouble).await?,
                content => return content,
            }
        }
    }

    /// The same, once; and once more if it does not know who calls, as then nothing was done: the credentials may have changed
    /// just now, or the clocks may differ. It is made with those of this moment, and by their clock.
    async fn known(
        &self,
        nature: Nature,
        command: &Command,
        timeout: Duration,
    ) -> Result<Map<String, Value>, Trouble> {
        let end = Instant::now() + timeout;
        let (trouble, skew) = match self.try_once(nature, command, TimeDelta::zero(), timeout).await? {
            Ok(content) => return Ok(content),
            Err(refused) => refused,
        };
        tracing::debug!(command = command.name, ?skew, "CloudStack does not know who calls; signing anew");
        let left = end.saturating_duration_since(Instant::now());
        match self.try_once(nature, command, skew, left).await? {
            Ok(content) => Ok(content),
            Err(_) if skew.abs() > SKEW => {
                Err(trouble.hint(&format!("its clock and ours differ by {} s", skew.num_seconds())))
            }
            Err((trouble, _)) => Err(trouble),
        }
    }

    /// One try. The inner error: it does not know who calls, and by how much its clock is ahead of ours.
    async fn try_once(
        &self,
        nature: Nature,
        command: &Command,
        skew: TimeDelta,
        timeout: Duration,
    ) -> Result<Result<Map<String, Value>, (Trouble, TimeDelta)>, Trouble> {
        let mut scrub = Scrub::default();
        let key = self.line.secret(&self.settings.api_key, &mut scrub).await?;
        let secret = self.line.secret(&self.settings.secret_key, &mut scrub).await?;
        let mut params = command.params.clone();
        let now = Utc::now();
        let life = TimeDelta::from_std(self.settings.expires.0).unwrap_or_default();
        for (name, value) in [
            ("command", command.name.to_owned()),
            ("apikey", key.expose_secret().to_owned()),
            ("response", "json".into()),
            ("signatureversion", "3".into()),
            ("expires", (now + skew + life).format(EXPIRES).to_string()),
        ] {
            params.insert(name.into(), value);
        }
        let mut ask = Ask::new(nature, Method::POST, &[], self.settings.timeout);
        ask.body = Body::Form(sign::form(&params, secret.expose_secret()));
        let said = self.line.once(&ask, timeout, &scrub).await?;

        match envelope::read(&said.body) {
            Ok(Said::Content(content)) if said.is_fine() => Ok(Ok(content)),
            Ok(Said::Error(error)) => {
                let trouble = self.trouble(&error, nature).status(said.status).rest_at_least(said.rest());
                if error.code != errors::UNAUTHORIZED {
                    return Err(trouble);
                }
                let theirs = said.headers.get(DATE).and_then(|date| date.to_str().ok());
                let theirs = theirs.and_then(|date| httpdate::parse_http_date(date).ok());
                let skew = theirs.map(|theirs| DateTime::<Utc>::from(theirs) - now).unwrap_or_default();
                Ok(Err((trouble, if skew.abs() > SKEW { skew } else { TimeDelta::zero() })))
            }
            // Somebody else answered: a proxy, or the web server in front.
            Ok(Said::Content(_)) => Err(refused(&said)),
            Err(_) if !said.is_fine() => Err(said.as_told(refused(&said))),
            Err(shape) => Err(said.unknown(&shape)),
        }
    }

    fn trouble(&self, error: &ApiError, nature: Nature) -> Trouble {
        trouble(error, nature, self.settings.no_room_rest.0)
    }

    /// Begins what takes long.
    async fn start(&self, command: Command, job: Option<Uuid>) -> Result<Started, Trouble> {
        let job = job.filter(|_| self.settings.custom_job_ids).map(|id| id.hyphenated().to_string());
        let content = self.call(Nature::Changes, command.maybe("customjobid", job)).await?;
        envelope::started(content).map_err(|shape| unknown(&shape, Nature::Changes))
    }

    /// Does what is done when it is answered.
    async fn do_now(&self, command: Command) -> Result<(), Trouble> {
        let content = self.call(Nature::Changes, command).await?;
        envelope::success(&content).map_err(|shape| unknown(&shape, Nature::Changes))
    }

    /// A list, all pages of it.
    async fn list<T: DeserializeOwned>(&self, command: Command) -> Result<Vec<T>, Trouble> {
        let mut all: Vec<T> = Vec::new();
        for page in 1_u32.. {
            let asked = command.clone().with("page", page).with("pagesize", self.settings.page);
            let content = self.call(Nature::Looks, asked).await?;
            let found = envelope::page::<T>(content).map_err(|shape| unknown(&shape, Nature::Looks))?;
            let last = found.items.is_empty();
            all.extend(found.items);
            let known = found.total.and_then(|total| usize::try_from(total).ok());
            if last || known.is_some_and(|total| all.len() >= total) {
                break;
            }
            // Servers count differently: without a count, a page that is not full is the last one, and one that is more than
            // full is no page: it is all there is.
            if known.is_none() && all.len() != page as usize * self.settings.page as usize {
                break;
            }
            if all.len() >= self.settings.longest_list as usize {
                let text = format!("{} has more than the {} entries that are read", command.name, all.len());
                return Err(Trouble::new(SYSTEM, Kind::Refused, text).not_applied());
            }
        }
        Ok(all)
    }
}

fn refused(said: &crate::remote::Said) -> Trouble {
    said.by_status(said.excerpt())
}

fn unknown(shape: &Shape, nature: Nature) -> Trouble {
    Trouble::new(SYSTEM, Kind::Unknown, format!("the answer {shape}")).of(nature)
}

/// A command with its parameters.
#[derive(Clone, Debug)]
struct Command {
    name: &'static str,
    params: Params,
}

impl Command {
    fn new(name: &'static str) -> Self {
        Self { name, params: Params::new() }
    }

    fn with(mut self, name: &str, value: impl ToString) -> Self {
        // In lower case, as the order in which they are signed depends on it.
        self.params.insert(name.to_ascii_lowercase(), value.to_string());
        self
    }

    fn maybe(self, name: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }
}
