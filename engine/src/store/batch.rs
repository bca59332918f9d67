//! What the writer writes, and what became of it.

use backstay_machine::{ClaimNo, Row, RunId, Status, Time};
use sqlx::Postgres;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::PgRecordEncoder;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo};

use super::entry::Entry;
use super::{Moved, Outgoing, Proviso, Told};

/// What all runs of a node have ready: committed together or not at all, but for what stands under a proviso.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Runs that are new.
    pub admissions: Vec<Admission>,
    /// Events, each run's in order.
    pub events: Vec<(RunId, Row)>,
    /// What changes in the index of runs.
    pub changes: Vec<IndexChange>,
    /// What runs say to other runs, and which run says it.
    pub tells: Vec<(RunId, Outgoing)>,
    /// Facts that change with some of the events, if they are as their runs have seen them; at most one of each run.
    pub facts: Vec<Proviso>,
}

impl Batch {
    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        self.admissions.is_empty()
            && self.events.is_empty()
            && self.changes.is_empty()
            && self.tells.is_empty()
    }
}

/// A new run.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Its id.
    pub run: RunId,
    /// The workflow's name.
    pub workflow: String,
    /// The plan's hash.
    pub plan_hash: String,
    /// The activities it needs.
    pub activities: String,
    /// 0 to 2.
    pub priority: i16,
    /// JSON.
    pub labels: String,
    /// The client's key.
    pub client_key: Option<String>,
    /// What was asked.
    pub request_hash: String,
    /// What no two live runs may hold.
    pub exclusive_key: Option<String>,
    /// It stands in line for that key.
    pub queue: bool,
    /// When.
    pub at: Time,
}

/// What changes in a run's row of the index.
#[derive(Clone, Debug)]
pub struct IndexChange {
    /// The run.
    pub run: RunId,
    /// The claim under which it changes: a statement that comes late does not touch what was claimed again since.
    pub claim: ClaimNo,
    /// Its status from now on.
    pub status: Status,
    /// Its owner gives it up.
    pub release: bool,
    /// When it may be claimed, if it is given up and not over.
    pub due_at: Option<Time>,
    /// Why it waits for people.
    pub note: Option<String>,
    /// When it ended.
    pub finished_at: Option<Time>,
    /// How many messages to it are answered, with those that the same batch answers.
    pub told: i32,
    /// It has outlived what its last owners died of.
    pub clears: bool,
    /// At which steps it fails; none: as the index has it.
    pub failing: Option<Vec<String>>,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Appended {
    /// The admissions that were refused: their keys were taken. Nothing of them was written.
    pub refused: Vec<RunId>,
    /// Some run that was given up had been spoken to meanwhile: it wants to be claimed at once.
    pub spoken_to: bool,
    /// What became of what runs said to others.
    pub told: Vec<Told>,
    /// Facts that were not as they were seen. What stood under that proviso was not written; everything else was.
    pub moved: Vec<Moved>,
}

/// Why a run was not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The same was submitted before: this is the run.
    Known(RunId),
    /// Something else was submitted under this key.
    KeyReused(RunId),
    /// A live run holds the exclusive key.
    Exclusive(RunId),
}

/// Rows on their way into the statement, as Postgres reads them: see the types in the migration.
pub(super) struct NewRun<'a>(pub &'a Admission);
pub(super) struct RunChange<'a>(pub &'a IndexChange);
pub(super) struct NewEntry<'a>(pub Entry<'a>, pub bool);

macro_rules! record {
    ($type:ident, $name:literal, |$it:ident| $($field:expr),+) => {
        impl sqlx::Type<Postgres> for $type<'_> {
            fn type_info() -> PgTypeInfo {
                PgTypeInfo::with_name($name)
            }
        }
        impl PgHasArrayType for $type<'_> {
            fn array_type_info() -> PgTypeInfo {
                PgTypeInfo::array_of($name)
            }
        }
        impl sqlx::Encode<'_, Postgres> for $type<'_> {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                let $it = self;
                let mut record = PgRecordEncoder::new(buffer);
                $(record.encode($field)?;)+
                record.finish();
                Ok(IsNull::No)
            }
        }
    };
}

record!(
    NewRun,
    "new_run",
    |it| it.0.run.0,
    it.0.workflow.as_str(),
    it.0.plan_hash.as_str(),
    it.0.activities.as_str(),
    it.0.priority,
    it.0.labels.as_str(),
    it.0.client_key.as_deref(),
    it.0.request_hash.as_str(),
    it.0.exclusive_key.as_deref(),
    it.0.at
);
record!(
    RunChange,
    "run_update",
    |it| it.0.run.0,
    it.0.claim,
    it.0.status.as_str(),
    it.0.release,
    it.0.due_at,
    it.0.note.as_deref(),
    it.0.finished_at,
    it.0.told,
    it.0.clears,
    it.0.failing.as_deref()
);
record!(
    NewEntry,
    "journal_entry",
    |it| it.0.run.0,
    it.0.first.seq,
    it.0.first.claim,
    it.0.first.epoch,
    it.0.first.at,
    it.0.first.kind,
    it.0.first.step.as_deref(),
    it.0.first.undo,
    it.0.first.generation,
    it.0.first.attempt,
    it.0.first.key,
    it.0.first.body.as_ref().map(|body| body.as_str()),
    it.1,
    it.0.first.seal.as_ref().map(<[u8; 32]>::as_slice),
    Some(it.0.more.as_str()).filter(|more| !more.is_empty())
);
