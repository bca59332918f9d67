//! What the model's state consists of: the inbox, the run's row and journal, those who send and those who answer.

use std::collections::BTreeSet;

/// A life's number; the first is 1.
pub type Life = u8;
/// A message.
pub type Id = u8;

/// Everything there is at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Post {
    /// The table `nodes`; the row of life n is at n - 1.
    pub lives: Vec<LifeRow>,
    /// The row of the one run there is.
    pub run: RunRow,
    /// The table `inbox`.
    pub inbox: BTreeSet<Id>,
    /// The run's journal.
    pub journal: Vec<Entry>,
    /// Sessions that send, each in its transaction.
    pub senders: Vec<Sender>,
    /// Who holds the lock on the run's row: the sender of that message.
    pub locked: Option<usize>,
    /// Writes that were sent and are not over.
    pub writes: Vec<Write>,
    /// The processes that are alive, by their lives.
    pub processes: Vec<Process>,
    /// Messages that somebody was told are durable.
    pub acknowledged: BTreeSet<Id>,
    /// Messages that somebody was told come too late.
    pub turned_away: BTreeSet<Id>,
    /// Faults that may still happen.
    pub left: Faults,
    /// A unique index refused what an owner wrote.
    pub refused_by_index: bool,
    pub seen: BTreeSet<Sight>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LifeRow {
    pub expired: bool,
    pub ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunRow {
    pub owner: Option<Life>,
    pub claim: u8,
    pub due: bool,
    pub over: bool,
    pub mail: u8,
    pub told: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    Claimed(u8),
    Answered(Id),
    Finished,
}

/// A call of the function `tell`. Its statements are moves of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sender {
    pub id: Id,
    pub at: Sending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sending {
    Begun,
    Locked,
    /// The message is in the inbox, for this transaction alone.
    Put,
    Over,
}

/// One statement of an owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    pub life: Life,
    pub claim: u8,
    /// How long the journal was when this was decided: its rows have the next numbers.
    pub base: usize,
    pub rows: Vec<Entry>,
    /// These leave the inbox.
    pub takes: BTreeSet<Id>,
    pub told: u8,
    pub release: bool,
    /// It holds the lock on its life's row.
    pub begun: bool,
    /// Its client still listens.
    pub heard: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    pub life: Life,
    pub hand: Hand,
}

/// What a process has of the run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hand {
    Idle,
    /// It claimed the run, and has read nothing yet.
    Claimed {
        claim: u8,
        told: u8,
        has_mail: bool,
    },
    Owner(Owner),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    pub claim: u8,
    /// The journal as far as it goes, with what is being written.
    pub copy: Vec<Entry>,
    /// Messages that it was handed and has not judged.
    pub letters: BTreeSet<Id>,
    /// Messages that are answered, as far as it knows.
    pub told: u8,
    /// What it writes, until it has heard what came of that.
    pub writing: Option<Write>,
    /// Only of mutants: what it has to write in a commit of its own.
    pub later: Option<Write>,
}

/// How many of each may happen in one history: the bounds of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Faults {
    /// Messages, each with an id of its own.
    pub messages: u8,
    /// A message that is sent once more, at the same time or later.
    pub again: u8,
    /// A sender that falls silent in its transaction, and is thrown out.
    pub silences: u8,
    /// A lease that runs out while its process lives.
    pub expiries: u8,
    pub crashes: u8,
    /// An answer of the database to an owner that is lost.
    pub losses: u8,
}

/// Something that must have happened somewhere for the rules to have been put to the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sight {
    ReadWithTheClaim,
    ReadUnderWay,
    SpokenToAsItWasPutAside,
    SpokenToAsItEnded,
    SentAgainAfterItsAnswer,
    TurnedAway,
    HeirAnswers,
    WrittenTwice,
}

impl Post {
    pub fn life(&self, life: Life) -> LifeRow {
        self.lives[usize::from(life) - 1]
    }

    pub fn life_mut(&mut self, life: Life) -> &mut LifeRow {
        &mut self.lives[usize::from(life) - 1]
    }

    pub fn owner_mut(&mut self, life: Life) -> Option<&mut Owner> {
        match &mut self.processes.iter_mut().find(|process| process.life == life)?.hand {
            Hand::Owner(owner) => Some(owner),
            _ => None,
        }
    }

    pub fn set(&mut self, life: Life, hand: Hand) {
        if let Some(process) = self.processes.iter_mut().find(|process| process.life == life) {
            process.hand = hand;
        }
    }

    /// How often a message is answered.
    pub fn answers(&self, id: Id) -> usize {
        self.journal.iter().filter(|entry| **entry == Entry::Answered(id)).count()
    }
}
