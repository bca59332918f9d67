//! The guarded client: every call that an activity makes over HTTP goes through it.
//!
//! ```text
//!   allow-list   an origin that is not in the configuration is not called, whoever asks
//!   addresses    a name is resolved once, every address is checked, and only those are connected to
//!   no detours   no redirects, no proxy of the environment, no repetition beneath the engine's
//!   bounds       time to connect, to answer, and in all; bytes of an answer, counted while they come
//!   honesty      an error says whether anything may have left this machine
//! ```

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstay_engine::{Failure, Span};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::guard::{Networks, Origin};

/// What may be called, and how long that may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSettings {
    /// The only places that are called.
    pub origins: Vec<Allowed>,
    /// How long a connection may take.
    pub connect_timeout: Span,
    /// How long it may take from the call to the head of the answer, and from one piece of its body to the next.
    pub answer_timeout: Span,
    /// How long a call may take in all, unless its input says less.
    pub timeout: Span,
    /// The largest answer that is read, in bytes.
    pub max_answer: usize,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            origins: Vec::new(),
            connect_timeout: Span::secs(10),
            answer_timeout: Span::secs(60),
            timeout: Span::secs(300),
            max_answer: 1 << 20,
        }
    }
}

/// One place that may be called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    /// Scheme, host and port, such as `https://cloud.example:8443`.
    pub origin: String,
    /// It may lie in a private network.
    #[serde(default)]
    pub private: bool,
    /// It may lie in these networks, whatever they are.
    #[serde(default)]
    pub networks: Vec<ipnet::IpNet>,
    /// A file with the certificates (PEM) that it is trusted by, in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The header that carries the idempotency key; empty: none.
    #[serde(default = "key_header")]
    pub key_header: String,
    /// The key stands between quotation marks, as the draft of the IETF has it.
    #[serde(default = "yes")]
    pub key_quoted: bool,
}

impl Allowed {
    /// An origin on the internet, with nothing special about it.
    pub fn new(origin: impl Into<String>) -> Self {
        Self {
            origin: origin.into(),
            private: false,
            networks: Vec::new(),
            ca: None,
            key_header: key_header(),
            key_quoted: true,
        }
    }
}

fn key_header() -> String {
    "Idempotency-Key".into()
}

fn yes() -> bool {
    true
}

/// Where names lead. Another one than the system's is for tests.
#[async_trait]
pub trait Names: Send + Sync + 'static {
    /// The addresses of a name.
    async fn resolve(&self, name: &str) -> std::io::Result<Vec<IpAddr>>;
}

/// The resolver of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemNames;

#[async_trait]
impl Names for SystemNames {
    async fn resolve(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
    }
}

/// The guarded client. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    settings: Arc<HttpSettings>,
    /// A client for each origin: what one may reach, another may not, and no connection is shared.
    doors: Arc<HashMap<Origin, Door>>,
}

struct Door {
    allowed: Allowed,
    networks: Networks,
    client: reqwest::Client,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.doors.keys().map(ToString::to_string)).finish()
    }
}

/// One call.
#[derive(Debug)]
pub struct Call {
    /// How.
    pub method: Method,
    /// Where. It may hold secrets, so it is never printed.
    pub url: Url,
    /// With what.
    pub headers: HeaderMap,
    /// With what, for those methods that take it.
    pub body: Option<Vec<u8>>,
    /// How long in all.
    pub timeout: Duration,
    /// How many bytes of the answer are wanted; what comes after them is not read.
    pub most: usize,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as far as it was wanted.
    pub body: Vec<u8>,
    /// There was more.
    pub truncated: bool,
}

/// Why there is no answer. It is no `std::error::Error`, as `?` would then take each for an error of the same kind.
#[derive(Debug)]
pub enum CallError {
    /// The call is not made, now or later.
    Refused(String),
    /// Nothing was sent.
    Unreachable {
        /// Where to.
        origin: String,
        /// What happened.
        why: String,
    },
    /// It may have been sent, and its effect may be there.
    Unanswered {
        /// Where to.
        origin: String,
        /// What happened.
        why: String,
    },
    /// It was answered, and the answer is of no use.
    Unusable {
        /// Where to.
        origin: String,
        /// What is wrong with it.
        why: String,
    },
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(why) => f.write_str(why),
            Self::Unreachable { origin, why } => write!(f, "{origin} could not be reached: {why}"),
            Self::Unanswered { origin, why } => write!(f, "{origin} gave no whole answer: {why}"),
            Self::Unusable { origin, why } => write!(f, "the answer of {origin} {why}"),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(_) => Failure::permanent("http_refused", error).not_applied(),
            CallError::Unreachable { .. } => Failure::retryable("http_unreachable", error).not_applied(),
            CallError::Unanswered { .. } => Failure::retryable("http_unanswered", error),
            CallError::Unusable { .. } => Failure::permanent("http_answer", error),
        }
    }
}

impl Client {
    /// For the places of the settings.
    pub fn new(settings: HttpSettings) -> Result<Self, String> {
        Self::with_names(settings, Arc::new(SystemNames))
    }

    /// The same, where something else says where names lead.
    pub fn with_names(settings: HttpSettings, names: Arc<dyn Names>) -> Result<Self, String> {
        let mut doors = HashMap::new();
        for allowed in &settings.origins {
            let origin = Origin::parse(&allowed.origin)?;
            let networks = Networks { private: allowed.private, networks: allowed.networks.clone() };
            let client = client(&settings, allowed, networks.clone(), Arc::clone(&names))
                .map_err(|wrong| format!("{origin}: {wrong}"))?;
            let door = Door { allowed: allowed.clone(), networks, client };
            if doors.insert(origin, door).is_some() {
                return Err(format!("{} is listed twice", allowed.origin));
            }
        }
        Ok(Self { settings: Arc::new(settings), doors: Arc::new(doors) })
    }

    /// How long and how much.
    pub fn settings(&self) -> &HttpSettings {
        &self.settings
    }

    /// What the configuration says of a place; an error that tells what to configure, if it says nothing.
    pub fn allowed(&self, origin: &Origin) -> Result<&Allowed, CallError> {
        self.door(origin).map(|door| &door.allowed)
    }

    fn door(&self, origin: &Origin) -> Result<&Door, CallError> {
        self.doors.get(origin).ok_or_else(|| {
            CallError::Refused(format!(
                "{origin} is not called, as it is not in the configuration: add an entry with origin = \"{origin}\" to \
                 http.origins"
            ))
        })
    }

    /// Makes the call.
    pub async fn call(&self, call: Call) -> Result<Answer, CallError> {
        let origin = Origin::of(&call.url)
            .map_err(|wrong| CallError::Refused(format!("this URL is not called: {wrong}")))?;
        let door = self.door(&origin)?;
        // A name is checked when it is resolved; an address is not resolved.
        if let Some(why) = origin.address().and_then(|address| door.networks.refusal(address)) {
            return Err(CallError::Refused(refusal(&origin, why)));
        }
        let unanswered = |why: String| CallError::Unanswered { origin: origin.to_string(), why };
        let end = Instant::now() + call.timeout.min(self.settings.timeout.0);
        let patience = self.settings.answer_timeout;

        let mut request = door.client.request(call.method, call.url).headers(call.headers);
        if let Some(body) = call.body {
            request = request.body(body);
        }
        let head = end.min(Instant::now() + self.settings.connect_timeout.0 + patience.0);
        let mut response = match timeout_at(head, request.send()).await {
            Err(_) => return Err(unanswered("it took too long".into())),
            Ok(Err(error)) => return Err(explain(&origin, &error)),
            Ok(Ok(response)) => response,
        };
        // The resolver has seen to it; if ever it is passed by, at least nothing of the answer gets in.
        if let Some(why) = response.remote_addr().and_then(|address| door.networks.refusal(address.ip())) {
            let why = format!("came from an address that {why}");
            return Err(CallError::Unusable { origin: origin.to_string(), why });
        }
        let most = call.most.min(self.settings.max_answer);
        let mut answer = Answer {
            status: response.status(),
            headers: std::mem::take(response.headers_mut()),
            body: Vec::new(),
            truncated: false,
        };
        loop {
            let next = end.min(Instant::now() + patience.0);
            let piece = match timeout_at(next, response.chunk()).await {
                Err(_) => return Err(unanswered("its body took too long".into())),
                Ok(Err(error)) => return Err(unanswered(format!("its body broke off: {}", causes(&error)))),
                Ok(Ok(None)) => break,
                Ok(Ok(Some(piece))) => piece,
            };
            let room = most - answer.body.len();
            answer.body.extend(piece.iter().take(room));
            if piece.len() > room {
                answer.truncated = true;
                break;
            }
        }
        Ok(answer)
    }
}

fn refusal(origin: &Origin, why: &str) -> String {
    format!(
        "{origin} is not called, as its address {why}: if that is meant, say private = true or networks = [\"…\"] in its \
         entry of http.origins"
    )
}

fn client(
    settings: &HttpSettings,
    allowed: &Allowed,
    networks: Networks,
    names: Arc<dyn Names>,
) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        // What is tried again is decided and journaled above.
        .retry(reqwest::retry::never())
        .connect_timeout(settings.connect_timeout.0)
        .user_agent(concat!("backstay/", env!("CARGO_PKG_VERSION")))
        .dns_resolver(Arc::new(Guard { networks, names }));
    if let Some(path) = &allowed.ca {
        let wrong =
            |error: &dyn std::fmt::Display| format!("the certificates in {}: {error}", path.display());
        let pem = std::fs::read(path).map_err(|error| wrong(&error))?;
        let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| wrong(&error))?;
        if roots.is_empty() {
            return Err(wrong(&"there are none"));
        }
        builder = builder.tls_certs_only(roots);
    }
    builder.build().map_err(|error| causes(&error))
}

/// Resolves a name once, and lets none of its addresses pass if one of them is refused: a name that leads to both is
/// somebody's trick, or a mistake.
struct Guard {
    networks: Networks,
    names: Arc<dyn Names>,
}

/// An address was refused: not an error of the network.
#[derive(Debug, thiserror::Error)]
#[error("the address {0} {1}")]
struct RefusedAddress(IpAddr, &'static str);

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (names, networks) = (Arc::clone(&self.names), self.networks.clone());
        Box::pin(async move {
            let addresses = names.resolve(name.as_str()).await?;
            if let Some((address, why)) =
                addresses.iter().find_map(|address| Some((*address, networks.refusal(*address)?)))
            {
                return Err(RefusedAddress(address, why).into());
            }
            let addresses: Vec<_> =
                addresses.into_iter().map(|address| SocketAddr::new(address, 0)).collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// What an error of the library means. Its own text names the URL, which may hold a secret.
fn explain(origin: &Origin, error: &reqwest::Error) -> CallError {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(at) = cause {
        if let Some(RefusedAddress(_, why)) = at.downcast_ref() {
            return CallError::Refused(refusal(origin, why));
        }
        cause = at.source();
    }
    let (origin, why) = (origin.to_string(), causes(error));
    if error.is_builder() {
        CallError::Refused(format!("this call of {origin} cannot be made: {why}"))
    } else if error.is_connect() {
        CallError::Unreachable { origin, why }
    } else {
        CallError::Unanswered { origin, why }
    }
}

/// The causes of an error, without its first line, which names the URL.
fn causes(error: &reqwest::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(at) = cause {
        let text = at.to_string();
        if texts.last().is_none_or(|last| !last.contains(&text)) {
            texts.push(text);
        }
        cause = at.source();
    }
    if texts.is_empty() { "it cannot be understood".into() } else { texts.join(": ") }
}
