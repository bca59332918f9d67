//! Facts: named values that steps change by compare-and-set, such as whether a machine can be failed over.

use axum::http::Method;
use backstay_engine::Fact;
use schemars::JsonSchema;
use serde::Deserialize;

use super::gate::Permit;
use super::operation::{Ask, Operation, Reply, operation};
use super::people::no_nul;
use super::problem::{NOT_FOUND, Problem};
use super::rights::Right;
use super::runs::limited;
use super::views::Page;

pub(super) fn operations() -> Vec<Operation> {
    vec![
        operation(Method::GET, "/facts", "listFacts", Right::View, list).about(
            "facts",
            "Lists facts by name: named values that steps change, each with the run that changed it last.",
        ),
        operation(Method::GET, "/facts/{name}", "getFact", Right::View, one)
            .about("facts", "One fact. A slash in its name is written %2F. Its ETag counts its changes.")
            .fails(&[&NOT_FOUND]),
    ]
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Which {
    /// Only those whose names begin so.
    #[serde(default)]
    prefix: String,
    /// At most so many: 1 to 500.
    #[serde(default)]
    #[schemars(range(min = 1, max = 500))]
    limit: Option<u32>,
    /// `next` of the page before.
    #[serde(default)]
    cursor: String,
}

#[derive(Deserialize, JsonSchema)]
struct Named {
    /// The fact's name.
    name: String,
}

async fn list(permit: Permit, ask: Ask<(), Which, ()>) -> Result<Reply<Page<Fact>>, Problem> {
    let Which { prefix, limit, cursor } = ask.query;
    let limit = limited(limit)?;
    no_nul("query/prefix", &prefix)?;
    no_nul("query/cursor", &cursor)?;
    let mut found = permit.engine().facts(&prefix, &cursor, limit + 1).await?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next = more.then(|| found.last().map(|fact| fact.name.clone())).flatten();
    let mut items = Vec::with_capacity(found.len());
    for fact in found {
        if may_see(&permit, &fact).await? {
            items.push(fact);
        }
    }
    Ok(Reply::new(Page { items, next }))
}

async fn one(permit: Permit, ask: Ask<Named, (), ()>) -> Result<Reply<Fact>, Problem> {
    let name = ask.path.name;
    no_nul("path/name", &name)?;
    match permit.engine().fact(&name).await? {
        Some(fact) if may_see(&permit, &fact).await? => {
            let version = fact.version;
            Ok(Reply::new(fact).version(version))
        }
        _ => Err(Problem::new(&NOT_FOUND, format!("there is no fact \"{name}\": nobody has set it"))),
    }
}

/// A token that is about some workflows alone shows what their runs have said. Of a run that was removed nobody knows any
/// more whose it was.
async fn may_see(permit: &Permit, fact: &Fact) -> Result<bool, Problem> {
    if permit.workflows().is_none() {
        return Ok(true);
    }
    let run = permit.store().get(fact.by).await?;
    Ok(run.is_some_and(|run| permit.covers(&run.workflow)))
}
