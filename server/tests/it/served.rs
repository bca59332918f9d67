//! A server as a process, and a client of its API.

use std::time::Duration;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Place, Running};

pub struct Served {
    pub place: Place,
    pub base: String,
    pub health: String,
    pub admin: String,
    running: Option<Running>,
    client: reqwest::Client,
}

/// An answer, read whole.
#[derive(Clone, Debug)]
pub struct Said {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Said {
    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:#?}");
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// The slug of the problem.
    #[track_caller]
    pub fn problem(&self) -> String {
        let kind = self.json()["type"].as_str().unwrap_or_default().to_owned();
        kind.strip_prefix("/problems/").unwrap_or_else(|| panic!("no problem: {self:#?}")).to_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

pub fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(Duration::from_secs(30)).no_proxy().build().unwrap()
}

impl Served {
    pub async fn start() -> Self {
        Self::on(Place::with_url().await, "n1").await
    }

    pub async fn on(place: Place, name: &str) -> Self {
        Self::with(place, name, &[]).await
    }

    /// With these settings.
    pub async fn with(place: Place, name: &str, settings: &[(&str, &str)]) -> Self {
        let mut command = place.command(&["serve", "--name", name]);
        command.envs(settings.iter().copied());
        command.env("BACKSTAY_LISTEN__ADDRESS", "127.0.0.1:0").env("BACKSTAY_LISTEN__HEALTH", "127.0.0.1:0");
        // What it logs is kept for those who look for it.
        let log = std::fs::File::options().create(true).append(true).open(place.log()).unwrap();
        let mut running = Running::start_logging(&mut command, log);
        let said = running.until_it_says("Listening on http").await;
        let base = said.rsplit("Listening on ").next().unwrap().trim().to_owned();
        let said = running.until_it_says("Health and figures on ").await;
        let health = said.rsplit("Health and figures on ").next().unwrap().trim().to_owned();
        let admin = std::fs::read_to_string(place.path("admin-token")).unwrap_or_default().trim().to_owned();
        Self { place, base, admin, health, running: Some(running), client: client() }
    }

    pub fn request(&self, method: Method, path: &str, token: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        if token.is_empty() { request } else { request.bearer_auth(token) }
    }

    pub async fn get(&self, path: &str) -> Said {
        self.get_as(path, &self.admin).await
    }

    pub async fn get_as(&self, path: &str, token: &str) -> Said {
        said(self.request(Method::GET, path, token)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Said {
        self.post_as(path, body, &self.admin, None).await
    }

    pub async fn post_as(&self, path: &str, body: Value, token: &str, key: Option<&str>) -> Said {
        let mut request = self.request(Method::POST, path, token);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        said(request.header("content-type", "application/json").body(body.to_string())).await
    }

    /// A principal with these roles, and a token of theirs.
    pub async fn person(&self, name: &str, roles: &[&str]) -> String {
        self.post("/api/v1/principals", json!({ "name": name, "roles": roles })).await.is(201);
        self.token(json!({ "principal": name, "label": "a test" })).await
    }

    pub async fn token(&self, body: Value) -> String {
        let made = self.post("/api/v1/tokens", body).await.is(201).json();
        made["token"].as_str().unwrap().to_owned()
    }

    /// A run that waits for the signal "go".
    pub async fn waiting_run(&self) -> String {
        let body = json!({ "plan": waiting_plan("waits") });
        let run = self.post("/api/v1/runs", body).await.is(202).json();
        run["run"].as_str().unwrap().to_owned()
    }

    pub async fn status(&self, run: &str) -> String {
        let run = self.get(&format!("/api/v1/runs/{run}")).await.is(200).json();
        run["status"].as_str().unwrap().to_owned()
    }

    pub async fn until(&self, run: &str, status: &str) {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let now = self.status(run).await;
            if now == status {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "it is {now}, and not {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn pid(&self) -> u32 {
        self.running.as_ref().unwrap().pid()
    }

    pub fn signal(&self, signal: Signal) {
        self.running.as_ref().unwrap().signal(signal);
    }

    pub async fn end(self) -> Place {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// It was killed.
    pub async fn killed(mut self) -> Place {
        self.running.take().unwrap().end().await.was_killed();
        self.place
    }

    /// It was told to end.
    pub async fn ended(self) -> Place {
        self.ended_with().await.0
    }

    /// The same, and what it printed.
    pub async fn ended_with(mut self) -> (Place, String) {
        let ran = self.running.take().unwrap().end().await.exits(0);
        (self.place, ran.out)
    }
}

pub fn waiting_plan(workflow: &str) -> Value {
    let step = json!({ "name": "w", "activity": "wait", "input": { "signal": "go" }, "nothing_to_undo": "it waits" });
    json!({ "workflow": workflow, "steps": [step] })
}

pub async fn said(request: reqwest::RequestBuilder) -> Said {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Said { status, headers, text: response.text().await.unwrap() }
}
