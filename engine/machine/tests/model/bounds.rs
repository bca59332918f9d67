//! How much is looked at. A bound is on faults, never on depth: within its faults a history is followed to its end.

use std::sync::Arc;

use backstay_machine::Plan;

use crate::journal::Library;
use crate::moves::Saga;
use crate::mutant::Mutant;
use crate::procedure;
use crate::properties::*;
use crate::system::Faults;

#[derive(Clone, Copy)]
pub struct Bounds {
    pub name: &'static str,
    pub plan: fn() -> Arc<Plan>,
    pub faults: Faults,
    pub nodes: usize,
    pub nodes_kept: usize,
    pub sights: &'static [&'static str],
}

impl Bounds {
    pub fn saga(&self, mutant: Mutant) -> Saga {
        let plan = (self.plan)();
        Saga {
            library: Library::new(Arc::clone(&plan)),
            plan,
            nodes: self.nodes,
            nodes_kept: self.nodes_kept,
            faults: self.faults,
            mutant,
            sights: if mutant == Mutant::None { self.sights } else { &[] },
        }
    }

    const fn of(name: &'static str, plan: fn() -> Arc<Plan>, faults: Faults) -> Self {
        Self { name, plan, faults, nodes: 2, nodes_kept: 1, sights: &[] }
    }

    const fn sees(self, sights: &'static [&'static str]) -> Self {
        Self { sights, ..self }
    }
}

/// Expiries, crashes, losses, failures, blanks, retries, handovers.
pub const fn faults([expiries, crashes, losses, failures, blanks, retries, handovers]: [u8; 7]) -> Faults {
    Faults { expiries, crashes, losses, failures, blanks, retries, handovers }
}

pub const fn small(plan: fn() -> Arc<Plan>, faults: Faults) -> Bounds {
    Bounds::of("small", plan, faults)
}

/// The bounds that apply: those of every test run, or with `BACKSTAY_MODEL=full` the wide ones too.
pub fn chosen() -> Vec<Bounds> {
    let full = std::env::var_os("BACKSTAY_MODEL").is_some_and(|value| value == "full");
    let wide = if full { WIDE } else { &[] };
    DEFAULT.iter().chain(wide).copied().collect()
}

/// What every test run looks at.
pub const DEFAULT: &[Bounds] = &[
    Bounds::of("diamond, a crash and a failure", procedure::diamond, faults([0, 1, 0, 1, 0, 0, 0])).sees(&[
        BOTH_UNDONE,
        TAKEOVER_IN_DOUBT,
        UNDO_AGAIN,
    ]),
    Bounds::of("diamond, an answer lost and a failure", procedure::diamond, faults([0, 0, 1, 1, 0, 0, 0]))
        .sees(&[BOTH_UNDONE, UNHEARD]),
    Bounds::of("probed, a lease lost, a failure, a blank", procedure::probed, faults([1, 0, 0, 1, 1, 0, 0]))
        .sees(&[FOUND_PRESENT, FOUND_ABSENT, STILL_OUT, ROLLED_BACK]),
    Bounds::of("probed, a lease lost and an answer lost", procedure::probed, faults([1, 0, 1, 0, 0, 0, 0]))
        .sees(&[FOUND_PRESENT, FOUND_ABSENT, UNHEARD, ZOMBIE_REFUSED]),
    Bounds::of("keyed, a lease lost, a crash, a failure", procedure::keyed, faults([1, 1, 0, 1, 0, 0, 0]))
        .sees(&[STILL_OUT, ROLLED_BACK, SUCCEEDS]),
    Bounds::of("held, a lease lost, two failures, a retry", procedure::held, faults([1, 0, 0, 2, 0, 1, 0]))
        .sees(&[RETRIED, STILL_OUT, FAILED_UNDONE]),
    Bounds::of("held, three failures, a retry", procedure::held, faults([0, 1, 0, 3, 0, 1, 0]))
        .sees(&[STUCK, RETRIED]),
    Bounds::of("held, an answer lost, two failures, a retry", procedure::held, faults([0, 0, 1, 2, 0, 1, 0]))
        .sees(&[RETRIED, UNHEARD]),
    Bounds::of(
        "keyed, a run handed over, an answer lost, a failure",
        procedure::keyed,
        faults([0, 0, 1, 1, 0, 0, 1]),
    )
    .sees(&[UNHEARD, STILL_OUT, ROLLED_BACK]),
    Bounds::of("diamond, a lease lost and a failure", procedure::diamond, faults([1, 0, 0, 1, 0, 0, 0]))
        .sees(&[
            SUCCEEDS,
            ROLLED_BACK,
            ZOMBIE_REFUSED,
            TAKEOVER_IN_DOUBT,
            OUTCOME_AFTER_TURN,
            ABANDONED,
            FAILED_UNDONE,
            BOTH_UNDONE,
            UNDO_AGAIN,
        ]),
];

/// What takes two minutes more in a release build.
const WIDE: &[Bounds] = &[
    Bounds::of(
        "probed, a lease lost, an answer lost, a failure",
        procedure::probed,
        faults([1, 0, 1, 1, 0, 0, 0]),
    )
    .sees(&[FOUND_PRESENT, FOUND_ABSENT, UNHEARD, ZOMBIE_REFUSED]),
    Bounds::of(
        "diamond with a late effect, a lease lost and a failure",
        procedure::late_diamond,
        faults([1, 0, 0, 1, 0, 0, 0]),
    )
    .sees(&[STILL_OUT, BOTH_UNDONE]),
    Bounds::of(
        "diamond with a late effect, a crash and two failures",
        procedure::late_diamond,
        faults([0, 1, 0, 2, 0, 0, 0]),
    )
    .sees(&[BOTH_UNDONE, TAKEOVER_IN_DOUBT, UNDO_AGAIN]),
    Bounds::of("diamond, a lease lost, an answer lost", procedure::diamond, faults([1, 0, 1, 0, 0, 0, 0]))
        .sees(&[SUCCEEDS, UNHEARD, ZOMBIE_REFUSED]),
    Bounds::of("probed, one of each", procedure::probed, faults([1, 1, 1, 1, 0, 0, 0]))
        .sees(&[FOUND_PRESENT, FOUND_ABSENT]),
    Bounds::of(
        "held, a lease lost, a crash, two failures, a retry",
        procedure::held,
        faults([1, 1, 0, 2, 0, 1, 0]),
    )
    .sees(&[RETRIED, STILL_OUT]),
    Bounds {
        nodes: 3,
        nodes_kept: 3,
        ..Bounds::of("keyed, three nodes", procedure::keyed, faults([2, 0, 0, 1, 0, 0, 0]))
    }
    .sees(&[ZOMBIE_REFUSED, STILL_OUT]),
];
