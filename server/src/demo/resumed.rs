//! What became of a run that was cut off: told from its journal, and checked against it.

use backstay_engine::machine::{
    Answer, CourseAt, CourseId, Direction, Event, Journaled, Seq, State, StepEvent,
};

use crate::tree::View;

/// Where a run was cut off.
#[derive(Debug)]
pub(super) struct Cut {
    /// The last event that was journaled by then.
    pub seen: Seq,
    /// The course whose result was the last.
    pub last: Option<CourseId>,
    done: Vec<CourseId>,
    pub in_doubt: Vec<CourseId>,
}

impl Cut {
    /// Off here.
    pub(super) fn here(state: &State, journal: &[Journaled]) -> Self {
        let last = journal.iter().rev().find_map(|entry| match &entry.event {
            Event::Step { course, what, .. } if is_result(what) => Some(*course),
            _ => None,
        });
        let steps = state.plan().order().iter();
        let courses: Vec<_> = steps.flat_map(|ix| [CourseId::forward(*ix), CourseId::undo(*ix)]).collect();
        let those = |wanted: fn(&CourseAt) -> bool| {
            courses.iter().filter(|course| wanted(&state.course(**course).at)).copied().collect()
        };
        Self {
            seen: state.seq(),
            last,
            done: those(|at| matches!(at, CourseAt::Succeeded { .. })),
            in_doubt: those(|at| matches!(at, CourseAt::Running | CourseAt::InDoubt { .. })),
        }
    }

    /// What was resumed, a sentence each; or the promise that was not kept.
    pub(super) fn tell(&self, view: &View, journal: &[Journaled]) -> Result<Vec<String>, String> {
        let after: Vec<&Journaled> = journal.iter().filter(|entry| entry.seq > self.seen).collect();
        let about = |course: CourseId| {
            after.iter().filter_map(move |entry| match &entry.event {
                Event::Step { course: other, attempt, what, .. } if *other == course => {
                    Some((*attempt, what))
                }
                _ => None,
            })
        };
        let started = |course| {
            about(course)
                .find_map(|(attempt, what)| matches!(what, StepEvent::Started { .. }).then_some(attempt))
        };
        if let Some(twice) = self.done.iter().find(|course| started(**course).is_some()) {
            return Err(format!("{} had its result, and was begun again", view.name(*twice)));
        }
        let mut told = Vec::new();
        let names: Vec<_> = self.done.iter().map(|course| view.name(*course)).collect();
        told.push(match names.len() {
            0 => "Nothing had a result yet, so nothing could be repeated by mistake.".into(),
            _ => format!("Not repeated, because the result was in the journal: {}.", names.join(", ")),
        });
        for &course in &self.in_doubt {
            let mut answer = about(course).filter_map(|(_, what)| match what {
                StepEvent::Probed { answer, ask_again_at: None } => Some(answer),
                _ => None,
            });
            let attempt = view.state.course(course).attempts;
            let went_on = started(course).map(|next| {
                let before = journal.iter().filter(|entry| entry.seq <= self.seen);
                let saved = before.into_iter().any(|entry| {
                    matches!(&entry.event, Event::Step { course: other, what: StepEvent::Checkpointed { .. }, .. } if *other == course)
                });
                let how = if saved { "went on from what it had saved" } else { "did it" };
                format!("attempt {next} {how}")
            });
            let settled = match (answer.next_back(), went_on) {
                (Some(Answer::Present), _) => {
                    format!("its effect was found, so attempt {attempt} was kept as it was")
                }
                (Some(Answer::Absent), Some(went_on)) => format!("nothing of it was found, and {went_on}"),
                (Some(Answer::Partial), Some(went_on)) => format!("a part of it was found, and {went_on}"),
                (_, Some(went_on)) if course.direction == Direction::Undo => {
                    format!("an undo can be done twice: {went_on}")
                }
                (_, Some(went_on)) => format!("it can be done twice: {went_on}"),
                (_, None) => "it was undone".into(),
            };
            told.push(format!("In doubt was {}: {settled}.", view.name(course)));
        }
        if self.in_doubt.is_empty() {
            told.push("Nothing was in doubt.".into());
        }
        Ok(told)
    }
}

/// Whether a course has come to its result with this.
pub(super) fn is_result(what: &StepEvent) -> bool {
    matches!(what, StepEvent::Succeeded { .. } | StepEvent::Failed { retry_at: None, .. })
}
