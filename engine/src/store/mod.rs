//! What did happen: the only home of SQL.
//!
//! ```text
//!   access/     who may speak to this installation, and what they did that no journal holds
//!   append.rs   the writer's one statement: new runs, events, index changes; fenced, in one commit
//!   batch.rs    what it writes, and what became of it
//!   claim.rs    who drives which run; reading a journal comes after its claim, in a later statement
//!   entry.rs    a row of the journal's table, and the events in it
//!   facts.rs    named values that change by compare-and-set, in the commit of a success
//!   inbox.rs    what is said to runs, and what the journal answers
//!   lease.rs    the lives of nodes: begin, renew, take over, end
//!   pools.rs    the limits of targets, and what each life holds of them
//!   read.rs     for everybody else: get, list, journals
//!   retention.rs  what is removed, and who stands in line
//!   roles.rs    who may do what in the database
//!   schema.rs   which migrations the database has had
//! ```
//!
//! Each write is one statement, so that no dropped future can leave a transaction open; but for a write in which runs
//! speak to others or change facts, which is a transaction on the writer's own connection. Lock order: the own row of
//! `nodes` (or, in such a transaction, after the rows of runs), rows of `runs` in the order of their ids, `facts` in the
//! order of their names, then `inbox` and `journal`. A takeover locks
//! rows of `nodes` and waits for nothing else, and a claim skips what is locked. Who settles a share of a pool, in a
//! transaction on a connection of its own, locks its own row of `nodes` and then the pool's.

pub mod access;
mod append;
mod batch;
mod claim;
mod ears;
mod entry;
mod facts;
mod inbox;
mod lease;
mod pools;
#[doc(hidden)]
pub mod probe;
mod read;
mod retention;
mod roles;
mod schema;

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{Connection, PgConnection};

pub(crate) use append::append_surely;
pub use batch::{Admission, Appended, Batch, IndexChange, Refusal};
pub use claim::Claimed;
pub use facts::{Moved, Proviso};
pub use inbox::{Answered, Letter, Outgoing, Told, UNREADABLE};
pub use lease::{Life, NodeInfo};
pub use pools::{Limits, Outage, PoolInfo, PoolRow, ShareRow};
pub use read::{RunFilter, RunInfo};
pub use retention::{Line, Purged};
pub use roles::{RoleName, Roles};
pub use schema::Schema;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// How long a statement may take before Postgres cancels it, unless said otherwise.
const LONGEST_STATEMENT: Duration = Duration::from_secs(30);

/// Where the journal is.
#[derive(Clone, Debug)]
pub struct Store {
    options: PgConnectOptions,
    pool: PgPool,
    patience: Duration,
}

/// What went wrong between us and Postgres.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address of the database is not understood.
    #[error("the database URL is not understood")]
    Url(#[source] sqlx::Error),
    /// Postgres answered with an error, or not at all.
    #[error("could not {doing}")]
    Database {
        /// What was attempted.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: sqlx::Error,
    },
    /// The schema could not be brought up to date.
    #[error("could not bring the database schema up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// This life is over: another node took its runs, or its lease ended.
    #[error("this node's lease is over: nothing more is written under it")]
    Fenced,
    /// A row that cannot be understood.
    #[error("{0}")]
    Undecodable(String),
}

impl StoreError {
    pub(crate) fn database(doing: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
        move |source| StoreError::Database { doing, source }
    }

    /// The database gave no answer at all.
    pub(crate) fn silent(doing: &'static str) -> Self {
        let source = std::io::Error::new(std::io::ErrorKind::TimedOut, "the database gave no answer");
        Self::Database { doing, source: sqlx::Error::Io(source) }
    }

    /// The statement took too long, or was too large to be sent: trying it again once or twice may help, for ever not.
    fn is_too_much(&self) -> bool {
        match self {
            StoreError::Database { source: sqlx::Error::Protocol(_), .. } => true,
            StoreError::Database { source: sqlx::Error::Database(error), .. } => {
                error.code().as_deref() == Some("57014")
            }
            _ => false,
        }
    }

    /// The connection, not the statement, is at fault: the same can be tried again on a new one. Whether the
    /// statement was committed is not known.
    pub fn is_passing(&self) -> bool {
        let StoreError::Database { source, .. } = self else { return false };
        match source {
            sqlx::Error::Io(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::Tls(_) => true,
            sqlx::Error::Database(error) => {
                let code = error.code().unwrap_or_default();
                // 22 and 23: the data; 54: its size; P0: a trigger. Everything else (a connection, a lock, a
                // shutdown, a full disk, a grant that is missing for a while) is not the fault of what was written.
                !["22", "23", "54", "P0"].iter().any(|class| code.starts_with(class))
            }
            _ => false,
        }
    }

    /// The role that asks may not do this.
    pub fn is_denied(&self) -> bool {
        use sqlx::migrate::MigrateError::{Execute, ExecuteMigration};
        let source = match self {
            StoreError::Database { source, .. } => source,
            StoreError::Migrate(Execute(source) | ExecuteMigration(source, _)) => source,
            _ => return false,
        };
        matches!(source, sqlx::Error::Database(error) if error.code().as_deref() == Some("42501"))
    }

    fn is_duplicate(&self) -> bool {
        let StoreError::Database { source: sqlx::Error::Database(error), .. } = self else { return false };
        error.is_unique_violation()
    }
}

impl Store {
    /// Opens a pool on a database. Nothing is changed in it.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::connect_within(url, LONGEST_STATEMENT).await
    }

    /// Opens a pool on a database where no statement may take longer than this, wait for a lock longer than a third of
    /// it, or leave a transaction open and silent for as long.
    pub async fn connect_within(url: &str, longest_statement: Duration) -> Result<Self, StoreError> {
        let options: PgConnectOptions = url.parse().map_err(StoreError::Url)?;
        let statement_timeout = format!("{}ms", longest_statement.as_millis());
        // What waits for a lock has to end as that and not as a statement that is too much: then it is tried again.
        let lock_timeout = format!("{}ms", longest_statement.as_millis() / 3);
        let options = options.application_name("backstay").options([
            // A client that freezes inside a statement hides its rows from everybody without any error.
            ("statement_timeout", statement_timeout.as_str()),
            ("lock_timeout", lock_timeout.as_str()),
            ("idle_in_transaction_session_timeout", lock_timeout.as_str()),
            ("jit", "off"),
            // A host that vanished without a word holds its node's name no longer than this.
            ("tcp_keepalives_idle", "10"),
            ("tcp_keepalives_interval", "5"),
            ("tcp_keepalives_count", "3"),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_secs(10))
            // Which index leads to a page of runs differs with each filter.
            .connect_with(options.clone().options([("plan_cache_mode", "force_custom_plan")]))
            .await
            .map_err(StoreError::database("connect to the database"))?;
        // A little longer than Postgres takes to cancel.
        let patience = longest_statement.mul_f64(7.0 / 6.0);
        let store = Self { options, pool, patience };
        store.refuse_lost_commits().await?;
        Ok(store)
    }

    /// Brings the schema up to date, and tells the roles of the database of what is new. Safe to call from many processes
    /// at once.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        MIGRATIONS.run(&self.pool).await.map_err(StoreError::Migrate)?;
        self.grant_again().await
    }

    /// Closes the pool.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A connection of its own, for statements that reach rows by their keys. The planner cannot know that: as
    /// tables grow it would begin to scan them for a batch that names a few hundred rows.
    pub(crate) async fn dedicated(&self, purpose: &str) -> Result<PgConnection, StoreError> {
        let options = self.options.clone().application_name(&format!("backstay {purpose}")).options([
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("plan_cache_mode", "force_generic_plan"),
        ]);
        PgConnection::connect_with(&options).await.map_err(StoreError::database("connect to the database"))
    }

    /// A statement whose answer was lost is over by then, one way or the other.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// The database bounds its statements; this bounds the way to it. A connection can fall silent without an error.
    pub(crate) async fn patiently<T>(
        &self,
        doing: &'static str,
        asking: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let late = |_| StoreError::silent(doing);
        tokio::time::timeout(self.patience, asking).await.map_err(late)?
    }

    /// Hears that there may be work. Losing it costs a poll interval.
    pub(crate) async fn listener(&self) -> Result<sqlx::postgres::PgListener, StoreError> {
        let doing = "listen for work";
        let mut listener = sqlx::postgres::PgListener::connect_with(&self.pool)
            .await
            .map_err(StoreError::database(doing))?;
        listener.listen(append::CHANNEL).await.map_err(StoreError::database(doing))?;
        Ok(listener)
    }

    /// Something in a transaction. The connection is the caller's own: whoever drops this drops it too.
    pub(crate) async fn within<T>(
        conn: &mut PgConnection,
        what: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let failed = StoreError::database("commit");
        sqlx::query("begin").execute(&mut *conn).await.map_err(&failed)?;
        let done = what(conn).await;
        let end = if done.is_ok() { "commit" } else { "rollback" };
        let ended = sqlx::query(end).execute(&mut *conn).await.map_err(&failed);
        let done = done?;
        ended.map(|_| done)
    }

    /// Tells all nodes that there may be work.
    pub(crate) async fn notify(&self) -> Result<(), StoreError> {
        sqlx::query!("select pg_notify($1, '')", append::CHANNEL)
            .execute(&self.pool)
            .await
            .map_err(StoreError::database("tell other nodes of work"))?;
        Ok(())
    }

    /// With `synchronous_commit = off` Postgres acknowledges what a crash can take back.
    async fn refuse_lost_commits(&self) -> Result<(), StoreError> {
        let setting = sqlx::query_scalar!("select current_setting('synchronous_commit')")
            .fetch_one(&self.pool)
            .await
            .map_err(StoreError::database("read the database's settings"))?;
        if setting.as_deref() == Some("off") {
            return Err(StoreError::Undecodable(
                "this database has synchronous_commit = off: it would acknowledge steps and then forget them. \
                 Set it to on for this database or user."
                    .into(),
            ));
        }
        Ok(())
    }
}
