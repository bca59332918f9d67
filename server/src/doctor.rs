//! `backstay doctor`: what is wrong here, and what to do about it.

use backstay_engine::{Engine, Registry, Store};
use serde_json::json;

use crate::config::{Config, Loaded};
use crate::database::{self, Database};
use crate::db::print;
use crate::interrupt::Interrupt;
use crate::keys::{Keys, Place, VARIABLE};
use crate::trouble::{Trouble, sentence};
use crate::vault;

/// One thing that was looked at.
struct Finding {
    good: bool,
    what: String,
    todo: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn good(&mut self, what: impl Into<String>) {
        self.0.push(Finding { good: true, what: what.into(), todo: String::new() });
    }

    fn bad(&mut self, what: impl Into<String>, todo: impl Into<String>) {
        self.0.push(Finding { good: false, what: what.into(), todo: todo.into() });
    }
}

/// Looks at everything that can be looked at. Exit code 1 if something is wrong.
pub(crate) async fn run(loaded: &Loaded, interrupt: &Interrupt) -> Result<(), Trouble> {
    let config = &loaded.config;
    let mut found = Findings::default();
    found.good("the configuration is right");
    let keys = keys(config, &mut found);
    let served = tokio::net::TcpStream::connect(config.listen.address).await.is_ok();
    match served {
        true => found.good(format!("something listens on {}", config.listen.address)),
        false => {
            found.bad(format!("nothing listens on {}", config.listen.address), "start it: backstay serve")
        }
    }
    if config.database.url.reveal().is_none() && served {
        // The server has the embedded database open; what is wrong with it, the server says itself.
        found.good(
            "the embedded database is in use by the server (whether its secrets open: backstay secret list)",
        );
    } else if let Err(trouble) = database::must_exist(config) {
        found.bad("there is no database yet", trouble.text);
    } else {
        match Database::open(config, interrupt, |text| eprintln!("{text}")).await {
            Err(trouble) => found.bad("the database cannot be used", trouble.text),
            Ok(database) => {
                if let Err(trouble) = looked_into(&database, keys, &mut found).await {
                    found.bad("the database cannot be read", trouble.text);
                }
                database.close().await?;
            }
        }
    }
    let wrong = found.0.iter().filter(|one| !one.good).count();
    for one in &found.0 {
        let mark = if one.good { "ok     " } else { "WRONG  " };
        print(&format!("{mark}{}\n", one.what));
        if !one.todo.is_empty() {
            print(&format!("       {}\n", one.todo));
        }
    }
    match wrong {
        0 => Ok(()),
        n => Err(Trouble::failed(format!("{n} of {} things are wrong.", found.0.len()))),
    }
}

/// The keys, if they can be read.
fn keys(config: &Config, found: &mut Findings) -> Option<Keys> {
    let place = match Place::of(config) {
        Ok(place) => place,
        Err(trouble) => {
            found.bad("it is not clear which keys are meant", trouble.text);
            return None;
        }
    };
    let read = place.read();
    match &read {
        Ok(Some(keys)) => {
            let (ring, whence) =
                (keys.now(), place.file().map_or(VARIABLE.into(), |file| file.display().to_string()));
            let names = ring.names().collect::<Vec<_>>().join(", ");
            found.good(format!("the keys in {whence} are right: {names}; \"{}\" is current", ring.current()));
        }
        Ok(None) => found.good("there is no key file yet; the first start of the server makes one"),
        Err(error) => found.bad(
            sentence(error),
            "without its keys no secret of the database can be opened: bring them back from their copy",
        ),
    }
    if let Some(file) = place.file().filter(|_| place.is_open()) {
        found.bad(format!("others can read {}", file.display()), format!("chmod o= {}", file.display()));
    }
    read.ok().flatten()
}

async fn secrets(store: &Store, keys: Option<Keys>, found: &mut Findings) -> Result<(), Trouble> {
    let ring = keys.map(|keys| keys.now());
    let sealed = store.secrets_by_key().await?;
    for (name, count) in
        sealed.iter().filter(|(name, _)| !ring.iter().any(|ring| ring.names().any(|here| here == name)))
    {
        found.bad(
            format!("the key \"{name}\" is not here, and seals {count} secrets"),
            "bring it back from its copy, or from another server of this database: a line of the key file",
        );
    }
    let broken = vault::broken(store, ring.as_deref()).await?;
    for (name, why) in broken.iter().take(10) {
        found.bad(
            format!("the secret \"{name}\" cannot be opened: {why}"),
            format!("bring the key back, or set it anew: backstay secret set {name}"),
        );
    }
    if broken.is_empty() {
        found.good(format!(
            "every secret can be opened: {}",
            sealed.iter().map(|(_, count)| count).sum::<i64>()
        ));
    }
    if let Some(ring) = ring {
        let old =
            sealed.iter().filter(|(name, _)| name != ring.current()).map(|(_, count)| count).sum::<i64>();
        if old > 0 && broken.is_empty() {
            found.good(format!(
                "{old} secrets are sealed by an older key; to be rid of it: backstay secret rewrap"
            ));
        }
    }
    Ok(())
}

async fn looked_into(database: &Database, keys: Option<Keys>, found: &mut Findings) -> Result<(), Trouble> {
    let store: Store = database.store().await?;
    let schema = store.schema().await?;
    found.good(format!("the database answers: {database}"));
    if !schema.unknown.is_empty() {
        found.bad("the schema is of a newer Backstay", "use that release, or a newer one");
        return Ok(());
    }
    if !schema.pending.is_empty() {
        found.bad("the schema is behind", "backstay db migrate");
        return Ok(());
    }
    found.good("the schema is up to date");
    secrets(&store, keys, found).await?;
    let engine = Engine::open(store.clone(), Registry::new()).await?;
    match engine.silent().await?.as_slice() {
        [] => found.good("every live run has something that moves it"),
        silent => {
            for (run, why) in silent.iter().take(10) {
                found.bad(
                    format!("nothing moves run {run}: {why}"),
                    format!("backstay check {run}, and report it: it must not happen"),
                );
            }
        }
    }
    let live = store.count_live().await?;
    let of = |status: &str| live.iter().find(|(name, _)| name == status).map_or(0, |(_, count)| *count);
    for (status, todo) in [
        ("stuck", "an undo failed for good: backstay run list --status stuck, then run explain"),
        ("held", "somebody has to decide: backstay run list --status held, then run explain"),
        ("quarantined", "the run kills its nodes or cannot be read: backstay run list --status quarantined"),
    ] {
        match of(status) {
            0 => found.good(format!("no run is {status}")),
            n => found.bad(format!("{n} runs are {status}"), todo),
        }
    }
    let behind: Vec<_> =
        engine.preview(engine.registry()).await?.into_iter().filter(|one| !one.goes_on()).collect();
    match behind.as_slice() {
        [] => found.good("this release can go on with every live run"),
        some => {
            for one in some.iter().take(10) {
                found.bad(format!("this release cannot go on with run {}", one.run), json!(one).to_string());
            }
        }
    }
    let now = chrono::Utc::now();
    let nodes = store.nodes().await?;
    match nodes.iter().filter(|node| node.ended_at.is_none() && node.lease_until > now).count() {
        0 => found.bad("no node works on this database", "backstay serve, or backstay node"),
        n => found.good(format!("{n} nodes work on this database")),
    }
    store.close().await;
    Ok(())
}
