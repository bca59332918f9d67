//! What a workflow takes, and what it does not.

use backstay_workflows::{Workflow, limits};
use serde_json::{Value, json};

use crate::support::{refused, step, template, wrong};

const FILE: &str = r#"
workflow: w
input:
  name: string
  size: { type: integer, minimum: 1, default: 10 }
  note: string?
  disks: { type: array, items: { type: object, properties: { id: string, fast: { type: boolean, default: true }, tag: "string?" } }, default: [] }
steps:
  - { name: a, activity: log, input: { text: "${inputs.name}", data: "${inputs}" }, nothing_to_undo: n }
"#;

fn data(input: Value) -> Value {
    step(&template(FILE), input, "a").input["data"].clone()
}

#[test]
fn defaults_are_filled_in_and_what_may_be_missing_is_null() {
    assert_eq!(data(json!({ "name": "x" })), json!({ "name": "x", "size": 10, "note": null, "disks": [] }));
    let given = json!({ "name": "x", "size": 3, "note": "y", "disks": [{ "id": "1" }, { "id": "2", "fast": false, "tag": "t" }] });
    let taken = data(given);
    assert_eq!(
        taken["disks"],
        json!([{ "id": "1", "fast": true }, { "id": "2", "fast": false, "tag": "t" }])
    );
}

#[test]
fn the_schema_says_what_is_taken() {
    let schema = template(FILE).input_schema();
    assert_eq!(schema["required"], json!(["name"]));
    assert_eq!(schema["additionalProperties"], json!(false));
    assert_eq!(schema["properties"]["disks"]["items"]["required"], json!(["id"]));
}

#[test]
fn what_is_wrong_with_an_input_is_told_at_once_and_by_its_place() {
    let t = template(FILE);
    let said = refused(&t, json!({ "nmae": "x", "size": 0, "disks": [{ "id": 5, "colour": 1 }, 3] }));
    for part in [
        "nmae [input]: is no input of this workflow; there are disks, name, note, size",
        "\"name\" is a required property",
        "size [input]: 0 is less than the minimum of 1",
        "disks[0].id [input]: 5 is not of type \"string\"",
        "disks[0] [input]: Additional properties are not allowed ('colour' was unexpected)",
        "disks[1] [input]: 3 is not of type \"object\"",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    for (input, part) in
        [(json!([]), "an input is a JSON object"), (json!(null), "an input is a JSON object")]
    {
        assert!(refused(&t, input).contains(part));
    }
}

#[test]
fn an_input_keeps_within_limits() {
    let t = template(FILE);
    let deep = (0..30).fold(json!(1), |inner, _| json!([inner]));
    for (input, part) in [
        (json!({ "name": "x".repeat(limits::TEXT + 1) }), "name [limit]: has 65537 bytes"),
        (json!({ "name": "x", "disks": vec![1; limits::LIST + 1] }), "disks [limit]: has 5001 values"),
        (json!({ "name": deep }), "[limit]: is nested more than 16 deep"),
        (json!({ "name": vec!["x".repeat(60_000); 5] }), "[limit]: the input has more than 262144 bytes"),
        (json!({ "name": "a\u{0}b" }), "U+0000"),
        (json!({ "name": { "a\u{202e}b": 1 } }), r"a\u{202e}b"),
    ] {
        let said = refused(&t, input);
        assert!(said.contains(part), "{part}: {}", said.chars().take(500).collect::<String>());
    }
}

/// An input that became a binding or an expression would let whoever submits read what other steps gave.
#[test]
fn an_input_cannot_become_a_part_of_the_plan() {
    let t = template(
        "workflow: w\ninput: { x: any }\nsteps:\n  - { name: a, activity: log, input: { text: t, data: \"${inputs.x}\" }, nothing_to_undo: n }\n",
    );
    for key in ["$output", "$given", "$anything"] {
        let said = refused(&t, json!({ "x": { "deep": [{ key: "secrets/token" }] } }));
        assert!(
            said.contains("x.deep[0] [limit]: has the key \"$") && said.contains("no input may have"),
            "{said}"
        );
    }
    assert_eq!(step(&t, json!({ "x": "${inputs.x}" }), "a").input["data"], "${inputs.x}");
    let t = template(
        "workflow: w\ninput: { x: string }\nsteps:\n  - { name: s, activity: http, input: { url: u }, nothing_to_undo: n }\n  - { name: b, after: [s], activity: log, input: { text: { $output: \"${inputs.x}/body\" } }, nothing_to_undo: n }\n",
    );
    assert!(refused(&t, json!({ "x": "s/body/token" })).contains("is no step of the plan"));
}

/// What a run may do and who decides about it is for the file to say.
#[test]
fn no_input_chooses_an_activity_or_who_approves() {
    let file = |step: &str| format!("workflow: w\ninput: {{ x: string }}\nsteps:\n  - {step}\n");
    for step in [
        "{ name: a, activity: \"${inputs.x}\", nothing_to_undo: n }",
        "{ name: a, activity: log, input: { text: t }, undo: { activity: \"${inputs.x}\" } }",
        "{ name: a, activity: log, input: { text: t }, undo: \"${ {'activity': inputs.x} }\" }",
        "{ name: a, activity: approve, input: { right: \"${inputs.x}\" } }",
        "{ name: a, activity: approve, input: { right: r, people: \"${1}\" } }",
        "{ name: a, activity: approve, input: \"${ {'right': inputs.x} }\" }",
        "{ name: a, activity: run, plan: { workflow: p, steps: [{ name: a, activity: \"${inputs.x}\", nothing_to_undo: n }] } }",
        "{ name: a, activity: run, plan: { workflow: p, steps: [{ name: a, activity: approve, input: { right: \"${inputs.x}\" } }] } }",
        "{ name: a, activity: run, plan: \"${inputs.x}\" }",
    ] {
        assert!(wrong(&file(step)).contains("no input may choose"), "{step}");
    }
    let text = file("{ name: a, activity: log, input: { text: t }, nothing_to_undo: n }");
    assert!(
        wrong(&text.replace("steps:", "override_alone: ${true}\nsteps:")).contains("no input may choose")
    );
}

#[test]
fn a_schema_that_is_none_is_refused_when_it_is_loaded() {
    let file = |input: &str| {
        format!(
            "workflow: w\n{input}\nsteps: [{{ name: a, activity: log, input: {{ text: t }}, nothing_to_undo: n }}]\n"
        )
    };
    for (input, part) in [
        (
            "input: { a: strnig }",
            "input.a [schema]: \"strnig\" is no kind of input; there are string, integer",
        ),
        ("input: { a: { type: wrong } }", "input [schema]: is no JSON Schema"),
        (
            "input: { a: { type: integer, default: x } }",
            "input.a [schema]: its default does not fit: \"x\" is not of type \"integer\"",
        ),
        ("input: { a-b: string }", "the input \"a-b\" cannot be named in an expression"),
        ("input: [a]", "\"input\" is a map from names to what they are, not a list"),
        ("input: { a: string }\ninput_schema: { type: object, properties: {} }", "there are both"),
        ("input_schema: { properties: {} }", "\"input_schema\" has \"type: object\""),
        ("input: { a: { $ref: \"http://127.0.0.1:1/x\" } }", "input [schema]: is no JSON Schema"),
        ("input: { a: { type: string, pattern: \"(a\" } }", "input [schema]: is no JSON Schema"),
    ] {
        let said = wrong(&file(input));
        assert!(said.contains(part), "{part}\n{said}");
    }
    let whole = file("input_schema: { type: object, required: [a], properties: { a: { type: string } } }");
    assert!(refused(&template(&whole), json!({ "a": "x", "b": 1 })).contains("b [input]: is no input"));
}

#[test]
fn a_pattern_takes_linear_time() {
    let t = template(
        "workflow: w\ninput: { a: { type: string, pattern: \"^(a+)+$\", examples: [aa] } }\nsteps: [{ name: a, activity: log, input: { text: t }, nothing_to_undo: n }]\n",
    );
    let before = std::time::Instant::now();
    refused(&t, json!({ "a": "a".repeat(50_000) + "b" }));
    assert!(before.elapsed().as_secs() < 1);
}
