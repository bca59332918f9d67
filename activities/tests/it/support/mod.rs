//! An engine with the activities, a target that misbehaves as it is told, and a folder for programs.

mod target;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backstay_activities::http::Allowed;
use backstay_activities::secrets::{FileSecrets, NoSecrets, SecretUse};
use backstay_activities::{
    Builtin, CommandSettings, EngineSignals, HttpSettings, Program, Secrets, register,
};
use backstay_engine::machine::{ActivityError, Applied};
use backstay_engine::{Engine, Node, NodeConfig, Plan, Registry, RunId, Span, Status, Store, SubmitOptions};
use backstay_tests::Lab;
use serde_json::{Value, json};

pub use target::{Heard, Reply, Target, stand};

/// What a test changes in the settings.
pub struct Settings {
    pub http: HttpSettings,
    pub command: CommandSettings,
    pub secrets: Arc<dyn Secrets>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            http: HttpSettings {
                timeout: Span::secs(5),
                answer_timeout: Span::secs(2),
                ..HttpSettings::default()
            },
            command: CommandSettings::default(),
            secrets: Arc::new(NoSecrets),
        }
    }
}

impl Settings {
    /// These targets may be called, though they are on this machine.
    pub fn calling(mut self, targets: &[&Target]) -> Self {
        self.http.origins.extend(targets.iter().map(|target| here(&target.origin())));
        self
    }
}

/// An entry of the allow-list that permits this machine.
pub fn here(origin: &str) -> Allowed {
    let networks = vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
    Allowed { networks, ..Allowed::new(origin) }
}

/// An engine with the activities, and a node.
pub struct House {
    pub lab: Lab,
    pub engine: Engine,
    registry: Registry,
    pub node: Option<Node>,
}

impl House {
    pub async fn new(settings: Settings) -> Self {
        // A second one finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let lab = Lab::new().await.unwrap();
        let store = Store::connect(&lab.url).await.unwrap();
        let signals = Arc::new(EngineSignals::open(store.clone(), vec!["open".into()]).await.unwrap());
        let Settings { http, command, secrets } = settings;
        let mut registry = Registry::new();
        register(&mut registry, Builtin { http, command, secrets, signals }).unwrap();
        let engine = Engine::open(store, registry.clone()).await.unwrap();
        let node = Some(engine.start_node(Lab::config("a")).await.unwrap());
        Self { lab, engine, registry, node }
    }

    /// One more node of this process, on an engine of its own.
    pub async fn another(&self, config: NodeConfig) -> Node {
        let store = Store::connect(&self.lab.url).await.unwrap();
        let engine = Engine::open(store, self.registry.clone()).await.unwrap();
        engine.start_node(config).await.unwrap()
    }

    pub async fn submit(&self, plan: Value) -> RunId {
        self.submit_with(plan, SubmitOptions::default()).await
    }

    pub async fn submit_with(&self, plan: Value, options: SubmitOptions) -> RunId {
        let plan =
            Plan::check_json(&plan.to_string(), self.engine.registry()).unwrap_or_else(|e| panic!("{e}"));
        self.engine.submit(&plan, options).await.unwrap().run
    }

    pub async fn play(&self, plan: Value) -> (RunId, Status) {
        let run = self.submit(plan).await;
        (run, self.lab.settled(run).await.unwrap())
    }

    /// A run of one step without an undo: what it gave, or how its last attempt failed.
    pub async fn once(&self, activity: &str, input: Value) -> Result<Value, ActivityError> {
        let (run, _) = self.play(single(activity, input)).await;
        self.outcome(run, "only", false).await
    }

    /// How the last attempt of a step ended.
    pub async fn outcome(&self, run: RunId, step: &str, undo: bool) -> Result<Value, ActivityError> {
        let rows = self.engine.journal(run).await.unwrap();
        let mut found = None;
        for row in rows.iter().filter(|row| row.step.as_deref() == Some(step) && row.undo == undo) {
            let body = row.body.as_ref().map(|body| body.value()).unwrap_or_default();
            match row.kind {
                "succeeded" => found = Some(Ok(body.get("output").cloned().unwrap_or(body))),
                "failed" => {
                    found = Some(Err(serde_json::from_value(body["error"].clone()).unwrap()));
                }
                _ => {}
            }
        }
        found.unwrap_or_else(|| panic!("no attempt of {step} has ended"))
    }

    pub async fn story(&self, run: RunId) -> String {
        self.lab.story(run).await.unwrap()
    }

    /// Everything that the database holds, as text.
    pub async fn everything(&self, run: RunId) -> String {
        let rows = self.engine.journal(run).await.unwrap();
        rows.iter()
            .map(|row| format!("{row:?}\n{}\n", row.body.as_ref().map_or("", |body| body.as_str())))
            .collect()
    }
}

/// A plan of one step.
pub fn single(activity: &str, input: Value) -> Value {
    json!({ "workflow": "single", "retry": { "attempts": 1 }, "steps": [
        { "name": "only", "activity": activity, "input": input, "nothing_to_undo": "it is a test" } ] })
}

/// Retries that a test can wait for.
pub fn quick(attempts: u32) -> Value {
    json!({ "first": "5ms", "factor": 1.0, "ceiling": "5ms", "jitter": 0.0, "attempts": attempts })
}

pub fn not_applied(error: &ActivityError) -> bool {
    error.applied == Applied::No
}

/// What kinds of events there were, for counting.
pub fn count(story: &str, kind: &str) -> usize {
    story.lines().filter(|line| line.starts_with(kind)).count()
}

/// A folder with secrets that may go to these places.
pub fn secrets(texts: &[(&str, &str)], uses: SecretUse) -> (tempfile::TempDir, Arc<dyn Secrets>) {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let mut all = BTreeMap::new();
    for (name, text) in texts {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        all.insert((*name).to_owned(), uses.clone());
    }
    let secrets = Arc::new(FileSecrets::new(dir.path(), &all).unwrap());
    (dir, secrets)
}

/// Secrets that may go to a target.
pub fn secrets_for(target: &Target, texts: &[(&str, &str)]) -> (tempfile::TempDir, Arc<dyn Secrets>) {
    // A second one finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    secrets(texts, SecretUse { origins: vec![target.origin()], programs: Vec::new() })
}

/// What the engine is told: whether trying again can help, whether it was not applied, and under which code.
pub fn told(failure: impl Into<backstay_engine::Failure>) -> (String, bool, bool) {
    let text = format!("{:?}", failure.into());
    let (_, code) = text.split_once("code: \"").unwrap();
    let (code, _) = code.split_once('"').unwrap();
    (code.into(), text.contains("retryable: true"), text.contains("applied: No"))
}

/// A program that is a script of the test's.
pub fn program(dir: &std::path::Path, name: &str, script: &str) -> Program {
    use std::os::unix::fs::PermissionsExt;
    let path: PathBuf = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    Program {
        path,
        args: Vec::new(),
        allow: Vec::new(),
        env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
        allow_env: Vec::new(),
        dir: Some(dir.to_owned()),
        timeout: Span::secs(20),
        grace: Span::millis(300),
        uid: None,
        gid: None,
        codes: BTreeMap::new(),
    }
}

/// Looks again and again, until it is so.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(std::time::Instant::now() < end, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
