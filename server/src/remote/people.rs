//! Principals, tokens, the audit trail, nodes.

use reqwest::Method;
use serde_json::{Value, json};

use super::args::{AuditCommand, Form, PoolCommand, Prefixed, PrincipalCommand, Remote, Shown, TokenCommand};
use super::client::{Api, confirm, segment};
use super::show::{field, list, one, time};
use crate::config::Config;
use crate::db::{print, with_engine};
use crate::interrupt::Interrupt;
use crate::trouble::Trouble;

fn items(page: &Value) -> Vec<Value> {
    page.get("items").and_then(Value::as_array).or(page.as_array()).cloned().unwrap_or_default()
}

/// `backstay principal`.
pub(crate) async fn principal(command: &PrincipalCommand, config: &Config) -> Result<(), Trouble> {
    let change = async |name: &str, body: Value, remote: &Remote| {
        let api = Api::open(remote, config)?;
        let path = format!("/principals/{}", segment(name));
        let changed = api.ask(Method::PATCH, &path, &[], Some(&body), None).await?.json()?;
        one(&changed, remote.output, "name");
        Ok(())
    };
    match command {
        PrincipalCommand::List(Shown { remote }) => {
            let page = Api::open(remote, config)?.get("/principals", &[("limit", "500".into())]).await?;
            list(
                &items(&page),
                remote.output,
                "name",
                &[
                    ("NAME", |it| field(it, "name")),
                    ("ROLES", |it| field(it, "roles")),
                    ("SINCE", |it| time(it, "created_at")),
                    ("DISABLED", |it| time(it, "disabled_at")),
                ],
            );
            Ok(())
        }
        PrincipalCommand::Add { name, role, remote } => {
            let body = json!({ "name": name, "roles": role });
            let made = Api::open(remote, config)?.post("/principals", &body).await?;
            one(&made, remote.output, "name");
            if remote.output == Form::Table {
                print(&format!("Make a token next: backstay token create {name} --label …\n"));
            }
            Ok(())
        }
        PrincipalCommand::Roles { name, role, remote } => {
            change(name, json!({ "roles": role }), remote).await
        }
        PrincipalCommand::Disable { name, yes, remote } => {
            confirm(&format!("{name} is locked out, with every token they have."), *yes)?;
            change(name, json!({ "disabled": true }), remote).await
        }
        PrincipalCommand::Enable { name, remote } => change(name, json!({ "disabled": false }), remote).await,
    }
}

/// `backstay token`.
pub(crate) async fn token(command: &TokenCommand, config: &Config) -> Result<(), Trouble> {
    match command {
        TokenCommand::List { principal, remote } => {
            let mut query = vec![("limit", "500".to_owned())];
            query.extend(principal.as_ref().map(|name| ("principal", name.clone())));
            let page = Api::open(remote, config)?.get("/tokens", &query).await?;
            list(
                &items(&page),
                remote.output,
                "id",
                &[
                    ("ID", |it| field(it, "id")),
                    ("PRINCIPAL", |it| field(it, "principal")),
                    ("LABEL", |it| field(it, "label")),
                    ("RIGHTS", |it| field(it, "rights")),
                    ("WORKFLOWS", |it| field(it, "workflows")),
                    ("EXPIRES", |it| time(it, "expires_at")),
                    ("REVOKED", |it| time(it, "revoked_at")),
                    ("USED", |it| time(it, "used_at")),
                ],
            );
            Ok(())
        }
        TokenCommand::Create { principal, label, right, workflow, days, remote } => {
            let some = |list: &[String]| if list.is_empty() { Value::Null } else { json!(list) };
            let body = json!({ "principal": principal, "label": label, "rights": some(right),
                "workflows": some(workflow), "days": days });
            let made = Api::open(remote, config)?.post("/tokens", &body).await?;
            match remote.output {
                Form::Json => print(&format!("{made:#}\n")),
                // The token alone, so that it can go into a file.
                _ => {
                    eprintln!("It is shown this once, and good until {}.", time(&made, "expires_at"));
                    print(&format!("{}\n", field(&made, "token")));
                }
            }
            Ok(())
        }
        TokenCommand::Revoke { id, yes, remote } => {
            confirm("The token is revoked, for good: whatever uses it is refused from then on.", *yes)?;
            let path = format!("/tokens/{}", segment(id));
            Api::open(remote, config)?.ask(Method::DELETE, &path, &[], None, None).await?;
            if remote.output == Form::Table {
                print("It is revoked; every node refuses it within five seconds.\n");
            }
            Ok(())
        }
        TokenCommand::Whoami(Shown { remote }) => {
            one(&Api::open(remote, config)?.get("/me", &[]).await?, remote.output, "name");
            Ok(())
        }
    }
}

/// `backstay audit`.
pub(crate) async fn audit(
    command: &AuditCommand,
    config: &Config,
    interrupt: &Interrupt,
) -> Result<(), Trouble> {
    match command {
        AuditCommand::List { who, about, refused, limit, remote } => {
            let mut query = vec![("limit", limit.to_string())];
            query.extend(who.as_ref().map(|who| ("who", who.clone())));
            query.extend(about.as_ref().map(|about| ("about", about.clone())));
            query.extend(refused.then(|| ("refused", "true".to_owned())));
            let page = Api::open(remote, config)?.get("/audit", &query).await?;
            fn entry(it: &Value, name: &str) -> String {
                it.get("entry").map(|entry| field(entry, name)).unwrap_or_default()
            }
            list(&items(&page), remote.output, "nr", &[
                ("NR", |it| field(it, "nr")),
                ("AT", |it| time(it, "at")),
                ("WHO", |it| entry(it, "who")),
                ("DID", |it| entry(it, "did")),
                ("ABOUT", |it| entry(it, "about")),
                ("REFUSED", |it| entry(it, "refused")),
                ("FROM", |it| entry(it, "from")),
            ]);
            Ok(())
        }
        AuditCommand::Head(Shown { remote }) => {
            one(&Api::open(remote, config)?.get("/audit/head", &[]).await?, remote.output, "hash");
            Ok(())
        }
        AuditCommand::Verify => {
            with_engine(config, interrupt, async |engine| {
                let (head, broken) = engine.store().audit_verify(|_| {}).await?;
                match broken {
                    None => {
                        print(&format!("All {} lines follow on each other. The end: {}\n", head.nr, head.hash));
                        Ok(())
                    }
                    Some(broken) => Err(Trouble::failed(format!(
                        "The audit trail was tampered with: line {}: {}. What stands before it is as it was written.",
                        broken.nr, broken.why
                    ))),
                }
            })
            .await
        }
    }
}

/// `backstay pool`.
pub(crate) async fn pool(command: &PoolCommand, config: &Config) -> Result<(), Trouble> {
    let path = |name: &str, more: &str| format!("/pools/{}{more}", segment(name));
    match command {
        PoolCommand::List(Shown { remote }) => {
            let all = Api::open(remote, config)?.get("/pools", &[]).await?;
            list(
                &items(&all),
                remote.output,
                "name",
                &[
                    ("NAME", |it| field(it, "name")),
                    ("AT ONCE", |it| field(it, "at_once")),
                    ("PER SECOND", |it| field(it, "per_second")),
                    ("BUSY", |it| field(it, "busy")),
                    ("WAITING", |it| field(it, "waiting")),
                    ("DOWN SINCE", |it| it.get("outage").map(|down| time(down, "since")).unwrap_or_default()),
                    ("WHY", |it| it.get("outage").map(|down| field(down, "why")).unwrap_or_default()),
                ],
            );
        }
        PoolCommand::Set { name, at_once, per_second, remote } => {
            let body = json!({ "at_once": at_once, "per_second": per_second });
            let api = Api::open(remote, config)?;
            let pool = api.ask(Method::PUT, &path(name, ""), &[], Some(&body), None).await?.json()?;
            one(&pool, remote.output, "name");
        }
        PoolCommand::Down { name, why, remote } => {
            let done =
                Api::open(remote, config)?.post(&path(name, "/outage"), &json!({ "why": why })).await?;
            one(&done, remote.output, "changed");
        }
        PoolCommand::Up { name, remote } => {
            let api = Api::open(remote, config)?;
            let done = api.ask(Method::DELETE, &path(name, "/outage"), &[], None, None).await?.json()?;
            one(&done, remote.output, "changed");
        }
    }
    Ok(())
}

/// `backstay facts`.
pub(crate) async fn facts(which: &Prefixed, config: &Config) -> Result<(), Trouble> {
    let Prefixed { prefix, remote } = which;
    let api = Api::open(remote, config)?;
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let asked = [("prefix", prefix.clone()), ("limit", "500".into()), ("cursor", cursor)];
        let page = api.get("/facts", &asked).await?;
        found.extend(items(&page));
        match page.get("next").and_then(Value::as_str) {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    list(
        &found,
        remote.output,
        "name",
        &[
            ("NAME", |it| field(it, "name")),
            ("VALUE", |it| field(it, "value")),
            ("SINCE", |it| time(it, "at")),
            ("BY RUN", |it| field(it, "by")),
        ],
    );
    Ok(())
}

/// `backstay nodes`.
pub(crate) async fn nodes(shown: &Shown, config: &Config) -> Result<(), Trouble> {
    let all = Api::open(&shown.remote, config)?.get("/nodes", &[]).await?;
    list(
        &items(&all),
        shown.remote.output,
        "name",
        &[
            ("NAME", |it| field(it, "name")),
            ("LIFE", |it| field(it, "epoch")),
            ("SINCE", |it| time(it, "started_at")),
            ("LEASE UNTIL", |it| time(it, "lease_until")),
            ("ENDED", |it| time(it, "ended_at")),
            ("HOW", |it| field(it, "ended_why")),
        ],
    );
    Ok(())
}
