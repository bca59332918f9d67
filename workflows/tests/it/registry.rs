//! A directory of workflows.

use std::sync::Arc;

use backstay_workflows::{Rule, Template, Workflows};

use crate::support::{activities, listed};

fn text(name: &str) -> String {
    format!(
        "workflow: {name}\nsteps: [{{ name: a, activity: log, input: {{ text: t }}, nothing_to_undo: n }}]\n"
    )
}

#[test]
fn a_directory_is_loaded_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    for (file, content) in [("b.yaml", text("b")), ("a.yml", text("a")), ("c.json", r#"{"workflow": "c", "steps": [{"name": "a", "activity": "log", "input": {"text": "t"}, "nothing_to_undo": "n"}]}"#.into()), ("notes.txt", "-".into()), (".b.yaml.swp.yaml", "-".into())] {
        std::fs::write(dir.path().join(file), content).unwrap();
    }
    let mut workflows = Workflows::new();
    workflows.load_dir(dir.path(), &activities()).unwrap();
    assert_eq!(workflows.list().map(|w| w.name()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(workflows.get("a").unwrap().source(), Some(text("a").as_str()));
}

#[test]
fn all_that_is_wrong_in_all_files_is_told_and_nothing_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let bad = text("x").replace("log", "lgo");
    for (file, content) in [
        ("1.yaml", text("same")),
        ("2.yaml", text("same")),
        ("3.yaml", bad),
        ("4.yaml", "a: [".into()),
        ("5.yaml", "a: b\na: c\n".into()),
    ] {
        std::fs::write(dir.path().join(file), content).unwrap();
    }
    std::fs::write(dir.path().join("6.yaml"), b"a: \xff").unwrap();
    std::fs::create_dir(dir.path().join("7.yaml")).unwrap();
    pipe(&dir.path().join("8.yaml"));
    let mut workflows = Workflows::new();
    workflows.insert(Arc::new(Template::read(&text("before")).unwrap())).unwrap();
    let problems = workflows.load_dir(dir.path(), &activities()).unwrap_err();
    let said = listed(&problems);
    for part in [
        "2.yaml: workflow [name]: there is a workflow \"same\" already",
        "3.yaml:2:9: steps[0] [plan activity]: step \"a\": its step runs \"lgo\", which is no activity here",
        "4.yaml:",
        "5.yaml:2:1: [form]: the key \"a\" stands twice in one map",
        "6.yaml:1:4: [form]: this is no UTF-8",
        "8.yaml: [file]: this is no file",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert!(!said.contains("7.yaml"));
    assert_eq!(workflows.len(), 1, "nothing was taken");
    let problems = workflows.load_dir(&dir.path().join("nowhere"), &activities()).unwrap_err();
    assert_eq!(problems[0].rule, Rule::File);
}

/// A pipe that nobody writes to.
fn pipe(path: &std::path::Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_problem_is_data_too() {
    let problem = &Template::read("a: b\na: c\n").unwrap_err()[0];
    let json = serde_json::to_value(problem).unwrap();
    assert_eq!(
        json,
        serde_json::json!({ "line": 2, "column": 1, "rule": "form", "message": "the key \"a\" stands twice in one map" })
    );
}
