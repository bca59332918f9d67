//! The files in `examples/`: they are right, and they become what they say.

use std::path::{Path, PathBuf};

use backstay_workflows::Workflows;
use serde_json::{Value, json};

use crate::support::{activities, listed};

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

fn examples() -> Workflows {
    let mut workflows = Workflows::new();
    if let Err(problems) = workflows.load_dir(&dir(), &activities()) {
        panic!("{}", listed(&problems));
    }
    workflows
}

#[test]
fn the_examples_are_right() {
    let names: Vec<_> = examples().list().map(|workflow| workflow.name().to_owned()).collect();
    assert_eq!(names, ["move-database", "rolling-restart", "rotate-certificate"]);
}

/// A diff here is a changed meaning of files that people have.
#[test]
fn the_examples_become_these_plans() {
    let mut text = String::new();
    for workflow in examples().list() {
        let schema = workflow.input_schema();
        for input in schema["examples"].as_array().unwrap() {
            let prepared = workflow.prepare(input).unwrap();
            text += &format!(
                "# {} {:?} {:?}\n",
                prepared.plan.title.as_deref().unwrap(),
                prepared.exclusive,
                prepared.labels
            );
            for step in &prepared.plan.steps {
                text += &format!("{} < {}\n    {}\n", step.name, step.after.join(", "), step.input);
                for proof in &step.requires {
                    text += &format!("    proven by {}\n", proof.step);
                }
            }
            let plan = workflow
                .checked(input, &activities())
                .unwrap_or_else(|problems| panic!("{}", listed(&problems)));
            assert_eq!(plan.len(), prepared.plan.steps.len());
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn each_example_takes_a_great_many_hosts_in_a_moment() {
    let workflows = examples();
    let hosts: Vec<_> = (0..200).map(|n| format!("web-{n}")).collect();
    let before = std::time::Instant::now();
    let input = json!({ "service": "billing", "hosts": hosts });
    let plan = workflows.get("rolling-restart").unwrap().checked(&input, &activities()).unwrap();
    assert_eq!(plan.len(), 200 * 5 + 2);
    println!("{:?}", before.elapsed());
    assert!(before.elapsed().as_secs() < 5);
    let mut input: Value = input;
    input["hosts"][7] = json!("WEB");
    let wrong = workflows.get("rolling-restart").unwrap().prepare(&input).unwrap_err();
    assert_eq!(wrong[0].place, "hosts[7]");
}
