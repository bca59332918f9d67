//! The run's row of the index against its journal (H25).

use super::reading::Reading;
use super::standing::Standing;
use super::{Findings, RuleId};
use crate::Time;
use crate::action::Verb;
use crate::event::{Event, Outcome, StepEvent};
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
    let over = is_over(reading, index.status);
    // An owner that died right after its claim left no event of it; a run that is over for good has no such owner.
    let parted =
        index.claim < last.claim || (over && index.status != Status::Succeeded && index.claim != last.claim);
    if parted {
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

    let in_line = index.status == Status::Queued && index.owner.is_none() && index.due_at.is_none();
    let reasons = [
        in_line.then_some("its turn"),
        index.owner.is_some().then_some("an owner"),
        index.due_at.is_some().then_some("a time"),
    ];
    let mut reasons: Vec<_> = reasons.into_iter().flatten().collect();
    reasons.extend(
        for_people(reading, index)
            .filter(|_| index.status != Status::Waiting && index.status != Status::Succeeded),
    );
    if over {
        if !reasons.is_empty() {
            wrong(format!("the run is over, but the index has {} for it", reasons.join(" and ")));
        }
    } else if reasons.is_empty() && for_people(reading, index).is_none() {
        wrong("the run lives and nothing will ever wake it: no owner, no time, no alarm".into());
    } else if reasons.len() > 1 {
        wrong(format!("the run waits for {} at once: two may move it", reasons.join(" and ")));
    }
}

/// What has succeeded lives on if its plan says how it becomes final.
fn is_over(reading: &Reading<'_>, status: Status) -> bool {
    status.is_end() && (status != Status::Succeeded || reading.plan.spec().commit.is_none())
}

/// What only people can bring, if that is enough to wait for.
fn for_people(reading: &Reading<'_>, index: &Index) -> Option<&'static str> {
    match index.status {
        Status::Held | Status::Stuck | Status::Quarantined | Status::Paused => Some("an operator's decision"),
        Status::Succeeded => {
            let commit = reading.plan.spec().commit.as_ref()?;
            commit.within.is_none().then_some("somebody to make it final")
        }
        // A wait that has an end has a time.
        Status::Waiting => {
            let waits = |m: &super::standing::CourseLog<'_>| m.standing(reading.end()) == Standing::Waiting;
            reading.steps().any(|(.., forward, _)| waits(forward)).then_some("a signal")
        }
        _ => None,
    }
}

/// What the index may say.
fn expected(reading: &Reading<'_>) -> Vec<Status> {
    let last = |is: fn(&Event) -> Option<bool>| {
        reading.events.iter().rev().find_map(|journaled| is(&journaled.event)).unwrap_or(false)
    };
    let alone = last(|event| match event {
        Event::Quarantined { .. } => Some(true),
        Event::Acted(action) if action.verb == Verb::Resume => Some(false),
        _ => None,
    });
    match reading.ended {
        Some((_, Outcome::Succeeded)) if alone => return vec![Status::Quarantined],
        Some((_, Outcome::Succeeded)) => return vec![Status::Succeeded],
        Some((_, Outcome::Committed)) => return vec![Status::Committed],
        Some((_, Outcome::RolledBack)) => return vec![Status::RolledBack],
        Some((_, Outcome::Closed)) => return vec![Status::Closed],
        None if alone => return vec![Status::Quarantined],
        None => {}
    }
    let end = reading.end();
    // A decision of people takes it out of there.
    let stuck = last(|event| match event {
        Event::Stuck { .. } => Some(true),
        Event::Step { what: StepEvent::Resource { fate, .. }, .. } => fate.is_settled().then_some(false),
        Event::Step { what: StepEvent::Retried { .. } | StepEvent::Skipped { .. }, .. } => Some(false),
        _ => None,
    });
    if reading.turned.is_some() && stuck {
        return vec![Status::Stuck];
    }
    let paused = last(|event| match event {
        Event::Drifted { .. } => Some(true),
        Event::Acted(action) => match action.verb {
            Verb::Pause => Some(true),
            Verb::Resume | Verb::RollBack(_) => Some(false),
            _ => None,
        },
        _ => None,
    });
    let flying = reading.courses().any(|course| course.standing(end) == Standing::Flying);
    if paused && !flying {
        return vec![Status::Paused];
    }
    if reading.turned.is_some() {
        return vec![Status::RollingBack];
    }
    if waits_for_people(reading) {
        return vec![Status::Held];
    }
    if reading.committing.is_some() {
        return vec![Status::Committing, Status::Waiting];
    }
    let mut due = vec![Status::Running, Status::Waiting];
    if !reading.events.iter().any(|journaled| matches!(journaled.event, Event::Step { .. })) {
        due.extend([Status::Pending, Status::Queued]);
    }
    due
}

/// Forward: something waits for a decision, and no step can move.
fn waits_for_people(reading: &Reading<'_>) -> bool {
    let end = reading.end();
    let recalled = |ix| reading.forward(ix).standing(end) == Standing::Recalled;
    let can_move =
        reading.steps().any(|(ix, step, forward, undo)| match (forward.standing(end), undo.standing(end)) {
            (Standing::Flying, _) | (_, Standing::Flying) => true,
            (Standing::Held, _) => false,
            (Standing::Recalled, Standing::Failed) => false,
            (Standing::Recalled, _) => !reading.recalled_behind(ix, end),
            // Done, but something before it is not.
            (standing, _) if standing.is_done() => false,
            _ if step.finalize && reading.committing.is_none() => false,
            _ => !reading.settled(ix, end) && step.after.iter().all(|&other| reading.settled(other, end)),
        });
    let waits = |ix| {
        let undo_failed = recalled(ix) && reading.undo(ix).standing(end) == Standing::Failed;
        reading.forward(ix).standing(end) == Standing::Held || undo_failed
    };
    !can_move && reading.steps().any(|(ix, ..)| waits(ix))
}
