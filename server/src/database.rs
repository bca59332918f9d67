//! The database: the one of DATABASE_URL, or one of our own beside the rest of our data.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstay_engine::Store;
use backstay_postgres::{Binaries, Postgres, Progress, Settings, Started};

use crate::config::Config;
use crate::interrupt::Interrupt;
use crate::trouble::Trouble;

/// How long a start that is no longer wanted may take to come to its end, so that it can be ended in order.
const PATIENCE: Duration = Duration::from_secs(5);

/// A database that answers.
pub(crate) struct Database {
    own: Option<Postgres>,
    url: String,
    whence: String,
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.whence)
    }
}

/// Where the cluster of the embedded database is.
pub(crate) fn folder(config: &Config) -> PathBuf {
    config.data_dir.join("postgres")
}

/// For those who only look: nothing is created for them.
pub(crate) fn must_exist(config: &Config) -> Result<(), Trouble> {
    let folder = folder(config);
    if config.database.url.reveal().is_some() || folder.join("data").exists() {
        return Ok(());
    }
    Err(Trouble::not_found(format!(
        "There is no embedded database in {} yet. \"backstay db migrate\" creates one; \"backstay serve\" and \"backstay demo\" do so, too.",
        folder.display()
    )))
}

/// The server binaries that the embedded database uses, and whether they had to be fetched.
pub(crate) async fn install(
    config: &Config,
    say: impl Fn(String) + Send + Sync + 'static,
) -> Result<(Binaries, bool), Trouble> {
    let mut settings = Settings::new(folder(config));
    let fetched = Arc::new(AtomicBool::new(false));
    let (noted, report) = (fetched.clone(), reporter(say));
    settings.on_progress = Some(Arc::new(move |progress| {
        noted.fetch_or(matches!(progress, Progress::Fetching { .. }), Ordering::SeqCst);
        report(progress);
    }));
    let binaries = backstay_postgres::binaries(&settings).await?;
    Ok((binaries, fetched.load(Ordering::SeqCst)))
}

impl Database {
    /// Brings it up, or finds it. `say` is told about everything that can take longer than a second.
    pub(crate) async fn open(
        config: &Config,
        interrupt: &Interrupt,
        say: impl Fn(String) + Send + Sync + 'static,
    ) -> Result<Self, Trouble> {
        let mut opening = std::pin::pin!(Self::bring_up(config, say));
        tokio::select! {
            biased;
            opened = &mut opening => opened,
            trouble = interrupt.asked() => {
                // It would end by itself, but after us. What takes long (a download) is not waited for.
                if let Ok(Ok(database)) = tokio::time::timeout(PATIENCE, opening).await {
                    database.close().await?;
                }
                Err(trouble)
            }
        }
    }

    async fn bring_up(
        config: &Config,
        say: impl Fn(String) + Send + Sync + 'static,
    ) -> Result<Self, Trouble> {
        if let Some(url) = config.database.url.reveal() {
            let whence = config.database.url.to_string();
            knock(url, &whence).await?;
            return Ok(Self { own: None, url: url.to_owned(), whence });
        }
        let folder = folder(config);
        let mut settings = Settings::new(&folder);
        settings.on_progress = Some(Arc::new(reporter(say)));
        let postgres = Postgres::start(settings).await?;
        let how = match postgres.how() {
            Started::Created => ", newly created",
            Started::Restarted => "",
            Started::Recovered => ", recovered after its last life was cut off",
        };
        let whence = format!("embedded Postgres in {}{how}", folder.display());
        Ok(Self { url: postgres.url("postgres"), own: Some(postgres), whence })
    }

    /// Opens the journal in it. Its schema may be old.
    pub(crate) async fn store(&self) -> Result<Store, Trouble> {
        Store::connect(&self.url).await.map_err(|error| {
            let trouble = Trouble::from(error);
            Trouble { text: format!("{} ({self})", trouble.text), ..trouble }
        })
    }

    /// Ends it, if it is ours, and returns when it is gone.
    pub(crate) async fn close(self) -> Result<(), Trouble> {
        match self.own {
            Some(postgres) => Ok(postgres.stop().await?),
            None => Ok(()),
        }
    }
}

/// A closed port is known at once; the pool would try for ten seconds and then say nothing of it.
async fn knock(url: &str, shown: &str) -> Result<(), Trouble> {
    let Ok(url) = url::Url::parse(url) else { return Ok(()) };
    let socket = url.query_pairs().any(|(key, value)| key == "host" && value.starts_with('/'));
    let Some(host) = url.host_str().filter(|host| !socket && !host.is_empty() && !host.starts_with('%'))
    else {
        return Ok(());
    };
    let target = (host.trim_matches(['[', ']']), url.port().unwrap_or(5432));
    let why =
        match tokio::time::timeout(Duration::from_secs(10), tokio::net::TcpStream::connect(target)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer within 10 s".into(),
        };
    Err(Trouble::unreachable(format!(
        "The database at {shown} cannot be reached: {why}. Start it, correct DATABASE_URL, or unset DATABASE_URL to \
         use the embedded database."
    )))
}

/// Says each thing once, and of a download every tenth of it.
fn reporter(say: impl Fn(String) + Send + Sync) -> impl Fn(Progress) + Send + Sync {
    let tenth = std::sync::Mutex::new(None);
    move |progress| match progress {
        Progress::Fetching { url, received, total } => {
            let mb = |bytes: u64| bytes as f64 / 1e6;
            let now = received * 10 / total.unwrap_or(100_000_000).max(1);
            let mut last = tenth.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if last.is_none() {
                say(format!("No Postgres 15 or later is installed here. Fetching one, once, from {url}"));
            }
            if *last != Some(now) {
                *last = Some(now);
                let of = total.map_or(String::new(), |total| format!(" of {:.0}", mb(total)));
                say(format!("  {:.0}{of} MB", mb(received)));
            }
        }
        Progress::Unpacking => say("Unpacking Postgres".into()),
        Progress::EndingLeftover { processes } => {
            say(format!("Ending the database of the last start ({processes} processes are left of it)"));
        }
        Progress::CreatingCluster => say("Creating the database".into()),
        Progress::Starting => {}
    }
}
