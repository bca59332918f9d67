//! The activities that this program has.

use std::sync::Arc;

use backstay_activities::{Builtin, EngineSignals, register};
use backstay_engine::{Registry, Store};

use crate::config::Config;
use crate::demo;
use crate::trouble::Trouble;

/// Those of the demo, and the general ones, with what the configuration allows them.
pub(crate) async fn registry(config: &Config, store: &Store) -> Result<Registry, Trouble> {
    let mut registry = demo::activities();
    let builtin = Builtin {
        http: config.http.clone(),
        command: config.command(),
        secrets: config.secrets.in_files().map_err(|why| Trouble::usage(format!("secrets.uses: {why}.")))?,
        signals: Arc::new(EngineSignals::open(store.clone()).await?),
    };
    register(&mut registry, builtin).map_err(|why| Trouble::usage(format!("{why}.")))?;
    Ok(registry)
}
