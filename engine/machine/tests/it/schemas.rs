//! Schemas as Rust types make them: what an activity's author writes, and what a plan may bind to it.

use backstay_machine::plan::{Effect, PlanBuilder, Rule, StepSpec};
use backstay_machine::*;
use schemars::{JsonSchema, schema_for};
use serde::Serialize;
use serde_json::{Value, json};

use crate::support::{Activities, spec, step};

#[derive(JsonSchema, Serialize)]
#[allow(dead_code, reason = "only their schemas are used")]
struct Made {
    id: String,
    disk: Disk,
    network: Option<Network>,
    label: Option<String>,
    count: u32,
    ratio: f64,
    state: PowerState,
    mode: Mode,
    tags: Vec<String>,
    by_name: std::collections::BTreeMap<String, Disk>,
    anything: Value,
    pair: (String, u8),
    at: chrono::DateTime<chrono::Utc>,
}

#[derive(JsonSchema, Serialize)]
#[allow(dead_code, reason = "only their schemas are used")]
struct Disk {
    path: String,
    bytes: u64,
}

#[derive(JsonSchema, Serialize)]
#[allow(dead_code, reason = "only their schemas are used")]
struct Network {
    mac: String,
}

/// Unit variants with texts of their own become a `oneOf` of constants.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(dead_code, reason = "only their schemas are used")]
enum PowerState {
    /// It runs.
    PoweredOn,
    /// It does not.
    PoweredOff,
}

#[derive(JsonSchema, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(dead_code, reason = "only their schemas are used")]
enum Mode {
    Live { port: u16 },
    Test { net: String },
}

#[derive(JsonSchema, Serialize)]
#[allow(dead_code, reason = "only their schemas are used")]
struct Wanted {
    text: String,
    maybe: Option<String>,
    number: Option<f64>,
    whole: Option<u64>,
    #[serde(default)]
    with_default: u32,
    disk: Option<Disk>,
    state: Option<PowerState>,
    tags: Option<Vec<String>>,
    anything: Option<Value>,
    raw: Value,
}

#[derive(JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only their schemas are used")]
struct Closed {
    name: String,
    inner: Option<Inner>,
}

#[derive(JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only their schemas are used")]
struct Inner {
    x: u8,
}

fn activities() -> Activities {
    let effect = Effect::default();
    Activities::anything()
        .with("make", json!({}), schema_for!(Made).to_value(), effect)
        .with("take", schema_for!(Wanted).to_value(), json!({}), effect)
        .with("close", schema_for!(Closed).to_value(), json!({}), effect)
}

fn check(activity: &str, input: Value) -> Vec<String> {
    let a = StepSpec { activity: "make".into(), ..step("a", &[]) };
    let b = StepSpec { activity: activity.into(), input, ..step("b", &["a"]) };
    match Plan::check(spec(vec![a, b]), &activities()) {
        Ok(_) => Vec::new(),
        Err(error) => {
            assert!(error.problems.iter().all(|p| matches!(p.rule, Rule::Binding | Rule::Input)), "{error}");
            error.problems.into_iter().map(|p| p.message).collect()
        }
    }
}

/// An input that is right, with one field bound.
fn bound(field: &str, path: &str) -> Vec<String> {
    let mut input = json!({ "text": "x", "raw": 1 });
    input[field] = json!({ "$output": format!("a{path}") });
    check("take", input)
}

#[test]
fn what_fits_is_taken() {
    for (field, path) in [
        ("text", "/id"),
        ("text", "/disk/path"),
        ("text", "/state"),
        ("text", "/pair/0"),
        ("text", "/at"),
        ("maybe", "/label"),
        ("maybe", "/network/mac"),
        ("maybe", "/tags/0"),
        ("maybe", "/by_name/root/path"),
        ("number", "/count"),
        ("number", "/ratio"),
        ("whole", "/count"),
        ("whole", "/mode/port"),
        ("with_default", "/count"),
        ("disk", "/disk"),
        ("disk", "/by_name/root"),
        ("state", "/state"),
        ("tags", "/tags"),
        ("anything", "/network"),
        ("anything", ""),
        ("raw", "/label"),
        ("raw", "/anything/deeper/0/still"),
        ("maybe", "/anything/deeper"),
    ] {
        assert_eq!(bound(field, path), Vec::<String>::new(), "{field} <- {path}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut said = String::new();
    for (field, path) in [
        ("text", "/nothing"),
        ("text", "/disk/nothing"),
        ("text", "/id/deeper"),
        ("text", "/tags/first"),
        ("text", "/count"),
        ("text", "/label"),
        ("text", "/network/mac"),
        ("text", "/tags/0"),
        ("text", "/by_name/root/path"),
        ("text", "/mode/net"),
        ("maybe", "/disk"),
        ("maybe", "/pair/1"),
        ("whole", "/ratio"),
        ("with_default", "/network"),
        ("with_default", "/mode/port"),
        ("disk", "/tags"),
        ("tags", "/by_name"),
        ("nonsense", "/id"),
    ] {
        for problem in bound(field, path) {
            said += &format!("{field} <- {path}: {problem}\n");
        }
    }
    insta::assert_snapshot!(said, @r#"
    text <- /nothing: its input at "/text" reads "/nothing" of a, but the output of make has no such place
    text <- /disk/nothing: its input at "/text" reads "/disk/nothing" of a, but the output of make has no such place
    text <- /id/deeper: its input at "/text" reads "/id/deeper" of a, but the output of make has no such place
    text <- /tags/first: its input at "/text" reads "/tags/first" of a, but the output of make has no such place
    text <- /count: its input at "/text" reads "a/count": it may give integer, but string is wanted
    text <- /label: its input at "/text" reads "a/label": it may be missing, and then null stands here, which the activity does not take
    text <- /network/mac: its input at "/text" reads "a/network/mac": it may be missing, and then null stands here, which the activity does not take
    text <- /tags/0: its input at "/text" reads "a/tags/0": it may be missing, and then null stands here, which the activity does not take
    text <- /by_name/root/path: its input at "/text" reads "a/by_name/root/path": it may be missing, and then null stands here, which the activity does not take
    text <- /mode/net: its input at "/text" reads "a/mode/net": it may be missing, and then null stands here, which the activity does not take
    maybe <- /disk: its input at "/maybe" reads "a/disk": it may give object, but string or null is wanted
    maybe <- /pair/1: its input at "/maybe" reads "a/pair/1": it may give integer, but string or null is wanted
    whole <- /ratio: its input at "/whole" reads "a/ratio": it may give number, but integer or null is wanted
    with_default <- /network: its input at "/with_default" reads "a/network": it may be missing, and then null stands here, which the activity does not take
    with_default <- /mode/port: its input at "/with_default" reads "a/mode/port": it may be missing, and then null stands here, which the activity does not take
    disk <- /tags: its input at "/disk" reads "a/tags": it may give array, but object or null is wanted
    tags <- /by_name: its input at "/tags" reads "a/by_name": it may give object, but array or null is wanted
    nonsense <- /id: its input at "/nonsense": is no field of this input; there are anything, disk, maybe, number, raw, state, tags, text, whole, with_default
    "#);
}

#[test]
fn a_field_with_a_default_does_not_take_null() {
    let said = check("take", json!({ "text": "x", "raw": 1, "with_default": null }));
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(bound("with_default", "/mode/port").len(), 1, "what may be missing is bound as null");
}

#[test]
fn misspelt_fields_are_found_at_every_depth_and_said_once() {
    let misspelt = [
        json!({ "text": "x", "raw": 1, "txet": 1 }),
        json!({ "text": "x", "raw": 1, "disk": { "path": "x", "bytes": 1, "size": 1 } }),
    ];
    for input in misspelt {
        let said = check("take", input);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("is no field of this input"), "{said:?}");
    }
    for input in [json!({ "name": "x", "nmae": 1 }), json!({ "name": "x", "inner": { "x": 1, "y": 2 } })] {
        let said = check("close", input);
        assert!(said.iter().any(|said| said.contains("is no field of this input")), "{said:?}");
    }
    // Where a type takes anything, nothing is misspelt.
    assert_eq!(
        check("take", json!({ "text": "x", "raw": { "a": { "b": [1, { "c": 2 }] } } })),
        Vec::<String>::new()
    );
}

#[test]
fn an_undo_that_wants_its_steps_output_for_sure_is_refused() {
    let mut a = StepSpec { activity: "make".into(), ..step("a", &[]) };
    let undo = a.undo.as_mut().unwrap();
    undo.activity = "take".into();
    undo.input = json!({ "text": { "$output": "/id" }, "raw": 1 });
    let error = Plan::check(spec(vec![a.clone()]), &activities()).unwrap_err();
    assert!(error.to_string().contains("the output may be missing"), "{error}");
    a.undo.as_mut().unwrap().input = json!({ "text": "x", "maybe": { "$output": "/id" }, "raw": 1 });
    Plan::check(spec(vec![a]), &activities()).unwrap();
}

/// Another wait than the planned one has to be one as well.
#[test]
fn the_edited_input_of_a_wait_says_a_time() {
    let mut plan = PlanBuilder::new("waits");
    plan.wait("nap", json!({ "for": "1h" }));
    let plan = plan.check(&Activities::anything()).unwrap();
    let unsuited = |input: Value| {
        let verb = Verb::Retry { step: "nap".into(), undo: false, input: Some(input), in_doubt: false };
        plan::unsuited(&plan, &verb, &Activities::anything())
    };
    assert_eq!(unsuited(json!({ "for": "5m" })), None);
    for (input, place) in [
        (json!({ "for": "soon" }), "\"/for\""),
        (json!({ "until": "tomorrow" }), "\"/until\""),
        (json!({ "for": "5m", "four": "5m" }), "'four' was unexpected"),
        (json!({ "for": 5 }), "\"/for\""),
    ] {
        let because = unsuited(input).unwrap();
        assert!(because.contains(place), "{because}");
    }
}

#[test]
fn a_wait_has_no_fields_but_its_own() {
    let mut plan = PlanBuilder::new("waits");
    plan.wait("nap", json!({ "for": "1h", "witin": "2h" }));
    let error = plan.check(&Activities::anything()).unwrap_err().to_string();
    assert!(error.contains("'witin' was unexpected"), "{error}");
}
