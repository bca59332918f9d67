//! What targets answer, and do not: bounds are kept, and a failure says what is known.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{House, Reply, Settings, Target, not_applied};

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_cut_while_it_comes() {
    const FLOOD: usize = 50 << 20;
    let target = Target::new(|_, _| Reply::Flood(FLOOD)).await;
    let house = House::new(Settings::default().calling(&[&target])).await;
    let kept =
        house.once("http", json!({ "url": target.url("/"), "response": { "most": 1000 } })).await.unwrap();
    assert_eq!((kept["body"].as_str().unwrap().len(), &kept["truncated"]), (1000, &json!(true)));
    assert!(target.sent.load(Ordering::Relaxed) < FLOOD / 2, "most of it never left");
    let wanted = json!({ "url": target.url("/"), "response": { "as": "json" } });
    let refused = house.once("http", wanted).await.unwrap_err();
    assert_eq!((refused.code.as_str(), refused.retryable), ("http_answer", false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trickle_has_as_long_as_the_call_has() {
    let target = Target::new(|_, _| Reply::Trickle).await;
    let house = House::new(Settings::default().calling(&[&target])).await;
    let begun = Instant::now();
    let asked = json!({ "url": target.url("/"), "method": "POST", "timeout": "500ms" });
    let failed = house.once("http", asked).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!((failed.code.as_str(), failed.retryable), ("http_unanswered", true));
    assert!(!not_applied(&failed), "it was heard");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_that_is_deep_broken_or_full_of_nothing_does_no_harm() {
    let target = Target::new(|heard, _| {
        let say = |body: String| Reply::Say(200, vec!["content-type: application/json".into()], body);
        match heard.path.as_str() {
            "/deep" => say("[".repeat(100_000) + &"]".repeat(100_000)),
            "/too-deep" => say("[".repeat(65) + &"]".repeat(65)),
            "/deep-enough" => say("[".repeat(64) + &"]".repeat(64)),
            "/broken" => say("{\"password\": \"hunter2\", ".into()),
            "/nul" => say("{\"a\\u0000\": \"b\\u0000\"}".into()),
            "/huge" => say("9".repeat(400)),
            "/twice" => say("{\"a\": 1, \"a\": 2}".into()),
            "/empty" => say(String::new()),
            _ => Reply::Say(200, Vec::new(), "a\0b".into()),
        }
    });
    let target = target.await;
    let house = House::new(Settings::default().calling(&[&target])).await;
    let get = async |path: &str| {
        let most = json!({ "most": 131_072 });
        house.once("http", json!({ "url": target.url(path), "response": most })).await
    };
    assert!(get("/deep-enough").await.is_ok());
    for path in ["/deep", "/too-deep", "/broken", "/huge"] {
        let refused = get(path).await.unwrap_err();
        assert_eq!((refused.code.as_str(), refused.retryable), ("http_answer", false), "{path}");
        assert!(!format!("{refused:?}").contains("hunter2"));
    }
    assert_eq!(get("/nul").await.unwrap()["body"], json!({ "a\u{fffd}": "b\u{fffd}" }));
    assert_eq!(get("/twice").await.unwrap()["body"], json!({ "a": 2 }));
    assert_eq!(get("/empty").await.unwrap()["body"], Value::Null);
    assert_eq!(get("/text").await.unwrap()["body"], "a\u{fffd}b");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_at_home_means_that_nothing_was_sent() {
    let gone = Target::new(|_, _| Reply::status(200)).await;
    let settings = Settings::default().calling(&[&gone]);
    let url = gone.url("/");
    drop(gone);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let house = House::new(settings).await;
    let failed = house.once("http", json!({ "url": url, "method": "POST" })).await.unwrap_err();
    assert_eq!((failed.code.as_str(), failed.retryable), ("http_unreachable", true));
    assert!(not_applied(&failed));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_hangs_up_may_have_done_it() {
    let target = Target::new(|heard, _| match heard.path.as_str() {
        "/silence" => Reply::Silence(Duration::from_secs(60)),
        "/hang-up" => Reply::Silence(Duration::ZERO),
        "/garbage" => Reply::Raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()),
        _ => Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_vec()),
    });
    let target = target.await;
    let house = House::new(Settings::default().calling(&[&target])).await;
    for path in ["/silence", "/hang-up", "/garbage", "/half"] {
        let asked = json!({ "url": target.url(path), "method": "POST", "timeout": "500ms" });
        let failed = house.once("http", asked).await.unwrap_err();
        assert_eq!((failed.code.as_str(), failed.retryable), ("http_unanswered", true), "{path}: {failed:?}");
        assert!(!not_applied(&failed), "{path}");
    }
    assert_eq!(target.heard().len(), 4, "nothing was repeated beneath the engine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_says_whether_to_try_again_and_whether_it_was_done() {
    let target = Target::new(|heard, _| {
        let (status, wait) = heard.path[1..].split_once('/').unwrap();
        let reply = Reply::json(status.parse().unwrap(), json!({ "why": "because" }));
        if wait.is_empty() { reply } else { reply.with(&format!("retry-after: {wait}")) }
    });
    let target = target.await;
    let house = House::new(Settings::default().calling(&[&target])).await;
    let post = async |path: &str, more: Value| {
        let mut input = json!({ "url": target.url(path), "method": "POST" });
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let failed = house.once("http", input).await.unwrap_err();
        assert!(failed.message.contains("because"), "{failed:?}");
        let wait = failed.retry_after.map(|span| span.0.as_secs());
        (failed.code.clone(), failed.retryable, not_applied(&failed), wait)
    };
    for (path, retryable, not_applied, wait) in [
        ("/400/", false, true, None),
        ("/404/", false, true, None),
        ("/409/", true, false, None),
        ("/409/7", true, false, Some(7)),
        ("/425/", true, true, None),
        ("/429/30", true, true, Some(30)),
        ("/500/", true, false, None),
        ("/503/5", true, false, Some(5)),
        ("/302/", false, false, None),
    ] {
        let code = format!("http_{}", &path[1..4]);
        assert_eq!(post(path, json!({})).await, (code, retryable, not_applied, wait), "{path}");
    }
    let told = json!({ "on_status": { "40x": "retry" } });
    let (run, _) = house
        .play(crate::support::single(
            "http",
            json!({ "url": target.url("/400/"), "on_status": told["on_status"] }),
        ))
        .await;
    assert!(house.outcome(run, "only", false).await.unwrap_err().message.contains("is no status"));
    let told = json!({ "on_status": { "400-404": "retry_not_applied" } });
    assert_eq!(post("/404/", told).await, ("http_404".into(), true, true, None));
}
