//! From the steps of a file to the steps of a plan: `each`, `when`, and what names mean.

use backstay_workflows::Workflow;
use serde_json::json;

use crate::support::{refused, shape, step, template};

/// Steps that do nothing, one a line: what stands here and nothing else matters to the order.
fn steps(input: &str, lines: &str) -> backstay_workflows::Template {
    let mut text = format!("workflow: w\ninput: {input}\nsteps:\n");
    for line in lines.lines() {
        let line = line.replace("do }", "activity: log, input: { text: t }, nothing_to_undo: n }");
        text += &format!("  {line}\n");
    }
    template(&text)
}

#[test]
fn a_step_with_each_becomes_one_for_each_item() {
    let t = steps(
        "{ hosts: \"string[]\" }",
        "- { name: a, each: inputs.hosts, do }\n- { name: b, after: [a], do }",
    );
    assert_eq!(shape(&t, json!({ "hosts": ["x", "y"] })), ["a-0 < ", "a-1 < ", "b < a-0 a-1"]);
    assert_eq!(shape(&t, json!({ "hosts": [] })), ["b < "]);
    let t = steps("{ hosts: \"string[]\" }", "- { name: a, each: inputs.hosts, as: h, key: h, do }");
    assert_eq!(shape(&t, json!({ "hosts": ["x", "y"] })), ["a-x < ", "a-y < "]);
    let t = steps("{}", "- { name: a, each: [x, y], key: item, do }");
    assert_eq!(shape(&t, json!({})), ["a-x < ", "a-y < "]);
}

#[test]
fn within_a_block_a_name_is_the_step_of_the_same_item_and_outside_of_it_all() {
    let t = steps(
        "{ n: \"integer[]\" }",
        "- each: inputs.n\n  steps:\n    - { name: a, do }\n    - { name: b, after: [a], do }\n- { name: c, after: [b], do }",
    );
    assert_eq!(
        shape(&t, json!({ "n": [7, 8] })),
        ["a-0 < ", "b-0 < a-0", "a-1 < ", "b-1 < a-1", "c < b-0 b-1"]
    );
}

#[test]
fn the_step_of_the_same_item_in_another_block_is_named_in_full() {
    let t = steps(
        "{ n: \"integer[]\" }",
        "- { name: a, each: inputs.n, do }\n- { name: b, each: inputs.n, after: [\"a-${index}\"], do }",
    );
    assert_eq!(shape(&t, json!({ "n": [7, 8] })), ["a-0 < ", "a-1 < ", "b-0 < a-0", "b-1 < a-1"]);
    let t = steps("{ n: integer }", "- { name: a, do }\n- { name: b, after: [\"a-${inputs.n}\"], do }");
    assert!(refused(&t, json!({ "n": 1 })).contains("\"a-1\" is no step of the plan for this input"));
}

#[test]
fn blocks_stand_in_blocks() {
    let t = steps(
        "{ vms: { type: array, items: { type: object, properties: { name: string, disks: \"string[]\" } } } }",
        "- each: inputs.vms\n  as: vm\n  key: vm.name\n  steps:\n    - { name: stop, do }\n    - { name: copy, each: vm.disks, as: disk, key: disk, after: [stop], do }\n    - { name: start, after: [copy], do }\n- { name: end, after: [copy], do }",
    );
    let input = json!({ "vms": [{ "name": "web", "disks": ["a", "b"] }, { "name": "db", "disks": [] }] });
    assert_eq!(
        shape(&t, input),
        [
            "stop-web < ",
            "copy-web-a < stop-web",
            "copy-web-b < stop-web",
            "start-web < copy-web-a copy-web-b",
            "stop-db < ",
            // No disk: what the copies would have come after.
            "start-db < stop-db",
            "end < copy-web-a copy-web-b",
        ]
    );
}

#[test]
fn one_by_one_each_item_waits_for_the_one_before() {
    let t = steps(
        "{ n: \"integer[]\", all: { type: boolean, default: true } }",
        "- { name: first, do }\n- each: inputs.n\n  order: one_by_one\n  after: [first]\n  steps:\n    - { name: a, do }\n    - { name: b, do }\n    - { name: c, after: [a], when: inputs.all, do }",
    );
    let all = [
        "first < ",
        "a-0 < first",
        "b-0 < first",
        "c-0 < a-0",
        "a-1 < first b-0 c-0",
        "b-1 < first b-0 c-0",
        "c-1 < a-1",
    ];
    assert_eq!(shape(&t, json!({ "n": [1, 2] })), all);
    let some = ["first < ", "a-0 < first", "b-0 < first", "a-1 < first a-0 b-0", "b-1 < first a-0 b-0"];
    assert_eq!(shape(&t, json!({ "n": [1, 2], "all": false })), some);
    let t = steps("{ n: \"integer[]\" }", "- { name: a, each: inputs.n, order: one_by_one, do }");
    assert_eq!(shape(&t, json!({ "n": [1, 2, 3] })), ["a-0 < ", "a-1 < a-0", "a-2 < a-1"]);
}

#[test]
fn whoever_comes_after_a_step_that_is_left_out_comes_after_what_it_would_have() {
    let t = steps(
        "{ live: boolean, n: \"integer[]\" }",
        "- { name: a, do }\n- { name: b, when: inputs.live, after: [a], do }\n- { name: c, when: inputs.live, after: [b], do }\n- { name: d, after: [c], do }",
    );
    assert_eq!(shape(&t, json!({ "live": true, "n": [] })), ["a < ", "b < a", "c < b", "d < c"]);
    assert_eq!(shape(&t, json!({ "live": false, "n": [] })), ["a < ", "d < a"]);
    let t = steps(
        "{ live: boolean, n: \"integer[]\" }",
        "- { name: a, do }\n- when: inputs.live\n  after: [a]\n  steps:\n    - { name: b, each: inputs.n, do }\n    - { name: c, after: [b], do }\n- { name: d, after: [c], do }\n- { name: e, after: [b], do }",
    );
    assert_eq!(
        shape(&t, json!({ "live": true, "n": [1] })),
        ["a < ", "b-0 < a", "c < b-0", "d < c", "e < b-0"]
    );
    assert_eq!(shape(&t, json!({ "live": false, "n": [1] })), ["a < ", "d < a", "e < a"]);
    assert_eq!(shape(&t, json!({ "live": true, "n": [] })), ["a < ", "c < a", "d < c", "e < a"]);
}

#[test]
fn some_of_many_are_left_out_by_what_they_are() {
    let t = steps(
        "{ n: \"integer[]\" }",
        "- { name: z, do }\n- { name: a, each: inputs.n, as: i, when: i > 1, after: [z], do }\n- { name: b, after: [a], do }",
    );
    assert_eq!(shape(&t, json!({ "n": [1, 2, 3] })), ["z < ", "a-1 < z", "a-2 < z", "b < z a-1 a-2"]);
}

#[test]
fn outputs_are_read_by_the_same_names() {
    let t = template(
        "workflow: w\ninput: { n: \"integer[]\", live: boolean }\nsteps:\n  - each: inputs.n\n    steps:\n      - { name: a, when: inputs.live, activity: http, input: { url: x }, undo: { activity: http, input: { url: { $output: /body } } } }\n      - { name: b, after: [a], activity: log, input: { text: t, data: { $output: a/body/x, default: [\"${index}\"] } }, nothing_to_undo: n }\n  - { name: c, after: [b], activity: log, input: { text: t, data: { $output: a/body/x } }, nothing_to_undo: n }\n",
    );
    let on = json!({ "n": [5, 6], "live": true });
    assert_eq!(step(&t, on.clone(), "b-1").input["data"], json!({ "$output": "a-1/body/x" }));
    assert_eq!(
        step(&t, on.clone(), "c").input["data"],
        json!([{ "$output": "a-0/body/x" }, { "$output": "a-1/body/x" }])
    );
    assert_eq!(step(&t, on, "a-0").undo.unwrap().input, json!({ "url": { "$output": "/body" } }));
    let off = json!({ "n": [5, 6], "live": false });
    assert_eq!(step(&t, off.clone(), "b-1").input["data"], json!([1]));
    assert_eq!(step(&t, off, "c").input["data"], json!([]));
}

#[test]
fn to_read_a_step_that_is_left_out_is_an_error_that_names_the_place() {
    let t = template(
        "workflow: w\ninput: { live: boolean }\nsteps:\n  - { name: a, when: inputs.live, activity: http, input: { url: x }, nothing_to_undo: n }\n  - name: b\n    after: [a]\n    activity: log\n    input:\n      text: t\n      data: { $output: a/body }\n    nothing_to_undo: n\n",
    );
    let said = refused(&t, json!({ "live": false }));
    assert!(said.contains("10:24: steps[1].input.data [reference]: reads a step that is left out"), "{said}");
}

#[test]
fn a_proof_of_a_step_that_is_left_out_is_none() {
    let t = template(
        "workflow: w\ninput: { live: boolean, n: \"integer[]\" }\nsteps:\n  - { name: a, each: inputs.n, when: inputs.live, activity: http, input: { url: x }, nothing_to_undo: n }\n  - name: b\n    after: [a]\n    requires: [{ step: a, at: /status, equals: \"${200 + 1}\" }]\n    activity: log\n    input: { text: t }\n    nothing_to_undo: n\n",
    );
    let proofs = step(&t, json!({ "live": true, "n": [1, 2] }), "b").requires;
    assert_eq!(
        json!(proofs),
        json!([{ "step": "a-0", "at": "/status", "equals": 201 }, { "step": "a-1", "at": "/status", "equals": 201 }])
    );
    for input in [json!({ "live": false, "n": [1] }), json!({ "live": true, "n": [] })] {
        assert!(refused(&t, input).contains("that it was left out is no proof"));
    }
}

#[test]
fn everything_that_a_step_of_a_plan_has_can_be_said() {
    let t = template(
        r#"
workflow: w
title: Of ${inputs.n}
input: { n: integer, live: boolean }
run: { key: "k-${inputs.n}", labels: { n: "${inputs.n}", none: "${none}" } }
retry: { attempts: 2 }
undo_retry: { attempts: 9 }
timeout: ${inputs.n}m
settle_within: 5s
commit: { within: 2h, then: commit, signal: keep }
drift_after: 1h
override_alone: true
steps:
  - name: a
    title: Step ${inputs.n}
    activity: http
    input: { url: x }
    retry: { attempts: "${inputs.n + 1}" }
    timeout: 10s
    on_failure: ${'hold' if inputs.live else 'roll_back'}
    point_of_no_return: ${inputs.live}
    effect: { longest_delay: 5s }
    undo: { activity: http, input: { url: "y${inputs.n}" }, retry: { attempts: 7 }, timeout: 3s }
  - name: sub
    activity: run
    after: [a]
    input: { volume: "v-${inputs.n}" }
    plan: { workflow: inner, steps: [{ name: a, activity: log, input: { text: { $given: /volume } }, nothing_to_undo: n }, { name: c, after: [a], activity: log, input: { text: { $output: a/text } }, nothing_to_undo: n }] }
  - { name: last, activity: log, after: [sub], finalize: true, input: { text: t } }
"#,
    );
    let prepared = t.prepare(&json!({ "n": 3, "live": false })).unwrap();
    assert_eq!(prepared.exclusive.as_deref(), Some("k-3"));
    assert_eq!(prepared.labels.into_iter().collect::<Vec<_>>(), [("n".to_owned(), "3".to_owned())]);
    assert_eq!(prepared.version, t.version());
    let plan = serde_json::to_value(&prepared.plan).unwrap();
    assert_eq!(plan["title"], "Of 3");
    assert_eq!(
        (&plan["timeout"], &plan["commit"]["signal"], &plan["override_alone"]),
        (&json!("3m"), &json!("keep"), &json!(true))
    );
    let a = &plan["steps"][0];
    assert_eq!(
        (&a["title"], &a["retry"]["attempts"], &a["undo"]["input"]["url"]),
        (&json!("Step 3"), &json!(4), &json!("y3"))
    );
    assert_eq!(plan["steps"][1]["plan"]["steps"][1]["input"]["text"], json!({ "$output": "a/text" }));
    assert_eq!(plan["steps"][2]["finalize"], true);
    t.check(&crate::support::activities()).unwrap();
}

#[test]
fn the_version_is_what_the_file_says_not_how_it_is_written() {
    let version = |text: &str| template(text).version().to_owned();
    let one =
        version("workflow: w\nsteps: [{ name: a, activity: log, input: { text: t }, nothing_to_undo: n }]\n");
    let same = version(
        "# said\n{\"steps\": [{\"activity\": \"log\", \"name\": \"a\", \"nothing_to_undo\": \"n\", \"input\": {\"text\": \"t\"}}], \"workflow\": \"w\"}",
    );
    let other =
        version("workflow: w\nsteps: [{ name: a, activity: log, input: { text: u }, nothing_to_undo: n }]\n");
    assert_eq!(one, same);
    assert_ne!(one, other);
    assert_eq!(one.len(), 64);
}
