//! One failover, in a data centre of its own, and what a test does to it on its way.

use std::sync::Arc;

use async_trait::async_trait;
use backstay_activities::site::Adds;
use backstay_engine::machine::{CourseAt, CourseId, Direction, Verb};
use backstay_engine::{Activity, Context, Engine, Failure, Node, Registry, RunId, Span, Status};
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::world::{Cause, State, World};
use backstay_tests::{Around, With};
use serde_json::{Value, json};

use crate::judge::{Before, judge_all};
use crate::stage::Stage;

/// What happens right before an attempt; if it gives a failure, that is all there is to the attempt.
pub type Hook = Arc<dyn Fn(&World, &Context) -> Option<Failure> + Send + Sync>;

/// One failover.
pub struct Play {
    pub stage: Stage,
    pub name: &'static str,
    pub live: bool,
    pub input: Value,
    /// How often a step and its undo are tried: there is no time for the patience of a real one.
    pub attempts: (u32, u32),
    before: Before,
    hooks: Vec<(String, Hook)>,
    running: Option<(Engine, Node)>,
    run: Option<RunId>,
}

impl Play {
    pub async fn new(name: &'static str, mode: &str) -> anyhow::Result<Self> {
        let stage = Stage::new().await?;
        let (before, input) = (Before::of(&stage, name), stage.input(name, mode));
        let live = mode == "live";
        let (hooks, attempts) = (Vec::new(), (3, 3));
        Ok(Self { stage, name, live, input, attempts, before, hooks, running: None, run: None })
    }

    /// Has something happen right before each attempt of an activity, on the way there and on the way back.
    pub fn before_each(
        &mut self,
        activity: &str,
        hook: impl Fn(&World, &Context) -> Option<Failure> + Send + Sync + 'static,
    ) {
        self.hooks.push((activity.to_owned(), Arc::new(hook)));
    }

    /// The same, before the first attempt only.
    pub fn before(&mut self, activity: &str, change: impl Fn(&mut State, RunId) + Send + Sync + 'static) {
        let first = std::sync::atomic::AtomicBool::new(true);
        self.before_each(activity, move |world, context| {
            if first.swap(false, std::sync::atomic::Ordering::SeqCst) {
                world.change(Cause::new("people", "test", ""), |state| change(state, context.run()));
            }
            None
        });
    }

    pub fn fault(&self, system: &str, command: &str, fault: Fault) {
        self.stage.centre.faults().rule(Rule::every(system, command, fault));
    }

    pub fn faults(&self, system: &str, command: &str, calls: std::ops::RangeInclusive<u64>, fault: Fault) {
        for n in calls {
            self.stage.centre.faults().rule(Rule::nth(system, command, n, fault.clone()));
        }
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        self.stage.centre.world().change(Cause::new("people", "test", ""), change)
    }

    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.stage.centre.world().look(look)
    }

    /// Waits until something is so in the world, or it should have been long ago.
    pub async fn until(&self, what: &str, holds: impl FnMut(&State) -> bool) -> anyhow::Result<()> {
        let world = self.stage.centre.world().clone();
        match tokio::time::timeout(std::time::Duration::from_secs(20), world.until(holds)).await {
            Ok(()) => Ok(()),
            Err(_) => anyhow::bail!("it never came true that {what}:\n{}", self.story().await?),
        }
    }

    /// Starts a node, another one if there was one before.
    pub async fn node(&mut self) -> anyhow::Result<()> {
        let hooks = Hooks { all: self.hooks.clone(), world: self.stage.centre.world().clone() };
        self.node_of(&hooks).await
    }

    /// The same, whose activities are added in a way of the test's.
    pub async fn node_of(&mut self, how: &impl Adds) -> anyhow::Result<()> {
        self.running = Some(self.stage.node_of(Stage::config("a"), how).await?);
        Ok(())
    }

    pub async fn kill(&mut self) {
        if let Some((_, node)) = self.running.take() {
            node.kill().await;
        }
    }

    /// Starts a node, and the failover.
    pub async fn begin(&mut self) -> anyhow::Result<()> {
        self.node().await?;
        self.again().await
    }

    /// Starts it at the node that there is.
    pub async fn again(&mut self) -> anyhow::Result<()> {
        self.run = Some(self.submit().await?);
        Ok(())
    }

    /// Starts one more of its input.
    pub async fn submit(&self) -> anyhow::Result<RunId> {
        self.stage.submit_in_a_hurry(self.engine(), &self.input, self.attempts).await
    }

    pub fn engine(&self) -> &Engine {
        &self.running.as_ref().expect("there is a node").0
    }

    pub fn run(&self) -> RunId {
        self.run.expect("it was begun")
    }

    /// Waits until it is over, waits for people, or has succeeded.
    pub async fn settled(&self) -> anyhow::Result<Status> {
        self.stage.settled(self.engine(), self.run()).await
    }

    /// The same, once it is not any more what it was.
    pub async fn settled_after(&self, from: Status) -> anyhow::Result<Status> {
        self.stage.moves_on(self.engine(), self.run(), from).await?;
        self.settled().await
    }

    /// Has it rolled back, and waits for what comes of it.
    pub async fn back(&self) -> anyhow::Result<Status> {
        let from = self.engine().get(self.run()).await?.status;
        self.stage.roll_back(self.engine(), self.run()).await?;
        self.settled_after(from).await
    }

    /// What an operator does once what was in the way is mended: each undo that failed is tried again.
    pub async fn retried(&self) -> anyhow::Result<Status> {
        for step in self.stage.stuck(self.engine(), self.run()).await? {
            let verb = Verb::Retry { step, undo: true, input: None, in_doubt: false };
            self.stage.act(self.engine(), self.run(), verb).await?;
        }
        self.settled_after(Status::Stuck).await
    }

    /// The steps that people have to decide about.
    pub async fn held(&self) -> anyhow::Result<Vec<String>> {
        held(self.engine(), self.run()).await
    }

    /// It ended so, and everything is as it has to be then.
    pub async fn is_well(&self, is: Status, wanted: Status) -> anyhow::Result<()> {
        anyhow::ensure!(
            is == wanted,
            "it is {}, not {}:\n{}",
            is.as_str(),
            wanted.as_str(),
            self.story().await?
        );
        let wrong = judge_all(&self.stage, self.name, self.live, &self.before, self.run(), is).await?;
        anyhow::ensure!(wrong.is_empty(), "{}: {wrong:#?}\n{}", is.as_str(), self.story().await?);
        Ok(())
    }

    /// How often a call was made, such as `daemon POST /volumes/{id}/attach`.
    pub fn calls(&self, name: &str) -> u64 {
        self.stage.centre.faults().calls().get(name).copied().unwrap_or(0)
    }

    /// The calls that change something, so far.
    pub fn changing_calls(&self) -> Vec<String> {
        crate::sweep::changes(&self.stage.centre.faults().calls())
            .into_iter()
            .map(|(system, command, _)| format!("{system} {command}"))
            .collect()
    }

    /// All that went wrong in it, as `step: code: message`.
    pub async fn failures(&self) -> anyhow::Result<Vec<String>> {
        let rows = self.engine().journal(self.run()).await?;
        let failed = rows.iter().filter_map(|row| {
            let body = row.body.as_ref()?.value();
            let error = body.get("error").filter(|error| error.is_object())?;
            let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            Some(format!(
                "{}: {}: {}",
                row.step.as_deref().unwrap_or_default(),
                text("code"),
                text("message")
            ))
        });
        Ok(failed.collect())
    }

    pub async fn failed_with(&self, code: &str) -> anyhow::Result<()> {
        let all = self.failures().await?;
        anyhow::ensure!(all.iter().any(|one| one.contains(code)), "nothing says {code}: {all:#?}");
        Ok(())
    }

    /// What the last successful attempt of a step gave.
    pub async fn output(&self, step: &str) -> anyhow::Result<Value> {
        self.output_to(step, false).await
    }

    /// The same, of its undo.
    pub async fn output_of_undo(&self, step: &str) -> anyhow::Result<Value> {
        self.output_to(step, true).await
    }

    async fn output_to(&self, step: &str, undo: bool) -> anyhow::Result<Value> {
        let rows = self.engine().journal(self.run()).await?;
        let of_step = |row: &&backstay_engine::machine::Row| {
            row.kind == "succeeded" && row.undo == undo && row.step.as_deref() == Some(step)
        };
        let row = rows.iter().rfind(of_step).ok_or_else(|| anyhow::anyhow!("{step} did not succeed"))?;
        let body = row.body.as_ref().map(|body| body.value()).unwrap_or_default();
        Ok(body.get("output").cloned().unwrap_or(body))
    }

    pub async fn story(&self) -> anyhow::Result<String> {
        let Some(run) = self.run else { return Ok(String::new()) };
        let failures = match &self.running {
            Some(_) => self.failures().await?,
            None => Vec::new(),
        };
        Ok(format!("{}\n{failures:#?}", self.stage.lab.story(run).await?))
    }
}

/// The steps of a run that people have to decide about.
pub async fn held(engine: &Engine, run: RunId) -> anyhow::Result<Vec<String>> {
    let state = engine.state(run).await?;
    let is_held = |step| {
        matches!(state.course(CourseId { step, direction: Direction::Forward }).at, CourseAt::Held { .. })
    };
    let steps = state.plan().steps().filter(|(ix, _)| is_held(*ix));
    Ok(steps.map(|(_, step)| step.name.to_string()).collect())
}

/// Every wait between two attempts is short, and there are so many attempts of steps and of undos.
pub fn hurry(plan: &mut Value, (steps, undos): (u32, u32)) {
    fn walk(value: &mut Value, steps: u32, undos: u32, is_undo: bool) {
        match value {
            Value::Object(map) => {
                if map.contains_key("first") && map.contains_key("ceiling") {
                    map.insert("first".into(), json!("10ms"));
                    map.insert("ceiling".into(), json!("100ms"));
                    map.insert("attempts".into(), json!(if is_undo { undos } else { steps }));
                    return;
                }
                for (key, value) in map {
                    walk(value, steps, undos, is_undo || key.contains("undo"));
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| walk(item, steps, undos, is_undo)),
            _ => {}
        }
    }
    walk(plan, steps, undos, false);
}

/// How long tests have for an operation of the daemon that never ends.
pub const SOON: Span = Span(std::time::Duration::from_millis(300));

struct Hooks {
    all: Vec<(String, Hook)>,
    world: World,
}

impl Adds for Hooks {
    fn add<A>(&self, registry: Registry, activity: A) -> Registry
    where
        A: Activity,
        A::Input: Clone + Sync,
    {
        let fits = |(name, _): &&(String, Hook)| name == "*" || name == A::NAME;
        let hooks: Vec<_> = self.all.iter().filter(fits).map(|(_, hook)| Arc::clone(hook)).collect();
        match hooks.is_empty() {
            true => registry.with(activity),
            false => registry.with(With(Hooked { hooks, world: self.world.clone() }, activity)),
        }
    }
}

struct Hooked {
    hooks: Vec<Hook>,
    world: World,
}

#[async_trait]
impl Around for Hooked {
    async fn run<A>(&self, activity: &A, context: &Context, input: A::Input) -> Result<A::Output, Failure>
    where
        A: Activity,
        A::Input: Clone + Sync,
    {
        for hook in &self.hooks {
            if let Some(failure) = hook(&self.world, context) {
                return Err(failure);
            }
        }
        activity.run(context, input).await
    }
}
