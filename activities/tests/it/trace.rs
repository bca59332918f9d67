//! What activities call belongs to the trace of whoever submitted the run.

use backstay_engine::{Sender, SubmitOptions};
use serde_json::{Value, json};

use backstay_activities::CommandSettings;

use crate::support::{House, Reply, Settings, Target, program};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Calls a target and a program, probes for what it did, and undoes it.
fn plan(target: &Target) -> Value {
    let call = json!({ "url": target.url("/made"), "method": "POST" });
    let undo = json!({ "url": target.url("/unmade"), "method": "POST" });
    json!({ "workflow": "traced", "steps": [
        { "name": "call", "activity": "http", "input": call, "undo": { "activity": "http", "input": undo } },
        { "name": "run", "activity": "command", "input": { "program": "tool" }, "after": ["call"], "nothing_to_undo": "it only prints" },
        { "name": "fail", "activity": "fail", "input": { "message": "back" }, "after": ["run"], "retry": { "attempts": 1 }, "nothing_to_undo": "it fails" } ] })
}

/// The headers of both calls, and what the program printed.
async fn handed_on(trace: Option<&str>) -> (Vec<Option<String>>, Value) {
    let target = Target::new(|_, _| Reply::status(200)).await;
    let dir = tempfile::tempdir().unwrap();
    let tool = program(dir.path(), "tool", "printf %s \"${TRACEPARENT-none}\"");
    let command = CommandSettings { programs: [("tool".to_owned(), tool)].into(), locks: None };
    let house = House::new(Settings { command, ..Settings::default() }.calling(&[&target])).await;
    let by =
        Sender { who: "me".into(), why: "a test".into(), via: None, trace: trace.map(ToOwned::to_owned) };
    let options = SubmitOptions { by: Some(by), ..SubmitOptions::default() };
    let run = house.submit_with(plan(&target), options).await;
    house.lab.settled(run).await.unwrap();
    let heard = target.heard();
    assert_eq!(heard.iter().map(|heard| heard.path.as_str()).collect::<Vec<_>>(), ["/made", "/unmade"]);
    let printed = house.outcome(run, "run", false).await.unwrap()["stdout"].clone();
    (heard.iter().map(|heard| heard.headers.get("traceparent").cloned()).collect(), printed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_handed_on_to_servers_and_programs_forward_and_undoing() {
    let (headers, printed) = handed_on(Some(TRACE)).await;
    assert_eq!(headers, [Some(TRACE.to_owned()), Some(TRACE.to_owned())]);
    assert_eq!(printed, TRACE);
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_of_any_trace_nothing_is_handed_on() {
    for none in [None, Some("00-nothing-of-the-kind-01")] {
        let (headers, printed) = handed_on(none).await;
        assert_eq!((headers, printed), (vec![None, None], json!("none")));
    }
}
