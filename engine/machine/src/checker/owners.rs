//! Rows as such: their positions, their times, and who wrote them (H1, H3, H4).

use std::collections::BTreeMap;

use super::{Findings, RuleId};
use crate::chain::Chain;
use crate::event::{Event, Journaled, Row};
use crate::names::RunId;

pub(super) fn sequence(rows: &[Row], found: &mut Findings) {
    if rows.is_empty() {
        found.add(RuleId::Sequence, None, "the run has no events: its history is lost");
    }
    let mut last = 0i64;
    for row in rows {
        if last.checked_add(1) != Some(row.seq) {
            let message = format!(
                "it follows on event {last}: events are missing, doubled or out of order, so the history is not whole"
            );
            found.add(RuleId::Sequence, row.seq, message);
        }
        last = row.seq;
    }
}

/// The chain of hashes over the rows.
pub(super) fn seals(run: RunId, rows: &[Row], found: &mut Findings) {
    if let Err(broken) = Chain::verify(run, rows) {
        found.add(
            RuleId::Chain,
            broken.seq,
            format!("{broken}: somebody has written into the journal by hand"),
        );
    }
}

pub(super) fn times(rows: &[Row], found: &mut Findings) {
    for (before, row) in rows.iter().zip(rows.iter().skip(1)) {
        if row.at < before.at {
            let message = format!(
                "it is of {}, the event before it of {}: a clock went back, so no wait in this history proves anything",
                row.at, before.at
            );
            found.add(RuleId::Time, row.seq, message);
        }
    }
}

pub(super) fn claims(rows: &[Row], found: &mut Findings) {
    let mut granted = 0i32;
    let mut epochs: BTreeMap<i32, i64> = BTreeMap::new();
    for row in rows {
        if row.kind == "claimed" {
            // Gaps are right: an owner that died between its claim and its first event left no event of it.
            if row.claim <= granted {
                let message =
                    format!("it is claim {} after claim {granted}: a claim was granted twice", row.claim);
                found.add(RuleId::Owners, row.seq, message);
            }
            granted = granted.max(row.claim);
        } else if row.claim > granted {
            let message = format!(
                "it is written under claim {}, which nobody was granted; the last was {granted}",
                row.claim
            );
            found.add(RuleId::Owners, row.seq, message);
        } else if row.claim < granted {
            let message = format!(
                "it is written under claim {} after claim {granted} was granted: the fence let a former owner write",
                row.claim
            );
            found.add(RuleId::Fence, row.seq, message);
        }
        let epoch = *epochs.entry(row.claim).or_insert(row.epoch);
        if epoch != row.epoch {
            let message = format!(
                "claim {} is of epoch {epoch} before and of epoch {} here: two owners wrote under one claim",
                row.claim, row.epoch
            );
            found.add(RuleId::Owners, row.seq, message);
        }
        // Only whoever submits writes without a node.
        if row.epoch < 0 || (row.epoch == 0 && (row.claim != 0 || row.kind != "submitted")) {
            let message = format!(
                "it is written under epoch {} and claim {}: no node owned the run, so nothing fenced it",
                row.epoch, row.claim
            );
            found.add(RuleId::Owners, row.seq, message);
        }
    }
}

/// An epoch names one life of one node, in all runs.
pub(super) fn lives(events: &[Journaled], lives: &mut BTreeMap<i64, String>, found: &mut Findings) {
    for journaled in events {
        let Event::Claimed { node, .. } = &journaled.event else { continue };
        let known = lives.entry(journaled.epoch.0).or_insert_with(|| node.clone());
        if known != node {
            let message = format!(
                "epoch {} is a life of node {known:?} elsewhere and of {node:?} here: it was granted twice, and fences neither",
                journaled.epoch
            );
            found.add(RuleId::Owners, journaled.seq, message);
        }
    }
}
