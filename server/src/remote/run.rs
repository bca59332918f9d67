//! Runs: start, look, watch, steer.

use std::time::Duration;

use backstay_engine::RunId;
use backstay_engine::machine::{Forecast, Json, Row, event};
use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::args::{Became, DoneToRun, DoneToStep, Form, OfRun, Remote, RunCommand};
use super::client::{Api, confirm, segment};
use super::show::{clean, field, if_fails, list, one, time};
use crate::config::Config;
use crate::db::print;
use crate::interrupt::Interrupt;
use crate::tree::{Screen, View, tree};
use crate::trouble::Trouble;
use crate::written;

/// A tree on a terminal is drawn so often, for its clocks.
const FRAME: Duration = Duration::from_millis(250);
/// How long a watcher waits before it comes again.
const AGAIN: Duration = Duration::from_secs(1);

/// `backstay run`.
pub(crate) async fn run(command: &RunCommand, config: &Config, interrupt: &Interrupt) -> Result<(), Trouble> {
    interrupt.or(command_of(command, config)).await
}

async fn command_of(command: &RunCommand, config: &Config) -> Result<(), Trouble> {
    match command {
        RunCommand::Start { .. } => start(command, config).await,
        RunCommand::List { .. } => list_runs(command, config).await,
        RunCommand::Get(OfRun { run, remote }) => {
            one(&of_run(config, remote, run, "").await?, remote.output, "run");
            Ok(())
        }
        RunCommand::Watch(OfRun { run, remote }) => {
            watch(&Api::open(remote, config)?, run, remote.output, false).await.map(drop)
        }
        RunCommand::Steps(OfRun { run, remote }) => {
            let steps = of_run(config, remote, run, "/steps").await?;
            fn half(it: &Value, half: &str, name: &str) -> String {
                it.get(half).map(|half| field(half, name)).unwrap_or_default()
            }
            list(
                steps.as_array().map(Vec::as_slice).unwrap_or_default(),
                remote.output,
                "step",
                &[
                    ("STEP", |it| field(it, "step")),
                    ("STATE", |it| half(it, "forward", "state")),
                    ("ATTEMPTS", |it| half(it, "forward", "attempts")),
                    ("UNDO", |it| half(it, "undo", "state")),
                    ("ACTIVITY", |it| field(it, "activity")),
                    ("WHY", |it| {
                        let why = half(it, "forward", "why");
                        let why = if why.is_empty() { half(it, "undo", "why") } else { why };
                        match it.get("child").filter(|child| !child.is_null()) {
                            None => why,
                            Some(child) => format!(
                                "run {} is {}: {} of {} steps",
                                field(child, "run"),
                                field(child, "status"),
                                field(child, "done"),
                                field(child, "steps")
                            ),
                        }
                    }),
                ],
            );
            Ok(())
        }
        RunCommand::Resources(OfRun { run, remote }) => {
            let all = of_run(config, remote, run, "/resources").await?;
            list(
                all.as_array().map(Vec::as_slice).unwrap_or_default(),
                remote.output,
                "name",
                &[
                    ("KIND", |it| field(it, "kind")),
                    ("NAME", |it| field(it, "name")),
                    ("FATE", |it| field(it, "fate")),
                    ("STEP", |it| field(it, "step")),
                ],
            );
            Ok(())
        }
        RunCommand::Explain(OfRun { run, remote }) => {
            let said = of_run(config, remote, run, "/explanation").await?;
            if remote.output != Form::Table {
                print(&format!("{said:#}\n"));
                return Ok(());
            }
            let mut text = format!("Why:     {}\n", clean(&field(&said, "why")));
            text += &format!("Since:   {}\n", time(&said, "since"));
            text += &format!("Until:   {}\n", clean(&field(&said, "unblocked_by")));
            let rest = said.get("remaining").and_then(|rest| Forecast::deserialize(rest).ok());
            if let Some(rest) = rest {
                text += &format!("Left:    {}\n", clean(&rest.to_string()));
            }
            print(&text);
            Ok(())
        }
        RunCommand::Export(OfRun { run, remote }) => {
            let path = format!("/runs/{}/runbook", segment(run));
            let page = Api::open(remote, config)?.ask(reqwest::Method::GET, &path, &[], None, None).await?;
            print(&page.text);
            Ok(())
        }
        RunCommand::Picture { at: OfRun { run, remote }, form } => {
            let path = format!("/runs/{}/picture", segment(run));
            let form = form.to_possible_value().map(|form| form.get_name().to_owned()).unwrap_or_default();
            let api = Api::open(remote, config)?;
            let drawn = api.ask(reqwest::Method::GET, &path, &[("as", form)], None, None).await?;
            print(&drawn.text);
            Ok(())
        }
        RunCommand::Retry(at) => step(config, at, "retry", json!({ "undo": at.undo })).await,
        RunCommand::Edit { at, input } => {
            let input = written::read(input)?;
            confirm(
                &format!("Step {} is tried again with another input than its plan says.", at.step),
                at.yes,
            )?;
            step(config, at, "retry", json!({ "undo": at.undo, "input": input })).await
        }
        RunCommand::Skip { at, result } => {
            let output = parsed(result, "--result")?;
            reason(&at.why)?;
            confirm(&format!("The run goes on as if {} had come to {output}.", at.step), at.yes)?;
            step(config, at, "skip", json!({ "undo": at.undo, "output": output })).await
        }
        RunCommand::UndoStep { at, cascade } => {
            let more = if *cascade { ", and all that come after it," } else { "" };
            confirm(&format!("Step {}{more} is undone.", at.step), at.yes)?;
            step(config, at, "undo", json!({ "cascade": cascade })).await
        }
        RunCommand::Override(at) => {
            reason(&at.why)?;
            confirm(&format!("Step {} may start without the proof that it requires.", at.step), at.yes)?;
            step(config, at, "override", json!({})).await
        }
        RunCommand::Approve { at, right } => {
            // What is approved is the plan that is shown here, by its hash.
            let run = of_run(config, &at.remote, &at.run, "").await?;
            let hash = field(&run, "plan_hash");
            let what = format!(
                "You say yes to step {} of {} ({}), plan {hash}.",
                at.step,
                field(&run, "workflow"),
                at.run
            );
            confirm(&what, at.yes)?;
            step(config, at, "approve", json!({ "right": right, "plan_hash": hash })).await
        }
        RunCommand::Reject { at, right } => {
            confirm(&format!("You say no to step {}: it fails, as its plan says.", at.step), at.yes)?;
            step(config, at, "reject", json!({ "right": right })).await
        }
        RunCommand::Account { at, kind, name, became } => {
            reason(&at.why)?;
            let became = match became {
                Became::Gone => "gone",
                Became::Kept => "kept",
            };
            confirm(&format!("You say that {kind} {name} of step {} is {became}.", at.step), at.yes)?;
            step(config, at, "account", json!({ "kind": kind, "name": name, "became": became })).await
        }
        RunCommand::Pause(at) => whole(config, at, "pause", json!({})).await,
        RunCommand::Resume(at) => whole(config, at, "resume", json!({})).await,
        RunCommand::Rollback { at, leave, past_failures, past_no_return } => {
            preview(config, at, leave).await?;
            let body =
                json!({ "leave": leave, "past_failures": past_failures, "past_no_return": past_no_return });
            whole(config, at, "rollback", body).await
        }
        RunCommand::Commit(at) => {
            confirm("The run is made final. It cannot be rolled back afterwards.", at.yes)?;
            whole(config, at, "commit", json!({})).await
        }
        RunCommand::Close { at, manifest } => {
            reason(&at.why)?;
            let manifest = parsed(manifest, "--manifest")?;
            confirm("The run is closed. What it left behind stays, and nobody undoes it.", at.yes)?;
            whole(config, at, "close", json!({ "manifest": manifest })).await
        }
        RunCommand::Signal { at, name, payload } => {
            let payload = parsed(payload, "--payload")?;
            whole(config, at, "signals", json!({ "name": name, "payload": payload })).await
        }
    }
}

async fn of_run(config: &Config, remote: &Remote, run: &str, what: &str) -> Result<Value, Trouble> {
    Api::open(remote, config)?.get(&format!("/runs/{}{what}", segment(run)), &[]).await
}

fn reason(why: &str) -> Result<(), Trouble> {
    match why.trim().is_empty() {
        true => Err(Trouble::usage("It needs a reason, which is kept with it: --why \"…\".")),
        false => Ok(()),
    }
}

fn parsed(text: &str, what: &str) -> Result<Value, Trouble> {
    serde_json::from_str(text).map_err(|error| {
        Trouble::usage(format!("{what} is no JSON: {error}. A text needs quotes: '\"text\"'."))
    })
}

fn pairs(labels: &[String]) -> Result<Vec<(&str, &str)>, Trouble> {
    let pair = |label: &'_ String| label.split_once('=').map(|_| ());
    if let Some(wrong) = labels.iter().find(|label| pair(label).is_none()) {
        return Err(Trouble::usage(format!("--label {wrong} looks like NAME=VALUE.")));
    }
    Ok(labels.iter().filter_map(|label| label.split_once('=')).collect())
}

async fn start(command: &RunCommand, config: &Config) -> Result<(), Trouble> {
    let RunCommand::Start { workflow, input, plan, wait, exclusive, label, key, why, dry_run, remote } =
        command
    else {
        return Ok(());
    };
    let api = Api::open(remote, config)?;
    let plan = plan.as_deref().map(written::read).transpose()?;
    let input = input.as_deref().map(written::read).transpose()?;
    if *dry_run {
        let checked = match workflow {
            None => api.post("/plans/check", &json!({ "plan": plan })).await?,
            Some(name) => {
                let body = json!({ "input": input.unwrap_or_else(|| json!({})) });
                api.post(&format!("/workflows/{}/plan", segment(name)), &body).await?
            }
        };
        if remote.output != Form::Table {
            print(&format!("{checked:#}\n"));
            return Ok(());
        }
        print(&format!("The plan is right. Its hash: {}\n", field(&checked, "hash")));
        print(&if_fails(&checked));
        return Ok(());
    }
    let labels: Map<String, Value> =
        pairs(label)?.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    let body = json!({ "workflow": workflow, "input": input, "plan": plan, "exclusive": exclusive, "labels": labels, "why": why });
    let started = api.ask(reqwest::Method::POST, "/runs", &[], Some(&body), key.as_deref()).await?.json()?;
    let run = field(&started, "run");
    if !*wait {
        match remote.output {
            Form::Table => print(&format!("{run}\n")),
            form => one(&started, form, "run"),
        }
        return Ok(());
    }
    let form = if remote.output == Form::Table { Form::Table } else { Form::Name };
    let mut status = watch(&api, &run, form, true).await?;
    if remote.output == Form::Json {
        let ended = api.get(&format!("/runs/{run}"), &[]).await?;
        status = field(&ended, "status");
        print(&format!("{ended:#}\n"));
    }
    match status.as_str() {
        "succeeded" | "committed" => Ok(()),
        "held" | "stuck" | "quarantined" | "paused" => Err(Trouble {
            code: 8,
            text: format!(
                "Run {run} is {status}: somebody has to decide. See \"backstay run explain {run}\"."
            ),
        }),
        other => Err(Trouble { code: 7, text: format!("Run {run} is {}.", other.replace('_', " ")) }),
    }
}

async fn list_runs(command: &RunCommand, config: &Config) -> Result<(), Trouble> {
    let RunCommand::List { status, workflow, label, exclusive, failing, since, until, live, limit, remote } =
        command
    else {
        return Ok(());
    };
    let mut query = vec![("limit", limit.to_string())];
    let texts = [
        ("status", status),
        ("workflow", workflow),
        ("exclusive", exclusive),
        ("failing", failing),
        ("since", since),
        ("until", until),
    ];
    query.extend(texts.into_iter().filter_map(|(name, text)| Some((name, text.clone()?))));
    query.extend(live.then(|| ("live", "true".to_owned())));
    let labels = pairs(label)?.into_iter().map(|(name, value)| format!("{name}:{value}")).collect::<Vec<_>>();
    query.extend((!labels.is_empty()).then(|| ("labels", labels.join(","))));
    let page = Api::open(remote, config)?.get("/runs", &query).await?;
    let items = page.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    list(
        &items,
        remote.output,
        "run",
        &[
            ("RUN", |it| field(it, "run")),
            ("WORKFLOW", |it| field(it, "workflow")),
            ("STATUS", |it| field(it, "status")),
            ("SUBMITTED", |it| time(it, "submitted_at")),
            ("ENDED", |it| time(it, "finished_at")),
            ("FAILING", |it| field(it, "failing")),
            ("NOTE", |it| field(it, "note")),
        ],
    );
    if page.get("next").is_some_and(Value::is_string) && remote.output == Form::Table {
        eprintln!("There are more; narrow it down, or raise --limit.");
    }
    Ok(())
}

async fn step(config: &Config, at: &DoneToStep, verb: &str, body: Value) -> Result<(), Trouble> {
    let path = format!("/runs/{}/steps/{}/{verb}", segment(&at.run), segment(&at.step));
    done(&Api::open(&at.remote, config)?, &path, body, &at.why, at.remote.output).await
}

async fn whole(config: &Config, at: &DoneToRun, verb: &str, body: Value) -> Result<(), Trouble> {
    let path = format!("/runs/{}/{verb}", segment(&at.run));
    done(&Api::open(&at.remote, config)?, &path, body, &at.why, at.remote.output).await
}

async fn done(api: &Api, path: &str, mut body: Value, why: &str, form: Form) -> Result<(), Trouble> {
    if let Value::Object(body) = &mut body {
        body.insert("why".into(), why.into());
    }
    let answer = api.post(path, &body).await?;
    match (form, answer.get("waiting") == Some(&Value::Bool(true))) {
        (Form::Table, true) => print("It is durable, and the run has not answered yet; it will.\n"),
        (Form::Table, false) => print(&format!("Done: event {} of the run.\n", field(&answer, "seq"))),
        (form, _) => one(&answer, form, "id"),
    }
    Ok(())
}

/// What a rollback would undo, before it does.
async fn preview(config: &Config, at: &DoneToRun, leave: &[String]) -> Result<(), Trouble> {
    if at.yes {
        return Ok(());
    }
    let steps = of_run(config, &at.remote, &at.run, "/steps").await?;
    let mut undone = Vec::new();
    for step in steps.as_array().into_iter().flatten() {
        let name = field(step, "step");
        let applied =
            step.get("forward").and_then(|half| half.get("may_be_applied")) == Some(&Value::Bool(true));
        let has_undo = step.get("undo").is_some_and(Value::is_object);
        if applied && has_undo && !leave.contains(&name) {
            undone.push(name);
        }
    }
    undone.reverse();
    let what = if undone.is_empty() {
        "nothing has to be undone".to_owned()
    } else {
        format!("undone, last first: {}", undone.join(", "))
    };
    confirm(&clean(&format!("The run is rolled back; {what}.")), false)
}

/// Watches a run until it is over, or also until it waits for people, and says where it is then.
async fn watch(api: &Api, run: &str, form: Form, or_waits: bool) -> Result<String, Trouble> {
    let id: RunId = crate::run::id(run)?;
    let mut screen = Screen::new();
    let mut view: Option<View> = None;
    let mut seen = 0;
    'again: loop {
        let mut events = api.events(run, seen).await?;
        let mut text = String::new();
        let mut bytes = Vec::new();
        loop {
            let chunk = tokio::time::timeout(FRAME, events.chunk()).await;
            if let (Err(_), Some(view), true) = (&chunk, &view, form == Form::Table && screen.is_live()) {
                screen.draw(&tree(view, view.now(), &screen.style()));
            }
            match chunk {
                Err(_) => continue,
                Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
                // Cut off: it goes on after the last event that was seen.
                Ok(Ok(None) | Err(_)) => {
                    tokio::time::sleep(AGAIN).await;
                    continue 'again;
                }
            }
            // A character may be cut in two by the edge of a chunk; a message never ends inside one.
            while let Some(end) = bytes.windows(2).position(|pair| pair == b"\n\n") {
                let message: Vec<u8> = bytes.drain(..end + 2).collect();
                text.clear();
                text += &String::from_utf8_lossy(&message);
                let Some((kind, data)) = message_of(&text) else { continue };
                if kind == "end" {
                    if let (Some(view), Form::Table) = (&view, form) {
                        screen.lines(&tree(view, view.now(), &screen.style()));
                    }
                    return Ok(view.map(|view| view.state.status().as_str().to_owned()).unwrap_or_default());
                }
                let Some(row) = row_of(&data) else { continue };
                seen = row.seq;
                if form == Form::Json {
                    print(&format!("{data}\n"));
                }
                let view = match &mut view {
                    Some(view) => view,
                    None => view.insert(View::begin(id, &row)?),
                };
                let journaled = view.take(&row)?;
                if form == Form::Table {
                    match screen.is_live() {
                        true => screen.draw(&tree(view, view.now(), &screen.style())),
                        false => {
                            if let Some(line) = view.line(&journaled.event, None) {
                                screen.say(&clean(&line));
                            }
                        }
                    }
                }
            }
            // Only once all that is there was read: an old hold that was answered since is none.
            if let Some(view) = &view
                && or_waits
                && view.state.status().settles()
                && !view.state.status().is_end()
                && bytes.is_empty()
            {
                let status = field(&api.get(&format!("/runs/{}", segment(run)), &[]).await?, "status");
                if status == view.state.status().as_str() && form != Form::Json {
                    if form == Form::Table {
                        screen.lines(&tree(view, view.now(), &screen.style()));
                    }
                    return Ok(status);
                }
            }
        }
    }
}

/// The kind and the data of one message of a stream.
fn message_of(text: &str) -> Option<(String, Value)> {
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let data = serde_json::from_str(line("data:")?).ok()?;
    Some((line("event:")?.to_owned(), data))
}

fn row_of(data: &Value) -> Option<Row> {
    let int = |name: &str| data.get(name).and_then(Value::as_i64);
    Some(Row {
        seq: int("seq")?,
        claim: i32::try_from(int("claim")?).ok()?,
        epoch: 0,
        at: serde_json::from_value(data.get("at")?.clone()).ok()?,
        kind: event::kind(data.get("kind")?.as_str()?)?,
        step: data.get("step").and_then(Value::as_str).map(Into::into),
        undo: data.get("undo")?.as_bool()?,
        generation: i32::try_from(int("generation")?).ok()?,
        attempt: i32::try_from(int("attempt")?).ok()?,
        key: data.get("key").and_then(Value::as_str).and_then(|key| key.parse().ok()),
        body: data.get("body").filter(|body| !body.is_null()).map(Json::of),
        seal: None,
    })
}
