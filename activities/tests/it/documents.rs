//! The plans in the documents are plans of these activities, and their schemas say what is wrong with one.

use std::path::Path;
use std::sync::Arc;

use backstay_activities::secrets::NoSecrets;
use backstay_activities::{Builtin, CommandSettings, HttpSettings, SendError, Signals, register};
use backstay_engine::machine::Catalog;
use backstay_engine::{Plan, Registry, RunId, async_trait};
use serde_json::{Value, json};
use uuid::Uuid;

struct Nobody;

#[async_trait]
impl Signals for Nobody {
    async fn send(
        &self,
        _: RunId,
        _: RunId,
        _: Uuid,
        _: String,
        _: String,
        _: Value,
    ) -> Result<(), SendError> {
        Err(SendError::Refused("nobody is there".into()))
    }
}

fn registry() -> Registry {
    let mut registry = Registry::new();
    let builtin = Builtin {
        http: HttpSettings::default(),
        command: CommandSettings::default(),
        secrets: Arc::new(NoSecrets),
        signals: Arc::new(Nobody),
    };
    register(&mut registry, builtin).unwrap();
    registry
}

#[test]
fn every_plan_in_the_documents_is_a_plan() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/activities.md");
    let page = std::fs::read_to_string(page).unwrap();
    let plans: Vec<_> =
        page.split("```json\n").skip(1).filter_map(|rest| Some(rest.split_once("\n```")?.0)).collect();
    for name in registry().names() {
        assert!(
            plans.iter().any(|plan| plan.contains(&format!("\"activity\": \"{name}\""))),
            "{name} is not shown"
        );
    }
    for plan in plans {
        if let Err(error) = Plan::check_json(plan, &registry()) {
            panic!("{error}\n{plan}");
        }
    }
}

#[test]
fn what_is_wrong_with_an_input_is_said_when_the_plan_is_checked() {
    let problems = |activity: &str, input: Value| {
        let plan = crate::support::single(activity, input);
        Plan::check_json(&plan.to_string(), &registry()).map(drop).map_err(|error| error.to_string())
    };
    for (activity, input, says) in [
        ("http", json!({}), "\"url\" is a required property"),
        ("http", json!({ "url": "https://a", "methd": "GET" }), "is no field of this input; there are"),
        ("http", json!({ "url": "https://a", "method": "get" }), "/method"),
        (
            "http",
            json!({ "url": "https://a", "headers": { "A": { "secrt": "x" } } }),
            "is no field of this input",
        ),
        ("http", json!({ "url": "https://a", "headers": { "A": ["x"] } }), "/headers/A"),
        ("http", json!({ "url": "https://a", "expect": ["ok"] }), "/expect/0"),
        ("http", json!({ "url": "https://a", "expect": [700] }), "/expect/0"),
        ("http", json!({ "url": "https://a", "on_status": { "423": "again" } }), "/on_status/423"),
        ("http", json!({ "url": "https://a", "response": { "as": "xml" } }), "/response/as"),
        ("http", json!({ "url": "https://a", "probe": { "method": "POST" } }), "is no field of this input"),
        ("command", json!({ "args": [] }), "\"program\" is a required property"),
        ("command", json!({ "program": "a", "shell": true }), "is no field of this input"),
        ("command", json!({ "program": "a", "expect": [300] }), "/expect/0"),
        ("signal", json!({ "run": "a" }), "\"name\" is a required property"),
        ("log", json!({ "text": "a", "level": "loud" }), "/level"),
        ("fail", json!({ "applied": "yes" }), "/applied"),
    ] {
        let said = problems(activity, input.clone()).expect_err(&input.to_string());
        assert!(said.contains(says), "{input}: {said}");
    }
    assert_eq!(problems("http", json!({ "url": "https://a", "expect": [204, "2xx", "200-204"] })), Ok(()));
}

/// What a plan can write is explained where an editor shows it.
#[test]
fn every_field_of_an_input_is_described() {
    fn walk(name: &str, schema: &Value, missing: &mut Vec<String>) {
        for (field, property) in schema["properties"].as_object().into_iter().flatten() {
            let refers = property.get("$ref").is_some();
            if property.get("description").is_none() && !refers {
                missing.push(format!("{name}.{field}"));
            }
        }
        for (part, definition) in schema["$defs"].as_object().into_iter().flatten() {
            walk(&format!("{name}/{part}"), definition, missing);
        }
    }
    let (registry, mut missing) = (registry(), Vec::new());
    for name in registry.names() {
        let spec = registry.activity(name).unwrap();
        walk(name, &spec.input, &mut missing);
        walk(name, &spec.output, &mut missing);
    }
    assert!(missing.is_empty(), "{missing:?}");
}
