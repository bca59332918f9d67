//! What can happen next: the statements of those who send, of those who answer, and of those who take over.

use std::collections::BTreeSet;

use stateright::{Model, Property};

use super::Mutant;
use super::post::{
    Entry, Faults, Hand, Id, Life, LifeRow, Owner, Post, Process, RunRow, Sender, Sending, Sight, Write,
};
use super::properties;

/// One run that waits for a message, and ends after it.
pub struct Mail {
    pub faults: Faults,
    pub mutant: Mutant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    // Whoever sends.
    Send(Id),
    /// The run's row is locked, once nobody else has it.
    Lock(usize),
    /// Into the inbox, if the run is not over; and then a look into the journal, in a later statement.
    Put(usize),
    /// The counter, and the commit.
    Commit(usize),
    /// The session is thrown out.
    ThrowOut(usize),

    // A node process.
    Start,
    Crash(Life),
    Expire(Life),
    /// It learns that its life is over.
    Renew(Life),
    Takeover(Life),
    /// It claims the run, unless somebody holds its row.
    Claim(Life),
    /// It reads the journal; and the inbox, if the claim said that there is mail.
    Read(Life),
    /// It looks into the inbox for what has been said to its runs.
    Look(Life),
    /// It answers what it was handed. With true it gives the run up with it, since nothing else is to be done.
    Write(Life, bool),
    /// The connection breaks; it writes the same once more.
    Repeat(Life),
    /// A write on its way locks its life's row, or is refused.
    Begin(usize),
    /// It locks the run's row, once nobody else has it, and is committed or fails.
    Done(usize),
}

impl Mail {
    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == mutant
    }

    fn claimable(post: &Post) -> bool {
        let run = post.run;
        !run.over && post.locked.is_none() && run.owner.map_or(run.due, |owner| post.life(owner).ended)
    }

    /// What an owner has to write: answers to all that it was handed.
    fn answers(&self, life: Life, owner: &Owner, gives_up: bool) -> Option<(Write, Vec<Entry>)> {
        let mut rows = Vec::new();
        if !owner.copy.contains(&Entry::Claimed(owner.claim)) {
            rows.push(Entry::Claimed(owner.claim));
        }
        let known =
            |id: Id| owner.copy.contains(&Entry::Answered(id)) && !self.is(Mutant::AnswersWhatItAnswers);
        let new: BTreeSet<Id> = owner.letters.iter().copied().filter(|id| !known(*id)).collect();
        rows.extend(new.iter().map(|id| Entry::Answered(*id)));
        // Once it was told what it waits for, it ends.
        let answered = owner.copy.iter().chain(&rows).any(|entry| matches!(entry, Entry::Answered(_)));
        if gives_up && answered && !owner.copy.contains(&Entry::Finished) {
            rows.push(Entry::Finished);
        }
        if rows.is_empty() && !gives_up {
            return None;
        }
        let copy = owner.copy.iter().chain(&rows).copied().collect();
        let write = Write {
            life,
            claim: owner.claim,
            base: owner.copy.len(),
            rows,
            told: owner.told + new.len() as u8,
            takes: new,
            release: gives_up,
            begun: true,
            heard: true,
        };
        Some((write, copy))
    }

    fn write(&self, post: &mut Post, life: Life, gives_up: bool) -> Option<()> {
        let owner = post.owner_mut(life)?;
        let (mut write, copy) = self.answers(life, owner, gives_up)?;
        (owner.told, owner.copy) = (write.told, copy);
        owner.letters.clear();
        // In two commits what belongs into one.
        let rest = |write: &Write| Write { rows: Vec::new(), base: owner.copy.len(), ..write.clone() };
        if !write.takes.is_empty() {
            match self.mutant {
                Mutant::RemovedLater => {
                    owner.later = Some(rest(&write));
                    write = Write { takes: BTreeSet::new(), release: false, ..write };
                }
                Mutant::RemovedBefore => {
                    let first = Write { rows: Vec::new(), release: false, ..write.clone() };
                    owner.later = Some(Write { takes: BTreeSet::new(), ..write });
                    write = first;
                }
                Mutant::CountedWithoutTheAnswer => {
                    let first =
                        Write { rows: Vec::new(), takes: BTreeSet::new(), release: false, ..write.clone() };
                    owner.later = Some(write);
                    write = first;
                }
                _ => {}
            }
        }
        owner.writing = Some(write.clone());
        post.writes.push(write);
        Some(())
    }

    /// The statement's end: what it finds in the run's row is what is committed there.
    fn done(&self, post: &mut Post, write: &Write) {
        let bound = post.run.owner == Some(write.life) && post.run.claim == write.claim;
        let end = write.base + write.rows.len();
        let written = post.journal.get(write.base..end) == Some(&write.rows[..]) && !write.rows.is_empty();
        if written {
            post.seen.insert(Sight::WrittenTwice);
        }
        // Its numbers are taken: by itself, if its answer was lost; or by another owner.
        let taken = !write.rows.is_empty() && post.journal.len() > write.base;
        if !taken {
            let again = write.rows.iter().any(|entry| match entry {
                Entry::Answered(id) => post.answers(*id) > 0,
                _ => false,
            });
            post.refused_by_index |= again;
            post.journal.extend(&write.rows);
            post.inbox.retain(|id| !write.takes.contains(id));
            if write.life > 1 && !write.takes.is_empty() {
                post.seen.insert(Sight::HeirAnswers);
            }
            if bound {
                self.change(post, write);
            }
        }
        if !write.heard {
            return;
        }
        let lost = taken && !written;
        let Some(owner) = post.owner_mut(write.life).filter(|owner| owner.writing.is_some()) else { return };
        if lost || (write.release && owner.later.is_none()) {
            post.set(write.life, Hand::Idle);
        } else {
            owner.writing = owner.later.take();
            let next = owner.writing.clone();
            post.writes.extend(next);
        }
    }

    fn change(&self, post: &mut Post, write: &Write) {
        let finished = post.journal.contains(&Entry::Finished);
        let run = &mut post.run;
        run.told = run.told.max(write.told);
        if !write.release {
            return;
        }
        let spoken_to = run.mail > write.told;
        run.owner = None;
        run.due = spoken_to && !self.is(Mutant::PutAsideWithMail);
        run.over = finished && (!spoken_to || self.is(Mutant::OverWithMail));
        if run.over {
            run.due = false;
        }
        if spoken_to {
            let sight = if finished { Sight::SpokenToAsItEnded } else { Sight::SpokenToAsItWasPutAside };
            post.seen.insert(sight);
        }
    }

    fn put(&self, post: &mut Post, sender: usize) {
        let id = post.senders[sender].id;
        let over = |post: &mut Post| {
            post.senders[sender].at = Sending::Over;
            if post.locked == Some(sender) {
                post.locked = None;
            }
        };
        // What is in the inbox, or in the journal, is known.
        let answered = post.answers(id) > 0;
        if post.inbox.contains(&id) || (answered && !self.is(Mutant::JournalNotAsked)) {
            if answered {
                post.seen.insert(Sight::SentAgainAfterItsAnswer);
            }
            post.acknowledged.insert(id);
            return over(post);
        }
        if post.run.over {
            post.turned_away.insert(id);
            post.seen.insert(Sight::TurnedAway);
            return over(post);
        }
        post.senders[sender].at = Sending::Put;
    }

    fn commit(&self, post: &mut Post, sender: usize) {
        let id = post.senders[sender].id;
        post.inbox.insert(id);
        post.acknowledged.insert(id);
        post.run.mail = post.run.mail.max(post.run.told) + 1;
        if post.run.owner.is_none() && !self.is(Mutant::SenderWakesNobody) {
            post.run.due = true;
        }
        post.senders[sender].at = Sending::Over;
        if post.locked == Some(sender) {
            post.locked = None;
        }
    }

    fn start(post: &mut Post) {
        post.lives.push(LifeRow::default());
        post.processes.push(Process { life: post.lives.len() as Life, hand: Hand::Idle });
    }
}

impl Model for Mail {
    type State = Post;
    type Action = Move;

    fn init_states(&self) -> Vec<Post> {
        let mut post = Post {
            lives: Vec::new(),
            run: RunRow { owner: None, claim: 0, due: true, over: false, mail: 0, told: 0 },
            inbox: BTreeSet::new(),
            journal: Vec::new(),
            senders: Vec::new(),
            locked: None,
            writes: Vec::new(),
            processes: Vec::new(),
            acknowledged: BTreeSet::new(),
            turned_away: BTreeSet::new(),
            left: self.faults,
            refused_by_index: false,
            seen: BTreeSet::new(),
        };
        Self::start(&mut post);
        vec![post]
    }

    fn actions(&self, post: &Post, moves: &mut Vec<Move>) {
        let left = &post.left;
        let sent: BTreeSet<Id> = post.senders.iter().map(|sender| sender.id).collect();
        if left.messages > 0 {
            moves.push(Move::Send(sent.len() as Id));
        }
        if left.again > 0 {
            moves.extend(sent.into_iter().map(Move::Send));
        }
        for (n, sender) in post.senders.iter().enumerate() {
            let others = post.locked.is_some_and(|holder| holder != n);
            match sender.at {
                Sending::Begun if self.is(Mutant::SenderDoesNotLock) => moves.push(Move::Put(n)),
                Sending::Begun if !others => moves.push(Move::Lock(n)),
                Sending::Locked => moves.push(Move::Put(n)),
                Sending::Put if !others => moves.push(Move::Commit(n)),
                _ => {}
            }
            if left.silences > 0 && matches!(sender.at, Sending::Locked | Sending::Put) {
                moves.push(Move::ThrowOut(n));
            }
        }
        for (n, write) in post.writes.iter().enumerate() {
            if !write.begun {
                moves.push(Move::Begin(n));
            } else if post.locked.is_none() {
                moves.push(Move::Done(n));
            }
        }
        for (n, row) in post.lives.iter().enumerate() {
            let life = n as Life + 1;
            let process = post.processes.iter().find(|process| process.life == life);
            let owns = post.run.owner == Some(life);
            if !row.expired && owns && (process.is_none() || left.expiries > 0) {
                moves.push(Move::Expire(life));
            }
            let locked = post.writes.iter().any(|write| write.life == life && write.begun);
            if row.expired && !row.ended && !locked {
                moves.push(Move::Takeover(life));
            }
            if row.expired && process.is_some() {
                moves.push(Move::Renew(life));
            }
        }
        let alive = post.processes.iter().filter(|process| !post.life(process.life).expired).count();
        if alive == 0 {
            moves.push(Move::Start);
        }
        for process in &post.processes {
            let life = process.life;
            if left.crashes > 0 && process.hand != Hand::Idle {
                moves.push(Move::Crash(life));
            }
            match &process.hand {
                Hand::Idle if Self::claimable(post) && !post.life(life).ended => {
                    moves.push(Move::Claim(life))
                }
                Hand::Idle => {}
                Hand::Claimed { .. } => moves.push(Move::Read(life)),
                Hand::Owner(owner) => {
                    let leaves = owner.writing.as_ref().is_some_and(|write| write.release);
                    let new = post.inbox.iter().any(|id| !owner.letters.contains(id));
                    if post.run.owner == Some(life) && new && !leaves && owner.later.is_none() {
                        moves.push(Move::Look(life));
                    }
                    match &owner.writing {
                        None => {
                            moves.extend([true, false].map(|gives_up| Move::Write(life, gives_up)));
                        }
                        Some(_) if left.losses > 0 => moves.push(Move::Repeat(life)),
                        Some(_) => {}
                    }
                }
            }
        }
    }

    fn next_state(&self, before: &Post, action: Move) -> Option<Post> {
        let mut post = before.clone();
        match action {
            Move::Send(id) => {
                let known = post.senders.iter().any(|sender| sender.id == id);
                let left = if known { &mut post.left.again } else { &mut post.left.messages };
                *left -= 1;
                post.senders.push(Sender { id, at: Sending::Begun });
            }
            Move::Lock(n) => {
                post.locked = Some(n);
                post.senders[n].at = Sending::Locked;
            }
            Move::Put(n) => self.put(&mut post, n),
            Move::Commit(n) => self.commit(&mut post, n),
            Move::ThrowOut(n) => {
                post.left.silences -= 1;
                post.senders[n].at = Sending::Over;
                if post.locked == Some(n) {
                    post.locked = None;
                }
            }
            Move::Start => Self::start(&mut post),
            Move::Crash(life) => {
                post.left.crashes -= 1;
                post.processes.retain(|process| process.life != life);
                post.writes
                    .iter_mut()
                    .filter(|write| write.life == life)
                    .for_each(|write| write.heard = false);
            }
            Move::Expire(life) => {
                if post.processes.iter().any(|process| process.life == life) {
                    post.left.expiries -= 1;
                }
                post.life_mut(life).expired = true;
            }
            Move::Renew(life) => {
                if post.life(life).ended {
                    post.processes.retain(|process| process.life != life);
                    post.writes
                        .iter_mut()
                        .filter(|write| write.life == life)
                        .for_each(|write| write.heard = false);
                } else {
                    post.life_mut(life).expired = false;
                }
            }
            Move::Takeover(life) => post.life_mut(life).ended = true,
            Move::Claim(life) => {
                let run = &mut post.run;
                *run = RunRow { owner: Some(life), claim: run.claim + 1, due: false, ..*run };
                let (claim, told, has_mail) = (run.claim, run.told, run.mail > run.told);
                post.set(life, Hand::Claimed { claim, told, has_mail });
            }
            Move::Read(life) => {
                let hand = post.processes.iter().find(|process| process.life == life)?.hand.clone();
                let Hand::Claimed { claim, told, has_mail } = hand else { return None };
                let letters = if has_mail { post.inbox.clone() } else { BTreeSet::new() };
                if has_mail {
                    post.seen.insert(Sight::ReadWithTheClaim);
                }
                let copy = post.journal.clone();
                post.set(life, Hand::Owner(Owner { claim, copy, letters, told, writing: None, later: None }));
            }
            Move::Look(life) => {
                let inbox = post.inbox.clone();
                post.owner_mut(life)?.letters.extend(inbox);
                post.seen.insert(Sight::ReadUnderWay);
            }
            Move::Write(life, gives_up) => {
                if post.life(life).ended {
                    post.processes.retain(|process| process.life != life);
                } else {
                    self.write(&mut post, life, gives_up)?;
                }
            }
            Move::Repeat(life) => {
                post.left.losses -= 1;
                post.writes
                    .iter_mut()
                    .filter(|write| write.life == life)
                    .for_each(|write| write.heard = false);
                let write = post.owner_mut(life)?.writing.clone()?;
                post.writes.push(Write { begun: false, heard: true, ..write });
            }
            Move::Begin(n) => {
                if post.life(post.writes[n].life).ended {
                    let write = post.writes.remove(n);
                    post.processes.retain(|process| process.life != write.life);
                } else {
                    post.writes[n].begun = true;
                }
            }
            Move::Done(n) => {
                let write = post.writes.remove(n);
                self.done(&mut post, &write);
            }
        }
        Some(post)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(self)
    }
}
