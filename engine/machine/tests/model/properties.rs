//! What must hold in every state, and what must be seen in some.

use backstay_machine::{CourseId, Outcome, Phase, State, Status};
use stateright::{Model, Property};

use crate::history::{Rule, Sight};
use crate::moves::Saga;
use crate::system::{Breach, Hand, System};

pub const M0: &str = "M0 the journal replays";
pub const M1: &str = "M1 nothing is written under a superseded epoch or claim";
pub const M2: &str = "M2 a generation has one outcome, and no start after it";
pub const M2K: &str = "M2 a key belongs to one generation of one course";
pub const M3: &str = "M3 no effect without an earlier intent";
pub const M4: &str = "M4 started dependents are undone first";
pub const M5: &str = "M5 no forward start after the run turned round";
pub const M6: &str = "M6 a run that is rolled back leaves no effect";
pub const M6S: &str = "M6 a run that succeeded has all its effects";
pub const M7: &str = "M7 what only a probe keeps from coming about twice does not";
pub const M8: &str = "M8 an attempt starts once, and not before its time";
pub const M9: &str = "M9 two calls of one course overlap only across a lost lease";
pub const M10: &str = "M10 no dead state";
pub const G5: &str = "G5 an owner misses no row but its own";
pub const G8: &str = "G8 failures are counted across takeovers";

pub const SUCCEEDS: &str = "the run succeeds";
pub const ROLLED_BACK: &str = "the run is rolled back";
pub const STUCK: &str = "the run is stuck";
pub const ZOMBIE_REFUSED: &str = "a zombie is refused";
pub const TAKEOVER_IN_DOUBT: &str = "a takeover with an attempt in doubt";
pub const OUTCOME_AFTER_TURN: &str = "an outcome after the run turned round";
pub const ABANDONED: &str = "a call is given up by the rollback";
pub const UNDO_AGAIN: &str = "an undo is done again";
pub const FAILED_UNDONE: &str = "a step that failed for good is undone";
pub const BOTH_UNDONE: &str = "both branches are undone";
pub const UNHEARD: &str = "a commit that its node did not hear of";
pub const STILL_OUT: &str = "an old request is still out while the next owner is at work";
pub const FOUND_PRESENT: &str = "a probe finds the effect";
pub const FOUND_ABSENT: &str = "a probe finds nothing, and is believed";
pub const RETRIED: &str = "an operator's retry begins anew";

pub fn all(saga: &Saga) -> Vec<Property<Saga>> {
    let mut all = vec![
        Property::always(M0, |_, s: &System| s.journal.live().is_some()),
        Property::always(M1, |_, s: &System| {
            s.journal.history.keeps(Rule::Ownership)
                && !s.broken.contains(&Breach::EndedLifeWrote)
                && !s.broken.contains(&Breach::OldClaimWrote)
        }),
        Property::always(M2, |_, s: &System| s.journal.history.keeps(Rule::Outcome)),
        Property::always(M2K, |_, s: &System| s.journal.history.keeps(Rule::Key)),
        Property::always(M3, |_, s: &System| !s.broken.contains(&Breach::EffectBeforeIntent)),
        Property::always(M4, |_, s: &System| s.journal.history.keeps(Rule::Order)),
        Property::always(M5, |_, s: &System| s.journal.history.keeps(Rule::Turn)),
        Property::always(M6, |_, s: &System| {
            s.journal.history.keeps(Rule::Undone)
                && (outcome(s) != Some(Outcome::RolledBack) || s.world.there.iter().all(|there| !there))
        }),
        Property::always(M6S, |_, s: &System| {
            outcome(s) != Some(Outcome::Succeeded) || s.world.there.iter().all(|there| *there)
        }),
        Property::always(M7, |_, s: &System| s.world.landings.iter().all(|(_, times)| *times < 2)),
        Property::always(M8, |_, s: &System| s.journal.history.keeps(Rule::Timer)),
        Property::always(M9, |_, s: &System| !calls_overlap(s)),
        Property::always(M10, not_dead),
        Property::always(G5, |_, s: &System| owners_are_up_to_date(s)),
        Property::always(G8, |_, s: &System| s.journal.history.keeps(Rule::Policy)),
    ];
    all.extend(sights(saga));
    all
}

/// What must have been seen for the rules to have been put to the test.
fn sights(saga: &Saga) -> Vec<Property<Saga>> {
    let all: Vec<Property<Saga>> = vec![
        Property::sometimes(SUCCEEDS, |_, s: &System| outcome(s) == Some(Outcome::Succeeded)),
        Property::sometimes(ROLLED_BACK, |_, s: &System| outcome(s) == Some(Outcome::RolledBack)),
        Property::sometimes(STUCK, |_, s: &System| status(s) == Some(Status::Stuck)),
        Property::sometimes(ZOMBIE_REFUSED, |_, s: &System| {
            s.processes.iter().any(|process| process.hand == Hand::Refused)
        }),
        Property::sometimes(TAKEOVER_IN_DOUBT, |_, s| saw(s, Sight::TakeoverInDoubt)),
        Property::sometimes(OUTCOME_AFTER_TURN, |_, s| saw(s, Sight::OutcomeAfterTurn)),
        Property::sometimes(ABANDONED, |_, s| saw(s, Sight::Abandoned)),
        Property::sometimes(UNDO_AGAIN, |_, s| saw(s, Sight::UndoAgain)),
        Property::sometimes(FAILED_UNDONE, |_, s| saw(s, Sight::FinalFailureUndone)),
        Property::sometimes(BOTH_UNDONE, |_, s| saw(s, Sight::BothBranchesUndone)),
        Property::sometimes(UNHEARD, |_, s: &System| {
            s.processes.iter().any(|process| {
                matches!(process.hand, Hand::Unsure { claim } if s.owns(process.life, claim)
                    && s.journal.row.epoch.0 == i64::from(process.life))
            })
        }),
        Property::sometimes(STILL_OUT, |_, s: &System| {
            s.world
                .requests
                .iter()
                .any(|request| !request.landed && s.run.owner.is_some_and(|owner| owner != request.from))
        }),
        Property::sometimes(FOUND_PRESENT, |_, s| saw(s, Sight::FoundPresent)),
        Property::sometimes(FOUND_ABSENT, |_, s| saw(s, Sight::FoundAbsent)),
        Property::sometimes(RETRIED, |_, s| saw(s, Sight::Retried)),
    ];
    assert!(saga.sights.iter().all(|name| all.iter().any(|sight| sight.name == *name)));
    all.into_iter().filter(|sight| saga.sights.contains(&sight.name)).collect()
}

fn saw(system: &System, sight: Sight) -> bool {
    system.journal.history.saw(sight)
}

/// Two processes whose leases hold are both calling for the same course.
fn calls_overlap(system: &System) -> bool {
    let mut live: Vec<CourseId> = Vec::new();
    for process in &system.processes {
        let row = system.life(process.life);
        if row.expired || (row.ended && process.hand == Hand::Refused) {
            continue;
        }
        for call in process.calls.iter().filter(|call| call.answer.is_none()) {
            if live.contains(&call.of.course) {
                return true;
            }
            live.push(call.of.course);
        }
    }
    false
}

/// A process that owns the run and has read its journal has every row of it, but for those it wrote itself and
/// has not heard of yet.
fn owners_are_up_to_date(system: &System) -> bool {
    system.processes.iter().all(|process| {
        let Hand::Owner { claim, copy, .. } = &process.hand else { return true };
        if !system.owns(process.life, *claim) || system.life(process.life).ended {
            return true;
        }
        system.journal.since(copy).is_some_and(|rows| {
            rows.iter().all(|row| row.claim == *claim && row.epoch.0 == i64::from(process.life))
        })
    })
}

/// A run that is not over can be got on with by the engine alone, or an operator was told.
fn not_dead(saga: &Saga, system: &System) -> bool {
    if system.run.over {
        return true;
    }
    let Some(state) = system.journal.live() else { return true };
    if system.inbox.is_none() && matches!(state.status(), Status::Held | Status::Stuck) {
        return true;
    }
    let mut moves = Vec::new();
    saga.actions(system, &mut moves);
    moves.iter().any(|next| next.is_progress(system))
}

/// For people who read a trace.
fn status(system: &System) -> Option<Status> {
    system.journal.live().map(State::status)
}

/// How the run ended, if it did.
fn outcome(system: &System) -> Option<Outcome> {
    match system.journal.live().map(State::phase) {
        Some(Phase::Over(outcome)) => Some(outcome),
        Some(Phase::Succeeded) => Some(Outcome::Succeeded),
        _ => None,
    }
}
