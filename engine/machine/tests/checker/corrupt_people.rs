//! Corruptions of what people ask for, of waits, proofs, commits and resources.

use backstay_machine::checker::{Index, RuleId};
use backstay_machine::plan::{Commit, Ending, OnFailure, Span};
use backstay_machine::{Applied, CourseId, RollBack, Status, Verb};
use chrono::TimeDelta;
use serde_json::json;
use uuid::Uuid;

use crate::corruptions::{Corruption, broken};
use crate::history::{History, edit};
use crate::plans::{Is, plan, plan_of, step};
use crate::sim::{Fate, Sim, error};

fn fails() -> Fate {
    Fate::Fails(error(false, Applied::No), false)
}

fn of(steps: &[Is]) -> Sim {
    Sim::new(plan(steps))
}

/// a, then a wait, then c; at rest.
fn waits(input: serde_json::Value) -> Sim {
    of(&[step("a", &[]), step("w", &["a"]).waits(input), step("c", &["w"])]).work()
}

fn sent(sim: &mut Sim, who: &str, n: u32) {
    assert!(sim.ask_for(who, Verb::Signal { name: "go".into(), payload: json!(n) }));
}

/// Two signals are there before two waits, one after the other, read them.
fn two_signals() -> History {
    let wait = |name, after| step(name, after).waits(json!({ "signal": "go" }));
    let mut sim = of(&[wait("v", &[]), wait("w", &["v"])]);
    sent(&mut sim, "ann", 1);
    sent(&mut sim, "ben", 2);
    History::of(sim)
}

/// b requires what a does not give; two people let it go.
fn overridden() -> History {
    let mut sim = of(&[step("a", &[]), step("b", &["a"]).requires("a", "else")]).work();
    for who in ["ann", "ben"] {
        assert!(sim.ask_for(who, Verb::Override { step: "b".into() }));
    }
    History::of(sim)
}

fn approved() -> History {
    let mut sim = waits(json!({ "right": "release", "people": 2 }));
    for who in ["ann", "ben"] {
        let plan = sim.plan.hash().to_owned();
        assert!(sim.ask_for(who, Verb::Approve { step: "w".into(), right: "release".into(), plan }));
    }
    History::of(sim)
}

/// b failed, was held, and was skipped.
fn skipped() -> History {
    let steps = [step("a", &[]), step("b", &["a"]).on_failure(OnFailure::Hold), step("c", &["b"])];
    let mut sim = of(&steps).fate("b", 1, fails()).work();
    let (step, output) = ("b".into(), json!({ "made": "by hand" }));
    assert!(sim.ask_for("ann", Verb::Skip { step, undo: false, output }));
    History::of(sim)
}

/// b failed, was held, and begins anew with another input.
fn edited() -> History {
    let steps = [step("a", &[]), step("b", &["a"]).on_failure(OnFailure::Hold), step("c", &["b"])];
    let mut sim = of(&steps).fate("b", 1, fails()).work();
    let (step, input) = ("b".into(), Some(json!({ "reads": "another" })));
    assert!(sim.ask_for("ann", Verb::Retry { step, undo: false, input, in_doubt: false }));
    History::of(sim)
}

/// Both were done, then a is undone by itself with what came after it, and done again.
fn undone_alone() -> History {
    let mut sim =
        of(&[step("a", &[]), step("b", &["a"]), step("w", &["b"]).waits(json!({ "signal": "go" }))]);
    sim = sim.work();
    assert!(sim.ask_for("ann", Verb::Skip { step: "w".into(), undo: false, output: json!(null) }));
    // Held up before its end, as it would be over otherwise.
    assert!(sim.ask_for("ann", Verb::UndoStep { step: "a".into(), cascade: true }));
    let mut sim = sim.work();
    for step in ["a", "b"] {
        sim.retry(CourseId::forward(sim.plan.find(step).unwrap()));
    }
    History::of(sim)
}

fn closed() -> History {
    let sim = of(&[step("a", &[]), step("b", &["a"])]);
    let mut sim = sim.fate("b", 1, fails()).undo_fate("a", 1, fails()).work();
    assert!(sim.ask_for("ann", Verb::Close { manifest: json!({}) }));
    History::of(sim)
}

fn commits() -> Sim {
    let commit = Commit { within: Some(Span::secs(60)), then: Some(Ending::Commit), signal: None };
    Sim::new(plan_of(&[step("a", &[]), step("f", &["a"]).finalize()], Some(commit)))
}

fn no_return() -> Sim {
    of(&[step("a", &[]).no_return(), step("b", &["a"]), step("c", &["b"])]).fate("b", 1, fails())
}

pub fn all() -> Vec<Corruption> {
    let mut all = proofs();
    all.extend(signals());
    all.extend(timers());
    all.extend(actions());
    all.extend(rests());
    all.extend(ways());
    all.extend(index());
    all
}

fn proofs() -> Vec<Corruption> {
    use RuleId::Proof;
    fn proven() -> History {
        History::of(of(&[step("a", &[]), step("b", &["a"]).requires("a", "a")]))
    }
    vec![
        broken(Proof, "an output that says something else", || {
            let mut h = proven();
            edit(h.row("succeeded a"), |body| body["made"] = json!("b"));
            h
        }),
        broken(Proof, "a step that was skipped and is taken for a proof", || {
            let mut h = proven();
            h.row("succeeded a").kind = "skipped";
            h
        }),
        broken(Proof, "a start that nobody has let go", || {
            let mut h = overridden();
            h.remove("waived b");
            h
        }),
        broken(Proof, "a start before it was let go", || {
            let mut h = overridden();
            h.move_after("started b", "succeeded a");
            h
        }),
    ]
}

fn signals() -> Vec<Corruption> {
    use RuleId::Signals;
    vec![
        broken(Signals, "a signal that is read twice", || {
            let mut h = two_signals();
            h.row("succeeded w").body = h.row("succeeded v").body.clone();
            h
        }),
        broken(Signals, "a signal that overtakes another", || {
            let mut h = two_signals();
            let (one, two) = (h.row("succeeded v").body.clone(), h.row("succeeded w").body.clone());
            h.row("succeeded v").body = two;
            h.row("succeeded w").body = one;
            h
        }),
        broken(Signals, "a signal that nobody sent", || {
            let mut h = two_signals();
            h.remove("acted #2");
            h
        }),
        broken(Signals, "a signal that brings something else than was sent", || {
            let mut h = two_signals();
            edit(h.row("succeeded v"), |body| body["signal"]["payload"] = json!(9));
            h
        }),
        broken(Signals, "a signal that was refused and is read", || {
            let mut h = two_signals();
            let action = h.row("acted").body.as_ref().map(backstay_machine::Json::value);
            h.row("acted").kind = "refused";
            edit(h.row("refused"), |body| *body = json!({ "because": "no reason", "action": action }));
            h
        }),
        broken(Signals, "a signal that nothing reads", || {
            let mut h = two_signals();
            edit(h.row("acted"), |body| body["verb"]["signal"]["name"] = json!("come"));
            h
        }),
    ]
}

fn timers() -> Vec<Corruption> {
    use RuleId::Timers;
    vec![
        broken(Timers, "a wait that is over before its time", || {
            let mut h = History::of(waits(json!({ "for": "10s" })));
            let soon = h.at("started w") + TimeDelta::milliseconds(9_900);
            h.set_time("succeeded w", soon);
            h
        }),
        broken(Timers, "a wait that is over before its date", || {
            let mut h = History::of(waits(json!({ "until": "2024-10-04T00:10:00Z" })));
            let soon = h.at("succeeded w") - TimeDelta::milliseconds(1);
            h.set_time("succeeded w", soon);
            h
        }),
        broken(Timers, "a wait for a signal that a time ends", || {
            let mut sim = waits(json!({ "signal": "go" }));
            sent(&mut sim, "ann", 1);
            let mut h = History::of(sim);
            edit(h.row("succeeded w"), |body| *body = json!({ "by": "time", "signal": null }));
            h
        }),
        broken(Timers, "an expiry before its time", || {
            let steps = [step("w", &[]).waits(json!({ "signal": "go", "within": "10s" }))];
            let mut h = History::of(of(&steps));
            let soon = h.at("started w") + TimeDelta::milliseconds(9_900);
            h.set_time("failed w", soon);
            h
        }),
        broken(Timers, "an approval of one where it takes two", || {
            let mut h = approved();
            h.remove("acted w #2");
            h
        }),
        broken(Timers, "an approval by the same person twice", || {
            let mut h = approved();
            edit(h.row("acted w #2"), |body| body["who"] = json!("ann"));
            h
        }),
        broken(Timers, "an approval of another plan", || {
            let mut h = approved();
            edit(h.row("acted w #2"), |body| body["verb"]["approve"]["plan"] = json!("abc"));
            h
        }),
        broken(Timers, "an approval by another right", || {
            let mut h = approved();
            edit(h.row("acted w"), |body| body["verb"]["approve"]["right"] = json!("view"));
            h
        }),
        broken(Timers, "a no that nobody said", || {
            let mut sim = waits(json!({ "right": "release" }));
            assert!(sim.ask_for("ann", Verb::Reject { step: "w".into(), right: "release".into() }));
            let mut h = History::of(sim);
            h.remove("acted w");
            h
        }),
    ]
}

fn actions() -> Vec<Corruption> {
    use RuleId::{Actions, Grammar, Input};
    vec![
        broken(Actions, "one action that is answered twice", || {
            let mut h = two_signals();
            let first = h.row("acted").key.unwrap_or_default();
            edit(h.row("acted #2"), |body| body["id"] = json!(first));
            h
        }),
        broken(Actions, "an action of nobody", || {
            let mut h = skipped();
            edit(h.row("acted b"), |body| body["who"] = json!(" "));
            h
        }),
        broken(Actions, "a skip without a reason", || {
            let mut h = skipped();
            edit(h.row("acted b"), |body| body["why"] = json!(""));
            h
        }),
        broken(Actions, "a skip that nobody asked for", || {
            let mut h = skipped();
            h.remove("acted b");
            h
        }),
        broken(Actions, "a skip with another output than was asked for", || {
            let mut h = skipped();
            edit(h.row("skipped b"), |body| body["made"] = json!("else"));
            h
        }),
        broken(Actions, "a skip of another step than was asked for", || {
            let mut h = skipped();
            edit(h.row("acted b"), |body| body["verb"]["skip"]["step"] = json!("a"));
            h
        }),
        broken(Actions, "a skip long after it was asked for", || {
            let mut h = skipped();
            h.move_after("acted b", "started b");
            h
        }),
        broken(Actions, "a retry that nobody asked for", || {
            let mut h = edited();
            h.remove("acted b");
            h
        }),
        broken(Actions, "a retry that was granted and never came", || {
            let mut h = edited();
            h.remove("retried b");
            h
        }),
        broken(Actions, "a retry with another input than was asked for", || {
            let mut h = edited();
            edit(h.row("retried b"), |body| body["input"]["reads"] = json!("else"));
            h
        }),
        broken(Input, "an edited input that is not used", || {
            let mut h = edited();
            edit(h.row("started b #2"), |body| body["reads"] = json!(["a"]));
            h
        }),
        broken(Actions, "a step that is undone and nobody asked for it", || {
            let mut h = undone_alone();
            h.remove("acted a");
            h
        }),
        broken(Actions, "a cascade that stops before the step that was named", || {
            let mut h = undone_alone();
            h.remove("recalled a");
            h
        }),
        broken(Grammar, "a recalled step that goes on in its old generation", || {
            let mut h = undone_alone();
            h.row("retried a").generation = 1;
            h
        }),
        broken(RuleId::UndoOrder, "a recalled step that is undone before what came after it", || {
            let mut h = undone_alone();
            h.move_after("succeeded undo b", "started undo a");
            h
        }),
        broken(RuleId::Settling, "an undo of a step that nobody recalled", || {
            let mut h = undone_alone();
            h.remove("recalled b");
            h
        }),
        broken(RuleId::Predecessors, "a start on ground that is undone", || {
            let mut h = undone_alone();
            h.move_after("started b #2", "succeeded undo a");
            h
        }),
        broken(Actions, "a proof that one person overrides", || {
            let mut h = overridden();
            edit(h.row("acted b #2"), |body| body["who"] = json!("ann"));
            h
        }),
        broken(Actions, "a proof that is overridden with no word said", || {
            let mut h = overridden();
            h.remove("acted b #2");
            h
        }),
        broken(Actions, "a run that closes itself", || {
            let mut h = closed();
            h.remove("acted");
            h
        }),
        broken(Actions, "a resource that nobody at work tells of", || {
            let mut h = closed();
            let gone = json!({ "kind": "disk", "name": "one", "fate": "gone" });
            h.tell_after("succeeded a", "resource", gone);
            h
        }),
        broken(Actions, "a refusal without a reason", || {
            let mut sim = waits(json!({ "signal": "go" }));
            assert!(!sim.ask_for("ann", Verb::Commit));
            let mut h = History::of(sim);
            edit(h.row("refused"), |body| body["because"] = json!(""));
            h
        }),
    ]
}

fn rests() -> Vec<Corruption> {
    use RuleId::{Paused, Quarantine, Resources, Stuck};
    fn paused() -> History {
        let mut sim = of(&[step("a", &[]), step("b", &["a"])]);
        assert!(sim.ask_for("ann", Verb::Pause));
        let mut sim = sim.work();
        assert!(sim.ask_for("ben", Verb::Resume));
        History::of(sim)
    }
    vec![
        broken(Paused, "a start in a run that is paused", || {
            let mut h = paused();
            h.move_after("acted #2", "started a");
            h
        }),
        broken(Paused, "a timer that fires in a run that is paused", || {
            let mut sim = waits(json!({ "signal": "go" }));
            sent(&mut sim, "ann", 1);
            assert!(sim.ask_for("ann", Verb::Pause));
            assert!(sim.ask_for("ann", Verb::Resume));
            let mut h = History::of(sim);
            h.move_after("acted #3", "succeeded w");
            h
        }),
        broken(Quarantine, "a start before anybody resumed the run", || {
            let mut h = History::of(of(&[step("a", &[]), step("b", &["a"])]));
            h.put_after("started a", "quarantined", json!({ "why": "it kills its nodes" }));
            h
        }),
        broken(Resources, "something announced that nobody accounts for", || {
            let maybe = Fate::Fails(error(false, Applied::Maybe), true);
            let mut h = History::of(of(&[step("a", &[]), step("b", &["a"])]).fate("b", 1, maybe));
            let planned = json!({ "kind": "disk", "name": "one", "fate": "planned" });
            h.tell_after("started b", "resource", planned);
            h
        }),
        broken(Resources, "something there that nobody accounts for", || {
            let mut h = History::of(of(&[step("a", &[]), step("b", &["a"])]).fate("b", 1, fails()));
            h.tell_after(
                "started a",
                "resource",
                json!({ "kind": "disk", "name": "one", "fate": "present" }),
            );
            h
        }),
        broken(Stuck, "a run that does not list what is left", || {
            let mut h = closed();
            h.tell_after(
                "started a",
                "resource",
                json!({ "kind": "disk", "name": "one", "fate": "present" }),
            );
            h
        }),
    ]
}

fn ways() -> Vec<Corruption> {
    use RuleId::{Commit, End, NoReturn, Turns};
    vec![
        broken(Commit, "a finalizing step before the commit", || {
            let mut h = History::of(commits());
            h.move_after("committing", "started f");
            h
        }),
        broken(Commit, "a commit before its time", || {
            let mut h = History::of(commits());
            let soon = h.at("finished") + TimeDelta::seconds(59);
            h.set_time("committing", soon);
            h
        }),
        broken(Commit, "a commit before the success", || {
            let mut h = History::of(commits());
            h.move_after("finished", "committing");
            h
        }),
        broken(Commit, "a rollback after the commit", || {
            let mut h = History::of(commits());
            h.put_after("succeeded f", "rolling_back", json!({ "why": "an operator" }));
            h
        }),
        broken(End, "a commit that never ends its steps", || {
            let mut h = History::of(commits());
            h.remove("started f");
            h.remove("succeeded f");
            h
        }),
        broken(End, "committed without a commit", || {
            let mut h = History::of(commits());
            h.remove("committing");
            h.remove("finished");
            h
        }),
        broken(NoReturn, "a rollback behind the point of no return", || {
            let mut h = History::of(no_return());
            h.cut_after("failed b");
            h.put_after("failed b", "rolling_back", json!({ "why": "b failed" }));
            h
        }),
        broken(NoReturn, "an operator's rollback that does not say so", || {
            let mut sim = no_return().work();
            let how = RollBack { past_no_return: true, ..RollBack::default() };
            assert!(sim.ask_for("ann", Verb::RollBack(how)));
            let mut h = History::of(sim);
            edit(h.row("acted"), |body| body["verb"]["roll_back"] = json!({}));
            edit(h.row("rolling_back"), |body| body["how"] = json!({}));
            h
        }),
        broken(Turns, "a rollback for no reason", || {
            let mut h = History::of(of(&[step("a", &[]), step("b", &["a"])]));
            h.cut_after("succeeded a");
            h.put_after("succeeded a", "rolling_back", json!({ "why": "just so" }));
            h
        }),
        broken(Turns, "a success that is undone before its time", || {
            let commit = backstay_machine::plan::Commit {
                within: Some(Span::secs(60)),
                then: Some(Ending::RollBack),
                signal: None,
            };
            let mut h = History::of(Sim::new(plan_of(&[step("a", &[])], Some(commit))));
            let soon = h.at("finished") + TimeDelta::seconds(59);
            h.set_time("rolling_back", soon);
            h
        }),
    ]
}

fn indexed(mut h: History, change: impl FnOnce(&mut Index)) -> History {
    if let Some(index) = &mut h.index {
        change(index);
    }
    h
}

fn index() -> Vec<Corruption> {
    use RuleId::Index;
    vec![
        broken(Index, "a run that waits for a time, and has none", || {
            let h = History::of(of(&[step("a", &[]).on_failure(OnFailure::Hold)]).fate("a", 1, fails()));
            indexed(h, |index| (index.status, index.owner, index.due_at) = (Status::Waiting, None, None))
        }),
        broken(Index, "a paused run that is called running", || {
            let mut sim = of(&[step("a", &[])]);
            assert!(sim.ask_for("ann", Verb::Pause));
            indexed(History::of(sim), |index| (index.status, index.owner) = (Status::Running, Some(1)))
        }),
        broken(Index, "a run to be committed in time that nothing will wake", || {
            let mut h = History::of(commits());
            h.cut_after("finished");
            let index = backstay_machine::checker::Index {
                status: Status::Succeeded,
                owner: None,
                claim: 0,
                due_at: None,
            };
            h.index = Some(index);
            h
        }),
        broken(Index, "a run that is being committed and called done", || {
            let mut h = History::of(commits());
            h.cut_after("started f");
            h.index = Some(backstay_machine::checker::Index {
                status: Status::Succeeded,
                owner: Some(1),
                claim: 0,
                due_at: None,
            });
            h
        }),
    ]
}

/// The ids that actions get in these histories are not random: what is the same in one place is so in the other.
#[test]
fn an_action_has_the_id_of_its_row() {
    let h = two_signals();
    let ids: Vec<Uuid> = h.rows.iter().filter(|row| row.kind == "acted").filter_map(|row| row.key).collect();
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0], ids[1]);
}
