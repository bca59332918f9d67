//! All orders of the store's statements over two sessions of a real database.
//!
//! Each operation is `begin; <the production statement>; commit`: the transaction opens the window between what a
//! statement does and its commit, in which all the mistakes of this trade are made. Two operations are played in
//! every order; where one waits for a lock of the other (the database says so), the other goes on. Whatever the
//! order was, what came of it must be what the guarantees say (`judge.rs`). The last test plays the same with
//! statements in which one lock is missing, and each must be found out.
//!
//! ```text
//!   scene.rs    two nodes, their runs, a free one and an orphan; what the tables say in the end
//!   steps.rs    the operations and what they answered
//!   orders.rs   every order of two operations, step by step
//!   judge.rs    what must hold of every order
//!   spoken.rs   and of messages to runs
//!   removed.rs  and of runs that are removed
//!   facts.rs    and of facts
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod facts;
mod judge;
mod orders;
mod removed;
mod scene;
mod spoken;
mod steps;

use std::collections::BTreeSet;

use backstay_engine::Store;
use backstay_engine::store::probe;
use backstay_tests::{Lab, Wire};

use orders::{Bench, PURGE, SCHEMA, TELL, all_orders};
use scene::Scene;
use steps::{FACTS, OPS, Op, REMOVED, SPOKEN};

/// Every pair of operations; the two of a pair may be the same.
fn pairs(of: &[Op]) -> Vec<(Op, Op)> {
    let all = of.iter().enumerate();
    all.flat_map(|(at, left)| of.iter().skip(at).map(move |right| (*left, *right))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_order_nothing_is_lost_doubled_or_written_too_late() -> anyhow::Result<()> {
    // A harness that sees nobody wait looks at nothing.
    let seen = [(Op::Append1, Op::TakeOver), (Op::Append1, Op::Recover2), (Op::Append1, Op::Supersede1)];
    play_all(pairs(&OPS), &seen).await
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_order_each_message_is_answered_once() -> anyhow::Result<()> {
    let mut all = pairs(&SPOKEN);
    // The others differ from one of these only by whose life it is.
    let some = [
        Op::Append1,
        Op::GiveUp1,
        Op::Renew1,
        Op::TakeOver,
        Op::ClaimDue2,
        Op::ClaimOrphans2,
        Op::Recover2,
        Op::End1,
        Op::Supersede1,
    ];
    let full = std::env::var("BACKSTAY_SWEEP").is_ok_and(|form| form == "full");
    let others = if full { &OPS[..] } else { &some[..] };
    all.extend(SPOKEN.iter().flat_map(|left| others.iter().map(move |right| (*left, *right))));
    let seen = [
        (Op::Tell, Op::Finish1),
        (Op::Tell, Op::Rest1),
        (Op::Tell, Op::Tell),
        (Op::Tell, Op::TellElsewhere),
        (Op::TellBack, Op::Rival1),
        (Op::TellMany, Op::Change1),
        (Op::Answer1, Op::TakeOver),
    ];
    play_all(all, &seen).await
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_order_a_run_is_removed_wholly_and_its_key_is_not_given_again() -> anyhow::Result<()> {
    let mut all = pairs(&REMOVED);
    let some = [
        Op::Append1,
        Op::GiveUp1,
        Op::TakeOver,
        Op::ClaimDue2,
        Op::ClaimOrphans2,
        Op::Recover2,
        Op::ClaimMail2,
        Op::Tell,
        Op::TellBack,
        Op::TellOver,
        Op::TellMany,
        Op::AnswerEnd1,
        Op::Finish1,
        Op::Rival1,
    ];
    let full = std::env::var("BACKSTAY_SWEEP").is_ok_and(|form| form == "full");
    let others: Vec<_> = if full { OPS.into_iter().chain(SPOKEN).collect() } else { some.to_vec() };
    all.extend(REMOVED.iter().flat_map(|left| others.iter().map(move |right| (*left, *right))));
    let seen = [
        (Op::Purge, Op::AdmitHeir),
        (Op::Purge, Op::AppendHeir1),
        (Op::PurgeThatDies, Op::AdmitHeir),
        (Op::Purge, Op::TellBack),
        (Op::Purge, Op::TellOver),
    ];
    play_all(all, &seen).await
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_order_a_fact_is_changed_by_one_and_with_its_event() -> anyhow::Result<()> {
    let mut all = pairs(&FACTS);
    let others = [
        Op::Append2,
        Op::Renew1,
        Op::TakeOver,
        Op::TakeOverThatDies,
        Op::Recover2,
        Op::End1,
        Op::Supersede1,
        Op::Tell,
        Op::Purge,
    ];
    all.extend(FACTS.iter().flat_map(|left| others.iter().map(move |right| (*left, *right))));
    let seen = [
        (Op::Fact1, Op::Fact2),
        (Op::NewFact1, Op::NewFact2),
        (Op::FactThatDies1, Op::Fact2),
        (Op::Fact1, Op::TakeOver),
    ];
    play_all(all, &seen).await
}

async fn play_all(pairs: Vec<(Op, Op)>, seen: &[(Op, Op)]) -> anyhow::Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    let workers = 3;
    for worker in 0..workers {
        let mine: Vec<_> = pairs.iter().copied().skip(worker).step_by(workers).collect();
        tasks.spawn(async move {
            let mut bench = Bench::new(None).await?;
            let (mut played, mut different, mut waited) = (0, 0, BTreeSet::new());
            for (left, right) in mine {
                let mut stories = BTreeSet::new();
                for order in all_orders(left.steps().len(), right.steps().len()) {
                    let play = bench.play([left, right], &order).await?;
                    let wrong = judge::violations(&play);
                    assert!(wrong.is_empty(), "{}\n  {}", play.story(), wrong.join("\n  "));
                    played += 1;
                    if play.waited() {
                        waited.insert((left, right));
                    }
                    stories.insert(play.story());
                }
                different += stories.len();
            }
            anyhow::Ok((played, different, waited))
        });
    }
    let (mut played, mut different, mut waited) = (0, 0, BTreeSet::new());
    while let Some(done) = tasks.join_next().await {
        let (p, d, w) = done??;
        played += p;
        different += d;
        waited.extend(w);
    }
    println!("{} pairs, {played} orders, {different} of them different in effect", pairs.len());
    println!("{} pairs in which one was seen to wait for the other", waited.len());
    for pair in seen {
        assert!(waited.contains(pair) || waited.contains(&(pair.1, pair.0)), "{pair:?}");
    }
    Ok(())
}

/// A write of many runs locks them all, and so does a run that speaks to another. The harness above cannot stop a
/// statement in between, so this one hurries.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_writes_to_two_runs_and_whoever_speaks_to_both_wait_in_no_circle() -> anyhow::Result<()> {
    const ROUNDS: i64 = 1_600;
    let lab = Lab::new().await?;
    let mut looks = lab.sql().await?;
    let scene = Scene::set(&mut looks, false).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for speaks in [true, false] {
        let (store, scene) = (Store::connect(&lab.url).await?, scene.clone());
        tasks.spawn(async move {
            let mut conn = probe::session(&store, "side").await?;
            sqlx::raw_sql("set deadlock_timeout = '10ms'").execute(&mut conn).await?;
            for round in 0..ROUNDS {
                if speaks {
                    let batch = if round % 4 == 0 { scene.speaks() } else { scene.changes_of_two() };
                    probe::append(&mut conn, &scene.one, &batch).await?;
                } else {
                    let to = [scene.a, scene.also].map(|run| scene.message(run, uuid::Uuid::now_v7()));
                    probe::tell(&mut conn, &to).await?;
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let (inbox, mail): (i64, i64) =
        sqlx::query_as("select (select count(*) from inbox), (select sum(mail) from runs)")
            .fetch_one(&mut looks)
            .await?;
    let sent = 1 + ROUNDS / 4 + 2 * ROUNDS;
    assert_eq!((inbox, mail), (sent, sent));
    Ok(())
}

/// A mistake in one statement, and the pair of operations that shows it.
struct Mistake {
    name: &'static str,
    /// In statements that hold the first, the second becomes the third.
    exchanges: &'static [(&'static str, &'static str, &'static str)],
    pair: (Op, Op),
    /// What then does not hold.
    shows: &'static str,
}

const APPEND: &str = "insert into journal (run_id, seq, claim, epoch, at, kind, step";
const NO_CHECK: (&str, &str, &str) = (SCHEMA, "alter table runs drop constraint runs_wake_reason", "");
const SPOKEN_TO: &str = "runs.mail > c.told";
const CHANGE: &str = "update facts";
const MISTAKES: [Mistake; 25] = [
    Mistake {
        name: "a fact is changed whatever it has become",
        exchanges: &[(CHANGE, "version = $6 - 1", "$6 > 1")],
        pair: (Op::Fact1, Op::Fact2),
        shows: "2 runs changed the fact",
    },
    Mistake {
        name: "a fact that nobody had set is set by everybody",
        exchanges: &[(
            CHANGE,
            "on conflict do nothing",
            "on conflict (name) do update set value = excluded.value, changed_by = excluded.changed_by",
        )],
        pair: (Op::NewFact1, Op::NewFact2),
        shows: "2 runs changed the fact",
    },
    Mistake {
        name: "the rows of a fact are fenced by a look",
        exchanges: &[(CHANGE, " for key share", ""), (APPEND, " for key share", "")],
        pair: (Op::Fact1, Op::Recover2),
        shows: "had gone past it",
    },
    Mistake {
        name: "a key is not looked up again after a removal was waited for",
        exchanges: &[(SCHEMA, "alter table runs disable trigger runs_retired_key", "")],
        pair: (Op::Purge, Op::AdmitHeir),
        shows: "the key was given to another run",
    },
    Mistake {
        name: "who removes runs does not lock them",
        exchanges: &[(PURGE, "limit most_runs\n    for update skip locked", "limit most_runs")],
        pair: (Op::Purge, Op::TellBack),
        shows: "nobody will look at the message",
    },
    Mistake {
        name: "who gives a run up does not look whether it was spoken to: the table refuses it",
        exchanges: &[(APPEND, SPOKEN_TO, "false")],
        pair: (Op::Tell, Op::Finish1),
        shows: "runs_wake_reason",
    },
    Mistake {
        name: "and if the table did not",
        exchanges: &[(APPEND, SPOKEN_TO, "false"), NO_CHECK],
        pair: (Op::Tell, Op::Rest1),
        shows: "nobody will look at the message",
    },
    Mistake {
        name: "who gives a run up looks into the inbox, and not at what its row says after the wait",
        exchanges: &[
            (
                APPEND,
                SPOKEN_TO,
                "exists (select from inbox where inbox.run_id = c.run_id and inbox.id <> all ($7))",
            ),
            NO_CHECK,
        ],
        pair: (Op::Tell, Op::AnswerRest1),
        shows: "nobody will look at the message",
    },
    Mistake {
        name: "who sends does not lock the run",
        exchanges: &[(TELL, "order by run_id for update", "order by run_id")],
        pair: (Op::Tell, Op::AnswerEnd1),
        shows: "failed",
    },
    Mistake {
        name: "and the table does not mind",
        exchanges: &[(TELL, "order by run_id for update", "order by run_id"), NO_CHECK],
        pair: (Op::Tell, Op::AnswerEnd1),
        shows: "nothing wakes",
    },
    Mistake {
        name: "who sends looks for the answer before the run is locked",
        exchanges: &[
            (
                TELL,
                "perform from runs",
                "old := array(select key from journal where key = any (ids)); perform from runs",
            ),
            (
                TELL,
                "old := array(select key from journal where key = any (put)",
                "perform array(select key from journal where key = any (put)",
            ),
        ],
        pair: (Op::Tell, Op::TellAnswer1),
        shows: "was taken for new twice",
    },
    Mistake {
        name: "a message that was sent wakes nobody",
        exchanges: &[(TELL, "case when owner is null then least(due_at, clock_timestamp()) end", "due_at")],
        pair: (Op::TellRest, Op::ClaimMail2),
        shows: "runs_wake_reason",
    },
    Mistake {
        name: "a message is taken out of the inbox after its answer",
        exchanges: &[(APPEND, "inbox.id = any ($7::uuid[])", "inbox.id = any ($7::uuid[]) and false")],
        pair: (Op::AnswerThenClear1, Op::Look),
        shows: "in the inbox and in the journal at once",
    },
    Mistake {
        name: "a message is taken out of the inbox before its answer",
        exchanges: &[(APPEND, "inbox.id = any ($7::uuid[])", "inbox.id = any ($7::uuid[]) and false")],
        pair: (Op::ClearThenAnswer1, Op::Look),
        shows: "was taken on and is lost",
    },
    Mistake {
        name: "a message is taken out of the inbox by a node that is fenced",
        exchanges: &[(APPEND, "delete from inbox using fence where", "delete from inbox where")],
        pair: (Op::Answer1, Op::RecoverMail2),
        shows: "was taken on and is lost",
    },
    Mistake {
        name: "the append looks at its life and does not lock it",
        exchanges: &[(APPEND, " for key share", "")],
        pair: (Op::Append1, Op::Recover2),
        shows: "had gone past it",
    },
    Mistake {
        name: "the append's fence is an unlocked exists",
        exchanges: &[(
            APPEND,
            "select 1 from nodes where epoch = $1 and token = $2 and ended_at is null for key share",
            "select 1 where exists (select from nodes where epoch = $1 and token = $2 and ended_at is null)",
        )],
        pair: (Op::AppendEvents1, Op::Recover2),
        shows: "the new owner has not seen it",
    },
    Mistake {
        name: "the append does not ask whether its life goes on",
        exchanges: &[(APPEND, " and ended_at is null", "")],
        pair: (Op::Append1, Op::Recover2),
        shows: "had gone past it",
    },
    Mistake {
        name: "takeover is a plain update",
        exchanges: &[("ended_why = 'lost'", "for update", "")],
        pair: (Op::AppendEvents1, Op::Recover2),
        shows: "the new owner has not seen it",
    },
    Mistake {
        name: "a successor of the same name ends its forerunner by a plain update",
        exchanges: &[("ended_why = 'superseded'", "for update", "")],
        pair: (Op::Append1, Op::Supersede1),
        shows: "had gone past it",
    },
    Mistake {
        name: "claiming and reading the journal are one statement",
        exchanges: &[],
        pair: (Op::ClaimReadInOne2, Op::TakeOverThatDies),
        shows: "the new owner has not seen it",
    },
    Mistake {
        name: "takeover, claim and reading the journal have one snapshot",
        exchanges: &[],
        pair: (Op::AppendEvents1, Op::RecoverInOneSnapshot2),
        shows: "the new owner has not seen it",
    },
    Mistake {
        name: "the append locks its life more than it must",
        exchanges: &[(APPEND, " for key share", " for share")],
        pair: (Op::Append1, Op::Renew1),
        shows: "a renewal and an append waited for each other",
    },
    Mistake {
        name: "a life is renewed without asking whether it is over",
        exchanges: &[("set lease_until = clock_timestamp()", " and ended_at is null", "")],
        pair: (Op::Renew1, Op::TakeOver),
        shows: "a life was renewed and taken over",
    },
    Mistake {
        name: "a claim does not skip what another claims",
        exchanges: &[("due as materialized", "for update skip locked", "")],
        pair: (Op::ClaimDue2, Op::ClaimDue3),
        shows: "two nodes claimed one run",
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn every_missing_lock_is_found_out() -> anyhow::Result<()> {
    for Mistake { name, exchanges, pair: (left, right), shows } in MISTAKES {
        let mut bench = Bench::new(Some(exchanges)).await?;
        let orders = all_orders(left.steps().len(), right.steps().len());
        let (mut found, mut first) = (0, None);
        for order in &orders {
            let play = bench.play([left, right], order).await?;
            let mut wrong = judge::violations(&play);
            wrong.retain(|wrong| wrong.contains(shows));
            if !wrong.is_empty() {
                found += 1;
                first.get_or_insert((play.story(), wrong));
            }
        }
        let exchanged = bench.wire.as_ref().map(Wire::exchanged).unwrap_or_default();
        assert!(exchanged.iter().all(|times| *times > 0), "{name}: nothing was exchanged");
        let (story, wrong) =
            first.unwrap_or_else(|| panic!("{name}: none of {} orders shows it", orders.len()));
        println!("{name}: {found} of {} orders\n  {story}\n  {}", orders.len(), wrong.join("\n  "));
    }
    Ok(())
}
