//! What the model's state consists of: the database, the node processes, the world outside.

use std::collections::BTreeSet;

use backstay_machine::{Answer, CourseId, Direction};

use crate::journal::Journal;

/// A life's number in `nodes`; the first is 1.
pub type Life = u8;

/// Everything there is at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct System {
    /// The database's clock. It only matters where something waits for it.
    pub clock: u8,
    /// The table `nodes`; the row of life n is at n - 1.
    pub lives: Vec<LifeRow>,
    /// The index row of the one run there is.
    pub run: RunRow,
    /// The table `journal`.
    pub journal: Journal,
    /// The inbox: an operator wants this generation of this course to be tried anew.
    pub inbox: Option<(CourseId, u32)>,
    /// Appends that were sent and are not over.
    pub appends: Vec<Append>,
    /// The processes that are alive, by their lives. One that is not scheduled is a frozen one.
    pub processes: Vec<Process>,
    /// The world.
    pub world: World,
    /// Faults that may still happen.
    pub left: Faults,
    /// Rules that were broken by what happened rather than by what a journal says.
    pub broken: BTreeSet<Breach>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LifeRow {
    pub expired: bool,
    pub ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunRow {
    pub owner: Option<Life>,
    pub claim: i32,
    pub due: Option<u8>,
    pub over: bool,
}

/// One statement that appends: the rows of `goal` that come after `base`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Append {
    pub life: Life,
    pub claim: i32,
    pub base: Journal,
    pub goal: Journal,
    /// It holds the lock on its life's row. Before that it is on its way.
    pub begun: bool,
    /// Its client still listens for the answer.
    pub heard: bool,
    /// It removes the message from the inbox.
    pub takes_message: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    pub life: Life,
    pub hand: Hand,
    pub calls: Vec<Call>,
    pub probe: Option<Asked>,
}

/// What a process has of the run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hand {
    Idle,
    /// It claimed the run and has read nothing yet.
    Claimed {
        claim: i32,
    },
    /// It has a copy of the journal, and decides on it.
    Owner {
        claim: i32,
        copy: Journal,
        writing: bool,
    },
    /// It does not know whether its last append took place: it must read again.
    Unsure {
        claim: i32,
    },
    /// It was told that its life has ended, and does nothing any more.
    Refused,
    /// Only of a mutant: its claim waits for a lock with a snapshot that was taken before.
    Peeking {
        snapshot: Journal,
    },
}

/// An attempt that a process called its activity for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    pub of: Attempt,
    pub answer: Option<Reply>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt {
    pub course: CourseId,
    pub generation: u32,
    pub attempt: u32,
}

/// How a call ended, as its process saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    Done,
    /// It has not happened and will not.
    NotApplied,
    /// An error, or silence.
    Unclear,
}

/// What a probe brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asked {
    pub step: usize,
    pub at: u8,
    pub answer: Found,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Found {
    Present,
    Absent,
    Unknown,
}

impl Found {
    pub fn answer(self) -> Answer {
        match self {
            Found::Present => Answer::Present,
            Found::Absent => Answer::Absent,
            Found::Unknown => Answer::Unknown { why: "the target is not there".into() },
        }
    }
}

/// The world outside: the effects that are there, and the requests that may still have theirs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// For each step: whether its effect is there.
    pub there: Vec<bool>,
    /// For each step: how many times its effect came about under the key it came about under last.
    pub landings: Vec<(u32, u8)>,
    pub requests: Vec<Request>,
    /// Keys that a target which refuses duplicates has seen. It does not forget them when the effect is undone.
    pub known: BTreeSet<(usize, u32)>,
}

/// A request that reached its target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    pub of: Attempt,
    pub from: Life,
    /// Its effect came about; kept until its caller has heard of it.
    pub landed: bool,
    /// After its call is over: when its effect can no longer come about.
    pub until: Option<u8>,
}

/// How many of each fault may happen in one history: the bounds of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Faults {
    /// A lease that runs out while its process lives (it is frozen, cut off, or slow).
    pub expiries: u8,
    /// A process that dies.
    pub crashes: u8,
    /// An answer of the database that is lost, with the statement done, under way or still on its way.
    pub losses: u8,
    /// A call that does not end well.
    pub failures: u8,
    /// A probe that comes back without an answer.
    pub blanks: u8,
    /// An operator who retries.
    pub retries: u8,
    /// A node that is told to stop, and gives its run back in the middle.
    pub handovers: u8,
}

/// A rule that a move broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Breach {
    /// A row was accepted from a life that had ended.
    EndedLifeWrote,
    /// A row was accepted under a claim that the run was no longer under.
    OldClaimWrote,
    /// A request left a process before its intent was durable.
    EffectBeforeIntent,
}

impl System {
    pub fn life(&self, life: Life) -> &LifeRow {
        &self.lives[usize::from(life) - 1]
    }

    pub fn life_mut(&mut self, life: Life) -> &mut LifeRow {
        &mut self.lives[usize::from(life) - 1]
    }

    pub fn process(&self, life: Life) -> Option<&Process> {
        self.processes.iter().find(|process| process.life == life)
    }

    pub fn process_mut(&mut self, life: Life) -> &mut Process {
        self.processes.iter_mut().find(|process| process.life == life).unwrap()
    }

    /// The life owns the run under that claim.
    pub fn owns(&self, life: Life, claim: i32) -> bool {
        self.run.owner == Some(life) && self.run.claim == claim
    }
}

impl Attempt {
    pub fn is_forward(&self) -> bool {
        self.course.direction == Direction::Forward
    }
}
