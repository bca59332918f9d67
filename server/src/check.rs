//! `backstay check`: is what the journals say all right?

use backstay_engine::machine::checker::{Case, Checker, Index, Violation};
use backstay_engine::machine::{Row, RunId};
use backstay_engine::{Engine, EngineError, Fact, RunFilter, RunInfo};
use serde_json::json;

use crate::config::Config;
use crate::db::{print, with_engine};
use crate::interrupt::Interrupt;
use crate::trouble::Trouble;

const PAGE: u32 = 200;

/// Checks one run, or all of them.
pub(crate) async fn run(
    config: &Config,
    interrupt: &Interrupt,
    only: Option<&str>,
    as_json: bool,
) -> Result<(), Trouble> {
    let only = only.map(crate::run::id).transpose()?;
    with_engine(config, interrupt, async |engine: &Engine| check(engine, only, as_json).await).await
}

async fn check(engine: &Engine, only: Option<RunId>, as_json: bool) -> Result<(), Trouble> {
    let mut checker = Checker::new();
    // Before the journals: then these hold every change that made them. Of one run nothing follows about them.
    if only.is_none() {
        checker = checker.with_facts(facts(engine).await?);
    }
    let mut found = Vec::new();
    let mut report = |violations: Vec<Violation>| {
        for violation in violations {
            if as_json {
                found.push(json!({
                    "rule": violation.rule.code(), "holds": violation.rule.sentence(), "run": violation.run,
                    "seq": violation.seq, "message": violation.message,
                }));
            } else {
                print(&format!("{violation}\n"));
            }
        }
    };
    let mut filter = RunFilter { limit: PAGE, ..RunFilter::default() };
    loop {
        let page = match only {
            Some(run) => vec![engine.get(run).await?],
            None => engine.list(&filter).await?,
        };
        let Some(last) = page.last() else { break };
        filter.before = Some(last.run);
        for info in page {
            let (rows, index) = read(engine, info).await?;
            report(checker.run(&Case { run: rows.0, rows: &rows.1, index: index.as_ref(), world: None }));
        }
        if only.is_some() {
            break;
        }
    }
    if only.is_none() {
        report(checker.facts(&facts(engine).await?));
    }
    let (summary, rest) = checker.finish();
    report(rest);
    if as_json {
        let result = json!({ "runs": summary.runs, "events": summary.events, "violations": found });
        print(&format!("{result:#}\n"));
    } else {
        print(&format!("{summary}\n"));
    }
    match summary.total() {
        0 => Ok(()),
        total => Err(Trouble::failed(format!(
            "{total} violations were found. Keep a copy of this database, and report them with the output of \"backstay \
             check --json\"."
        ))),
    }
}

async fn facts(engine: &Engine) -> Result<Vec<Fact>, Trouble> {
    let mut all: Vec<Fact> = Vec::new();
    loop {
        let after = all.last().map_or("", |fact| fact.name.as_str());
        let page = engine.facts("", after, PAGE).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

/// A run's journal, and its row of the index as it was when the journal was read: a run that lives may move between
/// the two. If the row is the same before and after, it fits.
async fn read(engine: &Engine, mut before: RunInfo) -> Result<((RunId, Vec<Row>), Option<Index>), Trouble> {
    let run = before.run;
    let index = |info: &RunInfo| Index {
        status: info.status,
        owner: info.owner,
        claim: info.claim,
        due_at: info.due_at,
    };
    for last_try in [false, false, false, true] {
        let rows = match engine.journal(run).await {
            Ok(rows) => rows,
            // In the index and without a journal: that is for the checker to say.
            Err(EngineError::NoSuchRun(_)) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let after = engine.get(run).await?;
        if index(&before) == index(&after) {
            // Claimed a moment ago: the event that says so is on its way.
            let arriving = after.owner.is_some() && rows.last().is_some_and(|row| row.claim < after.claim);
            return Ok(((run, rows), (!arriving).then(|| index(&after))));
        }
        if last_try {
            return Ok(((run, rows), None));
        }
        before = after;
    }
    Err(Trouble::failed(format!("Run {run} could not be read.")))
}
