//! The handle for those who embed the engine.

use std::sync::{Arc, PoisonError};

use backstay_machine::{
    CheckError, Epoch, Event, Journaled, Plan, Row, RunId, Sender, Seq, Status, Time, action,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::activity::Registry;
use crate::node::{Door, Message, Node, NodeConfig, NodeError};
use crate::operate::Herald;
use crate::store::{Admission, Refusal, RunFilter, RunInfo, Store, StoreError};
use crate::watch::{RunHandle, Watchers};

/// The engine: a journal, and the activities that this process has. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {
    store: Store,
    registry: Arc<Registry>,
    pub(crate) watchers: Arc<Watchers>,
    pub(crate) herald: Arc<Herald>,
    node: Door,
}

/// How a run is submitted.
#[derive(Clone, Debug, Default)]
pub struct SubmitOptions {
    /// The client's key: submitting the same again under it gives the same run.
    pub key: Option<String>,
    /// At most one live run holds it.
    pub exclusive: Option<String>,
    /// If another run holds the exclusive key, it stands in line for it, in the order of submission. Otherwise it is
    /// refused.
    pub queue: bool,
    /// For finding it again: an object of short texts.
    pub labels: Value,
    /// 0 low, 1 normal, 2 high.
    pub priority: Option<i16>,
    /// Who submits it; it stands in the run's first event.
    pub by: Option<Sender>,
    /// What was asked under the key, in the client's words. Left out: the plan and these options.
    pub asked: Option<String>,
}

/// Why the engine did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The plan.
    #[error(transparent)]
    Plan(#[from] CheckError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The options.
    #[error("{0}")]
    Options(String),
    /// Something else was submitted under this key before.
    #[error("the key \"{key}\" belongs to run {run}, which was submitted with another plan or other options")]
    KeyReused {
        /// The key.
        key: String,
        /// The run that has it.
        run: RunId,
    },
    /// A live run holds the exclusive key.
    #[error("run {holder} holds \"{key}\" and is not over; wait for its end, or roll it back")]
    Exclusive {
        /// The key.
        key: String,
        /// The run that has it.
        holder: RunId,
    },
    /// There is no such pool.
    #[error("there is no pool \"{0}\"; there is one once a step has named it, or somebody has limited it")]
    NoSuchPool(String),
    /// There is no such run.
    #[error("there is no run {0}")]
    NoSuchRun(RunId),
    /// What is asked of a run.
    #[error("that cannot be asked: {0}")]
    Action(String),
    /// Something else was asked under this id before.
    #[error("something else was asked of run {run} under the id {id} before; a new wish needs a new id")]
    ActionReused {
        /// The id.
        id: Uuid,
        /// The run that was asked.
        run: RunId,
    },
    /// Its journal makes no sense to this release.
    #[error("the journal of run {run} cannot be read by this release: {why}")]
    Unreadable {
        /// The run.
        run: RunId,
        /// What is wrong.
        why: String,
    },
}

/// A run that was accepted: it is durable.
#[derive(Debug)]
pub struct Submitted {
    /// The run.
    pub run: RunId,
    /// False if it was submitted before under the same key.
    pub created: bool,
    /// Its row of the index as it was first written, where that is known without looking.
    pub first: Option<RunInfo>,
    handle: RunHandle,
}

impl Submitted {
    /// Waits until the run is over, or waits for people.
    pub async fn ended(self) -> Result<Status, EngineError> {
        self.handle.ended().await
    }

    /// For watching.
    pub fn handle(self) -> RunHandle {
        self.handle
    }
}

/// A submission on its way to the driver.
pub(crate) struct Submission {
    pub admission: Admission,
    pub plan: Arc<Plan>,
    pub by: Option<Box<Sender>>,
    pub ended: Option<oneshot::Sender<Status>>,
    reply: oneshot::Sender<Option<Admitted>>,
}

/// What the node adds to an admission.
#[derive(Clone, Copy, Debug)]
struct Admitted {
    at: Time,
    owner: Epoch,
}

impl Submission {
    /// Of a run that is a step of another: nobody waits for its admission.
    pub(crate) fn by_engine(admission: Admission, plan: Arc<Plan>, by: Option<Box<Sender>>) -> Self {
        let (reply, _) = oneshot::channel();
        Self { admission, plan, by, ended: None, reply }
    }

    /// It is durable, in the hands of this life.
    pub(crate) fn admit(self, owner: Epoch) {
        let _ = self.reply.send(Some(Admitted { at: self.admission.at, owner }));
    }

    pub(crate) fn refuse(self) {
        let _ = self.reply.send(None);
    }
}

impl Engine {
    /// Opens the engine on a database whose schema is up to date.
    pub async fn open(store: Store, registry: Registry) -> Result<Self, EngineError> {
        let registry = Arc::new(registry);
        Ok(Self { store, registry, watchers: Arc::default(), herald: Arc::default(), node: Arc::default() })
    }

    /// Connects, brings the schema up to date, and opens the engine.
    pub async fn connect(url: &str, registry: Registry) -> Result<Self, EngineError> {
        let store = Store::connect(url).await?;
        store.migrate().await?;
        Self::open(store, registry).await
    }

    /// The activities, for checking plans against them.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The journal.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Starts a node in this process: it claims runs and drives them.
    pub async fn start_node(&self, config: NodeConfig) -> Result<Node, NodeError> {
        let registry = Registry::clone(&self.registry);
        Node::start(self.store.clone(), registry, Arc::clone(&self.watchers), Arc::clone(&self.node), config)
            .await
    }

    /// Stores a run. Once this returns it is durable, and goes on whatever becomes of the caller.
    pub async fn submit(&self, plan: &Arc<Plan>, options: SubmitOptions) -> Result<Submitted, EngineError> {
        let admission = admission(plan, &options)?;
        let run = admission.run;
        // Who stands in line is called by whichever node looks next; nobody begins at once.
        let node = self.node.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(node) = node.filter(|_| !options.queue) {
            let (tell_end, ended) = oneshot::channel();
            let (reply, admitted) = oneshot::channel();
            let by = options.by.clone().map(Box::new);
            let (plan, ended_too) = (Arc::clone(plan), Some(tell_end));
            let submission = Submission { admission: admission.clone(), plan, by, ended: ended_too, reply };
            // If the node dies over it, nobody knows whether it was written; the free way below finds out.
            if node.send(Message::Submit(Box::new(submission))).is_ok()
                && let Ok(Some(admitted)) = admitted.await
            {
                let first = Some(first_row(admission, options.labels, admitted));
                let handle = RunHandle::new(self.clone(), run, 0, Some(ended));
                return Ok(Submitted { run, created: true, first, handle });
            }
        }
        // Boxed, as it is rare and large: every caller would carry it along.
        Box::pin(self.submit_free(plan, admission, options)).await
    }

    /// Stores a run that no node has yet.
    async fn submit_free(
        &self,
        plan: &Arc<Plan>,
        admission: Admission,
        options: SubmitOptions,
    ) -> Result<Submitted, EngineError> {
        let run = admission.run;
        let submitted = |run, created| {
            let handle = RunHandle::new(self.clone(), run, 0, None);
            Ok(Submitted { run, created, first: None, handle })
        };
        let by = options.by.map(Box::new);
        let first =
            Journaled { seq: 1, claim: 0, epoch: Epoch(0), at: admission.at, event: Event::Submitted { by } };
        let first = first.to_row(plan);
        // A holder of the key may end between the refusal and the look: then it is tried again.
        for _ in 0..3 {
            if self.store.admit_free(&admission, &first).await? || self.store.get(run).await?.is_some() {
                return submitted(run, true);
            }
            match self.store.refusal(&admission).await? {
                Some(Refusal::Known(run)) => return submitted(run, false),
                Some(Refusal::KeyReused(run)) => {
                    return Err(EngineError::KeyReused { key: options.key.unwrap_or_default(), run });
                }
                Some(Refusal::Exclusive(holder)) => {
                    return Err(EngineError::Exclusive {
                        key: options.exclusive.unwrap_or_default(),
                        holder,
                    });
                }
                None => {}
            }
        }
        Err(EngineError::Options(
            "the keys of this run are taken and freed at the same time; try again".into(),
        ))
    }

    /// One run.
    pub async fn get(&self, run: RunId) -> Result<RunInfo, EngineError> {
        self.store.get(run).await?.ok_or(EngineError::NoSuchRun(run))
    }

    /// Runs, the newest first.
    pub async fn list(&self, filter: &RunFilter) -> Result<Vec<RunInfo>, EngineError> {
        Ok(self.store.list(filter).await?)
    }

    /// The whole journal of a run.
    pub async fn journal(&self, run: RunId) -> Result<Vec<Row>, EngineError> {
        let mut rows: Vec<Row> = Vec::new();
        loop {
            let page = self.store.journal(run, rows.last().map_or(0, |row| row.seq), 1_000).await?;
            if page.is_empty() {
                return if rows.is_empty() { Err(EngineError::NoSuchRun(run)) } else { Ok(rows) };
            }
            rows.extend(page);
        }
    }

    /// A run for watching and waiting, from its first event on.
    pub fn watch(&self, run: RunId) -> RunHandle {
        self.watch_after(run, 0)
    }

    /// A run for watching and waiting, from the event after this one on.
    pub fn watch_after(&self, run: RunId, seen: Seq) -> RunHandle {
        RunHandle::new(self.clone(), run, seen, None)
    }
}

/// What `append.sql` has written for an admission.
fn first_row(admission: Admission, labels: Value, admitted: Admitted) -> RunInfo {
    RunInfo {
        run: admission.run,
        workflow: admission.workflow,
        status: Status::Running,
        plan_hash: admission.plan_hash,
        priority: admission.priority,
        labels: if labels.is_null() { json!({}) } else { labels },
        client_key: admission.client_key,
        exclusive_key: admission.exclusive_key,
        owner: Some(admitted.owner.0),
        claim: 0,
        due_at: None,
        note: None,
        submitted_at: admitted.at,
        finished_at: None,
        unanswered: 0,
        failing: Vec::new(),
    }
}

fn admission(plan: &Plan, options: &SubmitOptions) -> Result<Admission, EngineError> {
    let wrong = |text: String| Err(EngineError::Options(text));
    for (what, key) in [("key", &options.key), ("exclusive key", &options.exclusive)] {
        if let Some(key) = key
            && (key.is_empty() || key.len() > 200 || key.chars().any(char::is_control))
        {
            return wrong(format!("the {what} has 1 to 200 characters, none of them control characters"));
        }
    }
    if let Some(Sender { who, why, via, trace }) = &options.by {
        for text in [Some(who), Some(why), via.as_ref(), trace.as_ref()].into_iter().flatten() {
            if text.chars().count() > action::limits::TEXT || text.chars().any(char::is_control) {
                return wrong(format!(
                    "who submits it, and why, have at most {} characters, none of them control characters",
                    action::limits::TEXT
                ));
            }
        }
    }
    if options.queue && options.exclusive.is_none() {
        return wrong("a run stands in line for an exclusive key, and none is given".into());
    }
    let labels = match &options.labels {
        Value::Null => "{}".to_owned(),
        Value::Object(map) if map.len() <= 50 => {
            let bad = |text: &str| text.len() > 200 || text.chars().any(char::is_control);
            for (key, value) in map {
                if bad(key) || value.as_str().is_none_or(bad) {
                    return wrong(format!("the label \"{}\" is not a short text", key.escape_debug()));
                }
            }
            options.labels.to_string()
        }
        _ => return wrong("labels are an object of at most 50 short texts".into()),
    };
    let priority = options.priority.unwrap_or(1);
    if !(0..=2).contains(&priority) {
        return wrong(format!("the priority is {priority}; there are 0 (low), 1 (normal) and 2 (high)"));
    }
    // Only a key can be used twice, and so need a hash of what was asked under it.
    let request_hash = match &options.key {
        None => String::new(),
        Some(_) => {
            let asked = options.asked.clone().unwrap_or_else(|| {
                let mut asked = json!([plan.hash(), options.exclusive, options.labels, priority]);
                if let (Value::Array(asked), true) = (&mut asked, options.queue) {
                    asked.push(json!("queue"));
                }
                backstay_machine::canonical(&asked)
            });
            Sha256::digest(asked).iter().map(|byte| format!("{byte:02x}")).collect()
        }
    };
    Ok(Admission {
        run: RunId::fresh(),
        workflow: plan.workflow().to_owned(),
        plan_hash: plan.hash().to_owned(),
        activities: plan.activities().join(","),
        priority,
        labels,
        client_key: options.key.clone(),
        request_hash,
        exclusive_key: options.exclusive.clone(),
        queue: options.queue,
        at: chrono::DateTime::UNIX_EPOCH,
    })
}
