//! Where the figures of the README come from.
//!
//! Each scenario runs on a fresh database of a durable cluster (fsync and synchronous_commit on): a private one
//! that is thrown away afterwards, or the one at `--database-url`. Figures of one machine compare only within one
//! run; `all` runs the floor first and prints the ratios.

mod activities;
mod api;
mod caller;
mod centre;
mod failover;
mod floor;
mod growth;
mod history;
mod host;
mod idle;
mod load;
mod recovery;
mod removal;
mod signals;
mod storm;
mod submits;
mod takeover;
mod work;

use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Measures the engine against what its database can do.
#[derive(Parser, Clone, Debug)]
#[command(name = "bench")]
struct Args {
    /// What to measure.
    scenario: Scenario,
    /// A database server to use; its databases `backstay_bench_*` are made and dropped. Left out: a private one.
    #[arg(long, env = "BENCH_DATABASE_URL")]
    database_url: Option<String>,
    /// Workflows in flight (sequential, fanout), runs (recovery, idle, takeover, signals, storm, failover, activities), or
    /// watchers (api).
    #[arg(long, alias = "runs")]
    concurrency: Option<usize>,
    /// Steps of a workflow; for growth and removal the events of the largest journal, for api the runs of the longest list.
    #[arg(long)]
    steps: Option<usize>,
    /// Seconds that are measured, after a warm-up of a third of that.
    #[arg(long, default_value_t = 9)]
    seconds: u64,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Used for the processes that are measured.
    #[arg(long, hide = true)]
    worker: Option<String>,
    /// The node's name in such a process.
    #[arg(long, hide = true)]
    name: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    /// Steps in a row, each result journaled before the next starts.
    Sequential,
    /// Parallel steps.
    Fanout,
    /// Runs in flight, the process killed and started again.
    Recovery,
    /// Runs that wait: what they cost.
    Idle,
    /// What a step costs with a long journal.
    Growth,
    /// Three nodes, one of them killed: how soon the others go on with its runs.
    Takeover,
    /// Runs that wait for a signal: what they cost, and how fast they go on once it comes.
    Signals,
    /// Runs submitted at once for a target that bears few calls: fairness, undos, memory.
    Storm,
    /// Removing what is over: what a batch takes.
    Removal,
    /// How long it takes to open the history of one long run.
    History,
    /// Failovers in an instant data centre: one, and many at once; time, CPU, memory.
    Failover,
    /// Machines polled at once until they are off: calls a second, and what they cost.
    Activities,
    /// The server over HTTP: submits, reads, pages, watchers.
    Api,
    /// The part of it about submits: over HTTP and in process, and the processor time of each side.
    Submits,
    /// What the same database does without an engine.
    Floor,
    /// Floor, sequential and fanout at the documented sizes, with their ratios.
    All,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    if let Some(url) = &args.worker {
        return match args.scenario {
            Scenario::Recovery => recovery::worker(url, &args).await,
            Scenario::Takeover => takeover::worker(url, &args).await,
            Scenario::Signals => signals::worker(url).await,
            Scenario::Storm => storm::worker(url, &args).await,
            Scenario::Failover => failover::worker(url, &args).await,
            Scenario::Activities => activities::worker(url, &args).await,
            _ => idle::worker(url, &args).await,
        };
    }
    let host = host::Host::open(args.database_url.clone()).await?;
    let report = match args.scenario {
        Scenario::Sequential => load::sequential(&host, &args, args.concurrency.unwrap_or(1)).await?,
        Scenario::Fanout => load::fanout(&host, &args, args.concurrency.unwrap_or(1)).await?,
        Scenario::Recovery => recovery::measure(&host, &args).await?,
        Scenario::Idle => idle::measure(&host, &args).await?,
        Scenario::Growth => growth::measure(&host, &args).await?,
        Scenario::Takeover => takeover::measure(&host, &args).await?,
        Scenario::Signals => signals::measure(&host, &args).await?,
        Scenario::Storm => storm::measure(&host, &args).await?,
        Scenario::Removal => removal::measure(&host, &args).await?,
        Scenario::History => history::measure(&host, &args).await?,
        Scenario::Failover => failover::measure(&host, &args).await?,
        Scenario::Activities => activities::measure(&host, &args).await?,
        Scenario::Api => api::measure(&host, &args).await?,
        Scenario::Submits => submits::measure(&host, &args).await?.into(),
        Scenario::Floor => floor::measure(&host, &args).await?,
        Scenario::All => all(&host, &args).await?,
    };
    host.close().await?;
    print(&report, args.json)
}

/// The floor and the engine in one run, so that the ratios mean something on a machine that is shared.
async fn all(host: &host::Host, args: &Args) -> anyhow::Result<serde_json::Value> {
    let floor = floor::measure(host, args).await?;
    let of = |name: &str| floor.get(name).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
    let mut report = serde_json::Map::new();
    for (name, concurrency, against) in [
        ("sequential_1", 1, of("insert1_c1")),
        ("sequential_16", 16, of("insert1_c16")),
        ("sequential_128", 128, of("insert100_c4")),
        ("sequential_1024", 1024, of("insert100_c4")),
        ("fanout_1", 1, f64::NAN),
        ("fanout_16", 16, f64::NAN),
    ] {
        let mut figures = if name.starts_with("seq") {
            load::sequential(host, args, concurrency).await?
        } else {
            load::fanout(host, args, concurrency).await?
        };
        let steps = figures.get("steps_per_s").and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
        if let (Some(map), true) = (figures.as_object_mut(), against.is_finite()) {
            map.insert("of_floor".into(), serde_json::json!(round(steps / against, 3)));
        }
        report.insert(name.into(), figures);
    }
    report.insert("floor".into(), floor);
    Ok(serde_json::Value::Object(report))
}

pub(crate) fn round(value: f64, digits: i32) -> f64 {
    let k = 10f64.powi(digits);
    (value * k).round() / k
}

pub(crate) fn seconds(args: &Args) -> Duration {
    Duration::from_secs(args.seconds.max(1))
}

fn print(report: &serde_json::Value, json: bool) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{report}")?;
        return Ok(());
    }
    let serde_json::Value::Object(map) = report else { return Ok(()) };
    for (name, value) in map {
        match value {
            serde_json::Value::Object(inner) => {
                writeln!(out, "{name}")?;
                for (name, value) in inner {
                    writeln!(out, "  {name:<24} {value}")?;
                }
            }
            value => writeln!(out, "{name:<26} {value}")?,
        }
    }
    Ok(())
}
