//! Was it all right? Rules about whole histories, used after every crash test and as `backstay check` on
//! production data.
//!
//! ```text
//!   rows of one run --decode--> Reading: events, and for each step and each undo the list of its moves
//!                                  |
//!        owners   grammar   doubt   order   retry   proof   waits   actions   ending   index   world   facts
//!                                  |         each rule reads for itself, all of them always do
//!                                  v
//!                         violations: rule, run, position, what happened and what it means
//! ```
//!
//! It is a second reading of the journal, not a second use of the first: it knows plans and the form of rows,
//! of `state` only the words for a status, of `decide` and `judge` nothing. A course's standing is what its
//! last move says, and every rule is a question about moves and positions, so a mistake in the fold cannot
//! hide here.
//!
//! Rules about rows as such (gaps, claims, times) look at every row. Rules about steps end at the first row
//! that cannot be read, as nobody knows what it did; that row is a violation itself. Every beginning of a
//! legal history is legal too: runs may be checked while they live.
//!
//! Not judged yet, as no event carries it: the audit chain (H24), calls per target (H23, second half). A probe's row
//! says when
//! the answer was journaled, not when the question was put: whether "absent" was asked for late enough is
//! judged by the former, which is the weaker test.

mod actions;
mod client;
mod doubt;
mod ending;
mod facts;
mod grammar;
mod index;
mod order;
mod owners;
mod proof;
mod reading;
mod retry;
mod rule;
mod standing;
mod summary;
mod waits;
mod world;

use std::collections::BTreeMap;

use crate::event::{Journaled, Row};
use crate::fact::Fact;
use crate::names::{RunId, Seq};
use crate::plan::Plan;

pub use client::{ClientLog, Submission};
pub use index::Index;
pub use rule::RuleId;
pub use summary::Summary;
pub use world::{Effect, WorldLog};

use reading::Reading;

/// What is known of one run.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The run.
    pub run: RunId,
    /// Its journal, as it lies there.
    pub rows: &'a [Row],
    /// Its row of the index, read in the same snapshot as the journal.
    pub index: Option<&'a Index>,
    /// What the world says happened.
    pub world: Option<&'a WorldLog>,
}

impl<'a> Case<'a> {
    /// A run of which only the journal is known.
    pub fn of(run: RunId, rows: &'a [Row]) -> Self {
        Self { run, rows, index: None, world: None }
    }
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// The rule that is broken.
    pub rule: RuleId,
    /// The run; none if it is about what clients were told.
    pub run: Option<RunId>,
    /// The event that breaks it, where it is one.
    pub seq: Option<Seq>,
    /// What happened, and what it means.
    pub message: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}]", self.rule)?;
        if let Some(run) = self.run {
            write!(f, " run {run}")?;
        }
        if let Some(seq) = self.seq {
            write!(f, " event {seq}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Checks one run by itself.
pub fn check_run(case: &Case<'_>) -> Vec<Violation> {
    examine(case, &mut BTreeMap::new(), &mut facts::Chains::default())
}

/// Checks many runs, one after another, and keeps none of them: what grows is the list of nodes' lives, the changes of
/// facts, and what the client log holds.
#[derive(Debug, Default)]
pub struct Checker {
    summary: Summary,
    lives: BTreeMap<i64, String>,
    facts: facts::Chains,
    clients: Option<client::Clients>,
}

impl Checker {
    /// Nothing is checked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// With the log of all clients there were: whatever was acknowledged has to be found among the runs.
    pub fn with_clients(log: &ClientLog) -> Self {
        Self { clients: Some(client::Clients::new(log)), ..Self::default() }
    }

    /// With the facts as they were before the first journal was read: journals that are read later know of them.
    pub fn with_facts(mut self, before: Vec<Fact>) -> Self {
        self.facts.expect(before);
        self
    }

    /// Compares what the journals say of facts with the facts as they are after the last journal was read.
    pub fn facts(&mut self, now: &[Fact]) -> Vec<Violation> {
        let mut found = Findings { run: None, violations: Vec::new() };
        self.facts.compare(now, &mut found);
        self.summary.add(&found.violations);
        found.violations
    }

    /// Checks the next run.
    pub fn run(&mut self, case: &Case<'_>) -> Vec<Violation> {
        let mut violations = examine(case, &mut self.lives, &mut self.facts);
        if let Some(clients) = &mut self.clients {
            let mut found = Findings { run: Some(case.run), violations };
            clients.saw(case, &mut found);
            violations = found.violations;
        }
        self.summary.count(case.rows.len(), &violations);
        violations
    }

    /// No run is left: what is missing, and how it went.
    pub fn finish(mut self) -> (Summary, Vec<Violation>) {
        let mut found = Findings { run: None, violations: Vec::new() };
        if let Some(clients) = &self.clients {
            clients.finish(&mut found);
        }
        self.summary.add(&found.violations);
        (self.summary, found.violations)
    }
}

/// Where rules put what they find.
struct Findings {
    run: Option<RunId>,
    violations: Vec<Violation>,
}

impl Findings {
    fn add(&mut self, rule: RuleId, seq: impl Into<Option<Seq>>, message: impl Into<String>) {
        let (run, seq, message) = (self.run, seq.into(), message.into());
        self.violations.push(Violation { rule, run, seq, message });
    }
}

fn examine(case: &Case<'_>, lives: &mut BTreeMap<i64, String>, facts: &mut facts::Chains) -> Vec<Violation> {
    let mut found = Findings { run: Some(case.run), violations: Vec::new() };
    owners::sequence(case.rows, &mut found);
    owners::seals(case.run, case.rows, &mut found);
    owners::times(case.rows, &mut found);
    owners::claims(case.rows, &mut found);

    let plan = match case.rows.first().and_then(|row| row.body.as_ref()).map(Plan::from_submitted) {
        Some(Ok(plan)) => plan,
        Some(Err(error)) => {
            let message = format!("its plan cannot be read, so nothing else can be judged: {error}");
            found.add(RuleId::Readable, 1, message);
            return found.violations;
        }
        None => {
            let message = "the history does not begin with a plan, so nothing else can be judged";
            found.add(RuleId::Readable, None, message);
            return found.violations;
        }
    };
    let mut events = Vec::with_capacity(case.rows.len());
    let mut complete = true;
    for row in case.rows {
        match Journaled::from_row(row, &plan) {
            Ok(event) if complete => events.push(event),
            Ok(_) => {}
            Err(error) => {
                complete = false;
                let message = format!("{error}; what it and the events after it did to steps is not judged");
                found.add(RuleId::Readable, row.seq, message);
            }
        }
    }

    let reading = Reading::of(case.run, &plan, &events);
    owners::lives(&events, lives, &mut found);
    facts.saw(case.run, &events, &mut found);
    grammar::run(&reading, &mut found);
    for course in reading.courses() {
        grammar::moves(&reading, course, &mut found);
        grammar::outcomes(&reading, course, &mut found);
        doubt::doubts(&reading, course, &mut found);
        retry::retries(&reading, course, &mut found);
    }
    grammar::inputs(&reading, &mut found);
    grammar::keys(&reading, &mut found);
    order::predecessors(&reading, &mut found);
    order::direction(&reading, &mut found);
    order::undo_order(&reading, &mut found);
    order::settling(&reading, &mut found);
    ending::end(&reading, &mut found);
    ending::undone(&reading, &mut found);
    ending::on_failure(&reading, &mut found);
    ending::held(&reading, &mut found);
    ending::stuck(&reading, &mut found);
    ending::rests(&reading, &mut found);
    ending::resources(&reading, &mut found);
    actions::askings(&reading, &mut found);
    actions::consequences(&reading, &mut found);
    proof::proofs(&reading, &mut found);
    waits::signals(&reading, &mut found);
    waits::waits(&reading, &mut found);
    waits::turns(&reading, &mut found);
    if let Some(world) = case.world
        && complete
    {
        world::orphans(&reading, world, &mut found);
        world::overlaps(&reading, world, &mut found);
        world::truth(&reading, world, &mut found);
    }
    if let Some(index) = case.index
        && complete
    {
        index::agrees(&reading, index, &mut found);
    }
    found.violations
}
