//! Many failovers at once, with faults in half of all calls and nodes that are killed again and again.
//!
//! Eight of them; two hundred with `BACKSTAY_SWEEP=full`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use backstay_engine::machine::Verb;
use backstay_engine::{Engine, RunId, Status};
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::world::estate;

use crate::judge::{Before, judge};
use crate::stage::Stage;

/// The share of calls with a fault.
const SHARE: f64 = 0.5;
/// As often as a failover tries each step and each undo; only the waits between are short.
const ATTEMPTS: (u32, u32) = (8, 10);

/// A node dies once so many calls were made for each failover that is under way, or after so long.
const CALLS_OF_A_LIFE: u64 = 50;
/// See [`CALLS_OF_A_LIFE`].
const A_LIFE: Duration = Duration::from_secs(5);

/// What goes wrong, with its weight.
fn weather(share: f64) -> Vec<Rule> {
    let faults = [
        Fault::Refused { status: 500 },
        Fault::Dropped,
        Fault::DoneThenDropped,
        Fault::Reset,
        Fault::TooMany { ms: 50 },
        Fault::Html { status: 503 },
        Fault::JobLost,
        Fault::JobFails { code: 530 },
        Fault::Lagging { ms: 100 },
    ];
    // The first rule that fires is the one, so each has its share of what the ones before leave.
    let each = 1.0 - (1.0 - share).powf(1.0 / faults.len() as f64);
    faults.into_iter().map(|fault| Rule::chance("*", "*", each, fault)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_failovers_leaves_no_orphan_and_nothing_that_runs_twice() -> anyhow::Result<()> {
    let full = std::env::var("BACKSTAY_SWEEP").is_ok_and(|form| form == "full");
    let pairs = if full { 100 } else { 4 };
    let stage = Stage::with(estate::of(pairs, 2)).await?;
    let names: Vec<_> =
        (1..=pairs).flat_map(|n| [format!("linux-{n:03}"), format!("windows-{n:03}")]).collect();
    let beside = stage.beside().await?;
    let mut runs: BTreeMap<RunId, (String, bool, Before)> = BTreeMap::new();
    for (n, name) in names.iter().enumerate() {
        let live = n % 3 == 0;
        let before = Before::of(&stage, name);
        let input = stage.input(name, if live { "live" } else { "test" });
        let run = stage.submit_in_a_hurry(&beside, &input, ATTEMPTS).await?;
        runs.insert(run, (name.clone(), live, before));
    }
    for rule in weather(SHARE) {
        stage.centre.faults().rule(rule);
    }

    // Nodes come and go while it lasts.
    let mut kills = 0;
    let deadline = Instant::now() + Duration::from_secs(if full { 3_000 } else { 400 });
    let mut left = runs.len();
    while left > 0 {
        if Instant::now() >= deadline {
            anyhow::bail!(
                "{left} of {} failovers do not end:\n{}",
                runs.len(),
                unended(&stage, &beside, &runs).await?
            );
        }
        let (engine, mortal) = stage.node(Stage::config("a")).await?;
        // It dies once it has done something for each of them, however fast this machine is.
        let (until, enough) = (Instant::now() + A_LIFE, calls(&stage) + CALLS_OF_A_LIFE * left as u64);
        while left > 0 && Instant::now() < until && calls(&stage) < enough {
            left = still(&engine, &runs).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        mortal.kill().await;
        kills += 1;
    }
    let fired: u64 = stage.centre.faults().fired().iter().map(|rule| rule.times).sum();
    anyhow::ensure!(kills > 1 && fired > 0, "there was no storm: {kills} kills, {fired} faults");

    // The weather clears, and people decide what was left to them.
    stage.centre.faults().clear();
    stage.unplug_what_cloudstack_lost();
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (run, (name, live, before)) in &runs {
        let mut status = engine.get(*run).await?.status;
        for _ in 0..6 {
            match status {
                Status::Held => stage.roll_back(&engine, *run).await?,
                Status::Stuck => {
                    for step in stage.stuck(&engine, *run).await? {
                        let verb = Verb::Retry { step, undo: true, input: None, in_doubt: false };
                        stage.act(&engine, *run, verb).await?;
                    }
                }
                _ => break,
            }
            stage.moves_on(&engine, *run, status).await?;
            status = stage.settled(&engine, *run).await?;
        }
        *ends.entry(status.as_str()).or_default() += 1;
        // What others did stands in the same world: only what is about this run is looked at.
        let mut found = judge(&stage, name, *live, before, *run, status).await?;
        found.retain(|what| !what.starts_with("an invariant"));
        if !found.is_empty() {
            wrong.push(format!(
                "{name}, run {run}, {}: {found:#?}\n{}",
                status.as_str(),
                stage.lab.story(*run).await?
            ));
        }
    }
    println!("{} failovers, {kills} kills, {fired} faults: {ends:?}", runs.len());
    anyhow::ensure!(wrong.is_empty(), "{} went wrong:\n{}", wrong.len(), wrong.join("\n"));
    stage.lab.assert_facts().await?;
    stage.is_sound()
}

/// How many calls the data centre was asked for.
fn calls(stage: &Stage) -> u64 {
    stage.centre.faults().calls().values().sum()
}

/// The stories of those that move on by themselves.
async fn unended(
    stage: &Stage,
    engine: &Engine,
    runs: &BTreeMap<RunId, (String, bool, Before)>,
) -> anyhow::Result<String> {
    let mut stories = String::new();
    for (run, (name, live, _)) in runs {
        let status = engine.get(*run).await?.status;
        if !status.settles() {
            let why = engine.explain(*run).await?;
            stories += &format!(
                "{name}, live {live}, {}: {why:?}\n{}\n",
                status.as_str(),
                stage.lab.story(*run).await?
            );
        }
    }
    Ok(stories)
}

/// How many move on by themselves.
async fn still(engine: &Engine, runs: &BTreeMap<RunId, (String, bool, Before)>) -> anyhow::Result<usize> {
    let mut still = 0;
    for run in runs.keys() {
        still += usize::from(!engine.get(*run).await?.status.settles());
    }
    Ok(still)
}
