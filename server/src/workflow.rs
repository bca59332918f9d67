//! `backstay workflow`: the workflows there are, here or at a server.

mod fields;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_engine::machine::{Json, Plan};
use backstay_workflows::{Prepared, Problem, Workflow, Workflows, harmless};
use serde_json::{Value, json};

use crate::api::plans::{Failing, PlanView};
use crate::catalog;
use crate::cli::{Drawing, WorkflowCommand, WorkflowSource};
use crate::config::Config;
use crate::db::print;
use crate::remote::show::{field, if_fails};
use crate::remote::workflows::OfServer;
use crate::trouble::Trouble;
use crate::written;

/// Does what is asked.
pub(crate) async fn run(command: &WorkflowCommand, config: &Config) -> Result<(), Trouble> {
    match command {
        WorkflowCommand::Check { paths, json } => check(paths, config, *json),
        WorkflowCommand::List { from } => {
            let all = match source(&from.source, config)? {
                Source::Here(workflows) => workflows.list().map(|one| described(&**one)).collect(),
                Source::Server(server) => server.list().await?,
            };
            list(&all, from.json);
            Ok(())
        }
        WorkflowCommand::Show { name, from } => {
            let one = match source(&from.source, config)? {
                Source::Here(workflows) => {
                    let workflow = named(&workflows, name)?;
                    let mut all = described(&*workflow);
                    if let Some(map) = all.as_object_mut() {
                        map.insert("source".into(), json!(workflow.source()));
                    }
                    all
                }
                Source::Server(server) => server.one(name).await?,
            };
            show(&one, from.json);
            Ok(())
        }
        WorkflowCommand::Plan { name, input, failing, from } => {
            let input = input.as_deref().map_or(Ok(json!({})), written::read)?;
            let planned = match source(&from.source, config)? {
                Source::Here(workflows) => {
                    here(&*named(&workflows, name)?, &input, failing.as_ref(), config)?
                }
                Source::Server(server) => {
                    of_server(name, server.plan(name, &input, failing.as_ref()).await?)?
                }
            };
            plan(&planned, from.json);
            Ok(())
        }
        WorkflowCommand::Picture { name, input, form, source: from } => {
            let input = input.as_deref().map_or(Ok(json!({})), written::read)?;
            print(&match source(from, config)? {
                Source::Server(server) => server.picture(name, &input, *form).await?,
                Source::Here(workflows) => {
                    let (_, plan) = made(&*named(&workflows, name)?, &input, config)?;
                    match form {
                        Drawing::Dot => plan.to_dot(),
                        Drawing::Mermaid => plan.to_mermaid(),
                        Drawing::Svg => plan.to_svg(),
                    }
                }
            });
            Ok(())
        }
    }
}

/// Where workflows are looked up.
enum Source {
    Here(Workflows),
    Server(OfServer),
}

/// The files of a directory that is named, else the server that is named, else what this machine is configured with; and it
/// says which, since a server may have others than the machine that one sits at.
fn source(from: &WorkflowSource, config: &Config) -> Result<Source, Trouble> {
    if from.dir.is_none() && from.at.server.is_some() {
        let server = OfServer::open(&from.at, config)?;
        eprintln!("Workflows of the server at {}", server.address());
        return Ok(Source::Server(server));
    }
    let here = load(config)?;
    match config.workflows.dir.display().to_string() {
        none if none.is_empty() => eprintln!("Workflows of this machine"),
        dir => eprintln!("Workflows of this machine, from {dir}"),
    }
    Ok(Source::Here(here))
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

fn list(all: &[Value], as_json: bool) {
    if as_json {
        print(&format!("{:#}\n", Value::from(all)));
        return;
    }
    let width = all.iter().map(|one| field(one, "name").chars().count()).max().unwrap_or(0);
    for one in all {
        let version = field(one, "version");
        let line = format!("{:width$}  {}  {}", field(one, "name"), short(&version), field(one, "title"));
        print(&format!("{}\n", harmless(&line)));
    }
}

fn show(one: &Value, as_json: bool) {
    if as_json {
        print(&format!("{one:#}\n"));
        return;
    }
    let mut text = format!("Name:     {}\n", field(one, "name"));
    let title = field(one, "title");
    if !title.is_empty() {
        text += &format!("Title:    {title}\n");
    }
    text += &format!("Version:  {}\n", field(one, "version"));
    let description = field(one, "description");
    if !description.is_empty() {
        text += &format!("\n{}\n", description.trim());
    }
    text += &fields::told(one.get("input_schema").unwrap_or(&Value::Null));
    print(&harmless(&text));
}

/// The plan that it makes of an input, and what a run of it would be submitted with.
fn made(workflow: &dyn Workflow, input: &Value, config: &Config) -> Result<(Prepared, Arc<Plan>), Trouble> {
    let refused = |problems: Vec<Problem>| {
        problems.iter().for_each(|problem| print(&format!("{problem}\n")));
        Trouble::failed(format!("There is no plan for this input: {}.", counted(problems.len(), "problem")))
    };
    let prepared = workflow.prepare(input).map_err(refused)?;
    let plan = workflow.checked(input, &catalog::known(config)?).map_err(refused)?;
    Ok((prepared, plan))
}

/// A plan, and all that is said of it.
struct Planned {
    plan: Arc<Plan>,
    all: Value,
}

fn here(
    workflow: &dyn Workflow,
    input: &Value,
    failing: Option<&String>,
    config: &Config,
) -> Result<Planned, Trouble> {
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
    let mut all = json!({
        "workflow": workflow.name(), "version": workflow.version(), "input": prepared.input,
        "exclusive": prepared.exclusive, "labels": prepared.labels,
    });
    if let (Value::Object(all), Value::Object(preview)) = (&mut all, preview) {
        all.extend(preview);
    }
    Ok(Planned { plan, all })
}

fn of_server(name: &str, mut all: Value) -> Result<Planned, Trouble> {
    let plan = Plan::from_submitted(&Json::of(&all)).map_err(|error| {
        Trouble::failed(format!(
            "The plan that the server made cannot be read; is it another release? {error}"
        ))
    })?;
    if let Some(map) = all.as_object_mut() {
        map.insert("workflow".into(), name.into());
    }
    Ok(Planned { plan, all })
}

fn plan(Planned { plan, all }: &Planned, as_json: bool) {
    if as_json {
        print(&format!("{all:#}\n"));
        return;
    }
    let mut text = format!("Workflow: {}\n", field(all, "workflow"));
    if let Some(title) = &plan.spec().title {
        text += &format!("Title:    {title}\n");
    }
    text += &format!("Version:  {}\nHash:     {}\n", field(all, "version"), plan.hash());
    let key = field(all, "exclusive");
    if !key.is_empty() {
        text += &format!("Key:      {key}\n");
    }
    let labels = all.get("labels").and_then(Value::as_object);
    for (name, value) in labels.into_iter().flatten() {
        text += &format!("Label:    {name}={}\n", value.as_str().unwrap_or_default());
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
    text += &format!("\n{}", if_fails(all));
    print(&harmless(&text));
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
    if !config.has_site() && config.workflows.dir.as_os_str().is_empty() {
        return Err(Trouble::usage(
            "There is no directory of workflows on this machine: set workflows.dir, name one with --dir, or a server with \
             --server or BACKSTAY_SERVER.",
        ));
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
