//! What is said to the runs of this node: judged, answered in the journal, and acted on.
//!
//! Every message that is read is answered, whatever it is: what cannot be understood is refused, and so is what makes
//! the judgement fall over. So no message can be read again and again.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;

use backstay_machine::action::limits;
use backstay_machine::plan::unsuited;
use backstay_machine::{Action, Event, Json, Row, RunId, State, Time, Verb, judge_action};
use serde_json::{Value, json};

use super::Driver;
use super::facts::Later;
use crate::activity::Registry;
use crate::store::{Letter, UNREADABLE};

impl Driver {
    /// Answers what has come for the runs that are here. What is for another one stays where it is, for whoever has that
    /// run next.
    pub(super) fn deliver(&mut self, letters: Vec<Letter>) {
        let mut moved = BTreeSet::new();
        for letter in letters {
            if let Some(later) = self.put_by(letter.run) {
                later.push(Later::Letter(letter));
            } else if self.answer(&letter) {
                moved.insert(letter.run);
            }
        }
        for id in moved {
            self.advance(id);
        }
    }

    /// Answers one message. False if it is answered already: it was read while its answer was on the way.
    pub(super) fn answer(&mut self, letter: &Letter) -> bool {
        let id = letter.run;
        let now = self.shared.now();
        let Some(run) = self.runs.get_mut(&id).filter(|run| !run.leaving) else { return true };
        if run.state.knows(letter.id) {
            return false;
        }
        let events = match letter.read() {
            Ok(action) => judged(&run.state, action, &self.shared.registry, now),
            Err(why) => {
                let because = not_understood(&why);
                tracing::warn!(run = %id, message = %letter.id, "a message is refused: {because}");
                vec![Event::Refused { action: Box::new(stand_in(letter)), because }]
            }
        };
        let refused = matches!(events.first(), Some(Event::Refused { .. }));
        metrics::counter!("backstay_actions_total", "refused" => if refused { "yes" } else { "no" })
            .increment(1);
        run.told += 1;
        for event in events {
            self.append(id, event);
        }
        let Some(run) = self.runs.get_mut(&id) else { return true };
        if !run.leaving {
            let change = run.kept(id);
            self.change(change);
        } else if !run.state.knows(letter.id) {
            // It was illegal, a mistake of ours: the quarantine that was just journaled is what it came to.
            let (seq, claim) = (run.state.seq() + 2, run.state.claim());
            let body = refusal(letter, "it came to something that cannot be; the run is left alone");
            let row = Row { key: Some(letter.id), ..self.bare_row("refused", seq, claim, body) };
            self.pending.batch.events.push((id, row));
        }
        true
    }

    /// What was to be answered by rows that Postgres does not take is refused: the body of each answer, by its id.
    pub(super) fn refused_instead(rows: &[(RunId, Row)], why: &str) -> Vec<(uuid::Uuid, Json)> {
        let answers = rows.iter().filter_map(|(_, row)| {
            let body = row.body.as_ref()?;
            match row.kind {
                "acted" => Some((row.key?, Json::of(&json!({ "because": why, "action": body.value() })))),
                "refused" => Some((row.key?, body.clone())),
                _ => None,
            }
        });
        answers.collect()
    }
}

/// The machine says whether it can be done now; the activities, which the machine does not know, whether what is stated
/// suits them.
fn judged(state: &State, action: Action, registry: &Registry, now: Time) -> Vec<Event> {
    let judging = || {
        let events = judge_action(state, &action, now)?;
        unsuited(state.plan(), &action.verb, registry).map_or(Ok(events), Err)
    };
    let because = match std::panic::catch_unwind(AssertUnwindSafe(judging)) {
        Ok(Ok(events)) => return events,
        Ok(Err(because)) => because,
        Err(_) => "judging it went wrong, which is a mistake of the engine".into(),
    };
    vec![Event::Refused { action: Box::new(action), because }]
}

fn not_understood(why: &str) -> String {
    format!("this release does not understand it: {why}")
}

/// The body of a refusal that is journaled without a state to judge by.
pub(super) fn refusal(letter: &Letter, why: &str) -> Json {
    let (action, because) = match letter.read() {
        Ok(action) => (action, why.to_owned()),
        Err(error) => (stand_in(letter), not_understood(&error)),
    };
    Json::of(&json!({ "because": because, "action": action }))
}

/// Stands in the journal for what is not understood: a signal of a name that no plan can have, with the text that came.
fn stand_in(letter: &Letter) -> Action {
    let said: Value = serde_json::from_str(&letter.body).unwrap_or_default();
    let who = said.get("who").and_then(Value::as_str).unwrap_or("somebody");
    let who: String = who.chars().filter(|c| !c.is_control()).take(limits::TEXT).collect();
    let text: String = letter.body.chars().take(limits::TEXT).collect();
    Action {
        id: letter.id,
        who,
        why: String::new(),
        seen: None,
        via: None,
        verb: Verb::Signal { name: UNREADABLE.into(), payload: Value::String(text) },
    }
}
