//! Why a run does not move, since when, and what will unblock it: for people.

use serde::Serialize;

use crate::Time;
use crate::event::{CourseId, Direction, Outcome};
use crate::forecast::Forecast;
use crate::names::{RunId, StepIx};
use crate::state::{CourseAt, Phase, State, Status};

/// Who moves a run, as the index knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driven {
    /// This node.
    By(String),
    /// This node had it, and is gone.
    Orphaned(String),
    /// Nobody yet; a node may claim it from then on.
    From(Time),
    /// Nobody: it is not its turn yet.
    Queued {
        /// For what it stands in line.
        key: String,
        /// Who has that now.
        holder: Option<RunId>,
        /// How many are before it.
        ahead: i64,
    },
    /// Nobody.
    ByNobody,
}

/// A run in a few words.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Explanation {
    /// Why it is where it is.
    pub why: String,
    /// Since when.
    pub since: Option<Time>,
    /// What moves it on.
    pub unblocked_by: String,
    /// The pool in which it waits for a place, if that is why.
    pub pool: Option<String>,
    /// How long the rest is likely to take once it moves, where the past tells.
    pub remaining: Option<Forecast>,
}

/// Explains a run.
pub fn explain(state: &State, driven: &Driven, now: Time, remaining: Option<Forecast>) -> Explanation {
    let mut pool = None;
    let (why, unblocked_by) = words(state, driven, now, &mut pool);
    Explanation { why, since: state.at(), unblocked_by, pool, remaining }
}

fn words(state: &State, driven: &Driven, now: Time, place_in: &mut Option<String>) -> (String, String) {
    let nothing = || "nothing: it is over".to_owned();
    match (state.phase(), driven) {
        (Phase::Over(outcome), _) => {
            let how = match outcome {
                Outcome::Succeeded => "it has succeeded",
                Outcome::Committed => "it has succeeded and is committed",
                Outcome::RolledBack => "it is rolled back",
                Outcome::Closed => "somebody has closed it, with a list of what is left",
            };
            return (how.into(), nothing());
        }
        (Phase::Succeeded, _) if state.is_over() => {
            return (
                "it has succeeded".into(),
                "nothing: it is over; it can be rolled back or committed yet".into(),
            );
        }
        (_, Driven::Orphaned(node)) => {
            let why = format!("node {node}, which had it, is gone");
            return (why, "the next free node goes on with it by itself, within seconds".into());
        }
        _ => {}
    }
    if let Driven::Queued { key, holder, ahead } = driven {
        let line = match ahead {
            0 => String::new(),
            1 => ", and one run is before it".into(),
            many => format!(", and {many} runs are before it"),
        };
        return match holder {
            Some(holder) => (
                format!("run {holder} has \"{key}\"{line}"),
                "the end of that run; or an operator: cancel it".into(),
            ),
            None => (format!("\"{key}\" is free{line}"), "the next look of a node, within seconds".into()),
        };
    }
    if let Some(waits) = state.waits_for() {
        let by = match state.status() {
            Status::Held => "an operator: retry, skip, undo or override the held step, or roll the run back",
            Status::Stuck => {
                "an operator: retry the failed undo, skip it with evidence, account for what is left, or close the run"
            }
            Status::Paused => "an operator: resume it",
            Status::Quarantined => "an operator: look at its last events, then resume or close it",
            Status::Succeeded => "an operator or a signal: commit it or roll it back; or the end of its time",
            _ => "what it waits for, or an operator",
        };
        return (waits, by.into());
    }
    let moving: Vec<_> =
        state.plan().order().iter().filter_map(|ix| course_in_words(state, *ix, now)).collect();
    let more = moving.len().saturating_sub(5);
    let said = moving.iter().take(5).map(|(why, _)| why.as_str()).collect::<Vec<_>>().join("; ");
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    match (moving.first(), driven) {
        (Some((_, by)), Driven::By(node)) => (format!("{said}{more} (node {node})"), by.clone()),
        (Some((_, by)), Driven::From(at)) if *at > now => (format!("{said}{more}"), by.clone()),
        (_, Driven::From(at)) if *at > now => (format!("it waits until {at}"), "that time".into()),
        (_, Driven::From(_)) => {
            let needs = state.plan().activities().join(", ");
            let why = "it may go on, and no node has claimed it yet".to_owned();
            (why, format!("a free node that has its activities: {needs}"))
        }
        (_, Driven::By(node)) if let Some((step, pool)) = state.wants_pool() => {
            *place_in = Some(pool.to_owned());
            let why = format!("{step} waits for a place in the pool \"{pool}\" (node {node})");
            (why, "the end of another call to that target, or of its outage".into())
        }
        (_, Driven::By(node)) => {
            (format!("node {node} is about to move it"), "nothing: it moves by itself".into())
        }
        (_, Driven::ByNobody | Driven::Orphaned(_) | Driven::Queued { .. }) => (
            "nobody has it, and nothing will wake it: that must not be".into(),
            "an operator: run \"backstay check\"".into(),
        ),
    }
}

/// What a step, or its undo, is at.
fn course_in_words(state: &State, ix: StepIx, now: Time) -> Option<(String, String)> {
    let step = state.plan().step(ix);
    let [forward, undo] = [CourseId::forward(ix), CourseId::undo(ix)].map(|id| (id, state.course(id)));
    let (id, course) = if undo.1.at == CourseAt::Untouched { forward } else { undo };
    let (name, work) = match id.direction {
        Direction::Forward => (step.name.to_string(), &step.forward),
        Direction::Undo => (format!("the undo of {}", step.name), step.undo.as_ref()?),
    };
    let attempt = course.attempts;
    match &course.at {
        CourseAt::Running => {
            let why = format!("attempt {attempt} of {name} runs");
            Some((why, format!("its end; it is given up after {}", work.timeout)))
        }
        CourseAt::BackingOff { until } if *until > now => Some((
            format!("{name} failed and is tried again at {until}"),
            "that time, or an operator's retry".into(),
        )),
        CourseAt::InDoubt { not_before, .. } => {
            let when = not_before.filter(|at| *at > now).map_or("now".into(), |at| format!("at {at}"));
            let why = format!(
                "whether attempt {attempt} of {name} had its effect is not known; it is looked into {when}"
            );
            Some((why, "what is found".into()))
        }
        CourseAt::Waiting(wait) => {
            let at = wait.until.into_iter().chain(wait.expires).min()?;
            Some((format!("{name} waits until {at}"), "that time".into()))
        }
        _ => None,
    }
}
