//! A model of lease, fence, journal and rollback, explored exhaustively.
//!
//! ```text
//!   nodes (lives)          runs               journal              node processes            the world
//!   ------------------     --------------     ----------------     ----------------------    -------------------------
//!   live                   owner, claim       rows, hash-consed,   idle                      effects that are there
//!    | lease runs out      due, over          each with the        | claim                   requests that are out:
//!   expired --renew-> live inbox              State behind it      claimed                    they land at any time
//!    | takeover (locks the row,               (State::apply)       | read, in a later         until their call is over,
//!    v waits for appends)                                          v statement                then for longest_delay,
//!   ended, for ever                                                owner of a copy            or never
//!                                                                  | decide, judge, judge_probe
//!   an append: on its way -> under way (holds KEY SHARE            v
//!   on its life's row) -> committed | refused | conflict           append, call, hold results, probe, release
//! ```
//!
//! **What is real.** A process of the model decides with the crate's own `decide`, `judge`, `judge_probe` and
//! `State::apply` on its copy of the journal: the model checks the code, not a story about it. Lives, claims,
//! statements and the world are modelled. The rules about journals (`history.rs`) use nothing of `State`.
//!
//! **Statements.** READ COMMITTED, one statement at a time. An append looks at its life's row when it begins and
//! holds it until it commits; that its run is still under its claim, and that its numbers are free, is decided
//! when it commits, which is the latest that Postgres may. Its client may be gone by then: the answer is lost with
//! the statement on its way, under way or done, and on its way may mean for ever. A takeover, a claim and a
//! renewal are one move each: while they hold their locks others only wait, so nothing is lost by that.
//!
//! **Time.** A lease may run out at any moment. The clock moves on when something waits for it, so that between
//! two ticks everything that can happen may happen. A process that is not scheduled is a frozen one; it thaws by
//! being scheduled. Its `now` is the database's clock; that a node's idea of it may lag is left out.
//!
//! **What is assumed of nodes and targets**, and has to be true in them:
//! - a node starts no call without a lease that holds, and hangs up on its calls at the latest when it runs out
//!   (the mutant `CallWithoutLease` shows what happens to one that freezes between this look and its first byte);
//! - after that, or after a crash, an effect comes about within its step's `longest_delay` or never;
//! - a call that a rollback gives up is hung up on before that is written down;
//! - a target that refuses duplicates remembers a key even when its effect was undone;
//! - an owner polls: it finds runs that it owns and knows nothing of, and a journal that is longer than its copy.
//!
//! **Left out**: what is said to runs, of which `mail` is a model of its own; waits, operators other than one who
//! retries, points of no return, child runs, quarantine, several runs, a database that forgets. That a run always *can*
//! go on is checked (M10), that it does is not.
//!
//! **Bounds** (`bounds.rs`) are on faults, never on depth or time: within its faults every history is followed to
//! its end, and the test fails if anything else ended the search. `BACKSTAY_MODEL=full` looks at wider bounds, six
//! million states: two minutes on two cores with `--release`. `BACKSTAY_MODEL_STORIES=1` prints how each mutant comes
//! to grief.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a model that stumbles has to stop there"
)]

mod bounds;
mod database;
mod history;
mod journal;
mod mail;
mod moves;
mod mutant;
mod node;
mod procedure;
mod properties;
mod system;
mod world;

use std::time::Instant;

use backstay_machine::Time;
use stateright::{Checker, Expectation, HasDiscoveries, Model, Path};

use bounds::{Bounds, small};
use moves::Move;
use mutant::Mutant;
use system::System;

/// The model's clock as the machine's time.
pub fn time(tick: u8) -> Time {
    chrono::DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(i64::from(tick))
}

/// The tick at which that time has come.
pub fn tick_of(at: Time) -> u8 {
    at.timestamp() as u8
}

/// Checks everything within the bounds, and says how much that was.
fn check(bounds: Bounds) {
    let name = bounds.name;
    let begun = Instant::now();
    let checker = bounds
        .saga(Mutant::None)
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    println!(
        "{name}: {} unique states ({} generated), {} journals, depth {}, in {:.1?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.model().library.len(),
        checker.max_depth(),
        begun.elapsed()
    );
    let found = checker.discoveries();
    for property in checker.model().properties() {
        match (property.expectation, found.get(property.name)) {
            (Expectation::Sometimes, None) => panic!("{name}: not seen: {}", property.name),
            (Expectation::Always, Some(path)) => {
                panic!("{name}: broken: {}\n{}", property.name, story(path));
            }
            _ => {}
        }
    }
    // Neither a depth nor a count ended it: there was nothing left to look at.
    assert!(checker.is_done());
}

/// A counterexample for people: the moves, and the journal that they lead to.
fn story(path: &Path<System, Move>) -> String {
    let moves: Vec<_> = path.clone().into_actions().iter().map(|next| format!("  {next:?}")).collect();
    format!("{}\n{:#?}", moves.join("\n"), path.last_state().journal)
}

/// The mutant must be caught, by this property.
fn catches(mutant: Mutant, bounds: Bounds, property: &'static str) {
    let begun = Instant::now();
    let checker = bounds
        .saga(mutant)
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyOf([property].into()))
        .spawn_bfs()
        .join();
    let found = checker.discoveries();
    let mut broken: Vec<_> = found
        .keys()
        .filter(|name| checker.model().property(name).expectation == Expectation::Always)
        .map(|name| name.split(' ').next().unwrap_or(name))
        .collect();
    broken.sort_unstable();
    println!(
        "{mutant:?} ({}): {} after {} states in {:.1?}",
        bounds.name,
        broken.join(", "),
        checker.unique_state_count(),
        begun.elapsed()
    );
    let path = found.get(property);
    assert!(path.is_some(), "{mutant:?} was not caught by: {property}");
    if std::env::var_os("BACKSTAY_MODEL_STORIES").is_some() {
        println!("{}", path.map(story).unwrap_or_default());
    }
}

#[test]
fn the_design_holds_within_its_bounds() {
    for bounds in bounds::chosen() {
        check(bounds);
    }
}

macro_rules! mutants {
    ($($test:ident: $mutant:ident, $plan:ident, [$($n:literal),*], $property:ident;)*) => {
        $(#[test]
        fn $test() {
            catches(Mutant::$mutant, small(procedure::$plan, bounds::faults([$($n),*])), properties::$property);
        })*
    };
}

// In brackets: expiries, crashes, losses, failures, blanks, retries, handovers.
mutants! {
    an_unlocked_fence_is_caught: UnlockedFence, keyed, [1, 0, 0, 0, 0, 0, 0], M1;
    claim_and_journal_read_in_one_snapshot_is_caught: OneSnapshot, keyed, [1, 0, 0, 0, 0, 0, 0], G5;
    intent_after_effect_is_caught: IntentAfterEffect, keyed, [0, 0, 0, 0, 0, 0, 0], M3;
    an_undo_skipped_for_a_failed_step_is_caught: UndoSkippedForFailed, keyed, [0, 0, 0, 2, 0, 0, 0], M6;
    a_missing_unique_index_is_caught: NoUniqueIndex, keyed, [0, 0, 1, 0, 0, 0, 0], M0;
    a_run_released_before_its_terminal_commit_is_caught: ReleasedBeforeTheEnd, keyed, [0, 0, 0, 0, 0, 0, 0], M1;
    a_renewal_of_an_ended_life_is_caught: RenewedAfterTheEnd, keyed, [1, 0, 0, 0, 0, 0, 0], M9;
    a_retry_under_the_old_key_is_caught: RetriedUnderTheOldKey, held, [0, 0, 0, 1, 0, 1, 0], M2K;
    a_retry_written_past_the_owner_is_caught: RetriedPastTheOwner, held, [0, 0, 0, 1, 0, 1, 0], M1;
    a_retry_start_at_any_seq_is_caught: StartAtAnySeq, keyed, [0, 0, 1, 1, 0, 0, 0], M8;
    failures_counted_in_memory_are_caught: FailuresCountedInMemory, keyed, [0, 1, 0, 2, 0, 0, 0], G8;
    unknown_taken_for_absent_is_caught: UnknownIsAbsent, probed, [0, 1, 0, 1, 1, 0, 0], M7;
    absent_trusted_too_early_is_caught: AbsentTrustedTooEarly, probed, [0, 1, 0, 0, 0, 0, 0], M7;
    an_append_not_bound_to_its_claim_is_caught: AppendNotBoundToClaim, keyed, [0, 0, 1, 0, 0, 0, 1], M1;
    a_call_without_a_lease_is_caught: CallWithoutLease, keyed, [1, 0, 0, 1, 0, 0, 0], M6;
    a_claim_that_is_forgotten_is_caught: ClaimForgotten, keyed, [0, 0, 1, 0, 0, 0, 0], M10;
    an_owner_that_never_looks_again_is_caught: NeverLooksAgain, held, [0, 0, 1, 1, 0, 1, 0], M10;
    a_release_by_an_old_copy_is_caught: ReleasedByAnOldCopy, held, [0, 0, 1, 1, 0, 1, 0], M10;
    an_inbox_that_wakes_nobody_is_caught: InboxWakesNobody, held, [0, 0, 0, 1, 0, 1, 0], M10;
}
