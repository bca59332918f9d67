//! Corruptions of how runs come to rest, of the index, of the world and of what clients were told.

use backstay_machine::checker::{Case, Checker, ClientLog, Effect, Index, RuleId, Submission, Violation};
use backstay_machine::plan::OnFailure;
use backstay_machine::{Answer, Applied, RunId, Status};
use chrono::TimeDelta;
use serde_json::json;
use uuid::Uuid;

use crate::corruptions::{Corruption, broken, found};
use crate::history::{History, edit, failure};
use crate::plans::{Is, plan, step};
use crate::sim::{Fate, Sim, error};

fn with(b: fn(Is) -> Is) -> Sim {
    Sim::new(plan(&[step("a", &[]), b(step("b", &["a"])), step("c", &["b"])]))
}

fn chain() -> Sim {
    with(|b| b)
}

fn fails() -> Fate {
    Fate::Fails(error(false, Applied::Maybe), true)
}

fn rolled() -> History {
    History::of(chain().fate("c", 1, fails()))
}

/// Two branches; the undo of c has failed for good.
fn stuck() -> History {
    let steps = [step("a", &[]), step("b", &["a"]), step("c", &["a"]), step("d", &["b", "c"])];
    History::of(Sim::new(plan(&steps)).fate("d", 1, fails()).undo_fate("c", 1, fails()))
}

fn held() -> History {
    History::of(with(|b| b.on_failure(OnFailure::Hold)).fate("b", 1, fails()))
}

fn in_flight() -> History {
    History::of(chain().fate("b", 1, Fate::Hangs))
}

fn indexed(mut h: History, change: impl FnOnce(&mut Index)) -> History {
    if let Some(index) = &mut h.index {
        change(index);
    }
    h
}

pub fn all() -> Vec<Corruption> {
    let mut all = ends();
    all.extend(rests());
    all.extend(index());
    all.extend(world());
    all.extend(clients());
    all.extend(crate::corrupt_facts::all());
    all
}

fn ends() -> Vec<Corruption> {
    use RuleId::{End, OnFailure as Failure, Undone};
    vec![
        broken(End, "an event after the end", || {
            let mut h = History::of(chain());
            h.move_after("succeeded c", "finished");
            h
        }),
        broken(End, "two ends", || {
            let mut h = History::of(chain());
            h.copy_after("finished", "finished");
            h
        }),
        broken(End, "a success after the run turned round", || {
            let mut h = rolled();
            edit(h.row("finished"), |body| body["outcome"] = json!("succeeded"));
            h
        }),
        broken(End, "a rollback without turning round", || {
            let mut h = History::of(chain());
            edit(h.row("finished"), |body| body["outcome"] = json!("rolled_back"));
            h
        }),
        broken(End, "an end while an attempt is in flight", || {
            let mut h = History::of(chain());
            h.remove("succeeded c");
            h
        }),
        broken(End, "a success without a step", || {
            let mut h = History::of(chain());
            h.remove("started c");
            h.remove("succeeded c");
            h
        }),
        broken(Undone, "no undo of a step that succeeded", || {
            let mut h = rolled();
            h.remove("started undo a");
            h.remove("succeeded undo a");
            h
        }),
        broken(Undone, "no undo of a step that failed and may have had its effect", || {
            let mut h = rolled();
            h.remove("started undo c");
            h.remove("succeeded undo c");
            h
        }),
        broken(Undone, "an undo that never came to its end", || {
            let mut h = rolled();
            let gone = failure(false, "maybe", None);
            h.row("succeeded undo a").kind = "failed";
            edit(h.row("failed undo a"), |body| *body = gone);
            h
        }),
        broken(Failure, "a start after a failure that turns the run round", || {
            let steps = [step("a", &[]), step("b", &[]), step("c", &["a"])];
            let mut h = History::of(Sim::new(plan(&steps)).fate("b", 1, fails()));
            h.remove("rolling_back");
            h.cut_after("failed b");
            let mut start = h.rows[h.find("started a")].clone();
            start.step = Some("c".into());
            h.insert_after("failed b", start);
            h
        }),
        broken(Failure, "a success although a failure turns the run round", || {
            let sim = with(|b| b).fate("c", 1, fails());
            let mut h = History::of(sim);
            h.cut_after("failed c");
            h.put_after("failed c", "finished", json!({ "outcome": "succeeded" }));
            h
        }),
        broken(Failure, "a success although a failure waits for an operator", || {
            let steps = [step("a", &[]), step("b", &["a"]).on_failure(OnFailure::Hold)];
            let mut h = History::of(Sim::new(plan(&steps)).fate("b", 1, fails()));
            h.cut_after("failed b");
            h.put_after("failed b", "finished", json!({ "outcome": "succeeded" }));
            h
        }),
    ]
}

fn rests() -> Vec<Corruption> {
    use RuleId::{Held, Quarantine, Stuck};
    vec![
        broken(Held, "without a reason", || {
            let mut h = held();
            edit(h.row("held b"), |body| body["why"] = json!(" "));
            h
        }),
        broken(Held, "after the run turned round", || {
            let mut h = held();
            h.put_after("failed b", "rolling_back", json!({ "why": "an operator" }));
            h
        }),
        broken(Held, "a failure that turns the run round", || {
            let mut h = rolled();
            h.tell_after("failed c", "held", json!({ "why": "because" }));
            h.cut_after("held c");
            h
        }),
        broken(Held, "a doubt that can be settled", || {
            let mut h = History::of(chain().fate("b", 1, Fate::Orphaned(false)));
            h.tell_after("started b", "held", json!({ "why": "because" }));
            h.move_after("held b", "claimed");
            h.cut_after("held b");
            h
        }),
        broken(Held, "a doubt that the next probe may settle", || {
            let sim = with(Is::probed).fate("b", 1, Fate::Orphaned(false));
            let mut h = History::of(sim.answers(Answer::Unknown { why: "dark".into() }));
            h.tell_after("probed b", "held", json!({ "why": "because" }));
            h.cut_after("held b");
            h
        }),
        broken(Held, "a doubt that a probe has settled", || {
            let mut h = History::of(with(Is::probed).fate("b", 1, Fate::Orphaned(false)));
            h.tell_after("probed b #2", "held", json!({ "why": "because" }));
            h.cut_after("held b");
            h
        }),
        broken(Stuck, "a run that goes forward", || {
            let mut h = stuck();
            h.remove("rolling_back");
            h
        }),
        broken(Stuck, "no undo has failed", || {
            let mut h = rolled();
            h.put_after("succeeded undo a", "stuck", json!({ "steps": [] }));
            h
        }),
        broken(Stuck, "other undos than those that failed", || {
            let mut h = stuck();
            edit(h.row("stuck"), |body| body["steps"] = json!(["c", "b"]));
            h
        }),
        broken(Stuck, "while an undo is in flight", || {
            let mut h = stuck();
            h.move_after("succeeded undo b", "stuck");
            h
        }),
        broken(Stuck, "while an undo can start", || {
            let mut h = stuck();
            h.remove("started undo b");
            h.remove("succeeded undo b");
            h
        }),
        broken(Quarantine, "a start in a run that is left alone", || {
            let mut h = History::of(chain());
            h.put_after("succeeded a", "quarantined", json!({ "why": "it kills its nodes" }));
            h
        }),
    ]
}

fn index() -> Vec<Corruption> {
    use RuleId::Index;
    vec![
        broken(Index, "an earlier claim", || indexed(in_flight(), |index| index.claim -= 1)),
        broken(Index, "another owner", || indexed(in_flight(), |index| index.owner = Some(99))),
        broken(Index, "another end", || {
            indexed(History::of(chain()), |index| index.status = Status::RolledBack)
        }),
        broken(Index, "a run that is over and has an owner", || {
            indexed(History::of(chain()), |index| index.owner = Some(1))
        }),
        broken(Index, "a run that moves and is called held", || {
            indexed(in_flight(), |index| (index.status, index.owner) = (Status::Held, None))
        }),
        broken(Index, "a run that is held and called running", || {
            indexed(held(), |index| (index.status, index.owner) = (Status::Running, Some(1)))
        }),
        broken(Index, "a stuck run that nobody is told of", || {
            indexed(stuck(), |index| (index.status, index.owner) = (Status::RollingBack, Some(1)))
        }),
        broken(Index, "a quarantined run that nobody is told of", || {
            let mut h = in_flight();
            h.put_after("started b", "quarantined", json!({ "why": "it kills its nodes" }));
            h
        }),
        broken(Index, "a run that has begun and is called pending", || {
            indexed(in_flight(), |index| index.status = Status::Pending)
        }),
        broken(Index, "a run in flight that is called waiting", || {
            indexed(in_flight(), |index| index.status = Status::Waiting)
        }),
        broken(Index, "a run that nothing will ever wake", || {
            indexed(in_flight(), |index| index.owner = None)
        }),
        broken(Index, "a run with an owner that others may claim", || {
            let mut h = in_flight();
            let at = h.at("started b");
            h = indexed(h, |index| index.due_at = Some(at));
            h
        }),
    ]
}

fn world() -> Vec<Corruption> {
    use RuleId::{Orphan, Overlap, World};
    fn repeated(kind: &str) -> History {
        let mut h = History::of(chain().fate("b", 1, Fate::Orphaned(true)));
        // The second call begins while the first one is at work.
        let second = h.at("started b #2");
        let first = h.world.effects.iter_mut().find(|effect| effect.step == "b").unwrap();
        first.ended_at = Some(second + TimeDelta::seconds(20));
        edit(h.row("claimed"), |body| body["reason"] = json!(kind));
        h
    }
    vec![
        broken(Orphan, "an effect under a key that nobody announced", || {
            let mut h = History::of(chain());
            h.world.effects[1].key = Uuid::from_u128(3);
            h
        }),
        broken(Orphan, "an effect before its start was journaled", || {
            let mut h = History::of(chain());
            h.world.effects[1].begun_at -= TimeDelta::seconds(1);
            h
        }),
        broken(Orphan, "an effect of one step under the key of another", || {
            let mut h = History::of(chain());
            h.world.effects[1].key = h.world.effects[0].key;
            h
        }),
        broken(Orphan, "an effect of a step that the plan does not have", || {
            let mut h = History::of(chain());
            h.world.effects[1].step = "x".into();
            h
        }),
        broken(Overlap, "two calls at work in one attempt", || {
            let mut h = History::of(chain());
            let twice = h.world.effects[1].clone();
            h.world.effects.push(Effect { ended_at: None, ..twice });
            h
        }),
        broken(Overlap, "two calls at work after a run was handed over", || {
            assert_eq!(repeated("lost_lease").check(), []);
            repeated("free")
        }),
        broken(World, "a result that is not there", || {
            let mut h = History::of(chain());
            h.world.present.insert("b".into(), false);
            h
        }),
        broken(World, "something left behind by a rollback", || {
            let mut h = rolled();
            h.world.present.insert("b".into(), true);
            h
        }),
        broken(World, "something of a step that never started", || {
            let sim = with(|b| b.on_failure(OnFailure::Continue));
            let no = Fate::Fails(error(false, Applied::No), false);
            let mut h = History::of(sim.fate("b", 1, no));
            h.world.present.insert("b".into(), true);
            h
        }),
    ]
}

/// Checks a legal run against what clients say.
fn told(complete: bool, submissions: fn(RunId, String) -> Vec<Submission>) -> Vec<Violation> {
    let sim = chain().work();
    let submissions = submissions(sim.run, sim.plan.hash().to_owned());
    let mut checker = Checker::with_clients(&ClientLog { submissions, complete });
    let mut found = checker.run(&Case::of(sim.run, &sim.rows()));
    let (summary, more) = checker.finish();
    found.extend(more);
    assert_eq!(summary.total(), found.len() as u64, "{summary}");
    found
}

fn said(key: &str, run: Option<RunId>, plan: Option<String>) -> Submission {
    Submission { key: key.into(), run, plan }
}

fn clients() -> Vec<Corruption> {
    use RuleId::{Acknowledged, Owners};
    vec![
        found(Acknowledged, "a run that was lost", || {
            let lost = RunId(Uuid::from_u128(99));
            let all =
                |run, _| vec![said("k", Some(run), None), said("l", Some(RunId(Uuid::from_u128(99))), None)];
            let found = told(true, all);
            assert!(found.iter().all(|violation| violation.message.contains(&lost.to_string())));
            found
        }),
        found(Acknowledged, "another plan than the one that was taken", || {
            assert_eq!(told(true, |run, hash| vec![said("k", Some(run), Some(hash))]), []);
            told(true, |run, _| vec![said("k", Some(run), Some("abc".into()))])
        }),
        found(Acknowledged, "two runs under one key", || {
            let other =
                |run| vec![said("k", Some(run), None), said("k", Some(RunId(Uuid::from_u128(99))), None)];
            let sim = chain().work();
            let mut checker =
                Checker::with_clients(&ClientLog { submissions: other(sim.run), complete: true });
            assert_eq!(checker.run(&Case::of(sim.run, &sim.rows())), []);
            assert_eq!(checker.run(&Case::of(RunId(Uuid::from_u128(99)), &[])).len(), 2);
            let found = checker.finish().1;
            found.into_iter().filter(|violation| violation.message.contains("two runs")).collect()
        }),
        found(Acknowledged, "a run that nobody asked for", || {
            assert_eq!(told(false, |_, _| Vec::new()), []);
            assert_eq!(told(true, |_, _| vec![said("k", None, None)]), []);
            told(true, |_, _| Vec::new())
        }),
        found(Owners, "one epoch of two nodes in two runs", || {
            let mut checker = Checker::new();
            let mut found = Vec::new();
            for node in ["one", "other"] {
                let mut h = History::of(chain().fate("b", 1, Fate::Orphaned(false)));
                edit(h.row("claimed"), |body| body["node"] = json!(node));
                found = checker.run(&Case::of(h.run, &h.rows));
            }
            found
        }),
    ]
}
