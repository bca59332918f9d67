//! `backstay db`.

use std::io::Write;

use backstay_engine::{Engine, Registry};
use serde_json::json;

use crate::config::Config;
use crate::database::{self, Database};
use crate::interrupt::Interrupt;
use crate::trouble::Trouble;

/// Brings the schema up to date.
pub(crate) async fn migrate(config: &Config, interrupt: &Interrupt) -> Result<(), Trouble> {
    let work = async |database: &Database| {
        let store = database.store().await?;
        let before = store.schema().await?;
        store.migrate().await?;
        let after = store.schema().await?;
        let what = match after.applied.len() - before.applied.len().min(after.applied.len()) {
            0 => "was up to date".to_owned(),
            1 => "is up to date: 1 migration was applied".to_owned(),
            n => format!("is up to date: {n} migrations were applied"),
        };
        print(&format!("The schema {what}.\nDatabase: {database}\n"));
        store.close().await;
        Ok(())
    };
    with_database(config, interrupt, async |database| interrupt.or(work(database)).await).await
}

/// Says how the database is.
pub(crate) async fn status(config: &Config, interrupt: &Interrupt, as_json: bool) -> Result<(), Trouble> {
    database::must_exist(config)?;
    let work = async |database: &Database| {
        let store = database.store().await?;
        let schema = store.schema().await?;
        let runs = if schema.applied.is_empty() { Vec::new() } else { store.count_by_status().await? };
        store.close().await;
        let state = match (schema.pending.as_slice(), schema.unknown.as_slice()) {
            ([], []) => "up to date",
            (_, []) => "behind: run \"backstay db migrate\"",
            _ => "of a newer Backstay: use that one",
        };
        if as_json {
            let runs: serde_json::Map<_, _> =
                runs.into_iter().map(|(status, n)| (status, n.into())).collect();
            let status = json!({
                "database": database.to_string(), "schema": state, "applied": schema.applied,
                "pending": schema.pending, "unknown": schema.unknown, "runs": runs,
            });
            print(&format!("{status:#}\n"));
        } else {
            let mut text = format!("Database: {database}\nSchema:   {state}\n");
            for (status, count) in &runs {
                text += &format!("Runs:     {count} {status}\n");
            }
            if runs.is_empty() {
                text += "Runs:     none\n";
            }
            print(&text);
        }
        if state == "up to date" { Ok(()) } else { Err(Trouble::failed(format!("The schema is {state}."))) }
    };
    with_database(config, interrupt, async |database| interrupt.or(work(database)).await).await
}

/// Does this with the database, and ends it whatever came of it. Once it is up, the work itself heeds the interrupt.
pub(crate) async fn with_database<T>(
    config: &Config,
    interrupt: &Interrupt,
    work: impl AsyncFnOnce(&Database) -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    let database = Database::open(config, interrupt, |text| eprintln!("{text}")).await?;
    let done = work(&database).await;
    let closed = database.close().await;
    let done = done?;
    closed?;
    Ok(done)
}

/// Does this with an engine that has no activities, on a database that is there and up to date.
pub(crate) async fn with_engine<T>(
    config: &Config,
    interrupt: &Interrupt,
    work: impl AsyncFnOnce(&Engine) -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    database::must_exist(config)?;
    let on_database = async |database: &Database| {
        let store = database.store().await?;
        if !store.schema().await?.pending.is_empty() {
            return Err(Trouble::failed("The schema is behind: run \"backstay db migrate\" first."));
        }
        let engine = Engine::open(store, Registry::new()).await?;
        let done = work(&engine).await;
        engine.store().close().await;
        done
    };
    with_database(config, interrupt, async |database| interrupt.or(on_database(database)).await).await
}

/// To stdout. If nobody reads it any more there is nobody to tell.
pub(crate) fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
