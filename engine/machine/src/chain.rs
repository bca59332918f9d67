//! The chain of hashes over a run's journal: each row's hash goes into the next one's, and some rows carry what it has
//! come to. Whoever changes, removes or adds a row in the middle has to make all that follow it anew; one that was
//! copied elsewhere tells.

use sha2::{Digest, Sha256};

use crate::event::Row;
use crate::names::{RunId, Seq};

/// What the chain has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain([u8; 32]);

/// A row that is not what it was, or one before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the journal up to event {seq} is not what it was when that event was written: some row was changed, removed or added"
)]
pub struct Broken {
    /// The first sealed row that does not fit.
    pub seq: Seq,
}

impl Chain {
    /// Of a run without rows.
    pub fn new(run: RunId) -> Self {
        Self(Sha256::new().chain_update(b"backstay journal").chain_update(run.0.as_bytes()).finalize().into())
    }

    /// Takes in the next row.
    pub fn link(&mut self, row: &Row) {
        let mut hash = Sha256::new();
        hash.update(self.0);
        let numbers = [row.seq, i64::from(row.claim), row.epoch, row.at.timestamp_micros()];
        for number in numbers {
            hash.update(number.to_be_bytes());
        }
        for number in [i32::from(row.undo), row.generation, row.attempt] {
            hash.update(number.to_be_bytes());
        }
        hash.update(row.key.map_or([0; 16], uuid::Uuid::into_bytes));
        let body = row.body.as_ref().map(crate::Json::as_str);
        // Lengths, so that no text can pass for two; a missing one is not an empty one.
        for text in [Some(row.kind), row.step.as_deref(), body] {
            hash.update(text.map_or(u64::MAX, |text| text.len() as u64).to_be_bytes());
            hash.update(text.unwrap_or_default());
        }
        self.0 = hash.finalize().into();
    }

    /// What a row carries.
    pub fn seal(&self) -> [u8; 32] {
        self.0
    }

    /// Whether every seal of a journal fits the rows before it. The rows behind the last seal are not covered yet.
    pub fn verify(run: RunId, rows: &[Row]) -> Result<Self, Broken> {
        let mut chain = Self::new(run);
        for row in rows {
            chain.link(row);
            if row.seal.is_some_and(|seal| seal != chain.0) {
                return Err(Broken { seq: row.seq });
            }
        }
        Ok(chain)
    }
}

/// Whether a row of this kind carries a seal: those of the run as a whole, so that a chain of steps costs nothing.
pub fn is_sealed(row: &Row) -> bool {
    row.step.is_none()
}
