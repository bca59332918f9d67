//! The VMware appliance: replication.

use std::time::Duration;

use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::truth::System;
use backstay_simulator::world::Cause;
use backstay_simulator::world::estate::{replica, source};
use backstay_simulator::world::things::{Content, Power};
use serde_json::{Value, json};

use super::sources::with;
use super::support::{Site, keys};

impl Site {
    /// Each of these disks into the export of this volume.
    fn request(&self, job: &str, name: &str, targets: &[(u32, uuid::Uuid)]) -> Value {
        let targets: Vec<Value> = targets
            .iter()
            .map(|(key, volume)| {
                json!({"device_path": format!("nbd://127.0.0.1:10809/migration-vol-{volume}"), "vm_disk_id": 7,
                    "vmware_disk_key": key.to_string()})
            })
            .collect();
        with(
            json!({"job_id": job, "vm_paths": [format!("/DatabanxDC/vm/{name}")], "oma_url": "http://oma", "nbd_targets": targets}),
        )
    }

    async fn replicates(&self, job: &str, name: &str, targets: &[(u32, uuid::Uuid)]) {
        let told = self.vma("POST /replicate", Some(self.request(job, name, targets))).await.is(200);
        assert_eq!(keys(&told), ["job_id", "started_at", "status", "vm_count"]);
        assert_eq!((&told["job_id"], &told["vm_count"]), (&json!(job), &json!(1)));
    }

    async fn progress(&self, job: &str) -> Value {
        self.vma(&format!("GET /progress/{job}"), None).await.is(200)
    }

    /// Its progress when it is over, and how far it was seen to be before.
    async fn over(&self, job: &str) -> (Value, Vec<f64>) {
        let mut seen = Vec::new();
        let last = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                let told = self.progress(job).await;
                seen.push(told["percentage"].as_f64().unwrap());
                let status = told["status"].as_str().unwrap().to_lowercase();
                if ["completed", "succeeded", "failed"].contains(&status.as_str()) {
                    return told;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        (last.await.expect("the job ends"), seen)
    }
}

fn both() -> [(u32, uuid::Uuid); 2] {
    [(2000, replica("sql-01", 2000)), (2001, replica("sql-01", 2001))]
}

#[tokio::test]
async fn replication_brings_each_disk_to_what_it_was_when_it_began() {
    for (lower, word) in [(true, "completed"), (false, "Succeeded")] {
        let site = Site::with(|state| {
            state.settings.vma.lower_case_words = lower;
            state.settings.vma.disk_ms = 60_000;
        })
        .await;
        for _ in 0..5 {
            site.truth().write(&source("sql-01"), 2001).unwrap();
        }
        let version = site.world().look(|state| state.sources[&source("sql-01")].disks[1].version);
        assert!(site.content(replica("sql-01", 2001)).replicated < version);
        site.replicates("job-1", "sql-01", &both()).await;
        site.until("the copy has its snapshot", |state| {
            !state.sources[&source("sql-01")].snapshots.is_empty()
        })
        .await;
        site.truth().write(&source("sql-01"), 2001).unwrap();
        let (last, seen) = site.over("job-1").await;
        assert_eq!((&last["status"], &last["percentage"]), (&json!(word), &json!(100.0)));
        assert!(seen.is_sorted() && seen.len() > 2, "{seen:?}");
        assert_eq!(
            site.content(replica("sql-01", 2001)).replicated,
            version,
            "what was written meanwhile is not on it"
        );
        assert!(site.world().look(|state| state.sources[&source("sql-01")].snapshots.is_empty()));
        for key in [
            "job_id",
            "sync_type",
            "phase",
            "current_operation",
            "bytes_transferred",
            "total_bytes",
            "throughput",
            "timing",
            "vm_info",
            "phases",
            "errors",
            "last_error",
            "disk_progresses",
        ] {
            assert!(!last[key].is_null(), "{key}");
        }
        assert_eq!(last["sync_type"], "incremental");
        assert_eq!(
            keys(&last["disk_progresses"][0]),
            ["bytes_transferred", "disk_id", "label", "percent", "status", "throughput_mbps", "total_bytes"]
        );
        assert!(site.broken().is_empty(), "{:?}", site.truth().violations());
        let status = site.vma("GET /status/job-1", None).await.is(200);
        assert_eq!(status["status"], "running", "only a cleanup changes it");
    }
}

#[tokio::test]
async fn a_job_is_known_by_its_export_too_and_forgotten_by_a_restart() {
    let site = Site::with(|state| state.settings.vma.disk_ms = 400_000).await;
    site.replicates("job-1", "sql-01", &both()).await;
    let by_export = site.progress(&format!("migration-vol-{}", replica("sql-01", 2000))).await;
    assert_eq!(by_export["job_id"], "job-1");
    let before = site.content(replica("sql-01", 2000));
    site.truth().restart(System::Vma, Duration::ZERO);
    for path in ["progress", "status"] {
        let gone = site.vma(&format!("GET /{path}/job-1"), None).await;
        assert_eq!((gone.status, gone.text.as_str()), (404, "job not found\n"));
        assert!(gone.kind.starts_with("text/plain"));
    }
    site.truth().set(|settings| settings.vma.not_found_is_200 = true);
    let gone = site.vma("GET /progress/job-1", None).await;
    assert_eq!((gone.status, gone.text.as_str()), (200, "job not found\n"));
    // Its copy is dead: another job goes from the beginning to the end, and the first has still written nothing.
    site.truth().set(|settings| settings.vma.disk_ms = 800_000);
    site.replicates("job-2", "web-01", &[(2000, replica("web-01", 2000))]).await;
    site.over("job-2").await;
    assert_eq!(site.content(replica("sql-01", 2000)), before);
    assert_eq!(
        site.world().look(|state| state.sources[&source("sql-01")].snapshots.len()),
        1,
        "nobody took it away"
    );
}

#[tokio::test]
async fn a_job_can_stick_fail_and_be_lost() {
    let site = Site::small().await;
    let rules = [(1, Fault::Stuck), (2, Fault::JobFails { code: 500 })];
    for (nth, fault) in rules {
        site.centre.faults().rule(Rule::nth("vma", "POST /replicate", nth, fault));
    }
    let before = site.content(replica("sql-01", 2000));
    site.replicates("stuck", "sql-01", &both()).await;
    site.replicates("fails", "sql-01", &both()).await;
    let (last, _) = site.over("fails").await;
    assert_eq!(last["status"], "failed");
    assert!(last["last_error"].as_str().unwrap().contains("write failed"));
    let stuck = site.progress("stuck").await;
    assert_eq!(stuck["status"], "Streaming");
    assert!(stuck["percentage"].as_f64().unwrap() < 100.0);
    assert_eq!(site.content(replica("sql-01", 2000)), Content { torn: true, ..before });
    site.centre.faults().rule(Rule::every("vma", "GET /progress/*", Fault::JobLost).once());
    assert_eq!(site.vma("GET /progress/stuck", None).await.status, 404);
    site.progress("stuck").await;
}

#[tokio::test]
async fn an_export_that_is_not_there_fails_the_job() {
    let site = Site::small().await;
    let volume = replica("web-01", 2000);
    site.daemon(&format!("DELETE /exports/{volume}"), None).await.is(200);
    site.replicates("job-1", "web-01", &[(2000, volume)]).await;
    let (last, _) = site.over("job-1").await;
    assert_eq!(last["status"], "failed");
    assert!(last["errors"][0].as_str().unwrap().contains("no export named"), "{last}");
    let nowhere = site.vma("POST /replicate", Some(site.request("job-2", "nowhere", &[]))).await;
    assert_eq!(
        (nowhere.status, nowhere.text.as_str()),
        (500, "Replication failed: VM not found: /DatabanxDC/vm/nowhere\n")
    );
    assert_eq!(site.vma("POST /replicate", Some(json!({}))).await.status, 400);
}

/// Several source disks of one VM written into one volume: nothing stops it, and it is seen.
#[tokio::test]
async fn a_disk_that_is_written_into_anothers_volume_destroys_it_and_is_recorded() {
    let site = Site::small().await;
    let target = replica("sql-01", 2000);
    site.replicates("job-1", "sql-01", &[(2000, target), (2001, target)]).await;
    site.over("job-1").await;
    assert!(site.content(target).mixed);
    assert_eq!(site.broken(), ["wrong disk"]);
}

#[tokio::test]
async fn the_last_sync_of_a_source_that_is_on_is_recorded() {
    let site = Site::with(|state| state.settings.vma.has_final_sync = true).await;
    site.replicates("final-1", "web-01", &[(2000, replica("web-01", 2000))]).await;
    site.over("final-1").await;
    assert_eq!(site.broken(), ["I5"]);
    let off = Cause::new("test", "off", "");
    site.world().change(off, |state| state.source_power(&source("web-01"), Power::Off).unwrap());
    let told = site
        .vma("POST /sync/final", Some(json!({"job_id": "last", "vm_id": source("web-01")})))
        .await
        .is(200);
    assert_eq!(keys(&told), ["estimate_seconds", "job_id", "status"]);
    site.over("last").await;
    assert_eq!(site.broken(), ["I5"]);
    let (had, is) = site.world().look(|state| {
        (
            state.sources[&source("web-01")].disks[0].version,
            state.volumes[&replica("web-01", 2000)].content.replicated,
        )
    });
    assert_eq!(had, is);
}

#[tokio::test]
async fn the_copy_process_pushes_its_own_words_and_a_cleanup_takes_the_snapshots() {
    let site = Site::small().await;
    let push =
        json!({"stage": "Transfer", "status": "completed", "bytes_transferred": 10, "total_bytes": 10});
    let told = site.vma("POST /progress/made-up/update", Some(push)).await.is(200);
    assert_eq!(told["status"], "success");
    let made_up = site.progress("made-up").await;
    assert_eq!((&made_up["status"], &made_up["percentage"]), (&json!("completed"), &json!(100.0)));

    site.centre.faults().rule(Rule::nth("vma", "POST /replicate", 1, Fault::JobFails { code: 500 }));
    site.replicates("job-1", "web-01", &[(2000, replica("web-01", 2000))]).await;
    site.over("job-1").await;
    let snapshots = |site: &Site| site.world().look(|state| state.sources[&source("web-01")].snapshots.len());
    assert_eq!(snapshots(&site), 1, "a copy that failed leaves its snapshot");
    assert_eq!(
        site.vma("POST /cleanup", Some(json!({"job_id": "job-1", "action": "burn"}))).await.status,
        400
    );
    let told =
        site.vma("POST /cleanup", Some(json!({"job_id": "job-1", "action": "cleanup_all"}))).await.is(200);
    assert_eq!(keys(&told), ["action", "job_id", "status"]);
    assert_eq!(snapshots(&site), 0);
    assert_eq!(site.vma("GET /status/job-1", None).await.is(200)["status"], "completed");
}

#[tokio::test]
async fn the_appliance_can_be_started_anew_in_the_middle_of_a_copy() {
    let site = Site::small().await;
    site.centre.faults().rule(Rule::nth("vma", "POST /replicate", 1, Fault::JobLost));
    let before = site.content(replica("sql-01", 2000));
    site.replicates("lost", "sql-01", &both()).await;
    site.until("it is started anew", |state| state.vma.life > 1 && state.vma.jobs.is_empty()).await;
    assert_eq!(site.vma("GET /progress/lost", None).await.status, 404);
    site.replicates("again", "sql-01", &both()).await;
    assert_eq!(site.over("again").await.0["status"], "completed");
    assert!(site.content(replica("sql-01", 2000)).replicated >= before.replicated);
}

#[tokio::test]
async fn a_volume_that_a_copy_writes_to_is_not_let_go_and_is_torn_until_a_copy_has_ended() {
    let site = Site::with(|state| state.settings.vma.disk_ms = 400_000).await;
    let volume = replica("web-01", 2000);
    site.replicates("slow", "web-01", &[(2000, volume)]).await;
    let world = site.centre.world();
    let begun = world.until(|state| state.volumes[&volume].content.torn);
    tokio::time::timeout(Duration::from_secs(5), begun).await.unwrap();
    let uses = || world.look(|state| state.guest_uses(volume, state.oma));
    assert!(uses());
    site.over("slow").await;
    assert!(!uses() && !site.content(volume).torn);
}
