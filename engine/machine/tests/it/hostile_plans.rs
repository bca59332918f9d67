//! Plans that were written to hurt: each is refused, or taken if it is within the limits, in under a second of an
//! unoptimized build, in bounded memory, with a message that names the place and is safe to print.

use std::time::Duration;

use backstay_machine::plan::{PlanSpec, StepSpec, limits};
use backstay_machine::*;
use serde_json::{Value, json};

use crate::support::{Activities, spec, step};

/// The processor time of this thread: other tests run beside it.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// The most memory that the whole process ever had, in MiB.
fn peak() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

/// `None`: taken. Otherwise everything that is said of it.
fn judged(what: &str, check: impl Fn() -> Result<std::sync::Arc<Plan>, CheckError>) -> Option<String> {
    // A second is what the program may take. Unoptimized, as tests are, everything takes some times as long.
    let most = Duration::from_secs(if cfg!(debug_assertions) { 3 } else { 1 });
    // A busy machine slows a processor down; a plan that is slow by itself is slow every time.
    let mut fastest = Duration::MAX;
    let mut tries = 0;
    let result = loop {
        let before = cpu();
        let result = check();
        fastest = fastest.min(cpu() - before);
        tries += 1;
        if fastest < most || tries == 5 {
            break result;
        }
    };
    println!("{what}: {fastest:?}, peak {} MiB", peak());
    assert!(fastest < most, "{what} took {fastest:?}");
    assert!(peak() < 1024, "{what}: {} MiB", peak());
    let said = result.err()?.to_string();
    assert!(said.len() < 100_000, "{what}: {} bytes of complaint", said.len());
    let hostile = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!said.chars().any(hostile), "{said}");
    Some(said)
}

fn written(what: &str, text: &str) -> Option<String> {
    judged(what, || Plan::check_json(text, &Activities::anything()))
}

fn built(what: &str, spec: PlanSpec) -> Option<String> {
    judged(what, || Plan::check(spec.clone(), &Activities::anything()))
}

#[track_caller]
fn refused(said: Option<String>, because: &str) {
    let said = said.expect("it was taken");
    assert!(said.contains(because), "{}", said.chars().take(2_000).collect::<String>());
}

fn with_input(input: &str) -> String {
    format!(
        r#"{{"workflow": "w", "steps": [{{"name": "a", "activity": "do", "nothing_to_undo": "n", "input": {input}}}]}}"#
    )
}

fn steps(n: usize, after: impl Fn(usize) -> Vec<usize>) -> Vec<StepSpec> {
    (0..n)
        .map(|i| {
            let after: Vec<_> = after(i).into_iter().map(|j| format!("s{j}")).collect();
            step(format!("s{i}"), &after.iter().map(String::as_str).collect::<Vec<_>>())
        })
        .collect()
}

fn previous(i: usize) -> Vec<usize> {
    i.checked_sub(1).into_iter().collect()
}

#[test]
fn circles_long_and_short() {
    refused(
        built("a self-loop in a crowd", spec(steps(10_000, |i| if i == 7_000 { vec![i] } else { vec![] }))),
        "s7000 -> s7000",
    );
    let said = built("a circle of 10,000", spec(steps(10_000, |i| vec![(i + 9_999) % 10_000])));
    refused(said, "s0 -> s1 -> s2 -> s3 -> s4 -> s5 -> s6 -> s7 -> s8 -> s9 -> … 9990 more … -> s0");
    // Written so that whoever looks in the order of writing frees one step a round.
    let tail =
        spec(steps(10_000, |i| if i < 2 { vec![1 - i] } else { vec![if i == 9_999 { 0 } else { i + 1 }] }));
    refused(built("a circle behind a long tail", tail), "s0 -> s1 -> s0");
    let dense = |i: usize| (1..=5).map(move |k| (i + 10_000 - k) % 10_000).collect();
    refused(built("many circles", spec(steps(10_000, dense))), " -> ");
}

#[test]
fn plans_of_any_legal_shape_are_taken() {
    assert_eq!(built("a chain of 10,000", spec(steps(10_000, previous))), None);
    let backwards = spec(steps(10_000, |i| if i < 9_999 { vec![i + 1] } else { vec![] }));
    assert_eq!(built("a chain written backwards", backwards), None);
    let fan = |i: usize| match i {
        0 => vec![],
        9_999 => (1..9_999).collect(),
        _ => vec![0],
    };
    assert_eq!(built("a fan of 10,000", spec(steps(10_000, fan))), None);
    let layers = |i: usize| {
        if i < 100 { vec![] } else { (0..5).map(|k| (i / 100 - 1) * 100 + (i + k * 7) % 100).collect() }
    };
    assert_eq!(built("100 layers of 100", spec(steps(10_000, layers))), None);
    let mut reading = steps(10_000, previous);
    for (n, step) in reading.iter_mut().enumerate().skip(1) {
        step.input = json!({ "it": { "$output": format!("s{}/made", n / 2) } });
    }
    assert_eq!(built("10,000 bindings to far ancestors", spec(reading)), None);
}

#[test]
fn plans_beyond_the_limits() {
    refused(
        built("10,001 steps", spec(steps(10_001, previous))),
        "the plan has 10001 steps; at most 10000 are taken",
    );
    let many = |i: usize| (0..100.min(i)).map(|k| i - 1 - k).collect();
    refused(built("10,000 steps with 100 edges each", spec(steps(10_000, many))), "at most 50000 are taken");
    let list = vec![r#""x""#; 4_000_000].join(",");
    let text =
        format!(r#"{{"workflow": "w", "steps": [{{"name": "a", "activity": "do", "after": [{list}]}}]}}"#);
    refused(written("sixteen megabytes", &text), "at most 8388608 are taken");
}

#[test]
fn names_and_dependencies_that_lead_nowhere() {
    let same = (0..10_000).map(|_| step("a", &[])).collect();
    refused(built("10,000 steps of one name", spec(same)), "is the name of more than one step");
    refused(
        built("50,000 dependencies on one step", {
            let mut steps = steps(2, previous);
            steps[1].after = vec!["s0".into(); 50_000];
            spec(steps)
        }),
        "names s0 twice",
    );
    refused(
        built("50,000 dependencies on nothing", {
            let mut steps = steps(1, previous);
            steps[0].after = (0..50_000).map(|n| format!("x{n}")).collect();
            spec(steps)
        }),
        "which is no step of this plan",
    );
    let wide = |i: usize| if i == 9_999 { (0..9_999).collect() } else { vec![] };
    let mut all_bad = steps(10_000, wide);
    for step in &mut all_bad {
        step.name = format!("\u{202e}{}\u{7}", step.name);
    }
    refused(built("10,000 hostile names", spec(all_bad)), r"\u{202e}s0\u{7}");
}

#[test]
fn text_of_a_megabyte() {
    let long = "x".repeat(1 << 20);
    let field = |field: &str| {
        let mut plan =
            json!({ "workflow": "w", "steps": [{ "name": "a", "activity": "do", "nothing_to_undo": "n" }] });
        plan["steps"][0][field] = json!(long);
        plan.to_string()
    };
    refused(written("a name", &field("name")), "xxx…");
    refused(written("a title", &field("title")), "has more than 300 characters");
    refused(written("a reason", &field("nothing_to_undo")), "has more than 300 characters");
    refused(written("an activity", &field("activity")), "is no activity here");
    refused(written("an input", &field("input")), "at most 262144 are taken");
    refused(written("a timeout", &field("timeout")), "not a length of time");
    refused(written("a field", &field(&format!("f{long}"))), "unknown field");
    refused(
        written("an input's key", &with_input(&format!(r#"{{"{long}": 1}}"#))),
        "at most 262144 are taken",
    );
    refused(
        written("a binding", &with_input(&format!(r#"{{"$output": "{}/x"}}"#, &long[..200_000]))),
        "no step of this plan",
    );
}

#[test]
fn characters_that_pretend() {
    let title = |title: &str| {
        json!({ "workflow": "w", "title": title, "steps": [{ "name": "a", "activity": "do", "nothing_to_undo": "n" }] }).to_string()
    };
    for bad in ["a\u{202e}b", "a\nb", "a\u{1b}[31mb", "a\u{0}b", "a\u{2028}b", "a\u{61c}b", "a\u{9b}b"] {
        refused(written("a title", &title(bad)), "has control characters");
    }
    assert_eq!(written("a title", &title("Größe „ä“ 🚀 <b>\"x\"</b>")), None);
    refused(written("U+0000", &with_input(r#"{"a": "\u0000"}"#)), r#"at "/a" holds the character U+0000"#);
    refused(written("U+0000 in a key", &with_input(r#"{"b": {"\u0000": 1}}"#)), r#"at "/b" has a key with"#);
    refused(written("half a character", &with_input(r#"{"a": "\ud800"}"#)), "line 1 column");
    refused(
        written("a bidirectional field", &with_input("{}").replace("input", "in\u{202e}put")),
        r"in\u{202e}put",
    );
}

#[test]
fn numbers_that_cannot_be_kept() {
    refused(written("1e400", &with_input("1e400")), "number out of range");
    refused(written("2^64", &with_input("[18446744073709551616]")), r#"at "/0" is the number"#);
    refused(written("-2^63 - 1", &with_input("[-9223372036854775809]")), r#"at "/0" is the number"#);
    assert_eq!(
        written("2^64 - 1", &with_input("[18446744073709551615, -9223372036854775808, 0.1, 5e-324]")),
        None
    );
}

#[test]
fn depth() {
    let nested = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
    assert_eq!(written("31 deep", &with_input(&nested(31))), None);
    refused(written("64 deep", &with_input(&nested(64))), "is nested more than 32 deep");
    refused(
        written("10,000 deep", &with_input(&nested(10_000))),
        "recursion limit exceeded at line 1 column",
    );
    refused(written("4 million brackets", &"[".repeat(4_000_000)), "line 1 column");
    // Deeper ones cannot even be made and dropped in Rust.
    let deep = (0..1_000).fold(json!(1), |inner, _| Value::Array(vec![inner]));
    let mut one = steps(1, previous);
    one[0].input = deep;
    refused(built("1,000 deep, from the builder", spec(one)), "is nested more than 32 deep");
}

#[test]
fn many_small_things() {
    let many = |n: usize| vec![r#"{"$output":"a"}"#; n].join(",");
    refused(
        written("16,000 bindings", &with_input(&format!("[{}]", many(16_000)))),
        "an input has at most 1000",
    );
    refused(
        written("4 million elements", &with_input(&format!("[{}]", vec!["1"; 4_000_000].join(",")))),
        "is one value too many",
    );
    let wide: Vec<_> = (0..18_000).map(|n| format!(r#""k{n}":{n}"#)).collect();
    assert_eq!(written("18,000 fields", &with_input(&format!("{{{}}}", wide.join(",")))), None);
    let key = "k".repeat(100_000);
    let long = format!(r#"{{"{key}": [{}]}}"#, vec!["[]"; 50_000].join(","));
    refused(written("a long key above many values", &with_input(&long)), "is one value too many");
    let text = format!(
        r#"{{"workflow": "w", "steps": [{}]}}"#,
        vec![r#"{"name":"a","activity":"b"}"#; 9_999].join(",")
    );
    refused(written("10,000 steps that are wrong in each way", &text), "more");
}

#[test]
fn an_object_that_says_a_thing_twice() {
    refused(written("in an input", &with_input(r#"{"a": 1, "a": 2}"#)), r#"the key "a" stands twice"#);
    refused(
        written("deeper, and disguised", &with_input(r#"[{"x": {"ab": 1, "a\u0062": 2}}]"#)),
        r#"the key "ab" stands twice"#,
    );
    refused(written("in a step", &with_input("1, \"input\": 2")), "duplicate field `input`");
    let twice = (0..20_000).map(|n| format!(r#""k{}":1"#, n % 19_999)).collect::<Vec<_>>().join(",");
    refused(
        written("after twenty thousand", &with_input(&format!("{{{twice}}}"))),
        r#"the key "k0" stands twice"#,
    );
}

/// Schemas are ours, inputs are not: what they say of each other must be bounded too.
#[test]
fn inputs_against_schemas_that_lead_back_to_themselves() {
    let schema = json!({
        "$ref": "#/$defs/Expr",
        "$defs": { "Expr": { "oneOf": [
            { "type": "object", "properties": { "op": { "const": "add" }, "l": { "$ref": "#/$defs/Expr" }, "r": { "$ref": "#/$defs/Expr" } }, "required": ["op"] },
            { "type": "object", "properties": { "op": { "const": "mul" }, "l": { "$ref": "#/$defs/Expr" }, "r": { "$ref": "#/$defs/Expr" } }, "required": ["op"] },
            { "type": "integer" },
        ] } },
    });
    let catalog = Activities::anything().with("do", schema, json!({}), plan::Effect::default());
    let nested = (0..29).fold(json!(1), |inner, _| json!({ "op": "add", "l": inner, "r": 2 }));
    let mut one = steps(1, previous);
    one[0].input = nested;
    assert_eq!(judged("an expression of depth 30", || Plan::check(spec(one.clone()), &catalog)), None);
    one[0].input["x"] = Value::Null;
    refused(
        judged("with a field too many", || Plan::check(spec(one.clone()), &catalog)),
        "is no field of this input",
    );

    let numbers = json!({ "type": "array", "items": { "type": "integer" } });
    let catalog = Activities::anything().with("do", numbers, json!({}), plan::Effect::default());
    let mut one = steps(1, previous);
    one[0].input = Value::Array(vec![json!("x"); 50_000]);
    refused(judged("50,000 wrong elements", || Plan::check(spec(one.clone()), &catalog)), "is not of type");
}

#[test]
fn a_schema_that_cannot_be_used_is_said_and_not_passed_over() {
    let catalog =
        Activities::anything().with("do", json!({ "type": "nonsense" }), json!({}), plan::Effect::default());
    refused(
        judged("a wrong schema", || Plan::check(spec(steps(1, previous)), &catalog)),
        "the schema of the activity do is wrong",
    );
}

#[test]
fn the_limits_are_what_the_documents_say() {
    assert_eq!((limits::STEPS, limits::EDGES, limits::BYTES, limits::DEPTH), (10_000, 50_000, 8 << 20, 32));
}
