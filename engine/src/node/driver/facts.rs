//! Successes that change a fact: whether the fact still is as it was seen is known only once they are written.
//!
//! Until then their run stands still: nothing follows from the success, and whatever comes for the run is put by. So the
//! rows that stand under the proviso are the last of their run in the batch, and if the fact has moved, what is to be taken
//! back is those rows and no more. The other runs of the batch know nothing of it.

use backstay_machine::{
    Chain, CourseId, Event, FactChange, Json, Outcome, RunId, State, StepEvent, judge, step_event,
};

use super::super::Message;
use super::super::failing::Failing;
use super::Driver;
use crate::fact::has_moved;
use crate::store::{Letter, Moved, Proviso};

/// A run whose last rows may yet be refused.
pub(super) struct Undecided {
    course: CourseId,
    /// As it was before them.
    before: Box<(State, Chain, Failing)>,
    /// What has come for it since, in order.
    later: Vec<Later>,
}

/// What may bring a run forward.
pub(super) enum Later {
    /// From one of its calls.
    Message(Message),
    /// From people or other runs.
    Letter(Letter),
    /// A run that is a step of it was found to be over.
    Ended(RunId, Outcome),
}

impl Driver {
    /// Where to put by what comes for a run, if it stands still.
    pub(super) fn put_by(&mut self, id: RunId) -> Option<&mut Vec<Later>> {
        self.undecided.get_mut(&id).map(|undecided| &mut undecided.later)
    }

    /// Takes a success into the next write, under the proviso that the fact still is as the attempt has seen it.
    pub(super) fn succeed_provided(&mut self, id: RunId, course: CourseId, output: Json, change: FactChange) {
        let Some(run) = self.runs.get(&id).filter(|run| !run.leaving) else { return };
        let before = Box::new((run.state.clone(), run.chain, run.failing.clone()));
        let from = run.state.seq() + 1;
        let generation = run.state.course(course).generation;
        self.append(id, Event::Step { course, generation, attempt: 0, what: change.event() });
        let Some(run) = self.runs.get(&id) else { return };
        let success = step_event(&run.state, course, StepEvent::Succeeded { output });
        self.append(id, success);
        // If one of the two was illegal, the run is left alone now, and nothing of it stands under a proviso.
        if self.runs.get(&id).is_some_and(|run| !run.leaving) {
            self.pending.batch.facts.push(Proviso { run: id, from, change });
            self.undecided.insert(id, Undecided { course, before, later: Vec::new() });
        }
    }

    /// They are written, or their fact has moved: the runs go on, with what has come for them meanwhile.
    pub(super) fn decided(&mut self, provisos: Vec<Proviso>, mut moved: Vec<Moved>) {
        for Proviso { run: id, change, .. } in provisos {
            let Some(Undecided { course, before, later }) = self.undecided.remove(&id) else { continue };
            if let Some(at) = moved.iter().position(|moved| moved.run == id) {
                self.take_back(id, course, *before, has_moved(&change, moved.swap_remove(at)));
            }
            self.advance(id);
            for it in later {
                match it {
                    Later::Message(message) => self.take_in(message),
                    Later::Letter(letter) => self.deliver(vec![letter]),
                    Later::Ended(child, outcome) => self.take_as_ended(id, child, outcome),
                }
            }
        }
    }

    /// The attempt has failed instead.
    fn take_back(
        &mut self,
        id: RunId,
        course: CourseId,
        before: (State, Chain, Failing),
        error: backstay_machine::ActivityError,
    ) {
        metrics::counter!("backstay_facts_moved_total").increment(1);
        let now = self.shared.now();
        let Some(run) = self.runs.get_mut(&id) else { return };
        tracing::info!(run = %id, "{}", error.message);
        (run.state, run.chain, run.failing) = before;
        let what = judge(&run.state, course, error, now);
        let event = step_event(&run.state, course, what);
        self.append(id, event);
    }
}
