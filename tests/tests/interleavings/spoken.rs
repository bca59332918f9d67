//! What must hold of messages, whatever the order was.

use std::collections::HashMap;

use backstay_engine::RunId;
use backstay_engine::store::Told;
use chrono::Utc;
use uuid::Uuid;

use crate::judge::committed;
use crate::orders::{Done, Play};
use crate::removed;
use crate::steps::{Answer, Step, What};

pub fn violations(play: &Play, wrong: &mut Vec<String>) {
    let sent = acknowledged(play, wrong);
    each_is_answered_once_or_will_be(play, &sent, wrong);
    runs_count_right(play, wrong);
    refusals_are_true(play, &sent, wrong);
    new_owners_read_everything(play, wrong);
    for done in &play.done {
        match done.answer {
            Answer::Looked(true, true) => {
                wrong.push("a message was in the inbox and in the journal at once".into())
            }
            Answer::Looked(false, false) => wrong.push("a message was in neither place".into()),
            _ => {}
        }
    }
}

/// Whether what this step did is there in the end: an error later in its transaction takes it back.
fn stayed(play: &Play, of: &Done) -> Option<usize> {
    let commit = committed(play, of)?;
    let broke = play.of(of.side).any(|done| {
        (of.ended..commit).contains(&done.ended)
            && matches!(done.answer, Answer::Duplicate | Answer::Failed(_))
    });
    (!broke).then_some(commit)
}

/// The messages that were taken on, and for which run.
fn acknowledged(play: &Play, wrong: &mut Vec<String>) -> HashMap<Uuid, RunId> {
    let mut sent = HashMap::from([(play.scene.letter, play.scene.a)]);
    for done in play.done.iter().filter(|done| stayed(play, done).is_some()) {
        let Answer::Told(told) = &done.answer else { continue };
        for (message, _) in told.iter().filter(|(_, told)| *told == Told::Told) {
            if sent.insert(message.id, message.run).is_some() {
                wrong.push(format!("the message {} was taken for new twice", name(play, message.id)));
            }
        }
    }
    sent
}

fn name(play: &Play, id: Uuid) -> String {
    let scene = &play.scene;
    let names = [(scene.letter, "letter"), (scene.x, "x"), (scene.to_rest, "rest"), (scene.back, "back")];
    names.iter().find(|(of, _)| *of == id).map_or(id.to_string(), |(_, name)| (*name).to_owned())
}

fn each_is_answered_once_or_will_be(play: &Play, sent: &HashMap<Uuid, RunId>, wrong: &mut Vec<String>) {
    let answers = |id: Uuid| play.tables.journal.iter().filter(|row| row.key == Some(id)).count();
    for (id, run) in sent {
        let waits =
            play.tables.inbox.iter().filter(|letter| letter.id == *id && letter.run_id == run.0).count();
        match (waits, answers(*id)) {
            (1, 0) | (0, 1) => {}
            (0, 0) => wrong.push(format!("the message {} was taken on and is lost", name(play, *id))),
            (waits, answers) => {
                let name = name(play, *id);
                wrong
                    .push(format!("the message {name} waits {waits} times and was answered {answers} times"));
            }
        }
    }
    for letter in &play.tables.inbox {
        if sent.get(&letter.id) != Some(&RunId(letter.run_id)) {
            wrong.push(format!("nobody was told that the message {} is there", name(play, letter.id)));
        }
        let run = play.tables.runs.iter().find(|row| row.run_id == letter.run_id);
        let looked_at =
            run.is_some_and(|row| row.owner.is_some() || row.due_at.is_some_and(|at| at <= Utc::now()));
        if !looked_at {
            wrong.push(format!("nobody will look at the message {}: {run:?}", name(play, letter.id)));
        }
    }
}

fn runs_count_right(play: &Play, wrong: &mut Vec<String>) {
    for run in &play.tables.runs {
        let waiting = play.tables.inbox.iter().filter(|letter| letter.run_id == run.run_id).count();
        let answered =
            play.tables.journal.iter().filter(|row| row.run_id == run.run_id && row.kind == "acted").count();
        if (run.mail - run.told, run.told) != (waiting as i32, answered as i32) {
            wrong.push(format!("{waiting} messages wait, {answered} are answered: {run:?}"));
        }
    }
}

/// When a step of this kind was committed.
fn when(play: &Play, is: impl Fn(&Done) -> bool) -> Option<usize> {
    play.done.iter().filter(|done| is(done)).find_map(|done| stayed(play, done))
}

fn refusals_are_true(play: &Play, sent: &HashMap<Uuid, RunId>, wrong: &mut Vec<String>) {
    let ended = when(play, |done| {
        matches!(done.step, Step::Append(1, What::Answer(_, crate::scene::After::End)))
            && matches!(done.answer, Answer::Appended { .. })
    });
    let rival = when(
        play,
        |done| matches!((done.step, &done.answer), (Step::Append(1, What::Rival), Answer::Appended { refused, .. }) if refused.is_empty()),
    );
    for done in &play.done {
        let Answer::Told(told) = &done.answer else { continue };
        for (message, told) in told {
            let earlier = |at: Option<usize>| at.is_some_and(|at| at < done.ended);
            let removed = removed::when(play);
            let is_true = match told {
                Told::Told => true,
                Told::Known(run, said) => {
                    sent.get(&message.id) == Some(run) && *said == play.scene.said(message.id)
                }
                Told::Missing => message.run == play.scene.over && earlier(removed),
                Told::Over(status) => {
                    let back = play
                        .tables
                        .runs
                        .iter()
                        .any(|row| row.run_id == message.run.0 && row.finished_at.is_none());
                    let since = when(
                        play,
                        |other| matches!(&other.answer, Answer::Told(told) if told.iter().any(|(m, t)| m.reopens && *t == Told::Told)),
                    );
                    let over = if message.run == play.scene.over {
                        !(back && earlier(since))
                    } else {
                        earlier(ended)
                    };
                    over && status == "succeeded"
                }
                Told::Exclusive(holder) => *holder == Some(play.scene.rival) && earlier(rival),
            };
            if !is_true {
                wrong.push(format!("the message {} was told {told:?}", name(play, message.id)));
            }
            if message.id == play.scene.back && *told == Told::Told && earlier(rival) {
                wrong.push("a run came back whose key another one has".into());
            }
        }
    }
}

/// Whoever claims a run reads all that was said to it before.
fn new_owners_read_everything(play: &Play, wrong: &mut Vec<String>) {
    for read in &play.done {
        let Answer::Mail(mail) = &read.answer else { continue };
        let claimed = play.of(read.side).filter_map(|done| match &done.answer {
            Answer::Claimed(claimed) => Some(claimed),
            _ => None,
        });
        let runs: Vec<_> = claimed.flatten().map(|claimed| claimed.run.0).collect();
        for letter in play.tables.inbox.iter().filter(|letter| runs.contains(&letter.run_id)) {
            let told = when(
                play,
                |done| matches!(&done.answer, Answer::Told(told) if told.iter().any(|(m, t)| m.id == letter.id && *t == Told::Told)),
            );
            let before = letter.id == play.scene.letter || told.is_some_and(|at| at < read.ended);
            if before && !mail.contains(&letter.id) {
                wrong.push(format!("the new owner has not read the message {}", name(play, letter.id)));
            }
        }
    }
}
