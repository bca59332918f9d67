//! Reads a journal and says what was not allowed. It shares no line with the state: it looks at rows, and at
//! what the plan declares.

use std::collections::{BTreeMap, BTreeSet};

use backstay_machine::plan::OnFailure;
use backstay_machine::*;
use chrono::TimeDelta;
use serde_json::Value;
use uuid::Uuid;

#[derive(Default)]
struct Seen {
    generation: i32,
    attempt: i32,
    failures: u32,
    first_start: Option<Time>,
    not_before: Option<Time>,
    in_flight: bool,
    in_doubt: bool,
    may_repeat: bool,
    succeeded: bool,
    failed_for_good: bool,
    /// Some attempt did not end with "not applied".
    counts: bool,
}

/// Everything that is wrong with a journal.
pub fn faults(plan: &Plan, rows: &[Row]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut seen: BTreeMap<(StepIx, bool), Seen> = BTreeMap::new();
    for (ix, _) in plan.steps() {
        for undo in [false, true] {
            seen.insert((ix, undo), Seen::default());
        }
    }
    let mut keys: BTreeMap<Uuid, (StepIx, bool, i32)> = BTreeMap::new();
    let mut known: BTreeSet<(StepIx, bool, i32)> = BTreeSet::new();
    let mut back = false;
    let mut over = false;
    for row in rows {
        let mut wrong = |why: String| faults.push(format!("{} {}: {why}", row.seq, row.kind));
        if over {
            wrong("the run is over".into());
        }
        match row.kind {
            "claimed" => {
                for course in seen.values_mut().filter(|course| course.in_flight) {
                    (course.in_flight, course.in_doubt, course.may_repeat) = (false, true, false);
                    course.counts = true;
                }
            }
            "rolling_back" => back = true,
            "finished" => {
                over = true;
                for (ix, step) in plan.steps() {
                    let (forward, undo) = (&seen[&(ix, false)], &seen[&(ix, true)]);
                    let gone_on = forward.failed_for_good && step.on_failure == OnFailure::Continue;
                    if !back && !forward.succeeded && !gone_on {
                        wrong(format!("{} is not done", step.name));
                    }
                    if back && forward.in_flight {
                        wrong(format!("{} is in flight", step.name));
                    }
                    if back && forward.counts && step.undo.is_some() && !undo.succeeded {
                        wrong(format!("{} is not undone", step.name));
                    }
                }
            }
            _ => {}
        }
        let Some(name) = &row.step else { continue };
        let (ix, undo) = (plan.find(name).unwrap(), row.undo);
        let step = plan.step(ix);
        if row.kind == "started" {
            if undo {
                if !back {
                    wrong("an undo before the rollback".into());
                }
                if seen[&(ix, false)].in_flight {
                    wrong("the step is in flight".into());
                }
                if !seen[&(ix, false)].counts {
                    wrong("there is nothing to undo".into());
                }
                for &dependent in &step.before {
                    let (forward, undone) = (&seen[&(dependent, false)], &seen[&(dependent, true)]);
                    let other = plan.step(dependent);
                    if forward.in_flight || forward.counts && other.undo.is_some() && !undone.succeeded {
                        wrong(format!("{} comes after it and is not undone", other.name));
                    }
                }
            } else {
                if back {
                    wrong("a step begins in a rollback".into());
                }
                for &dependency in &step.after {
                    let before = &seen[&(dependency, false)];
                    let other = plan.step(dependency);
                    let gone_on = before.failed_for_good && other.on_failure == OnFailure::Continue;
                    if !before.succeeded && !gone_on {
                        wrong(format!("{} comes before it and is not done", other.name));
                    }
                }
            }
        }
        let work = if undo { step.undo.as_ref().unwrap() } else { &step.forward };
        let course = seen.get_mut(&(ix, undo)).unwrap();
        match row.kind {
            "started" => {
                if course.succeeded || course.in_flight || course.failed_for_good {
                    wrong("it may not begin again".into());
                }
                if course.in_doubt && !undo && step.effect.at_most_once {
                    wrong("it is to happen at most once".into());
                }
                if course.in_doubt && !undo && step.effect.probed && !course.may_repeat {
                    wrong("an attempt in doubt was not looked for".into());
                }
                if course.not_before.is_some_and(|at| row.at < at) {
                    wrong("it begins too early".into());
                }
                if (row.generation, row.attempt) != (course.generation, course.attempt + 1) {
                    wrong(format!("attempt {} of generation {}", row.attempt, row.generation));
                }
                if row.body.is_some() != (row.attempt == 1) {
                    wrong("the input belongs to the first attempt".into());
                }
                let this = (ix, undo, row.generation);
                let of_key = *keys.entry(row.key.unwrap()).or_insert(this);
                if of_key != this || known.insert(this) != (row.attempt == 1) {
                    wrong("the idempotency key changed, or is another's".into());
                }
                course.attempt = row.attempt;
                course.first_start = course.first_start.or(Some(row.at));
                course.in_flight = true;
                (course.in_doubt, course.may_repeat, course.not_before) = (false, false, None);
            }
            "succeeded" => {
                if course.succeeded {
                    wrong("a second result".into());
                }
                (course.succeeded, course.counts, course.in_flight, course.in_doubt) =
                    (true, true, false, false);
            }
            "failed" => {
                let body = row.body.as_ref().unwrap().value();
                let maybe = body["error"]["applied"] == "maybe";
                let retry_at: Option<Time> = serde_json::from_value(body["retry_at"].clone()).unwrap();
                course.in_flight = false;
                course.counts |= maybe;
                course.failures += 1;
                course.in_doubt |= maybe;
                course.not_before = retry_at;
                course.failed_for_good = retry_at.is_none();
                if let Some(at) = retry_at {
                    if body["error"]["retryable"] != Value::Bool(true) {
                        wrong("what cannot be retried is to be retried".into());
                    }
                    let policy = &work.retry;
                    if policy.attempts.is_some_and(|most| course.failures >= most) {
                        wrong("there are no attempts left".into());
                    }
                    let first = course.first_start.unwrap();
                    if policy.elapsed.is_some_and(|most| at > first + most.delta()) {
                        wrong("there is no time left".into());
                    }
                    let factor = policy.factor.powi(course.failures as i32 - 1).min(f64::MAX);
                    let grown = policy.first.0.as_secs_f64() * factor;
                    let nominal = grown.min(policy.ceiling.0.as_secs_f64());
                    let shortest = nominal * (1.0 - policy.jitter);
                    let waits = (at - row.at).as_seconds_f64();
                    let asked = body["error"]["retry_after"].is_string();
                    let longest = (nominal * (1.0 + policy.jitter)).min(policy.ceiling.0.as_secs_f64());
                    // An event is journaled a millisecond after it was judged.
                    if waits < shortest - 0.0015 || (!asked && waits > longest + 0.0015) {
                        wrong(format!("it waits {waits} s, from {shortest} to {longest} are declared"));
                    }
                }
            }
            "probed" => {
                let body = row.body.as_ref().unwrap().value();
                let settled = body["ask_again_at"].is_null();
                course.may_repeat = settled && matches!(body["answer"].as_str(), Some("absent" | "partial"));
                course.not_before = None;
            }
            "retried" => {
                let counts = course.counts;
                *course = Seen { generation: row.generation, counts, ..Seen::default() };
            }
            _ => {}
        }
    }
    let mut last = rows.first().map(|row| row.at);
    for row in rows {
        if last > Some(row.at) || row.at - last.unwrap() > TimeDelta::days(400) {
            faults.push(format!("{} {}: time went wrong", row.seq, row.kind));
        }
        last = Some(row.at);
    }
    faults
}
