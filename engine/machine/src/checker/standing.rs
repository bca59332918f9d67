//! The moves of one step, or of one undo, and what can be said of it at a place of the history.

use uuid::Uuid;

use crate::Time;
use crate::event::{Applied, CourseId, Direction, StepEvent};
use crate::json::Json;
use crate::names::Seq;
use crate::plan::Span;

/// What happened to a course at one place of the history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move<'a> {
    /// The place in the reading's events.
    pub pos: usize,
    pub seq: Seq,
    pub claim: i32,
    pub at: Time,
    pub generation: u32,
    pub attempt: u32,
    pub what: What<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum What<'a> {
    Said(&'a StepEvent),
    /// The run was claimed while an attempt was in flight.
    CutOff,
}

/// What the last move says of a course.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Fresh,
    Flying,
    Doubt,
    BackingOff,
    Succeeded,
    Failed,
    Held,
}

impl Standing {
    pub fn in_words(self) -> &'static str {
        match self {
            Standing::Fresh => "has not begun",
            Standing::Flying => "has an attempt in flight",
            Standing::Doubt => "has an attempt in doubt",
            Standing::BackingOff => "waits for its next attempt",
            Standing::Succeeded => "has succeeded",
            Standing::Failed => "has failed for good",
            Standing::Held => "is held",
        }
    }
}

/// A step, or its undo, with all its moves in order.
#[derive(Debug)]
pub(super) struct CourseLog<'a> {
    pub id: CourseId,
    pub moves: Vec<Move<'a>>,
}

/// One attempt: from its start to the first word about its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt<'a> {
    pub start: Move<'a>,
    pub over: Option<Move<'a>>,
}

impl<'a> CourseLog<'a> {
    pub fn new(id: CourseId) -> Self {
        Self { id, moves: Vec::new() }
    }

    /// Its moves before a place of the history.
    pub fn before(&self, pos: usize) -> &[Move<'a>] {
        let end = self.moves.partition_point(|step| step.pos < pos);
        self.moves.get(..end).unwrap_or_default()
    }

    pub fn standing(&self, pos: usize) -> Standing {
        standing_after(self.id.direction, self.before(pos).last())
    }

    pub fn starts(&self) -> impl Iterator<Item = &Move<'a>> {
        self.moves.iter().filter(|step| step.is_start())
    }

    pub fn attempts(&self) -> Vec<Attempt<'a>> {
        let mut attempts: Vec<Attempt<'a>> = Vec::new();
        for &step in &self.moves {
            if step.is_start() {
                attempts.push(Attempt { start: step, over: None });
            } else if let Some(last) = attempts.last_mut()
                && last.over.is_none()
                && step.ends_call()
            {
                last.over = Some(step);
            }
        }
        attempts
    }

    /// Some attempt before that place succeeded, is in flight, or ended without saying that nothing happened.
    pub fn may_be_applied(&self, pos: usize) -> bool {
        let mut flying = false;
        for step in self.before(pos) {
            if step.is_start() {
                flying = true;
            } else if flying && step.ends_call() {
                if !matches!(step.failure(), Some((Applied::No, _))) {
                    return true;
                }
                flying = false;
            }
        }
        flying
    }
}

impl<'a> Move<'a> {
    pub fn output(&self) -> Option<&'a Json> {
        match self.what {
            What::Said(StepEvent::Succeeded { output }) => Some(output),
            _ => None,
        }
    }

    pub fn is_start(&self) -> bool {
        matches!(self.what, What::Said(StepEvent::Started { .. }))
    }

    pub fn key(&self) -> Option<Uuid> {
        match self.what {
            What::Said(StepEvent::Started { key, .. }) => Some(*key),
            _ => None,
        }
    }

    /// The call is over, as far as anybody can know.
    pub fn ends_call(&self) -> bool {
        matches!(self.what, What::CutOff | What::Said(StepEvent::Succeeded { .. } | StepEvent::Failed { .. }))
    }

    /// Whether the attempt may have had its effect, and when the next one is due.
    pub fn failure(&self) -> Option<(Applied, Option<Time>)> {
        match self.what {
            What::Said(StepEvent::Failed { error, retry_at }) => Some((error.applied, *retry_at)),
            _ => None,
        }
    }

    /// It leaves behind an attempt of which nobody knows whether it had its effect.
    pub fn leaves_doubt(&self) -> bool {
        matches!(self.what, What::CutOff) || matches!(self.failure(), Some((Applied::Maybe, _)))
    }
}

pub(super) fn standing_after(direction: Direction, last: Option<&Move<'_>>) -> Standing {
    let Some(last) = last else { return Standing::Fresh };
    match last.what {
        What::CutOff => Standing::Doubt,
        What::Said(event) => match event {
            StepEvent::Started { .. } | StepEvent::Checkpointed { .. } | StepEvent::Progressed { .. } => {
                Standing::Flying
            }
            StepEvent::Succeeded { .. } => Standing::Succeeded,
            StepEvent::Failed { retry_at: None, .. } => Standing::Failed,
            // An undo that may have been done is simply done again.
            StepEvent::Failed { error, .. } => match (error.applied, direction) {
                (Applied::Maybe, Direction::Forward) => Standing::Doubt,
                _ => Standing::BackingOff,
            },
            StepEvent::Probed { .. } => Standing::Doubt,
            StepEvent::Held { .. } => Standing::Held,
            StepEvent::Retried { .. } | StepEvent::Waived => Standing::Fresh,
            StepEvent::Hastened => Standing::BackingOff,
            StepEvent::Skipped { .. } | StepEvent::Recalled | StepEvent::Compared { .. } => {
                Standing::Succeeded
            }
            StepEvent::Resource { .. } => Standing::Flying,
        },
    }
}

/// Postgres keeps microseconds: a time that was compared before it was stored may come back earlier by one.
const ROUNDING: chrono::TimeDelta = chrono::TimeDelta::microseconds(1);

/// Whether `at` comes before `bound`, by more than the database rounds.
pub(super) fn before(at: Time, bound: Time) -> bool {
    at.checked_add_signed(ROUNDING).is_some_and(|at| at < bound)
}

/// A time later by a span; the end of time if there is none.
pub(super) fn later(at: Time, span: Span) -> Time {
    at.checked_add_signed(span.delta()).unwrap_or(Time::MAX_UTC)
}
