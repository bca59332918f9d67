//! The activity `http` as plans use it: what is sent, and that it is right run twice, killed half way, and undone when
//! nobody knows what it did.

use std::time::Duration;

use backstay_engine::Status;
use serde_json::{Value, json};

use crate::support::{Heard, House, Reply, Settings, Target, count, quick, single, stand};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_called_until_the_configuration_says_where() {
    let target = Target::new(|_, _| Reply::status(200)).await;
    let house = House::new(Settings::default()).await;
    let refused = house.once("http", json!({ "url": target.url("/") })).await.unwrap_err();
    assert_eq!((refused.code.as_str(), refused.retryable), ("http_refused", false));
    let sentence = format!("add an entry with origin = \"{}\" to http.origins", target.origin());
    assert!(refused.message.contains(&sentence), "{}", refused.message);
    assert!(target.heard().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_sent_as_it_is_written() {
    let target = Target::new(|_, _| {
        Reply::json(200, json!({ "ok": true })).with("etag: \"7\"").with("set-cookie: a=b")
    })
    .await;
    let house = House::new(Settings::default().calling(&[&target])).await;
    let output = house
        .once(
            "http",
            json!({
                "url": target.url("/api/v1/"), "path": ["a b/c", 7, { "key_of": "this" }], "query": { "q": "x&y", "n": 5, "no": null },
                "method": "PUT", "headers": { "X-Thing": "one", "X-None": null }, "body": { "mine": { "key_of": "this" }, "n": [1] },
            }),
        )
        .await
        .unwrap();
    assert_eq!(output["headers"], json!({ "content-type": "application/json", "etag": "\"7\"" }));
    assert_eq!((&output["status"], &output["body"]), (&json!(200), &json!({ "ok": true })));
    let heard = target.heard().remove(0);
    let key = heard.key();
    let bare = key.trim_matches('"');
    assert!(key.starts_with('"') && bare.parse::<uuid::Uuid>().is_ok(), "{key}");
    assert_eq!(heard.method, "PUT");
    assert_eq!(heard.path, format!("/api/v1/a%20b%2Fc/7/{bare}?n=5&q=x%26y"));
    assert_eq!(heard.headers["x-thing"], "one");
    assert!(!heard.headers.contains_key("x-none"));
    assert_eq!(heard.headers["content-type"], "application/json");
    assert_eq!(heard.body, json!({ "mine": bare, "n": [1] }).to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_lead_elsewhere_or_frame_the_message_is_refused() {
    let target = Target::new(|_, _| Reply::status(200)).await;
    let house = House::new(Settings::default().calling(&[&target])).await;
    let url = target.url("/api/");
    for input in [
        json!({ "url": url, "path": [".."] }),
        json!({ "url": url, "path": ["."] }),
        json!({ "url": url, "path": [""] }),
        json!({ "url": url, "path": ["a\nb"] }),
        json!({ "url": url, "path": [null] }),
        json!({ "url": url, "headers": { "Host": "elsewhere" } }),
        json!({ "url": url, "headers": { "content-length": "1" } }),
        json!({ "url": url, "headers": { "Transfer-Encoding": "chunked" } }),
        json!({ "url": url, "headers": { "idempotency-key": "mine" } }),
        json!({ "url": url, "headers": { "X-A": "b\r\nX-C: d" } }),
        json!({ "url": url, "headers": { "X A": "b" } }),
        json!({ "url": url, "body": 1 }),
        json!({ "url": url, "method": "POST", "body": 1, "text": "a" }),
        json!({ "url": null }),
        json!({ "url": "no url" }),
    ] {
        let refused = house.once("http", input.clone()).await.unwrap_err();
        assert_eq!((refused.code.as_str(), refused.retryable), ("input", false), "{input}: {refused:?}");
    }
    assert!(target.heard().is_empty());
}

/// A step that makes a thing under its key, and an undo that knows the key.
fn keyed(target: &Target) -> Value {
    json!({ "workflow": "keyed", "retry": quick(4), "undo_retry": quick(8), "steps": [
        { "name": "make", "activity": "http",
          "input": { "url": target.url("/things"), "path": [{ "key_of": "this" }], "method": "PUT", "body": { "name": "x" } },
          "undo": { "activity": "http",
            "input": { "url": target.url("/things"), "path": [{ "key_of": "undone" }], "method": "DELETE" } } },
        { "name": "turn", "activity": "fail", "after": ["make"], "nothing_to_undo": "it does nothing" } ] })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_by_key_needs_no_answer() {
    let (target, things) = Target::shelf(true).await;
    let house = House::new(Settings::default().calling(&[&target])).await;
    let (_, status) = house.play(keyed(&target)).await;
    assert_eq!((status, things.lock().unwrap().len()), (Status::RolledBack, 0));
    let methods: Vec<_> = target.heard().into_iter().map(|heard| heard.method).collect();
    assert_eq!(methods, ["PUT", "DELETE"]);
    let keys: Vec<_> = target.heard().iter().map(|heard| heard.key()).collect();
    assert_ne!(keys[0], keys[1], "an undo is another effect");
}

/// A target that does what it is asked, and then says nothing for the first calls.
fn mute(calls: usize, keeps_keys: bool) -> impl Fn(&Heard, usize) -> Reply + Send + Sync {
    let shelf = std::sync::Mutex::new(Vec::new());
    move |heard, nth| {
        let mut shelf = shelf.lock().unwrap();
        if heard.method == "GET" && heard.path == "/count" {
            return Reply::json(200, json!(shelf.len()));
        }
        let reply = stand(heard, keeps_keys, &mut shelf);
        if nth <= calls { Reply::Silence(Duration::ZERO) } else { reply }
    }
}

async fn things(house: &House, target: &Target) -> Value {
    house.once("http", json!({ "url": target.url("/count") })).await.unwrap()["body"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_has_the_same_key_so_it_is_done_once() {
    let target = Target::new(mute(2, true)).await;
    let house = House::new(Settings::default().calling(&[&target])).await;
    let mut plan =
        single("http", json!({ "url": target.url("/things"), "method": "POST", "body": { "name": "x" } }));
    plan["retry"] = quick(5);
    let (run, status) = house.play(plan).await;
    assert_eq!(status, Status::Succeeded, "{}", house.story(run).await);
    let keys: Vec<_> = target.heard().iter().map(|heard| heard.key()).collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]));
    assert_eq!(things(&house, &target).await, json!(1));
}

/// A step whose target keeps no keys, and gives things ids that only an answer tells. Its probe finds them by name.
fn probed(target: &Target, last: &str) -> Value {
    let things = target.url("/things");
    json!({ "workflow": "probed", "retry": quick(4), "undo_retry": quick(8), "steps": [
        { "name": "make", "activity": "http",
          "input": { "url": things, "method": "POST", "body": { "name": "x" },
            "probe": { "query": { "name": "x" }, "at": "/items/0" } },
          "undo": { "activity": "http",
            "input": { "url": things, "path": [{ "$output": "/body/id" }], "method": "DELETE" } } },
        { "name": "turn", "activity": last, "after": ["make"], "nothing_to_undo": "it does nothing",
          "input": if last == "log" { json!({ "text": "done" }) } else { json!({}) } } ] })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_without_keys_is_asked_before_it_is_told_again() {
    let target = Target::new(mute(1, false)).await;
    let house = House::new(Settings::default().calling(&[&target])).await;
    let (run, status) = house.play(probed(&target, "log")).await;
    let story = house.story(run).await;
    assert_eq!(status, Status::Succeeded, "{story}");
    assert!(story.contains("probed make #1 present"), "{story}");
    let made = house.outcome(run, "make", false).await.unwrap();
    assert_eq!(made["body"], json!({ "id": "id-0" }), "what was found stands for what was not said");
    assert_eq!(things(&house, &target).await, json!(1));
}

/// All answers to the making are lost, and the retries are used up: nothing was ever given that the undo could read.
#[tokio::test(flavor = "multi_thread")]
async fn an_undo_of_what_never_answered_finds_what_is_there() {
    for (there, asked) in [(true, vec!["POST", "GET", "DELETE"]), (false, vec!["POST", "GET"])] {
        let shelf = std::sync::Mutex::new(Vec::new());
        let target = Target::new(move |heard, _| {
            let mut shelf = shelf.lock().unwrap();
            match (heard.method.as_str(), heard.path.as_str()) {
                ("GET", "/count") => Reply::json(200, json!(shelf.len())),
                ("POST", _) => {
                    if there {
                        stand(heard, false, &mut shelf);
                    }
                    Reply::Silence(Duration::ZERO)
                }
                _ => stand(heard, false, &mut shelf),
            }
        });
        let target = target.await;
        let house = House::new(Settings::default().calling(&[&target])).await;
        let mut plan = probed(&target, "log");
        plan["steps"][0]["retry"] = quick(1);
        let (run, status) = house.play(plan).await;
        assert_eq!(status, Status::RolledBack, "{}", house.story(run).await);
        let methods: Vec<_> = target.heard().into_iter().map(|heard| heard.method).collect();
        assert_eq!(methods, asked, "{}", house.story(run).await);
        let undone = house.outcome(run, "make", true).await.unwrap();
        assert_eq!(undone["nothing_to_do"].is_string(), !there);
        assert_eq!(things(&house, &target).await, json!(0));
    }
}

/// Without a probe nobody can know what to undo: it is not said to be undone.
#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_cannot_know_what_to_undo_says_so() {
    let target = Target::new(|_, _| Reply::Silence(Duration::ZERO)).await;
    let house = House::new(Settings::default().calling(&[&target])).await;
    let mut plan = probed(&target, "log");
    plan["steps"][0]["retry"] = quick(1);
    plan["steps"][0]["input"].as_object_mut().unwrap().remove("probe");
    let (run, status) = house.play(plan).await;
    assert_eq!(status, Status::Stuck);
    let why = house.outcome(run, "make", true).await.unwrap_err().message;
    assert!(why.contains("give it a \"probe\""), "{why}");
    assert_eq!(target.heard().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_is_done_twice_is_done_once() {
    let (target, things) = Target::shelf(true).await;
    // The first DELETE is heard and not answered.
    let proxy_to = std::sync::Arc::clone(&things);
    let target = {
        let deletes = std::sync::atomic::AtomicU32::new(0);
        drop(target);
        Target::new(move |heard, _| {
            let reply = stand(heard, true, &mut proxy_to.lock().unwrap());
            let first =
                heard.method == "DELETE" && deletes.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            if first { Reply::Silence(Duration::ZERO) } else { reply }
        })
        .await
    };
    let house = House::new(Settings::default().calling(&[&target])).await;
    let (run, status) = house.play(keyed(&target)).await;
    let story = house.story(run).await;
    assert_eq!((status, things.lock().unwrap().len()), (Status::RolledBack, 0), "{story}");
    assert_eq!(count(&story, "started undo make"), 2, "{story}");
    assert_eq!(
        house.outcome(run, "make", true).await.unwrap()["status"],
        404,
        "it was gone, which is what was wanted"
    );
}

/// The node dies at every crash point around the call; another goes on.
#[tokio::test(flavor = "multi_thread")]
async fn wherever_its_node_dies_a_call_is_made_once_and_undone_once() {
    use backstay_tests::{Deaths, Lab};
    for (point, fails) in
        [("call.before", false), ("call.after", false), ("call.before", true), ("call.after", true)]
    {
        let (target, things) = Target::shelf(false).await;
        let mut house = House::new(Settings::default().calling(&[&target])).await;
        drop(house.node.take());
        let deaths = Deaths::at(point, 1);
        let mut config = Lab::config("b");
        config.crash_hook = Some(deaths.hook());
        config.rejoin = false;
        let dies = house.another(config).await;
        let run = house.submit(probed(&target, if fails { "fail" } else { "log" })).await;
        tokio::time::timeout(Duration::from_secs(20), dies.ended()).await.unwrap();
        assert!(deaths.fired());
        let _lives = house.another(Lab::config("c")).await;
        let status = house.lab.settled(run).await.unwrap();
        let story = house.story(run).await;
        let wanted = if fails { (Status::RolledBack, 0) } else { (Status::Succeeded, 1) };
        assert_eq!((status, things.lock().unwrap().len()), wanted, "{point}\n{story}");
        let posts = target.heard().iter().filter(|heard| heard.method == "POST").count();
        assert_eq!(posts, 1, "{point}: the probe saw it\n{story}");
    }
}
