//! LINSTOR.

use backstay_simulator::cloudstack;
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::world::Cause;
use backstay_simulator::world::estate::{id, replica};
use serde_json::{Value, json};
use uuid::Uuid;

use super::support::{Site, Told, keys};
use crate::python;

fn resource(volume: Uuid) -> String {
    format!("cs-{volume}")
}

/// The entries of an answer: how bad, what was done, about what, what came of it.
fn entries(told: &Told) -> Vec<(&'static str, u64, u64, u64)> {
    let entry = |entry: &Value| {
        assert!(entry["message"].is_string() && entry["created_at"].is_string(), "{entry}");
        let bits = u64::from_ne_bytes(entry["ret_code"].as_i64().unwrap().to_ne_bytes());
        let kind = match bits >> 62 {
            3 => "error",
            2 => "warn",
            1 => "info",
            _ => "success",
        };
        (kind, bits >> 24 & 3, bits & 0x7C_0000, bits & 0x7FFF)
    };
    told.json().as_array().unwrap().iter().map(entry).collect()
}

const SNAPSHOT: u64 = 0x0C_0000;

impl Site {
    async fn snapshot(&self, volume: Uuid, name: &str) -> Told {
        self.linstor(
            &format!("POST /resource-definitions/{}/snapshots", resource(volume)),
            Some(json!({"name": name})),
        )
        .await
    }

    async fn rollback(&self, volume: Uuid, name: &str) -> Told {
        let call = format!("POST /resource-definitions/{}/snapshot-rollback/{name}", resource(volume));
        self.linstor(&call, Some(json!({}))).await
    }

    async fn remove(&self, volume: Uuid, name: &str) -> Told {
        self.linstor(&format!("DELETE /resource-definitions/{}/snapshots/{name}", resource(volume)), None)
            .await
    }

    async fn shown(&self, volume: Uuid) -> Vec<Value> {
        let told =
            self.linstor(&format!("GET /view/snapshots?resources={}", resource(volume)), None).await.is(200);
        told.as_array().unwrap().clone()
    }

    async fn leaves_the_oma(&self, volume: Uuid) {
        cloudstack::perform(self.world(), "test", "detachVolume", &[("id", &volume.to_string())])
            .await
            .unwrap();
    }

    fn writes(&self, volume: Uuid, what: &str) {
        self.world().change(Cause::new("test", "write", ""), |state| state.write(volume, what));
    }
}

#[tokio::test]
async fn a_snapshot_is_taken_shown_gone_back_to_and_deleted() {
    let site = Site::small().await;
    let volume = replica("web-01", 2000);
    let taken = site.snapshot(volume, "before").await;
    assert_eq!(taken.status, 201);
    let told = entries(&taken);
    assert_eq!(told[0], ("success", 1, SNAPSHOT, 1));
    assert_eq!(told.len(), 7, "the definition, and three for each of two nodes");
    assert!(told[1..].iter().all(|entry| entry.0 == "info"));

    let shown = site.shown(volume).await;
    assert_eq!(
        keys(&shown[0]),
        ["flags", "name", "nodes", "props", "resource_name", "snapshots", "uuid", "volume_definitions"]
    );
    assert_eq!(
        keys(&shown[0]["snapshots"][0]),
        ["create_timestamp", "flags", "node_name", "snapshot_name", "uuid"]
    );
    assert_eq!((&shown[0]["name"], &shown[0]["flags"]), (&json!("before"), &json!(["SUCCESSFUL"])));
    assert_eq!(shown[0]["nodes"].as_array().unwrap().len(), 2);
    assert_eq!(shown[0]["volume_definitions"][0]["size_kib"], 40 << 20);
    let one = format!("GET /resource-definitions/{}/snapshots/before", resource(volume));
    assert_eq!(site.linstor(&one, None).await.is(200), shown[0]);

    site.leaves_the_oma(volume).await;
    let clean = site.content(volume);
    site.writes(volume, "virtio");
    let back = site.rollback(volume, "before").await;
    assert_eq!(back.status, 200);
    assert!(entries(&back).contains(&("success", 2, SNAPSHOT, 3)));
    assert_eq!(site.content(volume), clean);

    let deleted = site.remove(volume, "before").await;
    assert_eq!((deleted.status, entries(&deleted)), (200, vec![("success", 3, SNAPSHOT, 2)]));
    assert!(site.shown(volume).await.is_empty());
    let again = site.remove(volume, "before").await;
    assert_eq!((again.status, entries(&again)), (200, vec![("warn", 3, SNAPSHOT, 3000)]));
    assert!(site.broken().is_empty(), "{:?}", site.truth().violations());
}

#[tokio::test]
async fn a_name_is_taken_once_and_must_be_one() {
    let site = Site::small().await;
    let volume = replica("web-01", 2000);
    // Two at once: one of them has it, whichever comes first.
    let (some, other) = tokio::join!(site.snapshot(volume, "once"), site.snapshot(volume, "once"));
    let mut statuses = [some.status, other.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 500]);
    let refused = if some.status == 500 { some } else { other };
    assert_eq!(entries(&refused), [("error", 1, SNAPSHOT, 514)]);
    assert!(refused.json()[0]["ret_code"].as_i64().unwrap() < 0, "errors are negative");
    assert_eq!(
        keys(&refused.json()[0]),
        ["cause", "correction", "created_at", "message", "obj_refs", "ret_code"]
    );
    assert_eq!(site.truth().effect("snapshot"), 1);
    for bad in ["", "1st", "with space", "x"] {
        assert_eq!(entries(&site.snapshot(volume, bad).await), [("error", 1, SNAPSHOT, 218)], "{bad:?}");
    }
    let nowhere = site.snapshot(Uuid::nil(), "s1").await;
    assert_eq!((nowhere.status, entries(&nowhere)[0].3), (404, 301));
    assert_eq!(entries(&site.rollback(volume, "never").await)[0].3, 313);
}

#[tokio::test]
async fn nothing_goes_back_while_anybody_uses_it() {
    let site = Site::small().await;
    let volume = replica("web-01", 2000);
    site.snapshot(volume, "before").await;
    let resources =
        site.linstor(&format!("GET /view/resources?resources={}", resource(volume)), None).await.is(200);
    let in_use: Vec<bool> = resources
        .as_array()
        .unwrap()
        .iter()
        .map(|place| place["state"]["in_use"].as_bool().unwrap())
        .collect();
    assert_eq!(in_use.iter().filter(|used| **used).count(), 1, "the OMA has it");
    let refused = site.rollback(volume, "before").await;
    assert_eq!((refused.status, entries(&refused)), (500, vec![("error", 2, SNAPSHOT, 997)]));
    site.leaves_the_oma(volume).await;
    let free = site
        .linstor(&format!("GET /resource-definitions/{}/resources", resource(volume)), None)
        .await
        .is(200);
    assert!(free.as_array().unwrap().iter().all(|place| place["state"]["in_use"] == false));
    assert_eq!(site.rollback(volume, "before").await.status, 200);
}

#[tokio::test]
async fn a_node_that_fails_spoils_a_snapshot_and_only_the_last_entry_says_so() {
    let site = Site::with(|state| {
        state.settings.linstor.failing_nodes = ["kvm-01", "kvm-02", "kvm-03"].map(str::to_owned).into()
    })
    .await;
    let volume = replica("web-01", 2000);
    // One node of the two.
    let nodes = site
        .linstor(&format!("GET /resource-definitions/{}/resources", resource(volume)), None)
        .await
        .is(200);
    let first = nodes[0]["node_name"].as_str().unwrap().to_owned();
    let second = nodes[1]["node_name"].as_str().unwrap().to_owned();
    site.truth().set(|settings| settings.linstor.failing_nodes = [second.clone()].into());
    let told = site.snapshot(volume, "half").await;
    assert_eq!(told.status, 500);
    let kinds: Vec<&str> = entries(&told).iter().map(|entry| entry.0).collect();
    assert_eq!(kinds, ["success", "info", "info", "info", "error"]);
    let shown = site.shown(volume).await;
    assert_eq!(shown[0]["flags"], json!(["FAILED_DEPLOYMENT"]));
    let failed: Vec<&Value> = shown[0]["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|place| place["flags"] != json!([]))
        .collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0]["node_name"], second);
    let report = told.json()[4]["error_report_ids"][0].as_str().unwrap().to_owned();
    let reports = site.linstor(&format!("GET /error-reports/{report}"), None).await.is(200);
    assert_eq!(
        (&reports[0]["node_name"], &reports[0]["filename"]),
        (&json!(second), &json!(format!("ErrorReport-{report}.log")))
    );
    site.leaves_the_oma(volume).await;
    assert_eq!(entries(&site.rollback(volume, "half").await)[0].3, 979);
    assert_eq!(
        entries(&site.snapshot(volume, "half").await)[0].3,
        514,
        "it is in the way until it is deleted"
    );
    site.remove(volume, "half").await;

    // A node that is away is left out with a warning, and a rollback waits for it.
    site.truth().set(|settings| {
        settings.linstor.failing_nodes.clear();
        settings.linstor.offline_nodes = [first.clone()].into();
    });
    let told = site.snapshot(volume, "without").await;
    assert_eq!(told.status, 201);
    assert!(entries(&told).contains(&("warn", 1, SNAPSHOT, 995)));
    assert_eq!(site.shown(volume).await[0]["nodes"], json!([second]));
    assert_eq!(entries(&site.rollback(volume, "without").await)[0].3, 995);
    site.truth().set(|settings| settings.linstor.offline_nodes = [first, second].into());
    assert_eq!(entries(&site.snapshot(volume, "nowhere").await)[0].3, 995);
}

#[tokio::test]
async fn several_snapshots_are_of_one_moment_or_none_is_taken() {
    let site = Site::small().await;
    let (some, other) = (replica("sql-01", 2000), replica("sql-01", 2001));
    let both = |name: &str| json!({"snapshots": [{"name": name, "resource_name": resource(some)}, {"name": name, "resource_name": resource(other)}]});
    let told = site.linstor("POST /actions/snapshot/multi", Some(both("set"))).await;
    assert_eq!((told.status, entries(&told).len()), (201, 14));
    for volume in [some, other] {
        let held = site
            .world()
            .look(|state| state.snapshots.values().find(|row| row.volume == volume).unwrap().content.clone());
        assert_eq!(held, site.content(volume));
    }
    site.snapshot(other, "taken").await;
    let refused = site.linstor("POST /actions/snapshot/multi", Some(both("taken"))).await;
    assert_eq!((refused.status, entries(&refused)), (500, vec![("error", 1, SNAPSHOT, 514)]));
    assert_eq!(site.shown(some).await.len(), 1, "none was taken of the other one either");
}

#[tokio::test]
async fn on_zfs_going_back_loses_what_is_newer() {
    for zfs in [true, false] {
        let site = Site::with(|state| state.settings.linstor.zfs = zfs).await;
        let volume = replica("web-01", 2000);
        site.leaves_the_oma(volume).await;
        site.snapshot(volume, "older").await;
        site.snapshot(volume, "newer").await;
        site.rollback(volume, "older").await;
        assert_eq!(site.shown(volume).await.len(), if zfs { 1 } else { 2 });
    }
}

#[tokio::test]
async fn faults_speak_its_language_and_what_was_deleted_can_come_back() {
    let site = Site::small().await;
    let volume = replica("web-01", 2000);
    let create = "POST /resource-definitions/{resource}/snapshots";
    site.centre.faults().rule(Rule::nth("linstor", create, 1, Fault::DoneThenRefused { status: 500 }));
    let told = site.snapshot(volume, "before").await;
    assert_eq!((told.status, entries(&told)[0].0), (500, "error"));
    assert_eq!(site.shown(volume).await.len(), 1, "it is there all the same");
    site.centre.faults().rule(Rule::every("linstor", "DELETE *", Fault::Reappears { ms: 5 }).once());
    assert_eq!(entries(&site.remove(volume, "before").await)[0].0, "success");
    site.until("it is back", |state| state.snapshots.values().any(|row| row.removed.is_none())).await;
}

#[tokio::test]
async fn the_omas_own_root_is_not_to_be_touched() {
    let site = Site::small().await;
    site.snapshot(id("volume", "ROOT-oma"), "s1").await;
    assert_eq!(site.broken(), ["I13"]);
}

#[tokio::test]
async fn nodes_definitions_and_the_version_are_told() {
    let site = Site::small().await;
    let version = site.linstor("GET /controller/version", None).await.is(200);
    assert_eq!(keys(&version), ["build_time", "git_hash", "rest_api_version", "version"]);
    assert_eq!(site.linstor("GET /nodes", None).await.is(200).as_array().unwrap().len(), 3);
    let volume = replica("web-01", 2000);
    let one = site.linstor(&format!("GET /resource-definitions/{}", resource(volume)), None).await.is(200);
    assert_eq!(one["volume_definitions"][0]["size_kib"], 40 << 20);
    assert_eq!(site.linstor("GET /resource-definitions/cs-none", None).await.status, 404);
    let all = site.linstor("GET /resource-definitions", None).await.is(200);
    assert_eq!(all.as_array().unwrap().len(), site.world().look(|state| state.volumes.len()));
}

/// LINBIT's own client, from PyPI, reads and changes what is here. Where it cannot be installed the test fails, and says why.
#[tokio::test]
async fn the_client_that_linbit_wrote_reads_and_changes_it() {
    let site = Site::small().await;
    let (volume, other) = (replica("sql-01", 2000), replica("sql-01", 2001));
    site.leaves_the_oma(volume).await;
    let before = site.content(volume);
    let url = site.centre.linstor_url().replace("http://", "linstor://");
    let argument = json!({"url": url, "resource": resource(volume), "other": resource(other)});
    python::run("linstor_client.py", argument).await;
    if python::python().is_some() {
        assert_eq!(site.content(volume), before);
        assert_eq!(site.truth().effect("revert"), 1, "the client brought it back once");
        assert_eq!(site.truth().effect("snapshot"), 3);
        assert_eq!((site.shown(volume).await.len(), site.shown(other).await.len()), (1, 1));
    }
}
