//! The program, as a process of its own: killed with SIGKILL and started again with its file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

use backstay_simulator::world::estate;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::client::{Cloud, http};

struct Program {
    child: Child,
    cloud: Cloud,
    control: String,
    said: Vec<String>,
}

impl Program {
    async fn start(args: &[&str]) -> Program {
        let mut child = Command::new(env!("CARGO_BIN_EXE_backstay-simulator"))
            .args(
                ["--cloudstack", "--daemon", "--vma", "--linstor", "--control"]
                    .iter()
                    .flat_map(|flag| [*flag, "127.0.0.1:0"]),
            )
            .args(args)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            if line == "ready" {
                break;
            }
            said.push(line);
        }
        let url = |head: &str| {
            let line =
                said.iter().find(|line| line.starts_with(head)).unwrap_or_else(|| panic!("{head}: {said:?}"));
            line.split_whitespace().find(|word| word.starts_with("http")).unwrap().to_owned()
        };
        let account: Vec<&str> =
            said.iter().find(|line| line.starts_with("account")).unwrap().split_whitespace().collect();
        let cloud = Cloud {
            address: url("CloudStack").replace("http://", "").replace("/client/api", ""),
            key: account[3].into(),
            secret: account[5].into(),
            post: true,
            expires: Some(600),
        };
        let control = url("truth").replace("http://", "").replace("/truth", "");
        Program { child, cloud, control, said }
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let told = http(&self.control, method, path, body.map(|body| body.to_string())).await.unwrap();
        assert_eq!(told.status, 200, "{method} {path}: {told:?}");
        serde_json::from_str(&told.body).unwrap()
    }

    /// SIGKILL, and gone.
    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

fn file(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[tokio::test]
async fn killed_in_the_middle_of_a_job_it_comes_back_with_all_that_it_answered() {
    let place = tempfile::tempdir().unwrap();
    let state = file(&place.path().join("world.json"));
    let first = Program::start(&["--state", &state, "--pace", "0.01"]).await;
    assert_eq!(first.said.len(), 7, "{:?}", first.said);
    let [quick, slow] = [2000, 2001].map(|key| estate::replica("sql-01", key).to_string());
    first.cloud.job("detachVolume", &[("id", &quick)]).await.unwrap();
    let patched =
        first.ask("PATCH", "/settings", Some(json!({ "cloudstack": { "attach_ms": 600_000 } }))).await;
    assert_eq!(patched["cloudstack"]["attach_ms"], 600_000);
    let job = Uuid::new_v4().to_string();
    first.cloud.ok("detachVolume", &[("id", &slow), ("customjobid", &job)]).await;
    first.ask("POST", "/faults", Some(json!({ "system": "cloudstack", "command": "listZones", "calls": "every", "fault": { "kind": "dropped" } }))).await;
    assert!(first.cloud.raw("listZones", &[]).await.is_err());
    first.kill().await;

    let second = Program::start(&["--state", &state]).await;
    let at = |id: String| {
        let cloud = second.cloud.clone();
        async move { cloud.ok("listVolumes", &[("id", &id)]).await["volume"][0]["virtualmachineid"].clone() }
    };
    assert_eq!(at(quick).await, Value::Null, "what was answered is so");
    assert!(at(slow.clone()).await.is_string());
    let told = second.cloud.ok("queryAsyncJobResult", &[("jobid", &job)]).await;
    assert_eq!((&told["jobstatus"], &told["jobresultcode"]), (&json!(2), &json!(530)));
    assert_eq!(second.ask("GET", "/settings", None).await["cloudstack"]["attach_ms"], 600_000);
    let truth = second.ask("GET", "/truth", None).await;
    assert_eq!(truth["effects"]["detachVolume"].as_object().unwrap().len(), 1);
    assert_eq!(truth["violations"], json!([]));
    second.cloud.ok("listZones", &[]).await;
    second.kill().await;
}

#[tokio::test]
async fn killed_at_any_moment_it_has_every_change_that_it_said_was_done() {
    let place = tempfile::tempdir().unwrap();
    let state = file(&place.path().join("world.json"));
    let volume = estate::replica("web-01", 2000).to_string();
    // The tag that was made, and the job that was said to be done.
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    for life in 0..4_u64 {
        let program = Program::start(&["--state", &state, "--pace", "0"]).await;
        let told = program
            .cloud
            .ok("listTags", &[("resourceid", &volume), ("pagesize", "500"), ("page", "1")])
            .await;
        let there: BTreeSet<&str> =
            told["tag"].as_array().into_iter().flatten().map(|tag| tag["key"].as_str().unwrap()).collect();
        for (key, job) in &said {
            assert!(there.contains(key.as_str()), "life {life}: {key} was said to be there");
            let told = program.cloud.ok("queryAsyncJobResult", &[("jobid", job)]).await;
            assert_eq!(told["jobstatus"], 1, "life {life}: the job of {key} was said to be done");
        }
        let cloud = program.cloud.clone();
        let (done, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let resource = volume.clone();
        let writer = tokio::spawn(async move {
            for n in 0.. {
                let (key, value) = (format!("life-{life}-{n}"), n.to_string());
                let tag = [
                    ("resourceids", resource.as_str()),
                    ("resourcetype", "Volume"),
                    ("tags[0].key", key.as_str()),
                    ("tags[0].value", value.as_str()),
                ];
                let Ok(told) = cloud.raw("createTags", &tag).await else { return };
                let told: Value = serde_json::from_str(&told.body).unwrap();
                let job = told["createtagsresponse"]["jobid"].as_str().unwrap().to_owned();
                loop {
                    let Ok(told) = cloud.raw("queryAsyncJobResult", &[("jobid", &job)]).await else { return };
                    let told: Value = serde_json::from_str(&told.body).unwrap();
                    if told["queryasyncjobresultresponse"]["jobstatus"] == 1 {
                        break;
                    }
                }
                done.send((key, job)).unwrap();
            }
        });
        // As many as the seed of this life says, and then not a moment more.
        for _ in 0..3 + life * 5 {
            let (key, job) = heard.recv().await.unwrap();
            said.insert(key, job);
        }
        program.kill().await;
        writer.await.unwrap();
        while let Ok((key, job)) = heard.try_recv() {
            said.insert(key, job);
        }
    }
    assert!(said.len() >= 40, "{}", said.len());
}

#[tokio::test]
async fn the_control_address_tells_the_truth_and_does_what_it_says() {
    let place = tempfile::tempdir().unwrap();
    let faults = place.path().join("faults.json");
    let rules = json!([{ "system": "*", "command": "listCapabilities", "calls": { "nth": 1 }, "fault": { "kind": "refused", "status": 500 } }]);
    std::fs::write(&faults, rules.to_string()).unwrap();
    let program = Program::start(&["--faults", &file(&faults), "--pace", "0"]).await;
    assert_eq!(program.cloud.raw("listCapabilities", &[]).await.unwrap().status, 500);
    assert_eq!(program.ask("GET", "/faults", None).await[0]["times"], 1);
    let source = estate::source("web-01");
    let first = program.ask("POST", &format!("/sources/{source}/write?disk=2000"), None).await["version"]
        .as_u64()
        .unwrap();
    let second = program.ask("POST", &format!("/sources/{source}/write?disk=2000"), None).await["version"]
        .as_u64()
        .unwrap();
    assert_eq!(second, first + 1);
    program.ask("POST", &format!("/sources/{source}/commit"), None).await;
    assert_eq!(program.ask("GET", "/state", None).await["committed"], json!([source]));
    program.ask("POST", "/restart/cloudstack?away_ms=0", None).await;
    program.cloud.ok("listZones", &[]).await;
    program.ask("POST", "/credentials/expire", None).await;
    assert_eq!(program.cloud.call("listZones", &[]).await.unwrap_err().0, 401);
    assert_eq!(program.ask("DELETE", "/faults", None).await, json!([]));
    let wrong = http(&program.control, "POST", "/faults", Some("{}".into())).await.unwrap();
    assert_eq!(wrong.status, 400);
    program.kill().await;
}
