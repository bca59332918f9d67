//! The activity `signal`: tells another run what one of its steps waits for. The step's idempotency key is the id of the
//! message, so however often it is sent, it is read once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstay_engine::machine::Action;
use backstay_engine::{
    Activity, Answer, Context, Effect, Engine, EngineError, Failure, Registry, RunId, Store, Verb,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// How runs are reached. Whoever registers the activity decides here which runs may be spoken to.
#[async_trait]
pub trait Signals: Send + Sync + 'static {
    /// Sends a signal from one run to another, and waits a while for its answer. The same under the same id is sent once.
    async fn send(
        &self,
        from: RunId,
        run: RunId,
        id: Uuid,
        who: String,
        name: String,
        payload: Value,
    ) -> Result<(), SendError>;
}

/// Why a signal has not arrived.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The run does not take it, now or later.
    #[error("{0}")]
    Refused(String),
    /// It may have arrived, or will.
    #[error("{0}")]
    Unanswered(String),
}

/// Signals through the journal, to runs that the same person submitted: a step is no way round the right to speak to
/// others' runs. Runs of some workflows may be spoken to by all.
#[derive(Clone, Debug)]
pub struct EngineSignals {
    engine: Engine,
    open_to_all: Vec<String>,
    patience: Duration,
}

impl EngineSignals {
    /// Over a store. The engine that has the activities cannot be asked, as it is opened with them.
    pub async fn open(store: Store, open_to_all: Vec<String>) -> Result<Self, EngineError> {
        let engine = Engine::open(store, Registry::new()).await?;
        Ok(Self { engine, open_to_all, patience: backstay_engine::PATIENCE })
    }

    async fn may(&self, from: RunId, run: RunId) -> Result<(), SendError> {
        let told = |error: EngineError| match error {
            EngineError::Store(error) => SendError::Unanswered(error.to_string()),
            error => SendError::Refused(error.to_string()),
        };
        let info = self.engine.get(run).await.map_err(told)?;
        if self.open_to_all.contains(&info.workflow) {
            return Ok(());
        }
        let who = self.engine.store().submitter(from).await.map_err(|error| told(error.into()))?;
        let whose = self.engine.store().submitter(run).await.map_err(|error| told(error.into()))?;
        match who == whose {
            true => Ok(()),
            false => Err(SendError::Refused(format!(
                "run {run} was submitted by somebody else, and its workflow \"{}\" is none that all may speak to: add it to \
                 signal.workflows",
                info.workflow.escape_debug()
            ))),
        }
    }
}

#[async_trait]
impl Signals for EngineSignals {
    async fn send(
        &self,
        from: RunId,
        run: RunId,
        id: Uuid,
        who: String,
        name: String,
        payload: Value,
    ) -> Result<(), SendError> {
        self.may(from, run).await?;
        let verb = Verb::Signal { name, payload };
        let action = Action { id, who, why: String::new(), seen: None, via: None, verb };
        match self.engine.act_within(run, &action, self.patience).await {
            Ok(Answer::Accepted { .. }) => Ok(()),
            Ok(Answer::Refused { because }) => {
                Err(SendError::Refused(format!("run {run} does not take it: {because}")))
            }
            Ok(Answer::Waiting) => {
                Err(SendError::Unanswered(format!("run {run} has it, and has not answered yet")))
            }
            Err(EngineError::Store(error)) => Err(SendError::Unanswered(error.to_string())),
            Err(error) => Err(SendError::Refused(error.to_string())),
        }
    }
}

/// Tells another run what it waits for.
pub struct Signal(Arc<dyn Signals>);

impl Signal {
    /// Over this way to runs.
    pub fn new(signals: Arc<dyn Signals>) -> Self {
        Self(signals)
    }
}

/// Whom to tell what.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalInput {
    /// The run's id.
    pub run: String,
    /// The signal's name: one that the run's plan waits for.
    #[schemars(length(min = 1, max = 100))]
    pub name: String,
    /// What it brings.
    #[serde(default)]
    pub payload: Value,
}

/// What was told.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct SignalOutput {
    /// The message's id, as the other run's journal has it.
    pub id: String,
}

#[async_trait]
impl Activity for Signal {
    const NAME: &'static str = "signal";
    type Input = SignalInput;
    type Output = SignalOutput;

    fn effect(&self) -> Effect {
        // The inbox knows the id, and so does the journal.
        Effect { refuses_duplicates: true, ..Effect::default() }
    }

    async fn run(&self, context: &Context, input: SignalInput) -> Result<SignalOutput, Failure> {
        let refused = |why: String| Failure::permanent("signal_refused", why).not_applied();
        let run = input.run.parse().map_err(|_| {
            refused(format!(
                "\"{}\" is no run's id",
                input.run.chars().take(100).collect::<String>().escape_debug()
            ))
        })?;
        let who = format!("run {} step {}", context.run(), context.step());
        let id = context.key();
        match self.0.send(context.run(), run, id, who, input.name, input.payload).await {
            Ok(()) => Ok(SignalOutput { id: id.to_string() }),
            Err(SendError::Refused(why)) => Err(refused(why)),
            Err(SendError::Unanswered(why)) => Err(Failure::retryable("signal_unanswered", why)),
        }
    }
}
