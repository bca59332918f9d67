//! One activity at a time, in a plan of its own: for what a whole failover meets too rarely.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use backstay_activities::site::{Adds, Plainly};
use backstay_engine::{
    Activity, Context, Engine, Failure, Node, PlanBuilder, Retry, RunId, Status, Store, SubmitOptions,
};
use backstay_simulator::world::{Cause, State, estate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::stage::Stage;
use crate::sweep::changes;

/// What a test does to the world in the middle of a run. It is told the machine that the run has made.
pub type Arrange = Arc<dyn Fn(&mut State, Uuid) + Send + Sync>;

/// A stage whose node can also play what a test makes up.
pub struct Alone {
    pub stage: Stage,
    pub engine: Engine,
    before: Arc<Mutex<BTreeMap<String, u64>>>,
    node: Node,
}

impl Alone {
    pub async fn new(stage: Stage, arrange: Arrange) -> anyhow::Result<Self> {
        Self::of(stage, &Plainly, arrange).await
    }

    /// With activities that are added in a way of the test's.
    pub async fn of(stage: Stage, how: &impl Adds, arrange: Arrange) -> anyhow::Result<Self> {
        let before = Arc::default();
        let arranging =
            Arranging { centre: stage.centre.world().clone(), arrange, before: Arc::clone(&before) };
        let registry = stage.registry_of(how)?.with(arranging).with(Pretending);
        let engine = Engine::open(Store::connect(&stage.lab.url).await?, registry).await?;
        let node = engine.start_node(Stage::config("a")).await?;
        Ok(Self { stage, engine, before, node })
    }

    /// With nothing to arrange.
    pub async fn plain() -> anyhow::Result<Self> {
        Self::new(Stage::new().await?, Arc::new(|_, _| {})).await
    }

    /// Submits a plan.
    pub async fn submit(&self, mut plan: PlanBuilder) -> anyhow::Result<RunId> {
        plan.retry(quick()).undo_retry(quick()).settle_within(Duration::from_millis(300));
        let plan = plan.check(self.engine.registry())?;
        Ok(self.engine.submit(&plan, SubmitOptions::default()).await?.run)
    }

    /// Its node dies, and another one takes its place.
    pub async fn another_node(self) -> anyhow::Result<Self> {
        self.node.kill().await;
        let node = self.engine.start_node(Stage::config("a")).await?;
        Ok(Self { node, ..self })
    }

    /// Plays a plan to its end.
    pub async fn play(&self, plan: PlanBuilder) -> anyhow::Result<(RunId, Status)> {
        let run = self.submit(plan).await?;
        let status = self.stage.settled(&self.engine, run).await?;
        Ok((run, status))
    }

    /// The calls that have changed something since it was arranged.
    pub fn changed(&self) -> Vec<(String, String, u64)> {
        let before = changes(&self.before.lock().unwrap());
        let mut since = changes(&self.stage.centre.faults().calls());
        since.retain(|call| !before.contains(call));
        since
    }

    /// How a step failed last: the code and the words.
    pub async fn failure(&self, run: RunId, step: &str) -> anyhow::Result<(String, String)> {
        let rows = self.engine.journal(run).await?;
        let failed = rows.iter().rev().find(|row| row.kind == "failed" && row.step.as_deref() == Some(step));
        let body = failed.and_then(|row| row.body.as_ref()).map(|body| body.value()).unwrap_or_default();
        let text = |place: &str| body.pointer(place).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok((text("/error/code"), text("/error/message")))
    }

    /// What a step came to.
    pub async fn output(&self, run: RunId, step: &str) -> anyhow::Result<Value> {
        output(&self.engine, run, step).await
    }
}

/// What a step came to.
pub async fn output(engine: &Engine, run: RunId, step: &str) -> anyhow::Result<Value> {
    let rows = engine.journal(run).await?;
    let of_it = |row: &&backstay_engine::machine::Row| row.step.as_deref() == Some(step) && !row.undo;
    let done = rows.iter().filter(of_it).find(|row| row.kind == "succeeded");
    Ok(done.and_then(|row| row.body.as_ref()).map(|body| body.value()).unwrap_or_default())
}

fn quick() -> Retry {
    Retry::fixed(2, Duration::from_millis(5))
}

/// A machine in a network for rehearsals, as a failover makes it.
pub fn machine() -> Value {
    let of = |kind: &str, name: &str| estate::id(kind, name).to_string();
    json!({
        "name": { "base": "copy-01" }, "display_name": "A copy", "cpus": 1, "memory_mb": 1024, "boot_type": "BIOS",
        "zone": of("zone", "zone-1"), "offering": of("service-offering", "custom"), "template": of("template", "tiny"),
        "nics": [{ "network": of("network", "test-lan") }],
    })
}

/// A vCenter, as inputs name it.
pub fn vcenter() -> Value {
    json!({ "host": "vcenter.example", "datacenter": "DatabanxDC", "username": "administrator@vsphere.local",
        "password": { "secret": "vcenter" } })
}

/// Changes the world, and notes which calls there were until then.
struct Arranging {
    centre: backstay_simulator::world::World,
    arrange: Arrange,
    before: Arc<Mutex<BTreeMap<String, u64>>>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Arranged {
    vm: String,
    /// What it starts from; empty where the world was arranged to have none.
    disk: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Machine {
    vm: String,
}

#[async_trait]
impl Activity for Arranging {
    const NAME: &'static str = "arrange";
    type Input = Machine;
    type Output = Arranged;

    async fn run(&self, _: &Context, input: Machine) -> Result<Arranged, Failure> {
        let vm = input.vm.parse()?;
        let disk = self.centre.look(|state| state.attached_to(vm).first().map(Uuid::to_string));
        let disk = disk.unwrap_or_default();
        self.centre.change(Cause::new("people", "arrange", &input.vm), |state| (self.arrange)(state, vm));
        *self.before.lock().unwrap() = self.centre.faults().calls();
        Ok(Arranged { vm: input.vm, disk })
    }
}

/// Leaves in the journal what a test says.
struct Pretending;

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Pretended {
    /// The kind and the name of what it is about to touch.
    #[serde(default)]
    planned: Option<(String, String)>,
    #[serde(default)]
    saved: Option<Value>,
    #[serde(default)]
    output: Value,
    #[serde(default)]
    fails: bool,
}

#[async_trait]
impl Activity for Pretending {
    const NAME: &'static str = "pretend";
    type Input = Pretended;
    type Output = Value;

    async fn run(&self, context: &Context, input: Pretended) -> Result<Value, Failure> {
        if let Some((kind, name)) = &input.planned {
            context.resource(kind, name).planned().await?;
        }
        if let Some(saved) = &input.saved {
            context.save(saved).await?;
        }
        if input.fails {
            return Err(Failure::permanent("enough", "the test wants it undone"));
        }
        Ok(input.output)
    }
}

/// A plan whose only effect was had by a step that left this in the journal, and that is undone by `undo`. A machine is made
/// and the world arranged before. `left` is told the machine's disk, and `input` the machine.
pub fn undone(
    left: impl FnOnce(Value) -> Value,
    undo: &str,
    input: impl FnOnce(Value) -> Value,
) -> PlanBuilder {
    let mut plan = PlanBuilder::new("undone");
    let unmade =
        json!({ "vm": backstay_engine::output("/vm"), "name": { "base": "copy-01" }, "protected": [] });
    let vm = plan.step("vm", "create-vm").input(machine()).undone_by("destroy-vm", unmade).done();
    let ready = plan
        .step("arrange", "arrange")
        .input(json!({ "vm": vm.output("/vm") }))
        .after([&vm])
        .nothing_to_undo("it is a test");
    let left = plan
        .step("left", "pretend")
        .input(left(ready.output("/disk")))
        .after([&ready])
        .undone_by(undo, input(vm.output("/vm")))
        .done();
    plan.step("enough", "pretend").input(json!({ "fails": true })).after([&left]).nothing_to_undo("a test");
    plan
}
