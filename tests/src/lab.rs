//! A fresh database for each test, and nodes on it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstay_engine::crash::{CrashPoint, Hook};
use backstay_engine::machine::Row;
use backstay_engine::machine::checker::{Case, Checker, Index, WorldLog, check_run};
use backstay_engine::{Engine, Node, NodeConfig, Plan, Registry, RunFilter, RunId, RunInfo, Status, Store};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::facts::{Become, GiveBack};
use crate::world::{Make, Unmake, World};

/// One database with the schema and a world, both empty.
#[derive(Clone, Debug)]
pub struct Lab {
    pub url: String,
    pub world: World,
    pub engine: Engine,
}

const TEMPLATE: &str = "backstay_template";

impl Lab {
    pub async fn new() -> anyhow::Result<Self> {
        let cluster = backstay_postgres::testing::cluster().await;
        static READY: OnceCell<()> = OnceCell::const_new();
        READY
            .get_or_try_init(|| async {
                let mut admin = PgConnection::connect(&cluster.url("postgres")).await?;
                // A server that outlives the tests keeps the template of an earlier version.
                let name = TEMPLATE;
                sqlx::raw_sql(AssertSqlSafe(format!("drop database if exists {name} with (force)")))
                    .execute(&mut admin)
                    .await?;
                sqlx::raw_sql(AssertSqlSafe(format!("create database {name}"))).execute(&mut admin).await?;
                let store = Store::connect(&cluster.url(TEMPLATE)).await?;
                store.migrate().await?;
                store.close().await;
                World::create(&cluster.url(TEMPLATE)).await?.close().await;
                anyhow::Ok(())
            })
            .await?;
        let name = format!("lab_{}", Uuid::new_v4().simple());
        let mut admin = PgConnection::connect(&cluster.url("postgres")).await?;
        // Two copies of one template at once are refused.
        static COPY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let copying = COPY.lock().await;
        sqlx::raw_sql(AssertSqlSafe(format!("create database {name} template {TEMPLATE}")))
            .execute(&mut admin)
            .await?;
        drop(copying);
        Self::open(&cluster.url(&name)).await
    }

    /// With the journal on a server of its own, which the test may crash. The world goes on.
    pub async fn on(server: &backstay_postgres::Postgres) -> anyhow::Result<Self> {
        let url = server.url("postgres");
        let world = Self::new().await?.world;
        let engine = Self::engine(&url, &world).await?;
        engine.store().migrate().await?;
        Ok(Self { url, world, engine })
    }

    /// A lab that is there already: for other processes.
    pub async fn open(url: &str) -> anyhow::Result<Self> {
        let world = World::open(url).await?;
        let engine = Self::engine(url, &world).await?;
        Ok(Self { url: url.to_owned(), world, engine })
    }

    async fn engine(url: &str, world: &World) -> anyhow::Result<Engine> {
        Self::engine_on(Store::connect(url).await?, world).await
    }

    async fn engine_on(store: Store, world: &World) -> anyhow::Result<Engine> {
        let registry = Registry::new()
            .with(Make(world.clone()))
            .with(Unmake(world.clone()))
            .with(Become(world.clone()))
            .with(GiveBack);
        Ok(Engine::open(store, registry).await?)
    }

    /// What tests change in a node's behaviour starts from here: everything a little sooner.
    pub fn config(name: &str) -> NodeConfig {
        NodeConfig {
            name: name.into(),
            lease: Duration::from_secs(2),
            poll: Duration::from_millis(20),
            trial: Duration::from_millis(200),
            ..NodeConfig::default()
        }
    }

    /// A node on an engine of its own, as another process would have it.
    pub async fn node(&self, config: NodeConfig) -> anyhow::Result<(Engine, Node)> {
        self.node_by(&self.url, config).await
    }

    /// A node that reaches the same database by another way.
    pub async fn node_by(&self, url: &str, config: NodeConfig) -> anyhow::Result<(Engine, Node)> {
        let engine = Self::engine(url, &self.world).await?;
        let node = engine.start_node(config).await?;
        Ok((engine, node))
    }

    /// A node with a store of the test's.
    pub async fn node_on(&self, store: Store, config: NodeConfig) -> anyhow::Result<(Engine, Node)> {
        let engine = Self::engine_on(store, &self.world).await?;
        let node = engine.start_node(config).await?;
        Ok((engine, node))
    }

    /// Waits until the run is over or waits for people.
    pub async fn settled(&self, run: RunId) -> anyhow::Result<Status> {
        let waiting = self.engine.watch(run).ended();
        Ok(tokio::time::timeout(Duration::from_secs(30), waiting).await??)
    }

    /// Waits until the run is over. On its way it may wait for others.
    pub async fn settled_for_good(&self, run: RunId) -> anyhow::Result<Status> {
        let over = async {
            loop {
                let info = self.engine.get(run).await?;
                if info.finished_at.is_some() {
                    return anyhow::Ok(info.status);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), over).await?
    }

    /// The journal as text, one line an event, without what differs from time to time.
    pub async fn story(&self, run: RunId) -> anyhow::Result<String> {
        let mut lines = Vec::new();
        for row in self.engine.journal(run).await? {
            let mut line = row.kind.to_owned();
            if let Some(step) = &row.step {
                line += &format!(" {}{step} #{}", if row.undo { "undo " } else { "" }, row.attempt);
            }
            let body = row.body.as_ref().map(|body| body.value()).unwrap_or_default();
            for place in ["/error/code", "/outcome", "/answer", "/reason"] {
                if let Some(text) = body.pointer(place).and_then(|value| value.as_str()) {
                    line += &format!(" {text}");
                }
            }
            lines.push(line);
        }
        Ok(lines.join("\n"))
    }

    /// What must be true of every history, however it came about.
    pub async fn assert_history(&self, run: RunId) -> anyhow::Result<()> {
        let info = self.engine.get(run).await?;
        let rows = self.engine.journal(run).await?;
        let plan = rows.first().and_then(|row| Plan::from_submitted(row.body.as_ref()?).ok());
        // What waits has no effect that the world could show.
        let calls = |name: &str| {
            plan.as_ref().is_none_or(|plan| {
                plan.find(name)
                    .is_none_or(|ix| plan.step(ix).kind == backstay_engine::machine::plan::Kind::Call)
            })
        };
        let mut steps: Vec<String> = rows
            .iter()
            .filter_map(|row| row.step.as_deref().filter(|name| calls(name)).map(str::to_owned))
            .collect();
        steps.sort();
        steps.dedup();
        let world = self.world.truth(&steps).await?;
        self.judge(run, &info, &rows, Some(&world)).await
    }

    /// The same, for a run that shares the names of its steps with others, or whose calls go elsewhere: the world is not
    /// asked.
    pub async fn assert_journal(&self, run: RunId) -> anyhow::Result<()> {
        let info = self.engine.get(run).await?;
        let rows = self.engine.journal(run).await?;
        self.judge(run, &info, &rows, None).await
    }

    /// What must be true of all histories together: what they say of facts is what the facts are. Nothing may be under way.
    pub async fn assert_facts(&self) -> anyhow::Result<()> {
        let facts = self.engine.facts("", "", 1_000).await?;
        let mut checker = Checker::new().with_facts(facts.clone());
        let mut found = Vec::new();
        for info in self.engine.list(&RunFilter { limit: 1_000, ..RunFilter::default() }).await? {
            let rows = self.engine.journal(info.run).await?;
            found.extend(checker.run(&Case::of(info.run, &rows)));
        }
        found.extend(checker.facts(&facts));
        let found: Vec<_> = found.iter().map(|one| one.to_string()).collect();
        anyhow::ensure!(found.is_empty(), "{}", found.join("\n"));
        Ok(())
    }

    async fn judge(
        &self,
        run: RunId,
        info: &RunInfo,
        rows: &[Row],
        world: Option<&WorldLog>,
    ) -> anyhow::Result<()> {
        let index = Index { status: info.status, owner: info.owner, claim: info.claim, due_at: info.due_at };
        let violations = check_run(&Case { run, rows, index: Some(&index), world });
        let named: Vec<_> = violations.iter().map(|v| format!("{v}")).collect();
        anyhow::ensure!(violations.is_empty(), "{}\n{}", named.join("\n"), self.story(run).await?);
        Ok(())
    }

    /// Removes the database, whoever is connected: long sweeps fill a disk with them.
    pub async fn remove(self) -> anyhow::Result<()> {
        let cluster = backstay_postgres::testing::cluster().await;
        let name: String =
            sqlx::query_scalar("select current_database()::text").fetch_one(&mut self.sql().await?).await?;
        let mut admin = PgConnection::connect(&cluster.url("postgres")).await?;
        let remove = format!("drop database if exists {name} with (force)");
        sqlx::raw_sql(AssertSqlSafe(remove)).execute(&mut admin).await?;
        Ok(())
    }

    /// A connection for looking and for breaking things.
    pub async fn sql(&self) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect(&self.url).await?)
    }
}

/// Counts the crash points that a node passes, and makes it die at one of them.
#[derive(Clone, Debug, Default)]
pub struct Deaths {
    seen: Arc<Mutex<BTreeMap<CrashPoint, u64>>>,
    fired: Arc<AtomicU64>,
    at: Option<(CrashPoint, u64)>,
}

impl Deaths {
    /// Only counts.
    pub fn none() -> Self {
        Self::default()
    }

    /// Dies at the n-th passage of a point.
    pub fn at(point: CrashPoint, nth: u64) -> Self {
        Self { at: Some((point, nth)), ..Self::default() }
    }

    pub fn hook(&self) -> Hook {
        let this = self.clone();
        Arc::new(move |point| {
            let mut seen = this.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let count = seen.entry(point).or_default();
            *count += 1;
            let dies = this.at == Some((point, *count));
            if dies {
                this.fired.fetch_add(1, Ordering::SeqCst);
            }
            dies
        })
    }

    /// A fault that was never seen to fire proves nothing.
    pub fn fired(&self) -> bool {
        self.fired.load(Ordering::SeqCst) > 0
    }

    /// Every point that was passed, with every passage of it.
    pub fn passed(&self) -> Vec<(CrashPoint, u64)> {
        let seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.iter().flat_map(|(point, count)| (1..=*count).map(|nth| (*point, nth))).collect()
    }
}
