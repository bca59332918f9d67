//! The Volume Daemon.

use std::time::Duration;

use backstay_simulator::cloudstack;
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::truth::System;
use backstay_simulator::world::State;
use backstay_simulator::world::estate::{self, GIB, id, replica};
use backstay_simulator::{Datacentre, Start};
use serde_json::{Value, json};
use uuid::Uuid;

use super::support::{Site, destination, keys};

impl Site {
    /// Begins an operation and says its id.
    async fn begins(&self, call: &str, body: Option<Value>) -> String {
        let operation = self.daemon(call, body).await.is(201);
        assert_eq!(operation["status"], "pending");
        operation["id"].as_str().unwrap().to_owned()
    }

    /// The operation as it is when it is over.
    async fn ended(&self, operation: &str) -> Value {
        let id: Uuid = operation.parse().unwrap();
        self.until("the operation ends", |state| {
            state.daemon.operations.iter().any(|row| row.id == id && row.ended())
        })
        .await;
        self.daemon(&format!("GET /operations/{operation}"), None).await.is(200)
    }

    async fn done(&self, call: &str, body: Option<Value>) -> Value {
        let operation = self.begins(call, body).await;
        let ended = self.ended(&operation).await;
        assert_eq!(ended["status"], "completed", "{ended}");
        ended
    }

    /// The error of an operation that has to fail.
    async fn fails(&self, call: &str, body: Option<Value>) -> String {
        let operation = self.begins(call, body).await;
        let ended = self.ended(&operation).await;
        assert_eq!(ended["status"], "failed", "{ended}");
        assert!(ended["response"].is_null());
        ended["error"].as_str().unwrap().to_owned()
    }
}

fn to(vm: Uuid) -> Option<Value> {
    Some(json!({"vm_id": vm, "vm_name": "ignored", "request_persistent_name": true}))
}

#[tokio::test]
async fn a_volume_is_made_attached_exported_detached_and_deleted() {
    let site = Site::small().await;
    let oma = site.oma();
    let body = json!({"name": "new", "size": 3 * GIB, "disk_offering_id": id("disk-offering", "custom"), "zone_id": ""});
    let made = site.done("POST /volumes", Some(body)).await;
    assert_eq!(
        keys(&made),
        [
            "completed_at",
            "created_at",
            "id",
            "request",
            "response",
            "status",
            "type",
            "updated_at",
            "volume_id"
        ]
    );
    assert_eq!(made["volume_id"], "", "of a create the row never learns it");
    let volume: Uuid = made["response"]["volume_id"].as_str().unwrap().parse().unwrap();
    assert_eq!(site.world().look(|state| state.volumes[&volume].size), 3 * GIB);

    let attached = site.done(&format!("POST /volumes/{volume}/attach"), to(oma)).await;
    assert_eq!(keys(&attached["response"]), ["device_path", "message", "vm_id", "volume_id"]);
    assert_eq!(site.holders(volume), [oma].into());
    let path = attached["response"]["device_path"].as_str().unwrap();
    assert!(path.ends_with(&format!("virtio-{}", &volume.simple().to_string()[..20])), "{path}");
    assert!(std::path::Path::new(path).exists());

    let mapping = site.daemon(&format!("GET /volumes/{volume}/device"), None).await.is(200);
    assert_eq!(
        keys(&mapping),
        [
            "cloudstack_device_id",
            "cloudstack_state",
            "created_at",
            "device_path",
            "id",
            "last_sync",
            "linux_state",
            "operation_mode",
            "persistent_device_name",
            "requires_device_correlation",
            "size",
            "snapshot_status",
            "symlink_path",
            "updated_at",
            "vm_context_id",
            "vm_id",
            "volume_id_numeric",
            "volume_uuid"
        ]
    );
    assert_eq!((&mapping["operation_mode"], &mapping["linux_state"]), (&json!("oma"), &json!("detected")));
    let volumes = site.daemon(&format!("GET /vms/{oma}/volumes"), None).await.is(200);
    assert!(volumes.as_array().unwrap().iter().any(|row| row["volume_id"] == volume.to_string()));
    assert_eq!(keys(&volumes[0]), ["cloudstack_data", "device_path", "size", "state", "vm_id", "volume_id"]);
    let export = site.daemon(&format!("GET /exports/{volume}"), None).await.is(200);
    assert_eq!(export["export_name"], format!("migration-vol-{volume}"));
    assert_eq!(export["port"], 10_809);

    let detached = site.done(&format!("POST /volumes/{volume}/detach"), None).await;
    assert_eq!(keys(&detached["response"]), ["device_path", "message", "volume_id"]);
    assert!(site.holders(volume).is_empty());
    assert!(!std::path::Path::new(path).exists());
    for gone in [format!("GET /volumes/{volume}/device"), format!("GET /exports/{volume}")] {
        let answer = site.daemon(&gone, None).await.is(404);
        assert_eq!(keys(&answer), ["error"]);
    }
    site.done(&format!("DELETE /volumes/{volume}"), None).await;
    assert!(site.world().look(|state| state.volumes[&volume].removed.is_some()));
    let all = site.daemon("GET /operations?limit=2&type=delete", None).await.is(200);
    assert_eq!(all.as_array().unwrap().len(), 1);
    assert!(site.broken().is_empty(), "{:?}", site.truth().violations());
}

#[tokio::test]
async fn a_root_is_attached_at_device_0_and_has_a_placeholder_for_a_path() {
    let site = Site::small().await;
    let volume = replica("web-01", 2000);
    site.done(&format!("POST /volumes/{volume}/detach"), None).await;
    let attached = site.done(&format!("POST /volumes/{volume}/attach-root"), to(destination())).await;
    assert_eq!(attached["type"], "attach");
    assert_eq!(
        (&attached["request"]["device_id"], &attached["request"]["attach_as"]),
        (&json!(0), &json!("root"))
    );
    assert_eq!(attached["response"]["device_path"], format!("remote-vm-root-{}", destination()));
    let (root, device) = site
        .world()
        .look(|state| (state.volumes[&volume].root, state.volumes[&volume].attached.unwrap().device));
    assert_eq!((root, device), (true, 0));
    let mapping = site.daemon(&format!("GET /volumes/{volume}/device"), None).await.is(200);
    assert_eq!(
        (&mapping["operation_mode"], &mapping["size"], &mapping["linux_state"]),
        (&json!("failover"), &json!(0), &json!("n/a"))
    );
}

#[tokio::test]
async fn what_cloudstack_refuses_is_a_failed_operation_and_never_a_refused_call() {
    let site = Site::small().await;
    let volume = replica("web-01", 2000);
    let twice = site.fails(&format!("POST /volumes/{volume}/attach"), to(destination())).await;
    assert!(twice.contains("431") && twice.contains("not attached to any VM"), "{twice}");
    let nowhere = site.fails(&format!("POST /volumes/{volume}/attach"), Some(json!({}))).await;
    assert!(nowhere.contains("CloudStack API error 431"), "{nowhere}");
    site.done(&format!("POST /volumes/{volume}/detach"), None).await;
    let again = site.fails(&format!("POST /volumes/{volume}/detach"), None).await;
    assert!(again.contains("431") && again.contains("not attached"), "{again}");
    let root_of_oma = site.fails(&format!("POST /volumes/{volume}/attach-root"), to(site.oma())).await;
    assert!(root_of_oma.contains("431"), "{root_of_oma}");
    assert_eq!(site.broken(), ["I13"], "the root slot of the OMA was asked for");
    let nonsense = site.daemon("POST /volumes", Some(json!({"name": "x"}))).await;
    assert_eq!(keys(&nonsense.is(400)), ["error"]);
}

/// The attach is CloudStack's by then: it happens, and nobody says so.
#[tokio::test]
async fn an_operation_that_a_restart_broke_off_never_ends_although_cloudstack_did_it() {
    let site = Site::with(|state| state.settings.cloudstack.attach_ms = 300_000).await;
    let volume = replica("web-01", 2000);
    let operation = site.begins(&format!("POST /volumes/{volume}/detach"), None).await;
    site.until("CloudStack is at it", |state| !state.cloudstack.jobs.is_empty()).await;
    site.truth().restart(System::Daemon, Duration::ZERO);
    site.until("it hangs nowhere", |state| state.volumes[&volume].attached.is_none()).await;
    // Another operation, from the beginning to the end: time enough for the first one to end, if it ever did.
    let other = replica("db-01", 2000);
    site.done(&format!("POST /volumes/{other}/detach"), None).await;
    let dead = site.daemon(&format!("GET /operations/{operation}"), None).await.is(200);
    assert_eq!(dead["status"], "executing");
    site.daemon(&format!("GET /volumes/{volume}/device"), None).await.is(200);

    site.truth().set(|settings| settings.daemon.restart_leaves_operations = false);
    site.truth().restart(System::Daemon, Duration::ZERO);
    let dead = site.daemon(&format!("GET /operations/{operation}"), None).await.is(200);
    assert_eq!(dead["status"], "failed");
}

#[tokio::test]
async fn a_device_that_comes_late_is_a_failed_attach_of_what_is_attached() {
    let site = Site::with(|state| state.settings.daemon.device_after_ms = 11_000).await;
    let volume = replica("web-01", 2000);
    site.done(&format!("POST /volumes/{volume}/detach"), None).await;
    let late = site.fails(&format!("POST /volumes/{volume}/attach"), to(site.oma())).await;
    assert!(late.contains("timeout waiting for device"), "{late}");
    assert_eq!(site.holders(volume), [site.oma()].into());
    assert_eq!(site.daemon(&format!("GET /volumes/{volume}/device"), None).await.status, 404);
    let again = site.fails(&format!("POST /volumes/{volume}/attach"), to(site.oma())).await;
    assert!(again.contains("not attached to any VM"), "{again}");

    site.truth().set(|settings| settings.daemon.device_wait_ms = 12_000);
    site.done(&format!("POST /volumes/{volume}/detach"), None).await;
    site.done(&format!("POST /volumes/{volume}/attach"), to(site.oma())).await;
}

#[tokio::test]
async fn the_second_data_disk_of_a_destination_collides_with_the_first_and_is_attached() {
    for collide in [true, false] {
        let site = Site::with(|state| state.settings.daemon.placeholders_collide = collide).await;
        for key in [2000, 2001, 2002] {
            site.done(&format!("POST /volumes/{}/detach", replica("db-01", key)), None).await;
        }
        site.done(&format!("POST /volumes/{}/attach-root", replica("db-01", 2000)), to(destination())).await;
        site.done(&format!("POST /volumes/{}/attach", replica("db-01", 2001)), to(destination())).await;
        let third = format!("POST /volumes/{}/attach", replica("db-01", 2002));
        if collide {
            let error = site.fails(&third, to(destination())).await;
            assert!(error.contains("Duplicate entry") && error.contains("unique_device_path"), "{error}");
        } else {
            site.done(&third, to(destination())).await;
        }
        assert_eq!(site.holders(replica("db-01", 2002)), [destination()].into());
        let rows = site.daemon(&format!("GET /vms/{}/volumes", destination()), None).await.is(200);
        assert_eq!(rows.as_array().unwrap().len(), if collide { 2 } else { 3 });
    }
}

#[tokio::test]
async fn a_volume_that_left_behind_its_back_cannot_be_recorded_again() {
    let site = Site::small().await;
    let volume = replica("web-01", 2000);
    cloudstack::perform(site.world(), "test", "detachVolume", &[("id", &volume.to_string())]).await.unwrap();
    let mapping = site.daemon(&format!("GET /volumes/{volume}/device"), None).await.is(200);
    assert_eq!(mapping["vm_id"], site.oma().to_string(), "it is there as far as the daemon knows");
    let error = site.fails(&format!("POST /volumes/{volume}/attach"), to(site.oma())).await;
    assert!(error.contains("Duplicate entry") && error.contains("unique_volume_uuid"), "{error}");
    assert_eq!(site.holders(volume), [site.oma()].into());
}

/// As the whole data centre is killed: what was under way is in the file, and nobody is at it any more.
#[tokio::test]
async fn an_operation_of_a_killed_process_is_executing_in_the_next_one() {
    let place = tempfile::tempdir().unwrap();
    let start = || {
        let mut state = estate::small();
        state.settings.pace = 0.001;
        state.settings.cloudstack.attach_ms = 1_000_000_000;
        Start { file: Some(place.path().join("world.json")), ..Start::with(state) }
    };
    let first =
        Site { centre: Datacentre::start(start()).await.unwrap(), devices: tempfile::tempdir().unwrap() };
    let call = format!("POST /volumes/{}/detach", replica("web-01", 2000));
    let operation = first.begins(&call, None).await;
    let id: Uuid = operation.parse().unwrap();
    let executing = move |state: &State| {
        state.daemon.operations.iter().any(|row| row.id == id && row.status == "executing")
            && !state.cloudstack.jobs.is_empty()
    };
    first.until("CloudStack is at it", executing).await;
    drop(first);
    let next =
        Site { centre: Datacentre::start(start()).await.unwrap(), devices: tempfile::tempdir().unwrap() };
    let dead = next.daemon(&format!("GET /operations/{operation}"), None).await.is(200);
    assert_eq!(dead["status"], "executing");
    assert_eq!(
        next.world().look(|state| state.daemon.mappings.len()),
        14,
        "it did not look around a second time"
    );
}

#[tokio::test]
async fn a_list_of_nothing_is_null() {
    let site = Site::small().await;
    assert_eq!(site.daemon("GET /operations", None).await.is(200), Value::Null);
    let context = site.daemon("GET /snapshots/vm/ctx-1", None).await.is(200);
    assert_eq!(context, json!({"vm_context_id": "ctx-1", "snapshots": null, "count": 0}));
    assert_eq!(site.daemon(&format!("GET /vms/{}/volumes", destination()), None).await.is(200), json!([]));
    site.truth().set(|settings| settings.daemon.null_lists = false);
    assert_eq!(site.daemon("GET /operations", None).await.is(200), json!([]));
}

#[tokio::test]
async fn health_is_healthy_whatever_is() {
    let site = Site::with(|state| state.settings.daemon.database_down = true).await;
    let health = site.daemon("GET /health", None).await.is(200);
    assert_eq!(
        keys(&health),
        ["cloudstack_health", "database_health", "details", "device_monitor", "status", "timestamp"]
    );
    assert_eq!(health["status"], "healthy");
    assert!(health["database_health"].as_str().unwrap().starts_with("unhealthy"));
    let root = site.call(&site.centre.daemon_url(), "GET /health", None).await.is(200);
    assert_eq!(keys(&root), ["service", "status", "timestamp", "version"]);
    assert_eq!(keys(&site.daemon("GET /operations", None).await.is(500)), ["error"]);
}

#[tokio::test]
async fn a_daemon_that_does_not_know_the_oma_records_it_as_another_place() {
    let site = Site::with(|state| state.settings.daemon.does_not_know_the_oma = true).await;
    let volume = replica("web-01", 2000);
    site.done(&format!("POST /volumes/{volume}/detach"), None).await;
    site.done(&format!("POST /volumes/{volume}/attach"), to(site.oma())).await;
    let mapping = site.daemon(&format!("GET /volumes/{volume}/device"), None).await.is(200);
    assert_eq!(mapping["operation_mode"], "failover");
    assert_eq!(mapping["device_path"], format!("remote-vm-{}", site.oma()));
    assert_eq!(site.daemon(&format!("GET /exports/{volume}"), None).await.status, 404);
}

#[tokio::test]
async fn snapshots_hang_on_the_row_of_a_mapping_and_go_with_it() {
    let site = Site::small().await;
    let volume = replica("web-01", 2000);
    let track = json!({"volume_uuid": volume, "vm_context_id": "ctx-1", "snapshot_id": "s-1", "snapshot_name": "before"});
    let tracked = site.daemon("POST /snapshots/track", Some(track.clone())).await.is(200);
    assert_eq!(keys(&tracked), ["message", "snapshot_id", "vm_context_id", "volume_uuid"]);
    let told = site.daemon("GET /snapshots/vm/ctx-1", None).await.is(200);
    assert_eq!(told["count"], 1);
    assert_eq!(
        keys(&told["snapshots"][0]),
        [
            "device_path",
            "operation_mode",
            "snapshot_created_at",
            "snapshot_id",
            "snapshot_status",
            "vm_context_id",
            "volume_uuid"
        ]
    );
    assert_eq!(told["snapshots"][0]["snapshot_status"], "ready");
    site.daemon(&format!("PUT /snapshots/{volume}"), Some(json!({"snapshot_status": "failed"})))
        .await
        .is(200);
    let mapping = site.daemon(&format!("GET /volumes/{volume}/device"), None).await.is(200);
    assert_eq!(
        (&mapping["snapshot_status"], &mapping["ossea_snapshot_id"]),
        (&json!("failed"), &json!("s-1"))
    );
    site.daemon("POST /snapshots/track", Some(json!({"volume_uuid": volume}))).await.is(400);
    let cleared = site.daemon("DELETE /snapshots/vm/ctx-1", None).await.is(200);
    assert_eq!(cleared["snapshots_cleared"], 1);

    site.daemon("POST /snapshots/track", Some(track.clone())).await.is(200);
    site.done(&format!("POST /volumes/{volume}/detach"), None).await;
    assert_eq!(site.daemon("GET /snapshots/vm/ctx-1", None).await.is(200)["count"], 0);
    site.daemon("POST /snapshots/track", Some(track)).await.is(500);
}

#[tokio::test]
async fn exports_are_listed_in_an_object_made_deleted_and_counted() {
    let site = Site::small().await;
    let volume = replica("web-01", 2000);
    let list = site.daemon("GET /exports", None).await.is(200);
    assert_eq!(keys(&list), ["count", "exports"]);
    assert_eq!(list["count"], 14, "one for each replica at the OMA");
    site.daemon(&format!("DELETE /exports/{volume}"), None).await.is(200);
    site.daemon(&format!("DELETE /exports/{volume}"), None).await.is(500);
    let body = json!({"volume_id": volume, "vm_name": "web-01", "vm_id": "x", "disk_number": 0});
    let made = site.daemon("POST /exports", Some(body)).await.is(201);
    assert_eq!(
        keys(&made),
        [
            "created_at",
            "device_path",
            "export_name",
            "id",
            "metadata",
            "port",
            "status",
            "updated_at",
            "volume_id"
        ]
    );
    assert_eq!(site.daemon("GET /exports?vm_name=web-01", None).await.is(200)["count"], 1);
    // A volume that leaves behind the daemon's back leaves its mapping and its export: nothing is an orphan for the daemon.
    cloudstack::perform(site.world(), "test", "detachVolume", &[("id", &volume.to_string())]).await.unwrap();
    assert_eq!(site.daemon("GET /exports/orphaned/count", None).await.is(200)["orphaned_count"], 0);
    let cleanup = site.daemon("POST /exports/cleanup", Some(json!({}))).await.is(200);
    assert_eq!((&cleanup["total_exports"], &cleanup["cleaned_exports"]), (&json!(14), &json!(0)));
    site.daemon("POST /exports/cleanup/age", Some(json!({}))).await.is(400);
    site.daemon("POST /exports", Some(json!({"volume_id": Uuid::new_v4()}))).await.is(500);
    assert_eq!(site.daemon("POST /admin/force-sync", None).await.status, 500);
}

#[tokio::test]
async fn the_cleanup_of_a_test_failover_brings_one_volume_home_and_its_mapping_stays_wrong() {
    let site = Site::small().await;
    let volume = replica("web-01", 2000);
    site.done(&format!("POST /volumes/{volume}/detach"), None).await;
    site.done(&format!("POST /volumes/{volume}/attach-root"), to(destination())).await;
    let body =
        json!({"test_vm_id": destination(), "volume_id": volume, "oma_vm_id": site.oma(), "delete_vm": true});
    let cleaned = site.done("POST /cleanup/test-failover", Some(body)).await;
    assert_eq!(
        keys(&cleaned["response"]),
        ["device_path", "message", "oma_vm_id", "test_vm_id", "vm_deleted", "volume_id"]
    );
    assert_eq!(site.holders(volume), [site.oma()].into());
    let mapping = site.daemon(&format!("GET /volumes/{volume}/device"), None).await.is(200);
    assert_eq!(
        mapping["operation_mode"], "failover",
        "the old row was not taken away, so the new one was refused"
    );
    let rows = site.world().look(|state| {
        state.daemon.mappings.iter().filter(|row| row.volume_uuid == volume.to_string()).count()
    });
    assert_eq!(rows, 1);
    assert!(site.world().look(|state| state.vms[&destination()].removed.is_some()));
    assert!(site.broken().is_empty(), "{:?}", site.truth().violations());
}

#[tokio::test]
async fn an_answer_that_is_lost_leaves_an_operation_that_goes_on() {
    let site = Site::small().await;
    let volume = replica("web-01", 2000);
    site.centre.faults().rule(Rule::nth("daemon", "POST /volumes/{id}/detach", 1, Fault::DoneThenDropped));
    let base = format!("{}/api/v1", site.centre.daemon_url());
    site.try_call(&base, &format!("POST /volumes/{volume}/detach"), None).await.unwrap_err();
    site.until("it is detached", |state| state.volumes[&volume].plugged.is_empty()).await;
    let found = site.daemon(&format!("GET /operations?volume_id={volume}&type=detach"), None).await.is(200);
    assert_eq!(found.as_array().unwrap().len(), 1);
    assert_eq!(site.centre.faults().fired()[0].times, 1);
}

#[tokio::test]
async fn an_operation_can_stick_and_fail_after_it_did_what_it_was_asked() {
    let site = Site::small().await;
    let volume = replica("web-01", 2000);
    let call = format!("POST /volumes/{volume}/detach");
    site.centre.faults().rule(Rule::nth("daemon", "POST /volumes/*/detach", 1, Fault::Stuck));
    site.centre.faults().rule(Rule::nth(
        "daemon",
        "POST /volumes/*/detach",
        2,
        Fault::JobCancelledButDone { ms: 0 },
    ));
    let stuck = site.begins(&call, None).await;
    let failed = site.fails(&call, None).await;
    assert!(failed.contains("deadline"), "{failed}");
    assert!(site.holders(volume).is_empty());
    assert_eq!(site.daemon(&format!("GET /operations/{stuck}"), None).await.is(200)["status"], "executing");
}

#[tokio::test]
async fn the_stub_the_device_by_path_and_what_is_not_served() {
    let site = Site::small().await;
    let stub = site.daemon(&format!("GET /volumes/{}", replica("web-01", 2000)), None).await.is(200);
    assert_eq!((&stub["state"], &stub["size"]), (&json!("unknown"), &json!(0)));
    assert_eq!(site.daemon("GET /devices/vdb/volume", None).await.status, 404);
    assert_eq!(site.daemon("GET /operations/nothing", None).await.is(404)["error"], "operation not found");
    let recovery = site.daemon("POST /recovery/system", None).await;
    assert_eq!((recovery.status, recovery.text.as_str()), (404, "404 page not found"));
    site.daemon("GET /health", None).await.is(200);
    site.call(&site.centre.daemon_url(), "GET /metrics", None).await.is(200);
}
