//! What must hold of facts, whatever the order was.

use backstay_engine::RunId;

use crate::judge::committed;
use crate::orders::{Done, Play};
use crate::steps::{Answer, Step, What};

pub fn violations(play: &Play, wrong: &mut Vec<String>) {
    for (name, what, first) in [("old", What::Fact, 1), ("new", What::NewFact, 0)] {
        let fact = play.tables.facts.iter().find(|fact| fact.0 == name);
        let mut winners = Vec::new();
        for done in &play.done {
            let Step::Append(number, of) = done.step else { continue };
            if of != what || committed(play, done).is_none() {
                continue;
            }
            let (run, life) = match number {
                1 => (play.scene.a, &play.scene.one),
                _ => (play.scene.b, &play.scene.two),
            };
            let Answer::Appended { moved, .. } = done.answer else { continue };
            if !moved {
                winners.push((run, life.name.clone()));
            } else if !somebody_else_changed_it(play, done, what) {
                wrong.push(format!(
                    "run {run} was told that the fact {name} has moved, and nobody had moved it"
                ));
            }
            // A row that stands under a proviso is there with the fact, and only with it.
            if of_fact(play, run) == moved && !twice(play) {
                wrong.push(format!(
                    "a run was told that the fact {name} has moved: {moved}; its journal says otherwise"
                ));
            }
        }
        match (winners.as_slice(), fact) {
            ([], None) if first == 0 => {}
            ([], Some((_, value, 1, by))) if first == 1 && value == "it" && *by == play.scene.over.0 => {}
            ([(run, life)], Some((_, value, version, by)))
                if *version == first + 1 && value == life && *by == run.0 => {}
            (winners, fact) => {
                wrong.push(format!("{} runs changed the fact {name}, and it is {fact:?}", winners.len()));
            }
        }
    }
}

/// Both sides write the same rows of the same run: whoever comes second is refused whole.
fn twice(play: &Play) -> bool {
    play.done.iter().any(|done| matches!(done.answer, Answer::Duplicate))
}

fn of_fact(play: &Play, run: RunId) -> bool {
    play.tables.journal.iter().any(|row| row.run_id == run.0 && row.seq == 4)
}

fn somebody_else_changed_it(play: &Play, done: &Done, what: What) -> bool {
    play.done.iter().any(|other| {
        other.side != done.side
            && matches!(other.step, Step::Append(_, of) if of == what)
            && matches!(other.answer, Answer::Appended { moved: false, .. })
            && committed(play, other).is_some()
    })
}
