//! The activities that this program has.

use std::sync::Arc;

use backstay_activities::secrets::{NoSecrets, Secrets};
use backstay_activities::{Builtin, EngineSignals, SendError, Signals, register};
use backstay_engine::{Registry, RunId, Store, async_trait};
use backstay_workflows::Workflows;
use serde_json::Value;
use uuid::Uuid;

use crate::config::Config;
use crate::demo;
use crate::keys::Keys;
use crate::trouble::Trouble;
use crate::vault::Vault;

/// Those of the demo, and the general ones, with what the configuration allows them.
pub(crate) async fn registry(
    config: &Config,
    store: &Store,
    keys: Option<Keys>,
) -> Result<Registry, Trouble> {
    let vault = Vault::open(config, store.clone(), keys)?;
    let open = config.signal.workflows.clone();
    with(config, Arc::new(vault), Arc::new(EngineSignals::open(store.clone(), open).await?))
}

/// The same for looking at plans: nothing can be run with it.
pub(crate) fn known(config: &Config) -> Result<Registry, Trouble> {
    with(config, Arc::new(NoSecrets), Arc::new(Unsent))
}

/// Every workflow of the directory that the configuration names, checked against these activities.
pub(crate) fn workflows(config: &Config, activities: &Registry) -> Result<Workflows, Trouble> {
    let mut workflows = Workflows::new();
    if config.workflows.dir.as_os_str().is_empty() {
        return Ok(workflows);
    }
    match workflows.load_dir(&config.workflows.dir, activities) {
        Ok(()) => Ok(workflows),
        Err(problems) => {
            let all = problems.iter().map(|problem| format!("\n  {problem}")).collect::<String>();
            Err(Trouble::failed(format!(
                "The workflows in {} are not right:{all}",
                config.workflows.dir.display()
            )))
        }
    }
}

/// For those who only look.
struct Unsent;

#[async_trait]
impl Signals for Unsent {
    async fn send(
        &self,
        _: RunId,
        _: RunId,
        _: Uuid,
        _: String,
        _: String,
        _: Value,
    ) -> Result<(), SendError> {
        Err(SendError::Refused("nothing is run here".into()))
    }
}

fn with(config: &Config, secrets: Arc<dyn Secrets>, signals: Arc<dyn Signals>) -> Result<Registry, Trouble> {
    let mut registry = demo::activities();
    let builtin = Builtin { http: config.http.clone(), command: config.command(), secrets, signals };
    register(&mut registry, builtin).map_err(|why| Trouble::usage(format!("{why}.")))?;
    Ok(registry)
}
