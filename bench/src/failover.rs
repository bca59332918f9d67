//! Failovers in a data centre in which nothing takes time: what is left is ours. One after the other, and all at once; each
//! has to come to its end, and every disk and machine with it.

use std::time::{Duration, Instant};

use anyhow::Context;
use backstay_engine::{Engine, NodeConfig, RunId, SubmitOptions};
use backstay_simulator::world::things::Power;
use backstay_simulator::world::{State, estate};
use backstay_workflows::Workflow;
use backstay_workflows::failover::FailoverWorkflow;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::centre::{self, Addresses, Worker, estate_of, machine};
use crate::host::{Host, Meter, peak_mb, process_cpu, resident_mb};
use crate::recovery::say;
use crate::{Args, round};

/// One after the other: so many, as the clock of the CPU is coarse.
const IN_A_ROW: usize = 20;
/// Between two looks at what was begun: one failover alone should not wait for itself; many wait for each other, at the
/// appliance above all, which attaches and detaches one disk after the other, and should not spend the time on looks.
const SOON: Duration = Duration::from_millis(2);
const NOW_AND_THEN: Duration = Duration::from_secs(1);

/// What a node is told to do.
#[derive(Serialize, Deserialize)]
struct Order {
    /// `test` or `live`.
    mode: String,
    /// What its runs are found by.
    part: String,
    first: usize,
    count: usize,
}

pub(crate) async fn measure(host: &Host, args: &Args) -> anyhow::Result<Value> {
    let runs = args.concurrency.unwrap_or(1_000);
    let in_a_row = IN_A_ROW.min(runs);
    // One more, to warm up with.
    let machines = runs + in_a_row + 1;
    let url = host.fresh("failover").await?;
    let mut data_centre = Worker::start("failover", centre::NAME, &url, machines, None)?;
    let at: Addresses = serde_json::from_str(&data_centre.says().await?)?;
    let node = async |name: &str, pause: Duration| {
        let mut node = Worker::start("failover", name, &url, machines, Some((&at, pause.into())))?;
        node.says().await?;
        anyhow::Ok(node)
    };
    let mut play = Play {
        conn: PgConnection::connect(&url).await?,
        url: url.clone(),
        at: at.clone(),
        node: node("alone", SOON).await?,
        centre: data_centre.pid.clone(),
    };
    // What every process does once is no part of a failover.
    let warm = |part: &str| [Order { mode: "test".into(), part: part.into(), first: machines, count: 1 }];
    play.part(&warm("warm-up")).await?;
    let mut report = serde_json::Map::from_iter([("runs".to_owned(), json!(runs))]);
    let single = |mode: &str, n: usize| Order {
        mode: mode.into(),
        part: format!("one {mode}"),
        first: runs + n,
        count: 1,
    };
    for (name, mode) in [("one_rehearsal", "test"), ("one_live", "live")] {
        let orders: Vec<_> = (1..=in_a_row).map(|n| single(mode, n)).collect();
        report.insert(name.into(), play.part(&orders).await?);
    }
    std::mem::replace(&mut play.node, node("many", NOW_AND_THEN).await?).end().await?;
    play.part(&warm("warm-up of many")).await?;
    for (name, mode) in [("rehearsals", "test"), ("live", "live")] {
        let all = Order { mode: mode.into(), part: format!("all {mode}"), first: 1, count: runs };
        report.insert(name.into(), play.part(&[all]).await?);
    }
    play.node.end().await?;
    data_centre.end().await?;
    Ok(Value::Object(report))
}

/// What takes part.
struct Play {
    url: String,
    conn: PgConnection,
    at: Addresses,
    node: Worker,
    centre: String,
}

/// From submission to its last event, as the database's clock has it, how many events, and how many of them are failed attempts.
const TOOK: &str =
    "select percentile_cont(array[0.5, 0.99, 1]) within group (order by took), sum(events)::float8,
       sum(failed)::float8
from (
    select extract(epoch from max(j.at) - r.submitted_at)::float8 * 1000 as took, count(*) as events,
           count(*) filter (where j.kind = 'failed') as failed
    from runs r join events j using (run_id) where r.labels ->> 'part' = $1
    group by r.run_id
) as each";

/// The steps and undos that take longest, from their start to their end, and what lies between them.
const LONGEST: &str = "with steps as (
    select run_id, step || case when undo then ' undone' else '' end as what,
           extract(epoch from max(at) filter (where kind = 'succeeded') - min(at) filter (where kind = 'started')) * 1000 as took
    from events join runs using (run_id) where labels ->> 'part' = $1 and step is not null
    group by run_id, step, undo
)
select jsonb_object_agg(what, took) from (
    select what, round(percentile_cont(0.5) within group (order by took)::numeric, 1) as took
    from steps where took is not null group by what order by 2 desc limit 5
) as longest";

impl Play {
    /// Plays failovers to their end, one order after the other, and says what they cost.
    async fn part(&mut self, orders: &[Order]) -> anyhow::Result<Value> {
        let first = orders.first().context("nothing to do")?;
        let (part, live) = (first.part.clone(), first.mode == "live");
        let count: usize = orders.iter().map(|order| order.count).sum();
        let calls = centre::truth(&self.at).await?.calls;
        let idle = resident_mb(&self.node.pid);
        let cpu = |play: &Self| (process_cpu(&play.node.pid), process_cpu(&play.centre));
        let (meter, before) = (Meter::read(&self.url).await?, cpu(self));
        let (begun, mut most, mut done) = (Instant::now(), idle, 0);
        for order in orders {
            self.node.does(order).await?;
            done += order.count;
            while !self.are_done(&part, live, done).await? {
                anyhow::ensure!(
                    begun.elapsed() < Duration::from_secs(900),
                    "not all failovers come to their end"
                );
                most = most.max(resident_mb(&self.node.pid));
                tokio::time::sleep(if order.count == 1 { SOON } else { SOON * 10 }).await;
            }
        }
        let lasted = begun.elapsed().as_secs_f64();
        let after = cpu(self);
        let database = Meter::read(&self.url).await?.since(&meter, lasted);
        let truth = centre::truth(&self.at).await?;
        for order in orders {
            (order.first..order.first + order.count).try_for_each(|n| stands(&truth.state, n, live))?;
        }
        let (took, events, failed): (Vec<f64>, f64, f64) =
            sqlx::query_as(TOOK).bind(&part).fetch_one(&mut self.conn).await?;
        let longest: Value = sqlx::query_scalar(LONGEST).bind(&part).fetch_one(&mut self.conn).await?;
        let each = |of: f64, digits| round(of / count as f64, digits);
        let of = |at: usize| round(took.get(at).copied().unwrap_or(f64::NAN), 1);
        let database = database.get("database_cpu_s").copied().unwrap_or(f64::NAN);
        let mut report = json!({
            "failovers": count,
            "took_p50_ms": of(0),
            "took_p99_ms": of(1),
            "took_most_ms": of(2),
            "longest_p50_ms": longest,
            "failed_attempts": failed,
            "events_each": each(events, 1),
            "calls_each": each((truth.calls - calls) as f64, 1),
            "node_cpu_ms_each": each((after.0 - before.0) * 1_000.0, 2),
            "database_cpu_ms_each": each(database * 1_000.0, 2),
            "data_centre_cpu_ms_each": each((after.1 - before.1) * 1_000.0, 2),
        });
        if let (Some(report), true) = (report.as_object_mut(), orders.len() == 1) {
            report.insert("total_s".into(), json!(round(lasted, 2)));
            report.insert("total_ms_each".into(), json!(each(lasted * 1_000.0, 2)));
            report.insert("memory_kb_each".into(), json!(each((most - idle).max(0.0) * 1_024.0, 1)));
            report.insert("peak_memory_mb".into(), json!(peak_mb(&self.node.pid)));
        }
        Ok(report)
    }

    /// Whether so many of this part have come to the end that they should. Another end is an error.
    async fn are_done(&mut self, part: &str, live: bool, count: usize) -> anyhow::Result<bool> {
        let right = if live { "succeeded" } else { "rolled_back" };
        let look = "select count(*) filter (where status = $2),
                           min(run_id::text || ' is ' || status) filter
                               (where status in ('held', 'stuck', 'quarantined', 'paused', 'committed', 'closed')
                                   or (status in ('rolling_back', 'rolled_back') and $2 = 'succeeded'))
                    from runs where labels ->> 'part' = $1";
        let (done, wrong): (i64, Option<String>) =
            sqlx::query_as(look).bind(part).bind(right).fetch_one(&mut self.conn).await?;
        if let Some(wrong) = wrong {
            let why: Option<Option<String>> = sqlx::query_scalar(
                "select string_agg(step || ': ' || (body -> 'error' ->> 'message'), '; ' order by seq)
                 from events where kind = 'failed' and run_id = $1::uuid",
            )
            .bind(wrong.split(' ').next())
            .fetch_one(&mut self.conn)
            .await
            .ok();
            anyhow::bail!("run {wrong}, and should be {right}: {}", why.flatten().unwrap_or_default());
        }
        Ok(usize::try_from(done)? == count)
    }
}

/// Whether a machine and its disk are where they should be: the copy runs and has the disk, or everything is at home.
fn stands(state: &State, n: usize, live: bool) -> anyhow::Result<()> {
    let name = machine(n);
    let source = state.sources.get(&estate::source(&name)).context("the source is gone")?;
    let disk = source.disks.first().context("the source has no disk")?;
    let volume = state.volumes.get(&disk.replica).context("the disk is gone")?;
    let at: Vec<_> = volume.plugged.iter().collect();
    // That of a rehearsal says so behind its name.
    let is_copy =
        |shown: &str| shown.strip_prefix(&*name).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
    let copies: Vec<_> = state
        .vms
        .values()
        .filter(|vm| vm.removed.is_none() && is_copy(&vm.display_name) && vm.id != state.oma)
        .collect();
    let (is_right, power) = match (live, copies.as_slice()) {
        (true, [copy]) => (at == [&copy.id] && copy.power == Power::On, Power::Off),
        (false, []) => (at == [&state.oma] && volume.content.foreign.is_empty(), Power::On),
        _ => (false, source.power),
    };
    anyhow::ensure!(
        is_right && source.power == power,
        "{name}: {} copies, its disk is at {at:?}, and the source is {:?}",
        copies.len(),
        source.power
    );
    Ok(())
}

pub(crate) async fn worker(url: &str, args: &Args) -> anyhow::Result<()> {
    let machines = args.concurrency.unwrap_or(1);
    if args.name.as_deref() == Some(centre::NAME) {
        return centre::serve(machines).await;
    }
    let state = estate_of(machines);
    let name = args.name.clone().unwrap_or_else(|| "bench".into());
    let engine = Engine::connect(url, centre::registry(&state)?).await?;
    let _node = engine.start_node(NodeConfig { name, ..NodeConfig::default() }).await?;
    say("READY")?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(order) = centre::orders::<Order>(&mut lines).await? {
        let mut submitting = tokio::task::JoinSet::new();
        for n in order.first..order.first + order.count {
            let input = input(&state, n, &order.mode)?;
            let (engine, part) = (engine.clone(), order.part.clone());
            submitting.spawn(async move { submit(&engine, &input, &part).await });
        }
        while let Some(submitted) = submitting.join_next().await {
            submitted??;
        }
        say("UNDER WAY")?;
    }
    Ok(())
}

async fn submit(engine: &Engine, input: &Value, part: &str) -> anyhow::Result<RunId> {
    let wrong = |problems: Vec<backstay_workflows::Problem>| anyhow::anyhow!("{problems:?}");
    let prepared = FailoverWorkflow.prepare(input).map_err(wrong)?;
    let plan = FailoverWorkflow.checked(input, engine.registry()).map_err(wrong)?;
    let options = SubmitOptions {
        exclusive: prepared.exclusive,
        labels: json!({ "part": part }),
        ..SubmitOptions::default()
    };
    Ok(engine.submit(&plan, options).await?.run)
}

/// A rehearsal is undone at once. Its networks give no addresses, of which there are not so many.
fn input(state: &State, n: usize, mode: &str) -> anyhow::Result<Value> {
    let name = machine(n);
    let source = state.sources.get(&estate::source(&name)).context("there is no such machine")?;
    let of = |kind: &str, name: &str| estate::id(kind, name).to_string();
    let network = if mode == "test" { "test-l2" } else { "prod-trunk" };
    let disks: Vec<_> = source
        .disks
        .iter()
        .map(|disk| json!({ "key": disk.key, "volume": disk.replica.to_string(), "size": disk.size }))
        .collect();
    Ok(json!({
        "context": name, "mode": mode,
        "source": {
            "id": source.id, "name": source.name, "path": source.path, "windows": false, "boot_type": "BIOS",
            "cpus": source.cpus, "memory_mb": source.memory_mb, "disks": disks, "vcenter": centre::vcenter(),
        },
        "destination": {
            "zone": of("zone", "zone-1"), "offering": of("service-offering", "custom"),
            "template": of("template", "tiny"), "nics": [{ "network": of("network", network) }],
        },
        "test_for": "1ms", "steady": "1ms", "boot_within": "5m",
    }))
}
