//! What reads plans, journals and workflows, fed with anything: by `fuzz/` for hours, by `tests/tests/it/decoders.rs` for a
//! moment. Nothing may panic; what is taken is read back as what it was.

use std::sync::Arc;

use backstay_engine::machine::checker::{Case, check_run};
use backstay_engine::machine::{
    Action, ActivitySpec, Catalog, ClaimNo, Direction, Journaled, Json, Plan, Row, RunId, State, Time,
    decide, event, idempotency_key, runbook, strict_json,
};
use backstay_engine::{Effect, trace};
use backstay_workflows::{Template, Workflow, read_input};
use serde_json::{Value, json};
use uuid::Uuid;

/// One activity under every name: it takes and gives anything.
struct Anything(ActivitySpec);

impl Anything {
    fn new() -> Self {
        let effect = Effect { probed: true, refuses_duplicates: true, ..Effect::default() };
        Self(ActivitySpec { name: "do".into(), input: json!({}), output: json!({}), effect, pool: None })
    }
}

impl Catalog for Anything {
    fn activity(&self, _: &str) -> Option<&ActivitySpec> {
        Some(&self.0)
    }

    fn names(&self) -> Vec<&str> {
        vec!["do"]
    }
}

/// A plan, or an action, in JSON, as callers send it. Gives whether it is one.
pub fn plan(text: &str) -> bool {
    let _ = strict_json(text.as_bytes(), 64);
    let mut taken = false;
    if let Ok(plan) = Plan::check_json(text, &Anything::new()) {
        taken = true;
        let stored = Plan::from_submitted(plan.submitted()).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(stored.hash(), plan.hash(), "what is stored is what was checked: {text}");
        if plan.len() <= 20 {
            assert!(
                plan.to_svg().starts_with("<svg")
                    && !plan.to_dot().is_empty()
                    && !plan.to_mermaid().is_empty()
            );
            for (step, _) in plan.steps() {
                let _ = plan.if_fails(step);
            }
        }
    }
    if let Ok(action) = serde_json::from_str::<Action>(text) {
        taken = true;
        let again =
            serde_json::to_string(&action).ok().and_then(|text| serde_json::from_str::<Action>(&text).ok());
        assert_eq!(again.as_ref(), Some(&action), "{text}");
    }
    taken
}

/// The plan whose journal is read.
pub const PLAN: &str = r#"{"workflow": "w", "steps": [
    {"name": "a", "activity": "do", "undo": {"activity": "undo", "input": {"it": {"$output": ""}}}},
    {"name": "b", "activity": "wait", "input": {"signal": "go"}, "after": ["a"], "nothing_to_undo": "it waits"},
    {"name": "c", "activity": "do", "input": {"x": {"$output": "a/y"}}, "after": ["a", "b"], "undo": {"activity": "undo"}}]}"#;

/// Rows of a journal, a line each: `kind step undo generation attempt body`, as of a database that somebody has been at.
/// Gives what they come to, if they are a history.
pub fn journal(text: &str) -> Result<State, String> {
    let plan = Plan::check_json(PLAN, &Anything::new()).unwrap_or_else(|error| panic!("{error}"));
    let (run, mut claim) = (RunId(Uuid::from_u128(1)), 0);
    let row = |seq, kind| Row {
        seq,
        claim: 0,
        epoch: 1,
        at: Time::UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(seq).unwrap_or(0)),
        kind,
        step: None,
        undo: false,
        generation: 0,
        attempt: 0,
        key: None,
        body: None,
        seal: None,
    };
    let mut rows = vec![Row { body: Some(plan.submitted().clone()), ..row(1, "submitted") }];
    for line in text.lines().take(64) {
        let mut words = line.splitn(6, ' ');
        let Some(kind) = words.next().and_then(event::kind) else { continue };
        let step = words.next().filter(|step| !step.is_empty()).map(Arc::from);
        let undo = words.next() == Some("undo");
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(1);
        let (generation, attempt) = (number(), number());
        let body = words.next().and_then(|body| Json::parse_text(body).ok());
        let half = if undo { Direction::Undo } else { Direction::Forward };
        let generation_of_key = u32::try_from(generation).unwrap_or(0);
        let key = Some(idempotency_key(run, step.as_deref().unwrap_or_default(), half, generation_of_key));
        claim += ClaimNo::from(kind == "claimed");
        let next = rows.len() as i64 + 1;
        rows.push(Row { claim, step, undo, generation, attempt, key, body, ..row(next, kind) });
    }
    for row in &rows {
        if let Ok(journaled) = Journaled::from_row(row, &plan) {
            let again = journaled.to_row(&plan);
            let read = Journaled::from_row(&again, &plan);
            assert_eq!(
                read.as_ref().map(|read| &read.event),
                Ok(&journaled.event),
                "{row:?} became {again:?}"
            );
        }
    }
    // Every beginning of it is a history: read, refused, or gone on with.
    for end in 1..=rows.len() {
        if let Some(rows) = rows.get(..end)
            && let Ok(state) = State::from_rows(run, rows)
        {
            let now = state.at().unwrap_or(Time::UNIX_EPOCH);
            let _ = (decide(&state, now, 8), runbook(&state, now), state.waits_for());
        }
    }
    let _ = check_run(&Case::of(run, &rows));
    State::from_rows(run, &rows)
}

/// A workflow that is a file. Gives whether it is one.
pub fn workflow(text: &str) -> bool {
    let Ok(template) = Template::read(text) else { return false };
    assert_eq!(template.source(), text);
    let _ = (template.input_schema(), template.check(&Anything::new()));
    for input in [json!({}), json!({ "disks": ["a", "b"], "name": "x" }), Value::Null] {
        let _ = template.prepare(&input);
    }
    true
}

/// An input, in YAML or JSON. Where both read it, they read the same.
pub fn input(text: &str) {
    if let (Ok(read), Ok(json)) = (read_input(text), strict_json(text.as_bytes(), 40)) {
        assert_eq!(read, json, "{text}");
    }
    let _ = trace::parse(text);
}
