//! Async jobs: their ids, their lines, and what a restart of the management server does to them.

use std::time::Duration;

use backstay_simulator::truth::System;
use backstay_simulator::world::Cause;
use backstay_simulator::world::estate;
use backstay_simulator::world::things::{Power, VmState, VolumeState};
use serde_json::json;
use uuid::Uuid;

use crate::client::{Site, site};

fn web() -> Uuid {
    estate::replica("web-01", 2000)
}

#[tokio::test]
async fn a_job_has_the_id_that_its_caller_chose_and_no_two_have_one() {
    let site = site(|state| state.settings.cloudstack.attach_ms = 50_000).await;
    let (id, volume) = (Uuid::new_v4().to_string(), web().to_string());
    let detach = [("id", volume.as_str()), ("customjobid", id.as_str())];
    assert_eq!(site.cloud.ok("detachVolume", &detach).await["jobid"], id);
    let twice = site.cloud.call("detachVolume", &detach).await.unwrap_err();
    assert!(twice.0 == 431 && twice.1.contains("already exists"), "{twice:?}");
    site.cloud.wait(&id).await.unwrap();
    assert_eq!(site.cloud.call("detachVolume", &detach).await.unwrap_err().0, 530, "the id is used for ever");
    let shouted = id.to_uppercase();
    assert_eq!(
        site.cloud.call("detachVolume", &[("id", &volume), ("customjobid", &shouted)]).await.unwrap_err().0,
        431
    );
    assert_eq!(site.site.truth().effect("detachVolume"), 1);
}

#[tokio::test]
async fn a_creation_with_a_used_job_id_leaves_one_more_row() {
    let site = site(|_| ()).await;
    let (id, volume) = (Uuid::new_v4().to_string(), web().to_string());
    site.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
    let take = [("volumeid", volume.as_str()), ("name", "s"), ("customjobid", id.as_str())];
    site.cloud.job("createSnapshot", &take).await.unwrap();
    assert_eq!(site.cloud.call("createSnapshot", &take).await.unwrap_err().0, 530);
    let told = site.cloud.ok("listSnapshots", &[("volumeid", &volume)]).await;
    assert_eq!(told["count"], 2, "it was made before its job was looked at");
}

#[tokio::test]
async fn jobs_of_one_vm_run_one_after_the_other_and_those_of_others_do_not_wait() {
    let site = site(|state| state.settings.cloudstack.attach_ms = 40_000).await;
    let disks = [2000, 2001, 2002].map(|key| estate::replica("db-01", key).to_string());
    let mut jobs = Vec::new();
    for disk in &disks {
        jobs.push(site.cloud.ok("detachVolume", &[("id", disk)]).await["jobid"].as_str().unwrap().to_owned());
    }
    let pending = site.cloud.ok("listAsyncJobs", &[]).await;
    assert_eq!(pending["count"], 3);
    let shown = site.cloud.ok("listVolumes", &[("id", &disks[2])]).await;
    assert_eq!(
        (&shown["volume"][0]["jobid"], &shown["volume"][0]["jobstatus"]),
        (&json!(jobs[2]), &json!(0))
    );
    // Another VM's job is through while the OMA's line still waits.
    let vm = site.deploy("other", false).await;
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    assert_eq!(site.cloud.ok("queryAsyncJobResult", &[("jobid", &jobs[2])]).await["jobstatus"], 0);
    for job in &jobs {
        site.cloud.wait(job).await.unwrap();
    }
    let over = site.site.world().look(|state| {
        jobs.iter()
            .map(|id| state.cloudstack.jobs[&id.parse().unwrap()].completed.unwrap())
            .collect::<Vec<_>>()
    });
    assert!(over[1] - over[0] > chrono::TimeDelta::milliseconds(70), "{over:?}");
    assert!(over[2] - over[1] > chrono::TimeDelta::milliseconds(70), "{over:?}");
    let told = site.cloud.ok("queryAsyncJobResult", &[("jobid", &jobs[0])]).await;
    assert_eq!(
        (&told["jobresultcode"], &told["jobinstancetype"], &told["jobinstanceid"]),
        (&json!(0), &json!("Volume"), &json!(disks[0]))
    );
    assert!(told["completed"].as_str().unwrap().ends_with("+0000"), "{told}");
}

#[tokio::test]
async fn a_job_that_is_purged_is_unknown() {
    let site = site(|state| {
        state.configurations.insert("job.expire.minutes".into(), "0".into());
    })
    .await;
    let volume = web().to_string();
    let id = Uuid::new_v4().to_string();
    site.cloud.ok("detachVolume", &[("id", &volume), ("customjobid", &id)]).await;
    site.site.world().until(|state| state.volumes[&web()].attached.is_none()).await;
    site.site.world().until(|state| !state.cloudstack.is_pending(id.parse().unwrap())).await;
    assert_eq!(site.cloud.call("queryAsyncJobResult", &[("jobid", &id)]).await.unwrap_err().0, 431);
    let again = site
        .cloud
        .call("attachVolume", &[("id", &volume), ("virtualmachineid", &site.oma()), ("customjobid", &id)])
        .await;
    assert_eq!(again.unwrap_err().0, 530, "its id is used for ever");
}

/// Waits until a volume's row or a VM's row is on its way.
async fn under_way(site: &Site, what: impl FnMut(&backstay_simulator::world::State) -> bool) {
    tokio::time::timeout(Duration::from_secs(5), site.site.world().until(what)).await.expect("it begins");
}

#[tokio::test]
async fn a_restart_fails_a_start_that_the_hypervisor_does_all_the_same_and_power_sync_finds_out() {
    let site = site(|state| {
        state.settings.cloudstack.start_ms = 100_000;
        state.settings.cloudstack.ping_ms = 150_000;
    })
    .await;
    let vm = site.deploy("slow", false).await;
    let id: Uuid = vm.parse().unwrap();
    let job =
        site.cloud.ok("startVirtualMachine", &[("id", &vm)]).await["jobid"].as_str().unwrap().to_owned();
    under_way(&site, |state| state.vms[&id].state == VmState::Starting).await;
    site.site.truth().restart(System::CloudStack, Duration::from_millis(50));
    assert!(site.cloud.raw("listZones", &[]).await.is_err(), "it is away");
    tokio::time::sleep(Duration::from_millis(60)).await;
    let told = site.cloud.ok("queryAsyncJobResult", &[("jobid", &job)]).await;
    assert_eq!((&told["jobstatus"], &told["jobresultcode"]), (&json!(2), &json!(530)));
    assert_eq!(told["jobresult"], "job cancelled because of management server restart or shutdown");
    assert_eq!(site.vm_state(&vm), VmState::Stopped);
    under_way(&site, |state| state.vms[&id].power == Power::On).await;
    under_way(&site, |state| state.vms[&id].state == VmState::Running).await;
    assert_eq!(site.site.truth().effect("startVirtualMachine"), 0, "the job did not do it");
    assert_eq!(site.site.truth().effect("power on"), 1, "the hypervisor did");
}

#[tokio::test]
async fn an_attachment_that_a_restart_hid_fails_when_it_is_repeated_or_is_adopted() {
    let site = site(|state| state.settings.cloudstack.attach_ms = 50_000).await;
    let (volume, oma) = (web().to_string(), site.oma());
    site.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
    let attach = [("id", volume.as_str()), ("virtualmachineid", oma.as_str())];
    site.cloud.ok("attachVolume", &attach).await;
    under_way(&site, |state| state.volumes[&web()].state == VolumeState::Attaching).await;
    site.site.truth().restart(System::CloudStack, Duration::ZERO);
    let row = site.volume(web());
    assert_eq!((row.state, row.attached), (VolumeState::Ready, None), "the row fell back");
    under_way(&site, |state| !state.volumes[&web()].plugged.is_empty()).await;
    assert!(site.volume(web()).attached.is_none(), "plugged, and no row says so");
    let told = site.cloud.job("attachVolume", &attach).await.unwrap_err();
    assert!(told.0 == 530 && told.1.contains("target already exists"), "{told:?}");
    site.site.truth().set(|settings| settings.cloudstack.adopt_what_is_plugged = true);
    site.cloud.job("attachVolume", &attach).await.unwrap();
}

#[tokio::test]
async fn a_job_that_waited_in_line_at_a_restart_never_runs() {
    let site = site(|state| state.settings.cloudstack.attach_ms = 50_000).await;
    let disks = [2000, 2001].map(|key| estate::replica("db-01", key));
    for disk in disks {
        site.cloud.ok("detachVolume", &[("id", &disk.to_string())]).await;
    }
    site.site.truth().restart(System::CloudStack, Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(150)).await;
    under_way(&site, |state| state.volumes[&disks[0]].plugged.is_empty()).await;
    let [first, second] = disks.map(|disk| site.volume(disk));
    assert!(first.attached.is_some() && second.attached.is_some(), "no row changed");
    assert!(!second.plugged.is_empty(), "the hypervisor was never told of the second");
    assert_eq!(site.cloud.ok("listAsyncJobs", &[("listall", "true")]).await, json!({}));
}

#[tokio::test]
async fn an_old_management_server_leaves_transitional_states_behind() {
    let site = site(|state| {
        state.settings.cloudstack.start_ms = 100_000;
        state.settings.cloudstack.restart_leaves_transitions = true;
    })
    .await;
    let vm = site.deploy("stuck", false).await;
    let id: Uuid = vm.parse().unwrap();
    site.cloud.ok("startVirtualMachine", &[("id", &vm)]).await;
    under_way(&site, |state| state.vms[&id].state == VmState::Starting).await;
    site.site.truth().restart(System::CloudStack, Duration::ZERO);
    assert_eq!(site.vm_state(&vm), VmState::Starting);
}

#[tokio::test]
async fn in_maintenance_no_job_is_taken_in() {
    let site = site(|state| state.settings.cloudstack.maintenance = true).await;
    let told = site.cloud.call("detachVolume", &[("id", &web().to_string())]).await.unwrap_err();
    assert_eq!(told.0, 503);
    site.cloud.ok("listZones", &[]).await;
}

#[tokio::test]
async fn power_sync_sees_a_guest_that_went_down_by_itself() {
    let site = site(|_| ()).await;
    let vm = site.deploy("guest", false).await;
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    let id: Uuid = vm.parse().unwrap();
    site.site.world().change(Cause::new("guest", "shutdown", ""), |state| state.power_off(id));
    under_way(&site, |state| state.vms[&id].state == VmState::Stopped).await;
}

#[tokio::test]
async fn another_system_waits_for_a_job_through_the_same_door() {
    let site = site(|_| ()).await;
    let (volume, world) = (web().to_string(), site.site.world());
    let told =
        backstay_simulator::cloudstack::perform(world, "daemon", "detachVolume", &[("id", &volume)]).await;
    assert!(told.unwrap()["volume"]["virtualmachineid"].is_null());
    let twice =
        backstay_simulator::cloudstack::perform(world, "daemon", "detachVolume", &[("id", &volume)]).await;
    assert_eq!(twice.unwrap_err().code, 431);
}
