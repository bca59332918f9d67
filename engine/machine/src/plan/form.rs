//! What can be said of a plan and of each of its steps without looking at the others: how large it is, and how it is written.

use super::builtin::{Kind, kind};
use super::limits;
use super::problem::{Problems, Rule, clipped};
use super::spec::{Ending, PlanSpec, Retry, StepSpec};
use crate::json::{Json, unfit};

/// Whether the plan is small enough to look at.
pub(super) fn within_limits(spec: &PlanSpec, problems: &mut Problems) -> bool {
    if spec.steps.is_empty() {
        problems.add(None, Rule::Limit, "a plan has at least one step".into());
    }
    if spec.steps.len() > limits::STEPS {
        let message = format!("the plan has {} steps; at most {} are taken", spec.steps.len(), limits::STEPS);
        problems.add(None, Rule::Limit, message);
        return false;
    }
    let edges: usize = spec.steps.iter().map(|step| step.after.len()).sum();
    if edges > limits::EDGES {
        let message = format!("the plan has {edges} dependencies; at most {} are taken", limits::EDGES);
        problems.add(None, Rule::Limit, message);
        return false;
    }
    true
}

/// What can be said of the plan and of each step without looking at the others. False: some input is too large or
/// too deep to look further.
pub(super) fn form(spec: &PlanSpec, problems: &mut Problems) -> bool {
    named(&spec.workflow, "the workflow", None, problems);
    titled(spec.title.as_deref(), "the title", None, problems);
    for retry in [&spec.retry, &spec.undo_retry].into_iter().flatten() {
        patience(retry, None, problems);
    }
    if spec.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
        problems.add(None, Rule::Patience, NO_TIME.into());
    }
    if let Some(commit) = &spec.commit {
        if commit.within.is_some() != commit.then.is_some() {
            let message = "its \"commit\" states one of \"within\" and \"then\"; they belong together";
            problems.add(None, Rule::Commit, message.into());
        }
        if let Some(signal) = &commit.signal {
            named(signal, "the signal that commits", None, problems);
        }
        if commit.then == Some(Ending::RollBack)
            && let Some(step) = spec.steps.iter().find(|step| step.point_of_no_return)
        {
            let message = "is a point of no return, but the plan's \"commit\" rolls it back by itself";
            problems.add(Some(&step.name), Rule::Commit, message.into());
        }
    } else if let Some(step) = spec.steps.iter().find(|step| step.finalize) {
        let message = "runs when the run is committed, but the plan has no \"commit\"";
        problems.add(Some(&step.name), Rule::Commit, message.into());
    }
    let mut fit = true;
    for step in &spec.steps {
        fit &= form_of_step(step, problems);
    }
    fit
}

const NO_TIME: &str = "has a timeout of zero: no attempt could ever end well";

fn form_of_step(step: &StepSpec, problems: &mut Problems) -> bool {
    let name = Some(step.name.as_str());
    named(&step.name, "the step", name, problems);
    titled(step.title.as_deref(), "the title", name, problems);
    for (what, pool) in [
        ("its pool", step.pool.as_ref()),
        ("its undo's pool", step.undo.as_ref().and_then(|undo| undo.pool.as_ref())),
    ] {
        if let Some(pool) = pool {
            named(pool, what, name, problems);
        }
    }
    if step.pool.is_some() && kind(&step.activity) != Kind::Call {
        problems.add(name, Rule::Form, "names a \"pool\", but it calls nobody".into());
    }
    // A wait leaves nothing behind, and what a commit has finished is not undone.
    let needs_undo = kind(&step.activity) == Kind::Call && !step.finalize;
    match (&step.undo, &step.nothing_to_undo) {
        (Some(_), None) if !needs_undo => {
            problems.add(
                name,
                Rule::Undo,
                "has an \"undo\", but there is nothing to undo in such a step".into(),
            );
        }
        (None, None) if !needs_undo => {}
        (None, None) => problems.add(
            name,
            Rule::Undo,
            "names no undo; give \"undo\", or say in \"nothing_to_undo\" why nothing has to be undone".into(),
        ),
        (Some(_), Some(_)) => {
            problems.add(
                name,
                Rule::Undo,
                "has both an \"undo\" and a reason for \"nothing_to_undo\"".into(),
            );
        }
        (None, Some(reason)) if reason.trim().is_empty() => {
            problems.add(name, Rule::Undo, "gives an empty reason for \"nothing_to_undo\"".into());
        }
        (None, Some(reason)) => titled(Some(reason), "the reason", name, problems),
        (Some(_), None) => {}
    }
    let mut fit = true;
    let inputs = std::iter::once(("input", &step.input))
        .chain(step.undo.as_ref().map(|undo| ("undo input", &undo.input)));
    for (what, input) in inputs {
        if let Some((at, wrong)) = unfit(input, limits::DEPTH) {
            problems.add(name, Rule::Limit, format!("its {what} at \"{}\" {wrong}", clipped(&at)));
            fit = false;
            continue;
        }
        let bytes = Json::of(input).as_str().len();
        if bytes > limits::INPUT_BYTES {
            let message = format!("its {what} has {bytes} bytes; at most {} are taken", limits::INPUT_BYTES);
            problems.add(name, Rule::Limit, message);
            fit = false;
        }
    }
    for retry in
        [step.retry.as_ref(), step.undo.as_ref().and_then(|undo| undo.retry.as_ref())].into_iter().flatten()
    {
        patience(retry, name, problems);
    }
    for timeout in [step.timeout, step.undo.as_ref().and_then(|undo| undo.timeout)].into_iter().flatten() {
        if timeout.0.is_zero() {
            problems.add(name, Rule::Patience, NO_TIME.into());
        }
    }
    fit
}

fn named(text: &str, what: &str, step: Option<&str>, problems: &mut Problems) {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts || text.len() > limits::NAME || !text.chars().all(good) {
        let message = format!(
            "{what} has the name \"{}\"; a name starts with a letter or a digit, goes on with letters, digits, '-', '_' or '.', and has at most {} characters",
            clipped(text),
            limits::NAME
        );
        problems.add(step, Rule::Name, message);
    }
}

fn titled(text: Option<&str>, what: &str, step: Option<&str>, problems: &mut Problems) {
    let Some(text) = text else { return };
    // Bidirectional marks and line breaks would let a title pretend to be something else on a screen.
    let hostile = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
    };
    if text.chars().any(hostile) {
        problems.add(step, Rule::Name, format!("{what} \"{}\" has control characters", clipped(text)));
    }
    if text.chars().count() > limits::TITLE {
        problems.add(
            step,
            Rule::Limit,
            format!("{what} \"{}\" has more than {} characters", clipped(text), limits::TITLE),
        );
    }
}

fn patience(retry: &Retry, step: Option<&str>, problems: &mut Problems) {
    let mut wrong = |message: &str| problems.add(step, Rule::Patience, format!("its retry {message}"));
    if !retry.factor.is_finite() || retry.factor < 1.0 || retry.factor > 100.0 {
        wrong("has a factor outside 1 to 100");
    }
    if !retry.jitter.is_finite() || !(0.0..=1.0).contains(&retry.jitter) {
        wrong("has a jitter outside 0 to 1");
    }
    if retry.ceiling < retry.first {
        wrong("has a ceiling below its first delay");
    }
    match (retry.attempts, retry.elapsed) {
        (None, None) => wrong("never ends; give \"attempts\", \"elapsed\" or both"),
        (Some(0), _) => wrong("allows no attempt at all; 1 means: try once and never again"),
        _ => {}
    }
}
