//! Machines that go down while each is looked at until it is off: how many looks a second a node makes, and what they cost;
//! all at once, and as many as a pool lets through.

use std::time::{Duration, Instant};

use anyhow::Context;
use backstay_engine::{Engine, Limits, NodeConfig, PlanBuilder, Retry, SubmitOptions};
use backstay_simulator::world::estate;
use backstay_simulator::world::things::Power;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::centre::{self, Addresses, Worker, estate_of, machine};
use crate::host::{Host, Meter, process_cpu, resident_mb};
use crate::recovery::say;
use crate::{Args, round};

/// Between two looks at one machine, at most; at least half of it.
const PAUSE: Duration = Duration::from_millis(100);
/// As many as a small target bears, and how long a machine takes then.
const FEW: u32 = 50;
const SOON: u64 = 200;

/// What a node is told to do.
#[derive(Serialize, Deserialize)]
struct Order {
    part: String,
    first: usize,
    count: usize,
}

/// The most attempts that the journal has under way at one moment. What ends at a moment makes room for what begins then.
const MOST: &str = "select max(under_way)::bigint from (
    select sum(change) over (order by at, change) as under_way from (
        select at, case kind when 'started' then 1 else -1 end as change
        from events join runs using (run_id)
        where kind in ('started', 'succeeded', 'failed') and labels ->> 'part' = $1
    ) as changes
) as moments";

pub(crate) async fn measure(host: &Host, args: &Args) -> anyhow::Result<Value> {
    let runs = args.concurrency.unwrap_or(1_000);
    let url = host.fresh("activities").await?;
    let mut data_centre = Worker::start("activities", centre::NAME, &url, 2 * runs + 1, None)?;
    let at: Addresses = serde_json::from_str(&data_centre.says().await?)?;
    let mut node = Worker::start("activities", "node", &url, 2 * runs + 1, Some((&at, PAUSE.into())))?;
    node.says().await?;
    let mut play = Play {
        conn: PgConnection::connect(&url).await?,
        url,
        at,
        node,
        centre: data_centre.pid.clone(),
        runs,
    };
    // What every process does once: a machine that is off at once.
    play.part("warm-up", 2 * runs + 1, 1, u32::MAX, 0).await?;
    let long = args.seconds.max(1) * 1_000;
    let report = json!({
        "runs": runs,
        "pause_ms": PAUSE.as_millis() as u64,
        "all_at_once": play.part("all at once", 1, runs, u32::try_from(runs)?, long).await?,
        "in_a_pool": play.part("in a pool", runs + 1, runs, FEW, SOON).await?,
    });
    play.node.end().await?;
    data_centre.end().await?;
    Ok(report)
}

/// What takes part.
struct Play {
    url: String,
    conn: PgConnection,
    at: Addresses,
    node: Worker,
    centre: String,
    runs: usize,
}

impl Play {
    /// Machines that take so many milliseconds each to go down, of which the pool lets so many through.
    async fn part(
        &mut self,
        part: &str,
        first: usize,
        count: usize,
        at_once: u32,
        down_after: u64,
    ) -> anyhow::Result<Value> {
        let settings = json!({ "pace": 1.0, "vma": { "shutdown_ms": down_after, "early_ms": 0 } });
        centre::behave(&self.at, &settings).await?;
        let beside = Engine::connect(&self.url, backstay_engine::Registry::new()).await?;
        let limits = Limits { at_once: Some(at_once.min(100_000)), per_second: None };
        beside.set_pool(backstay_activities::site::VMA_POOL, limits, None).await?;
        // Nodes go by it within a second or two.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let idle = resident_mb(&self.node.pid);
        let calls = centre::truth(&self.at).await?.calls;
        let cpu = |play: &Self| (process_cpu(&play.node.pid), process_cpu(&play.centre));
        let (meter, before) = (Meter::read(&self.url).await?, cpu(self));
        let (begun, mut most_mb) = (Instant::now(), idle);
        self.node.does(&Order { part: part.into(), first, count }).await?;
        while !self.are_done(part, count).await? {
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(600), "not all machines go down");
            most_mb = most_mb.max(resident_mb(&self.node.pid));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let lasted = begun.elapsed().as_secs_f64();
        let after = cpu(self);
        let database = Meter::read(&self.url).await?.since(&meter, lasted);
        let truth = centre::truth(&self.at).await?;
        for n in first..first + count {
            let source = truth.state.sources.get(&estate::source(&machine(n)));
            anyhow::ensure!(
                source.is_some_and(|source| source.power == Power::Off),
                "{} is not off",
                machine(n)
            );
        }
        let most: i64 = sqlx::query_scalar(MOST).bind(part).fetch_one(&mut self.conn).await?;
        anyhow::ensure!(most <= i64::from(at_once), "{most} were under way, and the pool allows {at_once}");
        anyhow::ensure!(
            count < self.runs || most == i64::from(at_once).min(i64::try_from(count)?),
            "only {most} of {at_once} that the pool allows were ever under way"
        );
        let calls = (truth.calls - calls) as f64;
        let per_call = |seconds: f64| round(seconds * 1_000_000.0 / calls, 1);
        Ok(json!({
            "pool_at_once": at_once,
            "most_at_once": most,
            "each_down_after_ms": down_after,
            "total_s": round(lasted, 2),
            "at_best_s": round(down_after as f64 * count as f64 / 1_000.0 / f64::from(at_once).min(count as f64), 2),
            "calls": calls,
            "calls_per_s": round(calls / lasted, 0),
            "node_cpu_us_per_call": per_call(after.0 - before.0),
            "database_cpu_us_per_call": per_call(database.get("database_cpu_s").copied().unwrap_or(f64::NAN)),
            "data_centre_cpu_us_per_call": per_call(after.1 - before.1),
            "memory_kb_each": round((most_mb - idle).max(0.0) * 1_024.0 / count as f64, 1),
            "memory_mb": most_mb,
        }))
    }

    /// Whether all have succeeded. Another end is an error.
    async fn are_done(&mut self, part: &str, count: usize) -> anyhow::Result<bool> {
        let look = "select count(*) filter (where status = 'succeeded'),
                           count(*) filter (where status not in ('pending', 'running', 'waiting', 'succeeded'))
                    from runs where labels ->> 'part' = $1";
        let (done, wrong): (i64, i64) = sqlx::query_as(look).bind(part).fetch_one(&mut self.conn).await?;
        anyhow::ensure!(wrong == 0, "{wrong} runs came to another end");
        Ok(usize::try_from(done)? == count)
    }
}

pub(crate) async fn worker(url: &str, args: &Args) -> anyhow::Result<()> {
    let machines = args.concurrency.unwrap_or(1);
    if args.name.as_deref() == Some(centre::NAME) {
        return centre::serve(machines).await;
    }
    let engine = Engine::connect(url, centre::registry(&estate_of(1))?).await?;
    let _node = engine.start_node(NodeConfig { name: "bench".into(), ..NodeConfig::default() }).await?;
    say("READY")?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(order) = centre::orders::<Order>(&mut lines).await? {
        let mut submitting = tokio::task::JoinSet::new();
        for n in order.first..order.first + order.count {
            let mut plan = PlanBuilder::new("activities");
            let off = plan.step("off", "power-off-source").retry(Retry::fixed(1, Duration::ZERO)).input(
                json!({ "id": estate::source(&machine(n)), "vcenter": centre::vcenter(), "force_after": "10m" }),
            );
            off.nothing_to_undo("it is measured");
            let plan = plan.check(engine.registry())?;
            let options = SubmitOptions { labels: json!({ "part": order.part }), ..SubmitOptions::default() };
            let engine = engine.clone();
            submitting.spawn(async move { engine.submit(&plan, options).await.map(|run| run.run) });
        }
        while let Some(submitted) = submitting.join_next().await {
            submitted.context("a submission was cut off")??;
        }
        say("UNDER WAY")?;
    }
    Ok(())
}
