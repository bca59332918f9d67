//! The statements of the store. Each is what one statement does under READ COMMITTED, no more.

use backstay_machine::{Epoch, Event, Journaled, State};

use crate::journal::Journal;
use crate::moves::Saga;
use crate::mutant::Mutant;
use crate::system::{Append, Breach, Life, RunRow, System};
use crate::{node, time};

impl Saga {
    pub fn takes_over(&self, system: &System, life: Life) -> bool {
        let row = system.life(life);
        let locked = system.appends.iter().any(|append| append.life == life && append.begun);
        row.expired && !row.ended && system.run.owner == Some(life) && !locked
    }

    pub fn claimable(&self, system: &System) -> bool {
        let run = &system.run;
        let wakes = run.due.is_some_and(|due| due <= system.clock)
            || (system.inbox.is_some() && !self.is(Mutant::InboxWakesNobody));
        !run.over
            && match run.owner {
                None => wakes,
                Some(owner) => system.life(owner).ended,
            }
    }

    pub fn claim(&self, system: &mut System, life: Life) -> i32 {
        system.run.owner = Some(life);
        system.run.claim += 1;
        system.run.claim
    }

    /// The next event as a row under the process's claim.
    pub fn row(&self, journal: &Journal, claim: i32, life: Life, clock: u8, event: Event) -> Journaled {
        let seq = journal.row.seq + 1;
        Journaled { seq, claim, epoch: Epoch(i64::from(life)), at: time(clock), event }
    }

    pub fn write(&self, system: &mut System, append: Append) {
        let life = append.life;
        let ends = append.goal.live().is_some_and(State::is_over);
        if ends && self.is(Mutant::ReleasedBeforeTheEnd) {
            system.run.owner = None;
            system.run.due = Some(system.clock);
        }
        // A call that is given up is hung up on before that is written down.
        if let Some(state) = append.goal.live() {
            let calls = system.process(life).map(|process| process.calls.clone()).unwrap_or_default();
            let given_up: Vec<_> = calls
                .iter()
                .filter(|call| call.answer.is_none() && !node::awaits(state, &call.of))
                .map(|c| c.of)
                .collect();
            self.hang_up(system, |request| request.from == life && given_up.contains(&request.of));
        }
        system.appends.push(append);
    }

    pub fn commit(&self, system: &mut System, append: &Append) -> bool {
        let owns = system.owns(append.life, append.claim);
        let ends = append.goal.live().is_some_and(State::is_over);
        let bound =
            !(self.is(Mutant::AppendNotBoundToClaim) || (self.is(Mutant::ReleasedBeforeTheEnd) && ends));
        if bound && !owns {
            return false;
        }
        let rows = append.goal.since(&append.base).unwrap();
        let renumbered = self.is(Mutant::StartAtAnySeq);
        let taken = system.journal.row.seq > append.base.row.seq;
        if taken && !renumbered && !self.is(Mutant::NoUniqueIndex) {
            return false;
        }
        if !owns {
            system.broken.insert(Breach::OldClaimWrote);
        }
        if system.life(append.life).ended {
            system.broken.insert(Breach::EndedLifeWrote);
        }
        for row in rows {
            let seq = if renumbered { system.journal.row.seq + 1 } else { row.seq };
            system.journal = self.library.with(&system.journal, Journaled { seq, ..row.clone() });
        }
        if append.takes_message {
            system.inbox = None;
        }
        if ends {
            system.run = RunRow { owner: None, due: None, over: true, ..system.run };
        }
        true
    }
}
