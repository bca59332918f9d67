//! The policy: who asks, and may they. A handler gets a [`Permit`], which only this module makes, and there is no other
//! way from a handler to the engine: what was forgotten here is denied.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use backstay_activities::secrets_named;
use backstay_engine::machine::action;
use backstay_engine::machine::plan::StepSpec;
use backstay_engine::store::access::{Change, Kept, Principal, Token};
use backstay_engine::{Engine, RunId, RunInfo, Sender, Store};
use chrono::Utc;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Settings;
use super::ledger::Ledger;
use super::problem::{AWAY, FORBIDDEN, INTERNAL, KEY_REUSED, NOT_FOUND, NOT_HERE, Problem, UNAUTHENTICATED};
use super::rights::{Right, Role};
use crate::keys::Keys;
use crate::seal::{Keyring, Sealed};

/// How often a node asks whether somebody's rights have changed.
const LOOK: Duration = Duration::from_secs(2);
/// What was looked up longer ago than this is not believed any more: no revoked token lives longer than this.
const STALE: Duration = Duration::from_secs(4);
/// How tokens begin: it lets scanners find those that leaked.
pub const TOKEN_PREFIX: &str = "bst_";

/// The way in. Cheap to clone.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    engine: Engine,
    settings: Settings,
    ledger: Ledger,
    known: Mutex<Known>,
}

/// Callers that were looked up, for as long as nothing has changed.
#[derive(Default)]
struct Known {
    callers: HashMap<[u8; 32], Arc<Caller>>,
    /// The end of the audit trail when they were looked up: every change of rights moves it.
    head: Option<i64>,
    /// When that was last known to be so.
    at: Option<Instant>,
    used: Vec<Uuid>,
}

/// Somebody with a valid token.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Whose token it is.
    pub principal: Principal,
    /// The token.
    pub token: Token,
    rights: Vec<Right>,
}

impl Caller {
    fn new(token: Token, principal: Principal) -> Self {
        let of_roles = principal.roles.iter().filter_map(|role| Role::named(role)).flat_map(Role::rights_of);
        let narrowed = |right: &Right| {
            token.rights.as_ref().is_none_or(|only| only.iter().any(|name| name == right.name()))
        };
        let mut rights: Vec<_> = of_roles.filter(narrowed).collect();
        rights.sort_unstable();
        rights.dedup();
        Self { principal, token, rights }
    }

    /// What it may do.
    pub fn rights(&self) -> &[Right] {
        &self.rights
    }

    fn invalid(&self) -> Option<&'static str> {
        if self.token.revoked_at.is_some() {
            Some("the token is revoked")
        } else if self.token.expires_at <= Utc::now() {
            Some("the token has expired")
        } else if self.principal.disabled_at.is_some() {
            Some("the principal is disabled")
        } else {
            None
        }
    }
}

impl Role {
    fn rights_of(self) -> impl Iterator<Item = Right> {
        self.rights().iter().copied()
    }
}

/// One request, as far as it matters beyond the request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its id; it stands in the logs, in the answer and in what is written down.
    pub id: String,
    /// Which operation.
    pub operation: &'static str,
    /// From where.
    pub from: Option<IpAddr>,
    /// Its place in a trace, as the layer around all requests has it.
    pub trace: Option<String>,
}

/// Leave to do one operation. Only the gate makes one.
pub struct Permit {
    gate: Gate,
    caller: Arc<Caller>,
    asked: Asked,
    hash: [u8; 32],
}

impl Gate {
    /// Opens it.
    pub fn new(engine: Engine, settings: Settings) -> Self {
        let ledger = Ledger::open(engine.store().clone());
        Self(Arc::new(Inner { engine, settings, ledger, known: Mutex::default() }))
    }

    /// Keeps what is known of callers true, for as long as it is awaited.
    pub async fn watch(&self) {
        loop {
            self.look().await;
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&self) {
        let store = self.0.engine.store();
        // Before it is asked: what changes after this moment is not in the answer.
        let at = Instant::now();
        match tokio::time::timeout(LOOK, store.audit_head()).await {
            Ok(Ok(head)) => {
                let used = {
                    let mut known = self.known();
                    if known.head != Some(head.nr) {
                        known.callers.clear();
                        known.head = Some(head.nr);
                    }
                    known.at = Some(at);
                    std::mem::take(&mut known.used)
                };
                if !used.is_empty()
                    && let Err(error) = store.tokens_used(&used).await
                {
                    tracing::debug!(error = &error as &dyn std::error::Error, "tokens were used");
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "rights are not known");
            }
            Err(_) => tracing::debug!("the database does not say whether rights have changed"),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request in, or not. What is refused is written down before it is answered.
    pub async fn admit(&self, headers: &HeaderMap, right: Right, asked: Asked) -> Result<Permit, Problem> {
        let hash = match bearer(headers) {
            Ok(token) => digest(token),
            Err(why) => return Err(self.stranger(&asked, why).await),
        };
        let caller = match self.caller(&hash).await? {
            Some(caller) => caller,
            None => return Err(self.stranger(&asked, "nobody has this token").await),
        };
        if let Some(why) = caller.invalid() {
            self.refused(Some(&caller), &asked, why).await?;
            return Err(unauthenticated());
        }
        let permit = Permit { gate: self.clone(), caller, asked, hash };
        permit.also(right).await?;
        Ok(permit)
    }

    async fn caller(&self, hash: &[u8; 32]) -> Result<Option<Arc<Caller>>, Problem> {
        let head = {
            let mut known = self.known();
            let fresh = known.at.is_some_and(|at| at.elapsed() < STALE);
            if fresh && let Some(caller) = known.callers.get(hash).cloned() {
                if !known.used.contains(&caller.token.id) {
                    known.used.push(caller.token.id);
                }
                return Ok(Some(caller));
            }
            known.head
        };
        let Some((token, principal)) = self.0.engine.store().token(hash).await? else { return Ok(None) };
        let caller = Arc::new(Caller::new(token, principal));
        let mut known = self.known();
        // It was read after the head that is known, unless that has moved meanwhile.
        if known.head == head && head.is_some() && known.callers.len() < 10_000 {
            known.callers.insert(*hash, Arc::clone(&caller));
        }
        Ok(Some(caller))
    }

    async fn stranger(&self, asked: &Asked, why: &str) -> Problem {
        match self.refused(None, asked, why).await {
            Ok(()) => unauthenticated(),
            Err(problem) => problem,
        }
    }

    async fn refused(&self, caller: Option<&Caller>, asked: &Asked, why: &str) -> Result<(), Problem> {
        tracing::info!(operation = asked.operation, request = asked.id, why, "a request was refused");
        metrics::counter!("backstay_requests_refused_total").increment(1);
        let entry = line(caller, asked, None, Map::from_iter([("refused".to_owned(), json!(why))]));
        match self.0.ledger.write(entry).await {
            Ok(()) => Ok(()),
            Err(_) => {
                Err(Problem::new(&AWAY, "the audit trail cannot be written at this moment").retry_after(2))
            }
        }
    }
}

impl Permit {
    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.gate.0.engine
    }

    /// The database.
    pub fn store(&self) -> &Store {
        self.engine().store()
    }

    /// How this server is set up.
    pub fn settings(&self) -> &Settings {
        &self.gate.0.settings
    }

    /// Who asks.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The name of who asks.
    pub fn who(&self) -> &str {
        &self.caller.principal.name
    }

    /// The request.
    pub fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Whether they may do this as well; a refusal is written down.
    pub async fn also(&self, right: Right) -> Result<(), Problem> {
        self.also_for(right, "it").await
    }

    /// The same, where it takes a word to understand why.
    pub async fn also_for(&self, right: Right, what: &str) -> Result<(), Problem> {
        if self.caller.rights.contains(&right) {
            return Ok(());
        }
        self.gate
            .refused(Some(&self.caller), &self.asked, &format!("the right \"{right}\" is missing"))
            .await?;
        Err(Problem::new(
            &FORBIDDEN,
            format!("{what} needs the right \"{right}\", which {} has not", self.who()),
        )
        .with("right", right.name()))
    }

    /// Whether they may have the secrets used that an input names. Who may write a plan may name any secret in it, as it is
    /// bound to where it may go; who may not, names none.
    pub async fn may_name(&self, input: &Value) -> Result<(), Problem> {
        self.may_use(secrets_named(input), &BTreeSet::new()).await
    }

    /// The same for another input of a step, or of its undo: none but those that the plan names at this place. What the
    /// step is given can become a name in the plan of the run that it is.
    pub async fn may_give(&self, input: &Value, step: Option<&StepSpec>, undo: bool) -> Result<(), Problem> {
        match step {
            None => self.may_name(input).await,
            Some(step) if undo => {
                let written = step.undo.as_ref().map(|undo| secrets_named(&undo.input));
                self.may_use(secrets_named(input), &written.unwrap_or_default()).await
            }
            Some(step) => self.may_use(named_with(step, input), &named_with(step, &step.input)).await,
        }
    }

    async fn may_use(&self, names: BTreeSet<String>, before: &BTreeSet<String>) -> Result<(), Problem> {
        match names.into_iter().find(|name| !before.contains(name)) {
            None => Ok(()),
            Some(name) => {
                let what = format!("naming the secret \"{}\" in an input", name.escape_debug());
                self.also_for(Right::Define, &what).await
            }
        }
    }

    /// Whether the token is good still: for answers that go on for hours.
    pub async fn still(&self) -> bool {
        matches!(self.gate.caller(&self.hash).await, Ok(Some(caller)) if caller.invalid().is_none())
    }

    /// Whether the token is about this workflow.
    pub fn covers(&self, workflow: &str) -> bool {
        self.caller.token.workflows.as_ref().is_none_or(|only| only.iter().any(|name| name == workflow))
    }

    /// The workflows that the token is about; `None`: all.
    pub fn workflows(&self) -> Option<&[String]> {
        self.caller.token.workflows.as_deref()
    }

    /// A run that this caller may know of.
    pub async fn run(&self, run: RunId) -> Result<RunInfo, Problem> {
        match self.store().get(run).await? {
            Some(info) if self.covers(&info.workflow) => Ok(info),
            _ => Err(Problem::new(&NOT_FOUND, format!("there is no run {run}"))),
        }
    }

    /// Who asks, as a run's first event keeps it.
    pub fn sender(&self, why: String) -> Sender {
        let why = why.chars().take(action::limits::TEXT).collect();
        let (who, via) = (self.who().to_owned(), Some(self.asked.id.clone()));
        Sender { who, why, via, trace: self.asked.trace.clone() }
    }

    /// What is written down with a change, in its commit.
    pub fn change(&self, about: impl Into<String>, details: Value) -> Change {
        let mut more = Map::new();
        if !details.is_null() {
            more.insert("details".to_owned(), details);
        }
        Change { entry: line(Some(&self.caller), &self.asked, Some(about.into()), more), kept: None }
    }

    /// The answer, for whoever asks again under this key.
    pub fn kept(
        &self,
        key: Option<&str>,
        asked: &[u8],
        status: i16,
        answer: &Value,
    ) -> Result<Option<Kept>, Problem> {
        let Some(key) = key else { return Ok(None) };
        let sealed = self.keys()?.seal(key, answer.to_string().as_bytes()).map_err(unsealed)?;
        let (principal, key, asked) = (self.who().to_owned(), key.to_owned(), asked.to_vec());
        Ok(Some(Kept { principal, key, asked, status, answer: sealed.to_bytes() }))
    }

    /// What was answered under this key before; a problem if something else was asked.
    pub async fn answered(&self, key: Option<&str>, asked: &[u8]) -> Result<Option<Value>, Problem> {
        let Some(key) = key else { return Ok(None) };
        let Some(kept) = self.store().answered(self.who(), key).await? else { return Ok(None) };
        if kept.asked != asked {
            return Err(Problem::new(&KEY_REUSED, "something else was asked under this key"));
        }
        let sealed = Sealed::from_bytes(&kept.answer).ok_or_else(|| unsealed("it is cut off"))?;
        let text = self.keys()?.open(key, &sealed).map_err(unsealed)?;
        serde_json::from_slice(&text).map(Some).map_err(unsealed)
    }

    /// The installation's keys.
    pub fn keys(&self) -> Result<Arc<Keyring>, Problem> {
        let missing =
            || Problem::new(&NOT_HERE, "this installation has no key file, so it cannot keep secrets");
        self.settings().keys.as_ref().map(Keys::now).ok_or_else(missing)
    }

    /// The id of what is asked under this key: the same for the same caller and key.
    pub fn id_for(&self, key: Option<&str>) -> Uuid {
        match key {
            None => Uuid::now_v7(),
            Some(key) => {
                let text = format!("{}\n{}\n{key}", self.asked.operation, self.who());
                Uuid::new_v5(&Uuid::from_u128(0x6f1b_9df0_52c6_4d6e_8a1e_b1f5_7c1d_9a54), text.as_bytes())
            }
        }
    }
}

/// The secrets that a step with this input names, in the runs that it is made of as well.
fn named_with(step: &StepSpec, input: &Value) -> BTreeSet<String> {
    let mut names = secrets_named(input);
    for inner in step.plan_given(input).into_iter().flat_map(|plan| plan.steps) {
        names.extend(named_with(&inner, &inner.input));
        names.extend(inner.undo.iter().flat_map(|undo| secrets_named(&undo.input)));
    }
    names
}

fn line(caller: Option<&Caller>, asked: &Asked, about: Option<String>, more: Map<String, Value>) -> String {
    let mut entry = Map::new();
    if let Some(caller) = caller {
        entry.insert("who".to_owned(), json!(caller.principal.name));
        entry.insert("token".to_owned(), json!(caller.token.id));
    }
    entry.insert("did".to_owned(), json!(asked.operation));
    if let Some(about) = about {
        entry.insert("about".to_owned(), json!(about));
    }
    entry.insert("request".to_owned(), json!(asked.id));
    if let Some(from) = asked.from {
        entry.insert("from".to_owned(), json!(from));
    }
    entry.extend(more);
    Value::Object(entry).to_string()
}

fn unauthenticated() -> Problem {
    Problem::new(&UNAUTHENTICATED, "a valid token is needed")
}

fn unsealed(error: impl std::fmt::Display) -> Problem {
    tracing::error!(%error, "a kept answer cannot be sealed or opened");
    Problem::new(&INTERNAL, "a kept answer cannot be sealed or opened; the log says why")
}

pub(crate) fn bearer(headers: &HeaderMap) -> Result<&str, &'static str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return Err("there is no Authorization header, or more than one");
    };
    let text = value.to_str().map_err(|_| "the Authorization header is no text")?;
    let (scheme, token) = text.split_once(' ').ok_or("the Authorization header has no token")?;
    if !scheme.eq_ignore_ascii_case("bearer") || !token.starts_with(TOKEN_PREFIX) {
        return Err("the Authorization header has no token of ours");
    }
    Ok(token)
}

/// What is kept of a token. It is random and long, so a plain hash cannot be guessed back.
pub fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
