//! The HTTP API, under `/api/v1`.
//!
//! ```text
//!   operation  one row of the table: path, right, types, handler; everything else is made from it
//!   gate       who asks, and may they: the only way from a handler to the engine
//!   rights     what there is to be allowed, and the roles that allow it
//!   ledger     refused attempts on their way into the audit trail
//!   problem    what goes wrong, by a catalogue
//!   document   OpenAPI 3.1, out of the table; `pages` shows it, and what can go wrong, in a browser
//!   runs, views, watch       submitting runs and looking at them
//!   verbs, bulk              what people do to runs
//!   plans, workflows         what would run
//!   people, trail            who may do what, and what they did
//!   secrets                  set and listed, never shown
//!   pools, facts, cluster    what targets bear, what runs have said for all to see, who works
//! ```

mod bulk;
mod cluster;
pub mod document;
mod facts;
pub mod gate;
mod ledger;
pub mod operation;
mod pages;
mod people;
pub(crate) mod plans;
mod pools;
pub mod problem;
pub mod rights;
pub(crate) mod runs;
mod secrets;
mod trail;
mod verbs;
mod views;
pub(crate) mod watch;
mod workflows;

use axum::Router;
use axum::routing::get;

use crate::keys::Keys;
use backstay_workflows::Workflows;
use gate::Gate;
use operation::Operation;
use problem::{METHOD_NOT_ALLOWED, NO_SUCH_PATH, Problem};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Where the operations are.
pub const BASE: &str = "/api/v1";

/// How this server is set up.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Seals what only this installation may read again.
    pub keys: Option<Keys>,
    /// What runs can be submitted of by name.
    pub workflows: Arc<Workflows>,
    /// The server is being stopped: answers that go on for hours end.
    pub stop: CancellationToken,
}

/// Every operation there is.
pub fn operations() -> Vec<Operation> {
    let mut all = Vec::new();
    all.extend(runs::operations());
    all.extend(watch::operations());
    all.extend(verbs::operations());
    all.extend(bulk::operations());
    all.extend(plans::operations());
    all.extend(workflows::operations());
    all.extend(people::operations());
    all.extend(secrets::operations());
    all.extend(trail::operations());
    all.extend(pools::operations());
    all.extend(facts::operations());
    all.extend(cluster::operations());
    all
}

/// The API as a service. Nothing in it is open but what describes it.
pub fn router(gate: Gate) -> Router {
    let document = document::document(&operations()).to_string();
    let mut under = Router::new();
    for operation in operations() {
        let (path, route) = operation.route();
        under = under.route(path, route);
    }
    Router::new()
        .nest(BASE, under.method_not_allowed_fallback(no_such_method).with_state(gate))
        .route(
            "/openapi.json",
            get(move || {
                let document = document.clone();
                async move { ([("content-type", "application/json")], document) }
            }),
        )
        .merge(pages::router())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
}

/// The text of a new token.
pub fn fresh_token() -> Result<String, Problem> {
    people::fresh_text()
}

async fn no_such_path() -> Problem {
    Problem::new(&NO_SUCH_PATH, "there is nothing at this path")
}

async fn no_such_method() -> Problem {
    Problem::new(&METHOD_NOT_ALLOWED, "this path does not take this method")
}
