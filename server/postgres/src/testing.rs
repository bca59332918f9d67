//! One throw-away server per test process.
//!
//! ```no_run
//! # async fn example() {
//! let url = backstay_postgres::testing::cluster().await.url("postgres");
//! # }
//! ```
//!
//! The server is started by whoever asks first and shared by all tests of the process. Nothing has to be cleaned up: when
//! the process ends, however it ends, the guard ends the server and removes its data. A test runner with one process per
//! test would start a server per test; set `TEST_DATABASE_URL` there, and its server is used instead.

use std::time::Duration;

use tokio::sync::OnceCell;

use crate::{Error, Postgres, Settings, folder};

/// The server that the tests of this process share.
pub struct Cluster(Kind);

enum Kind {
    Own(Postgres),
    Given(url::Url),
}

impl Cluster {
    /// The URL of one of its databases. `postgres` always exists.
    pub fn url(&self, database: &str) -> String {
        match &self.0 {
            Kind::Own(postgres) => postgres.url(database),
            Kind::Given(url) => {
                let mut url = url.clone();
                url.set_path(database);
                url.into()
            }
        }
    }
}

/// The shared server; it is started on the first call. Without a server no test can mean anything, so that a failure to
/// start is a panic with instructions and never a skipped test.
///
/// # Panics
/// When there is no server.
pub async fn cluster() -> &'static Cluster {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    match CLUSTER.get_or_try_init(start).await {
        Ok(cluster) => cluster,
        #[expect(clippy::panic, reason = "tests call this, and it has to stop them")]
        Err(error) => panic!(
            "no Postgres for the tests.\n{error}\nOr set TEST_DATABASE_URL to a server that they may use."
        ),
    }
}

async fn start() -> Result<Cluster, Failure> {
    if let Some(given) = std::env::var("TEST_DATABASE_URL").ok().filter(|given| !given.is_empty()) {
        return given.parse().map(|url| Cluster(Kind::Given(url))).map_err(Failure::Url);
    }
    folder::sweep_throwaways(Duration::from_mins(10));
    let postgres = Postgres::start(Settings::throwaway()?).await?;
    Ok(Cluster(Kind::Own(postgres)))
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Start(#[from] Error),
    #[error("TEST_DATABASE_URL is not a URL: {0}")]
    Url(url::ParseError),
}
