//! What must hold, whatever the order was.

use std::collections::HashMap;

use backstay_engine::RunId;
use backstay_engine::store::Claimed;

use crate::facts;
use crate::orders::{Done, Play};
use crate::removed;
use crate::scene::RunRow;
use crate::spoken;
use crate::steps::{Answer, Op, Step, What};

/// Every sentence that did not hold.
pub fn violations(play: &Play) -> Vec<String> {
    let mut wrong = Vec::new();
    nothing_fails(play, &mut wrong);
    lives_end_by_one_hand(play, &mut wrong);
    no_write_is_too_late(play, &mut wrong);
    renewals_wait_for_no_append(play, &mut wrong);
    a_claim_is_one_nodes(play, &mut wrong);
    new_owners_see_everything(play, &mut wrong);
    histories_are_whole(play, &mut wrong);
    keys_are_used_once(play, &mut wrong);
    no_run_is_silent(play, &mut wrong);
    spoken::violations(play, &mut wrong);
    removed::violations(play, &mut wrong);
    facts::violations(play, &mut wrong);
    wrong
}

/// When the transaction of this step was over, if it was committed.
pub fn committed(play: &Play, of: &Done) -> Option<usize> {
    let mut after = play.of(of.side).skip_while(|done| done.ended != of.ended).skip(1);
    after
        .find(|done| matches!(done.step, Step::Commit | Step::Rollback))
        .filter(|done| done.step == Step::Commit)
        .map(|done| done.ended)
}

/// How the life `one` ended: the step that did it.
fn end_of_one(play: &Play) -> Option<&Done> {
    let why =
        play.tables.nodes.iter().find(|node| node.epoch == play.scene.one.epoch.0)?.ended_why.as_deref()?;
    play.done.iter().find(|done| match (&done.step, &done.answer) {
        (Step::TakeOver, Answer::TookOver(names)) => {
            why == "lost" && names.iter().any(|name| name == "one") && committed(play, done).is_some()
        }
        (Step::End, Answer::Done) => why == "stopped",
        (Step::Supersede, Answer::Done) => why == "superseded",
        _ => false,
    })
}

fn nothing_fails(play: &Play, wrong: &mut Vec<String>) {
    let lives = play.ops.map(|op| op.life(&play.scene).map(|life| life.epoch));
    let twice = play.ops.into_iter().all(appends) && lives[0] == lives[1];
    for done in &play.done {
        match &done.answer {
            Answer::Failed(error) => wrong.push(format!("{:?} failed: {error}", done.step)),
            // The same append twice: whoever comes second is told so.
            Answer::Duplicate if !twice && done.step != Step::Append(1, What::Heir) => {
                wrong.push(format!("{:?} wrote what was there", done.step));
            }
            _ => {}
        }
    }
}

fn appends(op: Op) -> bool {
    op.steps().iter().any(|step| matches!(step, Step::Append(..)))
}

/// A life ends once; one that was renewed meanwhile is not taken over.
fn lives_end_by_one_hand(play: &Play, wrong: &mut Vec<String>) {
    let taken = play.done.iter().filter(|done| {
        matches!(&done.answer, Answer::TookOver(names) if names.iter().any(|name| name == "one"))
            && committed(play, done).is_some()
    });
    let taken = taken.count();
    if taken > 1 {
        wrong.push("one life was taken over twice".into());
    }
    let renewed =
        play.done.iter().any(|done| done.step == Step::Renew(1) && matches!(done.answer, Answer::Done));
    if renewed && taken > 0 {
        wrong.push("a life was renewed and taken over".into());
    }
    let ends = play
        .ops
        .iter()
        .any(|op| matches!(op, Op::TakeOver | Op::Recover2 | Op::RecoverMail2 | Op::End1 | Op::Supersede1));
    if ends && !renewed && end_of_one(play).is_none() {
        wrong.push("nobody ended the life whose lease ran out".into());
    }
}

/// What was written under a life was committed before the one who ended it was let through; what came later was
/// refused, and left nothing.
fn no_write_is_too_late(play: &Play, wrong: &mut Vec<String>) {
    let end = end_of_one(play);
    for done in play
        .done
        .iter()
        .filter(|done| play.ops[done.side].life(&play.scene).is_some_and(|life| life.name == "one"))
    {
        let wrote = match &done.answer {
            Answer::Appended { .. } => true,
            Answer::Claimed(claimed) => !claimed.is_empty(),
            Answer::Done if matches!(done.step, Step::Renew(_)) => true,
            Answer::Fenced => {
                let over = end.and_then(|end| committed(play, end));
                if over.is_none_or(|over| over > done.ended) {
                    wrong.push(format!("{:?} was refused, and its life went on", done.step));
                }
                false
            }
            _ => false,
        };
        let (Some(commit), Some(end)) = (committed(play, done).filter(|_| wrote), end) else { continue };
        // The claim of a late node is harmless: nothing can be written under it, and it is an orphan at once.
        if commit > end.ended && !matches!(done.answer, Answer::Claimed(_)) {
            wrong.push(format!("{:?} was committed after {:?} had gone past it", done.step, end.step));
        }
    }
    // All or nothing, and nothing of what was refused or rolled back.
    let of_one = play.done.iter().filter(
        |done| matches!(done.step, Step::Append(1, what) if !matches!(what, What::Two | What::Rival | What::Heir)),
    );
    let counted = of_one
        .filter(|done| matches!(done.answer, Answer::Appended { .. }) && committed(play, done).is_some());
    let counted = counted.count();
    let there = play
        .tables
        .journal
        .iter()
        .filter(|row| row.epoch == play.scene.one.epoch.0 && row.run_id == play.scene.a.0 && row.seq > 2);
    if (counted > 0) != (there.count() > 0) || counted > 1 {
        wrong.push(format!("{counted} appends were acknowledged, which is not what the journal says"));
    }
}

fn renewals_wait_for_no_append(play: &Play, wrong: &mut Vec<String>) {
    let any = |is: fn(Step) -> bool| play.done.iter().any(|done| is(done.step));
    let appends = any(|step| matches!(step, Step::Append(..)));
    let renews = any(|step| matches!(step, Step::Renew(_)));
    if appends && renews && play.waited() {
        wrong.push("a renewal and an append waited for each other".into());
    }
}

/// Claims of one run have rising numbers, and the later owner had it from one who was over or had given it up.
fn a_claim_is_one_nodes(play: &Play, wrong: &mut Vec<String>) {
    let mut claims: HashMap<RunId, Vec<(&Done, &Claimed, i64)>> = HashMap::new();
    for done in &play.done {
        let (Answer::Claimed(claimed), Some(life)) = (&done.answer, play.ops[done.side].life(&play.scene))
        else {
            continue;
        };
        if committed(play, done).is_some() {
            for claim in claimed {
                claims.entry(claim.run).or_default().push((done, claim, life.epoch.0));
            }
        }
    }
    for (run, claims) in claims {
        let index = play.tables.runs.iter().find(|row| row.run_id == run.0);
        let (Some((_, last, owner)), Some(index)) = (claims.last(), index) else { continue };
        if index.owner != Some(*owner) || index.claim != last.claim {
            wrong.push(format!("a claim was granted, and the index knows of another: {index:?}"));
        }
        for pair in claims.windows(2) {
            let [(_, earlier, of), (later, claim, _)] = pair else { continue };
            if earlier.claim >= claim.claim {
                wrong.push("two claims of one run have one number".into());
            }
            let over = *of == play.scene.one.epoch.0
                && end_of_one(play)
                    .and_then(|end| committed(play, end))
                    .is_some_and(|over| over < later.ended);
            if !over {
                wrong.push("two nodes claimed one run".into());
            }
        }
    }
}

/// Whoever reads after a claim sees all that others ever get into the journal.
fn new_owners_see_everything(play: &Play, wrong: &mut Vec<String>) {
    for done in &play.done {
        let (Answer::Read(journals), Some(reader)) = (&done.answer, play.ops[done.side].life(&play.scene))
        else {
            continue;
        };
        for (run, seen) in journals {
            let index = play.tables.runs.iter().find(|row| row.run_id == run.0);
            if index.is_none_or(|row| row.owner != Some(reader.epoch.0)) {
                wrong.push("a run was read and is somebody else's".into());
            }
            for row in play.tables.journal.iter().filter(|row| row.run_id == run.0) {
                if row.epoch != reader.epoch.0 && !seen.contains(&(row.seq, row.epoch)) {
                    wrong.push(format!(
                        "event {} of the last owner is in the journal, and the new owner has not seen it",
                        row.seq
                    ));
                }
            }
        }
    }
}

/// One history for each run: no gaps, claims in order, one life for each claim.
fn histories_are_whole(play: &Play, wrong: &mut Vec<String>) {
    let mut last: HashMap<_, (i64, i32, i64)> = HashMap::new();
    for row in &play.tables.journal {
        let (seq, claim, epoch) =
            last.insert(row.run_id, (row.seq, row.claim, row.epoch)).unwrap_or_default();
        if row.seq != seq + 1 || row.claim < claim || (row.claim == claim && claim > 0 && row.epoch != epoch)
        {
            wrong.push(format!("a broken history: {row:?} after event {seq}"));
        }
    }
}

fn keys_are_used_once(play: &Play, wrong: &mut Vec<String>) {
    let mut admitted = Vec::new();
    for done in &play.done {
        let (Answer::Appended { refused, .. }, Step::Append(number, crate::steps::What::All)) =
            (&done.answer, done.step)
        else {
            continue;
        };
        let new = play.scene.new[usize::from(number - 1)];
        if committed(play, done).is_some() && !refused.contains(&new) {
            admitted.push(new.0);
        }
    }
    let has_it = |row: &&RunRow| row.client_key.as_deref() == Some("the one key");
    let key: Vec<_> = play.tables.runs.iter().filter(has_it).map(|row| row.run_id).collect();
    if key != admitted {
        wrong.push(format!("the key was given to {admitted:?} and belongs to {key:?}"));
    }
    let stray =
        play.scene.new.iter().any(|new| {
            !admitted.contains(&new.0) && play.tables.journal.iter().any(|row| row.run_id == new.0)
        });
    if stray {
        wrong.push("a run that was refused has a journal".into());
    }
    let offered = play.done.iter().any(|done| {
        matches!(
            (&done.answer, done.step),
            (Answer::Appended { .. }, Step::Append(_, crate::steps::What::All))
        ) && committed(play, done).is_some()
    });
    if offered && admitted.is_empty() {
        wrong.push("the key was refused to everybody".into());
    }
}

/// Each run has one reason to move: an owner that there is (if it is over, its runs are there for the taking), a
/// time, or people.
fn no_run_is_silent(play: &Play, wrong: &mut Vec<String>) {
    let nodes = &play.tables.nodes;
    let moves = |row: &RunRow| match (row.owner, row.due_at, row.finished_at) {
        (Some(owner), None, None) => nodes.iter().any(|node| node.epoch == owner),
        (None, Some(_), None) => true,
        (None, None, None) => row.status == "held" && row.note.is_some() && row.mail <= row.told,
        (None, None, Some(_)) => row.status == "succeeded" && row.mail <= row.told,
        _ => false,
    };
    for row in play.tables.runs.iter().filter(|row| !moves(row)) {
        wrong.push(format!("nothing wakes {row:?}"));
    }
    if play.tables.runs.len() + play.tables.retired.len() < 7 {
        wrong.push("a run is gone".into());
    }
    // Recovery leaves nothing behind that was there for the taking.
    let Some(side) = play.ops.iter().position(|op| *op == Op::Recover2) else { return };
    let rival = play.ops[1 - side];
    let mut expected = vec![play.scene.a, play.scene.orphan];
    if matches!(rival, Op::GiveUp1 | Op::Rest1 | Op::Finish1 | Op::AnswerRest1 | Op::AnswerEnd1) {
        expected.remove(0);
    }
    // (With the takeover that dies, the lease of the one who recovers has run out as well.)
    let alone = !matches!(
        rival,
        Op::Renew1
            | Op::TakeOverThatDies
            | Op::Recover2
            | Op::RecoverMail2
            // Whoever sends holds the run for a moment: it is claimed in the next round.
            | Op::Tell
            | Op::TellAgain
            | Op::TellThatDies
            | Op::TellMany
            | Op::TellAnswer1
            | Op::ClaimOrphans1
            | Op::ClaimOrphans2
            | Op::ClaimOrphans3
    );
    for done in play.of(side).filter(|done| done.step == Step::ClaimOrphans(2) && alone) {
        let Answer::Claimed(claimed) = &done.answer else { continue };
        if !expected.iter().all(|run| claimed.iter().any(|claim| claim.run == *run)) {
            wrong.push("recovery left an orphan behind".into());
        }
    }
}
