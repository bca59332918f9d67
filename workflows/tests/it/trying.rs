//! What is found when a file is loaded, before anybody gives it an input.

use backstay_workflows::Workflow;
use serde_json::json;

use crate::support::{activities, refused, template, wrong};

const STEP: &str = "activity: log, input: { text: t }, nothing_to_undo: n";

fn file(input: &str, steps: &str) -> String {
    format!("workflow: w\ninput: {input}\nsteps:\n  {}\n", steps.replace("STEP", STEP).replace('\n', "\n  "))
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    let said = wrong(text);
    for part in parts {
        assert!(said.contains(part), "\"{part}\" is not in\n{said}");
    }
}

#[test]
fn everything_that_is_wrong_is_told_with_its_line_and_column() {
    says(
        &file(
            "{ n: integer, list: \"string[]\" }",
            "- { name: a, when: inputs.m, STEP }\n- { name: b, each: inputs.n, STEP }\n- { name: c, when: inputs.list, STEP }\n- { name: d, after: [e], STEP }\n- { name: a, STEP }\n- { name: f, when: \"inputs.n >\", STEP }\n- { name: g, each: inputs.list, as: h, title: \"${x}\", STEP }",
        ),
        &[
            "4:22: steps[0].when [expression]: \"inputs.m\": inputs has no \"m\"; there are list, n",
            "5:22: steps[1].each [expression]: \"inputs.n\" is of the type integer, and a list is wanted here",
            "6:22: steps[2].when [expression]: \"inputs.list\" is of the type array, and a boolean is wanted here",
            "7:24: steps[3].after[0] [reference]: \"e\" is no step of this file; there are a, b, c, d, a, f, g",
            "8:5: steps[4] [name]: \"a\" is the name of more than one step",
            "9:22: steps[5].when [expression]: \"inputs.n >\": it cannot be read",
            "10:49: steps[6].title [expression]: \"x\": there is no \"x\" here; there are inputs, h, index",
        ],
    );
}

#[test]
fn names_are_followed_into_items() {
    let input =
        "{ disks: { type: array, items: { type: object, properties: { id: string, fast: boolean } } } }";
    says(
        &file(input, "- { name: a, each: inputs.disks, as: d, when: d.slow, STEP }"),
        &["d has no \"slow\"; there are fast, id"],
    );
    says(
        &file(input, "- { name: a, each: inputs.disks, as: d, when: d.id, STEP }"),
        &["\"d.id\" is of the type string"],
    );
    says(
        &file(input, "- { name: a, each: inputs.disks, as: d, key: d.fast, STEP }"),
        &["\"d.fast\" is of the type boolean, and a string or integer"],
    );
}

#[test]
fn a_form_that_is_not_that_of_a_workflow_is_refused() {
    for (text, part) in [
        ("- a", "1:1: [form]: a workflow is a map"),
        ("workflow: w", "a workflow has \"steps\""),
        ("workflow: w\nsteps: []", "there is no step"),
        ("workflow: w\nsteps: {}", "\"steps\" is a list, not a map"),
        ("workflow: a b\nsteps: [{ name: a, STEP }]", "a workflow has its name under \"workflow\""),
        (
            "workflow: w\nstpes: 1\nsteps: [{ name: a, STEP }]",
            "2:1: stpes [form]: this is no plan: unknown field `stpes`",
        ),
        (
            "workflow: w\nsteps: [{ name: a, retires: 1, STEP }]",
            "steps[0].retires [form]: this is no step: unknown field `retires`",
        ),
        ("workflow: w\nsteps: [{ name: a, timeout: soon, STEP }]", "is not a length of time"),
        ("workflow: w\nsteps: [{ STEP }]", "a step has a \"name\""),
        ("workflow: w\nsteps: [{ name: \"a-${1}\", STEP }]", "a name has no expression"),
        (
            "workflow: w\nsteps: [{ name: a, order: one_by_one, STEP }]",
            "\"order\" says something of an \"each\"",
        ),
        (
            "workflow: w\nsteps: [{ name: a, each: [1], order: some, STEP }]",
            "\"order\" is at_once or one_by_one",
        ),
        ("workflow: w\nsteps: [{ name: a, each: [1], as: inputs, STEP }]", "\"as\" is a name"),
        ("workflow: w\nsteps: [{ name: a, when: \"${true}\", STEP }]", "leave out \"${\""),
        ("workflow: w\nsteps: [{ name: x, steps: [{ name: a, STEP }] }]", "\"name\" is no field of a block"),
        ("workflow: w\nparent: { run: x }\nsteps: [{ name: a, STEP }]", "names a \"parent\""),
        ("workflow: w\nrun: { kye: x }\nsteps: [{ name: a, STEP }]", "\"kye\" is no field of \"run\""),
        (
            "workflow: w\nexamples: [{ inputs: {} }]\nsteps: [{ name: a, STEP }]",
            "an example has an \"input\"",
        ),
        (
            "workflow: w\nsteps: [{ name: a, activity: log, input: { text: { $output: b/x, or: 1 } }, nothing_to_undo: n }]",
            "stands alone or with \"default\"",
        ),
        (
            "workflow: w\nsteps: [{ name: a, activity: log, input: { text: { $output: \"a/${1}\" } }, nothing_to_undo: n }]",
            "not the place in it",
        ),
        (
            "workflow: w\nsteps: [{ name: a, each: [1], as: x, steps: [{ name: b, each: [2], as: x, STEP }] }]",
            "is called \"x\" already",
        ),
    ] {
        says(&text.replace("STEP", STEP), &[part]);
    }
}

#[test]
fn the_plans_of_made_up_inputs_are_checked_against_the_activities() {
    says(
        &file("{}", "- { name: a, activity: lgo, nothing_to_undo: n }"),
        &["4:5: steps[0] [plan activity]: step \"a\": its step runs \"lgo\", which is no activity here"],
    );
    says(
        &file(
            "{ n: integer }",
            "- { name: a, activity: log, input: { text: \"${inputs.n}\" }, nothing_to_undo: n }",
        ),
        &["[plan input]: step \"a\"", "is not of type \"string\" (with the input {\"n\":1})"],
    );
    says(
        &file("{}", "- { name: a, activity: log, input: { text: t } }"),
        &["[plan undo]: step \"a\": names no undo"],
    );
    says(
        &file(
            "{ live: boolean }",
            "- { name: a, when: inputs.live, STEP }\n- { name: b, when: not inputs.live, activity: nope, nothing_to_undo: n }",
        ),
        &["steps[1] [plan activity]: step \"b\"", "{\"live\":false}"],
    );
    says(
        &file(
            "{ n: \"integer[]\" }",
            "- { name: a, STEP }\n- { name: b, each: inputs.n, activity: nope, nothing_to_undo: n }",
        ),
        &["step \"b-0\": its step runs \"nope\", which is no activity here"],
    );
    says(
        &file(
            "{ o: string? }",
            "- { name: a, activity: log, input: { text: \"is ${inputs.o}\" }, nothing_to_undo: n }",
        ),
        &["its value is nothing, and cannot be a part of a text (with the input {})"],
    );
    says(
        &file(
            "{}",
            "- { name: a, STEP }\n- { name: b, activity: log, input: { text: { $output: a/text } }, nothing_to_undo: n }",
        ),
        &["[plan binding]: step \"b\"", "does not come after it"],
    );
    says(
        &file(
            "{}",
            "- { name: a, STEP }\n- { name: b, after: [a], activity: log, input: { text: { $output: a/nope } }, nothing_to_undo: n }",
        ),
        &["has no such place"],
    );
    says(&file("{}", "- { name: a, after: [b], STEP }\n- { name: b, after: [a], STEP }"), &["[plan cycle]"]);
}

#[test]
fn a_wrong_step_of_a_long_list_is_told_once() {
    let said = wrong(&file(
        "{ n: \"integer[]\" }",
        "- { name: z, STEP }\n- { name: a, each: inputs.n, activity: nope, nothing_to_undo: n }",
    ));
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_step_that_no_input_reaches_was_never_checked() {
    let steps = "- { name: z, STEP }\n- { name: a, when: inputs.s == 'rare', STEP }";
    says(
        &file("{ s: string }", steps),
        &["5:5: steps[1] [reach]: no example and no input that was made up has the step \"a\""],
    );
    let with = file("{ s: string }", steps) + "examples: [{ title: rare, input: { s: rare } }]\n";
    template(&with).check(&activities()).unwrap();
    template(&file("{ s: { enum: [usual, rare] } }", steps)).check(&activities()).unwrap();
    says(
        &file("{ s: { type: string, pattern: \"^a{7}$\" } }", "- { name: z, STEP }"),
        &["no input could be made up"],
    );
}

#[test]
fn an_example_that_does_not_fit_is_wrong() {
    says(
        &(file("{ n: integer }", "- { name: z, STEP }") + "examples: [{ title: t, input: { n: x } }]\n"),
        &["examples[0].input [input]: n: \"x\" is not of type \"integer\""],
    );
    says(
        &(file("{ n: integer }", "- { name: z, each: \"[1,2][inputs.n:]\", STEP }")
            + "examples: [{ title: five, input: { n: 5 } }]\n"),
        &["there is nothing to do: every step is left out (with the example \"five\")"],
    );
}

#[test]
fn what_only_an_input_shows_is_told_when_it_is_given() {
    let t = template(&file(
        "{ list: { type: array, items: string, minItems: 1 }, n: integer }",
        "- { name: a, when: \"inputs.list[inputs.n - 1] == 'text'\", STEP }\n- { name: b, STEP }",
    ));
    t.check(&activities()).unwrap();
    assert!(t.prepare(&json!({ "list": ["text"], "n": 1 })).is_ok());
    let said = refused(&t, json!({ "list": ["text"], "n": 9 }));
    assert!(said.contains("steps[0].when [expression]") && said.contains("not there"), "{said}");
}
