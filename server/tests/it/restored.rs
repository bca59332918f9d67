//! A database that is older than the world: it was restored from a backup, and the effects of its runs went on.

use serde_json::{Value, json};

use crate::served::Served;

async fn events(api: &Served, run: &str, step: &str) -> Vec<Value> {
    let journal = api.get(&format!("/api/v1/runs/{run}/journal?limit=200")).await.is(200).json();
    let of_step = |event: &&Value| event["step"] == step && event["kind"] == "started";
    journal["items"].as_array().unwrap().iter().filter(of_step).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_nothing_begins_until_somebody_has_looked() {
    let api = Served::start().await;
    let plan = json!({ "workflow": "restored", "steps": [
        { "name": "moment", "activity": "wait", "input": { "for": "3s" }, "nothing_to_undo": "waiting changes nothing" },
        { "name": "effect", "activity": "log", "after": ["moment"], "input": { "text": "it is done" },
          "nothing_to_undo": "it talks" } ] });
    let run = api.post("/api/v1/runs", json!({ "plan": plan })).await.is(202).json();
    let run = run["run"].as_str().unwrap().to_owned();
    api.until(&run, "waiting").await;
    let admin = api.admin.clone();

    // The backup; then the effect happens, in a world that the backup knows nothing of.
    let place = api.end().await;
    let backup = place.copied().await;
    let api = Served::on(place, "n1").await;
    api.until(&run, "succeeded").await;
    let before = events(&api, &run, "effect").await;
    api.end().await;

    let told = backup.run(&["db", "pause", "--who", "anna", "--why", "restored", "--dry-run"]).await.exits(0);
    told.says(&run).says("1 runs are live.");
    let told = backup.run(&["db", "pause", "--who", "anna", "--why", "restored"]).await.exits(0);
    told.says("1 of 1 live runs are told");
    let mut restored = Served::on(backup, "n1").await;
    restored.admin = admin;
    restored.until(&run, "paused").await;
    assert_eq!(events(&restored, &run, "effect").await, Vec::<Value>::new());

    // Somebody has looked. The effect is asked for again, under the key that it had: the target can tell.
    restored.post(&format!("/api/v1/runs/{run}/resume"), json!({})).await.is(200);
    restored.until(&run, "succeeded").await;
    let again = events(&restored, &run, "effect").await;
    assert_eq!((before.len(), again.len()), (1, 1));
    assert!(before[0]["key"].is_string(), "{before:?}");
    assert_eq!(before[0]["key"], again[0]["key"]);
    restored.place.run(&["check"]).await.exits(0);
    restored.end().await;
}
