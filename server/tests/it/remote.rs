//! The command line against a server: what it prints, how it exits.

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::served::{Served, said, waiting_plan};
use crate::support::{Place, Ran, Running, ran};

impl Served {
    pub async fn cli(&self, arguments: &[&str]) -> Ran {
        ran(self.place.command(arguments).env("BACKSTAY_SERVER", &self.base)).await
    }

    fn plan(&self, plan: &Value) -> String {
        self.place.file("plan.json", &plan.to_string()).display().to_string()
    }
}

fn json_of(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:#?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_started_watched_and_steered_from_the_command_line() {
    let api = Served::start().await;
    let plan = api.plan(&waiting_plan("waits"));
    api.cli(&["run", "start", "--plan", &plan, "--dry-run"])
        .await
        .exits(0)
        .says("The plan is right.")
        .says("If w fails for good, nothing is undone");
    let started = api
        .cli(&["run", "start", "--plan", &plan, "--label", "site=west", "--exclusive", "vm-1", "--key", "k"])
        .await
        .exits(0);
    let run = started.out.trim().to_owned();
    // The same key is the same run.
    let again = api
        .cli(&["run", "start", "--plan", &plan, "--label", "site=west", "--exclusive", "vm-1", "--key", "k"])
        .await
        .exits(0);
    assert_eq!(again.out.trim(), run);
    let taken = api.cli(&["run", "start", "--plan", &plan, "--exclusive", "vm-1"]).await.exits(4);
    taken.complains("Another live run holds the exclusive key").complains(&run);
    api.until(&run, "waiting").await;

    api.cli(&["run", "list"])
        .await
        .exits(0)
        .says("RUN")
        .says(&run)
        .says("waiting")
        .says("w waits for the signal");
    assert_eq!(
        api.cli(&["run", "list", "-o", "name", "--label", "site=west"]).await.exits(0).out.trim(),
        run
    );
    assert_eq!(api.cli(&["run", "list", "-o", "name", "--label", "site=east"]).await.exits(0).out, "");
    assert_eq!(json_of(&api.cli(&["run", "list", "-o", "json"]).await.exits(0))["status"], "waiting");
    assert_eq!(json_of(&api.cli(&["run", "get", &run, "-o", "json"]).await.exits(0))["run"], json!(run));
    api.cli(&["run", "steps", &run]).await.exits(0).says("STEP").says("for the signal \"go\"");
    api.cli(&["run", "resources", &run]).await.exits(0).says("KIND");
    let said = api.cli(&["run", "explain", &run]).await.exits(0);
    said.says("Why:     w waits for the signal \"go\"")
        .says("Left:    as long as others take: the signal \"go\" (w)\n");
    api.cli(&["run", "export", &run]).await.exits(0).says("# ");
    api.cli(&["run", "picture", &run]).await.exits(0).says("<svg");
    api.cli(&["run", "picture", &run, "--as", "mermaid"]).await.exits(0).says("flowchart");
    for (which, found) in [("--since", run.as_str()), ("--until", "")] {
        let listed = api.cli(&["run", "list", "-o", "name", which, "2026-01-01T00:00:00Z"]).await.exits(0);
        assert_eq!(listed.out.trim(), found, "{which}");
    }
    // What is wrong is said once, and where.
    let wrong = api.cli(&["run", "list", "--since", "yesterday"]).await.exits(2).complains("query/since: ");
    assert_eq!(wrong.err.matches("query/since").count(), 1, "{wrong:?}");

    let mut watching = api.place.command(&["run", "watch", &run]);
    let mut watching = Running::start(watching.env("BACKSTAY_SERVER", &api.base));
    watching.until_it_says("w").await;
    api.cli(&["run", "pause", &run, "--why", "a look"]).await.exits(0).says("Done: event ");
    api.cli(&["run", "resume", &run]).await.exits(0);
    api.cli(&["run", "signal", &run, "go", "--payload", "{\"by\":\"hand\"}"]).await.exits(0);
    watching.end().await.exits(0).says("succeeded");

    // What cannot be taken back is asked about, and nobody can be asked here.
    let unasked = api.cli(&["run", "rollback", &run]).await.exits(2);
    unasked.complains("The run is rolled back; nothing has to be undone.").complains("add --yes");
    assert_eq!(api.status(&run).await, "succeeded");
    let no = ["run", "reject", &run, "w", "--right", "r"];
    api.cli(&no).await.exits(2).complains("You say no to step w").complains("add --yes");
    let gone = ["run", "account", &run, "w", "--kind", "volume", "--name", "v-1", "--became", "gone"];
    api.cli(&gone).await.exits(2).complains("It needs a reason");
    api.cli(&[&gone[..], &["--why", "I looked"]].concat()).await.exits(2).complains("add --yes");
    let told = api.cli(&[&gone[..], &["--why", "I looked", "--yes"]].concat()).await.exits(4);
    told.complains("The run refused");
    api.cli(&["run", "commit", &run, "--yes"]).await.exits(0);
    api.until(&run, "committed").await;
    api.cli(&["run", "cancel", &run, "--yes"]).await.exits(4).complains("The run refused");
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_and_inputs_are_yaml_or_json_in_files_or_piped_in() {
    const PLAN: &str = "workflow: greets\nsteps:\n  - name: hello   # to all\n    activity: log\n    input: { text: hello }\n    \
                        nothing_to_undo: it talks\n";
    let api = Served::start().await;
    let plan = api.place.file("plan.yaml", PLAN);
    let piped = async |what: &std::path::Path| {
        let mut command = api.place.command(&["run", "start", "--plan", "-", "--wait"]);
        command.env("BACKSTAY_SERVER", &api.base).stdin(std::fs::File::open(what).unwrap());
        ran(&mut command).await
    };
    api.cli(&["run", "start", "--wait", "--plan", plan.to_str().unwrap()]).await.exits(0);
    piped(&plan).await.exits(0);
    let in_json = api.plan(&waiting_plan("waits"));
    api.cli(&["run", "start", "--plan", &in_json]).await.exits(0);
    // What is wrong is found before anybody is asked, with its place.
    let wrong = api.place.file("wrong.yaml", &PLAN.replace("activity: log", "name: again"));
    let said = "is not understood: the key \"name\" stands twice in one map at line 4 column 5.";
    api.cli(&["run", "start", "--plan", wrong.to_str().unwrap()])
        .await
        .exits(2)
        .complains(&format!("wrong.yaml {said}"));
    piped(&wrong).await.exits(2).complains(&format!("stdin {said}"));
    let wrong = api.place.file("wrong.json", "{\"steps\": [\n  {\"name\" 1}]}");
    let said = "wrong.json is not understood: expected `:` at line 2 column 11.";
    api.cli(&["run", "start", "--plan", wrong.to_str().unwrap()]).await.exits(2).complains(said);
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workflows_are_listed_planned_and_started_by_name() {
    let place = Place::with_url().await;
    let file = place.file("greet.yaml", GREET);
    let dir = place.path("workflows");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(file, dir.join("greet.yaml")).unwrap();
    let settings = [("BACKSTAY_WORKFLOWS__DIR", dir.to_str().unwrap())];
    let api = Served::with(place, "n1", &settings).await;
    let all = api.get("/api/v1/workflows").await.is(200).json();
    assert_eq!((all[0]["name"].as_str(), all.as_array().unwrap().len()), (Some("greet"), 1));
    let one = api.get("/api/v1/workflows/greet").await.is(200).json();
    assert!(one["input"]["properties"]["people"].is_object(), "{one}");
    api.get("/api/v1/workflows/none").await.is(404);
    let input = json!({ "people": ["ann", "ben"] });
    let planned = api.post("/api/v1/workflows/greet/plan", json!({ "input": input })).await.is(200).json();
    assert_eq!(planned["plan"]["steps"].as_array().unwrap().len(), 2);
    let undone = planned["if_fails"].as_array().unwrap().iter().map(|one| one["step"].clone());
    assert_eq!(undone.collect::<Vec<_>>(), ["greet-ann", "greet-ben"], "what each failure would undo");
    for (form, begins) in [("svg", "<svg"), ("dot", "digraph"), ("mermaid", "flowchart")] {
        let path = format!("/api/v1/workflows/greet/picture?as={form}");
        let drawn = api.post(&path, json!({ "input": input })).await.is(200);
        assert!(drawn.text.starts_with(begins) && drawn.text.contains("greet-ben"), "{drawn:?}");
    }
    let wrong = api
        .post("/api/v1/runs", json!({ "workflow": "greet", "input": { "people": "ann", "x": 1 } }))
        .await
        .is(422);
    assert!(wrong.json()["errors"].as_array().unwrap().len() >= 2, "all at once: {wrong:?}");

    // Who may submit may not thereby submit anything.
    let cem = api.person("cem", &["operator"]).await;
    let own = api.post_as("/api/v1/runs", json!({ "plan": waiting_plan("greet") }), &cem, None).await.is(403);
    assert_eq!(own.json()["right"], "define");
    let run = api
        .post_as("/api/v1/runs", json!({ "workflow": "greet", "input": input }), &cem, None)
        .await
        .is(202)
        .json();
    assert_eq!(run["plan_hash"], planned["hash"], "what was shown is what runs");
    assert_eq!(run["labels"]["workflow_version"], all[0]["version"]);
    api.until(run["run"].as_str().unwrap(), "succeeded").await;

    let given = api.place.file("input.json", &input.to_string()).display().to_string();
    api.cli(&["run", "start", "greet", "--input", &given, "--dry-run"])
        .await
        .exits(0)
        .says("If greet-ann fails for good");
    api.cli(&["run", "start", "greet", "--input", &given, "--wait"]).await.exits(0).says("succeeded");
    // Where a server is named, its workflows are shown, and it is said; a directory that is named is meant.
    let from = format!("Workflows of the server at {}\n", api.base);
    let listed = api.cli(&["workflow", "list"]).await.exits(0).says("greet  ").says("  Greets people\n");
    assert_eq!(listed.err, from);
    let listed = json_of(&api.cli(&["workflow", "list", "--json"]).await.exits(0));
    assert_eq!(listed[0]["version"], all[0]["version"]);
    let shown = api.cli(&["workflow", "show", "greet"]).await.exits(0).complains(&from);
    shown.says("Name:     greet\n").says("  people  list of string\n");
    api.cli(&["workflow", "show", "none"]).await.exits(3).complains("there is no workflow \"none\"");
    let plan = ["workflow", "plan", "greet", "--input", &given];
    let at_server = api.cli(&plan).await.exits(0).complains(&from);
    let here = [&plan[..], &["--dir", dir.to_str().unwrap()]].concat();
    let here = api.cli(&here).await.exits(0).complains("Workflows of this machine, from ");
    assert_eq!(at_server.out, here.out, "the same file makes the same plan");
    let planned_there = json_of(&api.cli(&[&plan[..], &["--json"]].concat()).await.exits(0));
    assert_eq!(
        (&planned_there["hash"], &planned_there["workflow"]),
        (&planned["hash"], &json!("greet")),
        "as the API gives it"
    );
    let one = [&plan[..], &["--failing", "greet-ben"]].concat();
    assert!(!api.cli(&one).await.exits(0).says("If greet-ben fails").out.contains("If greet-ann fails"));
    api.cli(&["workflow", "picture", "greet", "--input", &given])
        .await
        .exits(0)
        .says("<svg")
        .says("greet-ben");
    let empty = api.place.path("nothing");
    std::fs::create_dir_all(&empty).unwrap();
    let none = api.cli(&["workflow", "list", "--dir", empty.to_str().unwrap()]).await.exits(0);
    assert_eq!(none.out, "", "a directory is meant, whatever server there is");
    api.cli(&["run", "start", "none", "--wait"]).await.exits(3).complains("there is no workflow");
    // What is submitted stays as it was, whatever becomes of the file; a wrong file is named before anything is served.
    let place = api.end().await;
    std::fs::write(dir.join("greet.yaml"), GREET.replace("log", "lgo")).unwrap();
    let mut command = place.command(&["serve"]);
    command
        .envs(settings)
        .env("BACKSTAY_LISTEN__ADDRESS", "127.0.0.1:0")
        .env("BACKSTAY_LISTEN__HEALTH", "127.0.0.1:0");
    ran(&mut command).await.exits(1).complains("greet.yaml").complains("lgo");
}

const GREET: &str = r#"
workflow: greet
title: Greets people
input:
  people:
    type: array
    items: { type: string, pattern: "^[a-z]+$" }
    minItems: 1
    maxItems: 5
examples:
  - title: one
    input: { people: [ann] }
steps:
  - each: inputs.people
    as: person
    key: person
    steps:
      - name: greet
        activity: log
        input: { text: "hello, ${person}" }
        nothing_to_undo: a greeting is out
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_says_how_it_ended() {
    let api = Served::start().await;
    let until = |input: Value| {
        let step = json!({ "name": "w", "activity": "wait", "input": input, "nothing_to_undo": "it waits" });
        json!({ "workflow": "x", "steps": [step] })
    };
    let plan = api.plan(&until(json!({ "for": "10ms" })));
    api.cli(&["run", "start", "--plan", &plan, "--wait"]).await.exits(0).says("succeeded");
    let ended = api.cli(&["run", "start", "--plan", &plan, "--wait", "-o", "json"]).await.exits(0);
    assert_eq!(json_of(&ended)["status"], "succeeded");
    let plan = api.plan(&until(json!({ "signal": "never", "within": "10ms" })));
    api.cli(&["run", "start", "--plan", &plan, "--wait"]).await.exits(7).complains("is rolled back");
    let mut held = until(json!({ "signal": "never", "within": "10ms" }));
    held["steps"][0]["on_failure"] = json!("hold");
    let plan = api.plan(&held);
    let waits = api.cli(&["run", "start", "--plan", &plan, "--wait"]).await.exits(8);
    waits.complains("is held: somebody has to decide");
    let run = api.cli(&["run", "list", "-o", "name", "--status", "held"]).await.out.trim().to_owned();

    api.cli(&["run", "skip", &run, "w", "--yes"]).await.exits(2).complains("It needs a reason");
    api.cli(&["run", "skip", &run, "w", "--yes", "--why", "seen", "--result", "nothing"])
        .await
        .exits(2)
        .complains("--result is no JSON");
    api.cli(&["run", "skip", &run, "w", "--yes", "--why", "seen", "--result", "null"]).await.exits(0);
    api.until(&run, "succeeded").await;

    let bad = api.plan(&json!({ "workflow": "x", "steps": [{ "name": "a", "activity": "nothing" }] }));
    let bad = api.cli(&["run", "start", "--plan", &bad]).await.exits(2);
    bad.complains("The plan, or the input of the workflow, was not taken").complains("\n  a: ");
    api.cli(&["run", "start", "--plan", "no-such-file"])
        .await
        .exits(1)
        .complains("Reading no-such-file failed");
    api.cli(&["run", "get", "00000000-0000-0000-0000-000000000000"]).await.exits(3);
    api.cli(&["run", "get", "x"]).await.exits(2);
    let waits = api.waiting_run().await;
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut watching = api.place.command(&["run", "watch", &waits]);
        let mut watching = Running::start(watching.env("BACKSTAY_SERVER", &api.base));
        watching.until_it_says("started").await;
        watching.signal(signal);
        watching.end().await.exits(code);
    }
    let elsewhere = ["run", "list", "--server", "http://127.0.0.1:9"];
    api.cli(&elsewhere).await.exits(5).complains("cannot be reached").complains("backstay serve");
    api.cli(&["run", "list", "--server", "http://example.com"]).await.exits(2).complains("not encrypted");
    api.cli(&["run", "list", "--server", "nonsense"]).await.exits(2).complains("is no address of a server");
    api.cli(&["run", "list", "--token-file", "/no/such/token"]).await.exits(6).complains("No token");
    let other = Place::embedded().file("token", "bst_no");
    drop(other);
    let mut wrong = api.place.command(&["run", "list"]);
    let wrong =
        ran(wrong.env("BACKSTAY_SERVER", &api.base).env("BACKSTAY_TOKEN", "bst_wrong")).await.exits(6);
    wrong.complains("Nobody knows who asks");
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_and_tokens_are_managed_and_the_trail_is_read() {
    let api = Served::start().await;
    api.cli(&["principal", "add", "ben", "--role", "viewer"])
        .await
        .exits(0)
        .says("backstay token create ben");
    api.cli(&["principal", "add", "ben", "--role", "viewer"])
        .await
        .exits(4)
        .complains("there is a principal ben already");
    api.cli(&["principal", "add", "x", "--role", "king"]).await.exits(2).complains("body/roles/0");
    let made = api.cli(&["token", "create", "ben", "--label", "laptop", "--days", "2"]).await.exits(0);
    let token = api.place.file("ben", &made.out).display().to_string();
    let whoami = ["token", "whoami", "--token-file", &token];
    api.cli(&whoami).await.exits(0).says("ben").says("view");
    api.cli(&["principal", "list", "--token-file", &token])
        .await
        .exits(6)
        .complains("it needs the right \"admin\"");
    api.cli(&["principal", "roles", "ben", "--role", "admin"]).await.exits(0);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(6);
    while api.cli(&["principal", "list", "--token-file", &token]).await.code != Some(0) {
        assert!(std::time::Instant::now() < deadline);
    }
    api.cli(&["principal", "list"]).await.exits(0).says("NAME").says("ben");
    api.cli(&["principal", "disable", "admin"]).await.exits(2).complains("add --yes");
    api.cli(&["principal", "disable", "admin", "--yes"])
        .await
        .exits(4)
        .complains("nobody takes the administration away from themselves");
    let id =
        api.cli(&["token", "list", "--principal", "ben", "-o", "name"]).await.exits(0).out.trim().to_owned();
    api.cli(&["token", "revoke", &id]).await.exits(2).complains("add --yes");
    api.cli(&["token", "revoke", &id, "--yes"]).await.exits(0);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(6);
    while api.cli(&whoami).await.code != Some(6) {
        assert!(std::time::Instant::now() < deadline);
    }
    api.cli(&["audit", "list", "--limit", "500"])
        .await
        .exits(0)
        .says("addPrincipal")
        .says("revokeToken")
        .says("127.0.0.1");
    api.cli(&["audit", "list", "--refused"]).await.exits(0).says("the right \"admin\" is missing");
    let head = api.cli(&["audit", "head", "-o", "name"]).await.exits(0).out.trim().to_owned();
    api.place.run(&["audit", "verify"]).await.exits(0).says(&head);
    let mut sql = api.place.sql().await;
    let lie = "update audit set entry = replace(entry::text, 'addPrincipal', 'nothing')::json where nr = 2";
    sqlx::raw_sql(lie).execute(&mut sql).await.unwrap();
    api.place.run(&["audit", "verify"]).await.exits(1).complains("was tampered with: line 2");
    api.cli(&["nodes"]).await.exits(0).says("n1");
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_are_limited_and_declared_down() {
    let api = Served::start().await;
    api.cli(&["pool", "set", "vcenter", "--at-once", "4", "--per-second", "2.5"])
        .await
        .exits(0)
        .says("vcenter");
    api.cli(&["pool", "set", "vcenter", "--at-once", "0"]).await.exits(2).complains("more than nothing");
    api.cli(&["pool", "list"]).await.exits(0).says("AT ONCE").says("2.5");
    api.get("/api/v1/pools/nothing").await.is(404);
    let down = ["pool", "down", "vcenter", "--why", "its storage is full"];
    assert_eq!(api.cli(&down).await.exits(0).out.trim(), "changed  true");
    assert_eq!(api.cli(&down).await.exits(0).out.trim(), "changed  false");
    // Asked under one key, it is done once: a repeat that comes after its end does not take the target down again.
    let declare =
        |why: &str| api.post_as("/api/v1/pools/nas/outage", json!({ "why": why }), &api.admin, Some("nas"));
    assert_eq!(declare("a drill").await.is(200).json(), json!({ "changed": true }));
    api.cli(&["pool", "up", "nas"]).await.exits(0);
    assert_eq!(declare("a drill").await.is(200).json(), json!({ "changed": true }));
    assert_eq!(declare("another").await.is(422).problem(), "idempotency-key-reused");
    let outage = api.get("/api/v1/outages").await.is(200).json()[0].clone();
    assert_eq!((&outage["pool"], &outage["outage"]["declarer"]), (&json!("vcenter"), &json!("admin")));
    api.cli(&["pool", "list"]).await.exits(0).says("its storage is full");
    api.cli(&["pool", "up", "vcenter"]).await.exits(0).says("true");
    assert_eq!(api.get("/api/v1/outages").await.is(200).json(), json!([]));
    let trail = api.cli(&["audit", "list", "--about", "vcenter"]).await.exits(0);
    trail.says("setPool").says("declareOutage").says("endOutage");

    // Who says which limits they saw changes those, and no others.
    let set = async |seen: &str| {
        let request = api.request(Method::PUT, "/api/v1/pools/vcenter", &api.admin).header("if-match", seen);
        said(request.header("content-type", "application/json").body("{\"at_once\": 9}")).await
    };
    let seen = api.get("/api/v1/pools/vcenter").await.is(200).header("etag").to_owned();
    assert_ne!(set(&seen).await.is(200).header("etag"), seen);
    assert_eq!(set(&seen).await.is(412).problem(), "moved");

    // Who stands in line is shown, and called in turn.
    let body = |queue| json!({ "plan": waiting_plan("waits"), "exclusive": "vm 1", "queue": queue });
    let first = api.post("/api/v1/runs", body(false)).await.is(202).json()["run"].clone();
    let second = api.post("/api/v1/runs", body(true)).await.is(202).json()["run"].clone();
    let line = api.get("/api/v1/lines?key=vm%201").await.is(200).json();
    assert_eq!(line, json!({ "holder": first, "waiting": [second] }));
    let go = format!("/api/v1/runs/{}/signals", first.as_str().unwrap());
    api.post(&go, json!({ "name": "go" })).await.is(200);
    api.until(second.as_str().unwrap(), "waiting").await;
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_what_is_wrong_and_says_what_to_do() {
    let place = Place::with_url().await;
    let sick = place.run(&["doctor"]).await.exits(1);
    sick.says("WRONG  the schema is behind").says("backstay db migrate");
    let mut command = place.command(&["serve", "--name", "n1"]);
    let mut server = Running::start(
        command.env("BACKSTAY_LISTEN__ADDRESS", "127.0.0.1:0").env("BACKSTAY_LISTEN__HEALTH", "127.0.0.1:0"),
    );
    let said = server.until_it_says("Listening on http://").await;
    let address = said.rsplit("http://").next().unwrap().trim().to_owned();
    let well = async || ran(place.command(&["doctor"]).env("BACKSTAY_LISTEN__ADDRESS", &address)).await;
    well().await.exits(0).says("ok     1 nodes work on this database").says("ok     the keys in ");
    let mut sql = place.sql().await;
    sqlx::raw_sql("alter table runs drop constraint runs_wake_reason; insert into runs (run_id, workflow, status, plan_hash, activities, request_hash, submitted_at) values (gen_random_uuid(), 'w', 'running', 'h', '{}', '', now() - interval '1 hour')")
        .execute(&mut sql).await.unwrap();
    well().await.exits(1).says("WRONG  nothing moves run ");
    std::fs::write(place.path("secret.key"), "k1:nonsense").unwrap();
    well().await.exits(1).says("is wrong in line 1").says("bring them back from their copy");
    server.signal(Signal::TERM);
    server.end().await.exits(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_says_what_it_does_and_how_it_exits() {
    let place = Place::embedded();
    let mut asked = vec![Vec::<String>::new()];
    let mut seen = Vec::new();
    while let Some(words) = asked.pop() {
        let arguments: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
        let help = place.run(&arguments).await.exits(0);
        let help =
            help.says(&format!("Usage: {}", [&["backstay"], &arguments[..words.len()]].concat().join(" ")));
        let help = help
            .says("Exit codes:\n")
            .says("  0    it was done\n")
            .says("  8    the run that was waited for");
        if help.out.contains("--server <URL>") {
            help.clone().says("The server is the one of --server or BACKSTAY_SERVER");
        }
        let commands = help.out.split("\nCommands:\n").nth(1).unwrap_or_default();
        for line in commands.lines().take_while(|line| !line.is_empty()) {
            // What a line has no room for stands further in, below it.
            if let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) {
                let name = name.split_whitespace().next().unwrap();
                asked.push([words.clone(), vec![name.to_owned()]].concat());
            }
        }
        seen.push(words.join(" "));
    }
    for verb in "serve; demo; db migrate; db status; db install; workflow list; workflow show; workflow plan; run start; \
                 run list; run get; run watch; run steps; run retry; run skip; run edit; run pause; run resume; run rollback; \
                 run commit; run approve; run signal; run explain; run export; token create; token revoke; node; nodes; \
                 pool list; pool set; config show; config check; check; audit list; audit verify; doctor; openapi; \
                 completions; man"
        .split(';')
        .map(str::trim)
    {
        assert!(seen.iter().any(|one| one == verb), "there is no \"{verb}\" among {seen:?}");
    }
    place.run(&["run", "--help"]).await.says("[alias: cancel]");
    place.run(&["run", "start", "--help"]).await.says("--wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_and_manual_pages_are_made() {
    let place = Place::embedded();
    for shell in ["bash", "zsh", "fish"] {
        place.run(&["completions", shell]).await.exits(0).says("backstay");
    }
    let folder = place.path("man");
    place.run(&["man", &folder.display().to_string()]).await.exits(0);
    let page = std::fs::read_to_string(folder.join("backstay-run-rollback.1")).unwrap();
    assert!(page.contains("Undoes what a run has started"));
}
