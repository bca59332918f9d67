//! The rules, each with the sentence that holds.

use std::fmt;

use serde::Serialize;

macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $rule:ident, $code:literal;)+) => {
        /// A rule that every history obeys. The H-numbers are those of the guarantees.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum RuleId {
            $($(#[doc = $doc])+ $rule,)+
        }

        impl RuleId {
            /// Every rule there is.
            pub const ALL: &[RuleId] = &[$(RuleId::$rule),+];

            /// Short and stable, for programs and bug reports.
            pub fn code(self) -> &'static str {
                match self { $(RuleId::$rule => $code,)+ }
            }

            /// What holds.
            pub fn sentence(self) -> &'static str {
                match self { $(RuleId::$rule => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

rules! {
    /// Every row can be read, and the first holds the plan.
    Readable, "readable";
    /// Positions count from 1 without a gap.
    Sequence, "H1 sequence";
    /// Times never decrease.
    Time, "time";
    /// The events of a step, of its undo and of the run come in a legal order, under the right numbers.
    Grammar, "H2 grammar";
    /// Claims count up by one, each is of one epoch, each epoch of one node.
    Owners, "H3 owners";
    /// Nothing is written under a claim once the next one was granted.
    Fence, "H4 fence";
    /// A generation of a step, or of an undo, has at most one outcome.
    OneOutcome, "H5 one outcome";
    /// No attempt starts after the outcome of its generation.
    NoStartAfterOutcome, "H6 no start after outcome";
    /// A step starts only when every step that it comes after is settled.
    Predecessors, "H7 predecessors";
    /// The first attempt of a generation carries the input that the plan's bindings give, and only that one.
    Input, "H8 input";
    /// The idempotency key is the derived one: constant in a generation, found nowhere else.
    Key, "H9 key";
    /// Every effect in the world was announced by a start under its key.
    Orphan, "H10 orphan";
    /// Effects of one step overlap only where a lease was lost between their attempts.
    Overlap, "H11 overlap";
    /// An attempt in doubt is probed, waited for or held before it is repeated or believed.
    Doubt, "H12 doubt";
    /// No step starts forward once the run has turned round.
    Direction, "H13 direction";
    /// A step is undone only after everything that came after it.
    UndoOrder, "H14 undo order";
    /// When a run is rolled back, everything that may have had an effect is undone.
    Undone, "H15 undone";
    /// The end comes last and once, fits the direction, and leaves nothing unsettled.
    End, "H16 end";
    /// At the end the world holds what the journal says.
    World, "H17 world";
    /// A step that requires a proof starts only with it, or when people have let it go without.
    Proof, "H18 proof";
    /// What a client was told is there, under one run for each key, and nothing is there that nobody asked for.
    Acknowledged, "H19 acknowledged";
    /// Every signal is read at most once, the oldest of its name first, by a step that waits for it.
    Signals, "H20 signals";
    /// A wait ends when its time has come, its signal is there or its people have spoken, never before.
    Timers, "H21 timers";
    /// An action is answered once, says who, and alone brings about what only people decide; overriding takes two.
    Actions, "H22 actions";
    /// Retries keep to the plan: how many, how late, and never before their time.
    Retry, "H23 retry";
    /// The index says what the journal says, and a live run has exactly one reason to wake.
    Index, "H25 index";
    /// The chain of hashes over the rows fits them.
    Chain, "H24 chain";
    /// An undo starts only in a rollback, for what may be there, and when nothing more can land.
    Settling, "settling";
    /// What a step's final failure does is what the plan says.
    OnFailure, "on failure";
    /// A step is held for a stated reason that the plan knows.
    Held, "held";
    /// A run is stuck only if undos failed for good, it names them, and nothing else can move.
    Stuck, "stuck";
    /// Nothing starts in a run that is left alone.
    Quarantine, "quarantine";
    /// Nothing starts in a run that is paused, and no wait ends.
    Paused, "paused";
    /// When a run is rolled back, whatever it made is gone or kept, and somebody has said so.
    Resources, "resources";
    /// Finalizing steps start after the commit and no others do, only a success is committed, and then nothing turns round.
    Commit, "commit";
    /// Behind its point of no return a run turns round only if somebody says that it should all the same.
    NoReturn, "no return";
    /// A run turns round because somebody says so, a step failed, or nobody committed it in time.
    Turns, "turns";
    /// A fact changes with the success of a step, from what the change before made of it, and stands as the last one says.
    Facts, "facts";
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
