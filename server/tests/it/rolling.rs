//! A release is rolled out over two nodes while callers submit: nothing that was acknowledged is lost, and nobody is
//! answered with a mistake of ours.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::header::RETRY_AFTER;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::served::Served;
use crate::support::Place;

/// What the callers share: where the nodes are, and what they were told.
#[derive(Default)]
pub struct Callers {
    pub bases: Mutex<Vec<String>>,
    /// Key of the submission, and the run that it was acknowledged with; and whether that run rolls back.
    pub acknowledged: Mutex<BTreeMap<String, (String, bool)>>,
    pub refused: AtomicUsize,
    unreachable: AtomicUsize,
    pub enough: AtomicBool,
}

impl Callers {
    /// Submits under one key, at one node and then at the other, until it is acknowledged.
    pub async fn submit(&self, client: &reqwest::Client, token: &str, key: &str, fails: bool) -> String {
        let mut crossed = false;
        for turn in key.len().. {
            let base = {
                let bases = self.bases.lock().unwrap();
                bases[turn % bases.len()].clone()
            };
            let request =
                client.post(format!("{base}/api/v1/runs")).bearer_auth(token).header("idempotency-key", key);
            let body = json!({ "plan": plan(fails) }).to_string();
            let answer = request.header("content-type", "application/json").body(body).send().await;
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) if is_nobody_there(&error) || is_cut(&error) => {
                    crossed |= is_cut(&error);
                    self.unreachable.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                Err(error) => panic!("{base}: {error:?}"),
            };
            let status = answer.status().as_u16();
            if status == 503 {
                assert!(answer.headers().contains_key(RETRY_AFTER), "{answer:?}");
                self.refused.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            // Whole, and as it should be: an answer that was begun is ended.
            let text = answer.text().await.unwrap();
            assert!(status == 202 || status == 200, "{status} {text}");
            assert!(!crossed || status == 202, "what was cut had been taken, and was not answered: {text}");
            let run: Value = serde_json::from_str(&text).unwrap();
            return run["run"].as_str().unwrap().to_owned();
        }
        unreachable!("turns do not end")
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    pub async fn go_on(&self, more: usize) {
        let (until, deadline) = (self.count() + more, Instant::now() + Duration::from_secs(60));
        while self.count() < until {
            assert!(Instant::now() < deadline, "the callers do not get on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The connection ended before there was an answer: the request has crossed the farewell to a connection that was idle. If
/// it had been taken, the next one under its key would be told so.
fn is_cut(error: &reqwest::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(one) = cause {
        if one.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message) {
            return true;
        }
        cause = one.source();
    }
    false
}

/// Nobody listens any more, or whoever had not yet been let in was sent away. That a request was taken and not answered
/// is something else: the connection is then ended, and not refused or reset.
fn is_nobody_there(error: &reqwest::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(one) = cause {
        if let Some(io) = one.downcast_ref::<std::io::Error>() {
            return error.is_connect() || matches!(io.kind(), BrokenPipe | ConnectionReset);
        }
        cause = one.source();
    }
    error.is_connect()
}

/// Three steps, with a short wait in the middle so that runs are under way whenever a node goes; some fail at the end.
fn plan(fails: bool) -> Value {
    let say = json!({ "text": "on the way" });
    let undo = json!({ "activity": "log", "input": say });
    let mut steps = vec![
        json!({ "name": "one", "activity": "log", "input": say, "undo": undo }),
        json!({ "name": "moment", "activity": "wait", "input": { "for": "300ms" }, "after": ["one"],
            "nothing_to_undo": "waiting changes nothing" }),
        json!({ "name": "two", "activity": "log", "input": say, "undo": undo, "after": ["moment"] }),
    ];
    if fails {
        steps.push(
            json!({ "name": "trip", "activity": "fail", "input": { "applied": "no" }, "after": ["two"],
            "nothing_to_undo": "it does nothing" }),
        );
    }
    json!({ "workflow": "rolling", "steps": steps })
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_are_replaced_one_after_the_other_under_load() {
    const CALLERS: usize = 6;
    const PHASE: usize = 60;
    let first = Served::on(Place::with_url().await, "n1").await;
    let second = Served::on(first.place.another(), "n2").await;
    let admin = first.admin.clone();
    let callers = Arc::new(Callers::default());
    *callers.bases.lock().unwrap() = vec![first.base.clone(), second.base.clone()];
    let mut tasks = JoinSet::new();
    for caller in 0..CALLERS {
        let (callers, admin) = (callers.clone(), admin.clone());
        tasks.spawn(async move {
            // Each request finds a node anew, as behind a load balancer.
            let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0);
            let client = client.timeout(Duration::from_secs(30)).build().unwrap();
            for n in 0.. {
                if callers.enough.load(Ordering::SeqCst) {
                    break;
                }
                let (key, fails) =
                    (format!("{caller}-{}", "n".repeat(n % 2 + 1) + &n.to_string()), n % 5 == 0);
                let run = callers.submit(&client, &admin, &key, fails).await;
                callers.acknowledged.lock().unwrap().insert(key, (run, fails));
            }
        });
    }
    callers.go_on(PHASE).await;

    // The first is drained and ends; the second serves alone; the first comes again. Then the other way round.
    let place = first.end().await;
    callers.go_on(PHASE).await;
    let first = Served::on(place, "n1").await;
    callers.bases.lock().unwrap()[0] = first.base.clone();
    callers.go_on(PHASE).await;
    let place = second.end().await;
    callers.go_on(PHASE).await;
    let second = Served::on(place, "n2").await;
    callers.bases.lock().unwrap()[1] = second.base.clone();
    callers.go_on(PHASE).await;
    callers.enough.store(true, Ordering::SeqCst);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }

    let acknowledged = callers.acknowledged.lock().unwrap().clone();
    let refused = (callers.refused.load(Ordering::SeqCst), callers.unreachable.load(Ordering::SeqCst));
    assert!(refused.0 + refused.1 > 0, "nobody noticed that a node was away");
    println!(
        "{} runs; {} times told to come again, {} times nobody there",
        acknowledged.len(),
        refused.0,
        refused.1
    );
    for (run, fails) in acknowledged.values() {
        first.until(run, if *fails { "rolled_back" } else { "succeeded" }).await;
    }
    let stored: i64 = sqlx::query_scalar("select count(*) from runs")
        .fetch_one(&mut first.place.sql().await)
        .await
        .unwrap();
    assert_eq!(usize::try_from(stored).unwrap(), acknowledged.len(), "each key is one run");
    first.place.run(&["check"]).await.exits(0).says("checked ");
    // Nobody died: each handed over what it had.
    let ends: Vec<String> = sqlx::query_scalar("select ended_why from nodes where ended_why is not null")
        .fetch_all(&mut first.place.sql().await)
        .await
        .unwrap();
    assert_eq!(ends, ["stopped", "stopped"]);
    first.end().await;
    second.end().await;
}
