//! The client of the Volume Daemon, against what the real one answers.

use std::future::pending;
use std::sync::Arc;

use backstay_activities::daemon::{
    CreateExport, Daemon, DaemonSettings, ListExports, ListOperations, OperationStatus, TrackSnapshot,
};
use backstay_activities::remote::Kind;
use backstay_activities::secrets::NoSecrets;
use backstay_engine::Span;
use backstay_engine::machine::Applied;
use serde_json::{Value, json};

use crate::support::{Heard, Reply, Target, told};

async fn daemon(answer: impl Fn(&Heard, usize) -> Reply + Send + Sync + 'static) -> (Daemon, Target) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let target = Target::new(answer).await;
    let settings = DaemonSettings {
        url: target.url("/api/v1"),
        poll: Span::millis(5),
        attach_deadline: Span::millis(500),
        detach_deadline: Span::millis(200),
        timeout: Span::secs(5),
        ..DaemonSettings::default()
    };
    (Daemon::new(settings, Arc::new(NoSecrets)).unwrap(), target)
}

fn operation(kind: &str, status: &str, more: Value) -> Value {
    let mut operation = json!({
        "id": "op-1", "type": kind, "status": status, "volume_id": "vol-1", "vm_id": "vm-1",
        "request": { "volume_id": "vol-1" }, "created_at": "2025-08-04T07:32:59Z", "updated_at": "2025-08-04T07:32:59Z",
    });
    operation.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    operation
}

#[tokio::test]
async fn an_attach_is_begun_and_waited_for() {
    let (daemon, target) = daemon(|heard, nth| match (heard.method.as_str(), heard.path.as_str(), nth) {
        ("POST", "/api/v1/volumes/vol-1/attach", _) => {
            assert_eq!(heard.body, r#"{"vm_id":"vm-1"}"#);
            Reply::json(201, operation("attach", "pending", json!({})))
        }
        ("GET", "/api/v1/operations/op-1", 2) => {
            Reply::json(200, operation("attach", "executing", json!({})))
        }
        ("GET", "/api/v1/operations/op-1", 3) => Reply::json(500, json!({ "error": "database is locked" })),
        ("GET", "/api/v1/operations/op-1", _) => {
            let response =
                json!({ "volume_id": "vol-1", "vm_id": "vm-1", "device_path": "/dev/disk/by-id/virtio-a" });
            Reply::json(200, operation("attach", "completed", json!({ "response": response })))
        }
        other => panic!("{other:?}"),
    })
    .await;
    let begun = daemon.attach("vol-1", "vm-1").await.unwrap();
    assert_eq!(begun.status, OperationStatus::Pending);
    let ended = daemon.finish(&begun, pending()).await.unwrap();
    assert_eq!((ended.volume(), ended.device_path()), (Some("vol-1"), Some("/dev/disk/by-id/virtio-a")));
    assert_eq!(target.heard().len(), 4);
}

#[tokio::test]
async fn what_it_makes_is_named_in_the_response_and_a_volume_elsewhere_has_no_device() {
    let made =
        operation("create", "completed", json!({ "volume_id": "", "response": { "volume_id": "new" } }));
    let (daemon, _target) = daemon(move |_, _| {
        let mut made = made.clone();
        made["response"]["device_path"] = "remote-vm-x".into();
        Reply::json(200, made)
    })
    .await;
    let found = daemon.operation("op-1").await.unwrap().unwrap();
    assert_eq!((found.volume_id.as_deref(), found.volume(), found.device_path()), (None, Some("new"), None));
}

#[tokio::test]
async fn an_operation_that_failed_or_is_not_there_may_have_been_done() {
    for (reply, text) in [
        (
            Reply::json(200, operation("attach", "failed", json!({ "error": "device did not appear" }))),
            "device did not appear",
        ),
        (Reply::json(200, operation("attach", "cancelled", json!({}))), "failed"),
        (Reply::json(404, json!({ "error": "operation not found" })), "does not have the operation"),
    ] {
        let (daemon, _target) = daemon(move |_, _| reply.clone()).await;
        let trouble = daemon.finish_within("op-1", Span::secs(5), pending()).await.unwrap_err();
        assert_eq!((trouble.kind(), trouble.applied()), (Kind::Look, Applied::Maybe));
        assert!(trouble.to_string().contains(text), "{trouble}");
    }
    for body in [
        operation("attach", "finished", json!({})),
        operation("attach", "completed", json!({ "id": "another" })),
        json!({}),
    ] {
        let (daemon, _target) = daemon(move |_, _| Reply::json(200, body.clone())).await;
        let trouble = daemon.finish_within("op-1", Span::secs(5), pending()).await.unwrap_err();
        assert_eq!((trouble.kind(), trouble.applied()), (Kind::Unknown, Applied::Maybe), "{trouble}");
    }
}

#[tokio::test]
async fn an_operation_of_a_daemon_that_died_is_not_waited_for_without_end() {
    let (daemon, _target) = daemon(|heard, _| {
        let status = if heard.method == "POST" { 201 } else { 200 };
        Reply::json(status, operation("detach", "executing", json!({})))
    })
    .await;
    let begun = daemon.detach("vol-1").await.unwrap();
    let late = daemon.finish(&begun, pending()).await.unwrap_err();
    assert_eq!((late.kind(), late.applied()), (Kind::Late, Applied::Maybe));
    assert!(late.to_string().contains("200ms"), "the deadline of a detach: {late}");
    let stopped = daemon.finish(&begun, std::future::ready(())).await.unwrap_err();
    assert_eq!(told(stopped), ("cancelled".into(), true, false));
}

#[tokio::test]
async fn lists_may_be_null_counted_or_bare() {
    let (daemon, _target) = daemon(|heard, _| {
        let export = json!({ "id": "nbd-export-1", "volume_id": "v", "export_name": "migration-vol-v",
            "device_path": "/dev/vdb", "port": 10809, "status": "active" });
        Reply::json(
            200,
            match heard.path.as_str() {
                "/api/v1/operations?type=attach&status=pending" => Value::Null,
                "/api/v1/vms/m/volumes" => {
                    json!([{ "volume_id": "v", "vm_id": "m", "state": "attached", "size": 0 }])
                }
                "/api/v1/exports?volume_id=v" => json!({ "exports": [export], "count": 1 }),
                "/api/v1/exports" => json!({ "exports": null, "count": 0 }),
                "/api/v1/exports?limit=5" => json!([export]),
                "/api/v1/snapshots/vm/c" => json!({ "vm_context_id": "c", "snapshots": null, "count": 0 }),
                other => panic!("{other}"),
            },
        )
    })
    .await;
    let which = ListOperations {
        kind: Some("attach".into()),
        status: Some("pending".into()),
        ..ListOperations::default()
    };
    assert_eq!(daemon.list_operations(&which).await.unwrap(), vec![]);
    assert_eq!(daemon.vm_volumes("m").await.unwrap()[0].volume_id, "v");
    let of_v = ListExports { volume: Some("v".into()), ..ListExports::default() };
    assert_eq!(daemon.list_exports(&of_v).await.unwrap()[0].export_name, "migration-vol-v");
    assert_eq!(daemon.list_exports(&ListExports::default()).await.unwrap(), vec![]);
    let five = ListExports { limit: Some(5), ..ListExports::default() };
    assert_eq!(daemon.list_exports(&five).await.unwrap().len(), 1);
    assert_eq!(daemon.snapshots("c").await.unwrap(), vec![]);
}

#[tokio::test]
async fn a_volume_without_a_row_is_told_from_a_path_that_is_wrong() {
    let (daemon, _target) = daemon(|heard, _| match heard.path.as_str() {
        "/api/v1/volumes/v/device" => Reply::json(404, json!({ "error": "mapping not found: record not found" })),
        "/api/v1/volumes/w/device" => Reply::Say(404, Vec::new(), "404 page not found".into()),
        "/api/v1/volumes/x/device" => Reply::json(
            200,
            json!({ "id": "", "vm_context_id": null, "volume_uuid": "x", "volume_id_numeric": null, "vm_id": "m",
                "operation_mode": "failover", "cloudstack_device_id": null, "requires_device_correlation": true,
                "device_path": "remote-vm-m", "cloudstack_state": "attached", "linux_state": "n/a", "size": 0,
                "snapshot_status": "none", "last_sync": "2025-08-04T07:32:59Z" }),
        ),
        other => panic!("{other}"),
    })
    .await;
    assert_eq!(daemon.device("v").await.unwrap(), None);
    let wrong = daemon.device("w").await.unwrap_err();
    assert_eq!(wrong.kind(), Kind::Unknown);
    assert!(wrong.to_string().contains("is its url right?"), "{wrong}");
    let found = daemon.device("x").await.unwrap().unwrap();
    assert_eq!((found.vm_id.as_deref(), found.path()), (Some("m"), None));
}

#[tokio::test]
async fn its_health_is_that_of_its_database() {
    for (database, well) in [("healthy", true), ("unhealthy: connection refused", false)] {
        let body = json!({ "status": "healthy", "database_health": database, "cloudstack_health": "not_implemented" });
        let (daemon, _target) = daemon(move |_, _| Reply::json(200, body.clone())).await;
        assert_eq!(daemon.health().await.unwrap().is_well(), well);
    }
    let (daemon, _target) = daemon(|_, _| Reply::json(200, json!({ "status": "healthy" }))).await;
    assert_eq!(daemon.health().await.unwrap_err().kind(), Kind::Unknown, "that alone means nothing");
}

#[tokio::test]
async fn exports_and_snapshots_are_kept_and_forgotten() {
    let (daemon, target) = daemon(|heard, _| match (heard.method.as_str(), heard.path.as_str()) {
        ("POST", "/api/v1/exports") => Reply::json(
            201,
            json!({ "id": "e", "volume_id": "v", "export_name": "migration-vol-v", "status": "pending", "port": 10809 }),
        ),
        ("DELETE", "/api/v1/exports/v") => Reply::json(200, json!({ "message": "deleted" })),
        ("DELETE", "/api/v1/exports/w") => Reply::json(404, json!({ "error": "export not found" })),
        ("POST", "/api/v1/snapshots/track") => Reply::json(200, json!({ "message": "tracked", "volume_uuid": "v" })),
        ("DELETE", "/api/v1/snapshots/vm/c") => Reply::json(200, json!({ "message": "m", "snapshots_cleared": 2 })),
        other => panic!("{other:?}"),
    })
    .await;
    let export = CreateExport { volume: "v".into(), vm_name: "web".into(), vm: "m".into(), disk_number: 1 };
    assert_eq!(daemon.create_export(&export).await.unwrap().export_name, "migration-vol-v");
    assert!(daemon.delete_export("v").await.unwrap());
    assert!(!daemon.delete_export("w").await.unwrap(), "it was not there");
    let snapshot = TrackSnapshot {
        volume: "v".into(),
        vm_context: "c".into(),
        snapshot: "s".into(),
        name: Some("n".into()),
        ..TrackSnapshot::default()
    };
    daemon.track_snapshot(&snapshot).await.unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&target.heard().last().unwrap().body).unwrap(),
        json!({ "volume_uuid": "v", "vm_context_id": "c", "snapshot_id": "s", "snapshot_name": "n" })
    );
    assert_eq!(daemon.forget_snapshots("c").await.unwrap(), 2);
}

#[tokio::test]
async fn what_names_nothing_is_not_sent() {
    let (daemon, target) = daemon(|_, _| Reply::status(500)).await;
    for trouble in [
        daemon.attach("", "m").await.unwrap_err(),
        daemon.attach("v", "").await.unwrap_err(),
        daemon.detach("..").await.unwrap_err(),
        daemon.delete_export("a\nb").await.unwrap_err(),
    ] {
        assert_eq!((trouble.kind(), trouble.applied()), (Kind::Refused, Applied::No));
    }
    assert_eq!(target.heard().len(), 0);
    let failed = daemon.detach("a/b").await.unwrap_err();
    assert_eq!((failed.kind(), failed.applied()), (Kind::Internal, Applied::Maybe));
    assert_eq!(target.heard()[0].path, "/api/v1/volumes/a%2Fb/detach");
    let (daemon, _target) = self::daemon(|_, _| Reply::json(400, json!({ "error": "bad JSON" }))).await;
    let refused = daemon.detach("v").await.unwrap_err();
    assert_eq!((refused.kind(), refused.applied(), refused.text()), (Kind::Refused, Applied::No, "bad JSON"));
}
