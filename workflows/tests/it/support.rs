//! Activities to check against, and a short way to a template.

use std::collections::BTreeMap;

use backstay_machine::plan::{Effect, StepSpec};
use backstay_machine::{ActivitySpec, Catalog};
use backstay_workflows::{Problem, Template, Workflow};
use serde_json::{Value, json};

/// Activities that look like the built-in ones.
pub struct Activities(BTreeMap<String, ActivitySpec>);

impl Catalog for Activities {
    fn activity(&self, name: &str) -> Option<&ActivitySpec> {
        self.0.get(name)
    }

    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

pub fn activities() -> Activities {
    let mut all = BTreeMap::new();
    let mut add = |name: &str, input: Value, output: Value| {
        // Read as JSON would be: what else an activity may say of itself has its default.
        let spec = ActivitySpec { name: name.into(), input, output, effect: Effect::default(), pool: None };
        all.insert(name.to_owned(), spec);
    };
    add(
        "http",
        json!({ "type": "object", "required": ["url"], "additionalProperties": false, "properties": {
            "url": { "type": "string" }, "body": {},
            "method": { "enum": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] } } }),
        json!({ "type": "object", "required": ["status"], "properties": { "status": { "type": "integer" }, "body": {} } }),
    );
    add(
        "command",
        json!({ "type": "object", "required": ["program"], "additionalProperties": false, "properties": {
            "program": { "type": "string" }, "args": { "type": "array", "items": { "type": "string" } } } }),
        json!({ "type": "object", "properties": { "code": { "type": "integer" } } }),
    );
    add(
        "log",
        json!({ "type": "object", "required": ["text"], "additionalProperties": false, "properties": {
            "text": { "type": "string" }, "data": {} } }),
        json!({ "type": "object", "required": ["text"], "properties": { "text": { "type": "string" } } }),
    );
    Activities(all)
}

/// A template that is right.
#[track_caller]
pub fn template(text: &str) -> Template {
    Template::read(text).unwrap_or_else(|problems| panic!("{}", listed(&problems)))
}

pub fn listed(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

/// The steps for an input: name, what it comes after.
#[track_caller]
pub fn shape(template: &Template, input: Value) -> Vec<String> {
    let plan = template.plan(&input).unwrap_or_else(|problems| panic!("{}", listed(&problems)));
    plan.steps.iter().map(|step| format!("{} < {}", step.name, step.after.join(" "))).collect()
}

#[track_caller]
pub fn step(template: &Template, input: Value, name: &str) -> StepSpec {
    let plan = template.plan(&input).unwrap_or_else(|problems| panic!("{}", listed(&problems)));
    plan.steps.into_iter().find(|step| step.name == name).unwrap_or_else(|| panic!("there is no {name}"))
}

/// Everything that is wrong with a text, or with what it becomes.
#[track_caller]
pub fn wrong(text: &str) -> String {
    listed(&Template::load(text, &activities()).expect_err("nothing is wrong"))
}

/// Everything that is wrong with an input.
#[track_caller]
pub fn refused(template: &Template, input: Value) -> String {
    listed(&template.prepare(&input).expect_err("nothing is wrong"))
}
