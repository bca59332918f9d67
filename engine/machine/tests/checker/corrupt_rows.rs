//! Corruptions of rows, numbers, owners, keys and inputs.

use backstay_machine::checker::{RuleId, Violation};
use backstay_machine::{Applied, Chain, Json};
use chrono::TimeDelta;
use serde_json::json;
use uuid::Uuid;

use crate::corruptions::{Corruption, broken, found};
use crate::history::{History, edit, failure};
use crate::plans::{plan, step};
use crate::sim::{Fate, Sim, error};

fn chain() -> Sim {
    Sim::new(plan(&[step("a", &[]), step("b", &["a"]), step("c", &["b"])]))
}

fn died() -> History {
    History::of(chain().fate("b", 1, Fate::Orphaned(false)))
}

fn died_probed() -> History {
    let steps = [step("a", &[]), step("b", &["a"]).probed(), step("c", &["b"])];
    History::of(Sim::new(plan(&steps)).fate("b", 1, Fate::Orphaned(false)))
}

fn retried() -> History {
    History::of(chain().fate("b", 1, Fate::Fails(error(true, Applied::No), false)))
}

fn rolled() -> History {
    History::of(chain().fate("c", 1, Fate::Fails(error(false, Applied::Maybe), true)))
}

pub fn all() -> Vec<Corruption> {
    let mut all = readable();
    all.extend(numbers());
    all.extend(grammar());
    all.extend(keys());
    all
}

fn readable() -> Vec<Corruption> {
    use RuleId::{Readable, Sequence};
    vec![
        broken(Readable, "an event of an unknown kind", || {
            let mut h = History::of(chain());
            h.row("succeeded b").kind = "teleported";
            h
        }),
        broken(Readable, "a step that the plan does not have", || {
            let mut h = History::of(chain());
            h.row("started b").step = Some("x".into());
            h
        }),
        broken(Readable, "a plan that was changed after its hash was taken", || {
            let mut h = History::of(chain());
            edit(&mut h.rows[0], |body| body["plan"]["workflow"] = json!("other"));
            h
        }),
        broken(RuleId::Chain, "a row that was changed after a later one was sealed", || {
            let mut h = History::of(chain());
            let mut sealed = Chain::new(h.run);
            for row in &mut h.rows {
                sealed.link(row);
                row.seal = Some(sealed.seal());
            }
            edit(h.row("succeeded a"), |body| *body = json!({ "made": "another" }));
            h
        }),
        broken(Readable, "no plan", || {
            let mut h = History::of(chain());
            h.rows[0].body = None;
            h
        }),
        broken(Sequence, "no events", || {
            let mut h = History::of(chain());
            h.rows.clear();
            h
        }),
        broken(Sequence, "a lost event", || {
            let mut h = retried();
            let n = h.find("failed b");
            h.rows.remove(n);
            h
        }),
        broken(Sequence, "an event that is there twice", || {
            let mut h = History::of(chain());
            let n = h.find("succeeded b");
            let row = h.rows[n].clone();
            h.rows.insert(n, row);
            h
        }),
    ]
}

fn numbers() -> Vec<Corruption> {
    use RuleId::{Fence, Owners, Time};
    vec![
        broken(Time, "an event older than the one before it", || {
            let mut h = History::of(chain());
            h.row("succeeded b").at -= TimeDelta::seconds(60);
            h
        }),
        broken(Owners, "a claim that was granted twice", || {
            let mut h = died();
            h.copy_after("claimed", "started b #2");
            h
        }),
        broken(Owners, "events under a claim that nobody was granted", || {
            let mut h = History::of(chain());
            h.row("succeeded c").claim = 1;
            h
        }),
        broken(Owners, "one claim under two epochs", || {
            let mut h = died();
            h.row("succeeded b").epoch += 5;
            h
        }),
        broken(Owners, "a step without a node", || {
            let mut h = History::of(chain());
            h.rows.iter_mut().for_each(|row| row.epoch = 0);
            h
        }),
        broken(Owners, "an epoch of two nodes", || {
            let mut h = died();
            h.copy_after("claimed", "started b #2").claim = 2;
            let n = h.find("claimed #2");
            h.rows[n..].iter_mut().for_each(|row| row.claim = 2);
            edit(&mut h.rows[n], |body| body["node"] = json!("another"));
            h
        }),
        broken(Fence, "a former owner that goes on writing", || {
            let mut h = died();
            h.row("started b #2").claim = 0;
            h.row("started b #2").epoch = 1;
            h
        }),
    ]
}

fn grammar() -> Vec<Corruption> {
    use RuleId::{Grammar, NoStartAfterOutcome, OneOutcome};
    vec![
        broken(Grammar, "a second submission", || {
            let mut h = History::of(chain());
            h.copy_after("submitted", "started b");
            h
        }),
        broken(Grammar, "a run that does not begin with its submission", || {
            let mut h = History::of(chain());
            edit(&mut h.rows[0], |body| body["why"] = json!("no reason"));
            h.rows[0].kind = "quarantined";
            h
        }),
        broken(Grammar, "a run that turns round twice", || {
            let mut h = rolled();
            h.copy_after("rolling_back", "started undo b");
            h
        }),
        broken(Grammar, "an undo of a step that has none", || {
            let steps = [step("a", &[]).nothing_to_undo(), step("b", &["a"])];
            let fate = Fate::Fails(error(false, Applied::Maybe), false);
            let mut h = History::of(Sim::new(plan(&steps)).fate("b", 1, fate));
            h.row("started undo b").step = Some("a".into());
            h.row("succeeded undo b").step = Some("a".into());
            h
        }),
        broken(Grammar, "a start while an attempt is in flight", || {
            let mut h = History::of(chain());
            h.copy_after("started b", "started b").attempt = 2;
            h.row("succeeded b").attempt = 2;
            h
        }),
        broken(Grammar, "a checkpoint of a step that is done", || {
            let mut h = History::of(chain());
            h.tell_after("succeeded b", "checkpointed", json!(1));
            h
        }),
        broken(Grammar, "progress of a step that is done", || {
            let mut h = History::of(chain());
            h.tell_after("succeeded b", "progressed", json!({ "percent": 1.0, "note": "" }));
            h
        }),
        broken(Grammar, "a result of an attempt that never started", || {
            let mut h = History::of(chain());
            h.remove("started b");
            h.row("succeeded b").attempt = 0;
            h
        }),
        broken(Grammar, "a result while the step waits for its next attempt", || {
            let mut h = retried();
            h.remove("started b #2");
            h.row("succeeded b").attempt = 1;
            h
        }),
        broken(Grammar, "an attempt that fails twice", || {
            let mut h = History::of(chain().fate("b", 1, Fate::Fails(error(true, Applied::Maybe), false)));
            h.copy_after("failed b", "failed b");
            h
        }),
        broken(Grammar, "a probe of an attempt in flight", || {
            let mut h = died_probed();
            h.move_after("probed b", "started b");
            h
        }),
        broken(Grammar, "a probe of an undo", || {
            let fate = Fate::Fails(error(false, Applied::Maybe), true);
            let sim = chain().fate("c", 1, fate).undo_fate("b", 1, Fate::Orphaned(false));
            let mut h = History::of(sim);
            h.tell_after("started undo b", "probed", json!({ "answer": "absent", "ask_again_at": null }));
            h.move_after("probed undo b", "claimed");
            h
        }),
        broken(Grammar, "a step that is held before it began", || {
            let mut h = History::of(chain());
            h.tell_after("started b", "held", json!({ "why": "because" }));
            h.row("held b").attempt = 0;
            h.move_after("held b", "submitted");
            h.cut_after("held b");
            h
        }),
        broken(Grammar, "a step that begins anew after it was done", || {
            let mut h = History::of(chain());
            h.tell_after("succeeded b", "retried", json!(null));
            h.row("retried b").body = None;
            h.row("retried b").generation = 1;
            h.move_after("retried b", "started c");
            h
        }),
        broken(Grammar, "an attempt under a wrong number", || {
            let mut h = retried();
            h.row("started b #2").attempt = 3;
            h.row("succeeded b").attempt = 3;
            h
        }),
        broken(Grammar, "an outcome of another generation", || {
            let mut h = History::of(chain());
            h.row("succeeded b").generation = 1;
            h
        }),
        broken(OneOutcome, "two results", || {
            let mut h = History::of(chain());
            h.copy_after("succeeded b", "succeeded b");
            h
        }),
        broken(OneOutcome, "a result after a failure for good", || {
            let mut h = rolled();
            h.tell_after("failed c", "succeeded", json!({}));
            h
        }),
        broken(NoStartAfterOutcome, "a start after the result", || {
            let mut h = History::of(chain());
            let again = h.copy_after("started b", "succeeded b");
            (again.attempt, again.body) = (2, None);
            h
        }),
        broken(NoStartAfterOutcome, "a start after a failure for good", || {
            let mut h = retried();
            *h.row("failed b") = {
                let mut row = h.row("failed b").clone();
                row.body = Some(Json::of(&failure(false, "no", None)));
                row
            };
            h
        }),
    ]
}

fn keys() -> Vec<Corruption> {
    use RuleId::{Input, Key};
    vec![
        broken(Input, "an input with the second attempt", || {
            let mut h = retried();
            h.row("started b #2").body = h.row("started b").body.clone();
            h
        }),
        broken(Input, "no input with the first attempt", || {
            let mut h = History::of(chain());
            h.row("started b").body = None;
            h
        }),
        broken(Input, "an input that no output gives", || {
            let mut h = History::of(chain());
            edit(h.row("started b"), |body| body["reads"] = json!(["something else"]));
            h
        }),
        broken(Input, "an undo of something else", || {
            let mut h = rolled();
            edit(h.row("started undo b"), |body| body["it"] = json!("c"));
            h
        }),
        broken(Key, "a key of its own for the second attempt", || {
            let mut h = retried();
            h.row("started b #2").key = Some(Uuid::from_u128(1));
            h
        }),
        found(Key, "one key for two steps, whatever the derived one is", || {
            let mut h = History::of(chain());
            h.row("started c").key = h.row("started b").key;
            let twice = |v: &Violation| v.message.contains("belongs to another");
            h.check().into_iter().filter(twice).collect()
        }),
    ]
}
