//! Every notification is lost on its way to the nodes, and none of them knows: looking, again and again, moves whatever
//! there is to be moved, a poll later at most.

use std::time::{Duration, Instant};

use backstay_engine::machine::RollBack;
use backstay_engine::{
    Action, Answer, Engine, Node, NodeConfig, Plan, PlanBuilder, Retry, RunId, Status, SubmitOptions, Verb,
};
use backstay_tests::{Lab, Wire, plans};
use serde_json::json;

use crate::spoken::{all_answered, broken, held, mend, waiting};
use crate::until;

/// Long enough to tell it from a notification, which takes some milliseconds.
const POLL: Duration = Duration::from_millis(700);
/// For a busy machine.
const SLACK: Duration = Duration::from_millis(1_800);

/// Nodes that hear nothing.
struct Deaf {
    lab: Lab,
    wire: Wire,
    engine: Engine,
    _nodes: Vec<Node>,
}

impl Deaf {
    async fn nodes(names: &[&str]) -> anyhow::Result<Self> {
        let lab = Lab::new().await?;
        let wire = Wire::to(&lab.url).await?;
        wire.swallow_notifications();
        let (mut nodes, mut engine) = (Vec::new(), lab.engine.clone());
        for name in names {
            let park_after = Duration::from_millis(10);
            let config = NodeConfig { poll: POLL, park_after, ..Lab::config(name) };
            let (its_engine, node) = lab.node_by(wire.url(), config).await?;
            engine = its_engine;
            nodes.push(node);
        }
        let mut sql = lab.sql().await?;
        until("they listen", async || {
            let listen = "select count(*) from pg_stat_activity
                          where datname = current_database() and query ilike 'listen %'";
            Ok(sqlx::query_scalar::<_, i64>(listen).fetch_one(&mut sql).await? == names.len() as i64)
        })
        .await?;
        Ok(Self { lab, wire, engine, _nodes: nodes })
    }

    /// Somebody does something elsewhere. What it moves comes to this end, after so many polls at most, and what would
    /// have told of it was lost.
    async fn moves<T>(
        &self,
        polls: u32,
        run: RunId,
        end: Status,
        doing: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let swallowed = self.wire.swallowed();
        let begun = Instant::now();
        let done = doing.await?;
        self.is(run, end).await?;
        assert!(begun.elapsed() < POLL * polls + SLACK, "{end:?} after {:?}", begun.elapsed());
        // It may arrive after it was of any use.
        until("a notification was lost", async || Ok(self.wire.swallowed() > swallowed)).await?;
        Ok(done)
    }

    async fn is(&self, run: RunId, status: Status) -> anyhow::Result<()> {
        until(status.as_str(), async || {
            let info = self.lab.engine.get(run).await?;
            Ok(info.status == status && info.owner.is_none())
        })
        .await
    }
}

async fn submit(engine: &Engine, plan: &std::sync::Arc<Plan>) -> anyhow::Result<RunId> {
    Ok(engine.submit(plan, SubmitOptions::default()).await?.run)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_submitted_elsewhere_is_found_by_looking() -> anyhow::Result<()> {
    let deaf = Deaf::nodes(&["a"]).await?;
    for _ in 0..3 {
        let swallowed = deaf.wire.swallowed();
        let begun = Instant::now();
        let run = submit(&deaf.lab.engine, &plans::single(&deaf.engine, json!({}))?).await?;
        deaf.is(run, Status::Succeeded).await?;
        assert!(begun.elapsed() < POLL + SLACK, "{:?}", begun.elapsed());
        until("a notification was lost", async || Ok(deaf.wire.swallowed() > swallowed)).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_to_a_run_is_found_by_looking() -> anyhow::Result<()> {
    let deaf = Deaf::nodes(&["a"]).await?;
    let far = &deaf.lab.engine;
    let run = submit(&deaf.engine, &waiting(&deaf.engine)?).await?;
    deaf.is(run, Status::Waiting).await?;
    let go = Action::new("ann", "", Verb::Signal { name: "go".into(), payload: json!(1) });
    deaf.moves(1, run, Status::Succeeded, async { Ok(far.tell(run, &go).await?) }).await?;

    let run = submit(&deaf.engine, &held(&deaf.engine, broken())?).await?;
    deaf.is(run, Status::Held).await?;
    let mend = Action::new("ann", "", mend("b"));
    let answer = deaf.moves(1, run, Status::Succeeded, async { Ok(far.act(run, &mend).await?) }).await?;
    assert!(matches!(answer, Answer::Accepted { .. }), "{answer:?}");

    // Of a run that the node has.
    let plan = plans::diamond(&deaf.engine, &[("b", json!({ "fails": "hang" }))])?;
    let run = submit(&deaf.engine, &plan).await?;
    until("b is under way", async || Ok(deaf.lab.world.touched("hang", "b").await? == 1)).await?;
    let back = Action::new("ann", "", Verb::RollBack(RollBack::default()));
    deaf.moves(1, run, Status::RolledBack, async { Ok(far.act(run, &back).await?) }).await?;

    // Of a run that is over, and comes back.
    let run = submit(&deaf.engine, &plans::single(&deaf.engine, json!({}))?).await?;
    deaf.is(run, Status::Succeeded).await?;
    let back = Action::new("ann", "", Verb::RollBack(RollBack::default()));
    deaf.moves(1, run, Status::RolledBack, async { Ok(far.act(run, &back).await?) }).await?;
    all_answered(&deaf.lab).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_fallen_due_is_found_by_looking() -> anyhow::Result<()> {
    let deaf = Deaf::nodes(&["a"]).await?;
    let mut sleeps = PlanBuilder::new("sleeps");
    sleeps.wait("nap", json!({ "for": "600ms" }));
    let mut again = PlanBuilder::new("again");
    again.retry(Retry::fixed(3, Duration::from_millis(600)));
    again.step("only", "make").input(json!({ "fails": "1" })).undone_by("unmake", json!({}));
    for plan in [sleeps, again] {
        let run = submit(&deaf.engine, &plan.check(deaf.engine.registry())?).await?;
        until("it is put down", async || {
            let info = deaf.lab.engine.get(run).await?;
            Ok(info.owner.is_none() && info.due_at.is_some())
        })
        .await?;
        let due = deaf.lab.engine.get(run).await?.due_at.unwrap();
        deaf.is(run, Status::Succeeded).await?;
        let rows = deaf.lab.engine.journal(run).await?;
        let taken_up = rows.iter().find(|row| row.kind == "claimed").unwrap().at;
        assert!(taken_up >= due, "not before its time");
        assert!((taken_up - due).to_std()? < POLL + SLACK, "{}", taken_up - due);
    }
    Ok(())
}

/// The child's beginning, its end, and its rollback are each found by whichever node looks next.
#[tokio::test(flavor = "multi_thread")]
async fn what_runs_say_to_each_other_is_found_by_looking() -> anyhow::Result<()> {
    let deaf = Deaf::nodes(&["a", "b"]).await?;
    let mut child = PlanBuilder::new("child");
    child.retry(plans::quick());
    let nap = child.wait("nap", json!({ "for": "300ms" })).done();
    child.step("inner", "make").after([&nap]).undone_by("unmake", json!({}));
    let mut plan = PlanBuilder::new("parent");
    plan.retry(plans::quick());
    let run = plan.run("run", child).done();
    plan.step("z", "make").after([&run]).undone_by("unmake", json!({}));
    let plan = plan.check(deaf.engine.registry())?;
    let begun = Instant::now();
    let parent = submit(&deaf.engine, &plan).await?;
    // The child's nap, and its word to its parent.
    deaf.is(parent, Status::Succeeded).await?;
    assert!(begun.elapsed() < Duration::from_millis(300) + POLL * 2 + SLACK, "{:?}", begun.elapsed());
    // The rollback to the parent, from it to the child, and the child's end back to it.
    let back = Action::new("ann", "", Verb::RollBack(RollBack::default()));
    let doing = async { Ok(deaf.lab.engine.act(parent, &back).await?) };
    deaf.moves(3, parent, Status::RolledBack, doing).await?;
    assert!(deaf.lab.world.things().await?.is_empty());
    all_answered(&deaf.lab).await
}
