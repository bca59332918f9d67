//! Submits over HTTP beside submits in process, by as many callers at once.

use std::sync::Arc;
use std::time::Duration;

use backstay_engine::{Engine, NodeConfig, Plan, Registry, Sender, SubmitOptions};
use serde_json::{Value, json};

use crate::api::{CALLERS, Server, plan};
use crate::caller::{Asked, Caller, Sides, closed_loop};
use crate::host::Host;
use crate::{Args, round};

pub(crate) async fn measure(host: &Host, args: &Args) -> anyhow::Result<serde_json::Map<String, Value>> {
    let mut report = serde_json::Map::new();
    let within = in_process(host, args).await?;
    let server = Server::start(&host.fresh("submits").await?).await?;
    for (callers, (same, held)) in CALLERS.into_iter().zip(within) {
        let over = server.load(host, args, callers, server.submit()).await?;
        let mut figures = over.report();
        if let Value::Object(figures) = &mut figures {
            figures.insert("of_in_process".into(), json!(round(over.per_second / same.per_second, 3)));
            figures.insert("of_plan_held".into(), json!(round(over.per_second / held.per_second, 3)));
        }
        report.insert(format!("submit_{callers}"), figures);
        report.insert(format!("submit_{callers}_in_process"), same.report());
        report.insert(format!("submit_{callers}_plan_held"), held.report());
    }
    server.stop().await?;
    Ok(report)
}

/// Someone who has the engine as a library. Without a plan at hand it does what the server does: it reads the plan and
/// checks it, each time.
struct InProcess {
    engine: Engine,
    text: Arc<str>,
    held: Option<Arc<Plan>>,
}

impl Caller for InProcess {
    async fn ask(&mut self) -> anyhow::Result<bool> {
        let plan = match &self.held {
            Some(plan) => Arc::clone(plan),
            None => Plan::check_json(&self.text, self.engine.registry())?,
        };
        let by = Sender { who: "bench".into(), why: String::new(), via: None, trace: None };
        self.engine.submit(&plan, SubmitOptions { by: Some(by), ..SubmitOptions::default() }).await?;
        Ok(true)
    }
}

/// Of each number of callers: with the plan checked each time, and with one that was checked before.
async fn in_process(host: &Host, args: &Args) -> anyhow::Result<Vec<(Asked, Asked)>> {
    let engine = Engine::connect(&host.fresh("inprocess").await?, Registry::new()).await?;
    let node = engine.start_node(NodeConfig { name: "bench".into(), ..NodeConfig::default() }).await?;
    let text: Arc<str> = plan().to_string().into();
    let checked = Plan::check_json(&text, engine.registry())?;
    let sides = Sides::of(host, None).await;
    let mut measured = Vec::new();
    for callers in CALLERS {
        let all = |held: Option<Arc<Plan>>| {
            let one = || InProcess { engine: engine.clone(), text: Arc::clone(&text), held: held.clone() };
            (0..callers).map(|_| one()).collect::<Vec<_>>()
        };
        let same = closed_loop(args, &sides, all(None)).await?;
        let held = closed_loop(args, &sides, all(Some(Arc::clone(&checked)))).await?;
        measured.push((same, held));
    }
    node.drain(Duration::from_secs(5)).await;
    Ok(measured)
}
