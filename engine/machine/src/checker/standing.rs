//! The moves of one step, or of one undo, and what can be said of it at a place of the history.

use uuid::Uuid;

use crate::Time;
use crate::event::{Applied, CourseId, Direction, StepEvent};
use crate::json::Json;
use crate::names::Seq;
use crate::plan::{OnFailure, Span, Step};

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
    /// Where the course is after it.
    pub after: Standing,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum What<'a> {
    Said(&'a StepEvent),
    /// The run was claimed while an attempt was in flight.
    CutOff,
    /// The step was undone while the run went forward: both halves begin anew.
    Undone,
}

/// Where a course is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Fresh,
    Flying,
    /// Of a step that the engine runs itself.
    Waiting,
    Doubt,
    BackingOff,
    Succeeded,
    Skipped,
    Failed,
    Held,
    /// It is being undone while the run goes forward.
    Recalled,
}

impl Standing {
    pub fn in_words(self) -> &'static str {
        match self {
            Standing::Fresh => "has not begun",
            Standing::Flying => "has an attempt in flight",
            Standing::Waiting => "waits",
            Standing::Doubt => "has an attempt in doubt",
            Standing::BackingOff => "waits for its next attempt",
            Standing::Succeeded => "has succeeded",
            Standing::Skipped => "is skipped",
            Standing::Failed => "has failed for good",
            Standing::Held => "is held",
            Standing::Recalled => "is being undone",
        }
    }

    /// It has its output.
    pub fn is_done(self) -> bool {
        matches!(self, Standing::Succeeded | Standing::Skipped)
    }

    /// Where a move leads. `waits`: the engine runs the step itself. `there`: it may have had an effect, and has an undo.
    pub fn next(self, direction: Direction, waits: bool, there: bool, what: &What<'_>) -> Self {
        let forward = direction == Direction::Forward;
        let event = match what {
            What::CutOff => return Standing::Doubt,
            What::Undone if forward => return Standing::Held,
            What::Undone => return Standing::Fresh,
            What::Said(event) => event,
        };
        match event {
            StepEvent::Started { .. } if waits => Standing::Waiting,
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
            // What failed in doubt is looked into once more.
            StepEvent::Hastened => match self {
                Standing::Failed | Standing::Held => Standing::Doubt,
                other => other,
            },
            StepEvent::Skipped { .. } => Standing::Skipped,
            StepEvent::Recalled if there => Standing::Recalled,
            // With nothing to undo it begins anew at once.
            StepEvent::Recalled => Standing::Fresh,
            StepEvent::Resource { .. } | StepEvent::Compared { .. } => self,
        }
    }
}

/// A step, or its undo, with all its moves in order.
#[derive(Debug)]
pub(super) struct CourseLog<'a> {
    pub id: CourseId,
    /// The step is a run of its own: no call, and yet it does something.
    pub run: bool,
    pub moves: Vec<Move<'a>>,
}

/// One attempt: from its start to the first word about its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt<'a> {
    pub start: Move<'a>,
    pub over: Option<Move<'a>>,
}

impl<'a> CourseLog<'a> {
    pub fn new(id: CourseId, run: bool) -> Self {
        Self { id, run, moves: Vec::new() }
    }

    /// Its moves before a place of the history.
    pub fn before(&self, pos: usize) -> &[Move<'a>] {
        let end = self.moves.partition_point(|step| step.pos < pos);
        self.moves.get(..end).unwrap_or_default()
    }

    pub fn standing(&self, pos: usize) -> Standing {
        self.before(pos).last().map_or(Standing::Fresh, |last| last.after)
    }

    /// What the failure for good does by which it stands at a place of the history.
    pub fn on_failure(&self, step: &Step, pos: usize) -> Option<OnFailure> {
        if self.standing(pos) != Standing::Failed {
            return None;
        }
        let failed = self.before(pos).iter().rev().find_map(|m| match m.what {
            What::Said(StepEvent::Failed { error, .. }) => Some(error),
            _ => None,
        });
        Some(failed.map_or(step.on_failure, |error| step.on(error)))
    }

    pub fn starts(&self) -> impl Iterator<Item = &Move<'a>> {
        self.moves.iter().filter(|step| step.is_start())
    }

    /// The output that others read at a place of the history.
    pub fn output(&self, pos: usize) -> Option<&'a Json> {
        let moves = self.before(pos);
        let anew = moves.iter().rposition(Move::begins_anew).map_or(0, |n| n + 1);
        moves.iter().skip(anew).rev().find_map(Move::output)
    }

    /// The moves of the generation that is the last at a place of the history, and, if it began anew, the one by which
    /// it did.
    pub fn generation(&self, pos: usize) -> &[Move<'a>] {
        let moves = self.before(pos);
        let anew = moves.iter().rposition(Move::begins_anew).unwrap_or(0);
        moves.get(anew..).unwrap_or_default()
    }

    /// The calls that were made.
    pub fn attempts(&self) -> Vec<Attempt<'a>> {
        let mut attempts: Vec<Attempt<'a>> = Vec::new();
        for &step in &self.moves {
            if step.is_start() && step.after == Standing::Flying {
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

    /// Some attempt before that place succeeded, is in flight, or ended without saying that nothing happened; and it was
    /// not undone since.
    pub fn may_be_applied(&self, pos: usize) -> bool {
        let (mut flying, mut applied) = (false, false);
        for step in self.before(pos) {
            if step.is_start() {
                flying = self.run || step.after == Standing::Flying;
            } else if matches!(step.what, What::Undone) {
                (flying, applied) = (false, false);
            } else if flying && step.ends_call() {
                applied |= !matches!(step.failure(), Some((Applied::No, _)));
                flying = false;
            }
        }
        flying || applied
    }

    /// When an attempt last left a doubt that nothing has cleared up since.
    pub fn doubtful_since(&self, pos: usize) -> Option<Time> {
        let moves = self.before(pos);
        let undone = moves.iter().rposition(|m| matches!(m.what, What::Undone)).map_or(0, |n| n + 1);
        moves.iter().skip(undone).filter(|m| m.leaves_doubt()).map(|m| m.at).max()
    }
}

impl<'a> Move<'a> {
    pub fn output(&self) -> Option<&'a Json> {
        match self.what {
            What::Said(StepEvent::Succeeded { output } | StepEvent::Skipped { output }) => Some(output),
            _ => None,
        }
    }

    /// A new generation begins with it.
    pub fn begins_anew(&self) -> bool {
        match self.what {
            What::Undone | What::Said(StepEvent::Retried { .. }) => true,
            What::Said(StepEvent::Recalled) => self.after == Standing::Fresh,
            _ => false,
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
