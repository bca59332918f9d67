//! Three node processes on one database, killed, frozen past their lease, drained and replaced while they work.
//!
//! `BACKSTAY_SWEEP=full` plays ten times as long; `BACKSTAY_SEED=n` plays a certain game again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use backstay_engine::{RunId, Status, SubmitOptions};
use backstay_tests::{Lab, plans};
use rustix::process::Signal;
use serde_json::json;

use crate::processes::Process;
use crate::until;

const LEASE: Duration = Duration::from_millis(1_500);
const NAMES: [&str; 3] = ["n0", "n1", "n2"];

/// All choices of a game, from its seed.
struct Dice(u64);

impl Dice {
    fn pick(&mut self, of: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % of
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    Freeze,
    Drain,
    Sessions,
}

const FAULTS: [Fault; 4] = [Fault::Kill, Fault::Freeze, Fault::Drain, Fault::Sessions];

/// Three processes; one that has ended is replaced by another of its name.
struct Cluster<'a> {
    lab: &'a Lab,
    nodes: Vec<Process>,
}

impl<'a> Cluster<'a> {
    async fn start(lab: &'a Lab) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for name in NAMES {
            nodes.push(Self::node(lab, name).await?);
        }
        Ok(Self { lab, nodes })
    }

    async fn node(lab: &Lab, name: &str) -> anyhow::Result<Process> {
        // No run kills its node here, so none is left alone for having been there when nodes died.
        let patient = Some(("BACKSTAY_MAX_CRASHES", "1000"));
        let mut node = Process::node_with(lab, name, LEASE, patient).await?;
        anyhow::ensure!(node.says("UP").await, "{name} did not come up: {:?}", node.child.try_wait());
        Ok(node)
    }

    async fn replace(&mut self, at: usize) -> anyhow::Result<()> {
        self.nodes[at] = Self::node(self.lab, NAMES[at]).await?;
        Ok(())
    }

    /// Does it, and sees it done. On a busy machine a node may have lost its lease a moment before: then it is done to
    /// its successor.
    async fn suffer(&mut self, fault: Fault, at: usize) -> anyhow::Result<()> {
        for _ in 0..5 {
            if self.nodes[at].child.try_wait()?.is_none() && self.done(fault, at).await? {
                return Ok(());
            }
            self.replace(at).await?;
        }
        anyhow::bail!("{fault:?} could not be done to {}", NAMES[at])
    }

    async fn done(&mut self, fault: Fault, at: usize) -> anyhow::Result<bool> {
        match fault {
            Fault::Kill => {
                self.nodes[at].child.kill().await?;
                self.replace(at).await?;
            }
            Fault::Freeze => {
                let life = "select count(*) from nodes where name = $1 and ended_at is null";
                let mut sql = self.lab.sql().await?;
                self.nodes[at].signal(Signal::STOP);
                until("the others have ended its life", async || {
                    let alive: i64 = sqlx::query_scalar(life).bind(NAMES[at]).fetch_one(&mut sql).await?;
                    Ok(alive == 0)
                })
                .await?;
                self.nodes[at].signal(Signal::CONT);
                anyhow::ensure!(self.nodes[at].says("LOST").await, "a node that slept past its lease ends");
                self.replace(at).await?;
            }
            Fault::Drain => {
                self.nodes[at].signal(Signal::TERM);
                if !self.nodes[at].says("DRAINED").await {
                    return Ok(false);
                }
                self.replace(at).await?;
            }
            Fault::Sessions => {
                let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                           where application_name like 'backstay %' and datname = current_database()";
                let cut: i64 = sqlx::query_scalar(cut).fetch_one(&mut self.lab.sql().await?).await?;
                anyhow::ensure!(cut > 0, "there were sessions to cut");
            }
        }
        Ok(true)
    }
}

/// Some runs of all kinds.
async fn submit(lab: &Lab, dice: &mut Dice, runs: &mut Vec<(RunId, Status)>) -> anyhow::Result<()> {
    let (last, end) = match dice.pick(5) {
        0 => (json!({ "fails": "permanent" }), Status::RolledBack),
        1 => (json!({ "fails": "late:1", "saves": true }), Status::Succeeded),
        2 => (json!({ "fails": "2", "millis": 20 }), Status::Succeeded),
        3 => (json!({ "millis": 400, "saves": true }), Status::Succeeded),
        _ => (json!({ "millis": 10 }), Status::Succeeded),
    };
    let plan = plans::chain(&lab.engine, &format!("r{}", runs.len()), 3, last)?;
    let key = Some(format!("key {}", runs.len()));
    let run = lab.engine.submit(&plan, SubmitOptions { key, ..SubmitOptions::default() }).await?.run;
    runs.push((run, end));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_lose_no_run_and_share_none() -> anyhow::Result<()> {
    let seed = match std::env::var("BACKSTAY_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id()),
    };
    let rounds = if std::env::var("BACKSTAY_SWEEP").is_ok_and(|value| value == "full") { 80 } else { 8 };
    play(seed, rounds).await.with_context(|| format!("BACKSTAY_SEED={seed}"))
}

async fn play(seed: u64, rounds: usize) -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let mut dice = Dice(seed);
    let mut runs = Vec::new();
    let mut cluster = Cluster::start(&lab).await?;
    let mut seen: BTreeMap<Fault, usize> = BTreeMap::new();
    for round in 0..rounds {
        for _ in 0..20 {
            submit(&lab, &mut dice, &mut runs).await?;
        }
        // Each of them for sure, and then by chance.
        let fault = FAULTS[if round < FAULTS.len() { round } else { dice.pick(FAULTS.len()) }];
        cluster.suffer(fault, dice.pick(NAMES.len())).await?;
        *seen.entry(fault).or_default() += 1;
    }
    // A release: one after the other.
    for at in 0..NAMES.len() {
        cluster.suffer(Fault::Drain, at).await?;
    }
    assert_eq!(seen.len(), FAULTS.len(), "every fault was seen: {seen:?}");
    for (run, end) in &runs {
        assert_eq!(lab.settled(*run).await?, *end, "{}", lab.story(*run).await?);
    }
    let mut drivers: BTreeMap<String, usize> = BTreeMap::new();
    for (run, _) in &runs {
        lab.assert_history(*run).await?;
        let names: BTreeSet<String> = lab
            .engine
            .journal(*run)
            .await?
            .iter()
            .filter(|row| row.kind == "claimed")
            .filter_map(|row| row.body.as_ref()?.value()["node"].as_str().map(str::to_owned))
            .collect();
        for name in names {
            *drivers.entry(name).or_default() += 1;
        }
    }
    assert_eq!(drivers.len(), NAMES.len(), "all three had runs: {drivers:?}");
    work_goes_on(&lab, &mut dice, runs).await
}

/// After all that each of the three is as good as new.
async fn work_goes_on(lab: &Lab, dice: &mut Dice, mut runs: Vec<(RunId, Status)>) -> anyhow::Result<()> {
    let before = runs.len();
    let served = "select count(distinct run_id) from journal j join nodes n using (epoch)
                  where n.name = $1 and j.kind = 'finished' and j.run_id = any ($2)";
    let mut sql = lab.sql().await?;
    until("each node has brought five new runs to their end", async || {
        for _ in 0..5 {
            submit(lab, dice, &mut runs).await?;
        }
        let new: Vec<_> = runs[before..].iter().map(|(run, _)| run.0).collect();
        let mut least = i64::MAX;
        for name in NAMES {
            let ended: i64 = sqlx::query_scalar(served).bind(name).bind(&new).fetch_one(&mut sql).await?;
            least = least.min(ended);
        }
        Ok(least >= 5)
    })
    .await
}
