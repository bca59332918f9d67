//! A moment of what `fuzz/` does for hours: what is right, cut and bent in places.

use backstay_tests::decoders;
use proptest::prelude::*;

/// What such texts are made of.
const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\",
    "\n",
    "\n  ",
    "  - ",
    " ",
    "null",
    "true",
    "-1",
    "0",
    "1e400",
    "1e-400",
    "9223372036854775808",
    "18446744073709551616",
    "\\u0000",
    "\\ud800",
    "\\n",
    "\u{0}",
    "\u{202e}",
    "é",
    "$output",
    "$from",
    "name",
    "steps",
    "after",
    "input",
    "undo",
    "activity",
    "each",
    "when",
    "as",
    "workflow",
    "plan",
    "inputs",
    "${",
    "${{",
    "}}",
    "&a",
    "*a",
    "<<",
    "!!",
    "|",
    ">",
    "#",
    "---",
    "a",
    "b",
    "do",
    "1s",
    "99999999999999999y",
    "signal",
    "error",
    "outcome",
    "succeeded",
    "started a forward 1 1 {}",
    "failed",
    "why",
    "kind",
    "at",
    "id",
];

#[derive(Clone, Debug)]
struct Bend {
    at: prop::sample::Index,
    gone: usize,
    put: &'static str,
}

fn bends() -> impl Strategy<Value = Vec<Bend>> {
    let bend = (any::<prop::sample::Index>(), 0usize..6, prop::sample::select(WORDS));
    prop::collection::vec(bend.prop_map(|(at, gone, put)| Bend { at, gone, put }), 0..6)
}

fn bent(text: &str, bends: &[Bend]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for Bend { at, gone, put } in bends {
        let at = at.index(chars.len() + 1);
        let end = (at + gone).min(chars.len());
        chars.splice(at..end, put.chars());
    }
    chars.into_iter().collect()
}

const JOURNAL: &str = r#"claimed   0 0 {"node":"n","reason":"free"}
started a forward 0 1 {}
checkpointed a forward 0 1 {"job":7}
progressed a forward 0 1 {"percent":50.0,"note":"half"}
resource a forward 0 1 {"kind":"disk","name":"d","fate":"present"}
succeeded a forward 0 1 {"y":1}
started b forward 0 1 {"signal":"go"}
acted   0 0 {"id":"018f3f10-0000-7000-8000-000000000001","who":"anna","why":"so","verb":{"roll_back":{}}}
claimed   0 0 {"node":"m","reason":"lost_lease"}
rolling_back   0 0 {"why":"it failed"}
started a undo 0 1 {"it":{"y":1}}
failed a undo 0 1 {"error":{"code":"c","message":"m","retryable":true,"applied":"maybe"},"retry_at":"2026-01-01T00:00:00Z"}
started a undo 0 2
resource a undo 0 2 {"kind":"disk","name":"d","fate":"gone"}
succeeded a undo 0 2 null
finished   0 0 {"outcome":"rolled_back"}"#;

const WORKFLOW: &str = r#"workflow: greet
title: Greet ${inputs.name}
input:
  disks: { type: array, items: { type: string }, default: [a] }
  name: string
steps:
  - name: first
    activity: do
    when: inputs.name != 'x'
    nothing_to_undo: it looks
  - each: inputs.disks
    as: disk
    name: copy
    key: disk
    order: one_by_one
    activity: do
    after: [first]
    input: { it: "${disk}", n: 1.5, long: "${inputs.name | length} of ${disk}" }
    undo: { activity: undo, input: { it: { $output: /id } } }
"#;

const ACTION: &str = r#"{"id":"018f3f10-0000-7000-8000-000000000001","who":"anna","why":"so","verb":{"retry":{"step":"a","undo":false}}}"#;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, max_shrink_iters: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_of_anything_is_judged(bends in bends(), text in "\\PC{0,60}") {
        decoders::plan(&bent(decoders::PLAN, &bends));
        decoders::plan(&bent(ACTION, &bends));
        decoders::plan(&text);
    }

    #[test]
    fn a_journal_of_anything_is_read_or_refused(
        bends in bends(), lines in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let _ = decoders::journal(&bent(JOURNAL, &bends));
        // Real events in any order are worse than bent ones.
        let all: Vec<_> = JOURNAL.lines().collect();
        let mixed: Vec<_> = lines.iter().map(|line| *line.get(&all)).collect();
        let _ = decoders::journal(&mixed.join("\n"));
    }

    #[test]
    fn a_workflow_of_anything_is_read_or_refused(bends in bends(), text in "\\PC{0,60}") {
        decoders::workflow(&bent(WORKFLOW, &bends));
        decoders::workflow(&text);
    }

    #[test]
    fn yaml_and_json_never_disagree(bends in bends(), text in "\\PC{0,60}") {
        decoders::input(&bent(decoders::PLAN, &bends));
        decoders::input(&bent("{\"a\": [1, -2.5, \"x\\u00e9\", null, true], \"b\": {\"c\": 1e3}}", &bends));
        decoders::input(&text);
    }
}

#[test]
fn what_is_bent_is_right_at_first() {
    // Otherwise all of the above would only see refusals.
    assert!(decoders::plan(decoders::PLAN) && decoders::plan(ACTION) && decoders::workflow(WORKFLOW));
    let state = decoders::journal(JOURNAL).unwrap();
    assert!(state.is_over(), "{:?}", state.status());
}
