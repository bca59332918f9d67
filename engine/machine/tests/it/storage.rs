//! A plan that was stored is the plan that was checked, whatever the release that reads it would say.

use std::sync::Arc;

use backstay_machine::plan::{Effect, OnFailure, Retry, Span, StepSpec, UndoSpec};
use backstay_machine::*;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Activities, Dice, Sim, checked, spec, step};

struct Nobody;

impl Catalog for Nobody {
    fn activity(&self, _: &str) -> Option<&ActivitySpec> {
        None
    }
    fn names(&self) -> Vec<&str> {
        Vec::new()
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop::num::f64::NORMAL.prop_filter("kept exactly", |f| f.abs() < 1e15).prop_map(Value::from),
        (0.0f64..1.0).prop_map(Value::from),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number,
        "[^\u{0}]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z~/\"é]{0,4}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_span() -> impl Strategy<Value = Span> {
    prop_oneof![
        (0u64..10_000_000_000).prop_map(Span::secs),
        (0u64..100_000_000).prop_map(|nanos| Span(std::time::Duration::from_nanos(nanos))),
    ]
}

prop_compose! {
    fn any_retry()(
        first in any_span(), more in any_span(), factor in 1.0f64..100.0, jitter in 0.0f64..=1.0,
        attempts in prop::option::of(1u32..), elapsed in any_span(), bounded: bool,
    ) -> Retry {
        let elapsed = (bounded || attempts.is_none()).then_some(elapsed);
        Retry { first, factor, ceiling: Span(first.0 + more.0), jitter, attempts, elapsed }
    }
}

prop_compose! {
    fn any_step()(
        input in any_json(), undo_input in any_json(), retry in prop::option::of(any_retry()),
        undo_retry in prop::option::of(any_retry()), timeout in any_span(), delay in any_span(),
        title in prop::option::of("[a-zA-Z \"<>\\\\]{0,20}"), effect in any::<[bool; 3]>(), continues: bool,
    ) -> StepSpec {
        let timeout = Some(Span(timeout.0 + std::time::Duration::from_nanos(1)));
        StepSpec {
            input,
            undo: Some(UndoSpec { activity: "undo".into(), pool: None, input: undo_input, retry: undo_retry, timeout }),
            retry,
            title,
            timeout,
            on_failure: if continues { OnFailure::Continue } else { OnFailure::Hold },
            effect: Some(Effect { longest_delay: delay, probed: effect[0], refuses_duplicates: effect[1], at_most_once: effect[2] }),
            ..step("a", &[])
        }
    }
}

fn same(a: &Plan, b: &Plan) {
    assert_eq!(a.hash(), b.hash());
    assert_eq!(a.text(), b.text());
    assert_eq!(a.submitted(), b.submitted());
    assert_eq!(a.spec(), b.spec());
    assert_eq!(a.order(), b.order());
    assert_eq!(a.activities(), b.activities());
    assert_eq!(
        format!("{:?}", a.steps().collect::<Vec<_>>()),
        format!("{:?}", b.steps().collect::<Vec<_>>())
    );
}

/// What a database that keeps JSON its own way gives back: other blanks, other order of keys.
fn reordered(json: &Json) -> Json {
    fn turned(value: &Value, out: &mut String) {
        match value {
            Value::Object(map) => {
                out.push_str("{ ");
                for (n, (key, item)) in map.iter().rev().enumerate() {
                    out.push_str(if n > 0 { ", " } else { "" });
                    out.push_str(&Value::from(key.as_str()).to_string());
                    out.push_str(" : ");
                    turned(item, out);
                }
                out.push('}');
            }
            Value::Array(items) => {
                out.push_str("[ ");
                for (n, item) in items.iter().enumerate() {
                    out.push_str(if n > 0 { " , " } else { "" });
                    turned(item, out);
                }
                out.push(']');
            }
            scalar => out.push_str(&scalar.to_string()),
        }
    }
    let mut out = String::new();
    turned(&json.value(), &mut out);
    Json::parse_text(&out).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_survives_storage_and_being_submitted_again(step in any_step(), settle in any_span()) {
        let mut spec = spec(vec![step]);
        spec.settle_within = Some(settle);
        let plan = checked(spec);
        same(&plan, &Plan::from_submitted(plan.submitted()).unwrap());
        same(&plan, &Plan::from_submitted(&reordered(plan.submitted())).unwrap());
        same(&plan, &Plan::check_json(plan.text().as_str(), &Activities::anything()).unwrap());
    }
}

#[test]
fn a_stored_plan_runs_as_the_checked_one_did() {
    let steps = crate::support::diamond();
    let plan = checked(spec(steps));
    let stored = Plan::from_submitted(plan.submitted()).unwrap();
    let mut stories = Vec::new();
    for plan in [plan, stored] {
        let mut sim = Sim::new(Arc::clone(&plan)).failing("d");
        sim.run(&mut Dice::First);
        stories.push(sim.journal.iter().map(|event| event.to_row(&plan)).collect::<Vec<_>>());
    }
    assert_eq!(stories[0], stories[1]);
}

#[test]
fn a_stored_plan_is_judged_neither_by_the_limits_nor_by_the_activities_of_today() {
    // A release that took longer names, deeper inputs and an activity that nobody has any more.
    let mut spec = checked(spec(vec![step("a", &[])])).spec().clone();
    assert!(Plan::check(spec.clone(), &Nobody).is_err());
    spec.steps[0].name = "a name with blanks ".repeat(20);
    spec.steps[0].activity = "gone".into();
    spec.steps[0].input = (0..60).fold(json!(1), |inner, _| json!([inner]));
    spec.steps[0].timeout = Some(Span::default());
    let text = canonical(&serde_json::to_value(&spec).unwrap());
    let hash = sha(&text);
    let body = Json::parse_text(&format!(r#"{{"hash":"{hash}","plan":{text}}}"#)).unwrap();
    let plan = Plan::from_submitted(&body).unwrap();
    assert_eq!(plan.hash(), hash);
    assert_eq!(plan.spec(), &spec);
}

#[test]
fn who_submitted_a_run_stands_in_its_first_event_and_changes_nothing_else() {
    let plan = checked(spec(crate::support::diamond()));
    let by = Sender { who: "anna \"the\" first".into(), via: Some("r-1".into()), ..Sender::default() };
    let event = Event::Submitted { by: Some(Box::new(by.clone())) };
    let row = Journaled { seq: 1, claim: 0, epoch: Epoch(0), at: Time::UNIX_EPOCH, event: event.clone() }
        .to_row(&plan);
    let body = row.body.as_ref().unwrap();
    let stored = Plan::from_submitted(body).unwrap();
    assert_eq!((stored.hash(), stored.submitted()), (plan.hash(), plan.submitted()));
    let read = Journaled::from_row(&row, &stored).unwrap();
    assert_eq!(read.event, event);
    let state = State::from_rows(RunId::fresh(), std::slice::from_ref(&row)).unwrap();
    assert_eq!(state.sender(), Some(&by));
    // As the releases before wrote it, and as a database may have rewritten it.
    let plain = row_of(&plan, Event::Submitted { by: None });
    assert_eq!(Journaled::from_row(&plain, &stored).unwrap().event, Event::Submitted { by: None });
    let reordered = reordered(body);
    assert_eq!(Plan::from_submitted(&reordered).unwrap().hash(), plan.hash());
    let row = Row { body: Some(reordered), ..row };
    assert_eq!(Journaled::from_row(&row, &stored).unwrap().event, event);
}

fn row_of(plan: &Plan, event: Event) -> Row {
    Journaled { seq: 1, claim: 0, epoch: Epoch(0), at: Time::UNIX_EPOCH, event }.to_row(plan)
}

fn sha(text: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_plan_that_was_changed_where_it_is_stored_is_refused() {
    let plan = checked(spec(vec![step("a", &[])]));
    let text = plan.submitted().as_str().replace("\"name\":\"a\"", "\"name\":\"b\"");
    let error = Plan::from_submitted(&Json::parse_text(&text).unwrap()).unwrap_err();
    assert!(error.to_string().contains("was submitted"), "{error}");
    for broken in
        ["{}", "[]", "null", r#"{"hash":"","plan":null}"#, r#"{"hash":"x","plan":{"workflow":"w"}}"#]
    {
        assert!(Plan::from_submitted(&Json::parse_text(broken).unwrap()).is_err(), "{broken}");
    }
}

#[test]
fn progress_that_is_no_number_does_not_make_a_journal_unreadable() {
    let plan = checked(spec(vec![step("a", &[])]));
    let course = CourseId::forward(plan.find("a").unwrap());
    for (percent, stored) in
        [(f64::NAN, 0.0), (f64::INFINITY, 0.0), (-3.0, 0.0), (33.3, 33.3), (120.0, 100.0)]
    {
        let what = StepEvent::Progressed { percent, note: "on".into() };
        let event = Event::Step { course, generation: 0, attempt: 1, what };
        let journaled = Journaled { seq: 1, claim: 1, epoch: Epoch(1), at: Time::UNIX_EPOCH, event };
        let read = Journaled::from_row(&journaled.to_row(&plan), &plan).unwrap();
        let Event::Step { what: StepEvent::Progressed { percent, .. }, .. } = read.event else { panic!() };
        assert_eq!(percent, stored);
    }
}

#[test]
fn the_end_of_all_times_can_be_journaled() {
    let plan = checked(spec(vec![step("a", &[])]));
    let course = CourseId::forward(plan.find("a").unwrap());
    for at in [Time::MIN_UTC, Time::MAX_UTC] {
        let what = StepEvent::Probed { answer: Answer::Absent, ask_again_at: Some(at) };
        let event = Event::Step { course, generation: 0, attempt: 1, what };
        let journaled = Journaled { seq: 1, claim: 1, epoch: Epoch(1), at, event };
        assert_eq!(Journaled::from_row(&journaled.to_row(&plan), &plan).unwrap(), journaled);
    }
}

#[test]
fn a_row_that_no_release_wrote_is_refused_with_its_reason() {
    let plan = checked(spec(vec![step("a", &[])]));
    let course = CourseId::forward(plan.find("a").unwrap());
    let what = StepEvent::Checkpointed { value: Json::null() };
    let event = Event::Step { course, generation: 0, attempt: 1, what };
    let row = Journaled { seq: 7, claim: 1, epoch: Epoch(1), at: Time::UNIX_EPOCH, event }.to_row(&plan);
    let refused = |change: &dyn Fn(&mut Row)| {
        let mut row = row.clone();
        change(&mut row);
        Journaled::from_row(&row, &plan).unwrap_err().to_string()
    };
    let said = [
        refused(&|row| row.attempt = -1),
        refused(&|row| row.generation = -1),
        refused(&|row| row.step = None),
        refused(&|row| row.step = Some("b".into())),
        refused(&|row| row.body = None),
        refused(&|row| row.kind = "started"),
        refused(&|row| row.kind = "failed"),
        refused(&|row| row.kind = "dreamt"),
    ];
    insta::assert_snapshot!(said.join("\n"), @r#"
    event 7 (checkpointed) cannot be read: its attempt is -1
    event 7 (checkpointed) cannot be read: its generation is -1
    event 7 (checkpointed) cannot be read: it names no step
    event 7 (checkpointed) cannot be read: the plan has no step "b"
    event 7 (checkpointed) cannot be read: it has no body
    event 7 (started) cannot be read: it has no idempotency key
    event 7 (failed) cannot be read: its body is not understood: invalid type: null, expected struct FailedBody at line 1 column 4
    event 7 (dreamt) cannot be read: this release knows no such event; it was written by a newer one, or by hand
    "#);
}
