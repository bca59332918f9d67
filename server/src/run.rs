//! `backstay explain` and `backstay export`: one run, for people.

use backstay_engine::{Engine, RunId};

use crate::config::Config;
use crate::db::{print, with_engine};
use crate::interrupt::Interrupt;
use crate::trouble::Trouble;

/// Reads a run's id as people type it.
pub(crate) fn id(text: &str) -> Result<RunId, Trouble> {
    text.parse()
        .map_err(|_| Trouble::usage("A run is named by its id, as in 01a1fc20-324d-77f1-9755-eac4a11cc462."))
}

/// Says why a run does not move.
pub(crate) async fn explain(
    config: &Config,
    interrupt: &Interrupt,
    run: &str,
    as_json: bool,
) -> Result<(), Trouble> {
    let run = id(run)?;
    with_engine(config, interrupt, async |engine: &Engine| {
        let explanation = engine.explain(run).await?;
        if as_json {
            print(&format!("{:#}\n", serde_json::json!(explanation)));
            return Ok(());
        }
        let mut text = format!("Why:     {}\n", explanation.why);
        if let Some(since) = explanation.since {
            text += &format!("Since:   {}\n", since.format("%Y-%m-%d %H:%M:%S UTC"));
        }
        text += &format!("Until:   {}\n", explanation.unblocked_by);
        if let Some(rest) = explanation.remaining {
            text += &format!("Left:    {rest}\n");
        }
        print(&text);
        Ok(())
    })
    .await
}

/// Writes a run as a page from which a person can finish it by hand.
pub(crate) async fn export(config: &Config, interrupt: &Interrupt, run: &str) -> Result<(), Trouble> {
    let run = id(run)?;
    with_engine(config, interrupt, async |engine: &Engine| {
        print(&engine.runbook(run).await?);
        Ok(())
    })
    .await
}
