//! A step fails for good, and the node dies on the way back: each step, and each point that is passed after it. What fails
//! after the commit turns nothing round: people mend it, and it is done.
//!
//! What the sweep does to a failover that goes well, this does to one that has to be undone from anywhere. As there, it is done
//! for some of them, or in the long form for all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use backstay_activities::site::Adds;
use backstay_engine::crash::Hook;
use backstay_engine::machine::Direction;
use backstay_engine::{Activity, Context, Failure, Registry, Status};
use backstay_tests::{Around, Deaths, With};
use backstay_workflows::Workflow;
use backstay_workflows::failover::FailoverWorkflow;

use crate::stage::Stage;
use crate::sweep::{Scene, Then, Trouble, each, in_each, of_one, passages, some, stride};

/// One step that fails for good, before or after it has done what it does. Nobody knows which.
#[derive(Clone, Debug, Default)]
pub struct Fails {
    step: Option<String>,
    done: bool,
    failed: Arc<AtomicBool>,
    mended: Arc<AtomicBool>,
}

impl Fails {
    pub fn never() -> Self {
        Self::default()
    }

    fn at(step: &str, done: bool) -> Self {
        Self { step: Some(step.to_owned()), done, ..Self::default() }
    }

    /// People have seen to it: from now on the step does what it does.
    pub fn mend(&self) {
        self.mended.store(true, Ordering::SeqCst);
    }

    /// What is passed before the step fails does not count.
    pub fn after_that(&self, hook: Hook) -> Hook {
        let (at_once, failed) = (self.step.is_none(), Arc::clone(&self.failed));
        Arc::new(move |point| (at_once || failed.load(Ordering::SeqCst)) && hook(point))
    }
}

impl Adds for Fails {
    fn add<A>(&self, registry: Registry, activity: A) -> Registry
    where
        A: Activity,
        A::Input: Clone + Sync,
    {
        registry.with(With(self.clone(), activity))
    }
}

#[async_trait]
impl Around for Fails {
    async fn run<A>(&self, activity: &A, context: &Context, input: A::Input) -> Result<A::Output, Failure>
    where
        A: Activity,
        A::Input: Clone + Sync,
    {
        let is_it = context.direction() == Direction::Forward && self.step.as_deref() == Some(context.step());
        if !is_it || self.mended.load(Ordering::SeqCst) {
            return activity.run(context, input).await;
        }
        if self.done {
            activity.run(context, input).await?;
        }
        self.failed.store(true, Ordering::SeqCst);
        Err(Failure::permanent("enough", "it fails, whether it is done or not"))
    }
}

/// With one, two, three and eight disks.
fn scenes() -> Vec<Scene> {
    if stride().is_none() {
        return vec![
            Scene::of("web-01", true, Then::Commit, "machine"),
            Scene::of("sql-01", true, Then::Nothing, "cloudstack"),
            Scene::of("db-01", false, Then::Nothing, "linstor"),
        ];
    }
    let mut scenes = Vec::new();
    for name in ["web-01", "sql-01", "db-01", "archive-01"] {
        scenes.push(Scene::of(name, true, Then::Commit, "cloudstack"));
        scenes.push(Scene::of(name, false, Then::Nothing, "cloudstack"));
    }
    let others = [("sql-01", "linstor"), ("db-01", "machine")];
    scenes.extend(others.map(|(name, by)| Scene::of(name, true, Then::Commit, by)));
    of_one(scenes)
}

/// The steps of a failover, and whether they are done after its commit.
async fn steps(scene: Scene) -> anyhow::Result<Vec<(String, bool)>> {
    let input = scene.input(&Stage::new().await?);
    let prepared = FailoverWorkflow.prepare(&input).map_err(|wrong| anyhow::anyhow!("{wrong:?}"))?;
    let plan = serde_json::to_value(prepared.plan)?;
    let all = plan["steps"].as_array().into_iter().flatten();
    let all =
        all.map(|step| (step["name"].as_str().unwrap_or_default().to_owned(), step["finalize"] == true));
    Ok(all.filter(|(_, last)| !last || scene.then == Then::Commit).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_whose_step_fails_ends_well_wherever_its_node_dies_on_the_way_back() -> anyhow::Result<()>
{
    in_each(scenes(), async |_, scene| {
        let (mut troubles, mut n) = (Vec::new(), 0_usize);
        let (last, steps): (Vec<_>, Vec<_>) = steps(scene).await?.into_iter().partition(|(_, last)| *last);
        let last: Vec<_> = last.into_iter().map(|(step, _)| step).collect();
        anyhow::ensure!(last.is_empty() == (scene.then != Then::Commit), "{scene:?}: {last:?}");
        let steps = if stride().is_some() { steps } else { some(steps, 3) };
        let fails = |step: String| {
            let fails = Fails::at(&step, true);
            (step, Trouble::Fails(fails, Deaths::none()))
        };
        let steps = steps.into_iter().map(|(step, _)| step).chain(last.iter().cloned());
        let calm = each(scene, steps.map(fails).collect()).await?;
        for (place, (step, calm)) in calm.into_iter().enumerate() {
            let status = calm.status;
            // One failure is left to people, as the copy runs by then; and those after the commit, as there is no way back.
            let held = u32::from(step == "record-failed-over" || last.contains(&step));
            let ends = if last.contains(&step) { Status::Committed } else { Status::RolledBack };
            anyhow::ensure!(
                (status, calm.helped) == (ends, held),
                "{scene:?}, {step}: {status:?}, helped {} times\n{}",
                calm.helped,
                calm.story
            );
            // Which of them differs from step to step.
            let points = match stride() {
                Some(apart) => passages(calm.passed, apart, place),
                None => {
                    let apart = (calm.passed.len() / 2).max(1);
                    calm.passed.into_iter().skip(place * 53 % apart).step_by(apart).collect()
                }
            };
            for (point, nth) in points {
                n += 1;
                let fails = Fails::at(&step, n % 3 != 0);
                let what = format!("{step} fails, done {}, death at {point} #{nth}", fails.done);
                troubles.push((what, Trouble::Fails(fails, Deaths::at(point, nth))));
            }
        }
        let planned = troubles.len();
        let died = each(scene, troubles).await?.iter().filter(|(_, played)| played.happened).count();
        anyhow::ensure!(died * 2 >= planned, "{scene:?}: only {died} of {planned} deaths");
        Ok(())
    })
    .await
}
