//! What people can ask of runs: why one does not move, what it made, how to finish it by hand.

use std::time::Duration;

use backstay_engine::machine::{Action, Fate, Verb};
use backstay_engine::{
    Activity, Context, Engine, Failure, PlanBuilder, Registry, Retry, RunFilter, Status, Store,
    SubmitOptions, async_trait, output,
};
use backstay_tests::{Lab, plans};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::until;

#[derive(Deserialize, JsonSchema)]
struct Anything {}

#[derive(Serialize, JsonSchema)]
struct Built {
    id: String,
}

/// Says what it is about to make, and that it is there.
struct Build;

#[async_trait]
impl Activity for Build {
    const NAME: &'static str = "build";
    type Input = Anything;
    type Output = Built;

    async fn run(&self, context: &Context, _: Anything) -> Result<Built, Failure> {
        let volume = context.resource("volume", "v-1");
        volume.planned().await?;
        volume.present(json!({ "id": "77" })).await?;
        Ok(Built { id: "77".into() })
    }
}

/// Forgets, the first time, to say what became of it.
struct Raze;

#[async_trait]
impl Activity for Raze {
    const NAME: &'static str = "raze";
    type Input = Anything;
    type Output = Built;

    async fn run(&self, context: &Context, _: Anything) -> Result<Built, Failure> {
        let known = &context.undone().ok_or(Failure::permanent("no", "no undo"))?.resources;
        if context.attempt() > 1 || known.len() != 1 {
            return Err(Failure::permanent("lost", format!("{known:?}")));
        }
        Ok(Built { id: format!("{:?}", known[0].fate) })
    }
}

async fn builder(lab: &Lab) -> anyhow::Result<Engine> {
    let store = Store::connect(&lab.url).await?;
    Ok(Engine::open(store, Registry::new().with(Build).with(Raze)).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_rolled_back_only_when_what_it_made_is_accounted_for() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let engine = builder(&lab).await?;
    let _node = engine.start_node(Lab::config("a")).await?;
    let mut plan = PlanBuilder::new("built");
    let build = plan.step("build", "build").undone_by("raze", json!({})).done();
    plan.wait("window", json!({ "signal": "over" })).after([&build]);
    let plan = plan.check(engine.registry())?;
    let run = engine.submit(&plan, SubmitOptions::default()).await?.run;
    until("it waits", async || Ok(engine.get(run).await?.status == Status::Waiting)).await?;
    let back = Action::new("anna", "enough", Verb::RollBack(Default::default()));
    engine.act(run, &back).await?;
    assert_eq!(lab.settled(run).await?, Status::Stuck);
    let note = engine.get(run).await?.note.unwrap();
    assert_eq!(note, "nobody knows what became of volume v-1 of build");
    let mut sql = lab.sql().await?;
    let seen = "select kind || ' ' || name || ' ' || fate || ' ' || details from resources where run_id = $1";
    let seen: String = sqlx::query_scalar(seen).bind(run.0).fetch_one(&mut sql).await?;
    assert_eq!(seen, "volume v-1 present {\"id\":\"77\"}");
    let gone =
        Verb::Account { step: "build".into(), kind: "volume".into(), name: "v-1".into(), became: Fate::Gone };
    engine.act(run, &Action::new("anna", "I looked", gone)).await?;
    assert_eq!(lab.settled_for_good(run).await?, Status::RolledBack);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_says_why_it_does_not_move() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, node) = lab.node(Lab::config("a")).await?;
    let plan = plans::single(&engine, json!({ "millis": 60_000, "saves": true }))?;
    // A run of the same workflow that is over tells how long the step takes.
    let short = plans::single(&engine, json!({ "millis": 50 }))?;
    let over = engine.submit(&short, SubmitOptions::default()).await?.run;
    assert_eq!(lab.settled(over).await?, Status::Succeeded);
    let said = engine.explain(over).await?;
    assert_eq!((said.why.as_str(), said.remaining), ("it has succeeded", None));

    let run = engine.submit(&plan, SubmitOptions::default()).await?.run;
    until("it is under way", async || Ok(lab.world.touched("begin", "only").await? == 1)).await?;
    let said = engine.explain(run).await?;
    assert_eq!(said.why, "attempt 1 of only runs (node a)");
    assert!(said.unblocked_by.starts_with("its end; it is given up after"), "{said:?}");
    let rest = said.remaining.unwrap();
    assert!(rest.time.0 <= Duration::from_secs(1) && rest.unknown == 0, "{rest:?}");
    assert_eq!(rest.path, ["only"]);

    node.kill().await;
    until("its node is known to be gone", async || {
        let said = engine.explain(run).await?;
        let mut sql = lab.sql().await?;
        sqlx::query("update nodes set ended_at = now(), ended_why = 'lost' where ended_at is null")
            .execute(&mut sql)
            .await?;
        Ok(said.why == "node a, which had it, is gone")
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_nothing_moves_is_reported() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let plan = plans::single(&lab.engine, json!({}))?;
    let run = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    assert!(lab.engine.silent().await?.is_empty());
    let mut sql = lab.sql().await?;
    // No node has come for an hour.
    sqlx::query("update runs set due_at = now() - interval '1 hour'").execute(&mut sql).await?;
    let silent = lab.engine.silent().await?;
    assert_eq!(silent.len(), 1);
    assert!(silent[0].0 == run && silent[0].1.contains("no node has claimed it"), "{silent:?}");
    // Its node is gone, and nobody succeeded it.
    sqlx::query("update runs set due_at = null, owner = 7, status = 'running'").execute(&mut sql).await?;
    let silent = lab.engine.silent().await?;
    assert!(silent[0].1.contains("is not known"), "{silent:?}");
    // What could never wake cannot even be stored.
    let refused =
        sqlx::query("update runs set owner = null").execute(&mut sql).await.unwrap_err().to_string();
    assert!(refused.contains("runs_wake_reason"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_can_be_finished_by_hand_from_its_page() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let mut plan = PlanBuilder::new("page");
    plan.retry(Retry::never());
    let a =
        plan.step("a", "make").titled("The first").undone_by("unmake", json!({ "id": output("/id") })).done();
    let b = plan.step("b", "make").input(json!({ "fails": "permanent" })).after([&a]);
    let b = b.on_failure(backstay_engine::OnFailure::Hold).undone_by("unmake", json!({})).done();
    plan.step("c", "make")
        .input(json!({ "from": b.output("/id") }))
        .after([&b])
        .undone_by("unmake", json!({}));
    let plan = plan.check(engine.registry())?;
    let run = engine.submit(&plan, SubmitOptions::default()).await?.run;
    assert_eq!(lab.settled(run).await?, Status::Held);
    let page = engine.runbook(run).await?;
    let made: serde_json::Value = engine
        .state(run)
        .await?
        .course(backstay_engine::machine::CourseId::forward(plan.find("a").unwrap()))
        .output()
        .unwrap()
        .value();
    for line in [
        "| status | held |".to_owned(),
        "- **a** (The first)".into(),
        format!("   - output: `{made}`"),
        "1. **b**: activity make".into(),
        "   - held: failed: it broke, and may have done something".into(),
        "2. **c**: activity make".into(),
        "   - input: `{\"from\":\"<what b gives at \\\"/id\\\">\"}`".into(),
        "1. undo of **b**: activity unmake".into(),
        format!("   - input: `{{\"id\":{}}}`", made["id"]),
    ] {
        assert!(page.contains(&line), "{line}\nis not in\n{page}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_says_which_live_runs_it_could_go_on_with() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let plan = plans::diamond(&engine, &[("c", json!({ "fails": "hang" }))])?;
    let run = engine.submit(&plan, SubmitOptions::default()).await?.run;
    until("b is done", async || Ok(lab.world.touched("make", "b").await? == 1)).await?;
    let same = engine.preview(engine.registry()).await?;
    assert!(same.len() == 1 && same[0].run == run && same[0].goes_on(), "{same:?}");
    let other = engine.preview(builder(&lab).await?.registry()).await?;
    assert_eq!(other[0].missing, ["make", "unmake"]);
    // The same activity, whose output is another one now.
    struct Other;
    #[derive(Serialize, JsonSchema)]
    struct Number {
        id: u32,
    }
    #[async_trait]
    impl Activity for Other {
        const NAME: &'static str = "make";
        type Input = backstay_tests::Thing;
        type Output = Number;
        async fn run(&self, _: &Context, _: Self::Input) -> Result<Number, Failure> {
            Ok(Number { id: 1 })
        }
    }
    let changed = engine.registry().clone().with(Other);
    let changed = engine.preview(&changed).await?;
    assert!(changed[0].misfits.iter().any(|wrong| wrong.starts_with("a: at \"/id\"")), "{changed:?}");
    // Runs that are over are nobody's concern.
    engine.act(run, &Action::new("anna", "", Verb::RollBack(Default::default()))).await?;
    lab.settled_for_good(run).await?;
    assert!(engine.preview(engine.registry()).await?.is_empty());
    let live = RunFilter { live: true, ..RunFilter::default() };
    assert!(engine.list(&live).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_somebody_wrote_into_tells() -> anyhow::Result<()> {
    use backstay_engine::machine::Chain;
    let lab = Lab::new().await?;
    let (engine, node) = lab.node(Lab::config("a")).await?;
    let plan = plans::diamond(&engine, &[("b", json!({ "saves": true }))])?;
    let run = engine.submit(&plan, SubmitOptions::default()).await?.run;
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    // Reopened and rolled back by another life: the chain goes on over it.
    node.drain(Duration::from_secs(1)).await;
    let (engine, _node) = lab.node(Lab::config("b")).await?;
    engine.act(run, &Action::new("anna", "back", Verb::RollBack(Default::default()))).await?;
    until("it is rolled back", async || Ok(engine.get(run).await?.status == Status::RolledBack)).await?;
    let rows = engine.journal(run).await?;
    assert!(rows.iter().filter(|row| row.seal.is_some()).count() >= 5, "{rows:?}");
    Chain::verify(run, &rows)?;
    let mut sql = lab.sql().await?;
    // As a node writes them, several events are in a row.
    sqlx::query("create table kept as select * from journal").execute(&mut sql).await?;
    for change in [
        "update journal set more = replace(more::text, 'started', 'waived')::json where run_id = $1",
        "update journal set more = null where run_id = $1",
    ] {
        sqlx::query(sqlx::AssertSqlSafe(change.to_owned())).bind(run.0).execute(&mut sql).await?;
        let broken = Chain::verify(run, &engine.journal(run).await?);
        assert!(broken.is_err(), "{change}");
        sqlx::raw_sql("delete from journal; insert into journal select * from kept")
            .execute(&mut sql)
            .await?;
        Chain::verify(run, &engine.journal(run).await?)?;
    }
    for change in [
        "update journal set body = '{\"id\":\"x\",\"attempt\":1}' where run_id = $1 and kind = 'succeeded' and step = 'b' and not undo",
        "update journal set at = at + interval '1 microsecond' where run_id = $1 and seq = 3",
        "update journal set attempt = 2 where run_id = $1 and seq = 4",
        "update journal set step = 'c' where run_id = $1 and step = 'b' and kind = 'checkpointed'",
        "delete from journal where run_id = $1 and kind = 'checkpointed'",
        "update journal set key = gen_random_uuid() where run_id = $1 and kind = 'acted'",
    ] {
        // As it was, and an event in each row.
        sqlx::query("delete from journal where run_id = $1").bind(run.0).execute(&mut sql).await?;
        for row in &rows {
            sqlx::query(
                "insert into journal values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::json, $13)",
            )
            .bind(run.0)
            .bind(row.seq)
            .bind(row.claim)
            .bind(row.epoch)
            .bind(row.at)
            .bind(row.kind)
            .bind(row.step.as_deref())
            .bind(row.undo)
            .bind(row.generation)
            .bind(row.attempt)
            .bind(row.key)
            .bind(row.body.as_ref().map(|body| body.as_str()))
            .bind(row.seal.map(|seal| seal.to_vec()))
            .execute(&mut sql)
            .await?;
        }
        Chain::verify(run, &engine.journal(run).await?)?;
        sqlx::query("begin").execute(&mut sql).await?;
        let done = sqlx::query(sqlx::AssertSqlSafe(change.to_owned())).bind(run.0).execute(&mut sql).await?;
        assert_eq!(done.rows_affected(), 1, "{change}");
        sqlx::query("commit").execute(&mut sql).await?;
        let broken = Chain::verify(run, &engine.journal(run).await?);
        assert!(broken.is_err(), "{change}");
    }
    Ok(())
}

/// Several events are in one row of the table, and a page may begin or end between them.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_is_read_from_any_event_on() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let plan = plans::chain(&engine, "chain", 4, json!({}))?;
    let run = engine.submit(&plan, SubmitOptions::default()).await?.run;
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    let all = engine.journal(run).await?;
    let rows: i64 =
        sqlx::query_scalar("select count(*) from journal").fetch_one(&mut lab.sql().await?).await?;
    assert!((rows as usize) < all.len(), "{rows} rows hold {} events", all.len());
    assert_eq!(engine.store().last_seq(run).await?, all.len() as i64);
    for after in 0..=all.len() {
        for most in [1, 2, 100] {
            let page = engine.store().journal(run, after as i64, most).await?;
            let least = all.len().saturating_sub(after).min(most as usize);
            assert!(page.len() >= least, "{} events after {after}, of {most}", page.len());
            assert_eq!(page, all[after..after + page.len()], "after {after}");
        }
    }
    Ok(())
}
