//! `backstay workflow`: the workflows there are, without a database.

mod fields;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_engine::machine::Plan;
use backstay_workflows::{Prepared, Problem, Workflow, Workflows, harmless};
use serde_json::{Value, json};

use crate::api::plans::{Failing, PlanView};
use crate::catalog;
use crate::cli::{Drawing, WorkflowCommand, WorkflowFrom};
use crate::config::Config;
use crate::db::print;
use crate::remote::show::if_fails;
use crate::trouble::Trouble;
use crate::written;

/// Does what is asked.
pub(crate) fn run(command: &WorkflowCommand, config: &Config) -> Result<(), Trouble> {
    match command {
        WorkflowCommand::Check { paths, json } => check(paths, config, *json),
        WorkflowCommand::List { from } => list(&load(config)?, from),
        WorkflowCommand::Show { name, from } => show(&*named(&load(config)?, name)?, from),
        WorkflowCommand::Plan { name, input, failing, from } => {
            let workflow = named(&load(config)?, name)?;
            plan(&*workflow, input.as_deref(), failing.as_ref(), from, config)
        }
        WorkflowCommand::Picture { name, input, form, .. } => {
            let workflow = named(&load(config)?, name)?;
            let (_, plan) = made(&*workflow, input.as_deref(), config)?;
            print(&match form {
                Drawing::Dot => plan.to_dot(),
                Drawing::Mermaid => plan.to_mermaid(),
                Drawing::Svg => plan.to_svg(),
            });
            Ok(())
        }
    }
}

fn check(paths: &[PathBuf], config: &Config, as_json: bool) -> Result<(), Trouble> {
    let paths = match paths {
        [] => vec![dir(config)?.to_owned()],
        paths => paths.to_vec(),
    };
    let mut workflows = Workflows::new();
    let mut problems = Vec::new();
    let mut files = Vec::new();
    for path in &paths {
        match Workflows::files(path) {
            // A file that is named twice is checked once.
            Ok(found) => {
                files.extend(found.into_iter().filter(|file| !files.contains(file)).collect::<Vec<_>>())
            }
            Err(wrong) => problems.extend(wrong),
        }
    }
    if let Err(wrong) = workflows.load(&files, &catalog::known(config)?) {
        problems.extend(wrong);
    }
    if as_json {
        print(&format!("{:#}\n", json!({ "files": files.len(), "problems": problems })));
    } else {
        problems.iter().for_each(|problem| print(&format!("{problem}\n")));
        if problems.is_empty() {
            print(&format!("checked {}: they are right\n", counted(files.len(), "file")));
        }
    }
    match problems.len() {
        0 => Ok(()),
        wrong => Err(Trouble::failed(format!(
            "{} found in {}.",
            counted(wrong, "problem"),
            counted(files.len(), "file")
        ))),
    }
}

fn list(workflows: &Workflows, from: &WorkflowFrom) -> Result<(), Trouble> {
    if from.json {
        let all: Vec<_> = workflows.list().map(|workflow| described(&**workflow)).collect();
        print(&format!("{:#}\n", Value::from(all)));
        return Ok(());
    }
    let width = workflows.list().map(|workflow| workflow.name().len()).max().unwrap_or(0);
    for workflow in workflows.list() {
        let title = workflow.title().unwrap_or_default();
        let line = format!("{:width$}  {}  {title}", workflow.name(), short(workflow.version()));
        print(&format!("{}\n", harmless(&line)));
    }
    Ok(())
}

fn show(workflow: &dyn Workflow, from: &WorkflowFrom) -> Result<(), Trouble> {
    if from.json {
        let mut all = described(workflow);
        if let Some(map) = all.as_object_mut() {
            map.insert("source".into(), json!(workflow.source()));
        }
        print(&format!("{all:#}\n"));
        return Ok(());
    }
    let mut text = format!("Name:     {}\n", workflow.name());
    if let Some(title) = workflow.title() {
        text += &format!("Title:    {title}\n");
    }
    text += &format!("Version:  {}\n", workflow.version());
    if let Some(description) = workflow.description() {
        text += &format!("\n{}\n", description.trim());
    }
    text += &fields::told(&workflow.input_schema());
    print(&harmless(&text));
    Ok(())
}

/// The plan that it makes of an input, and what a run of it would be submitted with.
fn made(
    workflow: &dyn Workflow,
    input: Option<&Path>,
    config: &Config,
) -> Result<(Prepared, Arc<Plan>), Trouble> {
    let input = input.map_or(Ok(json!({})), written::read)?;
    let refused = |problems: Vec<Problem>| {
        problems.iter().for_each(|problem| print(&format!("{problem}\n")));
        Trouble::failed(format!("There is no plan for this input: {}.", counted(problems.len(), "problem")))
    };
    let prepared = workflow.prepare(&input).map_err(refused)?;
    let plan = workflow.checked(&input, &catalog::known(config)?).map_err(refused)?;
    Ok((prepared, plan))
}

fn plan(
    workflow: &dyn Workflow,
    input: Option<&Path>,
    failing: Option<&String>,
    from: &WorkflowFrom,
    config: &Config,
) -> Result<(), Trouble> {
    let (prepared, plan) = made(workflow, input, config)?;
    if let Some(step) = failing.filter(|step| plan.find(step).is_none()) {
        let there_are: Vec<_> = plan.steps().map(|(_, step)| step.name.to_string()).take(20).collect();
        return Err(Trouble::not_found(format!(
            "The plan has no step \"{}\"; there are: {}.",
            step.escape_debug(),
            there_are.join(", ")
        )));
    }
    let failing = Failing { failing: failing.cloned() };
    let preview = PlanView::of(&plan, &failing).map_err(|_| Trouble::failed("The plan cannot be shown."))?;
    let preview = serde_json::to_value(&preview).unwrap_or_default();
    if from.json {
        let mut all = json!({
            "workflow": workflow.name(), "version": workflow.version(), "input": prepared.input,
            "exclusive": prepared.exclusive, "labels": prepared.labels,
        });
        if let (Value::Object(all), Value::Object(preview)) = (&mut all, preview) {
            all.extend(preview);
        }
        print(&format!("{all:#}\n"));
        return Ok(());
    }
    let mut text = format!("Workflow: {}\n", workflow.name());
    if let Some(title) = &plan.spec().title {
        text += &format!("Title:    {title}\n");
    }
    text += &format!("Version:  {}\nHash:     {}\n", workflow.version(), plan.hash());
    if let Some(key) = &prepared.exclusive {
        text += &format!("Key:      {key}\n");
    }
    for (name, value) in &prepared.labels {
        text += &format!("Label:    {name}={value}\n");
    }
    text += &format!("\n{}:\n", counted(plan.len(), "step"));
    for &ix in plan.order() {
        let step = plan.step(ix);
        let after: Vec<_> = step.after.iter().map(|of| plan.step(*of).name.to_string()).collect();
        let after = if after.is_empty() { String::new() } else { format!(", after {}", after.join(", ")) };
        let undo =
            step.undo.as_ref().map(|undo| format!(", undone by {}", undo.activity)).unwrap_or_default();
        text += &format!("  {}: {}{undo}{after}\n", step.name, step.forward.activity);
    }
    text += &format!("\n{}", if_fails(&preview));
    print(&harmless(&text));
    Ok(())
}

fn dir(config: &Config) -> Result<&Path, Trouble> {
    let dir = &config.workflows.dir;
    if dir.as_os_str().is_empty() {
        return Err(Trouble::usage(
            "There is no directory of workflows: set workflows.dir, or name one on the command line.",
        ));
    }
    Ok(dir)
}

fn load(config: &Config) -> Result<Workflows, Trouble> {
    if !config.has_site() {
        dir(config)?;
    }
    catalog::all_workflows(config, &catalog::known(config)?).map_err(|problems| {
        problems.iter().for_each(|problem| eprintln!("{problem}"));
        Trouble::failed(format!("The workflows are not right: {}.", counted(problems.len(), "problem")))
    })
}

fn named(workflows: &Workflows, name: &str) -> Result<Arc<dyn Workflow>, Trouble> {
    workflows.get(name).cloned().ok_or_else(|| {
        let there_are: Vec<_> = workflows.list().map(|workflow| workflow.name()).collect();
        let there_are = if there_are.is_empty() { "none".to_owned() } else { there_are.join(", ") };
        Trouble::not_found(format!(
            "There is no workflow \"{}\"; there are: {there_are}.",
            name.escape_debug()
        ))
    })
}

fn described(workflow: &dyn Workflow) -> Value {
    json!({
        "name": workflow.name(), "title": workflow.title(), "description": workflow.description(),
        "version": workflow.version(), "input_schema": workflow.input_schema(),
    })
}

fn short(version: &str) -> &str {
    version.get(..12).unwrap_or(version)
}

fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
