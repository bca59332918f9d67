//! `backstay db`.

use std::io::Write;
use std::time::Duration;

use backstay_engine::store::Roles;
use backstay_engine::{Bulk, Engine, Registry, RunFilter, Store, Verb};
use serde_json::json;

use crate::cli::RolesArgs;
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
        let what = match after.applied.len().saturating_sub(before.applied.len()) {
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
            _ if schema.is_current() => "up to date",
            (_, []) if schema.changed.is_empty() => "behind: run \"backstay db migrate\"",
            (_, []) => "of another build of this release: use that one",
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

const MIGRATE: &str = "As the database's owner run \"backstay db migrate\", then start again.";

/// Makes sure, for those who are about to work, that the schema is the one of this release. One that is needs no rights.
pub(crate) async fn up_to_date(store: &Store, config: &Config) -> Result<(), Trouble> {
    let schema = store.schema().await?;
    if schema.is_current() {
        return Ok(());
    }
    if !schema.unknown.is_empty() {
        return Err(Trouble::failed("The schema is of a newer Backstay: use that one."));
    }
    if !schema.changed.is_empty() {
        return Err(Trouble::failed("The schema is of another build of this release: use that one."));
    }
    if !config.database.migrate {
        let missing = schema.pending.len();
        return Err(Trouble::failed(format!(
            "The schema is behind ({missing} migrations), and database.migrate is off. {MIGRATE}"
        )));
    }
    store.migrate().await.map_err(|error| match error.is_denied() {
        true => Trouble::denied(format!("The schema is behind, and this role may not change it. {MIGRATE}")),
        false => error.into(),
    })
}

/// Prints who may do what in the database, or sees to it.
pub(crate) async fn roles(args: &RolesArgs, config: &Config, interrupt: &Interrupt) -> Result<(), Trouble> {
    let roles = Roles { owner: args.owner.clone(), server: args.server.clone(), reader: args.reader.clone() };
    if roles.owner == roles.server || roles.owner == roles.reader || roles.server == roles.reader {
        return Err(Trouble::usage("--owner, --server and --reader are three different roles."));
    }
    if !args.apply {
        let part = if args.create { roles.creation(&args.database) } else { roles.grants() };
        print(&part);
        return Ok(());
    }
    let work = async |database: &Database| {
        let store = database.store().await?;
        if !store.schema().await?.is_current() {
            return Err(Trouble::failed(
                "The schema is not the one of this release: run \"backstay db migrate\" first.",
            ));
        }
        let missing = store.grant(&roles).await.map_err(|error| match error.is_denied() {
            true => {
                Trouble::denied("Only the owner of the database's tables may say who may do what in them.")
            }
            false => error.into(),
        })?;
        store.close().await;
        if let Some(role) = missing.first() {
            return Err(Trouble::not_found(format!(
                "There is no role {role} yet, so nothing was changed. Whoever runs the Postgres server creates it: see \
                 \"backstay db roles --create\"."
            )));
        }
        print(&format!(
            "{} may serve, and change nothing that was written down. {} may read the views.\nDatabase: {database}\n",
            roles.server, roles.reader
        ));
        Ok(())
    };
    with_database(config, interrupt, async |database| interrupt.or(work(database)).await).await
}

/// Tells every live run to pause. Nobody has to be there to hear it: whoever claims a run hears it first.
pub(crate) async fn pause(
    config: &Config,
    interrupt: &Interrupt,
    who: &str,
    why: &str,
    dry_run: bool,
) -> Result<(), Trouble> {
    with_engine(config, interrupt, async |engine| {
        let live = RunFilter { live: true, ..RunFilter::default() };
        let wish = Bulk::new(who, why, Verb::Pause);
        let report = engine.act_on_all(&live, &wish, dry_run, Duration::ZERO).await?;
        for run in &report.found {
            print(&format!("{}  {}  {}\n", run.run, run.status.as_str(), run.workflow));
        }
        for (run, because) in &report.refused {
            print(&format!("{run} does not pause: {because}\n"));
        }
        print(&match (report.found.len(), dry_run) {
            (n, true) => format!("{n} runs are live.\n"),
            (n, false) => format!(
                "{} of {n} live runs are told, and pause before they do anything else. Then: backstay run explain RUN, \
                 backstay run resume RUN.\n",
                n.saturating_sub(report.refused.len())
            ),
        });
        match report.refused.is_empty() {
            true => Ok(()),
            false => Err(Trouble::conflict("Some runs refused to pause.")),
        }
    })
    .await
}

/// Fetches the server binaries of the embedded database, if this machine has none.
pub(crate) async fn install(config: &Config, interrupt: &Interrupt) -> Result<(), Trouble> {
    let (binaries, fetched) = interrupt.or(database::install(config, |text| eprintln!("{text}"))).await?;
    let what = if fetched { "was fetched" } else { "is already here" };
    print(&format!("Postgres {} {what}: {}\n", binaries.major, binaries.folder.display()));
    if config.database.url.reveal().is_some() {
        print("It is not used now: database.url (or DATABASE_URL) names another server.\n");
    }
    Ok(())
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
