//! The client of the VMA, against what the real one answers.

use std::future::pending;

use backstay_activities::remote::{Kind, SecretName, Trouble, Word};
use backstay_activities::vma::{Copying, NbdTarget, Power, Replicate, VCenter, Vma, VmaSettings};
use backstay_engine::machine::Applied;
use backstay_engine::{Failure, Span};
use serde_json::{Value, json};

use crate::support::{Heard, Reply, Target, secrets_for};

const PASSWORD: &str = "vc pw&canary/\"1\"";

struct House {
    vma: Vma,
    target: Target,
    dir: tempfile::TempDir,
    vcenter: VCenter,
}

async fn house(answer: impl Fn(&Heard, usize) -> Reply + Send + Sync + 'static) -> House {
    let target = Target::new(answer).await;
    let (dir, secrets) = secrets_for(&target, &[("vc-password", PASSWORD), ("vc-user", "anna-canary")]);
    let settings = VmaSettings {
        url: target.url("/api/v1"),
        power_poll: Span::millis(5),
        power_off_wait: Span::millis(300),
        ..VmaSettings::default()
    };
    let vcenter = VCenter {
        host: "vc.example".into(),
        datacenter: "DC1".into(),
        username: Word::Secret(SecretName::new("vc-user")),
        password: SecretName::new("vc-password"),
    };
    House { vma: Vma::new(settings, secrets).unwrap(), target, dir, vcenter }
}

fn power(success: bool, state: &str) -> Reply {
    Reply::json(
        200,
        json!({ "success": success, "vm_id": "u", "previous_state": "poweredOn", "new_state": state,
            "operation": "power-off", "shutdown_method": "graceful", "tools_status": "toolsOk", "duration_seconds": 5,
            "timestamp": "2025-08-04T07:32:59Z", "message": "done" }),
    )
}

fn state(state: &str) -> Reply {
    Reply::json(200, json!({ "vm_id": "u", "power_state": state, "tools_status": "toolsOk" }))
}

#[tokio::test]
async fn success_is_not_off_and_off_is_waited_for() {
    let house = house(|heard, nth| match (heard.method.as_str(), nth) {
        ("POST", _) => power(true, "poweredOn"),
        (_, 2) => state("poweredOn"),
        (_, 3) => Reply::Say(500, Vec::new(), "Failed to get power state: timeout".into()),
        (_, 4) => state("suspended"),
        _ => state("poweredOff"),
    })
    .await;
    let answer = house.vma.power_off("u", &house.vcenter, false).await.unwrap();
    assert_eq!((answer.new_state, answer.new_state.may_run()), (Power::On, true));
    let off = house.vma.wait_for_power("u", &house.vcenter, Power::Off, pending()).await.unwrap();
    assert_eq!(off.power_state, Power::Off);
    let heard = house.target.heard();
    assert_eq!(heard.len(), 5);
    assert_eq!(heard[0].path, "/api/v1/vm/u/power-off");
    let body: Value = serde_json::from_str(&heard[0].body).unwrap();
    let wanted = json!({ "vm_id": "u", "vcenter": "vc.example", "username": "anna-canary", "password": PASSWORD,
        "force": false, "timeout": 60, "wait_for_shutdown": true });
    assert_eq!(body, wanted, "it is told as long as the call may take");
    let url = url::Url::parse(&format!("http://x{}", heard[1].path)).unwrap();
    assert!(url.query_pairs().any(|(name, value)| name == "password" && value == PASSWORD));
}

#[tokio::test]
async fn a_machine_that_stays_on_is_waited_for_in_vain() {
    let house = house(|_, _| state("poweredOn")).await;
    let late = house.vma.wait_for_power("u", &house.vcenter, Power::Off, pending()).await.unwrap_err();
    assert_eq!((late.kind(), late.applied()), (Kind::Late, Applied::Maybe));
    let stop = std::future::ready(());
    let stopped = house.vma.wait_for_power("u", &house.vcenter, Power::Off, stop).await.unwrap_err();
    assert_eq!(stopped.kind(), Kind::Cancelled);
}

#[tokio::test]
async fn a_state_that_nobody_knows_counts_as_on() {
    for (said, wanted) in [
        (json!("poweredOff"), Power::Off),
        (json!("POWEREDOFF"), Power::Off),
        (json!("poweredOn"), Power::On),
        (json!("suspended"), Power::Suspended),
        (json!("unknown"), Power::Unknown),
        (json!("off"), Power::Unknown),
        (json!(null), Power::Unknown),
        (json!(""), Power::Unknown),
    ] {
        let body = json!({ "vm_id": "u", "power_state": said });
        let house = house(move |_, _| Reply::json(200, body.clone())).await;
        let state = house.vma.power_state("u", &house.vcenter).await.unwrap().power_state;
        assert_eq!((state, state.may_run()), (wanted, wanted != Power::Off), "{said}");
    }
    for body in ["{}", "poweredOff", "[\"poweredOff\"]", "{\"power_state\": {\"is\": \"poweredOff\"}}"] {
        let house = house(move |_, _| Reply::Say(200, Vec::new(), body.into())).await;
        assert_eq!(
            house.vma.power_state("u", &house.vcenter).await.unwrap_err().kind(),
            Kind::Unknown,
            "{body}"
        );
    }
}

#[tokio::test]
async fn both_vocabularies_of_a_copy_are_understood() {
    for (said, wanted) in [
        ("Queued", Copying::Running),
        ("Snapshotting", Copying::Running),
        ("STREAMING", Copying::Running),
        ("running", Copying::Running),
        ("Succeeded", Copying::Succeeded),
        ("completed", Copying::Succeeded),
        ("Completed", Copying::Succeeded),
        ("Failed", Copying::Failed),
        ("failed", Copying::Failed),
        ("cancelled", Copying::Unknown("cancelled".into())),
        ("Succeeded?", Copying::Unknown("Succeeded?".into())),
    ] {
        let body = json!({ "job_id": "j", "status": said, "sync_type": "incremental", "phase": "Transfer",
            "percentage": 41.5, "bytes_transferred": 10, "total_bytes": 20, "errors": [], "last_error": null,
            "throughput": { "current_mbps": 3 }, "disk_progresses": [{ "disk_id": 2000, "percent": "12.5%" }] });
        let house = house(move |_, _| Reply::json(200, body.clone())).await;
        let progress = house.vma.progress("j").await.unwrap().unwrap();
        assert_eq!((progress.status, progress.percentage), (wanted, 41.5), "{said}");
        assert_eq!(
            (progress.disk_progresses[0].disk_id.as_str(), progress.disk_progresses[0].percent),
            ("2000", 12.5)
        );
    }
}

#[tokio::test]
async fn a_job_that_is_not_known_is_no_end_and_a_text_is_no_progress() {
    // Older ones say it with the status 200.
    for status in [404, 200] {
        let gone = house(move |_, _| Reply::Say(status, Vec::new(), "job not found\n".into())).await;
        assert_eq!(gone.vma.progress("j").await.unwrap(), None, "{status}");
    }
    for (status, body) in [
        (200, "the job was not found, or it was"),
        (200, "{}"),
        (200, "{\"status\": null}"),
        (200, "{\"status\": \"completed\", \"percentage\": \"all\"}"),
        (200, "<html>"),
        (404, "404 page not found"),
        (404, "<html>Not Found</html>"),
    ] {
        let house = house(move |_, _| Reply::Say(status, Vec::new(), body.into())).await;
        assert_eq!(house.vma.progress("j").await.unwrap_err().kind(), Kind::Unknown, "{status} {body}");
    }
}

#[tokio::test]
async fn a_copy_is_begun_under_the_callers_id() {
    let house = house(|heard, _| {
        let sent: Value = serde_json::from_str(&heard.body).unwrap();
        let job = if sent["oma_url"] == "http://other" { json!("another") } else { sent["job_id"].clone() };
        Reply::json(200, json!({ "job_id": job, "status": "running", "vm_count": 1, "started_at": "x" }))
    })
    .await;
    let mut copy = Replicate {
        job: "j".into(),
        vm_paths: vec!["/DC1/vm/web 1".into()],
        oma_url: "http://oma".into(),
        targets: vec![NbdTarget {
            device_path: "nbd://127.0.0.1:10809/migration-vol-v".into(),
            vm_disk_id: 7,
            vmware_disk_key: "2000".into(),
        }],
    };
    assert_eq!(house.vma.replicate(&copy, &house.vcenter).await.unwrap().job_id, "j");
    let sent: Value = serde_json::from_str(&house.target.heard()[0].body).unwrap();
    assert_eq!(sent["nbd_targets"][0]["vmware_disk_key"], "2000");
    copy.oma_url = "http://other".into();
    let other = house.vma.replicate(&copy, &house.vcenter).await.unwrap_err();
    assert_eq!((other.kind(), other.applied()), (Kind::Unknown, Applied::Maybe));
}

/// The call for it was designed, and is not served by those that we know.
#[tokio::test]
async fn a_last_copy_is_begun_where_there_is_a_call_for_it() {
    for (status, body, served) in [
        (404, "404 page not found\n", false),
        (404, "<html>Not Found</html>", false),
        (405, "method not allowed", false),
        (501, "not implemented", false),
        (200, "{\"job_id\": \"last\", \"status\": \"started\", \"estimate_seconds\": 60}", true),
    ] {
        let house = house(move |_, _| Reply::Say(status, Vec::new(), body.into())).await;
        let begun = house.vma.final_sync("last", "u", &house.vcenter).await.unwrap();
        assert_eq!(begun.is_some(), served, "{status} {body}");
        let heard = &house.target.heard()[0];
        let sent: Value = serde_json::from_str(&heard.body).unwrap();
        assert_eq!(
            (heard.path.as_str(), &sent["job_id"], &sent["vm_id"]),
            ("/api/v1/sync/final", &json!("last"), &json!("u"))
        );
    }
    for (status, body, kind, applied) in [
        (404, "VM not found: u", Kind::Missing, Applied::No),
        (500, "Replication failed: snapshot", Kind::Internal, Applied::Maybe),
        (200, "{\"job_id\": \"another\"}", Kind::Unknown, Applied::Maybe),
        (200, "<html>", Kind::Unknown, Applied::Maybe),
    ] {
        let house = house(move |_, _| Reply::Say(status, Vec::new(), body.into())).await;
        let trouble = house.vma.final_sync("last", "u", &house.vcenter).await.unwrap_err();
        assert_eq!((trouble.kind(), trouble.applied()), (kind, applied), "{status} {body}");
    }
}

#[tokio::test]
async fn what_is_known_of_machines_is_read() {
    let vm = json!({ "id": "vm-42", "name": "web", "path": "/DC1/vm/web", "power_state": "poweredOn", "os_type": "windows",
        "guest_os": "windows", "memory_mb": 4096, "cpus": 0, "num_cpu": 0, "disks": [{ "id": "disk-2000", "size_gb": 40, "capacity_bytes": "42949672960",
        "unit_number": 0 }], "networks": [{ "label": "Network adapter 1", "network_name": "VM Network",
        "mac_address": "00:50:56:00:00:01", "connected": true }] });
    let again = vm.clone();
    let house = house(move |heard, _| match heard.path.split('?').next().unwrap() {
        "/api/v1/discover" => Reply::json(200, json!({ "vcenter": { "host": "h" }, "vms": [again] })),
        "/api/v1/vms/%2FDC1%2Fvm%2Fweb%201/cbt-status" => {
            Reply::json(200, json!({ "enabled": true, "vm_name": "web 1", "power_state": "poweredOn" }))
        }
        "/api/v1/vm-spec-changes" => Reply::json(
            200,
            json!({ "has_changes": false, "status": "error", "error_message": "login failed" }),
        ),
        "/api/v1/health" => Reply::json(200, json!({ "status": "healthy" })),
        "/api/v1/status/j" => {
            Reply::json(200, json!({ "job_id": "j", "status": "running", "progress_percent": 3 }))
        }
        other => panic!("{other}"),
    })
    .await;
    let found = house.vma.discover(&house.vcenter, Some("web")).await.unwrap().remove(0);
    assert_eq!((found.guest_os.as_deref(), found.disks[0].capacity_bytes), (Some("windows"), Some(40 << 30)));
    assert!(house.vma.cbt_status("/DC1/vm/web 1", &house.vcenter).await.unwrap().enabled);
    let failed = house.vma.spec_changes("/DC1/vm/web", &found, &house.vcenter).await.unwrap_err();
    assert_eq!((failed.kind(), failed.text()), (Kind::Internal, "login failed"));
    house.vma.health().await.unwrap();
    assert_eq!(house.vma.job_status("j").await.unwrap().unwrap().status, Copying::Running);
}

fn shown(trouble: Trouble) -> String {
    format!("{trouble}\n{trouble:?}\n{:?}", Failure::from(trouble.clone()))
}

#[tokio::test]
async fn no_password_is_in_any_error_whatever_comes_back() {
    for n in 0..6 {
        let house = house(move |heard, _| match n {
            0 => Reply::Say(
                500,
                Vec::new(),
                format!("login with {PASSWORD} failed; asked {} {}", heard.path, heard.body),
            ),
            1 => Reply::Silence(std::time::Duration::ZERO),
            2 => Reply::Raw(
                format!("HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n{}", heard.path).into_bytes(),
            ),
            3 => Reply::Say(
                200,
                Vec::new(),
                format!("{{\"power_state\": {{\"x\": {}}}}}", Value::from(PASSWORD)),
            ),
            4 => Reply::status(302).with(&format!("location: http://127.0.0.1:1{}", heard.path)),
            _ => Reply::Say(404, Vec::new(), format!("VM not found, said {}", heard.path)),
        })
        .await;
        for trouble in [
            house.vma.power_state("u", &house.vcenter).await.unwrap_err(),
            house.vma.power_off("u", &house.vcenter, true).await.unwrap_err(),
        ] {
            assert!(!shown(trouble.clone()).contains("canary"), "{n}: {trouble:?}");
        }
    }
    // And where nobody answers at all.
    let gone = house(|_, _| Reply::status(200)).await;
    let House { vma, target, vcenter, dir } = gone;
    drop(target);
    let trouble = vma.power_state("u", &vcenter).await.unwrap_err();
    assert!(!shown(trouble).contains("canary"));
    drop(dir);
    let trouble = vma.power_state("u", &vcenter).await.unwrap_err();
    assert!(!shown(trouble).contains("canary"));
}

#[tokio::test]
async fn a_password_changed_on_the_way_is_used_by_the_next_look() {
    let house = house(
        |heard, _| if heard.path.contains("second") { state("poweredOff") } else { state("poweredOn") },
    )
    .await;
    assert_eq!(house.vma.power_state("u", &house.vcenter).await.unwrap().power_state, Power::On);
    std::fs::write(house.dir.path().join("vc-password"), "second-password").unwrap();
    assert_eq!(house.vma.power_state("u", &house.vcenter).await.unwrap().power_state, Power::Off);
}

#[tokio::test]
async fn errors_are_texts() {
    for (status, text, kind, applied) in [
        (400, "vcenter, username, and password are required", Kind::Refused, Applied::No),
        (404, "VM not found: u", Kind::Missing, Applied::No),
        (500, "Failed to power off VM: timeout", Kind::Internal, Applied::Maybe),
        (
            500,
            "ServerFaultCode: Cannot complete login due to an incorrect user name or password.",
            Kind::Operator,
            Applied::No,
        ),
        (
            500,
            "ServerFaultCode: Permission to perform this operation was denied.",
            Kind::Operator,
            Applied::No,
        ),
    ] {
        let house =
            house(move |_, _| Reply::Say(status, vec!["content-type: text/plain".into()], text.into())).await;
        let trouble = house.vma.power_off("u", &house.vcenter, false).await.unwrap_err();
        assert_eq!((trouble.kind(), trouble.applied(), trouble.text()), (kind, applied, text));
    }
    let house = house(|_, _| power(false, "poweredOn")).await;
    let refused = house.vma.power_off("u", &house.vcenter, false).await.unwrap_err();
    assert_eq!((refused.kind(), refused.applied()), (Kind::Look, Applied::Maybe));
}
