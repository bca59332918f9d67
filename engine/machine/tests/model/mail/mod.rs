//! A second model: what is said to a run, by senders that lock its row, to owners that come and go.
//!
//! ```text
//!   tell, one transaction                          an owner, one statement a write
//!   ------------------------------------           -------------------------------------------------------------
//!   lock the run's row                             claim (skips a row that is locked)
//!    | into the inbox, if the run is not over       | read the journal; and the inbox, if mail > told
//!    | look into the journal for the id             v
//!    v                                             owner -- look into the inbox, whenever it likes
//!   mail + 1; due, if nobody has it; commit         | answers into the journal, out of the inbox, told + n;
//!                                                   v with it, if nothing else is to be done, the run is given up:
//!                                                  due if mail > told, as its row is by then; over, or put aside, if not
//! ```
//!
//! The run waits for a message, and ends once it was told one. Its owner may die, lose its lease, or lose the answer to
//! a write, which it then writes again; a sender may fall silent in its transaction, and send again. A write looks at its
//! life's row when it begins, and at the run's row when nobody else holds that: as Postgres reads it again after a wait.
//! The numbers of rows (run, seq) are unique, as is the id of an answer; that the second index ever refuses anything is
//! a breach by itself, since the owner could not go on.
//!
//! **Left out**: what the messages say, a run that comes back to be rolled back, several runs, handing over. That a
//! message is answered in the end is not checked, only that somebody is always there who can.

mod moves;
mod post;
mod properties;

use std::time::Instant;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use moves::Mail;
use post::Faults;
use properties::{COUNTED, KEPT, NOT_SILENT, ONCE};

/// The design, or one mistake in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The design as it is.
    None,
    /// Whoever puts a run aside goes by what it has read, and does not look at the counter again.
    PutAsideWithMail,
    /// A run ends, and does not look whether somebody has spoken to it meanwhile.
    OverWithMail,
    /// The counter says that a message is answered one commit before it is.
    CountedWithoutTheAnswer,
    /// A message leaves the inbox one commit after its answer.
    RemovedLater,
    /// A message leaves the inbox one commit before its answer.
    RemovedBefore,
    /// Who sends looks whether the run is over, but does not hold its row meanwhile.
    SenderDoesNotLock,
    /// An id is unique in the inbox, and nobody asks the journal.
    JournalNotAsked,
    /// An owner answers what it reads, although its answer is on the way.
    AnswersWhatItAnswers,
    /// Who sends does not make a run due that nobody has.
    SenderWakesNobody,
}

/// Messages, sent again, silences, expiries, crashes, losses.
const fn faults([messages, again, silences, expiries, crashes, losses]: [u8; 6]) -> Faults {
    Faults { messages, again, silences, expiries, crashes, losses }
}

const DEFAULT: &[[u8; 6]] = &[[2, 0, 1, 1, 0, 0], [2, 1, 0, 0, 1, 0], [2, 1, 0, 0, 0, 1], [2, 0, 0, 1, 0, 1]];
const WIDE: &[[u8; 6]] = &[[2, 1, 1, 1, 1, 0]];

#[test]
fn messages_are_kept_and_answered_once_within_these_bounds() {
    let full = std::env::var_os("BACKSTAY_MODEL").is_some_and(|value| value == "full");
    let mut unseen: Option<Vec<&'static str>> = None;
    for bounds in DEFAULT.iter().chain(if full { WIDE } else { &[] }) {
        let begun = Instant::now();
        let mail = Mail { faults: faults(*bounds), mutant: Mutant::None };
        let checker = mail.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        println!(
            "messages, again, silences, expiries, crashes, losses {bounds:?}: {} unique states, depth {}, in {:.1?}",
            checker.unique_state_count(),
            checker.max_depth(),
            begun.elapsed()
        );
        let found = checker.discoveries();
        let mut missing = Vec::new();
        for property in checker.model().properties() {
            match (property.expectation, found.get(property.name)) {
                (Expectation::Sometimes, None) => missing.push(property.name),
                (Expectation::Always, Some(path)) => {
                    panic!(
                        "broken: {}\n{:#?}\n{:#?}",
                        property.name,
                        path.clone().into_actions(),
                        path.last_state()
                    )
                }
                _ => {}
            }
        }
        assert!(checker.is_done());
        // Each of them is seen within some of the bounds.
        unseen = Some(match unseen {
            None => missing,
            Some(before) => before.into_iter().filter(|name| missing.contains(name)).collect(),
        });
    }
    assert_eq!(unseen, Some(Vec::new()), "never seen");
}

fn catches(mutant: Mutant, bounds: [u8; 6], property: &'static str) {
    let mail = Mail { faults: faults(bounds), mutant };
    let found =
        mail.checker().threads(2).finish_when(HasDiscoveries::AnyOf([property].into())).spawn_bfs().join();
    let path = found.discovery(property);
    assert!(path.is_some(), "{mutant:?} was not caught by: {property}");
    println!("{mutant:?}: {property}, after {} states", found.unique_state_count());
    if let Some(path) = path.filter(|_| std::env::var_os("BACKSTAY_MODEL_STORIES").is_some()) {
        println!("{:#?}\n{:#?}", path.clone().into_actions(), path.last_state());
    }
}

macro_rules! mutants {
    ($($test:ident: $mutant:ident, [$($n:literal),*], $property:ident;)*) => {
        $(#[test]
        fn $test() {
            catches(Mutant::$mutant, [$($n),*], $property);
        })*
    };
}

// In brackets: messages, sent again, silences, expiries, crashes, losses.
mutants! {
    a_run_put_aside_by_an_old_count_is_caught: PutAsideWithMail, [1, 0, 0, 0, 0, 0], NOT_SILENT;
    a_run_that_ends_with_mail_is_caught: OverWithMail, [2, 0, 0, 0, 0, 0], NOT_SILENT;
    a_count_without_its_answer_is_caught: CountedWithoutTheAnswer, [1, 0, 0, 0, 0, 0], COUNTED;
    a_message_removed_after_its_answer_is_caught: RemovedLater, [1, 0, 0, 0, 0, 0], KEPT;
    a_message_removed_before_its_answer_is_caught: RemovedBefore, [1, 0, 0, 0, 0, 0], KEPT;
    a_sender_that_does_not_lock_is_caught: SenderDoesNotLock, [2, 0, 0, 0, 0, 0], NOT_SILENT;
    an_id_that_the_journal_has_already_is_caught: JournalNotAsked, [2, 1, 0, 0, 0, 0], KEPT;
    an_answer_to_what_is_being_answered_is_caught: AnswersWhatItAnswers, [1, 0, 0, 0, 0, 0], ONCE;
    a_sender_that_wakes_nobody_is_caught: SenderWakesNobody, [1, 0, 0, 0, 0, 0], NOT_SILENT;
}
