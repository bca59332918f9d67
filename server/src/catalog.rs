//! The activities and the workflows that this program has.

use std::sync::Arc;

use backstay_activities::secrets::{NoSecrets, Secrets};
use backstay_activities::{Builtin, EngineSignals, SendError, Signals, register, site};
use backstay_engine::{Registry, RunId, Store, async_trait};
use backstay_workflows::failover::FailoverWorkflow;
use backstay_workflows::{Problem, Workflows};
use serde_json::Value;
use uuid::Uuid;

use crate::config::Config;
use crate::keys::Keys;
use crate::trouble::Trouble;
use crate::vault::Vault;

/// The general ones, with what the configuration allows them; and those of the site, if there is one.
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

/// Those of the site, if there is one, and every workflow of the directory that the configuration names, checked against
/// these activities.
pub(crate) fn workflows(config: &Config, activities: &Registry) -> Result<Workflows, Trouble> {
    all_workflows(config, activities).map_err(|problems| {
        let all = problems.iter().map(|problem| format!("\n  {problem}")).collect::<String>();
        Trouble::failed(format!("The workflows in {} are not right:{all}", config.workflows.dir.display()))
    })
}

/// The same, with what is wrong for those who show it in their own way.
pub(crate) fn all_workflows(config: &Config, activities: &Registry) -> Result<Workflows, Vec<Problem>> {
    let mut workflows = Workflows::new();
    if config.has_site() {
        workflows.insert(Arc::new(FailoverWorkflow)).map_err(|problem| vec![problem])?;
    }
    if !config.workflows.dir.as_os_str().is_empty() {
        workflows.load_dir(&config.workflows.dir, activities)?;
    }
    Ok(workflows)
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
    let mut registry = Registry::new();
    let wrong = |(key, what): (String, String)| Trouble::usage(format!("{key} {what}."));
    let site = config.site(&secrets).map_err(wrong)?;
    let builtin = Builtin { http: config.http.clone(), command: config.command(), secrets, signals };
    register(&mut registry, builtin).map_err(|why| Trouble::usage(format!("{why}.")))?;
    Ok(match site {
        Some(site) => site::register(registry, site, &site::Plainly),
        None => registry,
    })
}
