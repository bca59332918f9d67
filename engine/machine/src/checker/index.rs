//! The run's row of the index against its journal (H25).

use super::reading::Reading;
use super::standing::Standing;
use super::{Findings, RuleId};
use crate::Time;
use crate::event::{Event, Outcome, StepEvent};
use crate::plan::OnFailure;
use crate::state::Status;

/// A run's row of the table `runs`, as far as the journal can contradict it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// What people are told.
    pub status: Status,
    /// The epoch of the node that has it.
    pub owner: Option<i64>,
    /// How many times it was claimed.
    pub claim: i32,
    /// When it wants to be claimed.
    pub due_at: Option<Time>,
}

pub(super) fn agrees(reading: &Reading<'_>, index: &Index, found: &mut Findings) {
    let Some(last) = reading.events.last() else { return };
    let mut wrong = |what: String| found.add(RuleId::Index, None, what);
    // An owner that died right after its claim left no event of it; a run that is over has no such owner.
    if index.claim < last.claim || (index.status.is_end() && index.claim != last.claim) {
        wrong(format!(
            "the index is at claim {}, the journal at {}: the fence and the history have parted",
            index.claim, last.claim
        ));
    }
    if let Some(owner) = index.owner.filter(|owner| *owner != last.epoch.0) {
        wrong(format!(
            "the index gives the run to epoch {owner}, the journal to {}: the owner never took it over",
            last.epoch
        ));
    }
    let due = expected(reading);
    if !due.contains(&index.status) {
        let due: Vec<_> = due.iter().map(|status| status.as_str()).collect();
        wrong(format!(
            "the index says {}, the journal {}: people are told something else than what happened",
            index.status.as_str(),
            due.join(" or ")
        ));
    }
    let flying = reading.courses().any(|course| course.standing(reading.end()) == Standing::Flying);
    if index.status == Status::Waiting && flying {
        wrong("the index says waiting, but an attempt is in flight".into());
    }

    let people = matches!(index.status, Status::Held | Status::Stuck | Status::Quarantined);
    let reasons = [
        index.owner.is_some().then_some("an owner"),
        index.due_at.is_some().then_some("a time"),
        people.then_some("an operator's decision"),
    ];
    let reasons: Vec<_> = reasons.into_iter().flatten().collect();
    if index.status.is_end() {
        if !reasons.is_empty() {
            wrong(format!("the run is over, but the index has {} for it", reasons.join(" and ")));
        }
    } else if reasons.is_empty() {
        wrong("the run lives and nothing will ever wake it: no owner, no time, no alarm".into());
    } else if reasons.len() > 1 {
        wrong(format!("the run waits for {} at once: two may move it", reasons.join(" and ")));
    }
}

/// What the index may say.
fn expected(reading: &Reading<'_>) -> Vec<Status> {
    if let Some((_, outcome)) = reading.ended {
        return vec![match outcome {
            Outcome::Succeeded => Status::Succeeded,
            Outcome::Committed => Status::Committed,
            Outcome::RolledBack => Status::RolledBack,
            Outcome::Closed => Status::Closed,
        }];
    }
    let any = |is: fn(&Event) -> bool| reading.events.iter().any(|journaled| is(&journaled.event));
    if any(|event| matches!(event, Event::Quarantined { .. })) {
        return vec![Status::Quarantined];
    }
    if reading.turned.is_some() {
        // An operator's retry takes it out of there.
        let last = reading.events.iter().rev().find_map(|journaled| match &journaled.event {
            Event::Stuck { .. } => Some(Status::Stuck),
            Event::Step { what: StepEvent::Retried { .. }, .. } => Some(Status::RollingBack),
            _ => None,
        });
        return vec![last.unwrap_or(Status::RollingBack)];
    }
    if waits_for_people(reading) {
        return vec![Status::Held];
    }
    let mut due = vec![Status::Running, Status::Waiting];
    if !any(|event| matches!(event, Event::Step { .. })) {
        due.push(Status::Pending);
    }
    due
}

/// Forward: some step is held, and no other step can move.
fn waits_for_people(reading: &Reading<'_>) -> bool {
    let end = reading.end();
    let settled = |ix| match reading.forward(ix).standing(end) {
        Standing::Succeeded => true,
        Standing::Failed => reading.plan.step(ix).on_failure == OnFailure::Continue,
        _ => false,
    };
    let can_move = reading.steps().any(|(ix, step, forward, _)| {
        let standing = forward.standing(end);
        standing == Standing::Flying
            || (standing != Standing::Held && !settled(ix) && step.after.iter().all(|&other| settled(other)))
    });
    !can_move && reading.steps().any(|(.., forward, _)| forward.standing(end) == Standing::Held)
}
