//! The audit trail: changes that no run's journal holds, and attempts that were refused.

use axum::http::Method;
use backstay_engine::machine::Time;
use backstay_engine::store::access::AuditFilter;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::gate::Permit;
use super::operation::{Ask, Operation, Reply, operation};
use super::people::no_nul;
use super::problem::Problem;
use super::rights::Right;
use super::runs::limited;
use super::views::Page;

pub(super) fn operations() -> Vec<Operation> {
    vec![
        operation(Method::GET, "/audit", "listAudit", Right::Admin, list).about(
            "audit",
            "Lists changes and refused attempts, the newest first. What is done to a run stands in the run's journal.",
        ),
        operation(Method::GET, "/audit/head", "auditHead", Right::Admin, head).about(
            "audit",
            "The end of the chain. Kept somewhere else it proves that nothing before it was changed since; `backstay audit \
             verify` reads the whole of it.",
        ),
    ]
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Which {
    /// Only of this principal.
    #[serde(default)]
    who: Option<String>,
    /// Only about this: a principal, a token, a secret.
    #[serde(default)]
    about: Option<String>,
    /// Only refused attempts, or only changes.
    #[serde(default)]
    refused: Option<bool>,
    /// At most so many: 1 to 500.
    #[serde(default)]
    #[schemars(range(min = 1, max = 500))]
    limit: Option<u32>,
    /// `next` of the page before.
    #[serde(default)]
    cursor: Option<i64>,
}

#[derive(Serialize, JsonSchema)]
struct Line {
    /// Its place, from 1.
    nr: i64,
    /// When, by the database's clock.
    at: Time,
    /// Who did or tried what.
    entry: Value,
}

async fn list(permit: Permit, ask: Ask<(), Which, ()>) -> Result<Reply<Page<Line>>, Problem> {
    let Which { who, about, refused, limit, cursor } = ask.query;
    let limit = limited(limit)?;
    no_nul("query/who", who.as_deref().unwrap_or_default())?;
    no_nul("query/about", about.as_deref().unwrap_or_default())?;
    let filter = AuditFilter { who, about, refused, before: cursor, limit: limit + 1 };
    let mut found = permit.store().audit_rows(&filter).await?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next = more.then(|| found.last().map(|row| row.nr.to_string())).flatten();
    let items =
        found.into_iter().map(|row| Line { nr: row.nr, at: row.at, entry: row.entry.value() }).collect();
    Ok(Reply::new(Page { items, next }))
}

/// The end of the chain.
#[derive(Serialize, JsonSchema)]
struct End {
    /// Lines.
    nr: i64,
    /// Over all of them.
    hash: String,
}

async fn head(permit: Permit, _: Ask<(), (), ()>) -> Result<Reply<End>, Problem> {
    let head = permit.store().audit_head().await?;
    Ok(Reply::new(End { nr: head.nr, hash: head.hash }))
}
