//! Secrets, and the keys that seal them.

use std::io::{IsTerminal, Read};
use std::path::Path;

use backstay_activities::secrets::MOST;
use reqwest::Method;
use serde_json::{Value, json};

use super::args::{Form, SecretCommand, Shown};
use super::client::{Api, confirm, segment};
use super::show::{clean, field, list, one, time};
use crate::config::Config;
use crate::db::print;
use crate::trouble::Trouble;

/// `backstay secret`.
pub(crate) async fn run(command: &SecretCommand, config: &Config) -> Result<(), Trouble> {
    let path = |name: &str| format!("/secrets/{}", segment(name));
    match command {
        SecretCommand::Set { name, from_file, origin, program, remote } => {
            let text = text(from_file.as_deref())?;
            let api = Api::open(remote, config)?;
            let before = match api.get(&path(name), &[]).await {
                Ok(before) => Some(before),
                Err(trouble) if trouble.code == 3 => None,
                Err(trouble) => return Err(trouble),
            };
            let kept = |at: &str, said: &[String]| match &before {
                Some(before) if origin.is_empty() && program.is_empty() => before.get(at).cloned(),
                _ => Some(json!(said)),
            };
            let body = json!({ "text": text, "origins": kept("origins", origin), "programs": kept("programs", program) });
            let seen = before.as_ref().and_then(|before| before.get("version")?.as_i64());
            let set = api.ask_if(Method::PUT, &path(name), &[], Some(&body), None, seen).await?.json()?;
            one(&set, remote.output, "name");
        }
        SecretCommand::List(Shown { remote }) => {
            let api = Api::open(remote, config)?;
            let (mut items, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = api.get("/secrets", &[("limit", "500".into()), ("cursor", cursor)]).await?;
                items.extend(page.get("items").and_then(Value::as_array).into_iter().flatten().cloned());
                match page.get("next").and_then(Value::as_str) {
                    Some(next) => cursor = next.to_owned(),
                    None => break,
                }
            }
            list(
                &items,
                remote.output,
                "name",
                &[
                    ("NAME", |it| field(it, "name")),
                    ("VERSION", |it| field(it, "version")),
                    ("SET", |it| time(it, "changed_at")),
                    ("BY", |it| field(it, "changed_by")),
                    ("KEY", |it| field(it, "key")),
                    ("ORIGINS", |it| field(it, "origins")),
                    ("PROGRAMS", |it| field(it, "programs")),
                    ("BROKEN", |it| field(it, "broken")),
                ],
            );
        }
        SecretCommand::Remove { name, yes, remote } => {
            let api = Api::open(remote, config)?;
            confirm(&format!("Calls that name the secret \"{name}\" fail once it is removed."), *yes)?;
            api.ask(Method::DELETE, &path(name), &[], None, None).await?;
            if remote.output == Form::Table {
                print("It is removed.\n");
            }
        }
        SecretCommand::Keys(Shown { remote }) => {
            let all = Api::open(remote, config)?.get("/keys", &[]).await?;
            let items = all.as_array().cloned().unwrap_or_default();
            list(
                &items,
                remote.output,
                "name",
                &[
                    ("NAME", |it| field(it, "name")),
                    ("CURRENT", |it| field(it, "current")),
                    ("HERE", |it| field(it, "here")),
                    ("SECRETS", |it| field(it, "secrets")),
                ],
            );
        }
        SecretCommand::Rewrap(Shown { remote }) => {
            return rewrap(&Api::open(remote, config)?, remote.output).await;
        }
    }
    Ok(())
}

/// Batch by batch. What is done stays done, so there is nothing to remember between two calls of it.
async fn rewrap(api: &Api, form: Form) -> Result<(), Trouble> {
    let (mut after, mut done, mut failed) = (String::new(), 0, Vec::new());
    loop {
        let batch = api.ask(Method::POST, "/keys/rewrap", &[("after", after)], None, None).await?.json()?;
        let number = |name: &str| batch.get(name).and_then(Value::as_i64).unwrap_or(0);
        done += number("resealed");
        failed.extend(batch.get("failed").and_then(Value::as_array).into_iter().flatten().cloned());
        match form {
            Form::Table => print(&format!("{done} sealed anew, {} left\n", number("left"))),
            Form::Json => print(&format!("{batch}\n")),
            Form::Name => {}
        }
        match batch.get("next").and_then(Value::as_str) {
            Some(next) => after = next.to_owned(),
            None if failed.is_empty() => {
                if form == Form::Table {
                    print(&format!("Every secret is sealed by the key \"{}\".\n", field(&batch, "key")));
                }
                return Ok(());
            }
            None => break,
        }
    }
    let lines = failed.iter().map(|one| clean(&format!("{}: {}", field(one, "name"), field(one, "why"))));
    Err(Trouble::failed(format!(
        "{} secrets cannot be opened and are as they were; bring the key back that sealed them, or set them anew:\n  {}",
        failed.len(),
        lines.collect::<Vec<_>>().join("\n  ")
    )))
}

/// The text, without the line break that editors and `echo` put at the end. No error repeats any of it.
fn text(file: Option<&Path>) -> Result<String, Trouble> {
    let mut bytes = Vec::new();
    let most = MOST as u64 + 3;
    match file {
        Some(path) => {
            let file = std::fs::File::open(path).map_err(Trouble::file("Opening", path))?;
            file.take(most).read_to_end(&mut bytes).map_err(Trouble::file("Reading", path))?;
        }
        None if std::io::stdin().is_terminal() => {
            return Err(Trouble::usage(
                "The text is not typed in, as it would be seen: pipe it in (backstay secret set NAME < FILE), or name a \
                 file with --from-file.",
            ));
        }
        None => {
            let read = std::io::stdin().lock().take(most).read_to_end(&mut bytes);
            read.map_err(|error| Trouble::failed(format!("Reading stdin failed: {error}.")))?;
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| {
        Trouble::usage("A secret is a text (UTF-8), and this is none; encode it, as in base64.")
    })?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.len() > MOST {
        return Err(Trouble::usage(format!("A secret has at most {MOST} bytes.")));
    }
    Ok(text.to_owned())
}
