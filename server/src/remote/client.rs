//! HTTP, with errors that say what to do.

use std::io::IsTerminal;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;

use super::args::{Remote, Where};
use crate::config::Config;
use crate::trouble::{Trouble, sentence};

/// How long an answer may take. Verbs wait for the run's own answer, a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the same is asked again if the connection is lost: with its key it is the same asking.
const TRIES: u32 = 4;
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A server, and who asks.
pub(super) struct Api {
    http: reqwest::Client,
    base: Url,
    token: String,
}

/// An answer.
pub(super) struct Answer {
    pub text: String,
}

impl Answer {
    pub(super) fn json(&self) -> Result<Value, Trouble> {
        serde_json::from_str(&self.text).map_err(|error| {
            Trouble::failed(format!("The server's answer is no JSON ({error}): is it a Backstay server?"))
        })
    }
}

/// A text as one part of a path.
pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

impl Api {
    pub(super) fn open(remote: &Remote, config: &Config) -> Result<Self, Trouble> {
        Self::at(&remote.at, config)
    }

    pub(super) fn at(at: &Where, config: &Config) -> Result<Self, Trouble> {
        let address = at.server.clone().unwrap_or_else(|| format!("http://{}", config.listen.address));
        let base = Url::parse(&address)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some())
            .ok_or_else(|| {
                Trouble::usage(format!(
                    "\"{address}\" is no address of a server; it looks like https://backstay.example:7433."
                ))
            })?;
        let local = match base.host() {
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        };
        if base.scheme() == "http" && !local {
            return Err(Trouble::usage(format!(
                "{base} is not on this machine and not encrypted: the token would be readable on the way. Use https."
            )));
        }
        let mut http = reqwest::Client::builder()
            .timeout(PATIENCE)
            .connect_timeout(Duration::from_secs(10))
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("backstay/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &at.ca_file {
            let pem = std::fs::read(path).map_err(Trouble::file("Reading", path))?;
            let authority = reqwest::Certificate::from_pem(&pem).map_err(|error| {
                Trouble::usage(format!("{} holds no certificate: {error}.", path.display()))
            })?;
            http = http.add_root_certificate(authority);
        }
        let http =
            http.build().map_err(|error| Trouble::failed(format!("HTTP is not possible here: {error}.")))?;
        Ok(Self { http, base, token: token(at, config)? })
    }

    pub(super) fn address(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    pub(super) async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, Trouble> {
        self.ask(Method::GET, path, query, None, None).await?.json()
    }

    /// With a key of its own, so that asking again after a lost answer does nothing twice.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, Trouble> {
        self.ask(Method::POST, path, &[], Some(body), None).await?.json()
    }

    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
        key: Option<&str>,
    ) -> Result<Answer, Trouble> {
        self.ask_if(method, path, query, body, key, None).await
    }

    /// The same, if what it is about is still of this version.
    pub(super) async fn ask_if(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
        key: Option<&str>,
        seen: Option<i64>,
    ) -> Result<Answer, Trouble> {
        let own = uuid::Uuid::now_v7().to_string();
        let mut tries = 0;
        loop {
            tries += 1;
            let mut request =
                self.http.request(method.clone(), self.url(path, query)?).bearer_auth(&self.token);
            if method != Method::GET {
                request = request.header("idempotency-key", key.unwrap_or(&own));
            }
            if let Some(seen) = seen {
                request = request.header("if-match", format!("\"{seen}\""));
            }
            if let Some(body) = body {
                request = request.header("content-type", "application/json").body(body.to_string());
            }
            let answered = async {
                let response = request.send().await?;
                let status = response.status();
                let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
                let wait = header("retry-after");
                Ok::<_, reqwest::Error>((status, wait, response.text().await?))
            };
            match answered.await {
                Ok((status, _, text)) if status.is_success() => return Ok(Answer { text }),
                Ok((StatusCode::SERVICE_UNAVAILABLE, wait, _)) if tries < TRIES => {
                    let wait = wait.and_then(|text| text.parse().ok()).unwrap_or(1_u64).min(10);
                    eprintln!("The server is not ready; asking again in {wait} s.");
                    tokio::time::sleep(Duration::from_secs(wait)).await;
                }
                Ok((status, _, text)) => return Err(refused(status, &text)),
                Err(error) if tries < TRIES && !error.is_connect() => {
                    tokio::time::sleep(Duration::from_millis(200 * u64::from(tries))).await;
                }
                Err(error) => return Err(self.unreachable(&error)),
            }
        }
    }

    /// A stream of events, from the one after this on.
    pub(super) async fn events(&self, run: &str, after: i64) -> Result<reqwest::Response, Trouble> {
        let path = format!("/runs/{}/events", segment(run));
        let request = self
            .http
            .get(self.url(&path, &[])?)
            .timeout(Duration::from_secs(7 * 24 * 3600))
            .bearer_auth(&self.token)
            .header("last-event-id", after.to_string());
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(refused(status, &response.text().await.unwrap_or_default()));
        }
        Ok(response)
    }

    fn url(&self, path: &str, query: &[(&str, String)]) -> Result<Url, Trouble> {
        let mut url = self
            .base
            .join(&format!("/api/v1{path}"))
            .map_err(|error| Trouble::usage(format!("{path} makes no address: {error}.")))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Trouble {
        Trouble::unreachable(format!(
            "The server at {} cannot be reached: {}. Is it running (\"backstay serve\")? Another one is named with --server.",
            self.base,
            sentence(error)
        ))
    }
}

fn token(at: &Where, config: &Config) -> Result<String, Trouble> {
    let given = std::env::var("BACKSTAY_TOKEN").ok().filter(|text| !text.trim().is_empty());
    if let (Some(token), None) = (given, &at.token_file) {
        return Ok(token.trim().to_owned());
    }
    let first = config.data_dir.join(crate::serve::FIRST_TOKEN);
    let path = at.token_file.as_ref().unwrap_or(&first);
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => Err(Trouble::denied(format!(
            "No token: {} cannot be read ({error}). The first start of the server (\"backstay serve\") writes the first \
             admin's token into its data folder; another one is given in BACKSTAY_TOKEN, or in a file with --token-file.",
            path.display()
        ))),
    }
}

/// What the server says, as a sentence for people and an exit code for programs.
fn refused(status: StatusCode, text: &str) -> Trouble {
    let problem: Value = serde_json::from_str(text).unwrap_or_default();
    let said = |name: &str| problem.get(name).and_then(Value::as_str).map(str::to_owned);
    let mut text = match (said("title"), said("detail")) {
        (Some(title), Some(detail)) => format!("{title}: {detail}."),
        _ => format!("The server answered {status}."),
    };
    let errors = problem.get("errors").and_then(Value::as_array);
    for error in errors.into_iter().flatten() {
        let part = |name: &str| error.get(name).and_then(Value::as_str);
        if let Some(message) = part("message") {
            let place = part("at").or_else(|| part("step")).unwrap_or("plan");
            let line = format!("{place}: {message}");
            // One mistake alone is said in full already.
            if !text.contains(&line) {
                text += &format!("\n  {line}");
            }
        }
    }
    if let Some(page) = said("type") {
        text += &format!("\nSee {page} of the server, or docs/problems.md, for what to do.");
    }
    match status.as_u16() {
        401 | 403 => Trouble::denied(text),
        404 | 410 => Trouble::not_found(text),
        409 | 412 => Trouble::conflict(text),
        400 | 413 | 415 | 422 | 428 => Trouble::usage(text),
        503 => Trouble::unreachable(text),
        _ => Trouble::failed(text),
    }
}

/// Asks whether it is meant. Without a terminal nobody can answer.
pub(super) fn confirm(what: &str, yes: bool) -> Result<(), Trouble> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Trouble::usage(format!(
            "{what} This is not a terminal, so nobody can be asked: add --yes."
        )));
    }
    eprint!("{what} Go on? [y/N] ");
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Trouble::failed("Nothing was done."))
}
