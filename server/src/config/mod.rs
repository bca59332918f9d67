//! The configuration: defaults < file < environment < flags. What is unknown is an error.

mod layers;
mod show;
mod site;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backstay_activities::cloudstack::CloudStackSettings;
use backstay_activities::daemon::DaemonSettings;
use backstay_activities::linstor::LinstorSettings;
use backstay_activities::secrets::{FileSecrets, NoSecrets, SecretUse, Secrets};
use backstay_activities::site::SiteSettings;
use backstay_activities::v2v::V2vSettings;
use backstay_activities::vma::VmaSettings;
use backstay_activities::{CommandSettings, HttpSettings, Program};
use backstay_engine::{Breaker, NodeConfig, Span};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) use layers::{Loaded, load, of_text};
pub(crate) use show::show;

use crate::cli::LogFormat;

/// What `listen.plain` is where everybody may read along.
const OPEN: &str = "readable-by-all";
const SHOWN: &str = "shows health and figures to whoever asks: keep it on loopback";

/// Every setting there is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Where the embedded database and the demo are.
    pub data_dir: PathBuf,
    pub database: DatabaseSettings,
    pub node: NodeSettings,
    pub listen: ListenSettings,
    pub pools: PoolSettings,
    /// Where the activity `http` may call; see `backstay_activities::HttpSettings`.
    pub http: HttpSettings,
    pub command: CommandSection,
    pub signal: SignalSettings,
    pub secrets: SecretSettings,
    pub log: LogSettings,
    pub traces: TraceSettings,
    pub workflows: WorkflowSettings,
    /// Where machines go. Empty `url`: there is no site, and what follows does not count.
    pub cloudstack: CloudStackSettings,
    /// Who moves volumes there.
    pub volume_daemon: DaemonSettings,
    /// Where machines come from.
    pub vma: VmaSettings,
    /// The storage below, where it takes the snapshots. Empty `url`: it does not.
    pub linstor: LinstorSettings,
    /// What puts drivers into Windows. Empty `program`: nothing does.
    pub v2v: V2vSettings,
    /// How a failover goes about it.
    pub site: SiteSettings,
}

/// Where traces go.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TraceSettings {
    /// A collector that speaks OTLP over HTTP, such as `http://127.0.0.1:4318`; `/v1/traces` is added. Empty: nothing is
    /// measured.
    pub endpoint: String,
}

impl TraceSettings {
    /// What may not be.
    fn problem(&self) -> Option<(&'static str, String)> {
        if self.endpoint.is_empty() {
            return None;
        }
        let example = "it looks like http://127.0.0.1:4318";
        let what = match url::Url::parse(&self.endpoint) {
            Err(error) => format!("is not understood ({error}); {example}"),
            Ok(url) if !matches!(url.scheme(), "http" | "https") => {
                format!("begins with \"{}\"; {example}", url.scheme())
            }
            // It is shown by `config show`, and stands in logs.
            Ok(url) if !url.username().is_empty() || url.password().is_some() || url.query().is_some() => {
                "holds more than a place: what lets us in there goes into OTEL_EXPORTER_OTLP_HEADERS".into()
            }
            Ok(_) => return None,
        };
        Some(("traces.endpoint", what))
    }
}

/// Where workflows come from.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WorkflowSettings {
    /// The directory of workflows that are files. Empty: there are none.
    pub dir: PathBuf,
}

/// Where the API is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListenSettings {
    pub address: SocketAddr,
    /// Where health and figures are; nobody has to show a token there.
    pub health: SocketAddr,
    /// The certificate and its chain (PEM). Off loopback it has to be there.
    pub certificate: Option<PathBuf>,
    /// The certificate's key (PEM).
    pub key: Option<PathBuf>,
    /// Clients have to show a certificate of this authority (PEM).
    pub client_authority: Option<PathBuf>,
    /// "readable-by-all" lets clients speak without TLS from other machines: their tokens can be read on the way.
    pub plain: String,
    pub connections: usize,
    pub connections_per_address: usize,
}

impl Default for ListenSettings {
    fn default() -> Self {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let limits = crate::http::Limits::default();
        Self {
            address: local(7433),
            health: local(7434),
            certificate: None,
            key: None,
            client_authority: None,
            plain: String::new(),
            connections: limits.connections,
            connections_per_address: limits.per_address,
        }
    }
}

impl ListenSettings {
    /// What may not be.
    fn problem(&self) -> Option<(&'static str, String)> {
        let off = |address: &SocketAddr| !address.ip().is_loopback();
        if self.certificate.is_some() != self.key.is_some() {
            return Some(("listen.key", "goes with listen.certificate: both are stated, or neither".into()));
        }
        if self.client_authority.is_some() && self.certificate.is_none() {
            return Some(("listen.client_authority", "is of no use without listen.certificate".into()));
        }
        if !self.plain.is_empty() && self.plain != OPEN {
            return Some(("listen.plain", format!("is empty or \"{OPEN}\"")));
        }
        if off(&self.address) && self.certificate.is_none() && self.plain != OPEN {
            let why = "is reached from other machines, and without TLS everybody between could read the tokens: state \
                       listen.certificate and listen.key";
            return Some(("listen.address", format!("{why} (or listen.plain = \"{OPEN}\")")));
        }
        if off(&self.health) && self.plain != OPEN {
            return Some(("listen.health", format!("{SHOWN} (or state listen.plain = \"{OPEN}\")")));
        }
        None
    }
}

/// Whom the activity `signal` may speak to, beside the runs of whoever submitted its own.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignalSettings {
    /// The workflows whose runs every run may speak to.
    pub workflows: Vec<String>,
}

/// What the activity `command` may run; see `backstay_activities::Program`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommandSection {
    pub programs: BTreeMap<String, Program>,
}

/// What seals secrets in the database; and where those are that lie in files, and where each of them may go.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretSettings {
    /// The key file. Left out: one in the data folder, made when it is first needed, or `BACKSTAY_SECRET_KEYS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// A folder with a file for each secret. Empty: there are none.
    pub dir: PathBuf,
    pub uses: BTreeMap<String, SecretUse>,
}

impl SecretSettings {
    /// Those in files.
    pub(crate) fn in_files(&self) -> Result<Option<FileSecrets>, String> {
        let files = FileSecrets::new(&self.dir, &self.uses)?;
        Ok(Some(files).filter(|_| !self.dir.as_os_str().is_empty()))
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DatabaseSettings {
    /// A Postgres to use in place of the embedded one. Empty: the embedded one.
    pub url: DatabaseUrl,
    /// Whether `serve` and `node` bring the schema up to date when they start. Off, they only look whether it is.
    pub migrate: bool,
}

impl Default for DatabaseSettings {
    fn default() -> Self {
        Self { url: DatabaseUrl::default(), migrate: true }
    }
}

/// How a node behaves; see `backstay_engine::NodeConfig`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeSettings {
    #[serde(deserialize_with = "text")]
    pub name: String,
    pub lease: Span,
    pub poll: Span,
    pub max_calls: usize,
    pub max_runs: usize,
    pub park_after: Span,
    pub progress_every: Span,
    pub max_crashes: i16,
    pub trial: Span,
    /// How long runs are kept after their end. Left out: for ever.
    pub keep_finished: Option<Span>,
    /// How long the key of a run that was removed goes on to mean it.
    pub keep_keys: Span,
    /// How long calls in flight may take to end when the node is told to stop.
    pub grace: Span,
    /// Where `backstay node` shows health and figures; `serve` has `listen.health`. Left out: nowhere.
    pub health: Option<SocketAddr>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogSettings {
    pub filter: String,
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Auto }
    }
}

impl Default for NodeSettings {
    fn default() -> Self {
        let node = NodeConfig::default();
        Self {
            name: node.name,
            lease: node.lease.into(),
            poll: node.poll.into(),
            max_calls: node.max_calls,
            max_runs: node.max_runs,
            park_after: node.park_after.into(),
            progress_every: node.progress_every.into(),
            max_crashes: node.max_crashes,
            trial: node.trial.into(),
            keep_finished: node.keep_finished.map(Span),
            keep_keys: node.keep_keys.into(),
            grace: Span::secs(30),
            health: None,
        }
    }
}

/// When the target of a pool is taken for down; see `backstay_engine::Breaker`. The same on all nodes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PoolSettings {
    /// After so many calls in a row that found it down.
    pub failures: u32,
    /// How long until it is tried again.
    pub first_try: Span,
    /// Each try in vain doubles that, up to so much.
    pub longest_pause: Span,
}

impl Default for PoolSettings {
    fn default() -> Self {
        let Breaker { failures, first, ceiling } = Breaker::default();
        Self { failures, first_try: first.into(), longest_pause: ceiling.into() }
    }
}

impl NodeSettings {
    /// For the engine.
    pub(crate) fn for_engine(&self) -> NodeConfig {
        NodeConfig {
            name: self.name.clone(),
            lease: self.lease.0,
            poll: self.poll.0,
            max_calls: self.max_calls,
            max_runs: self.max_runs,
            park_after: self.park_after.0,
            progress_every: self.progress_every.0,
            max_crashes: self.max_crashes,
            trial: self.trial.0,
            keep_finished: self.keep_finished.map(|keep| keep.0),
            keep_keys: self.keep_keys.0,
            ..NodeConfig::default()
        }
    }
}

impl Config {
    /// The settings when nobody says anything.
    pub(crate) fn defaults() -> Self {
        let postgres = backstay_postgres::Settings::default_data_dir();
        let data_dir = postgres.parent().map_or_else(|| postgres.clone(), PathBuf::from);
        Self { data_dir, ..Self::default() }
    }

    /// How a node of this configuration behaves.
    pub(crate) fn node(&self) -> NodeConfig {
        let PoolSettings { failures, first_try, longest_pause } = self.pools;
        let breaker = Breaker { failures, first: first_try.0, ceiling: longest_pause.0 };
        NodeConfig { breaker, ..self.node.for_engine() }
    }

    /// The programs, and where their locks are.
    pub(crate) fn command(&self) -> CommandSettings {
        let locks = Some(self.data_dir.join("locks"));
        CommandSettings { programs: self.command.programs.clone(), locks }
    }

    /// What types cannot say: the setting and what is wrong with it.
    fn problem(&self) -> Option<site::Wrong> {
        self.plain_problem().map(|(key, what)| (key.to_owned(), what)).or_else(|| {
            let nothing: Arc<dyn Secrets> = Arc::new(NoSecrets);
            self.site(&nothing).err()
        })
    }

    fn plain_problem(&self) -> Option<(&'static str, String)> {
        let node = &self.node;
        let least = |at, span: Span, least: Duration| {
            (span.0 < least).then(|| (at, format!("is {span}, and has to be at least {}", Span::from(least))))
        };
        let some = |at, n: usize| (n == 0).then(|| (at, "is 0, so nothing would ever be done".to_owned()));
        let bad_name =
            node.name.is_empty() || node.name.len() > 100 || node.name.chars().any(char::is_control);
        None.or_else(|| {
            bad_name
                .then(|| ("node.name", "has 1 to 100 characters, none of them control characters".to_owned()))
        })
        .or_else(|| least("node.lease", node.lease, Duration::from_secs(1)))
        .or_else(|| least("node.poll", node.poll, Duration::from_millis(10)))
        .or_else(|| some("node.max_calls", node.max_calls))
        .or_else(|| some("node.max_runs", node.max_runs))
        .or_else(|| {
            (self.pools.failures == 0)
                .then(|| ("pools.failures", "is 0, so every target would be down from the start".to_owned()))
        })
        .or_else(|| least("pools.first_try", self.pools.first_try, Duration::from_millis(10)))
        .or_else(|| least("pools.longest_pause", self.pools.longest_pause, self.pools.first_try.0))
        .or_else(|| some("node.max_crashes", usize::try_from(node.max_crashes).unwrap_or(0)))
        .or_else(|| self.listen.problem())
        .or_else(|| {
            let open = node.health.is_some_and(|at| !at.ip().is_loopback()) && self.listen.plain != OPEN;
            open.then(|| ("node.health", format!("{SHOWN} (or state listen.plain = \"{OPEN}\")")))
        })
        .or_else(|| some("listen.connections", self.listen.connections))
        .or_else(|| some("listen.connections_per_address", self.listen.connections_per_address))
        .or_else(|| self.traces.problem())
        .or_else(|| self.database.url.problem().map(|wrong| ("database.url", wrong)))
        .or_else(|| {
            let wrong = |at, done: Result<(), String>| done.err().map(|why| (at, format!("is wrong: {why}")));
            let client = backstay_activities::http::Client::new(self.http.clone());
            let command = backstay_activities::Command::new(self.command(), Arc::new(NoSecrets));
            wrong("http.origins", client.map(drop))
                .or_else(|| wrong("command.programs", command.map(drop)))
                .or_else(|| wrong("secrets.uses", self.secrets.in_files().map(drop)))
        })
        .or_else(|| self.data_dir.as_os_str().is_empty().then(|| ("data_dir", "is empty".to_owned())))
        .or_else(|| {
            let filter = tracing_subscriber::EnvFilter::builder().parse(&self.log.filter);
            filter.err().map(|error| ("log.filter", format!("is not understood: {error}")))
        })
    }
}

/// Where a database is. It may hold a password, so it prints without it.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct DatabaseUrl(Option<String>);

impl DatabaseUrl {
    /// The whole of it; `None` for the embedded database.
    pub(crate) fn reveal(&self) -> Option<&str> {
        self.0.as_deref()
    }

    fn problem(&self) -> Option<String> {
        let text = self.0.as_deref()?;
        let example = "it looks like postgres://user:password@host:5432/database";
        match url::Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "postgres" | "postgresql") => None,
            Ok(url) => Some(format!("begins with \"{}\"; {example}", url.scheme())),
            Err(error) => Some(format!("is not understood ({error}); {example}")),
        }
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HIDDEN: &str = "REDACTED";
        let Some(text) = &self.0 else { return Ok(()) };
        let Ok(mut url) = url::Url::parse(text) else { return f.write_str(HIDDEN) };
        if url.password().is_some() && url.set_password(Some(HIDDEN)).is_err() {
            return f.write_str(HIDDEN);
        }
        if url.query_pairs().any(|(key, _)| key.contains("password")) {
            let pairs: Vec<_> = url.query_pairs().into_owned().collect();
            let mut query = url.query_pairs_mut();
            query.clear();
            for (key, value) in pairs {
                query.append_pair(&key, if key.contains("password") { HIDDEN } else { &value });
            }
        }
        f.write_str(url.as_str())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self(Some(text).filter(|text| !text.is_empty())))
    }
}

/// A text, also where it looks like a number: the environment has no quotes.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Loose {
        Text(String),
        Number(i64),
        Flag(bool),
    }
    Ok(match Loose::deserialize(deserializer)? {
        Loose::Text(text) => text,
        Loose::Number(number) => number.to_string(),
        Loose::Flag(flag) => flag.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::DatabaseUrl;

    #[test]
    fn a_password_is_never_printed() {
        for url in [
            "postgres://me:hunter2@db/x",
            "postgres://db/x?user=me&password=hunter2",
            "postgres://me:hunter2@db:notaport/x",
        ] {
            let url = DatabaseUrl(Some(url.into()));
            for text in [format!("{url}"), format!("{url:?}"), serde_json::to_string(&url).unwrap()] {
                assert!(!text.contains("hunter2") && text.contains("REDACTED"), "{text}");
            }
        }
    }
}
