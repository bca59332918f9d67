//! Corruptions of what journals say of facts, and of the table that they make.

use backstay_machine::checker::{Case, Checker, RuleId, Violation};
use backstay_machine::{Fact, RunId};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::corruptions::{Corruption, broken, found};
use crate::history::{History, edit};
use crate::plans::{plan, step};
use crate::sim::Sim;

/// A run whose step `b` has changed the fact "it".
fn changing(from: Value, to: &str, version: i64) -> History {
    let mut h = History::of(Sim::new(plan(&[step("a", &[]), step("b", &["a"])])));
    let details = json!({ "from": from, "to": to, "version": version });
    let body = json!({ "kind": "fact", "name": "it", "fate": "kept", "details": details });
    h.tell_after("started b", "resource", body);
    h.row("resource b").attempt = 0;
    h
}

fn told(run: u128, from: Value, to: &str, version: i64) -> History {
    let mut h = changing(from, to, version);
    h.run = RunId(Uuid::from_u128(run));
    h
}

fn stands(value: &str, version: i64, by: u128) -> Fact {
    let at = chrono::DateTime::UNIX_EPOCH;
    Fact { name: "it".into(), value: value.into(), version, by: RunId(Uuid::from_u128(by)), at }
}

/// Of several runs, what is found of facts.
fn of(histories: Vec<History>, before: Vec<Fact>, after: Vec<Fact>) -> Vec<Violation> {
    let mut checker = Checker::new().with_facts(before);
    let mut all = Vec::new();
    for h in &histories {
        all.extend(checker.run(&Case::of(h.run, &h.rows)));
    }
    all.extend(checker.facts(&after));
    all.retain(|violation| violation.rule == RuleId::Facts);
    all
}

fn two() -> Vec<History> {
    vec![told(1, Value::Null, "taken", 1), told(2, json!("taken"), "free", 2)]
}

#[test]
fn a_chain_of_changes_is_all_right_in_any_order_and_with_gaps() {
    let mut back = two();
    back.reverse();
    let end = || vec![stands("free", 2, 2)];
    for histories in [two(), back] {
        assert_eq!(of(histories, end(), end()), []);
    }
    // The first run, or the last, was removed.
    assert_eq!(of(two().split_off(1), end(), end()), []);
    assert_eq!(of(vec![two().remove(0)], end(), end()), []);
    // It goes on while it is looked at.
    assert_eq!(of(two(), vec![stands("taken", 1, 1)], vec![stands("taken", 3, 3)]), []);
    // By itself it is legal in every other way.
    assert_eq!(changing(Value::Null, "taken", 1).check(), []);
}

pub fn all() -> Vec<Corruption> {
    use RuleId::Facts;
    vec![
        broken(Facts, "a change without a success", || {
            let mut h = changing(Value::Null, "taken", 1);
            h.move_after("resource b", "started a");
            h
        }),
        broken(Facts, "a change with the success of another step", || {
            let mut h = changing(Value::Null, "taken", 1);
            h.row("resource b").step = Some("a".into());
            h
        }),
        broken(Facts, "a first change from something", || changing(json!("free"), "taken", 1)),
        broken(Facts, "a later change from nothing", || {
            let mut h = changing(Value::Null, "taken", 1);
            edit(h.row("resource b"), |body| body["details"]["version"] = json!(2));
            h
        }),
        found(Facts, "two runs that were not told of each other", || {
            of(
                vec![told(1, Value::Null, "taken", 1), told(2, Value::Null, "taken", 1)],
                vec![],
                vec![stands("taken", 1, 1)],
            )
        }),
        found(Facts, "a change from what it was not", || {
            of(
                vec![told(1, Value::Null, "taken", 1), told(2, json!("free"), "taken", 2)],
                vec![],
                vec![stands("taken", 2, 2)],
            )
        }),
        found(Facts, "the same, read the other way round", || {
            of(
                vec![told(2, json!("free"), "taken", 2), told(1, Value::Null, "taken", 1)],
                vec![],
                vec![stands("taken", 2, 2)],
            )
        }),
        found(Facts, "a value that was changed by hand", || {
            let end = || vec![stands("mine", 2, 2)];
            of(two(), end(), end())
        }),
        found(Facts, "a run that is said to have changed it and says nothing of it", || {
            let end = || vec![stands("taken", 3, 1)];
            of(two(), end(), end())
        }),
        found(Facts, "a change that was lost", || of(two(), vec![], vec![stands("taken", 1, 1)])),
        found(Facts, "a fact that is gone", || of(two(), vec![], vec![])),
    ]
}

#[test]
fn a_resource_of_an_activity_is_no_fact() {
    let mut h = changing(Value::Null, "taken", 1);
    edit(h.row("resource b"), |body| body["kind"] = json!("disk"));
    h.move_after("resource b", "started a");
    assert!(h.check().iter().all(|violation| violation.rule != RuleId::Facts));
}
