//! The client of LINSTOR: snapshots beneath CloudStack, which knows nothing of them.
//!
//! Whatever is done is answered with a list of entries, each with a code of many parts, and any of them can be the error.
//! The name of a snapshot is its key: a second of the same name is refused, one that is not there is gone already.

mod answers;
mod objects;

use std::path::PathBuf;
use std::sync::Arc;

use backstay_engine::Span;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use answers::{Entry, ReturnCode, Severity, codes, entries};
pub use objects::{NodeSnapshot, Resource, ResourceState, Snapshot, Use, in_use, resources, snapshots};

use crate::http::Origin;
use crate::remote::{Ask, Kind, Line, Looks, Nature, Reach, Said, SecretName, Trouble, Word};
use crate::secrets::{Scrub, Secrets};

/// The name of the system in errors.
pub(crate) const SYSTEM: &str = "LINSTOR";

/// Where the controller is, and how it is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinstorSettings {
    /// Its address, such as `https://linstor.example:3371`.
    pub url: String,
    /// A file with the certificates (PEM) that it is trusted by, in place of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Who calls. Left out: nobody in particular.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<LinstorAuth>,
    /// How long a connection may take.
    pub connect_timeout: Span,
    /// How long it may take to the head of an answer, and from one piece to the next.
    pub answer_timeout: Span,
    /// How long a call may take in all. Snapshots are made before it is answered.
    pub timeout: Span,
    /// The largest answer that is read, in bytes.
    pub max_answer: usize,
    /// How calls that only look are repeated.
    pub looks: Looks,
    /// What stands before the name of a volume in the name of its resource.
    pub prefix: String,
}

impl Default for LinstorSettings {
    fn default() -> Self {
        Self {
            url: String::new(),
            ca: None,
            auth: None,
            connect_timeout: Span::secs(10),
            answer_timeout: Span::secs(120),
            timeout: Span::secs(180),
            max_answer: 8 << 20,
            looks: Looks::default(),
            prefix: "cs-".into(),
        }
    }
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum LinstorAuth {
    /// Whoever has this token.
    Bearer(SecretName),
    /// A user with a password.
    Basic {
        /// Who.
        user: Word,
        /// The name of the secret that is the password.
        password: SecretName,
    },
}

/// What became of something that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It was there, and is removed.
    Now,
    /// It was not there.
    Before,
}

/// The client. Cheap to clone.
#[derive(Clone)]
pub struct Linstor {
    line: Line,
    settings: Arc<LinstorSettings>,
}

impl std::fmt::Debug for Linstor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LINSTOR at {}", self.line.origin())
    }
}

impl Linstor {
    /// The error says what is wrong with the settings.
    pub fn new(settings: LinstorSettings, secrets: Arc<dyn Secrets>) -> Result<Self, String> {
        let reach = Reach {
            url: &settings.url,
            ca: settings.ca.as_deref(),
            connect_timeout: settings.connect_timeout,
            answer_timeout: settings.answer_timeout,
            timeout: settings.timeout,
            max_answer: settings.max_answer,
            looks: settings.looks,
            refused: answers::refused,
        };
        let line = Line::new(SYSTEM, &reach, secrets)?;
        Ok(Self { line, settings: Arc::new(settings) })
    }

    /// What it was made with.
    pub fn settings(&self) -> &LinstorSettings {
        &self.settings
    }

    /// Where it calls.
    pub fn origin(&self) -> &Origin {
        self.line.origin()
    }

    /// The resource of a volume, by the `path` that CloudStack shows to administrators.
    pub fn resource_of(&self, path: &str) -> String {
        format!("{}{path}", self.settings.prefix)
    }

    /// Makes a snapshot of a resource. One that is there already is [`Kind::Look`]: whether it is ours and whole is to be
    /// looked at ([`is_taken`]).
    pub async fn create_snapshot(&self, resource: &str, name: &str) -> Result<(), Trouble> {
        let path = ["v1", "resource-definitions", resource, "snapshots"];
        let said = self.change(Method::POST, &path, Some(json!({ "name": name }))).await?;
        answers::judge(&said)
    }

    /// Makes a snapshot of several resources at one moment: all or none of what is written is in all of them.
    pub async fn create_snapshots(&self, resources: &[&str], name: &str) -> Result<(), Trouble> {
        let all: Vec<Value> =
            resources.iter().map(|resource| json!({ "name": name, "resource_name": resource })).collect();
        let path = ["v1", "actions", "snapshot", "multi"];
        let said = self.change(Method::POST, &path, Some(json!({ "snapshots": all }))).await?;
        answers::judge(&said)
    }

    /// Removes a snapshot.
    pub async fn delete_snapshot(&self, resource: &str, name: &str) -> Result<Removed, Trouble> {
        let path = ["v1", "resource-definitions", resource, "snapshots", name];
        let said = self.change(Method::DELETE, &path, None).await?;
        let missing = entries(&said.body).is_ok_and(|all| answers::says_missing(&all));
        match answers::judge(&said) {
            Ok(()) => Ok(if missing { Removed::Before } else { Removed::Now }),
            Err(trouble) if trouble.code().is_some_and(answers::is_missing_snapshot) => Ok(Removed::Before),
            Err(trouble) => Err(trouble),
        }
    }

    /// Puts a resource back to where it was at a snapshot. Nobody may be using it.
    pub async fn rollback(&self, resource: &str, name: &str) -> Result<(), Trouble> {
        let path = ["v1", "resource-definitions", resource, "snapshot-rollback", name];
        answers::judge(&self.change(Method::POST, &path, Some(json!({}))).await?)
    }

    /// The snapshots of a resource. A resource that is not there has none, and says so as an error.
    pub async fn list_snapshots(&self, resource: &str) -> Result<Vec<Snapshot>, Trouble> {
        let path = ["v1", "resource-definitions", resource, "snapshots"];
        self.look(&path, Vec::new()).await?.read(snapshots, answers::refused)
    }

    /// The snapshots of some resources, or of all, with what each node has of them.
    pub async fn view_snapshots(&self, resources: &[&str]) -> Result<Vec<Snapshot>, Trouble> {
        let query = resources.iter().map(|resource| ("resources", (*resource).to_owned())).collect();
        let path = ["v1", "view", "snapshots"];
        let mut found = self.look(&path, query).await?.read(snapshots, answers::refused)?;
        // A controller that does not know the filter gives all.
        found.retain(|one| {
            resources.is_empty() || resources.iter().any(|name| name.eq_ignore_ascii_case(&one.resource_name))
        });
        Ok(found)
    }

    /// A resource on each of its nodes.
    pub async fn resources(&self, resource: &str) -> Result<Vec<Resource>, Trouble> {
        let path = ["v1", "resource-definitions", resource, "resources"];
        self.look(&path, Vec::new()).await?.read(resources, answers::refused)
    }

    /// Whether anybody uses a resource.
    pub async fn used(&self, resource: &str) -> Result<Use, Trouble> {
        Ok(in_use(&self.resources(resource).await?))
    }

    async fn look(&self, path: &[&str], query: Vec<(&str, String)>) -> Result<Said, Trouble> {
        let mut scrub = Scrub::default();
        let mut ask = Ask::get(path, self.settings.timeout).query(query);
        ask.headers = self.who(&mut scrub).await?;
        self.line.ask(ask, &scrub).await
    }

    async fn change(&self, method: Method, path: &[&str], body: Option<Value>) -> Result<Said, Trouble> {
        let mut scrub = Scrub::default();
        let mut ask = Ask::new(Nature::Changes, method, path, self.settings.timeout);
        if let Some(body) = body {
            ask = ask.json(body);
        }
        ask.headers = self.who(&mut scrub).await?;
        self.line.ask(ask, &scrub).await
    }

    async fn who(&self, scrub: &mut Scrub) -> Result<HeaderMap, Trouble> {
        let mut headers = HeaderMap::new();
        let text = match &self.settings.auth {
            None => return Ok(headers),
            Some(LinstorAuth::Bearer(token)) => {
                format!("Bearer {}", self.line.secret(token, scrub).await?.expose_secret())
            }
            Some(LinstorAuth::Basic { user, password }) => {
                let user = self.line.word(user, scrub).await?;
                let password = self.line.secret(password, scrub).await?;
                let both = format!("{}:{}", user.expose_secret(), password.expose_secret());
                let both = SecretString::from(STANDARD.encode(both));
                scrub.learn("linstor", &both);
                format!("Basic {}", both.expose_secret())
            }
        };
        let mut value = HeaderValue::try_from(text).map_err(|_| {
            let text = "its token or password has characters that no header can have";
            Trouble::new(SYSTEM, Kind::Operator, text).not_applied()
        })?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        Ok(headers)
    }
}

/// Whether a snapshot was not made because its name is taken.
pub fn is_taken(trouble: &Trouble) -> bool {
    trouble.system() == SYSTEM && trouble.code().is_some_and(answers::is_taken)
}

/// Whether a resource was not put back because somebody uses it.
pub fn is_in_use(trouble: &Trouble) -> bool {
    trouble.system() == SYSTEM && trouble.code() == Some(i64::from(codes::IN_USE))
}
