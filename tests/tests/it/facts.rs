//! Facts change with the success that journals it, or not at all, and of those who want the same one wins.

use std::sync::Arc;
use std::time::Duration;

use backstay_engine::machine::{Action, FactChange, Verb};
use backstay_engine::store::{Batch, Proviso, probe};
use backstay_engine::{
    Answer, Engine, Fact, NodeConfig, Plan, PlanBuilder, RunId, Status, Store, StoreError, SubmitOptions,
};
use backstay_tests::{Cut, Deaths, Lab, Wire, plans};
use serde_json::{Value, json};

use crate::until;

/// `a` changes the fact "it" to what is `wanted`, `b` makes something; both are given back if `b` breaks.
fn claiming(engine: &Engine, name: &str, wanted: &Value, b: Value) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("claiming");
    plan.retry(plans::quick()).undo_retry(plans::quick());
    let back = json!({ "fact": "it", "to": "free" });
    let a =
        plan.step(format!("{name}-a"), "become").input(wanted.clone()).undone_by("give-back", back).done();
    plan.step(format!("{name}-b"), "make").input(b).after([&a]).undone_by("unmake", json!({}));
    Ok(plan.check(engine.registry())?)
}

fn taken() -> Value {
    json!({ "fact": "it", "from": ["free"], "to": "taken" })
}

async fn submit(engine: &Engine, plan: &Arc<Plan>) -> anyhow::Result<RunId> {
    Ok(engine.submit(plan, SubmitOptions::default()).await?.run)
}

async fn fact(lab: &Lab) -> anyhow::Result<Option<(String, i64, RunId)>> {
    Ok(lab.engine.fact("it").await?.map(|Fact { value, version, by, .. }| (value, version, by)))
}

/// The errors of a run, as code and message.
async fn failures(lab: &Lab, run: RunId) -> anyhow::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for row in lab.engine.journal(run).await?.iter().filter(|row| row.kind == "failed") {
        let body = row.body.as_ref().map(|body| body.value()).unwrap_or_default();
        let text = |place: &str| body.pointer(place).and_then(Value::as_str).unwrap_or_default().to_owned();
        found.push((text("/error/code"), text("/error/message")));
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fact_changes_with_a_success_and_is_given_back_with_an_undo() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    assert_eq!(fact(&lab).await?, None);
    let run = submit(&engine, &claiming(&engine, "one", &taken(), json!({}))?).await?;
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    assert_eq!(fact(&lab).await?, Some(("taken".into(), 1, run)));
    let story = lab.story(run).await?;
    assert!(story.contains("resource one-a #0\nsucceeded one-a #1"), "{story}");
    lab.assert_facts().await?;

    // Somebody else finds it as it is.
    let other = submit(&engine, &claiming(&engine, "two", &taken(), json!({}))?).await?;
    assert_eq!(lab.settled(other).await?, Status::RolledBack);
    let why = format!("it is taken, by run {run}");
    assert_eq!(failures(&lab, other).await?, [("not_so".to_owned(), why)]);
    assert!(!lab.story(other).await?.contains("undo"), "nothing of it had happened");

    let back = Verb::RollBack(backstay_engine::machine::RollBack::default());
    lab.engine.act(run, &Action::new("ann", "enough", back)).await?;
    until("it is rolled back", async || Ok(lab.engine.get(run).await?.status == Status::RolledBack)).await?;
    assert_eq!(fact(&lab).await?, Some(("free".into(), 2, run)));
    for run in [run, other] {
        lab.assert_journal(run).await?;
    }
    lab.assert_facts().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_fails_changes_no_fact() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let wanted = json!({ "fact": "it", "to": "taken", "fails": true });
    let run = submit(&engine, &claiming(&engine, "one", &wanted, json!({}))?).await?;
    assert_eq!(lab.settled(run).await?, Status::RolledBack);
    assert_eq!(fact(&lab).await?, None);
    lab.assert_journal(run).await
}

/// All look before any of them ends. On one node their ends may come into one batch, on several they do not.
async fn race(nodes: &[&str], runs: usize) -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let mut live = Vec::new();
    for name in nodes {
        live.push(lab.node(Lab::config(name)).await?);
    }
    let mut wanted = taken();
    wanted["waits"] = json!("go");
    let mut all = Vec::new();
    for n in 0..runs {
        let name = format!("r{n}");
        let engine = &live[n % live.len()].0;
        all.push((submit(engine, &claiming(engine, &name, &wanted, json!({}))?).await?, name));
    }
    // Others in the same batches are none the worse for it.
    let engine = &live[0].0;
    let mut beside = Vec::new();
    for n in 0..10 {
        let plan = plans::chain(engine, &format!("beside{n}"), 3, json!({ "waits": "go" }))?;
        beside.push(submit(engine, &plan).await?);
    }
    for (_, name) in &all {
        let step = format!("{name}-a");
        until("it has looked", async || Ok(lab.world.touched("look", &step).await? > 0)).await?;
    }
    lab.world.open_gate("go").await?;
    let mut winners = Vec::new();
    for (run, _) in &all {
        match lab.settled(*run).await? {
            Status::Succeeded => winners.push(*run),
            status => assert_eq!(status, Status::RolledBack),
        }
    }
    assert_eq!(winners.len(), 1, "one wins");
    assert_eq!(fact(&lab).await?, Some(("taken".into(), 1, winners[0])));
    for (run, _) in all.iter().filter(|(run, _)| *run != winners[0]) {
        let [moved, not_so] = &failures(&lab, *run).await?[..] else {
            panic!("{:?}", failures(&lab, *run).await?)
        };
        assert_eq!(moved.0, "fact_moved");
        let says = format!(
            "the fact \"it\" was not set when this attempt looked, and now it is \"taken\", set by run {}",
            winners[0]
        );
        assert!(moved.1.starts_with(&says), "{}", moved.1);
        assert_eq!(*not_so, ("not_so".into(), format!("it is taken, by run {}", winners[0])));
        lab.assert_journal(*run).await?;
    }
    for run in beside {
        assert_eq!(lab.settled(run).await?, Status::Succeeded);
        lab.assert_history(run).await?;
    }
    lab.assert_journal(winners[0]).await?;
    lab.assert_facts().await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_runs_that_have_all_seen_it_free_one_wins_and_the_others_say_who() -> anyhow::Result<()> {
    race(&["a"], 12).await
}

#[tokio::test(flavor = "multi_thread")]
async fn and_so_it_is_between_nodes() -> anyhow::Result<()> {
    race(&["a", "b", "c"], 12).await
}

/// Like the sweeps of `crashes.rs`: a node dies at each passage of each point, and another one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn wherever_a_node_dies_fact_and_journal_say_the_same() -> anyhow::Result<()> {
    for (b, status, left) in [
        (json!({}), Status::Succeeded, ("taken", 1)),
        (json!({ "fails": "permanent" }), Status::RolledBack, ("free", 2)),
    ] {
        let calm = Deaths::none();
        play(&b, &calm, status, left).await?;
        let mut died = 0;
        for (point, nth) in calm.passed() {
            let deaths = Deaths::at(point, nth);
            let played = play(&b, &deaths, status, left).await;
            played.map_err(|error| error.context(format!("death at {point} #{nth}")))?;
            died += usize::from(deaths.fired());
        }
        assert!(died >= 10, "only {died} deaths");
    }
    Ok(())
}

async fn play(b: &Value, deaths: &Deaths, status: Status, left: (&str, i64)) -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let mut config = NodeConfig { lease: Duration::from_secs(30), ..Lab::config("a") };
    let run = submit(&lab.engine, &claiming(&lab.engine, "one", &taken(), b.clone())?).await?;
    config.crash_hook = Some(deaths.hook());
    let (_engine, first) = lab.node(config.clone()).await?;
    tokio::select! {
        () = first.ended() => {}
        status = lab.settled(run) => {
            status?;
        }
    }
    let mut second = None;
    if deaths.fired() {
        drop(first);
        // As it was left: nothing is under way any more.
        lab.assert_facts().await?;
        config.crash_hook = None;
        second = Some(lab.node(config).await?);
    }
    assert_eq!(lab.settled(run).await?, status, "{}", lab.story(run).await?);
    drop(second);
    assert_eq!(fact(&lab).await?, Some((left.0.into(), left.1, run)));
    lab.assert_journal(run).await?;
    lab.assert_facts().await
}

/// Two runs that one life owns, with a journal of two events each.
struct Owned {
    lab: Lab,
    conn: sqlx::PgConnection,
    life: backstay_engine::store::Life,
    runs: Vec<RunId>,
}

impl Owned {
    async fn new() -> anyhow::Result<Self> {
        let lab = Lab::new().await?;
        let store = Store::connect(&lab.url).await?;
        let mut conn = probe::session(&store, "writer").await?;
        let names = ["make", "unmake", "become", "give-back"].map(str::to_owned);
        let (life, _) = probe::begin_life(&mut conn, "a", &names, Duration::from_secs(60)).await?;
        for name in ["one", "two"] {
            submit(&lab.engine, &claiming(&lab.engine, name, &taken(), json!({}))?).await?;
        }
        let claimed = probe::claim_due(&mut conn, &life, &names, 10).await?;
        let runs = claimed.iter().map(|claimed| claimed.run).collect();
        Ok(Self { lab, conn, life, runs })
    }

    /// Two rows of each run; the second of each changes the fact, from `version - 1` on.
    fn batch(&self, changes: [(&str, i64); 2]) -> Batch {
        let mut batch = Batch::default();
        for (run, (to, version)) in self.runs.iter().zip(changes) {
            for seq in [2, 3] {
                batch.events.push((*run, row(&self.life, seq)));
            }
            let from = (version > 1).then(|| "whatever".to_owned());
            let change = FactChange { name: "it".into(), from, to: to.into(), version };
            batch.facts.push(Proviso { run: *run, from: 3, change });
        }
        batch
    }

    async fn lengths(&self) -> anyhow::Result<Vec<usize>> {
        let mut lengths = Vec::new();
        for run in &self.runs {
            lengths.push(self.lab.engine.journal(*run).await?.len());
        }
        Ok(lengths)
    }
}

fn row(life: &backstay_engine::store::Life, seq: i64) -> backstay_engine::machine::Row {
    backstay_engine::machine::Row {
        seq,
        claim: 1,
        epoch: life.epoch.0,
        at: chrono::Utc::now(),
        kind: "progressed",
        step: None,
        undo: false,
        generation: 1,
        attempt: 1,
        key: None,
        body: None,
        seal: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_a_fact_that_has_moved_writes_everything_else() -> anyhow::Result<()> {
    let mut it = Owned::new().await?;
    // Both have seen that nobody had set it.
    let batch = it.batch([("taken", 1), ("mine", 1)]);
    let appended = probe::append(&mut it.conn, &it.life, &batch).await?;
    let [moved] = &appended.moved[..] else { panic!("{:?}", appended.moved) };
    assert_eq!(moved.run, it.runs[1]);
    assert_eq!(moved.found.as_ref().map(|fact| (&*fact.value, fact.by)), Some(("taken", it.runs[0])));
    assert_eq!(it.lengths().await?, [3, 2], "the first row of the other run is there, and its second is not");
    assert_eq!(fact(&it.lab).await?, Some(("taken".into(), 1, it.runs[0])));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_node_changes_no_fact() -> anyhow::Result<()> {
    let mut it = Owned::new().await?;
    let mut sql = it.lab.sql().await?;
    sqlx::query("update nodes set lease_until = now() - interval '1 second'").execute(&mut sql).await?;
    assert_eq!(probe::take_over(&mut sql).await?, ["a"]);
    let batch = it.batch([("taken", 1), ("mine", 1)]);
    let refused = probe::append(&mut it.conn, &it.life, &batch).await;
    assert!(matches!(refused, Err(StoreError::Fenced)), "{refused:?}");
    assert_eq!((it.lengths().await?, fact(&it.lab).await?), (vec![1, 1], None));
    Ok(())
}

/// The takeover comes between the change of the fact and the commit: it waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_waits_for_a_fact_that_is_being_changed() -> anyhow::Result<()> {
    let mut it = Owned::new().await?;
    let mut sql = it.lab.sql().await?;
    sqlx::query("update nodes set lease_until = now() - interval '1 second'").execute(&mut sql).await?;
    sqlx::raw_sql("begin").execute(&mut it.conn).await?;
    let batch = it.batch([("taken", 1), ("taken", 2)]);
    assert!(probe::append_all(&mut it.conn, &it.life, &batch).await?.moved.is_empty());
    let mut other = it.lab.sql().await?;
    let taking = tokio::spawn(async move { probe::take_over(&mut other).await });
    until("it waits", async || {
        let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        Ok(sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut sql).await? == 1)
    })
    .await?;
    sqlx::raw_sql("commit").execute(&mut it.conn).await?;
    assert_eq!(taking.await??, ["a"]);
    assert_eq!(fact(&it.lab).await?, Some(("taken".into(), 2, it.runs[1])));
    Ok(())
}

/// Whatever becomes of the commit or of its answer, the batch is written once, and who is told that a fact has moved is
/// told so of a fact that has.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_found_again() -> anyhow::Result<()> {
    for cut in [Cut::Before, Cut::Underway, Cut::Answered] {
        for sure in [true, false] {
            let (it, wire, batch) = owned_over_a_wire(sure).await?;
            let store = Store::connect(wire.url()).await?;
            let mut conn = Some(probe::session(&store, "writer").await?);
            wire.mark("commit");
            wire.cut(1, &[cut]);
            let appending = probe::append_surely(&store, &mut conn, &it.life, &batch);
            let stop = async {
                until("it was cut", async || Ok(!wire.cuts().is_empty())).await?;
                wire.cut(0, &[]);
                anyhow::Ok(())
            };
            let (appended, stopped) = tokio::join!(appending, stop);
            stopped?;
            let moved: Vec<_> = appended?.moved.into_iter().map(|moved| moved.run).collect();
            assert_eq!(moved, [it.runs[1]], "{cut:?}, {sure}");
            assert_eq!(fact(&it.lab).await?, Some(("taken".into(), 1, it.runs[0])), "{cut:?}, {sure}");
            let lengths = if sure { [3, 2] } else { [3, 1] };
            assert_eq!(it.lengths().await?, lengths, "{cut:?}, {sure}");
        }
    }
    Ok(())
}

/// With rows that are written in any case, or with none.
async fn owned_over_a_wire(sure: bool) -> anyhow::Result<(Owned, Wire, Batch)> {
    let mut it = Owned::new().await?;
    let wire = Wire::to(&it.lab.url).await?;
    let mut batch = it.batch([("taken", 1), ("mine", 1)]);
    if !sure {
        // The first rows are there already, of the first run alone.
        let first = Batch { events: vec![batch.events[0].clone()], ..Batch::default() };
        probe::append(&mut it.conn, &it.life, &first).await?;
        batch.events = vec![batch.events[1].clone(), (it.runs[1], row(&it.life, 2))];
        batch.facts[1].from = 2;
    }
    Ok((it, wire, batch))
}

/// While nobody knows whether the fact was as it was seen, the run stands still; what comes for it then is not lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_for_a_run_that_stands_still_is_put_by() -> anyhow::Result<()> {
    for loses in [false, true] {
        let lab = Lab::new().await?;
        let wire = Wire::to(&lab.url).await?;
        let config = NodeConfig { lease: Duration::from_secs(20), rejoin: false, ..Lab::config("a") };
        let (engine, _node) = lab.node_by(wire.url(), config).await?;
        let mut plan = PlanBuilder::new("beside");
        plan.retry(plans::quick()).undo_retry(plans::quick());
        let mut wanted = taken();
        wanted["waits"] = json!("fact");
        let a = plan
            .step("a", "become")
            .input(wanted)
            .undone_by("give-back", json!({ "fact": "it", "to": "free" }))
            .done();
        let saves = json!({ "waits": "beside", "saves": true });
        let b = plan.step("b", "make").input(saves).undone_by("unmake", json!({})).done();
        plan.step("c", "make").after([&a, &b]).undone_by("unmake", json!({}));
        let run = submit(&engine, &plan.check(engine.registry())?).await?;
        until("both are under way", async || {
            Ok(lab.world.touched("look", "a").await? == 1 && lab.world.touched("wait", "b").await? == 1)
        })
        .await?;
        if loses {
            let by_hand = "insert into facts (name, value, version, changed_by) values ('it', 'lost', 1, gen_random_uuid())";
            sqlx::query(by_hand).execute(&mut lab.sql().await?).await?;
        }
        // The commit of the change is there, and its answer is a long time coming.
        wire.mark("commit");
        wire.cut(1, &[Cut::Late]);
        lab.world.open_gate("fact").await?;
        until("the answer is held back", async || Ok(wire.cuts() == [Cut::Late])).await?;
        wire.cut(0, &[]);
        // Its other step saves something, and people speak to it.
        lab.world.open_gate("beside").await?;
        let pause = Action::new("ann", "wait", Verb::Pause);
        let asking = {
            let (engine, pause) = (lab.engine.clone(), pause.clone());
            tokio::spawn(async move { engine.act(run, &pause).await })
        };
        until("it is said", async || {
            let said: i64 =
                sqlx::query_scalar("select count(*) from inbox").fetch_one(&mut lab.sql().await?).await?;
            Ok(said == 1)
        })
        .await?;
        // Long enough to be read; nothing is lost if it was not.
        tokio::time::sleep(Duration::from_millis(100)).await;
        wire.let_arrive();
        assert!(matches!(asking.await??, Answer::Accepted { .. }));
        until("its other step is done", async || Ok(lab.story(run).await?.contains("succeeded b"))).await?;
        lab.engine.act(run, &Action::new("ann", "go on", Verb::Resume)).await?;
        let status = lab.settled(run).await?;
        let story = lab.story(run).await?;
        assert_eq!(story.matches("failed a #1 fact_moved").count(), usize::from(loses), "{story}");
        let wanted = if loses { Status::RolledBack } else { Status::Succeeded };
        assert_eq!(status, wanted, "{story}");
        assert_eq!(lab.world.touched("make", "b").await?, 1, "no call was cut off: {story}");
        assert!(!story.contains("lost_lease"), "{story}");
        lab.assert_journal(run).await?;
    }
    Ok(())
}
