//! What operators set and look at beside the runs: the limits of targets and their outages, lines for exclusive keys,
//! facts, and what is kept of runs that are over.
//!
//! Each change takes the entry of the audit trail that says who made it, and why: both are in one commit, and what
//! changed nothing leaves no entry.

use std::time::Duration;

use backstay_machine::Fact;
use serde::Serialize;

use crate::engine::{Engine, EngineError};
use crate::store::access::{Change, Changed};
use crate::store::{Limits, Line, Outage, PoolInfo, Purged};

/// A target that is down.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutageInfo {
    /// The pool of the target.
    pub pool: String,
    /// What is known of it.
    pub outage: Outage,
    /// Runs that wait for its end.
    pub waiting: i64,
}

impl Engine {
    /// Every pool: its limits, who holds what of it, how many calls are under way and how many runs wait, and whether
    /// its target is down.
    pub async fn pools(&self) -> Result<Vec<PoolInfo>, EngineError> {
        Ok(self.store().pools(None).await?)
    }

    /// One pool.
    pub async fn pool(&self, name: &str) -> Result<PoolInfo, EngineError> {
        let found = self.store().pools(Some(name)).await?.pop();
        found.ok_or_else(|| EngineError::NoSuchPool(name.to_owned()))
    }

    /// Limits the calls to a target, over all nodes of the cluster. Nodes go by it within a second or two; a pool that
    /// nobody has limited is not limited. Calls that are under way go on.
    pub async fn set_pool(&self, name: &str, limits: Limits, entry: Option<&str>) -> Result<(), EngineError> {
        self.set_pool_if(name, limits, None, entry).await.map(drop)
    }

    /// The same, if its limits are still those of this version. False if they are not.
    pub async fn set_pool_if(
        &self,
        name: &str,
        limits: Limits,
        seen: Option<i32>,
        entry: Option<&str>,
    ) -> Result<bool, EngineError> {
        named(name)?;
        let Limits { at_once, per_second } = limits;
        if at_once == Some(0) || per_second.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            let instead = "the limits of a pool are more than nothing; to stop all calls declare an outage";
            return Err(EngineError::Options(instead.into()));
        }
        Ok(self.store().set_pool(name, &limits, seen, entry).await?)
    }

    /// Targets that are down, the longest first.
    pub async fn outages(&self) -> Result<Vec<OutageInfo>, EngineError> {
        let down = |pool: PoolInfo| {
            let PoolInfo { name, outage, waiting, .. } = pool;
            outage.map(|outage| OutageInfo { pool: name, outage, waiting })
        };
        let mut outages: Vec<_> = self.pools().await?.into_iter().filter_map(down).collect();
        outages.sort_by_key(|down| down.outage.since);
        Ok(outages)
    }

    /// Takes a target for down until somebody ends that: no call to it is begun within a second or two, and it is not
    /// tried. If the nodes had found it down already, it is the same outage, and a person's from now on. `Missing` if it
    /// was declared before.
    pub async fn declare_outage(
        &self,
        pool: &str,
        who: &str,
        why: &str,
        change: Option<&Change>,
    ) -> Result<Changed, EngineError> {
        named(pool)?;
        let text = |text: &str| text.chars().count() <= 1_000 && !text.chars().any(char::is_control);
        if who.is_empty() || why.is_empty() || !text(who) || !text(why) {
            let rule = "an outage needs who declares it, and why: at most 1,000 characters, none of them control characters";
            return Err(EngineError::Options(rule.into()));
        }
        Ok(self.store().declare_outage(pool, who, why, change).await?)
    }

    /// Takes a target for back, whoever found that it was down: its steps go on, a few at first. False if it was not
    /// down.
    pub async fn end_outage(&self, pool: &str, entry: Option<&str>) -> Result<bool, EngineError> {
        Ok(self.store().end_outage(pool, entry).await?)
    }

    /// Who has an exclusive key, and who stands in line for it.
    pub async fn line(&self, key: &str) -> Result<Line, EngineError> {
        Ok(self.store().line(key).await?)
    }

    /// A fact as it stands, if anybody has set it: which run did, and when.
    pub async fn fact(&self, name: &str) -> Result<Option<Fact>, EngineError> {
        Ok(self.store().fact(name).await?)
    }

    /// Facts whose names begin so, in the order of their names, at most so many: those after this name.
    pub async fn facts(&self, prefix: &str, after: &str, most: u32) -> Result<Vec<Fact>, EngineError> {
        Ok(self.store().facts(prefix, after, i64::from(most)).await?)
    }

    /// Removes runs that ended so long ago, at most `batch` of them, each wholly: its journal and its row. Their keys go
    /// on to mean them for as long as `keep_keys`. To remove all there are, call it until it removes none. One that a
    /// run which is still there has begun stays with that. Nodes do the same by themselves; see
    /// [`NodeConfig::keep_finished`](crate::NodeConfig::keep_finished).
    pub async fn purge(
        &self,
        older_than: Duration,
        keep_keys: Duration,
        batch: u32,
    ) -> Result<Purged, EngineError> {
        Ok(self.store().purge(older_than, keep_keys, i64::from(batch)).await?)
    }

    /// How many runs ended so long ago: what a removal would find, before it is begun.
    pub async fn count_over(&self, older_than: Duration) -> Result<i64, EngineError> {
        Ok(self.store().count_over(older_than).await?)
    }
}

fn named(pool: &str) -> Result<(), EngineError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let named =
        pool.starts_with(|c: char| c.is_ascii_alphanumeric()) && pool.len() <= 100 && pool.chars().all(good);
    if named { Ok(()) } else { Err(EngineError::Options("a pool has a name as steps have".into())) }
}
