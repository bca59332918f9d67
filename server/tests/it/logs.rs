//! The log, as programs read it.

use reqwest::Method;
use serde_json::{Value, json};

use crate::served::{Served, said};
use crate::support::Place;

fn lines(place: &Place) -> Vec<Value> {
    let text = std::fs::read_to_string(place.log()).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// The log of a server on which a step fails twice, and the run.
async fn log(filter: &str) -> (Vec<Value>, String) {
    let settings = [("BACKSTAY_LOG__FORMAT", "json"), ("BACKSTAY_LOG__FILTER", filter)];
    let api = Served::with(Place::with_url().await, "n1", &settings).await;
    let retry = json!({ "first": "5ms", "factor": 1.0, "ceiling": "5ms", "jitter": 0.0, "attempts": 2 });
    let plan = json!({ "workflow": "fails", "steps": [
        { "name": "says", "activity": "log", "input": { "text": "hello" }, "nothing_to_undo": "it talks" },
        { "name": "fails", "activity": "fail", "input": { "message": "no", "retryable": true }, "after": ["says"], "retry": retry,
          "nothing_to_undo": "it fails" } ] });
    let submit = api.request(Method::POST, "/api/v1/runs", &api.admin).header("x-request-id", "req-1");
    let submit = submit.header("content-type", "application/json").body(json!({ "plan": plan }).to_string());
    let run = said(submit).await.is(202).json()["run"].as_str().unwrap().to_owned();
    api.until(&run, "rolled_back").await;
    let look = api.request(Method::GET, &format!("/api/v1/runs/{run}/steps"), &api.admin);
    said(look.header("x-request-id", "req-2")).await.is(200);
    let place = api.end().await;
    (lines(&place), run)
}

fn saying(lines: &[Value], message: &str) -> Vec<Value> {
    let found =
        lines.iter().filter(|line| line["message"].as_str().is_some_and(|text| text.starts_with(message)));
    found.cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_carry_run_step_attempt_and_request() {
    let (all, run) = log("info").await;
    let says = saying(&all, "a plan says").remove(0);
    assert_eq!(
        (&says["text"], &says["run"], &says["step"]),
        (&json!("hello"), &json!(run), &json!("says")),
        "{says}"
    );
    let failed = saying(&all, "the attempt failed");
    for (line, attempt) in failed.iter().zip([1, 2]) {
        let about = ["run", "step", "attempt", "undo", "request"].map(|name| line["span"][name].clone());
        assert_eq!(
            about,
            [json!(run), json!("fails"), json!(attempt), json!(false), json!("req-1")],
            "{line}"
        );
    }
    assert_eq!(failed.len(), 2);
    let answered = saying(&all, "answered");
    for (request, path) in [("req-1", "/api/v1/runs"), ("req-2", "/api/v1/runs/{run}/steps")] {
        let line = answered.iter().find(|line| line["span"]["request"] == request).unwrap();
        assert_eq!((&line["span"]["run"], &line["span"]["path"]), (&json!(run), &json!(path)), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_warnings_alone_says_as_much_of_them() {
    let (all, run) = log("warn").await;
    assert!(saying(&all, "answered").is_empty());
    for line in saying(&all, "the attempt failed") {
        assert_eq!(
            (&line["span"]["run"], &line["span"]["request"]),
            (&json!(run), &json!("req-1")),
            "{line}"
        );
    }
    assert_eq!(saying(&all, "the attempt failed").len(), 2);
}
