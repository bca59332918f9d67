//! The way to one system: over the guarded client, to the one place that the settings name.
//!
//! That place is trusted to lie anywhere, also on this machine, as somebody has configured it; everything else of the
//! guarded client holds: no redirects, no proxies, bounds for time and size, and an error that says whether anything may
//! have left. Secrets are opened for each call, so a changed one is used by the next, and taken out of what comes back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backstay_engine::Span;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

use super::pace::Looks;
use super::trouble::{Kind, Nature, Shape, Trouble};
use crate::http::{Allowed, Answer, Call, CallError, Client, HttpSettings, Origin, retry_after};
use crate::reference::{Receiver, open_for};
use crate::secrets::{Scrub, SecretError, Secrets};

/// The name of a secret, as settings and inputs have it: `{"secret": "name"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretName {
    /// The name. The text is opened for each call, and never kept.
    pub secret: String,
}

impl SecretName {
    /// That of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { secret: name.into() }
    }
}

/// A word that is no secret for everybody: written out, or the name of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Word {
    /// A secret.
    Secret(SecretName),
    /// Written out.
    Plain(String),
}

/// Where a system is, and the bounds of each call.
pub(crate) struct Reach<'a> {
    pub url: &'a str,
    pub ca: Option<&'a Path>,
    pub connect_timeout: Span,
    pub answer_timeout: Span,
    /// The longest that any call may take.
    pub timeout: Span,
    pub max_answer: usize,
    /// How calls that only look are repeated.
    pub looks: Looks,
    /// What the system means by a status that is no success.
    pub refused: fn(&Said) -> Trouble,
}

/// The way to one system.
#[derive(Clone)]
pub(crate) struct Line {
    system: &'static str,
    looks: Looks,
    refused: fn(&Said) -> Trouble,
    base: Url,
    origin: Origin,
    client: Client,
    secrets: Arc<dyn Secrets>,
}

/// One call.
pub(crate) struct Ask<'a> {
    pub nature: Nature,
    pub method: Method,
    /// Behind the base, each escaped.
    pub path: &'a [&'a str],
    pub query: Vec<(&'a str, String)>,
    pub headers: HeaderMap,
    pub body: Body,
    pub timeout: Duration,
}

/// What is sent along.
pub(crate) enum Body {
    Nothing,
    Json(Value),
    Form(String),
}

impl<'a> Ask<'a> {
    pub(crate) fn get(path: &'a [&'a str], timeout: Span) -> Self {
        Self::new(Nature::Looks, Method::GET, path, timeout)
    }

    pub(crate) fn new(nature: Nature, method: Method, path: &'a [&'a str], timeout: Span) -> Self {
        let (query, headers) = (Vec::new(), HeaderMap::new());
        Self { nature, method, path, query, headers, body: Body::Nothing, timeout: timeout.0 }
    }

    pub(crate) fn json(mut self, body: Value) -> Self {
        self.body = Body::Json(body);
        self
    }

    pub(crate) fn query(mut self, query: Vec<(&'a str, String)>) -> Self {
        self.query = query;
        self
    }
}

/// What came back, without the secrets of the call.
pub(crate) struct Said {
    pub system: &'static str,
    pub nature: Nature,
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// Why an answer was not read to its end ([`Trouble::reason`]).
pub(crate) const TOO_LARGE: &str = "too_large";
/// How much of an answer is shown to people.
const EXCERPT: usize = 500;

impl Line {
    /// The error says what is wrong with the settings.
    pub(crate) fn new(
        system: &'static str,
        reach: &Reach<'_>,
        secrets: Arc<dyn Secrets>,
    ) -> Result<Self, String> {
        if reach.url.is_empty() {
            return Err(format!("the url of {system} is not set"));
        }
        if reach.looks.tries == 0 {
            return Err(format!("{system}: looks.tries is at least 1"));
        }
        let base = Url::parse(reach.url).map_err(|error| format!("the url of {system}: {error}"))?;
        if base.query().is_some() || base.fragment().is_some() {
            return Err(format!("the url of {system} ends with its path; it has no query and no fragment"));
        }
        let origin = Origin::of(&base).map_err(|wrong| format!("the url of {system}: {wrong}"))?;
        let mut allowed = Allowed::new(origin.to_string());
        allowed.networks = vec![IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
        allowed.ca = reach.ca.map(Path::to_owned);
        let client = Client::new(HttpSettings {
            origins: vec![allowed],
            connect_timeout: reach.connect_timeout,
            answer_timeout: reach.answer_timeout,
            timeout: reach.timeout,
            max_answer: reach.max_answer,
        });
        let client = client.map_err(|wrong| format!("{system}: {wrong}"))?;
        let (looks, refused) = (reach.looks, reach.refused);
        Ok(Self { system, looks, refused, base, origin, client, secrets })
    }

    /// Where calls go, for people.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The same system at another path of its own.
    pub(crate) fn at(&self, path: &str) -> Self {
        let mut other = self.clone();
        other.base.set_path(path);
        other
    }

    /// The text of a word, for one call.
    pub(crate) async fn word(&self, word: &Word, scrub: &mut Scrub) -> Result<SecretString, Trouble> {
        match word {
            Word::Plain(text) => Ok(SecretString::from(text.clone())),
            Word::Secret(name) => self.secret(name, scrub).await,
        }
    }

    /// The text of a secret, for one call.
    pub(crate) async fn secret(&self, name: &SecretName, scrub: &mut Scrub) -> Result<SecretString, Trouble> {
        let receiver = Receiver::Origin(self.origin.clone());
        let text = open_for(&*self.secrets, &name.secret, &receiver).await.map_err(|error| {
            let kind = match &error {
                SecretError::Refused(_) => Kind::Operator,
                SecretError::Unreadable(_) => Kind::Busy,
            };
            Trouble::new(self.system, kind, error.to_string()).not_applied()
        })?;
        scrub.learn(&name.secret, &text);
        Ok(text)
    }

    /// Makes a call. One that only looks is made again where that may help, as long as its time lasts.
    pub(crate) async fn ask(&self, ask: Ask<'_>, scrub: &Scrub) -> Result<Said, Trouble> {
        if ask.nature == Nature::Changes {
            return self.once(&ask, ask.timeout, scrub).await;
        }
        let mut tries = self.looks.until(Instant::now() + ask.timeout);
        loop {
            match self.once(&ask, tries.left(), scrub).await.and_then(|said| self.heard(said)) {
                Err(trouble) => tries.again(trouble).await?,
                said => return said,
            }
        }
    }

    /// What came of a look, unless it is trouble that passes. What other trouble means is for the caller to say.
    fn heard(&self, said: Said) -> Result<Said, Trouble> {
        if said.is_fine() {
            said.is_whole()?;
            return Ok(said);
        }
        let trouble = said.as_told((self.refused)(&said));
        if trouble.passes() { Err(trouble) } else { Ok(said) }
    }

    /// Makes a call once, whatever comes of it.
    pub(crate) async fn once(
        &self,
        ask: &Ask<'_>,
        timeout: Duration,
        scrub: &Scrub,
    ) -> Result<Said, Trouble> {
        let mut headers = ask.headers.clone();
        let body = match &ask.body {
            Body::Nothing => None,
            Body::Json(value) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Some(value.to_string().into_bytes())
            }
            Body::Form(form) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
                Some(form.clone().into_bytes())
            }
        };
        let (method, most) = (ask.method.clone(), self.client.settings().max_answer);
        let call = Call { method, url: self.url(ask)?, headers, body, timeout, most };
        let answer =
            self.client.call(call).await.map_err(|error| self.unanswered(error, ask.nature, scrub))?;
        let (system, status) = (self.system, answer.status.as_u16());
        tracing::debug!(system, method = %ask.method, status, "called");
        self.said(answer, ask.nature, scrub)
    }

    fn url(&self, ask: &Ask<'_>) -> Result<Url, Trouble> {
        let wrong = |why: &str| Trouble::new(self.system, Kind::Refused, why).not_applied();
        let mut url = self.base.clone();
        for segment in ask.path {
            if segment.is_empty() || matches!(*segment, "." | "..") || segment.chars().any(char::is_control) {
                return Err(wrong(&format!("\"{}\" names nothing there", segment.escape_debug())));
            }
            url.path_segments_mut().map_err(|()| wrong("its url has no path"))?.pop_if_empty().push(segment);
        }
        if !ask.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&ask.query);
        }
        Ok(url)
    }

    fn unanswered(&self, error: CallError, nature: Nature, scrub: &Scrub) -> Trouble {
        let text = scrub.text(&error.to_string());
        match error {
            CallError::Refused(_) => Trouble::new(self.system, Kind::Refused, text).not_applied(),
            CallError::Unreachable { .. } => Trouble::new(self.system, Kind::Down, text).not_applied(),
            CallError::Unanswered { .. } => Trouble::new(self.system, Kind::Unanswered, text).of(nature),
            CallError::Unusable { .. } => Trouble::new(self.system, Kind::Unknown, text).of(nature),
        }
    }

    fn said(&self, answer: Answer, nature: Nature, scrub: &Scrub) -> Result<Said, Trouble> {
        let (system, status) = (self.system, answer.status.as_u16());
        if answer.truncated {
            let text = format!("the answer is larger than the {} bytes that are read", answer.body.len());
            let trouble = Trouble::new(system, Kind::Unknown, text).because(TOO_LARGE);
            return Err(trouble.status(status).of(nature));
        }
        Ok(Said { system, nature, status, headers: answer.headers, body: clean(answer.body, scrub) })
    }
}

/// The same bytes, without secrets. What holds none stays as it is.
fn clean(body: Vec<u8>, scrub: &Scrub) -> Vec<u8> {
    let text = String::from_utf8_lossy(&body);
    let cleaned = scrub.text(&text);
    if cleaned == text {
        return body;
    }
    // Value by value, as a secret of digits may stand where JSON wants a number.
    match serde_json::from_slice::<Value>(&body) {
        Ok(value) => scrub.value(value).to_string().into_bytes(),
        Err(_) => cleaned.into_bytes(),
    }
}

impl Said {
    /// It was done: 2xx.
    pub(crate) fn is_fine(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// That this is an answer of the system's, and not a page of somebody's in between, or a piece of one.
    fn is_whole(&self) -> Result<(), Trouble> {
        match self.garbled() {
            Some(why) => Err(self.unknown(&Shape::new(why))),
            None => Ok(()),
        }
    }

    /// Trouble passes that is told by nothing, or by a piece of something: that is no word of the system's. A page may be an
    /// answer, to a wrong url; and to ask again with credentials that are refused may lock an account.
    pub(crate) fn as_told(&self, trouble: Trouble) -> Trouble {
        let is_page = self.body.trim_ascii().starts_with(b"<");
        let is_cut_off = self.garbled().is_some() && !is_page && !matches!(self.status, 401 | 403);
        if is_cut_off { trouble.garbled() } else { trouble }
    }

    /// Why this is none.
    fn garbled(&self) -> Option<&'static str> {
        let body = self.body.trim_ascii();
        let (Some(first), Some(last)) = (body.first(), body.last()) else { return Some("is empty") };
        match (first, last) {
            (b'<', _) => Some("is a page of HTML"),
            (b'{', b'}') | (b'[', b']') => None,
            (b'{' | b'[', _) => Some("breaks off"),
            _ => None,
        }
    }

    /// The beginning of the body, for people.
    pub(crate) fn excerpt(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().chars().take(EXCERPT).collect()
    }

    /// How long the system wants to be left alone, as the head says.
    pub(crate) fn rest(&self) -> Option<Duration> {
        retry_after(&self.headers, std::time::SystemTime::now())
    }

    /// Reads the body, if the status says that it was done.
    pub(crate) fn read<T>(
        &self,
        decode: impl FnOnce(&[u8]) -> Result<T, Shape>,
        refused: impl FnOnce(&Self) -> Trouble,
    ) -> Result<T, Trouble> {
        if !self.is_fine() {
            return Err(refused(self));
        }
        decode(&self.body).map_err(|shape| self.unknown(&shape))
    }

    /// What came is not what can come.
    pub(crate) fn unknown(&self, shape: &Shape) -> Trouble {
        let text = format!("the answer {shape} (it begins: {})", self.excerpt());
        let trouble = Trouble::new(self.system, Kind::Unknown, text).status(self.status).of(self.nature);
        if self.garbled().is_some() { trouble.garbled() } else { trouble }
    }

    /// What a status means by itself, with what was said.
    pub(crate) fn by_status(&self, text: impl Into<String>) -> Trouble {
        let status = self.status;
        let of = |kind| Trouble::new(self.system, kind, text.into());
        let trouble = match status {
            401 | 403 => of(Kind::Operator).not_applied(),
            404 | 410 => of(Kind::Missing).not_applied(),
            408 => of(Kind::Unanswered),
            409 => of(Kind::Look),
            425 | 429 => of(Kind::Busy).not_applied(),
            300..400 => of(Kind::Refused).hint("redirects are not followed; is its url right?"),
            400..500 | 501 | 505 => of(Kind::Refused).not_applied(),
            502..=504 => of(Kind::Down),
            500..600 => of(Kind::Internal),
            _ => of(Kind::Unknown),
        };
        trouble.code_of(status.into(), None).status(status).retry_after(self.rest()).of(self.nature)
    }
}

/// Reads JSON of a known shape.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Shape> {
    Ok(serde_json::from_slice(bytes)?)
}
