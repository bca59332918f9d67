//! Corruptions of what starts when: doubt, order, retries, settling.

use backstay_machine::checker::RuleId;
use backstay_machine::plan::{OnFailure, Span};
use backstay_machine::{Answer, Applied, CourseId};
use chrono::TimeDelta;
use serde_json::json;

use crate::corruptions::{Corruption, broken};
use crate::history::{History, edit, failure};
use crate::plans::{Is, plan, step};
use crate::sim::{Fate, Sim, error};

fn of(steps: &[Is]) -> Sim {
    Sim::new(plan(steps))
}

/// a, then b as it is given, then c.
fn with(b: fn(Is) -> Is) -> Sim {
    of(&[step("a", &[]), b(step("b", &["a"])), step("c", &["b"])])
}

fn fails(retryable: bool, applied: Applied) -> Fate {
    Fate::Fails(error(retryable, applied), false)
}

fn rolled(b: fn(Is) -> Is) -> Sim {
    with(b).fate("c", 1, fails(false, Applied::Maybe))
}

pub fn all() -> Vec<Corruption> {
    let mut all = doubt();
    all.extend(order());
    all.extend(settling());
    all.extend(retry());
    all
}

fn doubt() -> Vec<Corruption> {
    use RuleId::Doubt;
    vec![
        broken(Doubt, "absent is believed while the old call can land", || {
            let mut h = History::of(with(Is::probed).fate("b", 1, Fate::Orphaned(false)));
            h.remove("probed b");
            edit(h.row("probed b"), |body| body["ask_again_at"] = json!(null));
            let soon = h.at("claimed") + TimeDelta::seconds(1);
            h.set_time("probed b", soon);
            h
        }),
        broken(Doubt, "partial is believed while the old call can land", || {
            let sim = with(|mut b| {
                b.effect.refuses_duplicates = true;
                b.probed()
            });
            let mut h = History::of(sim.fate("b", 1, Fate::Orphaned(false)));
            edit(h.row("probed b"), |body| body["answer"] = json!("partial"));
            h
        }),
        broken(Doubt, "repeated without a probe", || {
            let mut h = History::of(with(Is::probed).fate("b", 1, Fate::Orphaned(false)));
            h.remove("probed b #2");
            h.remove("probed b");
            h
        }),
        broken(Doubt, "repeated on an answer that settles nothing", || {
            let sim = with(Is::probed).fate("b", 1, Fate::Orphaned(false));
            let mut h = History::of(sim.answers(Answer::Unknown { why: "dark".into() }));
            h.remove("probed b #3");
            h.remove("probed b #2");
            h
        }),
        broken(Doubt, "repeated on an absence that was not believed yet", || {
            let mut h = History::of(with(Is::probed).fate("b", 1, Fate::Orphaned(false)));
            h.remove("probed b #2");
            h
        }),
        broken(Doubt, "repeated although it is there", || {
            let mut h = History::of(with(Is::probed).fate("b", 1, Fate::Orphaned(false)));
            edit(h.row("probed b #2"), |body| body["answer"] = json!("present"));
            h
        }),
        broken(Doubt, "an earlier answer is taken for a later doubt", || {
            let twice =
                with(Is::probed).fate("b", 1, Fate::Orphaned(false)).fate("b", 2, Fate::Orphaned(false));
            let mut h = History::of(twice);
            h.remove("probed b #4");
            h.remove("probed b #3");
            h
        }),
        broken(Doubt, "repeated, declared to happen at most once", || {
            let mut h = History::of(with(|b| b.at_most_once().probed()).fate("b", 1, Fate::Orphaned(false)));
            let mut again = h.rows[h.find("started b")].clone();
            (again.attempt, again.body) = (2, None);
            h.insert_after("probed b #2", again);
            h.cut_after("started b #2");
            h
        }),
        broken(Doubt, "repeated before its longest delay, without a probe", || {
            let mut h = History::of(with(|b| b).fate("b", 1, Fate::Orphaned(false)));
            let soon = h.at("claimed") + TimeDelta::seconds(29);
            h.set_time("started b #2", soon);
            h
        }),
        broken(Doubt, "a failure that may have had its effect, repeated before its longest delay", || {
            let mut h = History::of(with(|b| b).fate("b", 1, fails(true, Applied::Maybe)));
            let soon = h.at("failed b") + TimeDelta::seconds(15);
            h.set_time("started b #2", soon);
            h
        }),
        broken(Doubt, "believed without a probe", || {
            let mut h = History::of(with(|b| b).fate("b", 1, Fate::Orphaned(false)));
            h.remove("started b #2");
            h.row("succeeded b").attempt = 1;
            h
        }),
        broken(Doubt, "an undo that is believed without being repeated", || {
            let mut h = History::of(rolled(|b| b).undo_fate("b", 1, Fate::Orphaned(false)));
            h.remove("started undo b #2");
            h.row("succeeded undo b").attempt = 1;
            h
        }),
    ]
}

fn order() -> Vec<Corruption> {
    use RuleId::{Direction, Predecessors, UndoOrder};
    vec![
        broken(Predecessors, "a start before what it comes after is done", || {
            let mut h = History::of(with(|b| b));
            h.move_after("started b", "started a");
            h
        }),
        broken(Predecessors, "a start behind a step that failed and is waited for", || {
            let sim = with(|b| b.on_failure(OnFailure::Continue)).fate("b", 1, fails(false, Applied::No));
            let mut h = History::of(sim);
            let again = failure(true, "no", Some(h.at("failed b") + TimeDelta::seconds(10)));
            edit(h.row("failed b"), |body| *body = again);
            h
        }),
        broken(Predecessors, "a start behind a step that failed for good", || {
            let sim = with(|b| b.on_failure(OnFailure::Hold)).fate("b", 1, fails(false, Applied::No));
            let mut h = History::of(sim);
            h.copy_after("started b", "failed b").step = Some("c".into());
            h
        }),
        broken(Direction, "a start after the run turned round", || {
            let mut h = History::of(rolled(|b| b));
            h.move_after("rolling_back", "succeeded b");
            h
        }),
        broken(UndoOrder, "an undo before that of the step behind it is done", || {
            let mut h = History::of(rolled(|b| b));
            h.move_after("succeeded undo b", "started undo a");
            h
        }),
        broken(UndoOrder, "an undo while a step behind it, that has none, is in flight", || {
            let steps = [step("a", &[]), step("b", &["a"]).nothing_to_undo(), step("c", &["a"])];
            let sim = of(&steps).fate("b", 1, Fate::Hangs).fate("c", 1, fails(false, Applied::No));
            let mut h = History::of(sim);
            h.move_after("failed b", "started undo a");
            h
        }),
        broken(UndoOrder, "an undo although a step behind it is never undone", || {
            let mut h = History::of(rolled(|b| b));
            h.remove("started undo c");
            h.remove("succeeded undo c");
            h
        }),
        broken(UndoOrder, "an undo although a step behind it, that has none, never came to its end", || {
            let steps = [step("a", &[]), step("b", &["a"]).nothing_to_undo(), step("c", &["a"])];
            let sim = of(&steps).fate("b", 1, Fate::Hangs).fate("c", 1, fails(false, Applied::No));
            let mut h = History::of(sim);
            h.remove("failed b");
            h
        }),
        broken(UndoOrder, "an undo before that of a step behind a step that has none", || {
            let mut h = History::of(rolled(Is::nothing_to_undo));
            h.move_after("succeeded undo c", "started undo a");
            h
        }),
    ]
}

fn settling() -> Vec<Corruption> {
    use RuleId::Settling;
    vec![
        broken(Settling, "an undo in a run that goes forward", || {
            let mut h = History::of(rolled(|b| b));
            h.remove("rolling_back");
            h
        }),
        broken(Settling, "an undo of a step that never had an effect", || {
            let mut h = History::of(rolled(|b| b));
            let no = failure(false, "no", None);
            edit(h.row("failed c"), |body| *body = no);
            h
        }),
        broken(Settling, "an undo while the step is in flight", || {
            let mut h = History::of(rolled(|b| b));
            h.move_after("failed c", "started undo c");
            h.move_after("rolling_back", "started c");
            h
        }),
        broken(Settling, "an undo before the step's longest delay", || {
            let mut h = History::of(rolled(|b| b));
            let soon = h.at("failed c") + TimeDelta::seconds(29);
            h.set_time("started undo c", soon);
            h
        }),
        broken(Settling, "an undo of an attempt in doubt that nobody asked about", || {
            let steps = [step("a", &[]), step("b", &["a"]).probed(), step("c", &["a"])];
            let sim = of(&steps).fate("b", 1, Fate::Orphaned(false)).fate("c", 1, Fate::Hangs);
            let sim = sim.fate("c", 2, fails(false, Applied::No)).answers(Answer::Absent);
            let mut h = History::of(sim.answers(Answer::Unknown { why: "dark".into() }));
            assert!(h.find("rolling_back") < h.find("probed b #3"));
            h.remove("probed b #3");
            h
        }),
    ]
}

fn retry() -> Vec<Corruption> {
    use RuleId::Retry;
    fn once() -> History {
        History::of(with(|b| b).fate("b", 1, fails(true, Applied::No)))
    }
    fn retry_at(h: &mut History, after: TimeDelta) {
        let at = h.at("failed b") + after;
        edit(h.row("failed b"), |body| body["retry_at"] = json!(at));
        h.set_time("started b #2", at.max(h.at("failed b")));
    }
    vec![
        broken(Retry, "a start before its time", || {
            let mut h = once();
            let soon = h.at("failed b") + TimeDelta::seconds(8);
            h.set_time("started b #2", soon);
            h
        }),
        broken(Retry, "another attempt where it cannot help", || {
            let mut h = once();
            edit(h.row("failed b"), |body| body["error"]["retryable"] = json!(false));
            h
        }),
        broken(Retry, "more attempts than the plan has", || {
            let no = fails(true, Applied::No);
            let sim = with(|b| b.on_failure(OnFailure::Continue));
            let mut h = History::of(sim.fate("b", 1, no.clone()).fate("b", 2, no.clone()).fate("b", 3, no));
            let at = h.at("failed b #3") + TimeDelta::seconds(10);
            edit(h.row("failed b #3"), |body| body["retry_at"] = json!(at));
            h.cut_after("failed b #3");
            h
        }),
        broken(Retry, "an attempt later than the plan allows", || {
            let sim = with(|mut b| {
                b.retry.elapsed = Some(Span::secs(11));
                b
            });
            let mut h = History::of(sim.fate("b", 1, fails(true, Applied::No)));
            let late = h.at("started b") + TimeDelta::milliseconds(11_100);
            h.set_time("failed b", late - TimeDelta::seconds(10));
            edit(h.row("failed b"), |body| body["retry_at"] = json!(late));
            h.set_time("started b #2", late);
            h
        }),
        broken(Retry, "a delay shorter than the plan's", || {
            let mut h = once();
            retry_at(&mut h, TimeDelta::milliseconds(7_500));
            h
        }),
        broken(Retry, "a delay that runs from the start of the attempt", || {
            let mut h = once();
            let late = h.at("started b") + TimeDelta::seconds(20);
            h.set_time("failed b", late);
            retry_at(&mut h, TimeDelta::milliseconds(-9_000));
            h
        }),
        broken(Retry, "a short delay that is hardly any", || {
            let sim = with(|mut b| {
                (b.retry.first, b.retry.ceiling) = (Span::millis(900), Span::millis(900));
                b
            });
            let mut h = History::of(sim.fate("b", 1, fails(true, Applied::No)));
            let soon = h.at("started b") + TimeDelta::milliseconds(1);
            h.row("failed b").at = soon;
            retry_at(&mut h, TimeDelta::milliseconds(200));
            h
        }),
        broken(Retry, "a delay longer than the plan's", || {
            let mut h = once();
            retry_at(&mut h, TimeDelta::milliseconds(11_100));
            h
        }),
        broken(Retry, "a target that asked for more and was not left alone", || {
            let mut h = once();
            edit(h.row("failed b"), |body| body["error"]["retry_after"] = json!("20s"));
            h
        }),
        broken(Retry, "a step that is given up too early", || {
            let mut h = once();
            edit(h.row("failed b"), |body| body["retry_at"] = json!(null));
            h.cut_after("failed b");
            h
        }),
        broken(Retry, "an undo that is given up too early", || {
            let sim = rolled(|b| b).undo_fate("b", 1, fails(true, Applied::Maybe));
            let mut h = History::of(sim);
            edit(h.row("failed undo b"), |body| body["retry_at"] = json!(null));
            h.cut_after("failed undo b");
            h
        }),
        broken(Retry, "failures of a former generation that are counted again", || {
            let no = fails(true, Applied::No);
            let sim = with(|b| b.on_failure(OnFailure::Hold));
            let sim = sim.fate("b", 1, no.clone()).fate("b", 2, no.clone()).fate("b", 3, no.clone());
            let mut sim = sim.fate("b", 4, no).work();
            let b = CourseId::forward(sim.plan.find("b").unwrap());
            sim.retry(b);
            let mut h = History::of(sim);
            edit(h.row("failed b #4"), |body| body["retry_at"] = json!(null));
            h.cut_after("failed b #4");
            h
        }),
    ]
}
