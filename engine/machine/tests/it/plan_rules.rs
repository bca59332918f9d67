//! What is wrong with a plan, in the words that its author reads.

use std::fmt::Write;

use backstay_machine::plan::{Effect, OnFailure, PlanBuilder, Retry, Rule, Span, UndoSpec, output};
use backstay_machine::*;
use serde_json::{Value, json};

use crate::support::{Activities, spec, step};

/// `make` takes a name and perhaps a size, gives an id; `drop` takes an id that may be null.
fn activities() -> Activities {
    let make = json!({
        "type": "object",
        "properties": { "name": { "type": "string" }, "size": { "type": ["integer", "null"] } },
        "required": ["name"],
    });
    let made = json!({
        "type": "object",
        "properties": { "id": { "type": "string" }, "bytes": { "type": "integer" }, "note": { "type": "string" } },
        "required": ["id", "bytes"],
    });
    let drop = json!({ "type": "object", "properties": { "id": { "type": ["string", "null"] } }, "required": ["id"] });
    let effect = Effect { longest_delay: Span::secs(30), at_most_once: true, ..Effect::default() };
    Activities::anything().with("make", make, made, effect).with("drop", drop, json!({}), Effect::default())
}

fn problems(text: &Value) -> String {
    match Plan::check_json(&text.to_string(), &activities()) {
        Ok(_) => "taken".into(),
        Err(error) => error.problems.iter().fold(String::new(), |mut all, problem| {
            let _ = writeln!(all, "{problem}");
            all
        }),
    }
}

/// A plan of steps that are right but for what is said.
fn of(steps: Value) -> Value {
    let mut steps = steps;
    for step in steps.as_array_mut().unwrap() {
        let step = step.as_object_mut().unwrap();
        if !step.contains_key("undo") && !step.contains_key("why") {
            step.entry("nothing_to_undo").or_insert("it only looks".into());
        }
        step.remove("why");
        step.entry("activity").or_insert("do".into());
    }
    json!({ "workflow": "test", "steps": steps })
}

#[test]
fn names_are_unique_and_plain() {
    insta::assert_snapshot!(problems(&of(json!([{ "name": "a" }, { "name": "a" }]))), @r#"step "a" [name]: is the name of more than one step"#);
    insta::assert_snapshot!(problems(&of(json!([
        { "name": "" }, { "name": "-a" }, { "name": "a b" }, { "name": "a/b" }, { "name": "\u{202e}evil" },
    ]))), @r#"
    step "" [name]: the step has the name ""; a name starts with a letter or a digit, goes on with letters, digits, '-', '_' or '.', and has at most 100 characters
    step "-a" [name]: the step has the name "-a"; a name starts with a letter or a digit, goes on with letters, digits, '-', '_' or '.', and has at most 100 characters
    step "a b" [name]: the step has the name "a b"; a name starts with a letter or a digit, goes on with letters, digits, '-', '_' or '.', and has at most 100 characters
    step "a/b" [name]: the step has the name "a/b"; a name starts with a letter or a digit, goes on with letters, digits, '-', '_' or '.', and has at most 100 characters
    step "\u{202e}evil" [name]: the step has the name "\u{202e}evil"; a name starts with a letter or a digit, goes on with letters, digits, '-', '_' or '.', and has at most 100 characters
    "#);
    let mut plan = of(json!([{ "name": "a" }]));
    plan["workflow"] = json!("two words");
    plan["title"] = json!("a\u{7}bell");
    insta::assert_snapshot!(problems(&plan), @r#"
    plan [name]: the workflow has the name "two words"; a name starts with a letter or a digit, goes on with letters, digits, '-', '_' or '.', and has at most 100 characters
    plan [name]: the title "a\u{7}bell" has control characters
    "#);
}

#[test]
fn a_dependency_is_a_step_of_the_plan_once() {
    insta::assert_snapshot!(problems(&of(json!([
        { "name": "a" }, { "name": "b", "after": ["a", "c", "a"] },
    ]))), @r#"
    step "b" [dependency]: comes after "c", which is no step of this plan
    step "b" [dependency]: names a twice in "after"
    "#);
}

#[test]
fn a_circle_is_named_and_no_longer_than_it_must_be() {
    insta::assert_snapshot!(problems(&of(json!([{ "name": "a", "after": ["a"] }]))), @r#"step "a" [cycle]: the steps wait for each other in a circle: a -> a"#);
    insta::assert_snapshot!(problems(&of(json!([
        { "name": "start" },
        { "name": "c", "after": ["b", "start"] }, { "name": "a", "after": ["c", "long"] }, { "name": "b", "after": ["a"] },
        { "name": "long", "after": ["longer"] }, { "name": "longer", "after": ["b"] },
        { "name": "behind", "after": ["c"] },
    ]))), @r#"step "c" [cycle]: the steps wait for each other in a circle: c -> a -> b -> c"#);
}

#[test]
fn a_binding_reads_a_step_that_comes_before() {
    let reads = |text: &str| json!({ "x": [0, { "$output": text }] });
    insta::assert_snapshot!(problems(&of(json!([
        { "name": "a", "input": reads("b/id") },
        { "name": "b", "input": reads("nobody/id") },
        { "name": "c", "input": reads("c/id") },
        { "name": "d", "input": reads("/id") },
        { "name": "e", "input": { "$output": 7 } },
        { "name": "f", "input": { "$output": "a", "and": "more" } },
        { "name": "g", "undo": { "activity": "undo", "input": reads("a/id") } },
    ]))), @r#"
    step "a" [binding]: its input at "/x/1": reads the output of b, but does not come after it; add it to "after"
    step "b" [binding]: its input at "/x/1": reads the output of "nobody", which is no step of this plan
    step "c" [binding]: its input at "/x/1": reads its own output
    step "d" [binding]: its input at "/x/1": "/id" names no step; write "step/field"
    step "e" [binding]: its input at "": "$output" stands alone in its object, with a text such as "step/field"
    step "f" [binding]: its input at "": "$output" stands alone in its object, with a text such as "step/field"
    step "g" [binding]: its undo input at "/x/1": reads the output of a, but does not come after it; add it to "after"
    "#);
    // Over any number of steps between, and in an undo also its own step's, by either name.
    let chain = json!([
        { "name": "a" }, { "name": "b", "after": ["a"] },
        { "name": "c", "after": ["b"], "input": reads("a/id"), "undo": {
            "activity": "undo", "input": { "own": { "$output": "/id" }, "c": { "$output": "c/id" }, "a": { "$output": "a" } },
        } },
    ]);
    assert_eq!(problems(&of(chain)), "taken");
}

#[test]
fn an_input_fits_its_schema_and_so_does_what_is_bound() {
    insta::assert_snapshot!(problems(&of(json!([
        { "name": "a", "activity": "make", "input": {} },
        { "name": "b", "activity": "make", "input": { "name": 7 } },
        { "name": "c", "activity": "make", "input": { "name": "x", "sise": 7 } },
    ]))), @r#"
    step "a" [input]: its input at "": "name" is a required property
    step "b" [input]: its input at "/name": 7 is not of type "string"
    step "c" [input]: its input at "/sise": is no field of this input; there are name, size
    "#);
    let reads = |text: &str| json!({ "$output": text });
    insta::assert_snapshot!(problems(&of(json!([
        { "name": "a", "activity": "make", "input": { "name": "x" } },
        { "name": "b", "activity": "make", "after": ["a"], "input": { "name": reads("a/uuid") } },
        { "name": "c", "activity": "make", "after": ["a"], "input": { "name": reads("a/bytes") } },
        { "name": "d", "activity": "make", "after": ["a"], "input": { "name": reads("a/note") } },
        { "name": "e", "activity": "make", "after": ["a"], "input": { "name": reads("a/id"), "size": reads("a/id") } },
        { "name": "f", "activity": "make", "after": ["a"], "input": { "name": "x", "sise": reads("a/bytes") } },
    ]))), @r#"
    step "b" [binding]: its input at "/name" reads "/uuid" of a, but the output of make has no such place
    step "c" [binding]: its input at "/name" reads "a/bytes": it may give integer, but string is wanted
    step "d" [binding]: its input at "/name" reads "a/note": it may be missing, and then null stands here, which the activity does not take
    step "e" [binding]: its input at "/size" reads "a/id": it may give string, but integer or null is wanted
    step "f" [input]: its input at "/sise": is no field of this input; there are name, size
    "#);
    assert_eq!(
        problems(&of(json!([
            { "name": "a", "activity": "make", "input": { "name": "x" } },
            { "name": "b", "activity": "make", "after": ["a"], "input": { "name": reads("a/id"), "size": reads("a/bytes") },
              "undo": { "activity": "drop", "input": { "id": reads("/id") } } },
        ]))),
        "taken"
    );
}

#[test]
fn what_may_never_come_must_be_taken_as_null() {
    let reads = |text: &str| json!({ "$output": text });
    // Of a step that may fail and be gone on from; and of the step whose undo it is.
    insta::assert_snapshot!(problems(&of(json!([
        { "name": "a", "activity": "make", "input": { "name": "x" }, "on_failure": "continue" },
        { "name": "b", "activity": "make", "after": ["a"], "input": { "name": reads("a/id") },
          "undo": { "activity": "make", "input": { "name": reads("/id") } } },
    ]))), @r#"
    step "b" [binding]: its input at "/name" reads "a/id": the output may be missing, and then null stands here, which the activity does not take
    step "b" [binding]: its undo input at "/name" reads "b/id": the output may be missing, and then null stands here, which the activity does not take
    "#);
}

#[test]
fn an_activity_exists() {
    insta::assert_snapshot!(problems(&of(json!([
        { "name": "a", "activity": "mkae", "undo": { "activity": "rdop" } },
    ]))), @r#"
    step "a" [activity]: its step runs "mkae", which is no activity here; there are do, drop, make, undo
    step "a" [activity]: its undo runs "rdop", which is no activity here; there are do, drop, make, undo
    "#);
}

#[test]
fn a_step_says_how_it_is_undone() {
    insta::assert_snapshot!(problems(&of(json!([
        { "name": "a", "why": "missing" },
        { "name": "b", "nothing_to_undo": "x", "undo": { "activity": "undo" } },
        { "name": "c", "nothing_to_undo": "  " },
        { "name": "d", "nothing_to_undo": "a\nb" },
    ]))), @r#"
    step "a" [undo]: names no undo; give "undo", or say in "nothing_to_undo" why nothing has to be undone
    step "b" [undo]: has both an "undo" and a reason for "nothing_to_undo"
    step "c" [undo]: gives an empty reason for "nothing_to_undo"
    step "d" [name]: the reason "a\nb" has control characters
    "#);
}

#[test]
fn patience_comes_to_an_end() {
    insta::assert_snapshot!(problems(&of(json!([
        { "name": "a", "timeout": "0s" },
        { "name": "b", "retry": { "attempts": 0 } },
        { "name": "c", "retry": { "attempts": null } },
        { "name": "d", "retry": { "factor": 0.5, "jitter": 2, "first": "2m" } },
        { "name": "e", "undo": { "activity": "undo", "timeout": "0s", "retry": { "factor": 1000 } } },
    ]))), @r#"
    step "a" [patience]: has a timeout of zero: no attempt could ever end well
    step "b" [patience]: its retry allows no attempt at all; 1 means: try once and never again
    step "c" [patience]: its retry never ends; give "attempts", "elapsed" or both
    step "d" [patience]: its retry has a factor outside 1 to 100
    step "d" [patience]: its retry has a jitter outside 0 to 1
    step "d" [patience]: its retry has a ceiling below its first delay
    step "e" [patience]: its retry has a factor outside 1 to 100
    step "e" [patience]: has a timeout of zero: no attempt could ever end well
    "#);
}

#[test]
fn a_step_claims_no_more_of_its_effect_than_its_activity_can_keep() {
    insta::assert_snapshot!(problems(&of(json!([
        { "name": "a", "activity": "make", "input": { "name": "x" }, "effect": { "probed": true, "refuses_duplicates": true } },
    ]))), @r#"
    step "a" [effect]: says that its effect can be probed, but the activity make has no probe
    step "a" [effect]: says that its target refuses duplicates; the activity make does not
    "#);
    let plan = of(
        json!([{ "name": "a", "activity": "make", "input": { "name": "x" }, "effect": { "longest_delay": "1s" } }]),
    );
    let plan = Plan::check_json(&plan.to_string(), &activities()).unwrap();
    let effect = plan.step(plan.find("a").unwrap()).effect;
    assert_eq!((effect.longest_delay, effect.at_most_once), (Span::secs(30), true));
}

/// An activity may take from its input how it is probed.
#[test]
fn an_activity_that_is_told_how_to_look_can_look_only_where_it_is_told() {
    let asked = json!({ "type": "object", "x-probe": "probe", "properties": { "probe": { "type": ["object", "null"] } } });
    let able = Effect { probed: true, ..Effect::default() };
    let catalog = Activities::anything().with("ask", asked, json!({}), able);
    let check = |step: Value| Plan::check_json(&of(json!([step])).to_string(), &catalog);
    for (input, probed) in
        [(json!({ "probe": {} }), true), (json!({}), false), (json!({ "probe": null }), false)]
    {
        let plan = check(json!({ "name": "a", "activity": "ask", "input": input })).unwrap();
        assert_eq!(plan.step(plan.find("a").unwrap()).effect.probed, probed, "{input}");
    }
    let wrong = check(json!({ "name": "a", "activity": "ask", "effect": { "probed": true } })).unwrap_err();
    assert!(wrong.to_string().contains("has no probe where its input has no \"probe\""), "{wrong}");
}

#[test]
fn limits_are_said_with_their_measure() {
    insta::assert_snapshot!(problems(&json!({ "workflow": "w", "steps": [] })), @r"plan [limit]: a plan has at least one step");
    let deep = (0..64).fold(json!(1), |inner, _| json!([inner]));
    insta::assert_snapshot!(problems(&of(json!([
        { "name": "a", "input": { "x": deep } },
        { "name": "b", "input": { "x": "y".repeat(300_000) } },
        { "name": "c", "input": { "x": ["a\u{0}b"] } },
        { "name": "d", "title": "t".repeat(301) },
        { "name": "e", "input": { "n": 1e300 } },
    ]))), @r#"
    step "a" [limit]: its input at "/x/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0" is nested more than 32 deep
    step "b" [limit]: its input has 300008 bytes; at most 262144 are taken
    step "c" [limit]: its input at "/x/0" holds the character U+0000, which Postgres cannot store as text
    step "d" [limit]: the title "tttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttt…" has more than 300 characters
    step "e" [limit]: its input at "/n" is the number 1e+300, which cannot be kept exactly; write it as text
    "#);
}

#[test]
fn text_that_is_no_plan_is_refused_with_its_place() {
    let check = |text: &str| Plan::check_json(text, &activities()).unwrap_err().to_string();
    insta::assert_snapshot!(check(""), @r"
    the plan was not taken: 1 problem(s)
      plan [form]: this is not a plan: EOF while parsing a value at line 1 column 0
    ");
    insta::assert_snapshot!(check("{\n \"workflow\": \"w\",\n \"stepz\": []}"), @r"
    the plan was not taken: 1 problem(s)
      plan [form]: this is not a plan: unknown field `stepz`, expected one of `workflow`, `title`, `retry`, `undo_retry`, `timeout`, `settle_within`, `commit`, `drift_after`, `parent`, `override_alone`, `steps` at line 3 column 8
    ");
    insta::assert_snapshot!(check(r#"{"workflow": "w", "steps": [{"name": "a", "activity": "do", "timeout": "soon"}]}"#), @r#"
    the plan was not taken: 1 problem(s)
      plan [form]: this is not a plan: "soon" is not a length of time such as "30s" or "5m": expected number at 0 at line 1 column 78
    "#);
    insta::assert_snapshot!(check(r#"{"workflow": "w", "steps": [{"name": "a", "activity": "do", "input": {"x": {"y": 1, "\u0079": 2}}}]}"#), @r#"
    the plan was not taken: 1 problem(s)
      plan [form]: this is not a plan: the key "y" stands twice in one object at line 1 column 92
    "#);
    insta::assert_snapshot!(check(r#"{"workflow": "w", "workflow": "v", "steps": []}"#), @r"
    the plan was not taken: 1 problem(s)
      plan [form]: this is not a plan: duplicate field `workflow` at line 1 column 28
    ");
    insta::assert_snapshot!(check(r#"{"workflow": "w", "steps": [{"name": "a", "activity": "do", "input": 1e400}]}"#), @r"
    the plan was not taken: 1 problem(s)
      plan [form]: this is not a plan: number out of range at line 1 column 74
    ");
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let plan = json!({
        "workflow": "a b",
        "steps": [
            { "name": "a", "activity": "nobody", "timeout": "0s" },
            { "name": "b", "activity": "make", "after": ["c", "x"], "input": { "name": { "$output": "y/id" }, "sise": 1 }, "nothing_to_undo": "n" },
            { "name": "c", "activity": "make", "after": ["b"], "input": {}, "nothing_to_undo": "n" },
        ],
    });
    let error = Plan::check_json(&plan.to_string(), &activities()).unwrap_err();
    insta::assert_snapshot!(error, @r#"
    the plan was not taken: 9 problem(s)
      plan [name]: the workflow has the name "a b"; a name starts with a letter or a digit, goes on with letters, digits, '-', '_' or '.', and has at most 100 characters
      step "a" [undo]: names no undo; give "undo", or say in "nothing_to_undo" why nothing has to be undone
      step "a" [patience]: has a timeout of zero: no attempt could ever end well
      step "b" [dependency]: comes after "x", which is no step of this plan
      step "b" [cycle]: the steps wait for each other in a circle: b -> c -> b
      step "b" [binding]: its input at "/name": reads the output of "y", which is no step of this plan
      step "a" [activity]: its step runs "nobody", which is no activity here; there are do, drop, make, undo
      step "b" [input]: its input at "/sise": is no field of this input; there are name, size
      step "c" [input]: its input at "": "name" is a required property
    "#);
    let rules: std::collections::BTreeSet<_> = error.problems.iter().map(|p| p.rule.to_string()).collect();
    assert_eq!(rules.len(), 8, "{rules:?}");
}

#[test]
fn ten_thousand_wrong_steps_are_counted_and_a_hundred_named() {
    let steps = (0..10_000).map(|n| backstay_machine::plan::StepSpec {
        activity: "nobody".into(),
        undo: None,
        ..step(format!("s{n}"), &[])
    });
    let error = Plan::check(spec(steps.collect()), &activities()).unwrap_err();
    assert_eq!(error.problems.len(), 100);
    assert!(error.more >= 9_900);
    assert_eq!(error.problems[0].rule, Rule::Undo);
}

#[test]
fn a_plan_from_the_builder_and_from_json_are_the_same() {
    let mut plan = PlanBuilder::new("trip");
    plan.titled("A trip").retry(Retry::fixed(3, std::time::Duration::from_secs(1)));
    let a = plan
        .step("a", "make")
        .titled("Make it")
        .input(json!({ "name": "x", "size": null }))
        .undone_by("drop", json!({ "id": output("/id") }))
        .done();
    plan.step("b", "do")
        .input(json!({ "it": a.output("/id") }))
        .after([&a])
        .on_failure(OnFailure::Hold)
        .nothing_to_undo("it only looks");
    let built = plan.check(&activities()).unwrap();
    let written = r#"{
        "steps": [
            {"input": {"size": null, "name": "x"}, "undo": {"input": {"id": {"$output": "/id"}}, "activity": "drop"},
             "title": "Make it", "activity": "make", "name": "a"},
            {"nothing_to_undo": "it only looks", "on_failure": "hold", "after": ["a"], "name": "b",
             "input": {"it": {"$output": "a/id"}}, "activity": "do"}
        ],
        "retry": {"attempts": 3, "jitter": 0.0, "ceiling": "1s", "factor": 1.0, "first": "1s"},
        "title": "A trip",
        "workflow": "trip"
    }"#;
    let read = Plan::check_json(written, &activities()).unwrap();
    assert_eq!(built.text(), read.text());
    assert_eq!(built.hash(), read.hash());
}

#[test]
fn every_difference_that_matters_changes_the_hash() {
    let base = of(json!([{ "name": "a" }, { "name": "b", "after": ["a"] }]));
    let hash = |plan: &Value| Plan::check_json(&plan.to_string(), &activities()).unwrap().hash().to_owned();
    let mut seen = vec![hash(&base)];
    for (place, value) in [
        ("/workflow", json!("other")),
        ("/steps/0/name", json!("c")),
        ("/steps/0/input", json!({ "x": 1 })),
        ("/steps/0/input", json!({ "x": 1.0 })),
        ("/steps/1/after", json!([])),
        ("/steps/1/nothing_to_undo", json!("no reason")),
        ("/steps/1/on_failure", json!("hold")),
        ("/steps/1/timeout", json!("5s")),
        ("/steps/1/effect", json!({ "at_most_once": true })),
        ("/steps/1/retry", json!({ "attempts": 2 })),
    ] {
        let mut plan = base.clone();
        let (parent, key) = place.rsplit_once('/').unwrap();
        plan.pointer_mut(parent).unwrap()[key] = value;
        if place == "/steps/0/name" {
            plan["steps"][1]["after"] = json!(["c"]);
        }
        seen.push(hash(&plan));
    }
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all);
}

#[test]
fn an_undo_that_is_written_without_input_gets_an_empty_object() {
    let undo = UndoSpec { activity: "undo".into(), pool: None, input: json!({}), retry: None, timeout: None };
    let read: UndoSpec = serde_json::from_str(r#"{"activity": "undo"}"#).unwrap();
    assert_eq!(read, undo);
}
