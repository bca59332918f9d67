//! How operators and clients speak to runs, through whichever engine they reach.
//!
//! ```text
//!   tell       the message is durable once this returns, and will be answered
//!   act        tells, and waits a while for the answer
//!   signal     tells something that a step waits for
//!   act_on_all the same to every run that a filter finds, with a look at them first
//! ```
//!
//! Everything may be repeated under the same id: it is acted upon once, and the answer is the same.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backstay_machine::{Action, RunId, Seq, Verb};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use crate::engine::{Engine, EngineError};
use crate::store::{Answered, Outgoing, RunFilter, RunInfo, Store, StoreError, Told, UNREADABLE};

/// How long [`Engine::act`] waits for an answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Messages that are sent in one commit: it holds the rows of their runs.
const AT_ONCE: usize = 500;

/// What came of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// It was done, or will be: this event of the run's journal says so, and what follows from it comes after.
    Accepted {
        /// The event.
        seq: Seq,
    },
    /// It was not.
    Refused {
        /// Why.
        because: String,
    },
    /// It is durable, and nobody has answered yet. Ask again with the same id.
    Waiting,
}

/// One wish for many runs.
#[derive(Clone, Debug)]
pub struct Bulk {
    /// Made by whoever asks; asking again under it is the same asking, for each run.
    pub id: Uuid,
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
    /// By which request.
    pub via: Option<String>,
    /// What.
    pub verb: Verb,
}

/// What came of one wish for many runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BulkReport {
    /// The runs that were found, the newest first.
    pub found: Vec<RunInfo>,
    /// Those that did it. None of a dry run.
    pub accepted: Vec<RunId>,
    /// Those that did not, and why.
    pub refused: Vec<(RunId, String)>,
    /// Those that have not answered yet.
    pub waiting: Vec<RunId>,
}

impl Bulk {
    /// A wish with an id of its own.
    pub fn new(who: impl Into<String>, why: impl Into<String>, verb: Verb) -> Self {
        Self { id: Uuid::now_v7(), who: who.into(), why: why.into(), via: None, verb }
    }

    /// The same for one run.
    pub fn action(&self, run: RunId) -> Action {
        let id = Uuid::new_v5(&self.id, run.0.as_bytes());
        Action {
            id,
            who: self.who.clone(),
            why: self.why.clone(),
            seen: None,
            via: self.via.clone(),
            verb: self.verb.clone(),
        }
    }
}

/// Tells all nodes that there is mail. Many who send at the same time share one notification.
#[derive(Debug, Default)]
pub(crate) struct Herald {
    asked: AtomicU64,
    told: tokio::sync::Mutex<u64>,
}

impl Herald {
    async fn call(&self, store: &Store) {
        let mine = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut told = self.told.lock().await;
        if *told >= mine {
            return;
        }
        let all = self.asked.load(Ordering::SeqCst);
        // If it is lost, it costs a poll.
        if store.notify().await.is_ok() {
            *told = all;
        }
    }
}

impl Engine {
    /// Asks something of a run, and waits for the answer for a while.
    pub async fn act(&self, run: RunId, action: &Action) -> Result<Answer, EngineError> {
        self.act_within(run, action, PATIENCE).await
    }

    /// Asks something of a run, and waits for the answer so long.
    pub async fn act_within(
        &self,
        run: RunId,
        action: &Action,
        patience: Duration,
    ) -> Result<Answer, EngineError> {
        let until = Instant::now() + patience;
        // Before it is sent: the answer may be quick.
        let changed = self.watchers.watch(run);
        let answer = self.tell(run, action).await?;
        if answer != Answer::Waiting {
            return Ok(answer);
        }
        let mut pause = Duration::from_millis(10);
        loop {
            let now = Instant::now();
            if now >= until {
                return Ok(Answer::Waiting);
            }
            let _ = tokio::time::timeout(pause.min(until - now), changed.notified()).await;
            pause = (pause * 2).min(Duration::from_millis(250));
            if let Some(answered) = self.look_for(&[action.id]).await?.pop() {
                return Ok(answered.into());
            }
        }
    }

    /// What became of something that was asked of a run before; `None` if it never was.
    pub async fn answer(&self, run: RunId, id: Uuid) -> Result<Option<Answer>, EngineError> {
        if let Some(answered) = self.store().answers(&[id]).await?.pop() {
            return Ok((answered.run == run.0).then(|| answered.into()));
        }
        Ok(self.store().is_asked(run, id).await?.then_some(Answer::Waiting))
    }

    /// While the database is away, nobody has answered yet.
    async fn look_for(&self, ids: &[Uuid]) -> Result<Vec<Answered>, EngineError> {
        match self.store().answers(ids).await {
            Err(error) if error.is_passing() => Ok(Vec::new()),
            other => Ok(other?),
        }
    }

    /// Asks something of a run. Once this returns it is durable and will be answered; the answer is there already if it
    /// was asked before, or if the run is over.
    pub async fn tell(&self, run: RunId, action: &Action) -> Result<Answer, EngineError> {
        let mut answers = self.tell_all(&[(run, action.clone())]).await?;
        answers.pop().unwrap_or(Ok(Answer::Waiting))
    }

    /// Tells a run something that one of its steps waits for, or will. It is kept until then.
    pub async fn signal(
        &self,
        run: RunId,
        id: Uuid,
        who: impl Into<String>,
        name: impl Into<String>,
        payload: Value,
    ) -> Result<Answer, EngineError> {
        let verb = Verb::Signal { name: name.into(), payload };
        self.tell(run, &Action { id, who: who.into(), why: String::new(), seen: None, via: None, verb }).await
    }

    /// Asks many things of many runs. What is wrong with one of them is said of it alone.
    pub async fn tell_all(
        &self,
        messages: &[(RunId, Action)],
    ) -> Result<Vec<Result<Answer, EngineError>>, EngineError> {
        let mut answers: Vec<Result<Answer, EngineError>> = Vec::with_capacity(messages.len());
        let mut ids = HashSet::new();
        let mut outgoing = Vec::new();
        for (place, (run, action)) in messages.iter().enumerate() {
            let twice = || (!ids.insert(action.id)).then(|| format!("the id {} is used twice", action.id));
            // Runs say that themselves.
            let forged = || matches!(action.verb, Verb::Ended { .. }).then(|| "nobody says that".to_owned());
            answers.push(match action.flaw().or_else(forged).or_else(twice) {
                Some(flaw) => Err(EngineError::Action(flaw)),
                None => {
                    let body = serde_json::to_string(action)
                        .map_err(|error| EngineError::Action(error.to_string()))?;
                    let reopens = matches!(action.verb, Verb::RollBack(_) | Verb::Commit);
                    outgoing.push((place, Outgoing { run: *run, id: action.id, body, reopens }));
                    Ok(Answer::Waiting)
                }
            });
        }
        let mut known = Vec::new();
        for some in outgoing.chunks(AT_ONCE) {
            let some_messages: Vec<_> = some.iter().map(|(_, message)| message.clone()).collect();
            kill_here("tell.before");
            let told = tell_surely(self.store(), &some_messages).await?;
            kill_here("tell.committed");
            for ((place, message), told) in some.iter().zip(told) {
                let Some((run, action)) = messages.get(*place) else { continue };
                let answer = match told {
                    Told::Told => Ok(Answer::Waiting),
                    Told::Known(of, said) if of == *run && is_same(action, &said) => {
                        known.push((message.id, *place));
                        Ok(Answer::Waiting)
                    }
                    Told::Known(of, _) => Err(EngineError::ActionReused { id: action.id, run: of }),
                    Told::Missing => Err(EngineError::NoSuchRun(*run)),
                    Told::Over(status) => {
                        let because = format!("the run is over: it is {}", status.replace('_', " "));
                        Ok(Answer::Refused { because })
                    }
                    Told::Exclusive(holder) => Ok(Answer::Refused { because: exclusive(holder) }),
                };
                if let Some(place) = answers.get_mut(*place) {
                    *place = answer;
                }
            }
        }
        if !outgoing.is_empty() {
            self.herald.call(self.store()).await;
        }
        let ids: Vec<_> = known.iter().map(|(id, _)| *id).collect();
        let places: HashMap<_, _> = known.into_iter().collect();
        for answered in self.store().answers(&ids).await? {
            if let Some(answer) = places.get(&answered.id).and_then(|place| answers.get_mut(*place)) {
                *answer = Ok(answered.into());
            }
        }
        Ok(answers)
    }

    /// Asks the same of every run that the filter finds. A dry run only says which they are. What each run says is
    /// waited for so long.
    pub async fn act_on_all(
        &self,
        filter: &RunFilter,
        bulk: &Bulk,
        dry_run: bool,
        patience: Duration,
    ) -> Result<BulkReport, EngineError> {
        let until = Instant::now() + patience;
        let mut report = BulkReport { found: self.all(filter).await?, ..BulkReport::default() };
        if let Some(flaw) = report.found.first().and_then(|info| bulk.action(info.run).flaw()) {
            return Err(EngineError::Action(flaw));
        }
        if dry_run {
            return Ok(report);
        }
        let actions: Vec<_> = report.found.iter().map(|info| (info.run, bulk.action(info.run))).collect();
        let mut open = HashMap::new();
        for ((run, action), answer) in actions.iter().zip(self.tell_all(&actions).await?) {
            match answer {
                Ok(Answer::Accepted { .. }) => report.accepted.push(*run),
                Ok(Answer::Refused { because }) => report.refused.push((*run, because)),
                Ok(Answer::Waiting) => {
                    open.insert(action.id, *run);
                }
                Err(error) => report.refused.push((*run, error.to_string())),
            }
        }
        let mut pause = Duration::from_millis(10);
        while !open.is_empty() && Instant::now() < until {
            tokio::time::sleep(pause.min(until - Instant::now())).await;
            pause = (pause * 2).min(Duration::from_millis(250));
            let ids: Vec<_> = open.keys().copied().collect();
            for answered in self.look_for(&ids).await? {
                let Some(run) = open.remove(&answered.id) else { continue };
                match answered.because {
                    Some(because) => report.refused.push((run, because)),
                    None => report.accepted.push(run),
                }
            }
        }
        report.waiting = open.into_values().collect();
        Ok(report)
    }

    /// Every run that a filter finds, page after page; at most `limit`, if there is one.
    async fn all(&self, filter: &RunFilter) -> Result<Vec<RunInfo>, EngineError> {
        let most = if filter.limit == 0 { usize::MAX } else { filter.limit as usize };
        let mut found = Vec::new();
        let mut page = RunFilter { limit: 1_000, ..filter.clone() };
        while found.len() < most {
            let some = self.list(&page).await?;
            let Some(last) = some.last() else { break };
            page.before = Some(last.run);
            found.extend(some);
        }
        found.truncate(most);
        Ok(found)
    }
}

impl From<Answered> for Answer {
    fn from(answered: Answered) -> Self {
        match answered.because {
            None => Answer::Accepted { seq: answered.seq },
            Some(because) => Answer::Refused { because },
        }
    }
}

/// Sends messages over lost connections: sent twice is sent once.
async fn tell_surely(store: &Store, messages: &[Outgoing]) -> Result<Vec<Told>, StoreError> {
    let mut pause = Duration::from_millis(20);
    for _ in 0..4 {
        match store.tell(messages).await {
            Err(error) if error.is_passing() => {
                tracing::warn!(error = &error as &dyn std::error::Error, "sending a message is tried again");
                tokio::time::sleep(pause).await;
                pause *= 3;
            }
            other => return other,
        }
    }
    store.tell(messages).await
}

/// Whether what stands in the inbox or in the journal is this action. The text may differ: another release wrote it.
fn is_same(action: &Action, said: &str) -> bool {
    match serde_json::from_str::<Action>(said) {
        Ok(Action { verb: Verb::Signal { name, .. }, .. }) if name == UNREADABLE => true,
        // Asked again it is another request, and the same asking.
        Ok(before) => Action { via: action.via.clone(), ..before } == *action,
        Err(_) => false,
    }
}

fn exclusive(holder: Option<RunId>) -> String {
    match holder {
        Some(run) => {
            format!("run {run} has its exclusive key now; once that one is over this one can come back")
        }
        None => "its exclusive key is taken and freed at this moment; ask again".into(),
    }
}

/// A named place where tests kill this process. Nothing in release builds.
fn kill_here(name: &'static str) {
    #[cfg(debug_assertions)]
    crate::node::crash::kill_process_at(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}
