//! What operators and clients have said to a run, as far as it still matters.

use std::collections::{HashMap, HashSet, VecDeque};

use serde_json::Value;
use uuid::Uuid;

use super::State;
use crate::action::{Action, Verb};
use crate::names::{Seq, StepIx};

/// A signal that no step has read yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Who sent it.
    pub who: String,
    /// What it brings.
    pub payload: Value,
}

/// Most runs are never spoken to: a state holds this behind a pointer.
#[derive(Clone, Debug, Default)]
pub(super) struct Desk {
    known: HashSet<Uuid>,
    signals: VecDeque<Signal>,
    yes: HashMap<StepIx, Vec<String>>,
    no: HashMap<StepIx, String>,
    overrides: HashMap<StepIx, Vec<String>>,
    paused: Option<String>,
    /// Who did what last: to a step, or to the run.
    last: HashMap<Option<StepIx>, (Seq, String, &'static str)>,
}

impl State {
    /// Takes in what was granted.
    pub(super) fn hear(&mut self, seq: Seq, action: &Action) {
        let step = action.verb.step().and_then(|(name, _)| self.plan.find(name));
        let desk = self.desk.get_or_insert_default();
        desk.known.insert(action.id);
        let who = action.who.clone();
        match (&action.verb, step) {
            (Verb::Signal { name, payload }, _) => desk.signals.push_back(Signal {
                id: action.id,
                name: name.clone(),
                who,
                payload: payload.clone(),
            }),
            (Verb::Approve { .. }, Some(step)) => desk.yes.entry(step).or_default().push(who),
            (Verb::Reject { .. }, Some(step)) => {
                desk.no.insert(step, who);
            }
            (Verb::Override { .. }, Some(step)) => desk.overrides.entry(step).or_default().push(who),
            (Verb::Pause, _) => desk.paused = Some(who),
            (Verb::Resume | Verb::RollBack(_), _) => desk.paused = None,
            _ => {}
        }
        if !matches!(action.verb, Verb::Signal { .. }) {
            desk.last.insert(step, (seq, action.who.clone(), action.verb.name()));
        }
    }

    /// Takes note of what was refused.
    pub(super) fn refuse(&mut self, action: &Action) {
        self.desk.get_or_insert_default().known.insert(action.id);
    }

    /// Nothing starts until somebody has looked.
    pub(super) fn pause_by_engine(&mut self) {
        self.desk.get_or_insert_default().paused = Some("the engine".into());
    }

    /// A step has read a signal.
    pub(super) fn read_signal(&mut self, id: Uuid) -> Result<(), String> {
        let signals = self.desk.as_mut().map(|desk| &mut desk.signals);
        match signals.and_then(|signals| Some((signals.iter().position(|signal| signal.id == id)?, signals)))
        {
            Some((at, signals)) => {
                signals.remove(at);
                Ok(())
            }
            None => Err(format!("it read the signal {id}, which was never sent or was read before")),
        }
    }

    /// A step begins anew: what was said about it was about the last beginning.
    pub(super) fn forget_votes(&mut self, step: StepIx) {
        if let Some(desk) = &mut self.desk {
            desk.yes.remove(&step);
            desk.no.remove(&step);
            desk.overrides.remove(&step);
        }
    }

    /// Whether this action is in the journal.
    pub fn knows(&self, action: Uuid) -> bool {
        self.desk.as_ref().is_some_and(|desk| desk.known.contains(&action))
    }

    /// How many actions are in the journal, granted and refused.
    pub fn told(&self) -> i32 {
        self.desk.as_ref().map_or(0, |desk| i32::try_from(desk.known.len()).unwrap_or(i32::MAX))
    }

    /// Who has paused the run.
    pub fn paused(&self) -> Option<&str> {
        self.desk.as_ref()?.paused.as_deref()
    }

    /// The signals that nobody has read, in the order they came.
    pub fn signals(&self) -> impl Iterator<Item = &Signal> {
        self.desk.iter().flat_map(|desk| &desk.signals)
    }

    /// The oldest unread signal of that name.
    pub(crate) fn signal(&self, name: &str) -> Option<&Signal> {
        self.signals().find(|signal| signal.name == name)
    }

    /// Who has said yes.
    pub fn approvals(&self, step: StepIx) -> &[String] {
        self.desk.as_ref().and_then(|desk| desk.yes.get(&step)).map_or(&[], Vec::as_slice)
    }

    /// Who has said no.
    pub fn rejected(&self, step: StepIx) -> Option<&str> {
        self.desk.as_ref()?.no.get(&step).map(String::as_str)
    }

    /// Who wants the step to start without its proof.
    pub fn overrides(&self, step: StepIx) -> &[String] {
        self.desk.as_ref().and_then(|desk| desk.overrides.get(&step)).map_or(&[], Vec::as_slice)
    }

    /// Who did what to a step last, or to the run.
    pub fn last_action(&self, step: Option<StepIx>) -> Option<(Seq, &str, &'static str)> {
        let (seq, who, verb) = self.desk.as_ref()?.last.get(&step)?;
        Some((*seq, who, verb))
    }
}
