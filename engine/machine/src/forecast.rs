//! How long the rest of a run is likely to take. What others take, people above all, is not guessed: it is named.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Time;
use crate::event::CourseId;
use crate::names::StepIx;
use crate::plan::{Kind, Span};
use crate::state::{CourseAt, Phase, State, Status, Wait};

/// How long the rest is likely to take: the longest chain of what is left, each step as long as it took before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Forecast {
    /// So long, at least, beside what others take.
    pub time: Span,
    /// The steps of that chain.
    pub path: Vec<String>,
    /// Steps that nobody has timed yet; they count as nothing.
    pub unknown: usize,
    /// What must come from people or other programs, now or later, in words: how long that takes, nobody knows.
    pub others: Vec<String>,
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let untimed = match self.unknown {
            1 => "1 step that was never timed".to_owned(),
            many => format!("{many} steps that were never timed"),
        };
        let own = match (self.time.0.is_zero(), self.unknown) {
            (true, 0) => None,
            (true, _) => Some(untimed),
            (false, 0) => Some(format!("about {}", self.time)),
            (false, _) => Some(format!("about {}, and {untimed}", self.time)),
        };
        let own = own.map(|own| match self.path.is_empty() {
            true => own,
            false => format!("{own}: {}", self.path.join(", ")),
        });
        let others = self.others.join(", ");
        match (own, self.others.is_empty()) {
            (None, true) => f.write_str("less than a second"),
            (Some(own), true) => f.write_str(&own),
            (None, false) => write!(f, "as long as others take: {others}"),
            (Some(own), false) => write!(f, "as long as others take: {others}; beside that {own}"),
        }
    }
}

/// What is left of one step.
enum Left {
    /// So long.
    Time(Span),
    /// Nobody knows, because nobody timed it.
    Untimed,
    /// Nobody knows, because it is for others to end it.
    Others(String),
}

/// How long the rest is likely to take, from how long each step, or its undo, took before.
pub fn forecast(state: &State, now: Time, took: impl Fn(CourseId) -> Option<Span>) -> Option<Forecast> {
    let plan = state.plan();
    let back = match state.phase() {
        Phase::Forward | Phase::Committing => false,
        Phase::RollingBack => true,
        Phase::Succeeded | Phase::Over(_) => return None,
    };
    let mut others = of_the_run(state);
    let mut unknown = 0;
    // For each step the longest chain that ends with it, and the step before it on that chain.
    let mut chains: Vec<(Span, Option<StepIx>)> = vec![(Span::default(), None); plan.len()];
    // Steps whose time is known, or could be.
    let mut ours = vec![false; plan.len()];
    let mut longest: Option<StepIx> = None;
    let order: Vec<StepIx> =
        if back { plan.order().iter().rev().copied().collect() } else { plan.order().to_vec() };
    for ix in order {
        let step = plan.step(ix);
        let id = if back { CourseId::undo(ix) } else { CourseId::forward(ix) };
        let before = if back { &step.before } else { &step.after };
        let from = before.iter().max_by_key(|ix| chains.get(ix.index()).map(|chain| chain.0)).copied();
        let base = from.and_then(|ix| chains.get(ix.index())).map_or(Span::default(), |chain| chain.0);
        let is_left = !state.settled(ix)
            && (state.phase() == Phase::Committing || !step.finalize)
            && (!back || step.undo.is_some());
        let mut own = Span::default();
        if is_left {
            let left = of_step(state, id, base.after(now), now, took(id));
            if let Some(ours) = ours.get_mut(ix.index()) {
                *ours = !matches!(left, Left::Others(_));
            }
            match left {
                Left::Time(time) => own = time,
                Left::Untimed => unknown += 1,
                Left::Others(what) => others.push(what),
            }
        }
        let whole = Span(base.0.saturating_add(own.0));
        if let Some(chain) = chains.get_mut(ix.index()) {
            *chain = (whole, from);
        }
        let best = longest.and_then(|ix| chains.get(ix.index())).map_or(Span::default(), |chain| chain.0);
        if is_left && whole >= best {
            longest = Some(ix);
        }
    }
    let time = longest.and_then(|ix| chains.get(ix.index())).map_or(Span::default(), |chain| chain.0);
    let mut path = Vec::new();
    let mut at = longest;
    while let Some(ix) = at {
        if ours.get(ix.index()) == Some(&true) {
            path.push(plan.step(ix).name.to_string());
        }
        at = chains.get(ix.index()).and_then(|chain| chain.1);
    }
    path.reverse();
    // Parts of a second of a guess say nothing.
    let time = Span::secs(time.0.as_secs_f64().ceil() as u64);
    Some(Forecast { time, path, unknown, others })
}

/// What the run as a whole needs of others.
fn of_the_run(state: &State) -> Vec<String> {
    match state.status() {
        Status::Quarantined => vec!["whoever resumes it, or closes it".into()],
        Status::Stuck => {
            let left = state.residue();
            left.map(|one| format!("word of what became of {} {} of {}", one.kind, one.name, one.step))
                .collect()
        }
        _ if state.paused().is_some() => vec!["whoever resumes it".into()],
        _ => Vec::new(),
    }
}

/// What is left of a step, or of its undo, that can begin at `from`.
fn of_step(state: &State, id: CourseId, from: Time, now: Time, took: Option<Span>) -> Left {
    let step = state.plan().step(id.step);
    let name = &step.name;
    let course = state.course(id);
    let undo_failed = matches!(state.course(CourseId::undo(id.step)).at, CourseAt::Failed { .. });
    match (&course.at, step.kind) {
        _ if undo_failed => Left::Others(format!("a decision about the undo of {name}")),
        (CourseAt::Held { .. } | CourseAt::Failed { .. }, _) => {
            Left::Others(format!("a decision about {name}"))
        }
        (CourseAt::Waiting(wait), Kind::Wait | Kind::Approve) => of_wait(wait, name, now),
        (_, kind @ (Kind::Wait | Kind::Approve)) if id == CourseId::forward(id.step) => {
            // Who may end it is literal in every plan; how long it lasts another step may still have to say.
            of_wait(&Wait::new(kind, &step.forward.input.resolve(|_| None), from), name, from)
        }
        (CourseAt::Running | CourseAt::Waiting(_), _) => match (took, course.first_started) {
            (None, _) => Left::Untimed,
            (Some(took), Some(since)) => Left::Time(span(took.delta() - (now - since))),
            (Some(took), None) => Left::Time(took),
        },
        _ => took.map_or(Left::Untimed, Left::Time),
    }
}

/// A wait that goes on at `from`. Where time ends it as well, that is how long it takes at most.
fn of_wait(wait: &Wait, name: &crate::names::StepName, from: Time) -> Left {
    match (wait.until, &wait.signal, &wait.approval) {
        (Some(at), _, _) => Left::Time(span(at - from)),
        (None, Some(signal), _) => Left::Others(format!("the signal \"{signal}\" ({name})")),
        (None, None, Some(_)) => Left::Others(format!("people's yes to {name}")),
        (None, None, None) => Left::Untimed,
    }
}

fn span(delta: chrono::TimeDelta) -> Span {
    Span(delta.to_std().unwrap_or_default())
}
