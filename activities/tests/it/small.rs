//! `log`, `fail` and `signal`.

use backstay_engine::{Engine, Registry, RunId, Sender, Status, SubmitOptions};
use backstay_tests::{Deaths, Lab};
use serde_json::{Value, json};

use crate::support::{House, Settings, count, not_applied, quick, single};

#[tokio::test(flavor = "multi_thread")]
async fn log_says_it_in_the_journal_too() {
    let house = House::new(Settings::default()).await;
    let said =
        house.once("log", json!({ "text": "hello", "level": "warn", "data": { "a": 1 } })).await.unwrap();
    assert_eq!(said["text"], "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn fail_fails_as_it_is_told() {
    let house = House::new(Settings::default()).await;
    let failed = house.once("fail", json!({})).await.unwrap_err();
    assert_eq!((failed.code.as_str(), failed.retryable, not_applied(&failed)), ("drill", false, false));
    let told = json!({ "code": "full", "message": "the disk is full", "retryable": true, "applied": "no", "retry_after": "2s" });
    let failed = house.once("fail", told).await.unwrap_err();
    assert_eq!((failed.code.as_str(), failed.message.as_str()), ("full", "the disk is full"));
    assert!(failed.retryable && not_applied(&failed) && failed.retry_after.is_some());

    let mut plan = single("fail", json!({ "attempts": 2, "retryable": true, "after": "1ms" }));
    plan["retry"] = quick(5);
    let (run, status) = house.play(plan).await;
    assert_eq!(status, Status::Succeeded);
    assert_eq!(house.outcome(run, "only", false).await.unwrap(), json!({ "attempt": 3 }));
}

/// A run that waits for two signals of one name.
fn listener() -> Value {
    json!({ "workflow": "listener", "steps": [
        { "name": "first", "activity": "wait", "input": { "signal": "go" }, "nothing_to_undo": "it waits" },
        { "name": "second", "activity": "wait", "after": ["first"], "input": { "signal": "go", "for": "1500ms" },
          "nothing_to_undo": "it waits" } ] })
}

fn teller(run: RunId, name: &str) -> Value {
    let mut plan = single("signal", json!({ "run": run.to_string(), "name": name, "payload": { "n": 7 } }));
    plan["retry"] = quick(4);
    plan
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_tells_another_run_what_it_waits_for() {
    let house = House::new(Settings::default()).await;
    let listening = house.submit(listener()).await;
    let (told, status) = house.play(teller(listening, "go")).await;
    assert_eq!(status, Status::Succeeded, "{}", house.story(told).await);
    let id = house.outcome(told, "only", false).await.unwrap()["id"].clone();
    house.lab.settled_for_good(listening).await.unwrap();
    let heard = house.outcome(listening, "first", false).await.unwrap();
    assert_eq!((&heard["signal"]["id"], &heard["signal"]["payload"]), (&id, &json!({ "n": 7 })));
    assert_eq!(heard["signal"]["who"], format!("run {told} step only"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_nobody_can_take_fails_for_good() {
    let house = House::new(Settings::default()).await;
    let listening = house.submit(listener()).await;
    let (over, _) = house.play(single("log", json!({ "text": "done" }))).await;
    for (run, name) in [(listening, "stop"), (over, "go"), (RunId::fresh(), "go")] {
        let (told, status) = house.play(teller(run, name)).await;
        assert_eq!(status, Status::RolledBack, "{}", house.story(told).await);
        let refused = house.outcome(told, "only", false).await.unwrap_err();
        assert_eq!((refused.code.as_str(), refused.retryable), ("signal_refused", false), "{refused:?}");
        assert!(not_applied(&refused));
    }
    let refused = house.once("signal", json!({ "run": "nobody", "name": "go" })).await.unwrap_err();
    assert!(refused.message.contains("is no run's id"));
}

/// A plan is no way round the right to speak to runs that are not one's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_speaks_to_the_runs_of_whoever_submitted_it_and_to_those_that_are_open_to_all() {
    let house = House::new(Settings::default()).await;
    let by = |who: &str| SubmitOptions {
        by: Some(Sender { who: who.into(), why: String::new(), via: None, trace: None }),
        ..SubmitOptions::default()
    };
    let of_ann = house.submit_with(listener(), by("ann")).await;
    let mut open = listener();
    open["workflow"] = json!("open");
    let open = house.submit_with(open, by("ann")).await;
    let tell = async |run, options| {
        let told = house.submit_with(teller(run, "go"), options).await;
        house.lab.settled(told).await.unwrap();
        house.outcome(told, "only", false).await
    };
    for stranger in [by("bob"), SubmitOptions::default()] {
        let refused = tell(of_ann, stranger.clone()).await.unwrap_err();
        assert_eq!((refused.code.as_str(), refused.retryable), ("signal_refused", false), "{refused:?}");
        assert!(refused.message.contains("was submitted by somebody else"), "{refused:?}");
        assert!(refused.message.contains("signal.workflows") && not_applied(&refused), "{refused:?}");
        tell(open, stranger).await.unwrap();
    }
    assert!(!house.story(of_ann).await.contains("succeeded first"), "nobody was heard");
    tell(of_ann, by("ann")).await.unwrap();
    // A step that is a run speaks for whoever submitted the whole.
    let waits = house.submit_with(listener(), by("ann")).await;
    let within = json!({ "workflow": "whole", "steps": [
        { "name": "part", "activity": "run", "plan": teller(waits, "go") } ] });
    for (who, heard) in [("bob", false), ("ann", true)] {
        let whole = house.submit_with(within.clone(), by(who)).await;
        let ended = house.lab.settled_for_good(whole).await.unwrap();
        assert_eq!(ended == Status::Succeeded, heard, "{who}: {}", house.story(whole).await);
    }
}

/// Its node dies after the signal was sent and before that was journaled: it is sent again, and read once.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_is_sent_twice_is_read_once() {
    let mut house = House::new(Settings::default()).await;
    drop(house.node.take());
    let deaths = Deaths::at("call.after", 1);
    let mut config = Lab::config("b");
    config.crash_hook = Some(deaths.hook());
    config.rejoin = false;
    let dies = house.another(config).await;
    // Somebody has to answer; it lives beside the one that dies, and cannot run the signal.
    let listening = house.submit(listener()).await;
    let lives_for_waits = Engine::open(house.engine.store().clone(), Registry::new()).await.unwrap();
    let _waits = lives_for_waits.start_node(Lab::config("w")).await.unwrap();
    let told = house.submit(teller(listening, "go")).await;
    tokio::time::timeout(std::time::Duration::from_secs(30), dies.ended()).await.unwrap();
    assert!(deaths.fired());
    let _lives = house.another(Lab::config("c")).await;
    assert_eq!(house.lab.settled(told).await.unwrap(), Status::Succeeded);
    let story = house.story(told).await;
    assert_eq!(count(&story, "started only"), 2, "{story}");
    house.lab.settled_for_good(listening).await.unwrap();
    let second = house.outcome(listening, "second", false).await.unwrap();
    assert_eq!(second["by"], "time", "the second wait found no second signal");
}
