//! What the journal has said of a run so far. Nothing that is shown comes from anywhere else.

use std::collections::HashMap;
use std::sync::Arc;

use backstay_engine::machine::{CourseId, Direction, Event, Journaled, Outcome, Row, State, StepEvent, Time};
use backstay_engine::{Plan, RunId};
use chrono::{TimeDelta, Utc};

use crate::trouble::Trouble;

/// A run, folded from its journal.
#[derive(Debug)]
pub(crate) struct View {
    pub state: State,
    traces: HashMap<CourseId, Trace>,
    /// When it was submitted.
    pub begun: Time,
    /// Why it turned round.
    pub because: Option<String>,
    /// How far our clock is ahead of the database's, at most.
    ahead: TimeDelta,
}

/// What is shown of one half of a step beside its state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    /// The time that all attempts together took, without the one in flight.
    spent: TimeDelta,
    since: Option<Time>,
    /// How far the attempt says it is.
    pub progress: Option<(f64, String)>,
    /// How the last attempt failed.
    pub error: Option<String>,
}

impl View {
    /// Begins with a run's first event: it holds the plan.
    pub(crate) fn begin(run: RunId, first: &Row) -> Result<Self, Trouble> {
        let body = first.body.clone().unwrap_or_else(backstay_engine::machine::Json::null);
        let plan = Plan::from_submitted(&body).map_err(|error| unreadable(run, &error))?;
        Ok(Self {
            state: State::new(run, plan),
            traces: HashMap::new(),
            begun: first.at,
            because: None,
            ahead: TimeDelta::MAX,
        })
    }

    /// Takes in the next event.
    pub(crate) fn take(&mut self, row: &Row) -> Result<Journaled, Trouble> {
        let run = self.state.run();
        let journaled = Journaled::from_row(row, self.plan()).map_err(|error| unreadable(run, &error))?;
        let before = self.state.at();
        self.state.apply(&journaled).map_err(|error| unreadable(run, &error))?;
        self.ahead = self.ahead.min(Utc::now() - journaled.at);
        match &journaled.event {
            Event::Claimed { .. } => {
                // Nobody knows when the last owner ended; the last thing it wrote is a lower bound.
                let ended = before.unwrap_or(journaled.at);
                self.traces.values_mut().for_each(|trace| trace.pause(ended));
            }
            Event::RollingBack { because, .. } => self.because = Some(because.clone()),
            Event::Step { course, what, .. } => {
                let trace = self.traces.entry(*course).or_default();
                match what {
                    StepEvent::Started { .. } => {
                        trace.since = Some(journaled.at);
                        trace.progress = None;
                    }
                    StepEvent::Progressed { percent, note } => {
                        trace.progress = Some((*percent, note.clone()));
                    }
                    StepEvent::Succeeded { .. } => trace.pause(journaled.at),
                    StepEvent::Failed { error, .. } => {
                        trace.pause(journaled.at);
                        trace.error = Some(error.message.clone());
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(journaled)
    }

    pub(crate) fn plan(&self) -> &Arc<Plan> {
        self.state.plan()
    }

    pub(crate) fn trace(&self, course: CourseId) -> Option<&Trace> {
        self.traces.get(&course)
    }

    /// The database's time, as well as we know it.
    pub(crate) fn now(&self) -> Time {
        let now = Utc::now().checked_sub_signed(self.ahead).unwrap_or_default();
        self.state.at().map_or(now, |last| last.max(now))
    }

    /// What people call it.
    pub(crate) fn name(&self, course: CourseId) -> String {
        let name = &self.plan().step(course.step).name;
        match course.direction {
            Direction::Forward => name.to_string(),
            Direction::Undo => format!("undo {name}"),
        }
    }

    /// An event as a line, for those who have no terminal to draw on.
    pub(crate) fn line(&self, event: &Event, progress_before: Option<f64>) -> Option<String> {
        let (course, attempt, what) = match event {
            Event::Submitted { .. } => return None,
            Event::Claimed { node, .. } => return Some(format!("{:<17} by node {node}", "taken over")),
            Event::RollingBack { because, .. } => return Some(format!("{:<17} {because}", "rolling back")),
            Event::Checking { because, .. } => return Some(format!("{:<17} {because}", "looking")),
            Event::Checked => return Some(format!("{:<17} nothing has changed", "looked")),
            Event::Drifted { differences } => {
                return Some(format!("{:<17} {}", "changed", differences.join("; ")));
            }
            Event::Committing { because } => return Some(format!("{:<17} {because}", "committing")),
            Event::Stuck { steps, resources } => {
                let left: Vec<_> = steps.iter().chain(resources).map(String::as_str).collect();
                return Some(format!("{:<17} not undone: {}", "stuck", left.join(", ")));
            }
            Event::Acted(action) => {
                return Some(format!("{:<17} by {}", action.verb.name(), action.who));
            }
            Event::Refused { action, because } => {
                return Some(format!("{:<17} by {}: refused, {because}", action.verb.name(), action.who));
            }
            Event::Quarantined { why } => return Some(format!("{:<17} {why}", "left alone")),
            Event::Finished { outcome: Outcome::Succeeded } => return Some("succeeded".into()),
            Event::Finished { outcome: Outcome::Committed } => return Some("committed".into()),
            Event::Finished { outcome: Outcome::RolledBack } => return Some("rolled back".into()),
            Event::Finished { outcome: Outcome::Closed } => return Some("closed".into()),
            Event::Step { course, attempt, what, .. } => (*course, *attempt, what),
        };
        let trace = self.trace(course).cloned().unwrap_or_default();
        let took = seconds(trace.spent);
        let what = match what {
            StepEvent::Started { .. } if attempt > 1 => format!("attempt {attempt} started"),
            StepEvent::Started { .. } => "started".into(),
            StepEvent::Checkpointed { .. } => return None,
            StepEvent::Progressed { percent, note } => {
                let quarter = |percent: f64| (percent / 25.0) as u32;
                if quarter(*percent) == progress_before.map_or(0, quarter) {
                    return None;
                }
                format!("{percent:.0} %, {note}")
            }
            StepEvent::Succeeded { .. } if course.direction == Direction::Undo => format!("undone in {took}"),
            StepEvent::Succeeded { .. } => format!("done in {took}"),
            StepEvent::Failed { error, retry_at: Some(at) } => {
                let wait = seconds(*at - self.state.at().unwrap_or(*at));
                format!("attempt {attempt} failed: {}; again in {wait}", error.message)
            }
            StepEvent::Failed { error, retry_at: None } => format!("failed for good: {}", error.message),
            StepEvent::Probed { answer, .. } => {
                use backstay_engine::machine::Answer;
                let found = match answer {
                    Answer::Present => "found its effect".into(),
                    Answer::Absent => "found nothing of it".into(),
                    Answer::Partial => "found a part of it".into(),
                    Answer::Unknown { why } => format!("brought nothing: {why}"),
                };
                format!("attempt {attempt} was in doubt; a look at the world {found}")
            }
            StepEvent::Held { why } => format!("waits for an operator: {why}"),
            StepEvent::Retried { .. } => "begins anew".into(),
            StepEvent::Hastened => "waits no longer".into(),
            StepEvent::Skipped { .. } => "counts as done".into(),
            StepEvent::Recalled => "is to be undone".into(),
            StepEvent::Compared { difference: None } => "is as it was".into(),
            StepEvent::Compared { difference: Some(how) } => how.clone(),
            StepEvent::Waived => "may start without its proof".into(),
            StepEvent::Resource { kind, name, fate, .. } => format!("{kind} {name}: {fate}"),
        };
        Some(format!("{:<17} {what}", self.name(course)))
    }
}

impl Trace {
    fn pause(&mut self, at: Time) {
        if let Some(since) = self.since.take() {
            self.spent += at - since;
        }
    }

    /// How long its attempts took up to now.
    pub(crate) fn took(&self, now: Time) -> TimeDelta {
        self.spent + self.since.map_or(TimeDelta::zero(), |since| now - since)
    }
}

fn unreadable(run: RunId, error: &dyn std::error::Error) -> Trouble {
    Trouble::failed(format!("The journal of run {run} cannot be read: {error}"))
}

/// As people read it.
pub(crate) fn seconds(span: TimeDelta) -> String {
    let seconds = span.as_seconds_f64().max(0.0);
    match seconds {
        _ if seconds < 60.0 => format!("{seconds:.1} s"),
        _ if seconds < 3_600.0 => format!("{}:{:02} min", seconds as u64 / 60, seconds as u64 % 60),
        _ => format!("{:.1} h", seconds / 3_600.0),
    }
}
