//! What must hold of runs that are removed, whatever the order was.

use crate::judge::committed;
use crate::orders::Play;
use crate::steps::{Answer, Op};

pub fn violations(play: &Play, wrong: &mut Vec<String>) {
    let over = play.scene.over.0;
    let row = play.tables.runs.iter().any(|row| row.run_id == over);
    let journal = play.tables.journal.iter().any(|row| row.run_id == over);
    if row != journal {
        wrong.push(format!(
            "a run was removed by half: its row is there, {row}; its journal is there, {journal}"
        ));
    }
    let removed = when(play).is_some();
    if removed == row {
        wrong.push(format!("a run was removed: {removed}; it is there: {row}"));
    }
    if play.tables.retired.contains(&over) != removed {
        wrong.push("the key of a run is kept after it, and only then".into());
    }
    let heirs = play.scene.heirs.map(|heir| heir.0);
    let taken_on = play.done.iter().any(|done| matches!(done.answer, Answer::Admitted(true)));
    if taken_on || play.tables.runs.iter().any(|row| heirs.contains(&row.run_id)) {
        wrong.push("the key was given to another run, when it meant the one that was removed".into());
    }
    let stray = |run| play.tables.journal.iter().any(|row| row.run_id == run);
    if heirs.into_iter().any(stray) {
        wrong.push("a run that was refused has a journal".into());
    }
    // What somebody else has in hand is left for the next time.
    let alone = |op: &Op| !matches!(op, Op::TellBack | Op::TellOver | Op::PurgeThatDies | Op::Purge);
    let purges = play.ops.iter().position(|op| *op == Op::Purge);
    if let Some(side) = purges
        && alone(&play.ops[1 - side])
        && !removed
    {
        wrong.push("a run that is over was left behind".into());
    }
}

/// When the run that is over was gone.
pub fn when(play: &Play) -> Option<usize> {
    play.done
        .iter()
        .filter(|done| matches!(done.answer, Answer::Purged(1)))
        .find_map(|done| committed(play, done))
}
